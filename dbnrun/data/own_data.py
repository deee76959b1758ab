"""Data from a function of the user's own, in the form that training takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dbnrun.config.registry import UserError
from dbnrun.data.dataset import Data, Part, split_off


def as_data(loaded: Any, target: str, val_size: float) -> Data:
    """What a user's function returned as `Data`: that itself, or a pair (train, test) of map-style torch datasets.

    Such a dataset yields pairs (x, class) of like shape; it is read into memory once, and `val_size` of its training
    part are split off for validation. Raises UserError where it is neither.
    """
    if isinstance(loaded, Data):
        return replace(loaded, digest=digest_of(loaded))
    if not isinstance(loaded, tuple) or len(loaded) != 2:
        raise UserError(
            f"dataset.target={target}: returned {type(loaded).__name__}; expected dbnrun.data.dataset.Data, or a pair "
            "(train, test) of torch datasets."
        )
    whole, test = (_part(each, target) for each in loaded)
    train, val = (torch.from_numpy(index) for index in split_off(len(whole), val_size))
    classes = int(max(whole.y.max(), test.y.max())) + 1
    parts = Part(whole.x[train], whole.y[train]), Part(whole.x[val], whole.y[val]), test
    data = Data(*parts, tuple(whole.x.shape[1:]), classes, "")
    return replace(data, digest=digest_of(data))


def _part(dataset: Any, target: str) -> Part:
    try:
        pairs = [dataset[index] for index in range(len(dataset))]
        x = torch.stack([torch.as_tensor(np.asarray(x)) for x, _ in pairs]).float()
        y = torch.tensor([int(y) for _, y in pairs])
    except Exception as error:  # whatever another's data set makes of being read
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"dataset.target={target}: {said}; expected data sets of pairs (x, class), x of like shape."
        ) from None
    if not len(y) or int(y.min()) < 0 or not x.isfinite().all():
        raise UserError(f"dataset.target={target}: expected records with finite values and classes 0, 1, ….")
    return Part(x, y)


def digest_of(data: Data) -> str:
    """SHA-256 over every tensor of the data."""
    digest = hashlib.sha256()
    for part in (data.train, data.val, data.test):
        for tensor in (part.x, part.y):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


_digests: dict[str, str] = {}


def remembered_digest(key: str, made: Callable[[], str]) -> str:
    """The digest of a configuration's data, which is loaded once a process to know it."""
    if key not in _digests:
        _digests[key] = made()
    return _digests[key]
