"""Every network, normalizer and optimizer trains on a device that computes shapes and no numbers: no device is needed.

A step is taken by the project's own code, from the building of a cell to the rows of an epoch, and replayed as a
captured graph would be.
"""

import copy
import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from fake_device import DEVICE, FakeDevice, HostNeededError, built, compiler, fake_device
from torch import nn

import gpu_check
from dbnrun.config import registry
from dbnrun.config.compose import composed
from dbnrun.config.own import Own
from dbnrun.config.schema import RunConfig
from dbnrun.norm.tracking import share_weights, track_schedules
from dbnrun.runner.build import build_cell, training_of
from dbnrun.runner.memory import step_bytes
from dbnrun.train import cuda_graph

QUICK = ["dataset=digits", "train.epochs=1", "train.limit_batches=3", "train.limit_eval=100", "device=cuda"]


CPU = torch.device("cpu")


def choices(group: str) -> list[str]:
    """The names of a group's choices but for a user's own, which no graph captures."""
    return [name for name, kind in registry.of(group).items() if not issubclass(kind, Own)]


MODELS = {"cnn": ["model.widths=[2,3,4,3,6]"], "torchvision": ["model.arch=resnet18"]}
NORMS = {name: {} for name in choices("norm")} | {
    "dbn along one run": {"train_stats": "batch"},
    "dbn constant statistics": {"stats_grad": False},
    "dbn var": {"average": "var", "eps_at": "var"},
    "dbn inv_std": {"average": "inv_std"},
}
BESIDES = {
    "": [],
    "bf16": ["precision=bf16"],
    "augmented": ["dataset.augment=flip_crop"],
    "rates that change": ["lr_schedule=cosine", "train.label_smoothing=0.1"],
}
HARMONIC = {"schedule": registry.make("schedule", "harmonic")}
SCHEDULES = (
    HARMONIC,
    {"schedule": registry.make("schedule", "constant", alpha=0.1)},
    {"schedule": registry.make("schedule", "inverse_square", unit="epoch")},
)
# Runs, and of each the cells that share it, by what they have of their own.
WAYS = {
    "alone": [[{}]],
    "stacked": [[{}], [{"seed": 1, **HARMONIC}], [{"seed": 1, "lr": 0.02}]],
    "following": [SCHEDULES],
    "stacked and following": [[{"seed": seed, **own} for own in SCHEDULES] for seed in (0, 1)],
}
FACTORS = (choices("model"), list(NORMS), choices("optimizer"), list(WAYS), list(BESIDES))


def norm_of(case: str) -> registry.Choice:
    return registry.make("norm", case.split(maxsplit=1)[0], **NORMS[case])


def possible(model: str, norm: str, optimizer: str, way: str, _besides: str) -> bool:
    if (model, norm) == ("torchvision", "frn"):
        return False  # FRN refuses the 1x1 maps that a ResNet-18 makes of digits
    made = norm_of(norm)
    if "following" in way and not made.shares_runs:
        return False
    stacks = made.stacks and registry.of("model")[model].stacks and registry.of("optimizer")[optimizer].stacks
    return stacks or "stacked" not in way


def pairwise() -> list[tuple[str, ...]]:
    """Few combinations, with every possible pair of choices in at least one."""
    pairs = lambda combination: set(itertools.combinations(enumerate(combination), 2))  # noqa: E731
    every = [combination for combination in itertools.product(*FACTORS) if possible(*combination)]
    random.Random(0).shuffle(every)
    left = set().union(*map(pairs, every))
    taken = []
    for least in range(10, 0, -1):
        for combination in every:
            if len(found := pairs(combination) & left) >= least:
                taken.append(combination)
                left -= found
    assert not left
    return taken


@pytest.fixture(scope="session")
def library(pytestconfig, tmp_path_factory):
    if torch.version.cuda is not None:
        pytest.skip("this torch is built for CUDA: a fake device cannot take the place of its own")
    if compiler() is None:
        pytest.skip("needs a C++ compiler (Debian: apt install g++; or name one in CXX)")
    cache = getattr(pytestconfig, "cache", None)  # absent where pytest is told to keep none
    return built(cache.mkdir("fake_device") if cache else tmp_path_factory.mktemp("fake_device"))


@pytest.fixture
def device(library, monkeypatch) -> Iterator[FakeDevice]:
    """The fake device; a replayed step runs on it without the host, and its capture is counted as `captures`."""
    with fake_device(library) as fake:
        fake.captures = 0

        def aside(step):
            with fake.alone():
                step()

        def capture(step, _generators):
            fake.captures += 1
            aside(step)
            return lambda: None

        monkeypatch.setattr(cuda_graph, "WARM_UP", 1)  # the first step; the second is captured, the third replayed
        monkeypatch.setattr(cuda_graph, "run_aside", aside)
        monkeypatch.setattr(cuda_graph, "capture", capture)
        yield fake


def varied(config: RunConfig, lr: float | None = None, **own) -> RunConfig:
    config = replace(copy.deepcopy(config), **own)
    for group in config.optimizer.groups.values():
        group.lr = lr or group.lr
    return config


def runs_of(way: str, *overrides: str):
    """The built cells of each run, and the data."""
    common = composed([*QUICK, *overrides])
    runs = [[varied(common, **own) for own in cells] for cells in WAYS[way]]
    data = runs[0][0].dataset.load(None).to(DEVICE)
    cells = [[build_cell(config, data, DEVICE) for config in configs] for configs in runs]
    for leader, *followers in cells:
        for follower in followers:
            share_weights(leader.model, follower.model)
        track_schedules(leader.model, [follower.model for follower in followers])
    return cells, data


