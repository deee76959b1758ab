"""The training loop, of one run or of several that take their steps together; opens no file, prints nothing.

A run is one network that learns, and every cell that looks at it. What takes a step for all runs is a program: `Alone`
here, or several networks as one (fused/program.py).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dbnrun import compiling, graphs, interrupt
from dbnrun.config import TrainConfig
from dbnrun.data.dataset import Data, Part, shortened
from dbnrun.models.layers import Dropout, Network
from dbnrun.norm.population import lambda_drift, population_moments, using_statistics
from dbnrun.optim.groups import add_penalty, bare_step, lr_of
from dbnrun.records import NOT_EVALUATED, EpochRow, is_evaluated
from dbnrun.streams import Streams

# Records an evaluation step; no number depends on it but by rounding. The maps of so many images stay in a CPU's cache.
EVAL_BATCH = 500
EVAL_BATCH_MAPS = 100


@dataclass(frozen=True)
class Measured:
    """Mean loss [nat] and error [%] over a number of records."""

    loss: float
    error_pct: float


@dataclass(frozen=True)
class UnderWay:
    """An epoch in the middle: what going on from there needs beside network, optimizer and streams."""

    steps: int  # updates of this epoch so far
    order: Tensor  # where the stream of data order stood before it drew the epoch's
    loss: float = 0.0  # summed over those updates, as are the next two
    wrong: int = 0
    norm: float = 0.0
    seconds: float = 0.0
    sound: int | None = None  # updates before the first loss that was not finite; None: all of them


class Sums:
    """Loss, errors and gradient norms of T runs, summed on the device: reading them waits for it, once."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.loss = torch.zeros(count, dtype=torch.float64, device=device)
        self.wrong = torch.zeros(count, dtype=torch.int64, device=device)
        self.norm = torch.zeros(count, dtype=torch.float64, device=device)
        self.sound = torch.zeros(count, dtype=torch.int64, device=device)  # batches before a loss that is not finite

    def begin(self, begun: Sequence[UnderWay]) -> None:
        """Stand where the runs' epochs stood."""
        self.loss.copy_(torch.tensor([run.loss for run in begun], dtype=torch.float64))
        self.wrong.copy_(torch.tensor([run.wrong for run in begun]))
        self.norm.copy_(torch.tensor([run.norm for run in begun], dtype=torch.float64))
        self.sound.copy_(torch.tensor([run.steps if run.sound is None else run.sound for run in begun]))

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """Add a batch: mean losses (T,), logits (T, num_classes, B), y (T, B); of a run alone without the T."""
        self.loss += loss.detach() * y.shape[-1]
        self.wrong += (logits.argmax(1) != y).sum(-1)
        self.sound += self.loss.isfinite()  # a sum that is not finite stays so

    def measured(self, records: int) -> list[Measured]:
        sums = zip(self.loss.tolist(), self.wrong.tolist(), strict=True)
        return [Measured(loss / records, 100 * wrong / records) for loss, wrong in sums]

    def under_way(self, steps: int, begun: Sequence[UnderWay], seconds: float) -> list[UnderWay]:
        """Where each run stands after so many updates, `seconds` after it began or went on."""
        sums = zip(self.loss.tolist(), self.wrong.tolist(), self.norm.tolist(), self.sound.tolist(), strict=True)
        return [
            UnderWay(steps, run.order, loss, wrong, norm, run.seconds + seconds, sound)
            for run, (loss, wrong, norm, sound) in zip(begun, sums, strict=True)
        ]


