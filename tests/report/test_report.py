"""Tables and figures from synthetic runs, against hand calculations."""

import contextlib
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from dbnrun.cli import main
from dbnrun.config import registry
from dbnrun.config.identity import signature
from dbnrun.config.registry import UserError
from dbnrun.report import figures, report, tables
from dbnrun.report.series import gather
from dbnrun.runs import layout
from dbnrun.runs.load import deduplicated, read_runs
from dbnrun.runs.metrics import EpochRow, MetricsWriter

DBN = {"name": "dbn", "eps": 1e-4, "affine": True, "train_stats": "batch", "stats_grad": True, "average": "std",
       "eps_at": "std", "init": [0.0, 1.0]}  # fmt: skip
TABLE_1 = [1, 0.75, 0.5, 0.25, 0.1, 0.01, 0.001, 0]


def cell(norm: Any = "bn", schedule: Any = None, seed: Any = 0, dataset: Any = "mnist", epochs: Any = 3, **axes) -> Any:
    group = {"pattern": "*", "lr": 0.01, "weight_decay": 0.0}
    content = {
        "dataset": {"name": dataset},
        "model": {"name": "fnn", "widths": [300, 300]},
        "norm": {**DBN, **axes} if norm == "dbn" else {"name": norm, "eps": 1e-5, **axes},
        "optimizer": {"name": "adagrad", "groups": {"all": group}},
        "train": {"epochs": epochs, "batch_size": 100},
        "seed": seed,
    }
    return content | ({"schedule": schedule} if norm == "dbn" else {})


def constant(alpha):
    return {"name": "constant", "alpha": alpha}


def record(results: Path, content, errors, status="done", population=None, val_loss=0.5, digest="d1", device="cpu"):
    """A run folder as the runner writes it, with the given test errors; `done` takes an error an epoch."""
    sign = signature(content, digest)
    folder = layout.run_folder(results, content, sign)
    folder.mkdir(parents=True)
    layout.write_cell(folder, content)
    described = {"status": status, "signature": sign, "data_digest": digest, "device": device}
    layout.write_manifest(
        folder, {**described, "results_version": registry.of("dataset")[content["dataset"]["name"]].results_version}
    )
    with contextlib.closing(MetricsWriter(folder, [])) as writer:
        for epoch, error in enumerate(errors, start=1):
            writer.write(
                EpochRow(
                    epoch=epoch, step=epoch, alpha=None, lr=0.01, train_loss=0.1, train_error_pct=1.0,
                    val_loss=val_loss / epoch, val_error_pct=error, test_loss=0.2, test_error_pct=error,
                    test_error_pct_population=population, lambda_drift=None, grad_norm=1.0, train_seconds=1.0,
                    eval_seconds=0.1,
                )
            )  # fmt: skip
    return folder


def table_of(results) -> Any:  # a DataFrame; pandas' own types do not know what a cell holds
    (setting,) = gather([results])
    return tables.rows(setting).set_index("curve")


def test_mean_and_sample_standard_deviation_by_both_selections(tmp_path):
    errors = [[5.0, 2.0, 3.0], [6.0, 4.5, 4.0], [9.0, 1.0, 8.0]]
    for seed, values in enumerate(errors):
        record(tmp_path, cell("dbn", constant(0.25), seed), values, population=2.5)
    row = table_of(tmp_path).loc["α = 0.25"]
    assert row["n"] == 3
    assert row["last_mean"] == pytest.approx(5.0) and row["last_sd"] == pytest.approx(7**0.5)
    assert row["best_on_test_mean"] == pytest.approx(7 / 3)
    assert row["best_on_test_sd"] == pytest.approx(np.std([2, 4, 1], ddof=1))
    assert row["population_mean"] == 2.5 and row["paper"] == 1.91


def test_the_papers_numbers_are_those_of_table_1():
    paper = tables.paper_numbers()
    assert paper.loc["1"].tolist() == [2.70, 7.69, 17.31] and paper.loc["0"].tolist() == [24.27, 26.09, 79.34]
    assert paper.loc["1/m"].tolist() == [2.10, 7.45, 17.26] and paper.loc["1/m^2"].tolist() == [2.00, 7.59, 17.23]
    assert len(paper) == 10


