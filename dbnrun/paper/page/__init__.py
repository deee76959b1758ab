"""results/report.html: one self-contained page, from the records alone.

What stands on it is here as plain data; page.html lays it out, page.css is its style, charts.js and page.js draw its
charts with the inlined Vega bundle. The content policy forbids every request. The page has no date and no path in it:
the same records give the same bytes.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from dbnrun.paper import charts, table1, verdicts
from dbnrun.paper.book import ResultSet
from dbnrun.paper.protocols import experiment_of, letter
from dbnrun.paper.verdicts import FAILS, HOLDS, NOT_RUN, OPEN, Verdict
from dbnrun.report import stats
from dbnrun.report.names import DATASETS, PROTOCOLS, name_of
from dbnrun.report.series import Setting
from dbnrun.report.tables import describe, from_to
from dbnrun.runs.layout import write_atomic
from dbnrun.runs.load import RunRecord

CLASSES = {HOLDS: "holds", FAILS: "fails", OPEN: "open", NOT_RUN: "notrun"}
SIGNS = {HOLDS: "✓", FAILS: "✗", OPEN: "?", NOT_RUN: "–"}
FIGURES = (
    (2, "test_error_pct", False, "test error, every schedule"),
    (3, "test_error_pct", True, "test error of the most efficient schedules"),
    (4, "val_loss", True, "validation loss of the most efficient schedules"),
)
HERE = Path(__file__).parent


def write(book: ResultSet, judged: Sequence[Verdict], path: Path) -> list[Path]:
    """Write the page; returns its path."""
    write_atomic(path, page(book, judged).encode())
    return [path]


def page(book: ResultSet, judged: Sequence[Verdict]) -> str:
    """The whole page as text."""
    curves = charts.curves(book)
    statistics = {name: table1.statistics(setting) for name, setting in book.mains.items()}
    done = Counter(run.cell["dataset"]["name"] for run in book.runs if run.status == "done")
    return _layout().render(
        classes=CLASSES,
        signs=SIGNS,
        selections=stats.SELECTIONS,
        done={name: done[name] for name in book.datasets if name in done},
        margin=verdicts.MARGIN_PP,
        readings=[(letter(key), text) for key, text in PROTOCOLS.items() if key],
        protocols=[_claims(protocol, judged) for protocol in book.protocols],
        note=" ".join(table1.NOTE.split()).split("*"),
        table_heads=table1.HEADS,
        tables=[_table_1(name, book.mains.get(name), statistics.get(name)) for name in book.datasets],
        figures=[_figures(setting, statistics[name]) for name, setting in book.mains.items()],
        explorer=charts.explorer(book, curves),
        sensitivity=_sensitivity(book),
        provenance=_provenance(book),
        commands=sorted(Counter(_command(run.manifest) for run in book.runs).items()),
        curves=curves.to_csv(index=False),
        bundle=vl_convert.javascript_bundle(),  # pyright: ignore[reportCallIssue] # the stub asks for more
    )


def _layout() -> jinja2.Template:
    layout = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    layout.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    layout.filters |= {"label": _label, "name_of": name_of, "minus": _minus, "in_script": _in_script}
    layout.globals["file"] = lambda name: Markup((HERE / name).read_text())
    return layout.get_template("page.html")


def _in_script(text: str) -> Markup:
    """Text as it stands in a script element, which it cannot end."""
    return Markup(text.replace("</script", "<\\/script"))


def _label(dataset: str) -> str:
    return "All three" if dataset == "all" else DATASETS.get(dataset, dataset)


def _minus(text: str) -> str:
    """A true minus before a digit."""
    return re.sub(r"(?<![A-Za-z0-9])-(?=\d)", "−", text)


def _claims(protocol: str, judged: Sequence[Verdict]) -> dict[str, Any]:
    """A protocol's verdicts by claim, and those by another reference or selection beside them."""
    chosen = [one for one in judged if one.protocol == protocol]
    proper = [one for one in chosen if one.is_primary]
    return {
        "letter": letter(protocol),
        "title": PROTOCOLS.get(protocol, protocol),
        "datasets": list(dict.fromkeys(one.dataset for one in proper if one.dataset != "all")),
        "claims": [
            (claim.partition(" ")[0], text, [one for one in proper if one.claim == claim])
            for claim, text in verdicts.CLAIMS.items()
        ],
        "run": any(one.verdict != NOT_RUN for one in proper),
        "beside": [one for one in chosen if not one.is_primary and one.verdict != NOT_RUN],
    }


