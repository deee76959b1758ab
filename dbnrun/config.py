"""The schema of a configuration, its checks, and the signature of the cell it describes.

Values come from conf/; this file holds no default that changes a number. Optional fields are the
ones that only some choices of a group take: a choice that takes one must set it, any other must not.
Imports nothing heavy, so that a command can be refused before torch is loaded.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

# Settings that change no number of a run, and so do not enter its signature.
SETTINGS = (
    "results_dir", "data_dir", "device", "threads", "compile", "cuda_graphs", "debug", "progress", "save_weights",
    "checkpoint", "retry", "fail_fast", "skip_recorded", "theory",
)  # fmt: skip

ACTIVATIONS = ("relu", "leaky_relu", "tanh", "sigmoid", "elu", "gelu", "identity")
# What a data set offers to a network: images (C, H, W) or plain features (D,).
IMAGE_DATASETS = ("digits", "mnist", "cifar10")

# Optional fields that each choice takes, by group and name.
DATASET_FIELDS = {"digits": ("augment",), "mnist": ("augment",), "ni": ("features",), "cifar10": ("augment",)}
MODEL_FIELDS = {"fnn": ("norm_position",), "cnn": ("norm_position", "dropout"), "two_layer": ()}
NORM_FIELDS = {
    "bn": ("eps", "affine", "momentum"),
    "dbn": ("eps", "affine", "train_stats", "stats_grad", "average", "eps_at", "init"),
    "ln": ("eps", "affine"),
    "gn": ("eps", "affine", "num_groups"),
    "none": (),
}
SCHEDULE_FIELDS = {"constant": ("alpha",), "harmonic": (), "inverse_square": (), "power": ("exponent",)}
OPTIMIZER_FIELDS = {
    "adagrad": ("eps", "initial_accumulator"),
    "sgd": ("momentum", "nesterov"),
    "adam": ("eps", "betas"),
    "adamw": ("eps", "betas"),
}


class UserError(ValueError):
    """The user's input is refused. One line: what came, what was expected, what to do. Exit code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean …?' for the known word closest to `word`, or '' where none is close."""
    by_lower = {name.lower(): name for name in known}
    match = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1, cutoff=0.5)
    return f" Did you mean {by_lower[match[0]]!r}?" if match else ""


def _one_of(key: str, value: Any, known: Iterable[Any]) -> None:
    known = list(known)
    if value not in known:
        listed = ", ".join(str(k).lower() if isinstance(k, bool) else str(k) for k in known)
        raise UserError(f"{key}={value}: expected one of {listed}.{nearest(value, map(str, known))}")


def _in_range(key: str, value: float, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Refuse a value outside [low, high], or (low, high] where `above`; NaN and infinity always."""
    inside = math.isfinite(value) and (low < value if above else low <= value) and value <= high
    if not inside:
        left = f"a number above {low:g}" if above else f"a number of at least {low:g}"
        span = left if high == math.inf else f"{left}, at most {high:g}"
        raise UserError(f"{key}={value}: expected {span}.")


def _check_choice(group: str, config: Any, takes: Mapping[str, tuple[str, ...]]) -> None:
    """The name is known, and exactly the optional fields it takes are set."""
    _one_of(f"{group}.name", config.name, takes)
    optional = {name for names in takes.values() for name in names}
    for name in sorted(optional):
        value = getattr(config, name)
        if name in takes[config.name] and value is None:
            raise UserError(f"{group}.{name} is missing: {group}={config.name} needs it; set {group}.{name}=….")
        if name not in takes[config.name] and value is not None:
            owners = ", ".join(owner for owner, names in takes.items() if name in names)
            raise UserError(
                f"{group}.{name}={value}: {group} {config.name!r} takes no {name}; "
                f"it belongs to {owners}. Leave it out."
            )


