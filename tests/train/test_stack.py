"""Stacked cells against the same cells alone."""

import csv
import math
import os
from dataclasses import replace

import pytest
import torch
from torch import nn

from dbnrun.config import registry
from dbnrun.config.compose import composed
from dbnrun.config.registry import UserError
from dbnrun.config.schema import RunConfig
from dbnrun.data.dataset import Data, Part
from dbnrun.models.layers import Dropout
from dbnrun.norm.dbn import DiminishingBatchNorm1d
from dbnrun.norm.tracking import share_weights, track_schedules
from dbnrun.optim.groups import build_optimizer
from dbnrun.runner import execute, memory
from dbnrun.runner.build import Cell, build_cell
from dbnrun.runner.execute import run_all
from dbnrun.runner.grouping import grouped
from dbnrun.runs import checkpoint, metrics
from dbnrun.runs.checkpoint import position_of
from dbnrun.runs.run_dir import RunDir
from dbnrun.train.loop import Step
from dbnrun.train.stack.networks import stack_networks

CPU = torch.device("cpu")


def config(*overrides, results="unused") -> RunConfig:
    quick = ["train.epochs=2", "train.limit_batches=10", "device=cpu", "progress=false", f'results_dir="{results}"']
    return composed([*quick, *overrides])


def digits(dtype=torch.float32) -> Data:
    data = config().dataset.load(None)  # type: ignore[arg-type] # embedded
    parts = {name: Part(part.x.to(dtype), part.y) for name in ("train", "val", "test") if (part := getattr(data, name))}
    return replace(data, **parts)


def built(configs, data) -> list[Cell]:
    """Cells in the data's precision."""
    cells = [build_cell(one, data, CPU) for one in configs]
    if data.train.x.dtype == torch.float64:
        cells = [
            replace(cell, model=cell.model.double(), optimizer=build_optimizer(cell.config.optimizer, cell.model))
            for cell in cells
        ]
    return cells


VARIED = [
    ["seed=0"], ["seed=0", "optimizer.lr=0.02"], ["seed=1"], ["seed=2", "optimizer.groups.weights.weight_decay=0.01"],
    ["seed=2", "optimizer.groups.norm.lr=0.001"],
]  # fmt: skip
SCHEDULES = [
    "schedule=alpha_1",
    "schedule=harmonic",
    "schedule=alpha_0.5",
    "schedule=inverse_square",
    "schedule=alpha_0",
]
# AdaGrad and Adam divide a gradient by its own size: of one that is mere rounding noise they make a step of order lr,
# in which no two orders of summation agree. An accumulator, or a larger eps, takes that out of the comparison.
CALM = "optimizer.initial_accumulator=0.1"
KINDS = {
    "dbn": ["norm=dbn", CALM],
    "dbn constant statistics": ["norm=dbn", "norm.stats_grad=false", CALM],
    "dbn var after": ["norm=dbn", "norm.average=var", "norm.eps_at=var", "model.norm_position=after", CALM],
    "dbn_inference inv_std": ["norm=dbn_inference", "norm.average=inv_std", CALM],
    "bn sgd": ["norm=bn", "optimizer=sgd", "optimizer.groups.biases.lr=0.01", "dataset.augment=flip_crop"],
    "none adam": ["norm=none", "optimizer=adam", "optimizer.eps=0.1", "model.activation=tanh"],
    "bn adamw": ["norm=bn", "optimizer=adamw", "optimizer.eps=0.001", "norm.affine=false"],
    "ln": ["norm=ln", CALM],
    "gn after": ["norm=gn", "norm.num_groups=4", "model.norm_position=after", CALM],
    "gn no affine": ["norm=gn", "norm.affine=false", CALM],
    "bn sgd cosine": ["norm=bn", "optimizer=sgd", "lr_schedule=cosine", "lr_schedule.warmup=0.5"],
    "dbn one_cycle smoothed": ["norm=dbn", CALM, "lr_schedule=one_cycle", "train.label_smoothing=0.1"],
    "two_layer dbn": ["model=two_layer", "model.activation=tanh", "norm=dbn", CALM],
    "two_layer ln": ["model=two_layer", "model.activation=tanh", "norm=ln", CALM],
}


