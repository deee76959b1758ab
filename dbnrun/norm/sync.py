"""The layer's batch statistics over all ranks of a process group, for training under data parallelism.

Rank k holds N_k of the N values a channel. Its mean and variance join into those of the whole batch exactly, shards of
unequal size, or empty, included:

    mu = sum_k N_k mu_k / N        var = sum_k N_k (var_k + (mu_k - mu)^2) / N
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dbnrun.norm import functional


def world_size(group: Any) -> int:
    """Ranks that a synchronized layer talks to; 1 where torch.distributed is not in use."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def joined_moments(x: Tensor, group: Any) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of each channel over the ranks' shards together, and the values a channel, N.

    x (N_k, C, …) -> (C,), (C,), N; the same on every rank, to the last bit. Carries no gradient.
    """
    count = x.numel() // x.shape[1]
    mu, var = functional.batch_moments(x)
    # float64 counts exactly, and one message does for all.
    mine = torch.cat([mu.double(), var.double(), mu.new_full((1,), count, dtype=torch.float64)])
    shards = [torch.empty_like(mine) for _ in range(world_size(group))]
    dist.all_gather(shards, mine, group=group)
    every = torch.stack(shards)
    counts, mus, variances = every[:, -1:], *every[:, :-1].chunk(2, dim=1)
    total = counts.sum()
    mean = (counts * mus).sum(0) / total
    variance = (counts * (variances + (mus - mean).square())).sum(0) / total
    return mean.to(mu.dtype), variance.to(mu.dtype), int(total)


def normalize(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mu: Tensor,
    r: Tensor,
    *,
    mu_b: Tensor,
    mean_grad: float | Tensor,
    rate_grad: Tensor,
    count: int,
    group: Any,
) -> Tensor:
    """functional.normalize where the statistics depend on all ranks' shards, of `count` values a channel together.

    Its gradient in x is that of the ranks' losses added up; gradients in gamma and beta are this rank's part of them,
    as those of every other parameter, for DistributedDataParallel to join.
    """
    return _Normalize.apply(x, gamma, beta, mu, r, mu_b, mean_grad, rate_grad, count, group)


class _Normalize(torch.autograd.Function):
    """The equations of functional._Normalize, their two sums taken over all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        mu: Tensor,
        r: Tensor,
        mu_b: Tensor,
        mean_grad: float | Tensor,
        rate_grad: Tensor,
        count: int,
        group: Any,
    ) -> Tensor:
        weight = r if gamma is None else gamma * r
        mean_grad = torch.as_tensor(mean_grad, dtype=mu.dtype, device=mu.device)
        ctx.save_for_backward(x, gamma, weight, mu, r, mu_b, mean_grad, rate_grad)
        ctx.beta_dtype = None if beta is None else beta.dtype
        ctx.count, ctx.group = count, group
        shift = None if beta is None else beta.to(mu.dtype)
        if not x.numel():
            return torch.empty_like(x)
        return torch.native_batch_norm(x, weight, shift, mu, torch.ones_like(mu), False, 0.0, 0.0)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        functional.refuse_second_derivative()
        x, gamma, weight, mu, r, mu_b, mean_grad, rate_grad = ctx.saved_tensors
        g = grads[0]
        if x.numel():
            kernel = torch.ops.aten.native_batch_norm_backward
            mask = [False, True, True]
            one = torch.ones_like(mu)
            _, p, sum_g = kernel(g, x, weight, mu, one, mu, one, False, 0.0, mask)
        else:
            p, sum_g = torch.zeros(2, len(mu), dtype=mu.dtype, device=mu.device)
        dgamma = None if gamma is None else (p * r).to(gamma.dtype)
        dbeta = None if ctx.beta_dtype is None else sum_g.to(ctx.beta_dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            sums = torch.stack([p, sum_g])
            dist.all_reduce(sums, group=ctx.group)
            p, sum_g = sums
            dx = functional.input_gradient(g, x, gamma, weight, mu_b, mean_grad, rate_grad, p, sum_g, ctx.count)
        return dx, dgamma, dbeta, *[None] * 7
