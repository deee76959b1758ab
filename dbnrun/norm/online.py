"""Online Normalization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dbnrun.norm import functional
from dbnrun.norm.functional import by_channel
from dbnrun.norm.layer import ChannelNorm
from dbnrun.norm.rms import scaled_to_one


class OnlineNorm(ChannelNorm):
    r"""Online Normalization over (N, C, …), Chiley et al. 2019, arXiv:1905.05894.

    Records pass one after another, t = 1, …, N, and from batch to batch. With a record's mean m_t and biased variance
    s_t a channel (over its places; of a unit m_t = x_t, s_t = 0), and a, b the forward and backward decay, training has

        y_t      = (x_t - mu_{t-1}) / sqrt(var_{t-1} + eps)
        mu_t     = a mu_{t-1} + (1 - a) m_t
        var_t    = a var_{t-1} + (1 - a) s_t + a (1 - a) (m_t - mu_{t-1})^2

    so that a record never meets its own statistics. The backward pass does not differentiate this recursion: two
    accumulators of errors, u and v, keep the gradient orthogonal to y and to 1 on average. With g_t = dL/dy_t and
    E the mean over a record's places,

        h_t      = g_t - (1 - b) v_{t-1} y_t                            v_t = v_{t-1} + E(h_t y_t)
        dL/dx_t  = h_t / sqrt(var_{t-1} + eps) - (1 - b) u_{t-1}        u_t = u_{t-1} + E(dL/dx_t)

    The result is z = gamma y + beta, and then `guard`, against the statistics' lag at the start and after leaps:

        "layer_scaling"  z / sqrt(E(z^2) + eps), E over all channels and places of a record (the paper)
        "clamp"          z within [-clamp, clamp] (the default of the authors' code since 2020)
        "none"           z as it is

    Evaluation normalizes by mu and var as they stand. The paper leaves out eps; the authors' code, which this follows
    there (github.com/Cerebras/online-normalization, per record, not its batched variant), adds it to the variance.
    The order of a batch's records matters. The recursions are computed by doubling, in log2(N) steps.

    Buffers: mu, var, moved by the forward pass; u, v, moved by the backward pass; (C,) each.
    Shape: x and z (N, C, …).
    A second backward pass through the same graph (retain_graph=True) moves u and v once more.

    After a ReLU, a unit that is silent for many records lets var fall towards 0. When it fires again, |y| is large, and
    v grows without bound where (1 - b) E(y^2) > 2 for a record. eps=0.01 prevented it in our runs of 12 to 15 epochs
    (docs/log.md).

    Raises: ValueError for a wrong number of dimensions or channels, an empty batch, or an unknown guard. RuntimeError
    for activation checkpointing and for double backward.
    """

    mu: Tensor
    var: Tensor
    u: Tensor
    v: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        forward_decay: float = 0.999,
        backward_decay: float = 0.99,
        eps: float = 1e-5,
        affine: bool = True,
        guard: str = "layer_scaling",
        clamp: float = 5.0,
        **place: Any,
    ) -> None:
        super().__init__(num_features, eps, affine, **place)
        if guard not in ("layer_scaling", "clamp", "none"):
            raise ValueError(f"guard={guard!r}: expected one of 'layer_scaling', 'clamp', 'none'")
        self.forward_decay = forward_decay
        self.backward_decay = backward_decay
        self.guard = guard
        self.clamp = clamp
        self.hold("mu", num_features)
        self.hold("var", num_features, value=1.0)
        self.hold("u", num_features)
        self.hold("v", num_features)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, var: Tensor) -> None:
        self.mu.copy_(mean)
        self.var.copy_(var)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if not self.training:
            z = functional.normalize(x, self.weight, self.bias, self.mu, (self.var + self.eps).rsqrt())
            return self._guarded(z)
        functional.refuse_empty(x)
        functional.refuse_second_run()
        mu, rate = self._update(x)
        y = _Normalize.apply(x, mu, rate, self.u, self.v, self.backward_decay)
        zero, one = torch.zeros_like(self.mu), torch.ones_like(self.mu)
        return self._guarded(functional.normalize(y, self.weight, self.bias, zero, one))

    @torch.no_grad()
    def _update(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Move the statistics over the batch. Returns mean and rate for each record and channel, (N, C) each."""
        wide = x.to(self.mu.dtype)
        mu_x = over_places(wide)
        var_x = over_places((wide - by_channel(mu_x, wide)).square())
        a = self.forward_decay
        decay = torch.full_like(mu_x, a)
        mu = functional.kept(recursion(decay, (1 - a) * mu_x, self.mu))
        away = (mu_x - mu[:-1]).square()
        var = functional.kept(recursion(decay, (1 - a) * (var_x + a * away), self.var))
        self.mu.copy_(mu[-1])
        self.var.copy_(var[-1])
        return mu[:-1], (var[:-1] + self.eps).rsqrt()

    def _guarded(self, z: Tensor) -> Tensor:
        if self.guard == "clamp":
            return z.clamp(-self.clamp, self.clamp)
        return scaled_to_one(z, self.eps) if self.guard == "layer_scaling" else z

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, forward_decay={self.forward_decay}, backward_decay={self.backward_decay}, "
            f"eps={self.eps}, affine={self.affine}, guard={self.guard!r}"
        )


class _Normalize(torch.autograd.Function):
    """y = (x - mu) rate, with mu and rate for each record and channel; its gradient moves u and v."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mu: Tensor, rate: Tensor, u: Tensor, v: Tensor, decay: float) -> Tensor:
        wide = x.to(rate.dtype)
        y = ((wide - by_channel(mu, wide)) * by_channel(rate, wide)).to(x.dtype)
        ctx.save_for_backward(y, rate)
        ctx.u, ctx.v, ctx.decay = u, v, decay
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        functional.refuse_second_derivative()
        y, rate = ctx.saved_tensors
        u, v, rest = ctx.u, ctx.v, 1 - ctx.decay
        y, g = y.to(rate.dtype), grads[0].to(rate.dtype)
        errors = recursion(1 - rest * over_places(y.square()), over_places(g * y), v)
        h = (g - by_channel(rest * errors[:-1], y) * y) * by_channel(rate, y)
        biases = recursion(torch.full_like(rate, ctx.decay), over_places(h), u)
        dx = h - by_channel(rest * biases[:-1], y)
        v.copy_(errors[-1])
        u.copy_(biases[-1])
        return dx.to(grads[0].dtype), *[None] * 5


def over_places(x: Tensor) -> Tensor:
    """The mean of each record and channel, (N, C), of x (N, C, …)."""
    return x.mean(tuple(range(2, x.dim()))) if x.dim() > 2 else x


def recursion(factor: Tensor, term: Tensor, start: Tensor) -> Tensor:
    """w_0 = start (C,), w_t = factor_t w_{t-1} + term_t; all N + 1 of them, (N + 1, C), from (N, C) each."""
    factor = torch.cat([torch.zeros_like(start)[None], factor])
    w = torch.cat([start[None], term])
    span = 1
    while span < len(w):  # w_t now holds what the last `span` terms contribute
        w = torch.cat([w[:span], w[span:] + factor[span:] * w[:-span]])
        factor = torch.cat([factor[:span], factor[span:] * factor[:-span]])
        span *= 2
    return w
