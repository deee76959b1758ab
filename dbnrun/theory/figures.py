"""Theory figures from recorded rows: curves against m, and maps over (h, k). Knows no torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dbnrun.config.registry import UserError
from dbnrun.report.figures import STYLE, save
from dbnrun.theory import rows, sequences
from dbnrun.theory.conditions import Report, check
from dbnrun.theory.rows import Curve

# What each figure of curves shows: column, axis label, whether the axis is logarithmic, title.
QUANTITIES = {
    "loss": ("f", "f̄(θ(m), λ(m))", True, "Loss, summed over records, along Algorithm 1"),
    "gradient": ("grad_sq", "‖∇f̄(θ(m), λ(m))‖²", True, "Squared gradient norm along Algorithm 1"),
    "gradient_final": ("grad_sq_final", "‖∇f̄(θ(m), λ̄)‖²", True, "Squared gradient norm, λ̄ the last λ"),
    "path": ("lambda_path", "Σ ‖λ(i) − λ(i−1)‖, i ≤ m", False, "How far λ has travelled"),
    "distance": ("lambda_distance", "‖λ(m) − statistics at θ(m)‖", True, "How far λ lies from the data's statistics"),
}
GROUPS = {
    "inside": "inside: Theorem 11's conditions hold",
    "boundary": "on a boundary: h = 3 − k, or k = ½",
    "outside": "outside",
}
# Okabe and Ito's palette, and a dash each: curves differ in grey too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C510A")
DASHES: tuple[Any, ...] = (
    "-", (0, (6, 1.5)), (0, (2, 1)), (0, (6, 1, 1, 1)), (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1)), (0, (9, 2)),
    (0, (1, 2.5)),
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A curve with what the conditions say of it; h and k are None where the sequence is no power."""

    curve: Curve
    report: Report
    label: str
    h: float | None
    k: float | None

    @property
    def group(self) -> str:
        if self.report.verdict("Theorem 11") == "holds":
            return "inside"
        if self.h is None or self.k is None:
            return "outside"
        return "boundary" if 0.5 <= self.k <= 1 and (self.k == 0.5 or self.h + self.k == 3) else "outside"


def draw(records: Path, out: Path) -> list[Path]:
    """Figures of every CSV in `records`; returns the files written.

    A grid of (h, k) is drawn as maps, other pairs as curves; what lies in `activations/`, the same pairs for several
    activations, becomes one figure.
    """
    paths = sorted(records.glob("*.csv"))
    if not paths:
        raise UserError(f"{records}: no CSV here; record one with `dbnrun theory run --out {records}/NAME.csv`.")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for path in paths:
        curves, settings = rows.read(path)
        pairs = [_pair(curve) for curve in curves]
        with mpl.rc_context(STYLE):
            if _is_grid(pairs):
                written.append(save(_maps(pairs, settings), out / f"{path.stem}.png"))
            else:
                # Several seeds are there to show how far the gradient's fall is one seed's luck.
                names = QUANTITIES if len({curve.seed for curve in curves}) == 1 else ("gradient",)
                for name in names:
                    figure = _curves(pairs, settings, *QUANTITIES[name])
                    written.append(save(figure, out / f"{path.stem}-{name}.png"))
    if several := sorted((records / "activations").glob("*.csv")):
        with mpl.rc_context(STYLE):
            written.append(save(_activations(several), out / "activations.png"))
    return written


def _pair(curve: Curve) -> Pair:
    """The pair of a curve: 'h = 2' of m^-2 itself, 'α ≡ 0.1' of a constant, else alpha as it was typed."""
    alpha, eta = sequences.alpha(curve.alpha), sequences.eta(curve.eta)
    h, k = (None if s.exponent is None else float(s.exponent) for s in (alpha, eta))
    if not alpha.c or h == 0:
        name = f"α ≡ {float(alpha.c):g}"
    else:
        name = f"α = {alpha.text}" if h is None or alpha.c != 1 else f"h = {h:g}"
    return Pair(curve, check(alpha, eta), f"{name}, {f'η = {eta.text}' if k is None else f'k = {k:g}'}", h, k)


def _is_grid(pairs: Sequence[Pair]) -> bool:
    hs, ks = ({getattr(pair, name) for pair in pairs} for name in ("h", "k"))
    seeds = {pair.curve.seed for pair in pairs}
    return None not in ks and len(ks) > 2 and len(hs) > 2 and len(pairs) == len(hs) * len(ks) * len(seeds)


def _about(settings: dict[str, Any]) -> str:
    box = "no projection" if settings["box"] is None else f"projected onto ±{settings['box']:g}"
    return (
        f"{settings['data']}, {settings['records']} records, full gradients; {settings['width']} hidden units, "
        f"{settings['activation']}, {settings['loss'].replace('_', '-')}; α = m^−h, η = {settings['eta0']} m^−k, "
        f"λ(1) {'from the data' if settings['init'] == 'data' else '= (0, 1)'}, ε = {settings['eps']:g}, {box}, "
        f"seed {settings['seed']}"
    )


