"""What an epoch is measured by: losses and errors of every part, and population statistics beside lambda."""

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

from dbnrun import interrupt
from dbnrun.config.schema import TrainConfig
from dbnrun.data.dataset import Data, Part
from dbnrun.models.layers import Network
from dbnrun.norm.population import lambda_drift, population_moments, using_statistics
from dbnrun.runs.metrics import NOT_EVALUATED, EpochRow, is_evaluated
from dbnrun.train.sums import Measured, MetricSums

# Records per evaluation step; it affects results by rounding only. The maps of so many images stay in a CPU's cache.
EVAL_BATCH = 500
EVAL_BATCH_MAPS = 100


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """The context in which a network computes with this precision."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """The same numbers in float32, or wider if they were."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Member:
    """A cell of a training run: a network with the run's weights and this cell's lambda."""

    model: Network
    alpha: Callable[[int], float] | None  # the schedule's value by the number of updates, for the record


@torch.no_grad()
def evaluate(models: Sequence[Network], part: Part, precision: str) -> list[Measured]:
    """Loss and error over a whole part, of each of several networks that share their weights, in evaluation mode."""
    sums = [MetricSums(1, part.x.device) for _ in models]
    convolves = any(isinstance(layer, nn.Conv2d) for layer in models[0].modules())
    size = EVAL_BATCH_MAPS if convolves and part.x.device.type == "cpu" else EVAL_BATCH
    for start in range(0, len(part), size):
        interrupt.check()
        x, y = part.inputs(slice(start, start + size)), part.y[start : start + size]
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
        batch = slice(start, start + batch_size)
        yield part.inputs(batch if order is None else order[batch])


@dataclass(frozen=True)
class Progress:
    """Where a training run stands at an epoch's end."""

    epoch: int
    step: int
    lr: float
    grad_norm: float
    train_seconds: float


def evaluate_epoch(
    members: Sequence[Member],
    trained: Measured,
    progress: Progress,
    data: Data,
    config: TrainConfig,
    precision: str,
) -> list[EpochRow]:
    """A row for each cell of a training run; seconds are each cell's share, so that their sum is the wall clock.

    Evaluates where eval_every asks for it, and where the run ends.
    """
    evaluations: list[dict[str, Any]] = [NOT_EVALUATED for _ in members]
    seconds = 0.0
    if is_evaluated(progress.epoch, config.epochs, config.eval_every) or not math.isfinite(trained.loss):
        started = time.perf_counter()
        evaluations = _evaluations([member.model for member in members], data, config, precision)
        seconds = time.perf_counter() - started
    return [
        EpochRow(
            epoch=progress.epoch,
            step=progress.step,
            alpha=None if member.alpha is None else float(member.alpha(progress.step)),
            lr=progress.lr,
            train_loss=trained.loss,
            train_error_pct=trained.error_pct,
            grad_norm=progress.grad_norm,
            train_seconds=progress.train_seconds / len(members),
            eval_seconds=seconds / len(members),
            **evaluated,
        )
        for member, evaluated in zip(members, evaluations, strict=True)
    ]


def _evaluations(models: Sequence[Network], data: Data, config: TrainConfig, precision: str) -> list[dict[str, Any]]:
    """Each network's val_*, test_*, …_population and lambda_drift columns now.

    They share weights, so the population's statistics are the same for all.
    """
    for model in models:
        model.eval()
    # Whatever limit_batches says: statistics of the population, not of the batches that were trained on.
    with autocast(data.train.x.device, precision):
        moments = population_moments(models[0], _batches(data.train, config.batch_size, data.shuffle_order))
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
