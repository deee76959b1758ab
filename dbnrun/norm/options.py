"""The normalizers that one can choose, and what they are told of the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from dbnrun.config.own import Own
from dbnrun.config.registry import Choice, UserError, choice, in_range, option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dbnrun.norm.schedules import Alpha


@dataclass(frozen=True)
class RunFacts:
    """What a normalizer may ask about the run that it is built for. `schedule`: alpha, a function of the step."""

    schedule: Alpha
    steps_per_epoch: int
    epochs: int
    batch_size: int

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs


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

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        """The layer for inputs (N, features), or (N, features, H, W) where spatial is 2."""
        raise NotImplementedError

    def of_weights(self) -> Callable[[Tensor], Tensor] | None:
        """What the linear map or convolution before it applies to its weights in each forward pass, if anything."""
        return None


def layer_options(norm: Norm) -> dict[str, Any]:
    """The options of a normalizer by name, for a layer that takes them all."""
    return {key: value for key, value in vars(norm).items() if key != "name"}


@dataclass(frozen=True)
class Normalizers:
    """What a network calls as norm(features, spatial) for each layer to normalize; keeps what it has built.

    What a layer's constructor draws depends on `seed` and its place alone, and moves none of the network's own draws.
    """

    norm: Norm
    run: RunFacts
    seed: int = 0
    built: list[nn.Module] = field(default_factory=list)

    @property
    def centers(self) -> bool:
        return self.norm.centers

    @property
    def of_weights(self) -> Callable[[Tensor], Tensor] | None:
        return self.norm.of_weights()

    def __call__(self, features: int, spatial: int) -> nn.Module:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed + len(self.built))
            self.built.append(self.norm.build(features, spatial, self.run))
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

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from torch import nn

        layer = nn.BatchNorm2d if spatial else nn.BatchNorm1d
        return layer(features, eps=self.eps, momentum=self.momentum, affine=self.affine)


@choice("norm", "batch_renorm", "Batch Renorm")
@dataclass
class BatchRenorm(Norm):
    """Batch Renormalization, Ioffe 2017, arXiv:1702.03275. `warmup`, `r_full`, `d_full`: shares of the run's updates.

    The paper's 5,000, 40,000 and 25,000 updates as shares of 130,000: the length of the paper's run as we remember it.
    """

    eps: float = option(1e-5, above=0, at_most=1)
    affine: bool = True
    momentum: float = option(0.01, at_least=0, at_most=1)
    r_max: float = option(3.0, at_least=1)
    d_max: float = option(5.0, at_least=0)
    warmup: float = option(0.04, at_least=0, at_most=1)
    r_full: float = option(0.31, at_least=0, at_most=1)
    d_full: float = option(0.19, at_least=0, at_most=1)

    centers = True

    def check(self) -> None:
        for name in ("r_full", "d_full"):
            in_range(f"norm.{name}", getattr(self, name), self.warmup, 1)

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from dbnrun.norm.batch_renorm import BatchRenorm1d, BatchRenorm2d

        layer = BatchRenorm2d if spatial else BatchRenorm1d
        updates = {name: round(getattr(self, name) * run.steps) for name in ("warmup", "r_full", "d_full")}
        bounds: dict[str, Any] = {"r_max": self.r_max, "d_max": self.d_max}
        return layer(features, **bounds, **updates, momentum=self.momentum, eps=self.eps, affine=self.affine)


@choice("norm", "momentum_bn", "Momentum BN")
@dataclass
class MomentumBatchNorm(Norm):
    """Momentum Batch Normalization, Yong et al., ECCV 2020."""

    eps: float = option(1e-5, above=0, at_most=1)
    affine: bool = True
    m0: int = option(32, at_least=1)
    tau0: float = option(0.9, at_least=0, at_most=1)

    centers = True

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from dbnrun.norm.momentum_bn import MomentumBatchNorm1d, MomentumBatchNorm2d

        layer = MomentumBatchNorm2d if spatial else MomentumBatchNorm1d
        return layer(
            features,
            batch_size=run.batch_size,
            epochs=run.epochs,
            steps_per_epoch=run.steps_per_epoch,
            m0=self.m0,
            tau0=self.tau0,
            eps=self.eps,
            affine=self.affine,
        )


@choice("norm", "dbn", "DBN")
@dataclass
class DiminishingBatchNorm(Norm):
    """Diminishing batch normalization: Algorithm 1 of arXiv:1705.08011 on mini-batches."""

    eps: float = option(1e-4, above=0, at_most=1)
    affine: bool = True
    train_stats: str = option("lambda", among=("lambda", "batch"))
    stats_grad: Any = option(True, among=(True, False, "mean", "var"))
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
        return self.slug if self.stats_grad is True else f"{self.slug}, stats_grad={str(self.stats_grad).lower()}"

    def check(self) -> None:
        self.stats_grad = {0: False, 1: True}.get(self.stats_grad, self.stats_grad)  # one signature for 1 and true
        in_range("norm.init mu", self.init[0], -1e6, 1e6)
        in_range("norm.init sigma", self.init[1], 0, 1e6)

    def identity(self) -> dict[str, Any]:
        options = super().identity()
        if self.average == "inv_std":
            del options["eps_at"]
        return options

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from dbnrun.norm.dbn import DiminishingBatchNorm1d, DiminishingBatchNorm2d

        layer = DiminishingBatchNorm2d if spatial else DiminishingBatchNorm1d
        axes = {key: value for key, value in vars(self).items() if key not in ("name", "init")}
        return layer(features, run.schedule, init=(self.init[0], self.init[1]), **axes)


@choice("norm", "ln", "LN")
@dataclass
class LayerNorm(Norm):
    """Layer normalization: over a record's features, no running statistics."""

    eps: float = option(1e-5, above=0, at_most=1)
    affine: bool = True

    stacks = True

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from torch import nn

        if spatial:  # one group over (C, H, W), with gamma and beta a channel
            return nn.GroupNorm(1, features, eps=self.eps, affine=self.affine)
        return nn.LayerNorm(features, eps=self.eps, elementwise_affine=self.affine)


