"""Compiled steps against the same steps as written."""

import json
import sysconfig
from dataclasses import asdict, replace

import pytest
import torch
import torch._dynamo

from dbnrun.config.compose import composed
from dbnrun.config.registry import UserError
from dbnrun.data.dataset import Part
from dbnrun.norm.tracking import share_weights, track_schedules
from dbnrun.optim.groups import build_optimizer
from dbnrun.runner import execute
from dbnrun.runner.build import build_cell, training_of
from dbnrun.runs.metrics import TIME_COLUMNS
from dbnrun.runs.run_dir import RunDir
from dbnrun.train import compile

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def compiler():
    torch._dynamo.utils.counters.clear()
    try:
        compile.check_compiler("fnn", "cpu")
    except UserError as error:
        pytest.skip(str(error))


def config(*overrides, results="unused"):
    quick = ["train.epochs=2", "train.limit_batches=8", "device=cpu", "progress=false", f'results_dir="{results}"']
    return composed([*quick, *overrides])


def digits():
    data = config().dataset.load(None)
    parts = {name: getattr(data, name) for name in ("train", "val", "test")}
    return replace(data, **{name: Part(part.x.double(), part.y) for name, part in parts.items()})


def cells(configs, data):
    """Cells in float64, where another order of additions shows in no digit that is compared."""
    built = [build_cell(one, data, CPU) for one in configs]
    return [
        replace(c, model=c.model.double(), optimizer=build_optimizer(c.config.optimizer, c.model, c.config.compile))
        for c in built
    ]


def assert_alike(rows, others, rel=1e-9):
    assert len(rows) == len(others) == 2
    for row, other in zip(rows, others, strict=True):
        for name, value in asdict(row).items():
            if name not in TIME_COLUMNS:
                mine = getattr(other, name)
                assert mine == value or mine == pytest.approx(value, rel=rel), name


def test_a_compiled_run_whose_rates_change_compiles_once_and_equals_the_run_as_written():
    words, data, rows = ["norm=bn", "optimizer=sgd", "lr_schedule=cosine"], digits(), {}
    for compiled in (False, True):
        training = training_of([cells([config(*words, f"compile={compiled}")], data)], data)
        rows[compiled] = [row for ((row,),) in training.epochs()]
    assert_alike(rows[False], rows[True])
    assert_two_whole_graphs()


def assert_two_whole_graphs():
    """The loss, and what follows backward: nothing of either was left to run as written, nothing compiled twice."""
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


