"""NI: network intrusion, KDD Cup 1999. The 10 % file trains, the corrected file tests; five classes.

Features, 118 columns: the 38 numeric ones in the file's order, then one column a category of protocol (3), service (66)
and flag (11), the categories of the training file in alphabetical order; an unseen category is all zeros.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbnrun.data import options
from dbnrun.data.cache import read_arrays, write_arrays
from dbnrun.data.dataset import SPLIT_SEED, Data, Part, fixed_shuffle, validation_count
from dbnrun.data.download import ensure

CLASSES = ("normal", "probe", "dos", "u2r", "r2l")

# Every label of both files, by family.
FAMILIES = {
    "normal": ("normal",),
    "probe": ("ipsweep", "mscan", "nmap", "portsweep", "saint", "satan"),
    "dos": ("apache2", "back", "land", "mailbomb", "neptune", "pod", "processtable", "smurf", "teardrop", "udpstorm"),
    "u2r": ("buffer_overflow", "httptunnel", "loadmodule", "perl", "ps", "rootkit", "sqlattack", "xterm"),
    "r2l": (
        "ftp_write", "guess_passwd", "imap", "multihop", "named", "phf", "sendmail", "snmpgetattack", "snmpguess",
        "spy", "warezclient", "warezmaster", "worm", "xlock", "xsnoop",
    ),
}  # fmt: skip
CLASS_OF = {label: CLASSES.index(family) for family, labels in FAMILIES.items() for label in labels}

FIELDS = 42
CATEGORICAL = (1, 2, 3)  # protocol, service, flag
LABEL = 41
NUMERIC = tuple(i for i in range(FIELDS) if i not in (*CATEGORICAL, LABEL))
UNSEEN = 255  # the code of a category that the training file does not have: -1 as uint8
PARSE_VERSION = 1  # raise when Encoded changes, so that older caches are left alone


@dataclass(frozen=True)
class Records:
    """A parsed file: numeric (N, 38) float32 as in the file, categories (N, 3) of text, y (N,), and for each record
    the number of its group of identical ones."""

    numeric: np.ndarray
    categories: np.ndarray
    y: np.ndarray
    group: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """Both files with categories as codes into the training file's vocabulary; what the cache holds."""

    train_numeric: np.ndarray  # (N, 38) float32
    train_codes: np.ndarray  # (N, 3) uint8
    train_y: np.ndarray  # (N,) uint8
    train_group: np.ndarray  # (N,) int32
    test_numeric: np.ndarray
    test_codes: np.ndarray
    test_y: np.ndarray
    sizes: np.ndarray  # (3,) categories of protocol, service, flag


def load(config: options.NI, data_dir: Path) -> Data:
    """Features (118,), in [0, 1] on the training part where `features` is log. See the module's docstring."""
    encoded = _cached(data_dir)
    train, val = split_groups(encoded.train_group, config.val_size)
    scaling = [
        _scaling(_transformed(encoded.train_numeric[train, column], config), config) for column in range(len(NUMERIC))
    ]

    def part(numeric: np.ndarray, codes: np.ndarray, y: np.ndarray) -> Part:
        x = torch.zeros((len(y), len(NUMERIC) + int(encoded.sizes.sum())))
        # In float64, a column at a time: a copy of all of them would be as large as the rest of the process.
        for column, (offset, factor) in enumerate(scaling):
            x[:, column] = torch.from_numpy((_transformed(numeric[:, column], config) - offset) * factor)
        _one_hot(x[:, len(NUMERIC) :], codes, encoded.sizes)
        return Part(x, torch.from_numpy(y).long())

    parts = [
        part(encoded.train_numeric[index], encoded.train_codes[index], encoded.train_y[index]) for index in (train, val)
    ]
    test = part(encoded.test_numeric, encoded.test_codes, encoded.test_y)
    # The file is long runs of one attack: in its order most batches would have the statistics of a single record.
    shuffle_order = fixed_shuffle(len(train))
    return Data(parts[0], parts[1], test, (parts[0].x.shape[1],), len(CLASSES), config.digest, shuffle_order)


def _transformed(column: np.ndarray, config: options.NI) -> np.ndarray:
    column = column.astype(np.float64)
    return np.log1p(column) if config.features == "log" else column


