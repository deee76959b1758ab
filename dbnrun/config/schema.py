"""The schema of a configuration and its checks.

The options of what one can choose, and their defaults, stand in each group's options.py; conf/ states what every run
has. Imports nothing heavy, so that a command can be refused before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from dbnrun.config import registry
from dbnrun.config.registry import GROUPS, Choice, UserError, check_option, in_range, one_of, option
from dbnrun.data.options import Dataset
from dbnrun.models.options import Model
from dbnrun.norm.options import Norm
from dbnrun.norm.schedules import Schedule
from dbnrun.optim.options import Optimizer
from dbnrun.optim.schedules import LRSchedule

LOGGERS = ("none", "tensorboard", "trackio", "wandb", "mlflow")


@dataclass
class TrainConfig:
    """The keys train.*: how long a run trains, and on how much data."""

    epochs: int = MISSING
    batch_size: int = MISSING
    limit_batches: int | None = None
    eval_every: int = 1
    limit_eval: int | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        in_range("train.epochs", self.epochs, 1)
        # A batch of one has no variance to normalize by.
        in_range("train.batch_size", self.batch_size, 2)
        if self.limit_batches is not None:
            in_range("train.limit_batches", self.limit_batches, 1)
        in_range("train.eval_every", self.eval_every, 1)
        if self.limit_eval is not None and self.limit_eval < self.batch_size:
            raise UserError(
                f"train.limit_eval={self.limit_eval}: expected at least train.batch_size={self.batch_size}; the "
                "population statistics need one full training batch."
            )
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"train.label_smoothing={self.label_smoothing:g}: expected a number of at least 0, below 1."
            )


@dataclass
class CheckpointConfig:
    """The keys checkpoint.*: how often a run is saved."""

    minutes: float = MISSING

    def __post_init__(self) -> None:
        in_range("checkpoint.minutes", self.minutes, 0)


@dataclass
class RunConfig:
    """Everything that a user can set for a run."""

    dataset: Dataset = MISSING
    model: Model = MISSING
    norm: Norm = MISSING
    schedule: Schedule = MISSING
    optimizer: Optimizer = MISSING
    lr_schedule: LRSchedule = MISSING
    train: TrainConfig = MISSING
    seed: int = MISSING
    precision: str = option(among=("fp32", "tf32", "bf16"))
    deterministic: Any = option(among=("auto", True, False))
    device: str = option(among=("auto", "cpu", "cuda"))
    threads: int | None = None
    compile: bool = MISSING
    cuda_graphs: bool = MISSING
    data_dir: str = MISSING
    results_dir: str = MISSING
    checkpoint: CheckpointConfig = MISSING
    retry: str | None = None
    force: bool = MISSING
    fail_fast: bool = MISSING
    skip_recorded: bool = MISSING
    save_weights: bool = MISSING
    progress: bool = MISSING
    theory: bool = MISSING
    probe: bool = MISSING
    logger: str = option(among=LOGGERS)
    plugins: list[str] = MISSING
    debug: bool = MISSING

    def __post_init__(self) -> None:
        in_range("seed", self.seed, 0, 2**63 - 1)
        for each in fields(self):
            check_option(each.name, getattr(self, each.name), each.metadata)
        if self.device == "cpu" and self.precision == "tf32":
            raise UserError("precision=tf32 needs a CUDA device; with device=cpu use fp32 or bf16.")
        for key in ("results_dir", "data_dir"):
            if not getattr(self, key).strip() or not getattr(self, key).isprintable():
                raise UserError(f"{key}={getattr(self, key)!r}: expected the name of a folder.")
        if self.retry is not None:
            one_of("retry", self.retry, ("failed", "diverged"))
            if self.force:
                raise UserError(
                    f"retry={self.retry}, force=true: force trains every finished run again; leave one out."
                )
        if self.threads is not None:
            in_range("threads", self.threads, 1, 1024)
        self.lr_schedule.check_epochs(self.train.epochs)
        if self.model.needs_images and not self.dataset.images:
            images = ", ".join(name for name, kind in registry.of("dataset").items() if kind.images)
            raise UserError(
                f"model={self.model.name} expects images and dataset={self.dataset.name} has plain features: "
                f"use model=fnn, or one of {images}."
            )

    @property
    def own(self) -> dict[str, Choice]:
        """The choices that run code of the user's own, by group."""
        return {group: choice for group in GROUPS if (choice := getattr(self, group)).code}


def store_schema(folders: Iterable[Path] = ()) -> None:
    """Let Hydra know the schema, and the options of every choice as base_<name> of its group.

    A plugin's choice without a YAML file, here or in `folders`, is stored under its name, too.
    """
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig)
    known = registry.files(folders)
    for group in GROUPS:
        for name, kind in registry.of(group).items():
            node = OmegaConf.structured(kind)
            node.name = name
            for stored in (f"base_{name}", *([] if name in known[group] else [name])):
                store.store(group=group, name=stored, node=node)


def checked(cfg: DictConfig) -> RunConfig:
    """The typed, range-checked configuration. Raises UserError with one line for the first fault."""
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, RunConfig), "conf/config.yaml must list the schema first in its defaults"
    for group in GROUPS:
        choice = getattr(config, group)
        if "options" in vars(choice).keys() - {each.name for each in fields(choice)}:  # added by the user
            own = f"{group}=custom {group}.target=FILE.py:NAME"
            raise UserError(f"{group}.options: {group}={choice.name} takes none; they are for your own class: {own}.")
    return config


def known_keys() -> list[str]:
    """Every dotted key that the schema knows, for the check of what a user typed."""
    nested: dict[str, list[Any]] = {"train": [TrainConfig], "checkpoint": [CheckpointConfig]}
    nested |= {group: list(registry.of(group).values()) for group in GROUPS}
    keys = []
    for each in fields(RunConfig):
        below = [option.name for kind in nested.get(each.name, []) for option in fields(kind)]
        keys += [each.name, *(f"{each.name}.{name}" for name in dict.fromkeys(below))]
    return keys
