"""What a command asks for, and how each cell stands."""

import json
import random
import re
import shutil
from collections import Counter

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import open_dict

from dbnrun.config.compose import Composer
from dbnrun.config.registry import UserError, conf_dir, files
from dbnrun.config.schema import RunConfig, checked, store_schema
from dbnrun.runner.plan import duration
from dbnrun.runs import layout

VALUES = {
    "seed": ["0", "7"],
    "optimizer.lr": ["0.5", "1e-3"],
    "train.epochs": ["1", "12"],
    "train.limit_batches": ["null", "3"],
    "train.eval_every": ["1", "5"],
    "train.limit_eval": ["null", "99", "500"],
    "schedule.unit": ["step", "epoch"],
    "dataset.val_size": ["0.2", "100"],
    "dataset.fnn_widths": ["[7]", "[8,9]"],  # others refer to it
    "model.activation": ["tanh", "relu"],
    "optimizer.groups.norm.lr": ["0.1"],
    "+optimizer.groups.extra": ["{pattern: '*', lr: 0.1, weight_decay: 0}"],
    "precision": ["bf16"],
    "results_dir": ["'a b'", "'ü'"],
}
# Refused beside other widths or other data, or without a path, a target or a network's name.
NOT_ALONE = ("cnn", "two_layer", "custom", "folder", "table", "torchvision")
GROUPS = {
    group: [name for name in names if name not in NOT_ALONE]
    for group, names in files().items()
    if group != "experiment"
}


def random_job(generator):
    job = [f"{group}={generator.choice(names)}" for group, names in GROUPS.items() if generator.random() < 0.5]
    job += [f"{key}={generator.choice(values)}" for key, values in VALUES.items() if generator.random() < 0.4]
    generator.shuffle(job)
    return job


def outcome(compose, job):
    try:
        return compose(job)
    except UserError as error:
        return str(error)
    except Exception as error:
        return type(error).__name__, str(error)


def by_both(jobs):
    """What our composer and Hydra make of each job, side by side."""
    store_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)

        def by_hydra(job):
            config = loader.load_sweep_config(master, job)
            with open_dict(config):
                del config["hydra"]
            return checked(config)

        composer = Composer(loader, master)
        return [(outcome(composer, job), outcome(by_hydra, job)) for job in jobs]


@pytest.mark.slow
def test_composition_equals_hydras_own_on_100_random_sets_of_overrides():
    generator = random.Random(0)
    results = by_both([random_job(generator) for _ in range(100)])
    assert all(ours == theirs for ours, theirs in results)
    assert sum(isinstance(ours, RunConfig) for ours, _ in results) > 50


@pytest.mark.parametrize(
    ("others", "valid"),
    [
        (["norm=dbn", "schedule=harmonic"], 3),
        (["train.limit_batches=${seed}"], 2),  # 0 is refused
        (["results_dir=seed", "train.limit_batches='${${results_dir}}'"], 2),
        (["optimizer.lr=-1"], 0),
    ],
    ids=["no other", "refers", "refers indirectly", "invalid"],
)
def test_cells_that_differ_in_their_seed_alone_are_composed_as_hydra_does(others, valid):
    seeds = ["1", "0", "007", "-1", "9" * 19, "9" * 5000]
    results = by_both([[*others, f"seed={seed}"] for seed in seeds])
    assert all(ours == theirs for ours, theirs in results)
    assert sum(isinstance(ours, RunConfig) for ours, _ in results) == valid


WHOLE = ["train.epochs=2", "threads=1", "progress=false"]
QUICK = [*WHOLE, "train.limit_batches=2"]  # a trial: the records leave it out
GRID = ["norm=dbn", "schedule=alpha_1,harmonic", "seed=0,1", *QUICK]