def test_the_paper_stands_beside_schedules_but_not_beside_torchs_bn(tmp_path):
    record(tmp_path, cell("bn"), [3, 2, 1])
    record(tmp_path, cell("dbn", constant(1.0)), [3, 2, 1])
    record(tmp_path, cell("dbn", {"name": "inverse_square", "unit": "epoch"}), [3, 2, 1])
    record(tmp_path, cell("dbn", constant(0.33)), [3, 2, 1])
    paper = table_of(tmp_path)["paper"]
    assert paper["α = 1"] == 2.70 and paper["1/m² (epochs)"] == 2.00
    assert np.isnan(paper["BN (PyTorch)"]) and np.isnan(paper["α = 0.33"])


def test_the_three_best_of_a_protocol_are_marked_and_no_baseline(tmp_path):
    record(tmp_path, cell("bn"), [1, 1, 0.1])
    for alpha, error in ((1, 5.0), (0.5, 2.0), (0.25, 1.0), (0.1, 3.0), (0.01, 4.0)):
        record(tmp_path, cell("dbn", constant(alpha)), [9, 9, error])
    table = table_of(tmp_path)
    assert set(table.index[table["last_top"]]) == {"α = 0.5", "α = 0.25", "α = 0.1"}


def test_the_terminal_shows_the_numbers_of_the_markdown_a_line_a_series(tmp_path):
    for seed in range(2):
        record(tmp_path, cell("bn", seed=seed), [3, 2, 1 + seed])
        record(tmp_path, cell("dbn", constant(0.25), seed), [3, 2, 2.5 + seed])
    (setting,) = gather([tmp_path])
    tables.write([setting], tmp_path)
    written = [line for line in (tmp_path / "table1.md").read_text().splitlines() if line.startswith("| ")]
    _, _, _, *lines = tables.as_text(setting).splitlines()
    printed = [line for line in lines if not line.startswith("  ")]  # without the notes
    for line, fields in zip(printed, (line.replace("*", "").split("|")[1:-1] for line in written[1:]), strict=True):
        assert line.split() == [word for field in fields for word in field.split()]
    assert "left out" not in tables.as_text(setting)  # none was


def test_unfinished_and_diverged_runs_are_left_out_and_counted(tmp_path):
    record(tmp_path, cell("bn", seed=0), [3, 2, 1])
    record(tmp_path, cell("bn", seed=1), [90, 80], status="interrupted")
    record(tmp_path, cell("bn", seed=2), [90], status="running")
    record(tmp_path, cell("bn", seed=3), [90, float("nan")], status="diverged")
    record(tmp_path, cell("bn", seed=4), [90], status="failed")
    row = table_of(tmp_path).loc["BN (PyTorch)"]
    assert row["n"] == 1 and row["last_mean"] == 1 and np.isnan(row["last_sd"])
    assert row["left_out"] == "1 diverged, 1 failed, 2 unfinished"


