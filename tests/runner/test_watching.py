"""What a user sees of trainings under way, and of those that are to come."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from dbnrun.config.compose import composed
from dbnrun.runner import doctor, plan, progress, status_table
from dbnrun.runs import layout, metrics

QUICK = ["train.limit_batches=1", "threads=1"]


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def rows_of(folder):
    return metrics.read_rows(folder / "metrics.csv")


def test_without_a_terminal_a_line_an_epoch_is_said_at_most_every_30_seconds(command, tmp_path, clock, capsys):
    assert command(*QUICK, "train.epochs=5")[0] == 0  # in no time, by this clock
    (folder,) = tmp_path.glob("results/runs/*")
    rows = rows_of(folder)
    config = composed(["train.epochs=5"])
    capsys.readouterr()
    with progress.Progress([folder.name], config, 1, (0, 0)) as shown:
        for epoch, seconds in enumerate((29, 31, 60, 62, 92), start=1):
            clock[0] = seconds
            shown.epoch(epoch, [[rows[epoch - 1]]])
    said = [line.partition(", test")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == [f"digits-fnn-bn-seed0: epoch {n} of 5, loss={rows[n - 1].train_loss:.3f}" for n in (2, 4, 5)]


def test_progress_false_says_nothing_and_a_sweep_says_its_lines(command, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    words = ["-m", "seed=0,1", "train.epochs=2", *QUICK]
    code, said = command(*words)
    for seed in (0, 1):
        assert code == 0 and said.count(f"digits-fnn-bn-seed{seed}: epoch ") == 2
    assert ": epoch " not in command(*words, "progress=false", "results_dir=quiet")[1]


def test_status_of_a_new_checkout_says_that_there_are_no_runs(command, tmp_path):
    code, out = command("status")
    assert code == 0 and out.startswith("results: no runs yet")
    assert json.loads(command("status", "--json")[1]) == {"runs": [], "counts": {}}


def test_status_lists_what_is_done_the_latest_alone_unless_all_is_asked(command, tmp_path):
    assert command("-m", "seed=range(0,12)", "train.epochs=1", "progress=false", *QUICK)[0] == 0
    folders = sorted(tmp_path.glob("results/runs/*"))
    for age, folder in enumerate(folders):  # the first ended last
        manifest = folder / "manifest.json"
        manifest.touch()
        os.utime(manifest, (1_000_000 - age, 1_000_000 - age))
    lines = command("status")[1].splitlines()
    assert [line.split()[-1] for line in lines[1:-1]] == [folder.name for folder in folders[:10]]
    assert lines[-1] == "12 done (2 finished ones not listed: --all)"
    assert command("status", "--all")[1].splitlines()[-1] == "12 done"
    layout.write_manifest(folders[0], layout.read_manifest(folders[0]) | {"status": "failed", "error": "no luck"})
    assert command("status")[1].splitlines()[1].startswith("failed")


def test_a_watched_table_fits_80_columns_and_names_end_as_they_do(tmp_path):
    names = [f"cifar10-wide_resnet50_2-dbn-inverse_square-seed{seed}-0123abcd" for seed in (0, 1)]
    lines = [
        status_table.HEAD,
        ("unfinished", "100/1000", "12.34 %", "1234.5 s", "12 h 20 min", names[0], ""),
        ("failed", "3/1000", "", "", "", names[1], "RuntimeError: " + "no luck " * 20),
    ]
    fitted = list(status_table.fitted(lines, 80))
    assert len(fitted) == 4 and all(len(line) <= 80 for line in fitted)
    assert fitted[1].endswith("seed0-0123abcd") and fitted[2].endswith("seed1-0123abcd")
    assert fitted[3].startswith("    RuntimeError: no luck")
    assert list(status_table.fitted(lines[:2], 200))[1].endswith(f"  {names[0]}")


def test_watching_asks_for_the_width_of_the_terminal(command, tmp_path, monkeypatch, capsys):
    assert command("norm=dbn", "schedule=inverse_square", "train.epochs=1", "progress=false", *QUICK)[0] == 0

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setenv("COLUMNS", "60")
    status_table.watch([tmp_path / "results"], False, 1.0, stop)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 60 and "…" in lines[2]


SHARED = ["norm=dbn_inference", "schedule=alpha_1,alpha_0.5,harmonic", "train.epochs=4"]


def planned(folder, *words):
    """The cells of a sweep, with the runs of the first schedule as finished."""
    found = plan.asked([*SHARED, *words, f"results_dir={folder}"])
    return found, list(zip(found.cells, plan.statuses(found.cells), strict=True))


def test_an_estimate_counts_a_shared_training_once_and_every_evaluation(command, tmp_path):
    assert command("-m", *SHARED, "progress=false", *QUICK)[0] == 0
    found, before = planned("results", *QUICK)
    first = rows_of(found.cells[0].folder)
    for cell in found.cells:  # three cells shared a run, whose epochs took 6 s and whose evaluations 0.5 s a cell
        rows = [replace(row, train_seconds=2.0, eval_seconds=0.5) for row in first]
        (cell.folder / "metrics.csv").write_text(metrics.csv_text(rows))
    assert plan.time_left(before) == plan.Estimate(0.0, 0, 0, 0)
    found, pairs = planned("results", *QUICK, "seed=0,1")
    assert [how.name for _, how in pairs] == ["done", "new"] * 3
    assert plan.time_left(pairs) == plan.Estimate(4 * (6 + 3 * 0.5), 3, 1, 0)
    assert plan.time_left(pairs, shares=False) == plan.Estimate(3 * 4 * (6 + 0.5), 3, 3, 0)
    said = command("plan", *SHARED, *QUICK, "seed=0,1")[1]
    assert "3 runs share 1 training:" in said and "about 30 s to train" in said
    asked = json.loads(command("plan", *SHARED, *QUICK, "seed=0,1", "--json")[1])
    assert asked["training_runs"] == 1 and asked["seconds_left"] == 30
    assert not plan.asked(["hydra/launcher=basic"]).shares and found.shares


def test_an_estimate_needs_an_epoch_with_the_same_batch_size_and_no_finished_run(command, tmp_path):
    words = ["norm=bn", "train.epochs=4", *QUICK]
    assert command(*words, "progress=false")[0] == 0
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    failed = manifest | {"status": "failed"}
    row = replace(rows_of(folder)[0], train_seconds=5.0, eval_seconds=1.0)
    (folder / "metrics.csv").write_text(metrics.csv_text([row]))
    asked = plan.asked([*words, "seed=0,1"])
    pairs = list(zip(asked.cells, plan.statuses(asked.cells), strict=True))
    assert [how.name for _, how in pairs] == ["unfinished", "new"]
    assert plan.time_left(pairs) == plan.Estimate((3 + 4) * 6, 2, 2, 0)
    (folder / "manifest.json").write_text(json.dumps(failed))  # it continues after its epoch, too
    pairs = list(zip(asked.cells, plan.statuses(asked.cells), strict=True))
    assert [how.name for _, how in pairs] == ["failed", "new"] and plan.time_left(pairs).unknown == 2
    other = [*words, "seed=0,1", "train.batch_size=20,50"]
    assert "no estimate for 4 runs: none of the same kind has finished an epoch" in command("plan", *other)[1]


def test_plan_counts_what_the_records_have_and_says_how_to_leave_it_out(command, tmp_path):
    assert command("seed=0", "train.epochs=1", "threads=1", "progress=false")[0] == 0
    assert command("report", "--record")[0] == 0
    shutil.rmtree(tmp_path / "results" / "runs")
    code, said = command("plan", "seed=0,1", "train.epochs=1")
    assert code == 0 and "1 run to train is in the records: skip_recorded=true leaves it out" in said, said
    assert json.loads(command("plan", "seed=0,1", "train.epochs=1", "--json")[1])["in_records"] == 1
    assert "in the records:" not in command("plan", "seed=0,1", "train.epochs=1", "skip_recorded=true")[1]
    (record,) = (tmp_path / "results" / "records").glob("*.json")
    record.write_text("{}")
    assert command("plan", "seed=0,1", "train.epochs=1")[0] == 0


def test_doctor_says_what_cannot_be_used_and_fails_where_something_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_deterministic", lambda: (True, "the same"))
    assert doctor.report(tmp_path / "none", tmp_path, as_json=True)
    found = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert found["torchvision"]["ok"] is True and "can be used" in found["torchvision"]["found"]
    assert found["mnist"]["ok"] is None and "missing" in found["mnist"]["found"]

    from dbnrun.torchvision_shim import torchvision

    def broken(*_, **__):
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(torchvision.models, "get_model", broken)
    monkeypatch.setattr(doctor, "check_compiler", lambda *_: (_ for _ in ()).throw(doctor.UserError("no compiler.")))
    assert not doctor.report(tmp_path / "none", tmp_path)
    said = capsys.readouterr().out
    assert "NOT  torchvision    it cannot be used (RuntimeError: operator torchvision::nms does not exist)" in said
    assert "-    compile        no compiler." in said