def _curves(pairs: Sequence[Pair], settings: dict[str, Any], column: str, label: str, log: bool, title: str) -> Figure:
    """A panel for each group of pairs, the same axes."""
    groups = {name: [pair for pair in pairs if pair.group == name] for name in GROUPS}
    groups = {name: group for name, group in groups.items() if group}
    most = max(len({pair.label for pair in group}) for group in groups.values())
    height = 4.7 + 0.19 * most
    width = max(4.0 * len(groups) + 0.6, 7.2)  # the settings' line needs the room
    figure = _figure(width, height, f"{title}\n{_about(settings)}")
    axes = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
    foot = (0.75 + 0.19 * most) / height
    figure.subplots_adjust(left=0.75 / width, right=0.985, top=1 - 0.95 / height, bottom=foot, wspace=0.06)
    for ax, (name, group) in zip(axes, groups.items(), strict=True):
        _panel(ax, group, column)
        ax.set_title(GROUPS[name], loc="left")
        ax.set_xscale("log")
        ax.set_xlabel("m (iterations)")
        if log and any((pair.curve[column] > 0).any() for pair in pairs):
            ax.set_yscale("log")
        box = (0, -0.62 / (4.7 - 0.95 - 0.75))
        ax.legend(loc="upper left", bbox_to_anchor=box, frameon=False, fontsize=8, handlelength=3.6, borderpad=0)
    axes[0].set_ylabel(label)
    return figure