# An accumulator, or a larger eps: AdaGrad and Adam otherwise make steps of order lr of a gradient that is noise.
CALM = "optimizer.initial_accumulator=0.1"
# Compiled, those two compute their step size in float32 whatever the parameters are; Adam's 1 - beta^m suffers.
KINDS = {
    "dbn 1/m sgd": (["norm=dbn", "schedule=harmonic", "optimizer=sgd", "optimizer.momentum=0.9"], 1e-9),
    "dbn constant statistics over epochs": (
        ["norm=dbn", "norm.stats_grad=false", "schedule=inverse_square", "schedule.unit=epoch", CALM], 1e-6,
    ),
    "bn sgd augmented": (["norm=bn", "optimizer=sgd", "dataset.augment=flip_crop"], 1e-9),
    "two_layer gn adamw": (
        ["model=two_layer", "norm=gn", "norm.num_groups=2", "optimizer=adamw", "optimizer.eps=0.01"], 1e-4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_steps_give_the_numbers_of_the_steps_as_written(kind):
    words, rel = KINDS[kind]
    data, rows = digits(), {}
    for compiled in (False, True):
        training = training_of([cells([config(*words, f"compile={compiled}")], data)], data)
        rows[compiled] = [row for ((row,),) in training.epochs()]
    assert_alike(rows[False], rows[True], rel)
    assert_two_whole_graphs()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("captured", [False, True])
def test_compiled_steps_on_a_device_give_the_numbers_of_the_steps_as_written(captured):
    device, rows = torch.device("cuda"), {}
    for compiled in (False, True):
        one = config("device=cuda", "norm=dbn", "schedule=harmonic", "optimizer=sgd", f"compile={compiled}")
        data = one.dataset.load(None).to(device)
        cell = build_cell(one, data, device)
        training = training_of([[cell]], data, captured=captured and compiled)
        rows[compiled] = [row for ((row,),) in training.epochs()]
    assert_alike(rows[False], rows[True], 1e-4)


@pytest.mark.parametrize("lr", [0.01, 0.02])
def test_compiled_stacks_and_followers_give_the_numbers_of_cells_alone(lr):
    """With one learning rate the optimizer takes a layer of all networks at once, with two network by network."""
    data = digits()
    schedules = ("alpha_0.1", "harmonic", "alpha_0")
    grid = [
        [["norm=dbn_inference", "optimizer=sgd", *own, f"schedule={schedule}"] for schedule in schedules]
        for own in (["seed=0", "optimizer.lr=0.01"], ["seed=1", f"optimizer.lr={lr}"])
    ]
    alone = [cells([config(*words) for words in run], data) for run in grid]
    compiled = [cells([config(*words, "compile=true") for words in run], data) for run in grid]
    for leader, *followers in compiled:
        for follower in followers:
            share_weights(leader.model, follower.model)
        track_schedules(leader.model, [follower.model for follower in followers])
    epochs = list(training_of(compiled, data).epochs())
    assert_two_whole_graphs()
    for number, run in enumerate(alone):
        for place, cell in enumerate(run):
            rows = [row for ((row,),) in training_of([[cell]], data).epochs()]
            assert_alike(rows, [together[number][place] for together in epochs])


def test_a_compiled_run_cut_inside_an_epoch_goes_on_with_the_same_numbers(tmp_path, monkeypatch):
    words = ["norm=dbn", "schedule=harmonic", "optimizer=sgd", "compile=true"]
    whole = execute.run(config(*words, results=tmp_path / "whole"))
    save, written = RunDir.checkpoint, []

    def cut(self, state):
        save(self, state)
        written.append(state)
        if len(written) == 11:
            raise KeyboardInterrupt

    words.append("checkpoint.minutes=0")  # after every update
    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "checkpoint", cut)
        with pytest.raises(KeyboardInterrupt):
            execute.run(config(*words, results=tmp_path / "cut"))
    resumed = execute.run(config(*words, results=tmp_path / "cut"))
    assert resumed.status == whole.status == "done" and len(written) == 11
    texts = [(outcome.folder / "metrics.csv").read_text().splitlines() for outcome in (whole, resumed)]
    names = texts[0][0].split(",")
    kept = [place for place, name in enumerate(names) if name not in TIME_COLUMNS]
    numbers = [[[line.split(",")[place] for place in kept] for line in text] for text in texts]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 3


@pytest.mark.parametrize("noted", [True, False])
def test_going_on_with_another_setting_of_compile_is_warned_of(noted, tmp_path, monkeypatch, capsys):
    """As of a run that began before there was a choice, whose manifest does not say."""
    words = ["norm=bn", "train.epochs=1"]

    def cut(self, state):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "checkpoint", cut)
        with pytest.raises(KeyboardInterrupt):
            execute.run(config(*words, results=tmp_path))
    if not noted:
        (path,) = tmp_path.glob("runs/*/manifest.json")
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "compile"}))
    outcome = execute.run(config(*words, "compile=true", results=tmp_path))
    assert outcome.status == "done"
    assert "began with compile=false; rounding differs from here on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "without", "expected"),
    [
        ("cnn", None, "use compile=false with model=cnn"),
        ("fnn", "compiler", "apt install g++"),
        ("fnn", "headers", "apt install python3-dev"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_one_line(model, without, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    if without == "compiler":
        monkeypatch.setenv("CXX", "/bin/false")
    if without == "headers":
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    outcome = execute.run(config(f"model={model}", "compile=true", results=tmp_path / "results"))
    assert outcome.status == "refused" and expected in outcome.message and "\n" not in outcome.message