GROUPS = 8  # the default of num_groups, which takes every layer


def _divisor(num_groups: int, features: int) -> int:
    """`num_groups`, which must divide the features of a layer; the default gives way to the greatest common divisor."""
    common = math.gcd(num_groups, features)
    if num_groups not in (common, GROUPS):
        raise UserError(f"norm.num_groups={num_groups}: expected a divisor of the {features} features of a layer.")
    return common


@choice("norm", "gn", "GN")
@dataclass
class GroupNorm(Norm):
    """Group normalization: over groups of a record's features, no running statistics."""

    eps: float = option(1e-5, above=0, at_most=1)
    affine: bool = True
    num_groups: int = option(GROUPS, at_least=1)

    stacks = True

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from torch import nn

        groups = _divisor(self.num_groups, features)
        return nn.GroupNorm(groups, features, eps=self.eps, affine=self.affine)


@choice("norm", "none", "no norm")
@dataclass
class NoNorm(Norm):
    """No normalization."""

    stacks = True
    normalizes = False

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from torch import nn

        return nn.Identity()


@choice("norm", "online_norm", "Online Norm")
@dataclass
class OnlineNorm(Norm):
    """Online Normalization, Chiley et al. 2019, arXiv:1905.05894: running statistics, a controlled gradient."""

    eps: float = option(1e-5, above=0, at_most=1)
    affine: bool = True
    forward_decay: float = option(0.999, at_least=0, at_most=1)
    backward_decay: float = option(0.99, at_least=0, at_most=1)
    guard: str = option("layer_scaling", among=("layer_scaling", "clamp", "none"))
    clamp: float = option(5.0, above=0)

    centers = True

    def identity(self) -> dict[str, Any]:
        options = super().identity()
        if self.guard != "clamp":
            del options["clamp"]
        return options

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from dbnrun.norm import online

        return online.OnlineNorm(features, **layer_options(self))


@choice("norm", "mabn", "MABN")
@dataclass
class MovingAverageBatchNorm(Norm):
    """Moving Average Batch Normalization, Yan et al. 2020, arXiv:2001.06838: for small batches."""

    eps: float = option(1e-5, above=0, at_most=1)
    affine: bool = True
    memory: int = option(16, at_least=1, at_most=1024)
    decay: float = option(0.98, at_least=0, at_most=1)
    limit: float = option(5.0, at_least=1)
    warmup: int = option(100, at_least=0)
    centralize: bool = True

    def of_weights(self) -> Callable[[Tensor], Tensor] | None:
        from dbnrun.norm import weights

        return weights.centralized if self.centralize else None

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from dbnrun.norm import mabn

        options = layer_options(self)
        del options["centralize"]
        return mabn.MovingAverageBatchNorm(features, **options)


