"""What the committed records hold, as far as a plan asks: which cells, and what an epoch of their kind took."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dbnrun.config.registry import UserError
from dbnrun.runs import layout, metrics

ENOUGH = 5  # runs of a kind whose time is read


def signatures(results_dir: Path) -> set[str]:
    """The signatures of the runs in a results folder's records. Raises UserError at a damaged file."""
    return {signature for _, signature, _ in _runs(results_dir)}


def epoch_seconds(results_dir: Path) -> dict[tuple[str, ...], list[float]]:
    """Seconds an epoch, evaluation included, of a few recorded runs of each kind; each run's share of a shared one.

    Raises UserError at a damaged file.
    """
    chosen: dict[Path, dict[str, tuple[str, ...]]] = {}
    counts: dict[tuple[str, ...], int] = {}
    for path, signature, cell in _runs(results_dir):
        kind = kind_of(cell)
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] <= ENOUGH:
            chosen.setdefault(path.with_suffix(".csv"), {})[signature] = kind
    costs: dict[tuple[str, ...], list[float]] = {}
    for path, kinds in chosen.items():
        for signature, seconds in _means(path, kinds).items():
            costs.setdefault(kinds[signature], []).append(seconds)
    return costs


def kind_of(cell: Mapping[str, Any]) -> tuple[str, ...]:
    """What decides how long an epoch takes, roughly; from a cell's configuration as plain data."""
    norm = cell["norm"]
    return cell["dataset"]["name"], cell["model"]["name"], norm["name"], str(norm.get("train_stats")), cell["precision"]


def _runs(results_dir: Path) -> Iterator[tuple[Path, str, Mapping[str, Any]]]:
    """File, signature and configuration of every recorded run whose numbers are this code's."""
    for path in sorted((results_dir / "records").glob("*.json")):
        try:
            sidecar = json.loads(path.read_text())
            for signature, run in sidecar["runs"].items():
                cell = sidecar["cells"][run["cell"]]["config"]
                if not layout.is_stale(sidecar["origins"][run["origin"]], cell["dataset"]["name"]):
                    yield path, signature, cell
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise _damaged(path) from None


def _means(path: Path, wanted: Mapping[str, Any]) -> dict[str, float]:
    """The mean seconds a row of each wanted run in a CSV of records."""
    seconds: dict[str, list[float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["signature"] in wanted:
                    own = sum(float(row[name]) for name in metrics.TIME_COLUMNS)
                    seconds.setdefault(row["signature"], []).append(own)
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(path) from None
    return {signature: sum(own) / len(own) for signature, own in seconds.items()}


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: not records of dbnrun; restore it with `git checkout`, or move it away.")
