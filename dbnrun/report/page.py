"""results/report.html: one self-contained page, from the records alone.

Charts are Vega-Lite specifications drawn by the inlined Vega bundle; the content policy forbids every request. The page
has no date and no path in it: the same records give the same bytes.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from dbnrun.records import write_atomic
from dbnrun.report import charts, paper_tables, stats, verdicts
from dbnrun.report.book import Book
from dbnrun.report.charts import Spec
from dbnrun.report.gather import Run
from dbnrun.report.protocols import DATASETS, PAPER_DATASETS, PROTOCOLS, experiment_of, letter, name_of
from dbnrun.report.tables import describe, from_to
from dbnrun.report.verdicts import FAILS, HOLDS, NOT_RUN, OPEN, Verdict

CLASSES = {HOLDS: "holds", FAILS: "fails", OPEN: "open", NOT_RUN: "notrun"}
SIGNS = {HOLDS: "✓", FAILS: "✗", OPEN: "?", NOT_RUN: "–"}
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
# Draws a chart when it is first seen open; SVG, so that text and lines take the page's colours.
SCRIPT = """
{
const specs = JSON.parse(document.getElementById("specs").textContent);
const curves = document.getElementById("curves").textContent;
const options = {renderer: "svg", actions: false, tooltip: {theme: "custom"}};
function draw(chart) {
  if (chart.dataset.drawn) return;
  chart.dataset.drawn = "yes";
  const spec = specs[chart.id];
  if (chart.dataset.curves) spec.datasets = {...spec.datasets, curves};
  const bind = document.getElementById(chart.id + "-menus") ?? undefined;
  vegaEmbed(chart, spec, {...options, bind}).catch(error => {
    chart.textContent = error.message;
    console.error(error);
  });
}
for (const fold of document.querySelectorAll("details"))
  fold.addEventListener("toggle", () => fold.querySelectorAll(".chart").forEach(draw));
for (const chart of document.querySelectorAll(".chart")) if (!chart.closest("details:not([open])")) draw(chart);
}
"""


def write(book: Book, judged: Sequence[Verdict], path: Path) -> list[Path]:
    """Write the page; returns its path."""
    write_atomic(path, page(book, judged).encode())
    return [path]


def page(book: Book, judged: Sequence[Verdict]) -> str:
    """The whole page as text."""
    specs: dict[str, Spec] = {}
    table = charts.curves(book)
    statistics = {name: paper_tables.statistics(setting) for name, setting in book.mains.items()}
    sections = {
        "claims": ("Claims and verdicts", _claims(book, judged)),
        "tables": ("The paper's Table 1 beside ours", _tables(book, statistics)),
        "figures": ("Figures", _figures(book, statistics, specs)),
        "explorer": ("Explorer", _explorer(book, table, specs)),
        "sensitivity": ("Sensitivity", _sensitivity(book)),
        "provenance": ("Provenance", _provenance(book)),
    }
    body = "\n".join(
        f'<section id="{key}"><h2>{title}</h2>\n{content}\n</section>' for key, (title, content) in sections.items()
    )
    links = "".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in sections.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>Diminishing Batch Normalization: the paper's claims, measured</title>
<style>
{resources.files("dbnrun.report").joinpath("page.css").read_text()}</style>
</head>
<body>
<header>
<h1>Diminishing Batch Normalization: the paper's claims, measured</h1>
<p>Ma &amp; Klabjan, arXiv 1705.08011, trained again by <code>dbnrun</code>. {_summary(book)} Everything here is
drawn from the committed records by <code>make figures</code>.</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
</main>
<script type="application/json" id="specs">{_script_safe(json.dumps(specs, ensure_ascii=False))}</script>
<script type="text/csv" id="curves">{_script_safe(table.to_csv(index=False))}</script>
<script>{_script_safe(_bundle())}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed in the version that Altair writes for."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return vl_convert.javascript_bundle(vl_version=version)  # pyright: ignore[reportCallIssue] # the stub asks for more


def _script_safe(text: str) -> str:
    """Text that cannot end the script element it stands in."""
    return text.replace("</script", "<\\/script")


def _summary(book: Book) -> str:
    done = Counter(run.cell["dataset"]["name"] for run in book.runs if run.status == "done")
    listed = ", ".join(f"{DATASETS.get(name, name)} {done[name]:,}" for name in sorted(done, key=_names(book).index))
    return f"{sum(done.values()):,} finished runs ({listed})."


def _claims(book: Book, judged: Sequence[Verdict]) -> str:
    rules = "; ".join(f"<b>{letter(key)}</b>: {escape(text)}" for key, text in PROTOCOLS.items() if key)
    parts = [
        "<p>The verdict stands on the last epoch, against α = 1 of the same protocol (the paper's “BN”), by rules "
        "written down in <code>docs/claims.md</code>: <i>holds</i> where every comparison that a claim names is "
        "significant (exact sign-flip test, Holm-corrected), <i>does not hold</i> where one 95 % interval lies wholly "
        f"on the wrong side or within ± {verdicts.MARGIN_PP} pp of no difference, else <i>undecided</i>. Three ways to "
        f"read the paper's procedure: {rules}.</p>"
    ]
    for protocol in book.protocols:
        chosen = [one for one in judged if one.protocol == protocol]
        beside = [one for one in chosen if not one.is_primary and one.verdict != NOT_RUN]
        parts.append(f"<h3>Protocol {letter(protocol)}: {escape(PROTOCOLS.get(protocol, protocol))}</h3>")
        proper = [one for one in chosen if one.is_primary]
        table = _claims_table(proper)
        parts.append(table if any(one.verdict != NOT_RUN for one in proper) else _fold("Not run", table))
        if beside:
            parts.append(_beside(beside))
    return "\n".join(parts)


def _claims_table(judged: Sequence[Verdict]) -> str:
    names = list(dict.fromkeys(one.dataset for one in judged if one.dataset != "all"))
    found = {(one.claim, one.dataset): one for one in judged}
    lines = ["<table class=claims><thead><tr><th scope=col>claim</th>"]
    lines += [f"<th scope=col>{escape(DATASETS.get(name, name))}</th>" for name in names]
    lines.append("</tr></thead><tbody>")
    for claim, text in verdicts.CLAIMS.items():
        lines.append(f"<tr><th scope=row><b>{claim.partition(' ')[0]}</b> {escape(text)}</th>")
        if (claim, "all") in found:
            lines.append(_verdict(found[claim, "all"], "All three", f" colspan={len(names)}"))
        else:
            lines += [_verdict(found[claim, name], DATASETS.get(name, name)) for name in names]
        lines.append("</tr>")
    return "".join(lines) + "</tbody></table>"


def _verdict(one: Verdict, label: str, span: str = "") -> str:
    reason = "" if one.verdict == NOT_RUN and one.reason == "not run: the reference" else one.reason
    return f'<td data-label="{escape(label)}"{span}>{_badge(one.verdict)}<small>{escape(_minus(reason))}</small></td>'


def _badge(verdict: str) -> str:
    return f'<span class="verdict {CLASSES[verdict]}">{SIGNS[verdict]} {verdict}</span>'


def _minus(text: str) -> str:
    """A true minus before a digit."""
    return re.sub(r"(?<![A-Za-z0-9])-(?=\d)", "−", text)


def _beside(judged: Sequence[Verdict]) -> str:
    """The other reference and the other selections, folded away."""
    rows = [
        [
            one.claim,
            DATASETS.get(one.dataset, "All three"),
            name_of(one.reference) if one.reference else "",
            stats.SELECTIONS.get(one.selection, ""),
            _badge(one.verdict),
            escape(_minus(one.reason)),
        ]
        for one in judged
    ]
    heads = ["claim", "data set", "against", "selection", "would be", "because"]
    return _fold("Beside it: other selections, and against PyTorch's BN", _table(heads, rows))


def _fold(summary: str, content: str, *, open_: bool = False) -> str:
    """Content that a reader unfolds."""
    return f"<details{' open' if open_ else ''}><summary>{escape(summary)}</summary>{content}</details>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "", label: str = "table") -> str:
    """A table that scrolls sideways in a box of its own, by keyboard too; the cells are HTML already."""
    head = "".join(f"<th scope=col>{text}</th>" for text in heads)
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>" + "".join(f"<td>{text}</td>" for text in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll {kind}" role=region tabindex=0 aria-label="{escape(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _tables(book: Book, statistics: Mapping[str, Any]) -> str:
    parts = [_paragraphs(paper_tables.NOTE)]
    for name in _names(book):
        if name not in book.mains:
            parts.append(f"<h3>{escape(DATASETS[name])}</h3><p class=soft>Not run.</p>")
            continue
        setting = book.mains[name]
        parts.append(f"<h3>{escape(DATASETS.get(name, name))}</h3><p class=soft>{escape(describe(setting.cell))}</p>")
        for protocol, column in statistics[name].groupby("protocol", sort=False):
            title = "Peers" if protocol == "baselines" else f"Protocol {protocol}"
            rows = [[escape(text) for text in fields] for fields in paper_tables.cells(column)]
            shown = _table(paper_tables.HEADS, rows, "number", f"{DATASETS.get(name, name)}, {title}")
            parts.append(_fold(title, shown, open_=protocol in ("A", "baselines")))
    return "\n".join(parts)


def _paragraphs(text: str) -> str:
    """A note in Markdown's emphasis as a paragraph."""
    pieces = escape(" ".join(text.split())).split("*")
    return "<p>" + "".join(f"<i>{one}</i>" if i % 2 else one for i, one in enumerate(pieces)) + "</p>"


