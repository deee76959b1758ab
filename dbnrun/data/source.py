"""Where the data comes from: the official files, their digests, fetching and verifying.

Layout under data_dir, as the official loaders expect it: MNIST/raw/, cifar-10-batches-py/, ni/. Digests are SHA-256
of the decompressed content, so that a recompressed .gz is as good as the published one. Imports no torch.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dbnrun import interrupt
from dbnrun.config.registry import UserError

CHUNK = 1 << 20


@dataclass(frozen=True)
class DataFile:
    """A file under data_dir; sha256 and size [bytes] are of its content, decompressed where the name ends in .gz."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Download:
    """One file to fetch and what lies in it.

    `known_hash` is of the download itself, 'algorithm:hex', where one is published. `kind`: "gunzip" (one file,
    compressed), "keep" (one file, stored as it comes), "tar" (the members named as the files' paths).
    """

    urls: tuple[str, ...]
    known_hash: str | None
    kind: str
    files: tuple[DataFile, ...]

    @property
    def name(self) -> str:
        return self.urls[0].rpartition("/")[2]


def _mnist(name: str, md5: str, sha256: str, size: int) -> Download:
    url = f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz"
    return Download((url,), f"md5:{md5}", "gunzip", (DataFile(f"MNIST/raw/{name}", sha256, size),))


def _ni(name: str, urls: Sequence[str], sha256: str, size: int) -> Download:
    # No digest of these containers is published with them; the content's decides.
    official = f"https://kdd.ics.uci.edu/databases/kddcup99/{name}"
    return Download((official, *urls), None, "keep", (DataFile(f"ni/{name}", sha256, size),))


def _cifar(name: str, sha256: str, size: int) -> DataFile:
    return DataFile(f"cifar-10-batches-py/{name}", sha256, size)


SOURCES: Mapping[str, tuple[Download, ...]] = {
    "digits": (),
    "mnist": (
        _mnist("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873",
               "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db", 47040016),
        _mnist("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432",
               "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5", 60008),
        _mnist("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3",
               "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", 7840016),
        _mnist("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c",
               "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2", 10008),
    ),
    "ni": (
        _ni("kddcup.data_10_percent.gz", ["https://ndownloader.figshare.com/files/5976042"],
            "f8c8267ebcd9c0ed1fd7d6277fe5bfff8732e9b7db8e61b873542b2a534b6f9a", 74889749),
        _ni("corrected.gz", ["https://archive.ics.uci.edu/ml/machine-learning-databases/kddcup99-mld/corrected.gz"],
            "547dfb9c0f0dc1d9944219ec79e851191faebaeb8acbfa1cd171c418397052a4", 47251540),
    ),
    "cifar10": (
        Download(
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            "md5:c58f30108f718f92721af3b95e74349a",
            "tar",
            (
                _cifar("batches.meta", "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb", 158),
                _cifar("data_batch_1", "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd", 31035704),
                _cifar("data_batch_2", "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8", 31035320),
                _cifar("data_batch_3", "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9", 31035999),
                _cifar("data_batch_4", "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b", 31035696),
                _cifar("data_batch_5", "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154", 31035623),
                _cifar("test_batch", "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831", 31035526),
            ),
        ),
    ),
}  # fmt: skip

# Of the bytes of images and labels as uint8.
DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def expected_digest(name: str) -> str:
    """SHA-256 that stands for a data set's official content, known without reading it."""
    if name == "digits":
        return DIGITS_SHA256
    lines = [f"{file.path} {file.sha256}\n" for download in SOURCES[name] for file in download.files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def ensure(name: str, data_dir: Path) -> None:
    """See that every file of a data set is there and official; fetch it where one is missing.

    Raises UserError naming the file that is missing or differs.
    """
    if missing(name, data_dir):
        fetch(name, data_dir)
    else:
        verify(name, data_dir)


def missing(name: str, data_dir: Path) -> list[Path]:
    """The files of a data set that are not there; says nothing of what those that are there hold."""
    paths = [data_dir / file.path for download in SOURCES[name] for file in download.files]
    return [path for path in paths if not path.exists()]


def verify(name: str, data_dir: Path) -> None:
    """Read every file of a data set. Raises UserError naming the first that is missing or not the official one."""
    for download in SOURCES[name]:
        for file in download.files:
            if problem := fault(data_dir / file.path, file):
                raise UserError(f"{data_dir / file.path}: {problem}. Fetch it again with `dbnrun data {name}`.")


def fault(path: Path, file: DataFile) -> str:
    """What is wrong with the file at `path`, or '' where it has the official content."""
    try:
        with gzip.open(path) if file.path.endswith(".gz") else path.open("rb") as stream:
            size, digest = _measure(stream, file.size)
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        return f"truncated or damaged ({error})"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if size != file.size:
        return f"{'more than ' if size > file.size else ''}{min(size, file.size):,} bytes, expected {file.size:,}"
    return "" if digest == file.sha256 else "its content is not the official file's (SHA-256 differs)"


def _measure(stream: Any, limit: int, copy: IO[bytes] | None = None) -> tuple[int, str]:
    """Size and SHA-256 of a stream, copied on the way; stops just beyond `limit` bytes: a bomb stays small."""
    size, digest = 0, hashlib.sha256()
    while size <= limit and (chunk := stream.read(CHUNK)):
        size += len(chunk)
        digest.update(chunk)
        if copy is not None:
            copy.write(chunk)
    return size, digest.hexdigest()


def fetch(name: str, data_dir: Path, sources: Sequence[Download] | None = None, progress: bool = True) -> None:
    """Download what is missing or not official; each file gets its final name only once it is verified.

    `sources` stands in for the official ones in tests. Raises UserError where a file cannot be had.
    """
    sources = SOURCES[name] if sources is None else sources
    for download in sources:
        if all(not fault(data_dir / file.path, file) for file in download.files):
            continue
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            _fetch_one(download, data_dir, progress)
        except _NotFetched as reason:
            _refuse(name, download, sources, data_dir, str(reason))
        except OSError as error:
            unwritable = f"{data_dir} cannot be written: {error.strerror or error}"
            _refuse(name, download, sources, data_dir, unwritable)


class _NotFetched(Exception):
    """Why a source did not give the file."""


def _fetch_one(download: Download, data_dir: Path, progress: bool) -> None:
    """Fetch and unpack from the first address that gives the official content."""
    reasons = []
    for url in download.urls:
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".fetch-") as staging:
            try:
                _unpack(_retrieve(url, download, Path(staging), progress), download, data_dir)
                return
            except _NotFetched as reason:
                reasons.append(f"{url}: {reason}")
    raise _NotFetched("; ".join(reasons))


