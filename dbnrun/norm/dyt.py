"""Dynamic Tanh."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dbnrun.norm import functional
from dbnrun.norm.layer import check_input


class DynamicTanh(nn.Module):
    """Dynamic Tanh (DyT), Zhu et al. 2025, arXiv:2503.10622: y = gamma tanh(alpha x) + beta.

    No statistics: alpha, one learned number a layer, stands for them, and the tanh for what it does to outliers. The
    paper puts it in the place of layer norm, and the network's activation after it stays. x and y (N, C, …); gamma and
    beta, (C,) each, unless affine is False. Computed in float32 at least, and rounded once to the dtype of x.

    Raises: ValueError for fewer than two dimensions, or a wrong number of channels.
    """

    def __init__(self, num_features: int, *, alpha: float = 0.5, affine: bool = True, **place: Any) -> None:
        super().__init__()
        self.num_features = num_features
        self.start = alpha
        self.alpha = nn.Parameter(torch.full((1,), alpha, **place))
        self.weight = nn.Parameter(torch.ones(num_features, **place)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, **place)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features)
        wide = functional.widened(x)
        y = (self.alpha.to(wide.dtype) * wide).tanh()
        return functional.affine(y, self.weight, self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, alpha={self.start}, affine={self.weight is not None}"
