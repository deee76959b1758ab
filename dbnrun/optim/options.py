"""The optimizers that one can choose, and their parameter groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from dbnrun.config.own import Own, load
from dbnrun.config.registry import UNSET, Choice, UserError, choice, in_range, option

if TYPE_CHECKING:
    import torch


@dataclass
class Group:
    """Parameters that join by a glob over their names, with their learning rate and weight decay."""

    pattern: str
    lr: float
    weight_decay: float

    @classmethod
    def of(cls, name: str, given: Any) -> Group:
        """A group from what the configuration says of it. OmegaConf cannot do it: it refuses to add a typed entry."""
        key = f"optimizer.groups.{name}"
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping) or set(given) != set(known):
            raise UserError(
                f"{key}={given}: expected exactly {', '.join(known)}, such as {{pattern: '*', lr: 0.01, …}}."
            )
        if not isinstance(given["pattern"], str):
            raise UserError(
                f"{key}.pattern={given['pattern']}: expected a glob over parameter names, such as '*.weight'."
            )
        for number in ("lr", "weight_decay"):
            if isinstance(given[number], bool) or not isinstance(given[number], int | float):
                raise UserError(f"{key}.{number}={given[number]}: expected a number.")
            in_range(f"{key}.{number}", given[number], 0)
        return cls(given["pattern"], float(given["lr"]), float(given["weight_decay"]))


@dataclass
class Optimizer(Choice):
    """An optimizer. Weight decay is a penalty w/2 |theta|^2 that joins the loss, unless it is `decoupled`."""

    lr: float = option(UNSET, at_least=0)
    groups: dict[str, Any] = UNSET  # Group by name, once checked

    decoupled: ClassVar[bool] = False
    stacks: ClassVar[bool] = True  # whether a step on joined parameters is the same as on each

    def check(self) -> None:
        if not self.groups:
            raise UserError("optimizer.groups is empty: expected at least one group with pattern, lr, weight_decay.")
        self.groups = {
            name: group if isinstance(group, Group) else Group.of(name, group) for name, group in self.groups.items()
        }

    def identity(self) -> dict[str, Any]:
        options = super().identity()
        del options["lr"]  # only the default of each group's lr
        return options

    @property
    def kind(self) -> type[torch.optim.Optimizer]:
        raise NotImplementedError

    def over(self, groups: list[dict[str, Any]], **how: Any) -> torch.optim.Optimizer:
        """The optimizer over parameter groups; `how` are torch's arguments that change no number."""
        return self.kind(groups, lr=self.lr, **how, **self.settings())  # pyright: ignore[reportCallIssue]

    def settings(self) -> dict[str, Any]:
        """Its own options, as torch calls them."""
        return {key: value for key, value in vars(self).items() if key not in ("name", "lr", "groups")}


@choice("optimizer", "adagrad", "AdaGrad")
@dataclass
class AdaGrad(Optimizer):
    """AdaGrad, the paper's optimizer."""

    eps: float = option(1e-10, at_least=0)
    initial_accumulator: float = option(0.0, at_least=0)

    @property
    def kind(self) -> type[torch.optim.Optimizer]:
        from torch.optim import Adagrad

        return Adagrad

    def settings(self) -> dict[str, Any]:
        return {"eps": self.eps, "initial_accumulator_value": self.initial_accumulator}


@choice("optimizer", "sgd", "SGD")
@dataclass
class SGD(Optimizer):
    """Stochastic gradient descent; momentum 0: none."""

    momentum: float = option(0.9, at_least=0, at_most=1)
    nesterov: bool = False

    def check(self) -> None:
        super().check()
        if self.nesterov and self.momentum == 0:
            raise UserError("optimizer.nesterov=true: expected optimizer.momentum above 0 with it.")

    @property
    def kind(self) -> type[torch.optim.Optimizer]:
        from torch.optim import SGD

        return SGD


@choice("optimizer", "adam", "Adam")
@dataclass
class Adam(Optimizer):
    """Adam."""

    betas: list[float] = option([0.9, 0.999], at_least=0, at_most=0.999999, length=2)
    eps: float = option(1e-8, at_least=0)

    @property
    def kind(self) -> type[torch.optim.Optimizer]:
        from torch.optim import Adam

        return Adam

    def settings(self) -> dict[str, Any]:
        return {"betas": (self.betas[0], self.betas[1]), "eps": self.eps}


@choice("optimizer", "adamw", "AdamW")
@dataclass
class AdamW(Adam):
    """AdamW: the decay is decoupled from the gradient, and no part of the loss."""

    decoupled = True

    @property
    def kind(self) -> type[torch.optim.Optimizer]:
        from torch.optim import AdamW

        return AdamW


@choice("optimizer", "custom")
@dataclass
class CustomOptimizer(Own, Optimizer):
    """A torch.optim.Optimizer class of your own; it is given the named parameter groups, each with its lr."""

    stacks = False

    def check(self) -> None:
        super().check()
        if self.is_live and not hasattr(self.kind, "add_param_group"):
            raise UserError(f"optimizer.target={self.target}: expected a subclass of torch.optim.Optimizer.")

    @property
    def kind(self) -> type[torch.optim.Optimizer]:
        return load(self.key, self.target)

    def over(self, groups: list[dict[str, Any]], **how: Any) -> torch.optim.Optimizer:
        return self.made(groups, lr=self.lr)
