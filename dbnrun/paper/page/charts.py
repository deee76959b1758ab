"""Says what the page's charts show, as plain data: differences with intervals, the paper's figures, the explorer.

charts.js draws each by its `kind`. Every curve chart reads one table, `curves`, that the page holds once.
Colours have at least 3:1 contrast to a white page and to a dark one; text and lines take the page's colours by CSS.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from dbnrun.paper.protocols import PAPER_DATASETS, letter
from dbnrun.paper.result_set import ResultSet
from dbnrun.report.names import CONSTANTS, DATASETS, SCHEDULES, name_of
from dbnrun.report.series import Series, Setting
from dbnrun.report.tables import most_efficient

MEASURES = {
    "test_error_pct": "test error [%]",
    "val_loss": "validation loss [nat]",
    "val_error_pct": "validation error [%]",
    "test_error_pct_population": "test error with population statistics [%]",
    "train_loss": "training loss [nat]",
}
BASELINE_ROWS = "peers"  # what the page's data call the protocol of BN, LN, …
# A hue and a dash for each schedule of Table 1, in its order and at one middle lightness; then for the baselines.
HUES_AND_DASHES: tuple[tuple[str, list[int]], ...] = (
    ("#d6336c", []), ("#e8590c", [8, 2]), ("#b5790a", [4, 2]), ("#5c940d", []),
    ("#2b8a3e", [8, 2, 2, 2]), ("#0c8599", [2, 2]), ("#1c7ed6", [6, 2, 1, 2]),
    ("#4c6ef5", [10, 3]), ("#4c6ef5", [3, 3]), ("#9c36b5", [10, 3]), ("#9c36b5", [3, 3]), ("#868e96", [1, 3]),
    ("#868e96", []), ("#868e96", [5, 2]), ("#868e96", [3, 2]), ("#868e96", [1, 2]),
)  # fmt: skip
LOOKS = dict(zip((*SCHEDULES, "bn", "ln", "gn", "none"), HUES_AND_DASHES, strict=True))
OTHER = ("#868e96", [7, 1])
ROLES = {"chosen": "#1c7ed6", "α = 1": "#d6336c", "BN (PyTorch)": "#868e96", "other": "#adb5bd"}
FIGURES = (
    (2, "test_error_pct", False, "test error, every schedule"),
    (3, "test_error_pct", True, "test error of the most efficient schedules"),
    (4, "val_loss", True, "validation loss of the most efficient schedules"),
)
Chart = dict[str, Any]


def curves(results: ResultSet) -> Any:  # a DataFrame; pandas' own types do not know what a cell holds
    """A row a data set, protocol, curve and epoch: mean and mean ± sd over seeds of each measure (low above 0)."""
    settings = results.mains.values()
    return pd.concat(
        [_curve(setting, series) for setting in settings for series in setting.series if series.n], ignore_index=True
    )


def _curve(setting: Setting, series: Series) -> pd.DataFrame:
    table: dict[str, Any] = {
        "dataset": setting.dataset,
        "protocol": letter(series.protocol) if series.protocol else BASELINE_ROWS,
        "key": series.key,
        "curve": name_of(series.key),
        "n": series.n,
        "epoch": series.epochs,
    }
    for name in MEASURES:
        for part, values in zip(("mean", "low", "high"), series.band(name), strict=True):
            table[f"{name}_{part}"] = _short(values)
    return pd.DataFrame(table)


def _short(values: np.ndarray) -> np.ndarray:
    """Five significant digits: more than a screen shows."""
    return np.array([float(f"{value:.5g}") for value in values])


def panel(results: ResultSet, setting: Setting, protocol: str) -> list[tuple[str, str, Chart]]:
    """The differences to α = 1 and the paper's three figures: mark, caption, and what the chart shows."""
    table = results.statistics
    mine = (table["dataset"] == setting.dataset) & (table["protocol"] == letter(protocol))
    shown = []
    if len(rows := table[mine & (table["selection"] == "last") & table["vs_alpha_1_diff"].notna()]):
        caption = "Last-epoch test error minus that of α = 1, paired by seed, 95 % intervals; blue: significant."
        shown.append(("differences", caption, differences(rows)))
    n = " / ".join(str(one) for one in sorted({series.n for series in setting.panel(protocol)}))
    for number, measure, efficient, words in FIGURES:
        caption = f"The paper's Figure {number}: {words}. n = {n} seeds."
        shown.append((f"figure{number}", caption, figure(setting, protocol, measure, efficient=efficient)))
    return shown


def differences(rows: Any) -> Chart:
    """Last-epoch differences to α = 1 with intervals, from their rows of the statistics."""
    fields = {"diff": "diff", "low": "from", "high": "to", "p_holm": "p_holm", "word": "word", "n": "seeds"}
    shown = rows[[f"vs_alpha_1_{name}" for name in fields]].set_axis(list(fields.values()), axis=1)
    shown.insert(0, "curve", rows["curve"].map(name_of))
    shown = shown.astype({"seeds": int}).astype(object)
    return {"kind": "differences", "rows": shown.where(shown.notna(), None).to_dict("records")}  # JSON knows no NaN


def figure(setting: Setting, protocol: str, measure: str, *, efficient: bool) -> Chart:
    """One of the paper's Figures 2 to 4: every schedule, or the most efficient ones, with bands over seeds."""
    shown = most_efficient(setting.panel(protocol)) if efficient else setting.panel(protocol)
    looks = [LOOKS.get(series.key, OTHER) for series in shown]
    return {
        "kind": "figure",
        "dataset": setting.dataset,
        "protocols": [letter(protocol), BASELINE_ROWS],
        "measure": measure,
        "title": MEASURES[measure],
        "curves": [name_of(series.key) for series in shown],
        "colors": [color for color, _ in looks],
        "dashes": [dash or [1, 0] for _, dash in looks],
        "tall": not efficient,
    }


def explorer(results: ResultSet, table: Any) -> Chart:
    """What the explorer's menus offer, what they show first, and which of their choices were not run."""
    protocols = [letter(protocol) for protocol in results.protocols]
    scheduled = table[table["protocol"] != BASELINE_ROWS]
    known = {*CONSTANTS, *scheduled["key"]}
    keys = list(dict.fromkeys([*(key for key in SCHEDULES if key in known), *scheduled["key"]]))
    run = set(zip(scheduled["dataset"], scheduled["protocol"], scheduled["key"], strict=True))
    first = next(iter(results.mains))
    of_first = [protocol for protocol in protocols if any((first, protocol, key) in run for key in keys)]
    return {
        "kind": "explorer",
        "datasets": [(name, DATASETS[name]) for name in PAPER_DATASETS],
        "protocols": [(name, name) for name in protocols],
        "schedules": [(key, name_of(key)) for key in keys],
        "measures": list(MEASURES.items()),
        "first": {"dataset": first, "protocol": [*of_first, *protocols][0], "curve": "0.25"},
        "epochs": int(table["epoch"].max()),
        "roles": ROLES,
        "missing": [choice for choice in itertools.product(PAPER_DATASETS, protocols, keys) if choice not in run],
    }
