"""What is measured: cells as the command composes them, on random records of a data set's shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Generator

from dbnrun.config.compose import composed
from dbnrun.config.registry import UserError
from dbnrun.config.schema import RunConfig
from dbnrun.data.dataset import Data, Part
from dbnrun.runner.build import Cell, build_cell, prepare_device
from dbnrun.train import cuda_graph
from dbnrun.train.compile import check_compiler

BATCH = 100
SHAPES = {"mnist": ((1, 28, 28), 10), "ni": ((118,), 5), "cifar10": ((3, 32, 32), 10)}


def synthetic(name: str, train: int, device: str, held_out: int = 100) -> Data:
    """Random records of a data set's shape: `train` to train, `held_out` each for validation and test."""
    shape, classes = SHAPES[name]
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        x = torch.rand(count, *shape, generator=generator)
        return Part(x.to(device), torch.randint(classes, (count,), generator=generator).to(device))

    return Data(part(train), part(held_out), part(held_out), shape, classes, "synthetic")


def config(device: str, *overrides: str) -> RunConfig:
    return composed([f"device={device}", *overrides])


def compiles() -> bool:
    """Whether compile=true works on this CPU."""
    try:
        check_compiler("fnn", "cpu")
    except UserError as error:
        print(error)
        return False
    return True


def captured(
    step: Callable[[], None], generators: Sequence[Generator], optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    """A step that is replayed as a CUDA graph from the first call on."""
    update = cuda_graph.Replayed(step, generators, optimizer)
    for _ in range(cuda_graph.WARM_UP + 1):
        update()
    return update


def cell(data: Data, device: str, *overrides: str) -> Cell:
    return cells(data, device, 1, *overrides)[0]


def cells(data: Data, device: str, count: int, *overrides: str) -> list[Cell]:
    """The same cell with so many seeds, composed once."""
    one = config(device, *overrides)
    on = prepare_device(one)
    return [build_cell(replace(one, seed=one.seed + number), data, on) for number in range(count)]
