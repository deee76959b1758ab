"""Table 1 beside the paper's, as CSV, as Markdown and for the terminal.

Two selections stand side by side: the last epoch, and the best epoch on the test set. The second is what the paper
reports and is optimistic: it chooses by the very numbers it then shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dbnrun.records import write_atomic
from dbnrun.report import compare
from dbnrun.report.gather import Series, Setting
from dbnrun.report.protocols import schedule_key

TOP = 3  # the paper marks the three best of a column
MEASURES = {
    "last": compare.selected_error("last"),
    "best_on_test": compare.selected_error("best_on_test"),
    "population": compare.population_error,
}
HEADS = ("training", "curve", "last epoch", "best on test", "population", "paper", "n", "left out")
NOTE = f"""
Mean ± sample standard deviation over n seeds. *Best on test* chooses each run's epoch by its test error, as the paper's
Table 1 does: optimistic. *Population* evaluates the last epoch's weights with statistics of the whole training part.
Bold: the {TOP} best of a protocol's column. Paper: arXiv 1705.08011, Table 1, single values. *Left out*
runs count in no mean, no n and no figure.
"""


@cache
def paper_numbers() -> pd.DataFrame:
    """The paper's Table 1: test error [%] by alpha (rows) and data set (columns)."""
    package = Path(__file__).parent.parent
    inside = package / "paper" / "table1.csv"  # in an installed wheel
    path = inside if inside.exists() else package.parent / "results" / "paper" / "table1.csv"
    return pd.read_csv(path, index_col="alpha", dtype={"alpha": str})


def paper_number(cell: Mapping[str, Any]) -> float:
    """The paper's number beside a cell, NaN where it has none. The paper does not say what its m counts."""
    row, _, _ = schedule_key(cell).partition(" ")
    return float(paper_numbers().get(cell["dataset"]["name"], {}).get(row, float("nan")))


def rows(setting: Setting) -> pd.DataFrame:
    """One row a series: test error [%] over seeds by both selections, with population statistics, and the paper's."""
    table = pd.DataFrame([_row(setting, series) for series in setting.series])
    for name in ("last", "best_on_test"):
        place = table.groupby("protocol")[f"{name}_mean"].rank(method="min")  # NaN without a mean: not among the best
        table[f"{name}_top"] = (place <= TOP) & (table["protocol"] != "")  # the peers are in no one's three
    return table


def _row(setting: Setting, series: Series) -> dict[str, Any]:
    row = {
        "setting": setting.slug,
        "protocol": series.protocol,
        "curve": series.label,
        "n": series.n,
        "epochs": series.cell["train"]["epochs"],
    }
    for name, measure in MEASURES.items():
        error = compare.summary(series, measure)
        row |= {f"{name}_mean": error.mean, f"{name}_sd": error.sd}
    return row | {"paper": paper_number(series.cell), "left_out": series.left_out()}


def write(settings: Sequence[Setting], folder: Path) -> list[Path]:
    """Write table1.csv and table1.md below `folder`; return both."""
    tables = [rows(setting) for setting in settings]
    parts = [
        f"## {setting.slug}: {describe(setting.cell)}\n\n{markdown(HEADS, _fields(table, best='**'))}\n"
        for setting, table in zip(settings, tables, strict=True)
    ]
    text = "# Test error [%] by normalizer and schedule\n\n" + "\n".join(parts) + NOTE
    return write_texts(folder, {"table1.csv": pd.concat(tables).to_csv(index=False), "table1.md": text})


def as_text(setting: Setting) -> str:
    """The same for a terminal: one block a setting, a line a series."""
    table = pd.DataFrame(_fields(rows(setting)), columns=HEADS).set_index(list(HEADS[:2]))
    title = f"{setting.slug}: test error [%], mean ± sd over seeds ({describe(setting.cell)})"
    return f"{title}\n{table.to_string()}\n(best on test: chosen by the test set, as in the paper; optimistic)"


def _fields(table: pd.DataFrame, best: str = "") -> list[list[str]]:
    """The texts under HEADS of each row; `best` on both sides of a number that is among the three best."""
    lines = []
    for row in table.to_dict("records"):
        last, best_on_test, population = (_mean_and_sd(row[f"{name}_mean"], row[f"{name}_sd"]) for name in MEASURES)
        around = {name: best if row[f"{name}_top"] else "" for name in ("last", "best_on_test")}
        lines.append(
            [
                row["protocol"] or "peer",
                row["curve"],
                around["last"] + last + around["last"],
                around["best_on_test"] + best_on_test + around["best_on_test"],
                population,
                number(row["paper"]),
                str(row["n"]),
                row["left_out"],
            ]
        )
    return lines


def _mean_and_sd(mean: float, sd: float) -> str:
    if np.isnan(mean):
        return "–"
    return number(mean) + ("" if np.isnan(sd) else f" ± {number(sd)}")


def number(value: float) -> str:
    """'1.63', or '' where there is none."""
    return "" if np.isnan(value) else f"{value:.2f}"


def markdown(heads: Sequence[str], lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = "".join(f"| {text} " if text else "| " for text in heads) + "|"
    return "\n".join([head, "|" + "---|" * len(heads), *("| " + " | ".join(line) + " |" for line in lines)])


def write_texts(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write each text to the file of its name below `folder`; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    return [folder / name for name in texts]


def describe(cell: Mapping[str, Any]) -> str:
    """'cnn 32-32-64-64-512, adagrad 0.01, batch 100, 30 epochs, bf16'."""
    widths = "-".join(map(str, cell["model"]["widths"]))
    rates = sorted({group["lr"] for group in cell["optimizer"]["groups"].values()})
    parts = [
        f"{cell['model']['name']} {widths}",
        f"{cell['optimizer']['name']} {'/'.join(f'{rate:g}' for rate in rates)}",
        f"batch {cell['train']['batch_size']}",
        f"{cell['train']['epochs']} epoch{'s' if cell['train']['epochs'] > 1 else ''}",
    ]
    if limit := cell["train"].get("limit_batches"):
        parts.append(f"at most {limit} batches each")
    if every := cell["train"].get("eval_every"):
        parts.append(f"evaluated every {every} epochs")
    if limit := cell["train"].get("limit_eval"):
        parts.append(f"evaluated on at most {limit} records")
    if cell.get("precision", "fp32") != "fp32":
        parts.append(cell["precision"])
    return ", ".join(parts)


def from_to(counts: Iterable[int]) -> str:
    """'3', or '3 to 10'."""
    low, high = min(counts := list(counts)), max(counts)
    return f"{low} to {high}" if low < high else str(low)


def most_efficient(panel: Sequence[Series]) -> list[Series]:
    """The three schedules with the least mean test error at the last epoch, with alpha = 1 and BN to compare."""
    shown = [series for series in panel if series.n]
    last = {id(s): compare.summary(s, MEASURES["last"]).mean for s in shown if s.protocol}
    ranked = sorted((key for key, error in last.items() if np.isfinite(error)), key=last.__getitem__)
    kept = {compare.ALPHA_ONE, compare.MODERN_BN}
    return [s for s in shown if id(s) in ranked[:TOP] or schedule_key(s.cell) in kept]
