"""A normalizer that is added by its options, its layer and one YAML file, and nothing else, through every verb."""

import csv
import shutil
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from dbnrun.config import registry
from dbnrun.config.registry import Choice, UserError, conf_dir, option
from dbnrun.optim.groups import build_optimizer

MODULE = '''
from dataclasses import dataclass

from dbnrun.config.registry import choice, option
from dbnrun.norm.options import Norm, RunFacts


@choice("norm", "mine", "My norm")
@dataclass
class MyNorm(Norm):
    """Somebody's normalizer."""

    eps: float = option(1e-5, above=0)

    def build(self, features, spatial, run):
        from torch import nn

        return nn.RMSNorm(features, eps=self.eps)
'''

BEFORE = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import my_norm
from dbnrun import cli
from dbnrun.config import compose, overrides, registry
from dbnrun.runner import plan
for module in (registry, overrides, compose, plan):
    module.conf_dir = lambda: Path({folder!r}, "conf")
"""


@pytest.fixture
def command(tmp_path, dbnrun):
    """The command in a project that has one normalizer more."""
    folder = tmp_path / "project"
    shutil.copytree(conf_dir(), folder / "conf")
    (folder / "my_norm.py").write_text(MODULE)
    (folder / "conf" / "norm" / "mine.yaml").write_text("# Mine.\ndefaults: [base_mine, _self_]\nname: mine\n")
    return lambda *words, **more: dbnrun(*words, before=BEFORE.format(folder=str(folder)), **more)


QUICK = ["train.epochs=2", "train.limit_batches=4", "progress=false"]


def test_a_normalizer_of_options_layer_and_yaml_goes_through_every_verb(command, tmp_path):
    done = command("norm=mine", "norm.eps=1e-4", *QUICK)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("results/runs/digits-fnn-mine-seed0-*/metrics.csv")
    assert all(row["test_error_pct_population"] == "" for row in csv.DictReader(path.open()))  # it has no statistics
    sweep = ["norm=bn,mine", "seed=0,1", *QUICK]
    planned = command("plan", *sweep, "hydra.launcher.max_stack=auto")
    assert planned.returncode == 0 and "4 runs" in planned.stdout
    assert "norm=mine: these runs train one by one" in planned.stdout
    done = command("-m", *sweep, "hydra.launcher.max_stack=auto")
    assert done.returncode == 0 and "4 runs: 4 done" in done.stderr, done.stderr
    stacked = [f.parent.name for f in tmp_path.glob("results/runs/*/manifest.json") if '"stacked": 2' in f.read_text()]
    assert len(stacked) == 2 and all("-bn-" in name for name in stacked)
    assert "digits-fnn-mine-seed1" in command("status", "--all").stdout
    report = command("report", "results")
    assert report.returncode == 0, report.stderr
    assert "My norm" in report.stdout


def test_it_appears_in_help_completion_and_suggestions(command):
    assert ", mine" in command("--help").stdout
    completed = command("-sc", "query=bash", env={"COMP_LINE": "dbnrun norm=", "COMP_POINT": "12"})
    assert "norm=mine" in completed.stdout.split()
    assert "Did you mean 'mine'?" in command("norm=mineq").stderr
    refused = command("norm=mine", "norm.eps=0")
    assert refused.returncode == 2 and refused.stderr == "dbnrun: norm.eps=0.0: expected a number above 0.\n"
    refused = command("norm=mine", "norm.momentum=0.5")
    assert refused.returncode == 2 and "norm=mine has no option momentum; it is an option of bn" in refused.stderr


def test_bounds_are_those_of_the_options():
    @dataclass
    class Some(Choice):
        share: float = option(0.5, at_least=0, at_most=1)
        pair: list[int] = option([1, 2], at_least=1, length=2)  # noqa: RUF009
        kind: str = option("a", among=("a", "b"))
        below: float = option(0.0, at_most=3)

    Some.group, Some.registered = "some", "one"
    assert Some("one").pair == [1, 2]
    for given, said in [
        ({"share": 2}, "some.share=2: expected a number of at least 0, at most 1."),
        ({"share": float("nan")}, "some.share=nan: expected a number of at least 0, at most 1."),
        ({"pair": [1]}, "some.pair=[1]: expected two numbers."),
        ({"pair": [1, 0]}, "some.pair=0: expected a number of at least 1."),
        ({"below": 4}, "some.below=4: expected a number of at most 3."),
        ({"kind": "c"}, "some.kind=c: expected one of a, b."),
    ]:
        with pytest.raises(UserError) as refused:
            Some("one", **given)
        assert str(refused.value) == said


def test_the_parameters_of_the_normalizers_join_their_group_whatever_their_names():
    model = nn.Sequential(nn.Linear(4, 3), bn1 := nn.BatchNorm1d(3), nn.Linear(3, 2))
    groups = {
        "norm": {"pattern": "*norm*", "lr": 0.1, "weight_decay": 0.0},
        "rest": {"pattern": "*", "lr": 0.1, "weight_decay": 0.01},
    }
    optimizer = build_optimizer(registry.make("optimizer", "sgd", lr=0.1, groups=groups), model, norms=[bn1])
    norm, rest = optimizer.param_groups
    assert norm["params"] == [bn1.weight, bn1.bias] and norm["l2"] == 0
    assert len(rest["params"]) == 4 and rest["l2"] == 0.01
    assert isinstance(optimizer, torch.optim.SGD)
