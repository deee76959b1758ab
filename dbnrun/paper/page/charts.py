"""What the page's charts show, as plain data: differences with intervals, the paper's figures, the explorer.

charts.js draws each by its `kind`. Every curve chart reads one table, `curves`, that the page holds once.
Colours have at least 3:1 contrast to a white page and to a dark one; text and lines take the page's colours by CSS.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from dbnrun.config.identity import schedule_key
from dbnrun.paper.book import ResultSet
from dbnrun.paper.protocols import letter
from dbnrun.paper.verdicts import CONSTANTS
from dbnrun.report.names import DATASETS, name_of
from dbnrun.report.series import Series, Setting
from dbnrun.report.tables import most_efficient

MEASURES = {
    "test_error_pct": "test error [%]",
    "val_loss": "validation loss [nat]",
    "val_error_pct": "validation error [%]",
    "test_error_pct_population": "test error with population statistics [%]",
    "train_loss": "training loss [nat]",
}
PEERS = "peers"  # the protocol of BN, LN, … in `curves`
# Hues in Table 1's order at one middle lightness, and a dash each: constants from 1 down, then 1/m, 1/m², 0, the peers.
LOOKS: dict[str, tuple[str, list[int]]] = {
    "1": ("#d6336c", []),
    "0.75": ("#e8590c", [8, 2]),
    "0.5": ("#b5790a", [4, 2]),
    "0.25": ("#5c940d", []),
    "0.1": ("#2b8a3e", [8, 2, 2, 2]),
    "0.01": ("#0c8599", [2, 2]),
    "0.001": ("#1c7ed6", [6, 2, 1, 2]),
    "1/m epochs": ("#4c6ef5", [10, 3]),
    "1/m steps": ("#4c6ef5", [3, 3]),
    "1/m^2 epochs": ("#9c36b5", [10, 3]),
    "1/m^2 steps": ("#9c36b5", [3, 3]),
    "0": ("#868e96", [1, 3]),
    "bn": ("#868e96", []),
    "ln": ("#868e96", [5, 2]),
    "gn": ("#868e96", [3, 2]),
    "none": ("#868e96", [1, 2]),
}
ROLES = {"chosen": "#1c7ed6", "α = 1": "#d6336c", "BN (PyTorch)": "#868e96", "other": "#adb5bd"}
Chart = dict[str, Any]


def curves(book: ResultSet) -> Any:  # a DataFrame; pandas' own types do not know what a cell holds
    """A row a data set, protocol, curve and epoch: mean and mean ± sd over seeds of each measure (low above 0)."""
    parts = [_curve(setting, series) for setting in book.mains.values() for series in setting.series if series.n]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _curve(setting: Setting, series: Series) -> pd.DataFrame:
    key = schedule_key(series.cell)
    table: dict[str, Any] = {
        "dataset": setting.dataset,
        "protocol": letter(series.protocol) if series.protocol else PEERS,
        "key": key,
        "curve": name_of(key),
        "n": series.n,
        "epoch": series.epochs,
    }
    for name in MEASURES:
        values = series.column(name)
        mean = values.mean(0)
        sd = values.std(0, ddof=1) if series.n > 1 else np.zeros(len(mean))
        table[f"{name}_mean"] = _short(mean)
        table[f"{name}_low"] = _short(np.maximum(mean - sd, mean * 0.02))  # a log axis has no place for 0
        table[f"{name}_high"] = _short(mean + sd)
    return pd.DataFrame(table)


def _short(values: np.ndarray) -> np.ndarray:
    """Five significant digits: more than a screen shows."""
    return np.array([float(f"{value:.5g}") for value in values])


def differences(table: Any) -> Chart:
    """Last-epoch differences to α = 1 with intervals, from the rows of one column of `paper_tables.statistics`."""
    rows = table[(table["selection"] == "last") & table["vs_alpha_1_diff"].notna()]
    shown: Any = pd.DataFrame(
        {
            "curve": [name_of(key) for key in rows["curve"]],
            "diff": rows["vs_alpha_1_diff"],
            "from": rows["vs_alpha_1_low"],
            "to": rows["vs_alpha_1_high"],
            "p_holm": rows["vs_alpha_1_p_holm"],
            "word": rows["vs_alpha_1_word"],
            "seeds": rows["vs_alpha_1_n"].astype(int),
        }
    )
    # JSON knows no NaN.
    return {"kind": "differences", "rows": shown.astype(object).where(shown.notna(), None).to_dict("records")}


def figure(setting: Setting, protocol: str, measure: str, *, efficient: bool) -> Chart:
    """One of the paper's Figures 2 to 4: every schedule, or the most efficient ones, with bands over seeds."""
    panel = [series for series in setting.panel(protocol) if series.n]
    if efficient:
        panel = most_efficient(panel)
    keys = [schedule_key(series.cell) for series in panel]
    looks = [LOOKS.get(key, ("#868e96", [7, 1])) for key in keys]
    return {
        "kind": "figure",
        "dataset": setting.dataset,
        "protocols": [letter(protocol), PEERS],
        "measure": measure,
        "title": MEASURES[measure],
        "curves": [name_of(key) for key in keys],
        "colors": [color for color, _ in looks],
        "dashes": [dash or [1, 0] for _, dash in looks],
        "tall": not efficient,
    }


def explorer(book: ResultSet, table: Any) -> Chart:
    """What the explorer's menus offer, what they show first, and which of their choices were not run."""
    protocols = [letter(protocol) for protocol in book.protocols]
    scheduled = table[table["protocol"] != PEERS]
    keys = [key for key in LOOKS if key in {*CONSTANTS, *scheduled["key"]}]
    keys += [key for key in dict.fromkeys(scheduled["key"]) if key not in LOOKS]
    run = set(zip(scheduled["dataset"], scheduled["protocol"], scheduled["key"], strict=True))
    first = next(iter(book.mains))
    of_first = [protocol for protocol in protocols if any((first, protocol, key) in run for key in keys)]
    return {
        "kind": "explorer",
        "datasets": [(name, DATASETS.get(name, name)) for name in book.datasets],
        "protocols": [(name, name) for name in protocols],
        "schedules": [(key, name_of(key)) for key in keys],
        "measures": list(MEASURES.items()),
        "first": {
            "dataset": first,
            "protocol": [*of_first, *protocols][0],
            "curve": "0.25" if "0.25" in keys else keys[0],
        },
        "epochs": int(table["epoch"].max()),
        "roles": ROLES,
        "missing": [choice for choice in itertools.product(book.datasets, protocols, keys) if choice not in run],
    }
