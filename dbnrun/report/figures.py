"""A setting's test errors and validation losses by epoch, as PNG and SVG."""

from __future__ import annotations

import io
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image
from scipy.optimize import isotonic_regression

from dbnrun.report.names import (
    ALPHA_ONE,
    ALPHA_ZERO,
    BASELINES,
    CONSTANTS,
    DIMINISHING,
    MODERN_BN,
    PROTOCOLS,
    SCHEDULES,
    UNITS,
    alpha_of,
    dataset_of,
)
from dbnrun.report.series import Series, Setting
from dbnrun.report.tables import TOP, describe, from_to, most_efficient
from dbnrun.runs.layout import write_atomic

CROWDED = 1 / 3  # of the whole axis: curves that share less than this get most of a broken one
EVEN_TICKS = 2.5  # a log axis that spans less than this ratio has evenly spaced numbers
MARGIN = 0.12  # of what an axis shows, above and below
CROWD, BAND = 6, 0.11  # a band's opacity, half of it where more curves than that share the axes
MANY, TOGETHER = 8, 4  # a panel of more curves draws some in grey, where more than so many end together
SPOKEN = (ALPHA_ONE, ALPHA_ZERO, "0.1", *(DIMINISHING[unit][0] for unit in UNITS), MODERN_BN)  # of in docs/findings.md
QUIET = {*SCHEDULES, *BASELINES} - {*SPOKEN}
GREY, WIDTH = "#bdbdbd", 84  # characters of a heading
LABEL_PT = 8.2
# Inches. A figure is as wide as its longest label asks, and panels stand below each other: text keeps its size.
LEFT, AXES, LEADER, SAMPLE = 0.78, 5.1, 0.26, 0.3
TITLE_LINE, PANEL_TITLE, STRIP, GAP, MAIN, X_AXIS = 0.19, 0.28, 1.3, 0.2, 3.2, 0.56
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.hashsalt": "dbnrun",  # the same rows give the same bytes
    "svg.fonttype": "none",
    "axes.titlesize": 9,
}


def draw(setting: Setting, folder: Path) -> list[Path]:
    """The curves of a setting below `folder`, as in the paper's Figures 2 to 4; the files written.

    None where no run is finished. test-error-best is left out where it would have all curves of test-error.
    """
    if not setting.n:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    finished = {protocol: setting.panel(protocol) for protocol in setting.protocols}
    # A protocol of which nothing is finished would make a panel of baselines alone.
    panels = {name: panel for name, panel in finished.items() if any(s.protocol for s in panel)} or {
        "": [s for s in setting.series if s.n]
    }
    best = {protocol: most_efficient(panel) for protocol, panel in panels.items()}
    fewer = any(len(best[protocol]) < len(panel) for protocol, panel in panels.items())
    name, chosen = dataset_of(setting.cell), rule(best)
    every = ", every schedule" if any(panels) else ""
    error, loss = ("test_error_pct", "test error [%]"), ("val_loss", "validation loss [nat]")
    figures = [
        ("test-error", [f"{name}: test error{every}"], panels, *error),
        ("test-error-best", [f"{name}: test error{chosen[0]}", *chosen[1:]], best, *error),
        ("validation-loss", [f"{name}: validation loss{chosen[0]}", *chosen[1:]], best, *loss),
    ]
    written = []
    for what, title, shown, column, unit in figures if fewer else figures[::2]:
        with mpl.rc_context(STYLE):
            figure = _figure("\n".join([*title, describe(setting.cell)]), shown, column, unit)
            for suffix in (".png", ".svg"):
                written.append(save(figure, folder / f"{setting.slug}-{what}{suffix}"))
    return written


