"""Run folders that an earlier version wrote, finished and cut off inside an epoch: read, reported, gone on with.

b1838bd (2026-11-25) wrote runs/old_runs: `done` is a finished cell, `cut` the same cell with a checkpoint after the
second update of its second epoch, `stacked` the cells of two seeds stopped there as one stack, each beside the rows
that it would have had (whole.csv).
"""

import csv
import json
import shutil
from pathlib import Path

import pytest

from dbnrun.config.compose import composed
from dbnrun.runner import execute
from dbnrun.runs import metrics
from dbnrun.runs.load import read_runs
from dbnrun.runs.status import status_of

OLD = Path(__file__).parent / "old_runs"
CELL = [
    "norm=dbn_inference", "schedule=harmonic", "model.widths=[4]", "model.activation=tanh", "train.epochs=3",
    "train.limit_batches=4", "device=cpu", "threads=1", "progress=false",
]  # fmt: skip


@pytest.fixture
def results(tmp_path):
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    return tmp_path


def cell(results, seed=0):
    return composed([*CELL, f"seed={seed}", f'results_dir="{results}"'])


def numbers(path):
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in metrics.TIME_COLUMNS} for row in csv.DictReader(file)]


def assert_alike(found, expected):
    """Equal on the processor that wrote them; on another equal but for rounding, which may flip a record or two."""
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        for name, value in other.items():
            tolerance = {"abs": 0.9} if name.endswith("pct") else {"rel": 2e-5}
            assert float(one[name]) == pytest.approx(float(value), **tolerance), name


def test_a_finished_cell_is_found_again_and_reported(results):
    outcome = execute.run(cell(results / "done"))
    assert (outcome.status, outcome.message) == ("skipped", "done")
    (run,) = read_runs([results / "done"])
    assert (run.status, len(run.rows)) == ("done", 3) and run.signature in outcome.folder.name
    (folder,) = (results / "cut" / "runs").iterdir()
    assert status_of(folder, "digits").name == "unfinished"


def test_a_cell_that_was_cut_off_goes_on_to_the_rows_that_it_would_have_had(results):
    outcome = execute.run(cell(results / "cut"))
    assert outcome.status == "done"
    (done,) = (results / "done" / "runs").glob("*/metrics.csv")
    assert_alike(numbers(outcome.folder / "metrics.csv"), numbers(done))


def test_a_stack_that_was_cut_off_goes_on_to_the_rows_that_it_would_have_had(results):
    outcomes = execute.run_all([[cell(results / "stacked", seed)] for seed in (0, 1)])
    for (outcome,) in outcomes:
        assert outcome.status == "done"
        assert json.loads((outcome.folder / "manifest.json").read_text())["stacked"] == 2
        assert_alike(numbers(outcome.folder / "metrics.csv"), numbers(outcome.folder / "whole.csv"))
