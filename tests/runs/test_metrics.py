"""Rows, manifests and locks on disk."""

import contextlib
import csv
import os

import pytest

from dbnrun.config.compose import composed
from dbnrun.config.registry import UserError
from dbnrun.runner import execute
from dbnrun.runs import layout, metrics
from dbnrun.runs.metrics import COLUMNS, EpochRow, MetricsWriter
from dbnrun.runs.run_dir import RunDir


def row(epoch, **changes):
    values = {
        "epoch": epoch, "step": 10 * epoch, "alpha": 0.1, "lr": 0.01, "train_loss": 1 / 3, "train_error_pct": 12.5,
        "val_loss": 0.7, "val_error_pct": 11.0, "test_loss": 0.8, "test_error_pct": 2 / 3,
        "test_error_pct_population": 9.5, "lambda_drift": 1e-17, "grad_norm": 0.3, "train_seconds": 1.23456,
        "eval_seconds": 0.5,
    }  # fmt: skip
    return EpochRow(**{**values, **changes})


def test_the_first_columns_are_the_public_format_in_its_order_and_later_ones_may_be_missing():
    assert COLUMNS[: len(metrics.REQUIRED)] == metrics.REQUIRED
    assert ",".join(metrics.REQUIRED) == (
        "epoch,step,alpha,lr,train_loss,train_error_pct,val_loss,val_error_pct,test_loss,test_error_pct,"
        "test_error_pct_population,lambda_drift,grad_norm,train_seconds,eval_seconds"
    )


def test_rows_read_back_exactly_and_none_is_an_empty_field(tmp_path):
    rows = [
        row(1, train_seconds=1.5),
        row(2, alpha=None, lambda_drift=None, test_error_pct_population=None, train_seconds=2.0),
    ]
    with contextlib.closing(MetricsWriter(tmp_path, [])) as writer:
        for one in rows:
            writer.write(one)
    assert metrics.read_rows(tmp_path / "metrics.csv") == rows
    lines = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert lines[1]["alpha"] == "" and float(lines[0]["train_loss"]) == 1 / 3


def test_a_file_without_a_column_added_later_reads_as_none_there_and_goes_on(tmp_path, newer_version):
    with contextlib.closing(MetricsWriter(tmp_path, [])) as writer:
        writer.write(row(1, train_seconds=1.5))
    with newer_version():
        (old,) = metrics.read_rows(tmp_path / "metrics.csv")
        assert old == metrics.EpochRow(**vars(row(1, train_seconds=1.5))) and old.gamma_norm is None
        new = metrics.EpochRow(**vars(row(2, train_seconds=2.5)), gamma_norm=0.5, dead_units=3)
        with contextlib.closing(MetricsWriter(tmp_path, [old])) as writer:
            writer.write(new)
        assert metrics.read_rows(tmp_path / "metrics.csv") == [old, new]


def test_a_file_without_one_of_the_first_columns_is_refused_in_one_line(tmp_path):
    (tmp_path / "metrics.csv").write_text(metrics.csv_text([row(1)]).replace("eval_seconds", "gamma_norm"))
    with pytest.raises(UserError, match=r"metrics.csv: expected the column 'eval_seconds'[^\n]*$"):
        metrics.read_rows(tmp_path / "metrics.csv")


def test_a_newer_versions_columns_are_passed_over_and_never_lost(tmp_path, newer_version):
    with newer_version(), contextlib.closing(MetricsWriter(tmp_path, [])) as writer:
        writer.write(metrics.EpochRow(**vars(row(1, train_seconds=1.5)), gamma_norm=0.5))
    path = tmp_path / "metrics.csv"
    assert metrics.read_rows(path) == [row(1, train_seconds=1.5)]
    with pytest.raises(UserError, match=r"metrics.csv: has the column 'gamma_norm'.*continue with the version"):
        metrics.refuse_unknown_columns(path)
    path.write_text("epoch,ste")  # torn: no row of it is read, so none is lost
    metrics.refuse_unknown_columns(path)


def test_a_run_that_a_newer_version_began_is_not_gone_on_with_and_nothing_of_it_changes(tmp_path, newer_version):
    config = composed([f"results_dir={tmp_path}", "train.epochs=2", "train.limit_batches=2", "progress=false"])
    folder = RunDir(config).folder
    folder.mkdir(parents=True)
    with newer_version(), contextlib.closing(MetricsWriter(folder, [])) as writer:
        writer.write(metrics.EpochRow(**vars(row(1)), gamma_norm=0.5))
    layout.write_manifest(folder, {"status": "interrupted", "results_version": 1, "versions": {"dbnrun": "9"}})
    before = {path: path.read_bytes() for path in folder.iterdir()}
    outcome = execute.run(config)
    assert outcome.status == "refused" and "'gamma_norm'" in outcome.message
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_diverged_row_reads_back_as_nan(tmp_path):
    with contextlib.closing(MetricsWriter(tmp_path, [])) as writer:
        writer.write(row(1, train_loss=float("nan"), grad_norm=float("inf")))
    (read,) = metrics.read_rows(tmp_path / "metrics.csv")
    assert read.train_loss != read.train_loss and read.grad_norm == float("inf")


def test_a_half_written_last_line_is_left_out_and_written_anew(tmp_path):
    with contextlib.closing(MetricsWriter(tmp_path, [])) as writer:
        writer.write(row(1))
        writer.write(row(2))
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text()[:-20])
    rows = metrics.read_rows(path)
    assert [r.epoch for r in rows] == [1]
    with contextlib.closing(MetricsWriter(tmp_path, rows)) as writer:
        writer.write(row(2))
    assert [r.epoch for r in metrics.read_rows(path)] == [1, 2]


def test_a_malformed_line_is_named(tmp_path):
    path = tmp_path / "metrics.csv"
    with contextlib.closing(MetricsWriter(tmp_path, [])) as writer:
        writer.write(row(1))
    path.write_text(path.read_text() + "2,xyz\n")
    with pytest.raises(UserError, match=r"metrics.csv: line 3: "):
        metrics.read_rows(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="expected the column 'epoch'"):
        metrics.read_rows(path)


def test_an_atomic_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    layout.write_atomic(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        layout.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_is_set_aside_is_kept_under_a_free_name(tmp_path):
    for content in ("one", "two"):
        (tmp_path / "metrics.csv").write_text(content)
        layout.set_aside(tmp_path / "metrics.csv")
    assert sorted(p.read_text() for p in tmp_path.glob("metrics.set-aside-*.csv")) == ["one", "two"]
    assert layout.set_aside(tmp_path / "metrics.csv") == []


def test_files_of_one_attempt_are_set_aside_under_one_number(tmp_path):
    for name in ("metrics.csv", "metrics.set-aside-1.csv", "weights.pt"):
        (tmp_path / name).write_text(name)
    layout.set_aside(*(tmp_path / name for name in ("weights.pt", "checkpoint.pt", "metrics.csv")))
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {
        "metrics.set-aside-1.csv": "metrics.set-aside-1.csv",
        "metrics.set-aside-2.csv": "metrics.csv",
        "weights.set-aside-2.pt": "weights.pt",
    }


def test_a_missing_or_torn_manifest_reads_as_nothing(tmp_path):
    assert layout.read_manifest(tmp_path) == {}
    (tmp_path / "manifest.json").write_text('{"status": "do')
    assert layout.read_manifest(tmp_path) == {}
