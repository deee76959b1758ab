"""Cells of a grid together over the same cells one at a time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import torch

from bench import Finding, convolution
from bench.cell import floor, ours, updates
from bench.subjects import BATCH, cell, cells, compiles, synthetic
from bench.timing import by_turns, ratio
from dbnrun.data.dataset import Data
from dbnrun.norm.following import follow, share_weights
from dbnrun.runner.build import Cell, training_of
from dbnrun.train.evaluate import EVAL_BATCH

TABLE_1 = (
    "alpha_1", "alpha_0.75", "alpha_0.5", "alpha_0.25", "alpha_0.1", "alpha_0.01", "alpha_0.001", "harmonic",
    "inverse_square", "alpha_0",
)  # fmt: skip


SIZES = [2, 5, 10, 20, 50, 100, 200]


def measure(device: str) -> Iterator[Finding]:
    yield from _column(device)
    if device == "cpu":
        yield from _column_over_lightning()
    yield from _stacks(device)
    yield from _convolutions(device)


def _column(device: str) -> Iterator[Finding]:
    """An epoch of a column of Table 1 along one run, evaluation included, over an epoch of one cell alone."""
    data = synthetic("mnist", 50_000, device, held_out=10_000)
    times = by_turns(
        {"column": _epoch(data, device, TABLE_1), "alone": _epoch(data, device, TABLE_1[4:5])}, rounds=5, least=0.1
    )
    what = "MNIST column under dbn_inference, 10 schedules along one run, over one training"
    yield ratio("grid", what, times["column"], times["alone"], "≤ 1.40")


def _column_over_lightning() -> Iterator[Finding]:
    """An epoch of Table 1's MNIST column with five seeds, stacked, over Lightning training the fifty one by one.

    Lightning's part is one cell's epoch, of 500 steps and 200 batches of evaluation, times fifty.
    """
    if importlib.util.find_spec("lightning") is None:
        print("grid   PyTorch Lightning is not installed, so the column over it is not compared: pip install lightning")
        return
    from bench.cell import images, mlp
    from bench.lightning_loop import fit

    data, small = synthetic("mnist", 50_000, "cpu", held_out=10_000), synthetic("mnist", 10_000, "cpu")
    loader = images(small)
    # Five times 100 steps and 40 batches: the epoch, in one fit.
    again = {"max_epochs": 5, "limit_val_batches": 40, "num_sanity_val_steps": 0}
    subjects = {
        "lightning": fit(mlp(), loader, loader, template=True, **again),
        "ours": _seeds(data, range(5)),
        "products": _products_of_column(seeds=5, views=len(TABLE_1)),
    }
    times = by_turns(subjects, rounds=5, least=0.1)
    fifty = [50 * seconds for seconds in times["lightning"]]
    what = "MNIST column, 10 schedules x 5 seeds: Lightning one cell at a time (one epoch measured, x 50) over "
    yield ratio("grid", f"{what}ours", fifty, times["ours"], "≥ 90")
    yield ratio("grid", f"{what}our matrix products alone, the most that could be had", fifty, times["products"])


def _products_of_column(seeds: int, views: int) -> Callable[[], object]:
    """The matrix products of `_seeds` and nothing else: training, the population's pass, and each view's evaluation."""
    widths = [784, 300, 300, 10]
    step = floor(widths, "cpu")
    weights = [torch.randn(a, b) for a, b in pairwise(widths)]

    def forward(records: int, batch: int, layers: Sequence[int], times: int = 1) -> None:
        inputs = [torch.randn(batch, widths[layer]) for layer in layers]
        for _ in range(times * records // batch):
            for layer, x in zip(layers, inputs, strict=True):
                _ = x @ weights[layer]

    def epoch() -> None:
        for _ in range(seeds):
            for _ in range(50_000 // BATCH):
                step()
            forward(50_000, BATCH, [0, 1, 2])
            forward(30_000, EVAL_BATCH, [0])  # validation, test, and test with the population's statistics
            forward(20_000, EVAL_BATCH, [1, 2], times=views)
            forward(10_000, EVAL_BATCH, [1, 2])

    return epoch


def _seeds(data: Data, seeds: Iterable[int]) -> Callable[[], object]:
    """An epoch of the column for several seeds, their runs stacked; evaluation included."""
    runs = [_views(data, "cpu", TABLE_1, f"seed={seed}") for seed in seeds]
    return lambda: list(training_of(runs, data).epochs())


def _stacks(device: str) -> Iterator[Finding]:
    """A training step of stacked cells, a cell, over the matrix products of one, and cells a second over one alone."""
    for name, widths in (("mnist", [784, 300, 300, 10]), ("ni", [118, 50, 50, 5])):
        sizes = SIZES if name == "ni" or device == "cuda" else [size for size in SIZES if size <= 50]
        data = synthetic(name, 10_000, device)
        overrides = [f"dataset={name}", "norm=dbn"]
        subjects = {"floor": floor(widths, device), **_alone(data, device, *overrides)}
        stacks = {f"{size} seeds stacked": (size, overrides) for size in sizes}
        if device == "cpu" and compiles():
            stacks["10 seeds stacked, compile=true"] = 10, [*overrides, "compile=true"]
        subjects |= {label: _stacked(data, device, size, *own) for label, (size, own) in stacks.items()}
        times = by_turns(subjects, rounds=5, least=0.05)
        subjects.clear()  # and with it their graphs, before the next are captured
        for stack, (size, _) in stacks.items():
            own = [seconds / size for seconds in times[stack]]
            label = f"{name} FNN step, norm=dbn, {stack}"
            if device == "cpu":
                target = "≤ 1.45" if (name, size) == ("mnist", 10) else ""
                yield ratio("grid", f"{label}, a cell, over its matrix products", own, times["floor"], target)
            target = "≥ 25" if (name, size, device) == ("mnist", 50, "cuda") else ""
            yield from _over_alone(label, times, own, target)


def _alone(data: Data, device: str, *overrides: str) -> dict[str, Callable[[], object]]:
    """One cell's step: launched kernel by kernel, and on a device replayed as a graph."""
    subjects = {"one at a time": ours(data, device, *overrides)}
    if device == "cuda":
        subjects["one at a time, captured"] = ours(data, device, *overrides, replayed=True)
    return subjects