@dataclass
class DatasetConfig:
    name: str = MISSING
    val_size: float = MISSING
    fnn_widths: list[int] = MISSING
    augment: str | None = None
    features: str | None = None

    def __post_init__(self) -> None:
        _check_choice("dataset", self, DATASET_FIELDS)
        _in_range("dataset.val_size", self.val_size, 0, above=True)
        if self.val_size >= 1 and self.val_size != int(self.val_size):
            raise UserError(f"dataset.val_size={self.val_size}: expected a share below 1 or a whole number of records.")
        if self.augment is not None:
            _one_of("dataset.augment", self.augment, ("none", "flip_crop"))
        if self.features is not None:
            _one_of("dataset.features", self.features, ("log", "standard"))


@dataclass
class ModelConfig:
    name: str = MISSING
    widths: list[int] = MISSING
    activation: str = MISSING
    norm_position: str | None = None
    dropout: list[float] | None = None

    def __post_init__(self) -> None:
        _check_choice("model", self, MODEL_FIELDS)
        _one_of("model.activation", self.activation, ACTIVATIONS)
        if self.norm_position is not None:
            _one_of("model.norm_position", self.norm_position, ("before", "after"))
        expected = {"cnn": 5, "two_layer": 1}.get(self.name, len(self.widths))
        if not self.widths or len(self.widths) != expected:
            wanted = f"{expected} widths" if self.widths else "at least one width"
            raise UserError(f"model.widths={self.widths}: model {self.name!r} expects {wanted}.")
        for width in self.widths:
            _in_range("model.widths", width, 1, 65536)
        if self.dropout is not None:
            if len(self.dropout) != 3:
                raise UserError(f"model.dropout={self.dropout}: expected three rates, one a dropout layer.")
            for rate in self.dropout:
                _in_range("model.dropout", rate, 0, 0.999)


@dataclass
class NormConfig:
    name: str = MISSING
    eps: float | None = None
    affine: bool | None = None
    momentum: float | None = None
    num_groups: int | None = None
    train_stats: str | None = None
    stats_grad: bool | None = None
    average: str | None = None
    eps_at: str | None = None
    init: list[float] | None = None

    def __post_init__(self) -> None:
        _check_choice("norm", self, NORM_FIELDS)
        if self.eps is not None:
            _in_range("norm.eps", self.eps, 0, 1, above=True)
        if self.momentum is not None:
            _in_range("norm.momentum", self.momentum, 0, 1)
        if self.num_groups is not None:
            _in_range("norm.num_groups", self.num_groups, 1)
        if self.name == "dbn":
            _one_of("norm.train_stats", self.train_stats, ("lambda", "batch"))
            _one_of("norm.average", self.average, ("std", "var", "inv_std"))
            _one_of("norm.eps_at", self.eps_at, ("std", "var"))
            if not self.init or len(self.init) != 2:
                raise UserError(f"norm.init={self.init}: expected two numbers, mu and sigma.")
            _in_range("norm.init mu", self.init[0], -1e6, 1e6)
            _in_range("norm.init sigma", self.init[1], 0, 1e6)


@dataclass
class ScheduleConfig:
    name: str = MISSING
    unit: str = MISSING
    alpha: float | None = None
    exponent: float | None = None

    def __post_init__(self) -> None:
        _check_choice("schedule", self, SCHEDULE_FIELDS)
        _one_of("schedule.unit", self.unit, ("step", "epoch"))
        if self.alpha is not None:
            _in_range("schedule.alpha", self.alpha, 0, 1)
        if self.exponent is not None:
            _in_range("schedule.exponent", self.exponent, 0, 100)


@dataclass
class GroupConfig:
    pattern: str
    lr: float
    weight_decay: float

    @classmethod
    def of(cls, name: str, given: Any) -> GroupConfig:
        """A group from what the configuration says of it. OmegaConf cannot do it: it refuses to add a typed entry."""
        key = f"optimizer.groups.{name}"
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping) or set(given) != set(known):
            raise UserError(
                f"{key}={given}: expected exactly {', '.join(known)}, such as {{pattern: '*', lr: 0.01, …}}."
            )
        if not isinstance(given["pattern"], str):
            raise UserError(
                f"{key}.pattern={given['pattern']}: expected a glob over parameter names, such as '*.weight'."
            )
        for number in ("lr", "weight_decay"):
            if isinstance(given[number], bool) or not isinstance(given[number], int | float):
                raise UserError(f"{key}.{number}={given[number]}: expected a number.")
            _in_range(f"{key}.{number}", given[number], 0)
        return cls(given["pattern"], float(given["lr"]), float(given["weight_decay"]))


