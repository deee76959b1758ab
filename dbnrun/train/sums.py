"""Sums of losses, errors and gradient norms over an epoch's batches, kept on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Measured:
    """Mean loss [nat] and error [%] over a number of records."""

    loss: float
    error_pct: float


@dataclass(frozen=True)
class EpochProgress:
    """An epoch in the middle: what going on from there needs beside network, optimizer and streams."""

    steps: int  # updates of this epoch so far
    order: Tensor  # where the stream of data order stood before it drew the epoch's
    loss: float = 0.0  # summed over those updates, as are the next two
    wrong: int = 0
    norm: float = 0.0
    seconds: float = 0.0
    sound: int | None = None  # updates before the first loss that was not finite; None: all of them


class MetricSums:
    """Loss, errors and gradient norms of T runs, summed on the device: reading them waits for it, once."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.loss = torch.zeros(count, dtype=torch.float64, device=device)
        self.wrong = torch.zeros(count, dtype=torch.int64, device=device)
        self.norm = torch.zeros(count, dtype=torch.float64, device=device)
        self.sound = torch.zeros(count, dtype=torch.int64, device=device)  # batches before a loss that is not finite

    def begin(self, begun: Sequence[EpochProgress]) -> None:
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

    def under_way(self, steps: int, begun: Sequence[EpochProgress], seconds: float) -> list[EpochProgress]:
        """Where each run stands after so many updates, `seconds` after it began or went on."""
        sums = zip(self.loss.tolist(), self.wrong.tolist(), self.norm.tolist(), self.sound.tolist(), strict=True)
        return [
            EpochProgress(steps, run.order, loss, wrong, norm, run.seconds + seconds, sound)
            for run, (loss, wrong, norm, sound) in zip(begun, sums, strict=True)
        ]
