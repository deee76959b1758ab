"""The page's charts as Vega-Lite specifications: differences with intervals, the paper's figures, the explorer.

Every curve chart reads one table, `curves`, that the page holds once; a specification names it and carries no data.
Colours have at least 3:1 contrast to a white page and to a dark one; text and lines take the page's colours by CSS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from dbnrun.report.book import Book
from dbnrun.report.gather import Series, Setting
from dbnrun.report.protocols import DATASETS, PAPER_DATASETS, letter, name_of, schedule_key
from dbnrun.report.tables import most_efficient
from dbnrun.report.verdicts import CONSTANTS

MEASURES = {
    "test_error_pct": "test error [%]",
    "val_loss": "validation loss [nat]",
    "val_error_pct": "validation error [%]",
    "test_error_pct_population": "test error with population statistics [%]",
    "train_loss": "training loss [nat]",
}
PEERS = "peers"  # the protocol of BN, LN, … in `curves`
HEIGHT = 300
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
AT = "datum.epoch == min(at, datum.last)"  # the slider goes on where a data set's epochs end
BESIDE = ["α = 1 and BN", "every schedule", "nothing"]
LEGEND: dict[str, Any] = {"symbolType": "stroke", "symbolSize": 500, "symbolOpacity": 1, "symbolStrokeWidth": 2}
Spec = dict[str, Any]


def curves(book: Book) -> Any:  # a DataFrame; pandas' own types do not know what a cell holds
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


def differences(table: Any) -> Spec:
    """Last-epoch differences to α = 1 with intervals, from the rows of one column of `paper_tables.statistics`."""
    rows = table[(table["selection"] == "last") & table["vs_alpha_1_diff"].notna()]
    shown: Any = pd.DataFrame(
        {
            "curve": [name_of(key) for key in rows["curve"]],
            "diff": rows["vs_alpha_1_diff"].to_numpy(),
            "from": rows["vs_alpha_1_low"].to_numpy(),
            "to": rows["vs_alpha_1_high"].to_numpy(),
            "p_holm": rows["vs_alpha_1_p_holm"].to_numpy(),
            "word": rows["vs_alpha_1_word"].to_numpy(),
            "seeds": rows["vs_alpha_1_n"].to_numpy(dtype=int),
        }
    )
    largest = float(np.nanmax(np.abs(shown[["diff", "from", "to"]].to_numpy(float)), initial=0.1))
    ticks = [tick for tick in (0.1, 0.3, 1, 3, 10, 30) if tick <= largest * 1.5]
    axis = alt.Axis(
        values=[-tick for tick in ticks[::-1]] + [0.0, *ticks],
        labelExpr="replace(datum.value, '-', '−')",
        labelFlush=False,
    )
    scale = alt.Scale(type="symlog", constant=0.1, domain=[-largest * 1.15, largest * 1.15])
    base = alt.Chart(shown).encode(y=alt.Y("curve:N", sort=None, title=None))
    tips = [
        alt.Tooltip("curve:N", title="curve"),
        alt.Tooltip("diff:Q", title="difference [pp]", format="+.3f"),
        alt.Tooltip("from:Q", title="95 % from", format="+.3f"),
        alt.Tooltip("to:Q", title="to", format="+.3f"),
        alt.Tooltip("p_holm:Q", title="p (Holm)", format=".3g"),
        alt.Tooltip("word:N", title="in words"),
        alt.Tooltip("seeds:Q", title="n"),
    ]
    x = alt.X("diff:Q", title="test error minus that of α = 1 [pp]", axis=axis, scale=scale)
    color = alt.condition("datum.word == 'differs'", alt.value("#1c7ed6"), alt.value("#868e96"))
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("from:Q", scale=scale), x2="to:Q", color=color, tooltip=tips)
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(x=x, color=color, tooltip=tips)
    zero = alt.Chart().mark_rule(strokeDash=[4, 3], color="#868e96").encode(x=alt.datum(0))
    return _spec(alt.layer(zero, bars, dots, data=shown).properties(width="container", height=20 * len(shown)))


def figure(setting: Setting, protocol: str, measure: str, *, efficient: bool) -> Spec:
    """One of the paper's Figures 2 to 4: every schedule, or the most efficient ones, with bands over seeds."""
    panel = [series for series in setting.panel(protocol) if series.n]
    if efficient:
        panel = most_efficient(panel)
    keys = [schedule_key(series.cell) for series in panel]
    labels = [name_of(key) for key in keys]
    looks = [LOOKS.get(key, ("#868e96", [7, 1])) for key in keys]
    chosen = alt.FieldOneOfPredicate(field="curve", oneOf=labels)
    picked = alt.selection_point(fields=["curve"], bind="legend")
    base = (
        alt.Chart(_curves())
        .transform_filter(f"datum.dataset == '{setting.dataset}'")
        .transform_filter(f"datum.protocol == '{letter(protocol)}' || datum.protocol == '{PEERS}'")
        .transform_filter(chosen)
        .encode(
            x=_epoch_axis(),
            color=alt.Color(
                "curve:N",
                scale=alt.Scale(domain=labels, range=[look[0] for look in looks]),
                legend=alt.Legend(orient="bottom", columns=3, title=None, **LEGEND),
            ),
        )
    )
    lines = base.mark_line(strokeWidth=2).encode(
        y=_log_axis(f"{measure}_mean", MEASURES[measure]),
        strokeDash=alt.StrokeDash(
            "curve:N", scale=alt.Scale(domain=labels, range=[look[1] or [1, 0] for look in looks]), title=None
        ),
        opacity=alt.condition(picked, alt.value(1), alt.value(0.12)),
        tooltip=_tips(measure),
    )
    bands = base.mark_area().encode(
        y=alt.Y(f"{measure}_low:Q"),
        y2=f"{measure}_high:Q",
        opacity=alt.condition(picked, alt.value(0.12), alt.value(0.02)),
    )
    hover = base.mark_point(filled=True, size=90, opacity=0).encode(y=f"{measure}_mean:Q", tooltip=_tips(measure))
    chart = alt.layer(bands, lines.add_params(picked), hover)
    return _spec(chart.properties(width="container", height=HEIGHT if efficient else 1.4 * HEIGHT))


