"""What the networks share: activations, dropout from a cell's own stream, initialization, bias or none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dbnrun.models import options


class NormFactory(Protocol):
    """Makes the normalizers of a network: norm(features, spatial)."""

    @property
    def centers(self) -> bool:
        """Whether they subtract each unit's mean."""
        ...

    @property
    def of_weights(self) -> Callable[[Tensor], Tensor] | None:
        """What the map before a normalizer applies to its weights in each forward pass, if anything."""
        ...

    def __call__(self, features: int, spatial: int) -> nn.Module:
        """The normalizer of inputs (N, features), or (N, features, H, W) where spatial is 2."""
        ...


def needs_bias(norm: NormFactory, norm_position: str) -> bool:
    """Whether the map before a normalizer has a bias: not where what follows directly subtracts each unit's mean."""
    return norm_position == "after" or not norm.centers


class _LinearOfWeights(nn.Linear):
    of_weights: Callable[[Tensor], Tensor]

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.of_weights(self.weight), self.bias)


class _Conv2dOfWeights(nn.Conv2d):
    of_weights: Callable[[Tensor], Tensor]

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.of_weights(self.weight), self.bias)


def map_before(norm: NormFactory, layer: nn.Module) -> nn.Module:
    """The linear map or convolution before a normalizer, made to apply to its weights what that wants.

    The layer itself, changed in place as torch's parametrizations change one, but with its parameters and their names
    as they are: they are initialized, counted and trained as those of any other network.
    """
    if norm.of_weights is None:
        return layer
    layer.__class__ = {nn.Linear: _LinearOfWeights, nn.Conv2d: _Conv2dOfWeights}[type(layer)]
    layer.of_weights = norm.of_weights  # pyright: ignore[reportArgumentType]
    return layer


ACTIVATIONS: dict[str, type[nn.Module]] = {kind: getattr(nn, name) for kind, name in options.ACTIVATIONS.items()}


class Dropout(nn.Module):
    """Inverted dropout that draws from a given generator, so that a cell's masks are its own.

    In training y = x * keep / (1 - rate), keep ~ Bernoulli(1 - rate) of x's shape; in evaluation y = x.
    """

    def __init__(self, rate: float, generator: Generator) -> None:
        super().__init__()
        self.rate = rate
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        # Divided last: 1 / (1 - rate) rounded to bfloat16 would be off for every value alike.
        return x * self.keep(x.shape, x) / (1 - self.rate)

    def keep(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """1 for each value to keep and 0 for the others, for inputs of this shape, with the type and device of `like`.

        Drawn in one memory order whatever the input's: the order decides which draw meets which value.
        """
        order = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        keep = torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=order)
        if self.rate == 0:
            return keep.fill_(1)  # draws nothing
        return keep.bernoulli_(1 - self.rate, generator=self.generator)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


@contextlib.contextmanager
def global_draws_from(generator: Generator) -> Iterator[None]:
    """Within the block torch's global generator of this one's device is this one; afterwards it stands where it stood.

    So layers that others wrote draw from a cell's own stream.
    """
    ours = torch.default_generator
    if generator.device.type == "cuda":
        index = generator.device.index  # None: the current one
        ours = torch.cuda.default_generators[torch.cuda.current_device() if index is None else index]
    before = ours.get_state()
    ours.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(ours.get_state())
        ours.set_state(before)


def block(linear: nn.Module, norm: nn.Module, activation: str, norm_position: str) -> nn.ModuleDict:
    """Linear map, normalizer and activation in the order they act: iterating the values applies them."""
    act = ACTIVATIONS[activation]()
    if norm_position == "before":
        return nn.ModuleDict({"linear": linear, "norm": norm, "act": act})
    return nn.ModuleDict({"linear": linear, "act": act, "norm": norm})


def before_norm(layers: nn.Module, x: Tensor) -> Tensor:
    """Apply what a block does up to its normalizer."""
    for name, layer in layers.items():  # pyright: ignore[reportCallIssue]
        if name == "norm":
            break
        x = layer(x)
    return x


def from_norm(layers: nn.Module, x: Tensor) -> Tensor:
    """Apply a block's normalizer and what follows it."""
    names = list(layers.keys())  # pyright: ignore[reportCallIssue]
    for name in names[names.index("norm") :]:
        x = layers[name](x)  # pyright: ignore[reportIndexIssue]
    return x


class Network(nn.Module):
    """A network in two pieces: what comes before its first normalizer, and the rest.

    Networks that share weights and differ in lambda have the first piece in common.
    """

    def prefix(self, x: Tensor) -> Tensor:
        """x (N, …) up to the input of the first normalizer."""
        raise NotImplementedError

    def suffix(self, h: Tensor) -> Tensor:
        """The rest: from what `prefix` returns to the logits (N, num_classes)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.suffix(self.prefix(x))

    def initialize(self, generator: Generator) -> None:
        """Draw the weights, so that networks that differ only in their normalizers start from the same."""
        initialize(self, generator)


@torch.no_grad()
def initialize(model: nn.Module, generator: Generator) -> None:
    """Glorot-normal weights and zero biases for every linear map and convolution, in the order of the network.

    What is inside a block's normalizer keeps its own, so networks that differ only there start from the same weights.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and "norm" not in name.split("."):
            nn.init.xavier_normal_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
