"""The scripts beside the command."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


def scales(*overrides):
    command = [sys.executable, str(SCRIPTS / "scales.py"), "train.epochs=2", "threads=1", "device=cpu", *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_the_scales_of_a_lambda_that_never_moves_are_its_beginning():
    done = scales("norm=dbn", "schedule=alpha_0", "norm.init=[0,3]")
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split()[3:] == ["sigma1", "|mu|/sigma1", "|W1|", "sigma2", "|mu|/sigma2", "|W2|"] and len(rows) == 2
    assert [float(row.split()[i]) for row in rows for i in (3, 6)] == [3.0] * 4
    # Glorot normal: 64 x 64 weights of variance 2/128 have norm 8, give or take; two epochs do not double it.
    assert all(4 < float(row.split()[5]) < 16 for row in rows)


@pytest.mark.slow
def test_held_weights_keep_their_norm_and_a_file_takes_a_cell_once(tmp_path):
    path = tmp_path / "scales.csv"
    for _ in range(2):
        done = scales("norm=dbn", "schedule=alpha_0.1", "--hold", "--csv", str(path))
        assert done.returncode == 0, done.stderr
    rows = pd.read_csv(path)
    assert list(rows["epoch"]) == [1, 2] and rows["cell"].str.endswith("schedule=alpha_0.1 --hold").all()
    assert rows["|W2|"].iloc[0] == pytest.approx(rows["|W2|"].iloc[1], rel=1e-5)


@pytest.mark.slow
def test_scales_without_a_lambda_are_refused_in_one_line():
    done = scales("norm=bn")
    assert done.returncode == 1 and "expected norm=dbn" in done.stderr and len(done.stderr.splitlines()) == 1
