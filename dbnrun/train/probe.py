"""What passes through a network's normalizers in training mode, on one batch: for `probe=true`. Moves nothing of a run.

The batch is the first of the training part, without augmentation, and the network is a copy. Its normalizers are in
training mode, all else is in evaluation mode, so that dropout is off. Forward and backward pass are in float32.

A normalizer that maps each unit by y = w x + b, with w and b functions of the batch's moments mu_B and sigma_B alone,
as batch normalization and DBN do, has with g = dL/dy and N values a unit

    dL/dx = w g  +  (1/N) dL/dmu_B  +  (1/N) dL/dsigma_B (x - mu_B) / sigma_B

The first part treats the statistics as constants (equation 2). The second flows through the batch's mean, and through
lambda's, which contains alpha of it; the third flows through the batch's scale. The second is the same for all values
of a unit and the third is orthogonal to it, so that both can be read off dL/dx - w g, whatever the layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dbnrun.data.dataset import Data
from dbnrun.models.layers import Network, global_draws_from
from dbnrun.norm.functional import batch_moments
from dbnrun.norm.population import evaluated_mean, statistics_layers
from dbnrun.runs.probe import ProbeRow

EPS = 1e-5  # beside sigma_B in a divisor: one for all normalizers, so that they compare
ROUNDING = 1e-6  # a share of the gradient below this is float32's rounding, and recorded as 0
STRAIGHT = 1e-3  # how far, relative to its spread, y may be from w x + b


def probe(
    model: Network, normalizers: Sequence[nn.Module], data: Data, batch_size: int, label_smoothing: float, epoch: int
) -> list[ProbeRow]:
    """A row for each normalizer of a network, in the network's order; `normalizers`: those that were built for it."""
    names = [name for name, layer in model.named_modules() if layer in _to_watch(model, normalizers)]
    twin = copy.deepcopy(model).eval()
    found: dict[str, dict[str, Any]] = {name: dict.fromkeys(("mean_share", "scale_share")) for name in names}
    for name in names:
        _watch(twin.get_submodule(name).train(), found[name])
    first = slice(0, batch_size) if data.shuffle_order is None else data.shuffle_order[:batch_size]
    x, y = data.train.inputs(first), data.train.y[first]
    # A layer of the user's own may draw: always the same, and nothing from a stream of the run.
    with torch.enable_grad(), global_draws_from(Generator(x.device).manual_seed(0)):
        F.cross_entropy(twin(x), y, label_smoothing=label_smoothing).backward()
    return [ProbeRow(epoch=epoch, layer=name, **found[name]) for name in names if "sigma" in found[name]]


def _to_watch(model: nn.Module, normalizers: Sequence[nn.Module]) -> set[nn.Module]:
    """The layers with statistics, and those that were built and have none; not what wraps a layer with statistics."""
    return {*statistics_layers(model), *(layer for layer in normalizers if not statistics_layers(layer))}


def _watch(layer: nn.Module, found: dict[str, Any]) -> None:
    """Let the next forward and backward pass through a layer put what ProbeRow has into `found`.

    Of a layer that stands in several places the first pass counts.
    """

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        _describe(layer, x.detach(), found)
        # Another name for x: its gradient is what comes back through this layer alone.
        return (x.view_as(x) if x.requires_grad else x.detach().requires_grad_(), *args[1:])

    def after(_: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
        for hook in hooks:
            hook.remove()
        x, passed = args[0], {}
        slope = _slope(x, y)
        if slope is not None and y.requires_grad:
            # Hooks on tensors, not on the layer: an activation that works in place may follow.
            y.register_hook(lambda g: passed.update(g=g))
            x.register_hook(lambda dx: found.update(_shares(x, slope, passed["g"], dx)))

    hooks = [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]


def _describe(layer: nn.Module, x: Tensor, found: dict[str, Any]) -> None:
    """Moments of x (N, C, …), gamma, and how far the mean that evaluation uses is from the batch's."""
    mu, var = batch_moments(x)
    sigma, varies, gamma = var.sqrt(), var > 0, getattr(layer, "weight", None)
    mean = evaluated_mean(layer) if statistics_layers(layer) else None
    found["mean_over_sigma"] = _rms((mu / (sigma + EPS))[varies])
    found["sigma"] = _rms(sigma)
    found["gamma_norm"] = float(gamma.detach().norm()) if isinstance(gamma, Tensor) else None
    found["lambda_lag"] = None if mean is None else _rms(((mean - mu) / (sigma + EPS))[varies])


def _rms(values: Tensor) -> float | None:
    return float(values.double().square().mean().sqrt()) if len(values) else None


def _by_unit(x: Tensor) -> Tensor:
    """x (N, C, …) as (C, N …), float64."""
    return x.detach().double().transpose(0, 1).flatten(1)


def _unit_scores(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x - mu_B) / sigma_B (C, N …), and sigma_B (C, 1); 0 where a unit does not vary."""
    centred = _by_unit(x)
    centred = centred - centred.mean(1, keepdim=True)
    sigma = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(sigma > 0, centred / sigma, 0), sigma


def _slope(x: Tensor, y: Tensor) -> Tensor | None:
    """w (C, 1) of y = w x + b in each unit, NaN where x does not vary; None where y is no such function of x."""
    scores, sigma = _unit_scores(x)
    centred = _by_unit(y)
    centred = centred - centred.mean(1, keepdim=True)
    rise = (centred * scores).mean(1, keepdim=True)
    straight = (centred - rise * scores).norm() <= STRAIGHT * centred.norm()
    return rise / sigma if straight else None


def _shares(x: Tensor, slope: Tensor, g: Tensor, dx: Tensor) -> dict[str, float | None]:
    """The norms of the parts of dL/dx through mu_B and through sigma_B, relative to that of dL/dx.

    A unit that does not vary within the batch is left out: its w is unknown.
    """
    varies = slope.isfinite().squeeze(1)
    scores, g, dx = _unit_scores(x)[0][varies], _by_unit(g)[varies], _by_unit(dx)[varies]
    through_statistics = dx - slope[varies] * g
    through_mean = through_statistics.mean(1)
    through_scale = (through_statistics * scores).mean(1)
    whole = dx.square().mean(1).sum().sqrt()
    shares = {"mean_share": through_mean.norm() / whole, "scale_share": through_scale.norm() / whole}
    return {name: None if whole == 0 else 0.0 if share < ROUNDING else float(share) for name, share in shares.items()}
