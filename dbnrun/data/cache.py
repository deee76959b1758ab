"""What reading a user's files costs, paid once: their digest, and the arrays made of them, under data_dir/cache.

Imports no torch. A cache that cannot be written or read costs time, never a result.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from dbnrun import interrupt
from dbnrun.config.registry import UserError

# A file written again within a tick of the file system's clock keeps its time: so young a file is not remembered.
SETTLED = 1_000_000_000  # ns


def digest_of(files: Sequence[Path], root: Path, cache: Path) -> str:
    """SHA-256 over the names relative to `root`, in the order given, and the bytes of files.

    Remembered in the folder `cache` for as long as names, sizes and modification times stay. Raises UserError where a
    file cannot be read.
    """
    prefix = os.fsencode(root / "x")[:-1]  # pathlib's relative_to takes half a second for 60,000 files
    names = [os.fsencode(path).removeprefix(prefix) for path in files]
    try:
        stats = [path.stat() for path in files]
        facts = [f"{stat.st_size} {stat.st_mtime_ns}".encode() for stat in stats]
        key = _over(os.fsencode(root.resolve()), *(part for pair in zip(names, facts, strict=True) for part in pair))
        remembered = cache / f"digest-{key[:32]}.txt"
        if known := _remembered(remembered):
            return known
        contents = [_sha256(path) for path in files]
    except OSError as error:
        raise UserError(f"{error.filename or root}: cannot be read ({error.strerror or error}).") from None
    digest = _over(*(part for pair in zip(names, contents, strict=True) for part in pair))
    if time.time_ns() - max((stat.st_mtime_ns for stat in stats), default=0) > SETTLED:
        with suppress(OSError):
            _write(remembered, digest.encode())
    return digest


def _over(*parts: bytes) -> str:
    """SHA-256 over byte strings, each ended by a zero: no name of a file holds one."""
    return hashlib.sha256(b"".join(part + b"\0" for part in parts)).hexdigest()


def _sha256(path: Path) -> bytes:
    interrupt.check()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest().encode()


def _remembered(path: Path) -> str:
    try:
        text = path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ""
    return text if len(text) == 64 else ""


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        partial.write_bytes(content)
        os.replace(partial, path)


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file that `write_arrays` has made; None where there is none, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays) if arrays.zip.testzip() is None else None
    except Exception:  # a damaged zip file has many ways to say so
        return None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep arrays for the next load, whole or not at all; where that cannot be, the next load makes them again."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = Path(folder) / path.name
            np.savez(partial, **arrays)  # pyright: ignore[reportArgumentType]
            os.replace(partial, path)


def free_memory() -> int:
    """Free bytes of this machine as Linux counts them, elsewhere 4 GiB."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return 4 << 30
