"""Choices of the user's own that come in by name: folders of YAML files, and modules that register choices."""

import json
from pathlib import Path

import pytest
import yaml

LAYERS = """
from torch import nn


class RMS(nn.Module):
    def __init__(self, features, eps):
        super().__init__()
        self.layer = nn.RMSNorm(features, eps=eps)

    def forward(self, x):
        return self.layer(x)
"""

NORMS = '''
from dataclasses import dataclass

from dbnrun.config.registry import choice, option
from dbnrun.norm.options import Norm


@choice("norm", "mine", "My norm")
@dataclass
class Mine(Norm):
    """Root mean square normalization."""

    eps: float = option(1e-5, above=0)

    def build(self, features, spatial, run):
        from mylab.layers import RMS

        return RMS(features, self.eps)
'''

EXPERIMENT = """# @package _global_
defaults:
  - override /dataset: digits
train: {epochs: 1, limit_batches: 3}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      norm: bn,theirs
      seed: 0,1
"""

QUICK = ["train.epochs=1", "train.limit_batches=3", "threads=1", "progress=false"]


@pytest.fixture
def here(tmp_path):
    """A working directory with a package mylab, which registers norm=mine, and lab/, a folder of YAML files."""
    files = {
        "mylab/__init__.py": "",
        "mylab/layers.py": LAYERS,
        "mylab/norms.py": NORMS,
        "theirs.py": LAYERS,
        "lab/norm/theirs.yaml": (
            "defaults: [base_custom, _self_]\nname: custom\ntarget: theirs.py:RMS\noptions: {eps: 1e-3}\n"
        ),
        "lab/experiment/ours.yaml": EXPERIMENT,
        "lab/norm/syntax.yaml": "defaults: [base_custom, _self_]\nname: [custom\n",
        "lab/norm/unknown.yaml": "defaults: [base_custom, _self_]\ntarget: theirs.py:RMS\nepsilon: 3\n",
        "lab/norm/no_base.yaml": "target: theirs.py:RMS\n",
        "lab/norm/empty.yaml": "",
        "hides/norm/bn.yaml": "defaults: [base_bn, _self_]\n",
        "raises.py": "raise RuntimeError('no such luck')\n",
        "group.py": NORMS.replace('"norm", "mine"', '"norms", "mine"'),
        "taken.py": NORMS.replace('"norm", "mine"', '"norm", "bn"'),
        "plain.py": NORMS.replace("Mine(Norm)", "Mine"),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def runs(here: Path, name: str) -> list[Path]:
    return sorted((here / "results" / "runs").glob(f"digits-fnn-{name}-*"))


def test_a_registered_class_has_typed_options_and_its_source_in_the_cell(here, dbnrun):
    done = dbnrun("norm=mine", "norm.eps=1e-4", "plugins=[mylab.norms]", *QUICK)
    assert done.returncode == 0, done.stderr
    (folder,) = runs(here, "mine")
    cell = yaml.safe_load((folder / "config.yaml").read_text())
    assert cell["norm"].keys() == {"name", "eps", "source"} and cell["norm"]["eps"] == 1e-4
    assert "plugins" not in cell and str(here) not in str(cell)
    kept = folder / "source" / "norm" / "mylab"
    assert (kept / "norms.py").read_text() == NORMS and (kept / "layers.py").read_text() == LAYERS
    again = dbnrun("norm=mine", "norm.eps=1e-4", "plugins=mylab.norms", *QUICK)
    assert "done before" in again.stderr, again.stderr
    (here / "mylab" / "layers.py").write_text("# changed\n" + LAYERS)
    changed = dbnrun("norm=mine", "norm.eps=1e-4", "plugins=[mylab.norms]", *QUICK)
    assert changed.returncode == 0 and "done before" not in changed.stderr


def test_a_registered_class_is_swept_planned_and_trained_by_workers(here, dbnrun, fresh_dbnrun):
    sweep = ["norm=bn,mine", "seed=0,1", "plugins=[mylab.norms]", *QUICK]
    planned = dbnrun("plan", *sweep, "hydra.launcher.max_stack=2")
    assert "4 runs" in planned.stdout and "norm=mine: these runs train one by one" in planned.stdout, planned.stderr
    # A new interpreter: joblib's workers outlive a fork of the warm one by minutes, and hold its output open.
    done = fresh_dbnrun("-m", *sweep, "hydra/launcher=joblib")
    assert done.returncode == 0 and "4 runs: 4 done" in done.stderr, done.stderr


def test_an_installed_distribution_registers_its_choices_by_an_entry_point(here, dbnrun):
    info = here / "mylab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mylab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dbnrun.plugins]\nnorms = mylab.norms\n")
    done = dbnrun("norm=mine", *QUICK, before=f"import sys; sys.path.insert(0, {str(here)!r})")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("given", [["--config-dir", "lab"], ["hydra.searchpath=[lab]"]])
