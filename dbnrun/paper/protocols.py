"""Names what the paper compares: ways of using lambda, data sets, and the hyperparameters of the sensitivity runs."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from dbnrun.config import registry
from dbnrun.config.identity import name_of_choice, protocol_of
from dbnrun.report.series import dotted
from dbnrun.runs.archive import TRIAL

PAPER_DATASETS = ("mnist", "ni", "cifar10")
LETTERS = {"dbn_inference": "A", "dbn": "B", "dbn, stats_grad=false": "C", "": "baselines"}

# What the sensitivity runs vary: the dotted keys (globs) and the value of the paper's runs.
HYPERPARAMETERS: dict[str, tuple[str, Any]] = {
    "l2": ("optimizer.groups.weights.weight_decay", 1e-4),
    "lr": ("optimizer.groups.*.lr", 0.01),
    "norm position": ("model.norm_position", "before"),
    "average": ("norm.average", "std"),
    "features": ("dataset.features", "log"),
}
PROTOCOL_AXES = ("train_stats", "stats_grad", "average")  # what makes a protocol, or is named above
PAPER_NORMS = ("dbn", "bn", "ln", "gn", "none")  # what the paper's tables hold; other normalizers stand beside them
BATCH_SIZE = 100  # of the paper's runs
ADAGRAD_ONLY = ("l2", "lr")  # another optimizer's rates are its own, and its cells another setting
# The other options of each normalizer, at their defaults in the paper's runs; these are hyperparameters as well.
# A class of the user's own is another normalizer with other options, and none of the paper's.
NORM_AXES: dict[str, dict[str, Any]] = {
    name: {key: value for key, value in registry.defaults_of(kind).items() if key not in PROTOCOL_AXES}
    for name, kind in registry.of("norm").items()
    if name != "custom"
}


def letter(protocol: str) -> str:
    """'A', 'B', 'C' or 'baselines'; the protocol as it is where the paper has no such."""
    return LETTERS.get(protocol, protocol)


def hyperparameters_of(cell: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """The hyperparameters of a cell by name: the dotted keys (globs) of each, and the value of the paper's runs."""
    adagrad = cell["optimizer"].get("name") == "adagrad"
    shared = {name: to for name, to in HYPERPARAMETERS.items() if adagrad or name not in ADAGRAD_ONLY}
    norm = cell["norm"]["name"]
    return shared | {f"{norm} {key}": (f"norm.{key}", value) for key, value in NORM_AXES.get(norm, {}).items()}


def values_of(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each hyperparameter that the cell has; several unlike values under one glob make a text."""
    values: dict[str, Any] = {}
    flat = dotted(cell)
    for name, (pattern, _) in hyperparameters_of(cell).items():
        found = [value for key, value in flat.items() if fnmatchcase(key, pattern)]
        if found:
            alike = all(value == found[0] for value in found)
            values[name] = found[0] if alike else "/".join(dict.fromkeys(map(str, found)))
    return values


def overridden(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters with another value than in the paper's runs: {} for the cells of Table 1."""
    paper = hyperparameters_of(cell)
    return {name: value for name, value in values_of(cell).items() if value != paper[name][1]}


def family_of(cell: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """What cells share that differ in seed, schedule and the hyperparameter `name` alone: that as in the paper."""
    family = dotted({key: value for key, value in cell.items() if key not in ("seed", "schedule")})
    if name:
        pattern, value = hyperparameters_of(cell)[name]
        family |= {key: value for key in family if fnmatchcase(key, pattern)}
    if name == "average" and cell["norm"].get("average") == "inv_std":
        family["norm.eps_at"] = "std"  # inv_std ignores this key, and so leaves it out
    return family


def is_papers(cell: Mapping[str, Any]) -> bool:
    """Whether a cell stands beside the paper's: its data sets, kind of network and optimizer, every hyperparameter."""
    return has_papers_surroundings(cell) and not overridden(cell) and not is_beside(cell)


def has_papers_surroundings(cell: Mapping[str, Any]) -> bool:
    """Whether a cell trains a normalizer of this project as the paper trains its own, but for its hyperparameters."""
    return (
        cell["dataset"]["name"] in PAPER_DATASETS
        and cell["model"]["name"] in ("fnn", "cnn")
        and cell["norm"]["name"] in NORM_AXES
        and cell["optimizer"]["name"] == "adagrad"
        and not {"label_smoothing", *TRIAL} & cell["train"].keys()
        and "lr_schedule" not in cell
    )


def is_beside(cell: Mapping[str, Any]) -> bool:
    """Whether a cell compares normalizers (paper/normalizers.py) and has no place in a table of the paper's.

    It has a normalizer that the paper's tables do not hold, or DBN's gradient through one statistic alone, or is a
    baseline after the activation. The corrections of the paper's tables do not count it.
    """
    norm = cell["norm"]
    if cell["dataset"]["name"] not in PAPER_DATASETS or norm["name"] not in NORM_AXES:
        return False
    is_baseline_after = "schedule" not in cell and "norm position" in overridden(cell)
    return norm["name"] not in PAPER_NORMS or norm.get("stats_grad") in ("mean", "var") or is_baseline_after


def experiment_of(cell: Mapping[str, Any]) -> str:
    """The records file of a cell, from the cell alone: 'mnist_A', 'ni_baselines', 'mnist_normalizers', …."""
    return f"{name_of_choice('dataset', cell['dataset'])}_{_kind(cell)}"


def _kind(cell: Mapping[str, Any]) -> str:
    if is_beside(cell):
        return "normalizers"
    if overridden(cell):
        return "sensitivity"
    if has_papers_surroundings(cell) and cell["train"]["batch_size"] != BATCH_SIZE:
        return "normalizers"
    return LETTERS.get(protocol_of(cell), "other")