def test_a_series_without_a_finished_run_has_a_line_in_the_table_and_no_curve(tmp_path, capsys):
    record(tmp_path, cell("bn"), [3, 2, 1])
    record(tmp_path, cell("dbn", constant(0.5)), [9], status="interrupted")
    written = report([tmp_path], tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert "left out" in printed[1] and next(line for line in printed if "α = 0.5" in line).endswith(" 1 unfinished")
    (drawn,) = [path.read_text() for path in written if path.name == "mnist-test-error.svg"]
    assert "BN (PyTorch)" in drawn and "α = 0.5" not in drawn
    row = table_of(tmp_path).loc["α = 0.5"]
    assert row["n"] == 0 and np.isnan(row["last_mean"]) and not row["last_top"] and row["left_out"] == "1 unfinished"


def test_a_setting_without_a_finished_run_is_told_last_and_renames_no_file(tmp_path, capsys):
    record(tmp_path, cell("bn", epochs=3), [3, 2, 1])
    record(tmp_path, cell("bn", epochs=2), [9], status="running")
    written = report([tmp_path], tmp_path)
    assert {path.name for path in written if path.suffix == ".png"} == {
        "mnist-test-error.png",
        "mnist-validation-loss.png",
    }
    assert "MNIST, epochs=2: test error" in capsys.readouterr().out
    assert [setting.slug for setting in gather([tmp_path])] == ["mnist", "mnist-epochs2"]


def test_a_run_called_done_whose_rows_are_missing_is_left_out(tmp_path):
    record(tmp_path, cell("bn", seed=0), [3, 2, 1])
    torn = record(tmp_path, cell("bn", seed=1), [3, 2, 50]) / "metrics.csv"
    torn.write_text(torn.read_text()[:-9])
    record(tmp_path, cell("bn", seed=2), [])
    row = table_of(tmp_path).loc["BN (PyTorch)"]
    assert row["n"] == 1 and row["last_mean"] == 1 and row["left_out"] == "2 incomplete"


def test_a_half_written_last_line_does_not_stop_the_report(tmp_path):
    record(tmp_path, cell("bn", seed=0), [3, 2, 1])
    torn = record(tmp_path, cell("bn", seed=1), [3, 2, 1], status="running") / "metrics.csv"
    torn.write_text(torn.read_text()[:-9])
    assert table_of(tmp_path).loc["BN (PyTorch)", "n"] == 1


def test_settings_are_never_mixed_and_their_files_say_what_differs(tmp_path):
    record(tmp_path, cell("bn", epochs=3), [3, 2, 1])
    record(tmp_path, cell("bn", epochs=2), [30, 20])
    record(tmp_path, cell("bn", dataset="ni"), [8, 8, 8])
    settings = gather([tmp_path])
    assert [setting.slug for setting in settings] == ["mnist-epochs2", "mnist-epochs3", "ni"]
    assert [tables.rows(setting)["last_mean"].tolist() for setting in settings] == [[20], [1], [8]]


def test_the_same_cell_on_other_data_or_with_its_groups_in_another_order_is_another_setting(tmp_path):
    record(tmp_path / "data", cell("bn"), [3, 2, 1], digest="1111111111")
    record(tmp_path / "data", cell("bn"), [3, 2, 9], digest="2222222222")
    assert [setting.slug for setting in gather([tmp_path / "data"])] == ["mnist-data11111111", "mnist-data22222222"]
    for seed, order in enumerate((("a", "b"), ("b", "a"))):
        content = cell("bn", seed=seed)
        group = content["optimizer"]["groups"]["all"]
        content["optimizer"]["groups"] = {name: group for name in order}
        record(tmp_path / "order", content, [3, 2, 1])
    assert [setting.slug for setting in gather([tmp_path / "order"])] == ["mnist-orderaxb", "mnist-orderbxa"]


def test_a_run_whose_manifest_is_lost_stays_with_its_setting(tmp_path):
    record(tmp_path, cell("bn", seed=0), [3, 2, 1])
    (record(tmp_path, cell("bn", seed=1), [3, 2, 1]) / "manifest.json").unlink()
    assert table_of(tmp_path).loc["BN (PyTorch)", "left_out"] == "1 unfinished"


def test_settings_never_share_a_file_name(tmp_path):
    for widths in ([64, 64], [6, 464]):
        content = cell("bn")
        content["model"]["widths"] = widths
        record(tmp_path, content, [3, 2, 1])
    for pattern in ("*a", "a*"):  # what a file name cannot hold
        content = cell("bn", dataset="ni")
        content["optimizer"]["groups"]["all"]["pattern"] = pattern
        record(tmp_path, content, [3, 2, 1])
    slugs = {setting.slug for setting in gather([tmp_path])}
    assert slugs == {"mnist-widths6x464", "mnist-widths64x64", "ni-all.patterna", "ni-all.patterna-2"}
    titles = {setting.slug: setting.title for setting in gather([tmp_path])}
    assert titles["mnist-widths6x464"] == "MNIST, widths=6x464"
    assert titles["ni-all.patterna-2"] in ("NI (KDD Cup 1999), all.pattern=*a", "NI (KDD Cup 1999), all.pattern=a*")


def test_one_learning_rate_of_all_groups_names_a_setting_once(tmp_path):
    for lr in (0.1, 0.01):
        content = cell("bn")
        group = content["optimizer"]["groups"]["all"] | {"lr": lr}
        content["optimizer"]["groups"] = {"a": group, "b": group}
        record(tmp_path, content, [3, 2, 1])
    found = {setting.slug: setting.title for setting in gather([tmp_path])}
    assert found == {"mnist-lr0.01": "MNIST, lr=0.01", "mnist-lr0.1": "MNIST, lr=0.1"}


def test_m_in_steps_and_m_in_epochs_are_two_series(tmp_path):
    for unit, last in (("step", 2.0), ("epoch", 1.0)):
        record(tmp_path, cell("dbn", {"name": "harmonic", "unit": unit}), [3, 3, last])
    table = table_of(tmp_path)
    assert table["last_mean"].to_dict() == {"1/m (epochs)": 1.0, "1/m (steps)": 2.0}
    assert (table["paper"] == 2.10).all()


def test_two_constants_never_share_a_label(tmp_path):
    for alpha in (0.1234561, 0.1234562):
        record(tmp_path, cell("dbn", constant(alpha)), [3, 2, 1])
    assert table_of(tmp_path).index.tolist() == ["α = 0.1234562", "α = 0.1234561"]


def test_a_label_says_the_axis_that_differs_also_where_schedules_differ(tmp_path):
    record(tmp_path, cell("dbn", constant(0.5), average="std"), [3, 2, 1])
    record(tmp_path, cell("dbn", constant(0.25), average="var"), [3, 2, 1])
    assert table_of(tmp_path).index.tolist() == ["α = 0.5, average=std", "α = 0.25, average=var"]


def test_protocols_stand_in_blocks_in_the_order_of_table_1(tmp_path):
    for alpha in (0.0, 0.001, 1.0):
        for train_stats in ("lambda", "batch"):
            record(tmp_path, cell("dbn", constant(alpha), train_stats=train_stats), [3, 2, 1])
    table = table_of(tmp_path)
    assert table["protocol"].tolist() == ["dbn_inference"] * 3 + ["dbn"] * 3
    assert table.index.tolist() == ["α = 1", "α = 0.001", "α = 0"] * 2


def test_protocols_are_panels_and_other_axes_are_labels(tmp_path):
    record(tmp_path, cell("bn"), [1, 1, 1])
    for axes in ({"train_stats": "batch"}, {"train_stats": "lambda"}, {"train_stats": "lambda", "stats_grad": False}):
        record(tmp_path, cell("dbn", constant(0.5), **axes), [2, 2, 2])
    record(tmp_path, cell("dbn", constant(0.5), train_stats="lambda", average="var"), [3, 3, 3])
    (setting,) = gather([tmp_path])
    assert setting.protocols == ["dbn_inference", "dbn", "dbn, stats_grad=false"]
    assert [s.label for s in setting.panel("dbn")] == ["BN (PyTorch)", "α = 0.5, average=std", "α = 0.5, average=var"]
    assert [s.label for s in setting.panel("dbn_inference")] == ["BN (PyTorch)", "α = 0.5"]


def test_of_copies_with_other_numbers_the_first_counts_and_a_line_says_how_far_they_are(tmp_path, capsys):
    for name, errors in (("a", [3, 2, 1]), ("b", [3, 2, 1]), ("c", [3, 4.5, 1]), ("d", [3, 2.5, 1.25])):
        record(tmp_path / name, cell("bn"), errors)
    (setting,) = gather([tmp_path / "a", tmp_path / "b"])
    assert setting.series[0].n == 1 and capsys.readouterr().out == ""
    (setting,) = gather([tmp_path / name for name in "acdb"])
    (line,) = capsys.readouterr().out.splitlines()
    assert setting.series[0].column("test_error_pct").tolist() == [[3, 2, 1]]
    assert line.startswith("2 runs differ") and "by up to 2.5 pp" in line
    assert re.search(rf"{tmp_path}/c/runs/\S+ against {tmp_path}/a/runs/", line)
    (setting,) = gather([tmp_path / "d", tmp_path / "a"])
    assert setting.series[0].column("test_error_pct").tolist() == [[3, 2.5, 1.25]]


def test_a_copy_that_diverged_is_said_to_have(tmp_path, capsys):
    record(tmp_path / "a", cell("bn"), [3, 2, 1])
    record(tmp_path / "b", cell("bn"), [3, 90], status="diverged")
    assert gather([tmp_path / "a", tmp_path / "b"])[0].n == 1
    assert "one of the two has diverged" in capsys.readouterr().out


def test_deterministic_true_on_a_cpu_is_the_run_of_auto_and_on_another_device_it_is_not(tmp_path, capsys):
    def trained(name, deterministic, seed, last, device="cpu"):
        record(tmp_path / name, {**cell("bn", seed=seed), "deterministic": deterministic}, [3, 2, last], device=device)

    trained("auto", "auto", 0, 1)
    trained("true", True, 0, 1)
    trained("true", True, 1, 3)
    for names in (("auto", "true"), ("true", "auto")):
        (setting,) = gather([tmp_path / name for name in names])
        (series,) = setting.series
        assert sorted(series.column("test_error_pct")[:, -1]) == [1, 3]
    assert capsys.readouterr().out == ""
    trained("other", True, 0, 1.5)
    (setting,) = gather([tmp_path / "auto", tmp_path / "other"])
    assert setting.n == 1 and "by up to 0.5 pp" in capsys.readouterr().out
    trained("cuda", True, 2, 4, device="cuda")
    assert [one.n for one in gather([tmp_path / "auto", tmp_path / "cuda"])] == [1, 1]


def test_two_copies_of_a_diverged_run_are_one_and_an_unfinished_copy_gives_way(tmp_path):
    for name in ("a", "b"):
        record(tmp_path / name, cell("bn"), [3, 2, 1], status="diverged", val_loss=float("nan"))
    record(tmp_path / "c", cell("bn"), [3], status="interrupted")
    for paths in ("ab", "ca", "ac"):
        assert [run.status for run in deduplicated(read_runs([tmp_path / name for name in paths]))] == ["diverged"]


def test_nothing_to_report_is_said_with_the_command_that_records(tmp_path):
    with pytest.raises(UserError, match=r"no runs; train some, such as `dbnrun -m norm=bn,ln"):
        gather([tmp_path])
    record(tmp_path, cell("bn"), [90], status="interrupted")
    with pytest.raises(UserError, match="1 unfinished or diverged runs and none that is done"):
        gather([tmp_path])


def test_a_report_takes_the_runs_that_pass_its_filters_and_says_what_there_is_where_none_does(tmp_path, dbnrun):
    for seed, norm in itertools.product((0, 1), ("bn", "ln", "gn")):
        record(tmp_path / "results", cell(norm, seed=seed), [4, 3, 2])
    said = dbnrun("report", "norm=bn,ln", "seed=1").stdout
    assert "BN (PyTorch)" in said and "LN" in said and "GN" not in said
    table = (tmp_path / "results" / "report" / "tables" / "table1.csv").read_text()
    assert len(table.splitlines()) == 3
    for words, refusal in [
        (["norm=none"], "norm=none: none of 6 runs has it; they have norm=bn,gn,ln.\n"),
        (["norm=bn", "seed=7"], "seed=7: none of 6 runs has it; they have seed=0,1.\n"),
        (["norm=bn", "--record"], "report --record: takes all runs; leave out the filter norm=bn.\n"),
        (["norm=bnn"], "norm=bnn: expected one of"),
    ]:
        refused = dbnrun("report", *words)
        assert refused.returncode == 2 and refusal in refused.stderr and refused.stderr.count("\n") == 1


def no_schedule(folder):
    content = cell("dbn", constant(0.5))
    del content["schedule"]
    layout.write_cell(folder, content)


def no_file(folder):
    (folder / "metrics.csv").unlink()
    (folder / "metrics.csv").mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "config.yaml").write_text("just: something"), r"config\.yaml: not a run of dbnrun"),
        (lambda folder: (folder / "config.yaml").write_bytes(b"\xff\x00"), r"config\.yaml: not a run of dbnrun"),
        (lambda folder: (folder / "config.yaml").write_text(""), r"config\.yaml: not a run of dbnrun"),
        (no_schedule, r"config\.yaml: not a run of dbnrun"),
        (lambda folder: (folder / "metrics.csv").write_text("a\n1\n"), r"metrics\.csv: expected the column 'epoch'"),
        (lambda folder: (folder / "metrics.csv").write_bytes(b"\xff\n"), r"metrics\.csv: not text"),
        (no_file, r"metrics\.csv: cannot be read \(Is a directory\)"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_read_is_named_and_the_rest_reported_unless_strict(tmp_path, capsys, damage, reason):
    record(tmp_path, cell("bn", seed=0), [3, 2, 1])
    damage(folder := record(tmp_path, cell("bn", seed=1), [3, 2, 1]))
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert re.fullmatch(rf"dbnrun: warning: left out: {folder}/{reason}.*\n", said.err)
    assert table_of(tmp_path).loc["BN (PyTorch)", "n"] == 1
    capsys.readouterr()
    assert main(["report", str(tmp_path), "--strict"]) == 2
    assert re.fullmatch(rf"dbnrun: {folder}/{reason}.*\n", capsys.readouterr().err)


def test_folders_of_which_none_can_be_read_are_refused(tmp_path, capsys):
    (record(tmp_path, cell("bn"), [1]) / "config.yaml").write_text("just: something")
    assert main(["report", str(tmp_path)]) == 2
    warned, refused = capsys.readouterr().err.splitlines()
    assert "config.yaml: not a run" in warned and refused.startswith(f"dbnrun: {tmp_path}: no runs; train some")


def full_table(results, seeds=2, epochs=6):
    rng = np.random.default_rng(0)
    schedules = [constant(a) for a in TABLE_1] + [
        {"name": name, "unit": "epoch"} for name in ("harmonic", "inverse_square")
    ]
    for seed in range(seeds):
        for norm in ("bn", "ln", "gn", "none"):
            record(results, cell(norm, seed=seed, epochs=epochs), 2 + rng.random(epochs) / 5)
        for schedule in schedules:
            base = 25 if schedule.get("alpha") == 0 else 2
            record(results, cell("dbn", schedule, seed, epochs=epochs), base + rng.random(epochs) / 5)


def test_figures_and_tables_are_written_for_a_full_table(tmp_path, capsys):
    full_table(tmp_path)
    written = report([tmp_path], tmp_path)
    names = {path.name for path in written}
    drawn = ("test-error", "test-error-best", "validation-loss")
    figures = {f"mnist-{what}.{suffix}" for what in drawn for suffix in ("png", "svg")}
    assert names == {"table1.csv", "table1.md", "differences.csv", "report.html"} | figures
    assert all(path.stat().st_size > 3000 for path in written if path.suffix in (".png", ".svg"))
    printed = capsys.readouterr().out
    assert "MNIST: test error [%]" in printed and "mnist-test-error.png" in printed
    read: Any = pd.read_csv(tmp_path / "tables" / "table1.csv")
    assert len(read) == 14 and read["n"].eq(2).all()
    lines = [line for line in (tmp_path / "tables" / "table1.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 16 and len({line.count("|") for line in lines}) == 1


def label_boxes(figure: Any):
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    return [Text.get_window_extent(text, renderer) for ax in figure.axes for text in ax.texts]


def test_labels_of_fourteen_curves_never_overlap(tmp_path):
    full_table(tmp_path)
    (setting,) = gather([tmp_path])
    figure = figures._figure("t", {"dbn_inference": setting.series}, "test_error_pct", "test error [%]")
    boxes = label_boxes(figure)
    assert 5 <= len(boxes) <= 14
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert all(box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)


def test_of_many_curves_that_end_together_those_no_text_speaks_of_are_grey_and_named_above(tmp_path):
    for alpha, last in ((1.0, 2.0), (0.75, 1.99), (0.5, 1.98), (0.25, 1.97), (0.1, 1.96), (0.01, 1.95), (0.001, 4.0)):
        record(tmp_path, cell("dbn", constant(alpha), train_stats="batch"), [9, 5, last])
    record(tmp_path, cell("dbn", constant(0.0), train_stats="batch"), [9, 9, 8.0])
    record(tmp_path, cell("bn"), [9, 5, 1.94])
    (setting,) = gather([tmp_path])
    figure = figures._figure("t", {"dbn_inference": setting.series}, "test_error_pct", "test error [%]")
    labels = {text.get_text() for ax in figure.axes for text in ax.texts}
    assert labels == {"α = 1", "α = 0.1", "α = 0.001", "α = 0", "BN (PyTorch)"}
    (heading,) = filter(None, (ax.get_title(loc="left") for ax in figure.axes))
    assert heading.endswith("\nin grey: α = 0.75, α = 0.5, α = 0.25, α = 0.01")
    grey = [line for ax in figure.axes for line in ax.lines if line.get_color() == figures.GREY]
    assert sorted(round(line.get_ydata()[-1], 2) for line in grey) == [1.95, 1.97, 1.98, 1.99]


def test_long_labels_and_three_panels_stay_inside_the_figure(tmp_path):
    for average in ("std", "inv_std"):
        for axes in ({"train_stats": "batch"}, {"stats_grad": False}, {}):
            schedule = {"name": "inverse_square", "unit": "epoch"}
            record(tmp_path, cell("dbn", schedule, **({"train_stats": "lambda", "average": average} | axes)), [3, 2, 1])
    (setting,) = gather([tmp_path])
    panels = {protocol: setting.panel(protocol) for protocol in setting.protocols}
    figure = figures._figure("t", panels, "test_error_pct", "test error [%]")
    boxes = label_boxes(figure)
    assert len(panels) == 3 and len(boxes) == 6
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)
    assert min(float(text.get_fontsize()) for ax in figure.axes for text in ax.texts) >= 8


def test_no_two_curves_of_a_panel_look_the_same(tmp_path):
    full_table(tmp_path, seeds=1, epochs=3)
    for unit in ("step", "epoch"):
        record(tmp_path, cell("dbn", {"name": "power", "exponent": 2.0, "unit": unit}), [2, 2, 2])
        record(tmp_path, cell("dbn", {"name": "power", "exponent": 3.0, "unit": unit}), [2, 2, 2])
    (setting,) = gather([tmp_path])
    markers = figures._markers(setting.series)
    looks = {(str(figures.line_style(series)), markers[id(series)]) for series in setting.series}
    assert len(looks) == len(setting.series) == 18
    # Without colour: Table 1's neighbours differ in their dashes.
    assert all(one != other for one, other in zip(figures.DASHES, figures.DASHES[1:], strict=False))


def test_the_most_efficient_are_the_three_of_least_last_error_with_alpha_one_and_bn(tmp_path):
    record(tmp_path, cell("bn"), [9, 9, 9])
    record(tmp_path, cell("ln"), [1, 1, 1])
    record(tmp_path, cell("dbn", constant(0.9)), [1, 1, float("nan")])
    for alpha, last in ((1.0, 8), (0.75, 4), (0.5, 3), (0.25, 2), (0.1, 5)):
        record(tmp_path, cell("dbn", constant(alpha)), [9, 0.1, last])
    (setting,) = gather([tmp_path])
    chosen = tables.most_efficient(setting.series)
    assert [s.label for s in chosen] == ["BN (PyTorch)", "α = 1", "α = 0.75", "α = 0.5", "α = 0.25"]
    assert (
        figures.rule({"dbn": chosen})[1]
        == "the 3 of least mean test error at the last epoch, and α = 1 and BN to compare"
    )
    assert figures.rule({"dbn": [chosen[0], *chosen[3:]]})[1].startswith("the 2 of least mean test error")
    assert figures.rule({"": chosen[:1]}) == [""]


@pytest.mark.parametrize("values", [[float("nan")] * 3, [5.0, float("inf"), 4.0], [5.0, 4.0, float("nan")], [0.0] * 3])
def test_numbers_that_no_axis_can_show_do_not_break_a_figure(tmp_path, values):
    record(tmp_path, cell("dbn", constant(0.5)), values)
    record(tmp_path, cell("dbn", constant(0.25)), [90.0, 3.0, 2.0])
    drawn = {path.name for path in report([tmp_path], tmp_path)}
    assert {"report.html", "mnist-test-error.png", "mnist-validation-loss.png"} <= drawn


def test_a_log_axis_has_plain_numbers_near_the_curves_ends(tmp_path):
    record(tmp_path, cell("bn"), [40, 5, 2.8])
    (setting,) = gather([tmp_path])
    figure = figures._figure("t", {"": setting.series}, "test_error_pct", "test error [%]")
    (ax,) = figure.axes
    low, high = ax.get_ylim()
    shown = [
        label.get_text() for label, at in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True) if low <= at <= high
    ]
    assert ax.get_yscale() == "log" and shown == ["3", "5", "7", "10", "20", "30", "50"]


def axes_of(tmp_path, curves):
    """The axes, from the bottom up, of a figure of curves with the given test errors."""
    for number, errors in enumerate(curves):
        record(tmp_path, cell("dbn", constant(1 / (number + 1)), epochs=len(errors)), errors)
    (setting,) = gather([tmp_path])
    figure = figures._figure("t", {"": setting.series}, "test_error_pct", "test error [%]")
    axes = sorted(figure.axes, key=lambda ax: ax.get_position().y0)
    # One axis, broken or not, whose kind is written on it.
    assert [ax.get_yscale() for ax in axes] == ["log"] * len(axes)
    assert [ax.get_ylabel() for ax in axes] == ["test error [%], log scale", ""][: len(axes)]
    assert [text.get_text() for text in figure.texts[1:]] == ["axis broken; another scale above"][: len(axes) - 1]
    return axes


def drawn_on(ax):
    return [line for line in ax.lines if len(line.get_xdata()) > 1 and line.get_transform() == ax.transData]


def test_an_axis_is_broken_between_curves_that_never_meet_and_higher_is_always_more(tmp_path):
    lower, upper = axes_of(tmp_path, [[3, 2, 2], [2.9, 2.1, 1.9], [2.8, 2.2, 2], [20, 30, 40], [13, 14, 15]])
    assert lower.get_ylim()[1] <= upper.get_ylim()[0]
    assert [len(drawn_on(ax)) for ax in (lower, upper)] == [3, 2]
    for ax in (lower, upper):
        bottom, top = ax.get_ylim()
        assert all(bottom < value < top for line in drawn_on(ax) for value in line.get_ydata())


def test_no_axis_is_broken_where_a_curve_crosses_the_gap(tmp_path):
    (ax,) = axes_of(tmp_path, [[3, 2, 2], [2.9, 2.1, 1.9], [2.8, 2.2, 2], [40, 9, 2], [4, 10, 40]])
    assert len(drawn_on(ax)) == 5


@pytest.mark.parametrize("top", [2.1, 4.4, 12])
def test_no_axis_is_broken_where_the_curves_below_have_a_third_of_it(tmp_path, top):
    """Of the logarithm's range: that of 2 to 4 is log 2, which is a third of that of 2 to 16."""
    axes = axes_of(tmp_path, [[top / 1.1, 2, 2], [top, 2, 2], [15.9, 16, 16]])
    assert len(axes) == (2 if top < 4 else 1)


@pytest.mark.parametrize(("high", "ticks"), [(7.7, "7.3 7.4 7.5 7.6 7.7 7.8"), (12, "7 8 9 10 11 12"), (3, "3 4 5 7")])
def test_ticks_of_errors_are_round_numbers(tmp_path, high, ticks):
    (ax,) = axes_of(tmp_path, [[7.4, high, 7.4]])
    low, top = ax.get_ylim()
    assert " ".join(f"{at:g}" for at in ax.get_yticks() if low <= at <= top) == ticks


@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_the_ticks_of_epochs_are_whole_numbers_and_each_stands_once(tmp_path, epochs):
    (ax,) = axes_of(tmp_path, [[3.0] * epochs])
    first, last = ax.get_xlim()
    shown = [ax.xaxis.get_major_formatter()(at) for at in ax.get_xticks() if first <= at <= last]
    assert shown and len(set(shown)) == len(shown) and all(float(at).is_integer() for at in ax.get_xticks())


@pytest.mark.parametrize("errors", [[4.0], [4.0, 3.0, 2.5]])
def test_one_seed_and_one_curve_make_figures(tmp_path, errors):
    record(tmp_path, cell("bn", epochs=len(errors)), errors)
    assert len(report([tmp_path], tmp_path)) == 7


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for seed in (0, 1):
        record(tmp_path, cell("dbn", constant(0.5), seed), [3, 2, 1 + seed])
    drawn = []
    for out in ("one", "two"):
        written = report([tmp_path], tmp_path / out)
        drawn.append([path.read_bytes() for path in written])
    assert drawn[0] == drawn[1]


def test_spread_keeps_places_apart_in_order_and_near():
    wanted = np.array([10.0, 10.0, 10.0, 50.0, 99.0])
    places = figures.spread(wanted, gap=5, low=0, high=100)
    assert places.tolist() == [5, 10, 15, 50, 99]
    crowded = figures.spread(np.full(5, 99.0), gap=5, low=0, high=100)
    assert crowded.tolist() == [80, 85, 90, 95, 100]


def test_the_report_never_imports_torch(tmp_path):
    record(tmp_path, cell("bn"), [3, 2, 1])
    code = (
        "import sys; from dbnrun.cli import main; "
        f"code = main(['report', {str(tmp_path)!r}]); sys.exit(code or ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_method_without_a_schedule_is_in_every_figure(tmp_path, monkeypatch):
    for norm, errors in (("bn", [9, 8]), ("rms", [9, 7])):
        record(tmp_path, cell(norm, epochs=2), errors)
    shown = []
    draw_one = figures._figure
    monkeypatch.setattr(
        figures, "_figure", lambda title, panels, *rest: shown.append(panels) or draw_one(title, panels, *rest)
    )
    (setting,) = gather([tmp_path])
    figures.draw(setting, tmp_path / "figures")
    assert [[series.label for series in panels[""]] for panels in shown] == [["BN (PyTorch)", "RMSNorm"]] * 2


def test_one_epoch_is_a_point_whose_bar_lies_within_the_axis(tmp_path):
    for seed, error in enumerate((10, 14)):
        record(tmp_path, cell("bn", epochs=1, seed=seed), [error])
    (setting,) = gather([tmp_path])
    ((low, high),) = figures._limits([setting.series], "test_error_pct")
    assert low < 12 - np.std([10, 14], ddof=1) and 12 + np.std([10, 14], ddof=1) < high
