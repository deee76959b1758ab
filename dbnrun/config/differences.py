"""In which options runs differ, and how a list or a table says it. Options have the keys of a command (filters.py)."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from dbnrun.config import registry


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
        choice = str(options.get(group)) if dot and group in registry.GROUPS else ""
        among[choice].add(json.dumps(options.get(key)))
    return any(len(values) > 1 for values in among.values())


def said(key: str, options: Mapping[str, Any]) -> str:
    """'lr=0.03', 'epochs=20', 'weights.weight_decay=0.001', or the name of a choice."""
    if key == "dataset":
        name = (options[key] == "folder" and options.get("dataset.label")) or options[key]
        known = registry.of("dataset").get(name)
        return known.label if known else str(name)
    if key in registry.GROUPS:
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


def value_text(value: Any) -> str:
    """A value as a command would have it, short: '0.1', 'true', '300-300'."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if str(value).startswith("sha256:"):
        return value.removeprefix("sha256:")[:8]
    if isinstance(value, list):
        return "-".join(map(value_text, value))
    return registry.number_text(value) if isinstance(value, float) else str(value)[:40]
