"""Normalizers: Diminishing Batch Normalization and its peers.

from dbnrun.norm import DiminishingBatchNorm2d
torchvision.models.resnet18(norm_layer=DiminishingBatchNorm2d)
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from dbnrun.config import NormConfig
from dbnrun.norm.dbn import (
    DiminishingBatchNorm1d,
    DiminishingBatchNorm2d,
    DiminishingBatchNorm3d,
    convert_sync,
)
from dbnrun.norm.schedules import Schedule

__all__ = [
    "LAYERS", "DiminishingBatchNorm1d", "DiminishingBatchNorm2d", "DiminishingBatchNorm3d", "convert_sync",
    "norm_factory",
]  # fmt: skip


def _bn(config: NormConfig, _schedule: Schedule, features: int, spatial: int) -> nn.Module:
    layer = nn.BatchNorm2d if spatial else nn.BatchNorm1d
    return layer(features, eps=config.eps or 0.0, momentum=config.momentum, affine=bool(config.affine))


def _dbn(config: NormConfig, schedule: Schedule, features: int, spatial: int) -> nn.Module:
    layer = DiminishingBatchNorm2d if spatial else DiminishingBatchNorm1d
    assert config.init is not None
    return layer(
        features,
        schedule,
        train_stats=str(config.train_stats),
        stats_grad=bool(config.stats_grad),
        average=str(config.average),
        eps=config.eps or 0.0,
        eps_at=str(config.eps_at),
        affine=bool(config.affine),
        init=(config.init[0], config.init[1]),
    )


def _ln(config: NormConfig, _schedule: Schedule, features: int, spatial: int) -> nn.Module:
    if spatial:  # one group over (C, H, W), with gamma and beta a channel
        return nn.GroupNorm(1, features, eps=config.eps or 0.0, affine=bool(config.affine))
    return nn.LayerNorm(features, eps=config.eps or 0.0, elementwise_affine=bool(config.affine))


def _gn(config: NormConfig, _schedule: Schedule, features: int, _spatial: int) -> nn.Module:
    groups = math.gcd(config.num_groups or 1, features)
    return nn.GroupNorm(groups, features, eps=config.eps or 0.0, affine=bool(config.affine))


def _none(_config: NormConfig, _schedule: Schedule, _features: int, _spatial: int) -> nn.Module:
    return nn.Identity()


LAYERS = {"bn": _bn, "dbn": _dbn, "ln": _ln, "gn": _gn, "none": _none}


def norm_factory(config: NormConfig, schedule: Schedule) -> Callable[[int, int], nn.Module]:
    """What a network calls as norm(features, spatial) for each layer to normalize.

    spatial is 0 for inputs (N, C) and 2 for (N, C, H, W); `schedule` means something to DBN alone.
    """
    return lambda features, spatial: LAYERS[config.name](config, schedule, features, spatial)
