"""Rows, manifests and locks on disk."""

import csv
import os

import pytest

from dbnrun import records
from dbnrun.config import UserError
from dbnrun.records import COLUMNS, EpochRow, RecordWriter


def row(epoch, **changes):
    values = {
        "epoch": epoch, "step": 10 * epoch, "alpha": 0.1, "lr": 0.01, "train_loss": 1 / 3, "train_error_pct": 12.5,
        "val_loss": 0.7, "val_error_pct": 11.0, "test_loss": 0.8, "test_error_pct": 2 / 3,
        "test_error_pct_population": 9.5, "lambda_drift": 1e-17, "grad_norm": 0.3, "train_seconds": 1.23456,
        "eval_seconds": 0.5,
    }  # fmt: skip
    return EpochRow(**{**values, **changes})


def test_the_columns_are_the_public_format_in_its_order():
    assert ",".join(COLUMNS) == (
        "epoch,step,alpha,lr,train_loss,train_error_pct,val_loss,val_error_pct,test_loss,test_error_pct,"
        "test_error_pct_population,lambda_drift,grad_norm,train_seconds,eval_seconds"
    )


def test_rows_read_back_exactly_and_none_is_an_empty_field(tmp_path):
    rows = [
        row(1, train_seconds=1.5),
        row(2, alpha=None, lambda_drift=None, test_error_pct_population=None, train_seconds=2.0),
    ]
    with RecordWriter(tmp_path, []) as writer:
        for one in rows:
            writer.write(one)
    assert records.read_rows(tmp_path / "metrics.csv") == rows
    lines = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert lines[1]["alpha"] == "" and float(lines[0]["train_loss"]) == 1 / 3


def test_a_diverged_row_reads_back_as_nan(tmp_path):
    with RecordWriter(tmp_path, []) as writer:
        writer.write(row(1, train_loss=float("nan"), grad_norm=float("inf")))
    (read,) = records.read_rows(tmp_path / "metrics.csv")
    assert read.train_loss != read.train_loss and read.grad_norm == float("inf")


def test_a_half_written_last_line_is_left_out_and_written_anew(tmp_path):
    with RecordWriter(tmp_path, []) as writer:
        writer.write(row(1))
        writer.write(row(2))
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text()[:-20])
    rows = records.read_rows(path)
    assert [r.epoch for r in rows] == [1]
    with RecordWriter(tmp_path, rows) as writer:
        writer.write(row(2))
    assert [r.epoch for r in records.read_rows(path)] == [1, 2]


def test_a_malformed_line_is_named(tmp_path):
    path = tmp_path / "metrics.csv"
    with RecordWriter(tmp_path, []) as writer:
        writer.write(row(1))
    path.write_text(path.read_text() + "2,xyz\n")
    with pytest.raises(UserError, match=r"metrics.csv: line 3: "):
        records.read_rows(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="expected the column 'epoch'"):
        records.read_rows(path)


def test_an_atomic_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    records.write_atomic(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        records.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_is_set_aside_is_kept_under_a_free_name(tmp_path):
    for content in ("one", "two"):
        (tmp_path / "metrics.csv").write_text(content)
        records.set_aside(tmp_path / "metrics.csv")
    assert sorted(p.read_text() for p in tmp_path.glob("metrics.set-aside-*.csv")) == ["one", "two"]
    assert records.set_aside(tmp_path / "metrics.csv") is None


def test_a_missing_or_torn_manifest_reads_as_nothing(tmp_path):
    assert records.read_manifest(tmp_path) == {}
    (tmp_path / "manifest.json").write_text('{"status": "do')
    assert records.read_manifest(tmp_path) == {}
