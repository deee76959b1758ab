"""results/report.html: one self-contained page, from the records alone.

What stands on it is here; page.html lays it out, page.css and page.js are its style and its script. Charts are
Vega-Lite specifications drawn by the inlined Vega bundle; the content policy forbids every request. The page has no
date and no path in it: the same records give the same bytes.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert
from markupsafe import Markup, escape

from dbnrun.records import write_atomic
from dbnrun.report import charts, paper_tables, stats, verdicts
from dbnrun.report.book import Book
from dbnrun.report.charts import Spec
from dbnrun.report.gather import Run, Setting
from dbnrun.report.protocols import DATASETS, PAPER_DATASETS, PROTOCOLS, experiment_of, letter, name_of
from dbnrun.report.tables import describe, from_to
from dbnrun.report.verdicts import FAILS, HOLDS, NOT_RUN, OPEN, Verdict

CLASSES = {HOLDS: "holds", FAILS: "fails", OPEN: "open", NOT_RUN: "notrun"}
SIGNS = {HOLDS: "✓", FAILS: "✗", OPEN: "?", NOT_RUN: "–"}
HERE = Path(__file__).parent


def write(book: Book, judged: Sequence[Verdict], path: Path) -> list[Path]:
    """Write the page; returns its path."""
    write_atomic(path, page(book, judged).encode())
    return [path]


def page(book: Book, judged: Sequence[Verdict]) -> str:
    """The whole page as text."""
    table = charts.curves(book)
    statistics = {name: paper_tables.statistics(setting) for name, setting in book.mains.items()}
    specs: dict[str, Spec] = {"explore": charts.explorer(book, table)}
    figures = [_figures(setting, statistics[name], specs) for name, setting in book.mains.items()]
    layout = jinja2.Environment(autoescape=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    return layout.from_string((HERE / "page.html").read_text()).render(
        classes=CLASSES,
        signs=SIGNS,
        style=Markup((HERE / "page.css").read_text()),
        summary=_summary(book),
        margin=verdicts.MARGIN_PP,
        readings=[(letter(key), text) for key, text in PROTOCOLS.items() if key],
        protocols=[_judged(protocol, judged) for protocol in book.protocols],
        note=" ".join(paper_tables.NOTE.split()).split("*"),
        table_heads=paper_tables.HEADS,
        tables=[_table_1(name, book.mains.get(name), statistics.get(name)) for name in _names(book)],
        figures=figures,
        sensitivity=_sensitivity(book),
        provenance=_provenance(book),
        commands=sorted(Counter(_command(run.manifest) for run in book.runs).items()),
        specs=_in_script(json.dumps(specs, ensure_ascii=False)),
        curves=_in_script(table.to_csv(index=False)),
        bundle=_in_script(_bundle()),
        script=_in_script((HERE / "page.js").read_text()),
    )


def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed in the version that Altair writes for."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return vl_convert.javascript_bundle(vl_version=version)  # pyright: ignore[reportCallIssue] # the stub asks for more


def _in_script(text: str) -> Markup:
    """Text as it stands in a script element, which it cannot end."""
    return Markup(text.replace("</script", "<\\/script"))


def _label(dataset: str) -> str:
    return DATASETS.get(dataset, dataset)


def _names(book: Book) -> list[str]:
    """The paper's data sets whether run or not, then the others."""
    return [*PAPER_DATASETS, *(name for name in book.mains if name not in PAPER_DATASETS)]


def _summary(book: Book) -> str:
    done = Counter(run.cell["dataset"]["name"] for run in book.runs if run.status == "done")
    listed = ", ".join(f"{_label(name)} {done[name]:,}" for name in sorted(done, key=_names(book).index))
    return f"{sum(done.values()):,} finished runs ({listed})."


