"""What a theory run leaves behind: NAME.csv, a row per pair and logged m, and NAME.json, its settings.

Knows no torch.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dbnrun.config.registry import UserError
from dbnrun.runs.layout import write_atomic

# A row names its pair, then holds numbers. The order is a public format: add at the end, never rename.
PAIR = ("seed", "alpha", "eta")  # seed of the initial weights; alpha(m) and eta(m) as text
NUMBERS = (
    "m",  # iteration, from 1
    "f",  # f(theta(m), lambda(m)), a sum over records [nat, or squared units]
    "grad_sq",  # |grad f(theta(m), lambda(m))|^2, lambda held fixed
    "grad_sq_final",  # |grad f(theta(m), lambda of the last iteration)|^2
    "lambda_step",  # |lambda(m) - lambda(m-1)|; 0 at m = 1
    "lambda_path",  # its sum up to m
    "lambda_distance",  # |lambda(m) - (mean, sigma) of the data at theta(m)|
    "alpha_m",  # alpha(m); the first one used is alpha(2)
    "eta_m",
)
COLUMNS = PAIR + NUMBERS


@dataclass(frozen=True)
class Curve:
    """One pair's rows: its numbers as columns, each (points,), by m."""

    seed: int
    alpha: str
    eta: str
    columns: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def first_decade(self, name: str) -> float:
        """The median of a column over m = 1 … 10."""
        return float(np.median(self[name][self["m"] <= 10]))

    def last_decade(self, name: str) -> float:
        """The median of a column over the last decade of m."""
        return float(np.median(self[name][self["m"] >= self["m"][-1] / 10]))


def write(path: Path, curves: Iterable[Curve], settings: dict[str, Any]) -> None:
    """The CSV, nine significant digits, and its settings beside it as JSON; each replaces what was there at once."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for curve in curves:
        for values in zip(*(curve[name] for name in NUMBERS), strict=True):
            writer.writerow([curve.seed, curve.alpha, curve.eta, *(f"{value:.9g}" for value in values)])
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
        return [
            Curve(int(seed), alpha, eta, {name: np.array([float(line[name]) for line in part]) for name in NUMBERS})
            for (seed, alpha, eta), part in curves.items()
        ], settings
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: expected the CSV and the JSON that `dbnrun theory run --out {path}` writes ({error})."
        ) from None
