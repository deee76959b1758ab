"""Filter Response Normalization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dbnrun.norm import functional


class FilterResponseNorm(nn.Module):
    """Filter Response Normalization (FRN), Singh and Krishnan 2019, arXiv:1911.09737, equations 1 to 3.

    Each record and channel by itself, with no mean subtracted; E is the mean over a channel's places:

        y = gamma x / sqrt(E(x^2) + eps) + beta        z = max(y, tau), the thresholded linear unit (TLU)

    A unit has one value, whose y would be a sign. There the paper learns `eps + |e|`: `learned_eps` is the first value
    of e, one number per layer; None leaves e out. tau, (C,), begins at 0, as a rectifier; with tlu=False, z = y.
    x and z (N, C, …). The mean is taken in float32 at least.
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
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        square = wide.square()
        power = square.mean(tuple(range(2, x.dim())), keepdim=True) if x.dim() > 2 else square
        eps = self.eps if self.learned_eps is None else self.eps + self.learned_eps.abs()
        y = functional.affine((wide * (power + eps).rsqrt()).to(x.dtype), self.weight, self.bias)
        return y if self.tau is None else torch.maximum(y, functional.by_channel(self.tau, y))

    def extra_repr(self) -> str:
        learned = self.learned_eps is not None
        return f"{self.num_features}, eps={self.eps}, learned_eps={learned}, tlu={self.tau is not None}"