def steps_per_epoch(records: int, config: TrainConfig) -> int:
    """floor(N / batch), or limit_batches if that is less: only full batches, for with a short last batch
    alpha = 1 would be tested with that batch's statistics."""
    return min(records // config.batch_size, config.limit_batches or records)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class View:
    """A cell's look at a training run: a network with the run's weights and this cell's lambda."""

    model: Network
    alpha: Callable[[int], float] | None  # the schedule's value by the number of updates, for the record


@dataclass(frozen=True)
class Run:
    """A training run: what learns, and all that view it, the cell that is trained first."""

    model: Network
    optimizer: torch.optim.Optimizer
    streams: Streams
    views: Sequence[View]


@torch.no_grad()
def evaluate(models: Sequence[Network], part: Part, precision: str) -> list[Measured]:
    """Loss and error over a whole part, of each of several networks that share their weights, in evaluation mode."""
    sums = [Sums(1, part.x.device) for _ in models]
    convolves = any(isinstance(layer, nn.Conv2d) for layer in models[0].modules())
    size = EVAL_BATCH_MAPS if convolves and part.x.device.type == "cpu" else EVAL_BATCH
    for x, y in zip(part.x.split(size), part.y.split(size), strict=True):
        interrupt.check()
        with autocast(x.device, precision):
            common = models[0].prefix(x)
            outputs = [at_least_float32(model.suffix(common)) for model in models]
        for own, logits in zip(sums, outputs, strict=True):
            own.add(F.cross_entropy(logits, y), logits, y)
    return [own.measured(len(part))[0] for own in sums]


def _batches(part: Part, batch_size: int, order: Tensor | None) -> Iterator[Tensor]:
    """x of every full batch of a part, in the given order or as it lies."""
    for start in range(0, len(part) // batch_size * batch_size, batch_size):
        interrupt.check()
        yield part.x[start : start + batch_size] if order is None else part.x[order[start : start + batch_size]]


class Dealer:
    """Deals an epoch's batches, from device memory alone, so that a captured graph can take the next one too."""

    def __init__(self, part: Part, batch_size: int, steps: int, seeds: int = 1) -> None:
        self.part = part
        self.shape = seeds, steps, batch_size
        self.order = torch.zeros(self.shape, dtype=torch.int64, device=part.x.device)
        self.next = torch.zeros(1, dtype=torch.int64, device=part.x.device)

    def shuffle(self, orders: Sequence[Tensor], dealt: int = 0) -> None:
        """Take new orders of the records, one a seed, the first `dealt` batches of which are dealt already."""
        _, steps, batch_size = self.shape
        for own, order in zip(self.order, orders, strict=True):
            own.copy_(order[: steps * batch_size].view(steps, batch_size))
        self.next.fill_(dealt)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """The next batches, x (seeds, B, …) and y (seeds, B)."""
        index = self.order.index_select(1, self.next).squeeze(1)
        self.next += 1
        return self.part.x[index], self.part.y[index]


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

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Each run's mean loss (T,); of a run alone ()."""
        ...

    def zero_grad(self) -> None: ...

    def add_penalty(self) -> Tensor:
        """Add the gradient of the l2 penalties; each run's norm of the whole gradient (T,); of a run alone ()."""
        ...

    def update(self) -> object: ...

    def settle(self) -> None:
        """Put every run's optimizer and streams to where they would stand alone."""
        ...


class Alone:
    """One run as a program."""

    drawing: Sequence[int] = (0,)
    uniform = True

    def __init__(self, run: Run) -> None:
        self.model = run.model
        self.optimizer = run.optimizer
        self.update = bare_step(run.optimizer)

    def logits(self, x: Tensor) -> Tensor:
        return self.model(x[0])

    def labels(self, y: Tensor) -> Tensor:
        return y[0]

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def add_penalty(self) -> Tensor:
        return add_penalty(self.optimizer)

    def settle(self) -> None:
        pass


class Step:
    """One update of a program, in two pieces around the backward pass, each of which can be compiled.

    Never waits for the device.
    """

    def __init__(self, program: Program, precision: str, compiled: bool = False, first: bool = True) -> None:
        """`first`: the first call is the runs' very first update."""
        self.program = program
        self.precision = precision
        self.forward, self.finish = compiling.pieces(self._forward, self._finish, compiled=compiled, first=first)

    def __call__(self, x: Tensor, y: Tensor, sums: Sums) -> None:
        """Take batches, x (U, B, …) and y (U, B), and add them to `sums`, with the gradient norms of loss + l2."""
        losses, logits, y = self.forward(x, y)
        self.program.zero_grad()
        losses.sum().backward()  # each run's parameters meet only its own loss
        with torch.no_grad():
            self.finish(losses, logits, y, sums)
            if not self.program.uniform:
                self.program.update()

    def _forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with autocast(x.device, self.precision):
            logits = self.program.logits(x)
        logits, y = at_least_float32(logits), self.program.labels(y)
        return self.program.losses(logits, y), logits, y

    def _finish(self, losses: Tensor, logits: Tensor, y: Tensor, sums: Sums) -> None:
        sums.norm += self.program.add_penalty()
        sums.add(losses, logits, y)
        if self.program.uniform:
            self.program.update()


class Training:
    """Runs in training: `updates` takes an epoch's steps one by one, `rows` measures where they have led.

    Between two calls every cell stands exactly at an epoch's end. A run whose training loss is no longer finite yields
    no further rows; it goes on as numbers that touch no other's, for as long as another is alive.
    """

    def __init__(
        self,
        program: Program,
        runs: Sequence[Run],
        data: Data,
        config: TrainConfig,
        *,
        precision: str = "fp32",
        augment: Callable[[Tensor, Generator], Tensor] | None = None,
        epochs_done: int = 0,
        under_way: Sequence[UnderWay] | None = None,
        captured: bool = False,
        compiled: bool = False,
    ) -> None:
        """`under_way` goes on inside an epoch. `captured`: replay steps as a CUDA graph. `compiled`: compile them."""
        self.program, self.runs, self.config, self.precision, self.augment = program, runs, config, precision, augment
        self.epoch, self.done, self.begun = epochs_done, 0, under_way
        self.stopped: float | None = None  # when the epoch's updates had been made
        self.alive = [True] * len(runs)
        self.records, self.shown = len(data.train), shortened(data, config.limit_eval)
        self.steps = steps_per_epoch(self.records, config)
        self.draws = [runs[number].streams for number in program.drawing]
        self.dealer = Dealer(data.train, config.batch_size, self.steps, len(self.draws))
        self.sums = Sums(len(runs), data.train.x.device)
        self.step = Step(program, precision, compiled, first=epochs_done == 0 and not under_way)
        self.update: Callable[[], None] = self._update
        if captured:
            drawn = [stream for run in runs for stream in dropout_stream(run.model, run.streams)]
            drawn += [] if augment is None else [streams.augment for streams in self.draws]
            self.update = graphs.Replayed(self._update, drawn, program.optimizer)

    @property
    def over(self) -> bool:
        return self.epoch == self.config.epochs or not any(self.alive)

    def epochs(self) -> Iterator[list[list[EpochRow]]]:
        """Train to the end; after each epoch, for each run, its views' rows."""
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
        self.begun = self.begun or [UnderWay(0, run.streams.order.get_state()) for run in self.runs]
        for number, streams in zip(self.program.drawing, self.draws, strict=True):
            streams.order.set_state(self.begun[number].order)
        orders = [torch.randperm(self.records, generator=streams.order) for streams in self.draws]
        self.dealer.shuffle(orders, self.begun[0].steps)
        self.sums.begin(self.begun)
        self.done = self.begun[0].steps
        while self.done < self.steps:
            self.update()
            self.done += 1
            yield

    def _update(self) -> None:
        x, y = self.dealer()
        if self.augment is not None:
            parts = zip(x, self.draws, strict=True)
            x = torch.stack([self.augment(part, streams.augment) for part, streams in parts])
        self.step(x, y, self.sums)

    def under_way(self) -> list[UnderWay]:
        """Where each run stands in the epoch; waits for the device."""
        assert self.begun is not None
        self.program.settle()
        return self.sums.under_way(self.done, self.begun, self._seconds())

    def _seconds(self) -> float:
        """Each run's share of the time since the epoch began, or went on; evaluation left out."""
        return ((self.stopped or time.perf_counter()) - self.started) / len(self.runs)

    def rows(self) -> list[list[EpochRow]]:
        """End the epoch: for each run its views' rows, none of a run that had diverged before."""
        assert self.begun is not None
        trained = self.sums.measured(self.steps * self.config.batch_size)  # waits for the device
        self.stopped = time.perf_counter()
        norms, seconds = (self.sums.norm / self.steps).tolist(), self.begun[0].seconds + self._seconds()
        self.program.settle()
        rows = []
        for number, (run, measured, norm) in enumerate(zip(self.runs, trained, norms, strict=True)):
            progress = Progress(self.epoch, self.epoch * self.steps, lr_of(run.optimizer), norm, seconds)
            alive, self.alive[number] = self.alive[number], self.alive[number] and math.isfinite(measured.loss)
            rows.append(look(run.views, measured, progress, self.shown, self.config, self.precision) if alive else [])
        self.begun = None
        return rows

    def diverged_at(self, number: int) -> int:
        """The first update after which the loss of a run, by its number, was not finite in the epoch that has ended."""
        return (self.epoch - 1) * self.steps + int(self.sums.sound[number]) + 1


def dropout_stream(model: nn.Module, streams: Streams) -> list[Generator]:
    """The stream of dropout, where a training step draws from it."""
    draws = any(isinstance(layer, Dropout) and layer.rate > 0 for layer in model.modules())
    return [streams.dropout] if draws else []


@dataclass(frozen=True)
class Progress:
    """Where a training run stands at an epoch's end."""

    epoch: int
    step: int
    lr: float
    grad_norm: float
    train_seconds: float


def look(
    views: Sequence[View],
    trained: Measured,
    progress: Progress,
    data: Data,
    config: TrainConfig,
    precision: str,
) -> list[EpochRow]:
    """A row for each view of a training run; seconds are each view's share, so that their sum is the wall clock.

    Evaluates where eval_every asks for it, and where the run ends.
    """
    evaluations: list[dict[str, Any]] = [NOT_EVALUATED for _ in views]
    seconds = 0.0
    if is_evaluated(progress.epoch, config.epochs, config.eval_every) or not math.isfinite(trained.loss):
        started = time.perf_counter()
        evaluations = _evaluations([view.model for view in views], data, config, precision)
        seconds = time.perf_counter() - started
    return [
        EpochRow(
            epoch=progress.epoch,
            step=progress.step,
            alpha=None if view.alpha is None else float(view.alpha(progress.step)),
            lr=progress.lr,
            train_loss=trained.loss,
            train_error_pct=trained.error_pct,
            grad_norm=progress.grad_norm,
            train_seconds=progress.train_seconds / len(views),
            eval_seconds=seconds / len(views),
            **evaluated,
        )
        for view, evaluated in zip(views, evaluations, strict=True)
    ]


def _evaluations(models: Sequence[Network], data: Data, config: TrainConfig, precision: str) -> list[dict[str, Any]]:
    """The val_*, test_*, …_population and lambda_drift columns of each network, as they stand.

    They share weights, so the population's statistics are the same for all.
    """
    for model in models:
        model.eval()
    # Whatever limit_batches says: statistics of the population, not of the batches that were trained on.
    with autocast(data.train.x.device, precision):
        moments = population_moments(models[0], _batches(data.train, config.batch_size, data.mixing))
    population = None
    if moments:
        with using_statistics(moments):
            population = evaluate(models[:1], data.test, precision)[0].error_pct
    return [
        {
            "val_loss": val.loss,
            "val_error_pct": val.error_pct,
            "test_loss": test.loss,
            "test_error_pct": test.error_pct,
            "test_error_pct_population": population,
            "lambda_drift": lambda_drift(model, moments),
        }
        for model, val, test in zip(
            models, evaluate(models, data.val, precision), evaluate(models, data.test, precision), strict=True
        )
    ]
