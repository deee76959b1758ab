"""The names of what is compared: the ways of using lambda, the data sets, and the knobs of the sensitivity runs."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from dbnrun.config import registry
from dbnrun.config.identity import protocol_of

PAPER_DATASETS = ("mnist", "ni", "cifar10")
LETTERS = {"dbn_inference": "A", "dbn": "B", "dbn, stats_grad=false": "C"}

# What the sensitivity runs vary: the dotted keys (globs) and the value of the paper's runs.
KNOBS: dict[str, tuple[str, Any]] = {
    "l2": ("optimizer.groups.weights.weight_decay", 1e-4),
    "lr": ("optimizer.groups.*.lr", 0.01),
    "norm position": ("model.norm_position", "before"),
    "average": ("norm.average", "std"),
    "features": ("dataset.features", "log"),
}
PROTOCOL_AXES = ("train_stats", "stats_grad", "average")  # what makes a protocol, or is a knob of its own above
ADAGRAD_KNOBS = ("l2", "lr")  # another optimizer's rates are its own, and its cells another setting
# The other options of each normalizer, at their defaults in the paper's runs; one off that is a knob as well.
NORM_AXES: dict[str, dict[str, Any]] = {
    name: {key: value for key, value in registry.defaults_of(kind).items() if key not in PROTOCOL_AXES}
    for name, kind in registry.of("norm").items()
}


def letter(protocol: str) -> str:
    """'A', 'B', 'C', 'other', or 'baselines' for the peers."""
    return LETTERS.get(protocol, "other") if protocol else "baselines"


def knobs_of(cell: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """The knobs that a cell can have: the dotted keys (globs) of each, and the value of the paper's runs."""
    adagrad = cell["optimizer"].get("name") == "adagrad"
    paper = {knob: to for knob, to in KNOBS.items() if adagrad or knob not in ADAGRAD_KNOBS}
    axes = NORM_AXES[cell["norm"]["name"]]
    return paper | {f"{cell['norm']['name']} {key}": (f"norm.{key}", value) for key, value in axes.items()}


def knobs(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each knob that the cell has; several unlike values under one glob make a text."""
    values: dict[str, Any] = {}
    flat = dotted(cell)
    for name, (pattern, _) in knobs_of(cell).items():
        found = [value for key, value in flat.items() if fnmatchcase(key, pattern)]
        found = [value for number, value in enumerate(found) if value not in found[:number]]
        if found:
            values[name] = found[0] if len(found) == 1 else "/".join(map(str, found))
    return values


def turned(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs that stand elsewhere than in the paper's runs: {} for the cells of Table 1."""
    paper = knobs_of(cell)
    return {name: value for name, value in knobs(cell).items() if value != paper[name][1]}


def at_reference(cell: Mapping[str, Any], knob: str) -> dict[str, Any]:
    """The same cell with one knob put back: two cells that differ in it alone become equal."""
    pattern, value = knobs_of(cell)[knob]

    def put(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            key: put(below, f"{prefix}{key}.")
            if isinstance(below, Mapping)
            else (value if fnmatchcase(prefix + key, pattern) else below)
            for key, below in tree.items()
        }

    back = put(cell, "")
    if knob == "average" and cell["norm"].get("average") == "inv_std":
        back["norm"]["eps_at"] = "std"  # a key that inv_std ignores, and so leaves out
    return back


def experiment_of(cell: Mapping[str, Any]) -> str:
    """The records file of a cell, from the cell alone: 'mnist_A', 'ni_baselines', 'mnist_sensitivity', …."""
    kind = "sensitivity" if turned(cell) else letter(protocol_of(cell["norm"]))
    return f"{cell['dataset']['name']}_{kind}"


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
