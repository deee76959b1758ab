"""Fewer evaluations: train.eval_every skips epochs, train.limit_eval records. What is left keeps its numbers."""

import csv
import functools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dbnrun.config.compose import composed
from dbnrun.config.registry import UserError
from dbnrun.data.dataset import Data, Part, fixed_shuffle, shortened
from dbnrun.runner import execute, progress, status_table, sweeper
from dbnrun.runner.execute import run_all
from dbnrun.runs import layout, metrics
from dbnrun.runs.load import read_run
from dbnrun.runs.run_dir import RunDir
from dbnrun.runs.status import status_of

MEASURED = [*metrics.EVALUATED, "test_error_pct_population", "lambda_drift"]


@pytest.fixture
def cell(tmp_path):
    """A checked configuration of five short epochs with results below tmp_path."""

    def make(*overrides, results="results"):
        quick = ["train.epochs=5", "train.limit_batches=3", "device=cpu", "progress=false"]
        return composed([*quick, f'results_dir="{tmp_path / results}"', *overrides])

    return make


def numbers_of(outcome):
    with (outcome.folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "train_seconds"} for row in csv.DictReader(file)]


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "eval_seconds"} for row in rows]


def skipped(row):
    """The row of an epoch as it is without an evaluation."""
    return row | dict.fromkeys(MEASURED, "") | {"eval_seconds": "0.000"}


def assert_only_epochs_2_4_5_are_evaluated(sparse, whole):
    assert [row["epoch"] for row in sparse] == ["1", "2", "3", "4", "5"]
    expected = [row if row["epoch"] in "245" else skipped(row) for row in whole]
    assert without_seconds(sparse) == without_seconds(expected)
    assert all(row["eval_seconds"] == "0.000" for row in sparse if row["epoch"] in "13")


@pytest.mark.parametrize(
    "overrides",
    [["norm=dbn", "schedule=harmonic"], ["norm=ln"], ["model=cnn", "model.widths=[4,4,8,8,16]"]],
    ids=" ".join,
)
def test_the_epochs_that_are_evaluated_have_the_numbers_that_they_had_and_the_others_empty_fields(cell, overrides):
    whole, sparse = (numbers_of(execute.run(cell(*overrides, f"train.eval_every={n}", results=str(n)))) for n in (1, 2))
    assert_only_epochs_2_4_5_are_evaluated(sparse, whole)


def test_so_it_is_in_stacks_and_for_cells_along_one_run(cell):
    def rows(every):
        runs = [
            [
                cell("norm=dbn_inference", f"schedule={name}", f"seed={seed}", f"train.eval_every={every}",
                     results=str(every))
                for name in ("alpha_1", "harmonic")
            ]
            for seed in (0, 1)
        ]  # fmt: skip
        return [numbers_of(outcome) for run in run_all(runs) for outcome in run]

    for sparse, whole in zip(rows(2), rows(1), strict=True):
        assert_only_epochs_2_4_5_are_evaluated(sparse, whole)


def test_the_epoch_in_which_a_run_diverges_is_evaluated(cell):
    outcome = execute.run(cell("norm=none", "optimizer=sgd", "optimizer.lr=1e30", "train.eval_every=5"))
    *before, last = numbers_of(outcome)
    assert outcome.status == "diverged" and len(before) < 4 and not math.isfinite(float(last["train_loss"]))
    assert last["val_loss"] == "nan"  # not an empty field: measured, and no number
    assert all(row == skipped(row) for row in before)


LIMITED = ["train.eval_every=2", "train.limit_eval=150"]


@pytest.mark.parametrize("moment", [2, 4, 8])
def test_a_run_with_fewer_evaluations_goes_on_byte_for_byte(cell, moment, monkeypatch):
    overrides = ["norm=dbn", "schedule=harmonic", *LIMITED, "checkpoint.minutes=0"]
    whole = execute.run(cell(*overrides, results="whole"))
    save, written = RunDir.checkpoint, []

    def cut(self, state):
        save(self, state)
        written.append(state)
        if len(written) == moment:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDir, "checkpoint", cut)
        execute.run(cell(*overrides, results="cut"))
    resumed = execute.run(cell(*overrides, results="cut"))
    assert without_seconds(numbers_of(resumed)) == without_seconds(numbers_of(whole))


