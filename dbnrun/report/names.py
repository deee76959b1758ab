"""What tables and figures call schedules, normalizers, data sets and protocols."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dbnrun.config import registry
from dbnrun.config.identity import name_of_choice

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


def natural(text: str) -> list[str | float]:
    """A key to sort by that takes numbers as numbers: 'num_groups=4' before 'num_groups=16'."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]
