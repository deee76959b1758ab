"""The training loop, of one run or of several that take their steps together; opens no file, prints nothing.

A run is one network in training, and the cells that share it. A program takes a step for all runs: `Alone` here, or
`Stacked` (stack/program.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dbnrun.config.schema import TrainConfig
from dbnrun.data.dataset import Data, Part, shortened
from dbnrun.models.layers import Dropout, Network
from dbnrun.optim.groups import LearningRates, add_penalty, bare_step, lr_of
from dbnrun.optim.schedules import Length, LRSchedule
from dbnrun.runs.metrics import EpochRow
from dbnrun.train import compile, cuda_graph
from dbnrun.train.evaluate import Member, Progress, at_least_float32, autocast, evaluate_epoch
from dbnrun.train.rng import Rngs
from dbnrun.train.sums import EpochProgress, MetricSums


def steps_per_epoch(records: int, config: TrainConfig) -> int:
    """floor(N / batch), at most limit_batches. Full batches only: under alpha = 1 a short last batch would supply the
    statistics of the test."""
    return min(records // config.batch_size, config.limit_batches or records)


@dataclass(frozen=True)
class TrainingRun:
    """A network in training and the cells that share it, the trained one first."""

    model: Network
    optimizer: torch.optim.Optimizer
    rngs: Rngs
    members: Sequence[Member]


class BatchSampler:
    """Yields an epoch's batches from device memory alone, so that a captured graph can take the next one too."""

    def __init__(self, part: Part, batch_size: int, steps: int, seeds: int = 1) -> None:
        self.part = part
        self.shape = seeds, steps, batch_size
        self.order = torch.zeros(self.shape, dtype=torch.int64, device=part.x.device)
        self.next = torch.zeros(1, dtype=torch.int64, device=part.x.device)

    def shuffle(self, orders: Sequence[Tensor], dealt: int = 0) -> None:
        """Set new orders of the records, one per seed, and skip the first `dealt` batches."""
        _, steps, batch_size = self.shape
        for own, order in zip(self.order, orders, strict=True):
            own.copy_(order[: steps * batch_size].view(steps, batch_size))
        self.next.fill_(dealt)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """The next batches, x (seeds, B, …) and y (seeds, B)."""
        index = self.order.index_select(1, self.next).squeeze(1)
        self.next += 1
        return self.part.inputs(index), self.part.y[index]


