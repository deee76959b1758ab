"""Run folders in, settings and series out.

A *series* is what a curve shows: runs that differ only in seed. A *setting* is what one figure compares: series that
differ only in normalizer and schedule. Runs of different settings are never averaged or drawn together.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dbnrun import records
from dbnrun.config import UserError, norm_label
from dbnrun.records import EpochRow

HOW_TO_RECORD = "record some with `dbnrun experiment=demo` or `dbnrun experiment=paper_mnist`"
REFERENCES = {"bn": "BN (PyTorch)", "ln": "LN", "gn": "GN", "none": "no norm"}
# The loader in C is ten times faster; both read plain data only.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Run:
    """One recorded run: its cell, how it stands, and its rows."""

    folder: Path
    signature: str
    cell: dict[str, Any]
    status: str
    rows: tuple[EpochRow, ...]


@dataclass
class Series:
    """Runs that differ only in seed, with a label that is unique in its panel."""

    cell: dict[str, Any]  # of one of the runs
    runs: list[Run] = field(default_factory=list)
    label: str = ""

    @property
    def protocol(self) -> str:
        """'' for the peers (bn, ln, …); else how training uses lambda."""
        return "" if self.cell["norm"]["name"] != "dbn" else _protocol(self.cell["norm"])

    @property
    def finished(self) -> list[Run]:
        """The runs that count: a mean over an unfinished or diverged run's last row would compare unlike things."""
        return [run for run in self.runs if run.status == "done"]

    @property
    def n(self) -> int:
        return len(self.finished)

    def left_out(self) -> str:
        """'1 diverged, 2 unfinished', or ''."""
        kinds = Counter("diverged" if run.status == "diverged" else "unfinished" for run in self.runs)
        kinds["unfinished"] -= self.n
        return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()) if count)

    def column(self, name: str) -> np.ndarray:
        """A column of the finished runs, (n, epochs); NaN where a field is empty."""
        values = [[getattr(row, name) for row in run.rows] for run in self.finished]
        return np.array(values, dtype=float).reshape(self.n, -1)


@dataclass
class Setting:
    """Series that differ only in normalizer and schedule."""

    cell: dict[str, Any]  # of one of the runs
    series: list[Series]
    slug: str = ""  # names its files

    @property
    def dataset(self) -> str:
        return self.cell["dataset"]["name"]

    @cached_property
    def protocols(self) -> list[str]:
        """The ways of using lambda that occur, in a fixed order; [''] where there are only peers."""
        found = {series.protocol for series in self.series} - {""}
        return sorted(found, key=lambda name: (not name.startswith("dbn_inference"), name)) or [""]

    def panel(self, protocol: str) -> list[Series]:
        """The series of one protocol, with the peers."""
        return [series for series in self.series if series.protocol in ("", protocol)]


def _protocol(norm: Mapping[str, Any]) -> str:
    name = "dbn_inference" if norm["train_stats"] == "batch" else "dbn"
    return name if norm["stats_grad"] else f"{name}, stats_grad=false"


def gather(paths: Sequence[Path]) -> list[Setting]:
    """The settings found under `paths`, by data set. Raises UserError where there are none, or runs conflict."""
    runs = _distinct([_read(folder) for path in paths for folder in _run_folders(path)])
    by_setting: dict[str, dict[str, Series]] = defaultdict(dict)
    for run in runs:
        rest = {key: value for key, value in run.cell.items() if key not in ("seed", "norm", "schedule")}
        own = json.dumps([run.cell["norm"], run.cell.get("schedule")], sort_keys=True)
        series = by_setting[json.dumps(rest, sort_keys=True)].setdefault(own, Series(run.cell))
        series.runs.append(run)
    settings = [_setting(list(series.values())) for series in by_setting.values()]
    if not any(series.n for setting in settings for series in setting.series):
        where = ", ".join(map(str, paths))
        found = f"{len(runs)} unfinished or diverged runs and none that is done" if runs else "no runs"
        raise UserError(f"{where}: {found}; {HOW_TO_RECORD}.")
    settings = [setting for setting in settings if any(series.n for series in setting.series)]
    _name(settings)
    return sorted(settings, key=lambda setting: setting.slug)


