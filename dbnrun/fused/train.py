"""The training loop over a stack: every run of it a step at a time, together."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dbnrun import compiling, graphs
from dbnrun.config import TrainConfig
from dbnrun.data.parts import Data, shortened
from dbnrun.experiment import Cell
from dbnrun.fused.optimizer import StackedOptimizer
from dbnrun.fused.stack import Stack, stacked
from dbnrun.norm.following import share_weights
from dbnrun.optimizer import lr_of
from dbnrun.records import EpochRow
from dbnrun.train import (
    Dealer,
    Measured,
    Progress,
    UnderWay,
    View,
    at_least_float32,
    autocast,
    dropout_stream,
    look,
    steps_per_epoch,
)


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
    on_evaluation: Callable[[], object] = lambda: None,
    on_divergence: Callable[[int, int], object] = lambda _run, _step: None,
    captured: bool = False,
    compiled: bool = False,
) -> Iterator[list[list[EpochRow]]]:
    """Train all runs from epoch `epochs_done` + 1 on; after each epoch yield, for each run, its views' rows.

    The networks are of one kind, the runs ordered by seed. A run whose training loss is no longer finite yields no
    further rows; it goes on as numbers that touch no other's, for as long as another is alive. `on_divergence` is told
    its position in `runs` and the first update with such a loss. While the generator waits, every cell stands exactly
    at that epoch's end. `on_evaluation` is called before every run's evaluation. `captured`: replay the steps as a CUDA
    graph. `compiled`: compile them.
    """
    cells = [run.leader for run in runs]
    seeds = [cell.config.seed for cell in cells]
    first_of = [seeds.index(seed) for seed in dict.fromkeys(seeds)]  # one run a seed draws for all
    first = epochs_done == 0 and not under_way
    step = Step(_stack_of(runs, seeds), cells, precision, compiled, first)
    steps, records = steps_per_epoch(len(data.train), config), len(data.train)
    shown = shortened(data, config.limit_eval)
    draws = [cells[first].streams for first in first_of]
    dealer, sums = Dealer(data.train, config.batch_size, steps, len(draws)), Sums(len(runs), data.train.x.device)

    def update() -> None:
        x, y = dealer()
        if augment is not None:
            x = torch.stack([augment(part, streams.augment) for part, streams in zip(x, draws, strict=True)])
        step(x, y, sums)

    if captured:
        drawn = [stream for cell in cells for stream in dropout_stream(cell.model, cell.streams)]
        if augment is not None:
            drawn += [streams.augment for streams in draws]
        update = graphs.Replayed(update, drawn, step.optimizer.driver)
    alive = [True] * len(runs)
    for epoch in range(epochs_done + 1, config.epochs + 1):
        started = time.perf_counter()
        for cell in cells:
            cell.model.train()
        begun = under_way or [UnderWay(0, cell.streams.order.get_state()) for cell in cells]
        under_way = None
        for first, streams in zip(first_of, draws, strict=True):
            streams.order.set_state(begun[first].order)
        dealer.shuffle([torch.randperm(records, generator=streams.order) for streams in draws], begun[0].steps)
        sums.begin(begun)

        def stand(done: int, begun: Sequence[UnderWay] = begun, started: float = started) -> list[UnderWay]:
            _follow_draws(runs, seeds, first_of)
            step.optimizer.hand_out_state()
            return sums.under_way(done, begun, (time.perf_counter() - started) / len(runs))

        for done in range(begun[0].steps + 1, steps + 1):
            update()
            on_step(functools.partial(stand, done))
        trained, norms = sums.measured(steps, steps * config.batch_size)  # waits for the device
        seconds = begun[0].seconds + (time.perf_counter() - started) / len(runs)
        _follow_draws(runs, seeds, first_of)
        rows = []
        for number, (run, measured, norm) in enumerate(zip(runs, trained, norms, strict=True)):
            if alive[number] and not math.isfinite(measured.loss):
                on_divergence(number, (epoch - 1) * steps + int(sums.sound[number]) + 1)
            progress = Progress(epoch, epoch * steps, lr_of(run.leader.optimizer), norm, seconds)
            seen = look(run.views, measured, progress, shown, config, precision, on_evaluation) if alive[number] else []
            rows.append(seen)
        alive = [ran and math.isfinite(measured.loss) for ran, measured in zip(alive, trained, strict=True)]
        step.optimizer.hand_out_state()
        yield rows
        if not any(alive):
            return


def _stack_of(runs: Sequence[Run], seeds: Sequence[int]) -> Stack:
    """The runs' networks as one; all that view a run go on sharing its weights, which have moved into the stack."""
    distinct = list(dict.fromkeys(seeds))
    stack = stacked([run.leader.model for run in runs], [distinct.index(seed) for seed in seeds])
    for run in runs:
        for view in run.views[1:]:
            share_weights(run.leader.model, view.model)
    return stack


