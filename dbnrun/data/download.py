"""Official files: where they come from, fetching and verifying them. Imports no torch.

Each data set says its downloads in options.py. Its files lie under data_dir as the official loaders expect them.
Digests are of the decompressed content, so that a recompressed .gz is as good as the published one.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dbnrun import interrupt
from dbnrun.config.registry import UserError

if TYPE_CHECKING:
    from dbnrun.data.options import Dataset

CHUNK = 1 << 20
UNREADABLE = (OSError, EOFError, zlib.error, tarfile.TarError)  # what a file that is missing, cut off or damaged raises


@dataclass(frozen=True)
class DataFile:
    """A file under data_dir, and the digest of its content, decompressed where the name ends in .gz.

    SHA-256 in hexadecimal, or `md5:…` where its authors have published nothing else.
    """

    path: str
    digest: str


@dataclass(frozen=True)
class Download:
    """One file to fetch, from the first address that gives it, and the files that come of it.

    A .tar.gz holds its files under their paths. Any other .gz is one file, unpacked unless the path ends in .gz too.
    The files of a download share a folder.
    """

    urls: tuple[str, ...]
    files: tuple[DataFile, ...]

    @property
    def name(self) -> str:
        return self.urls[0].rpartition("/")[2]


def digest_of(downloads: Sequence[Download]) -> str:
    """SHA-256 that stands for the official content of these files, known without reading it."""
    lines = [f"{file.path} {file.digest}\n" for download in downloads for file in download.files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def missing(data: Dataset | type[Dataset], data_dir: Path) -> list[Path]:
    """The files of a data set that are not there; says nothing of what those that are there hold."""
    paths = [data_dir / file.path for download in data.downloads for file in download.files]
    return [path for path in paths if not path.exists()]


def faults(downloads: Sequence[Download], folder: Path) -> dict[str, str]:
    """What is wrong with the files of these downloads under `folder`, by path. Reads every byte of every file."""
    files = [file for download in downloads for file in download.files]
    found = {file.path: _fault(folder / file.path, file.digest) for file in files}
    return {path: fault for path, fault in found.items() if fault}


def _fault(path: Path, official: str) -> str:
    kind, _, digits = official.rpartition(":")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            digest = hashlib.file_digest(stream, kind or "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except UNREADABLE as error:
        return f"cannot be read: {_said(error)}"
    return "" if digest == digits else f"not the official file, {kind.upper() or 'SHA-256'} differs"


def ensure(data: Dataset | type[Dataset], data_dir: Path) -> None:
    """See that every file of a data set is there and official; fetch what is missing or differs.

    Each file gets its final name only once it is verified. Raises UserError where one cannot be had.
    """
    for download in data.downloads:
        if faults([download], data_dir) and (reason := _fetch(download, data_dir)):
            wrong = ", ".join(f"{path} ({fault})" for path, fault in faults(data.downloads, data_dir).items())
            raise UserError(
                f"dataset={data.registered}: cannot fetch {download.name} ({reason}). "
                f"Put the official files into {data_dir}: {wrong}; set DBNRUN_DATA to where the data lies, "
                f"or run `dbnrun data {data.registered}` where there is a network."
            )


def _fetch(download: Download, data_dir: Path) -> str:
    """Fetch from the first address that gives the official content; else what went wrong at each address."""
    reasons = []
    folder = (data_dir / download.files[0].path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for url in download.urls:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as staging:
                reason = _stage(url, download, Path(staging))
                if not reason:
                    for file in download.files:
                        os.replace(Path(staging) / file.path, data_dir / file.path)
                    return ""
                reasons.append(f"{url}: {reason}")
    except OSError as error:
        return f"{folder} cannot be written: {_said(error)}"
    return "; ".join(reasons)


def _stage(url: str, download: Download, staging: Path) -> str:
    """Fetch and unpack in `staging`; what is wrong with what came, or ''."""
    container = staging / "download"
    try:
        _retrieve(url, container)
        _unpack(container, download, staging)
    except UNREADABLE as error:
        return _said(error)
    return "; ".join(f"{path} in it is {fault}" for path, fault in faults([download], staging).items())


def _retrieve(url: str, path: Path) -> None:
    import requests
    from tqdm import tqdm

    with requests.get(url, stream=True, timeout=30) as answer, path.open("wb") as file:
        answer.raise_for_status()
        size = int(answer.headers.get("Content-Length", 0)) or None
        with tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar:  # None: shown on a terminal alone
            for chunk in answer.iter_content(CHUNK):
                interrupt.check()
                file.write(chunk)
                bar.update(len(chunk))


def _unpack(container: Path, download: Download, staging: Path) -> None:
    """Write each file under its path. Of an archive only plain files of these paths are taken: no link is followed."""
    paths = [file.path for file in download.files]
    for path in paths:
        (staging / path).parent.mkdir(parents=True, exist_ok=True)
    if download.name.endswith(".tar.gz"):
        with tarfile.open(container) as archive:
            for member in archive:
                if member.name in paths and member.isreg() and (stream := archive.extractfile(member)):
                    with (staging / member.name).open("wb") as copy:
                        shutil.copyfileobj(stream, copy)
    elif download.name.endswith(".gz") and not paths[0].endswith(".gz"):
        with gzip.open(container) as stream, (staging / paths[0]).open("wb") as copy:
            shutil.copyfileobj(stream, copy)
    else:
        os.replace(container, staging / paths[0])


def _said(error: Exception) -> str:
    """An error in a few words: the status of an answer, what the system says, or the error's kind."""
    answer = getattr(error, "response", None)
    if answer is not None:  # an answer of status 404 is false
        return f"HTTP status {answer.status_code}"
    return getattr(error, "strerror", None) or type(error).__name__