def first(part, n):
    """The first n records of a part in the order that the validation split's seed draws."""
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(170508011))[:n]
    return part.x[order], part.y[order]


def forward(weights, x, moments=None):
    """Logits of an FNN with two BN layers, and each layer's moments: the batch's own where none are given."""
    h, used = x.flatten(1), []
    for layer in range(2):
        name = f"hidden.{layer}"
        h = h @ weights[f"{name}.linear.weight"].T
        mean, var = (h.mean(0), h.var(0, correction=0)) if moments is None else moments[layer]
        used.append((mean, var))
        h = (h - mean) / (var + 1e-5).sqrt() * weights[f"{name}.norm.weight"] + weights[f"{name}.norm.bias"]
        h = h.relu()
    return h @ weights["out.weight"].T + weights["out.bias"], used


def error_pct(logits, y):
    return 100 * (logits.argmax(1) != y).double().mean().item()


def test_the_limited_numbers_are_those_of_the_saved_model_on_the_first_records_of_each_part(cell):
    config = cell("norm=bn", "train.limit_eval=230", "save_weights=true")
    outcome = execute.run(config)
    row, digits = numbers_of(outcome)[-1], config.dataset.load(None)
    weights = torch.load(outcome.folder / "weights.pt", weights_only=True)
    weights = {key: value.double() for key, value in weights.items()}
    running = [tuple(weights[f"hidden.{i}.norm.running_{name}"] for name in ("mean", "var")) for i in range(2)]
    for name in ("val", "test"):
        x, y = first(getattr(digits, name), 230)
        logits, _ = forward(weights, x.double(), running)
        # float32 against float64, losses of order 1.
        assert float(row[f"{name}_loss"]) == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
        assert float(row[f"{name}_error_pct"]) == pytest.approx(error_pct(logits, y), abs=1e-9)
    x, _ = first(digits.train, 230)
    batches = [forward(weights, batch.double())[1] for batch in (x[:100], x[100:200])]  # two full ones
    pooled = []
    for layers in zip(*batches, strict=True):
        means, variances = (torch.stack(column) for column in zip(*layers, strict=True))
        pooled.append((means.mean(0), variances.mean(0) + means.var(0, correction=0)))
    x, y = first(digits.test, 230)
    logits, _ = forward(weights, x.double(), pooled)
    assert float(row["test_error_pct_population"]) == pytest.approx(error_pct(logits, y), abs=1e-9)
    drift = [(r[0] - p[0]) / (p[1].sqrt() + 1e-5) for r, p in zip(running, pooled, strict=True)]
    assert float(row["lambda_drift"]) == pytest.approx(torch.cat(drift).square().mean().sqrt().item(), rel=1e-4)


def test_a_limit_that_no_part_reaches_changes_no_number(cell):
    all_of_it, limited = (
        execute.run(cell("norm=dbn", f"train.limit_eval={limit}", results=str(limit))) for limit in ("null", 1197)
    )
    assert without_seconds(numbers_of(limited)) == without_seconds(numbers_of(all_of_it))
    assert limited.name != all_of_it.name


def test_training_does_not_see_what_evaluation_is_limited_to(cell):
    names = ("train_loss", "train_error_pct", "grad_norm")
    one, other = (numbers_of(execute.run(cell(*extra, results=str(len(extra))))) for extra in ([], LIMITED))
    assert [[row[name] for name in names] for row in one] == [[row[name] for name in names] for row in other]


