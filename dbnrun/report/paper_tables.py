"""The paper's Table 1 beside ours with intervals and tests, every statistic as CSV, and the sensitivity runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dbnrun.records import write_atomic
from dbnrun.report import compare, stats
from dbnrun.report.book import Book, Variant
from dbnrun.report.compare import ALPHA_ONE, MODERN_BN
from dbnrun.report.gather import Series, Setting
from dbnrun.report.protocols import DATASETS, PROTOCOLS, TEST_RECORDS, letter, name_of
from dbnrun.report.tables import describe, paper_key, paper_numbers

REFERENCES = {"vs_alpha_1": ALPHA_ONE, "vs_bn": MODERN_BN}


def statistics(setting: Setting) -> pd.DataFrame:
    """A row a series and selection: test error [%] over seeds, and paired differences [pp] to both references."""
    protocols = ["", *setting.protocols] if setting.protocols != [""] else [""]
    return pd.DataFrame([row for protocol in protocols for row in _column(setting, protocol)])


def _column(setting: Setting, protocol: str) -> Iterator[dict[str, Any]]:
    for selection in stats.SELECTIONS:
        measure = compare.selected_error(selection)
        against = {name: compare.column(setting, protocol, measure, key) for name, key in REFERENCES.items()}
        for key, series in compare.series_of(setting, protocol).items():
            error = stats.summarize(np.array(list(measure(series).values())))
            row = {
                "dataset": setting.dataset,
                "protocol": letter(protocol),
                "curve": key,
                "selection": selection,
                "n": error.n,
                "mean": error.mean,
                "sd": error.sd,
                "low": error.low,
                "high": error.high,
                "noise_floor": stats.noise_floor(error.mean, TEST_RECORDS[setting.dataset]),
                "paper": _paper(setting.dataset, series),
            }
            for name, compared in against.items():
                row |= _compared(name, compared.get(key))
            yield row


def population(setting: Setting) -> dict[str, float]:
    """The same fields for the weights that all schedules of protocol A share, under the population's statistics."""
    (base, *_) = compare.series_of(setting, "dbn_inference").values()
    errors = compare.by_seed(base, base.column("test_error_pct_population")[:, -1])
    error = stats.summarize(np.array(list(errors.values())))
    row = {"mean": error.mean, "low": error.low, "high": error.high}
    reference = compare.reference_of(setting, "dbn_inference", ALPHA_ONE)
    theirs = compare.selected_error("last")(reference) if reference else {}
    to_one = stats.summarize(compare.paired(errors, theirs))
    return row | {"vs_alpha_1_diff": to_one.mean, "vs_alpha_1_low": to_one.low, "vs_alpha_1_high": to_one.high}


def _compared(name: str, one: compare.Comparison | None) -> dict[str, Any]:
    """The columns of one comparison; empty where a series is the reference itself, or has none."""
    nan = float("nan")
    d = one.difference if one else stats.Summary(0, nan, nan, nan, nan)
    return {
        f"{name}_n": d.n if one else None,
        f"{name}_diff": d.mean,
        f"{name}_low": d.low,
        f"{name}_high": d.high,
        f"{name}_p": one.p if one else nan,
        f"{name}_p_holm": one.p_holm if one else nan,
        f"{name}_word": one.word if one else "",
    }


def _paper(dataset: str, series: Series) -> float:
    paper, key = paper_numbers(), paper_key(series.cell)
    there = series.protocol and dataset in paper and key in paper.index
    return float(paper.loc[key, dataset]) if there else float("nan")


def sensitivity(variants: Sequence[Variant]) -> pd.DataFrame:
    """A row a knob's value and schedule: last-epoch test error [%], and the paired difference [pp] to its own α = 1."""
    measure, best = compare.selected_error("last"), compare.selected_error("best_on_test")
    families = list(dict.fromkeys(variant.family for variant in variants))
    rows = []
    for variant in variants:
        base = variant.series.get(ALPHA_ONE)
        compared = compare.against(base, variant.series, measure) if base else {}
        for key, series in variant.series.items():
            error = stats.summarize(np.array(list(measure(series).values())))
            row = {
                "dataset": variant.dataset,
                "knob": variant.knob,
                "value": variant.value,
                "paper_value": variant.reference,
                "protocol": letter(variant.protocol),
                "family": families.index(variant.family),
                "main": variant.main,
                "setting": describe(variant.cell),
                "curve": key,
                "n": error.n,
                "mean": error.mean,
                "sd": error.sd,
                "low": error.low,
                "high": error.high,
                "best_on_test_mean": float(np.mean(list(best(series).values()))) if series.n else float("nan"),
            }
            rows.append(row | _compared("vs_alpha_1", compared.get(key)))
    return pd.DataFrame(rows)