def _over_alone(label: str, times: dict[str, list[float]], own: list[float], target: str) -> Iterator[Finding]:
    for name, alone in times.items():
        if name.startswith("one at a time"):
            where = target if name == "one at a time" else ""
            yield ratio("grid", f"{label}, cells a second, over {name}", alone, own, where)


def _stacked(data: Data, device: str, count: int, *overrides: str) -> Callable[[], object]:
    members = [[member] for member in cells(data, device, count, *overrides)]
    return updates(training_of(members, data, captured=device == "cuda"))


def _epoch(data: Data, device: str, schedules: Sequence[str]) -> Callable[[], object]:
    column = _views(data, device, schedules)
    return lambda: list(training_of([column], data).epochs())


def _views(data: Data, device: str, schedules: Sequence[str], *overrides: str) -> list[Cell]:
    """Cells that share one training run, one a schedule."""
    common = ["dataset=mnist", "norm=dbn_inference", "schedule.unit=epoch", "train.epochs=1", *overrides]
    leader, *followers = [cell(data, device, *common, f"schedule={schedule}") for schedule in schedules]
    for follower in followers:
        share_weights(leader.model, follower.model)
    follow(leader.model, [follower.model for follower in followers])
    return [leader, *followers]


def _convolutions(device: str) -> Iterator[Finding]:
    """Stacked CNN cells, bf16: cells a second over one at a time. On a CPU few of them, for they gain nothing there."""
    data = synthetic("cifar10", 1000, device)
    overrides = ("dataset=cifar10", "norm=dbn", "precision=bf16")
    sizes = (2, 5) if device == "cpu" else (10, 50)
    subjects = {str(k): _stacked(data, device, k, *overrides) for k in sizes}
    times = by_turns(_alone(data, device, *overrides) | subjects, rounds=5, least=0.3)
    for size in sizes:
        own = [seconds / size for seconds in times[str(size)]]
        target = "≥ 6" if (size, device) == (50, "cuda") else ""
        label = f"cifar10 CNN step, norm=dbn, bf16, {size} seeds stacked"
        yield from _over_alone(label, times, own, target)
    yield from convolution.measure(device)
