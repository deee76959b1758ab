"""A training step of a cell, over its matrix products alone and over what a user would otherwise write."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import Finding
from bench.subjects import BATCH, cell, compiles, synthetic
from bench.timing import by_turns, ratio
from dbnrun.data.dataset import Data
from dbnrun.runner.build import training_of
from dbnrun.train import cuda_graph
from dbnrun.train.loop import Training

RECORDS = 10_000


def measure(device: str) -> Iterator[Finding]:
    yield from _mnist(device)
    yield from _cifar10(device)


def _mnist(device: str) -> Iterator[Finding]:
    data = synthetic("mnist", RECORDS, device)
    subjects = {norm: ours(data, device, "dataset=mnist", f"norm={norm}") for norm in ("bn", "dbn", "dbn_inference")}
    if device == "cuda":
        subjects |= {
            f"{norm}, captured": ours(data, device, "dataset=mnist", f"norm={norm}", replayed=True) for norm in subjects
        }
    elif compiles():
        subjects |= {
            f"{norm}, compile=true": ours(data, device, "dataset=mnist", f"norm={norm}", "compile=true")
            for norm in subjects
        }
    others = {"floor": floor([784, 300, 300, 10], device), "eager": _eager(mlp().to(device), data)}
    if device == "cpu":
        others["loader"] = _loader(mlp(), data)
    times = by_turns(subjects | others, least=0.2)
    for norm in subjects:
        target = "≤ 2.2" if device == "cpu" else ""
        yield ratio(
            "cell", f"MNIST FNN step, norm={norm}, over its matrix products", times[norm], times["floor"], target
        )
    for name in ("bn", "bn, compile=true", "bn, captured"):
        if name in times:
            what = f"MNIST FNN step, norm={name}, over a plain eager loop on resident tensors"
            yield ratio("cell", what, times[name], times["eager"])
    if "loader" in times:
        what = "a DataLoader with per-sample transforms, over our MNIST FNN step, norm=bn"
        yield ratio("cell", what, times["loader"], times["bn"], "≥ 3.5")
    if device == "cpu":
        yield from _over_lightning(data)


def _over_lightning(data: Data) -> Iterator[Finding]:
    """Where PyTorch Lightning is installed: an epoch of its Trainer over one of our loop."""
    if importlib.util.find_spec("lightning") is None:
        print("cell   PyTorch Lightning is not installed, so not compared: pip install lightning")
        return
    from bench.lightning_loop import fit

    steps = len(data.train) // BATCH
    step = ours(data, "cpu", "dataset=mnist", "norm=bn")

    def epoch() -> None:
        for _ in range(steps):
            step()

    subjects = {"bare": fit(mlp(), images(data)), "template": fit(mlp(), images(data), template=True), "ours": epoch}
    times = by_turns(subjects, rounds=5, least=0.05)
    what = f"PyTorch Lightning, {steps} steps over ours, MNIST FNN, norm=bn"
    yield ratio("cell", f"{what}, its Trainer bare", times["bare"], times["ours"])
    what += ", as templates use it (metrics, progress bar, CSV logger, checkpoint)"
    yield ratio("cell", what, times["template"], times["ours"], "≥ 6")


def _cifar10(device: str) -> Iterator[Finding]:
    data = synthetic("cifar10", 1000, device)
    subjects = {
        precision: ours(data, device, "dataset=cifar10", "norm=bn", f"precision={precision}")
        for precision in ("fp32", "bf16")
    }
    subjects["eager"] = _eager(_convnet().to(device), data)
    times = by_turns(subjects, rounds=5, least=0.3)
    for precision, target in (("fp32", "≤ 0.88"), ("bf16", "≤ 0.50")):
        what = f"CIFAR-10 CNN step, norm=bn, {precision}, over a plain eager float32 NCHW loop"
        yield ratio("cell", what, times[precision], times["eager"], target if device == "cpu" else "")


def ours(data: Data, device: str, *overrides: str, replayed: bool = False) -> Callable[[], object]:
    """A training step of a cell, as the runner does it."""
    return updates(training_of([[cell(data, device, *overrides)]], data, captured=replayed))


def updates(training: Training) -> Callable[[], None]:
    """The updates of a training, one a call, with new orders of the records as often as needed."""
    done = itertools.count()
    for run in training.runs:
        run.model.train()

    def step() -> None:
        if next(done) % training.steps == 0:
            training.sampler.shuffle([torch.randperm(training.records) for _ in training.draws])
        training.update()

    for _ in range(cuda_graph.WARM_UP + 1):  # and the capture, if there is one
        step()
    return step


def floor(widths: list[int], device: str) -> Callable[[], None]:
    """The products of one step: forward, weight gradient, and input gradient but for the first layer."""
    weights = [torch.randn(a, b, device=device) for a, b in pairwise(widths)]
    inputs = [torch.randn(BATCH, a, device=device) for a in widths[:-1]]

    def products() -> None:
        for number, (w, x) in enumerate(zip(weights, inputs, strict=True)):
            y = x @ w
            _ = x.t() @ y
            if number:
                _ = y @ w.t()

    return products


def mlp() -> nn.Module:
    hidden = [nn.Linear(784, 300), nn.BatchNorm1d(300), nn.ReLU(), nn.Linear(300, 300), nn.BatchNorm1d(300), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(300, 10))


def _convnet() -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in pairwise([3, 32, 32, 64, 64]):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        if len(layers) in (6, 14):
            layers += [nn.MaxPool2d(2), nn.Dropout(0.25)]
    head = [nn.Linear(4096, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 10)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def _eager(model: nn.Module, data: Data) -> Callable[[], None]:
    """The loop that anyone would write on resident tensors."""
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01, weight_decay=1e-4)

    def step() -> None:
        index = torch.randint(len(data.train), (BATCH,), device=data.train.x.device)
        _update(model, optimizer, data.train.x[index], data.train.y[index])

    return step


def _loader(model: nn.Module, data: Data) -> Callable[[], None]:
    """The tutorial's way: PIL images, per-sample transforms, a DataLoader in this process."""
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01, weight_decay=1e-4)
    loader = images(data)

    def endless() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    source = endless()

    def step() -> None:
        x, y = next(source)
        _update(model, optimizer, x, y)

    return step


def images(data: Data) -> torch.utils.data.DataLoader[Any]:
    from PIL import Image

    from dbnrun.torchvision_shim import torchvision

    class Images(torch.utils.data.Dataset[Any]):
        pixels = (data.train.x[:, 0].cpu() * 255).to(torch.uint8).numpy()
        transform = torchvision.transforms.Compose(
            [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize((0.1307,), (0.3081,))]
        )

        def __len__(self) -> int:
            return len(self.pixels)

        def __getitem__(self, index: int) -> Any:
            return self.transform(Image.fromarray(self.pixels[index])), int(data.train.y[index])

    return torch.utils.data.DataLoader(Images(), batch_size=BATCH, shuffle=True, drop_last=True)


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
