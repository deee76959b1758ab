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

from dbnrun.config import TrainConfig
from dbnrun.data.parts import Data, Part
from dbnrun.models import Network
from dbnrun.norm.population import lambda_drift, population_moments, using_statistics
from dbnrun.optimizer import add_penalty, lr_of
from dbnrun.records import EpochRow
from dbnrun.streams import Streams

EVAL_BATCH = 500  # records an evaluation step; no number depends on it but by rounding


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


class _Sums:
    """Loss and errors summed on the device: reading them synchronizes with the host, once."""

    def __init__(self, device: torch.device, loss: float = 0.0, wrong: int = 0, records: int = 0) -> None:
        self.loss = torch.full((), loss, dtype=torch.float64, device=device)
        self.wrong = torch.full((), wrong, dtype=torch.int64, device=device)
        self.records = records

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """Add a batch by its mean loss."""
        self.loss += loss.detach() * len(y)
        self.wrong += (logits.argmax(1) != y).sum()
        self.records += len(y)

    def measured(self) -> Measured:
        return Measured(self.loss.item() / self.records, 100 * self.wrong.item() / self.records)


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
    sums = [_Sums(part.x.device) for _ in models]
    for x, y in zip(part.x.split(EVAL_BATCH), part.y.split(EVAL_BATCH), strict=True):
        with autocast(x.device, precision):
            common = models[0].prefix(x)
            outputs = [at_least_float32(model.suffix(common)) for model in models]
        for own, logits in zip(sums, outputs, strict=True):
            own.add(F.cross_entropy(logits, y), logits, y)
    return [own.measured() for own in sums]


def _batches(
    part: Part, batch_size: int, steps: int, order: Tensor | None = None, skip: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` full batches of a part but for the first `skip`, in the given order or as it lies."""
    for start in range(skip * batch_size, steps * batch_size, batch_size):
        if order is None:
            yield part.x[start : start + batch_size], part.y[start : start + batch_size]
        else:
            index = order[start : start + batch_size]
            yield part.x[index], part.y[index]


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
) -> Iterator[list[EpochRow]]:
    """Train the first view's network from epoch `epochs_done` + 1 on; after each epoch yield a row for each view.

    Stops after a training loss that is not finite. While the generator waits at its rows, networks, optimizer and
    streams stand exactly at that epoch's end. `on_step` is called after every update, with a function that says where
    the epoch stands; `under_way` goes on from there.
    """
    model = views[0].model
    steps = steps_per_epoch(len(data.train), config)
    for epoch in range(epochs_done + 1, config.epochs + 1):
        started = time.perf_counter()
        model.train()
        begun = under_way or UnderWay(0, streams.order.get_state())
        under_way = None
        streams.order.set_state(begun.order)
        order = torch.randperm(len(data.train), generator=streams.order).to(data.train.x.device)
        sums = _Sums(order.device, begun.loss, begun.wrong, begun.steps * config.batch_size)
        norms = torch.full((), begun.norm, dtype=torch.float64, device=order.device)

        def stand(
            sums: _Sums = sums, norms: Tensor = norms, begun: UnderWay = begun, started: float = started
        ) -> UnderWay:
            seconds = begun.seconds + time.perf_counter() - started
            steps_now = sums.records // config.batch_size
            return UnderWay(steps_now, begun.order, sums.loss.item(), int(sums.wrong), norms.item(), seconds)

        for x, y in _batches(data.train, config.batch_size, steps, order, begun.steps):
            batch = x if augment is None else augment(x, streams.augment)
            norms += train_step(model, optimizer, (batch, y), sums, precision)
            on_step(stand)
        trained = sums.measured()  # waits for the device
        seconds = begun.seconds + time.perf_counter() - started
        progress = Progress(epoch, epoch * steps, lr_of(optimizer), norms.item() / steps, seconds)
        yield look(views, trained, progress, data, config, precision)
        if not math.isfinite(trained.loss):
            return


@dataclass(frozen=True)
class Progress:
    """Where a training run stands at an epoch's end."""

    epoch: int
    step: int
    lr: float
    grad_norm: float
    train_seconds: float


def look(
    views: Sequence[View], trained: Measured, progress: Progress, data: Data, config: TrainConfig, precision: str
) -> list[EpochRow]:
    """A row for each view of a training run; seconds are each view's share, so that their sum is the wall clock."""
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


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], sums: _Sums, precision: str
) -> Tensor:
    """One update. Returns the norm of the gradient of loss + l2, a 0-dim tensor; never waits for the device."""
    x, y = batch
    with autocast(x.device, precision):
        logits = model(x)
    logits = at_least_float32(logits)
    loss = F.cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()
    norm = add_penalty(optimizer)
    optimizer.step()
    sums.add(loss, logits, y)
    return norm


def _evaluations(models: Sequence[Network], data: Data, config: TrainConfig, precision: str) -> list[dict[str, Any]]:
    """The val_*, test_*, …_population and lambda_drift columns of each network, as they stand.

    They share weights, so the population's statistics are the same for all.
    """
    for model in models:
        model.eval()
    # All of the training part, whatever limit_batches says: statistics of the population, not of a sample.
    full = len(data.train) // config.batch_size
    with autocast(data.train.x.device, precision):
        batches = _batches(data.train, config.batch_size, full, data.mixing)
        moments = population_moments(models[0], (x for x, _ in batches))
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
