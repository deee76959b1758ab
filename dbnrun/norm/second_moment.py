"""What MABN and PowerNorm share: division by the root of a second moment, no mean subtracted, a steered gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dbnrun.norm import functional
from dbnrun.norm.layer import ChannelNorm

# How much of the normalized input to take out of the gradient, (C,), from the batch's E(g z) and E(z^2), (C,) each.
Control = Callable[[Tensor, Tensor], Tensor]


class SecondMomentNorm(ChannelNorm):
    """A normalizer that evaluates x / sqrt(square + eps), with a running second moment, and counts its updates, m."""

    square: Tensor
    m: Tensor

    def __init__(self, num_features: int, eps: float, affine: bool, **place: Any) -> None:
        super().__init__(num_features, eps, affine, **place)
        self.hold("square", num_features, value=1.0)
        self.register_buffer("m", torch.zeros((), device=place.get("device"), dtype=torch.int64))

    @property
    def mu(self) -> Tensor:
        """The mean that it evaluates with: 0."""
        return torch.zeros_like(self.square)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, var: Tensor) -> None:
        """Put the second moment where a mean and a variance have it, (C,) each."""
        self.square.copy_(var + mean.square())

    def rate(self, square: Tensor) -> Tensor:
        return (square + self.eps).rsqrt()

    def affine_of(self, z: Tensor, rate: Tensor) -> Tensor:
        """gamma rate z + beta, with a constant rate (C,)."""
        return functional.normalize(z, self.weight, self.bias, torch.zeros_like(rate), rate)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if not self.training:
            return self.affine_of(x, self.rate(self.square))
        functional.refuse_empty(x)
        functional.refuse_second_run()
        self.m.add_(1)
        return self.trained(x)

    def trained(self, x: Tensor) -> Tensor:
        """The output in training; moves the statistics."""
        raise NotImplementedError


def mean_of_channel(x: Tensor) -> Tensor:
    """E(x) of each channel. x (N, C, …) -> (C,)."""
    return x.mean([d for d in range(x.dim()) if d != 1])


def second_moment(x: Tensor, dtype: torch.dtype) -> Tensor:
    """E(x^2) of each channel, without a gradient. x (N, C, …) -> (C,)."""
    return functional.kept(mean_of_channel(x.detach().to(dtype).square()))


def divided(x: Tensor, rate: Tensor, control: Control) -> Tensor:
    """z = rate x, with dL/dx = rate (g - c z), where c = control(E(g z), E(z^2)) and may move statistics."""
    return _Divide.apply(x, rate, control)


class _Divide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: Tensor, control: Control) -> Tensor:
        wide = x.to(rate.dtype)
        z = (wide * functional.by_channel(rate, wide)).to(x.dtype)
        ctx.save_for_backward(z, rate)
        ctx.control = control
        return z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        functional.refuse_second_derivative()
        z, rate = ctx.saved_tensors
        g, z = grads[0].to(rate.dtype), z.to(rate.dtype)
        c = ctx.control(mean_of_channel(g * z), mean_of_channel(z.square()))
        dx = (g - functional.by_channel(c, z) * z) * functional.by_channel(rate, z)
        return dx.to(grads[0].dtype), None, None
