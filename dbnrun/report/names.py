"""What tables and figures call schedules, normalizers, data sets and protocols."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from dbnrun.config import registry
from dbnrun.config.filters import value_text
from dbnrun.config.identity import name_of_choice
from dbnrun.config.registry import GROUPS

DATASETS = {name: kind.label for name, kind in registry.of("dataset").items()}
BASELINES = {name: kind.label for name, kind in registry.of("norm").items() if not kind.scheduled}
PROTOCOLS = {
    "dbn_inference": "batch statistics in training, λ at test",
    "dbn": "λ in training and test (Algorithm 1)",
    "dbn, stats_grad=false": "λ in training and test, held constant in the gradient",
    "": "",
}

# Keys as `schedule_key` spells them, in the order of the paper's Table 1.
ALPHA_ONE, ALPHA_ZERO, MODERN_BN = "1", "0", "bn"
CONSTANTS = ("0.75", "0.5", "0.25", "0.1", "0.01", "0.001")  # 0 < α < 1
UNITS = ("epochs", "steps")  # what m counts; the paper does not say
DIMINISHING = {unit: (f"1/m {unit}", f"1/m^2 {unit}") for unit in UNITS}
SCHEDULES = (ALPHA_ONE, *CONSTANTS, *(f"{name} {unit}" for name in ("1/m", "1/m^2") for unit in UNITS), ALPHA_ZERO)

PEERS = ("bn", "ln", "gn", "none")  # normalizers without a schedule that Table 1 is compared with


def has_colour(key: str) -> bool:
    """Whether figures give a key a colour of its own; the others of a setting take theirs in turn."""
    return alpha_of(key) is not None or key in (*SCHEDULES, *PEERS) or key.startswith("m^-")


def dataset_key(cell: Mapping[str, Any]) -> str:
    """What files call a cell's data set: its name, or that which its user gave a folder of images or a function."""
    dataset = cell["dataset"]
    return (dataset["name"] == "folder" and dataset.get("label")) or name_of_choice("dataset", dataset)


def dataset_of(cell: Mapping[str, Any]) -> str:
    """What people call a cell's data set."""
    key = dataset_key(cell)
    return DATASETS.get(key, key)


def alpha_of(key: str) -> float | None:
    """The α of a constant schedule's key; None for every other key."""
    try:
        return float(key) if key[0].isdigit() else None
    except ValueError:
        return None


def name_of(key: str) -> str:
    """'α = 0.25', '1/m (steps)', 'BN (PyTorch)', … from a `schedule_key`; one that is not known here as it is."""
    if key in BASELINES:
        return BASELINES[key]
    if alpha_of(key) is not None:
        return f"α = {key}"
    name, _, unit = key.partition(" ")
    return f"{name.replace('^2', '²')} ({unit})" if unit in UNITS else key


def differing(made_of: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which runs or methods differ by their options, beside normalizer, schedule and seed.

    What stands below a group is compared among those that chose alike: the widths of two networks say nothing more.
    """
    keys = dict.fromkeys(itertools.chain.from_iterable(made_of))
    found = [key for key in keys if _differs(key, made_of)]
    if "optimizer.lr" in found and all("optimizer.lr" in options for options in made_of):
        found = [key for key in found if not fnmatchcase(key, "optimizer.groups.*.lr")]
    return found


def _differs(key: str, made_of: Sequence[Mapping[str, Any]]) -> bool:
    group, dot, _ = key.partition(".")
    if group == "schedule" or key in ("norm", "seed"):
        return False  # a name says these
    among: dict[str, set[str]] = defaultdict(set)
    for options in made_of:
        choice = str(options.get(group)) if dot and group in GROUPS else ""
        among[choice].add(json.dumps(options.get(key)))
    return any(len(values) > 1 for values in among.values())


def said(key: str, options: Mapping[str, Any]) -> str:
    """'lr=0.03', 'epochs=20', 'weights.weight_decay=0.001', or the name of a choice."""
    if key == "dataset":
        name = (options[key] == "folder" and options.get("dataset.label")) or options[key]
        return DATASETS.get(name, name)
    if key in GROUPS:
        return str(options.get(key, f"no {key}"))
    below = {each: value for each, value in options.items() if under(each, [key])}
    if key in options or not below:
        below = {key: options.get(key)}
    short = {re.sub(r"^\w+\.(groups\.|options\.)?", "", each): value for each, value in below.items()}
    return ", ".join(f"{name}={value_text(value)}" for name, value in short.items())


def under(key: str, patterns: Iterable[str]) -> bool:
    """Whether a dotted key is one of those, or below one of those; `optimizer.lr` is that of each group, too."""
    patterns = list(patterns)
    patterns += ["optimizer.groups.*.lr"] if "optimizer.lr" in patterns else []
    return any(fnmatchcase(key, pattern) or key.startswith(f"{pattern}.") for pattern in patterns)
