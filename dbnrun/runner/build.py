"""From a configuration to what trains: device, data, network, optimizer and random generators, and their training."""

from __future__ import annotations

import functools
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dbnrun import interrupt
from dbnrun.config import registry
from dbnrun.config.registry import UserError
from dbnrun.config.schema import RunConfig
from dbnrun.data.dataset import Data
from dbnrun.models.layers import Network
from dbnrun.norm.options import Normalizers, RunFacts
from dbnrun.norm.schedules import Alpha
from dbnrun.optim.groups import build_optimizer, load_state
from dbnrun.runs.probe import ProbeRow
from dbnrun.train import eager
from dbnrun.train.compile import check_compiler
from dbnrun.train.evaluate import Member
from dbnrun.train.loop import Alone, Training, TrainingRun, steps_per_epoch
from dbnrun.train.probe import probe
from dbnrun.train.rng import Rngs, stream
from dbnrun.train.stack.program import Stacked
from dbnrun.train.sums import EpochProgress


@dataclass(frozen=True)
class Cell:
    """The built parts of one cell, on its device."""

    config: RunConfig
    model: Network
    optimizer: torch.optim.Optimizer
    rngs: Rngs
    schedule: Alpha
    normalizers: Sequence[torch.nn.Module]  # those that were built for the model

    def member(self) -> Member:
        return Member(self.model, self.schedule if self.config.norm.scheduled else None)

    def state(self, epoch: int, under_way: EpochProgress | None = None) -> dict[str, Any]:
        """Where everything stands after `epoch` epochs, and so much of the next one, for a checkpoint."""
        return {
            "epoch": epoch,
            "under_way": None if under_way is None else asdict(under_way),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "streams": self.rngs.state(),
        }

    def probe(self, epoch: int, data: Data) -> list[ProbeRow]:
        """What passes through its normalizers at the end of an epoch."""
        train = self.config.train
        return probe(self.model, self.normalizers, data, train.batch_size, train.label_smoothing, epoch)

    def restore(self, state: dict[str, Any]) -> None:
        """Put everything back to where a checkpoint was taken."""
        self.model.load_state_dict(state["model"])
        load_state(self.optimizer, state["optimizer"])
        self.rngs.restore(state["streams"])


def prepare_device(config: RunConfig) -> torch.device:
    """Set threads, determinism and matrix precision as configured; return the device to train on."""
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no CUDA device here; use device=cpu or device=auto.")
    if kind == "cpu" and config.precision == "tf32":
        raise UserError("precision=tf32 needs a CUDA device, and torch sees none; use fp32 or bf16.")
    if config.compile:
        check_compiler(config.model.name, kind)
    if config.threads:
        torch.set_num_threads(config.threads)
    deterministic = kind == "cpu" if config.deterministic == "auto" else bool(config.deterministic)
    if deterministic and kind == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by torch's deterministic matmul
    eager.use_deterministic_algorithms(deterministic, compiled=config.compile)
    # A debugging aid that costs a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    return torch.device(kind)


@functools.lru_cache(maxsize=1)
def _load(key: str, data_dir: Path, device: torch.device, _digest: str) -> Data:
    return registry.make("dataset", **json.loads(key)).load(data_dir).to(device)


def load_data(config: RunConfig, device: torch.device) -> Data:
    """The data on the device; cells of a sweep that stand on the same data share one copy."""
    data_dir = Path(config.data_dir)
    data = _load(json.dumps(asdict(config.dataset)), data_dir, device, config.dataset.digest_in(data_dir))
    interrupt.check()
    return data


def build_cell(config: RunConfig, data: Data, device: torch.device) -> Cell:
    """Model, optimizer, schedule and streams of a cell. Raises UserError where they do not fit the data."""
    if config.train.batch_size > len(data.train):
        raise UserError(
            f"train.batch_size={config.train.batch_size}: dataset {config.dataset.name} has {len(data.train)} "
            "training records after the validation split; choose a smaller batch."
        )
    steps = steps_per_epoch(len(data.train), config.train)
    schedule = config.schedule.of_steps(steps)
    rngs = Rngs.of(config.seed, device)
    facts = RunFacts(schedule, steps, config.train.epochs, config.train.batch_size)
    norm = Normalizers(config.norm, facts, stream(config.seed, "norm").initial_seed())
    model = config.model.build(data.input_shape, data.num_classes, norm, rngs.dropout)
    model.initialize(rngs.init)
    if config.norm.normalizes and not norm.built:
        raise UserError(
            f"model={config.model.slug}: it has no place for norm={config.norm.name}; expected batch norms, such as "
            "nn.BatchNorm2d, or a parameter `norm` that it calls as norm(features, spatial). Networks with neither "
            "train with norm=none."
        )
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload] # convolutions only; faster
    compiled = config.compile and not config.lr_schedule.varies  # an update whose rates change is not compiled
    optimizer = build_optimizer(config.optimizer, model, compiled, norm.built)
    return Cell(config, model, optimizer, rngs, schedule, norm.built)


def training_of(built: Sequence[Sequence[Cell]], data: Data, **how: Any) -> Training:
    """The training of several runs, ordered by seed, each given by the cells that share it; `how` as in Training."""
    config = built[0][0].config
    runs = [TrainingRun(c[0].model, c[0].optimizer, c[0].rngs, [cell.member() for cell in c]) for c in built]
    program = Alone(runs[0]) if len(runs) == 1 else Stacked(runs, [cells[0].config.seed for cells in built])
    settings = {
        "precision": config.precision,
        "augment": config.dataset.augmentation,
        "lr_schedule": config.lr_schedule,
        "compiled": config.compile,
    }
    return Training(program, runs, data, config.train, **settings, **how)


def captured(config: RunConfig, device: torch.device) -> bool:
    """Whether training steps are replayed as a captured graph."""
    return config.cuda_graphs and device.type == "cuda" and not config.own  # a user's own code may wait for the host


def device_facts(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """What the manifest says of how a run computes: results match up to rounding where these differ."""
    cuda = device.type == "cuda"
    return {
        "threads": torch.get_num_threads(),
        "compile": config.compile,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
    }
