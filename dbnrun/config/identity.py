"""What identifies a run: its cell, the cell's signature, and names for people and files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dbnrun.config.registry import GROUPS
from dbnrun.config.schema import RunConfig

# Settings that change no number of a run, and so do not enter its signature.
SETTINGS = (
    "results_dir", "data_dir", "device", "threads", "compile", "cuda_graphs", "debug", "progress", "save_weights",
    "checkpoint", "retry", "fail_fast", "skip_recorded", "theory",
)  # fmt: skip


def cell_of(config: RunConfig) -> dict[str, Any]:
    """What decides the numbers of a run, as plain data: settings and the keys its choices ignore left out."""
    cell = {key: value for key, value in vars(config).items() if key not in (*SETTINGS, *GROUPS, "train")}
    cell |= {group: getattr(config, group).identity() for group in GROUPS}
    if not config.norm.scheduled:
        del cell["schedule"]
    train = cell["train"] = asdict(config.train)
    # Beyond the last epoch nothing is left to skip. Every epoch is the default, and older than the key.
    train["eval_every"] = min(config.train.eval_every, config.train.epochs)
    if train["eval_every"] == 1:
        del train["eval_every"]
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


def protocol_of(norm: Mapping[str, Any]) -> str:
    """'' for the peers (bn, ln, …); else how training uses lambda, a key of PROTOCOLS or a name like one."""
    if norm["name"] != "dbn":
        return ""
    name = "dbn_inference" if norm["train_stats"] == "batch" else "dbn"
    return name if norm["stats_grad"] else f"{name}, stats_grad=false"


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


def number_text(value: float) -> str:
    """Short where that loses nothing, so that two values never share a text."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
