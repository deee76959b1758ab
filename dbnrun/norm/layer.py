"""What the layers of this room share: checked inputs, gamma and beta a channel, statistics that stay wide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


def check_input(x: Tensor, num_features: int, dims: tuple[int, ...] = ()) -> None:
    """Raise ValueError unless x is (N, num_features, …), of one of the numbers of dimensions `dims` where given."""
    if x.dim() < 2 or (dims and x.dim() not in dims):
        wanted = " or ".join(f"{d}-D" for d in dims) or "at least 2-D"
        raise ValueError(f"expected {wanted} input, got {x.dim()}-D of shape {tuple(x.shape)}")
    if x.shape[1] != num_features:
        raise ValueError(f"expected {num_features} channels, got {x.shape[1]} in shape {tuple(x.shape)}")


class ChannelNorm(nn.Module):
    """A normalizer of x (N, C, …) with gamma and beta, (C,) each, unless affine is False.

    Statistics that it holds are float32 at least, whatever the input and the parameters are.
    """

    dims: tuple[int, ...] = ()  # accepted numbers of dimensions of x; empty: two or more

    def __init__(
        self, num_features: int, eps: float, affine: bool, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.affine = affine
        self._place = {
            "device": device,
            "dtype": torch.promote_types(dtype or torch.get_default_dtype(), torch.float32),
        }
        self.weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if affine else None
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if affine else None
        self.reset_affine()

    def hold(self, name: str, *shape: int, value: float = 0.0) -> None:
        """Add a buffer of statistics."""
        self.register_buffer(name, torch.full(shape, value, **self._place))

    def reset_affine(self) -> None:
        """gamma = 1, beta = 0."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def check_input(self, x: Tensor) -> None:
        check_input(x, self.num_features, self.dims)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        # .half() and .to(bfloat16) must not round statistics: an average of 1/m steps would stop moving.
        for name, old in before.items():
            now = getattr(self, name)
            if now.is_floating_point() and torch.promote_types(now.dtype, torch.float32) != now.dtype:
                setattr(self, name, old.to(device=now.device, dtype=torch.float32))
        return self