@dataclass
class OptimizerConfig:
    name: str = MISSING
    lr: float = MISSING
    groups: dict[str, Any] = MISSING  # GroupConfig by name, once checked
    eps: float | None = None
    initial_accumulator: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    betas: list[float] | None = None

    def __post_init__(self) -> None:
        _check_choice("optimizer", self, OPTIMIZER_FIELDS)
        _in_range("optimizer.lr", self.lr, 0)
        if not self.groups:
            raise UserError("optimizer.groups is empty: expected at least one group with pattern, lr, weight_decay.")
        self.groups = {
            name: group if isinstance(group, GroupConfig) else GroupConfig.of(name, group)
            for name, group in self.groups.items()
        }
        if self.eps is not None:
            _in_range("optimizer.eps", self.eps, 0)
        if self.initial_accumulator is not None:
            _in_range("optimizer.initial_accumulator", self.initial_accumulator, 0)
        if self.momentum is not None:
            _in_range("optimizer.momentum", self.momentum, 0, 1)
            if self.nesterov and self.momentum == 0:
                raise UserError("optimizer.nesterov=true: expected optimizer.momentum above 0 with it.")
        if self.betas is not None:
            if len(self.betas) != 2:
                raise UserError(f"optimizer.betas={self.betas}: expected two numbers.")
            for beta in self.betas:
                _in_range("optimizer.betas", beta, 0, 0.999999)


@dataclass
class TrainConfig:
    epochs: int = MISSING
    batch_size: int = MISSING
    limit_batches: int | None = None
    eval_every: int = 1
    limit_eval: int | None = None

    def __post_init__(self) -> None:
        _in_range("train.epochs", self.epochs, 1)
        # A batch of one has no variance to normalize by.
        _in_range("train.batch_size", self.batch_size, 2)
        if self.limit_batches is not None:
            _in_range("train.limit_batches", self.limit_batches, 1)
        _in_range("train.eval_every", self.eval_every, 1)
        if self.limit_eval is not None and self.limit_eval < self.batch_size:
            raise UserError(
                f"train.limit_eval={self.limit_eval}: expected at least train.batch_size={self.batch_size}; the "
                "population statistics need one full training batch."
            )


@dataclass
class CheckpointConfig:
    minutes: float = MISSING

    def __post_init__(self) -> None:
        _in_range("checkpoint.minutes", self.minutes, 0)


@dataclass
class RunConfig:
    dataset: DatasetConfig = MISSING
    model: ModelConfig = MISSING
    norm: NormConfig = MISSING
    schedule: ScheduleConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    train: TrainConfig = MISSING
    seed: int = MISSING
    precision: str = MISSING
    deterministic: Any = MISSING
    device: str = MISSING
    threads: int | None = None
    compile: bool = MISSING
    cuda_graphs: bool = MISSING
    data_dir: str = MISSING
    results_dir: str = MISSING
    checkpoint: CheckpointConfig = MISSING
    retry: str | None = None
    fail_fast: bool = MISSING
    skip_recorded: bool = MISSING
    save_weights: bool = MISSING
    progress: bool = MISSING
    theory: bool = MISSING
    debug: bool = MISSING

    def __post_init__(self) -> None:
        _in_range("seed", self.seed, 0, 2**63 - 1)
        _one_of("precision", self.precision, ("fp32", "tf32", "bf16"))
        _one_of("deterministic", self.deterministic, ("auto", True, False))
        _one_of("device", self.device, ("auto", "cpu", "cuda"))
        if self.device == "cpu" and self.precision == "tf32":
            raise UserError("precision=tf32 is a mode of CUDA devices: on device=cpu use fp32 or bf16.")
        for key in ("results_dir", "data_dir"):
            if not getattr(self, key).strip() or not getattr(self, key).isprintable():
                raise UserError(f"{key}={getattr(self, key)!r}: expected the name of a folder.")
        if self.retry is not None:
            _one_of("retry", self.retry, ("failed", "diverged"))
        if self.threads is not None:
            _in_range("threads", self.threads, 1, 1024)
        if self.model.name == "cnn" and self.dataset.name not in IMAGE_DATASETS:
            raise UserError(
                f"model=cnn expects images and dataset={self.dataset.name} has plain features: "
                f"use model=fnn, or one of {', '.join(IMAGE_DATASETS)}."
            )


