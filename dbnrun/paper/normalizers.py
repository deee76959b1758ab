"""Compares all normalizers with BN, by data set, batch size and place of the normalizer: normalizers.csv and .md.

Every row is there, whether it was run or not. Differences are paired by seed, and Holm's correction covers a table.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dbnrun.paper.protocols import BATCH_SIZE, PAPER_DATASETS, has_papers_surroundings, overridden
from dbnrun.paper.statistics import Row, difference, fields, p_text, with_interval
from dbnrun.paper.verdicts import NOT_RUN
from dbnrun.report import compare, stats
from dbnrun.report.names import BASELINES, DATASETS, MODERN_BN, name_of
from dbnrun.report.series import Series, Setting, settings_of
from dbnrun.report.tables import describe, markdown, write_texts
from dbnrun.runs.load import RunRecord

# Protocol and key of each row. With ten seeds the correction of more than 25 comparisons could never reject.
ROWS = [
    *(("", name) for name in BASELINES if name != "custom"),
    ("dbn_inference", "1/m epochs"),
    ("dbn", "1/m steps"),
    *itertools.product([f"dbn{also}" for also in ("", *(f", stats_grad={to}" for to in ("mean", "var", "false")))],
                       ["0.1", "0.01"]),
]  # fmt: skip
BATCH_SIZES = (BATCH_SIZE, 16, 4)
MACHINE = ("host", "device", "device_name", "threads", "compile", "versions")  # what decides the time of a step
NOT_COMPARABLE = "not comparable"
HEADS = ("", "n", "test error [%]", "to BN [pp]", "p (Holm)", "time of a step / BN's")
NOTE = f"""\
Last-epoch test error [%], mean [95 % Student t interval] over n seeds, and the difference to PyTorch's BN [pp], paired
by seed; p is the exact two-sided sign-flip test, Holm-corrected over the table. Each normalizer has its default options
and the paper's learning rate, which was chosen for none of them. Time of a step: training seconds an update
in the fastest epoch of n runs, as a ratio to BN's with that batch size on either side of the activation. The machine
had other work, which lengthened some epochs by half; the fastest is the one with least of it. Only runs that trained
alone, with as many threads on the same machine, are compared.
{NOT_COMPARABLE.capitalize()}: trained in a stack, or BN has no such run.
"""
Place = tuple[str, str, int]  # data set, side of the activation, batch size
Table = tuple[str, str, list[list[str]]]  # title, setting, texts under HEADS


def write(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write `frame` as normalizers.csv and normalizers.md below `folder`; return both."""
    parts = [
        f"## {title}: {setting}\n\n{markdown(pd.DataFrame(lines, columns=HEADS))}\n"
        for title, setting, lines in tables(table)
    ]
    text = "\n".join(
        ["# Normalizers against BN\n", NOTE, *parts, f"Not run: {'; '.join(missing(table)) or 'nothing'}.\n"]
    )
    return write_texts(
        folder, {"normalizers.csv": table.to_csv(index=False, float_format="%.6g"), "normalizers.md": text}
    )