def _judged(protocol: str, judged: Sequence[Verdict]) -> dict[str, Any]:
    """A protocol's claims with a cell a data set, and the verdicts by another reference or selection beside them."""
    chosen = [one for one in judged if one.protocol == protocol]
    proper = [one for one in chosen if one.is_primary]
    names = list(dict.fromkeys(one.dataset for one in proper if one.dataset != "all"))
    found = {(one.claim, one.dataset): one for one in proper}
    claims = [
        {
            "claim": claim.partition(" ")[0],
            "text": text,
            "cells": [_verdict(found[claim, "all"], len(names))]
            if (claim, "all") in found
            else [_verdict(found[claim, name]) for name in names],
        }
        for claim, text in verdicts.CLAIMS.items()
    ]
    return {
        "letter": letter(protocol),
        "title": PROTOCOLS.get(protocol, protocol),
        "datasets": [_label(name) for name in names],
        "claims": claims,
        "run": any(one.verdict != NOT_RUN for one in proper),
        "beside": [_beside(one) for one in chosen if not one.is_primary and one.verdict != NOT_RUN],
    }


def _verdict(one: Verdict, span: int = 0) -> dict[str, Any]:
    reason = "" if one.verdict == NOT_RUN and one.reason == "not run: the reference" else one.reason
    label = "All three" if span else _label(one.dataset)
    return {"label": label, "span": span, "verdict": one.verdict, "reason": _minus(reason)}


def _beside(one: Verdict) -> dict[str, str]:
    return {
        "claim": one.claim,
        "dataset": DATASETS.get(one.dataset, "All three"),
        "against": name_of(one.reference) if one.reference else "",
        "selection": stats.SELECTIONS.get(one.selection, ""),
        "verdict": one.verdict,
        "reason": _minus(one.reason),
    }


def _minus(text: str) -> str:
    """A true minus before a digit."""
    return re.sub(r"(?<![A-Za-z0-9])-(?=\d)", "−", text)


def _table_1(name: str, setting: Setting | None, statistics: Any) -> dict[str, Any]:
    """A data set's part of Table 1, a column of the paper's each."""
    if setting is None:
        return {"name": _label(name), "setting": "Not run.", "columns": []}
    columns = [
        {
            "title": "Peers" if protocol == "baselines" else f"Protocol {protocol}",
            "rows": paper_tables.cells(column),
            "open": protocol in ("A", "baselines"),
        }
        for protocol, column in statistics.groupby("protocol", sort=False)
    ]
    return {"name": _label(name), "setting": describe(setting.cell), "columns": columns}


def _figures(setting: Setting, statistics: Any, specs: dict[str, Spec]) -> dict[str, Any]:
    """A data set's panels, one a protocol; their charts' specifications are put into `specs`."""
    panels = [
        {
            "title": f"Protocol {letter(protocol)}: {PROTOCOLS.get(protocol, protocol)}",
            "charts": _panel(setting, protocol, statistics, specs),
        }
        for protocol in setting.protocols
        if protocol
    ]
    return {"name": _label(setting.dataset), "panels": panels}


def _panel(setting: Setting, protocol: str, statistics: Any, specs: dict[str, Spec]) -> list[tuple[str, str, bool]]:
    """The differences to α = 1 and the paper's three figures: mark, caption, whether its data stand in its own spec."""
    mark, shown = f"{setting.dataset}-{letter(protocol)}", []
    column = statistics[statistics["protocol"] == letter(protocol)]
    if column["vs_alpha_1_diff"].notna().any():
        specs[f"{mark}-differences"] = charts.differences(column)
        caption = "Last-epoch test error minus that of α = 1, paired by seed, 95 % intervals; blue: significant."
        shown.append((f"{mark}-differences", caption, True))
    n = " / ".join(str(one) for one in sorted({series.n for series in setting.panel(protocol) if series.n}))
    for number, measure, efficient, words in (
        (2, "test_error_pct", False, "test error, every schedule"),
        (3, "test_error_pct", True, "test error of the most efficient schedules"),
        (4, "val_loss", True, "validation loss of the most efficient schedules"),
    ):
        specs[f"{mark}-figure{number}"] = charts.figure(setting, protocol, measure, efficient=efficient)
        shown.append((f"{mark}-figure{number}", f"The paper's Figure {number}: {words}. n = {n} seeds.", False))
    return shown


