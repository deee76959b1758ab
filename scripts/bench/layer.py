"""Forward and backward of a DBN layer over nn.BatchNorm's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bench import Finding
from bench.timing import by_turns, ratio
from dbnrun.norm import DiminishingBatchNorm1d, DiminishingBatchNorm2d

SHAPES = {(100, 300): "", (128, 64, 32, 32): "≤ 1.10", (128, 512, 4, 4): "≤ 1.5"}
AXES = [(train_stats, stats_grad) for train_stats in ("lambda", "batch") for stats_grad in (True, False)]


def measure(device: str) -> Iterator[Finding]:
    for dtype in (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,):
        for shape, target in SHAPES.items():
            yield from _shape(shape, dtype, device, "≤ 1.10" if device == "cuda" else target)


def _shape(shape: tuple[int, ...], dtype: torch.dtype, device: str, target: str) -> Iterator[Finding]:
    flat = len(shape) == 2
    ours, reference = (DiminishingBatchNorm1d, nn.BatchNorm1d) if flat else (DiminishingBatchNorm2d, nn.BatchNorm2d)
    x = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
    g = torch.randn(shape, dtype=dtype, device=device)
    peer = reference(shape[1], device=device)
    layers = {
        f"{s}{'' if grad else ', no stats_grad'}": ours(shape[1], 0.1, train_stats=s, stats_grad=grad, device=device)
        for s, grad in AXES
    }
    times = by_turns({"peer": _step(peer, x, g)} | {name: _step(layer, x, g) for name, layer in layers.items()})
    kind = str(dtype).removeprefix("torch.")
    for name in layers:
        yield ratio("layer", f"{shape} {kind}, {name}, over nn.BatchNorm", times[name], times["peer"], target)


def _step(layer: nn.Module, x: Tensor, g: Tensor) -> Callable[[], None]:
    def step() -> None:
        layer(x).backward(g)
        x.grad = None

    return step