def _scaling(column: np.ndarray, config: options.NI) -> tuple[float, float]:
    """Offset and factor from a column's training part; one that is constant there becomes 0."""
    low, high = column.min(), column.max()
    if low == high:  # asked of the values, since rounding can leave a constant's deviation above 0
        return low, 0.0
    offset, spread = (low, high - low) if config.features == "log" else (column.mean(), column.std())
    return offset, 1 / spread


def _one_hot(columns: Tensor, codes: np.ndarray, sizes: np.ndarray) -> None:
    """Set the 1 of each record in each of the three blocks of columns; nothing for an unseen category."""
    start = 0
    for block, size in enumerate(sizes.tolist()):
        rows = np.flatnonzero(codes[:, block] != UNSEEN)
        columns[torch.from_numpy(rows), torch.from_numpy(codes[rows, block].astype(np.int64) + start)] = 1.0
        start += size


def split_groups(group: np.ndarray, val_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation part; records of one group lie on one side.

    Groups are taken in a fixed random order, each that still fits, so the part holds `val_size` records or a few less
    (never more), and the largest groups tend to stay in training.
    """
    remaining = validation_count(len(group), val_size)
    counts = np.bincount(group)
    chosen = np.zeros(len(counts), dtype=bool)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(counts))
    for number, count in zip(order.tolist(), counts[order].tolist(), strict=True):
        if count <= remaining:
            chosen[number] = True
            remaining -= count
    in_val = chosen[group]
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def _cached(data_dir: Path) -> Encoded:
    """Both files encoded, from the cache of these very files where there is a sound one."""
    if encoded := _read_cache(data_dir):
        return encoded
    ensure(options.NI, data_dir)
    train, test = (parse(gzip.decompress(path.read_bytes())) for path in _paths(data_dir))
    encoded = encode(train, test)
    with suppress(OSError):
        write_arrays(_cache_path(data_dir), vars(encoded))
    return encoded


def _paths(data_dir: Path) -> list[Path]:
    return [data_dir / download.files[0].path for download in options.NI.downloads]


def _cache_path(data_dir: Path) -> Path:
    """The name tells which files were parsed, as they lie there, and by which version."""
    key = hashlib.sha256(f"{PARSE_VERSION}".encode())
    for path in _paths(data_dir):
        key.update(hashlib.sha256(path.read_bytes()).digest())
    return data_dir / "cache" / f"ni-{key.hexdigest()[:16]}.npz"


def _read_cache(data_dir: Path) -> Encoded | None:
    with suppress(OSError, TypeError):  # a file is missing, or the cache holds other arrays
        if arrays := read_arrays(_cache_path(data_dir)):
            return Encoded(**arrays)
    return None


def parse(content: bytes) -> Records:
    """Read an official file's decompressed content. Its bytes are pinned, so it is not checked line by line."""
    import pandas as pd

    lines = np.array(content.splitlines(), dtype=object)
    kinds: Any = dict.fromkeys(NUMERIC, "float64") | dict.fromkeys((*CATEGORICAL, LABEL), "str")
    table = pd.read_csv(io.BytesIO(content), header=None, dtype=kinds, na_filter=False)
    y = table[LABEL].str.removesuffix(".").map(CLASS_OF)
    assert table.shape == (len(lines), FIELDS) and y.notna().all()
    return Records(
        table[list(NUMERIC)].to_numpy().astype(np.float32),
        table[list(CATEGORICAL)].to_numpy(dtype=object),
        y.to_numpy(dtype=np.uint8),
        pd.factorize(lines)[0].astype(np.int32),
    )


def encode(train: Records, test: Records) -> Encoded:
    """Categories as codes into the sorted vocabulary of the training file."""
    import pandas as pd

    vocabularies = [pd.Index(sorted(set(column))) for column in train.categories.T]

    def codes(records: Records) -> np.ndarray:
        blocks = zip(vocabularies, records.categories.T, strict=True)
        return np.array([vocabulary.get_indexer(column) for vocabulary, column in blocks]).astype(np.uint8).T

    return Encoded(
        train_numeric=train.numeric,
        train_codes=codes(train),
        train_y=train.y,
        train_group=train.group,
        test_numeric=test.numeric,
        test_codes=codes(test),
        test_y=test.y,
        sizes=np.array([len(vocabulary) for vocabulary in vocabularies]),
    )
