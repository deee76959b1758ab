"""Which cells can share one training run. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

from dbnrun.config import RunConfig


def trajectory(config: RunConfig) -> str:
    """What training depends on, as text: cells with the same text have the same weights after every step.

    Under train_stats=batch the schedule steers lambda alone, and lambda only serves at evaluation.
    """
    parts = asdict(config)
    if config.norm.name != "dbn" or config.norm.train_stats == "batch":
        parts["schedule"] = None
    if config.norm.train_stats == "batch":
        parts["norm"]["init"] = None
    return json.dumps(parts, sort_keys=True)


def by_trajectory(configs: Iterable[RunConfig]) -> list[list[int]]:
    """The positions of the cells that share a run, a list a run, in the order of their first cell."""
    groups: dict[str, list[int]] = {}
    for position, config in enumerate(configs):
        groups.setdefault(trajectory(config), []).append(position)
    return list(groups.values())
