"""Writes report.html: one self-contained page about any runs.

page.html lays out the settings, page.css is its style, charts.js and page.js draw its charts with the inlined Vega
bundle. The content policy forbids every request. The page has no date and no path in it: the same rows give the same
bytes. A page with more on it extends page.html.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import vl_convert

from dbnrun.report import answer, probes, tables
from dbnrun.report.names import PROTOCOLS, dataset_of
from dbnrun.report.page import charts, provenance
from dbnrun.report.series import Setting, runs_of
from dbnrun.runs.load import RunRecord

TITLE = "Test errors by normalizer and schedule"
FIGURES = (("test_error_pct", "Test error"), ("val_loss", "Validation loss"))
HERE = Path(__file__).parent


def page(settings: Sequence[Setting], runs: Sequence[RunRecord], title: str = "") -> str:
    """The page of these settings, which `runs` make, as text."""
    finished = [setting for setting in settings if setting.n]
    titles = titles_of(finished)
    table = charts.curves(finished)
    groups = {run.signature: setting.slug for setting in settings for run in runs_of([setting])}
    return layout(HERE / "page.html").render(
        common(table, runs),
        title=title or TITLE,
        settings=finished,
        titles=titles,
        sections={setting.slug: section(setting) for setting in finished},
        explorer=charts.explorer(table, titles),
        provenance=provenance.by_group(runs, lambda run: groups[run.signature]),
    )


def common(table: Any, runs: Sequence[RunRecord]) -> dict[str, Any]:
    """What every page holds beside its sections: `table` is of charts.curves."""
    return {
        "done": sum(run.status == "done" for run in runs),
        "commands": provenance.commands(runs),
        "curves": table.to_csv(index=False),
        "bundle": _bundle(),
    }


@functools.cache
def _bundle() -> str:
    """Vega and Vega-Lite as JavaScript; making it takes a second or more."""
    return vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue] # the stub asks for more


def layout(path: Path, **filters: Callable[..., Any]) -> jinja2.Template:
    """A template that may extend page.html and import macros.html, with filters of its own."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, HERE]),
        autoescape=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    environment.filters |= {"describe": tables.describe, "minus": _minus, **filters}
    return environment.get_template(path.name)


def titles_of(settings: Sequence[Setting]) -> dict[str, str]:
    """What people call each setting, by what files call it."""
    names = [dataset_of(setting.cell) for setting in settings]
    labels = [name if names.count(name) == 1 else s.title for name, s in zip(names, settings, strict=True)]
    return {setting.slug: label for setting, label in zip(settings, labels, strict=True)}


def section(setting: Setting, call: charts.Call = str) -> dict[str, Any]:
    """What a setting's part of the page shows; `call` says what the page calls a protocol."""
    base = answer.baseline_of(setting)
    return {
        "sentence": answer.sentence(setting),
        "note": answer.note(setting),
        "table": tables.for_reader(setting),
        "base": base and base.label,
        "forest": charts.differences(answer.against_baseline(setting), base.label) if base else None,
        "probes": _embedded(probes.svg(setting)),
        "panels": [_panel(setting, protocol, call) for protocol in setting.protocols],
    }


def _embedded(svg: bytes | None) -> str:
    """An image as an address that asks for nothing; '' where there is none."""
    return "" if svg is None else "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _panel(setting: Setting, protocol: str, call: charts.Call) -> dict[str, Any]:
    """The curves of a protocol with the baselines, or of these alone."""
    shown = setting.panel(protocol)
    heading = f"{protocol}: {PROTOCOLS.get(protocol, 'a normalizer with a schedule α(m)')}" if protocol else ""
    drawn = [
        (mark, charts.figure(setting.slug, shown, call(protocol), mark, tall=mark == FIGURES[0][0]))
        for mark, _ in FIGURES
    ]
    return {"heading": heading, "charts": [(mark, dict(FIGURES)[mark], chart) for mark, chart in drawn]}


def _minus(text: str) -> str:
    """A true minus before a digit."""
    return re.sub(r"(?<![A-Za-z0-9])-(?=\d)", "−", text)