def test_every_standing_is_told_apart_and_a_sweep_trains_what_is_left(dbnrun, tmp_path):
    assert dbnrun("-m", *GRID, "seed=0,1,2").returncode == 0
    folders = sorted((tmp_path / "results" / "runs").iterdir())
    assert len(folders) == 6

    def change(folder, **values):
        layout.write_manifest(folder, {**layout.read_manifest(folder), **values})

    change(folders[0], status="failed", error="RuntimeError: no luck")
    change(folders[1], status="running")  # by a process that is gone
    change(folders[2], status="diverged")
    change(folders[3], results_version=0)
    shutil.rmtree(folders[4])
    words = [*GRID, "seed=0,1,2,0"]
    planned = json.loads(dbnrun("plan", *words, "--json").stdout)
    by_folder = {cell["folder"].rpartition("/")[2]: cell for cell in planned["cells"]}
    expected = ["failed", "unfinished", "diverged", "stale", "new", "done"]
    assert [by_folder[folder.name]["standing"] for folder in folders] == expected
    assert by_folder[folders[0].name]["detail"] == "RuntimeError: no luck"
    assert planned["counts"] == dict(Counter(expected)) and planned["duplicates_folded"] == 2
    assert planned["missing_data"] == [] and planned["cells_without_estimate"] == 0
    text = dbnrun("plan", "-m", *words).stdout
    assert "6 runs, 2 duplicates left out" in text and "RuntimeError: no luck" in text
    assert all(name in text for name in expected)

    retried = json.loads(dbnrun("plan", *words, "retry=failed", "--json").stdout)
    assert retried["counts"] == {"failed": 1, "left": 3, "diverged": 1, "done": 1}
    again = dbnrun("-m", *words, "retry=failed")
    assert again.returncode == 0 and "1 to train, 2 finished before, 3 skipped by retry=failed" in again.stderr, (
        again.stderr
    )
    done = dbnrun("-m", *words)
    assert done.returncode == 1 and "3 to train, 3 finished before" in done.stderr, done.stderr
    assert "1 run diverged before" in done.stderr
    assert "3 runs: 3 done" in done.stderr
    # The cell whose process died without a word came last.
    assert folders[1].name in done.stderr.strip().splitlines()[-3]
    status = dbnrun("status", "--all").stdout
    assert status.count("2/2") == 6 and "5 done, 1 diverged" in status


def test_retry_leaves_a_single_cell_alone_that_did_not_fail(dbnrun):
    done = dbnrun(*QUICK, "retry=failed")
    assert done.returncode == 0 and "skipped (new): retry=failed trains only failed runs" in done.stderr


def test_a_cell_under_way_is_shown_with_its_holder(dbnrun, tmp_path):
    from dbnrun.runs.lock import Lease

    assert dbnrun(*QUICK).returncode == 0
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    ours = Lease(folder)
    ours.take()
    for verb in (["plan", *QUICK], ["status"]):
        shown = dbnrun(*verb).stdout
        assert "running" in shown and f"process {ours.holder.pid} on" in shown, shown
    ours.release()


def test_a_failing_cell_is_in_the_table_at_the_end_and_fail_fast_stops_there(dbnrun, tmp_path):
    words = ["-m", *QUICK, "norm=bn", "train.batch_size=100,1500,50"]  # digits has fewer records than 1500 to train on
    done = dbnrun(*words)
    assert done.returncode == 1
    assert "3 runs: 2 done, 1 refused" in done.stderr and "train.batch_size=1500" in done.stderr
    fast = dbnrun(*words, "fail_fast=true", "results_dir=fast")
    assert fast.returncode == 1 and "1 done, 1 refused, 1 not started" in fast.stderr, fast.stderr
    assert "1 of 3 runs failed; correct what was refused and repeat the command." in fast.stderr
    basic = dbnrun(*words, "fail_fast=true", "hydra/launcher=basic", "results_dir=basic")
    assert basic.returncode == 2 and basic.stderr.splitlines()[-1].startswith(
        "dbnrun: fail_fast=true: this launcher submits"
    )


def test_missing_data_is_named_before_anything_trains(dbnrun, tmp_path):
    shown = dbnrun("plan", "dataset=mnist,cifar10", f"data_dir={tmp_path}")
    assert shown.returncode == 0
    assert "missing data  mnist" in shown.stdout and "batches.meta and 6 more" in shown.stdout


