"""Several networks as one program.

The cells stay ordinary cells: their parameters, gradients and lambdas become views of stacked tensors. The stack
supplies the training step alone; evaluation, checkpoints and records are each cell's own.

Letters: T networks, B records a batch, U distinct batches (cells of one seed share theirs). Activations are laid
out (T, C, B), those of convolutions (B, T*C, H, W): for the normalizer one layer of T*C channels either way.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbnrun.config.registry import UserError
from dbnrun.models.cnn import CNN
from dbnrun.models.fnn import FNN
from dbnrun.models.layers import ACTIVATIONS, Dropout, Network
from dbnrun.models.two_layer import TwoLayer
from dbnrun.norm.dbn import DiminishingBatchNorm, DiminishingBatchNorm1d, DiminishingBatchNorm2d
from dbnrun.norm.schedules import Alpha
from dbnrun.train.evaluate import at_least_float32

Step = Callable[[Tensor], Tensor]

DBNS = (DiminishingBatchNorm1d, DiminishingBatchNorm2d)
BNS = (nn.BatchNorm1d, nn.BatchNorm2d)
GROUP_NORMS = (nn.LayerNorm, nn.GroupNorm)


def kind_of(layers: Sequence[Any], known: Collection[type]) -> type:
    """The one kind of these layers. Raises UserError where it is not one of `known`, as a subclass is not."""
    kinds = {type(layer) for layer in layers}
    if len(kinds) == 1 and kinds <= set(known):
        return kinds.pop()
    came = ", ".join(sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds))
    raise UserError(
        f"{came}: a stack supports only {', '.join(kind.__name__ for kind in known)}, the same in every network; "
        "set hydra.launcher.max_stack=1 to train each network alone."
    )


@dataclass(eq=False)
class StackedParameter:
    """A stacked parameter and the cells' parameters that are its slices, first axis first."""

    tensor: nn.Parameter  # (T, …), or (T*C,) where joined
    slices: list[nn.Parameter]

    @classmethod
    def of(cls, parameters: Sequence[nn.Parameter], joined: bool = False) -> StackedParameter:
        pieces = [parameter.detach() for parameter in parameters]
        stacked = cls(nn.Parameter(torch.cat(pieces) if joined else torch.stack(pieces)), list(parameters))
        for parameter, piece in zip(parameters, stacked.by_cell(stacked.tensor.data), strict=True):
            parameter.data = piece
        return stacked

    def by_cell(self, values: Tensor) -> Tensor:
        """A tensor like the stacked one as (T, …)."""
        return values.view(len(self.slices), *self.slices[0].shape)

    def hand_out_gradient(self) -> None:
        """Give each cell's parameter its slice of the gradient."""
        assert self.tensor.grad is not None
        for parameter, piece in zip(self.slices, self.by_cell(self.tensor.grad).unbind(), strict=True):
            parameter.grad = piece