def _run_folders(path: Path) -> list[Path]:
    if (path / "config.yaml").exists():
        return [path]
    parent = path / "runs" if (path / "runs").is_dir() else path
    return sorted(config.parent for config in parent.glob("*/config.yaml"))


def _read(folder: Path) -> Run:
    try:
        cell = yaml.load((folder / "config.yaml").read_text(), Loader=_Loader)
        known = cell["dataset"]["name"] and cell["norm"]["name"] in (*REFERENCES, "dbn") and cell["seed"] >= 0
        if not known:
            raise ValueError
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.yaml'}: not a cell of dbnrun ({type(error).__name__}); move it away."
        ) from None
    manifest = records.read_manifest(folder)
    rows = tuple(records.read_rows(folder / "metrics.csv"))
    status = manifest.get("status", "unfinished")
    return Run(folder, manifest.get("signature", folder.name), cell, status if rows else "unfinished", rows)


def _distinct(runs: Iterable[Run]) -> list[Run]:
    """Runs by signature, the finished copy of two; two finished copies with different numbers are refused."""
    kept: dict[str, Run] = {}
    for run in runs:
        other = kept.setdefault(run.signature, run)
        if other is run or run.status != "done":
            continue
        if other.status == "done" and _numbers(other) != _numbers(run):
            raise UserError(
                f"{other.folder} and {run.folder} are the same cell with different numbers; "
                "report one of them at a time."
            )
        kept[run.signature] = run
    return list(kept.values())


def _numbers(run: Run) -> list[tuple[Any, ...]]:
    names = [name for name in records.COLUMNS if name not in records.TIME_COLUMNS]
    return [tuple(getattr(row, name) for name in names) for row in run.rows]


def _setting(series: list[Series]) -> Setting:
    for one in series:
        one.label = schedule_text(one.cell) if one.protocol else REFERENCES[norm_label(one.cell)]
    _tell_apart(series)
    return Setting(series[0].cell, sorted(series, key=_rank))


def schedule_text(cell: Mapping[str, Any]) -> str:
    """'α = 0.25', '1/m', '1/m² (epochs)', …"""
    schedule = cell["schedule"]
    text = {
        "constant": f"α = {schedule.get('alpha', 0):g}",
        "harmonic": "1/m",
        "inverse_square": "1/m²",
        "power": f"m^-{schedule.get('exponent', 0):g}",
    }[schedule["name"]]
    return text + (" (epochs)" if schedule.get("unit") == "epoch" else "")


def _rank(series: Series) -> tuple[Any, ...]:
    """Table 1's order: constants from 1 down, then the diminishing ones, then 0; the peers first."""
    if not series.protocol:
        return (0, list(REFERENCES).index(norm_label(series.cell)), series.label)
    schedule = series.cell["schedule"]
    if schedule["name"] == "constant":
        return (3 if schedule["alpha"] == 0 else 1, -schedule["alpha"], series.label)
    return (2, 0, series.label)


def _tell_apart(series: list[Series]) -> None:
    """Where labels of one protocol coincide, add the normalizer's axes in which those series differ."""
    same: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for one in series:
        same[one.protocol, one.label].append(one)
    for group in same.values():
        norms = [one.cell["norm"] for one in group]
        for one in group if len(group) > 1 else []:
            one.label += "".join(f", {key}={one.cell['norm'].get(key)}" for key in _differing(norms))


def _differing(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = sorted({key for tree in trees for key in tree})
    return [key for key in keys if len({json.dumps(tree.get(key)) for tree in trees}) > 1]


def _name(settings: list[Setting]) -> None:
    """The data set's name, and for several settings of one data set what distinguishes each."""
    for setting in settings:
        peers = [_flat(other.cell) for other in settings if other.dataset == setting.dataset]
        own = _flat(setting.cell)
        parts = [f"{key.rpartition('.')[2]}{own.get(key, '')}" for key in _differing(peers)] if len(peers) > 1 else []
        text = "-".join([setting.dataset, *parts])
        setting.slug = "".join(letter if letter.isalnum() or letter in "-._" else "" for letter in text)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if not prefix and key in ("seed", "norm", "schedule"):
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
