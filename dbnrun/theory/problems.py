"""What Algorithm 1 is run on: records, targets, an activation and a loss, all float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dbnrun.config import registry
from dbnrun.config.registry import UserError

_aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """a, and the product of a gradient with a' in terms of the output a(x): no input need be kept."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]  # (gradient, output) -> gradient * a'


def _tanh(x: Tensor) -> Tensor:
    # 2 sigmoid(2x) - 1: four times faster than torch.tanh in float64 on the CPU, and equal to 4e-16.
    return torch.sigmoid(x * 2).mul_(2).sub_(1)


ACTIVATIONS = {
    "relu": Activation(torch.relu, lambda g, z: _aten.threshold_backward(g, z, 0)),
    "leaky_relu": Activation(
        partial(functional.leaky_relu, negative_slope=0.01),
        lambda g, z: _aten.leaky_relu_backward(g, z, 0.01, True),
    ),
    "tanh": Activation(_tanh, _aten.tanh_backward),
    "sigmoid": Activation(torch.sigmoid, _aten.sigmoid_backward),
    "elu": Activation(functional.elu, lambda g, z: _aten.elu_backward(g, 1.0, 1.0, 1.0, True, z)),
    # a = log(1 + e^x), so a' = 1 / (1 + e^-x) = 1 - e^-a. Threshold: beyond 40, a = x to the last bit.
    "softplus": Activation(partial(functional.softplus, threshold=40.0), lambda g, z: g * -torch.expm1(-z)),
    "identity": Activation(lambda x: x, lambda g, _z: g),
}


@dataclass(frozen=True)
class Problem:
    """x (N, n), targets (C, N): one-hot columns, or values to regress; `loss_name` is one of settings.LOSSES."""

    x: Tensor
    targets: Tensor
    activation: Activation
    loss_name: str

    def loss(self, z2: Tensor, want_value: bool = True) -> tuple[Tensor | None, Tensor]:
        """f = sum_i l_i(z2), (K,), and df/dz2 (K, C, N). l is cross-entropy of softmax(z2), or mean_c (z2 - t)^2."""
        if self.loss_name == "cross_entropy":
            if not want_value:
                return None, torch.softmax(z2, 1).sub_(self.targets)
            log_p = torch.log_softmax(z2, 1)
            return -(self.targets * log_p).sum((1, 2)), log_p.exp() - self.targets
        difference = z2 - self.targets
        outputs = z2.shape[1]
        value = difference.square().sum((1, 2)) / outputs if want_value else None
        return value, difference * (2 / outputs)


def build(data: str, records: int | None, activation: str, loss: str, seed: int, data_dir: Path) -> Problem:
    """The problem that the settings name. Raises UserError where loss and data, or size and data, do not fit.

    `seed` draws the subset of `records` records (None: all of digits' training part, 1,000 of MNIST's, 256 made ones),
    and the made regression.
    """
    if data == "regression":
        if loss != "mse":
            raise UserError(f"--loss {loss}: --data regression has no classes; use --loss mse.")
        x, targets = _regression(records or 256, seed)
    else:
        x, targets = _images(data, records, seed, data_dir)
    return Problem(x.contiguous(), targets.contiguous(), ACTIVATIONS[activation], loss)


def _images(data: str, records: int | None, seed: int, data_dir: Path) -> tuple[Tensor, Tensor]:
    val_size = {"digits": 240, "mnist": 10000}[data]
    part = registry.make("dataset", data, val_size=val_size, fnn_widths=[]).load(data_dir).train
    wanted = records or {"digits": len(part), "mnist": 1000}[data]
    if wanted > len(part):
        raise UserError(f"--examples {wanted}: {data} has {len(part)} training examples; choose fewer.")
    chosen = torch.arange(len(part))
    if wanted < len(part):
        chosen = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:wanted]
    x = part.x[chosen].flatten(1).double()
    return x, functional.one_hot(part.y[chosen], 10).double().T


def _regression(records: int, seed: int) -> tuple[Tensor, Tensor]:
    """x normal in 8 dimensions, two targets in (-1, 1): a random tanh network of 4 units, and noise of 0.05."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x = normal(records, 8)
    targets = torch.tanh(normal(2, 4) @ torch.tanh(normal(4, 8) @ x.T / 8**0.5))
    return x, targets + 0.05 * normal(2, records)
