"""Writes results/report.html: one self-contained page, from the records alone.

page.html lays out what the result set holds, page.css is its style, charts.js and page.js draw its charts with the
inlined Vega bundle. The content policy forbids every request. The page has no date and no path in it: the same records
give the same bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import vl_convert

from dbnrun.paper import table1, verdicts
from dbnrun.paper.page import charts, provenance
from dbnrun.paper.protocols import letter
from dbnrun.paper.result_set import ResultSet
from dbnrun.paper.statistics import difference, is_tested, p_text, with_interval
from dbnrun.report import stats
from dbnrun.report.names import DATASETS, PROTOCOLS, name_of
from dbnrun.report.tables import describe, from_to
from dbnrun.runs.layout import write_atomic


def write(results: ResultSet, path: Path) -> Path:
    """Write the page; returns its path."""
    write_atomic(path, page(results).encode())
    return path


def page(results: ResultSet) -> str:
    """The whole page as text."""
    curves = charts.curves(results)
    return _layout().render(
        results=results,
        claims=verdicts.CLAIMS,
        selections=stats.SELECTIONS,
        done=Counter(run.cell["dataset"]["name"] for run in results.runs if run.status == "done"),
        margin=verdicts.MARGIN_PP,
        labels=DATASETS | {"all": "All three"},
        titles=PROTOCOLS,
        note=" ".join(table1.NOTE.split()).split("*"),
        table_heads=table1.HEADS,
        columns=table1.columns,
        panel=charts.panel,
        explorer=charts.explorer(results, curves),
        sensitivity=list(_sensitivity(results)),
        provenance=provenance.by_records(results.runs),
        commands=provenance.commands(results.runs),
        curves=curves.to_csv(index=False),
        bundle=vl_convert.javascript_bundle(),  # pyright: ignore[reportCallIssue] # the stub asks for more
    )


def _layout() -> jinja2.Template:
    layout = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    layout.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    layout.filters |= {"letter": letter, "name_of": name_of, "describe": describe, "minus": _minus}
    return layout.get_template("page.html")


def _minus(text: str) -> str:
    """A true minus before a digit."""
    return re.sub(r"(?<![A-Za-z0-9])-(?=\d)", "−", text)


def _sensitivity(results: ResultSet) -> Iterator[dict[str, Any]]:
    """A table a hyperparameter: a row a value, a column a schedule."""
    table = results.sensitivity
    if not len(table):
        return
    for keys, found in table.groupby(["dataset", "protocol", "knob", "setting", "family"], sort=False):
        dataset, protocol, name, setting, _ = keys
        curves = list(dict.fromkeys(found["curve"]))
        rows = [_row_of_value(value, at, curves) for value, at in found.groupby("value", sort=False)]
        who = "peers" if protocol == "baselines" else f"protocol {protocol}"
        yield {"title": f"{DATASETS[dataset]}, {who}: {name}", "setting": setting, "curves": curves, "rows": rows}


def _row_of_value(value: str, found: Any, curves: Sequence[str]) -> tuple[str, list[tuple[str, str] | None]]:
    """A value with its seeds; an error and its change to α = 1 for each curve, None where it was not run."""
    cells = {}
    for row in found.to_dict("records"):
        change = difference(row) + (f", p {p_text(row)}" if is_tested(row) else "")
        cells[row["curve"]] = (with_interval(row), change)
    main = " (main)" if found["paper_value"].any() else ""
    return f"{value}{main}, n = {from_to(found['n'])}", [cells.get(curve) for curve in curves]
