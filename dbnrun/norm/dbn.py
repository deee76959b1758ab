"""The layers of Diminishing Batch Normalization, drop-ins for torch.nn.BatchNorm1d/2d/3d."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dbnrun.norm import functional
from dbnrun.norm import sync as ranks
from dbnrun.norm.layer import ChannelNorm
from dbnrun.norm.schedules import Alpha, Constant, named


class DiminishingBatchNorm(ChannelNorm):
    r"""Diminishing batch normalization over every axis but the second, arXiv:1705.08011.

    At update m = 1, 2, …, which is a forward pass in training mode, the batch has mean mu_B and biased standard
    deviation sigma_B per channel. lambda = (mu, sigma) moves by Algorithm 1, line 7:

        mu(m)    = alpha(m) mu_B    + (1 - alpha(m)) mu(m-1)
        sigma(m) = alpha(m) sigma_B + (1 - alpha(m)) sigma(m-1)
        y        = gamma (x - mu) / (sigma + eps) + beta                 equation 3

    Evaluation uses lambda without moving it. `init` is lambda(0), and alpha(1) acts on it: with 1/m and 1/m^2,
    lambda(1) is the first batch's statistics, which Algorithm 1, beginning with alpha(2), assumes.
    With schedule=1, train_stats="lambda", stats_grad=True and eps_at="var", training equals nn.BatchNorm. Evaluation
    then uses only the last batch's statistics.

    Args:
        num_features: C, the channels or units.
        schedule: alpha, as a number, as a name ("harmonic", "inverse_square", "power", "alpha_0.1"), or as an
            elementwise function of m that takes a Python number and a 0-dim tensor (dbnrun.norm.schedules has the
            paper's).
        train_stats: "lambda" normalizes a training batch by lambda(m), which includes it; "batch" by the
            batch's own statistics, and lambda is then used only in evaluation.
        stats_grad: let a gradient flow through the batch's statistics (scaled by alpha with "lambda");
            False holds them constant, as equation 2 does. "mean" lets it flow only through the batch's mean, "var"
            only through its variance, and not scaled by alpha: d mu / d mu_B = 1, or d s / d s_B = 1 for the s that
            `average` names.
        average: what lambda averages: "std" (the paper), "var" (PyTorch), "inv_std" (Lasagne:
            1/sqrt(sigma^2 + eps) is averaged and multiplied by, so eps_at does not apply).
        eps: keeps the divisor above 0; part of lambda only with "inv_std".
        eps_at: "std" divides by sigma + eps (the paper), "var" by sqrt(sigma^2 + eps).
        affine: learn gamma and beta, of shape (C,).
        init: lambda before the first update, (mu, sigma).
        sync: with torch.distributed, compute the batch's statistics over all ranks, so that N ranks
            move lambda and get gradients like one process on the joined batch (dbnrun.norm.sync).
        process_group: the group of these ranks; None: the whole world.

    Buffers: mu (C,); spread (C,): sigma, sigma^2 or 1/sqrt(sigma^2 + eps), by `average`; m, int64. Moments and
    lambda are at least float32, whatever the input and the parameters are.

    Shape: x and y (N, C, …).

    Activation checkpointing (torch.utils.checkpoint) runs the forward pass a second time during the backward pass.
    With train_stats="batch", the second run does not move lambda and gives the same result. With
    train_stats="lambda", or in a compiled layer, it is refused, because lambda has moved since the first run.

    These also raise an error: double backward (create_graph=True), torch.func.grad, vjp, jvp and vmap, forward-mode
    differentiation, torch.jit.script.

    Raises:
        ValueError: a wrong number of dimensions or channels; training with fewer than two values a channel; an
            unknown axis value or schedule; alpha(m) outside [0, 1] for some m up to 10,000.
        RuntimeError: activation checkpointing or double backward, as above.
    """

    mu: Tensor
    spread: Tensor
    m: Tensor

    def __init__(
        self,
        num_features: int,
        schedule: float | str | Alpha = 1.0,
        *,
        train_stats: str = "lambda",
        stats_grad: bool | str = True,
        average: str = "std",
        eps: float = 1e-4,
        eps_at: str = "std",
        affine: bool = True,
        init: tuple[float, float] = (0.0, 1.0),
        sync: bool = False,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine, device=device, dtype=dtype)
        _check("train_stats", train_stats, ("lambda", "batch"))
        _check("stats_grad", stats_grad, (True, False, "mean", "var"))
        _check("average", average, ("std", "var", "inv_std"))
        _check("eps_at", eps_at, ("std", "var"))
        self.schedule = _alpha(schedule)
        check_schedule(self.schedule)
        self.train_stats = train_stats
        self.stats_grad = stats_grad
        self.average = average
        self.eps_at = eps_at
        self.init = init
        self.sync = sync
        self.process_group = process_group
        # Told each training batch's mean and spread: how further lambdas follow the same run.
        self.on_moments: Callable[[Tensor, Tensor], None] | None = None
        self.hold("mu", num_features)
        self.hold("spread", num_features)
        self.register_buffer("m", torch.zeros((), device=device, dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """gamma = 1, beta = 0, lambda = init, m = 0."""
        mu, sigma = self.init
        self.set_statistics(torch.full_like(self.mu, mu), torch.full_like(self.mu, sigma**2))
        self.m.zero_()
        self.reset_affine()

    @property
    def sigma(self) -> Tensor:
        """The standard deviation that lambda holds, (C,), whatever it averages."""
        return functional.sigma_of(self.spread, self.average, self.eps)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, var: Tensor) -> None:
        """Put lambda at a mean and a variance, each (C,); m stays."""
        self.mu.copy_(mean)
        self.spread.copy_(functional.spread(var, self.average, self.eps))

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if not self.training:
            return functional.normalize(x, self.weight, self.bias, self.mu, self._rate(self.spread))
        joined = self.sync and ranks.world_size(self.process_group) > 1
        if joined:
            mu_b, var_b, count = ranks.joined_moments(x, self.process_group)
        else:
            (mu_b, var_b), count = functional.batch_moments(x), x.numel() // x.shape[1]
        functional.check_count(x, count)
        spread_b = functional.spread(var_b, self.average, self.eps)
        alpha, mu, spread = self._statistics(mu_b, spread_b)
        r = self._rate(spread)
        if not self.stats_grad:
            return functional.normalize(x, self.weight, self.bias, mu, r)
        mean_grad, spread_grad = {"mean": (1.0, 0.0), "var": (0.0, 1.0)}.get(str(self.stats_grad), (alpha, alpha))
        slope = functional.rate_slope(var_b, spread, r, self.average, self.eps, self.eps_at)
        depends = {"mean_grad": mean_grad, "rate_grad": spread_grad * slope}
        if joined:
            group = self.process_group
            return ranks.normalize(x, self.weight, self.bias, mu, r, mu_b=mu_b, **depends, count=count, group=group)
        # No tensor enters an autograd function twice, so that it compiles: mu_b is None where it is mu itself, which
        # stands for mean_grad = 1, or a copy.
        if self.train_stats == "batch":
            mu_b = mu_b.clone() if self.stats_grad == "var" else None
        return functional.normalize(x, self.weight, self.bias, mu, r, mu_b=mu_b, **depends)

    def _statistics(self, mu_b: Tensor, spread_b: Tensor) -> tuple[float | Tensor, Tensor, Tensor]:
        """Move lambda. Returns alpha, mean and spread that normalize the batch."""
        if self.train_stats == "batch":
            if not functional.in_backward():
                self._update(mu_b, spread_b)
            return 1.0, mu_b, spread_b
        functional.refuse_second_run()
        return self._update(mu_b, spread_b)

    @torch.no_grad()
    def _update(self, mu_b: Tensor, spread_b: Tensor) -> tuple[float | Tensor, Tensor, Tensor]:
        """Algorithm 1, line 7: count, and move lambda toward the batch. Returns alpha(m) and lambda(m)."""
        self.m.add_(1)
        # m in lambda's own precision: 1/m of an integer tensor would be float32 in a float64 layer.
        alpha = functional.kept(self.schedule(self.m.to(self.mu.dtype)))
        mu = functional.kept(alpha * mu_b + (1 - alpha) * self.mu)
        spread = functional.kept(alpha * spread_b + (1 - alpha) * self.spread)
        self.mu.copy_(mu)
        self.spread.copy_(spread)
        if self.on_moments is not None:
            self.on_moments(mu_b, spread_b)
        return alpha, mu, spread

    def _rate(self, spread: Tensor) -> Tensor:
        return functional.rate(spread, self.average, self.eps, self.eps_at)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, schedule={self.schedule}, train_stats={self.train_stats!r}, "
            f"stats_grad={self.stats_grad!r}, average={self.average!r}, eps={self.eps}, eps_at={self.eps_at!r}, "
            f"affine={self.affine}" + (", sync=True" if self.sync else "")
        )


def _check(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, known))}")


class DiminishingBatchNorm1d(DiminishingBatchNorm):
    """DiminishingBatchNorm over (N, C) or (N, C, L)."""

    dims = (2, 3)


class DiminishingBatchNorm2d(DiminishingBatchNorm):
    """DiminishingBatchNorm over (N, C, H, W)."""

    dims = (4,)


class DiminishingBatchNorm3d(DiminishingBatchNorm):
    """DiminishingBatchNorm over (N, C, D, H, W)."""

    dims = (5,)


for _layer in (DiminishingBatchNorm1d, DiminishingBatchNorm2d, DiminishingBatchNorm3d):
    _layer.__doc__ = f"{_layer.__doc__}\n\n{inspect.getdoc(DiminishingBatchNorm)}"


def convert_sync(module: nn.Module, process_group: Any = None) -> nn.Module:
    """Let every DBN layer of a module take its batch statistics over all ranks of a process group (None: all).

    In the manner of torch.nn.SyncBatchNorm.convert_sync_batchnorm, but the layers stay the same objects, with their
    parameters, lambda and counter; returns the module. Layers of torch.nn are left to its own conversion.
    """
    for layer in module.modules():
        if isinstance(layer, DiminishingBatchNorm):
            layer.sync, layer.process_group = True, process_group
    return module


def _alpha(schedule: float | str | Alpha) -> Alpha:
    if isinstance(schedule, str):
        return named(schedule)
    return schedule if callable(schedule) else Constant(alpha=float(schedule))


def check_schedule(schedule: Alpha, up_to: int = 10_000) -> None:
    """Raise ValueError at the first m in 1 … up_to at which alpha(m) is not a number in [0, 1]."""
    alphas = _alphas(schedule, up_to)
    wrong = ~((alphas >= 0) & (alphas <= 1))  # true of NaN too
    if wrong.any():
        at = int(wrong.nonzero()[0])
        alpha = float(alphas[at])
        raise ValueError(f"schedule {schedule} gives alpha = {alpha:g} at m = {at + 1}; expected a number in [0, 1]")


def _alphas(schedule: Alpha, up_to: int) -> Tensor:
    """alpha(1), …, alpha(up_to): of all m in one call, or one by one where the schedule takes single numbers only."""
    cpu = torch.device("cpu")  # whatever device is the default where a layer is built
    try:
        alphas = schedule(torch.arange(1, up_to + 1, dtype=torch.float64, device=cpu))
        return torch.as_tensor(alphas, dtype=torch.float64, device=cpu).expand(up_to)  # a constant looks at no m
    except Exception:  # a schedule is anybody's function: what it raises on a tensor says nothing
        alphas = [float(schedule(m)) for m in range(1, up_to + 1)]
        return torch.tensor(alphas, dtype=torch.float64, device=cpu)
