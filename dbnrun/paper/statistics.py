"""Computes every statistic of a main setting as one table, a row a series and selection, and says its rows in text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from dbnrun.paper.protocols import letter
from dbnrun.report import compare, stats, tables
from dbnrun.report.compare import Comparison
from dbnrun.report.names import ALPHA_ONE, MODERN_BN
from dbnrun.report.series import Setting
from dbnrun.report.tables import difference_text, number, paper_number

REFERENCES = {"vs_alpha_1": ALPHA_ONE, "vs_bn": MODERN_BN}
Row = Mapping[Any, Any]


def frame(setting: Setting) -> pd.DataFrame:
    """Test error [%] over seeds, and paired differences [pp] to both references."""
    rows = []
    for protocol in dict.fromkeys(["", *setting.protocols]):
        for selection in stats.SELECTIONS:
            measure = compare.ERRORS[selection]
            compared = {name: compare.column(setting, protocol, measure, key) for name, key in REFERENCES.items()}
            for key, series in compare.series_of(setting, protocol).items():
                error = compare.summary(series, selection)
                row = {
                    "dataset": setting.dataset,
                    "protocol": letter(protocol),
                    "curve": key,
                    "selection": selection,
                    **asdict(error),
                    "noise_floor": stats.noise_floor(error.mean, setting.test_records),
                    "paper": paper_number(series),
                }
                for name, column in compared.items():
                    row |= fields(name, (column or {}).get(key))
                rows.append(row)
    return pd.DataFrame(rows)


def fields(name: str, one: Comparison | None) -> dict[str, Any]:
    """A comparison with the reference `name` as fields of a row; empty where there is none."""
    d = one.difference if one else stats.Summary(0, *[float("nan")] * 4)
    return {
        f"{name}_n": one and d.n,
        f"{name}_diff": d.mean,
        f"{name}_low": d.low,
        f"{name}_high": d.high,
        f"{name}_p": one.p if one else float("nan"),
        f"{name}_p_holm": one.p_holm if one else float("nan"),
        f"{name}_word": one.word if one else "",
    }


def population(setting: Setting) -> dict[str, float]:
    """The same fields for the weights that all schedules of protocol A share, under the population's statistics."""
    column = compare.series_of(setting, "dbn_inference")
    first = next(iter(column.values()))
    theirs = compare.ERRORS["last"](column[ALPHA_ONE]) if ALPHA_ONE in column else {}
    to_one = stats.summarize(compare.paired(compare.population_error(first), theirs))
    row = asdict(compare.summary(first, "population"))
    return row | {"vs_alpha_1_diff": to_one.mean, "vs_alpha_1_low": to_one.low, "vs_alpha_1_high": to_one.high}


def with_interval(row: Row) -> str:
    """'1.63 [1.58, 1.68]'; the mean alone of one seed."""
    if np.isnan(row["mean"]):
        return "–"
    return number(row["mean"]) + ("" if np.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]")


def difference(row: Row, name: str = "vs_alpha_1") -> str:
    """'−0.12 [−0.20, −0.04]', or '' for the reference itself."""
    return difference_text(row[f"{name}_diff"], row[f"{name}_low"], row[f"{name}_high"]).replace("-", "−")


def p_text(row: Row, name: str = "vs_alpha_1") -> str:
    """The corrected p-value, or why there is none."""
    return tables.p_text(row[f"{name}_p_holm"], row[f"{name}_word"])
