"""One cell through the corridor: what it records, and that it records the same again."""

import csv
import itertools
import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dbnrun.config import registry
from dbnrun.config.compose import composed
from dbnrun.config.registry import UserError
from dbnrun.config.schema import RunConfig
from dbnrun.data.dataset import Part
from dbnrun.models.layers import initialize
from dbnrun.runner import execute, status_table
from dbnrun.runner.build import build_cell, load_data
from dbnrun.runs import layout, metrics, status
from dbnrun.runs.load import read_run
from dbnrun.runs.lock import Lease
from dbnrun.runs.run_dir import RunDir
from dbnrun.train.evaluate import evaluate
from dbnrun.train.loop import Step, Training


@pytest.fixture
def cell(tmp_path):
    """A checked configuration with results below tmp_path, small unless overrides say otherwise."""

    def make(*overrides: str, results: str = "results") -> RunConfig:
        quick = ["train.epochs=3", "train.limit_batches=4", "device=cpu", "progress=false"]
        return composed([*quick, f'results_dir="{tmp_path / results}"', *overrides])

    return make


def rows_of(outcome):
    return list(csv.DictReader((outcome.folder / "metrics.csv").open()))


def numbers_of(outcome):
    return [{k: v for k, v in row.items() if k not in metrics.TIME_COLUMNS} for row in rows_of(outcome)]


CELLS = [
    ["norm=dbn", "schedule=harmonic"],
    ["norm=dbn_inference", "schedule=alpha_0.1"],
    ["norm=bn", "model=cnn", "model.widths=[4,4,8,8,16]", "dataset.augment=flip_crop"],
    ["norm=dbn", "schedule=power", "model=two_layer", "optimizer=adamw"],
    ["norm=ln", "precision=bf16"],
    ["norm=none", "optimizer=sgd", "optimizer.lr=0.01"],
    ["norm=bn", "optimizer=adam", "lr_schedule=cosine", "lr_schedule.warmup=1.5", "train.label_smoothing=0.1"],
]


@pytest.mark.parametrize("overrides", CELLS, ids=" ".join)
def test_two_runs_of_a_cell_give_identical_metrics(cell, overrides):
    one, other = (execute.run(cell(*overrides, results=name)) for name in ("a", "b"))
    assert one.status == other.status == "done"
    assert numbers_of(one) == numbers_of(other) and len(numbers_of(one)) == 3
    assert one.folder.name == other.folder.name


@pytest.mark.parametrize("overrides", CELLS, ids=" ".join)
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_that_stops_after_an_epoch_goes_on_byte_for_byte(cell, overrides, epochs, monkeypatch, capsys):
    whole = execute.run(cell(*overrides, results="whole"))
    save = RunDir.checkpoint

    def power_cut(self, state):
        save(self, state)
        if state["epoch"] == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDir, "checkpoint", power_cut)
    with pytest.raises(KeyboardInterrupt):
        execute.run(cell(*overrides, results="cut"))
    monkeypatch.setattr(RunDir, "checkpoint", save)
    capsys.readouterr()
    resumed = execute.run(cell(*overrides, results="cut"))
    assert f"{resumed.name}: continues after epoch {epochs} of 3\n" in capsys.readouterr().err
    assert numbers_of(resumed) == numbers_of(whole)
    assert not (resumed.folder / "checkpoint.pt").exists()


