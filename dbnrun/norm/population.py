"""Population statistics of a network's normalizers ("precise BN"), for the very weights it has.

One pass over batches of training size: each layer normalizes a batch by that batch's own moments, which are
pooled as mean of variances plus variance of means. Lambda and its counter are as before afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dbnrun.norm.functional import batch_moments

Moments = dict[nn.Module, tuple[Tensor, Tensor]]  # a layer's mean and variance, each (C,)


@dataclass
class _Pool:
    """Running sums over batches of equal size, float64: variances of means are small differences."""

    count: int = 0
    mean: Tensor | float = 0.0
    mean_sq: Tensor | float = 0.0
    var: Tensor | float = 0.0

    def add(self, mean: Tensor, var: Tensor) -> None:
        mean, var = mean.double(), var.double()
        self.count += 1
        self.mean = self.mean + mean
        self.mean_sq = self.mean_sq + mean * mean
        self.var = self.var + var

    def moments(self) -> tuple[Tensor, Tensor]:
        mean = torch.as_tensor(self.mean) / self.count
        between = torch.as_tensor(self.mean_sq) / self.count - mean * mean
        return mean, torch.as_tensor(self.var) / self.count + between.clamp_min(0)


def statistics_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that hold running statistics: torch's batch norms that track them, and layers such as the DBN layer.

    Such a layer has `mu` (C,), the mean that it evaluates with, `eps`, and `set_statistics(mean, var)`, which makes
    it evaluate with another mean and variance, (C,) each.
    """
    return [layer for layer in model.modules() if _tracks(layer) or hasattr(layer, "set_statistics")]


def _tracks(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


@torch.no_grad()
def population_moments(model: nn.Module, batches: Iterable[Tensor]) -> Moments:
    """Mean and variance of every statistics layer's input over equal-sized `batches` of x; {} without such layers.

    `model` must be in evaluation mode (dropout off), and stays there.
    """
    pools = {layer: _Pool() for layer in statistics_layers(model)}
    if not pools:
        return {}

    def pool_and_use(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, var = batch_moments(inputs[0])
        pools[layer].add(mean, var)
        _set_statistics(layer, mean, var)  # evaluation mode normalizes by what is set

    hooks = [layer.register_forward_pre_hook(pool_and_use) for layer in pools]
    try:
        with _statistics_kept(list(pools)):
            for x in batches:
                model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: pool.moments() for layer, pool in pools.items()}


@contextlib.contextmanager
def using_statistics(moments: Moments) -> Iterator[None]:
    """Within the block each layer evaluates with the given mean and variance; afterwards with its own again."""
    with _statistics_kept(list(moments)):
        for layer, (mean, var) in moments.items():
            _set_statistics(layer, mean, var)
        yield


def lambda_drift(model: nn.Module, moments: Moments) -> float | None:
    """RMS over all units of |mu_lambda - mu_pop| / (sigma_pop + eps); None where no layer has statistics.

    `moments` may be those of another network with the same weights: its layers are matched by their order.
    """
    if not moments:
        return None
    distances = [
        (evaluated_mean(layer).double() - mean.double()) / (var.double().sqrt() + float(layer.eps))  # pyright: ignore[reportArgumentType, reportOptionalMemberAccess]
        for layer, (mean, var) in zip(statistics_layers(model), moments.values(), strict=True)
    ]
    return float(torch.cat(distances).square().mean().sqrt())


def evaluated_mean(layer: nn.Module) -> Tensor | None:
    """The mean (C,) that a statistics layer evaluates with; None of a batch norm that keeps none."""
    return layer.running_mean if isinstance(layer, _BatchNorm) else layer.mu  # pyright: ignore[reportReturnType]


@torch.no_grad()
def _set_statistics(layer: nn.Module, mean: Tensor, var: Tensor) -> None:
    if not isinstance(layer, _BatchNorm):
        layer.set_statistics(mean, var)  # pyright: ignore[reportCallIssue]
    elif layer.running_mean is not None and layer.running_var is not None:
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)


@contextlib.contextmanager
def _statistics_kept(layers: list[nn.Module]) -> Iterator[None]:
    kept = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    try:
        yield
    finally:
        for layer, buffers in zip(layers, kept, strict=True):
            for name, buffer in layer.named_buffers():
                buffer.copy_(buffers[name])
