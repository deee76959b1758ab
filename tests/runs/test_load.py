"""The reader of run folders: what it reads of each, and when."""

import pytest
import synthetic
import yaml

from dbnrun.config.registry import UserError
from dbnrun.runs import load


def test_runs_that_differ_in_their_seed_are_read_as_yaml_reads_each(tmp_path):
    for seed in (0, 7, 123456789):
        for norm in ("bn", "ln"):
            folder = synthetic.write_run(tmp_path, synthetic.cell(None, seed, norm=norm), [3.0, 2.0])
            assert load.described(folder).cell == yaml.safe_load((folder / "config.yaml").read_text())


def test_a_run_is_described_without_its_rows_and_called_done_with_them_alone(tmp_path):
    folder = synthetic.write_run(tmp_path, synthetic.cell(None, 0, norm="bn"), [3.0, 2.0])
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    described = load.described(folder)
    assert (described.status, described.rows) == ("done", ())
    (folder / "metrics.csv").write_text("".join(lines[:2]))
    whole = load.with_rows(described)
    assert (whole.status, len(whole.rows)) == ("incomplete", 1) and whole == load.read_run(folder)
    (folder / "metrics.csv").write_text("nonsense\n")
    with pytest.raises(UserError, match="expected the column"):
        load.with_rows(load.described(folder))


def test_what_a_choice_refuses_is_said_as_the_choice_says_it(tmp_path):
    folder = synthetic.write_run(tmp_path, synthetic.cell(synthetic.constant(0.5), 0), [3.0])
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("alpha: 0.5", "alpha: 2.5"))
    with pytest.raises(UserError, match=r"schedule.alpha=2.5: expected a number"):
        load.read_run(folder)
