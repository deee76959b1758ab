"""The training loop: yields one row an epoch, opens no file, prints nothing."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbnrun import compiling, graphs, interrupt
from dbnrun.config import TrainConfig
from dbnrun.data.parts import Data, Part, shortened
from dbnrun.models import Network
from dbnrun.models.layers import Dropout
from dbnrun.norm.population import lambda_drift, population_moments, using_statistics
from dbnrun.optimizer import add_penalty, bare_step, lr_of
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
    """Loss and errors, and an epoch's gradient norms, summed on the device: reading them waits for it, once."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.wrong = torch.zeros((), dtype=torch.int64, device=device)
        self.norm = torch.zeros((), dtype=torch.float64, device=device)
        self.sound = torch.zeros((), dtype=torch.int64, device=device)  # batches before a loss that is not finite

    def begin(self, begun: UnderWay) -> None:
        """Stand where an epoch stood."""
        self.loss.fill_(begun.loss)
        self.wrong.fill_(begun.wrong)
        self.norm.fill_(begun.norm)
        self.sound.fill_(begun.steps if begun.sound is None else begun.sound)

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """Add a batch by its mean loss."""
        self.loss += loss.detach() * len(y)
        self.wrong += (logits.argmax(1) != y).sum()
        self.sound += self.loss.isfinite()  # a sum that is not finite stays so

    def measured(self, records: int) -> Measured:
        return Measured(self.loss.item() / records, 100 * self.wrong.item() / records)


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


@torch.no_grad()
def evaluate(models: Sequence[Network], part: Part, precision: str) -> list[Measured]:
    """Loss and error over a whole part, of each of several networks that share their weights, in evaluation mode."""
    sums = [Sums(part.x.device) for _ in models]
    convolves = any(isinstance(layer, nn.Conv2d) for layer in models[0].modules())
    size = EVAL_BATCH_MAPS if convolves and part.x.device.type == "cpu" else EVAL_BATCH
    for x, y in zip(part.x.split(size), part.y.split(size), strict=True):
        interrupt.check()
        with autocast(x.device, precision):
            common = models[0].prefix(x)
            outputs = [at_least_float32(model.suffix(common)) for model in models]
        for own, logits in zip(sums, outputs, strict=True):
            own.add(F.cross_entropy(logits, y), logits, y)
    return [own.measured(len(part)) for own in sums]


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


def train(
    views: Sequence[View],
    optimizer: torch.optim.Optimizer,
    data: Data,
    config: TrainConfig,
    streams: Streams,
    *,
    precision: str = "fp32",
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    epochs_done: int = 0,
    under_way: UnderWay | None = None,
    on_step: Callable[[Callable[[], UnderWay]], object] = lambda _: None,
    on_evaluation: Callable[[], object] = lambda: None,
    on_divergence: Callable[[int], object] = lambda _: None,
    captured: bool = False,
    compiled: bool = False,
) -> Iterator[list[EpochRow]]:
    """Train the first view's network from epoch `epochs_done` + 1 on; after each epoch yield a row for each view.

    Stops after an epoch with a training loss that is not finite, `on_divergence` being told the first such update.
    While the generator waits at its rows, networks, optimizer and streams stand exactly at that epoch's end. `on_step`
    is called after every update, with a function that says where the epoch stands; `under_way` goes on from there.
    `on_evaluation` is called before every evaluation.
    `captured`: replay the steps as a CUDA graph. `compiled`: compile them.
    """
    model = views[0].model
    steps = steps_per_epoch(len(data.train), config)
    dealer, sums = Dealer(data.train, config.batch_size, steps), Sums(data.train.x.device)
    shown = shortened(data, config.limit_eval)
    step = Step(model, optimizer, precision, compiled, first=epochs_done == 0 and under_way is None)

    def update() -> None:
        (x,), (y,) = dealer()
        step(x if augment is None else augment(x, streams.augment), y, sums)

    if captured:
        drawn = [*dropout_stream(model, streams), *([] if augment is None else [streams.augment])]
        update = graphs.Replayed(update, drawn, optimizer)
    for epoch in range(epochs_done + 1, config.epochs + 1):
        started = time.perf_counter()
        model.train()
        begun = under_way or UnderWay(0, streams.order.get_state())
        under_way = None
        streams.order.set_state(begun.order)
        dealer.shuffle([torch.randperm(len(data.train), generator=streams.order)], begun.steps)
        sums.begin(begun)
        for done in range(begun.steps + 1, steps + 1):
            update()
            on_step(lambda done=done, begun=begun, started=started: _stand(sums, done, begun, started))
        trained = sums.measured(steps * config.batch_size)  # waits for the device
        seconds = begun.seconds + time.perf_counter() - started
        if not math.isfinite(trained.loss):
            on_divergence((epoch - 1) * steps + int(sums.sound) + 1)
        progress = Progress(epoch, epoch * steps, lr_of(optimizer), sums.norm.item() / steps, seconds)
        yield look(views, trained, progress, shown, config, precision, on_evaluation)
        if not math.isfinite(trained.loss):
            return


def dropout_stream(model: nn.Module, streams: Streams) -> list[torch.Generator]:
    """The stream of dropout, where a training step draws from it."""
    draws = any(isinstance(layer, Dropout) and layer.rate > 0 for layer in model.modules())
    return [streams.dropout] if draws else []


def _stand(sums: Sums, steps: int, begun: UnderWay, started: float) -> UnderWay:
    """Where an epoch stands after so many updates; waits for the device."""
    seconds = begun.seconds + time.perf_counter() - started
    measured = sums.loss.item(), int(sums.wrong), sums.norm.item()
    return UnderWay(steps, begun.order, *measured, seconds, int(sums.sound))


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
    on_evaluation: Callable[[], object] = lambda: None,
) -> list[EpochRow]:
    """A row for each view of a training run; seconds are each view's share, so that their sum is the wall clock.

    Evaluates where eval_every asks for it, and where the run ends.
    """
    evaluations: list[dict[str, Any]] = [NOT_EVALUATED for _ in views]
    seconds = 0.0
    if is_evaluated(progress.epoch, config.epochs, config.eval_every) or not math.isfinite(trained.loss):
        on_evaluation()
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


class Step:
    """One update of a network, in two pieces around the backward pass, each of which can be compiled.

    Never waits for the device.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: str,
        compiled: bool = False,
        first: bool = True,
    ) -> None:
        """`first`: the first call is the run's very first update."""
        self.model = model
        self.optimizer = optimizer
        self.update = bare_step(optimizer)
        self.precision = precision
        self.forward, self.finish = compiling.pieces(self._forward, self._finish, compiled=compiled, first=first)

    def __call__(self, x: Tensor, y: Tensor, sums: Sums) -> None:
        """Take a batch, x (B, …) and y (B,), and add it to `sums` with the norm of the gradient of loss + l2."""
        loss, logits = self.forward(x, y)
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            self.finish(loss, logits, y, sums)

    def _forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(x.device, self.precision):
            logits = self.model(x)
        logits = at_least_float32(logits)
        return F.cross_entropy(logits, y), logits

    def _finish(self, loss: Tensor, logits: Tensor, y: Tensor, sums: Sums) -> None:
        sums.norm += add_penalty(self.optimizer)
        self.update()
        sums.add(loss, logits, y)


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
