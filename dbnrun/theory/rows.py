"""What a theory run leaves behind: NAME.csv, a row per pair and logged m, and NAME.json, its settings.

Knows no torch.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from dbnrun.config.registry import UserError
from dbnrun.runs.layout import write_atomic


@dataclass(frozen=True)
class Row:
    """One pair (alpha, eta) at one logged iteration. The order is a public format: add at the end, never rename."""

    seed: int  # of the initial weights
    alpha: str  # alpha(m) as text
    eta: str
    m: int  # iteration, from 1
    f: float  # f(theta(m), lambda(m)), a sum over records [nat, or squared units]
    grad_sq: float  # |grad f(theta(m), lambda(m))|^2, lambda held fixed
    grad_sq_final: float  # |grad f(theta(m), lambda of the last iteration)|^2
    lambda_step: float  # |lambda(m) - lambda(m-1)|
    lambda_path: float  # its sum up to m
    lambda_distance: float  # |lambda(m) - (mean, sigma) of the data at theta(m)|
    alpha_m: float  # alpha(m); the first one used is alpha(2)
    eta_m: float


COLUMNS = tuple(field.name for field in fields(Row))


@dataclass(frozen=True)
class Curve:
    """One pair's rows as columns, each (points,), by m."""

    seed: int
    alpha: str
    eta: str
    columns: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]


def _field(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def write(path: Path, rows: Iterable[Row], settings: dict[str, Any]) -> None:
    """The CSV, nine significant digits, and its settings beside it as JSON; each replaces what was there at once."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_field(value) for value in astuple(row)] for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue().encode())
    write_atomic(path.with_suffix(".json"), (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())


def read(path: Path) -> tuple[list[Curve], dict[str, Any]]:
    """The curves of a CSV in its order, and its settings. Raises UserError where a file is missing or another's."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        settings = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        curves: dict[tuple[str, str, str], list[dict[str, str]]] = {}
        for line in lines:
            curves.setdefault((line["seed"], line["alpha"], line["eta"]), []).append(line)
        numbers = COLUMNS[COLUMNS.index("m") :]
        return [
            Curve(int(seed), alpha, eta, {name: np.array([float(line[name]) for line in part]) for name in numbers})
            for (seed, alpha, eta), part in curves.items()
        ], settings
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: expected the CSV and the JSON that `dbnrun theory run --out {path}` writes ({error})."
        ) from None
