"""EvoNorm-S0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dbnrun.norm import functional
from dbnrun.norm.layer import check_input


class EvoNormS0(nn.Module):
    """EvoNorm-S0, Liu et al. 2020, arXiv:2004.02967, figure 1: a normalizer and its nonlinearity in one.

        y = gamma x sigmoid(v x) / sqrt(var + eps) + beta

    var is the biased variance of a record's group of channels, over their places too; v, gamma and beta are (C,) each.
    The numerator is Swish, so the paper has no activation after it. x and y (N, C, …), C a multiple of num_groups.
    Computed in float32 at least, and rounded once to the dtype of x.

    Raises: ValueError where the channels do not divide into the groups, or a group has a single value (variance 0); for
    fewer than two dimensions, or a wrong number of channels.
    """

    def __init__(self, num_features: int, *, num_groups: int = 8, eps: float = 1e-5, **place: Any) -> None:
        super().__init__()
        if num_features % num_groups:
            raise ValueError(f"num_groups={num_groups}: expected a divisor of the {num_features} channels")
        self.num_features = num_features
        self.num_groups = num_groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features, **place))
        self.bias = nn.Parameter(torch.zeros(num_features, **place))
        self.v = nn.Parameter(torch.ones(num_features, **place))

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features)
        wide = functional.widened(x)
        grouped = wide.reshape(len(x), self.num_groups, -1)
        if grouped.shape[2] == 1:
            raise ValueError(
                f"expected groups of more than one value, got {self.num_groups} groups of {tuple(x.shape)}"
            )
        rate = (grouped.var(2, correction=0) + self.eps).rsqrt()  # (N, groups)
        rate = rate.repeat_interleave(self.num_features // self.num_groups, 1)  # (N, C)
        numerator = wide * (functional.by_channel(self.v, wide) * wide).sigmoid()
        return functional.affine(numerator * functional.by_channel(rate, wide), self.weight, self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}"
