"""Many sweeps into one results folder: as of ten machines on one file system, one of which dies."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dbnrun.runs import metrics

SWEEP = ["-m", "norm=bn,dbn", "schedule=harmonic,alpha_0.5,alpha_0.1", f"seed={','.join(map(str, range(10)))}"]
QUICK = ["train.epochs=12", "train.limit_batches=4", "threads=1", "progress=false"]

# A machine of its own as far as leases can tell, with leases that are quick to expire.
MACHINE = """
import sys
from dbnrun import cli
from dbnrun.runs import lock
lock.HEARTBEAT, lock.EXPIRY = 0.2, 3.0
lock._machine = lambda: "machine " + sys.argv[1]
sys.exit(cli.main(sys.argv[2:]))
"""


def machine(name, folder):
    words = [sys.executable, "-c", MACHINE, name, *SWEEP, *QUICK, "results_dir=shared"]
    return subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True)


def numbers(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in metrics.TIME_COLUMNS} for row in csv.DictReader(file)]


def starts(folder):
    """How often a cell was opened to be trained: its log says so once each time."""
    return sum('"signature"' in line for line in (folder / "run.log").read_text().splitlines())


@pytest.mark.slow
def test_ten_machines_train_each_cell_once_though_one_of_them_dies(dbnrun, tmp_path):
    runs = tmp_path / "shared" / "runs"
    processes = [machine(str(number), tmp_path) for number in range(10)]
    deadline = time.monotonic() + 240
    while not (held := {json.loads(p.read_text())["pid"]: p.parent for p in runs.glob("*/lock")}):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pid, victim = next(iter(held.items()))
    os.kill(pid, signal.SIGKILL)
    for process in processes:
        _, said = process.communicate(timeout=240)
        assert process.returncode == (-signal.SIGKILL if process.pid == pid else 0), said
    last = machine("last", tmp_path)
    _, said = last.communicate(timeout=240)
    assert last.returncode == 0 and "Traceback" not in said, said
    assert dbnrun(*SWEEP, *QUICK, "results_dir=alone").returncode == 0
    alone = sorted((tmp_path / "alone" / "runs").iterdir())
    assert [folder.name for folder in alone] == sorted(folder.name for folder in runs.iterdir()) and len(alone) == 40
    for folder in alone:
        assert numbers(runs / folder.name) == numbers(folder)
        assert starts(runs / folder.name) <= 1 + (folder.name == victim.name)
        assert sorted(p.name for p in (runs / folder.name).iterdir()) == sorted(p.name for p in folder.iterdir())
