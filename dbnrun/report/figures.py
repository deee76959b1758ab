"""The counterparts of the paper's Figures 2, 3 and 4, as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.optimize import isotonic_regression

from dbnrun.records import write_atomic
from dbnrun.report.gather import Series, Setting
from dbnrun.report.tables import TOP, describe, most_efficient

PROTOCOLS = {
    "dbn_inference": "batch statistics in training, λ at test",
    "dbn": "λ in training and test (Algorithm 1)",
    "dbn, stats_grad=false": "λ in training and test, held constant in the gradient",
    "": "",
}
FAR = 3  # times the usual height: drawn in a strip of its own
LOG_BEYOND = 4  # a log axis where values span more than this ratio
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.hashsalt": "dbnrun",  # the same rows give the same bytes
    "svg.fonttype": "none",
    "axes.titlesize": 9.5,
}


def draw(setting: Setting, folder: Path) -> list[Path]:
    """Figures 2, 3 and 4 of a setting below `folder`; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    panels = {protocol: [s for s in setting.panel(protocol) if s.n] for protocol in setting.protocols}
    best = {protocol: most_efficient(panel) for protocol, panel in panels.items()}
    rule = f"the {TOP} schedules of least last-epoch error, with α = 1 and BN"
    name = setting.dataset
    figures = [
        ("figure2", f"{name}: test error, every schedule", panels, "test_error_pct", "test error [%]"),
        ("figure3", f"{name}: test error, {rule}", best, "test_error_pct", "test error [%]"),
        ("figure4", f"{name}: validation loss, {rule}", best, "val_loss",
         "validation loss [nat]"),
    ]  # fmt: skip
    written = []
    for number, title, shown, column, unit in figures:
        with mpl.rc_context(STYLE):
            figure = _figure(f"{title}\n{describe(setting)}", shown, column, unit)
            for suffix in (".png", ".svg"):
                written.append(_save(figure, folder / f"{setting.slug}-{number}{suffix}"))
    return written


def _figure(title: str, panels: dict[str, list[Series]], column: str, unit: str) -> Figure:
    """A panel a protocol; curves far above the others get a strip of their own on top, so that both can be read."""
    split = {protocol: _far_and_near(panel, column) for protocol, panel in panels.items()}
    strip = any(far for far, _ in split.values())
    width = 7.2 * len(panels)
    figure = Figure(figsize=(width, 5.6 if strip else 4.8), dpi=150)
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        2 if strip else 1, len(panels), sharex=True, sharey="row", squeeze=False,
        height_ratios=[1, 2.6] if strip else [1],
    )  # fmt: skip
    figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    margins = {"left": 0.62 / width + 0.02, "right": 1 - 1.2 / width, "bottom": 0.11, "top": 0.86}
    figure.subplots_adjust(**margins, wspace=0.36, hspace=0.08)
    for row, axes in enumerate(grid):
        shown = [far if strip and row == 0 else near for far, near in split.values()]
        for ax, panel in zip(axes, shown, strict=True):
            for series in panel:
                _curve(ax, series, column)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.margins(x=0.01)
        _scale(axes[0], [series for panel in shown for series in panel], column)
    for ax, (protocol, panel) in zip(grid[0], panels.items(), strict=True):
        ax.set_title("; ".join(filter(None, [PROTOCOLS.get(protocol, protocol), _counted(panel)])), loc="left")
    for ax in grid[-1]:
        ax.set_xlabel("epoch")
    grid[-1][0].set_ylabel(unit)
    figure.canvas.draw()  # fixes the transforms that labels are placed by
    for column_of_axes, (far, near) in zip(grid.T, split.values(), strict=True):
        for ax, panel in zip(column_of_axes, (far, near) if strip else (near,), strict=True):
            _label_ends(ax, panel, column)
    return figure


