"""1,797 handwritten digits of 8x8 pixels, a file that comes with scikit-learn."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from dbnrun.config.registry import UserError
from dbnrun.data import options
from dbnrun.data.dataset import SPLIT_SEED, Data, Part, split_off

TEST_RECORDS = 360


def load(config: options.Digits, _data_dir: Path) -> Data:
    """Images (1, 8, 8) in [0, 1]: 360 test records, `val_size` for validation, the rest for training."""
    images, labels = _official()
    # The records lie in the order of their writers: without a shuffle the test part would be other people's hands.
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    images, labels = images[order], labels[order]

    def part(index: np.ndarray) -> Part:
        x = torch.from_numpy(images[index]).float().div_(16)
        return Part(x.unsqueeze(1), torch.from_numpy(labels[index]).long())

    train, val = split_off(len(labels) - TEST_RECORDS, config.val_size)
    test = np.arange(len(labels) - TEST_RECORDS, len(labels))
    return Data(part(train), part(val), part(test), (1, 8, 8), 10, config.digest)


def _official() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 8, 8) and classes (N,), uint8, from scikit-learn's file; importing the package would take a second."""
    package = find_spec("sklearn")  # finds a package of this name without importing it
    if package is None or package.origin is None:
        raise UserError("dataset=digits: the digits come with scikit-learn, which is missing; pip install it.")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(path, np.uint8, delimiter=",", ndmin=2)
    except Exception as error:  # whatever a damaged file makes the reader say
        raise UserError(f"dataset=digits: {path} cannot be read ({error}); install scikit-learn again.") from None
    images, labels = table[:, :-1], table[:, -1]
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != options.Digits.digest:
        raise UserError(
            "dataset=digits: this scikit-learn embeds other digits; install the version of constraints.txt."
        )
    return images.reshape(-1, 8, 8), labels
