"""NI: network intrusion, KDD Cup 1999. The 10 % file trains, the corrected file tests; five classes.

Features, 118 columns: the 38 numeric ones in the file's order, then one column a category of protocol (3), service (66)
and flag (11), the categories of the training file in alphabetical order; an unseen category is all zeros.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbnrun.config.registry import UserError
from dbnrun.data import options
from dbnrun.data.parts import SPLIT_SEED, Data, Part, mixed, validation_count
from dbnrun.data.source import SOURCES, DataFile, ensure, expected_digest, fault, missing, whole

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
NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
LARGEST = float(np.finfo(np.float32).max)
UNSEEN = 255  # the code of a category that the training file does not have
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
    mixing = mixed(len(train))
    return Data(parts[0], parts[1], test, (parts[0].x.shape[1],), len(CLASSES), expected_digest("ni"), mixing)


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
    files = [download.files[0] for download in SOURCES["ni"]]
    paths = [data_dir / file.path for file in files]
    if missing("ni", data_dir):
        ensure("ni", data_dir)
    key = hashlib.sha256(f"{PARSE_VERSION}".encode())
    for path in paths:
        try:
            key.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}); expected a readable file.") from None
    cache = data_dir / "cache" / f"ni-{key.hexdigest()[:16]}.npz"
    if encoded := _read_cache(cache):
        return encoded
    train, test = (parse(_content(path, file), path) for path, file in zip(paths, files, strict=True))
    encoded = encode(train, test)
    _write_cache(cache, encoded)
    return encoded


def _read_cache(path: Path) -> Encoded | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            encoded = Encoded(**arrays)
    except Exception:  # none, or damaged in one of a zip file's many ways: parse again
        return None
    return encoded if _is_whole(encoded) else None


def _is_whole(encoded: Encoded) -> bool:
    """Whether every array has its type and shape."""
    train, test = encoded.train_y.size, encoded.test_y.size
    expected = {
        "train_numeric": ("float32", (train, len(NUMERIC))),
        "train_codes": ("uint8", (train, len(CATEGORICAL))),
        "train_y": ("uint8", (train,)),
        "train_group": ("int32", (train,)),
        "test_numeric": ("float32", (test, len(NUMERIC))),
        "test_codes": ("uint8", (test, len(CATEGORICAL))),
        "test_y": ("uint8", (test,)),
        "sizes": ("int64", (len(CATEGORICAL),)),
    }
    found = {name: (array.dtype.name, array.shape) for name, array in vars(encoded).items()}
    return found == expected


def _write_cache(path: Path, encoded: Encoded) -> None:
    """Keep the parsed files for the next load; where that cannot be, the next load parses again."""
    with suppress(OSError), whole(path) as partial:
        np.savez(partial, **vars(encoded))


def _content(path: Path, file: DataFile) -> bytes:
    """The decompressed file if it is the official one; UserError with the first malformed line, if any, if not."""
    problem = fault(path, file)
    if not problem:
        return gzip.decompress(path.read_bytes())
    where = ""
    if not problem.startswith(("missing", "truncated", "cannot be read")):
        with gzip.open(path) as stream:
            read = stream.read(file.size + 1)
        # Of a file that goes on beyond the official size, the last line read is only a piece.
        where = first_malformed(read if len(read) <= file.size else read[: read.rfind(b"\n") + 1]) or ""
    raise UserError(f"{path}: {where or problem}. Fetch it again with `dbnrun data ni`.")


def parse(content: bytes, path: Path) -> Records:
    """Read a file's decompressed content. Raises UserError naming the first malformed line."""
    import pandas as pd

    lines = content.splitlines()
    try:
        if content.count(b",") != (FIELDS - 1) * len(lines) or not lines:
            raise ValueError("a line has too few or too many fields")
        # pandas would read a column of nothing but "True" as ones; then the first line has it.
        if problem := first_malformed(lines[0]):
            raise ValueError(problem)
        kinds: Any = dict.fromkeys(NUMERIC, "float64") | dict.fromkeys((*CATEGORICAL, LABEL), "str")
        table = pd.read_csv(
            io.BytesIO(content), header=None, names=list(range(FIELDS)), dtype=kinds, index_col=False,
            na_filter=False, quoting=3, encoding="ascii", skip_blank_lines=False,
        )  # fmt: skip
        numeric = table[list(NUMERIC)].to_numpy()
        if not ((numeric >= 0) & (numeric <= LARGEST)).all():  # false for NaN, too
            raise ValueError("a number is negative or not finite")
        y = table[LABEL].str.removesuffix(".").map(CLASS_OF)
        if y.isna().any():
            raise ValueError("a label is unknown")
    except (ValueError, OverflowError) as error:  # pandas' own errors are ValueErrors
        said = first_malformed(content) or " ".join(str(error).split())
        raise UserError(f"{path}: {said}. Fetch it again with `dbnrun data ni`.") from None
    group = pd.factorize(np.array(lines, dtype=object))[0]
    return Records(
        numeric.astype(np.float32),
        table[list(CATEGORICAL)].to_numpy(dtype=object),
        y.to_numpy(dtype=np.uint8),
        group.astype(np.int32),
    )


def first_malformed(content: bytes) -> str | None:
    """'line 17: what is wrong with it' for the first line that is no record; None where every line is one."""
    for number, line in enumerate(content.splitlines() or [b""], start=1):
        fields = line.split(b",")
        if len(fields) != FIELDS:
            return f"line {number}: {len(fields)} fields, expected {FIELDS}"
        for index in NUMERIC:
            if not _is_count(fields[index]):
                return f"line {number}: field {index + 1} is {_shown(fields[index])}, expected a number of at least 0"
        for index in (*CATEGORICAL, LABEL):
            if not fields[index].isascii():
                return f"line {number}: field {index + 1} is {_shown(fields[index])}, expected ASCII text"
        if fields[LABEL].decode().removesuffix(".") not in CLASS_OF:
            return f"line {number}: label {_shown(fields[LABEL])}, expected one of the {len(CLASS_OF)} known"
    return None


def _is_count(text: bytes) -> bool:
    return NUMBER.fullmatch(text.strip(b" \t")) is not None and 0 <= float(text) <= LARGEST


def _shown(text: bytes) -> str:
    return repr(text[:30].decode("ascii", "backslashreplace"))


def encode(train: Records, test: Records) -> Encoded:
    """Categories as codes into the sorted vocabulary of the training file."""
    vocabularies = [sorted(set(train.categories[:, block])) for block in range(3)]

    def codes(records: Records) -> np.ndarray:
        columns = []
        for block, vocabulary in enumerate(vocabularies):
            number = {name: code for code, name in enumerate(vocabulary)}
            columns.append([number.get(name, UNSEEN) for name in records.categories[:, block]])
        return np.array(columns, dtype=np.uint8).T

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
