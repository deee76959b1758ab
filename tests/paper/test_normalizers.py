"""Normalizers that the paper's tables do not hold: records and settings of their own, and their table against BN."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import cell, constant, run, table_1, write_run

from dbnrun.config import registry
from dbnrun.config.registry import conf_dir
from dbnrun.paper import normalizers, publish, record
from dbnrun.paper.protocols import experiment_of
from dbnrun.paper.result_set import result_set
from dbnrun.report import figures
from dbnrun.runs import archive

RECORDS = Path(__file__).parents[2] / "results" / "records"
HARMONIC = {"name": "harmonic", "unit": "step"}


def with_key(content: Any, group: str, key: str, value: Any) -> Any:
    return content | {group: {**content[group], key: value}}


def peer(norm: str, seed: int = 0) -> Any:
    """A cell of a normalizer without a schedule, with its default options."""
    return cell(seed=seed) | {"norm": {"name": norm, **registry.defaults_of(registry.of("norm")[norm])}}


OTHERS = {
    "another normalizer": peer("rms"),
    "the gradient through the mean alone": with_key(cell(constant(0.1), protocol="B"), "norm", "stats_grad", "mean"),
    "the gradient through the variance alone": with_key(cell(constant(0.1), protocol="B"), "norm", "stats_grad", "var"),
    "BN after the activation": with_key(peer("bn"), "model", "norm_position", "after"),
    "another normalizer after the activation": with_key(peer("frn"), "model", "norm_position", "after"),
    "BN with a small batch": with_key(peer("bn"), "train", "batch_size", 16),
    "DBN with a small batch": with_key(cell(HARMONIC, protocol="B"), "train", "batch_size", 4),
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_what_only_compares_normalizers_has_a_records_file_of_its_own(content):
    assert experiment_of(content) == "mnist_normalizers"


def test_every_committed_record_keeps_its_file():
    runs = archive.read(RECORDS)
    assert runs and all(experiment_of(one.cell) == one.folder.stem for one in runs)


def published(results: Path) -> dict[str, str]:
    """The files of a report on the records of a results folder, figures left out."""
    publish(results / "records", [], results)
    return {path.name: path.read_text() for path in (results / "tables").iterdir()}


def test_recording_other_normalizers_changes_no_digit_of_the_papers_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda *_: [])  # ten seconds
    for one in table_1(["mnist"], "AB", seeds=2, epochs=4):
        write_run(tmp_path, one.cell, [row.test_error_pct for row in one.rows])
    after = with_key(cell(constant(0.1), protocol="B"), "model", "norm_position", "after")
    write_run(tmp_path, after, [4.0, 3.0, 2.0, 1.0])  # a sensitivity run, so that its tables are there
    record(tmp_path / "records", [tmp_path])
    before = published(tmp_path)
    kept = {path: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    for content, seed in itertools.product(OTHERS.values(), range(2)):
        write_run(tmp_path, content | {"seed": seed}, [4.0, 3.0, 2.0, 0.5 + seed])
    record(tmp_path / "records", [tmp_path])
    now = published(tmp_path)
    assert {path: path.read_bytes() for path in kept} == kept
    assert len(archive.read(tmp_path / "records")) == (12 + 12 + 4) * 2 + 1 + 2 * len(OTHERS)
    for name in ("statistics.csv", "paper.md", "verdicts.csv", "sensitivity.csv", "sensitivity.md"):
        assert now[name] == before[name], name
    assert set(before["table1.csv"].splitlines()) < set(now["table1.csv"].splitlines())


def test_other_normalizers_are_drawn_beside_the_baselines_and_not_with_the_papers_curves():
    runs = table_1(["mnist"], "A", seeds=2, epochs=4)
    runs += [run(OTHERS["another normalizer"] | {"seed": seed}, [4.0, 3.0, 2.0, 1.0]) for seed in range(2)]
    settings = {setting.slug: setting for setting in result_set(runs).settings}
    assert settings.keys() == {"mnist", "mnist-normalizers"}
    assert {one.key for one in settings["mnist"].series if not one.protocol} == {"bn", "ln", "gn", "none"}
    assert [one.key for one in settings["mnist-normalizers"].series] == ["bn", "ln", "gn", "none", "rms"]


# The table


def indexed(runs: Any) -> Any:
    return normalizers.frame(runs).set_index(["dataset", "norm_position", "batch_size", "normalizer"])


def test_a_row_of_the_table_by_hand():
    runs = [run(peer("bn", seed), [4.0, 3.0 + seed]) for seed in range(3)]
    runs += [run(peer("rms", seed), [4.0, 2.0 + seed]) for seed in range(3)]
    runs += [run(cell(constant(0.1), seed, protocol="B"), [4.0, 4.5 + seed]) for seed in range(2)]
    runs += [run(OTHERS["BN with a small batch"], [4.0, 9.0])]
    table = indexed(runs)
    row = table.loc[("mnist", "before", 100, "RMSNorm")]
    # Three differences of -1: of the eight ways to sign them two are as far from 0, and Holm doubles the least p.
    assert (row["n"], row["mean"], row["vs_bn_diff"], row["vs_bn_p"], row["vs_bn_p_holm"]) == (3, 3.0, -1.0, 0.25, 0.5)
    assert table.loc[("mnist", "before", 100, "dbn, α = 0.1"), "vs_bn_diff"] == 1.5
    small = table.loc[("mnist", "before", 16, "BN (PyTorch)")]
    assert (small["n"], small["mean"]) == (1, 9.0) and np.isnan(small["vs_bn_diff"])


def test_with_ten_seeds_every_row_of_a_full_table_can_reject():
    runs = []
    for seed in range(10):
        runs.append(run(peer("bn", seed), [4.0, 3.0]))
        for protocol, key in normalizers.ROWS[1:]:
            if not protocol:
                content = peer(key, seed)
            else:
                schedule = {"name": "harmonic", "unit": key.split()[1][:-1]} if "/" in key else constant(float(key))
                content = cell(schedule, seed, protocol="A" if "inference" in protocol else "B")
                through = protocol.partition("=")[2]
                content["norm"]["stats_grad"] = {"": True, "false": False}.get(through, through)
            runs.append(run(content, [4.0, 2.0 + 0.01 * seed]))
    table = normalizers.frame(runs)
    shown = table[(table["dataset"] == "mnist") & (table["batch_size"] == 100)]
    assert len(shown) == len(normalizers.ROWS) and (shown["n"] == 10).all()
    assert (shown["vs_bn_word"].iloc[1:] == "differs").all()


def test_what_was_not_run_is_said_and_so_is_what_diverged(tmp_path):
    runs = [run(peer("bn", seed), [4.0, 3.0]) for seed in range(2)]
    runs += [run(peer("mabn"), [4.0, 90.0], status="diverged")]
    normalizers.write(normalizers.frame(runs), tmp_path)
    text = (tmp_path / "normalizers.md").read_text()
    assert "| BN (PyTorch) | 2 | 3.00 [3.00, 3.00] | baseline |" in text
    assert "| MABN | 0 | 1 diverged |" in text and "| RMSNorm | 0 | not run |" in text
    assert "Not run: MNIST, batch 16; MNIST, batch 4; NI" in text
    assert (tmp_path / "normalizers.csv").read_text().count("\n") == 1 + 9 * len(normalizers.ROWS)


def test_a_table_without_bn_has_means_alone():
    runs = [run(OTHERS["another normalizer"] | {"seed": seed}, [4.0, 3.0]) for seed in range(2)]
    ((_, _, lines),) = normalizers.tables(normalizers.frame(runs))
    (line,) = [line for line in lines if line[0] == "RMSNorm"]
    assert line == ["RMSNorm", "2", "3.00 [3.00, 3.00]", "BN not run", "", "not comparable"]


# The time of a step


def timed(content: Any, seconds: list[float], **facts: Any) -> Any:
    """A run of which each epoch of 500 updates took so long; it trained alone unless `facts` say otherwise."""
    one = run(content, [3.0] * len(seconds))
    rows = [replace(row, train_seconds=value) for row, value in zip(one.rows, seconds, strict=True)]
    return replace(one, rows=tuple(rows), manifest=one.manifest | {"stacked": 1, "together": 1} | facts)


def ratio_of(*runs: Any, batch: int = 100) -> tuple[float, int]:
    row = indexed(runs).loc[("mnist", "before", batch, "RMSNorm")]
    return row["step_time_ratio"], row["step_time_n"]


def test_the_time_of_a_step_is_the_ratio_of_the_fastest_epochs():
    bn = [timed(peer("bn", seed), [50.0, 2.0 + seed, 4.0]) for seed in range(2)]
    rms = [timed(peer("rms", seed), [3.0 + seed, 9.0, 8.0]) for seed in range(3)]
    assert ratio_of(*bn, *rms) == (1.5, 2)


def test_bn_after_the_activation_tells_the_time_of_a_step_too():
    bn = timed(OTHERS["BN after the activation"], [2.0])
    assert ratio_of(bn, timed(peer("rms"), [3.0])) == (1.5, 1)


@pytest.mark.parametrize(
    "facts", [{"stacked": 10, "together": 10}, {"together": 3}, {"threads": 1}, {"host": "other"}, {"stacked": None}]
)
def test_runs_that_trained_together_or_elsewhere_have_no_time_to_compare(facts):
    bn, rms = timed(peer("bn"), [2.0]), timed(peer("rms"), [3.0], **facts)
    assert np.isnan(ratio_of(bn, rms)[0])


def test_another_batch_size_has_no_time_to_compare():
    bn, rms = timed(OTHERS["BN with a small batch"], [2.0]), timed(peer("rms"), [3.0])
    assert np.isnan(ratio_of(bn, rms)[0])


def test_an_older_record_under_batch_statistics_may_have_shared_its_training():
    shared, own = timed(cell(constant(0.1)), [2.0]), timed(cell(constant(0.1), protocol="B"), [2.0])
    assert normalizers.trained_alone(shared) and normalizers.trained_alone(own)
    for one in (shared, own):
        del one.manifest["together"]
    assert not normalizers.trained_alone(shared) and normalizers.trained_alone(own)


def test_a_record_says_how_many_trained_together(tmp_path):
    archive.update(tmp_path, [timed(peer("rms"), [2.0], together=4)], experiment_of)
    (kept,) = archive.read(tmp_path)
    assert kept.manifest["together"] == 4


# The experiments


@pytest.mark.parametrize(
    "path", sorted((conf_dir() / "experiment").glob("normalizers_*.yaml")), ids=lambda path: path.stem
)
def test_an_experiment_of_normalizers_trains_rows_of_the_table(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DBNRUN_RESULTS", str(tmp_path))
    from dbnrun.config.identity import protocol_of, schedule_key
    from dbnrun.runner import plan

    cells = [one.cell for one in plan.asked([f"experiment={path.stem}"], None).cells]
    assert {(protocol_of(one), schedule_key(one)) for one in cells} <= set(normalizers.ROWS)
    assert {experiment_of(one) for one in cells} == {f"{cells[0]['dataset']['name']}_normalizers"}