CNN = ["model=cnn", "model.widths=[2,3,4,3,6]", CALM]
CNN_KINDS = {
    "dbn": ["norm=dbn"],
    "dbn_inference after": ["norm=dbn_inference", "model.norm_position=after"],
    "bn": ["norm=bn"],
    "none": ["norm=none", "model.activation=tanh"],
    "ln": ["norm=ln"],
    "gn": ["norm=gn"],
}
# Runs of one seed see the same batches: of two seeds with two runs each; with 1 and 2; all of one.
SEEDS = {"even": (0, 0, 1, 1), "uneven": (0, 1, 1), "one": (3, 3, 3), "distinct": (0, 1, 2)}
RATES = ["[0.25,0.25,0.5]", "[0,0.5,0.1]", "[0.25,0.1,0]", "[0.25,0.25,0.5]"]


def both(kind, data, configs):
    """Rows of the cells alone and stacked, by cell and epoch, and the cells."""
    alone, cells = built(configs, data), built(configs, data)
    expected = [[row for ((row,),) in execute.training_of([[cell]], data).epochs()] for cell in alone]
    epochs = list(execute.training_of([[cell] for cell in cells], data).epochs())
    return expected, [[rows[number][0] for rows in epochs] for number in range(len(cells))], alone, cells


@pytest.mark.parametrize("kind", KINDS)
def test_in_float64_twenty_steps_stacked_equal_twenty_steps_alone(kind):
    configs = [config(*KINDS[kind], *own, schedule) for own, schedule in zip(VARIED, SCHEDULES, strict=True)]
    expected, stacked, alone, cells = both(kind, digits(torch.float64), configs)
    for theirs, mine in zip(expected, stacked, strict=True):
        for row, other in zip(theirs, mine, strict=True):
            assert other.train_loss == pytest.approx(row.train_loss, rel=1e-10)
            for name in ("grad_norm", "val_loss", "test_loss", "lambda_drift", "alpha", "lr", "step"):
                a, b = getattr(other, name), getattr(row, name)
                assert a == b or a == pytest.approx(b, rel=1e-8), name
    for one, other in zip(alone, cells, strict=True):
        mine, theirs = one.state(2), other.state(2)
        torch.testing.assert_close(mine["model"], theirs["model"], rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(mine["optimizer"]["state"], theirs["optimizer"]["state"], rtol=1e-8, atol=1e-9)
        assert mine["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
        assert all(torch.equal(value, theirs["streams"][name]) for name, value in mine["streams"].items())


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_twenty_steps_stacked_agree_with_twenty_steps_alone(kind):
    configs = [config(*KINDS[kind], *own, schedule) for own, schedule in zip(VARIED, SCHEDULES, strict=True)]
    expected, stacked, *_ = both(kind, digits(), configs)
    worst = max(
        abs(other.train_loss / row.train_loss - 1)
        for theirs, mine in zip(expected, stacked, strict=True)
        for row, other in zip(theirs, mine, strict=True)
    )
    assert worst < 1e-5


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("kind", CNN_KINDS)
def test_in_float64_stacked_convolutional_networks_equal_the_same_alone_dropout_included(kind, seeds):
    configs = [
        config(*CNN, *CNN_KINDS[kind], f"seed={seed}", f"model.dropout={rate}", schedule)
        for seed, rate, schedule in zip(SEEDS[seeds], RATES, SCHEDULES, strict=False)
    ]
    expected, stacked, alone, cells = both(kind, digits(torch.float64), configs)
    for theirs, mine in zip(expected, stacked, strict=True):
        for row, other in zip(theirs, mine, strict=True):
            assert other.train_loss == pytest.approx(row.train_loss, rel=1e-10)
            assert other.test_loss == pytest.approx(row.test_loss, rel=1e-8)
    for one, other in zip(alone, cells, strict=True):
        mine, theirs = one.state(2), other.state(2)
        torch.testing.assert_close(mine["model"], theirs["model"], rtol=1e-8, atol=1e-9)
        assert all(torch.equal(value, theirs["streams"][name]) for name, value in mine["streams"].items())


def test_runs_that_are_each_shared_by_several_cells_stack_too():
    data = digits(torch.float64)
    shared = [[config("norm=dbn_inference", f"seed={seed}", s) for s in SCHEDULES[:3]] for seed in (0, 1)]
    runs = []
    for configs in shared:
        cells = built(configs, data)
        for cell in cells[1:]:
            share_weights(cells[0].model, cell.model)
        track_schedules(cells[0].model, [cell.model for cell in cells[1:]])
        runs.append(cells)
    epochs = list(execute.training_of(runs, data).epochs())
    for number, configs in enumerate(shared):
        for place, cell in enumerate(built(configs, data)):
            for epoch, ((row,),) in enumerate(execute.training_of([[cell]], data).epochs()):
                mine = epochs[epoch][number][place]
                assert mine.val_loss == pytest.approx(row.val_loss, rel=1e-9)
                assert mine.lambda_drift == pytest.approx(row.lambda_drift, rel=1e-9)


def rows_of(outcome):
    return list(csv.DictReader((outcome.folder / "metrics.csv").open()))


def test_every_cell_has_the_folder_it_would_have_had_alone(tmp_path):
    overrides = [["norm=dbn", f"seed={seed}", s, "save_weights=true"] for seed in (0, 1) for s in SCHEDULES[:2]]
    alone = [execute.run(config(*own, results=tmp_path / "alone")) for own in overrides]
    stacked = run_all([[config(*own, results=tmp_path / "stacked")] for own in overrides])
    for one, (other,) in zip(alone, stacked, strict=True):
        assert (one.name, one.status) == (other.name, other.status) and one.status == "done"
        assert sorted(p.name for p in one.folder.iterdir()) == sorted(p.name for p in other.folder.iterdir())
        assert (one.folder / "config.yaml").read_text() == (other.folder / "config.yaml").read_text()
        for mine, theirs in zip(rows_of(one), rows_of(other), strict=True):
            assert mine.keys() == theirs.keys() and mine["step"] == theirs["step"]
            assert float(mine["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=1e-3)


def test_a_cell_that_diverges_is_marked_and_the_others_do_not_notice(tmp_path):
    healthy = [["norm=none", "optimizer=sgd", "optimizer.lr=0.01", f"seed={seed}"] for seed in (0, 2)]
    sick = ["norm=none", "optimizer=sgd", "optimizer.lr=1e30", "seed=1"]
    long = ["train.epochs=4"]
    without = run_all([[config(*own, *long, results=tmp_path / "without")] for own in healthy])
    results = run_all([[config(*own, *long, results=tmp_path / "with")] for own in (healthy[0], sick, healthy[1])])
    assert [outcome.status for (outcome,) in results] == ["done", "diverged", "done"]
    assert 1 <= len(rows_of(results[1][0])) < 4
    assert not math.isfinite(float(rows_of(results[1][0])[-1]["train_loss"]))
    for (one,), (other,) in zip(without, [results[0], results[2]], strict=True):
        for mine, theirs in zip(rows_of(one), rows_of(other), strict=True):
            for name in ("train_loss", "test_loss", "grad_norm"):
                assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=1e-5)


def test_a_stack_that_has_diverged_whole_stops(tmp_path, monkeypatch):
    steps = []
    step = Step.__call__
    monkeypatch.setattr(Step, "__call__", lambda *given: (steps.append(1), step(*given))[1])
    sick = ["norm=none", "optimizer=sgd", "optimizer.lr=1e30", "train.epochs=9", "train.limit_batches=3"]
    results = run_all([[config(*sick, f"seed={seed}", results=tmp_path)] for seed in (0, 1)])
    assert [outcome.status for (outcome,) in results] == ["diverged"] * 2
    assert len(steps) == 3 * max(len(rows_of(outcome)) for (outcome,) in results) < 27


def test_a_stack_whose_first_run_has_diverged_keeps_checkpoints_as_seldom_as_before(tmp_path, monkeypatch):
    """By a clock that only this test moves: one second an update, a checkpoint due every 5 s within an epoch."""
    now, kept = [0.0], []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    step, save = Step.__call__, RunDir.checkpoint

    def second(*given):
        step(*given)
        now[0] += 1

    def counted(self, state):
        kept.append((self.config.seed, *position_of(state)))
        save(self, state)

    monkeypatch.setattr(Step, "__call__", second)
    monkeypatch.setattr(RunDir, "checkpoint", counted)
    words = ["norm=none", "optimizer=sgd", "train.limit_batches=8", f"checkpoint.minutes={5 / 60}"]
    sick, healthy = (config(*words, *own, results=tmp_path) for own in (["optimizer.lr=1e30"], ["seed=1"]))
    outcomes = run_all([[sick], [healthy]])
    assert [outcome.status for (outcome,) in outcomes] == ["diverged", "done"]
    both_runs = [(seed, *position) for position in ((0, 5), (1, 0)) for seed in (0, 1)]
    assert kept == [*both_runs, (1, 1, 5), (1, 2, 0)]


class Quieter(DiminishingBatchNorm1d):
    """A user's own, which does otherwise than the layer that it extends."""


@pytest.mark.parametrize("own", [nn.InstanceNorm1d, Quieter])
def test_a_stack_refuses_a_normalizer_that_it_does_not_know_and_trains_nothing(tmp_path, monkeypatch, own):
    monkeypatch.setattr(registry.of("norm")["bn"], "build", lambda _options, features, *_: own(features))
    (first,), (second,) = run_all([[config("norm=bn", f"seed={seed}", results=tmp_path)] for seed in (0, 1)])
    assert first.status == second.status == "refused" and "\n" not in first.message
    assert f"{own.__module__}.{own.__qualname__}: a stack supports only DiminishingBatchNorm1d" in first.message
    assert "max_stack=1" in first.message and not list(tmp_path.glob("runs/*/metrics.csv"))


class SteeperLeakyReLU(nn.LeakyReLU):
    pass


class Noise(Dropout):
    pass


@pytest.mark.parametrize(
    ("network", "path", "layer"),
    [
        (["model=fnn"], "hidden.0.linear", nn.Bilinear(2, 2, 2)),
        (["model=fnn"], "hidden.0.act", SteeperLeakyReLU()),
        (["model=fnn"], "hidden.0.act", nn.Sigmoid()),  # known, but not what the other network has
        (["model=two_layer"], "a", nn.Softplus()),
        (CNN, "convs.0.linear", nn.ConvTranspose2d(1, 2, 3)),
        (CNN, "dropouts.0", Noise(0.5, torch.Generator())),
    ],
)
def test_a_stack_refuses_a_layer_that_is_not_exactly_what_it_knows_in_every_network(network, path, layer):
    first, second = (cell.model for cell in built([config(*network, f"seed={seed}") for seed in (0, 1)], digits()))
    stack_networks([first, second], [0, 1])
    second.set_submodule(path, layer)
    with pytest.raises(UserError, match=f"{type(layer).__qualname__}.*: a stack supports only .*max_stack=1"):
        stack_networks([first, second], [0, 1])


@pytest.mark.parametrize("moment", [(1, 0, 0), (2, 0, 2), (2, 0, 0), (1, 3, 1), (0, 2, 2), (2, 1, 0)])
def test_a_stack_cut_anywhere_goes_on_byte_for_byte(tmp_path, monkeypatch, moment):
    """Power goes while the checkpoint of (epoch, steps, run) is written: between two cells', or inside one's."""

    def make(results):
        own = ["train.limit_batches=4", "checkpoint.minutes=0", "train.epochs=3"]
        return [
            [config("norm=dbn", f"seed={n // 2}", *own, SCHEDULES[n], results=tmp_path / results)] for n in range(3)
        ]

    whole = run_all(make("whole"))
    save = RunDir.checkpoint
    written = []

    def power_cut(self, state):
        written.append((*position_of(state), int(self.config.schedule.name == "harmonic") + 2 * self.config.seed))
        if written[-1] == moment:
            # As far as the file's last rename but one: only the checkpoint before it is there.
            os.replace(self.folder / "checkpoint.pt", self.folder / "checkpoint.previous.pt")
            raise KeyboardInterrupt
        save(self, state)

    monkeypatch.setattr(RunDir, "checkpoint", power_cut)
    with pytest.raises(KeyboardInterrupt):
        run_all(make("cut"))
    monkeypatch.setattr(RunDir, "checkpoint", save)
    sizes = []
    original = execute.training_of
    monkeypatch.setattr(
        execute, "training_of", lambda runs, *a, **k: sizes.append(len(runs)) or original(runs, *a, **k)
    )
    cut = run_all(make("cut"))
    assert sizes == [3]  # together again, from a point that all have kept
    numbers = lambda outcome: [  # noqa: E731
        {k: v for k, v in row.items() if k not in metrics.TIME_COLUMNS} for row in rows_of(outcome)
    ]
    assert [numbers(o) for (o,) in cut] == [numbers(o) for (o,) in whole]


@pytest.mark.parametrize("older", [False, True])
def test_a_cell_cut_inside_an_epoch_of_a_stack_goes_on_alone(tmp_path, monkeypatch, older):
    def make(results):
        return [[config("norm=dbn", f"seed={n}", "checkpoint.minutes=0", results=tmp_path / results)] for n in (0, 1)]

    save = RunDir.checkpoint

    def power_cut(self, state):
        save(self, state)
        if position_of(state) == (1, 4) and self.config.seed == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDir, "checkpoint", power_cut)
        run_all(make("cut"))
    if older:  # sums of the batches' mean losses
        (folder,) = (tmp_path / "cut" / "runs").glob("*seed0*")
        for path in folder.glob("checkpoint*.pt"):
            state = torch.load(path, weights_only=True)
            del state["under_way"]["sound"]
            state["under_way"]["loss"] /= 100
            torch.save(state, path)
    cut, whole = (rows_of(execute.run(make(results)[0][0])) for results in ("cut", "whole"))
    for mine, theirs in zip(cut, whole, strict=True):
        assert float(mine["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=1e-5)


def test_a_stacked_cells_checkpoint_holds_that_cell_alone(tmp_path, monkeypatch):
    sizes = {}
    save = RunDir.checkpoint

    def weigh(self, state):
        save(self, state)
        sizes[self.config.results_dir] = (self.folder / "checkpoint.pt").stat().st_size

    monkeypatch.setattr(RunDir, "checkpoint", weigh)
    run_all([[config("norm=dbn", f"seed={n}", results=tmp_path / "stacked")] for n in range(4)])
    execute.run(config("norm=dbn", results=tmp_path / "alone"))
    stacked, alone = sizes.values()
    assert stacked == pytest.approx(alone, rel=0.02)


def test_out_of_memory_halves_the_stack_and_goes_on(tmp_path, monkeypatch):
    sizes = []
    original = execute.training_of

    def short_of_memory(runs, *rest, **more):
        sizes.append(len(runs))
        if len(runs) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return original(runs, *rest, **more)

    monkeypatch.setattr(execute, "training_of", short_of_memory)
    results = run_all([[config("norm=bn", f"seed={n}", results=tmp_path)] for n in range(5)])
    assert [outcome.status for (outcome,) in results] == ["done"] * 5
    assert sizes == [5, 2, 3, 1, 2]


def test_finished_cells_are_left_out_of_a_stack(tmp_path):
    configs = [config("norm=bn", f"seed={n}", results=tmp_path) for n in range(3)]
    execute.run(configs[1])
    results = run_all([[one] for one in configs])
    assert [outcome.status for (outcome,) in results] == ["done", "skipped", "done"]


def test_a_plan_folds_runs_stacks_kinds_and_splits_by_max_stack():
    configs = [
        config("norm=dbn_inference", "schedule=alpha_1"),  # 0
        config("norm=dbn", "seed=0"),  # 1
        config("norm=dbn_inference", "schedule=harmonic"),  # 2, the run of 0
        config("norm=dbn", "seed=1", "optimizer.lr=0.5"),  # 3
        config("norm=ln"),  # 4, another kind
        config("norm=dbn", "seed=2", "train.epochs=9"),  # 5, another kind
        config("norm=dbn", "schedule=harmonic"),  # 6
    ]
    assert list(grouped(configs, lambda _: 1)) == [[[0, 2]], [[1]], [[3]], [[6]], [[4]], [[5]]]
    assert list(grouped(configs, lambda _: 2)) == [[[0, 2]], [[1], [3]], [[6]], [[4]], [[5]]]
    assert list(grouped(configs, lambda _: 10)) == [[[0, 2]], [[1], [3], [6]], [[4]], [[5]]]
    kinds = ["norm=ln"], ["norm=gn"], ["model=two_layer"], ["norm=ln", "seed=1"]
    assert list(grouped([config(*kind) for kind in kinds], lambda _: 10)) == [[[0], [3]], [[1]], [[2]]]


def test_a_stack_as_large_as_memory_allows(monkeypatch):
    one = config("norm=bn", "model.widths=[64]")
    data = digits()
    monkeypatch.setattr(memory, "load_data", lambda *_: data)
    need = memory.step_bytes(one, data, CPU)
    # By hand: 64*64 + 64*10 + 10 weights and biases, 2*64 gamma and beta, five copies; of activations at least the
    # input of each linear map and of the normalizer, twice.
    parameters = 4 * (64 * 64 + 64 * 10 + 10 + 2 * 64)
    assert 5 * parameters + 2 * 4 * 100 * 64 * 3 <= need <= 2 * (5 * parameters + 2 * 4 * 100 * 64 * 3)
    for free, expected in ((0, 1), (4 * 3 * need, 3), (10**15, 20)):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        assert memory.fitting(one) == expected
    assert memory.fitting(config("model=cnn", "model.widths=[2,2,2,2,4]", "norm=bn")) == 1


def test_a_sweep_through_the_launcher_stacks_and_every_folder_is_complete(dbnrun, tmp_path):
    words = ["-m", "norm=dbn", "schedule=alpha_1,harmonic", "seed=0,1,2", "train.epochs=2"]
    done = dbnrun(*words, "hydra.launcher.max_stack=4")
    assert done.returncode == 0 and "[6/6] done" in done.stderr, done.stderr
    folders = list((tmp_path / "results" / "runs").iterdir())
    assert len(folders) == 6
    assert all(
        sorted(p.name for p in f.iterdir()) == ["config.yaml", "manifest.json", "metrics.csv", "run.log"]
        for f in folders
    )
    for wrong in ("0", "-1", "many", "1.5"):
        refused = dbnrun(*words, f"hydra.launcher.max_stack={wrong}", "results_dir=other")
        assert refused.returncode == 2 and "expected auto, or a number of at least 1" in refused.stderr
    auto = dbnrun(*words, "hydra.launcher.max_stack=auto", "results_dir=auto")
    assert auto.returncode == 0 and "[6/6] done" in auto.stderr, auto.stderr
