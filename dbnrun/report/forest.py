"""A forest plot of methods against a baseline, and their curves below it: one figure for the tables of a comparison."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from dbnrun.config.registry import UserError
from dbnrun.report import stats
from dbnrun.report.contrast_text import Compared, columns, with_intervals
from dbnrun.report.contrasts import Row, Table
from dbnrun.report.figures import STYLE, line_style, save
from dbnrun.report.methods import Reading
from dbnrun.report.series import Series
from dbnrun.report.tables import from_to

# Inches. The plot keeps its width, and the figure is as wide as the longest label asks.
EDGE, SAMPLE, GAP, PLOT = 0.12, 0.36, 0.12, 3.6
LINE, ROW, HEAD, AXIS, CURVES, Y_AXIS = 0.18, 0.225, 0.26, 0.56, 2.9, 0.62
TALLEST = 400  # matplotlib draws no more than 65,535 pixels
TEXT_PT, TITLE_PT = 8.2, 9.5
FAR = 6  # a row that reaches so many times as far as the median row is cut off, and an arrow says so
BANDS = 6  # more curves than that are drawn without their bands
# For rows that the project's styles do not tell apart, such as learning rates: Okabe and Ito's colours, and dashes.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1, 1, 1)))


def draw(found: Compared, path: Path) -> Path:
    """The figure, in the format of the path's ending: PNG, SVG or PDF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE | {"pdf.fonttype": 42}):
        return save(_figure(found), path)


def _figure(found: Compared) -> Figure:
    labels = [row.label for table in found.tables for row in table.rows]
    beside = [texts for table in found.tables for texts in _numbers(table, found)]
    left = EDGE + SAMPLE + GAP + _widest(labels) + GAP
    right = left + PLOT + 2 * GAP + _widest([number for number, _ in beside])  # where p-values begin
    width = right + _widest([p for _, p in beside]) + GAP + EDGE
    titles = [
        "\n".join(textwrap.fill(line, int(width * 11.5)) for line in (table.title, _what(table, found.reading)))
        for table in found.tables
    ]
    heights = [_height(table, title) for table, title in zip(found.tables, titles, strict=True)]
    if sum(heights) > TALLEST:
        raise UserError(f"--figure: {len(heights)} tables make too tall a figure; ask for fewer with filters.")
    figure = Figure(figsize=(width, sum(heights) + EDGE), dpi=150)
    FigureCanvasAgg(figure)
    top = sum(heights) + EDGE
    for table, title, height in zip(found.tables, titles, heights, strict=True):
        _block(figure, top - EDGE, (left, right), table, title, found)
        top -= height
    return figure


def _what(table: Table, reading: Reading) -> str:
    """'test error [%], last epoch; n = 3 to 10 seeds'."""
    return f"{reading.quantity}, {reading.when}; n = {from_to([row.mean.n for row in table.rows])} seeds"


def _widest(texts: Sequence[str]) -> float:
    """Inches that the longest text takes."""
    prop = FontProperties(size=TEXT_PT)
    return max(TextPath((0, 0), text, prop=prop).get_extents().width / 72 if text.strip() else 0.0 for text in texts)


def _height(table: Table, title: str) -> float:
    return LINE * (title.count("\n") + 1) + HEAD + ROW * len(table.rows) + AXIS + CURVES + AXIS


def _block(figure: Figure, top: float, places: tuple[float, float], table: Table, title: str, found: Compared) -> None:
    """A table's title, forest plot and curves, from `top` inches down; the plot and the p-values begin at `places`."""
    width, tall = figure.get_size_inches()
    figure.text(EDGE / width, top / tall, title, fontsize=TITLE_PT, va="top", linespacing=1.25)
    styles = _styles(table.rows)
    bottom = top - LINE * (title.count("\n") + 1) - HEAD - ROW * len(table.rows)
    axes = _axes(figure, places[0], bottom, PLOT, ROW * len(table.rows))
    near = _forest(axes, table, styles, found.reading)
    _beside(axes, places, table, styles, found)
    curves = _axes(figure, Y_AXIS, bottom - AXIS - CURVES, width - Y_AXIS - 2 * EDGE, CURVES - HEAD)
    _curves(curves, table.rows, styles, found.reading, near)


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes by inches from the figure's lower left corner."""
    wide, tall = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / tall, width / wide, height / tall))


