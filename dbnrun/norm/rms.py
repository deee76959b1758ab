"""Root mean square normalization of records."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dbnrun.norm import functional
from dbnrun.norm.layer import check_input


class RMSNorm(nn.Module):
    """Root mean square layer normalization, Zhang and Sennrich 2019, arXiv:1910.07467.

        y = gamma x / sqrt(E(x^2) + eps)

    E is the mean over all features of a record, places of an image included, as in this package's layer norm; gamma is
    one number a feature or channel. Of units it is torch.nn.RMSNorm. The paper has no eps. The authors' TensorFlow code
    adds 1e-8 to E(x^2), as here, and their PyTorch code adds it to the root. x and y (N, C, …). Computed in float32 at
    least, and rounded once to the dtype of x.

    Raises: ValueError for fewer than two dimensions, or a wrong number of channels.
    """

    def __init__(self, num_features: int, *, eps: float = 1e-8, affine: bool = True, **place: Any) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features, **place)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.num_features)
        y = scaled_to_one(functional.widened(x), self.eps)
        return functional.affine(y, self.weight, None).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}"


def scaled_to_one(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(E(x^2) + eps), E over all but the records; in the dtype of x. x (N, C, …)."""
    wide = functional.widened(x)
    power = wide.square().mean(tuple(range(1, x.dim())), keepdim=True)
    return (wide * (power + eps).rsqrt()).to(x.dtype)
