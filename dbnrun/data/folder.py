"""A folder of images: decoded once by several threads, kept as uint8, standardized batch by batch.

An image is taken as its file stores it; an orientation in its EXIF data is not applied.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from dbnrun import interrupt
from dbnrun.config.registry import UserError, one_line
from dbnrun.data import options
from dbnrun.data.cache import digest_of, free_memory, read_arrays, write_arrays
from dbnrun.data.dataset import Data, Part, fixed_shuffle, split_off
from dbnrun.data.image_files import Listing, found_at
from dbnrun.data.pixels import channel_moments

DECODE_VERSION = 1  # raise when decoding changes, so that older caches are left alone
TASK = 100  # images that a thread decodes at a time
PLAIN = {"1": 1, "L": 1, "P": 3, "RGB": 3}  # channels by Pillow's mode, of images taken as they are
CONVERTED = (*PLAIN, "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr")  # by dataset.channels
MODES = {1: "L", 3: "RGB"}
KINDS = {1: "grey", 3: "in colour"}


def load(config: options.Folder, data_dir: Path) -> Data:
    """Images (C, H, W) as uint8, each channel to be standardized by its moments over the training part."""
    (listing, digest), cache = found_at(config.path, data_dir), data_dir / "cache"
    if digest != digest_of(listing.files, listing.root, cache):
        raise UserError(f"dataset.path={config.path}: its images changed while this command ran; give it again.")
    y = np.array(listing.y)
    index = _split(listing, config)
    absent = np.flatnonzero(np.bincount(y[index["train"]], minlength=len(listing.classes)) == 0)
    if len(absent):
        raise UserError(
            f"{listing.root / listing.classes[absent[0]]}: the split leaves none of its images for training; "
            "add images, or split off less by dataset.val_size and dataset.test_size."
        )
    pixels = _pixels(listing, digest, config, cache)
    moments = channel_moments(pixels, index["train"])

    def part(name: str) -> Part:
        return Part(torch.from_numpy(pixels[index[name]]), torch.from_numpy(y[index[name]]), moments)

    parts = part("train"), part("val"), part("test")
    # The files lie class by class: in their order most batches would hold one class.
    return Data(*parts, pixels.shape[1:], len(listing.classes), digest, fixed_shuffle(len(index["train"])))


def _split(listing: Listing, config: options.Folder) -> dict[str, np.ndarray]:
    """Positions of the records of each part; what has no folder of its own is split off the training part."""
    index = {name: np.array(positions) for name, positions in listing.parts.items()}
    train = index.pop("" if "" in index else "train")
    for name, size in (("test", config.test_size), ("val", config.val_size)):
        if name not in index:
            kept, split = split_off(len(train), size, f"{name}_size")
            train, index[name] = train[kept], train[split]
    return index | {"train": train}


def _pixels(listing: Listing, digest: str, config: options.Folder, cache: Path) -> np.ndarray:
    """All images (N, C, H, W) uint8, from the cache of these very files where there is a sound one."""
    shape = _shape(listing.files[0], config)
    _check_memory(len(listing.files), shape, config)
    key = f"{DECODE_VERSION} {PIL.__version__} {digest} {config.sides} {config.channels}"
    path = cache / f"folder-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if kept := read_arrays(path):
        return kept["pixels"]
    pixels = decode(listing.files, shape, config)
    write_arrays(path, {"pixels": pixels})
    return pixels


def _check_memory(images: int, shape: tuple[int, ...], config: options.Folder) -> None:
    needed, free = 2 * images * int(np.prod(shape)), free_memory()  # once more while they are split
    if needed > free:
        raise UserError(
            f"dataset.path={config.path}: {images} images of {'x'.join(map(str, shape))} need {needed / 2**30:.1f} GiB "
            f"of memory and {free / 2**30:.1f} GiB are free; choose a smaller dataset.size, or fewer images."
        )


def decode(files: Sequence[Path], shape: tuple[int, ...], config: options.Folder) -> np.ndarray:
    """Every file as pixels (N, *shape). Pillow decodes outside the interpreter's lock, so threads share the work."""
    pixels = np.empty((len(files), *shape), np.uint8)

    def fill(start: int) -> None:
        for number in range(start, min(start + TASK, len(files))):
            pixels[number] = _read(files[number], shape, files[0], config)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(0, len(files), TASK)):
            interrupt.check()
    return pixels


def _shape(first: Path, config: options.Folder) -> tuple[int, int, int]:
    """(C, H, W) that every image has to have: as the options say, else as the first image has it."""
    with _opened(first) as image:
        height, width = config.sides or (image.height, image.width)
        return _channels(image, first, config), height, width


def _read(path: Path, shape: tuple[int, ...], first: Path, config: options.Folder) -> np.ndarray:
    """An image as pixels of the shape that `first` has set. Raises UserError where it is broken or unlike."""
    channels, height, width = shape
    with _opened(path) as image:
        own = _channels(image, path, config)
        if own != channels:
            raise UserError(
                f"{path}: {KINDS[own]}, and {first} is {KINDS[channels]}; convert all by dataset.channels=1 or 3."
            )
        if config.sides is None and image.size != (width, height):
            raise UserError(
                f"{path}: {image.height}x{image.width} pixels, and {first} has {height}x{width}; "
                "resize all by dataset.size=N or dataset.size=[H,W]."
            )
        try:
            converted = image.convert(MODES[channels])
            if image.size != (width, height):
                converted = converted.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(converted)
        except Exception as error:  # whatever a damaged file makes the decoder say
            raise _broken(path, error) from None
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Exception as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> UserError:
    said = "no image" if isinstance(error, PIL.UnidentifiedImageError) else one_line(error)
    return UserError(f"{path}: cannot be read as an image ({said}); mend it, or remove it.")


def _channels(image: Image.Image, path: Path, config: options.Folder) -> int:
    """1 or 3, as the image has them or is converted to. Raises UserError for one that is neither grey nor RGB."""
    if image.mode not in CONVERTED:
        raise UserError(f"{path}: mode {image.mode}; expected 8 bits a channel, grey or in colour.")
    if config.channels is None and image.mode not in PLAIN:
        raise UserError(f"{path}: mode {image.mode}; expected grey or RGB. Convert all by dataset.channels=1 or 3.")
    return config.channels or PLAIN[image.mode]
