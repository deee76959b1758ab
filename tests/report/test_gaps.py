"""Runs with epochs that were not evaluated (train.eval_every), through everything that is drawn from rows."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import cell, constant, run, table_1, write_run

from dbnrun.config.identity import schedule_key
from dbnrun.paper import page, verdicts
from dbnrun.paper.protocols import experiment_of
from dbnrun.paper.result_set import result_set
from dbnrun.paper.verdicts import OPEN
from dbnrun.report import compare, figures, tables
from dbnrun.report.page import charts
from dbnrun.report.series import settings_of
from dbnrun.runs import archive, metrics
from dbnrun.runs.load import read_runs
from dbnrun.runs.metrics import EVALUATED

EMPTY = dict.fromkeys([*EVALUATED, "test_error_pct_population"])


def sparse(one, every=3):
    """The same run, evaluated after every third epoch and the last."""
    content = {**one.cell, "train": {**one.cell["train"], "eval_every": every}}
    last = len(one.rows)
    rows = [row if row.epoch % every == 0 or row.epoch == last else replace(row, **EMPTY) for row in one.rows]
    return replace(one, cell=content, signature=one.signature + "s", rows=tuple(rows))


def series_of(*runs):
    ((one,),) = [setting.series for setting in settings_of(runs)]
    return one


TEST = [9.0, 1.0, 5.0, 0.5, 0.2, 4.0, 4.5]  # epochs 3, 6 and 7 are evaluated: 5.0, 4.0, 4.5


def test_a_column_holds_the_evaluated_epochs_and_selections_choose_among_them():
    series = series_of(sparse(run(cell(constant(1.0)), TEST, val=[0, 0, 1, 0, 0, 3, 2])))
    assert series.epochs.tolist() == [3, 6, 7] and series.column("test_error_pct").tolist() == [[5.0, 4.0, 4.5]]
    chosen = {name: compare.ERRORS[name](series)[0] for name in ("last", "best_on_test", "best_on_val")}
    assert chosen == {"last": 4.5, "best_on_test": 4.0, "best_on_val": 5.0}


def test_a_loss_that_is_no_number_is_not_taken_for_an_epoch_that_was_skipped():
    val = [0.0, 0, 1, 0, 0, np.nan, 2]
    broken = series_of(sparse(run(cell(constant(1.0)), TEST, val=val)))
    assert np.isnan(compare.ERRORS["best_on_val"](broken)[0])
    beside = series_of(sparse(run(cell(constant(1.0)), TEST, val=[0.0, np.nan, 1, 0, 0, 3, 2])))
    assert compare.ERRORS["best_on_val"](beside)[0] == 5.0  # where it was skipped it does not stand


def test_what_goes_by_successive_epochs_is_not_defined():
    series = series_of(sparse(run(cell(constant(1.0)), TEST)))
    assert np.isnan(compare.log_jitter(series)[0])
    assert np.isnan(compare.log_epochs(series, lambda epochs: epochs)(series)[0])


def test_runs_evaluated_less_often_never_replace_a_data_sets_main_setting():
    whole = [run(cell(constant(1.0), seed), [3.0, 2.0, 1.0]) for seed in range(2)]
    many = [sparse(run(cell(constant(1.0), seed), [3.0, 2.0, 1.0] * 9)) for seed in range(9)]
    results = result_set([*many, *whole])
    assert [one.runs for one in results.mains["mnist"].series] == [whole]
    assert sorted(setting.slug for setting in results.settings)[0] == "mnist" and len(results.settings) == 2
    assert result_set(many).mains["mnist"].series[0].runs == many


@pytest.fixture(scope="module")
def gapped():
    return result_set([sparse(one) for one in table_1(datasets=["mnist"], protocols="A")])


def test_the_verdicts_that_need_every_epoch_are_open_and_the_others_stand(gapped):
    whole = result_set(table_1(datasets=["mnist"], protocols="A"))
    judged, before = (
        {
            (one.claim, one.selection): one
            for one in results.verdicts
            if one.protocol == "dbn_inference" and one.dataset == "mnist" and one.reference == "1"
        }
        for results in (gapped, whole)
    )
    for claim in ("C3 (m = epochs)", "C3 (m = steps)", "C4"):
        assert (judged[claim, ""].verdict, judged[claim, ""].reason) == (OPEN, verdicts.NO_NUMBER)
    for claim in ("C1", "C2 (m = epochs)"):
        assert judged[claim, "last"] == before[claim, "last"]


def test_tables_figures_and_page_draw_the_evaluated_epochs(gapped, tmp_path):
    gapped = result_set([one for one in gapped.runs if schedule_key(one.cell) in ("1", "0.25", "bn")])
    setting = gapped.mains["mnist"]
    assert "12 epochs, evaluated every 3 epochs" in tables.describe(setting.cell)
    table = tables.rows(setting)
    assert table["last_mean"].notna().all() and set(table["epochs"]) == {12}
    assert gapped.statistics["mean"].notna().all()
    drawn = figures.draw(setting, tmp_path)
    assert len(drawn) == 4 and all(path.stat().st_size > 10_000 for path in drawn)
    curves = charts.curves(gapped.settings)
    assert set(curves["epoch"]) == {3, 6, 9, 12} and curves["test_error_pct_mean"].notna().all()
    figure = figures._figure("t", {"": setting.panel("dbn_inference")}, "test_error_pct", "test error [%]")
    lines = [line for ax in figure.axes for line in ax.lines if len(line.get_xdata()) == 4]
    assert len(lines) == len(setting.panel("dbn_inference"))
    assert all(list(line.get_xdata()) == [3, 6, 9, 12] for line in lines)
    text = page.page(gapped)
    assert 'id="mnist-A-figure2"' in text


def write_sparse(results, one):
    """A gapped run as a folder."""
    folder = write_run(results, one.cell, [row.epoch for row in one.rows])
    (folder / "metrics.csv").write_text(metrics.csv_text(one.rows))
    return folder


def test_the_records_keep_empty_fields_empty_and_give_the_run_back(tmp_path, capsys):
    one = sparse(run(cell(constant(0.5)), TEST))
    folder = write_sparse(tmp_path, one)
    (recorded,) = archive.update(tmp_path / "records", read_runs([tmp_path]), experiment_of)
    assert recorded.rows == one.rows and recorded.cell["train"]["eval_every"] == 3
    table = pd.read_csv(tmp_path / "records" / "mnist_A.csv")
    assert table["epoch"][table["val_loss"].notna()].tolist() == [3, 6, 7]
    (folder / "metrics.csv").write_text(metrics.csv_text([*one.rows[:-1], replace(one.rows[-1], test_error_pct=4.75)]))
    archive.update(tmp_path / "records", read_runs([tmp_path]), experiment_of)
    assert "by up to 0.25 pp" in capsys.readouterr().out
    assert read_runs([tmp_path])[0].status == "done"