def _sensitivity(book: Book) -> list[dict[str, Any]]:
    """A table a knob: a row a value, a column a schedule."""
    table = paper_tables.sensitivity(book.variants)
    if not len(table):
        return []
    groups: Any = table.groupby(["dataset", "protocol", "knob", "setting", "family"], sort=False)
    shown = []
    for (dataset, protocol, knob, setting, _), found in groups:
        who = "peers" if protocol == "baselines" else f"protocol {protocol}"
        keys = list(dict.fromkeys(found["curve"]))
        rows = [_knob_row(str(value), at, keys) for value, at in found.groupby("value", sort=False)]
        heads = ["value", *(name_of(key) for key in keys)]
        shown.append({"title": f"{_label(dataset)}, {who}: {knob}", "setting": setting, "heads": heads, "rows": rows})
    return shown


def _knob_row(value: str, found: Any, keys: Sequence[str]) -> list[str | Markup]:
    by_key = {row["curve"]: row for row in found.to_dict("records")}
    name = f"{value}{' (main)' if found['paper_value'].any() else ''}, n = {from_to(found['n'])}"
    return [name, *(_knob_cell(by_key.get(key)) for key in keys)]


def _knob_cell(row: Mapping[str, Any] | None) -> str | Markup:
    if row is None:
        return "not run"
    change = paper_tables.difference(row)
    if paper_tables.is_tested(row):
        change += f", p {paper_tables.p_text(row)}"
    return (
        Markup("{}<br><i>{}</i>").format(paper_tables.with_interval(row), change)
        if change
        else (paper_tables.with_interval(row))
    )


def _provenance(book: Book) -> list[list[str | Markup]]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in book.runs:
        groups[experiment_of(run.cell)].append(run)
    return [[_code(f"{name}.csv"), *_origin(runs)] for name, runs in sorted(groups.items())]


def _origin(runs: Sequence[Run]) -> list[str | Markup]:
    """One row's cells: what the runs of a records file say of themselves."""
    manifests = [run.manifest for run in runs]
    # Cells trained together each state the wall time of all; their rows hold each one's share.
    hours = sum(row.train_seconds + row.eval_seconds for run in runs for row in run.rows) / 3600
    started = min((str(manifest["started"])[:10] for manifest in manifests if "started" in manifest), default="")
    return [
        ", ".join(f"{count} {word}" for word, count in sorted(Counter(run.status for run in runs).items())),
        _spans(sorted({run.cell["seed"] for run in runs})),
        _distinct(
            f"{m.get('device', '')} {m.get('device_name', '')} ({m.get('threads', '?')} threads)" for m in manifests
        ),
        _distinct(", ".join(f"{k} {v}" for k, v in m.get("versions", {}).items()) for m in manifests),
        _distinct(_code(_revision(m.get("git"))) for m in manifests),
        f"{hours:.2f} h",
        started,
        _distinct(_code(run.data_digest[:8]) for run in runs),
    ]


def _revision(git: str | None) -> str:
    """'23708c5', with '-dirty' kept; 'unknown' outside a checkout."""
    if not git:
        return "unknown"
    name, _, dirty = git.partition("-")
    return name[:8] + ("-" + dirty if dirty else "")


def _spans(numbers: Sequence[int]) -> str:
    """'0–9' where they follow each other; else all of them."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)


def _distinct(texts: Iterable[str | Markup]) -> Markup:
    return Markup("<br>").join(dict.fromkeys(escape(text) for text in texts))


def _command(manifest: Mapping[str, Any]) -> str:
    """The command as it would be typed."""
    words = [str(word) for word in manifest.get("command", [])]
    return " ".join([Path(words[0]).name, *words[1:]]) if words else "unknown"
