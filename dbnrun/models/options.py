"""The networks that one can choose."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from dbnrun.config.own import Own
from dbnrun.config.registry import UNSET, Choice, UserError, choice, option

if TYPE_CHECKING:
    from torch import Generator

    from dbnrun.models.layers import Network, NormFactory

ACTIVATIONS = {  # the classes of torch.nn
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "elu": "ELU",
    "gelu": "GELU",
    "identity": "Identity",
}


@dataclass
class Model(Choice):
    """A network."""

    stacks: ClassVar[bool] = True  # whether train/stack knows how to join several
    tried: ClassVar[bool] = False  # whether only building it shows that it fits the data
    needs_images: ClassVar[bool] = False  # (C, H, W), not plain features
    # Runs in one stack, by device, beyond which it gains nothing; 1: they train alone. docs/performance.md has the
    # measurements: on the CPU twenty networks leave its caches.
    most_stacked: ClassVar[Mapping[str, int]] = {"cpu": 1, "cuda": 1}

    @property
    def title(self) -> str:
        """What reports call it, with what tells it from others of its name."""
        return self.name

    def build(self, shape: tuple[int, ...], classes: int, norm: NormFactory, dropout: Generator) -> Network:
        """The network for inputs (N, *shape), on the CPU; `dropout` draws its masks. `initialize` draws its weights."""
        raise NotImplementedError


@dataclass
class Layered(Model):
    """Layers of given `widths`: units of the hidden layers, channels first where it has convolutions."""

    widths: list[int] = option(UNSET, at_least=1, at_most=65536)
    activation: str = option("relu", among=tuple(ACTIVATIONS))

    depth: ClassVar[int | None] = None  # how many widths it takes; None: any number

    def check(self) -> None:
        expected = self.depth or len(self.widths)
        if not self.widths or len(self.widths) != expected:
            wanted = f"{expected} widths" if self.widths else "at least one width"
            raise UserError(f"model.widths={self.widths}: model {self.name!r} expects {wanted}.")

    @property
    def title(self) -> str:
        return f"{self.name} {'-'.join(map(str, self.widths))}"


@choice("model", "fnn")
@dataclass
class FNN(Layered):
    """Fully connected: each hidden layer is linear, normalization, activation."""

    norm_position: str = option("before", among=("before", "after"))

    most_stacked = {"cpu": 20, "cuda": 200}

    def build(self, shape: tuple[int, ...], classes: int, norm: NormFactory, dropout: Generator) -> Network:
        from dbnrun.models import fnn

        return fnn.FNN(math.prod(shape), self.widths, classes, norm, self.activation, self.norm_position)


@choice("model", "cnn")
@dataclass
class CNN(Layered):
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
class TwoLayer(Layered):
    """The network of the paper's analysis, equations 3 to 5."""

    depth = 1
    most_stacked = {"cpu": 20, "cuda": 200}

    def build(self, shape: tuple[int, ...], classes: int, norm: NormFactory, dropout: Generator) -> Network:
        from dbnrun.models import two_layer

        return two_layer.TwoLayer(math.prod(shape), self.widths[0], classes, norm, self.activation)


@choice("model", "torchvision")
@dataclass
class Torchvision(Model):
    """A classification network of torchvision.models, every batch norm replaced by the chosen normalizer."""

    arch: str = ""  # must be given
    stem: str = option("auto", among=("auto", "imagenet", "cifar"))

    stacks = False
    tried = True
    needs_images = True

    def check(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", self.arch):
            given = f"model.arch={self.arch}" if self.arch else "model.arch is missing"
            raise UserError(
                f"{given}: expected the name of a network of torchvision.models, as in model.arch=resnet18."
            )

    @property
    def slug(self) -> str:
        return self.arch

    @property
    def title(self) -> str:
        return self.arch if self.stem == "auto" else f"{self.arch} with the {self.stem} stem"

    def build(self, shape: tuple[int, ...], classes: int, norm: NormFactory, dropout: Generator) -> Network:
        from dbnrun.models import torchvision

        return torchvision.TorchvisionNetwork(self.arch, self.stem, shape, classes, norm, dropout)


@choice("model", "custom")
@dataclass
class CustomModel(Own, Model):
    """A class of your own, or a function that makes a network: Mine(input_shape, num_classes, norm, **options).

    Each of the three is given where the signature asks for it. Without `norm`, its batch norms are exchanged.
    """

    stacks = False

    @property
    def title(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.slug} ({options})" if options else self.slug

    def build(self, shape: tuple[int, ...], classes: int, norm: NormFactory, dropout: Generator) -> Network:
        from dbnrun.models.own_network import OwnNetwork

        mine = self
        if self.passes_on and not self.asks_for("num_classes"):
            mine = replace(self, options={"num_classes": classes} | self.options)
        make = functools.partial(mine.made_module, input_shape=shape, num_classes=classes, norm=norm)
        return OwnNetwork(make, None if self.asks_for("norm") else norm, dropout)