@choice("norm", "powernorm", "PowerNorm")
@dataclass
class PowerNorm(Norm):
    """Power Normalization, Shen et al. 2020, arXiv:2003.07845: a running second moment, a controlled gradient."""

    eps: float = option(1e-5, above=0, at_most=1)
    affine: bool = True
    forward_decay: float = option(0.9, at_least=0, at_most=1)
    backward_decay: float = option(0.9, at_least=0, at_most=1)
    warmup: int = option(0, at_least=0)
    layer_scale: bool = False

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from torch import nn

        from dbnrun.norm import powernorm, rms

        options = layer_options(self)
        scaled = options.pop("layer_scale")
        layer = powernorm.PowerNorm(features, **options)
        return nn.Sequential(rms.RMSNorm(features, eps=self.eps, affine=False), layer) if scaled else layer


@choice("norm", "rms", "RMSNorm")
@dataclass
class RMSNorm(Norm):
    """Root mean square normalization over a record's features, Zhang and Sennrich 2019, arXiv:1910.07467."""

    eps: float = option(1e-8, above=0, at_most=1)
    affine: bool = True

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from dbnrun.norm import rms

        return rms.RMSNorm(features, **layer_options(self))


@choice("norm", "dyt", "DyT")
@dataclass
class DynamicTanh(Norm):
    """Dynamic Tanh, Zhu et al. 2025, arXiv:2503.10622: no statistics, a tanh with a learned slope."""

    alpha: float = option(0.5, above=0)
    affine: bool = True

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from dbnrun.norm import dyt

        return dyt.DynamicTanh(features, **layer_options(self))


@choice("norm", "frn", "FRN")
@dataclass
class FilterResponseNorm(Norm):
    """Filter Response Normalization, Singh and Krishnan 2019, arXiv:1911.09737, with its own rectifier, the TLU."""

    eps: float = option(1e-6, above=0, at_most=1)
    learned_eps: float = option(1e-4, above=0, at_most=1)
    tlu: bool = True

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from dbnrun.norm import frn

        learned = None if spatial else self.learned_eps
        return frn.FilterResponseNorm(features, eps=self.eps, learned_eps=learned, tlu=self.tlu)


@choice("norm", "evonorm_s0", "EvoNorm-S0")
@dataclass
class EvoNormS0(Norm):
    """EvoNorm-S0, Liu et al. 2020, arXiv:2004.02967: Swish over a group's standard deviation."""

    eps: float = option(1e-5, above=0, at_most=1)
    num_groups: int = option(GROUPS, at_least=1)

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        from dbnrun.norm import evonorm

        groups = _divisor(self.num_groups, features)
        if not spatial and groups == features:
            raise UserError(
                f"norm.num_groups={self.num_groups}: a layer of {features} units would have groups of one, whose "
                f"variance is 0; use a smaller number, such as norm.num_groups={max(1, features // 4)}."
            )
        return evonorm.EvoNormS0(features, num_groups=groups, eps=self.eps)


@choice("norm", "gn_ws", "GN + WS")
@dataclass
class WeightStandardizedGroupNorm(GroupNorm):
    """Group normalization behind weight standardization, Qiao et al. 2019, arXiv:1903.10520."""

    stacks = False

    def of_weights(self) -> Callable[[Tensor], Tensor] | None:
        from dbnrun.norm import weights

        return weights.standardized


@choice("norm", "custom")
@dataclass
class CustomNorm(Own, Norm):
    """A class of your own: Mine(features, **options), with `spatial`, `schedule` and `run` where it asks for them."""

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

    def build(self, features: int, spatial: int, run: RunFacts) -> nn.Module:
        # The cell of a class that does not ask for the schedule leaves it out.
        told = run if self.scheduled else replace(run, schedule=_not_asked_for)
        return self.made_module(features, spatial=spatial, schedule=run.schedule, run=told)


def _not_asked_for(_m: Any) -> Any:
    raise UserError("run.schedule: expected a class that has a parameter `schedule`; add one to its signature.")