def rule(best: dict[str, list[Series]]) -> list[str]:
    """How the best schedules were chosen: the end of the title's first line, and a second line."""
    shown = [series for panel in best.values() for series in panel]
    if not any(series.protocol for series in shown):
        return [""]
    also = [
        text
        for text, there in (
            ("α = 1", any(series.key == ALPHA_ONE for series in shown)),
            ("BN", any(series.key == MODERN_BN for series in shown)),
        )
        if there
    ]
    compared = f", and {' and '.join(also)} to compare" if also else ""
    count = min(TOP, max(sum(bool(series.protocol) for series in panel) for panel in best.values()))
    return [", most efficient schedules", f"the {count} of least mean test error at the last epoch{compared}"]


def _figure(title: str, panels: dict[str, list[Series]], column: str, unit: str) -> Figure:
    """A panel a protocol; every axis is logarithmic, and broken only where no curve crosses the break."""
    parts = {protocol: _parts(panel, column) for protocol, panel in panels.items()}
    quiet = {protocol: _quiet(part, column) for protocol, part in parts.items()}
    heads = {protocol: _heading(protocol, panel, quiet[protocol]) for protocol, panel in panels.items()}
    head = TITLE_LINE * (title.count("\n") + 1) + 0.12
    heights = {protocol: _height(part, heads[protocol]) for protocol, part in parts.items()}
    tall = head + sum(heights.values())
    labels = [series.label for panel in panels.values() for series in panel]
    size = (LEFT + AXES + LEADER + SAMPLE + _widest(labels) + 0.15, tall)
    figure = Figure(figsize=size, dpi=150)
    FigureCanvasAgg(figure)
    figure.text(0.1 / size[0], 1 - 0.1 / size[1], title, fontsize=9.5, ha="left", va="top", linespacing=1.25)
    longest = max(series.epochs[-1] for panel in panels.values() for series in panel)
    bottom, drawn = tall - head, []
    for protocol, part in parts.items():
        bottom -= heights[protocol]
        axes = _panel(figure, bottom + X_AXIS, len(part) == 2, heads[protocol], unit)
        for ax, shown, limits in zip(axes, part, _limits(part, column), strict=True):
            loud = [series for series in shown if series not in quiet[protocol]]
            drawn.append((ax, shown, loud, limits))
    for ax, shown, loud, limits in drawn:
        markers = _markers(loud)
        for series in shown:
            if series in loud:
                _curve(ax, series, column, markers[id(series)], BAND if len(loud) <= CROWD else BAND / 2)
            else:
                ax.plot(series.epochs, _mean(series, column), color=GREY, lw=1, zorder=1.5)
        ax.set_xlim(1 - 0.012 * longest, longest + 0.012 * longest)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _scale(ax, limits)
    figure.canvas.draw()  # fixes the transforms that labels are placed by
    for ax, _, loud, _ in drawn:
        _label_ends(ax, loud, column)
    return figure


def _quiet(parts: Sequence[Sequence[Series]], column: str) -> list[Series]:
    """Where a panel has many curves, those to draw in grey: no text speaks of them, and they end amid others."""
    if sum(map(len, parts)) <= MANY:
        return []
    crowded: set[int] = set()
    for part, (low, high), height in zip(parts, _limits(parts, column), (MAIN, STRIP), strict=False):
        ends = [_end(series, column) for series in part]
        order = [place for place in np.argsort(ends) if np.isfinite(ends[place])]
        up = height * np.log(np.array(ends)[order] / low) / np.log(high / low)  # inches
        breaks = np.flatnonzero(np.diff(up) >= LABEL_PT * 1.3 / 72) + 1
        for crowd in np.split(np.array(order, dtype=int), breaks):
            crowded |= {id(part[place]) for place in crowd if len(crowd) > TOGETHER}
    return [series for part in parts for series in part if id(series) in crowded and series.key in QUIET]


def _end(series: Series, column: str) -> float:
    """The last finite mean of a curve that a log axis can show; NaN where there is none."""
    mean = _mean(series, column)
    there = mean[np.isfinite(mean) & (mean > 0)]
    return float(there[-1]) if len(there) else float("nan")