def test_an_experiment_is_planned_as_it_would_be_swept(dbnrun):
    shown = dbnrun("plan", "experiment=paper_mnist_a", "seed=0")
    assert "12 runs, 8 duplicates left out" in shown.stdout and "     12 new" in shown.stdout


def test_status_of_a_folder_without_runs_and_of_a_torn_run_says_so(dbnrun, tmp_path):
    nothing = dbnrun("status", str(tmp_path))
    assert nothing.returncode == 2 and nothing.stderr.count("\n") == 1 and "it holds no runs" in nothing.stderr
    assert dbnrun(*QUICK).returncode == 0
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    (folder / "config.yaml").write_text("{[")
    (folder / "manifest.json").unlink()
    torn = dbnrun("status")
    assert torn.returncode == 0 and folder.name in torn.stdout
    assert dbnrun("status", "--watch", "0").returncode == 2


def test_status_can_watch(tmp_path, capsys):
    from dbnrun.runner import status_table

    (tmp_path / "config.yaml").write_text("train: {epochs: 3}")
    ticks = iter([None, None])

    def wait(_):
        if next(ticks, "end") == "end":
            raise KeyboardInterrupt

    status_table.watch([tmp_path], False, 1.0, wait)
    assert capsys.readouterr().out.count("1 new") == 3


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4, "4 s"), (89, "89 s"), (120, "2 min"), (3700, "62 min"), (9000, "2 h 30 min"), (200_000, "2 d 7 h")],
)
def test_durations_are_said_in_words(seconds, words):
    assert duration(seconds) == words


def test_doctor_finds_this_machine_in_order_and_names_what_is_not(dbnrun, tmp_path):
    well = dbnrun("doctor", "--data-dir", "nowhere")
    assert well.returncode == 0, well.stdout
    for word in ("device=auto is", "results: writable", "-    mnist", "two trainings of a small run agree"):
        assert word in well.stdout
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        (raw / f"{name}-idx{3 if 'images' in name else 1}-ubyte").write_bytes(b"not it")
    (tmp_path / "file").touch()
    ill = dbnrun("doctor", "--data-dir", "data", "--results-dir", "file")
    assert ill.returncode == 1
    assert "NOT  results" in ill.stdout and "cannot be written (Not a directory)" in ill.stdout
    assert "NOT  mnist" in ill.stdout and "not the official file, SHA-256 differs" in ill.stdout