def _follow_draws(runs: Sequence[Run], seeds: Sequence[int], first_of: Sequence[int]) -> None:
    """Put every run's order and augmentation to where its seed's stand: alone, it would have drawn the same."""
    drawn = {seeds[first]: runs[first].leader.streams for first in first_of}
    for run, seed in zip(runs, seeds, strict=True):
        run.leader.streams.order.set_state(drawn[seed].order.get_state())
        run.leader.streams.augment.set_state(drawn[seed].augment.get_state())


class Sums:
    """Loss, errors and gradient norms of T runs, summed on the device over an epoch."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.loss = torch.zeros(count, dtype=torch.float64, device=device)
        self.wrong = torch.zeros(count, dtype=torch.int64, device=device)
        self.norm = torch.zeros(count, dtype=torch.float64, device=device)
        self.sound = torch.zeros(count, dtype=torch.int64, device=device)  # updates before a loss that is not finite

    def begin(self, begun: Sequence[UnderWay]) -> None:
        """Stand where the runs' epochs stood."""
        self.loss.copy_(torch.tensor([run.loss for run in begun], dtype=torch.float64))
        self.wrong.copy_(torch.tensor([run.wrong for run in begun]))
        self.norm.copy_(torch.tensor([run.norm for run in begun], dtype=torch.float64))
        self.sound.copy_(torch.tensor([run.steps if run.sound is None else run.sound for run in begun]))

    def under_way(self, steps: int, begun: Sequence[UnderWay], seconds: float) -> list[UnderWay]:
        """Where each run stands after so many updates, `seconds` after it began or went on."""
        sums = zip(self.loss.tolist(), self.wrong.tolist(), self.norm.tolist(), strict=True)
        return [
            UnderWay(steps, run.order, *own, run.seconds + seconds, sound)
            for run, own, sound in zip(begun, sums, self.sound.tolist(), strict=True)
        ]

    def measured(self, steps: int, records: int) -> tuple[list[Measured], list[float]]:
        losses, wrong = (self.loss / steps).tolist(), (100 * self.wrong / records).tolist()
        return [Measured(*pair) for pair in zip(losses, wrong, strict=True)], (self.norm / steps).tolist()


class Step:
    """One update of every run, in two pieces around the backward pass, each of which can be compiled."""

    def __init__(
        self, stack: Stack, cells: Sequence[Cell], precision: str, compiled: bool = False, first: bool = True
    ) -> None:
        """`first`: the first call is the runs' very first update."""
        self.stack = stack
        self.precision = precision
        self.optimizer = StackedOptimizer(stack.leaves, cells)
        self.forward, self.finish = compiling.pieces(self._forward, self._finish, compiled=compiled, first=first)

    def __call__(self, x: Tensor, y: Tensor, sums: Sums) -> None:
        """x (U, B, …), y (U, B)."""
        losses, logits, y = self.forward(x, y)
        self.optimizer.zero_grad()
        losses.sum().backward()  # each run's parameters meet only its own loss
        with torch.no_grad():
            self.finish(losses, logits, y, sums)
            if not self.optimizer.uniform:
                self.optimizer.step()

    def _forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (T,), logits (T, num_classes, B), and the labels (T, B) that each network met."""
        stack = self.stack
        with autocast(x.device, self.precision):
            logits = stack(x)
        logits = at_least_float32(logits)
        y = y if len(y) == stack.count else y[stack.batch_of]
        return F.cross_entropy(logits, y, reduction="none").mean(1), logits, y

    def _finish(self, losses: Tensor, logits: Tensor, y: Tensor, sums: Sums) -> None:
        sums.norm += self.optimizer.add_penalty()
        sums.loss += losses
        sums.wrong += (logits.argmax(1) != y).sum(1)
        sums.sound += sums.loss.isfinite()  # a sum that is not finite stays so
        if self.optimizer.uniform:
            self.optimizer.step()
