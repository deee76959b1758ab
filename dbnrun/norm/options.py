"""The normalizers that one can choose, and the schedules alpha(m) of those that have one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from dbnrun.config.own import Own
from dbnrun.config.registry import Choice, choice, in_range, option

if TYPE_CHECKING:
    from torch import nn

    from dbnrun.norm.schedules import Alpha


@dataclass
class Norm(Choice):
    """A normalizer."""

    stacks: ClassVar[bool] = False  # whether train/stack knows how to stack its layers; else its runs train alone
    scheduled: ClassVar[bool] = False  # whether a schedule means something to it
    normalizes: ClassVar[bool] = True
    centers: ClassVar[bool] = False  # whether it subtracts each unit's mean: a bias right before it would be idle

    @property
    def shares_runs(self) -> bool:
        """Whether the schedule steers evaluation alone, so that cells which differ in it can share a training run."""
        return False

    @property
    def protocol(self) -> str:
        """How training uses lambda, in the records' words; '' where there is no lambda."""
        return ""

    def build(self, features: int, spatial: int, schedule: Alpha) -> nn.Module:
        """The layer for inputs (N, features), or (N, features, H, W) where spatial is 2."""
        raise NotImplementedError


@dataclass(frozen=True)
class Normalizers:
    """What a network calls as norm(features, spatial) for each layer to normalize; keeps what it has built.

    What a layer's constructor draws depends on `seed` and its place alone, and moves none of the network's own draws.
    """

    norm: Norm
    schedule: Alpha
    seed: int = 0
    built: list[nn.Module] = field(default_factory=list)

    @property
    def centers(self) -> bool:
        return self.norm.centers

    def __call__(self, features: int, spatial: int) -> nn.Module:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed + len(self.built))
            self.built.append(self.norm.build(features, spatial, self.schedule))
        return self.built[-1]


@choice("norm", "bn", "BN (PyTorch)")
@dataclass
class BatchNorm(Norm):
    """torch.nn.BatchNorm, with PyTorch's defaults."""

    eps: float = option(1e-5, above=0, at_most=1)
    affine: bool = True
    momentum: float = option(0.1, at_least=0, at_most=1)

    stacks = True
    centers = True

    def build(self, features: int, spatial: int, schedule: Alpha) -> nn.Module:
        from torch import nn

        layer = nn.BatchNorm2d if spatial else nn.BatchNorm1d
        return layer(features, eps=self.eps, momentum=self.momentum, affine=self.affine)


@choice("norm", "dbn", "DBN")
@dataclass
class DiminishingBatchNorm(Norm):
    """Diminishing batch normalization: Algorithm 1 of arXiv:1705.08011 on mini-batches."""

    eps: float = option(1e-4, above=0, at_most=1)
    affine: bool = True
    train_stats: str = option("lambda", among=("lambda", "batch"))
    stats_grad: bool = True
    average: str = option("std", among=("std", "var", "inv_std"))
    eps_at: str = option("std", among=("std", "var"))
    init: list[float] = option([0.0, 1.0], length=2)

    stacks = True
    scheduled = True
    centers = True

    @property
    def shares_runs(self) -> bool:
        return self.train_stats == "batch"

    @property
    def slug(self) -> str:
        return "dbn_inference" if self.train_stats == "batch" else "dbn"

    @property
    def protocol(self) -> str:
        return self.slug if self.stats_grad else f"{self.slug}, stats_grad=false"

    def check(self) -> None:
        in_range("norm.init mu", self.init[0], -1e6, 1e6)
        in_range("norm.init sigma", self.init[1], 0, 1e6)

    def identity(self) -> dict[str, Any]:
        options = super().identity()
        if self.average == "inv_std":
            del options["eps_at"]
        return options

    def build(self, features: int, spatial: int, schedule: Alpha) -> nn.Module:
        from dbnrun.norm.dbn import DiminishingBatchNorm1d, DiminishingBatchNorm2d

        layer = DiminishingBatchNorm2d if spatial else DiminishingBatchNorm1d
        axes = {key: value for key, value in vars(self).items() if key not in ("name", "init")}
        return layer(features, schedule, init=(self.init[0], self.init[1]), **axes)


@choice("norm", "ln", "LN")
@dataclass
class LayerNorm(Norm):
    """Layer normalization: over a record's features, no running statistics."""

    eps: float = option(1e-5, above=0, at_most=1)
    affine: bool = True

    stacks = True

    def build(self, features: int, spatial: int, schedule: Alpha) -> nn.Module:
        from torch import nn

        if spatial:  # one group over (C, H, W), with gamma and beta a channel
            return nn.GroupNorm(1, features, eps=self.eps, affine=self.affine)
        return nn.LayerNorm(features, eps=self.eps, elementwise_affine=self.affine)


@choice("norm", "gn", "GN")
@dataclass
class GroupNorm(Norm):
    """Group normalization: over groups of a record's features, no running statistics."""

    eps: float = option(1e-5, above=0, at_most=1)
    affine: bool = True
    num_groups: int = option(8, at_least=1)

    stacks = True

    def build(self, features: int, spatial: int, schedule: Alpha) -> nn.Module:
        from torch import nn

        return nn.GroupNorm(math.gcd(self.num_groups, features), features, eps=self.eps, affine=self.affine)


@choice("norm", "none", "no norm")
@dataclass
class NoNorm(Norm):
    """No normalization."""

    stacks = True
    normalizes = False

    def build(self, features: int, spatial: int, schedule: Alpha) -> nn.Module:
        from torch import nn

        return nn.Identity()


@choice("norm", "custom")
@dataclass
class CustomNorm(Own, Norm):
    """A class of your own: Mine(features, **options), with `spatial` and `schedule` where it asks for them."""

    # Found out from the signature.
    scheduled: bool = False

    def check(self) -> None:
        super().check()
        if self.is_live:
            scheduled = self.asks_for("schedule")
            self.scheduled = scheduled  # pyright: ignore[reportIncompatibleVariableOverride]

    def identity(self) -> dict[str, Any]:
        known = super().identity()
        return known if self.scheduled else {key: value for key, value in known.items() if key != "scheduled"}

    @property
    def protocol(self) -> str:
        return self.slug if self.scheduled else ""

    def build(self, features: int, spatial: int, schedule: Alpha) -> nn.Module:
        return self.made_module(features, spatial=spatial, schedule=schedule)
