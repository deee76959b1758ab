"""Results inside documents, written from the records between two markers, so that they cannot drift apart.

`<!-- results: … -->` takes the table and the verdicts of the README, `<!-- results of mnist A B: … -->` a data set's
columns under those protocols, `<!-- results of mnist sensitivity B: … -->` its sensitivity runs under one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dbnrun.config import UserError
from dbnrun.records import write_atomic
from dbnrun.report import paper_tables, verdicts
from dbnrun.report.book import Book
from dbnrun.report.compare import ALPHA_ONE, MODERN_BN
from dbnrun.report.protocols import DATASETS, PAPER_DATASETS, name_of
from dbnrun.report.tables import describe, from_to
from dbnrun.report.verdicts import Verdict

BEGIN, END = "<!-- results: written by `dbnrun report --readme` -->", "<!-- end of results -->"
BLOCK = re.compile(r"<!-- results(?: of (?P<columns>[\w ]+))?: written by `dbnrun report --readme` -->\n(.*\n)*?" + END)
ROWS = (
    "1",
    *verdicts.CONSTANTS,
    "1/m epochs",
    "1/m steps",
    "1/m^2 epochs",
    "1/m^2 steps",
    "0",
    "bn",
    "ln",
    "gn",
    "none",
)
LIKELIEST = "A"  # the protocol whose numbers stand beside the paper's


def update(path: Path, book: Book, judged: list[Verdict]) -> bool:
    """Write the results between a document's markers; whether that changed it. Raises UserError without markers."""
    old = path.read_text() if path.exists() else ""
    new = with_results(old, book, judged, path)
    if new != old:
        write_atomic(path, new.encode())
    return new != old


def with_results(text: str, book: Book, judged: list[Verdict], path: Path) -> str:
    """A document's text with what belongs between each pair of its markers."""
    if not BLOCK.search(text):
        raise UserError(f"{path}: expected the lines {BEGIN!r} and {END!r}; put them where the results should stand.")

    def block(found: re.Match[str]) -> str:
        begin = found[0].partition("\n")[0]
        words = (found["columns"] or "").split()
        if not words:
            content = results(book, judged)
        elif words[1:2] == ["sensitivity"]:
            content = sensitivity(book, words[0], *words[2:])
        else:
            content = by_schedule(book, *words)
        return f"{begin}\n{content}\n{END}"

    return BLOCK.sub(block, text)


