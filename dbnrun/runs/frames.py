"""Runs as pandas tables: a row a run, or a row an epoch."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbnrun.config.filters import options
from dbnrun.config.registry import UserError
from dbnrun.runs import catalog, layout, load, metrics
from dbnrun.runs.load import RunRecord

if TYPE_CHECKING:
    import pandas as pd


def read_runs(path: str | Path | None = None) -> pd.DataFrame:
    """Return one row per run: folder, signature, status, options by their keys, and the metrics of the last epoch.

    `path` is a results folder (by default $DBNRUN_RESULTS, or results), a run's folder, or a run's name or signature.
    An option that a run does not have is NaN. A folder that cannot be read is left out, with a warning.
    Raises UserError if there is no run.
    """
    import pandas as pd

    return pd.DataFrame([_row(run) for run in _runs(path)])


def read_metrics(path: str | Path | None = None) -> pd.DataFrame:
    """Return one row per epoch, run by run: the run's folder and signature, and the metrics.

    `path` is that of `read_runs`. A field that is empty in metrics.csv is NaN.
    """
    import pandas as pd

    names = {"folder": str, "signature": str, **{name: "int64" for name in ("epoch", "step")}}
    rows = [{**_of(run), **asdict(row)} for run in _runs(path) for row in run.rows]
    table = pd.DataFrame(rows, columns=pd.Index([*_NAMES, *metrics.COLUMNS]))
    return table.astype({name: names.get(name, "float64") for name in table.columns})


_NAMES = ("folder", "signature")


def _of(run: RunRecord) -> dict[str, Any]:
    return {"folder": str(run.folder), "signature": run.signature}


def _row(run: RunRecord) -> dict[str, Any]:
    last = run.rows[-1] if run.rows else None
    measured = {name: getattr(last, name, None) for name in metrics.COLUMNS}
    # Tuples, for pandas cannot group by lists.
    said = {key: tuple(value) if isinstance(value, list) else value for key, value in options(run.cell).items()}
    return {**_of(run), "status": run.status, **said, **measured}


def _runs(path: str | Path | None) -> list[RunRecord]:
    where = layout.results_dir() if path is None else Path(path)
    found = load.folders([where])
    if path is not None and not found and not where.exists():
        found = [catalog.find(layout.results_dir(), str(path))]
    runs = []
    for folder in found:
        try:
            runs.append(load.read_run(folder))
        except UserError as error:
            warnings.warn(f"left out: {error}", stacklevel=3)
    if not runs:
        raise UserError(f"{where}: it holds no runs; expected a results folder, such as that of results_dir=….")
    return runs