def test_a_row_without_its_checkpoint_is_trained_again(cell, monkeypatch):
    whole = execute.run(cell(results="whole"))
    save = RunDir.checkpoint

    def killed_between_row_and_checkpoint(self, state):
        if state["epoch"] == 2:
            raise KeyboardInterrupt
        save(self, state)

    monkeypatch.setattr(RunDir, "checkpoint", killed_between_row_and_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        execute.run(cell(results="cut"))
    monkeypatch.setattr(RunDir, "checkpoint", save)
    assert numbers_of(execute.run(cell(results="cut"))) == numbers_of(whole)


DAMAGES = {
    "empty": lambda data: b"",
    "foreign": lambda data: b"not a checkpoint",
    "torn": lambda data: data[: len(data) // 2],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "files", [["checkpoint.pt"], ["checkpoint.pt", "checkpoint.previous.pt"]], ids=["last", "both"]
)
def test_a_corrupt_checkpoint_is_set_aside_and_the_one_before_it_or_the_start_is_used(
    cell, monkeypatch, capsys, damage, files
):
    whole = execute.run(cell(results="whole"))
    save = RunDir.checkpoint

    def corrupt(self, state):
        save(self, state)
        if state["epoch"] == 2:
            for path in (self.folder / name for name in files):
                path.write_bytes(DAMAGES[damage](path.read_bytes()))
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDir, "checkpoint", corrupt)
    with pytest.raises(KeyboardInterrupt):
        execute.run(cell(results="cut"))
    monkeypatch.setattr(RunDir, "checkpoint", save)
    begun = []
    monkeypatch.setattr(RunDir, "due", lambda self: begun.append(self.position) or False)
    resumed = execute.run(cell(results="cut"))
    assert begun[0] == ((1, 0) if len(files) == 1 else (0, 0))
    assert numbers_of(resumed) == numbers_of(whole)
    said = capsys.readouterr().err
    assert said.count("a checkpoint that cannot be used is kept as") == len(files)
    assert ("training starts over" in said) == (len(files) == 2)
    # The checkpoints, and where we start over the rows that they belonged to.
    assert len(list(resumed.folder.glob("*.set-aside-1.*"))) == len(files) + (len(files) == 2)


@pytest.mark.parametrize("overrides", CELLS, ids=" ".join)
@pytest.mark.parametrize("moment", [1, 5, 7])
def test_a_run_cut_inside_an_epoch_goes_on_from_there_byte_for_byte(cell, overrides, moment, monkeypatch):
    whole = execute.run(cell(*overrides, results="whole"))
    often = [*overrides, "checkpoint.minutes=0"]  # after every update
    save = RunDir.checkpoint
    written = []

    def cut(self, state):
        save(self, state)
        written.append(state)
        if len(written) == moment:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDir, "checkpoint", cut)
    with pytest.raises(KeyboardInterrupt):
        execute.run(cell(*often, results="cut"))
    steps = []
    step = Step.__call__
    monkeypatch.setattr(Step, "__call__", lambda *a: steps.append(1) or step(*a))
    monkeypatch.setattr(RunDir, "checkpoint", save)
    resumed = execute.run(cell(*often, results="cut"))
    done = 4 * written[-1]["epoch"] + (written[-1]["under_way"] or {"steps": 0})["steps"]
    assert len(steps) == 12 - done and done > 0  # no update is made twice
    assert numbers_of(resumed) == numbers_of(whole)


@pytest.mark.parametrize(("model", "sizes"), [("fnn", [179]), ("cnn", [100, 79])])
def test_only_what_makes_maps_is_evaluated_in_small_batches(model, sizes, cell, monkeypatch):
    config = cell(f"model={model}")
    data = load_data(config, torch.device("cpu"))
    network = build_cell(config, data, torch.device("cpu")).model.eval()
    seen, prefix = [], network.prefix
    monkeypatch.setattr(network, "prefix", lambda x: seen.append(len(x)) or prefix(x))
    evaluate([network], Part(data.test.x[:179], data.test.y[:179]), "fp32")
    assert seen == sizes


def _batches_seen(config, monkeypatch):
    """The inputs of every training step, and the weights before the first."""
    seen, weights = [], []
    step = Step.__call__

    def spy(self, x, y, sums):
        if not seen:
            weights.extend(p.detach().clone() for p in self.program.model.parameters() if p.dim() > 1)
        seen.append(x[0].clone())
        return step(self, x, y, sums)

    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", spy)
        execute.run(config)
    return seen, weights