def _heading(protocol: str, panel: Sequence[Series], quiet: Sequence[Series]) -> str:
    """What stands above a panel: what its curves share, and the names of those in grey."""
    lines = ["; ".join(filter(None, [PROTOCOLS.get(protocol, protocol), _counted(panel)]))]
    if quiet:
        lines += textwrap.wrap(f"in grey: {', '.join(series.label for series in quiet)}", WIDTH)
    return "\n".join(lines)


def _height(part: Sequence[Sequence[Series]], heading: str) -> float:
    """Inches of a panel, from its heading down to its x axis."""
    return PANEL_TITLE + TITLE_LINE * heading.count("\n") + (len(part) - 1) * (STRIP + GAP) + MAIN + X_AXIS


def _panel(figure: Figure, bottom: float, broken: bool, heading: str, unit: str) -> list[Axes]:
    """The empty axes of a protocol, `bottom` inches up: one, or the lower and the upper part of a broken axis."""
    axes = [_axes(figure, bottom, MAIN)]
    if broken:
        axes.append(_axes(figure, bottom + MAIN + GAP, STRIP))
        _mark_break(*axes)
    axes[0].set_xlabel("epoch")
    axes[0].set_ylabel(f"{unit}, log scale")
    middle = (MAIN + GAP + STRIP if broken else MAIN) / 2
    axes[0].yaxis.set_label_coords((0.24 - LEFT) / AXES, middle / MAIN)
    axes[-1].set_title(heading, loc="left")
    return axes


def _axes(figure: Figure, bottom: float, height: float) -> Axes:
    """Axes `bottom` inches up, as tall as said."""
    width, tall = figure.get_size_inches()
    return figure.add_axes((LEFT / width, bottom / tall, AXES / width, height / tall))


def _widest(labels: Sequence[str]) -> float:
    """Inches that the longest label takes."""
    figure = Figure(dpi=150)
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [figure.text(0, 0, label, fontsize=LABEL_PT) for label in labels]
    return max((text.get_window_extent(renderer).width for text in texts), default=0.0) / 150


def _parts(panel: Sequence[Series], column: str) -> list[list[Series]]:
    """The panel's curves; two lists of them, lower and upper, where the axis is broken between the two.

    It is broken at the widest gap that no curve enters in any epoch, below which lie at least half of the curves and,
    left whole, less than CROWDED of the axis.
    """
    spans = {id(series): _span([series], column) for series in panel}
    known = sorted((s for s in panel if spans[id(s)]), key=lambda series: spans[id(series)])
    if not known:
        return [list(panel)]
    low, high = _span(known, column)
    best, lower = 1.0, known
    for count in range((len(known) + 1) // 2, len(known)):
        top = max(spans[id(series)][1] for series in known[:count])
        gap = spans[id(known[count])][0] / top
        if gap > best and np.log(top / low) < CROWDED * np.log(high / low):
            best, lower = gap, known[:count]
    upper = [series for series in panel if series in known and series not in lower]
    return [[series for series in panel if series not in upper], *([upper] if upper else [])]


def _span(panel: Sequence[Series], column: str) -> tuple[float, ...]:
    """The least and the largest value of the curves that a log axis can show; () where there is none.

    The values are means, and of a single epoch its bar, too.
    """
    values = np.concatenate(
        [np.ravel(series.band(column) if len(series.epochs) == 1 else _mean(series, column)) for series in panel]
    )
    values = values[np.isfinite(values) & (values > 0)]
    return (float(values.min()), float(values.max())) if len(values) else ()


def _limits(parts: Sequence[Sequence[Series]], column: str) -> list[tuple[float, float]]:
    """The range of each part's axis: its means and a margin, up to the middle of the break; bands may be cut."""
    spans = [_span(part, column) or (1.0, 1.0) for part in parts]
    margins = [max((high / low) ** MARGIN, 1.02) for low, high in spans]
    limits = [[low / margin, high * margin] for (low, high), margin in zip(spans, margins, strict=True)]
    if len(parts) == 2:
        middle = (spans[0][1] * spans[1][0]) ** 0.5
        limits[0][1], limits[1][0] = min(limits[0][1], middle), max(limits[1][0], middle)
    if column.endswith("pct"):
        limits[-1][1] = min(limits[-1][1], 100.0)
    return [(low, high) for low, high in limits]


def _mark_break(lower: Axes, upper: Axes) -> None:
    """Two strokes across the left spine where the axis is broken, and between them what that means."""
    upper.tick_params(bottom=False, labelbottom=False)
    upper.spines["bottom"].set_visible(False)
    for ax, end in ((lower, 1), (upper, 0)):
        stroke = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 7, "color": "black", "mew": 0.8, "clip_on": False}
        ax.plot([0], [end], ls="none", transform=ax.transAxes, **stroke)
    said = {"fontsize": 7, "style": "italic", "va": "center", "transform": lower.transAxes}
    lower.figure.text(0.1 / AXES, 1 + GAP / 2 / MAIN, "axis broken; another scale above", **said)


