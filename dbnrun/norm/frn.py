"""Filter Response Normalization."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dbnrun.norm import functional
from dbnrun.norm.layer import check_input


class FilterResponseNorm(nn.Module):
    """Filter Response Normalization (FRN), Singh and Krishnan 2019, arXiv:1911.09737, equations 1 to 3.

    Each record and channel by itself, with no mean subtracted; E is the mean over a channel's places:

        y = gamma x / sqrt(E(x^2) + eps) + beta        z = max(y, tau), the thresholded linear unit (TLU)

    Where a channel has one place (a unit, or a 1x1 feature map), y would be a sign. There the paper learns `eps + |e|`:
    `learned_eps` is the first value of e, one number per layer; None leaves e out. tau, (C,), begins at 0, as a
    rectifier; with tlu=False, z = y. x and z (N, C, …). Computed in float32 at least, and rounded once to the dtype of
    x.

    Raises: ValueError for fewer than two dimensions, a wrong number of channels, or one place without learned_eps.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-6,
        learned_eps: float | None = None,
        tlu: bool = True,
        **place: Any,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features, **place))
        self.bias = nn.Parameter(torch.zeros(num_features, **place))
        self.tau = nn.Parameter(torch.zeros(num_features, **place)) if tlu else None
        self.learned_eps = None if learned_eps is None else nn.Parameter(torch.full((1,), learned_eps, **place))

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features)
        if self.learned_eps is None and math.prod(x.shape[2:]) < 2:
            raise ValueError(
                f"FRN without learned_eps expects feature maps larger than 1x1, got shape {tuple(x.shape)}: "
                "use larger images or another normalizer"
            )
        wide = functional.widened(x)
        square = wide.square()
        power = square.mean(tuple(range(2, x.dim())), keepdim=True) if x.dim() > 2 else square
        eps = self.eps if self.learned_eps is None else self.eps + self.learned_eps.abs()
        y = functional.affine(wide * (power + eps).rsqrt(), self.weight, self.bias)
        z = y if self.tau is None else torch.maximum(y, functional.by_channel(self.tau, y))
        return z.to(x.dtype)

    def extra_repr(self) -> str:
        learned = self.learned_eps is not None
        return f"{self.num_features}, eps={self.eps}, learned_eps={learned}, tlu={self.tau is not None}"
