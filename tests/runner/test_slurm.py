"""Sweeps through a real Slurm of one node, with jobs that are killed, cancelled and put back into the queue."""

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dbnrun.runs import metrics

UP = Path(__file__).parents[3] / "shared" / "tools" / "slurm_up.sh"
SWEEP = ["norm=dbn", "schedule=harmonic,alpha_0.5,alpha_0.1", "seed=0,1,2,3"]
LONG = ["train.epochs=150", "train.limit_batches=4", "threads=1", "progress=false"]
SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1", "hydra.launcher.cpus_per_task=1"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a Slurm that lives as long as this module's tests."""
    if (
        not UP.is_file()
        or os.geteuid() != 0
        or not all(map(shutil.which, ("sbatch", "munged", "slurmdbd", "mariadbd")))
    ):
        pytest.skip(f"needs {UP.name}, root, and Debian's slurm-wlm, munge, slurmdbd and mariadb-server")
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("needs the extra 'slurm'")
    folder = tmp_path_factory.mktemp("slurm")
    ports = {"SLURM_TEST_PORT": str(20000 + os.getpid() % 10000)}
    subprocess.run(["bash", UP, folder, "--accounting"], env={**os.environ, **ports}, check=True, capture_output=True)
    yield {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", UP.with_name("slurm_down.sh"), folder], check=False, capture_output=True)


@pytest.fixture
def sweep(slurm, tmp_path):
    """Starts a sweep in the background."""

    def start(*words):
        command = [sys.executable, "-m", "dbnrun", "-m", *words]
        return subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **slurm}, stderr=subprocess.PIPE, text=True)

    return start


def numbers(results):
    found = {}
    for path in sorted(results.glob("runs/*/metrics.csv")):
        with path.open(newline="") as file:
            rows = [{k: v for k, v in row.items() if k not in metrics.TIME_COLUMNS} for row in csv.DictReader(file)]
        found[path.parent.name] = rows
    return found


def squeue(slurm, *words):
    done = subprocess.run(
        ["squeue", "--noheader", "--array", *words],
        env={**os.environ, **slurm},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


def until(what, seconds=600.0):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


def under_way(results, rows=5):
    """The folders of cells that are being trained and have some rows."""
    return [
        path.parent
        for path in results.glob("runs/*/metrics.csv")
        if (path.parent / "lock").exists() and len(path.read_text().splitlines()) > rows
    ]


def test_a_sweep_that_loses_a_process_and_a_job_ends_whole_when_asked_again(fresh_dbnrun, slurm, sweep, tmp_path):
    results = tmp_path / "there"
    words = [*SLURM, *SWEEP, *LONG, "results_dir=there"]
    process = sweep(*words)
    (victim, *_) = until(lambda: under_way(results))
    os.kill(json.loads((victim / "lock").read_text())["pid"], signal.SIGKILL)
    until(lambda: [folder for folder in under_way(results) if folder != victim])
    (job, *_) = squeue(slurm, "--states=RUNNING", "--format=%i")
    subprocess.run(["scancel", job], env={**os.environ, **slurm}, check=True)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 1, said
    assert "The launcher stopped at a job" in said and "Traceback" not in said
    until(lambda: not squeue(slurm))  # what is left of the first sweep trains on
    assert len(numbers(results)) >= 10
    again = fresh_dbnrun("-m", *words, env=slurm, timeout=300)
    assert again.returncode == 0, again.stderr
    assert fresh_dbnrun("-m", *SWEEP, *LONG, "results_dir=here", timeout=300).returncode == 0
    here = numbers(tmp_path / "here")
    assert len(here) == 12 and all(len(rows) == 150 for rows in here.values())
    assert numbers(results) == here
    assert not list(results.glob("runs/*/*set-aside*"))


def test_a_job_that_slurm_ends_goes_back_into_the_queue_and_on_from_its_checkpoint(
    fresh_dbnrun, slurm, sweep, tmp_path
):
    words = [*LONG, "norm=dbn", "seed=7"]
    process = sweep(*SLURM, *words, "results_dir=there")
    (folder,) = until(lambda: under_way(tmp_path / "there"))
    kept = len((folder / "metrics.csv").read_text().splitlines())
    # What Slurm sends before the time limit that conf/hydra/launcher/submitit_slurm.yaml sets.
    (job,) = squeue(slurm, "--format=%A")
    subprocess.run(["scancel", "--signal=USR2", job], env={**os.environ, **slurm}, check=True)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0 and "1 run: 1 done" in said, said
    assert fresh_dbnrun(*words, "results_dir=here").returncode == 0
    assert numbers(tmp_path / "there") == numbers(tmp_path / "here")
    started = [line for line in (folder / "run.log").read_text().splitlines() if "_submit.py" in line.split("{")[0]]
    assert len(started) == 2 and kept < 150


def test_stacks_are_jobs(fresh_dbnrun, slurm, tmp_path):
    settings = [f"+hydra.launcher.inner_settings.{setting}=1" for setting in ("mem_gb", "cpus_per_task")]
    words = ["-m", *SWEEP, "train.epochs=2", "train.limit_batches=4", "threads=1", "hydra.launcher.max_stack=6"]
    done = fresh_dbnrun(*words, "hydra.launcher.inner=submitit_slurm", *settings, "results_dir=jobs", env=slurm)
    assert done.returncode == 0, done.stderr
    assert "12 runs as 2 jobs of submitit_slurm" in done.stderr and "12 runs: 12 done" in done.stderr
    assert fresh_dbnrun(*words, "results_dir=here").returncode == 0
    assert numbers(tmp_path / "jobs") == numbers(tmp_path / "here")