def _curves() -> alt.NamedData:
    return alt.NamedData(name="curves", format=alt.CsvDataFormat(type="csv"))


def _epoch_axis() -> alt.X:
    # Vega asks for one tick more than this step allows, so that a step of 1 gives halves, shown as 1, 2, 2.
    axis = alt.Axis(tickMinStep=1.5, format="d")
    return alt.X("epoch:Q", title="epoch", axis=axis, scale=alt.Scale(nice=False))


def _log_axis(field: str, title: str | None) -> alt.Y:
    axis = alt.Axis(format="~g", tickCount=8)
    return alt.Y(f"{field}:Q", title=title, axis=axis, scale=alt.Scale(type="log", nice=False))


def _tips(measure: str) -> list[alt.Tooltip]:
    return _value_tips(MEASURES[measure], f"{measure}_mean", f"{measure}_low", f"{measure}_high")


def _value_tips(title: str, mean: str, low: str, high: str) -> list[alt.Tooltip]:
    """What stands beside a point: its curve and epoch, and mean and mean ± sd from the fields of these names."""
    return [
        alt.Tooltip("curve:N", title="curve"),
        alt.Tooltip("epoch:Q", title="epoch"),
        alt.Tooltip(f"{mean}:Q", title=title, format=".4~g"),
        alt.Tooltip(f"{low}:Q", title="mean − sd", format=".4~g"),
        alt.Tooltip(f"{high}:Q", title="mean + sd", format=".4~g"),
        alt.Tooltip("n:Q", title="seeds"),
    ]


def explorer(book: Book, table: Any) -> Spec:
    """Pick data set, protocol, schedule and measure; bands, values by pointer, and by a slider over the epochs."""
    names = [*PAPER_DATASETS, *(name for name in book.mains if name not in PAPER_DATASETS)]
    letters = [letter(protocol) for protocol in book.protocols]
    keys = [key for key in LOOKS if key in {*CONSTANTS, *table["key"]} and key not in ("bn", "ln", "gn", "none")]
    keys += [key for key in dict.fromkeys(table["key"]) if key not in LOOKS]
    title = alt.TitleParams(
        text=alt.ExprRef(
            _words("dataset", names, [DATASETS.get(name, name).partition(" (")[0] for name in names])
            + " + ', protocol ' + protocol + ': ' + "
            + _words("measure", list(MEASURES), MEASURES.values())
        ),
        anchor="start",
        offset=8,
    )
    shown = _explored()
    values = [_value(shown, role, row) for row, role in enumerate(("chosen", "α = 1", "BN (PyTorch)"))]
    layers = alt.layer(*_explored_curves(shown), *values, _not_run(names, letters, keys, table))
    layers = layers.add_params(*_menus(next(iter(book.mains)), names, letters, keys, table))
    return _spec(layers.properties(width="container", height=340, title=title))


def _menus(
    first: str, names: Sequence[str], letters: Sequence[str], keys: Sequence[str], table: Any
) -> list[alt.Parameter]:
    """What the reader chooses: the menus, and the slider over the epochs."""
    last = int(table["epoch"].max())
    return [
        _menu("dataset", "Data set", names, [DATASETS.get(name, name) for name in names], first),
        _menu("protocol", "Protocol", letters, letters, _first_run(table, first, letters)),
        _menu("curve", "Schedule", keys, [name_of(key) for key in keys], "0.25" if "0.25" in keys else keys[0]),
        _menu("measure", "Shown", list(MEASURES), list(MEASURES.values()), "test_error_pct"),
        _menu("beside", "Beside it", BESIDE, BESIDE, BESIDE[0]),
        alt.param(name="at", value=last, bind=alt.binding_range(min=1, max=last, step=1, name="Epoch ")),
    ]


