"""Batch Renormalization, a drop-in for torch.nn.BatchNorm1d/2d."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dbnrun.norm import functional
from dbnrun.norm.layer import ChannelNorm


class BatchRenorm(ChannelNorm):
    r"""Batch Renormalization over every axis but the second, Ioffe 2017, arXiv:1702.03275, Algorithm 1.

    With the batch's mean mu_B and sigma_B = sqrt(var_B + eps) a channel, and the averages mu and sigma of the batches
    before it, training normalizes a batch by itself and corrects the result towards the averages:

        r = stop_gradient(clip(sigma_B / sigma, 1 / r_max, r_max))
        d = stop_gradient(clip((mu_B - mu) / sigma, -d_max, d_max))
        y = gamma ((x - mu_B) / sigma_B r + d) + beta
        mu    += momentum (mu_B - mu)
        sigma += momentum (sigma_B - sigma)

    Evaluation: y = gamma (x - mu) / sigma + beta. Clipped by neither bound, training gives the same.

    The bounds at update m = 1, 2, … are 1 and 0, which is batch normalization, for the first `warmup` updates, and then
    grow linearly to r_max and d_max, which they have from updates `r_full` and `d_full` on. The defaults are
    those of the paper's experiments (section 4). A warm-up of few times 1 / momentum updates leaves mu and sigma near
    their initial values, towards which r and d then correct.

    Args:
        num_features: C, the channels or units.
        r_max, d_max, warmup, r_full, d_full: as above.
        momentum: weight of the newest batch in mu and sigma; the paper's alpha.
        eps: added to the batch's variance.
        affine: learn gamma and beta, of shape (C,).

    Buffers: mu and sigma, (C,), from 0 and 1; m, int64. Moments and averages are float32 at least.

    Other code: TensorFlow's `BatchNormalization(renorm=True)` keeps two pairs of averages, one for r and d and one for
    evaluation, and holds sigma above sqrt(eps) where it divides by it. torchrl's `BatchRenorm1d` (0.14.1) averages the
    unbiased variance, relaxes r and d themselves instead of their bounds, and goes wrong after its warm-up: the counter
    is clamped out of place, so that the factor of r - 1 and d becomes 2, 3, … after twice, three times the warm-up.

    Shape: x and y (N, C, …). Activation checkpointing and double backward are refused, as by DiminishingBatchNorm.
    """

    mu: Tensor
    sigma: Tensor
    m: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 5_000,
        r_full: int = 40_000,
        d_full: int = 25_000,
        momentum: float = 0.01,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine, device=device, dtype=dtype)
        self.r_max = r_max
        self.d_max = d_max
        self.warmup = warmup
        self.r_full = r_full
        self.d_full = d_full
        self.momentum = momentum
        self.hold("mu", num_features)
        self.hold("sigma", num_features, value=1.0)
        self.register_buffer("m", torch.zeros((), device=device, dtype=torch.int64))

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, var: Tensor) -> None:
        """Evaluate with another mean and variance, each (C,); m stays."""
        self.mu.copy_(mean)
        self.sigma.copy_((var + self.eps).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if not self.training:
            return functional.normalize(x, self.weight, self.bias, self.mu, self.sigma.reciprocal())
        functional.check_count(x)
        mu_b, var_b = functional.batch_moments(x)
        sigma_b = (var_b + self.eps).sqrt()
        r, d = self._corrections(mu_b, sigma_b)
        # r and d carry no gradient, so they are part of gamma and beta: the rest is batch normalization.
        gamma = r if self.weight is None else self.weight * r
        beta = d if self.weight is None else self.weight * d + self.bias  # pyright: ignore[reportOperatorIssue]
        rate = sigma_b.reciprocal()
        return functional.normalize(x, gamma, beta, mu_b, rate, mean_grad=1.0, rate_grad=rate**3)

    @torch.no_grad()
    def _corrections(self, mu_b: Tensor, sigma_b: Tensor) -> tuple[Tensor, Tensor]:
        """r and d, by the averages before this batch, which then joins them."""
        functional.refuse_second_run()
        self.m.add_(1)
        r_max = 1 + (self.r_max - 1) * self._grown(self.r_full)
        d_max = self.d_max * self._grown(self.d_full)
        r = functional.kept((sigma_b / self.sigma).clamp(1 / r_max, r_max))
        d = functional.kept(((mu_b - self.mu) / self.sigma).clamp(-d_max, d_max))
        self.mu.lerp_(mu_b, self.momentum)
        self.sigma.lerp_(sigma_b, self.momentum)
        return r, d

    def _grown(self, full: int) -> Tensor:
        """How far a bound has grown that is whole at update `full`, in [0, 1]."""
        return ((self.m.to(self.mu.dtype) - self.warmup) / max(full - self.warmup, 1)).clamp(0, 1)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, r_max={self.r_max}, d_max={self.d_max}, warmup={self.warmup}, "
            f"r_full={self.r_full}, d_full={self.d_full}, momentum={self.momentum}, eps={self.eps}, "
            f"affine={self.affine}"
        )


class BatchRenorm1d(BatchRenorm):
    """BatchRenorm over (N, C) or (N, C, L)."""

    dims = (2, 3)


class BatchRenorm2d(BatchRenorm):
    """BatchRenorm over (N, C, H, W)."""

    dims = (4,)
