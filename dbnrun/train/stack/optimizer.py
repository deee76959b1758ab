"""One optimizer over the stacked parameters of several cells, in step with each cell's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dbnrun.optim.groups import bare_step, has_fused
from dbnrun.train.stack.networks import StackedParameter


class StackedOptimizer:
    """Steps all cells at once: a parameter whose cells have the same settings as one tensor, another slice by slice.

    `uniform`: none goes slice by slice. A compiler makes many loops of many slices, and takes its time.

    The cells' own optimizers never step; they hold the settings, and between epochs the state, so that a checkpoint
    is the one that the cell would have written alone.
    """

    def __init__(self, parameters: Sequence[StackedParameter], optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.parameters = parameters
        self.owners = {
            parameter: (optimizer, group)
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        self.whole = [stacked for stacked in parameters if len({_options(self._group(p)) for p in stacked.slices}) == 1]
        self.uniform = len(self.whole) == len(parameters)
        # Even where the cells were built for a compiler: slice by slice the step runs as written.
        kind: Any = type(optimizers[0])
        as_written = not self.uniform and has_fused(kind, parameters[0].tensor.device)
        kernels = {"fused": True} if as_written else {}
        groups: dict[str, dict[str, Any]] = {}
        for stacked in parameters:
            stepped = [stacked.tensor] if stacked in self.whole else stacked.slices
            for parameter, settings in zip(stepped, map(self._group, stacked.slices), strict=False):
                own = {key: value for key, value in settings.items() if key not in ("params", "name", "l2")}
                groups.setdefault(_options(settings), {**own, **kernels, "params": []})["params"].append(parameter)
        self.penalties = [self._penalty(stacked) for stacked in parameters]
        self.driver: torch.optim.Optimizer = kind(list(groups.values()))
        self.update = bare_step(self.driver)
        self._take_state()

    def zero_grad(self) -> None:
        for stacked in self.parameters:
            stacked.tensor.grad = None

    def step(self) -> None:
        for stacked in self.parameters:
            if stacked not in self.whole:
                stacked.hand_out_gradient()
        self.update()

    def add_penalty(self) -> Tensor:
        """Add the gradients of the cells' l2 penalties; return the norm of each cell's whole gradient, (T,)."""
        squares = []
        for stacked, penalty in zip(self.parameters, self.penalties, strict=True):
            gradient = stacked.by_cell(stacked.tensor.grad)  # pyright: ignore[reportArgumentType]
            if isinstance(penalty, Tensor):
                gradient.addcmul_(stacked.by_cell(stacked.tensor), penalty)
            elif penalty:
                gradient.add_(stacked.by_cell(stacked.tensor), alpha=penalty)
            squares.append(torch.linalg.vector_norm(gradient.flatten(1), dim=1).square())
        return torch.stack(squares).sum(0).sqrt()

    def hand_out_state(self) -> None:
        """Let each cell's optimizer have its parameters' state."""
        for stacked in self.parameters:
            for number, parameter in enumerate(stacked.slices):
                optimizer, _ = self.owners[parameter]
                if stacked in self.whole:
                    state = self.driver.state[stacked.tensor]
                    optimizer.state[parameter] = {key: _slice(stacked, value, number) for key, value in state.items()}
                else:
                    optimizer.state[parameter] = self.driver.state[parameter]

    def _take_state(self) -> None:
        """Go on from the state that the cells' optimizers have, of a checkpoint or of their beginning."""
        for stacked in self.parameters:
            states = [self.owners[parameter][0].state.get(parameter, {}) for parameter in stacked.slices]
            if stacked not in self.whole:
                self.driver.state.update(zip(stacked.slices, states, strict=True))
            elif states[0]:
                self.driver.state[stacked.tensor] = {
                    key: _joined(stacked, [state[key] for state in states]) for key in states[0]
                }

    def _group(self, parameter: nn.Parameter) -> dict[str, Any]:
        return self.owners[parameter][1]

    def _penalty(self, stacked: StackedParameter) -> Tensor | float:
        """The l2 weight of a stacked parameter: a number, or (T, 1, …) where cells differ."""
        weights = [self._group(parameter)["l2"] for parameter in stacked.slices]
        if len(set(weights)) == 1:
            return weights[0]
        return torch.tensor(weights, dtype=stacked.tensor.dtype, device=stacked.tensor.device).view(
            -1, *[1] * stacked.slices[0].dim()
        )


def _options(group: dict[str, Any]) -> str:
    """A group's numbers as text; l2 is ours, not the optimizer's."""
    return repr(sorted((key, value) for key, value in group.items() if key not in ("params", "name", "l2")))


def _joined(stacked: StackedParameter, values: Sequence[Any]) -> Any:
    """State of the slices as state of the whole: joined where it is of the parameter's shape, else common to all."""
    if isinstance(values[0], Tensor) and values[0].shape == stacked.slices[0].shape and values[0].dim():
        joined = torch.empty_like(stacked.tensor)  # in its memory order, on which fused optimizers count
        stacked.by_cell(joined).copy_(torch.stack(list(values)))
        return joined
    return values[0].clone() if isinstance(values[0], Tensor) else values[0]


def _slice(stacked: StackedParameter, value: Any, number: int) -> Any:
    if isinstance(value, Tensor) and value.shape == stacked.tensor.shape:
        return stacked.by_cell(value)[number]
    return value