def checked(cfg: DictConfig) -> RunConfig:
    """The typed, range-checked configuration. Raises UserError with one line for the first fault."""
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, RunConfig), "conf/config.yaml must list the schema first in its defaults"
    return config


def cell_of(config: RunConfig) -> dict[str, Any]:
    """What decides the numbers of a run, as plain data: settings and the keys its choices ignore left out."""
    cell = {key: value for key, value in asdict(config).items() if key not in SETTINGS}
    del cell["dataset"]["fnn_widths"]  # only the default of model.widths
    del cell["optimizer"]["lr"]  # only the default of each group's lr
    if config.norm.name != "dbn":
        del cell["schedule"]
    elif config.schedule.name == "constant":
        del cell["schedule"]["unit"]
    if config.norm.average == "inv_std":
        del cell["norm"]["eps_at"]
    # Beyond the last epoch nothing is left to skip. Every epoch is the default, and older than the key.
    cell["train"]["eval_every"] = min(config.train.eval_every, config.train.epochs)
    if cell["train"]["eval_every"] == 1:
        del cell["train"]["eval_every"]
    return _without_none(cell)


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }


def signature(cell: Mapping[str, Any], data_digest: str) -> str:
    """Eight hexadecimal digits of SHA-256 over the cell and the data it stands on."""
    # Group order decides which pattern wins, and sorted keys would hide it.
    groups = list(cell["optimizer"]["groups"])
    text = json.dumps([cell, groups, data_digest], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def norm_label(cell: Mapping[str, Any]) -> str:
    """bn, ln, gn, none, dbn, or dbn_inference (batch statistics in training, lambda for inference)."""
    inference = cell["norm"].get("train_stats") == "batch"
    return "dbn_inference" if inference else cell["norm"]["name"]


def schedule_label(cell: Mapping[str, Any]) -> str:
    """'alpha0.25', 'harmonic', 'power1.5', 'harmonic_epoch', …; '' where a schedule means nothing."""
    schedule = cell.get("schedule")
    if schedule is None:
        return ""
    number = {"constant": "alpha", "power": "exponent"}.get(schedule["name"])
    name = "alpha" if schedule["name"] == "constant" else schedule["name"]
    value = f"{schedule[number]:g}" if number else ""
    return name + value + ("_epoch" if schedule.get("unit") == "epoch" else "")


def readable_name(cell: Mapping[str, Any]) -> str:
    """A name for people, such as 'mnist-fnn-dbn-alpha0.25-seed0'; the signature makes it unique."""
    parts = [cell["dataset"]["name"], cell["model"]["name"], norm_label(cell), schedule_label(cell)]
    return "-".join([part for part in parts if part] + [f"seed{cell['seed']}"])


def known_keys(schema: type = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key that the schema knows, for the check of what a user typed."""
    nested = {
        cls.__name__: cls
        for cls in (
            DatasetConfig,
            ModelConfig,
            NormConfig,
            ScheduleConfig,
            OptimizerConfig,
            TrainConfig,
            CheckpointConfig,
        )
    }
    keys: list[str] = []
    for field in fields(schema):
        keys.append(prefix + field.name)
        if str(field.type) in nested:
            keys += known_keys(nested[str(field.type)], f"{prefix}{field.name}.")
    return keys
