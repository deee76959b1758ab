"""Cells of a grid together over the same cells one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from dbnrun.bench import Finding
from dbnrun.bench.cell import floor, ours
from dbnrun.bench.subjects import BATCH, cell, synthetic
from dbnrun.bench.timing import by_turns, ratio
from dbnrun.data.parts import Data
from dbnrun.fused.stack import StackedFNN
from dbnrun.fused.train import Step, Sums
from dbnrun.models import FNN
from dbnrun.norm.following import follow, share_weights
from dbnrun.train import train

TABLE_1 = (
    "alpha_1", "alpha_0.75", "alpha_0.5", "alpha_0.25", "alpha_0.1", "alpha_0.01", "alpha_0.001", "harmonic",
    "inverse_square", "alpha_0",
)  # fmt: skip


SIZES = (2, 5, 10, 20, 50, 100, 200)


def measure(device: str) -> Iterator[Finding]:
    yield from _column(device)
    yield from _stacks(device)


def _column(device: str) -> Iterator[Finding]:
    """An epoch of a column of Table 1 along one run, evaluation included, over an epoch of one cell alone."""
    data = synthetic("mnist", 50_000, device, held_out=10_000)
    times = by_turns(
        {"column": _epoch(data, device, TABLE_1), "alone": _epoch(data, device, TABLE_1[4:5])}, rounds=5, least=0.1
    )
    what = "MNIST column under dbn_inference, 10 schedules along one run, over one training"
    yield ratio("grid", what, times["column"], times["alone"], "≤ 1.40")


def _stacks(device: str) -> Iterator[Finding]:
    """A training step of stacked cells, a cell, over the matrix products of one, and cells a second over one alone."""
    for name, widths in (("mnist", [784, 300, 300, 10]), ("ni", [118, 50, 50, 5])):
        data = synthetic(name, 10_000, device)
        subjects = {"floor": floor(widths, device), "1": ours(data, device, f"dataset={name}", "norm=dbn")}
        sizes = [size for size in SIZES if size <= (200 if name == "ni" else 50)]
        times = by_turns(subjects | {str(k): _stacked(data, device, name, k) for k in sizes}, rounds=5, least=0.05)
        for size in sizes:
            own = [seconds / size for seconds in times[str(size)]]
            target = "≤ 1.45" if (name, size, device) == ("mnist", 10, "cpu") else ""
            label = f"{name} FNN step, norm=dbn, {size} seeds stacked"
            yield ratio("grid", f"{label}, a cell, over its matrix products", own, times["floor"], target)
            yield ratio("grid", f"{label}, cells a second, over one at a time", times["1"], own)


def _stacked(data: Data, device: str, name: str, count: int) -> Callable[[], object]:
    cells = [cell(data, device, f"dataset={name}", "norm=dbn", f"seed={seed}") for seed in range(count)]
    for each in cells:
        each.model.train()
    stack = StackedFNN([each.model for each in cells if isinstance(each.model, FNN)], range(count))
    step, sums = Step(stack, cells, "fp32"), Sums(count, torch.device(device))

    def update() -> None:
        index = torch.randint(len(data.train), (count, BATCH), device=device)
        step(data.train.x[index], data.train.y[index], sums)

    return update


def _epoch(data: Data, device: str, schedules: Sequence[str]) -> Callable[[], object]:
    overrides = ["dataset=mnist", "norm=dbn_inference", "schedule.unit=epoch", "train.epochs=1"]
    cells = [cell(data, device, *overrides, f"schedule={schedule}") for schedule in schedules]
    leader = cells[0]
    for follower in cells[1:]:
        share_weights(leader.model, follower.model)
    follow(leader.model, [follower.model for follower in cells[1:]])
    views = [each.view() for each in cells]
    return lambda: list(train(views, leader.optimizer, data, leader.config.train, leader.streams))
