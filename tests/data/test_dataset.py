"""Splits, the digits, and augmentation."""

import gzip
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dbnrun.config.registry import UserError
from dbnrun.config.schema import registry
from dbnrun.data import digits
from dbnrun.data.augment import PADDING, flip_crop
from dbnrun.data.dataset import split_off

DIGITS = registry.make("dataset", "digits", val_size=240, fnn_widths=[64], augment="none")


def test_a_split_is_fixed_disjoint_and_complete():
    train, val = split_off(1000, 0.1)
    again = split_off(1000, 0.1)
    assert np.array_equal(val, again[1]) and len(val) == 100
    assert sorted([*train, *val]) == list(range(1000))


@pytest.mark.parametrize("val_size", [1000, 2000, 1e-9, 0.9999])
def test_a_split_that_leaves_nothing_is_refused(val_size):
    with pytest.raises(UserError, match="expected at least 1 and fewer than the 1000"):
        split_off(1000, val_size)


def test_digits_parts_are_scikit_learns_images_each_once():
    data = DIGITS.load(Path("unused"))
    parts = (data.train, data.val, data.test)
    assert [len(part) for part in parts] == [1197, 240, 360]
    assert all(part.x.shape[1:] == data.input_shape == (1, 8, 8) for part in parts)
    ours = torch.cat([part.x for part in parts]).flatten(1).mul(16).numpy()
    official = np.asarray(load_digits(return_X_y=True)[0])
    assert np.array_equal(ours[np.lexsort(ours.T)], official[np.lexsort(official.T)])
    for part in parts:  # every class in every part, about as often as it occurs
        assert torch.bincount(part.y).min() > len(part) / 10 * 0.7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "digits come with scikit-learn, which is missing"),
        (gzip.compress(b"1,2")[:-9], "digits.csv.gz cannot be read .*install scikit-learn again"),
        (gzip.compress(b"1,2,x"), "digits.csv.gz cannot be read .*install scikit-learn again"),
        (gzip.compress(b"0," * 64 + b"7\n"), "embeds other digits; install the version of constraints.txt"),
    ],
    ids=["no scikit-learn", "cut off", "no number", "other digits"],
)
def test_digits_that_are_missing_or_damaged_are_refused(monkeypatch, tmp_path, content, message):
    package = None
    if content is not None:
        package = ModuleSpec("sklearn", None, origin=str(tmp_path / "__init__.py"))
        (tmp_path / "datasets" / "data").mkdir(parents=True)
        (tmp_path / "datasets" / "data" / "digits.csv.gz").write_bytes(content)
    monkeypatch.setattr(digits, "find_spec", lambda _: package)
    with pytest.raises(UserError, match=message):
        DIGITS.load(Path("unused"))


def _one_image(image: np.ndarray, flip: int, top: int, left: int) -> np.ndarray:
    framed = np.pad(image[:, :, ::-1] if flip else image, ((0, 0), (PADDING,) * 2, (PADDING,) * 2))
    return framed[:, top : top + image.shape[1], left : left + image.shape[2]]


@pytest.mark.parametrize("shape", [(30, 3, 8, 8), (20, 1, 6, 10)])
def test_flip_crop_equals_flipping_padding_and_cropping_each_image(shape):
    x = torch.rand(shape)
    result = flip_crop(x, torch.Generator().manual_seed(3))
    twin = torch.Generator().manual_seed(3)
    draws = [torch.randint(high, (shape[0], 1), generator=twin)[:, 0] for high in (2, 2 * PADDING + 1, 2 * PADDING + 1)]
    expected = [_one_image(image.numpy(), *(int(d[i]) for d in draws)) for i, image in enumerate(x)]
    np.testing.assert_array_equal(result.numpy(), np.array(expected))
    assert len(set(draws[0].tolist())) == 2  # some flipped, some not