def _retrieve(url: str, download: Download, staging: Path, progress: bool) -> Path:
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    bar = _bar(progress and sys.stderr.isatty())
    downloader: Any = pooch.HTTPDownloader(progressbar=bar, timeout=30)
    try:
        return Path(pooch.retrieve(url, download.known_hash, download.name, staging, downloader=downloader))
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "unknown"
        raise _NotFetched(f"HTTP status {status}") from None
    except requests.RequestException as error:
        raise _NotFetched(type(error).__name__) from None
    except ValueError:  # pooch's word for a hash that differs; nothing is left behind
        raise _NotFetched(f"its digest is not {download.known_hash}") from None


def _bar(shown: bool) -> Any:
    """A download's progress bar, shown or not, that looks at every chunk whether to stop."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __bool__(self) -> bool:  # pooch asks, and a bar without a total is false
            return True

        def update(self, n: float | None = 1) -> bool | None:
            interrupt.check()
            return super().update(n)

    return Bar(disable=not shown, unit="B", unit_scale=True)


def _unpack(source: Path, download: Download, data_dir: Path) -> None:
    if download.kind == "tar":
        _unpack_tar(source, download, data_dir)
        return
    file = download.files[0]
    if download.kind == "keep":
        if problem := fault(source, file):
            raise _NotFetched(problem)
        with whole(data_dir / file.path) as partial:
            shutil.copyfile(source, partial)
        return
    try:
        with gzip.open(source) as stream:
            _place(stream, file, data_dir)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _NotFetched(f"damaged ({error})") from None


def _unpack_tar(source: Path, download: Download, data_dir: Path) -> None:
    """Take the expected members alone, by name, as plain files: no path in the archive is ever followed."""
    try:
        with tarfile.open(source, "r:gz") as archive:
            for file in download.files:
                member = archive.getmember(file.path)
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise _NotFetched(f"{file.path} in it is no plain file")
                _place(stream, file, data_dir)
    except KeyError as error:
        raise _NotFetched(error.args[0]) from None
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _NotFetched(f"damaged ({type(error).__name__})") from None


def _place(stream: Any, file: DataFile, data_dir: Path) -> None:
    """Copy a stream to its final name, once size and digest are right."""
    with whole(data_dir / file.path) as partial:
        with partial.open("wb") as copy:
            size, digest = _measure(stream, file.size, copy)
        if (size, digest) != (file.size, file.sha256):
            raise _NotFetched(f"{file.path} in the download is not the official file")


@contextmanager
def whole(final: Path) -> Iterator[Path]:
    """Where to write what shall be `final`: it gets that name when the block ends, and nothing is left if it raises."""
    final.parent.mkdir(parents=True, exist_ok=True)
    # A folder beside it: on the same disk, and the file in it gets the usual permissions, unlike mkstemp's.
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.") as folder:
        partial = Path(folder) / final.name
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, final)


def _refuse(name: str, download: Download, sources: Sequence[Download], data_dir: Path, reason: str) -> None:
    """Raise UserError with every file of the data set that is missing or not official, and where it belongs."""
    faults = {file.path: fault(data_dir / file.path, file) for source in sources for file in source.files}
    paths = [path for path, problem in faults.items() if problem] or [""]
    more = f" (and beside it {', '.join(Path(path).name for path in paths[1:])})" if paths[1:] else ""
    damaged = [
        f"{path} is there, but: {problem}. " for path, problem in faults.items() if problem not in ("", "missing")
    ]
    raise UserError(
        f"dataset {name}: cannot fetch {download.name} ({reason}). {''.join(damaged[:1])}"
        f"Put the official file at {data_dir / paths[0]}{more}, set DBNRUN_DATA to where the data lies, "
        f"or run `dbnrun data {name}` where there is a network."
    )
