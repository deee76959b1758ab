"""Cells of a grid together over the same cells one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dbnrun.bench import Finding
from dbnrun.bench.subjects import cell, synthetic
from dbnrun.bench.timing import by_turns, ratio
from dbnrun.data.parts import Data
from dbnrun.norm.following import follow, share_weights
from dbnrun.train import train

TABLE_1 = (
    "alpha_1", "alpha_0.75", "alpha_0.5", "alpha_0.25", "alpha_0.1", "alpha_0.01", "alpha_0.001", "harmonic",
    "inverse_square", "alpha_0",
)  # fmt: skip


def measure(device: str) -> Iterator[Finding]:
    """An epoch of a column of Table 1 along one run, evaluation included, over an epoch of one cell alone."""
    data = synthetic("mnist", 50_000, device, held_out=10_000)
    times = by_turns(
        {"column": _epoch(data, device, TABLE_1), "alone": _epoch(data, device, TABLE_1[4:5])}, rounds=5, least=0.1
    )
    what = "MNIST column under dbn_inference, 10 schedules along one run, over one training"
    yield ratio("grid", what, times["column"], times["alone"], "≤ 1.40")


def _epoch(data: Data, device: str, schedules: Sequence[str]) -> Callable[[], object]:
    overrides = ["dataset=mnist", "norm=dbn_inference", "schedule.unit=epoch", "train.epochs=1"]
    cells = [cell(data, device, *overrides, f"schedule={schedule}") for schedule in schedules]
    leader = cells[0]
    for follower in cells[1:]:
        share_weights(leader.model, follower.model)
    follow(leader.model, [follower.model for follower in cells[1:]])
    views = [each.view() for each in cells]
    return lambda: list(train(views, leader.optimizer, data, leader.config.train, leader.streams))