@pytest.mark.parametrize("combination", pairwise(), ids=", ".join)
def test_an_epoch_on_the_device_needs_its_host_at_the_end_alone(device, combination):
    model, norm, optimizer, way, besides = combination
    options = [f"norm.{key}={value}" for key, value in NORMS[norm].items()]
    words = [f"model={model}", f"norm={norm.split()[0]}", f"optimizer={optimizer}", *MODELS.get(model, []), *options]
    cells, data = runs_of(way, *words, *BESIDES[besides])
    (rows,) = training_of(cells, data, captured=True).epochs()
    assert [[row.step for row in own] for own in rows] == [[3] * len(own) for own in cells]
    assert device.captures == 1
    for cell in itertools.chain.from_iterable(cells):
        assert all(value.device == DEVICE for value in cell.model.state_dict().values())
    assert all(int(counter) == 3 for counter in cuda_graph.host_counters(cells[0][0].optimizer))


@pytest.mark.parametrize("way", ["alone", "stacked"])
@pytest.mark.parametrize("optimizer", choices("optimizer"))
def test_a_cell_goes_on_there_from_a_checkpoint_of_the_cpu(device, optimizer, way):
    words = [f"optimizer={optimizer}", "norm=dbn", "train.epochs=2"]
    cells, data = runs_of(way, *words)
    for (cell,) in cells:
        on_host = cell.config.dataset.load(None)
        before = build_cell(cell.config, on_host, CPU)
        next(training_of([[before]], on_host).epochs())
        cell.restore(before.state(1))
    (rows,) = training_of(cells, data, captured=True, epochs_done=1).epochs()
    assert [row.step for (row,) in rows] == [6] * len(cells) and device.captures == 1
    for (cell,) in cells:
        assert all(value.device == DEVICE for value in cell.model.state_dict().values())
        states = [state for own in cell.optimizer.state.values() for state in own.items()]
        # Where each optimizer's own kernels read it there: Adam's counter on the device, AdaGrad's on the host.
        assert all(
            value.device == (CPU if (optimizer, key) == ("adagrad", "step") else DEVICE) for key, value in states
        )


class Mistaken(nn.Module):
    """A normalizer with a tensor that is neither parameter nor buffer, so that no `to` moves it."""

    def __init__(self, features: int, use) -> None:
        super().__init__()
        self.host, self.use = torch.ones(features), use

    def forward(self, x):
        return self.use(x, self.host)


HELD, READ, COUNTED = r"a tensor of the host, of shape \(20,\)", "the host reads a number", "shape depends on the data"
MISTAKES = {
    "a tensor on the host": (lambda x, host: x * host, HELD),
    "a number on the host": (lambda x, host: x * host.mean(), r"a tensor of the host, of shape \(\)"),
    "a table on the host": (lambda x, host: x * host[torch.arange(20, device=x.device)], HELD),
    "a copy to the device": (lambda x, host: x * host.to(x.device), HELD),
    "a copy to the host": (lambda x, host: x * len(x.detach().cpu()), "the host takes a copy"),
    "item()": (lambda x, host: x / x.detach().max().item(), READ),
    "a branch": (lambda x, host: x / 2 if (x > 1).any() else x, READ),
    "nonzero()": (lambda x, host: x / len(x.detach().nonzero()), COUNTED),
    "a mask": (lambda x, host: x - x[x > 0].mean(), "indexing by a mask"),
    "a mask to write by": (lambda x, host: x.index_put((x > 0,), x.detach().max()), "indexing by a mask"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_normalizer_that_needs_the_host_in_a_step_is_refused_by_what_it_does(device, mistake, monkeypatch):
    use, message = MISTAKES[mistake]
    monkeypatch.setattr(registry.of("norm")["bn"], "build", lambda _options, features, *_: Mistaken(features, use))
    cells, data = runs_of("alone", "model.widths=[20,20]", "norm=bn")
    with pytest.raises(HostNeededError, match=message):
        list(training_of(cells, data, captured=True).epochs())


def test_a_table_of_the_host_takes_no_index_of_the_device_in_evaluation_either(device):
    index = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    with pytest.raises(RuntimeError, match="on the same device"):
        torch.ones(5)[index]
    assert torch.ones(5, device=DEVICE)[torch.zeros(3, dtype=torch.int64)].device == DEVICE


def test_the_memory_of_a_step_is_measured_on_the_device_as_on_the_cpu(device):
    config = composed([*QUICK, "norm=none"])
    data = config.dataset.load(None)
    on_cpu = step_bytes(config, data, torch.device("cpu"))
    assert step_bytes(config, data.to(DEVICE), DEVICE) == on_cpu > 0


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_the_check_of_a_gpu_takes_captured_steps_there(device, seeds):
    config = gpu_check.config_of(gpu_check.kinds()["cnn dbn bf16"], "cuda")
    losses = gpu_check.steps([replace(config, seed=seed) for seed in seeds], DEVICE, 3, captured=True)
    assert losses.shape == (3, len(seeds)) and losses.device == CPU and device.captures == 1


def test_after_the_fake_device_there_is_none(library):
    with fake_device(library):
        assert torch.ones(1, device=DEVICE).device == DEVICE
    x = torch.ones(2, requires_grad=True)
    x.sum().backward()
    assert torch.equal(x.grad, torch.ones(2))
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.Generator("cuda")
    with pytest.raises(AssertionError, match="CUDA"):
        torch.ones(1, device=DEVICE)
