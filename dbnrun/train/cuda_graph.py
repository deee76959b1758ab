"""A training step as a captured CUDA graph: a device is told once what to do, and then only when.

A small network's step is some hundred kernels of a few microseconds each. Launched one by one from Python they leave
the device waiting; a replayed graph does not. It runs the same kernels on the same memory, so the numbers are the same.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

WARM_UP = 3  # steps before the capture: libraries choose their kernels, optimizers make their state


class Replayed:
    """A training step that reads and writes device memory alone, replayed from its fourth call on.

    Every call is one real step, the first three run as written and the others by replaying what the fourth captured.
    What the step does on the host happens in those four calls only; `optimizer`'s counters, where it keeps them on
    the host (Adagrad), are moved by hand. `generators` are those that the step draws from.
    """

    def __init__(
        self, step: Callable[[], None], generators: Sequence[Generator], optimizer: torch.optim.Optimizer
    ) -> None:
        self.step = step
        self.generators = generators
        self.optimizer = optimizer
        self.calls = 0
        self.replay: Callable[[], None] | None = None
        self.counters: list[Tensor] = []

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= WARM_UP:
            run_aside(self.step)
        elif self.replay is None:
            self.replay = capture(self.step, self.generators)  # counts on the host, computes nothing
            self.counters = host_counters(self.optimizer)
            self.replay()
        else:
            self.replay()
            for counter in self.counters:
                counter.add_(1)


def host_counters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The optimizer's distinct update counters that lie on the host."""
    counters = [state["step"] for state in optimizer.state.values() if "step" in state]
    return list({id(counter): counter for counter in counters if counter.device.type == "cpu"}.values())


@functools.cache
def _aside() -> torch.cuda.Stream:
    """One stream for all: cuBLAS keeps a workspace for every stream that it has met."""
    return torch.cuda.Stream()


def run_aside(step: Callable[[], None]) -> None:
    """Run a step on another stream than the current one, as those before a capture must be."""
    aside = _aside()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step()
    torch.cuda.current_stream().wait_stream(aside)


def capture(step: Callable[[], None], generators: Sequence[Generator]) -> Callable[[], None]:
    """Record what `step` asks of the device, without doing it; return what does it, on the current stream."""
    gc.collect()  # no graph of an earlier run may be destroyed during the capture
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)  # each replay draws on
    with torch.cuda.graph(graph):
        step()
    return graph.replay
