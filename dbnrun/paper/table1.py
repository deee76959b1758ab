"""Every statistic as one table, a row a series and selection; the paper's Table 1 beside ours; the sensitivity runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dbnrun.paper.book import ResultSet, Variant
from dbnrun.paper.protocols import letter
from dbnrun.report import compare, stats
from dbnrun.report.compare import ALPHA_ONE, MODERN_BN
from dbnrun.report.names import DATASETS, PROTOCOLS, TEST_RECORDS, name_of
from dbnrun.report.series import Series, Setting
from dbnrun.report.tables import describe, markdown, number, paper_number, write_texts

REFERENCES = {"vs_alpha_1": ALPHA_ONE, "vs_bn": MODERN_BN}
COMPARED = ("n", "diff", "low", "high", "p", "p_holm", "word")  # what is said against each reference
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
SENSITIVITY_NOTE = """# Sensitivity: one knob at a time

Last-epoch test error [%], mean [95 % interval], and the paired difference [pp] to α = 1 with the same knob;
p is the exact two-sided sign-flip test, Holm-corrected over the schedules of that value.

"""


def statistics(setting: Setting) -> pd.DataFrame:
    """A row a series and selection: test error [%] over seeds, and paired differences [pp] to both references."""
    rows = []
    for protocol in ["", *filter(None, setting.protocols)]:
        column = compare.series_of(setting, protocol)
        references = {name: compare.reference_of(setting, protocol, key) for name, key in REFERENCES.items()}
        for selection in stats.SELECTIONS:
            measure = compare.selected_error(selection)
            differences = _differences(column, measure, references)
            for key, series in column.items():
                error = compare.summary(series, measure)
                row = {
                    "dataset": setting.dataset,
                    "protocol": letter(protocol),
                    "curve": key,
                    "selection": selection,
                    **asdict(error),
                    "noise_floor": stats.noise_floor(error.mean, TEST_RECORDS[setting.dataset]),
                    "paper": paper_number(series.cell),
                }
                rows.append(row | differences[key])
    return pd.DataFrame(rows)


def sensitivity(variants: Sequence[Variant]) -> pd.DataFrame:
    """A row a knob's value and schedule: last-epoch test error [%], and the paired difference [pp] to its own α = 1."""
    families = list(dict.fromkeys(variant.family for variant in variants))
    last, best = compare.selected_error("last"), compare.selected_error("best_on_test")
    rows = []
    for variant in variants:
        differences = _differences(variant.series, last, {"vs_alpha_1": variant.series.get(ALPHA_ONE)})
        for key, series in variant.series.items():
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
                **asdict(compare.summary(series, last)),
                "best_on_test_mean": compare.summary(series, best).mean,
            }
            rows.append(row | differences[key])
    return pd.DataFrame(rows)


def _differences(
    column: Mapping[str, Series], measure: compare.Measure, references: Mapping[str, Series | None]
) -> dict[str, dict[str, Any]]:
    """By series of a column, its comparison with each reference; empty where it is the reference, or has none."""
    columns: dict[str, dict[str, Any]] = {key: {} for key in column}
    for name, base in references.items():
        compared = compare.against(base, column, measure) if base else {}
        for key in column:
            values: Sequence[Any] = (None, *[float("nan")] * 5, "")
            if one := compared.get(key):
                d = one.difference
                values = (d.n, d.mean, d.low, d.high, one.p, one.p_holm, one.word)
            columns[key] |= {f"{name}_{part}": value for part, value in zip(COMPARED, values, strict=True)}
    return columns


def population(setting: Setting) -> dict[str, float]:
    """The same fields for the weights that all schedules of protocol A share, under the population's statistics."""
    (base, *_) = compare.series_of(setting, "dbn_inference").values()
    error = compare.summary(base, compare.population_error)
    reference = compare.reference_of(setting, "dbn_inference", ALPHA_ONE)
    theirs = compare.selected_error("last")(reference) if reference else {}
    to_one = stats.summarize(compare.paired(compare.population_error(base), theirs))
    row = {"mean": error.mean, "low": error.low, "high": error.high}
    return row | {"vs_alpha_1_diff": to_one.mean, "vs_alpha_1_low": to_one.low, "vs_alpha_1_high": to_one.high}


def write(book: ResultSet, folder: Path) -> list[Path]:
    """Write statistics.csv, paper.md and, where there are such runs, sensitivity.csv and .md; return them."""
    tables = {name: statistics(setting) for name, setting in book.mains.items()}
    parts = [_markdown(book.mains[name], table) for name, table in tables.items()]
    texts = {
        "statistics.csv": _csv(pd.concat(tables.values())),
        "paper.md": "# The paper's Table 1 beside ours\n\n" + "\n".join(parts) + NOTE,
    }
    knobs = sensitivity(book.variants)
    if len(knobs):
        text = SENSITIVITY_NOTE + markdown(_sensitivity_texts(knobs)) + "\n"
        texts |= {"sensitivity.csv": _csv(knobs), "sensitivity.md": text}
    return write_texts(folder, texts)


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.6g")


def _markdown(setting: Setting, table: pd.DataFrame) -> str:
    parts = [f"## {DATASETS.get(setting.dataset, setting.dataset)}: {describe(setting.cell)}\n"]
    for protocol, column in table.groupby("protocol", sort=False):
        title = "Peers" if protocol == "baselines" else f"Protocol {protocol}"
        parts.append(f"### {title}\n\n{markdown(pd.DataFrame(cells(column), columns=HEADS))}\n")
    return "\n".join(parts)


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


def _sensitivity_texts(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "data set": row["dataset"],
            "setting": row["setting"],
            "protocol": row["protocol"],
            "knob": row["knob"],
            "value": row["value"] + (" (paper's runs)" if row["paper_value"] else ""),
            "curve": name_of(row["curve"]),
            "n": str(row["n"]),
            "test error": with_interval(row),
            "to α = 1": difference(row),
            "p": p_text(row),
        }
        for row in table.to_dict("records")
    )


def with_interval(row: Mapping[Any, Any]) -> str:
    """'1.63 [1.58, 1.68]'; the mean alone of one seed."""
    if np.isnan(row["mean"]):
        return "–"
    return number(row["mean"]) + ("" if np.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]")


def difference(row: Mapping[Any, Any], name: str = "vs_alpha_1") -> str:
    """'−0.12 [−0.20, −0.04]', or '' for the reference itself."""
    if np.isnan(row[f"{name}_diff"]):
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    text = f"{row[f'{name}_diff']:+.2f}" + ("" if np.isnan(low) else f" [{low:+.2f}, {high:+.2f}]")
    return text.replace("-", "−")


def p_text(row: Mapping[Any, Any], name: str = "vs_alpha_1") -> str:
    """The corrected p-value, or why there is none."""
    word, p = row[f"{name}_word"], row[f"{name}_p_holm"]
    if not is_tested(row, name):
        return word.partition(":")[0]
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def is_tested(row: Mapping[Any, Any], name: str = "vs_alpha_1") -> bool:
    """Whether there is a comparison, with seeds enough for it to reject."""
    word = row[f"{name}_word"]
    return bool(word) and not word.startswith(("n too small", "no test"))
