"""Test errors beside the paper's Table 1, as CSV, as Markdown and for the terminal.

Two selections stand side by side: the last epoch, and the best epoch on the test set. The second is what the paper
reports and is optimistic: it chooses by the very numbers it then shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dbnrun.config.identity import choice_of, name_of_choice
from dbnrun.report import compare
from dbnrun.report.names import ALPHA_ONE, MODERN_BN
from dbnrun.report.series import Series, Setting
from dbnrun.runs.layout import write_atomic

TOP = 3  # the paper marks the three best of a column
COLUMNS = {"last": "last epoch", "best_on_test": "best on test", "population": "population"}
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


def paper_number(series: Series) -> float:
    """The paper's number beside a series, NaN where it has none. The paper does not say what its m counts."""
    paper, dataset, row = paper_numbers(), series.cell["dataset"]["name"], series.key.partition(" ")[0]
    its_networks = series.cell["model"]["name"] in ("fnn", "cnn")
    there = its_networks and row in paper.index and dataset in paper
    return float(paper.loc[row, dataset]) if there else float("nan")


def rows(setting: Setting) -> pd.DataFrame:
    """One row a series: test error [%] over seeds by both selections, with population statistics, and the paper's."""
    table = pd.DataFrame([_row(setting, series) for series in setting.series])
    for name in ("last", "best_on_test"):
        place = table.groupby("protocol")[f"{name}_mean"].rank(method="min")  # NaN without a mean: not among the best
        table[f"{name}_top"] = (place <= TOP) & (table["protocol"] != "")  # no baseline is marked
    return table


def _row(setting: Setting, series: Series) -> dict[str, Any]:
    row = {
        "setting": setting.slug,
        "protocol": series.protocol,
        "curve": series.label,
        "n": series.n,
        "epochs": series.cell["train"]["epochs"],
    }
    for name in COLUMNS:
        error = compare.summary(series, name)
        row |= {f"{name}_mean": error.mean, f"{name}_sd": error.sd}
    return row | {"paper": paper_number(series), "left_out": series.left_out()}


def write(settings: Sequence[Setting], folder: Path) -> list[Path]:
    """Write table1.csv and table1.md below `folder`; return both."""
    tables = [rows(setting) for setting in settings]
    parts = [
        f"## {setting.slug}: {describe(setting.cell)}\n\n{markdown(_texts(table, best='**'))}\n"
        for setting, table in zip(settings, tables, strict=True)
    ]
    text = "# Test error [%] by normalizer and schedule\n\n" + "\n".join(parts) + NOTE
    return write_texts(folder, {"table1.csv": pd.concat(tables).to_csv(index=False), "table1.md": text})


def write_differences(settings: Sequence[Setting], folder: Path) -> list[Path]:
    """Write differences.csv below `folder`, where there is anything to compare; return its path."""
    tables = [table for setting in settings if len(table := differences(setting))]
    return write_texts(folder, {"differences.csv": pd.concat(tables).to_csv(index=False)}) if tables else []


def as_text(setting: Setting) -> str:
    """The same for a terminal: one block a setting, a line a series."""
    table = _texts(rows(setting)).set_index(["training", "curve"])
    shown = table.loc[:, table.ne("").any()]
    title = f"{setting.slug}: test error [%], mean ± sd over seeds ({describe(setting.cell)})"
    return f"{title}\n{shown.to_string()}\n(best on test: chosen by the test set, as in the paper; optimistic)"


def differences(setting: Setting) -> pd.DataFrame:
    """Last-epoch test error of every series minus PyTorch's BN [pp], paired by seed; no rows where BN was not run.

    `p` is the exact two-sided sign-flip test, `p_holm` its Holm correction over all series of the setting.
    """
    done = {f"{one.protocol} {one.label}".strip(): one for one in setting.series if one.n}
    base = next((one for one in done.values() if one.key == MODERN_BN), None)
    found = compare.against(base, done, compare.ERRORS["last"]) if base else {}
    rows = [
        {"setting": setting.slug, "curve": key, **asdict(one.difference), "p": one.p, "p_holm": one.p_holm}
        for key, one in found.items()
    ]
    return pd.DataFrame(rows).assign(verdict=[one.word for one in found.values()])