class Stack:
    """T networks of one architecture in training mode, called as (x (U, B, …)) -> logits (T, num_classes, B)."""

    def __init__(self, models: Sequence[Network], batch_of: Sequence[int]) -> None:
        """`batch_of` (T,) says which of the U batches each network sees; it begins at 0 and never decreases."""
        self.count = len(models)
        self.batch_of = torch.tensor(batch_of, device=next(models[0].parameters()).device)
        self.even = len(set(Counter(batch_of).values())) == 1  # every batch is seen by as many networks
        self.parameters: list[StackedParameter] = []

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _stacked(self, parameters: Sequence[nn.Parameter], joined: bool = False) -> nn.Parameter:
        self.parameters.append(StackedParameter.of(parameters, joined))
        return self.parameters[-1].tensor

    def _linear(self, layers: Sequence[Any]) -> Step:
        kind_of(layers, [nn.Linear])
        weight = self._stacked([layer.weight for layer in layers])  # (T, out, in)
        if layers[0].bias is None:
            return lambda x: self._product(weight, x)
        bias = self._stacked([layer.bias for layer in layers])  # (T, out)
        return lambda x: self._product(weight, x) + bias.unsqueeze(2)

    def _product(self, weight: Tensor, x: Tensor) -> Tensor:
        """weight (T, out, in) times x (T, in, B), or x (U, in, B) in the first layer, as (T, out, B)."""
        if len(x) == self.count:
            return torch.bmm(weight, x)
        if self.even:  # networks of one batch lie side by side: one larger product a batch
            return torch.bmm(weight.view(len(x), -1, weight.shape[2]), x).view(self.count, -1, x.shape[2])
        return torch.bmm(weight, x[self.batch_of])

    def _conv(self, layers: Sequence[Any]) -> Step:
        """One convolution with a group for each network, or batch; x (B, T*in, H, W), or (B, U*in, H, W)."""
        one = layers[0]
        kind_of(layers, [nn.Conv2d])
        weight = self._stacked([layer.weight for layer in layers], joined=True)  # (T*out, in, 3, 3)
        bias = None if one.bias is None else self._stacked([layer.bias for layer in layers], joined=True)
        return lambda x: F.conv2d(x, weight, bias, padding=one.padding, groups=x.shape[1] // one.in_channels)

    def _block(self, blocks: Sequence[Any]) -> list[Step]:
        """What a hidden block does, in the order of its layers."""
        steps: list[Step] = []
        for name in blocks[0]:
            layers = [block[name] for block in blocks]
            if name == "linear":
                steps.append(self._conv(layers) if isinstance(layers[0], nn.Conv2d) else self._linear(layers))
            elif name == "norm":
                steps.append(self._norm(layers))
            else:  # the activation
                kind_of(layers, ACTIVATIONS.values())
                steps.append(layers[0])  # elementwise, and without parameters
        return steps

    def _norm(self, layers: Sequence[Any]) -> Step:
        """One layer of all networks' channels; the networks' layers keep views of its statistics and parameters."""
        kind = kind_of(layers, [*DBNS, *BNS, *GROUP_NORMS, nn.Identity])
        if kind is nn.Identity:
            return layers[0]
        if kind in GROUP_NORMS:
            return self._group_norm(layers)
        joined: Any = _joined_dbn(layers) if kind in DBNS else _joined_bn(layers)
        joined.weight, joined.bias = self._affine(layers)
        # Units lie as (T, C, B), channels as (B, T*C, H, W).
        return lambda x: joined(x) if x.dim() == 4 else joined(x.reshape(1, -1, x.shape[2])).view_as(x)

    def _group_norm(self, layers: Sequence[Any]) -> Step:
        """Group norm with the groups of all networks; layer norm over units is group norm with one group."""
        one = layers[0]
        groups = self.count * getattr(one, "num_groups", 1)
        weight, bias = self._affine(layers)

        def step(x: Tensor) -> Tensor:
            records_first = x if x.dim() == 4 else x.flatten(0, 1).t()  # (B, T*C, …)
            y = F.group_norm(records_first, groups, weight, bias, one.eps)
            return y if x.dim() == 4 else y.t().view_as(x)

        return step

    def _affine(self, layers: Sequence[Any]) -> tuple[nn.Parameter, nn.Parameter] | tuple[None, None]:
        """gamma and beta of all networks, (T*C,) each; None where the layers have none."""
        if layers[0].weight is None:
            return None, None
        weight = self._stacked([layer.weight for layer in layers], joined=True)
        return weight, self._stacked([layer.bias for layer in layers], joined=True)


class StackedFNN(Stack):
    """Fully connected networks; x (U, B, …)."""

    def __init__(self, models: Sequence[FNN], batch_of: Sequence[int]) -> None:
        super().__init__(models, batch_of)
        self.blocks = [self._block([model.hidden[i] for model in models]) for i in range(len(models[0].hidden))]
        self.out = self._linear([model.out for model in models])

    def __call__(self, x: Tensor) -> Tensor:
        h = x.flatten(2).transpose(1, 2)  # (U, in, B)
        for step in itertools.chain.from_iterable(self.blocks):
            h = step(h)
        return self.out(h)


class StackedTwoLayer(Stack):
    """The networks of the paper's analysis; x (U, B, …)."""

    def __init__(self, models: Sequence[TwoLayer], batch_of: Sequence[int]) -> None:
        super().__init__(models, batch_of)
        self.w1 = self._linear([model.w1 for model in models])
        self.norm = self._norm([model.norm for model in models])
        self.w2 = self._linear([model.w2 for model in models])
        kind_of([model.a for model in models], ACTIVATIONS.values())
        self.a = models[0].a

    def __call__(self, x: Tensor) -> Tensor:
        z1 = self.a(self.w1(x.flatten(2).transpose(1, 2)))
        return self.a(self.w2(self.norm(z1)))


class StackedCNN(Stack):
    """The convolutional networks; x (U, B, C, H, W). Dropout draws from each cell's own stream, as alone."""

    def __init__(self, models: Sequence[CNN], batch_of: Sequence[int]) -> None:
        super().__init__(models, batch_of)
        self.convs = [self._block([model.convs[i] for model in models]) for i in range(len(models[0].convs))]
        self.hidden = self._block([model.hidden for model in models])
        self.out = self._linear([model.out for model in models])
        self.pool = models[0].pool
        self.dropouts = [_Dropouts([model.dropouts[i] for model in models]) for i in range(len(models[0].dropouts))]

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) not in (1, self.count) and not self.even:
            x = x[self.batch_of]
        h = x.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)  # (B, U*C, H, W)
        for index, block in enumerate(self.convs):
            for step in block:
                h = step(h)
            if index % 2:
                h = self.dropouts[index // 2](self.pool(h))
        h = h.reshape(len(h), self.count, -1).permute(1, 2, 0)  # (T, C*H*W, B)
        for step in self.hidden:
            h = step(h)
        return self.out(self.dropouts[2](h))


class _Dropouts:
    """Dropout of several networks, each drawing from its own stream; h (B, T*C, H, W) or (T, C, B)."""

    def __init__(self, layers: Sequence[Any]) -> None:
        kind_of(layers, [Dropout])
        self.layers = layers
        rates_kept = [1 - layer.rate for layer in layers]
        # On the device once and for all: a captured graph may not wait for the host.
        self.kept = torch.tensor(rates_kept, dtype=torch.float64, device=layers[0].generator.device)

    def __call__(self, h: Tensor) -> Tensor:
        if all(layer.rate == 0 for layer in self.layers):
            return h
        kept = self.kept.to(at_least_float32(h).dtype)
        if h.dim() == 4:
            channels = h.shape[1] // len(self.layers)
            keep = torch.cat([layer.keep((len(h), channels, *h.shape[2:]), h) for layer in self.layers], dim=1)
            kept = kept.unsqueeze(1).expand(-1, channels).reshape(1, -1, 1, 1)
        else:
            keep = torch.stack([layer.keep((h.shape[2], h.shape[1]), h).t() for layer in self.layers])
            kept = kept.view(-1, 1, 1)
        return (h * keep / kept).to(h.dtype)


def stack_networks(models: Sequence[Network], batch_of: Sequence[int]) -> Stack:
    """The stack of networks of one kind. Raises UserError where one has a layer that cannot be stacked."""
    kinds = {FNN: StackedFNN, CNN: StackedCNN, TwoLayer: StackedTwoLayer}
    return kinds[kind_of(models, kinds)](models, batch_of)  # pyright: ignore[reportArgumentType, reportIndexIssue]


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


def _joined_bn(layers: Sequence[Any]) -> nn.Module:
    one = layers[0]
    joined = type(one)(one.num_features * len(layers), eps=one.eps, momentum=one.momentum, affine=False)
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

    def __init__(self, schedules: Sequence[Alpha], features: int) -> None:
        self.schedules = list(schedules)
        self.features = features
        self.constant: Tensor | None = None

    def __call__(self, m: Tensor) -> Tensor:
        if self.constant is not None:
            return self.constant
        values = [schedule(m) for schedule in self.schedules]
        # torch.full, not a copy from the host: a captured graph may not wait for one.
        alphas = torch.stack([v.to(m.dtype) if isinstance(v, Tensor) else torch.full_like(m, v) for v in values])
        alphas = alphas.unsqueeze(1).expand(-1, self.features).flatten()
        if not any(isinstance(value, Tensor) for value in values):
            self.constant = alphas  # no need to ask again
        return alphas
