"""The classification networks of torchvision, with another normalizer in the place of every batch norm."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Generator, Tensor, nn

from dbnrun.config.registry import UserError, first_line, nearest
from dbnrun.models.convert import SPATIAL, convert_norm, replace
from dbnrun.models.layers import Dropout, Network, NormFactory, global_draws_from, map_before
from dbnrun.torchvision_shim import torchvision

# Images of fewer pixels a side get the CIFAR stem: a 3x3 convolution of stride 1, and no pooling after it. These
# classes of torchvision have one; by name, the first convolution and the pooling to leave out.
SMALL = 64
CIFAR_STEMS = {"ResNet": ("conv1", "maxpool"), "DenseNet": ("features.conv0", "features.pool0")}
# In training these would return the logits of auxiliary classifiers as well.
NO_AUXILIARY = {"aux_logits": False, "init_weights": True}
SETTINGS = {"googlenet": NO_AUXILIARY, "inception_v3": NO_AUXILIARY}


class TorchvisionNetwork(Network):
    """A network of torchvision.models by its name, x (N, C, H, W) -> logits (N, num_classes); never pretrained.

    `stem` is the first convolution, after which the first normalizer comes; `net` is torchvision's network without it,
    whose layers keep their names (`net.layer1.0.conv1.weight`) and convolutions the bias they have, or none, whatever
    the normalizer. GoogLeNet and Inception come without their auxiliary classifiers. Dropout and stochastic depth draw
    from `dropout_rng`.
    """

    def __init__(
        self, arch: str, stem: str, shape: tuple[int, ...], num_classes: int, norm: NormFactory, dropout_rng: Generator
    ) -> None:
        super().__init__()
        self._fresh = functools.partial(_parts, arch, stem, shape, num_classes)
        parts = self._fresh()
        _check_images(arch, parts, shape)
        for conv in _normalized(parts):
            map_before(norm, conv)
        convert_norm(parts, norm)
        replace(parts, functools.partial(_drawing_from, generator=dropout_rng))
        self.stem, self.net = parts

    def prefix(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def suffix(self, h: Tensor) -> Tensor:
        return self.net(h)

    @torch.no_grad()
    def initialize(self, generator: Generator) -> None:
        """Draw the weights as torchvision's constructor does, which knows nothing of the normalizer."""
        with global_draws_from(generator):
            stem, net = self._fresh()
        for own, fresh in ((self.stem, stem), (self.net, net)):
            for name, layer in fresh.named_modules():
                if type(layer) not in SPATIAL:
                    for key, value in layer.named_parameters(recurse=False):
                        own.get_submodule(name).get_parameter(key).copy_(value)


class StochasticDepth(Dropout):
    """Drops whole records of a residual branch, torchvision's StochasticDepth in its mode "row"."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        return x * self.keep((len(x), *(1 for _ in x.shape[1:])), x) / (1 - self.rate)


def _drawing_from(layer: nn.Module, generator: Generator) -> nn.Module | None:
    """What stands for a layer that draws from the global generator; None for every other layer."""
    if isinstance(layer, nn.Dropout):
        return Dropout(layer.p, generator)
    if isinstance(layer, torchvision.ops.StochasticDepth):
        return StochasticDepth(layer.p, generator)
    return None


def _parts(arch: str, stem: str, shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """The first convolution of a network for images of this shape, and the rest, with batch norms."""
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        hint = nearest(arch, known) or " list_models(module=torchvision.models) lists them; resnet18 is one."
        raise UserError(f"model.arch={arch}: torchvision.models has no such classification network.{hint}")
    net = torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **SETTINGS.get(arch, {}))
    if not any(type(layer) in SPATIAL for layer in net.modules()):
        raise UserError(
            f"model.arch={arch}: it has no batch norm to replace; choose a network with batch norms, such as resnet18."
        )
    place, first = next((name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d))
    if stem == "cifar" or (stem == "auto" and min(shape[1:]) < SMALL):
        place, pool = _cifar_stem(arch, net, shape)
        net.set_submodule(pool, nn.Identity())
        first = _first(shape[0], first.out_channels, 3, 1, 1, bias=False)
    elif first.in_channels != shape[0]:
        bias = first.bias is not None
        first = _first(shape[0], first.out_channels, first.kernel_size, first.stride, first.padding, bias=bias)
    net.set_submodule(place, nn.Identity())
    return nn.Sequential(first, net)


def _normalized(net: nn.Module) -> list[nn.Conv2d]:
    """The convolutions after which a batch norm comes next: torchvision's networks name their layers in that order."""
    leaves = [layer for layer in net.modules() if not any(layer.children()) and not isinstance(layer, nn.Identity)]
    pairs = itertools.pairwise(leaves)
    return [layer for layer, after in pairs if isinstance(layer, nn.Conv2d) and type(after) in SPATIAL]


def _cifar_stem(arch: str, net: nn.Module, shape: tuple[int, ...]) -> tuple[str, str]:
    """The first convolution and the pooling after it, by name."""
    kind = type(net).__name__
    if kind not in CIFAR_STEMS:
        raise UserError(
            f"model.arch={arch}: only {' and '.join(CIFAR_STEMS)} have a CIFAR stem for images of {_pixels(shape)} "
            f"pixels; use model.stem=imagenet, which keeps {arch} as it is, or model.arch=resnet18."
        )
    return CIFAR_STEMS[kind]


def _first(*sizes: Any, bias: bool) -> nn.Conv2d:
    """A first convolution with weights as ResNet's constructor draws them, whatever the network."""
    layer = nn.Conv2d(*sizes, bias=bias)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def _check_images(arch: str, net: nn.Module, shape: tuple[int, ...]) -> None:
    """Raise UserError where a network cannot take images of this shape; leaves it in training mode."""
    try:
        net.eval()(torch.zeros(1, *shape))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"model.arch={arch}: it cannot take images of {_pixels(shape)} pixels ({first_line(error)}); use larger "
            "images, or another network, such as resnet18."
        ) from None
    net.train()


def _pixels(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[1:]))
