"""Power Normalization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dbnrun.norm import functional
from dbnrun.norm.second_moment import SecondMomentNorm, divided, second_moment


class PowerNorm(SecondMomentNorm):
    r"""Power Normalization (PN) over (N, C, …), Shen et al. 2020, arXiv:2003.07845, algorithm 2.

    With the second moment psi^2 of the batches before, the batch's E(x^2), g = dL/dz, and a, b the forward and backward
    decay, which are one number in the paper:

        z        = x / sqrt(psi^2 + eps)                      y = gamma z + beta
        psi^2   <- a psi^2 + (1 - a) E(x^2)                   used by evaluation
        dL/dx    = (g - nu z) / sqrt(psi^2 + eps)             with the psi^2 that z had
        nu      <- nu (1 - (1 - b) E(z^2)) + (1 - b) E(g z)

    In the first `warmup` updates z has the batch's own E(x^2), as in the paper's PN-V, and psi^2 is the mean of all so
    far. The gradient keeps nu, as in the authors' code.

    These equations were not checked against the paper's own text. The authors' code (github.com/sIncerass/powernorm)
    differs: its gradient is divided by the batch's own root of E(x^2), throughout; it warms up by 10,000 updates, in
    which it averages psi^2 twice; and beforehand it divides each position by its root mean square over the channels
    (for units, that is the option layer_scale of norm=powernorm). It has eps inside the root, as here.

    After a ReLU, a unit that is silent for many updates lets psi^2 fall towards 0. When it fires again, E(z^2) is
    large, and nu grows without bound where (1 - b) E(z^2) > 2. eps=0.01 prevented it in our runs (docs/log.md).

    Buffers: square, psi^2, (C,); nu (C,), moved by the backward pass; m.
    Shape: x and y (N, C, …).
    A second backward pass through the same graph (retain_graph=True) moves nu once more.

    Raises: ValueError for a wrong number of dimensions or channels, or an empty batch. RuntimeError for activation
    checkpointing and for double backward.
    """

    nu: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        forward_decay: float = 0.9,
        backward_decay: float = 0.9,
        warmup: int = 0,
        eps: float = 1e-5,
        affine: bool = True,
        **place: Any,
    ) -> None:
        super().__init__(num_features, eps, affine, **place)
        self.forward_decay = forward_decay
        self.backward_decay = backward_decay
        self.warmup = warmup
        self.hold("nu", num_features)

    def trained(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            newest, before = second_moment(x, self.square.dtype), functional.kept(self.square.clone())
            after = self.forward_decay * before + (1 - self.forward_decay) * newest
            used = before
            if self.warmup:
                warm = self.m <= self.warmup
                used = functional.kept(torch.where(warm, newest, before))
                after = torch.where(warm, before + (newest - before) / self.m, after)
            self.square.copy_(after)
        z = divided(x, self.rate(used), self._control)
        return self.affine_of(z, torch.ones_like(self.square))

    def _control(self, slope: Tensor, power: Tensor) -> Tensor:
        rest, nu = 1 - self.backward_decay, self.nu.clone()
        self.nu.copy_(nu * (1 - rest * power) + rest * slope)
        return nu

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, forward_decay={self.forward_decay}, backward_decay={self.backward_decay}, "
            f"warmup={self.warmup}, eps={self.eps}, affine={self.affine}"
        )
