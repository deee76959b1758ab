"""The command as a user meets it: in processes of its own."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

WRONG = [
    (["dataset=mnits"], r"dataset=mnits: expected one of .* Did you mean 'mnist'\?"),
    (["datset=mnist"], r"no key 'datset'. Did you mean 'dataset'\?"),
    (["norm=bnn"], r"norm=bnn: expected one of .* Did you mean 'bn'\?"),
    (["schedule=harmonics"], r"Did you mean 'harmonic'\?"),
    (["lr=0.1"], r"no key 'lr'. Did you mean 'optimizer.lr'\?"),
    (["train.epoch=3"], r"Did you mean 'train.epochs'\?"),
    (["+unknown=1"], r"no key 'unknown'"),
    (["++seed=1"], r"keys cannot be added; write seed="),
    (["~norm"], r"cannot be deleted"),
    (["-m", "seed=0..4"], r"seed=0..4: expected a whole number. To sweep over several: dbnrun -m 'seed=range\(0,5\)'"),
    (["norm"], r"norm: no such verb; .* A key needs a value: norm=…\."),
    (["seed=-1"], r"seed=-1: expected a number of at least 0, at most 9223372036854775807"),
    (["schedule.alpha=2", "norm=dbn"], r"schedule.alpha=2.0: expected a number of at least 0, at most 1"),
    (["schedule.alpha=nan", "norm=dbn"], r"schedule.alpha=nan"),
    (["schedule=harmonic", "schedule.alpha=0.5"], r"schedule=harmonic has no option alpha"),
    (["train.epochs=abc"], r"train.epochs=abc: expected a whole number\."),
    (["train.epochs=0"], r"train.epochs=0: expected a number of at least 1"),
    (["train.epochs=1.5"], r"train.epochs=1.5"),
    (["train.batch_size=1"], r"train.batch_size=1: expected a number of at least 2"),
    (["train.batch_size=5000"], r"digits has 1197 training records"),
    (["model.widths=[0,5]"], r"model.widths=0: expected a number of at least 1"),
    (["model.widths=[]"], r"expects at least one width"),
    (["model=cnn", "model.widths=[8,8]"], r"model 'cnn' expects 5 widths"),
    (["model=cnn", "dataset=ni"], r"model=cnn expects images"),
    (["model=torchvision", "model.arch=resnet18", "dataset=ni"], r"model=torchvision expects images"),
    (["model=torchvision"], r"model.arch is missing: .* as in model.arch=resnet18"),
    (["model=torchvision", "model.arch=../x"], r"model.arch=../x: expected the name of a network"),
    (["model=torchvision", "model.arch=resnet19"], r"model.arch=resnet19: .* Did you mean 'resnet18'\?"),
    (["model=torchvision", "model.arch=squeezenet1_1"], r"squeezenet1_1: it has no batch norm"),
    (["model=torchvision", "model.arch=mobilenet_v2", "model.stem=cifar"], r"CIFAR stem .*model.stem=imagenet"),
    (["model=torchvision", "model.arch=densenet121", "model.stem=imagenet"], r"cannot take images of 8x8 pixels"),
    (["model=torchvision", "model.arch=resnet18", "model.widths=[9]"], r"model=torchvision has no option widths"),
    (["model.activation=rellu"], r"Did you mean 'relu'\?"),
    (["norm=dbn", "norm.average=mean"], r"expected one of std, var, inv_std"),
    (["norm.momentum=2"], r"norm.momentum=2.0"),
    (["norm=dbn", "norm.momentum=0.1"], r"norm=dbn has no option momentum; it is an option of bn"),
    (["optimizer.lr=-1"], r"optimizer.lr=-1"),
    (["optimizer.groups.weights.pattern=nothing"], r"miss \d+ parameter\(s\), first 'hidden.0.linear.weight'"),
    (["optimizer.groups.weigths.lr=1"], r"weigths"),
    (["optimizer.groups.norm.lr=fast"], r"optimizer.groups.norm.lr=fast: expected a number"),
    (["+optimizer.groups.rest={pattern: '*'}"], r"expected exactly pattern, lr, weight_decay"),
    (["seed=-1"], r"seed=-1"),
    (["seed=0,1"], r"seed=0,1: expected one value\. To sweep over several: dbnrun -m seed=0,1\."),
    (["seed=[1"], r"expected key=value"),
    (["precision=fp64"], r"expected one of fp32, tf32, bf16"),
    (["precision=tf32", "device=cpu"], r"precision=tf32 needs a CUDA device"),
    (["device=gpu"], r"expected one of auto, cpu, cuda"),
    (["dataset.val_size=99999"], r"expected at least 1 and fewer than the"),
    (["-m", "norm=bn,dnb"], r"norm=dnb"),
    (
        ["-m", "norm=dbn", "schedule=harmonic,inverse_square", "schedule.alpha=0.1,0.5"],
        r"schedule=harmonic has no option alpha",
    ),
    (["dataset=MNIST"], r"Did you mean 'mnist'\?"),
    (["schedule=alpha_0.3"], r"Write a constant as schedule=constant schedule.alpha=0.3\."),
    (["--seed", "1"], r"--seed: there is no such flag\. Keys have no dashes: seed=…\."),
    (["--mutlirun", "seed=0"], r"Did you mean '--multirun'\?"),
    (["hydra.nonsense=1"], r"hydra.nonsense"),
    (["hydra/launcher=nonsense"], r"nonsense"),
    (["-m", "hydra.launcher.inner=fusd"], r"hydra.launcher.inner=fusd: expected one of .* Did you mean 'fused'\?"),
    (["-m", "hydra.launcher.inner=fused"], r"expected a launcher other than fused"),
    (["-m", "hydra.launcher.inner=basic", "+hydra.launcher.inner_settings.x=1"], r"basic has no such setting"),
    (["experiment=NULL"], r"experiment=null: not supported; expected one of demo"),
    (
        ["trian"],
        r"trian: no such verb; expected one of plan, status, runs, report, compare, until, data, theory, doctor, bench",
    ),
    (["seed=1", "report"], r"'report': expected key=value.*A verb, such as report, must come first"),
    (["report", "nowhere"], r"nowhere: it does not exist"),
    (["report", "--ot", "x", "--nope"], r"dbnrun report: "),
    (["data", "minst"], r"minst: no such data set; .* Did you mean 'mnist'\?"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_a_wrong_input_gives_exit_code_2_and_one_line(dbnrun, tmp_path, words, message):
    done = dbnrun(*words, env={"DBNRUN_DATA": "no-data"})
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("dbnrun"), done.stderr
    assert re.search(message, lines[0]), lines[0]
    assert done.stdout == ""
    # Nothing half-written: at most the folder of a cell that was refused once its data was known.
    assert not list(tmp_path.rglob("metrics.csv"))


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_a_launcher_that_is_not_installed_names_its_extra(dbnrun):
    done = dbnrun("-m", "hydra/launcher=ray", "seed=0,1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "the ray launcher is not installed; pip install 'dbnrun[ray]'" in done.stderr


def test_a_missing_data_set_is_one_line_that_says_where_to_put_it(dbnrun, tmp_path):
    # A proxy that is not there stands for a machine without a network.
    env = {
        "DBNRUN_DATA": str(tmp_path / "data"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = dbnrun("dataset=mnist", env=env)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert f"Put the official files into {tmp_path}/data: MNIST/raw/train-images-idx3-ubyte (missing), " in done.stderr


def test_help_names_every_choice_and_verb(dbnrun):
    from dbnrun.cli import VERBS, _help
    from dbnrun.config.registry import files

    said = _help()
    for group, names in files().items():
        assert group in said and all(name in said for name in names)
    assert all(f"dbnrun {verb}" in said for verb in VERBS)


def test_a_sweep_trains_a_normalizer_without_a_schedule_once(dbnrun, tmp_path):
    words = ["-m", "norm=bn,dbn", "schedule=constant,harmonic", "train.epochs=1"]
    done = dbnrun(*words)
    assert done.returncode == 0, done.stderr
    assert "3 runs: 3 to train, 0 finished before; 1 duplicate left out" in done.stderr
    names = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "results" / "runs").iterdir())
    assert names == ["digits-fnn-bn-seed0", "digits-fnn-dbn-alpha0.1-seed0", "digits-fnn-dbn-harmonic-seed0"]
    again = dbnrun(*words)
    assert again.returncode == 0 and "0 to train, 3 finished before" in again.stderr


def test_nothing_trains_when_one_cell_of_a_sweep_is_refused(dbnrun, tmp_path):
    done = dbnrun("-m", "norm=dbn", "schedule.alpha=0.1,0.2,7", "train.epochs=1")
    assert done.returncode == 2 and "schedule.alpha=7" in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_cell_that_fails_does_not_stop_the_others_and_the_exit_code_is_1(dbnrun, tmp_path):
    done = dbnrun("-m", "train.batch_size=5000,100", "train.epochs=1")
    assert done.returncode == 1
    assert "[1/2]" in done.stderr and "refused: train.batch_size=5000" in done.stderr
    assert "[2/2] done" in done.stderr and "1 of 2 runs failed" in done.stderr


def test_a_finished_cell_is_skipped_and_says_so(dbnrun, tmp_path):
    first = dbnrun("train.epochs=1")
    assert first.returncode == 0 and "done, test error" in first.stderr
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    before = (folder / "metrics.csv").stat().st_mtime_ns
    second = dbnrun("train.epochs=1")
    assert second.returncode == 0 and "done before" in second.stderr
    assert (folder / "metrics.csv").stat().st_mtime_ns == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "manifest.json", "metrics.csv", "run.log"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "done" and manifest["versions"]["torch"] == torch.__version__
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]  # no outputs/ of Hydra's


def test_the_exit_code_is_130_wherever_the_interrupt_falls(tmp_path):
    (tmp_path / "started.py").write_text(
        "import sys\nfrom dbnrun import cli\n"
        "def importing(_):\n    exec('raise KeyboardInterrupt')\n"  # as a signal amid an import that makes dataclasses
        "cli._dispatch = importing\nsys.exit(cli.main([]))\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    done = subprocess.run([sys.executable, "-m", "started"], env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert done.returncode == 130


@pytest.mark.parametrize(
    "how", [signal.SIGTERM, *(pytest.param(how, marks=pytest.mark.slow) for how in (signal.SIGINT, signal.SIGKILL))]
)
def test_an_interrupted_run_goes_on_with_the_same_numbers(dbnrun, tmp_path, how):
    words = ["norm=dbn", "schedule=harmonic", "train.epochs=80", "train.limit_batches=5"]
    command = [sys.executable, "-m", "dbnrun", *words, "results_dir=cut"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (csvs := list(tmp_path.glob("cut/runs/*/metrics.csv"))) or len(csvs[0].read_text().splitlines()) < 6:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    (folder,) = (tmp_path / "cut" / "runs").iterdir()
    if how != signal.SIGKILL:
        assert process.returncode == 130 and "The same command goes on from there" in said
        assert json.loads((folder / "manifest.json").read_text())["status"] == "interrupted"
    kept = len((folder / "metrics.csv").read_text().splitlines())
    assert 6 <= kept < 81
    assert dbnrun(*words, "results_dir=cut").returncode == 0
    assert dbnrun(*words, "results_dir=whole").returncode == 0
    rows = [list(csv.DictReader(next(tmp_path.glob(f"{name}/runs/*/metrics.csv")).open())) for name in ("cut", "whole")]
    assert len(rows[0]) == 80
    for one, other in zip(*rows, strict=True):
        assert {k: v for k, v in one.items() if "seconds" not in k} == {
            k: v for k, v in other.items() if "seconds" not in k
        }
    assert not list(tmp_path.glob("cut/runs/*/*set-aside*"))


def test_shell_completion_offers_the_choices(dbnrun):
    done = dbnrun("-sc", "query=bash", env={"COMP_LINE": "dbnrun dataset=", "COMP_POINT": "15"})
    assert done.returncode == 0, done.stderr
    assert {"dataset=digits", "dataset=mnist", "dataset=ni", "dataset=cifar10"} <= set(done.stdout.split())
    installed = dbnrun("-sc", "install=bash")
    assert "complete" in installed.stdout


def test_an_optimizer_group_can_be_added_and_sweeps_may_change_one(dbnrun, tmp_path):
    added = "+optimizer.groups.rest={pattern: '*', lr: 1, weight_decay: 0}"
    assert dbnrun("train.epochs=1", "optimizer.groups.weights.pattern=out.weight", added).returncode == 0
    (path,) = tmp_path.glob("results/runs/*/config.yaml")
    assert "rest:\n      pattern: '*'\n      lr: 1.0" in path.read_text()
    sweep = dbnrun("-m", "train.epochs=1", "optimizer.groups.norm.lr=0.01,0.1")
    assert sweep.returncode == 0 and "2 runs: 2 to train" in sweep.stderr


def test_a_results_folder_that_cannot_be_made_is_one_line(dbnrun, tmp_path):
    (tmp_path / "taken").write_text("a file")
    done = dbnrun("results_dir=taken", "train.epochs=1")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "results_dir=taken" in done.stderr and "cannot be made there" in done.stderr


def test_debug_shows_the_traceback(dbnrun):
    done = dbnrun("train.batch_size=5000", "debug=true")
    assert done.returncode != 0 and "Traceback" in done.stderr


def test_results_and_data_folders_follow_the_environment(dbnrun, tmp_path):
    done = dbnrun("train.epochs=1", env={"DBNRUN_RESULTS": str(tmp_path / "elsewhere ü")})
    assert done.returncode == 0 and len(list((tmp_path / "elsewhere ü" / "runs").iterdir())) == 1
    report = dbnrun("report", env={"DBNRUN_RESULTS": str(tmp_path / "elsewhere ü")})
    assert report.returncode == 0 and (tmp_path / "elsewhere ü" / "report" / "report.html").exists()


def test_final_weights_load_with_weights_only(dbnrun, tmp_path):
    assert dbnrun("train.epochs=1", "save_weights=true", "norm=dbn").returncode == 0
    (path,) = tmp_path.glob("results/runs/*/weights.pt")
    weights = torch.load(path, weights_only=True)
    assert weights["hidden.0.linear.weight"].shape == (64, 64) and int(weights["hidden.0.norm.m"]) == 11
    assert "save_weights" not in dbnrun("train.epochs=1", "save_weights=true", "norm=dbn").stderr
    path.unlink()  # as if it had been trained without
    alone = dbnrun("train.epochs=1", "save_weights=true", "norm=dbn")
    assert "finished without save_weights=true" in alone.stderr
    swept = dbnrun("-m", "train.epochs=1", "save_weights=true", "norm=dbn", "seed=0")
    assert "save_weights=true: 1 run finished without it" in swept.stderr


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        (["norm=bn", "schedule=harmonic"], ["schedule=harmonic is ignored: norm=bn has no schedule."]),
        (["norm=dbn", "schedule=harmonic"], []),
        (["norm=bn"], []),
        (["-m", "norm=bn,dbn", "schedule=harmonic"], []),
    ],
)
def test_a_schedule_beside_a_normalizer_without_one_is_warned_of(dbnrun, words, warned):
    done = dbnrun(*words, "train.epochs=1", "train.limit_batches=1")
    assert done.returncode == 0
    said = [line.removeprefix("dbnrun: warning: ") for line in done.stderr.splitlines() if "warning" in line]
    assert said == warned


def test_the_demo_ends_with_a_table_and_a_figure(dbnrun, tmp_path):
    done = dbnrun("experiment=demo", "seed=0", "train.epochs=3")
    assert done.returncode == 0 and "5 runs: 5 to train" in done.stderr
    report = dbnrun("report")
    assert report.returncode == 0
    assert re.search(r"dbn +α = 1 +\d+\.\d\d", report.stdout) and re.search(r"α = 0.1 +\d+\.\d\d", report.stdout)
    figure = re.search(r"\S+digits-test-error\.png", report.stdout)
    assert figure and (tmp_path / figure[0]).stat().st_size > 10_000


def test_a_built_wheel_works_outside_the_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # Without isolation: hatchling is a development dependency, so this needs no network.
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("dbnrun-*.whl")
    venv.create(tmp_path / "env", system_site_packages=False)
    site = next((tmp_path / "env" / "lib").iterdir()) / "site-packages"
    shutil.unpack_archive(wheel, site, "zip")
    beside = [path for path in (ROOT / "dbnrun").rglob("*.*") if path.suffix in (".html", ".css", ".js")]
    assert beside and all((site / path.relative_to(ROOT)).exists() for path in beside)
    # The heavy packages come from this environment's folder, dbnrun itself from the wheel.
    own = next(path for path in sys.path if path.endswith("site-packages"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), own])}
    run = lambda *words: subprocess.run(  # noqa: E731
        [tmp_path / "env" / "bin" / "python", "-m", "dbnrun", *words],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    where = run("--cfg", "job", "norm=dbn")
    assert where.returncode == 0 and "train_stats: lambda" in where.stdout, where.stderr
    sweep = run("-m", "norm=bn,dbn", "train.epochs=1")
    assert sweep.returncode == 0, sweep.stderr
    assert run("report").returncode == 0
    bench = run("bench")
    assert bench.returncode == 2 and "scripts/bench of a checkout" in bench.stderr and bench.stderr.count("\n") == 1
    located = subprocess.run([tmp_path / "env" / "bin" / "python", "-c", "import dbnrun; print(dbnrun.__file__)"],
                             cwd=tmp_path, env=env, capture_output=True, text=True, check=True)  # fmt: skip
    assert located.stdout.startswith(str(site))


@pytest.mark.parametrize("words", [[], ["-m"], ["--multirun"]])
def test_without_a_word_the_help_is_printed_and_nothing_trains(command, tmp_path, words):
    from dbnrun.cli import _help

    assert command(*words) == (2, _help())
    assert list(tmp_path.iterdir()) == []


def completed(command, monkeypatch, line, shell="bash"):
    """What the shell is offered where the line ends."""
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    code, said = command("-sc", f"query={shell}")
    assert code == 0
    return said.split("\n")[:-1] if shell == "fish" else said.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dbnrun st", ["status"]),
        ("dbnrun un", ["until"]),
        ("dbnrun --mul", ["--multirun"]),
        ("dbnrun -m norm=bn,ba", ["norm=bn,batch_renorm"]),
        ("dbnrun plan train.epo", ["train.epochs="]),
        ("dbnrun plan --", ["--all", "--json", "--help", "--multirun", "--config-dir"]),
        ("dbnrun status --w", ["--watch"]),
        ("dbnrun runs ", ["ls", "show", "diff", "export", "rm"]),
        ("dbnrun runs rm --y", ["--yes"]),
        ("dbnrun theory ", ["check", "run", "figures"]),
        ("dbnrun data mn", ["mnist"]),
        ("dbnrun device=", ["device=auto", "device=cpu", "device=cuda"]),
        ("dbnrun force=t", ["force=true"]),
        ("dbnrun norm=nothing_like_it", []),
        ("dbnrun report x", []),
    ],
)
def test_completion_offers_verbs_flags_keys_and_choices_and_prints_nothing_else(command, monkeypatch, line, offered):
    assert completed(command, monkeypatch, line) == offered
    assert completed(command, monkeypatch, line, "fish") == (offered or [""])


def test_completion_of_an_empty_word_begins_with_the_verbs(command, monkeypatch):
    from dbnrun.cli import VERBS

    found = completed(command, monkeypatch, "dbnrun ")
    assert found[: len(VERBS)] == list(VERBS) and {"norm=", "seed=", "train."} <= set(found)
    assert "name=" not in " ".join(completed(command, monkeypatch, "dbnrun norm.n"))


def test_what_trains_is_marked_in_the_table_of_verbs(command, monkeypatch):
    from dbnrun import cli
    from dbnrun.runner.sweeper import CellFailed

    def failing(_):
        raise CellFailed("no luck.")

    assert [name for name, verb in cli.VERBS.items() if verb.trains] == ["until"]
    monkeypatch.setitem(cli.VERBS, "until", cli.Verb(failing, trains=True))
    assert command("until") == (1, "dbnrun: no luck.\n")


def test_a_folder_that_does_not_exist_is_said_so_and_results_dir_names_one(command, tmp_path):
    for verb in ("report", "status"):
        nowhere = str(tmp_path / "nowhere")
        code, said = command(verb, nowhere)
        assert code == 2 and said.startswith(f"dbnrun: {nowhere}: it does not exist")
    quick = ["train.epochs=1", "train.limit_batches=1", "progress=false"]
    assert command(*quick, "results_dir=X")[0] == 0
    code, said = command("status", "results_dir=X")
    assert code == 0 and "1 done" in said and "digits-fnn-bn-seed0" in said
    assert "1 done" in command("runs", "ls", "results_dir=X")[1]
    code, said = command("compare", "results_dir=X", "--baseline", "norm=bn")
    assert code == 0 and "BN" in said, said
    code, said = command("status", "results_dir=X", "--json")
    (run,) = json.loads(said)["runs"]
    assert (run["status"], run["epoch"], run["epochs"]) == ("done", 1, 1) and json.loads(said)["counts"] == {"done": 1}
    assert command("status", "results_dir=X", "--json", "--watch")[0] == 2
