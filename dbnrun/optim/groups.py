"""Named parameter groups, then the optimizer over them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from dbnrun.config.registry import UserError
from dbnrun.optim.options import Group, Optimizer

NORM = "norm"  # the group that takes the normalizers' parameters, whatever their names


def group_parameters(
    named: Iterable[tuple[str, nn.Parameter]], groups: Mapping[str, Group], of_norms: Iterable[nn.Parameter] = ()
) -> dict[str, list[nn.Parameter]]:
    """Each parameter in the first group whose pattern (a glob over its name) fits; empty groups are left out.

    `of_norms`, the parameters of the normalizers, fit the group `norm` whatever their names. Raises UserError where a
    parameter fits no pattern.
    """
    normalizing = {id(parameter) for parameter in of_norms}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
    ungrouped = []
    for name, parameter in named:
        ours = id(parameter) in normalizing
        fitting = (key for key, own in groups.items() if fnmatchcase(name, own.pattern) or (ours and key == NORM))
        group = next(fitting, None)
        if group is None:
            ungrouped.append(name)
        else:
            members[group].append(parameter)
    if ungrouped:
        raise UserError(
            f"optimizer.groups miss {len(ungrouped)} parameter(s), first {ungrouped[0]!r}; "
            f"groups tried, in order: {', '.join(groups)}. Add a group whose pattern fits, such as "
            "'+optimizer.groups.others={pattern: \"*\", lr: ${optimizer.lr}, weight_decay: 0.0}'."
        )
    return {name: parameters for name, parameters in members.items() if parameters}


def build_optimizer(
    config: Optimizer, model: nn.Module, compiled: bool = False, norms: Iterable[nn.Module] = ()
) -> torch.optim.Optimizer:
    """The optimizer that conf/optimizer names, over the named groups of `model`'s parameters.

    `norms`: the normalizers of the model; their parameters join the group `norm`.

    Weight decay is a penalty w/2 |theta|^2 whose gradient `add_penalty` adds, kept in each group under "l2"; in
    AdamW it is decoupled and the optimizer's own. `compiled`: as operations that a compiler can join with others.
    """
    if (first := next(model.parameters(), None)) is None:
        raise UserError("the network has no parameters; expected at least one to train.")
    of_norms = (parameter for norm in norms for parameter in norm.parameters())
    members = group_parameters(model.named_parameters(), config.groups, of_norms)
    groups = [
        {
            "params": parameters,
            "name": name,
            "lr": config.groups[name].lr,
            "weight_decay": config.groups[name].weight_decay if config.decoupled else 0.0,
            "l2": 0.0 if config.decoupled else config.groups[name].weight_decay,
        }
        for name, parameters in members.items()
    ]
    kind = config.kind
    how: dict[str, Any] = {"fused": (not compiled and has_fused(kind, first.device)) or None}
    if first.device.type == "cuda" and issubclass(kind, torch.optim.Adam):
        how["capturable"] = True  # its counters on the device, so that a graph can move them
    return config.over(groups, **how)


def has_fused(kind: type[torch.optim.Optimizer], device: torch.device) -> bool:
    """Whether torch has the optimizer as one kernel there."""
    return device.type == "cpu" or (device.type == "cuda" and kind is not torch.optim.Adagrad)


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from the state in a checkpoint; how to compute stays this device's own choice, whatever wrote it."""
    own = [{key: group[key] for key in _HOW if key in group} for group in optimizer.param_groups]
    groups = [saved | ours for saved, ours in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})


_HOW = ("fused", "foreach", "capturable")


@torch.no_grad()
def add_penalty(optimizer: torch.optim.Optimizer) -> Tensor:
    """Add the gradient of the groups' l2 penalties; return the norm of the whole gradient, a 0-dim tensor.

    A parameter that the loss does not depend on has no gradient, and stays as it is.
    """
    gradients: list[Tensor] = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if group["l2"]:
                parameter.grad.add_(parameter, alpha=group["l2"])
            gradients.append(parameter.grad)
    return vector_norm(torch.stack([vector_norm(gradient) for gradient in gradients]))


def bare_step(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """The optimizer's step without the hooks and the change of grad mode that torch wraps around it.

    They keep a compiler from joining it with what stands before and after. To be called under torch.no_grad().
    """
    return functools.partial(inspect.unwrap(type(optimizer).step), optimizer)


class LearningRates:
    """What multiplies the learning rate of each parameter group before an update.

    A group keeps its own rate as "initial_lr", as torch's schedulers do, so that a checkpoint has it. Groups of
    `by_tensor` have theirs in a tensor on the device: captured graphs and compiled code take a number for a constant.
    """

    def __init__(
        self, optimizers: Iterable[torch.optim.Optimizer], by_tensor: torch.optim.Optimizer | None = None
    ) -> None:
        self.groups: list[dict[str, Any]] = []
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                own = group.setdefault("initial_lr", group["lr"])
                # Whatever a checkpoint of another device has there.
                group["lr"] = _on_device(own, group["params"][0]) if optimizer is by_tensor else own
                self.groups.append(group)

    def multiply(self, factor: float) -> None:
        for group in self.groups:
            rate = group["initial_lr"] * factor
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def _on_device(rate: float, parameter: Tensor) -> Tensor:
    """A rate as torch's kernels read it: in float32 on a device, on the CPU as exactly as the number itself."""
    dtype = torch.float64 if parameter.device.type == "cpu" else torch.float32
    return torch.tensor(rate, dtype=dtype, device=parameter.device)


def lr_of(optimizer: torch.optim.Optimizer, name: str = "weights") -> float:
    """The own learning rate of a named group, or of the first group where there is none of that name."""
    groups = optimizer.param_groups
    group = next((group for group in groups if group.get("name") == name), groups[0])
    return float(group.get("initial_lr", group["lr"]))
