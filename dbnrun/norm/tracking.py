"""Several lambdas along one training run.

Where training normalizes by the batch's own statistics, lambda steers nothing: runs that differ only in schedule have
the same weights and the same batches. One run can then move all their lambdas, each by its own schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dbnrun.norm.dbn import DiminishingBatchNorm


def dbn_layers(model: nn.Module) -> list[DiminishingBatchNorm]:
    """The DBN layers of a network, in its order."""
    return [layer for layer in model.modules() if isinstance(layer, DiminishingBatchNorm)]


def share_weights(leader: nn.Module, follower: nn.Module) -> None:
    """Make the follower's parameters views of the leader's: what trains one trains both."""
    for mine, theirs in zip(follower.parameters(), leader.parameters(), strict=True):
        mine.data = theirs.data


def track_schedules(leader: nn.Module, followers: Sequence[nn.Module]) -> None:
    """From now on each training step of `leader` moves the lambdas of `followers`, each by its own schedule.

    The models must be alike but for schedule and lambda. Every number is the one the follower's own training step
    would have computed, bit for bit.
    """
    if not followers:
        return
    positions = zip(*(dbn_layers(follower) for follower in followers), strict=True)
    for layer, position in zip(dbn_layers(leader), positions, strict=True):
        layer.on_moments = _Lambdas(position)


class _Lambdas:
    """The lambdas of several layers as one tensor, so that moving them costs a few operations, not a few each."""

    def __init__(self, layers: Sequence[DiminishingBatchNorm]) -> None:
        self.schedules = [layer.schedule for layer in layers]
        self.m = layers[0].m.clone()
        self.mu = torch.stack([layer.mu for layer in layers])  # (S, C)
        self.spread = torch.stack([layer.spread for layer in layers])  # (S, C)
        for row, layer in enumerate(layers):
            layer.m, layer.mu, layer.spread = self.m, self.mu[row], self.spread[row]
        # alpha and 1 - alpha, (S, 1); the rows of constants stay as they are.
        self.alpha = torch.empty(len(layers), 1, dtype=self.mu.dtype, device=self.mu.device)
        self.rest = torch.empty_like(self.alpha)
        self.moving = [row for row in range(len(layers)) if not self._set(row, self.m.to(self.mu.dtype) + 1)]

    def _set(self, row: int, m: Tensor) -> bool:
        """Write alpha(m) into a row; whether it is a number, and so a constant."""
        alpha = self.schedules[row](m)
        self.alpha[row] = alpha
        self.rest[row] = 1 - alpha  # before rounding to float32 where alpha is a Python number, as a layer does it
        return not isinstance(alpha, Tensor)

    @torch.no_grad()
    def __call__(self, mu_b: Tensor, spread_b: Tensor) -> None:
        self.m.add_(1)
        m = self.m.to(self.mu.dtype)
        for row in self.moving:
            self._set(row, m)
        self.mu.mul_(self.rest).add_(self.alpha * mu_b)
        self.spread.mul_(self.rest).add_(self.alpha * spread_b)
