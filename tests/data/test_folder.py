"""A folder of images against the images themselves, as NumPy arrays."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dbnrun.config import registry
from dbnrun.config.identity import cell_of, signature
from dbnrun.config.registry import UserError
from dbnrun.data import cache, folder, image_files
from dbnrun.data.dataset import split_off
from dbnrun.data.pixels import channel_moments
from dbnrun.report.series import Series, Setting
from dbnrun.report.stats import noise_floor
from dbnrun.runner import execute
from dbnrun.runs import layout, metrics
from dbnrun.runs.load import RunRecord
from dbnrun.runs.run_dir import RunDir

CLASSES = ["ant", "bee", "cow", "dog", "eel"]


@pytest.fixture(autouse=True)
def _a_command_of_its_own():
    """Each test looks its files up anew, as each command does."""
    image_files.found_at.cache_clear()


def images(count: int, seed: int = 0, size: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def write(root: Path, pixels: np.ndarray, classes: list[str] = CLASSES) -> None:
    """Image i as the file i of class i modulo their number."""
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(root / classes[number % len(classes)] / f"{number:04d}.png", compress_level=1)


def by_class(pixels: np.ndarray, classes: int = len(CLASSES)) -> tuple[np.ndarray, np.ndarray]:
    """The images and classes in the order of the paths that `write` gives them."""
    order = np.concatenate([np.arange(first, len(pixels), classes) for first in range(classes)])
    return pixels[order], order % classes


def choice(root: Path, **options):
    return registry.make("dataset", "folder", **{"path": str(root), "val_size": 0.1, "fnn_widths": [8], **options})


def load(root: Path, **options):
    image_files.found_at.cache_clear()
    return choice(root, **options).load(root.parent / "data")


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """1,000 PNGs of 20x20 pixels in five classes, and their pixels; not to be written to."""
    root = tmp_path_factory.mktemp("folder") / "images"
    pixels = images(1000)
    write(root, pixels)
    return root, pixels


@pytest.fixture
def few(tmp_path):
    write(tmp_path / "images", images(40))
    return tmp_path / "images"


def test_a_folder_of_pngs_equals_the_same_images_as_tensors_bit_for_bit(thousand):
    root, pixels = thousand
    data = load(root)
    x, y = by_class(pixels)
    rest, test = split_off(1000, 0.2)
    train, val = (rest[index] for index in split_off(800, 0.1))
    channels = torch.from_numpy(x).permute(0, 3, 1, 2)
    moments = channel_moments(channels.numpy(), train)
    for part, index in ((data.train, train), (data.val, val), (data.test, test)):
        assert torch.equal(part.x, channels[index]) and part.y.tolist() == y[index].tolist()
        everything = channels[index].float().div(255).sub(moments[0]).div(moments[1])
        assert torch.equal(part.inputs(slice(None)), everything)
        some = torch.tensor([[3, 1, 2], [0, 2, 2]])
        assert torch.equal(part.inputs(some), everything[some])
    trained = data.train.inputs(slice(None)).double()
    # float32 sums of 288,000 numbers of order 1.
    torch.testing.assert_close(trained.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(trained.std((0, 2, 3), correction=0), torch.ones(3).double(), rtol=0, atol=1e-6)
    assert data.input_shape == (3, 20, 20) and data.num_classes == 5
    assert data.shuffle_order is not None and sorted(data.shuffle_order.tolist()) == list(range(720))


def test_a_second_load_decodes_nothing_and_gives_the_same(thousand, monkeypatch):
    root, _ = thousand
    first = load(root)
    monkeypatch.setattr(folder, "decode", None)
    second = load(root)
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(first, name).x, getattr(second, name).x)
        assert torch.equal(getattr(first, name).y, getattr(second, name).y)


def test_a_damaged_cache_is_read_anew(few):
    first = load(few)
    for file in (few.parent / "data/cache").iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    assert torch.equal(load(few).train.x, first.train.x)


def test_folders_of_their_own_are_the_parts_and_what_is_missing_is_split_off(tmp_path):
    pixels = images(100)
    for name, part in (("train", pixels[:60]), ("val", pixels[60:80]), ("test", pixels[80:])):
        write(tmp_path / "images" / name, part)
    both = load(tmp_path / "images")
    for part, own in ((both.train, pixels[:60]), (both.val, pixels[60:80]), (both.test, pixels[80:])):
        x, y = by_class(own)
        assert torch.equal(part.x, torch.from_numpy(x).permute(0, 3, 1, 2)) and part.y.tolist() == y.tolist()
    shutil.rmtree(tmp_path / "images/val")
    x, y = by_class(pixels[:60])
    data = load(tmp_path / "images")
    for part, index in zip((data.train, data.val), split_off(60, 0.1), strict=True):
        assert torch.equal(part.x, torch.from_numpy(x[index]).permute(0, 3, 1, 2))
    assert torch.equal(data.test.x, both.test.x)
    (tmp_path / "images/test").rename(tmp_path / "images/val")
    data = load(tmp_path / "images", test_size=12)
    assert torch.equal(data.val.x, both.test.x) and len(data.test) == 12
    assert torch.equal(data.test.x, torch.from_numpy(x[split_off(60, 12)[1]]).permute(0, 3, 1, 2))


def test_images_of_other_sizes_and_formats_are_resized_and_converted_as_pillow_does(tmp_path):
    root = tmp_path / "images"
    for number, (suffix, mode) in enumerate(
        [("png", "L"), ("jpg", "RGB"), ("webp", "RGB"), ("PNG", "RGBA"), ("png", "P")] * 4
    ):
        (root / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(images(1, number, 12 + number)[0]).convert(mode)
        image.save(root / "ab"[number % 2] / f"{number:02d}.{suffix}")
    for channels, mode in ((1, "L"), (3, "RGB")):
        data = load(root, size=[6, 9], channels=channels, test_size=2, val_size=2)
        pixels = folder.decode(
            sorted(root.rglob("*.*")), (channels, 6, 9), choice(root, size=[6, 9], channels=channels)
        )
        for path, ours in zip(sorted(root.rglob("*.*")), pixels, strict=True):
            theirs = np.asarray(Image.open(path).convert(mode).resize((9, 6), Image.Resampling.BILINEAR))
            assert np.array_equal(ours, theirs.reshape(6, 9, channels).transpose(2, 0, 1))
        assert data.input_shape == (channels, 6, 9)


def test_a_constant_channel_becomes_zero(few):
    pixels = images(40)
    pixels[..., 1] = 77
    write(few, pixels)
    assert load(few).train.inputs(slice(None))[:, 1].abs().max() < 1e-6


def sign(root: Path, **options) -> tuple[str, str]:
    """The digest and the signature of a cell on this folder."""
    image_files.found_at.cache_clear()
    dataset = choice(root, **options)
    digest = dataset.digest_in(root.parent / "data")
    return digest, signature({"dataset": dataset.identity(), "optimizer": {"groups": []}}, digest)


def test_editing_or_renaming_an_image_changes_the_signature_and_touching_or_moving_all_does_not(few, monkeypatch):
    read = []
    monkeypatch.setattr(cache, "_sha256", lambda path, real=cache._sha256: read.append(path) or real(path))

    def age(seconds):
        for path in few.rglob("*.png"):
            os.utime(path, (seconds, seconds))

    age(1_000_000)
    before = sign(few)
    assert len(read) == 40 and sign(few) == before and len(read) == 40  # remembered
    age(2_000_000)
    assert sign(few) == before and len(read) == 80  # read again
    moved = few.with_name("elsewhere")
    few.rename(moved)
    assert sign(moved) == before
    moved.rename(few)
    image = few / "bee" / "0001.png"
    content = image.read_bytes()
    image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as long as before, and young
    edited = sign(few)
    image.write_bytes(content)
    assert sign(few) == before
    image.rename(image.with_name("0001b.png"))
    renamed = sign(few)
    assert len({one[0] for one in (before, edited, renamed)}) == len({one[1] for one in (before, edited, renamed)}) == 3


def test_a_file_written_twice_within_a_tick_of_the_clock_is_read_each_time(few):
    image = few / "ant" / "0000.png"
    content, when = image.read_bytes(), image.stat().st_mtime_ns
    first = sign(few)
    image.write_bytes(content[::-1])
    os.utime(image, ns=(when, when))
    assert sign(few) != first


def test_the_path_is_no_part_of_a_cell_and_one_size_has_one_spelling(few, composed):
    one = composed("dataset=folder", f"dataset.path={few}", "dataset.size=16")
    other = composed("dataset=folder", "dataset.path=/elsewhere", "dataset.size=[16,16]")
    assert cell_of(one) == cell_of(other) and "path" not in cell_of(one)["dataset"]
    assert cell_of(one)["dataset"] == {
        "name": "folder", "val_size": 0.1, "test_size": 0.2, "size": [16, 16], "label": "folder", "augment": "none"
    }  # fmt: skip


@pytest.mark.parametrize("size", [0, -1, 2.5, "x", [1], [1, 2, 3], [3, 0], 5000, True])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(UserError, match=r"^dataset.size=.*: expected an integer from 1 to 4096"):
        choice(Path("x"), size=size)


def _remove_all_but(root, *kept):
    for path in root.iterdir():
        if path.name not in kept:
            shutil.rmtree(path)


def _as_train(root):
    (root.parent / "train").mkdir()
    for path in list(root.iterdir()):
        path.rename(root.parent / "train" / path.name)
    (root.parent / "train").rename(root / "train")


def _with_test(root):
    _as_train(root)
    write(root / "test", images(4), ["ant", "fox"])


FAULTS = {
    "nothing there": (shutil.rmtree, "images: there is no such folder; expected DIR/train/CLASS"),
    "a file": (lambda root: (shutil.rmtree(root), root.write_text("")), "images: not a folder; expected DIR/train"),
    "no classes": (_remove_all_but, "images: 0 class folders; expected at least two"),
    "one class": (lambda root: _remove_all_but(root, "ant"), "images: 1 class folders; expected at least two"),
    "an empty class": (lambda root: (root / "fox").mkdir(), "images/fox: an empty class; put images there"),
    "train alone": (_as_train, "images: has train/ and neither val/ nor test/; add one of them"),
    "test alone": (lambda root: (root / "test").mkdir(), "images: has test/ and no train/"),
    "a class in test": (_with_test, "images/test/fox: a class that .*images/train does not have"),
    "no classes in test": (lambda root: (_as_train(root), (root / "test").mkdir()), "images/test: holds no class fold"),
    "another file": (lambda root: (root / "ant/a.txt").write_text(""), "images/ant/a.txt: expected images alone in a"),
    "a folder": (lambda root: (root / "ant/b.png").mkdir(), "images/ant/b.png: expected images alone in a class"),
    "no image": (lambda root: (root / "bee/a.png").write_text("?"), r"images/bee/a.png: cannot be read as an image"),
    "a cut image": (
        lambda root: (root / "bee/0001.png").write_bytes((root / "bee/0001.png").read_bytes()[:700]),
        "images/bee/0001.png: cannot be read as an image",
    ),
    "another size": (
        lambda root: Image.new("RGB", (20, 21)).save(root / "dog/a.png"),
        "images/dog/a.png: 21x20 pixels, and .*images/ant/0000.png has 20x20; resize all by dataset.size=N",
    ),
    "grey": (
        lambda root: Image.new("L", (20, 20)).save(root / "dog/a.png"),
        "images/dog/a.png: grey, and .*images/ant/0000.png is in colour; convert all by dataset.channels=1 or 3",
    ),
    "transparent": (
        lambda root: Image.new("RGBA", (20, 20)).save(root / "dog/a.png"),
        "images/dog/a.png: mode RGBA; expected grey or RGB. Convert all by dataset.channels=1 or 3",
    ),
    "16 bits": (
        lambda root: Image.new("I;16", (20, 20)).save(root / "dog/a.png"),
        r"images/dog/a.png: mode I;16; expected 8 bits a channel",
    ),
}


@pytest.mark.parametrize(("break_it", "message"), FAULTS.values(), ids=list(FAULTS))
def test_what_is_no_data_set_of_images_is_refused_in_one_line_that_names_the_file(few, break_it, message):
    break_it(few)
    with pytest.raises(UserError, match=message) as refused:
        load(few)
    assert "\n" not in str(refused.value)


def test_too_many_classes_or_images_for_the_memory_or_a_class_without_training_images_are_refused(few, monkeypatch):
    with pytest.raises(UserError, match=r"none of its images for training; add images, or split off less"):
        load(few, test_size=37, val_size=1)
    monkeypatch.setattr(folder, "free_memory", lambda: 2 * 40 * 3 * 20 * 20 - 1)
    with pytest.raises(
        UserError, match=r"40 images of 3x20x20 need 0.0 GiB .* are free; choose a smaller dataset.size"
    ):
        load(few)
    monkeypatch.setattr(image_files, "MOST_CLASSES", 4)
    with pytest.raises(UserError, match="5 class folders; expected at most 4"):
        load(few)
    with pytest.raises(UserError, match=r"^dataset=folder: say where the images lie, dataset.path=DIR"):
        choice(few, path=None).load(few.parent)


def test_images_that_change_while_a_command_runs_are_refused(few):
    dataset = choice(few)
    dataset.digest_in(few.parent / "data")
    image = few / "ant" / "0000.png"
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(UserError, match="its images changed while this command ran; give it again"):
        dataset.load(few.parent / "data")


def test_hidden_files_and_our_own_cache_are_no_images(few):
    before = sign(few)[0]
    (few / ".git").mkdir()
    (few / "ant" / ".DS_Store").write_text("")
    assert sign(few)[0] == before
    for _ in range(2):
        image_files.found_at.cache_clear()
        assert choice(few).load(few).num_classes == 5  # data_dir and path are one folder
        assert (few / "cache").is_dir() and choice(few).digest_in(few) == before


SMALL = ("dataset=folder", "dataset.path=images", "data_dir=data", "train.batch_size=8", "progress=false")


@pytest.mark.parametrize("model", ["fnn", "cnn"])
def test_the_command_trains_plans_and_reports_a_cell_on_a_folder(few, dbnrun, model):
    words = (*SMALL, "dataset.label=Beasts", f"model={model}", "norm=dbn", "train.epochs=1")
    for status in ("done, test error", "skipped (done before), test error"):
        answer = dbnrun(*words)
        assert answer.returncode == 0 and answer.stderr.startswith(status), answer.stderr
    (folder,) = (few.parent / "results/runs").iterdir()
    assert layout.read_manifest(folder)["test_records"] == 8
    assert "1 done" in dbnrun("plan", *words).stdout
    answer = dbnrun("report", "results")
    assert answer.returncode == 0, answer.stderr
    assert "Beasts: test error" in next((few.parent / "results/report/figures").glob("*test-error.svg")).read_text()


def test_a_run_on_a_folder_that_is_cut_off_goes_on_to_the_same_numbers(few, composed, monkeypatch):
    def cell(results):
        return composed(*SMALL, "norm=dbn", "train.epochs=2", f"results_dir={few.parent / results}")

    monkeypatch.chdir(few.parent)
    whole = execute.run(cell("whole"))
    write_row = RunDir.write

    def stop_after_the_first(self, row, *more):
        if row.epoch == 2:
            raise KeyboardInterrupt
        write_row(self, row, *more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunDir, "write", stop_after_the_first)
        execute.run(cell("cut"))
    resumed = execute.run(cell("cut"))
    assert resumed.status == "done"
    first, second = (
        [{**vars(row), **dict.fromkeys(metrics.TIME_COLUMNS)} for row in metrics.read_rows(one.folder / "metrics.csv")]
        for one in (whole, resumed)
    )
    assert first == second and len(first) == 2


@pytest.mark.parametrize("fault", ["nothing there", "an empty class", "no image", "another size"])
def test_the_command_refuses_a_folder_in_one_line_with_exit_code_2_and_writes_no_run(few, dbnrun, fault):
    break_it, message = FAULTS[fault]
    break_it(few)
    answer = dbnrun(*SMALL)
    assert answer.returncode == 2 and answer.stdout == "", answer.stderr
    assert re.fullmatch(rf"dbnrun: .*{message}.*\n", answer.stderr), answer.stderr
    assert not list((few.parent / "results").glob("runs/*"))


def test_a_sweep_over_folders_is_refused_before_the_first_cell_where_the_last_one_holds_a_bad_image(few, dbnrun):
    shutil.copytree(few, few.with_name("worse"))
    (few.with_name("worse") / "bee" / "0001.png").write_bytes(b"no image")
    answer = dbnrun("-m", *SMALL, "dataset.path=images,worse", "seed=0,1")
    said = answer.stderr.splitlines()
    assert answer.returncode == 2 and said[0].startswith("4 runs: 4 to train") and len(said) == 2, answer.stderr
    assert re.fullmatch(r"dbnrun: .*worse/bee/0001\.png: cannot be read as an image .*", said[1])
    assert not (few.parent / "results").exists()


def test_the_noise_of_a_reading_on_a_folder_goes_by_the_records_that_the_run_met():
    cell = {"dataset": {"name": "folder"}}
    run = RunRecord(Path(), "", "", cell, "done", (), {"test_records": 400})
    assert Setting(cell, [Series(cell, [run])]).test_records == 400
    assert np.isnan(noise_floor(10, Setting(cell, [Series(cell, [])]).test_records))
    assert Setting({"dataset": {"name": "mnist"}}, []).test_records == 10_000
