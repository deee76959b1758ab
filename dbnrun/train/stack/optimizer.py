"""One optimizer over the stacked parameters of several cells, in step with each cell's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dbnrun.optim.groups import bare_step, has_fused
from dbnrun.train.stack.networks import StackedParameter


class StackedOptimizer:
    """Steps all cells at once: a leaf whose cells agree on every number as one tensor, another slice by slice.

    `uniform`: no leaf goes slice by slice. A compiler makes many loops of many slices, and takes its time.

    The cells' own optimizers never step; they hold the settings, and between epochs the state, so that a checkpoint
    is the one that the cell would have written alone.
    """

    def __init__(self, leaves: Sequence[StackedParameter], optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.leaves = leaves
        self.owners = {
            parameter: (optimizer, group)
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        self.whole = [leaf for leaf in leaves if len({_options(self._group(p)) for p in leaf.slices}) == 1]
        self.uniform = len(self.whole) == len(leaves)
        # Even where the cells were built for a compiler: slice by slice the step runs as written.
        kind: Any = type(optimizers[0])
        as_written = not self.uniform and has_fused(kind, leaves[0].tensor.device)
        kernels = {"fused": True} if as_written else {}
        groups: dict[str, dict[str, Any]] = {}
        for leaf in leaves:
            parameters = [leaf.tensor] if leaf in self.whole else leaf.slices
            for parameter, settings in zip(parameters, map(self._group, leaf.slices), strict=False):
                own = {key: value for key, value in settings.items() if key not in ("params", "name", "l2")}
                groups.setdefault(_options(settings), {**own, **kernels, "params": []})["params"].append(parameter)
        self.penalties = [self._penalty(leaf) for leaf in leaves]
        self.driver: torch.optim.Optimizer = kind(list(groups.values()))
        self.update = bare_step(self.driver)
        self._take_state()

    def zero_grad(self) -> None:
        for leaf in self.leaves:
            leaf.tensor.grad = None

    def step(self) -> None:
        for leaf in self.leaves:
            if leaf not in self.whole:
                leaf.hand_out_gradient()
        self.update()

    def add_penalty(self) -> Tensor:
        """Add the gradients of the cells' l2 penalties; return the norm of each cell's whole gradient, (T,)."""
        squares = []
        for leaf, penalty in zip(self.leaves, self.penalties, strict=True):
            gradient = leaf.by_cell(leaf.tensor.grad)  # pyright: ignore[reportArgumentType]
            if isinstance(penalty, Tensor):
                gradient.addcmul_(leaf.by_cell(leaf.tensor), penalty)
            elif penalty:
                gradient.add_(leaf.by_cell(leaf.tensor), alpha=penalty)
            squares.append(torch.linalg.vector_norm(gradient.flatten(1), dim=1).square())
        return torch.stack(squares).sum(0).sqrt()

    def hand_out_state(self) -> None:
        """Let each cell's optimizer have its parameters' state."""
        for leaf in self.leaves:
            for number, parameter in enumerate(leaf.slices):
                optimizer, _ = self.owners[parameter]
                if leaf in self.whole:
                    state = self.driver.state[leaf.tensor]
                    optimizer.state[parameter] = {key: _slice(leaf, value, number) for key, value in state.items()}
                else:
                    optimizer.state[parameter] = self.driver.state[parameter]

    def _take_state(self) -> None:
        """Go on from the state that the cells' optimizers have, of a checkpoint or of their beginning."""
        for leaf in self.leaves:
            states = [self.owners[parameter][0].state.get(parameter, {}) for parameter in leaf.slices]
            if leaf not in self.whole:
                self.driver.state.update(zip(leaf.slices, states, strict=True))
            elif states[0]:
                self.driver.state[leaf.tensor] = {
                    key: _joined(leaf, [state[key] for state in states]) for key in states[0]
                }

    def _group(self, parameter: nn.Parameter) -> dict[str, Any]:
        return self.owners[parameter][1]

    def _penalty(self, leaf: StackedParameter) -> Tensor | float:
        """The l2 weight of a leaf: a number, or (T, 1, …) where cells differ."""
        weights = [self._group(parameter)["l2"] for parameter in leaf.slices]
        if len(set(weights)) == 1:
            return weights[0]
        return torch.tensor(weights, device=leaf.tensor.device).view(-1, *[1] * leaf.slices[0].dim())


def _options(group: dict[str, Any]) -> str:
    """A group's numbers as text; l2 is ours, not the optimizer's."""
    return repr(sorted((key, value) for key, value in group.items() if key not in ("params", "name", "l2")))


def _joined(leaf: StackedParameter, values: Sequence[Any]) -> Any:
    """State of the slices as state of the leaf: joined where it is of the parameter's shape, else common to all."""
    if isinstance(values[0], Tensor) and values[0].shape == leaf.slices[0].shape and values[0].dim():
        joined = torch.empty_like(leaf.tensor)  # in its memory order, on which fused optimizers count
        leaf.by_cell(joined).copy_(torch.stack(list(values)))
        return joined
    return values[0].clone() if isinstance(values[0], Tensor) else values[0]


def _slice(leaf: StackedParameter, value: Any, number: int) -> Any:
    if isinstance(value, Tensor) and value.shape == leaf.tensor.shape:
        return leaf.by_cell(value)[number]
    return value