def _activations(paths: Sequence[Path]) -> Figure:
    """A panel an activation, the same pairs in each: the squared gradient norm."""
    parts = [rows.read(path) for path in paths]
    columns = 4
    lines = -(-len(parts) // columns)
    size = (13.2, 2.6 * lines + 1.3)
    about = _about(parts[0][1]).replace(f" {parts[0][1]['activation']},", "")
    figure = _figure(*size, f"{QUANTITIES['gradient'][3]}, by activation\n{about}")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    top, bottom = 1 - 0.85 / size[1], 0.5 / size[1]
    figure.subplots_adjust(left=0.85 / size[0], right=0.99, top=top, bottom=bottom, wspace=0.06, hspace=0.4)
    for ax in axes.flat[len(parts) :]:
        ax.set_axis_off()
    for ax, (curves, settings) in zip(axes.flat, parts, strict=False):
        _panel(ax, [_pair(curve) for curve in curves], "grad_sq")
        ax.set_xscale("log")
        ax.set_yscale("log")
        met = settings["activation_note"].partition(":")[0].partition(" (")[0]
        ax.set_title(f"{settings['activation']}: {met}", loc="left", fontsize=8)
        ax.set_xlabel("m (iterations)")
        ax.tick_params(labelbottom=True)
    for ax in axes[:, 0]:
        ax.set_ylabel(QUANTITIES["gradient"][1])
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[-1].legend(handles, labels, loc="center left", frameon=False, fontsize=8, handlelength=3.6)
    return figure


def _panel(ax: Axes, group: Sequence[Pair], column: str) -> None:
    """The curves of a group; seeds of a pair share its style and its entry in the legend."""
    seen: dict[str, int] = {}
    for pair in group:
        first = pair.label not in seen
        number = seen.setdefault(pair.label, len(seen))
        values = pair.curve[column]
        values = np.where(values > 0, values, np.nan)  # lambda that does not move has no place on a log axis
        nothing = "" if (values > 0).any() else "  (0: not drawn)"
        style = {"color": COLORS[number % len(COLORS)], "ls": DASHES[number % len(DASHES)], "lw": 1.4}
        if column == "lambda_path":
            values, nothing = pair.curve[column], ""
        ax.plot(pair.curve["m"], values, label=_with_verdict(pair) + nothing if first else None, **style)


def _with_verdict(pair: Pair) -> str:
    """'h = 2, k = 1  (meets Theorem 7)'; of a pair inside the region, which meets all, its name alone."""
    reached = [name for name in ("Assumption 3", "Theorem 7", "Lemma 8") if pair.report.verdict(name) == "holds"]
    if pair.group == "inside":
        return pair.label
    return f"{pair.label}  (meets {', '.join(reached) or 'none'})"


def slope(curve: Curve, column: str) -> float:
    """Exponent s of column ~ m^s, fitted over the last decade; NaN where the column is not positive there."""
    m, values = curve["m"], curve[column]
    late = m >= m[-1] / 10
    if not (values[late] > 0).all():
        return float("nan")
    return float(np.polyfit(np.log(m[late]), np.log(values[late]), 1)[0])


def travelled(curve: Curve) -> float:
    """How far lambda moved over the last decade of m; 0 where that is below what nine recorded digits can tell."""
    m, path = curve["m"], curve["lambda_path"]
    moved = float(path[-1] - path[m <= m[-1] / 10][-1])
    return moved if moved > 3e-8 * path[-1] else 0.0


Measure = Callable[[Curve], float]
MAPS: tuple[tuple[str, str, Measure], ...] = (
    (
        "log₁₀ of the fall of ‖∇f̄‖², first decade to last",
        "viridis",
        lambda curve: np.log10(np.divide(curve.first_decade("grad_sq"), curve.last_decade("grad_sq"))),
    ),
    ("exponent s of ‖∇f̄‖² ~ mˢ over the last decade", "viridis_r", lambda curve: slope(curve, "grad_sq")),
    ("log₁₀ of λ's path over the last decade", "magma", lambda curve: np.log10(travelled(curve))),
)


def _maps(pairs: Sequence[Pair], settings: dict[str, Any]) -> Figure:
    """Measured quantities over (h, k) with the boundaries of the paper and of its sums."""
    size = (5.0 * len(MAPS) + 0.5, 5.9)
    title = f"Algorithm 1 over (h, k), {settings['reached']} iterations\n{_about(settings)}"
    figure = _figure(*size, title)
    axes = figure.subplots(1, len(MAPS), sharey=True)
    figure.subplots_adjust(left=0.6 / size[0], right=0.99, top=1 - 1.0 / size[1], bottom=1.1 / size[1], wspace=0.08)
    for ax, (name, palette, measure) in zip(axes, MAPS, strict=True):
        _map(ax, pairs, measure, palette)
        ax.set_title(name, loc="left")
    axes[0].set_ylabel("k   (η = η₀ m^−k)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.6 / size[0], 0.005), ncols=3, frameon=False)
    return figure


def _map(ax: Axes, pairs: Sequence[Pair], measure: Measure, palette: str) -> None:
    """A square a pair, and the boundaries bent to fit; alpha = 0, which is no power, right of the axis."""
    hs = sorted({pair.h for pair in pairs if pair.h is not None})
    ks = sorted({pair.k for pair in pairs if pair.k is not None})
    values: dict[tuple[float, float], list[float]] = {}
    for pair in pairs:
        assert pair.k is not None
        x = len(hs) + 0.3 if pair.h is None else float(hs.index(pair.h))
        with np.errstate(divide="ignore", invalid="ignore"):  # the log of 0 is drawn as such
            values.setdefault((x, float(ks.index(pair.k))), []).append(measure(pair.curve))
    means = {place: float(np.mean(group)) for place, group in values.items()}
    finite = [value for value in means.values() if np.isfinite(value)]
    norm = colors.Normalize(*np.percentile(finite, (8, 90)))  # k = 0 would take all the colours
    for (x, y), value in means.items():
        color = mpl.colormaps[palette](norm(value)) if np.isfinite(value) else (0.85, 0.85, 0.85, 1.0)
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white", lw=0.4))
        dark = float(np.dot(color[:3], (0.299, 0.587, 0.114))) < 0.5
        text = f"{value:.1f}" if np.isfinite(value) else {"inf": "to 0", "-inf": "≈ 0"}.get(str(value), "–")
        # Off the middle, where the boundaries run.
        ax.text(x + 0.25, y + 0.27, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    _boundaries(ax, hs, ks)
    ax.set_xlim(-0.5, len(hs) + 0.8)
    ax.set_ylim(-0.5, len(ks) - 0.5)
    ax.set_xticks([*range(len(hs)), len(hs) + 0.3], [f"{h:g}" if h else "α≡1" for h in hs] + ["α≡0"], fontsize=7.5)
    ax.set_yticks(range(len(ks)), [f"{k:g}" for k in ks])
    ax.set_xlabel("h   (α = m^−h)")
    ax.grid(False)


def _boundaries(ax: Axes, hs: Sequence[float], ks: Sequence[float]) -> None:
    """The paper's set and the worked-out one. A square whose middle lies on a line lies on that boundary."""

    def line(points: Sequence[tuple[float, float]], **style: Any) -> None:
        dense = np.concatenate([np.linspace(a, b, 60) for a, b in itertools.pairwise(points)])
        ax.plot(_bent(dense[:, 0], hs), _bent(dense[:, 1], ks), **style)

    far = 2 * hs[-1]  # beyond the last square, where lines are cut off
    line([(2, 2 * ks[-1]), (2, 1), (far, 1)], color="#D55E00", lw=3.2, label="paper, Lemma 8: h > 2, k ≥ 1")
    line(
        [(2, 2 * ks[-1]), (2, 1), (3, 0)],
        color="#56B4E9",
        lw=2.2,
        ls=(0, (1, 1)),
        label="Lemma 8's sums: h > 2, h > 3 − k",
    )
    worked_out = [(far, 0.5), (2.5, 0.5), (2, 1), (far, 1)]
    line(worked_out, color="black", lw=1.8, ls=(0, (4, 1.5)), label="worked out: ½ < k ≤ 1, h > 3 − k")


def _bent(x: np.ndarray, centres: Sequence[float]) -> np.ndarray:
    """Values as positions among squares whose middles are `centres`; half a square beyond the outer ones."""
    return np.interp(x, [*centres, centres[-1] * 1.01], [*range(len(centres)), len(centres) - 0.5])


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110)
    head, _, rest = title.partition("\n")
    figure.text(0.12 / width, 1 - 0.12 / height, head, fontsize=11, va="top")
    figure.text(0.12 / width, 1 - 0.38 / height, rest, fontsize=8, va="top", color="#444444", wrap=True)
    return figure
