"""Says what the page's charts show, as plain data: differences with intervals, curves, the explorer.

charts.js draws each by its `kind`. Every curve chart reads one table, `curves`, that the page holds once.
Colours have at least 3:1 contrast to a white page and to a dark one; text and lines take the page's colours by CSS.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dbnrun.report.compare import Comparison
from dbnrun.report.names import PEERS, SCHEDULES, name_of
from dbnrun.report.series import Series, Setting

MEASURES = {
    "test_error_pct": "test error [%]",
    "val_loss": "validation loss [nat]",
    "val_error_pct": "validation error [%]",
    "test_error_pct_population": "test error with population statistics [%]",
    "train_loss": "training loss [nat]",
}
BASELINE_ROWS = "other normalizers"  # what the page's data call the protocol of BN, LN, …
# A hue and a dash for each schedule of Table 1, in its order and at one middle lightness; then for the baselines.
HUES_AND_DASHES: tuple[tuple[str, list[int]], ...] = (
    ("#d6336c", []), ("#e8590c", [8, 2]), ("#b5790a", [4, 2]), ("#5c940d", []),
    ("#2b8a3e", [8, 2, 2, 2]), ("#0c8599", [2, 2]), ("#1c7ed6", [6, 2, 1, 2]),
    ("#4c6ef5", [10, 3]), ("#4c6ef5", [3, 3]), ("#9c36b5", [10, 3]), ("#9c36b5", [3, 3]), ("#868e96", [1, 3]),
    ("#868e96", []), ("#868e96", [5, 2]), ("#868e96", [3, 2]), ("#868e96", [1, 2]),
)  # fmt: skip
LOOKS = dict(zip((*SCHEDULES, *PEERS), HUES_AND_DASHES, strict=True))
# Of any other, and of a second with the same key, in turn: neighbours differ in hue and dash.
OTHER_HUES = ("#e03131", "#3a86a8", "#7a7a00", "#c026d3", "#a8562a", "#0a8f6a", "#6c63d8", "#d9480f")
OTHER_DASHES = ([12, 2], [4, 1], [14, 3, 4, 3])
OTHERS = tuple((OTHER_HUES[i % 8], OTHER_DASHES[(i + 2 * (i // 8)) % 3]) for i in range(24))
ROLES = {"chosen": "#1c7ed6", "α = 1": "#d6336c", "BN (PyTorch)": "#868e96", "other": "#adb5bd"}
Chart = dict[str, Any]
Call = Callable[[str], str]  # a protocol to what the page calls it


def curves(settings: Iterable[Setting], call: Call = str) -> Any:  # a DataFrame; pandas' types do not know its cells
    """A row a setting, protocol, curve and epoch: mean and mean ± sd over seeds of each measure (low above 0)."""
    return pd.concat(
        [_curve(setting, series, call) for setting in settings for series in setting.series if series.n],
        ignore_index=True,
    )


def _curve(setting: Setting, series: Series, call: Call) -> pd.DataFrame:
    same = [one for one in setting.panel(series.protocol) if one.key == series.key]
    table: dict[str, Any] = {
        "dataset": setting.slug,
        "protocol": call(series.protocol) if series.protocol else BASELINE_ROWS,
        "key": series.key if same[0] is series else series.label,
        "curve": series.label,
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


def differences(found: Mapping[str, Comparison], base: str) -> Chart:
    """Differences to a baseline with intervals; those without a number are left out."""
    rows = [
        {
            "curve": name, "diff": one.difference.mean, "from": one.difference.low, "to": one.difference.high,
            "p_holm": one.p_holm, "word": one.word, "seeds": one.difference.n,
        }
        for name, one in found.items()
        if np.isfinite(one.difference.mean)
    ]  # fmt: skip
    return {"kind": "differences", "base": base, "rows": [{k: _known(v) for k, v in row.items()} for row in rows]}


def _known(value: Any) -> Any:
    """None for NaN, which JSON does not know."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def figure(dataset: str, shown: Sequence[Series], protocol: str, measure: str, *, tall: bool) -> Chart:
    """Curves of some series of a setting that the page calls `dataset`, with bands over seeds."""
    looks = _looks(shown)
    return {
        "kind": "figure",
        "dataset": dataset,
        "protocols": [protocol, BASELINE_ROWS],
        "measure": measure,
        "title": MEASURES[measure],
        "curves": [series.label for series in shown],
        "colors": [color for color, _ in looks],
        "dashes": [dash or [1, 0] for _, dash in looks],
        "tall": tall,
        "single": all(len(series.epochs) == 1 for series in shown),
    }


def _looks(shown: Sequence[Series]) -> list[tuple[str, list[int]]]:
    """A colour and a dash for each series; the later ones of a key take what is free."""
    looks = [LOOKS.get(series.key, OTHERS[series.place % len(OTHERS)]) for series in shown]
    free = [other for other in OTHERS if other not in looks]
    return [free.pop(0) if free and look in looks[:place] else look for place, look in enumerate(looks)]


def explorer(
    table: Any, datasets: Mapping[str, str], protocols: Sequence[str] = (), schedules: Sequence[str] = ()
) -> Chart:
    """What the explorer's menus offer, what they show first, and which of their choices were not run.

    `table`: of `curves`. `datasets`: labels by what that table calls settings. `protocols` and `schedules` are offered
    whether they were run or not, beside those that were.
    """
    protocols = list(dict.fromkeys([*protocols, *table["protocol"]]))
    labels = {key: name_of(key) for key in schedules} | dict(zip(table["key"], table["curve"], strict=True))
    keys = [key for key in SCHEDULES if key in labels] + [key for key in labels if key not in SCHEDULES]
    run = set(zip(table["dataset"], table["protocol"], table["key"], strict=True))
    dataset = next(name for name in datasets if name in set(table["dataset"]))
    ran = [one for one in itertools.product([dataset], protocols, keys) if one in run]
    scheduled = [one for one in ran if one[1] != BASELINE_ROWS] or ran
    first = next((one for one in scheduled if one[2] == "0.25"), scheduled[0])
    return {
        "kind": "explorer",
        "datasets": list(datasets.items()),
        "protocols": [(name, name) for name in protocols],
        "schedules": [(key, labels[key]) for key in keys],
        "measures": list(MEASURES.items()),
        "first": dict(zip(("dataset", "protocol", "curve"), first, strict=True)),
        "epochs": int(table["epoch"].max()),
        "roles": ROLES,
        "missing": [choice for choice in itertools.product(datasets, protocols, keys) if choice not in run],
    }
