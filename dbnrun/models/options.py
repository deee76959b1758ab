"""The networks that one can choose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dbnrun.config.registry import UNSET, Choice, UserError, choice, option

if TYPE_CHECKING:
    from torch import Generator

    from dbnrun.models.layers import Network, NormFactory

ACTIVATIONS = ("relu", "leaky_relu", "tanh", "sigmoid", "elu", "gelu", "identity")


@dataclass
class Model(Choice):
    """A network. `widths`: units of the hidden layers, channels first where it has convolutions."""

    widths: list[int] = option(UNSET, at_least=1, at_most=65536)
    activation: str = option("relu", among=ACTIVATIONS)

    stacks: ClassVar[bool] = True  # whether train/stack knows how to join several
    depth: ClassVar[int | None] = None  # how many widths it takes; None: any number
    needs_images: ClassVar[bool] = False  # (C, H, W), not plain features
    # Runs in one stack, by device, beyond which it gains nothing; 1: they train alone. docs/performance.md has the
    # measurements: on the CPU twenty networks leave its caches.
    most_stacked: ClassVar[Mapping[str, int]] = {"cpu": 1, "cuda": 1}

    def check(self) -> None:
        expected = self.depth or len(self.widths)
        if not self.widths or len(self.widths) != expected:
            wanted = f"{expected} widths" if self.widths else "at least one width"
            raise UserError(f"model.widths={self.widths}: model {self.name!r} expects {wanted}.")

    def build(self, shape: tuple[int, ...], classes: int, norm: NormFactory, dropout: Generator) -> Network:
        """The network for inputs (N, *shape), on the CPU; `dropout` draws its masks. `initialize` draws its weights."""
        raise NotImplementedError


@choice("model", "fnn")
@dataclass
class FNN(Model):
    """Fully connected: each hidden layer is linear, normalization, activation."""

    norm_position: str = option("before", among=("before", "after"))

    most_stacked = {"cpu": 20, "cuda": 200}

    def build(self, shape: tuple[int, ...], classes: int, norm: NormFactory, dropout: Generator) -> Network:
        from dbnrun.models import fnn

        return fnn.FNN(math.prod(shape), self.widths, classes, norm, self.activation, self.norm_position)


@choice("model", "cnn")
@dataclass
class CNN(Model):
    """The paper's CIFAR-10 network: four convolutions and a hidden layer, each but the last layer normalized."""

    norm_position: str = option("before", among=("before", "after"))
    dropout: list[float] = option([0.25, 0.25, 0.5], at_least=0, at_most=0.999, length=3)

    depth = 5
    needs_images = True
    most_stacked = {"cpu": 1, "cuda": 200}  # one convolutional network fills a CPU

    def build(self, shape: tuple[int, ...], classes: int, norm: NormFactory, dropout: Generator) -> Network:
        from dbnrun.models import cnn

        return cnn.CNN(shape, self.widths, classes, norm, self.activation, self.norm_position, self.dropout, dropout)


@choice("model", "two_layer")
@dataclass
class TwoLayer(Model):
    """The network of the paper's analysis, equations 3 to 5."""

    depth = 1
    most_stacked = {"cpu": 20, "cuda": 200}

    def build(self, shape: tuple[int, ...], classes: int, norm: NormFactory, dropout: Generator) -> Network:
        from dbnrun.models import two_layer

        return two_layer.TwoLayer(math.prod(shape), self.widths[0], classes, norm, self.activation)