def _table_1(name: str, setting: Setting | None, statistics: Any) -> dict[str, Any]:
    """A data set's part of Table 1, a column of the paper's each."""
    if setting is None:
        return {"name": name, "setting": "Not run.", "columns": {}}
    columns = statistics.groupby("protocol", sort=False)
    return {
        "name": name,
        "setting": describe(setting.cell),
        "columns": {protocol: list(table1.cells(column)) for protocol, column in columns},
    }


def _figures(setting: Setting, statistics: Any) -> dict[str, Any]:
    """A data set's panels, one a protocol."""
    panels = [
        {
            "letter": letter(protocol),
            "title": PROTOCOLS.get(protocol, protocol),
            "charts": _panel(setting, protocol, statistics[statistics["protocol"] == letter(protocol)]),
        }
        for protocol in setting.protocols
        if protocol
    ]
    return {"name": setting.dataset, "panels": panels}


def _panel(setting: Setting, protocol: str, column: Any) -> list[tuple[str, str, charts.Chart]]:
    """The differences to α = 1 and the paper's three figures: mark, caption, and what the chart shows."""
    shown = []
    if column["vs_alpha_1_diff"].notna().any():
        caption = "Last-epoch test error minus that of α = 1, paired by seed, 95 % intervals; blue: significant."
        shown.append(("differences", caption, charts.differences(column)))
    n = " / ".join(str(one) for one in sorted({series.n for series in setting.panel(protocol) if series.n}))
    for number, measure, efficient, words in FIGURES:
        caption = f"The paper's Figure {number}: {words}. n = {n} seeds."
        shown.append((f"figure{number}", caption, charts.figure(setting, protocol, measure, efficient=efficient)))
    return shown


def _sensitivity(book: ResultSet) -> list[dict[str, Any]]:
    """A table a knob: a row a value, a column a schedule."""
    table = table1.sensitivity(book.variants)
    if not len(table):
        return []
    groups: Any = table.groupby(["dataset", "protocol", "knob", "setting", "family"], sort=False)
    shown = []
    for (dataset, protocol, knob, setting, _), found in groups:
        curves = list(dict.fromkeys(found["curve"]))
        rows = [_knob_row(str(value), at, curves) for value, at in found.groupby("value", sort=False)]
        who = "peers" if protocol == "baselines" else f"protocol {protocol}"
        title = f"{_label(dataset)}, {who}: {knob}"
        shown.append({"title": title, "setting": setting, "curves": curves, "rows": rows})
    return shown


def _knob_row(value: str, found: Any, curves: Sequence[str]) -> tuple[str, list[tuple[str, str] | None]]:
    """A value with its seeds; an error and its change to α = 1 for each curve, None where it was not run."""
    cells = {}
    for row in found.to_dict("records"):
        change = table1.difference(row)
        if table1.is_tested(row):
            change += f", p {table1.p_text(row)}"
        cells[row["curve"]] = (table1.with_interval(row), change)
    main = " (main)" if found["paper_value"].any() else ""
    return f"{value}{main}, n = {from_to(found['n'])}", [cells.get(curve) for curve in curves]


def _provenance(book: ResultSet) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    for run in book.runs:
        groups[experiment_of(run.cell)].append(run)
    return {f"{name}.csv": _origin(runs) for name, runs in sorted(groups.items())}


def _origin(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """What the runs of a records file say of themselves."""
    manifests = [run.manifest for run in runs]
    devices = (f"{m.get('device', '')} {m.get('device_name', '')} ({m.get('threads', '?')} threads)" for m in manifests)
    return {
        "runs": ", ".join(f"{count} {word}" for word, count in sorted(Counter(run.status for run in runs).items())),
        "seeds": _spans(sorted({run.cell["seed"] for run in runs})),
        "devices": _distinct(devices),
        "versions": _distinct(", ".join(f"{k} {v}" for k, v in m.get("versions", {}).items()) for m in manifests),
        "revisions": _distinct(_revision(m.get("git")) for m in manifests),
        # Cells trained together each state the wall time of all; their rows hold each one's share.
        "hours": sum(row.train_seconds + row.eval_seconds for run in runs for row in run.rows) / 3600,
        "started": min((str(m["started"])[:10] for m in manifests if "started" in m), default=""),
        "data": _distinct(run.data_digest[:8] for run in runs),
    }


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


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _command(manifest: Mapping[str, Any]) -> str:
    """The command as it would be typed."""
    words = [str(word) for word in manifest.get("command", [])]
    return " ".join([Path(words[0]).name, *words[1:]]) if words else "unknown"
