"""The report of a large sweep."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench import Finding
from bench.grid import TABLE_1
from bench.subjects import config
from bench.timing import duration
from dbnrun.config.identity import cell_of, signature
from dbnrun.runs import layout, metrics
from dbnrun.runs.metrics import EpochRow

CELLS, EPOCHS, ROUNDS = 1000, 100, 3


def measure(_device: str) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        _record(Path(folder))
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                _report(Path(folder))
            times.append(time.perf_counter() - started)
    yield duration("report", f"dbnrun report of {CELLS:,} cells × {EPOCHS} epochs", times, "≤ 15 s")


def _report(folder: Path) -> None:
    from dbnrun.report import report

    report([folder], folder)


def _record(results: Path) -> None:
    """Run folders of ten schedules and a hundred seeds, as the runner leaves them, but for the syncing to disk."""
    line = EpochRow(
        epoch=1, step=500, alpha=0.1, lr=0.01, train_loss=0.1, train_error_pct=3.0, val_loss=0.1, val_error_pct=2.0,
        test_loss=0.1, test_error_pct=2.0, test_error_pct_population=2.0, lambda_drift=0.01, grad_norm=0.5,
        train_seconds=1.0, eval_seconds=0.3,
    )  # fmt: skip
    for schedule in TABLE_1:
        composed = config(
            "cpu", "dataset=mnist", "norm=dbn_inference", f"schedule={schedule}", f"train.epochs={EPOCHS}"
        )
        for seed in range(CELLS // len(TABLE_1)):
            cell = cell_of(replace(composed, seed=seed))
            sig = signature(cell, "synthetic")
            folder = layout.run_folder(results, cell, sig)
            folder.mkdir(parents=True)
            rows = [
                replace(line, epoch=e, step=500 * e, test_error_pct=2 + seed / 100 + 3 / e)
                for e in range(1, EPOCHS + 1)
            ]
            (folder / "metrics.csv").write_text(metrics.csv_text(rows))
            layout.write_cell(folder, cell)
            layout.write_manifest(folder, {"status": "done", "signature": sig, "data_digest": "synthetic"})