def test_the_population_pass_takes_the_first_records_of_its_mixed_order():
    part = Part(torch.arange(50.0).view(50, 1), torch.arange(50))
    data = Data(part, part, Part(part.x[:20], part.y[:20]), (1,), 50, "", fixed_shuffle(50))
    short = shortened(data, 30)
    assert torch.equal(short.train.x, part.x[data.shuffle_order[:30]]) and short.shuffle_order is None
    assert short.test is data.test and len(short.val) == 30
    assert shortened(data, 50) == shortened(data, None) == data
    assert torch.equal(shortened(replace(data, shuffle_order=None), 30).train.x, short.train.x)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.eval_every=0", "train.eval_every=0: expected a number of at least 1."),
        ("train.limit_eval=0", "train.limit_eval=0: expected at least train.batch_size=100;"),
        ("train.limit_eval=99", "train.limit_eval=99: expected at least train.batch_size=100;"),
    ],
)
def test_a_limit_below_one_batch_and_an_interval_below_one_epoch_are_refused_in_one_line(cell, override, message):
    with pytest.raises(UserError) as refused:
        cell(override)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


class Bar:
    """In place of tqdm's: writes down what is said to it."""

    def __init__(self, said, desc, **_):
        self.said = said
        said.append(desc)

    def update(self):
        self.said.append("step")

    def set_postfix_str(self, shown):
        self.said.append([pair.partition("=")[0] for pair in shown.split(", ")])

    def close(self):
        pass


@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "stacked"])
def test_the_bar_names_the_run_and_says_evaluating_from_the_last_update_to_the_row(cell, monkeypatch, stacked):
    said = []
    monkeypatch.setattr(progress, "tqdm", functools.partial(Bar, said))
    steps = ["step"] * 3
    sparse = ["train.eval_every=2", "train.epochs=2"]
    if stacked:
        run_all([[cell(*sparse, f"seed={seed}")] for seed in (0, 1)])
        expected = [*steps, ["evaluating"], ["loss"], *steps, ["evaluating"], ["loss"]]
        assert said == ["digits-fnn-bn-seed0 +1", *expected]
    else:
        execute.run(cell(*sparse))
        expected = [*steps, ["evaluating"], ["loss"], *steps, ["evaluating"], ["loss", "test"]]
        assert said == ["digits-fnn-bn-seed0", *expected]


def test_status_and_a_sweeps_last_word_know_epochs_without_an_evaluation(cell, monkeypatch):
    config = cell("train.eval_every=3")
    outcome = execute.run(config)
    rows = metrics.read_rows(outcome.folder / "metrics.csv")
    assert f"test error {rows[-1].test_error_pct:.2f} % after epoch 5" in sweeper.sentence(outcome)
    manifest = layout.read_manifest(outcome.folder)
    layout.write_manifest(outcome.folder, manifest | {"status": "interrupted"})
    for count, error in ((4, f"{rows[2].test_error_pct:.2f} %"), (2, "")):
        (outcome.folder / "metrics.csv").write_text(metrics.csv_text(rows[:count]))
        run = read_run(outcome.folder)
        line = status_table._line(status_table.standing(outcome.folder, status_of(outcome.folder, "digits")))
        assert line[1:3] == (f"{count}/5", error)
        seconds = [row.train_seconds + row.eval_seconds for row in run.rows[-3:]]
        assert status_table.epoch_seconds(run) == pytest.approx(sum(seconds) / len(seconds))
    assert ", test error" not in sweeper.sentence(replace(outcome, row=rows[1]))  # and no traceback


def test_a_row_that_is_half_evaluated_is_refused(cell):
    outcome = execute.run(cell("train.epochs=1"))
    path = outcome.folder / "metrics.csv"
    (row,) = metrics.read_rows(path)
    path.write_text(metrics.csv_text([replace(row, val_loss=None)]))
    with pytest.raises(UserError, match=r"metrics.csv: line 2: val_loss is empty"):
        metrics.read_rows(path)


def test_evaluation_keeps_no_more_records_than_it_reads(cell, monkeypatch):
    kept = []
    monkeypatch.setattr("dbnrun.train.loop.shortened", lambda *a: kept.append(shortened(*a)) or kept[-1])
    execute.run(cell(*LIMITED))
    (data,) = kept  # once a run
    assert [part.x.untyped_storage().nbytes() for part in (data.train, data.val, data.test)] == [150 * 64 * 4] * 3
