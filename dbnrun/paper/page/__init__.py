"""Writes results/report.html: one self-contained page, from the records alone.

page.html lays out what the result set holds, page.css is its style, charts.js and page.js draw its charts with the
inlined Vega bundle. The content policy forbids every request. The page has no date and no path in it: the same records
give the same bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import jinja2
import vl_convert

from dbnrun.paper import sensitivity, table1, verdicts
from dbnrun.paper.page import charts, provenance
from dbnrun.paper.protocols import PAPER_DATASETS, letter
from dbnrun.paper.result_set import ResultSet
from dbnrun.paper.statistics import difference, is_tested, p_text, with_interval
from dbnrun.report import stats
from dbnrun.report.names import DATASETS, PROTOCOLS, name_of
from dbnrun.report.tables import describe
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
        datasets=PAPER_DATASETS,
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
        by_value=sensitivity.by_value,
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
    layout.filters |= {"error": with_interval, "difference": difference, "p_text": p_text}
    layout.tests["tested"] = is_tested
    return layout.get_template("page.html")


def _minus(text: str) -> str:
    """A true minus before a digit."""
    return re.sub(r"(?<![A-Za-z0-9])-(?=\d)", "−", text)
