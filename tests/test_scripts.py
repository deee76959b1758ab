"""The scripts beside the command."""

import pandas as pd
import pytest
import torch

import scales
from dbnrun.config.compose import composed
from dbnrun.config.registry import UserError
from dbnrun.runner.execute import run
from dbnrun.runs import layout, probe

TINY = ["train.epochs=2", "train.limit_batches=3", "threads=1", "device=cpu", "progress=false"]


def test_held_weights_keep_their_norms_and_a_file_takes_a_run_once(tmp_path, monkeypatch):
    path, held = tmp_path / "scales.csv", []
    monkeypatch.setattr(scales, "holding", lambda weights: held.extend(weights) or (lambda: None))
    scales.main(["norm=dbn", *TINY, "--csv", str(path)])
    free = pd.read_csv(path)
    monkeypatch.undo()
    for _ in range(2):
        scales.main(["norm=dbn", *TINY, "--csv", str(path)])
    rows = pd.read_csv(path)
    assert list(rows["epoch"]) == [1, 1, 2, 2] and list(rows["layer"][:2]) == ["hidden.0.norm", "hidden.1.norm"]
    assert not rows["sigma"].equals(free["sigma"])
    # Without the intervention the rows are those of a run with probe=true.
    plain = run(composed(["norm=dbn", *TINY, "probe=true", f"results_dir={tmp_path}"]))
    assert list(free["sigma"]) == [row.sigma for row in probe.read_rows(plain.folder / layout.PROBE)]
    weights = [torch.randn(3, 4), torch.randn(2, 3)]
    norms = [weight.norm(dim=1) for weight in weights]
    hold = scales.holding(weights)
    for weight in weights:
        weight.mul_(3).add_(1)
    hold()
    torch.testing.assert_close([weight.norm(dim=1) for weight in weights], norms)


def test_what_has_no_linear_maps_before_its_normalizers_is_refused():
    with pytest.raises(UserError, match="model=two_layer: expected model=fnn"):
        scales.main(["norm=dbn", "model=two_layer", *TINY])


def test_a_file_of_an_earlier_version_is_refused_before_training(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("cell,epoch\nx,1\n")
    with pytest.raises(UserError, match="this script did not write it, or an earlier version did"):
        scales.main(["norm=dbn", *TINY, "--csv", str(path)])
    assert path.read_text() == "cell,epoch\nx,1\n"
