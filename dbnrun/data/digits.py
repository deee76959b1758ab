"""1,797 handwritten digits of 8x8 pixels, embedded in scikit-learn."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from dbnrun.choices import UserError
from dbnrun.data import options
from dbnrun.data.parts import SPLIT_SEED, Data, Part, split_off
from dbnrun.data.source import expected_digest

TEST_RECORDS = 360


def load(config: options.Digits, _data_dir: Path) -> Data:
    """Images (1, 8, 8) in [0, 1]: 360 test records, `val_size` for validation, the rest for training."""
    from sklearn.datasets import load_digits

    flat, target = load_digits(return_X_y=True)
    images, labels = np.asarray(flat).reshape(-1, 8, 8).astype(np.uint8), np.asarray(target).astype(np.uint8)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if digest != expected_digest("digits"):
        raise UserError(
            "dataset=digits: this scikit-learn embeds other digits; install the version of constraints.txt."
        )
    # The records lie in the order of their writers: without a shuffle the test part would be other people's hands.
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    images, labels = images[order], labels[order]

    def part(index: np.ndarray) -> Part:
        x = torch.from_numpy(images[index]).float().div_(16)
        return Part(x.unsqueeze(1), torch.from_numpy(labels[index]).long())

    train, val = split_off(len(labels) - TEST_RECORDS, config.val_size)
    test = np.arange(len(labels) - TEST_RECORDS, len(labels))
    return Data(part(train), part(val), part(test), (1, 8, 8), 10, digest)
