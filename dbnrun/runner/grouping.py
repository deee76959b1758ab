"""Which cells of a sweep can share one training run, and which runs one program. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TypeVar

from dbnrun.config.schema import RunConfig

T = TypeVar("T")


def trajectory(config: RunConfig) -> str:
    """What training depends on, as text: cells with the same text have the same weights after every step.

    Under train_stats=batch the schedule steers lambda alone, and lambda only serves at evaluation. A network of the
    user's own may hold more that only its own training moves: each of its cells has a run of its own.
    """
    parts = asdict(config)
    shares = config.norm.shares_runs and "model" not in config.own
    if shares or not config.norm.scheduled:
        parts["schedule"] = None
    if shares:
        parts["norm"]["init"] = None
    return json.dumps(parts)  # in order: the first group that fits a parameter takes it


def stack(config: RunConfig) -> str:
    """What the runs of one stack have in common, as text.

    May differ: seed, schedule, lambda's beginning, learning rates, weight decays, dropout rates. Not the schedule of
    the learning rates.
    """
    parts = asdict(config)
    for key in ("seed", "schedule"):
        parts[key] = None
    parts["norm"]["init"] = parts["optimizer"]["lr"] = parts["model"]["dropout"] = None
    for group in parts["optimizer"]["groups"].values():
        group["lr"] = group["weight_decay"] = None
    return json.dumps(parts)


def alone(config: RunConfig) -> list[str]:
    """The choices, such as 'norm=custom', that a stack does not know: their runs train one by one."""
    choices = {"norm": config.norm, "model": config.model, "optimizer": config.optimizer}
    return [f"{group}={choice.name}" for group, choice in choices.items() if not choice.stacks]


def grouped(configs: Sequence[RunConfig], limit: Callable[[RunConfig], int]) -> Iterator[list[list[int]]]:
    """Stacks, each a list of runs, each a list of indices into `configs`; ordered by their first cell.

    `limit` says how many runs like a given one a stack may hold; it is asked once a kind, when its turn has come.
    """
    runs = _by_key(range(len(configs)), lambda position: trajectory(configs[position]))
    for kind in _by_key(runs, lambda run: stack(configs[run[0]])):
        first = configs[kind[0][0]]
        size = limit(first) if len(kind) > 1 and not alone(first) else 1
        yield from (kind[start : start + size] for start in range(0, len(kind), size))


def _by_key(things: Iterable[T], key: Callable[[T], str]) -> list[list[T]]:
    groups: dict[str, list[T]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return list(groups.values())