@pytest.mark.slow
def test_a_thousand_cells_at_once_are_planned_and_swept_without_a_fault(dbnrun, tmp_path):
    alphas = ",".join(str(n / 1000) for n in range(1000))
    words = ["norm=dbn_inference", "schedule=constant", f"schedule.alpha={alphas}"]
    quick = ["train.epochs=1", "train.limit_batches=1", "threads=1", "progress=false"]
    done = dbnrun("-m", *words, *quick, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1000 runs: 1000 done" in done.stderr
    assert len(list((tmp_path / "results" / "runs").iterdir())) == 1000


def test_cells_that_the_committed_records_hold_can_be_left_out_of_a_sweep(dbnrun, tmp_path):
    words = ["-m", "seed=0,1", *WHOLE]
    assert dbnrun("-m", "seed=0", *WHOLE).returncode == 0
    assert dbnrun("report", "--record").returncode == 0
    shutil.rmtree(tmp_path / "results" / "runs")
    planned = json.loads(dbnrun("plan", *words[1:], "skip_recorded=true", "--json").stdout)
    assert planned["counts"] == {"recorded": 1, "new": 1}
    afresh = json.loads(dbnrun("plan", *words[1:], "--json").stdout)
    assert afresh["counts"] == {"new": 2}
    assert "no estimate for 2 runs: none of the same kind has finished an epoch" in dbnrun("plan", *words[1:]).stdout
    done = dbnrun(*words, "skip_recorded=true")
    assert done.returncode == 0 and "2 runs: 1 to train, 0 finished before, 1 in the records" in done.stderr, (
        done.stderr
    )
    (record,) = (tmp_path / "results" / "records").glob("*.json")
    record.write_text("{}")
    refused = dbnrun("-m", "seed=2", *WHOLE, "skip_recorded=true")
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].startswith(
        f"dbnrun: results/records/{record.name}: not"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "experiment=demo,paper_mnist_a"], "experiment=demo,paper_mnist_a: expected one value"),
        (["-m", "results_dir=u,v"], "results_dir=u,v: expected one value; it changes no result"),
        (["-m", "seed=range(0,0)"], r"seed=range\(0,0\): matches nothing"),
        (["-m", "norm=glob(zz*)"], r"norm=glob\(zz\*\): matches nothing"),
        (["-m", "hydra.sweeper.params=3"], "hydra.sweeper.params=3: expected"),
        (["norm=[bn,dbn]"], r"norm=\[bn,dbn\]: expected one name"),
        (["seed=0", "-m", "norm=bn,dbn"], "norm=bn,dbn: flags, such as -m, must come before the keys"),
        (["--resolve"], "--resolve goes with --cfg"),
        (["--run", "--multirun"], "--run and --experimental-rerun are not supported"),
        (["results_dir="], "results_dir=.*expected the name of a folder"),
        (["results_dir=/dev/null/x"], "results_dir=/dev/null/x: .* cannot be made there"),
        (["results_dir=" + 5000 * "x"], "cannot be made there .File name too long"),
        (["report", "--out", "/proc/x"], "/proc/x"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_what_a_hostile_reader_tried_is_refused_in_one_line(dbnrun, tmp_path, words, message):
    if words[0] == "report":
        assert dbnrun(*WHOLE).returncode == 0
    done = dbnrun(*words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert words[0] == "report" or not list(tmp_path.rglob("manifest.json"))


def test_a_refused_cell_leaves_nothing_behind(dbnrun, tmp_path):
    for words in (["train.batch_size=2000"], ["dataset.val_size=1437"], ["optimizer.groups.weights.pattern=zzz"]):
        done = dbnrun(*words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert list((tmp_path / "results" / "runs").iterdir()) == []


def test_rows_that_do_not_bear_out_a_manifest_or_a_checkpoint_are_trained_again(dbnrun, tmp_path):
    assert dbnrun(*QUICK).returncode == 0
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    metrics = folder / "metrics.csv"
    numbers = [line.rsplit(",", 2)[0] for line in metrics.read_text().splitlines()]
    metrics.unlink()
    assert "its metrics.csv is missing" in dbnrun("plan", *QUICK).stdout
    assert dbnrun(*QUICK).returncode == 0
    assert [line.rsplit(",", 2)[0] for line in metrics.read_text().splitlines()] == numbers


def test_help_is_ours_wherever_it_is_asked_for(dbnrun):
    from dbnrun.cli import _help

    assert dbnrun("norm=dbn", "-h").stdout == dbnrun("--help").stdout == _help()


def test_an_option_goes_to_the_choices_that_have_it(dbnrun):
    def plan(*words):
        return json.loads(dbnrun("plan", *words, "--json").stdout)

    def signatures(*words):
        return {cell["folder"].rpartition("-")[2] for cell in plan(*words)["cells"]}

    alone = signatures("norm=bn") | signatures("norm=gn", "norm.num_groups=4,8")
    together = plan("norm=bn,gn", "norm.num_groups=4,8")
    assert {cell["folder"].rpartition("-")[2] for cell in together["cells"]} == alone and len(alone) == 3
    assert together["duplicates_folded"] == 1
    one = signatures("optimizer=adagrad,sgd", "optimizer.momentum=0.5")
    assert one == signatures("optimizer=adagrad") | signatures("optimizer=sgd", "optimizer.momentum=0.5")
    refused = dbnrun("plan", "norm=bn,ln", "norm.num_groups=4")
    assert refused.returncode == 2 and "norm=bn has no option num_groups; it is an option of gn" in refused.stderr
