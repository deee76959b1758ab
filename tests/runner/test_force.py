"""force=true: finished cells train again from their beginning, and what they had recorded is kept aside."""

import contextlib

import pytest

from dbnrun.runner import execute
from dbnrun.runs import load, lock

CELL = ["train.epochs=2", "train.limit_batches=2", "threads=1", "progress=false", "save_weights=true"]
NAMES = ["manifest", "metrics", "weights"]  # of what a finished cell has recorded


def aside(folder, number):
    return sorted(path.name.partition(".")[0] for path in folder.glob(f"*.set-aside-{number}.*"))


@pytest.fixture
def stopped_after(monkeypatch):
    """A context in which training is interrupted once so many epochs of this process's cells are recorded."""

    @contextlib.contextmanager
    def stop(epochs):
        record, recorded = execute._Run.record, []

        def then_stop(self, rows):
            record(self, rows)
            recorded.append(rows[0].epoch)
            if len(recorded) == epochs:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(execute._Run, "record", then_stop)
            yield recorded

    return stop


def rows(folder):
    return load.spelled(load.read_run(folder))


def test_a_finished_cell_trains_again_and_every_older_training_is_kept(command, tmp_path):
    assert command(*CELL)[0] == 0
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    first = {name: (folder / name).read_bytes() for name in ("metrics.csv", "weights.pt", "manifest.json")}
    for number in (1, 2):
        code, said = command(*CELL, "force=true")
        assert code == 0 and said.startswith("done, test error"), said
        assert aside(folder, number) == NAMES
    for name, content in first.items():
        stem, _, ending = name.partition(".")
        assert (folder / f"{stem}.set-aside-1.{ending}").read_bytes() == content
    assert len(rows(folder)) == 2 and not aside(folder, 3)
    assert len(load.read_runs([tmp_path / "results"])) == 1  # a report counts it once
    assert "done before" in command(*CELL)[1]


def test_an_unfinished_cell_goes_on_under_force_and_its_rows_are_those_of_an_undisturbed_run(
    command, tmp_path, stopped_after
):
    assert command(*CELL)[0] == 0
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    undisturbed = rows(folder)
    with stopped_after(1):
        code, said = command(*CELL, "force=true")
    assert code == 130 and "The same command without force=true goes on from there." in said
    with stopped_after(9) as recorded:
        assert command(*CELL, "force=true")[0] == 0
    assert recorded == [2] and rows(folder) == undisturbed
    assert aside(folder, 1) == NAMES and not aside(folder, 2)


@pytest.mark.parametrize("launcher", [[], ["hydra.launcher.max_stack=2"]])
def test_a_forced_sweep_sets_all_aside_first_so_that_the_command_without_force_does_the_rest(
    command, tmp_path, stopped_after, launcher
):
    sweep = ["-m", *CELL, "seed=0,1,2", *launcher]
    assert command(*sweep)[0] == 0
    assert "3 forced      finished; force=true trains it again" in command("plan", *sweep[1:], "force=true")[1]
    with stopped_after(3) as recorded:
        code, said = command(*sweep, "force=true")
    assert code == 130 and "3 runs: 3 to train, 0 finished before" in said and len(recorded) == 3
    folders = sorted((tmp_path / "results" / "runs").iterdir())
    assert [aside(folder, 1) for folder in folders] == [NAMES] * 3
    code, said = command(*sweep)
    assert code == 0 and ("1 finished before" in said or launcher), said
    assert [len(rows(folder)) for folder in folders] == [2] * 3 and not any(aside(folder, 2) for folder in folders)


def test_a_finished_cell_that_another_process_holds_is_left_as_it_is(command, tmp_path):
    assert command(*CELL)[0] == 0
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    with lock.leased(folder):
        code, said = command(*CELL, "force=true")
    assert code == 0 and "done before" in said and not aside(folder, 1)


def test_force_beside_retry_is_refused(command):
    code, said = command(*CELL, "force=true", "retry=failed")
    assert (
        code == 2
        and said == "dbnrun: retry=failed, force=true: force trains every finished run again; leave one out.\n"
    )
