"""Moving Average Batch Normalization."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from dbnrun.norm import functional
from dbnrun.norm.second_moment import SecondMomentNorm, divided, second_moment


class MovingAverageBatchNorm(SecondMomentNorm):
    r"""Moving Average Batch Normalization (MABN) over (N, C, …), Yan et al. 2020, arXiv:2001.06838.

    Batch norm's backward pass depends on two more statistics of the batch, which a small batch has noisy. MABN
    subtracts no mean (the weights before it are centralized instead, norm/weights.py), which leaves one, and averages
    it as well. At update m, with the batch's E(x^2), g = dL/dz and [.] for the mean over the last `memory` batches:

        z        = x / chi,  chi^2 = [E(x^2)] + eps          y = gamma r z + beta
        r        = chi / sqrt(square + eps), within 1/limit and limit, constant
        square  <- decay square + (1 - decay) [E(x^2)]        used by evaluation
        dL/dx    = (g - z [E(g z)]) / chi

    The memory serves from update max(memory + 1, warmup) on; until then a batch has its own statistics. r is 1 up to
    update max(1000, warmup). These three beginnings, and 5 as the limit, are the authors' code's
    (github.com/megvii-model/MABN); so is eps inside the root.

    Buffers: square (C,), m; squares, slopes (memory, C): the last E(x^2) and, moved by the backward pass, E(g z).
    Shape: x and y (N, C, …).
    A second backward pass through the same graph (retain_graph=True) moves slopes once more.

    Raises: ValueError for a wrong number of dimensions or channels, or an empty batch. RuntimeError for activation
    checkpointing and for double backward.
    """

    UNIT_RATIO = 1000  # updates with r = 1

    squares: Tensor
    slopes: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        memory: int = 16,
        decay: float = 0.98,
        limit: float = 5.0,
        warmup: int = 100,
        eps: float = 1e-5,
        affine: bool = True,
        **place: Any,
    ) -> None:
        super().__init__(num_features, eps, affine, **place)
        self.memory = memory
        self.decay = decay
        self.limit = limit
        self.warmup = warmup
        self.hold("squares", memory, num_features)
        self.hold("slopes", memory, num_features)

    def trained(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            alone = functional.kept(self.m < max(self.memory + 1, self.warmup))
            square = functional.kept(_averaged(self.squares, second_moment(x, self.square.dtype), alone))
            ratio = self.rate(self.square) / self.rate(square)
            ratio = torch.where(self.m <= max(self.UNIT_RATIO, self.warmup), 1, ratio.clamp(1 / self.limit, self.limit))
            ratio = functional.kept(ratio)
            self.square.copy_(self.decay * self.square + (1 - self.decay) * square)
        z = divided(x, self.rate(square), functools.partial(_control, self.slopes, alone))
        return self.affine_of(z, ratio)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, memory={self.memory}, decay={self.decay}, limit={self.limit}, "
            f"warmup={self.warmup}, eps={self.eps}, affine={self.affine}"
        )


def _control(slopes: Tensor, alone: Tensor, slope: Tensor, _power: Tensor) -> Tensor:
    return _averaged(slopes, slope, alone)


def _averaged(memory: Tensor, newest: Tensor, alone: Tensor) -> Tensor:
    """Put the newest (C,) into a memory (memory, C), in the place of its oldest. Its mean, or the newest alone."""
    moved = torch.cat([memory[1:], newest[None]])
    memory.copy_(moved)
    return torch.where(alone, newest, moved.mean(0))
