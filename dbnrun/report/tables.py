"""Test errors beside the paper's Table 1, as CSV, as Markdown and for the terminal.

Two selections stand side by side: the last epoch, and the best epoch on the test set. The second is what the paper
reports and is optimistic: it chooses by the very numbers it then shows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dbnrun.config.identity import choice_of, name_of_choice
from dbnrun.report import answer, compare
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
    table = _texts(rows(setting))
    kinds = table["training"].unique()
    table = (
        table.set_index(["training", "curve"]) if len(kinds) > 1 else table.drop(columns="training").set_index("curve")
    )
    shown = table.loc[:, table.ne("").any()].rename_axis(columns=None)
    title = f"{setting.title}: test error [%], mean ± standard deviation over n seeds ({describe(setting.cell)})"
    notes = ["  best on test: the lowest test error of any epoch, as in the paper; optimistic"]
    if "population" in shown:
        notes.append("  population: last epoch, tested with the mean and variance over all training data")
    return "\n".join([title, shown.to_string(), *notes])


def differences(setting: Setting) -> pd.DataFrame:
    """Last-epoch test error of every series minus the baseline's [pp], paired by seed; no rows for one series alone.

    `p` is the exact two-sided sign-flip test, `p_holm` its Holm correction over all series of the setting.
    """
    base, found = answer.baseline_of(setting), answer.against_baseline(setting)
    rows = [
        {
            "setting": setting.slug, "curve": key, **asdict(one.difference), "p": one.p, "p_holm": one.p_holm,
            "verdict": one.word, "baseline": base and answer.name(base),
        }
        for key, one in found.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def differences_as_text(setting: Setting) -> str:
    """The same for a terminal; '' where there is nothing to compare."""
    table = differences(setting)
    if not len(table):
        return ""
    shown = pd.DataFrame(
        {
            "curve": row["curve"],
            "difference [pp], 95 % interval": difference_text(row["mean"], row["low"], row["high"]),
            "p (Holm)": p_text(row["p_holm"], row["verdict"]) if is_tested(row["verdict"]) else "",
            "n": row["n"],
            "": row["verdict"],
        }
        for row in table.to_dict("records")
    )
    title = f"{setting.title}: test error after the last epoch minus that of {table['baseline'][0]}, paired by seed"
    note = textwrap.fill(answer.note(setting), 120)
    return "\n".join(filter(None, [title, shown.to_string(index=False), note])) + "\n"


def for_reader(setting: Setting) -> pd.DataFrame:
    """What a page shows of a setting: the differences to the baseline first, then test errors; no empty column."""
    texts = _texts(rows(setting))
    names = [answer.name(series) for series in setting.series]
    found = answer.against_baseline(setting)
    compared = [found.get(name) for name in names]
    apart = [one and difference_text(one.difference.mean, one.difference.low, one.difference.high) for one in compared]
    texts["difference [pp]"] = [text or "" for text in apart]
    texts["p (Holm)"] = [p_text(one.p_holm, one.word) if one else "" for one in compared]
    first = ["curve", "difference [pp]", "p (Holm)"]
    return texts[[*first, *texts.columns.drop(first)]].loc[:, texts.ne("").any()]


def difference_text(mean: float, low: float, high: float) -> str:
    """'+0.12 [+0.04, +0.20]'; '' where there is none."""
    if np.isnan(mean):
        return ""
    return f"{mean:+.2f}" + ("" if np.isnan(low) else f" [{low:+.2f}, {high:+.2f}]")


def is_tested(word: str) -> bool:
    """Whether a comparison's `word` tells of a test, with seeds enough for it to reject."""
    return bool(word) and not word.startswith(("n too small", "no test"))


def p_text(p: float, word: str) -> str:
    """A corrected p-value, or why there is none."""
    if not is_tested(word):
        return word.partition(":")[0]
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _texts(table: pd.DataFrame, best: str = "") -> pd.DataFrame:
    """What a reader sees of `rows`; `best` stands on both sides of a number that is among the three best."""
    return pd.DataFrame(
        {
            "training": row["protocol"] or "other",
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
    if cell["model"].get("norm_position") == "after":
        parts.append("normalized after the activation")
    if cell.get("precision", "fp32") != "fp32":
        parts.append(cell["precision"])
    return ", ".join(parts)


def from_to(counts: Iterable[int]) -> str:
    """'3', or '3 to 10'."""
    low, high = min(counts := list(counts)), max(counts)
    return f"{low} to {high}" if low < high else str(low)


def most_efficient(panel: Sequence[Series]) -> list[Series]:
    """The three schedules with the least mean test error at the last epoch, with alpha = 1 and BN to compare.

    Without a finite schedule, everything: then there is nothing to choose from.
    """
    last = {id(one): compare.summary(one, "last").mean for one in panel if one.protocol}
    ranked = sorted((one for one, error in last.items() if np.isfinite(error)), key=last.__getitem__)
    if not ranked:
        return list(panel)
    return [one for one in panel if id(one) in ranked[:TOP] or one.key in (ALPHA_ONE, MODERN_BN)]
