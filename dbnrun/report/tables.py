"""Table 1 beside the paper's, as CSV, as Markdown, and as text for the terminal.

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
from dbnrun.report.gather import Series, Setting

TOP = 3  # the paper marks the three best of a column


@cache
def paper_numbers() -> pd.DataFrame:
    """The paper's Table 1: test error [%] by alpha (rows) and data set (columns)."""
    package = Path(__file__).parent.parent
    inside = package / "paper" / "table1.csv"  # in an installed wheel
    path = inside if inside.exists() else package.parent / "results" / "paper" / "table1.csv"
    return pd.read_csv(path, index_col="alpha", dtype={"alpha": str})


def paper_key(cell: dict[str, Any]) -> str:
    """The paper's name of a series' schedule; '' where it has none."""
    schedule = cell.get("schedule") or {"name": ""}
    if schedule["name"] == "constant":
        return f"{schedule['alpha']:g}"
    return {"harmonic": "1/m", "inverse_square": "1/m^2"}.get(schedule["name"], "")


def _mean_sd(values: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds; NaN for the second where there is one seed."""
    if not len(values):
        return float("nan"), float("nan")
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def rows(setting: Setting) -> pd.DataFrame:
    """One row a series: test error [%] over seeds by both selections, with population statistics, and the paper's."""
    paper = paper_numbers()
    lines = []
    for series in setting.series:
        error, population = series.column("test_error_pct"), series.column("test_error_pct_population")
        last, best = _mean_sd(error[:, -1]), _mean_sd(error.min(1))
        pooled = _mean_sd(population[:, -1])
        key = paper_key(series.cell)
        known = series.protocol and setting.dataset in paper and key in paper.index
        lines.append(
            {
                "setting": setting.slug,
                "protocol": series.protocol,
                "curve": series.label,
                "n": series.n,
                "epochs": series.cell["train"]["epochs"],
                "last_mean": last[0],
                "last_sd": last[1],
                "best_on_test_mean": best[0],
                "best_on_test_sd": best[1],
                "population_mean": pooled[0],
                "population_sd": pooled[1],
                "paper": paper.loc[key, setting.dataset] if known else float("nan"),
                "left_out": series.left_out(),
            }
        )
    table = pd.DataFrame(lines)
    for column in ("last", "best_on_test"):
        table[f"{column}_top"] = _top(table, f"{column}_mean")
    return table


def _top(table: pd.DataFrame, column: str) -> pd.Series:
    """Whether a series is among the three best of its protocol (the peers are in no one's three)."""
    place = table[column].groupby(table["protocol"]).rank(method="min")  # NaN, and so not among them, without a mean
    return pd.Series((place <= TOP) & (table["protocol"] != ""))


def write(settings: Sequence[Setting], folder: Path) -> list[Path]:
    """Write table1.csv and table1.md below `folder`; return both."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = [rows(setting) for setting in settings]
    csv, markdown = folder / "table1.csv", folder / "table1.md"
    write_atomic(csv, pd.concat(tables).to_csv(index=False).encode())
    parts = [_markdown(setting, table) for setting, table in zip(settings, tables, strict=True)]
    write_atomic(markdown, ("# Test error [%] by normalizer and schedule\n\n" + "\n".join(parts) + NOTE).encode())
    return [csv, markdown]


NOTE = f"""
Mean ± sample standard deviation over n seeds. *Best on test* chooses each run's epoch by its test error, as the paper's
Table 1 does: optimistic. *Population* evaluates the last epoch's weights with statistics of the whole training part.
Bold: the {TOP} best of a protocol's column. Paper: arXiv 1705.08011, Table 1, single values. *Left out*
runs count in no mean, no n and no figure.
"""


def _cell_text(mean: float, sd: float, digits: int = 2) -> str:
    if np.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if np.isnan(sd) else f" ± {sd:.{digits}f}")


def _markdown(setting: Setting, table: pd.DataFrame) -> str:
    lines = [f"## {setting.slug}: {describe(setting.cell)}", ""]
    lines += ["| training | curve | last epoch | best on test | population | paper | n | left out |", "|" + "---|" * 8]
    for row in table.to_dict("records"):
        last = _cell_text(row["last_mean"], row["last_sd"])
        best = _cell_text(row["best_on_test_mean"], row["best_on_test_sd"])
        fields = [
            row["protocol"] or "peer",
            row["curve"],
            f"**{last}**" if row["last_top"] else last,
            f"**{best}**" if row["best_on_test_top"] else best,
            _cell_text(row["population_mean"], row["population_sd"]),
            "" if np.isnan(row["paper"]) else f"{row['paper']:.2f}",
            str(row["n"]),
            row["left_out"],
        ]
        lines.append("| " + " | ".join(fields) + " |")
    return "\n".join([*lines, ""])


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


def as_text(setting: Setting) -> str:
    """The same for a terminal: one block a setting, a line a series."""
    table = rows(setting)
    head = ("", "curve", "n", "last epoch", "best on test*", "population", "paper", "")
    body: list[tuple[str, ...]] = [head]
    for row in table.to_dict("records"):
        body.append(
            (
                row["protocol"] or "peer",
                row["curve"],
                str(row["n"]),
                _cell_text(row["last_mean"], row["last_sd"]),
                _cell_text(row["best_on_test_mean"], row["best_on_test_sd"]),
                _cell_text(row["population_mean"], row["population_sd"]),
                "" if np.isnan(row["paper"]) else f"{row['paper']:.2f}",
                row["left_out"] and f"(left out: {row['left_out']})",
            )
        )
    widths = [max(len(line[i]) for line in body) for i in range(len(head))]
    lines = [
        "  ".join(
            text.rjust(w) if i > 1 else text.ljust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in body
    ]
    title = f"{setting.slug}: test error [%], mean ± sd over seeds ({describe(setting.cell)})"
    return "\n".join(
        [title, *(line.rstrip() for line in lines), "* chosen by the test set, as in the paper: optimistic"]
    )


def most_efficient(panel: Sequence[Series]) -> list[Series]:
    """The three schedules with the least mean test error at the last epoch, with alpha = 1 and BN to compare."""
    shown = [series for series in panel if series.n]
    last = {id(s): float(s.column("test_error_pct")[:, -1].mean()) for s in shown if s.protocol}
    ranked = sorted((key for key, error in last.items() if np.isfinite(error)), key=last.__getitem__)
    best = set(ranked[:TOP])
    return [s for s in shown if id(s) in best or s.cell["norm"]["name"] == "bn" or paper_key(s.cell) == "1"]
