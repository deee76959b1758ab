"""The figure of runs with probe=true: what passes through each normalizer, by epoch. A row of panels a layer."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dbnrun.config.registry import UserError
from dbnrun.report import figures
from dbnrun.report.names import dataset_of
from dbnrun.report.series import Series, Setting
from dbnrun.report.tables import describe, from_to
from dbnrun.runs import probe
from dbnrun.runs.layout import PROBE
from dbnrun.runs.load import RunRecord

# What a column of panels shows, by the column of probe.csv.
QUANTITIES = {
    "mean_over_sigma": "|μ_B| / σ_B",
    "sigma": "σ_B",
    "gamma_norm": "‖γ‖",
    "mean_share": "gradient: share through μ_B",
    "scale_share": "gradient: share through σ_B",
    "lambda_lag": "|μ_λ − μ_B| / σ_B",
}
MOST = 8  # layers shown
WIDE, HIGH, LEFT, HEAD, FOOT, LEGEND_LINE = 2.05, 1.4, 0.65, 0.75, 0.4, 0.2  # inches
LEGEND_WIDTH = 2.6  # inches that a label of the legend has

Probed = list[tuple[Series, int, pd.DataFrame]]  # a series, its probed runs, and their mean by layer and epoch


def draw(setting: Setting, folder: Path) -> list[Path]:
    """The figure of a setting as PNG and SVG below `folder`; the files written, none where no run has a probe."""
    if not (probed := probed_of(setting)):
        return []
    with mpl.rc_context(figures.STYLE):
        drawn = _figure(setting, probed)
        return [figures.save(drawn, folder / f"{setting.slug}-probes{suffix}") for suffix in (".png", ".svg")]


def svg(setting: Setting) -> bytes | None:
    """The same figure, for a page."""
    if not (probed := probed_of(setting)):
        return None
    with mpl.rc_context(figures.STYLE):
        buffer = io.BytesIO()
        _figure(setting, probed).savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def probed_of(setting: Setting) -> Probed:
    """The series with probes of finished runs. A probe.csv that cannot be read is warned of and left out."""
    found: Probed = []
    for series in setting.series:
        tables = [table for run in series.finished if len(table := _read(run))]
        if tables:
            # In the network's order; empty fields are passed over.
            mean: Any = pd.concat(tables).groupby(["layer", "epoch"], sort=False)[list(QUANTITIES)].mean()
            found.append((series, len(tables), mean))
    return found


def _read(run: RunRecord) -> pd.DataFrame:
    try:
        rows = probe.read_rows(run.folder / PROBE)
    except UserError as error:
        print(f"dbnrun: warning: left out: {error}", file=sys.stderr)
        rows = []
    table = pd.DataFrame([vars(row) for row in rows], columns=pd.Index(probe.COLUMNS))
    return table.astype({name: float for name in QUANTITIES})


def _figure(setting: Setting, probed: Probed) -> Figure:
    names = list(dict.fromkeys(name for _, _, table in probed for name in table.index.get_level_values("layer")))
    layers = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(MOST, len(names))).round().astype(int))]
    width = LEFT + WIDE * len(QUANTITIES)
    columns = int(width // LEGEND_WIDTH)
    legend = LEGEND_LINE * -(-len(probed) // columns) + 0.1
    tall = HEAD + HIGH * len(layers) + FOOT + legend
    figure = Figure(figsize=(width, tall), dpi=150)
    FigureCanvasAgg(figure)
    some = f"{len(layers)} of {len(names)} normalizers, " if len(layers) < len(names) else ""
    counts = [count for _, count, _ in probed]
    seeds = f"n = {from_to(counts)} seed" + ("s" if max(counts) > 1 else "")
    title = f"{dataset_of(setting.cell)}: what passes through the normalizers ({some}mean over {seeds})"
    figure.text(0.1 / width, 1 - 0.1 / tall, f"{title}\n{describe(setting.cell)}", fontsize=9.5, va="top")
    grid = figure.subplots(len(layers), len(QUANTITIES), squeeze=False, sharex=True)
    figure.subplots_adjust(
        left=LEFT / width, right=1 - 0.1 / width, top=1 - HEAD / tall, bottom=(FOOT + legend) / tall,
        wspace=0.26, hspace=0.18,
    )  # fmt: skip
    for row, layer in zip(grid, layers, strict=True):
        for ax, column in zip(row, QUANTITIES, strict=True):
            _panel(ax, probed, layer, column)
        row[0].set_ylabel(layer, fontsize=8)
    for ax, heading in zip(grid[0], QUANTITIES.values(), strict=True):
        ax.set_title(heading, loc="left", fontsize=8.5)
    for ax in grid[-1]:
        ax.set_xlabel("epoch", fontsize=8)
    lines = [Line2D([], [], **figures.line_style(series)) for series, _, _ in probed]
    labels = [series.label for series, _, _ in probed]
    figure.legend(lines, labels, loc="lower left", ncols=columns, frameon=False, fontsize=figures.LABEL_PT)
    return figure


def _panel(ax: Axes, probed: Sequence[tuple[Series, int, pd.DataFrame]], layer: str, column: str) -> None:
    """A layer's curves of one quantity, from 0 on but for gamma's; says so where no series has it."""
    any_there = False
    for series, _, table in probed:
        if layer in table.index.get_level_values("layer"):
            curve = table.loc[layer][column].dropna()
            any_there = any_there or len(curve) > 0
            marker = "o" if len(curve) == 1 else ""
            ax.plot(curve.index, curve, marker=marker, markersize=3, **figures.line_style(series))
    if column != "gamma_norm":
        ax.set_ylim(0, 1.04 * ax.get_ylim()[1])
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(labelsize=7)
    if not any_there:
        ax.text(0.5, 0.5, "none", transform=ax.transAxes, ha="center", fontsize=8, color="#666666")