def by_schedule(book: Book, dataset: str, *letters: str) -> str:
    """A data set's test errors and their differences to α = 1 at the last epoch, as Markdown, protocol by protocol."""
    if dataset not in book.mains:
        return "No runs are recorded yet."
    table: Any = paper_tables.statistics(book.mains[dataset])
    by_protocol = {
        name: rows.set_index("curve") for name, rows in table[table["selection"] == "last"].groupby("protocol")
    }
    shown = [by_protocol.get(letter, table[:0].set_index("curve")) for letter in letters]
    names = [f"{letter}{_count(column)}" for letter, column in zip(letters, shown, strict=True)]
    heads = [text for name in names for text in (f"{name}: test error [%]", "to its α = 1 [pp]")]
    lines = [f"| {DATASETS[dataset]} | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for key in ROWS:
        if any(key in column.index for column in shown):
            lines.append(f"| {name_of(key)} | " + " | ".join(_error_and_gain(shown, key)) + " |")
    if letters == (LIKELIEST,) and len(shown[0]):
        population = paper_tables.population(book.mains[dataset])
        lines.append("| the same weights, population statistics | " + " | ".join(_two(population)) + " |")
    return "\n".join(lines)


SHOWN = ("0.5", "0.1", "0.01", "0.001")  # what stands for a column in `sensitivity`, 1/m and 1/m² beside it


def sensitivity(book: Book, dataset: str, letter: str = LIKELIEST) -> str:
    """The sensitivity of a data set's main setting under a protocol: a line a knob's value; α = 1, gains on it, α = 0.

    m counts epochs under A, where that is what tells the paper's rows apart, and steps under the others.
    """
    table: Any = paper_tables.sensitivity(book.variants)
    if len(table):
        table = table[(table["dataset"] == dataset) & (table["protocol"] == letter) & table["main"]]
    if not len(table):
        return "No runs are recorded yet."
    unit = "epochs" if letter == LIKELIEST else "steps"
    keys = [*SHOWN, f"1/m {unit}", f"1/m^2 {unit}"]
    heads = ["n", "α = 1: test error [%]", *(f"{name_of(key)} [pp]" for key in keys), "α = 0: test error [%]"]
    lines = [f"| {DATASETS[dataset]} | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for (knob, value), rows in table.groupby(["knob", "value"], sort=False):
        by_key = {row["curve"]: row for row in rows.to_dict("records")}
        name = f"{knob} {value}" + (" (main)" if rows["paper_value"].any() else "")
        gains = [paper_tables.difference(by_key[key], "vs_alpha_1") if key in by_key else "not run" for key in keys]
        ends = [paper_tables.with_interval(by_key[key]) if key in by_key else "not run" for key in ("1", "0")]
        lines.append("| " + " | ".join([name, from_to(rows["n"]), ends[0], *gains, ends[1]]) + " |")
    return "\n".join(lines)


def _error_and_gain(shown: Iterable[Any], key: str) -> list[str]:
    return [text for column in shown for text in (_two(column.loc[key]) if key in column.index else ["not run", ""])]


def _two(row: Any) -> list[str]:
    return [paper_tables.with_interval(row), paper_tables.difference(row, "vs_alpha_1")]


def results(book: Book, judged: list[Verdict]) -> str:
    """Table 1 beside ours and the verdicts, as Markdown; a line where nothing is recorded."""
    if not book.mains:
        return "No runs are recorded yet."
    return "\n".join([*_table(book), "", *_verdicts(judged)])


def _table(book: Book) -> list[str]:
    columns = {name: _column(book, name) for name in PAPER_DATASETS}
    keys = [key for key in ROWS if any(key in column.index for column in columns.values())]
    heads = [f"{DATASETS[name].partition(' (')[0]}{_count(columns[name])}" for name in PAPER_DATASETS]
    runs = [f"{DATASETS[name].partition(' (')[0]}: {describe(setting.cell)}" for name, setting in book.mains.items()]
    lines = [
        "Test error [%] at the last epoch, mean over seeds [95 % interval], schedules under protocol A (training by",
        "each batch's own statistics, λ at test alone); in parentheses the paper's, one run at its best epoch on the",
        f"test set. {'; '.join(runs)}.",
        "",
        "| | " + " | ".join(heads) + " |",
        "|---" * (1 + len(PAPER_DATASETS)) + "|",
    ]
    for key in keys:
        cells = [_cell(columns[name], key) for name in PAPER_DATASETS]
        lines.append(f"| {name_of(key)} | " + " | ".join(cells) + " |")
    return lines


def _column(book: Book, dataset: str) -> Any:
    """The last-epoch rows of a data set's main setting by curve: protocol A and the peers; empty where not run."""
    if dataset not in book.mains:
        return pd.DataFrame(columns=["n"])
    table = paper_tables.statistics(book.mains[dataset])
    shown = table[(table["selection"] == "last") & table["protocol"].isin([LIKELIEST, "baselines"])]
    return shown.set_index("curve")


def _count(column: Any) -> str:
    return f", n = {from_to(map(int, column['n']))}" if len(column) else ""


def _cell(column: Any, key: str) -> str:
    if key not in column.index:
        return "not run"
    row = column.loc[key]
    paper = "" if np.isnan(row["paper"]) else f" ({row['paper']:.2f})"
    return paper_tables.with_interval(row) + paper


def _verdicts(judged: list[Verdict]) -> list[str]:
    """The verdicts under protocol A by the last epoch, a line a claim."""
    found: Mapping[tuple[str, str, str], Verdict] = {
        (one.claim, one.dataset, one.reference): one
        for one in judged
        if one.protocol == "dbn_inference" and one.selection in (verdicts.PRIMARY, "")
    }
    lines = [
        "The paper's claims by the rules of [docs/claims.md](docs/claims.md), protocol A, against α = 1; in",
        "parentheses against PyTorch's BN, where that differs:",
        "",
        "| | " + " | ".join(DATASETS[name].partition(" (")[0] for name in PAPER_DATASETS) + " |",
        "|---" * (1 + len(PAPER_DATASETS)) + "|",
    ]
    for claim, text in verdicts.CLAIMS.items():
        both = found.get((claim, "all", ""))
        words = [both.verdict if both else _word(found, claim, name) for name in PAPER_DATASETS]
        lines.append(f"| {claim.partition(' ')[0]}: {text} | " + " | ".join(words) + " |")
    return lines


def _word(found: Mapping[tuple[str, str, str], Verdict], claim: str, dataset: str) -> str:
    mine, modern = (found[claim, dataset, reference].verdict for reference in (ALPHA_ONE, MODERN_BN))
    return mine if modern in (mine, verdicts.NOT_RUN) else f"{mine} ({modern})"