def _explored_curves(shown: alt.Chart) -> list[alt.Chart]:
    """The explorer's bands, lines, the rule at the slider's epoch, and the points that answer the pointer."""
    color = alt.Color("role:N", scale=alt.Scale(domain=list(ROLES), range=list(ROLES.values())), legend=None)
    detail = alt.Detail("curve:N")
    lines = shown.mark_line().encode(
        x=_epoch_axis(),
        y=_log_axis("mean", None),
        color=color,
        detail=detail,
        strokeWidth=alt.condition("datum.role == 'other'", alt.value(1), alt.value(2.5)),
    )
    bands = (
        shown.transform_filter("datum.role != 'other'")
        .mark_area(opacity=0.15)
        .encode(x="epoch:Q", y="low:Q", y2="high:Q", color=color, detail=detail)
    )
    rule = (
        shown.transform_filter(f"datum.role == 'chosen' && {AT}")
        .mark_rule(strokeDash=[4, 3], color="#868e96")
        .encode(x="epoch:Q")
    )
    near = alt.selection_point(name="near", nearest=True, on="pointerover", fields=["epoch", "curve"], empty=False)
    visible = alt.condition(near, alt.value(1), alt.value(0))
    tips = _value_tips("mean", "mean", "low", "high")
    points = shown.mark_point(filled=True, size=90).encode(
        x="epoch:Q", y="mean:Q", color=color, opacity=visible, tooltip=tips
    )
    return [bands, lines, rule, points.add_params(near)]


def _first_run(table: Any, dataset: str, letters: Sequence[str]) -> str:
    """The first protocol of a data set that has a curve."""
    there = set(table.loc[table["dataset"] == dataset, "protocol"])
    return next((name for name in letters if name in there), letters[0])


def _menu(name: str, text: str, options: Sequence[str], labels: Sequence[str], value: str) -> alt.Parameter:
    return alt.param(name=name, value=value, bind=alt.binding_select(options=options, labels=labels, name=f"{text} "))


def _words(param: str, options: Sequence[str], labels: Any) -> str:
    """A Vega expression: the label of a parameter's value."""
    pairs = ", ".join(f"'{option}': '{label}'" for option, label in zip(options, labels, strict=True))
    return f"({{{pairs}}})[{param}]"


def _explored() -> alt.Chart:
    """The curves that the menus ask for, each with its role and the measure's mean, low and high."""
    role = (
        "datum.protocol == protocol && datum.key == curve ? 'chosen' : beside == 'nothing' ? '' : "
        "datum.protocol == protocol && datum.key == '1' ? 'α = 1' : datum.key == 'bn' ? 'BN (PyTorch)' : "
        "datum.protocol == protocol && beside == 'every schedule' ? 'other' : ''"
    )
    return (
        alt.Chart(_curves())
        .transform_filter("datum.dataset == dataset")
        .transform_calculate(role=role)
        .transform_filter("datum.role != ''")
        .transform_calculate(
            mean="datum[measure + '_mean']", low="datum[measure + '_low']", high="datum[measure + '_high']"
        )
        .transform_filter("isValid(datum.mean)")
        .transform_joinaggregate(last="max(epoch)")
    )


def _value(shown: alt.Chart, role: str, row: int) -> alt.Chart:
    """A line of text above the plot: a curve's name and its value at the epoch of the slider."""
    text = (
        "datum.curve + ', epoch ' + datum.epoch + ': ' + format(datum.mean, '.4~g') + "
        "(datum.n > 1 ? ' ± ' + format(datum.high - datum.mean, '.2~g') + ' (n = ' + datum.n + ')' : ' (n = 1)')"
    )
    return (
        shown.transform_filter(f"datum.role == '{role}' && {AT}")
        .transform_calculate(text=text)
        .mark_text(align="left", baseline="middle", fontSize=13, fontWeight="bold")
        .encode(x=alt.value(0), y=alt.value(-50 + 18 * row), text="text:N", color=alt.value(ROLES[role]))
    )


def _not_run(names: Sequence[str], letters: Sequence[str], keys: Sequence[str], table: Any) -> alt.Chart:
    """What stands in the plot where a choice was not run."""
    there = set(zip(table["dataset"], table["protocol"], table["key"], strict=True))
    gaps = [
        {"dataset": name, "protocol": protocol, "key": key}
        for name in names
        for protocol in letters
        for key in keys
        if (name, protocol, key) not in there
    ]
    return (
        alt.Chart(alt.InlineData(values=gaps))
        .transform_filter("datum.dataset == dataset && datum.protocol == protocol && datum.key == curve")
        .mark_text(fontSize=14, text="not run", align="left", baseline="middle", fontWeight="bold")
        .encode(x=alt.value(0), y=alt.value(-50))
    )


def _spec(chart: Any) -> Spec:
    """The specification, without a background: the page's shows through in light and in dark."""
    configured = chart.configure(background="transparent", font="system-ui, sans-serif").configure_view(strokeOpacity=0)
    spec: Mapping[str, Any] = configured.to_dict()
    return {key: value for key, value in spec.items() if key != "$schema"}