def differences_as_text(setting: Setting) -> str:
    """The same for a terminal; '' where there is nothing to compare."""
    table = differences(setting)
    if not len(table):
        return ""
    shown = pd.DataFrame(
        {
            "curve": row["curve"],
            "to BN [pp]": f"{row['mean']:+.2f}".replace("-0.00", "+0.00"),
            "95 % interval": "" if np.isnan(row["low"]) else f"[{row['low']:+.2f}, {row['high']:+.2f}]",
            "p (Holm)": "" if np.isnan(row["p_holm"]) else f"{row['p_holm']:.3g}",
            "n": row["n"],
            "": row["verdict"],
        }
        for row in table.to_dict("records")
    )
    title = f"{setting.slug}: last-epoch test error minus BN (PyTorch), paired by seed"
    return f"{title}\n{shown.to_string(index=False)}\n"


def _texts(table: pd.DataFrame, best: str = "") -> pd.DataFrame:
    """What a reader sees of `rows`; `best` stands on both sides of a number that is among the three best."""
    return pd.DataFrame(
        {
            "training": row["protocol"] or "peer",
            "curve": row["curve"],
            **{head: _mean_and_sd(row, name, best) for name, head in COLUMNS.items()},
            "paper": number(row["paper"]),
            "n": str(row["n"]),
            "left out": row["left_out"],
        }
        for row in table.to_dict("records")
    )


def _mean_and_sd(row: Mapping[Any, Any], name: str, best: str) -> str:
    mean, sd = number(row[f"{name}_mean"]), number(row[f"{name}_sd"])
    around = best if row.get(f"{name}_top") else ""
    return around + (f"{mean} ± {sd}" if sd else mean or "–") + around


def number(value: float) -> str:
    """'1.63', or '' where there is none."""
    return "" if np.isnan(value) else f"{value:.2f}"


def markdown(table: pd.DataFrame) -> str:
    """A table of texts as Markdown, without its index."""
    head = "".join(f"| {text} " if text else "| " for text in table.columns) + "|"
    lines = ["| " + " | ".join(texts) + " |" for texts in table.to_numpy()]
    return "\n".join([head, "|" + "---|" * len(table.columns), *lines])


def write_texts(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write each text to the file of its name below `folder`; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    return [folder / name for name in texts]


def describe(cell: Mapping[str, Any]) -> str:
    """'cnn 32-32-64-64-512, adagrad 0.01, batch 100, 30 epochs, bf16'."""
    optimizer, train = cell["optimizer"], cell["train"]
    rates = sorted({group["lr"] for group in optimizer["groups"].values()})
    varied = [f"{name_of_choice('lr_schedule', cell['lr_schedule'])} learning rate"] if "lr_schedule" in cell else []
    parts = [
        choice_of("model", cell["model"]).title,
        f"{name_of_choice('optimizer', optimizer)} {'/'.join(f'{rate:g}' for rate in rates)}",
        *varied,
        f"batch {train['batch_size']}",
        f"{train['epochs']} epoch{'s' if train['epochs'] > 1 else ''}",
    ]
    limits = {
        "limit_batches": "at most {} batches each",
        "eval_every": "evaluated every {} epochs",
        "limit_eval": "evaluated on at most {} records",
        "label_smoothing": "labels smoothed by {:g}",
    }
    parts += [text.format(train[key]) for key, text in limits.items() if train.get(key)]
    if cell.get("precision", "fp32") != "fp32":
        parts.append(cell["precision"])
    return ", ".join(parts)


def from_to(counts: Iterable[int]) -> str:
    """'3', or '3 to 10'."""
    low, high = min(counts := list(counts)), max(counts)
    return f"{low} to {high}" if low < high else str(low)


def most_efficient(panel: Sequence[Series]) -> list[Series]:
    """The three schedules with the least mean test error at the last epoch, with alpha = 1 and BN to compare."""
    last = {id(one): compare.summary(one, "last").mean for one in panel if one.protocol}
    ranked = sorted((one for one, error in last.items() if np.isfinite(error)), key=last.__getitem__)
    return [one for one in panel if id(one) in ranked[:TOP] or one.key in (ALPHA_ONE, MODERN_BN)]
