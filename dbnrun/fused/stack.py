"""Several fully connected networks as one program.

The cells stay ordinary cells: their parameters, gradients and lambdas become views of stacked tensors. The stack
supplies the training step alone; evaluation, checkpoints and records are each cell's own.

Letters: T networks, B records a batch, U distinct batches (cells of one seed share theirs). Activations are laid
out (T, C, B): for the normalizer that is one layer of T*C channels over B values each, contiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dbnrun.models import FNN
from dbnrun.norm.dbn import DiminishingBatchNorm
from dbnrun.norm.schedules import Schedule

Step = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Leaf:
    """A stacked parameter and the cells' parameters that are its slices, first axis first."""

    tensor: nn.Parameter  # (T, …), or (T*C,) where joined
    slices: list[nn.Parameter]

    @classmethod
    def of(cls, parameters: Sequence[nn.Parameter], joined: bool = False) -> Leaf:
        pieces = [parameter.detach() for parameter in parameters]
        leaf = cls(nn.Parameter(torch.cat(pieces) if joined else torch.stack(pieces)), list(parameters))
        for parameter, piece in zip(parameters, leaf.by_cell(leaf.tensor.data), strict=True):
            parameter.data = piece
        return leaf

    def by_cell(self, values: Tensor) -> Tensor:
        """A tensor like the leaf as (T, …)."""
        return values.view(len(self.slices), *self.slices[0].shape)

    def hand_out_gradient(self) -> None:
        """Give each cell's parameter its slice of the gradient."""
        assert self.tensor.grad is not None
        for parameter, piece in zip(self.slices, self.by_cell(self.tensor.grad).unbind(), strict=True):
            parameter.grad = piece


class StackedFNN:
    """T networks of one architecture in training mode, called as (x (U, B, …)) -> logits (T, num_classes, B)."""

    def __init__(self, models: Sequence[FNN], batch_of: Sequence[int]) -> None:
        """`batch_of` (T,) says which of the U batches each network sees; it begins at 0 and never decreases."""
        self.count = len(models)
        self.batch_of = torch.tensor(batch_of, device=models[0].out.weight.device)
        shares = torch.bincount(self.batch_of)
        self.share = int(shares[0]) if (shares == shares[0]).all() else 0  # networks a batch, where all have as many
        self.leaves: list[Leaf] = []
        self.blocks = [self._block([model.hidden[i] for model in models]) for i in range(len(models[0].hidden))]
        self.out = self._linear([model.out for model in models])

    def _leaf(self, parameters: Sequence[nn.Parameter], joined: bool = False) -> nn.Parameter:
        self.leaves.append(Leaf.of(parameters, joined))
        return self.leaves[-1].tensor

    def _linear(self, layers: Sequence[Any]) -> Step:
        weight = self._leaf([layer.weight for layer in layers])  # (T, out, in)
        if layers[0].bias is None:
            return lambda x: self._product(weight, x)
        bias = self._leaf([layer.bias for layer in layers])  # (T, out)
        return lambda x: self._product(weight, x) + bias.unsqueeze(2)

    def _product(self, weight: Tensor, x: Tensor) -> Tensor:
        """weight (T, out, in) times x (T, in, B), or x (U, in, B) in the first layer, as (T, out, B)."""
        if len(x) == self.count:
            return torch.bmm(weight, x)
        if self.share:  # networks of one batch lie side by side: one larger product a batch
            return torch.bmm(weight.view(len(x), -1, weight.shape[2]), x).view(self.count, -1, x.shape[2])
        return torch.bmm(weight, x[self.batch_of])

    def _block(self, blocks: Sequence[Any]) -> list[Step]:
        """What a hidden block does, in the order of its layers."""
        steps: list[Step] = []
        for name in blocks[0]:
            layers = [block[name] for block in blocks]
            if name == "linear":
                steps.append(self._linear(layers))
            elif name == "norm" and not isinstance(layers[0], nn.Identity):
                steps.append(self._norm(layers))
            else:
                steps.append(layers[0])  # an activation, elementwise
        return steps

    def _norm(self, layers: Sequence[Any]) -> Step:
        """One layer of all networks' channels; the networks' layers keep views of its statistics and parameters."""
        joined = _joined_dbn(layers) if isinstance(layers[0], DiminishingBatchNorm) else _joined_bn(layers)
        if layers[0].weight is not None:
            joined.weight = self._leaf([layer.weight for layer in layers], joined=True)
            joined.bias = self._leaf([layer.bias for layer in layers], joined=True)
        return lambda x: joined(x.reshape(1, -1, x.shape[2])).view_as(x)

    def __call__(self, x: Tensor) -> Tensor:
        h = x.flatten(2).transpose(1, 2)  # (U, in, B)
        for block in self.blocks:
            for step in block:
                h = step(h)
        return self.out(h)


def _joined_dbn(layers: Sequence[DiminishingBatchNorm]) -> DiminishingBatchNorm:
    one, features = layers[0], layers[0].num_features
    axes = {"train_stats": one.train_stats, "stats_grad": one.stats_grad, "average": one.average}
    joined = DiminishingBatchNorm(
        features * len(layers), **axes, eps=one.eps, eps_at=one.eps_at, affine=False, device=one.mu.device
    )  # fmt: skip
    joined.schedule = _Schedules([layer.schedule for layer in layers], features)
    _share_buffers(joined, layers, ("mu", "spread"), "m")
    told = [layer.on_moments for layer in layers]
    if any(told):

        def tell(mu_b: Tensor, spread_b: Tensor) -> None:
            for listener, mu, spread in zip(told, mu_b.split(features), spread_b.split(features), strict=True):
                if listener is not None:
                    listener(mu, spread)

        joined.on_moments = tell
    return joined


def _joined_bn(layers: Sequence[Any]) -> nn.BatchNorm1d:
    one = layers[0]
    joined = nn.BatchNorm1d(one.num_features * len(layers), eps=one.eps, momentum=one.momentum, affine=False)
    _share_buffers(joined, layers, ("running_mean", "running_var"), "num_batches_tracked")
    return joined


def _share_buffers(joined: nn.Module, layers: Sequence[nn.Module], names: Sequence[str], counter: str) -> None:
    """Join the layers' statistics into one layer's and leave them views; all count their updates together."""
    for name in names:
        values = torch.cat([getattr(layer, name) for layer in layers])
        setattr(joined, name, values)
        for layer, piece in zip(layers, values.chunk(len(layers)), strict=True):
            setattr(layer, name, piece)
    setattr(joined, counter, getattr(layers[0], counter).clone())
    for layer in layers:
        setattr(layer, counter, getattr(joined, counter))


class _Schedules:
    """The averaging weights of several layers, a value a channel: (T*C,)."""

    def __init__(self, schedules: Sequence[Schedule], features: int) -> None:
        self.schedules = list(schedules)
        self.features = features
        self.constant: Tensor | None = None

    def __call__(self, m: Tensor) -> Tensor:
        if self.constant is not None:
            return self.constant
        values = [schedule(m) for schedule in self.schedules]
        alphas = torch.stack([torch.as_tensor(value, dtype=m.dtype, device=m.device) for value in values])
        alphas = alphas.repeat_interleave(self.features)
        if not any(isinstance(value, Tensor) for value in values):
            self.constant = alphas  # no need to ask again
        return alphas