def _far_and_near(panel: Sequence[Series], column: str) -> tuple[list[Series], list[Series]]:
    """The curves that run, in their last half, at more than three times the usual height, and the others."""
    means = {id(s): _mean(s, column) for s in panel}
    heights = {key: float(np.median(mean[len(mean) // 2 :])) for key, mean in means.items()}
    usual = float(np.nanmedian(list(heights.values()))) if heights else 0.0
    far = [s for s in panel if not heights[id(s)] <= FAR * usual]
    return far, [s for s in panel if s not in far]


def _counted(panel: Sequence[Series]) -> str:
    """'n = 3 seeds, mean ± standard deviation'."""
    counts = sorted({series.n for series in panel})
    if not counts or counts[-1] == 1:
        return "n = 1 seed" if counts else ""
    span = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"n = {span} seeds, mean ± standard deviation"


def _mean(series: Series, column: str) -> np.ndarray:
    return series.column(column).mean(0)


def _curve(ax: Axes, series: Series, column: str) -> None:
    values = series.column(column)
    mean, epochs = values.mean(0), np.arange(1, values.shape[1] + 1)
    style = line_style(series)
    marker = "o" if len(epochs) == 1 else None
    ax.plot(epochs, mean, label=series.label, marker=marker, **style)
    if series.n > 1:
        sd = values.std(0, ddof=1)
        # A band that reaches 0 has no place on a log axis.
        ax.fill_between(epochs, np.maximum(mean - sd, mean * 0.02), mean + sd, color=style["color"], alpha=0.11, lw=0)


# Okabe and Ito's palette for what has a name; constants take a colour-blind-safe ramp from dark (1) to light (small).
NAMED: dict[str, Any] = {
    "bn": ("#000000", "-"),
    "ln": ("#666666", (0, (5, 1))),
    "gn": ("#666666", (0, (1, 1))),
    "none": ("#999999", (0, (3, 1, 1, 1))),
    "harmonic": ("#D55E00", (0, (6, 1.5))),
    "inverse_square": ("#CC79A7", (0, (3, 1, 1, 1))),
    "power": ("#E69F00", (0, (1.5, 1))),
}


def line_style(series: Series) -> dict[str, Any]:
    """Colour, dash and width of a curve, by what it is: the same in every figure."""
    name = series.cell["schedule"]["name"] if series.protocol else series.cell["norm"]["name"]
    if name == "constant":
        alpha = series.cell["schedule"]["alpha"]
        if alpha == 0:
            return {"color": "#8C510A", "ls": (0, (1, 2)), "lw": 1.4}
        depth = min(1.0, -np.log10(alpha) / 3)  # 1 … 0.001
        return {"color": mpl.colormaps["viridis"](0.05 + 0.85 * depth), "ls": "-", "lw": 1.8 if alpha == 1 else 1.3}
    color, dash = NAMED[name]
    return {"color": color, "ls": dash, "lw": 1.8 if name == "bn" else 1.5}


def _scale(ax: Axes, panel: Sequence[Series], column: str) -> None:
    """A log axis with plain numbers where the values span it; otherwise linear."""
    means = np.concatenate([_mean(series, column) for series in panel] or [np.ones(1)])
    means = means[np.isfinite(means) & (means > 0)]
    if not len(means) or means.max() / means.min() < LOG_BEYOND:
        return
    ax.set_yscale("log")
    ax.set_ylim(means.min() * 0.85, min(means.max() * 1.25, 100 if column.endswith("pct") else np.inf))
    subs = (1, 2, 5) if means.max() / means.min() < 500 else (1,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _label_ends(ax: Axes, panel: Sequence[Series], column: str) -> None:
    """Write each label right of its curve's end, moved just so far that none overlaps another."""
    if not panel:
        return
    ends = [(len(_mean(s, column)), float(_mean(s, column)[-1]), s) for s in panel]
    ends = [end for end in ends if np.isfinite(end[1])]
    if not ends:
        return
    wanted = ax.transData.transform([(x, y) for x, y, _ in ends])[:, 1]
    box = ax.get_window_extent()
    wanted = np.clip(wanted, box.y0, box.y1)
    gap = 8.2 * 1.3 * ax.figure.dpi / 72  # a line of text
    places = spread(wanted, gap, box.y0, box.y1)
    for (x, y, series), place in zip(ends, places, strict=True):
        ax.annotate(
            series.label,
            xy=(x, y),
            xycoords="data",
            xytext=(1.045, (place - box.y0) / box.height),
            textcoords="axes fraction",
            va="center",
            fontsize=8.2,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": line_style(series)["color"],
                "lw": 0.7,
                "relpos": (0, 0.5),
                "shrinkA": 0,
                "shrinkB": 0,
                "patchA": None,  # else the line is cut where it leaves the text's box
            },
        )


def spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Places at least `gap` apart and as near (least squares) to the wanted ones as that allows, within the range."""
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    fitted = isotonic_regression(wanted[order] - steps).x
    room = max(low, high - (steps[-1] if len(steps) else 0))
    places = np.empty(len(wanted))
    places[order] = np.clip(fitted, low, room) + steps
    return places


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(buffer, format=path.suffix[1:], metadata=metadata)
    write_atomic(path, buffer.getvalue())
    return path