class Program(Protocol):
    """What takes a training step for T runs together."""

    drawing: Sequence[int]  # the runs whose streams draw the U batches of a step, and their augmentation
    optimizer: torch.optim.Optimizer
    uniform: bool  # whether `update` belongs to the piece that can be compiled

    def logits(self, x: Tensor) -> Tensor:
        """Logits (T, num_classes, B) of x (U, B, …); of a run alone (B, num_classes)."""
        ...

    def labels(self, y: Tensor) -> Tensor:
        """The labels (T, B) that each run met, of y (U, B); of a run alone (B,)."""
        ...

    def losses(self, logits: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
        """Each run's mean loss (T,); of a run alone ()."""
        ...

    def zero_grad(self) -> None: ...

    def add_penalty(self) -> Tensor:
        """Add the gradient of the l2 penalties; each run's norm of the whole gradient (T,); of a run alone ()."""
        ...

    def update(self) -> object: ...

    def write_back(self) -> None:
        """Copy the state back into each run's own optimizer and random generators."""
        ...


class Alone:
    """One run as a program."""

    drawing: Sequence[int] = (0,)
    uniform = True

    def __init__(self, run: TrainingRun) -> None:
        self.model = run.model
        self.optimizer = run.optimizer
        self.update = bare_step(run.optimizer)

    def logits(self, x: Tensor) -> Tensor:
        return self.model(x[0])

    def labels(self, y: Tensor) -> Tensor:
        return y[0]

    def losses(self, logits: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=label_smoothing)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def add_penalty(self) -> Tensor:
        return add_penalty(self.optimizer)

    def write_back(self) -> None:
        pass


class Step:
    """One update of a program, in two pieces around the backward pass, each of which can be compiled.

    Never waits for the device.
    """

    def __init__(
        self,
        program: Program,
        precision: str,
        *,
        compiled: bool,
        first: bool,
        label_smoothing: float,
        steady: bool,
    ) -> None:
        """`first`: the first call is the runs' very first update. `steady`: every update has the same learning rates.

        A compiler would take each rate for a constant and compile again: rates that change stay out of its piece.
        """
        self.program = program
        self.precision = precision
        self.label_smoothing = label_smoothing
        self.joined = program.uniform and steady
        self.forward, self.finish = compile.pieces(self._forward, self._finish, compiled=compiled, first=first)

    def __call__(self, x: Tensor, y: Tensor, sums: MetricSums) -> None:
        """Take batches, x (U, B, …) and y (U, B), and add them to `sums`, with the gradient norms of loss + l2."""
        losses, logits, y = self.forward(x, y)
        self.program.zero_grad()
        losses.sum().backward()  # each run's parameters meet only its own loss
        with torch.no_grad():
            self.finish(losses, logits, y, sums)
            if not self.joined:
                self.program.update()

    def _forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with autocast(x.device, self.precision):
            logits = self.program.logits(x)
        logits, y = at_least_float32(logits), self.program.labels(y)
        return self.program.losses(logits, y, self.label_smoothing), logits, y

    def _finish(self, losses: Tensor, logits: Tensor, y: Tensor, sums: MetricSums) -> None:
        sums.norm += self.program.add_penalty()
        sums.add(losses, logits, y)
        if self.joined:
            self.program.update()


class Training:
    """Runs in training: `updates` takes an epoch's steps one by one, `rows` measures where they have led.

    After `rows` every cell is exactly at an epoch's end. A run whose training loss is no longer finite yields
    no further rows; it is still computed, without effect on the others, until none is finite.
    """

    def __init__(
        self,
        program: Program,
        runs: Sequence[TrainingRun],
        data: Data,
        config: TrainConfig,
        *,
        precision: str = "fp32",
        augment: Callable[[Tensor, Generator], Tensor] | None = None,
        lr_schedule: LRSchedule | None = None,
        epochs_done: int = 0,
        under_way: Sequence[EpochProgress] | None = None,
        captured: bool = False,
        compiled: bool = False,
    ) -> None:
        """`lr_schedule` multiplies the learning rates; None: they stay. `under_way` goes on inside an epoch.

        `captured`: replay steps as a CUDA graph. `compiled`: compile them.
        """
        self.program, self.runs, self.config, self.precision, self.augment = program, runs, config, precision, augment
        self.epoch, self.done, self.begun = epochs_done, 0, under_way
        self.stopped: float | None = None  # when the epoch's updates had been made
        self.alive = [True] * len(runs)
        self.records, self.shown = len(data.train), shortened(data, config.limit_eval)
        self.steps = steps_per_epoch(self.records, config)
        self.draws = [runs[number].rngs for number in program.drawing]
        self.sampler = BatchSampler(data.train, config.batch_size, self.steps, len(self.draws))
        self.sums = MetricSums(len(runs), data.train.x.device)
        self.lr_schedule = lr_schedule if lr_schedule and lr_schedule.varies else None
        self.rates: LearningRates | None = None
        if self.lr_schedule:
            optimizers = {id(optimizer): optimizer for optimizer in (program.optimizer, *(r.optimizer for r in runs))}
            self.rates = LearningRates(optimizers.values(), program.optimizer if captured or compiled else None)
        self.step = Step(
            program,
            precision,
            compiled=compiled,
            first=epochs_done == 0 and not under_way,
            label_smoothing=config.label_smoothing,
            steady=self.rates is None,
        )
        self.update: Callable[[], None] = self._update
        if captured:
            drawn = [stream for run in runs for stream in dropout_rngs(run.model, run.rngs)]
            drawn += [] if augment is None else [rngs.augment for rngs in self.draws]
            self.update = cuda_graph.Replayed(self._update, drawn, program.optimizer)

    @property
    def over(self) -> bool:
        return self.epoch == self.config.epochs or not any(self.alive)

    def epochs(self) -> Iterator[list[list[EpochRow]]]:
        """Train to the end; after each epoch, for each run, its cells' rows."""
        while not self.over:
            for _ in self.updates():
                pass
            yield self.rows()

    def updates(self) -> Iterator[None]:
        """Take the updates of the next epoch, or what is left of one under way; yields after each."""
        self.epoch += 1
        self.started, self.stopped = time.perf_counter(), None
        for run in self.runs:
            run.model.train()
        self.begun = self.begun or [EpochProgress(0, run.rngs.order.get_state()) for run in self.runs]
        for number, rngs in zip(self.program.drawing, self.draws, strict=True):
            rngs.order.set_state(self.begun[number].order)
        orders = [torch.randperm(self.records, generator=rngs.order) for rngs in self.draws]
        self.sampler.shuffle(orders, self.begun[0].steps)
        self.sums.begin(self.begun)
        self.done = self.begun[0].steps
        while self.done < self.steps:
            if self.rates:
                self.rates.multiply(self._lr_factor((self.epoch - 1) * self.steps + self.done))
            self.update()
            self.done += 1
            yield

    def _lr_factor(self, update: int) -> float:
        """What multiplies the learning rates at the run's update 0, 1, …."""
        return self.lr_schedule.at(update, Length(self.config.epochs, self.steps)) if self.lr_schedule else 1.0

    def _update(self) -> None:
        x, y = self.sampler()
        if self.augment is not None:
            parts = zip(x, self.draws, strict=True)
            x = torch.stack([self.augment(part, rngs.augment) for part, rngs in parts])
        self.step(x, y, self.sums)

    def under_way(self) -> list[EpochProgress]:
        """Where each run stands in the epoch; waits for the device."""
        assert self.begun is not None
        self.program.write_back()
        return self.sums.under_way(self.done, self.begun, self._seconds())

    def _seconds(self) -> float:
        """Each run's share of the time since the epoch began, or went on; evaluation left out."""
        return ((self.stopped or time.perf_counter()) - self.started) / len(self.runs)

    def rows(self) -> list[list[EpochRow]]:
        """End the epoch: for each run its cells' rows, none of a run that had diverged before."""
        assert self.begun is not None
        trained = self.sums.measured(self.steps * self.config.batch_size)  # waits for the device
        self.stopped = time.perf_counter()
        norms, seconds = (self.sums.norm / self.steps).tolist(), self.begun[0].seconds + self._seconds()
        self.program.write_back()
        made = self.epoch * self.steps  # updates
        factor = self._lr_factor(made - 1)
        rows = []
        for number, (run, measured, norm) in enumerate(zip(self.runs, trained, norms, strict=True)):
            progress = Progress(self.epoch, made, lr_of(run.optimizer) * factor, norm, seconds)
            if not self.alive[number]:
                rows.append([])
                continue
            rows.append(evaluate_epoch(run.members, measured, progress, self.shown, self.config, self.precision))
            self.alive[number] = math.isfinite(measured.loss)
        self.begun = None
        return rows

    def diverged_at(self, number: int) -> int:
        """The update of the epoch just ended at which the loss of run `number` was first not finite."""
        return (self.epoch - 1) * self.steps + int(self.sums.sound[number]) + 1


def dropout_rngs(model: nn.Module, rngs: Rngs) -> list[Generator]:
    """The stream of dropout, where a training step draws from it."""
    draws = any(isinstance(layer, Dropout) and layer.rate > 0 for layer in model.modules())
    return [rngs.dropout] if draws else []
