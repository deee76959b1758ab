"""Writes the paper's Table 1 beside ours, the sensitivity runs and the verdicts, as CSV and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from dbnrun.paper import sensitivity
from dbnrun.paper.protocols import letter
from dbnrun.paper.result_set import ResultSet
from dbnrun.paper.statistics import REFERENCES, difference, p_text, with_interval
from dbnrun.report import stats
from dbnrun.report.names import DATASETS, PROTOCOLS, name_of
from dbnrun.report.tables import describe, markdown, number, write_texts

NOTE = f"""
Test error [%] over n seeds: mean [95 % Student t interval]. *Best on test* chooses each run's epoch by its test error,
as the paper does: optimistic. NI's validation part shares the training distribution and its test set does not: its
selection is reported, not relied on. Differences [pp] are at the last epoch, paired by seed, to α = 1 of the same
protocol (the paper's "BN") and to PyTorch's BN; p is the exact two-sided sign-flip test, Holm-corrected over the
column. *Floor* is the binomial standard error [pp] of one reading of that error on the test set; it does not apply to
the paired differences. Paper: arXiv 1705.08011, Table 1, single values. Protocols:
{"; ".join(f"{letter(key)}, {text}" for key, text in PROTOCOLS.items() if key)}.
"""
HEADS = (
    "curve", "to α = 1", "p", "to BN", "p", "last epoch", "paper", "best on validation", "best on test", "floor", "n",
)  # fmt: skip


def write(results: ResultSet, folder: Path) -> list[Path]:
    """Write statistics.csv, paper.md, verdicts.csv and, where there are such runs, sensitivity.csv and .md."""
    parts = [_markdown(results, dataset) for dataset in results.mains]
    texts = {
        "statistics.csv": _csv(results.statistics),
        "paper.md": "# The paper's Table 1 beside ours\n\n" + "\n".join(parts) + NOTE,
    }
    if len(table := results.sensitivity):
        texts |= {"sensitivity.csv": _csv(table), "sensitivity.md": sensitivity.as_markdown(table)}
    return write_texts(folder, texts | {"verdicts.csv": pd.DataFrame(results.verdicts).to_csv(index=False)})


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.6g")


def _markdown(results: ResultSet, dataset: str) -> str:
    parts = [f"## {DATASETS[dataset]}: {describe(results.mains[dataset].cell)}\n"]
    for title, heads, rows in columns(results, dataset):
        parts.append(f"### {title}\n\n{markdown(pd.DataFrame(rows, columns=pd.Index(heads)))}\n")
    return "\n".join(parts)


def columns(results: ResultSet, dataset: str) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """A data set's part of Table 1, one column of the paper each: title, heads, and one row of texts per series.

    Heads under which no row has a text are left out.
    """
    table = results.statistics
    for protocol, column in table[table["dataset"] == dataset].groupby("protocol", sort=False):
        title = "Other normalizers" if protocol == "baselines" else f"Protocol {protocol}"
        texts = [_texts(str(key), rows) for key, rows in column.groupby("curve", sort=False)]
        kept = [place for place in range(len(HEADS)) if any(row[place] for row in texts)]
        yield title, [HEADS[place] for place in kept], [[row[place] for place in kept] for row in texts]


def _texts(key: str, rows: Any) -> list[str]:
    """The fields under HEADS of one series, from its rows of the statistics."""
    row = {one["selection"]: one for one in rows.to_dict("records")}
    last = row["last"]
    return [
        name_of(key),
        *(text for name in REFERENCES for text in (difference(last, name), p_text(last, name))),
        with_interval(last),
        number(last["paper"]),
        *(with_interval(row[selection]) for selection in stats.SELECTIONS if selection != "last"),
        number(last["noise_floor"]),
        str(last["n"]),
    ]
