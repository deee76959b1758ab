"""Every fault that we can cause, caused for real: what a user sees, and what is left on disk."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from dbnrun.runs import metrics
from soak import soak

QUICK = ["train.epochs=3", "train.limit_batches=4", "threads=1", "progress=false"]


def numbers(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in metrics.TIME_COLUMNS} for row in csv.DictReader(file)]


def runs(results):
    return sorted((results / "runs").iterdir())


@pytest.fixture
def whole(dbnrun, tmp_path):
    """The undisturbed records of the cell that the tests disturb."""
    assert dbnrun(*QUICK, "results_dir=whole").returncode == 0
    return numbers(runs(tmp_path / "whole")[0])


def one_line(done):
    return "Traceback" not in done.stderr and "Traceback" not in done.stdout


@pytest.mark.parametrize("limit", [100, 3000, 60_000])
def test_a_full_disk_fails_the_cell_in_one_line_and_the_same_command_goes_on(dbnrun, tmp_path, whole, limit):
    """No file may grow beyond `limit` bytes: manifest, rows or checkpoint cannot be written."""

    full = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    )
    done = dbnrun(*QUICK, before=full)
    assert done.returncode == 1 and one_line(done), done.stderr
    assert "File too large" in done.stderr
    assert not list((tmp_path / "results").rglob(".*.[0-9]*"))  # no half-written temporary file
    again = dbnrun(*QUICK)
    assert again.returncode == 0, again.stderr
    assert numbers(runs(tmp_path / "results")[0]) == whole


def test_a_full_file_system_is_survived(dbnrun, tmp_path, whole):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("mounting is not allowed here; RLIMIT_FSIZE stands in for it")
    try:
        words = ["-m", "seed=0,1", *QUICK, f"results_dir={small}"]
        done = dbnrun(*words)
        assert done.returncode == 1 and one_line(done) and "No space left on device" in done.stderr, done.stderr
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        again = dbnrun(*words)
        assert again.returncode == 0, again.stderr
        assert numbers(runs(small)[0]) == whole
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_read_only_results_folder_is_said_in_one_line(dbnrun, tmp_path):
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(fixed)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done = dbnrun(*QUICK, f"results_dir={fixed}")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "results_dir=" in done.stderr and "Read-only file system" in done.stderr
    finally:
        subprocess.run(["umount", "-l", str(fixed)], check=True)


@pytest.fixture
def start(tmp_path):
    """Start the command and wait for its first checkpoint; it does not outlive the test."""
    started = []

    def begin(*words):
        process = subprocess.Popen(
            [sys.executable, "-m", "dbnrun", *words], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("results/runs/*/checkpoint.pt")) and time.monotonic() < deadline:
            time.sleep(0.01)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


LONG = ["train.epochs=100000", "train.limit_batches=4", "threads=1", "progress=false"]


def test_a_results_folder_deleted_while_running_ends_in_one_line(dbnrun, start, tmp_path):
    process = start(*LONG)
    shutil.rmtree(tmp_path / "results", ignore_errors=True)
    shutil.rmtree(tmp_path / "results", ignore_errors=True)  # what was written meanwhile
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in said and "failed:" in said, said


def test_two_processes_on_one_cell_one_trains_the_other_says_who_and_goes_on_to_its_next(dbnrun, start, tmp_path):
    process = start(*LONG)
    other = dbnrun("-m", *LONG[1:], "train.epochs=100000,2", timeout=240)
    assert other.returncode == 0, other.stderr
    assert f"skipped: process {process.pid} on" in other.stderr and "1 held" in other.stderr
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and said.count("\n") == 1, said


@pytest.mark.slow
def test_a_killed_holder_is_replaced_at_once(dbnrun, start, tmp_path):
    process = start(*LONG)
    process.kill()
    process.communicate()
    (folder,) = runs(tmp_path / "results")
    assert (folder / "lock").exists()
    assert "unfinished" in dbnrun("status").stdout
    process = start(*LONG)
    deadline = time.monotonic() + 120
    while "running" not in dbnrun("status").stdout and time.monotonic() < deadline:
        pass
    assert f"process {process.pid} on" in dbnrun("status").stdout
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 130 and not (folder / "lock").exists()


BREAK = """
from dbnrun.runner import execute
build = execute.build_cell
def broken(config, *rest):
    if config.seed == 1:
        {what}
    return build(config, *rest)
execute.build_cell = broken
"""
WAYS = {
    "raises": "raise ValueError('broken\\nby test')",
    "exits": "import sys; sys.exit(3)",
    "recurses": "return broken(config, *rest)",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_cell_that_breaks_does_not_stop_the_others(dbnrun, tmp_path, way):
    done = dbnrun("-m", "seed=0,1,2", *QUICK, before=BREAK.format(what=WAYS[way]))
    assert done.returncode == 1 and one_line(done), done.stderr
    assert "3 runs: 2 done, 1 failed" in done.stderr
    broken = next(folder for folder in runs(tmp_path / "results") if "seed1" in folder.name)
    assert f"log: results/runs/{broken.name}/run.log" in done.stderr and "Traceback" in (broken / "run.log").read_text()


def test_a_segfault_ends_the_sweep_and_the_next_command_trains_the_rest_first(dbnrun, tmp_path):
    code = BREAK.format(what="import ctypes; ctypes.string_at(0)")
    words = ["-m", "seed=0,1,2", *QUICK]
    done = dbnrun(*words, before=code)
    assert done.returncode == -signal.SIGSEGV
    again = dbnrun(*words, before=code)  # it does so again, but last
    assert again.returncode == -signal.SIGSEGV
    counts = dbnrun("plan", *words).stdout
    assert "2 done" in counts and "1 unfinished" in counts, counts
    assert "1 done" in dbnrun(*words).stderr


@pytest.mark.slow
def test_names_with_spaces_and_other_letters_and_no_home(dbnrun, tmp_path, whole):
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME")}
    folder = tmp_path / "mit Leerzeichen, ä ∑ 'and' =quotes"
    environment["DBNRUN_RESULTS"] = str(folder)
    done = subprocess.run(
        [sys.executable, "-m", "dbnrun", *QUICK], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert numbers(runs(folder)[0]) == whole
    assert dbnrun("report", str(folder)).returncode == 0
    assert dbnrun("status", str(folder)).returncode == 0


def test_a_csv_without_one_of_the_first_columns_is_refused_by_name(dbnrun, tmp_path):
    assert dbnrun(*QUICK).returncode == 0
    (folder,) = runs(tmp_path / "results")
    lines = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    shown = dbnrun("report")
    assert shown.returncode == 2 and "expected the column 'eval_seconds'" in shown.stderr and one_line(shown)
    retried = dbnrun(*QUICK)
    assert retried.returncode == 2 and "expected the column 'eval_seconds'" in retried.stderr and one_line(retried)


@pytest.mark.slow
@pytest.mark.parametrize("stack", [False, True], ids=["one by one", "stacked"])
def test_killed_at_random_moments_a_sweep_ends_with_the_same_bytes(tmp_path, stack):
    counts = soak(tmp_path, kills=3, stack=stack, seed=7)
    assert counts["kills"] == 3
    assert (counts["rows lost"], counts["differing bytes"], counts["other errors"]) == (0, 0, 0)