def frame(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """A row for each data set, place, batch size and normalizer."""
    found = _settings(runs)
    grid = dict.fromkeys([*itertools.product(PAPER_DATASETS, ["before"], BATCH_SIZES), *found])
    ordered = sorted(grid, key=lambda at: (PAPER_DATASETS.index(at[0]), at[1] == "after", -at[2]))
    bases = {at: [one for one in setting.series if one.key == MODERN_BN] for at, setting in found.items()}
    timed = {at: [one for other in found if _alike(at, other) for one in bases[other]] for at in ordered}
    return pd.DataFrame([row for at in ordered for row in _rows(at, found.get(at), timed[at])])


def _alike(one: Place, other: Place) -> bool:
    """Whether a step costs as much: the same data and batch size, on either side of the activation."""
    return (one[0], one[2]) == (other[0], other[2])


def _settings(runs: Sequence[RunRecord]) -> dict[Place, Setting]:
    """By data set, place and batch size the setting with the most epochs in finished runs."""
    found: dict[Place, Setting] = {}
    for setting in settings_of([run for run in runs if _is_compared(run.cell)]):
        cell = setting.cell
        at = setting.dataset, cell["model"].get("norm_position", "before"), cell["train"]["batch_size"]
        found[at] = max(found.get(at, setting), setting, key=lambda one: one.n * one.cell["train"]["epochs"])
    return found


def _is_compared(cell: Mapping[str, Any]) -> bool:
    return has_papers_surroundings(cell) and overridden(cell).keys() <= {"norm position"}


def _rows(at: Place, setting: Setting | None, timed: Sequence[Series]) -> Iterator[dict[str, Any]]:
    """The rows of one table; `setting` is None where nothing was run. `timed`: BN, for the time of a step."""
    all_series = {(one.protocol, one.key): one for one in (setting.series if setting else [])}
    shown = {key: all_series.get(key, Series({})) for key in ROWS}
    base = shown["", MODERN_BN]
    done = {_name(*key): one for key, one in shown.items() if one.n}
    compared = compare.against(base, done, compare.ERRORS["last"]) if base.n else {}
    for key, series in shown.items():
        name = _name(*key)
        errors = compare.ERRORS["last"](series) if series.n else {}
        yield {
            "dataset": at[0],
            "norm_position": at[1],
            "batch_size": at[2],
            "setting": describe(setting.cell) if setting else "",
            "normalizer": name,
            "left_out": series.left_out(),
            **asdict(stats.summarize(np.array(list(errors.values())))),
            **fields("vs_bn", compared.get(name)),
            **asdict(step_time(series, timed)),
        }


def _name(protocol: str, key: str) -> str:
    """'Batch Renorm', 'dbn, α = 0.1', 'dbn, stats_grad=mean, α = 0.1'."""
    return ", ".join(filter(None, [protocol, name_of(key)]))


# The time of a step


@dataclass(frozen=True)
class StepTime:
    """Seconds an update as a ratio to BN's."""

    step_time_n: int = 0  # runs, of the method or of BN: the fewer
    step_time_ratio: float = float("nan")


def step_time(series: Series, bases: Sequence[Series]) -> StepTime:
    """The time of a step over that of `bases`, on the machine with most runs of both; NaN where none has both."""
    ours, theirs = _paces([series]), _paces(bases)
    found = [StepTime(min(len(ours[m]), len(theirs[m])), min(ours[m]) / min(theirs[m])) for m in ours if m in theirs]
    return max(found, key=lambda one: one.step_time_n, default=StepTime())


def _paces(several: Sequence[Series]) -> dict[str, list[float]]:
    """Seconds an update in the fastest epoch of each finished run that trained alone, by machine."""
    found: dict[str, list[float]] = defaultdict(list)
    for run in (run for series in several for run in series.finished if trained_alone(run)):
        machine = str([run.manifest.get(key) for key in MACHINE])
        updates = run.rows[-1].step / len(run.rows)
        found[machine].append(min(row.train_seconds for row in run.rows) / updates)
    return found


def trained_alone(run: RunRecord) -> bool:
    """Whether a run shared its training with no other: neither a stack nor one trajectory."""
    stacked = run.manifest.get("stacked")
    # Older records do not say how many trained together: those under train_stats=batch may have shared a trajectory.
    may_share = run.cell["norm"].get("train_stats") == "batch"
    return stacked == 1 and run.manifest.get("together", None if may_share else stacked) == 1


# What a reader sees


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """A table for each data set, place and batch size of `frame` that was run."""
    for (dataset, _, batch), rows in _groups(table):
        if rows["n"].any():
            yield f"{DATASETS[dataset]}, batch {batch}", rows["setting"].iloc[0], _texts(rows)


def missing(table: pd.DataFrame) -> list[str]:
    """'NI, batch 16' for each table of which nothing was run."""
    return [f"{DATASETS[name]}, batch {batch}" for (name, _, batch), rows in _groups(table) if not rows["n"].any()]


def _groups(table: pd.DataFrame) -> Any:
    return table.groupby(["dataset", "norm_position", "batch_size"], sort=False)


def _texts(rows: pd.DataFrame) -> list[list[str]]:
    lines = rows.to_dict("records")
    has_base = next(row["n"] > 0 for row in lines if row["normalizer"] == name_of(MODERN_BN))
    return [_line(row, has_base) for row in lines]


def _line(row: Row, has_base: bool) -> list[str]:
    name = row["normalizer"]
    if not row["n"]:
        return [name, "0", row["left_out"] or NOT_RUN, "", "", ""]
    is_base = name == name_of(MODERN_BN)
    apart = "baseline" if is_base else difference(row, "vs_bn") if has_base else f"BN {NOT_RUN}"
    error = with_interval(row) + (f" ({row['left_out']})" if row["left_out"] else "")
    return [name, str(row["n"]), error, apart, p_text(row, "vs_bn"), _time(row, is_base)]


def _time(row: Row, is_base: bool) -> str:
    if not row["step_time_n"]:
        return "" if is_base else NOT_COMPARABLE
    return f"{row['step_time_ratio']:.2f} (n = {row['step_time_n']})"
