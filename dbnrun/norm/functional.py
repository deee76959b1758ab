"""The equations of (diminishing) batch normalization on tensors, with nothing that moves or remembers.

Letters: x (N, C, …) with C channels or units; mu, s, gamma, beta and every other statistic (C,).
s is the *spread* that lambda averages, by `average`: sigma (std), sigma^2 (var), 1/sqrt(sigma^2 + eps)
(inv_std). r is the *rate* that multiplies x - mu: 1/(sigma + eps), or 1/sqrt(sigma^2 + eps).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Stands for a vanishing squared rate where a kernel divides by it; far below any statistic, far above underflow.
_TINY = 1e-30
# Values of a bfloat16 batch that the CPU converts to float32 at a time: 1 MB, which stays in the cache.
_PIECE = 2**18


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, in float32 at least. x (N, C, …) -> (C,), (C,).

    Algorithm 1, lines 5 and 6, on a mini-batch; zeros where the batch is empty. Carries no gradient: `normalize`
    supplies it in closed form.
    """
    x = x.detach()
    wide = torch.promote_types(x.dtype, torch.float32)
    if not x.numel():
        return x.new_zeros(x.shape[1], dtype=wide), x.new_zeros(x.shape[1], dtype=wide)
    if torch.compiler.is_compiling():
        var, mu = torch.var_mean(x.to(wide), dim=[d for d in range(x.dim()) if d != 1], correction=0)
        return mu, var
    # The statistics half of the native batch norm: several times faster than var_mean on the CPU.
    running = None
    if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
        running = x.new_zeros(x.shape[1], dtype=torch.float32)  # asks the kernel for float32 results
    return torch.ops.aten.batch_norm_update_stats(x, running, running, 0.0)