def _counted(panel: Sequence[Series]) -> str:
    """'n = 3 seeds, mean ± standard deviation'."""
    counts = [series.n for series in panel]
    if max(counts, default=0) <= 1:
        return "n = 1 seed" if counts else ""
    return f"n = {from_to(counts)} seeds, mean ± standard deviation"


def _mean(series: Series, column: str) -> np.ndarray:
    return series.column(column).mean(0)


def _markers(panel: Sequence[Series]) -> dict[int, str]:
    """By id: none, but of curves that share a style (say, two values of `average`) the later have one each."""
    alike: Counter[str] = Counter()
    markers = {}
    for series in panel:
        style = str(line_style(series))
        markers[id(series)] = ("", "o", "s", "^", "D", "v")[alike[style] % 6]
        alike[style] += 1
    return markers


def _curve(ax: Axes, series: Series, column: str, marker: str, band: float) -> None:
    (mean, low, high), epochs = series.band(column), series.epochs
    style = line_style(series)
    marker = marker or ("o" if len(epochs) == 1 else "")
    every = max(1, len(epochs) // 8)
    ax.plot(epochs, mean, label=series.label, marker=marker, markersize=4, markevery=every, **style)
    if series.n > 1 and len(epochs) == 1:
        ax.vlines(epochs, low, high, color=style["color"], lw=1)
    elif series.n > 1:
        ax.fill_between(epochs, low, high, color=style["color"], alpha=band, lw=0)


# Okabe and Ito's palette for what has a name; the constants take a colour-blind-safe ramp from dark (1) to light
# (0.001), in even steps over Table 1's values, and a dash each, so that they differ in grey too.
NAMED: dict[str, Any] = {
    "bn": ("#000000", "-"),
    "ln": ("#666666", (0, (5, 1))),
    "gn": ("#666666", (0, (1, 1))),
    "none": ("#999999", (0, (3, 1, 1, 1))),
    "1/m epochs": ("#D55E00", (0, (6, 1.5))),
    "1/m steps": ("#E69F00", (0, (6, 1, 1, 1))),
    "1/m^2 epochs": ("#CC79A7", (0, (3, 1, 1, 1))),
    "1/m^2 steps": ("#AA3377", (0, (2, 1))),
    "m^-p epochs": ("#56B4E9", (0, (1.5, 1))),
    "m^-p steps": ("#0072B2", (0, (1.5, 1))),
}
# Of any other, in turn: eight colours and seven dashes make 56 lines.
OTHERS = ("#E31A1C", "#1F78B4", "#FF7F00", "#6A3D9A", "#D6409F", "#6B6B00", "#8C510A", "#009E73")
STEPS = [-np.log10(float(key)) for key in (ALPHA_ONE, *CONSTANTS)]
DASHES: tuple[Any, ...] = (
    "-", (0, (8, 1.5)), (0, (3.5, 1.2)), "-", (0, (8, 1.5, 1.5, 1.5)), (0, (1.5, 0.8)), (0, (5, 1, 1, 1, 1, 1)),
)  # fmt: skip


def line_style(series: Series) -> dict[str, Any]:
    """Colour, dash and width of a curve, by what it is: the same in every figure."""
    alpha = alpha_of(series.key)
    if alpha == 0:
        return {"color": "#8C510A", "ls": (0, (1, 2)), "lw": 1.4}
    if alpha is not None:
        step = np.interp(-np.log10(alpha), STEPS, np.arange(len(STEPS)))
        color = mpl.colormaps["viridis"](0.88 * step / (len(STEPS) - 1))
        return {"color": color, "ls": DASHES[round(step)], "lw": 1.8 if alpha == 1 else 1.3}
    other = (OTHERS[series.place % len(OTHERS)], DASHES[series.place % len(DASHES)])
    color, dash = NAMED.get(re.sub(r"m\^-\S+", "m^-p", series.key), other)
    return {"color": color, "ls": dash, "lw": 1.8 if series.key == MODERN_BN else 1.5}


def _scale(ax: Axes, limits: tuple[float, float]) -> None:
    """A log axis with plain numbers: enough to read the end of a curve by, and never a crowd."""
    ax.set_yscale("log")
    ax.set_ylim(*limits)
    ratio = limits[1] / limits[0]
    subs = (1, 1.5, 2, 3, 4, 5, 7) if ratio < 10 else (1, 2, 3, 5, 7) if ratio < 50 else (1, 2, 5)
    logs = LogLocator(subs=subs if ratio < 500 else (1,), numticks=20)
    ax.yaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10)) if ratio < EVEN_TICKS else logs)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _label_ends(ax: Axes, panel: Sequence[Series], column: str) -> None:
    """A sample of the line and its label right of each curve's end, moved just so far that none overlaps another."""
    ends = []
    for series in panel:
        mean = _mean(series, column)
        if len(there := np.flatnonzero(np.isfinite(mean))):
            ends.append((int(series.epochs[there[-1]]), float(mean[there[-1]]), series))
    if not ends:
        return
    wanted = ax.transData.transform([(x, y) for x, y, _ in ends])[:, 1]
    box = ax.get_window_extent()
    wanted = np.clip(wanted, box.y0, box.y1)
    gap = LABEL_PT * 1.3 * ax.figure.dpi / 72  # a line of text
    places = spread(wanted, gap, box.y0, box.y1)
    markers = _markers(panel)
    for (x, y, series), place in zip(ends, places, strict=True):
        across, up = ax.transAxes.inverted().transform(ax.transData.transform((x, y)))
        start, level = 1 + LEADER / AXES, (place - box.y0) / box.height
        stop, style = start + SAMPLE / AXES, line_style(series)
        beside = {"transform": ax.transAxes, "clip_on": False}
        ax.add_line(Line2D([across, start], [up, level], color=style["color"], lw=0.6, **beside))
        middle = (start + stop) / 2
        sample = Line2D([start, middle, stop], [level] * 3, marker=markers[id(series)], **style)
        sample.set(markersize=4, markevery=[1])
        sample.set(**beside)
        ax.add_line(sample)
        ax.text(stop + 0.04 / AXES, level, series.label, va="center", fontsize=LABEL_PT, transform=ax.transAxes)


def spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Places at least `gap` apart and as near (least squares) to the wanted ones as that allows, within the range."""
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    fitted = isotonic_regression(wanted[order] - steps).x
    room = max(low, high - (steps[-1] if len(steps) else 0))
    places = np.empty(len(wanted))
    places[order] = np.clip(fitted, low, room) + steps
    return places


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, the same bytes for the same rows, in the format of the path's suffix."""
    buffer = io.BytesIO()
    if path.suffix == ".png":
        _palette(figure).save(buffer, format="png", optimize=True, dpi=(figure.dpi, figure.dpi))
    else:
        dated = {".svg": "Date", ".pdf": "CreationDate"}[path.suffix]
        figure.savefig(buffer, format=path.suffix[1:], metadata={dated: None})
    write_atomic(path, buffer.getvalue())
    return path


def _palette(figure: Figure) -> Image.Image:
    """The figure in its 256 main colours, which makes a PNG a third as large."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