def _names(book: Book) -> list[str]:
    """The paper's data sets whether run or not, then the others."""
    return [*PAPER_DATASETS, *(name for name in book.mains if name not in PAPER_DATASETS)]


def _figures(book: Book, statistics: Mapping[str, Any], specs: dict[str, Spec]) -> str:
    parts = [
        "<p>Curves are means over seeds with bands of one standard deviation; a click on a name in a legend keeps that "
        "curve alone, a double click brings the others back. The error axes are logarithmic, that of the differences "
        "is linear near 0 and logarithmic beyond.</p>"
    ]
    for name, setting in book.mains.items():
        parts.append(f"<h3>{escape(DATASETS.get(name, name))}</h3>")
        for number, protocol in enumerate(protocol for protocol in setting.protocols if protocol):
            content = _panel(setting, protocol, statistics[name], specs)
            summary = f"Protocol {letter(protocol)}: {PROTOCOLS.get(protocol, protocol)}"
            parts.append(_fold(summary, content, open_=number == 0))
    return "\n".join(parts)


def _panel(setting: Any, protocol: str, statistics: Any, specs: dict[str, Spec]) -> str:
    """The differences to α = 1 and the paper's three figures, for one data set and protocol."""
    mark, parts = f"{setting.dataset}-{letter(protocol)}", []
    column = statistics[statistics["protocol"] == letter(protocol)]
    if column["vs_alpha_1_diff"].notna().any():
        specs[f"{mark}-differences"] = charts.differences(column)
        caption = "Last-epoch test error minus that of α = 1, paired by seed, 95 % intervals; blue: significant."
        parts.append(_figure(f"{mark}-differences", caption, own=True))
    n = " / ".join(str(one) for one in sorted({series.n for series in setting.panel(protocol) if series.n}))
    for number, measure, efficient, words in (
        (2, "test_error_pct", False, "test error, every schedule"),
        (3, "test_error_pct", True, "test error of the most efficient schedules"),
        (4, "val_loss", True, "validation loss of the most efficient schedules"),
    ):
        specs[f"{mark}-figure{number}"] = charts.figure(setting, protocol, measure, efficient=efficient)
        parts.append(_figure(f"{mark}-figure{number}", f"The paper's Figure {number}: {words}. n = {n} seeds."))
    return "\n".join(parts)