def check_count(x: Tensor, count: int | None = None) -> None:
    """Raise ValueError where a training batch has too few values a channel; `count`: over all ranks together."""
    if (x.numel() // x.shape[1] if count is None else count) <= 1:
        raise ValueError(f"expected more than 1 value per channel when training, got shape {tuple(x.shape)}")


def refuse_empty(x: Tensor) -> None:
    """Raise ValueError where a training batch is empty: a mean over nothing would make running statistics NaN."""
    if not x.numel():
        raise ValueError(f"expected at least one example when training, got shape {tuple(x.shape)}")


def in_backward() -> bool:
    """Whether autograd is running a backward pass now. A forward pass then is a second run of an earlier one."""
    # torch has no public way to ask; torch.utils.checkpoint asks the same. While a compiler traces, `kept` asks later.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def refuse_second_run() -> None:
    """Raise RuntimeError where activation checkpointing runs a forward pass again that moves statistics."""
    if in_backward():
        raise RuntimeError(
            "activation checkpointing runs this layer's forward pass a second time, but its statistics have moved "
            "since the first; call the layer outside torch.utils.checkpoint, or a DBN layer uncompiled with "
            'train_stats="batch".'
        )


def refuse_second_derivative() -> None:
    """Raise RuntimeError in a backward pass that is to be differentiated: what `backward` computes has no gradient."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "this normalizer has first derivatives only, but create_graph=True asks for second ones; "
            "leave create_graph out, or keep this layer out of what is differentiated twice."
        )


def _kept(x: Tensor) -> Tensor:
    refuse_second_run()
    return x.clone()


# Registered by hand: torch.library.custom_op takes three times as long a call.
_LIBRARY = torch.library.Library("dbnrun", "FRAGMENT")
_LIBRARY.define("kept(Tensor x) -> Tensor")
_LIBRARY.impl("kept", _kept, "CompositeExplicitAutograd")


def kept(x: Any) -> Any:
    """x itself; in a compiled graph behind an operation that the compiler must save and cannot repeat.

    Its partitioner otherwise computes lambda(m) a second time in the backward pass, from the buffer that has moved
    on by then, and gradients are silently wrong (pytorch/pytorch#197039).
    """
    return torch.ops.dbnrun.kept(x) if isinstance(x, Tensor) and torch.compiler.is_compiling() else x


def by_channel(value: Tensor, x: Tensor) -> Tensor:
    """value (C,) or (N, C), with the dimensions and the dtype of x (N, C, …)."""
    return value.to(x.dtype).view(*value.shape, *[1] * (x.dim() - 2))


def widened(x: Tensor) -> Tensor:
    """x in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def affine(y: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """gamma y + beta, in the dtype of y (N, C, …); None: 1 and 0."""
    y = y if gamma is None else y * by_channel(gamma, y)
    return y if beta is None else y + by_channel(beta, y)


def spread(var: Tensor, average: str, eps: float) -> Tensor:
    """What lambda averages, from a variance: sigma (std), sigma^2 (var), or 1/sqrt(sigma^2 + eps) (inv_std)."""
    if average == "std":
        return var.sqrt()
    return var if average == "var" else (var + eps).rsqrt()


def sigma_of(s: Tensor, average: str, eps: float) -> Tensor:
    """The standard deviation that a spread stands for; inverse of `spread`."""
    if average == "std":
        return s
    return s.sqrt() if average == "var" else (s**-2 - eps).clamp_min(0).sqrt()


def rate(s: Tensor, average: str, eps: float, eps_at: str) -> Tensor:
    """r, the factor of x - mu: 1/(sigma + eps) (eps_at=std, the paper) or 1/sqrt(sigma^2 + eps) (eps_at=var)."""
    if average == "inv_std":
        return s
    if eps_at == "std":
        return (sigma_of(s, average, eps) + eps).reciprocal()
    return ((s if average == "var" else s * s) + eps).rsqrt()


def rate_slope(var_b: Tensor, s: Tensor, r: Tensor, average: str, eps: float, eps_at: str) -> Tensor:
    """-2 dr/d(var_b), with ds/d(s_b) taken as 1: how the rate falls as the batch's variance grows.

    Non-negative; 0 where sigma_b = 0, as the derivative of torch.std is, and where lambda's sigma = 0.
    """
    if average == "inv_std":
        return (var_b + eps) ** -1.5
    if average == "var":
        slope = r**3 if eps_at == "var" else r * r / s.sqrt()
    else:
        sigma_b = var_b.sqrt()
        slope = (s * r**3 if eps_at == "var" else r * r) / sigma_b
    # Not a product with the mask: 0 * inf is NaN.
    return torch.where((var_b > 0) & (s > 0), slope, torch.zeros_like(slope))


def normalize(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mu: Tensor,
    r: Tensor,
    *,
    mu_b: Tensor | None = None,
    mean_grad: float | Tensor = 0.0,
    rate_grad: Tensor | None = None,
) -> Tensor:
    """y = gamma * (x - mu) * r + beta, equation 3, as one differentiable operation.

    mu (C,) and r (C,) are statistics. Where they depend on the batch itself, say how: `mu_b` is the batch's
    mean (None: mu is), `mean_grad` = d mu / d mu_b, and `rate_grad` = -2 dr / d var_b (C,), non-negative. Leave
    all three out and the statistics are constants (equation 2). Differentiable once in x, gamma and beta.
    Returns y with the shape and dtype of x.
    """
    if not x.numel():  # the native kernels divide by its size
        weight, shift = (1 if gamma is None else gamma.sum()), (0 if beta is None else beta.sum())
        return x * weight + shift
    return _Normalize.apply(x, gamma, beta, mu, r, mu_b, mean_grad, rate_grad)


class _Normalize(torch.autograd.Function):
    """y = (gamma r)(x - mu) + beta, forward and backward by the native batch-norm kernels.

    With g = dL/dy, P = sum g (x - mu) and N values a channel:

        dL/dbeta = sum g        dL/dgamma = r P
        dL/dx = gamma r g  -  gamma r a (sum g) / N  -  gamma P k (x - mu_b) / N

    where a = d mu / d mu_b and k = -2 dr / d var_b. The kernel of ordinary batch norm, told that the batch had
    mean M and rate I, computes A (g - (sum g) / N - (x - M) I^2 (sum g (x - M)) / N) with A = I * weight.
    Where mu is mu_b, so that a = 1, this is ours for M = mu, I^2 = k / r and A = gamma r.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        mu: Tensor,
        r: Tensor,
        mu_b: Tensor | None,
        mean_grad: float | Tensor | None,
        rate_grad: Tensor | None,
    ) -> Tensor:
        weight = r if gamma is None else gamma * r
        shift = None if beta is None else beta.to(mu.dtype)
        one = torch.ones_like(mu)
        alpha_is_tensor = isinstance(mean_grad, Tensor)
        ctx.save_for_backward(x, gamma, weight, mu, r, one, mu_b, mean_grad if alpha_is_tensor else None, rate_grad)
        ctx.mean_grad = None if alpha_is_tensor else mean_grad
        ctx.beta_dtype = None if beta is None else beta.dtype
        return torch.native_batch_norm(x, weight, shift, mu, one, False, 0.0, 0.0)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, gamma, weight, mu, r, one, mu_b, mean_grad, rate_grad = ctx.saved_tensors
        g = grads[0]
        want_x = ctx.needs_input_grad[0]
        kernel = torch.ops.aten.native_batch_norm_backward
        if want_x and rate_grad is not None and mu_b is None:
            i = (rate_grad / r).clamp_min(_TINY).sqrt()
            dx, p_i, sum_g = kernel(g, x, weight / i, None, None, mu, i, True, 0.0, [True, True, True])
            p = p_i / i
        else:
            mask = [want_x and mu_b is None, True, True]
            # mu and one a second time: on CUDA some layouts ask for saved statistics in evaluation mode too.
            dx, p, sum_g = kernel(g, x, weight, mu, one, mu, one, False, 0.0, mask)
            if want_x and mu_b is not None and rate_grad is not None:
                mean_grad = ctx.mean_grad if mean_grad is None else mean_grad
                count = x.numel() // x.shape[1]
                dx = input_gradient(g, x, gamma, weight, mu_b, mean_grad, rate_grad, p, sum_g, count)
        dgamma = None if gamma is None else (p * r).to(gamma.dtype)
        dbeta = None if ctx.beta_dtype is None else sum_g.to(ctx.beta_dtype)
        return dx, dgamma, dbeta, None, None, None, None, None


def input_gradient(
    g: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    weight: Tensor,
    mu_b: Tensor,
    mean_grad: float | Tensor,
    rate_grad: Tensor,
    p: Tensor,
    sum_g: Tensor,
    count: int,
) -> Tensor:
    """dL/dx of _Normalize from its two sums, computed in float32 at least and rounded to the dtype of x at the end.

    Far from lambda, and in low precision, its terms nearly cancel: each rounded on its own, they leave few digits.
    """
    slope = (p if gamma is None else gamma * p) * rate_grad / -count
    offset = weight * mean_grad * sum_g / -count
    shape = (-1, *[1] * (x.dim() - 2))
    by_channel = weight.view(shape)
    if x.dtype == weight.dtype:
        dx = torch.native_batch_norm(x, slope, offset, mu_b, torch.ones_like(mu_b), False, 0.0, 0.0)[0]
        return dx.addcmul_(g, by_channel)
    slope, constant = slope.view(shape), (offset - slope * mu_b).view(shape)
    if x.device.type != "cpu" or x.numel() <= _PIECE or torch.compiler.is_compiling():
        return torch.addcmul(constant, x, slope).addcmul_(g, by_channel).to(x.dtype)
    records = max(1, _PIECE * len(x) // x.numel())
    dx = torch.empty_like(x)
    # Used again for every piece: fresh memory costs more than the arithmetic.
    wide_x, wide_g = (torch.empty_like(t[:records], dtype=weight.dtype) for t in (x, g))
    for part, x_part, g_part in zip(dx.split(records), x.split(records), g.split(records), strict=True):
        terms = wide_x[: len(part)].copy_(x_part).mul_(slope)
        part.copy_(terms.addcmul_(wide_g[: len(part)].copy_(g_part), by_channel).add_(constant))
    return dx
