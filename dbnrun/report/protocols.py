"""The names of what is compared: the ways of using lambda, the data sets, and the knobs of the sensitivity runs."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from dbnrun import choices
from dbnrun.config import norm_label

DATASETS = {name: kind.label for name, kind in choices.of("dataset").items()}
PAPER_DATASETS = ("mnist", "ni", "cifar10")
TEST_RECORDS = {name: kind.test_records for name, kind in choices.of("dataset").items()}

PROTOCOLS = {
    "dbn_inference": "batch statistics in training, λ at test",
    "dbn": "λ in training and test (Algorithm 1)",
    "dbn, stats_grad=false": "λ in training and test, held constant in the gradient",
    "": "",
}
LETTERS = {"dbn_inference": "A", "dbn": "B", "dbn, stats_grad=false": "C"}

PEER_NAMES = {name: kind.label for name, kind in choices.of("norm").items() if not kind.scheduled}

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
    name: {key: value for key, value in choices.defaults_of(kind).items() if key not in PROTOCOL_AXES}
    for name, kind in choices.of("norm").items()
}


def protocol_of(norm: Mapping[str, Any]) -> str:
    """'' for the peers (bn, ln, …); else how training uses lambda, a key of PROTOCOLS or a name like one."""
    if norm["name"] != "dbn":
        return ""
    name = "dbn_inference" if norm["train_stats"] == "batch" else "dbn"
    return name if norm["stats_grad"] else f"{name}, stats_grad=false"


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


def schedule_key(cell: Mapping[str, Any]) -> str:
    """'0.25', '1/m steps', '1/m^2 epochs', …; a peer's name where there is no schedule."""
    schedule = cell.get("schedule")
    if schedule is None:
        return norm_label(cell)
    if schedule["name"] == "constant":
        return number_text(schedule["alpha"])
    if schedule["name"] == "power":
        return f"m^-{number_text(schedule['exponent'])} {schedule['unit']}s"
    return {"harmonic": "1/m", "inverse_square": "1/m^2"}[schedule["name"]] + f" {schedule['unit']}s"


def name_of(key: str) -> str:
    """'α = 0.25', '1/m (steps)', 'BN (PyTorch)', … from a `schedule_key`."""
    if key in PEER_NAMES:
        return PEER_NAMES[key]
    if key[0].isdigit() and "/" not in key:
        return f"α = {key}"
    name, _, unit = key.partition(" ")
    return f"{name.replace('^2', '²')} ({unit})" if unit else name


def number_text(value: float) -> str:
    """Short where that loses nothing, so that two values never share a text."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