def _figure(mark: str, caption: str, *, own: bool = False) -> str:
    """A place for a chart; `own` where its data stand in its specification."""
    curves = "" if own else " data-curves=yes"
    return (
        f'<figure><div class=chart id="{mark}"{curves} role=img aria-label="{escape(caption)}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _explorer(book: Book, table: Any, specs: dict[str, Spec]) -> str:
    specs["explore"] = charts.explorer(book, table)
    return (
        "<p>Mean over seeds with a band of one standard deviation. Point at a curve for its values, or move the "
        "epoch's slider: the values at that epoch stand above the plot.</p>"
        '<figure><div id="explore-menus" class=vega-bindings></div>'
        '<div class=chart id="explore" data-curves=yes></div></figure>'
    )


def _sensitivity(book: Book) -> str:
    table = paper_tables.sensitivity(book.variants)
    if not len(table):
        return "<p class=soft>Not run: no recorded run has a knob elsewhere than the paper's runs.</p>"
    parts = [
        "<p>One knob at a time, all else alike: last-epoch test error [%], mean [95 % interval], and in "
        "italics the paired difference [pp] to α = 1 with the same knob; where there are seeds enough for it to "
        "reject, the sign-flip test's p, Holm-corrected over the row.</p>"
    ]
    groups: Any = table.groupby(["dataset", "protocol", "knob", "setting", "family"], sort=False)
    for (dataset, protocol, knob, setting, _), rows in groups:
        who = "peers" if protocol == "baselines" else f"protocol {protocol}"
        title = f"{DATASETS.get(dataset, dataset)}, {who}: {knob}"
        parts.append(f"<h4>{escape(title)} <span class=soft>({escape(setting)})</span></h4>" + _knob_table(rows, title))
    return "\n".join(parts)


def _knob_table(rows: Any, label: str) -> str:
    """A row a value of the knob, a column a schedule."""
    keys = list(dict.fromkeys(rows["curve"]))
    body = []
    for value, found in rows.groupby("value", sort=False):
        by_key = {row["curve"]: row for row in found.to_dict("records")}
        counts = from_to(found["n"])
        name = f"{value}{' (main)' if found['paper_value'].any() else ''}, n = {counts}"
        body.append([escape(name), *(_knob_cell(by_key.get(key)) for key in keys)])
    return _table(["value", *(escape(name_of(key)) for key in keys)], body, "number", label)


def _knob_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not run"
    change = paper_tables.difference(row, "vs_alpha_1")
    if paper_tables.is_tested(row, "vs_alpha_1"):
        change += f", p {paper_tables.p_text(row, 'vs_alpha_1')}"
    return paper_tables.with_interval(row) + (f"<br><i>{change}</i>" if change else "")


def _provenance(book: Book) -> str:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in book.runs:
        groups[experiment_of(run.cell)].append(run)
    heads = ["records", "runs", "seeds", "device", "versions", "git revision", "time", "first started", "data"]
    rows = [[f"<code>{name}.csv</code>", *_origin(runs)] for name, runs in sorted(groups.items())]
    commands = Counter(_command(run.manifest) for run in book.runs)
    listed = "".join(f"<li><code>{escape(text)}</code> ({count} runs)</li>" for text, count in sorted(commands.items()))
    return _table(heads, rows, label="provenance") + _fold("Commands", f"<ul>{listed}</ul>")


def _origin(runs: Sequence[Run]) -> list[str]:
    """One row's cells: what the runs of a records file say of themselves."""
    manifests = [run.manifest for run in runs]
    # Cells trained together each state the wall time of all; their rows hold each one's share.
    hours = sum(row.train_seconds + row.eval_seconds for run in runs for row in run.rows) / 3600
    started = min((str(manifest["started"])[:10] for manifest in manifests if "started" in manifest), default="")
    return [
        _counts([run.status for run in runs]),
        _spans(sorted({run.cell["seed"] for run in runs})),
        _distinct(
            escape(f"{m.get('device', '')} {m.get('device_name', '')} ({m.get('threads', '?')} threads)")
            for m in manifests
        ),
        _distinct(escape(", ".join(f"{k} {v}" for k, v in m.get("versions", {}).items())) for m in manifests),
        _distinct(f"<code>{escape(_revision(m.get('git')))}</code>" for m in manifests),
        f"{hours:.2f} h",
        escape(started),
        _distinct(f"<code>{escape(run.data_digest[:8])}</code>" for run in runs),
    ]


def _revision(git: str | None) -> str:
    """'23708c5', with '-dirty' kept; 'unknown' outside a checkout."""
    if not git:
        return "unknown"
    name, _, dirty = git.partition("-")
    return name[:8] + ("-" + dirty if dirty else "")


def _counts(words: Iterable[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(Counter(words).items()))


def _spans(numbers: Sequence[int]) -> str:
    """'0–9' where they follow each other; else all of them."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _distinct(texts: Iterable[str]) -> str:
    return "<br>".join(dict.fromkeys(texts))


def _command(manifest: Mapping[str, Any]) -> str:
    """The command as it would be typed."""
    words = [str(word) for word in manifest.get("command", [])]
    return " ".join([Path(words[0]).name, *words[1:]]) if words else "unknown"
