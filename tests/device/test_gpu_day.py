"""A day on a GPU as one command: its order, its pieces, what it does after a kill; and what it checks there."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import gpu_check

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_day.sh"
# Stands for Python: notes its call, and does as a file of the folder says, once or at every call.
STUB = """#!/usr/bin/env bash
cd "{folder}"
echo "$*" >>calls
for rule in once every; do
    while read -r word action; do
        [[ " $* " == *" $word "* ]] || continue
        [ $rule = once ] && rm once
        eval "$action"
    done < <(cat $rule 2>/dev/null)
done
exit 0
"""


@pytest.fixture
def stub(tmp_path):
    """A call of the script with the stub, in pieces of `seconds`, until it says that all is done."""
    python = tmp_path / "python"
    python.write_text(STUB.format(folder=tmp_path))
    python.chmod(0o755)

    def day(seconds=500):
        environment = {**os.environ, "PYTHON": str(python), "GPU_DAY_SECONDS": str(seconds)}
        command = [str(SCRIPT), str(tmp_path / "out")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return day


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


def test_a_day_goes_from_versions_to_table_1_and_a_second_call_does_nothing_again(stub, tmp_path):
    done = stub()
    assert done.returncode == 0, done.stderr
    made = calls(tmp_path)
    firsts = [line for line in made if "experiment=" not in line]
    wanted = "collect_env", "doctor", "test_cuda_graph.py", "test_dbn.py", "test_compile.py", "test_execute.py"
    wanted += "gpu_check.py", "bench layer", "bench cell", "bench grid"
    assert made[: len(firsts)] == firsts and len(firsts) == len(wanted)
    assert all(word in line for word, line in zip(wanted, firsts, strict=True))
    trained = made[len(firsts) :]
    assert all("device=cuda" in line and "max_stack=auto" in line for line in trained)
    assert [line.split()[2].removeprefix("experiment=paper_cifar10_") for line in trained[:9]] == [
        "baselines",
        "b",
        "c",
    ] * 3
    assert [line.split()[4] for line in trained[:9]] == [f"seed={seed}" for seed in "000111222"]
    experiments = {f"experiment={path.stem}" for path in (ROOT / "conf" / "experiment").glob("paper_*.yaml")}
    assert {line.split()[2] for line in trained[-len(experiments) :]} == experiments
    assert f"dbnrun report --record {tmp_path}/out/results\n" in done.stdout
    assert stub().returncode == 0 and calls(tmp_path) == made


def test_a_step_that_is_cut_off_is_taken_again_and_no_other(stub, tmp_path):
    (tmp_path / "once").write_text("experiment=paper_cifar10_c exec sleep 300\n")
    codes = [stub(4).returncode]
    while codes[-1] == 75:
        codes.append(stub(30).returncode)
    assert codes[0] == 75 and codes[-1] == 0
    made = calls(tmp_path)
    # Table 1's last lines are CIFAR-10's, which finds them trained.
    twice = [line for line in made if made.count(line) == 2 and "seed=" in line]
    assert len(twice) == 2 and "experiment=paper_cifar10_c" in twice[0]


def test_a_step_that_fills_a_whole_piece_and_cannot_go_on_counts_as_failed(stub, tmp_path):
    (tmp_path / "every").write_text("grid exec sleep 300\nlayer exit 3\n")
    codes = [stub(3).returncode]
    while codes[-1] == 75:
        codes.append((last := stub(3)).returncode)
    assert codes[-1] == 1
    assert "4-bench-layer (exit code 3)" in last.stderr and "4-bench-grid (exit code 124)" in last.stderr


def test_while_what_a_killed_piece_left_is_at_work_no_other_begins(stub, tmp_path):
    (tmp_path / "once").write_text("doctor exec sleep 300\n")
    environment = {**os.environ, "PYTHON": str(tmp_path / "python")}
    first = subprocess.Popen([str(SCRIPT), str(tmp_path / "out")], env=environment, stdout=subprocess.DEVNULL)
    while not (tmp_path / "calls").exists() or "doctor" not in (tmp_path / "calls").read_text():
        time.sleep(0.05)
    first.kill()
    first.wait()
    refused = stub()
    assert refused.returncode == 75 and "another piece is still at work" in refused.stderr
    left = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _asleep_in(path, tmp_path)]
    assert left
    for process in left:
        os.kill(process, signal.SIGTERM)
    while (done := stub()).returncode == 75:
        time.sleep(0.05)
    assert done.returncode == 0 and sum("doctor" in line for line in calls(tmp_path)) == 2


def _asleep_in(process: Path, folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return (process / "comm").read_text() == "sleep\n" and (process / "cwd").resolve() == folder.resolve()
    return False


@pytest.mark.slow
def test_a_dry_run_on_the_cpu_that_is_killed_goes_on_to_its_end(tmp_path):
    out = tmp_path / "out"
    command = [str(SCRIPT), "--dry-run", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GPU_DAY_SECONDS": "300"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not (out / "check.jsonl").exists():  # not before: a `timeout` that is killed as it starts leaves its command
        assert first.poll() is None
        time.sleep(0.1)
    first.terminate()
    assert first.wait(60) == 130
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "1-doctor.log").read_text().count("+ ") == 1
    kinds = [json.loads(line)["kind"] for line in (out / "check.jsonl").read_text().splitlines()]
    assert kinds == list(gpu_check.kinds())
    assert len(list((out / "results" / "runs").glob("*/metrics.csv"))) > 10
    refused = subprocess.run([str(SCRIPT), str(out)], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "holds a dry run" in refused.stderr


SOUND = {"precision": "fp32", "first loss from the cpu's": 0.0, "twice the same": True}


@pytest.mark.parametrize(
    ("measured", "fault"),
    [
        ({}, []),
        ({"losses from the cpu's": 0.1}, []),  # float32 far along a run says little
        ({"first loss from the cpu's": 1e-3}, ["first loss from the cpu's"]),
        ({"first loss from the cpu's": 1e-3, "precision": "bf16"}, []),
        ({"float64 from the cpu's": 1e-5}, ["float64 from the cpu's"]),
        ({"float64 stacked from alone": float("nan")}, ["float64 stacked from alone"]),
        ({"captured the same": False}, ["captured the same"]),
        ({"captured the same": False, "twice the same": False}, []),
    ],
)
def test_a_check_finds_the_fault_that_was_measured(measured, fault):
    assert gpu_check.faults(SOUND | measured) == fault


def test_a_check_of_stacks_compares_float64_with_every_step():
    result = gpu_check.compared(gpu_check.kinds()["fnn dbn"], "cpu", 3)
    assert len(result["losses"]) == 3 and result["losses"][0] > result["losses"][2] > 0
    assert result["float64 from the cpu's"] == 0.0 and 0 <= result["float64 stacked from alone"] < 1e-12
    assert "captured the same" not in result and torch.get_default_dtype() == torch.float32
