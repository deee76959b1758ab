"""The same sweep through other launchers: the same cells, folders and numbers."""

import csv
import importlib.util
import json

import pytest

from dbnrun.runs import metrics

QUICK = ["norm=dbn", "schedule=harmonic,alpha_0.5", "seed=0,1", "train.epochs=2", "train.limit_batches=3", "threads=1"]


def numbers(results):
    found = {}
    for path in sorted(results.glob("runs/*/metrics.csv")):
        with path.open(newline="") as file:
            rows = [{k: v for k, v in row.items() if k not in metrics.TIME_COLUMNS} for row in csv.DictReader(file)]
        found[path.parent.name] = rows
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "plugin", "more"),
    [
        ("joblib", "hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
        ("submitit_local", "hydra_submitit_launcher", []),
        ("ray", "hydra_ray_launcher", ["+hydra.launcher.ray.init.num_cpus=2"]),
    ],
)
def test_a_sweep_elsewhere_gives_the_folders_and_numbers_of_one_here(
    dbnrun, fresh_dbnrun, tmp_path, launcher, plugin, more
):
    if importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
        pytest.skip(f"needs the extra that brings {plugin}")
    assert dbnrun("-m", *QUICK, "results_dir=here").returncode == 0
    done = fresh_dbnrun("-m", f"hydra/launcher={launcher}", *more, *QUICK, "results_dir=there")
    assert done.returncode == 0 and "4 runs: 4 done" in done.stderr, done.stderr
    assert "Warning" not in done.stderr
    assert numbers(tmp_path / "there") == numbers(tmp_path / "here")
    again = dbnrun("-m", f"hydra/launcher={launcher}", *more, *QUICK, "results_dir=there")
    assert "0 to train, 4 finished before" in again.stderr


def test_joblib_divides_the_cores_among_its_processes(fresh_dbnrun, tmp_path):
    if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("needs the extra that brings hydra_joblib_launcher")
    words = ["-m", "hydra/launcher=joblib", "seed=0,1", "train.epochs=1", "train.limit_batches=2"]
    assert fresh_dbnrun(*words, env={"OMP_NUM_THREADS": ""}).returncode == 0
    threads = {json.loads(path.read_text())["threads"] for path in tmp_path.glob("results/runs/*/manifest.json")}
    assert threads == {1}


def test_a_launcher_that_is_not_installed_is_named_with_its_extra():
    from hydra.errors import InstantiationException

    from dbnrun.config.overrides import refusal

    error = InstantiationException("Error locating target 'hydra_plugins.hydra_submitit_launcher.x'")
    assert "pip install 'dbnrun[slurm]'" in str(refusal(error))
