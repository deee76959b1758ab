"""One training step of every normalizer in float64, and every schedule: written down in `layers.json` beside this file.

In a float32 run a small eps is below rounding; here a change of it by 1 % shows. Remade by `make golden`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dbnrun.config import registry
from dbnrun.norm.options import Norm, RunFacts
from dbnrun.norm.schedules import Constant, Schedule

LAYERS = Path(__file__).with_name("layers.json")
# Written down with 13 digits; no instruction set and number of threads tried in pins.py was off by more than the last
# of them. eps changed by 1 % moves every layer by 4e-7 at least.
RTOL, ATOL = 1e-10, 1e-12

Numbers = dict[str, list[float]]
FEATURES, STEPS_PER_EPOCH = 4, 5
RUN = RunFacts(Constant(alpha=0.25), STEPS_PER_EPOCH, epochs=2, batch_size=3)
COUNTS = (1, 2, 3, 5, 6, 10, 11, 100)  # the m at which each schedule is asked


def computed() -> dict[str, Numbers]:
    """All that is written down, computed now."""
    found = {f"{name}, units": step(config, (3, FEATURES)) for name, config in norms()}
    maps = [(name, config) for name, config in norms() if config.name != "dbn" or config.average == "std"]
    found |= {f"{name}, maps": step(config, (2, FEATURES, 2, 1)) for name, config in maps}
    for config in schedules():
        alpha = config.of_steps(STEPS_PER_EPOCH)
        found[f"schedule {config.name}, unit={config.unit}"] = {"alpha": [float(alpha(m)) for m in COUNTS]}
    return found


def norms() -> Iterator[tuple[str, Norm]]:
    """Every normalizer with every combination of its choices, by name."""
    axes = itertools.product(
        ("lambda", "batch"), (True, False, "mean", "var"), ("std", "var", "inv_std"), ("std", "var")
    )
    for train_stats, stats_grad, average, eps_at in axes:
        if average == "inv_std" and eps_at == "var":
            continue  # eps_at means nothing to it
        chosen = {"train_stats": train_stats, "stats_grad": stats_grad, "average": average, "eps_at": eps_at}
        name = ", ".join(["dbn", *(f"{axis}={value}" for axis, value in chosen.items())])
        yield name, registry.make("norm", "dbn", init=[0.5, 2.0], **chosen)
    yield "bn", registry.make("norm", "bn")
    yield "batch_renorm", registry.make("norm", "batch_renorm")
    yield "momentum_bn", registry.make("norm", "momentum_bn")
    yield "ln", registry.make("norm", "ln")
    yield "gn", registry.make("norm", "gn", num_groups=2)
    yield "none", registry.make("norm", "none")
    for guard in ("layer_scaling", "clamp", "none"):
        yield f"online_norm, guard={guard}", registry.make("norm", "online_norm", guard=guard, clamp=1.5)
    yield "mabn", registry.make("norm", "mabn")
    yield "powernorm", registry.make("norm", "powernorm")
    yield "powernorm, warmup=1, layer_scale=true", registry.make("norm", "powernorm", warmup=1, layer_scale=True)
    yield "rms", registry.make("norm", "rms", eps=1e-3)
    yield "dyt", registry.make("norm", "dyt")
    yield "frn", registry.make("norm", "frn", eps=1e-3)
    yield "frn, tlu=false", registry.make("norm", "frn", eps=1e-3, tlu=False)
    yield "evonorm_s0", registry.make("norm", "evonorm_s0", num_groups=2)
    yield "gn_ws", registry.make("norm", "gn_ws", num_groups=2)


def schedules() -> Iterator[Schedule]:
    for unit in ("step", "epoch"):
        yield registry.make("schedule", "constant", unit=unit, alpha=0.25)
        yield registry.make("schedule", "harmonic", unit=unit)
        yield registry.make("schedule", "inverse_square", unit=unit)
        yield registry.make("schedule", "power", unit=unit, exponent=0.7)


def step(config: Norm, shape: tuple[int, ...]) -> Numbers:
    """Output, gradients and statistics of a layer's training step, and its output in evaluation afterwards."""
    layer = config.build(FEATURES, len(shape) - 2, RUN).double()
    for number, parameter in enumerate(layer.parameters()):
        parameter.data = waves(parameter.shape, 0.9 + number) + 0.3
    x = (2 * waves(shape, 1.1) + 0.5).requires_grad_()
    y = layer(x)
    (y * waves(shape, 3.0)).sum().backward()
    assert x.grad is not None
    gradients = {f"d{name}": parameter.grad for name, parameter in layer.named_parameters()}
    tensors = {"y": y, "dx": x.grad, **gradients, **dict(layer.named_buffers()), "y in evaluation": layer.eval()(x)}
    return {name: tensor.detach().flatten().tolist() for name, tensor in tensors.items()}  # type: ignore[union-attr]


def waves(shape: tuple[int, ...], speed: float) -> Tensor:
    """Values in [-1, 1] without a pattern, the same on every processor."""
    numbers = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return (speed * numbers**1.5).sin().reshape(shape)


def differences(expected: dict[str, Numbers], got: dict[str, Numbers]) -> list[str]:
    """What differs by more than rounding, in a line each."""
    return [
        f"{layer}, {name}: {expected.get(layer, {}).get(name)} is written down, {values} came"
        for layer, numbers in got.items()
        for name, values in numbers.items()
        if not alike(expected.get(layer, {}).get(name), values)
    ] + [f"{layer}: is written down, and nothing came" for layer in expected if layer not in got]


def alike(then: list[float] | None, now: list[float]) -> bool:
    return then is not None and torch.allclose(
        torch.tensor(now, dtype=torch.float64), torch.tensor(then, dtype=torch.float64), rtol=RTOL, atol=ATOL
    )


def read() -> dict[str, Numbers]:
    text = json.loads(LAYERS.read_text())
    return {
        layer: {name: [float(value) for value in line.split()] for name, line in numbers.items()}
        for layer, numbers in text.items()
    }


def write(found: dict[str, Numbers]) -> None:
    text = {
        layer: {name: " ".join(f"{value:.13g}" for value in values) for name, values in numbers.items()}
        for layer, numbers in found.items()
    }
    LAYERS.write_text(json.dumps(text, indent=1) + "\n")
