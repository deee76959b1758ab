"""Classes of a user's own, through the command: the walk of docs/your-own.md, what identifies them, what is refused."""

import json
import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from dbnrun.cli import main
from dbnrun.config import registry
from dbnrun.config.registry import UserError
from dbnrun.norm.options import RunFacts
from dbnrun.norm.schedules import Constant

PAGE = (Path(__file__).parents[2] / "docs" / "your-own.md").read_text()
FILES = dict(re.findall(r"Save\s+this\s+as\s+`([\w./]+)`.*?:\n\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL))
COMMANDS = re.findall(r"^    dbnrun (.*)$", PAGE, flags=re.MULTILINE)
OWN = ["norm=custom", "norm.target=mynorm.py:BatchRenorm"]
DATA = ["dataset=custom", "dataset.target=mydata.py:load", "train.batch_size=20"]
NET = ["model=custom", "model.target=mynet.py:Net"]
QUICK = ["train.epochs=2", "train.limit_batches=3", "threads=1", "progress=false"]

WRONG = """
import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self, features, scale=1.0):
        super().__init__()


class NotFinite(Layer):
    def forward(self, x):
        return x * float("nan")


class Raises(Layer):
    def forward(self, x):
        return x @ x


class Random(Layer):
    def forward(self, x):
        return x + (not self.training) * torch.rand_like(x)


class Hidden(Layer):
    n = 0

    def forward(self, x):
        self.n += self.training
        return x * (1 + self.n)


class Fails(nn.Module):
    def __init__(self, features):
        raise RuntimeError("no such luck")


class Noise(Layer):
    def forward(self, x):
        return x + self.training * torch.rand_like(x)


def number(features):
    return 3


def no_data(data_dir):
    return 3


def ragged(data_dir):
    pairs = [(torch.zeros(2), 0), (torch.zeros(3), 1)]
    return pairs, pairs


constant = 3


class Cut(Layer):
    def forward(self, x):
        return x[:, 1:]


class NoReturn(Layer):
    def forward(self, x):
        x + 1


class Detached(Layer):
    def forward(self, x):
        return x.detach()


class Running(Layer):
    def __init__(self, features):
        super().__init__(features)
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return x - self.mean
"""

WRONG_NETS = """
import functools

import numpy as np
import torch
from torch import nn


class Linear(nn.Module):
    def __init__(self, num_classes, out=None):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.out = nn.Linear(64, out or num_classes)

    def forward(self, x):
        return self.out(self.norm(x).flatten(1))


class Bare(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(8, num_classes)


class Idle(Linear):
    def __init__(self, num_classes, norm):
        super().__init__(num_classes)


class Asks(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm(1)


class Other(Linear):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.norm = nn.SyncBatchNorm(1)


class Scaled(Linear):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.scale = nn.Parameter(torch.ones(1))


class Empty(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]


class Pair(Linear):
    def forward(self, x):
        return super().forward(x), 0


class Infinite(Linear):
    def forward(self, x):
        return super().forward(x) / 0


class Numpy(Linear):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.out.weight.data.copy_(torch.from_numpy(np.random.randn(num_classes, 64)))


class Noise(Linear):
    def forward(self, x):
        return super().forward(x + self.training * torch.from_numpy(np.random.randn(*x.shape)).float())


class Awake(Linear):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5))


class Hidden(Linear):
    n = 0

    def forward(self, x):
        self.n += self.training
        return super().forward(x) * self.n


class Fails(nn.Module):
    def __init__(self, num_classes):
        raise RuntimeError("no such luck")


def number(num_classes):
    return 3


def refuses(**options):
    return Linear(**options, width=3)
"""


@pytest.fixture
def here(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "nets.py").write_text(WRONG_NETS)
    (tmp_path / "imports.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "syntax.py").write_text("def (\n")
    return tmp_path


def test_every_command_of_the_page_works_and_ends_in_a_paired_difference(here, dbnrun):
    for words in COMMANDS:
        done = dbnrun(*shlex.split(words))
        assert done.returncode == 0, f"{words}\n{done.stderr}"
        if words.startswith("report"):
            assert (
                "BatchRenorm" in done.stdout
                and "test error after the last epoch minus that of BN (PyTorch), paired by seed" in done.stdout
            )
    table = pd.read_csv(here / "report" / "tables" / "differences.csv")
    (row,) = table[table["curve"] == "BatchRenorm"].to_dict("records")
    assert row["n"] == 10 and row["low"] <= row["mean"] <= row["high"] and 0 < row["p"] <= row["p_holm"] <= 1


def test_a_cell_holds_name_and_source_and_no_path_and_the_folder_keeps_the_source(here, dbnrun):
    (here / "mynorm.py").rename(here / "helper.py")
    (here / "mynorm.py").write_text("from helper import BatchRenorm\n")
    assert dbnrun(*OWN, "norm.options.momentum=0.2", *QUICK).returncode == 0
    (folder,) = (here / "results" / "runs").iterdir()
    assert folder.name.startswith("digits-fnn-BatchRenorm-seed0-")
    norm = yaml.safe_load((folder / "config.yaml").read_text())["norm"]
    assert norm.keys() == {"name", "target", "source", "options"} and norm["target"] == "BatchRenorm"
    assert norm["options"] == {"momentum": 0.2} and str(here) not in (folder / "config.yaml").read_text()
    assert (folder / "source" / "norm" / "helper.py").read_text() == FILES["mynorm.py"]
    elsewhere = here / "a folder, with [brackets] = and ümlauts"
    elsewhere.mkdir()
    for name in ("helper.py", "mynorm.py"):
        (here / name).rename(elsewhere / name)
    again = dbnrun(
        "norm=custom", f"norm.target='{elsewhere}/mynorm.py:BatchRenorm'", "norm.options.momentum=0.2", *QUICK
    )
    assert again.returncode == 0 and "done before" in again.stderr, again.stderr
    (elsewhere / "helper.py").write_text("# changed\n" + FILES["mynorm.py"])
    changed = dbnrun(
        "norm=custom", f"norm.target='{elsewhere}/mynorm.py:BatchRenorm'", "norm.options.momentum=0.2", *QUICK
    )
    assert changed.returncode == 0 and "done before" not in changed.stderr


@pytest.mark.parametrize("path", ["sub folder/mynorm.py", "a=b/mynorm.py", "ümlaut/mynorm.py", "br[ack]et/mynorm.py"])
def test_a_target_is_typed_as_it_stands(here, dbnrun, path):
    (here / path).parent.mkdir()
    (here / "mynorm.py").rename(here / path)
    done = dbnrun("norm=custom", f"norm.target={path}:BatchRenorm", "norm.options.momentum=0.2", *QUICK)
    assert done.returncode == 0, done.stderr
    swept = dbnrun("-m", "norm=bn,custom", f"norm.target={path}:BatchRenorm", "seed=0,1", *QUICK)
    assert swept.returncode == 0 and "4 runs: 4 done" in swept.stderr, swept.stderr
    commands = [json.loads(file.read_text())["command"] for file in (here / "results").glob("runs/*/manifest.json")]
    assert all(f"norm.target={path}:BatchRenorm" in command for command in commands)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["norm=custom"], "norm.target is missing: expected FILE.py:NAME"),
        (["norm=custom", "norm.target=mynorm.py"], "expected FILE.py:NAME or package.module:NAME"),
        (["norm=custom", "norm.target=there.py:A"], "there is no file there.py"),
        (["norm=custom", "norm.target=no.such.module:A"], "there is no module no.such.module"),
        (["norm=custom", "norm.target=mynorm.py:BatchRenom"], "Did you mean 'BatchRenorm'?"),
        (["norm=custom", "norm.target=wrong.py:constant"], "constant is int, expected a class or a function"),
        (["norm=custom", "norm.target=imports.py:A"], "imports.py, line 1: ModuleNotFoundError"),
        (["norm=custom", "norm.target=syntax.py:A"], "syntax.py, line 1: SyntaxError"),
        ([*OWN, "norm.options.momentumm=1"], "BatchRenorm takes no momentumm. Did you mean 'momentum'?"),
        ([*OWN, "norm.options.features=1"], "BatchRenorm takes no features."),
        ([*OWN, "norm.optoins.momentum=1"], "there is no key"),
        ([*OWN, "norm.momentum=1"], "norm=custom has no option momentum; it is an option of bn"),
        (["norm=bn", "norm.target=mynorm.py:BatchRenorm"], "norm=bn has no option target; it is an option of custom"),
        (["norm=bn", "norm.options.width=1"], "norm.options: norm=bn takes none; they are for your own class"),
        (["-m", "norm=bn,dbn", "norm.options.width=1"], "norm.options: norm=bn takes none"),
        (["-m", "norm=bn,dbn", "norm.target=mynorm.py:BatchRenorm"], "Write norm=custom norm.target="),
        (["norm=custom", "norm.target=wrong.py:NotFinite"], "returned NaN or infinity for a finite input"),
        (["norm=custom", "norm.target=wrong.py:Raises"], "wrong.py, line 18: RuntimeError: mat1 and mat2"),
        (["norm=custom", "norm.target=wrong.py:Cut"], "forward returned (100, 63) for an input (100, 64); a norm"),
        (["norm=custom", "norm.target=wrong.py:NoReturn"], "forward returned NoneType for an input (100, 64)"),
        (["norm=custom", "norm.target=wrong.py:Detached"], "hidden.0.linear.weight gets no gradient through the norm"),
        (["norm=custom", "norm.target=wrong.py:Running"], "update running statistics in torch.no_grad()"),
        (["norm=custom", "norm.target=wrong.py:Random"], "two evaluations of one batch differ"),
        (["norm=custom", "norm.target=wrong.py:Noise"], "two networks of one seed differ in their first step"),
        (["norm=custom", "norm.target=wrong.py:Hidden"], "restored from state_dict gives other numbers"),
        (["norm=custom", "norm.target=wrong.py:Fails"], "RuntimeError: no such luck"),
        (["norm=custom", "norm.target=wrong.py:number"], "made int, expected a torch.nn.Module"),
        (["-m", "norm=bn,custom", "norm.target=wrong.py:NotFinite"], "returned NaN or infinity for a finite input"),
        (["optimizer=custom", "optimizer.target=torch.nn:Linear"], "expected a subclass of torch.optim.Optimizer"),
        (["optimizer=custom", "optimizer.target=torch.optim:RMSprop", "optimizer.options.beta=1"], "takes no beta"),
        (["dataset=custom", "dataset.target=wrong.py:no_data"], "returned int; expected"),
        (["dataset=custom", "dataset.target=wrong.py:ragged"], "expected data sets of pairs (x, class)"),
        (["dataset=custom", "dataset.target=mydata.py:load", "dataset.options.size=1"], "load takes no size"),
        (["model=custom"], "model.target is missing: expected FILE.py:NAME"),
        (["model=custom", "model.target=there.py:A"], "there is no file there.py"),
        (["model=custom", "model.target=mynet.py:Nett"], "mynet.py has no Nett. Did you mean 'Net'?"),
        ([*NET, "model.options.widht=3"], "model.options.widht: Net takes no widht. Did you mean 'width'?"),
        ([*NET, "model.options.num_classes=3"], "Net takes no num_classes. It takes width, dropout."),
        ([*NET, "model.widths=[3]"], "model=custom has no option widths; it is an option of fnn, cnn, two_layer"),
        (["model=fnn", "model.target=mynet.py:Net"], "model=fnn has no option target; it is an option of custom"),
        ([*NET, *DATA], "mynet.py, line 9: ValueError"),
        *(
            (["model=custom", f"model.target=nets.py:{name}"], said)
            for name, said in {
                "Bare": "model=Bare: it has no place for norm=bn; expected batch norms",
                "Idle": "model=Idle: it has no place for norm=bn",
                "Asks": "nets.py, line 32: TypeError: Normalizers.__call__() missing 1 required positional argument",
                "Other": "norm is a SyncBatchNorm; expected nn.BatchNorm1d, 2d or 3d itself.",
                "Scaled": "miss 1 parameter(s), first 'net.scale'; groups tried",
                "Pair": "returned tuple for 100 records of 10 classes; expected (100, 10).",
                "Infinite": "is not finite in the first two steps",
                "Numpy": "two networks of one seed differ in their first step",
                "Noise": "two networks of one seed differ in their first step",
                "Awake": "two evaluations of one batch differ",
                "Hidden": "restored from state_dict gives other numbers",
                "Fails": "RuntimeError: no such luck",
                "number": "made int, expected a torch.nn.Module",
                "refuses": "TypeError: Linear.__init__() got an unexpected keyword argument 'width'",
            }.items()
        ),
        (["model=custom", "model.target=nets.py:Linear", "model.options.out=7"], "returned (100, 7) for 100 records"),
        (["model=custom", "model.target=nets.py:Empty", "norm=none"], "the network has no parameters"),
        (["-m", "model=fnn,custom", "model.target=nets.py:Pair"], "returned tuple"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_anything_trains_and_nothing_is_written(here, monkeypatch, capsys, words, said):
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "argv", ["dbnrun"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    assert main([*words, *QUICK]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not re.match(r"\d+ runs?: ", line)]
    assert said in line
    assert not list((here / "results").glob("runs/*"))


def test_a_refusal_after_a_sweep_in_the_same_process_is_a_refusal(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "argv", ["dbnrun"])
    assert main(["-m", "norm=bn", "seed=0,1", *QUICK]) == 0
    assert main(["norm=custom", *QUICK]) == 2
    assert "norm.target is missing" in capsys.readouterr().err


def test_a_normalizer_of_ones_own_is_tried_on_images_that_are_kept_as_bytes(here, dbnrun):
    for name, shade in [("a", 40), ("b", 200)]:
        (here / "images" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (6, 6), shade + number).save(here / "images" / name / f"{number}.png")
    done = dbnrun("dataset=folder", "dataset.path=images", *OWN, "train.batch_size=4", *QUICK)
    assert done.returncode == 0, done.stderr


def test_a_normalizer_of_ones_own_knows_its_run_and_no_schedule_that_its_signature_leaves_out(tmp_path):
    (tmp_path / "asks.py").write_text(
        "from torch import nn\n\n\n"
        "class Run(nn.Module):\n    def __init__(self, features, run):\n"
        "        super().__init__()\n        self.run = run\n\n\n"
        "class Both(Run):\n    def __init__(self, features, run, schedule):\n        super().__init__(features, run)\n"
    )
    facts = RunFacts(Constant(alpha=0.25), steps_per_epoch=7, epochs=3, batch_size=50)
    of_run, of_both = (
        registry.make("norm", "custom", target=f"{tmp_path}/asks.py:{name}").build(4, 0, facts).run
        for name in ("Run", "Both")
    )
    assert (of_run.steps_per_epoch, of_run.epochs, of_run.batch_size, of_run.steps) == (7, 3, 50, 21)
    with pytest.raises(UserError, match="a class that has a parameter `schedule`"):
        of_run.schedule(1)
    assert of_both.schedule(1) == 0.25


def test_a_batch_may_hold_all_training_records(here, dbnrun):
    done = dbnrun(*OWN, *DATA, "train.batch_size=360", *QUICK)
    assert done.returncode == 0, done.stderr


def test_a_cell_of_ones_own_data_bears_the_name_of_its_function(here, dbnrun):
    assert dbnrun("dataset=custom", "dataset.target=mydata.py:load", "train.batch_size=20", *QUICK).returncode == 0
    (folder,) = (here / "results" / "runs").iterdir()
    assert folder.name.startswith("load-fnn-bn-seed0-")


SCHEDULED = """
import torch
from torch import nn


class Mean(nn.Module):
    def __init__(self, features, schedule):
        super().__init__()
        self.schedule = schedule
        self.register_buffer("mu", torch.zeros(features))
        self.register_buffer("m", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.m += 1
            self.mu.lerp_(x.detach().mean(0), float(self.schedule(int(self.m))))
        return x - self.mu
"""


def test_a_normalizer_of_ones_own_that_asks_for_schedule_is_swept_over_schedules(here, dbnrun):
    (here / "mean.py").write_text(SCHEDULED)
    words = ["norm=bn,custom", "norm.target=mean.py:Mean", "schedule=alpha_0.5,harmonic", *QUICK]
    planned = dbnrun("plan", *words)
    assert planned.returncode == 0 and "3 runs, 1 duplicate left out" in planned.stdout, planned.stderr
    swept = dbnrun("-m", *words)
    assert swept.returncode == 0 and "3 runs: 3 done" in swept.stderr, swept.stderr
    found = {}
    for folder in (here / "results" / "runs").glob("digits-fnn-Mean-*"):
        cell = yaml.safe_load((folder / "config.yaml").read_text())
        assert cell["norm"]["scheduled"] is True
        found[cell["schedule"]["name"]] = pd.read_csv(folder / "metrics.csv"), folder.name
    constant, harmonic = found["constant"], found["harmonic"]
    assert constant[1].startswith("digits-fnn-Mean-alpha0.5-seed0-")
    assert list(constant[0]["alpha"]) == [0.5, 0.5] and list(harmonic[0]["alpha"]) == [1 / 3, 1 / 6]
    assert not (constant[0]["train_loss"] == harmonic[0]["train_loss"]).any()
    assert "1/m" in dbnrun("report", "results").stdout


def test_networks_of_ones_own_are_swept_beside_those_of_the_project_and_named_in_tables(here, dbnrun):
    words = ["model=fnn,custom", "model.target=mynet.py:Net", "model.options.width=4,8", "norm=bn,dbn", *QUICK]
    swept = dbnrun("-m", *words)
    assert swept.returncode == 0 and "6 runs: 6 done" in swept.stderr and "2 duplicates" in swept.stderr, swept.stderr
    assert "model=custom: these runs train one by one" in dbnrun("plan", *words, "hydra.launcher.max_stack=2").stdout
    names = {folder.name.partition("-seed")[0] for folder in (here / "results" / "runs").iterdir()}
    assert names == {f"digits-{model}-{norm}" for model in ("fnn", "Net") for norm in ("bn", "dbn-alpha0.1")}
    (kept,) = {file.read_text() for file in (here / "results" / "runs").glob("*/source/model/mynet.py")}
    assert kept == FILES["mynet.py"]
    said = dbnrun("report", "results").stdout
    assert "Net (width=4), adagrad" in said and "Net (width=8), adagrad" in said


def test_a_parameter_that_fits_no_group_is_trained_with_the_group_that_the_refusal_names(here, dbnrun):
    words = ["model=custom", "model.target=nets.py:Scaled", *QUICK]
    (group,) = re.findall(r"such as '(\S.*)'\.\n", dbnrun(*words).stderr)
    assert dbnrun(*words, group).returncode == 0
    assert dbnrun("-m", *words, group, "seed=1,2").returncode == 0