def write(book: Book, folder: Path) -> list[Path]:
    """Write statistics.csv, paper.md and, where there are such runs, sensitivity.csv and .md; return them."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: statistics(setting) for name, setting in book.mains.items()}
    contents = {
        "statistics.csv": _csv(pd.concat(tables.values())),
        "paper.md": "# The paper's Table 1 beside ours\n\n"
        + "\n".join(_markdown(book.mains[name], table) for name, table in tables.items())
        + NOTE,
    }
    knobs = sensitivity(book.variants)
    if len(knobs):
        contents |= {"sensitivity.csv": _csv(knobs), "sensitivity.md": _sensitivity_markdown(knobs)}
    for name, text in contents.items():
        write_atomic(folder / name, text.encode())
    return [folder / name for name in contents]


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.6g")


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
    "curve",
    "paper",
    "last epoch",
    "best on validation",
    "best on test",
    "floor",
    "to α = 1",
    "p",
    "to BN",
    "p",
    "n",
)


def _markdown(setting: Setting, table: pd.DataFrame) -> str:
    lines = [f"## {DATASETS.get(setting.dataset, setting.dataset)}: {describe(setting.cell)}", ""]
    for protocol, column in table.groupby("protocol", sort=False):
        title = "Peers" if protocol == "baselines" else f"Protocol {protocol}"
        lines += [f"### {title}", "", _line(HEADS), "|" + "---|" * len(HEADS), *map(_line, cells(column)), ""]
    return "\n".join(lines)


def _line(fields: Sequence[str]) -> str:
    return "| " + " | ".join(fields) + " |"


def cells(column: Any) -> Iterator[list[str]]:
    """The fields under HEADS for each series of one column of `statistics`."""
    for key, rows in column.groupby("curve", sort=False):
        row: Any = {one["selection"]: one for one in rows.to_dict("records")}
        last = row["last"]
        yield [
            name_of(str(key)),
            number(last["paper"]),
            *(with_interval(row[selection]) for selection in stats.SELECTIONS),
            number(last["noise_floor"]),
            *(text for name in REFERENCES for text in (difference(last, name), p_text(last, name))),
            str(last["n"]),
        ]


def number(value: float, digits: int = 2) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def with_interval(row: Mapping[str, Any]) -> str:
    """'1.63 [1.58, 1.68]'; the mean alone of one seed."""
    if np.isnan(row["mean"]):
        return "–"
    return number(row["mean"]) + ("" if np.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]")


def difference(row: Mapping[str, Any], name: str) -> str:
    """'−0.12 [−0.20, −0.04]', or '' for the reference itself."""
    if np.isnan(row[f"{name}_diff"]):
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    text = f"{row[f'{name}_diff']:+.2f}" + ("" if np.isnan(low) else f" [{low:+.2f}, {high:+.2f}]")
    return text.replace("-", "−")


def p_text(row: Mapping[str, Any], name: str) -> str:
    """The corrected p-value, or why there is none."""
    word, p = row[f"{name}_word"], row[f"{name}_p_holm"]
    if not is_tested(row, name):
        return word.partition(":")[0]
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def is_tested(row: Mapping[str, Any], name: str) -> bool:
    """Whether there is a comparison, with seeds enough for it to reject."""
    word = row[f"{name}_word"]
    return bool(word) and not word.startswith(("n too small", "no test"))


def _sensitivity_markdown(table: pd.DataFrame) -> str:
    lines = [
        "# Sensitivity: one knob at a time",
        "",
        "Last-epoch test error [%], mean [95 % interval], and the paired difference [pp] to α = 1 with the same knob;",
        "p is the exact two-sided sign-flip test, Holm-corrected over the schedules of that value.",
        "",
        "| data set | setting | protocol | knob | value | curve | n | test error | to α = 1 | p |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        value = f"{row['value']} (paper's runs)" if row["paper_value"] else row["value"]
        cells = [row["dataset"], row["setting"], row["protocol"], row["knob"], value, name_of(str(row["curve"]))]
        cells += [str(row["n"]), with_interval(row), difference(row, "vs_alpha_1"), p_text(row, "vs_alpha_1")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
