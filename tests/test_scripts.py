"""The scripts beside the command."""

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent / "scripts"


def scales(*overrides):
    command = [sys.executable, str(SCRIPTS / "scales.py"), "train.epochs=2", "threads=1", "device=cpu", *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_scales_of_a_lambda_that_never_moves_are_its_beginning():
    done = scales("norm=dbn", "schedule=alpha_0", "norm.init=[0,3]")
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split()[-4:] == ["sigma1", "|W1|", "sigma2", "|W2|"] and len(rows) == 2
    assert [float(row.split()[i]) for row in rows for i in (2, 4)] == [3.0] * 4
    # Glorot normal: 64 x 64 weights of variance 2/128 have norm 8, give or take; two epochs do not double it.
    assert all(4 < float(row.split()[3]) < 16 for row in rows)


def test_scales_without_a_lambda_are_refused_in_one_line():
    done = scales("norm=bn")
    assert done.returncode == 1 and "expected norm=dbn" in done.stderr and len(done.stderr.splitlines()) == 1
