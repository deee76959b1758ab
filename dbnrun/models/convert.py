"""Putting other layers in the place of a network's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

SPATIAL: dict[type[nn.Module], int] = {nn.BatchNorm1d: 0, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


def convert_norm(module: nn.Module, factory: Callable[[int, int], nn.Module]) -> nn.Module:
    """Replace each nn.BatchNorm1d/2d/3d of a module, in place, by factory(features, spatial); returns the module.

    `spatial` is 0, 2 or 3. The new layers start as the factory makes them, on the device of the old ones, with their
    type and mode; nothing of the old layers' parameters and statistics is kept. A module that is itself a batch norm
    cannot be replaced in place: the factory's layer is returned.

    Raises ValueError, and leaves the module as it was, where it has no batch norm, or one of another class
    (nn.SyncBatchNorm, a lazy or a frozen one, a subclass), which may do more than these.
    """
    found = [layer for layer in module.modules() if type(layer) in SPATIAL]
    for name, layer in module.named_modules():
        other = isinstance(layer, _BatchNorm) or type(layer).__name__.startswith("FrozenBatchNorm")
        if other and type(layer) not in SPATIAL:
            raise ValueError(
                f"{name or 'the module'} is a {type(layer).__name__}; expected nn.BatchNorm1d, 2d or 3d itself."
            )
    if not found:
        raise ValueError(f"{type(module).__name__} has no batch norm to replace.")

    def converted(layer: nn.Module) -> nn.Module | None:
        return _like(layer, factory(layer.num_features, SPATIAL[type(layer)])) if type(layer) in SPATIAL else None  # pyright: ignore[reportArgumentType]

    return replace(module, converted)


def replace(module: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Put make(layer) in the place of each layer, where it is not None; a layer that stands in two places stays one."""
    made = {layer: new for layer in module.modules() if (new := make(layer)) is not None}
    for parent in list(module.modules()):
        for name, child in parent._modules.items():  # every name: named_children() gives a shared layer once
            if child in made:
                parent._modules[name] = made[child]
    return made.get(module, module)


def _like(old: nn.Module, new: nn.Module) -> nn.Module:
    """The new layer on the device of the old one, with its type and mode."""
    for tensor in (*old.parameters(), *old.buffers()):
        new.to(tensor.device, tensor.dtype)
        break
    return new.train(old.training)