def test_a_yaml_file_in_a_folder_of_ones_own_is_a_choice_and_an_experiment(here, dbnrun, given):
    done = dbnrun(*given, "norm=theirs", "norm.options.eps=0.1", *QUICK)
    assert done.returncode == 0, done.stderr
    (folder,) = runs(here, "RMS")
    assert yaml.safe_load((folder / "config.yaml").read_text())["norm"]["options"] == {"eps": 0.1}
    swept = dbnrun(*given, "experiment=ours", "threads=1")
    assert swept.returncode == 0 and "4 runs: 4 done" in swept.stderr, swept.stderr
    planned = dbnrun("plan", "--json", *given, "experiment=ours")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["counts"] == {"done": 4}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["norm=mine"], "norm=mine: not supported; expected one of"),
        (["norm=min", "plugins=[mylab.norms]"], "Did you mean 'mine'?"),
        (["norm=mine", "norm.epsilon=1", "plugins=[mylab.norms]"], "Did you mean 'norm.eps'?"),
        (["norm=mine", "norm.eps=-1", "plugins=[mylab.norms]"], "norm.eps=-1.0: expected a number above 0."),
        (["plugins=[mylab.norm]"], "there is no module mylab.norm, here or installed."),
        (["plugins=[mylab/norms.py]"], "expected the name of a module, such as plugins=[norms]"),
        (["plugins=[raises]"], "plugins=raises: raises.py, line 1: RuntimeError: no such luck."),
        (["plugins=[group]"], "expected a group among dataset, model, norm"),
        (["plugins=[taken]"], '@choice("norm", "bn"): dbnrun.norm.options has registered this name'),
        (["plugins=[plain]"], "expected a subclass of the group's class in dbnrun.norm.options"),
        (["-m", "plugins=choice(mylab.norms,mylab.layers)"], "expected one value; it changes no result"),
        (["--config-dir", "lap", "norm=theirs"], "--config-dir lap: there is no such folder"),
        (["hydra.searchpath=[lap]", "norm=theirs"], "hydra.searchpath lap: there is no such folder"),
        (["hydra.searchpath=[pkg://no.such]", "norm=theirs"], "pkg://no.such: there is no such folder"),
        (["--config-dir", "lab", "norm=theris"], "Did you mean 'theirs'?"),
        (["--config-dir", "lab", "experiment=our"], "Did you mean 'ours'?"),
        (["--config-dir", "hides"], "hides/norm/bn.yaml: dbnrun has norm=bn already"),
        (["--config-dir", "lab", "norm=syntax"], "lab/norm/syntax.yaml, line 3: expected ',' or ']'"),
        (["--config-dir", "lab", "norm=unknown"], "norm/unknown.yaml: this choice has no option epsilon. The file"),
        (["--config-dir", "lab", "norm=no_base"], "norm/no_base.yaml: this choice has no option target. The file"),
        (["--config-dir", "lab", "norm=empty"], "norm: its YAML file sets no choice; begin it with"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_written(here, dbnrun, words, said):
    done = dbnrun(*words, *QUICK)
    assert done.returncode == 2 and done.stderr.startswith("dbnrun: ") and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr and not (here / "results").exists(), done.stderr
