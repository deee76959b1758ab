"""The training loop over a stack: every run of it a step at a time, together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dbnrun.config import TrainConfig
from dbnrun.data.parts import Data
from dbnrun.experiment import Cell
from dbnrun.fused.optimizer import StackedOptimizer
from dbnrun.fused.stack import Stack, stacked
from dbnrun.norm.following import share_weights
from dbnrun.optimizer import lr_of
from dbnrun.records import EpochRow
from dbnrun.train import Measured, Progress, UnderWay, View, at_least_float32, autocast, look, steps_per_epoch


@dataclass(frozen=True)
class Run:
    """A training run of a stack: the cell that is trained, and all that view it (itself first)."""

    leader: Cell
    views: Sequence[View]


def train_stack(
    runs: Sequence[Run],
    data: Data,
    config: TrainConfig,
    *,
    precision: str = "fp32",
    augment: Callable[[Tensor, Generator], Tensor] | None = None,
    epochs_done: int = 0,
    under_way: Sequence[UnderWay] | None = None,
    on_step: Callable[[Callable[[], list[UnderWay]]], object] = lambda _: None,
) -> Iterator[list[list[EpochRow]]]:
    """Train all runs from epoch `epochs_done` + 1 on; after each epoch yield, for each run, its views' rows.

    The networks are of one kind, the runs ordered by seed. A run whose training loss is no longer finite yields no
    further rows; it goes on as numbers that touch no other's. While the generator waits, every cell stands exactly
    at that epoch's end.
    """
    seeds = [run.leader.config.seed for run in runs]
    first_of = [seeds.index(seed) for seed in dict.fromkeys(seeds)]  # one run a seed draws for all
    models = [run.leader.model for run in runs]
    distinct = list(dict.fromkeys(seeds))
    stack = stacked(models, [distinct.index(seed) for seed in seeds])
    for run in runs:  # the leader's parameters have moved into the stack
        for view in run.views[1:]:
            share_weights(run.leader.model, view.model)
    step = Step(stack, [run.leader for run in runs], precision)
    steps, x, y = steps_per_epoch(len(data.train), config), data.train.x, data.train.y
    alive = [True] * len(runs)
    for epoch in range(epochs_done + 1, config.epochs + 1):
        started = time.perf_counter()
        for run in runs:
            run.leader.model.train()
        draws = [runs[first].leader.streams for first in first_of]
        begun = under_way or [UnderWay(0, run.leader.streams.order.get_state()) for run in runs]
        under_way = None
        for first in first_of:
            runs[first].leader.streams.order.set_state(begun[first].order)
        orders = torch.stack([torch.randperm(len(y), generator=streams.order) for streams in draws]).to(x.device)
        sums = Sums(begun, x.device)

        def stand(sums: Sums = sums, started: float = started) -> list[UnderWay]:
            _follow_draws(runs, seeds, first_of)
            step.optimizer.hand_out_state()
            return sums.under_way((time.perf_counter() - started) / len(runs))

        for start in range(begun[0].steps * config.batch_size, steps * config.batch_size, config.batch_size):
            index = orders[:, start : start + config.batch_size]  # (U, B)
            batch = x[index]
            if augment is not None:
                batch = torch.stack([augment(part, s.augment) for part, s in zip(batch, draws, strict=True)])
            step(batch, y[index], sums)
            on_step(stand)
        trained, norms = sums.measured(steps, steps * config.batch_size)  # waits for the device
        seconds = begun[0].seconds + (time.perf_counter() - started) / len(runs)
        _follow_draws(runs, seeds, first_of)
        rows = []
        for number, run in enumerate(runs):
            progress = Progress(epoch, epoch * steps, lr_of(run.leader.optimizer), norms[number], seconds)
            shown = alive[number]
            rows.append(look(run.views, trained[number], progress, data, config, precision) if shown else [])
            alive[number] = shown and math.isfinite(trained[number].loss)
        step.optimizer.hand_out_state()
        yield rows


def _follow_draws(runs: Sequence[Run], seeds: Sequence[int], first_of: Sequence[int]) -> None:
    """Put every run's order and augmentation to where its seed's stand: alone, it would have drawn the same."""
    drawn = {seeds[first]: runs[first].leader.streams for first in first_of}
    for run, seed in zip(runs, seeds, strict=True):
        run.leader.streams.order.set_state(drawn[seed].order.get_state())
        run.leader.streams.augment.set_state(drawn[seed].augment.get_state())


class Sums:
    """Loss, errors and gradient norms of T runs, summed on the device over an epoch."""

    def __init__(self, begun: Sequence[UnderWay], device: torch.device) -> None:
        self.begun = begun
        self.steps = begun[0].steps
        self.loss = torch.tensor([run.loss for run in begun], dtype=torch.float64, device=device)
        self.wrong = torch.tensor([run.wrong for run in begun], dtype=torch.int64, device=device)
        self.norm = torch.tensor([run.norm for run in begun], dtype=torch.float64, device=device)

    def under_way(self, seconds: float) -> list[UnderWay]:
        """Where each run stands, `seconds` after it began or went on."""
        sums = zip(self.loss.tolist(), self.wrong.tolist(), self.norm.tolist(), strict=True)
        return [
            UnderWay(self.steps, run.order, *own, run.seconds + seconds)
            for run, own in zip(self.begun, sums, strict=True)
        ]

    def measured(self, steps: int, records: int) -> tuple[list[Measured], list[float]]:
        losses, wrong = (self.loss / steps).tolist(), (100 * self.wrong / records).tolist()
        return [Measured(*pair) for pair in zip(losses, wrong, strict=True)], (self.norm / steps).tolist()


class Step:
    """One update of every run."""

    def __init__(self, stack: Stack, cells: Sequence[Cell], precision: str) -> None:
        self.stack = stack
        self.precision = precision
        self.optimizer = StackedOptimizer(stack.leaves, cells)

    def __call__(self, x: Tensor, y: Tensor, sums: Sums) -> None:
        """x (U, B, …), y (U, B)."""
        stack = self.stack
        with autocast(x.device, self.precision):
            logits = stack(x)
        logits = at_least_float32(logits)
        y = y if len(y) == stack.count else y[stack.batch_of]
        losses = F.cross_entropy(logits, y, reduction="none").mean(1)  # (T,)
        self.optimizer.zero_grad()
        losses.sum().backward()  # each run's parameters meet only its own loss
        with torch.no_grad():
            sums.steps += 1
            sums.norm += self.optimizer.add_penalty()
            sums.loss += losses
            sums.wrong += (logits.argmax(1) != y).sum(1)
        self.optimizer.step()
