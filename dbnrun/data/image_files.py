"""Which images of dataset=folder there are, by part and class, and the digest of them all. Imports no torch.

DIR/train/CLASS/*, with DIR/val/ or DIR/test/ or both; or DIR/CLASS/* alone. Files are taken in the order of their
names, whatever the file system's order. Names that begin with a dot are passed over.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dbnrun.config.registry import UserError
from dbnrun.data.cache import digest_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MOST_CLASSES = 10_000
LAYOUT = "expected DIR/train/CLASS/* with DIR/val/ or DIR/test/, or DIR/CLASS/* alone"


@dataclass(frozen=True)
class Listing:
    """Files and their classes by number, and the positions of each part; of one part "" where DIR holds the classes."""

    root: Path
    classes: list[str]
    files: list[Path]
    y: list[int]
    parts: dict[str, range]


@functools.cache
def found_at(path: str | None, data_dir: Path) -> tuple[Listing, str]:
    """The images and the digest of their names and bytes; looked up once a command, however many cells ask."""
    listing = listed(path, data_dir)
    return listing, digest_of(listing.files, listing.root, data_dir / "cache")


def listed(path: str | None, data_dir: Path) -> Listing:
    """The images under `path`. Raises UserError with one line for what is no data set of images."""
    if path is None:
        raise UserError(f"dataset=folder: say where the images lie, dataset.path=DIR; {LAYOUT}.")
    root = Path(path).expanduser()
    if not root.is_dir():
        found = "not a folder" if root.exists() else "there is no such folder"
        raise UserError(f"dataset.path={path}: {found}; {LAYOUT}.")
    try:
        return _listed(root, data_dir / "cache")
    except OSError as error:
        raise UserError(f"{error.filename or root}: cannot be read ({error.strerror}).") from None


def _listed(root: Path, cache: Path) -> Listing:
    parts = _parts(root)
    classes = _folders(root / parts[0], cache)
    if len(classes) < 2:
        raise UserError(
            f"{root / parts[0]}: {len(classes)} class folders; expected at least two. {LAYOUT.capitalize()}."
        )
    if len(classes) > MOST_CLASSES:
        raise UserError(f"{root / parts[0]}: {len(classes)} class folders; expected at most {MOST_CLASSES}.")
    number = {name: position for position, name in enumerate(classes)}
    listing = Listing(root, classes, [], [], {})
    for part in parts:
        start = len(listing.files)
        for name in _folders(root / part, cache):
            if name not in number:
                raise UserError(f"{root / part / name}: a class that {root / 'train'} does not have; add it there.")
            files = _images(root / part / name)
            listing.files.extend(files)
            listing.y.extend([number[name]] * len(files))
        if len(listing.files) == start:
            raise UserError(f"{root / part}: holds no class folders; {LAYOUT}.")
        listing.parts[part] = range(start, len(listing.files))
    return listing


def _parts(root: Path) -> Sequence[str]:
    """'train' and the other parts that have a folder; "" alone where the classes lie in `root` itself."""
    found = [part for part in ("train", "val", "test") if (root / part).is_dir()]
    if found == ["train"]:
        raise UserError(
            f"{root}: has train/ and neither val/ nor test/; add one of them, or name the class folders themselves, "
            f"dataset.path={root / 'train'}, and dataset.test_size splits them."
        )
    if found and found[0] != "train":
        raise UserError(f"{root}: has {found[0]}/ and no train/; {LAYOUT}.")
    return found or [""]


def _folders(folder: Path, cache: Path) -> list[str]:
    """The names of the folders in `folder`, sorted; our own cache, where it lies there, is no class."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return [name for name in names if (folder / name).resolve() != cache.resolve()]


def _images(folder: Path) -> list[Path]:
    """The images of a class, sorted by name."""
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_file()) for entry in entries if not entry.name.startswith("."))
    if not found:
        raise UserError(f"{folder}: an empty class; put images there, or remove the folder.")
    for name, is_file in found:
        if not is_file or not name.lower().endswith(SUFFIXES):
            raise UserError(f"{folder / name}: expected images alone in a class folder, {', '.join(SUFFIXES)}.")
    return [folder / name for name, _ in found]
