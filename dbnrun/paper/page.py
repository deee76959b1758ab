"""The page of the paper's runs: report/page with claims and verdicts, Table 1, its figures and the sensitivity runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dbnrun.paper import normalizers, sensitivity, table1, verdicts
from dbnrun.paper.protocols import PAPER_DATASETS, experiment_of, letter
from dbnrun.paper.result_set import ResultSet
from dbnrun.paper.statistics import difference, p_text, with_interval
from dbnrun.report import page as general
from dbnrun.report import stats
from dbnrun.report.compare import ERRORS, column
from dbnrun.report.names import ALPHA_ONE, CONSTANTS, DATASETS, PROTOCOLS, name_of
from dbnrun.report.page import charts, provenance
from dbnrun.report.series import Setting
from dbnrun.report.tables import is_tested, most_efficient

TITLE = "Diminishing Batch Normalization: the paper's claims, measured"
FIGURES = (
    (2, "test_error_pct", False, "test error, every schedule"),
    (3, "test_error_pct", True, "test error of the most efficient schedules"),
    (4, "val_loss", True, "validation loss of the most efficient schedules"),
)


def page(results: ResultSet, title: str = "") -> str:
    """The whole page as text."""
    finished = [setting for setting in results.settings if setting.n]
    table, names = charts.curves(finished, letter), general.titles_of(finished)
    judged = {one.protocol for one in results.verdicts if one.verdict != verdicts.NOT_RUN}
    answered = next((one for one in results.protocols if one in judged), "")
    beside = [one for one in finished if one.slug not in results.mains or one.n > results.mains[one.slug].n]
    others = beside if judged else finished
    template = Path(__file__).parent / "paper.html"
    filters = {"letter": letter, "name_of": name_of, "error": with_interval, "difference": difference}
    return general.layout(template, p_text=p_text, **filters).render(
        general.common(table, results.runs),
        title=title or TITLE,
        results=results,
        datasets=PAPER_DATASETS,
        labels=DATASETS | {"all": "All three"},
        answer=answer(results, answered) if judged else "",
        answered=letter(answered),
        forests=forests(results, answered),
        claims=verdicts.CLAIMS,
        selections=stats.SELECTIONS,
        margin=verdicts.MARGIN_PP,
        protocols=PROTOCOLS,
        note=" ".join(table1.NOTE.split()).split("*"),
        table_heads=table1.HEADS,
        columns=table1.columns,
        panel=panel,
        by_value=sensitivity.by_value,
        is_tested=is_tested,
        normalizers=normalizers,
        settings=others,
        titles=names,
        sections={one.slug: general.section(one, letter) for one in others},
        explorer=charts.explorer(
            table,
            {name: DATASETS[name] for name in PAPER_DATASETS}
            | {slug: DATASETS.get(slug, names[slug]) for slug in names},
            [letter(protocol) for protocol in results.protocols],
            CONSTANTS,
        ),
        provenance=provenance.by_group(results.runs, lambda run: f"{experiment_of(run.cell)}.csv"),
    )


def answer(results: ResultSet, protocol: str) -> str:
    """Which claims hold on which data set under a protocol, in a sentence."""
    judged = [one for one in results.verdicts if one.protocol == protocol and one.is_primary]
    holds = {
        name: [one.claim for one in judged if one.dataset == name and one.verdict == verdicts.HOLDS]
        for name in PAPER_DATASETS
    }
    run = [name for name in PAPER_DATASETS if any(o.dataset == name and o.verdict != verdicts.NOT_RUN for o in judged)]
    everywhere = [claim for claim in verdicts.CLAIMS if all(claim in holds[name] for name in PAPER_DATASETS)]
    everywhere += [one.claim for one in judged if one.dataset == "all" and one.verdict == verdicts.HOLDS]
    found = "; ".join(f"on {DATASETS[name]}, {', '.join(holds[name]) or 'none'}" for name in run)
    return (
        f"Of the paper's claims, {', '.join(everywhere) or 'none'} holds on all three data sets, read as protocol "
        f"{letter(protocol)} ({PROTOCOLS.get(protocol, protocol)}) and judged at the last epoch against α = 1. "
        f"What holds: {found or 'nothing was run'}."
    )


def forests(results: ResultSet, protocol: str) -> dict[str, charts.Chart]:
    """By data set, the differences of a protocol's schedules to α = 1, where there are any."""
    found = {name: column(one, protocol, ERRORS["last"], ALPHA_ONE) for name, one in results.mains.items()}
    return {
        name: charts.differences({name_of(key): difference for key, difference in compared.items()}, "α = 1")
        for name, compared in found.items()
        if compared
    }


def panel(results: ResultSet, setting: Setting, protocol: str) -> list[tuple[str, str, Any]]:
    """The differences to α = 1 and the paper's three figures: mark, caption, and what the chart shows."""
    shown = []
    if (forest := forests(results, protocol).get(setting.slug)) and forest["rows"]:
        caption = "Last-epoch test error minus that of α = 1, paired by seed, 95 % intervals; blue: significant."
        shown.append(("differences", caption, forest))
    series = setting.panel(protocol)
    n = " / ".join(str(one) for one in sorted({one.n for one in series}))
    for number, measure, efficient, words in FIGURES:
        caption = f"The paper's Figure {number}: {words}. n = {n} seeds."
        chosen = most_efficient(series) if efficient else series
        chart = charts.figure(setting.slug, chosen, letter(protocol), measure, tall=not efficient)
        shown.append((f"figure{number}", caption, chart))
    return shown
