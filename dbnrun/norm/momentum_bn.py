"""Momentum Batch Normalization, a drop-in for torch.nn.BatchNorm1d/2d."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dbnrun.norm import functional
from dbnrun.norm.layer import ChannelNorm


class MomentumBatchNorm(ChannelNorm):
    r"""Momentum Batch Normalization over every axis but the second, Yong et al., ECCV 2020, Algorithm 1.

    "Momentum Batch Normalization for Deep Learning with Small Batch Size", pages 224 to 240. Batches of N records in
    epoch t = 1, …, T, with the batch's mean mu_B and biased variance var_B a channel:

        mu  = lambda(t) mu  + (1 - lambda(t)) mu_B           what training normalizes by
        var = lambda(t) var + (1 - lambda(t)) var_B
        y   = gamma (x - mu) / sqrt(var + eps) + beta        differentiated through mu_B and var_B
        mu_inf  = tau mu_inf  + (1 - tau) mu_B               what evaluation normalizes by
        var_inf = tau var_inf + (1 - tau) var_B

        lambda(t) = rho^(T / (T - 1) max(T - t, 0)) - rho^T,   rho = min(N / m0, 1)^(1 / T)
        tau       = tau0^(N / m0)

    So lambda is 0 in the first epoch, which is batch normalization, and grows to 1 - N / m0 in the last. It is the DBN
    layer whose alpha, 1 - lambda, diminishes to N / m0, with average="var" and eps_at="var", but for the average that
    evaluation uses. From batches of m0 on lambda is always 0. The formula leaves a run of one epoch open; here its
    lambda is 0.

    We found no code by the authors. The paper was read through the account of a reproduction that quotes the equations
    of its forward pass (CENG501 Spring 2021, METU); the gradient is the derivative of these. The names m0 and tau0 are
    the paper's, as are the defaults.

    Args:
        num_features: C, the channels or units.
        batch_size: N.
        epochs: T.
        steps_per_epoch: updates in an epoch; lambda is the same in all of them.
        m0: the batch size whose noise is ideal.
        tau0: weight of the past in the averages of evaluation, for batches of m0.
        eps: added to the variance.
        affine: learn gamma and beta, of shape (C,).

    Buffers: mu and var, (C,), mu_inf and var_inf of above; mixed_mu and mixed_var, (C,), those of training; from 0 and
    1; m, int64, counts updates. Moments and averages are float32 at least.

    Shape: x and y (N, C, …). Activation checkpointing and double backward are refused, as by DiminishingBatchNorm.
    """

    mu: Tensor
    var: Tensor
    mixed_mu: Tensor
    mixed_var: Tensor
    m: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        batch_size: int,
        epochs: int,
        steps_per_epoch: int,
        m0: int = 32,
        tau0: float = 0.9,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine, device=device, dtype=dtype)
        self.batch_size = batch_size
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.m0 = m0
        self.tau0 = tau0
        for name, value in (("mu", 0.0), ("var", 1.0), ("mixed_mu", 0.0), ("mixed_var", 1.0)):
            self.hold(name, num_features, value=value)
        self.register_buffer("m", torch.zeros((), device=device, dtype=torch.int64))

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, var: Tensor) -> None:
        """Evaluate with another mean and variance, each (C,); those of training stay."""
        self.mu.copy_(mean)
        self.var.copy_(var)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if not self.training:
            return functional.normalize(x, self.weight, self.bias, self.mu, (self.var + self.eps).rsqrt())
        functional.check_count(x)
        mu_b, var_b = functional.batch_moments(x)
        alpha, mu, var = self._update(mu_b, var_b)
        rate = (var + self.eps).rsqrt()
        return functional.normalize(
            x, self.weight, self.bias, mu, rate, mu_b=mu_b, mean_grad=alpha, rate_grad=alpha * rate**3
        )

    @torch.no_grad()
    def _update(self, mu_b: Tensor, var_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count, and let the batch join both averages. Returns 1 - lambda and the statistics of training."""
        functional.refuse_second_run()
        self.m.add_(1)
        alpha = functional.kept(1 - self._lambda())
        mu = functional.kept(alpha * mu_b + (1 - alpha) * self.mixed_mu)
        var = functional.kept(alpha * var_b + (1 - alpha) * self.mixed_var)
        self.mixed_mu.copy_(mu)
        self.mixed_var.copy_(var)
        weight = 1 - self.tau0 ** (self.batch_size / self.m0)
        self.mu.lerp_(mu_b, weight)
        self.var.lerp_(var_b, weight)
        return alpha, mu, var

    def _lambda(self) -> Tensor:
        """lambda at update m, with rho^T written as min(N / m0, 1): exactly 0 where that is 1."""
        share = min(self.batch_size / self.m0, 1.0)
        # In the statistics' own precision; float32 counts to 16 million exactly.
        m = self.m.to(self.mu.dtype)
        epoch = (m + (self.steps_per_epoch - 1)) // self.steps_per_epoch
        left = (self.epochs - epoch).clamp_min(0) / (self.epochs - 1) if self.epochs > 1 else torch.ones_like(m)
        return share**left - share

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, batch_size={self.batch_size}, epochs={self.epochs}, "
            f"steps_per_epoch={self.steps_per_epoch}, m0={self.m0}, tau0={self.tau0}, eps={self.eps}, "
            f"affine={self.affine}"
        )


class MomentumBatchNorm1d(MomentumBatchNorm):
    """MomentumBatchNorm over (N, C) or (N, C, L)."""

    dims = (2, 3)


class MomentumBatchNorm2d(MomentumBatchNorm):
    """MomentumBatchNorm over (N, C, H, W)."""

    dims = (4,)
