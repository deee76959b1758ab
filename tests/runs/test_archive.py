"""Records: what is gathered, kept, united, refused; and that they alone carry the report."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import SCHEDULES, cell, constant, write_run

from dbnrun.cli import main
from dbnrun.config import registry
from dbnrun.config.compose import composed
from dbnrun.config.identity import cell_of
from dbnrun.config.registry import UserError, files
from dbnrun.paper import documents, publish, record
from dbnrun.paper.protocols import NORM_AXES, experiment_of, overridden
from dbnrun.report.series import settings_of
from dbnrun.runs import archive, lock, metrics
from dbnrun.runs.load import read_runs

ROOT = Path(__file__).parents[2]


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def recorded(tmp_path):
    """Records of six runs, whose run folders are kept in runs/."""
    for seed in (0, 1):
        for schedule in (constant(1.0), constant(0.25), {"name": "harmonic", "unit": "epoch"}):
            write_run(tmp_path, cell(schedule, seed), [5.0, 3.0, 2.0 + seed / 3])
    archive.update(tmp_path / "records", read_runs([tmp_path]), experiment_of)
    return tmp_path


def test_the_records_give_back_the_runs_without_their_folders(recorded):
    runs = {run.signature: run for run in read_runs([recorded])}
    shutil.rmtree(recorded / "runs")
    kept = archive.read(recorded / "records")
    assert {run.signature for run in kept} == set(runs)
    for run in kept:
        original = runs[run.signature]
        assert (run.cell, run.status, run.data_digest) == (original.cell, original.status, original.data_digest)
        assert list(run.cell["optimizer"]["groups"]) == list(original.cell["optimizer"]["groups"])
        assert [row.epoch for row in run.rows] == [1, 2, 3]
        ours, theirs = ([row.test_error_pct for row in one.rows] for one in (run, original))
        assert ours == pytest.approx(theirs, rel=1e-8)


def test_the_records_say_where_the_numbers_come_from(recorded):
    run = archive.read(recorded / "records")[0]
    assert run.manifest["command"] == ["dbnrun", "experiment=paper_mnist_a"]
    assert run.manifest["versions"] == {"dbnrun": "0.1.0", "torch": "2.13.0"}
    assert run.manifest["git"].startswith("23708c5") and run.manifest["wall_seconds"] == 9.5
    assert run.manifest["device"] == "cpu" and run.manifest["started"].startswith("2026-11-23")


def test_a_row_is_a_cell_and_epoch_and_its_columns_are_those_of_metrics_csv(recorded):
    table = pd.read_csv(recorded / "records" / "mnist_A.csv")
    assert table.columns.tolist() == ["signature", "curve", "seed", *metrics.COLUMNS]
    assert len(table) == 6 * 3 and not table.duplicated(["signature", "epoch"]).any()
    assert set(table["curve"]) == {"1", "0.25", "1/m epochs"}


def test_gathering_again_changes_no_byte_and_new_runs_lose_no_row(recorded):
    before = snapshot(recorded / "records")
    archive.update(recorded / "records", read_runs([recorded]), experiment_of)
    assert snapshot(recorded / "records") == before
    shutil.rmtree(recorded / "runs")
    write_run(recorded, cell(constant(0.5), 0), [5.0, 3.0, 2.5])
    archive.update(recorded / "records", read_runs([recorded]), experiment_of)
    old, new = (
        set(text.decode().splitlines())
        for text in (before["mnist_A.csv"], snapshot(recorded / "records")["mnist_A.csv"])
    )
    assert old < new and len(new - old) == 3
    assert len(archive.read(recorded / "records")) == 7


def test_records_without_a_column_added_later_read_and_take_new_runs_and_those_of_a_newer_version_are_kept(
    tmp_path, newer_version
):
    for alpha in (1.0, 0.5, 0.25):
        write_run(tmp_path / str(alpha), cell(constant(alpha)), [3.0, 2.0])

    def add(alpha):
        return archive.update(tmp_path / "records", read_runs([tmp_path / str(alpha)]), experiment_of)

    add(1.0)
    with newer_version():
        assert [one.rows[-1].gamma_norm for one in archive.read(tmp_path / "records")] == [None]
        assert len(add(0.5)) == 2
    kept = {path: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    assert len(archive.read(tmp_path / "records")) == 2
    with pytest.raises(UserError, match=r"mnist_A.csv: has the column 'gamma_norm'"):
        add(0.25)
    assert {path: path.read_bytes() for path in (tmp_path / "records").iterdir()} == kept


def test_the_order_in_which_runs_come_changes_no_byte(tmp_path):
    for name, order in (("one", 1), ("other", -1)):
        for schedule in SCHEDULES[:4][::order]:
            write_run(tmp_path / name, cell(schedule), [3.0, 2.0])
            archive.update(tmp_path / name / "records", read_runs([tmp_path / name]), experiment_of)
    assert snapshot(tmp_path / "one" / "records") == snapshot(tmp_path / "other" / "records")


def test_of_a_cell_with_other_numbers_the_record_stands_and_a_line_says_so(recorded, tmp_path, capsys):
    before = snapshot(recorded / "records")
    write_run(tmp_path / "new", cell(constant(0.75)), [3.0, 2.0, 1.0])
    folder = write_run(tmp_path / "new", cell(constant(0.25)), [5.0, 3.0, 2.01])
    runs = archive.update(recorded / "records", read_runs([tmp_path / "new"]), experiment_of)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("1 run differs") and "by up to 0.01 pp" in line
    assert f"({folder} against {recorded / 'records' / 'mnist_A.csv'})" in line
    after = snapshot(recorded / "records")
    assert set(before["mnist_A.csv"].splitlines()) < set(after["mnist_A.csv"].splitlines()) and len(runs) == 7
    archived = next(run for run in runs if run.signature == folder.name.rsplit("-", 1)[1])
    assert archived.rows[-1].test_error_pct != 2.01


def test_of_two_unrecorded_runs_that_disagree_the_first_is_recorded_and_a_line_says_so(tmp_path, capsys):
    one = write_run(tmp_path / "one", cell(constant(0.25)), [5.0, 3.0])
    other = write_run(tmp_path / "other", cell(constant(0.25)), [5.0, 3.1])
    (run,) = archive.update(tmp_path / "records", read_runs([tmp_path / "one", tmp_path / "other"]), experiment_of)
    assert run.rows[-1].test_error_pct == 3.0
    (line,) = capsys.readouterr().out.splitlines()
    assert f"by up to 0.1 pp of test error ({other} against {one})" in line


@pytest.mark.parametrize("limit", ["limit_batches", "limit_eval"])
def test_trials_are_not_recorded(tmp_path, capsys, limit):
    trial = cell(constant(0.25))
    trial["train"][limit] = 500
    write_run(tmp_path, trial, [90.0, 80.0])
    assert archive.update(tmp_path / "records", read_runs([tmp_path]), experiment_of) == []
    assert "not recorded: 1 finished trials, with train.limit_batches or train.limit_eval" in capsys.readouterr().out


def test_records_of_other_code_are_refused_and_not_skipped(recorded, monkeypatch):
    assert len(archive.signatures(recorded / "records")) == 6
    monkeypatch.setattr(registry.of("dataset")["mnist"], "results_version", 99)
    assert archive.signatures(recorded / "records") == set()
    with pytest.raises(UserError, match=r"mnist_\w+\.csv: run \w{8} was recorded by a version with other numbers"):
        archive.read(recorded / "records")


def test_other_seconds_are_no_conflict(recorded):
    path = next(recorded.glob("runs/*/metrics.csv"))
    path.write_text(path.read_text().replace(",1.234,", ",9.876,"))
    assert len(archive.update(recorded / "records", read_runs([recorded]), experiment_of)) == 6


def test_only_finished_runs_are_recorded_and_diverged_ones_are(tmp_path):
    write_run(tmp_path, cell(constant(0.5)), [3.0, 2.0])
    write_run(tmp_path, cell(constant(0.25)), [90.0, np.nan], status="diverged")
    write_run(tmp_path, cell(constant(0.1)), [3.0], status="interrupted")
    torn = write_run(tmp_path, cell(constant(0.75)), [3.0, 2.0]) / "metrics.csv"
    torn.write_text(torn.read_text()[:-5])
    for _ in range(2):  # a NaN is no conflict with itself
        runs = archive.update(tmp_path / "records", read_runs([tmp_path]), experiment_of)
    assert sorted(run.status for run in runs) == ["diverged", "done"]
    (setting,) = settings_of(runs)
    assert setting.n == 1 and [series.left_out() for series in setting.series] == ["", "1 diverged"]


def test_a_run_cut_off_while_being_added_is_added_the_next_time(recorded):
    whole = snapshot(recorded / "records")
    archive_csv = recorded / "records" / "mnist_A.csv"
    write_run(recorded, cell(constant(0.5), 0), [5.0, 3.0, 2.5])
    archive.update(recorded / "records", read_runs([recorded]), experiment_of)
    archive_csv.write_bytes(whole["mnist_A.csv"])  # the sidecar was written, the CSV not yet
    assert len(archive.read(recorded / "records")) == 6
    assert len(archive.update(recorded / "records", read_runs([recorded]), experiment_of)) == 7


def damage(name, change):
    def apply(folder):
        path = folder / name
        path.write_text(change(path.read_text()))

    return apply


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (damage("mnist_A.csv", lambda text: text.replace(",0.01,", ",x,", 1)), r"mnist_A\.csv: line 2: .*restore it"),
        (damage("mnist_A.csv", lambda text: text[: text.rindex("\n", 0, -1) + 1]), r"epochs 1 to 2 in 2 rows, expect"),
        (damage("mnist_A.csv", lambda text: text.replace("test_loss", "tset")), r"expected the column 'test_loss'"),
        (damage("mnist_A.json", lambda text: text[:-9]), r"mnist_A\.json: not readable \(JSONDecodeError\)"),
        (lambda folder: (folder / "mnist_A.json").unlink(), r"mnist_A\.json: not readable \(FileNotFoundError\)"),
        (damage("mnist_A.json", lambda text: text.replace('"cell": 0', '"cell": 9')), r"not readable \(IndexError\)"),
    ],
)  # fmt: skip
def test_damaged_records_are_refused_in_one_line(recorded, break_it, message):
    break_it(recorded / "records")
    with pytest.raises(UserError, match=message) as refused:
        archive.read(recorded / "records")
    assert "\n" not in str(refused.value)


def test_a_cell_that_the_sidecar_does_not_know_is_refused(recorded):
    path = recorded / "records" / "mnist_A.json"
    sidecar = json.loads(path.read_text())
    del sidecar["runs"][next(iter(sidecar["runs"]))]
    path.write_text(json.dumps(sidecar))
    with pytest.raises(UserError, match=r"is not in mnist_A\.json beside it"):
        archive.read(recorded / "records")


def test_records_that_another_process_writes_are_left_alone(recorded):
    with lock.leased(recorded / "records"), pytest.raises(UserError, match=r"process .* is writing to it"):
        archive.update(recorded / "records", read_runs([recorded]), experiment_of)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (cell(constant(0.5)), "mnist_A"),
        (cell(constant(0.5), protocol="B", dataset="ni"), "ni_B"),
        (cell(constant(0.5), protocol="C", dataset="cifar10"), "cifar10_C"),
        (cell(None, norm="ln"), "mnist_baselines"),
    ],
)
def test_a_cells_file_follows_from_the_cell(content, name):
    assert experiment_of(content) == name


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [("model", "norm_position", "after"), ("norm", "average", "var"),
     ("optimizer", "groups", {"weights": {"lr": 0.01, "weight_decay": 0.0}}),
     ("optimizer", "groups", {"weights": {"lr": 0.03, "weight_decay": 1e-4}})],
)  # fmt: skip
def test_a_hyperparameter_off_the_papers_runs_makes_a_sensitivity_run(group, key, value):
    content = cell(constant(0.5))
    content[group][key] = value
    assert experiment_of(content) == "mnist_sensitivity"


@pytest.mark.parametrize("norm", [name for name in files()["norm"] if name != "custom"])
def test_a_cell_as_it_is_composed_has_every_hyperparameter_of_the_papers_runs(norm):
    content = cell_of(composed(["dataset=ni", f"norm={norm}"]))
    assert overridden(content) == {}
    axes = content["norm"].keys() - {"name", "train_stats", "stats_grad", "average"}
    idle = {"online_norm": {"clamp"}}.get(norm, set())  # of guard=clamp alone
    assert axes == NORM_AXES[content["norm"]["name"]].keys() - idle  # none in conf/norm that would be no hyperparameter


def test_everything_is_drawn_from_the_records_alone_with_the_same_bytes(recorded, tmp_path):
    drawn = []
    for out in (recorded, tmp_path / "clone"):
        if out != recorded:
            shutil.copytree(recorded / "records", out / "records")
        record(out / "records", [out])
        written = publish(out / "records", [], out)
        names = {path.relative_to(out).as_posix() for path in written}
        assert {
            "report.html",
            "tables/paper.md",
            "tables/statistics.csv",
            "tables/verdicts.csv",
            "figures/mnist-test-error.png",
        } <= names
        drawn.append({path.relative_to(out): path.read_bytes() for path in written})
    assert drawn[0] == drawn[1]


def test_a_recorded_run_that_changes_two_hyperparameters_has_a_row_in_a_table_of_its_own(recorded):
    twice = cell(constant(0.5))
    twice["model"]["norm_position"], twice["norm"]["average"] = "after", "var"
    write_run(recorded, twice, [5.0, 3.0, 2.0])
    publish(recorded / "records", [recorded], recorded)
    table = pd.read_csv(recorded / "tables" / "table1.csv")
    assert table.groupby("setting")["curve"].agg(list).to_dict() == {
        "mnist": ["α = 1", "α = 0.25", "1/m (epochs)"],
        "mnist-norm_positionafter": ["α = 0.5"],
    }


def test_nothing_recorded_is_said_with_the_command_that_records(tmp_path):
    with pytest.raises(UserError, match=r"no runs; train some"):
        publish(tmp_path / "records", [tmp_path], tmp_path)


def test_a_fresh_clone_redraws_and_writes_its_readme_with_one_command(recorded, tmp_path, monkeypatch, capsys):
    """With the words that `make figures` says."""
    clone = tmp_path / "clone"
    clone.mkdir()
    shutil.copytree(recorded / "records", clone / "results" / "records")
    before = snapshot(recorded / "records")
    (clone / "README.md").write_text(f"{documents.BEGIN}\n{documents.END}\n")
    monkeypatch.chdir(clone)
    monkeypatch.delenv("DBNRUN_RESULTS", raising=False)
    words = re.search(r"^figures:.*?dbnrun (report [^\n]*)", (ROOT / "Makefile").read_text(), re.M | re.S)
    assert words and main(words[1].split()) == 0
    assert "α = 0.25" in (clone / "README.md").read_text() and "MNIST: test error [%]" in capsys.readouterr().out
    drawn = {path.name for path in (clone / "results").iterdir()}
    assert drawn == {"records", "figures", "tables", "report.html", "normalizers.csv", "normalizers.md"}
    assert snapshot(clone / "results" / "records") == before


def test_runs_from_elsewhere_join_the_records_where_a_report_is_told_to_record(recorded, tmp_path, monkeypatch):
    write_run(tmp_path / "gpu", cell(constant(0.5)), [5.0, 3.0, 2.5])
    monkeypatch.setenv("DBNRUN_RESULTS", str(recorded))
    assert main(["report", "--record", str(tmp_path / "gpu")]) == 0
    assert len(archive.read(recorded / "records")) == 7
    assert pd.read_csv(recorded / "tables" / "table1.csv")["n"].sum() == 7 and (recorded / "report.html").exists()


@pytest.mark.parametrize("out", [[], ["--out", "elsewhere"]])
def test_a_report_that_is_not_told_to_record_writes_neither_records_nor_what_is_drawn_from_them(
    recorded, tmp_path, monkeypatch, out
):
    write_run(recorded, cell(constant(0.5)), [5.0, 3.0, 2.5])
    monkeypatch.setenv("DBNRUN_RESULTS", str(recorded))
    monkeypatch.chdir(tmp_path)
    before = snapshot(recorded / "records")
    assert main(["report", *out]) == 0
    assert snapshot(recorded / "records") == before
    assert not [name for name in ("tables", "figures", "report.html", "normalizers.md") if (recorded / name).exists()]
    folder = tmp_path / "elsewhere" if out else recorded / "report"
    assert {path.name for path in folder.iterdir()} == {"tables", "figures", "report.html"}
    assert pd.read_csv(folder / "tables" / "table1.csv")["n"].sum() == 7  # six that are recorded, and one more


def test_a_report_of_records_and_runs_together_has_the_papers_tables_and_each_run_once(recorded, tmp_path):
    write_run(recorded, cell(constant(0.5)), [5.0, 3.0, 2.5])
    assert main(["report", str(recorded / "records"), str(recorded), "--out", str(tmp_path / "out")]) == 0
    drawn = {"tables", "figures", "report.html", "normalizers.csv", "normalizers.md"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == drawn
    assert pd.read_csv(tmp_path / "out" / "tables" / "table1.csv")["n"].sum() == 7


def test_without_own_runs_a_report_is_that_of_the_records(recorded, tmp_path, monkeypatch):
    shutil.rmtree(recorded / "runs")
    monkeypatch.setenv("DBNRUN_RESULTS", str(recorded))
    assert main(["report"]) == 0
    assert (recorded / "report" / "normalizers.md").is_file()


def test_what_a_report_of_own_runs_writes_is_ignored_by_git(tmp_path):
    for path in ("results/report/report.html", "results/demo/report/tables/table1.csv"):
        done = subprocess.run(["git", "check-ignore", path], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0 or not (ROOT / ".git").exists(), path


def test_a_run_folder_that_cannot_be_read_does_not_stop_the_records_report_unless_strict(recorded, monkeypatch, capsys):
    monkeypatch.setenv("DBNRUN_RESULTS", str(recorded))
    for folder in (recorded / "runs").iterdir():
        (folder / "config.yaml").write_text("just: something")
    words = ["report", str(recorded / "records"), str(recorded)]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.err.count("warning: left out: ") == 6 and "α = 0.25" in said.out
    assert main([*words, "--strict"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_records_keep_both_signatures_of_a_cpu_run_and_the_report_counts_it_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DBNRUN_RESULTS", str(tmp_path))
    for deterministic in ("auto", True):
        for alpha in (1.0, 0.25):
            write_run(tmp_path, {**cell(constant(alpha)), "deterministic": deterministic}, [5.0, 3.0])
    assert main(["report", "--record"]) == 0
    assert {run.cell["deterministic"] for run in archive.read(tmp_path / "records")} == {"auto", True}
    assert pd.read_csv(tmp_path / "tables" / "table1.csv")["n"].tolist() == [1, 1]
    assert "other numbers" not in capsys.readouterr().out


def test_runs_on_their_own_have_a_report_in_their_results_folder(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("DBNRUN_RESULTS", str(tmp_path / "mine"))
    run_folder = next((recorded / "runs").iterdir())
    assert main(["report", str(recorded), "--title", "My <runs>"]) == 0
    page = (recorded / "report" / "report.html").read_text()
    assert "<h1>My &lt;runs&gt;</h1>" in page and 'id="claims"' not in page and 'id="sensitivity"' not in page
    (tmp_path / "other").mkdir()
    for paths in ([run_folder], [recorded / "runs"], [recorded, tmp_path / "other"]):
        assert main(["report", *map(str, paths)]) == 0
        assert (tmp_path / "mine" / "report" / "report.html").exists()
        shutil.rmtree(tmp_path / "mine")


def test_the_documents_hold_what_the_records_hold_and_nothing_else(recorded, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DBNRUN_RESULTS", str(recorded))
    for words in (["--readme"], [str(recorded), "--readme"]):
        assert main(["report", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "add --record, or name the folder of records" in line


def test_a_recorded_command_names_no_folder_of_the_machine_it_ran_on():
    typed = ["/home/me/dbnrun/cli.py", "-m", "seed=0", "results_dir=/home/me/results", "data_dir=/home/me/data"]
    assert archive._own({"command": typed, "git": "x", "host": "y"}) == {
        "git": "x",
        "command": ["cli.py", "-m", "seed=0"],
    }