def test_cells_that_differ_only_in_norm_see_the_same_batches_and_start_from_the_same_weights(cell, monkeypatch):
    first = _batches_seen(cell("norm=bn", "dataset.augment=flip_crop"), monkeypatch)
    for overrides in (["norm=dbn", "schedule=alpha_0"], ["norm=gn"], ["norm=none"]):
        other = _batches_seen(cell(*overrides, "dataset.augment=flip_crop"), monkeypatch)
        for mine, theirs in zip(first, other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    another_seed = _batches_seen(cell("norm=bn", "seed=1", "dataset.augment=flip_crop"), monkeypatch)
    assert not torch.equal(first[0][0], another_seed[0][0])


def test_an_epoch_is_full_batches_and_each_record_comes_once(cell, monkeypatch):
    config = cell("train.epochs=1", "train.limit_batches=null", "train.batch_size=110")
    seen, _ = _batches_seen(config, monkeypatch)
    assert [len(batch) for batch in seen] == [110] * (1197 // 110)
    assert len(torch.cat(seen).flatten(1).unique(dim=0)) >= 1095  # digits has a few identical images


def test_the_columns_say_what_they_should(cell):
    outcome = execute.run(cell("norm=dbn", "schedule=harmonic", "optimizer.groups.weights.lr=0.005"))
    for epoch, row in enumerate(rows_of(outcome), start=1):
        assert int(row["epoch"]) == epoch and int(row["step"]) == 4 * epoch
        assert float(row["alpha"]) == 1 / (4 * epoch)
        assert float(row["lr"]) == 0.005
        assert all(math.isfinite(float(row[name])) for name in metrics.COLUMNS)
    epochs = execute.run(cell("norm=dbn", "schedule=harmonic", "schedule.unit=epoch"))
    assert [float(row["alpha"]) for row in rows_of(epochs)] == [1, 1 / 2, 1 / 3]


def test_columns_that_have_no_meaning_are_empty(cell):
    (peer, *_), (bn, *_) = (rows_of(execute.run(cell(f"norm={norm}"))) for norm in ("ln", "bn"))
    assert peer["alpha"] == peer["lambda_drift"] == peer["test_error_pct_population"] == ""
    assert bn["alpha"] == "" and float(bn["lambda_drift"]) > 0 and float(bn["test_error_pct_population"]) >= 0


def test_under_dbn_inference_the_schedule_changes_neither_training_nor_population_columns(cell):
    names = ("train_loss", "train_error_pct", "grad_norm", "test_error_pct_population")
    columns = []
    for schedule in ("alpha_1", "alpha_0.25", "alpha_0", "harmonic"):
        rows = rows_of(execute.run(cell("norm=dbn_inference", f"schedule={schedule}")))
        columns.append([[row[name] for name in names] for row in rows])
    assert all(other == columns[0] for other in columns[1:])


def test_training_loss_and_gradient_norm_match_a_loop_written_by_hand(cell):
    import torch.nn.functional as F

    from dbnrun.norm.options import Normalizers, RunFacts
    from dbnrun.norm.schedules import Constant
    from dbnrun.train.rng import Rngs

    config = cell("norm=bn", "train.epochs=1", "optimizer=sgd")
    row = rows_of(execute.run(config))[0]
    torch.use_deterministic_algorithms(True)
    rngs, digits = Rngs.of(0), config.dataset.load(Path())
    model = config.model.build(
        (1, 8, 8), 10, Normalizers(config.norm, RunFacts(Constant(alpha=1.0), 4, 1, 100)), rngs.dropout
    )
    initialize(model, rngs.init)
    decay = {p: 1e-4 for n, p in model.named_parameters() if n.endswith("linear.weight") or n == "out.weight"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    order, losses, norms, wrong = torch.randperm(1197, generator=rngs.order), [], [], 0
    for index in order[:400].split(100):
        logits = model(digits.train.x[index])
        loss = F.cross_entropy(logits, digits.train.y[index])
        penalty = sum(w / 2 * p.square().sum() for p, w in decay.items())
        optimizer.zero_grad()
        (loss + penalty).backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        losses.append(loss.item())
        wrong += (logits.argmax(1) != digits.train.y[index]).sum().item()
        optimizer.step()
    model.eval()
    test = F.cross_entropy(model(digits.test.x), digits.test.y).item()
    assert float(row["train_loss"]) == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert float(row["train_error_pct"]) == pytest.approx(wrong / 4, rel=1e-9)
    assert float(row["grad_norm"]) == pytest.approx(sum(norms) / 4, rel=1e-5)
    assert float(row["test_loss"]) == pytest.approx(test, rel=1e-4)


@pytest.mark.parametrize("extra", [["model=fnn"], ["model=cnn", "model.widths=[4,4,8,8,16]"], ["norm.average=inv_std"]])
def test_cells_along_one_run_equal_their_runs_alone_bit_for_bit(cell, extra):
    schedules = [
        ["schedule=alpha_1"], ["schedule=alpha_0.1"], ["schedule=harmonic", "schedule.unit=epoch"],
        ["schedule=inverse_square"], ["schedule=power", "schedule.exponent=0.7"], ["schedule=alpha_0"],
    ]  # fmt: skip
    common = ["norm=dbn_inference", "save_weights=true", *extra]
    alone = [execute.run(cell(*common, *schedule, results="alone")) for schedule in schedules]
    together = execute.run_all([[cell(*common, *schedule, results="together") for schedule in schedules]])[0]
    for one, other in zip(alone, together, strict=True):
        assert one.status == other.status == "done" and one.name == other.name
        assert numbers_of(one) == numbers_of(other)
        weights = [torch.load(outcome.folder / "weights.pt", weights_only=True) for outcome in (one, other)]
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
        assert sorted(p.name for p in one.folder.iterdir()) == sorted(p.name for p in other.folder.iterdir())
    assert len({row["val_loss"] for outcome in together for row in rows_of(outcome)[-1:]}) == len(schedules)


def test_cells_along_one_run_go_on_after_an_interruption_and_one_may_go_on_alone(cell, monkeypatch):
    def make(results):
        schedules = ("alpha_1", "alpha_0.1", "harmonic")
        return [cell("norm=dbn_inference", f"schedule={s}", results=results) for s in schedules]

    whole = execute.run_all([make("whole")])[0]
    save = RunDir.checkpoint

    def power_cut(self, state):
        save(self, state)
        if state["epoch"] == 2 and "harmonic" in self.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDir, "checkpoint", power_cut)
    with pytest.raises(KeyboardInterrupt):
        execute.run_all([make("cut")])[0]
    monkeypatch.setattr(RunDir, "checkpoint", save)
    cut = make("cut")
    alone = execute.run(cut[1])
    rest = execute.run_all([cut])[0]
    assert [outcome.status for outcome in rest] == ["done", "skipped", "done"]
    for one, other in zip(whole, [rest[0], alone, rest[2]], strict=True):
        assert numbers_of(one) == numbers_of(other)


def test_cells_that_stopped_at_different_epochs_go_on_apart(cell, monkeypatch):
    def make(results):
        return [cell("norm=dbn_inference", f"schedule={s}", results=results) for s in ("alpha_1", "harmonic")]

    whole = execute.run_all([make("whole")])[0]
    save = RunDir.checkpoint
    for config, stop in zip(make("cut"), (1, 2), strict=True):

        def power_cut(self, state, stop=stop):
            save(self, state)
            if state["epoch"] == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(RunDir, "checkpoint", power_cut)
        with pytest.raises(KeyboardInterrupt):
            execute.run(config)
    monkeypatch.setattr(RunDir, "checkpoint", save)
    assert [numbers_of(o) for o in execute.run_all([make("cut")])[0]] == [numbers_of(o) for o in whole]


def test_divergence_ends_the_cell_with_its_rows_kept(cell):
    config = cell("norm=none", "optimizer=sgd", "optimizer.lr=1e30", "train.epochs=5")
    outcome = execute.run(config)
    assert outcome.status == "diverged"
    rows = rows_of(outcome)
    assert 1 <= len(rows) < 5 and not math.isfinite(float(rows[-1]["train_loss"]))
    assert json.loads((outcome.folder / "manifest.json").read_text())["status"] == "diverged"
    again = execute.run(config)
    assert (again.status, again.message) == ("skipped", "diverged")


def test_a_diverged_cell_cut_before_it_could_say_so_trains_no_further(cell, monkeypatch):
    config = cell("norm=none", "optimizer=sgd", "optimizer.lr=1e30", "train.epochs=5")
    whole = execute.run(cell("norm=none", "optimizer=sgd", "optimizer.lr=1e30", "train.epochs=5", results="whole"))

    def power_cut(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "finish", power_cut)
        with pytest.raises(KeyboardInterrupt):
            execute.run(config)
    again = execute.run(config)
    assert again.status == "diverged" and numbers_of(again) == numbers_of(whole)


def test_a_folder_that_cannot_be_opened_ends_its_own_cell_alone(cell, monkeypatch):
    schedules = ("alpha_1", "alpha_0.1", "harmonic")
    configs = [cell("norm=dbn_inference", f"schedule={schedule}") for schedule in schedules]
    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "finish", lambda _: 1 / 0)
        assert [outcome.status for outcome in execute.run_all([configs])[0]] == ["failed"] * 3
    torn = RunDir(configs[1]).folder / "metrics.csv"
    torn.write_text(torn.read_text().replace("\n1,", "\none,", 1))
    outcomes = execute.run_all([configs])[0]
    assert [outcome.status for outcome in outcomes] == ["done", "refused", "done"]
    assert str(torn) in outcomes[1].message


def test_cells_say_how_many_share_their_time(cell):
    configs = [cell("norm=dbn_inference", f"schedule={schedule}") for schedule in ("alpha_1", "harmonic")]
    outcomes = execute.run_all([configs])[0]
    assert [layout.read_manifest(outcome.folder)["together"] for outcome in outcomes] == [2, 2]
    for outcome in outcomes:  # as if they were under way
        manifest = layout.read_manifest(outcome.folder)
        layout.write_manifest(outcome.folder, manifest | {"status": "interrupted"})
    shares = [float(row["train_seconds"]) + float(row["eval_seconds"]) for row in rows_of(outcomes[0])]
    assert status_table.epoch_seconds(read_run(outcomes[0].folder)) == pytest.approx(2 * sum(shares) / 3)


def test_a_cell_that_raises_is_recorded_with_its_traceback_and_may_be_tried_again(cell, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no luck\nat all")

    with monkeypatch.context() as patch:
        patch.setattr(registry.of("model")["fnn"], "build", broken)
        outcome = execute.run(cell())
        assert (outcome.status, outcome.message) == ("failed", "RuntimeError: no luck")
        assert "Traceback" in (outcome.folder / "run.log").read_text()
        assert layout.read_manifest(outcome.folder)["status"] == "failed"
        with pytest.raises(RuntimeError):
            execute.run(replace(cell(), debug=True))
    assert execute.run(cell()).status == "done"


def test_a_cell_that_another_process_trains_is_left_to_it(cell, tmp_path):
    outcome = execute.run(cell())
    (outcome.folder / "manifest.json").unlink()
    lease = Lease(outcome.folder)
    lease.take()
    held = execute.run(cell())
    assert held.status == "held" and "process" in held.message
    lease.release()
    assert execute.run(cell()).status == "done"


def test_records_of_an_older_results_version_are_kept_aside_and_trained_again(cell, monkeypatch, capsys):
    old = execute.run(cell("save_weights=true"))
    text = (old.folder / "metrics.csv").read_text()
    assert execute.run(cell()).status == "skipped"
    monkeypatch.setattr(registry.of("dataset")["digits"], "results_version", 99)
    assert status.status_of(old.folder, "digits").name == "stale"
    again = execute.run(cell())
    assert again.status == "done" and numbers_of(again) == numbers_of(old)
    assert (old.folder / "metrics.set-aside-1.csv").read_text() == text
    assert not (old.folder / "weights.pt").exists() and (old.folder / "weights.set-aside-1.pt").exists()
    assert "a version with other numbers recorded it" in capsys.readouterr().err
    assert status.status_of(old.folder, "digits").name == "done"


@pytest.mark.parametrize("error", [SystemExit(3), MemoryError("no memory"), OSError(28, "No space left on device")])
def test_a_cell_that_exits_or_runs_out_of_something_fails_alone_and_says_why(cell, monkeypatch, error):
    def broken(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(RunDir, "write", broken)
        outcome = execute.run(cell())
    assert outcome.status == "failed" and type(error).__name__ in outcome.message
    log = (outcome.folder / "run.log").read_text()
    assert "Traceback" in log and '"torch"' in log and "OMP_NUM_THREADS" in log
    assert status.status_of(outcome.folder, "digits") == status.RunStatus("failed", outcome.message)
    assert execute.run(cell()).status == "done"


def test_a_run_whose_folder_is_deleted_fails_in_words_and_can_be_run_again(cell, monkeypatch):
    save = RunDir.checkpoint

    def then_delete(self, state):
        save(self, state)
        shutil.rmtree(self.folder)

    with monkeypatch.context() as patched:
        patched.setattr(RunDir, "checkpoint", then_delete)
        outcome = execute.run(cell())
    assert outcome.status == "failed" and not outcome.folder.exists()
    assert execute.run(cell()).status == "done"


def test_clocks_going_backwards_change_nothing(cell, monkeypatch):
    whole = execute.run(cell(results="whole"))
    ticks = itertools.count(1e9, -3600)
    for name in ("time", "perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, lambda: next(ticks))
    assert numbers_of(execute.run(cell(results="back"))) == numbers_of(whole)


def test_precisions_that_a_device_lacks_are_refused(cell):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    for override, message in (("device=cuda", "sees no CUDA device"), ("precision=tf32", "torch sees none")):
        config = replace(cell(override.replace("tf32", "fp32")))
        config.precision, config.device = ("tf32", "auto") if "tf32" in override else ("fp32", "cuda")
        with pytest.raises(UserError, match=message):
            execute.prepare_device(config)


def test_bf16_is_autocast_on_the_cpu_with_float32_rows(cell):
    full, half = (rows_of(execute.run(cell(f"precision={p}")))[-1] for p in ("fp32", "bf16"))
    assert full["train_loss"] != half["train_loss"]
    assert float(half["train_loss"]) == pytest.approx(float(full["train_loss"]), rel=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("overrides", [["model=fnn"], ["model=cnn"], ["model=two_layer"]], ids=" ".join)
def test_the_first_step_on_cuda_has_the_cpus_loss(cell, overrides):
    # Dropout draws from a stream of the device: off, for the comparison.
    extra = ["model.dropout=[0,0,0]"] if "model=cnn" in overrides else []
    one_step = ["train.epochs=1", "train.limit_batches=1", "norm=dbn", *overrides, *extra]
    losses = [
        float(rows_of(execute.run(cell(*one_step, f"device={device}", results=device)))[0]["train_loss"])
        for device in ("cpu", "cuda")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_a_killed_process_left_of_a_write_is_gone_after_the_next_attempt(cell):
    folder = RunDir(cell()).folder
    folder.mkdir(parents=True)
    for name in (".config.yaml.29136.139793359260544", ".checkpoint.pt.1.2"):
        (folder / name).write_text("torn")
    assert execute.run(cell()).status == "done"
    assert not list(folder.glob(".*"))


def test_weights_that_cannot_be_written_leave_the_last_epoch_to_the_next_attempt(cell, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(RunDir, "keep_weights", lambda self, state: (_ for _ in ()).throw(OSError("the disk is full")))
        failed = execute.run(cell("save_weights=true"))
    assert failed.status == "failed" and len(rows_of(failed)) == 2
    done = execute.run(cell("save_weights=true"))
    whole = execute.run(cell("save_weights=true", results="whole"))
    assert done.status == "done" and numbers_of(done) == numbers_of(whole)
    assert (done.folder / layout.WEIGHTS).read_bytes() == (whole.folder / layout.WEIGHTS).read_bytes()


def test_a_run_that_diverged_in_a_stack_stays_diverged_if_the_stack_fails_later(cell, monkeypatch):
    rows = Training.rows

    def fail(self):
        if self.epoch > 1:
            raise RuntimeError("no luck")
        return rows(self)

    monkeypatch.setattr(Training, "rows", fail)
    base = ["norm=none", "optimizer=sgd"]
    sick, healthy = cell(*base, "optimizer.lr=1e30", "seed=0"), cell(*base, "optimizer.lr=0.01", "seed=1")
    ((first,), (second,)) = execute.run_all([[sick], [healthy]])
    assert [first.status, second.status] == ["diverged", "failed"]