def _styles(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Colour and dash of each row: those of the report's figures where they tell all rows apart."""
    styles = [line_style(Series(row.method.cell, place=place)) for place, row in enumerate(rows)]
    if len(set(map(str, styles))) == len(styles):
        return styles
    many = len(COLORS)
    return [
        {"color": COLORS[place % many], "ls": DASHES[place // many % len(DASHES)], "lw": 1.4}
        for place in range(len(rows))
    ]


# The forest plot


def _shown(row: Row, table: Table) -> stats.Summary:
    """What the forest plot shows of a row: its difference, 0 for the baseline, or its mean where there is none."""
    if table.baseline is None:
        return row.mean
    return stats.Summary(row.mean.n, 0.0, 0.0, 0.0, 0.0) if row.is_baseline else row.contrast.difference


def _forest(ax: Axes, table: Table, styles: Sequence[dict[str, Any]], reading: Reading) -> list[bool]:
    """A row a method, from above: its point and interval; an arrow where they reach beyond the axis.

    Returns for each row whether its point lies within the axis.
    """
    shown = [_shown(row, table) for row in table.rows]
    low, high = limits(shown, 0.0 if table.baseline else None)
    ax.set_xlim(low, high)
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ax.yaxis.set_major_locator(NullLocator())
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.spines["left"].set_visible(False)
    if table.baseline:
        ax.axvline(0, color="#444444", lw=0.8, zorder=1)
    for place, (one, style) in enumerate(zip(shown, styles, strict=True)):
        _point(ax, place, one, style["color"], (low, high))
    if table.baseline:
        unit = f" [{reading.difference_unit}]" if reading.unit else ""
        ax.set_xlabel(f"difference from {table.baseline.label}{unit}", fontsize=TEXT_PT)
    else:
        ax.set_xlabel(reading.quantity, fontsize=TEXT_PT)
    ax.tick_params(labelsize=TEXT_PT)
    return [low <= one.mean <= high for one in shown]


def limits(shown: Sequence[stats.Summary], zero: float | None) -> tuple[float, float]:
    """The range of a forest plot's axis: all points and intervals but those that reach FAR times the median's reach."""
    ends = [
        (min(one.mean, one.low) if np.isfinite(one.low) else one.mean, np.nanmax([one.mean, one.high]))
        for one in shown
        if np.isfinite(one.mean)
    ]
    middle = zero if zero is not None else float(np.median([one.mean for one in shown if np.isfinite(one.mean)]))
    reach = np.array([max(abs(low - middle), abs(high - middle)) for low, high in ends])
    typical = float(np.median(reach[reach > 0])) if (reach > 0).any() else 1.0
    near = [end for end, far in zip(ends, reach, strict=True) if far <= FAR * typical]
    low, high = min([middle, *(end[0] for end in near)]), max([middle, *(end[1] for end in near)])
    margin = 0.06 * (high - low or typical)
    return low - margin, high + margin


def _point(ax: Axes, place: int, one: stats.Summary, color: str, span: tuple[float, float]) -> None:
    if not np.isfinite(one.mean):
        return
    low, high = (one.low, one.high) if np.isfinite(one.low) else (one.mean, one.mean)
    ends = np.clip([low, high], *span)
    ax.plot(ends, [place, place], color=color, lw=1.4, solid_capstyle="butt", zorder=2)
    if span[0] <= one.mean <= span[1]:
        ax.plot([one.mean], [place], "s", color=color, ms=4.5, zorder=3)
    for end, marker, beyond in ((span[0], "<", low < span[0]), (span[1], ">", high > span[1])):
        if beyond:
            ax.plot([end], [place], marker, color=color, ms=5, clip_on=False, zorder=3)


def _numbers(table: Table, found: Compared) -> list[tuple[str, str]]:
    """What stands right of the heading and of each row: the number with its interval, and the p-value."""
    shown, unit = columns(table, found), found.reading.difference_unit if table.baseline else found.reading.unit
    form = "{:+.{}f}" if table.baseline else "{:.{}f}"
    texts = with_intervals([row.contrast.difference if table.baseline else row.mean for row in table.rows], form)
    numbers = ["baseline" if row.is_baseline else text for row, text in zip(table.rows, texts, strict=True)]
    p = list(shown["p (Holm)"]) if "p (Holm)" in shown else [""] * len(numbers)
    what = "difference" if table.baseline else "mean"
    head = f"{what} [{unit}], 95 %" if unit else f"{what}, 95 %"
    return [(head, "p (Holm)" if any(p) else ""), *zip(numbers, p, strict=True)]


def _beside(
    ax: Axes, places: tuple[float, float], table: Table, styles: Sequence[dict[str, Any]], found: Compared
) -> None:
    """Left of each row a sample of its line and its label, right of it its numbers and p-value."""
    across = ax.get_yaxis_transform()  # x in widths of the axes, y in rows
    texts = {"transform": across, "va": "center", "fontsize": TEXT_PT}
    left, right = places
    start, number, p_value = (EDGE - left) / PLOT, 1 + GAP / PLOT, (right - left) / PLOT
    head, *numbers = _numbers(table, found)
    for x, text in zip((number, p_value), head, strict=True):
        ax.text(x, -0.95, text, **texts, color="#555555")
    for place, (row, style, both) in enumerate(zip(table.rows, styles, numbers, strict=True)):
        sample = Line2D([start, start + SAMPLE / PLOT], [place, place], transform=across, clip_on=False, **style)
        ax.add_line(sample)
        ax.text(start + (SAMPLE + GAP) / PLOT, place, row.label, **texts)
        for x, text in zip((number, p_value), both, strict=True):
            ax.text(x, place, text, **texts)


# The curves


def _curves(
    ax: Axes, rows: Sequence[Row], styles: Sequence[dict[str, Any]], reading: Reading, near: Sequence[bool]
) -> None:
    """The mean of each method by epoch, and its standard deviation where few are drawn.

    The axis fits the rows that are `near`, within the forest plot.
    """
    fitted, banded = [], len(rows) <= BANDS and any(row.mean.n > 1 for row in rows)
    for row, style, fits in zip(rows, styles, near, strict=True):
        values = row.method.column(reading.metric)
        there = np.isfinite(values).all(0)
        if not there.any():
            continue
        epochs, mean = np.arange(1, values.shape[1] + 1)[there], values[:, there].mean(0)
        ax.plot(epochs, mean, marker="o" if len(epochs) == 1 else "", ms=4, **style)
        fitted += mean.tolist() if fits else []
        if row.mean.n > 1 and banded:
            sd = values[:, there].std(0, ddof=1)
            ax.fill_between(
                epochs, np.maximum(mean - sd, 0.02 * mean), mean + sd, color=style["color"], alpha=0.12, lw=0
            )
    if fitted:
        _scale(ax, min(fitted), max(fitted))
    said = "mean over seeds" + (" ± standard deviation" if banded else "")
    said += "" if all(near) else "; the curves of rows marked with a triangle above may be cut off or not visible"
    ax.set_title(said, loc="left", fontsize=TEXT_PT)
    ax.set_xlabel("epoch", fontsize=TEXT_PT)
    ax.set_ylabel(reading.quantity + (", log scale" if ax.get_yscale() == "log" else ""), fontsize=TEXT_PT)
    ax.tick_params(labelsize=TEXT_PT)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _scale(ax: Axes, least: float, most: float) -> None:
    """A logarithmic axis where the means span more than a factor of three, and a range that bands do not stretch."""
    if least > 0 and most > 3 * least:
        ax.set_yscale("log")
        margin = (most / least) ** 0.06
        ax.set_ylim(least / margin, most * margin)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if most < 50 * least else (1, 2, 5), numticks=15))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        margin = 0.1 * (most - least or abs(most) or 1.0)
        ax.set_ylim(least - margin, most + margin)
