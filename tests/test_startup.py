"""That a command imports what it needs and no more, and that leaving torch's compiler out changes no number."""

import json
import os
import subprocess
import sys

import pytest
import torch

from dbnrun.runs import layout
from dbnrun.train import eager

HEAVY = {
    "hydra",
    "numpy",
    "pandas",
    "requests",
    "scipy",
    "sklearn",
    "sympy",
    "torch",
    "torch._dynamo",
    "torch._inductor",
}
CELL = ["dataset=digits", "train.epochs=1", "train.limit_batches=3", "threads=1", "progress=false"]
OPTIMIZERS = [[*CELL, "seed=1", f"optimizer={name}"] for name in ("adagrad", "sgd", "adam", "adamw")]
FINISHED, TRAINED = CELL, [*OPTIMIZERS, ["-m", *CELL, "seed=2,3", "norm=dbn", "hydra.launcher.max_stack=2"]]
ASKED = {
    "help": ["--help"],
    "configuration": ["--cfg", "job", "norm=dbn"],
    "finished": FINISHED,
    "plan": ["plan", "experiment=paper_mnist_a"],
    "runs": ["runs", "ls", "norm=bn"],
}
SCRIPT = """
import json, sys
from pathlib import Path
from dbnrun.cli import main

def run(*words):
    sys.argv = ["dbnrun", *words]
    return main(list(words)), sorted(sys.modules)

asked, trained = json.loads(sys.argv[1])
modules = {name: run(*words) for name, words in asked.items()}
modules["trained"] = [run(*words) for words in trained][-1]
import torch._dynamo  # from here on torch's own functions serve
modules["compiler"] = [run(*words, "results_dir=compiler") for words in trained][-1]
Path("modules.json").write_text(json.dumps(modules))
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory, warm_command):
    """The folder where one new interpreter has run all commands, and for each its exit code and what was imported."""
    folder = tmp_path_factory.mktemp("started")
    assert warm_command.run(FINISHED, folder, os.environ, 60, "").returncode == 0
    words = [sys.executable, "-c", SCRIPT, json.dumps([ASKED, TRAINED])]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    assert "done before" in done.stderr and "train_stats: lambda" in done.stdout and "120 runs" in done.stdout
    return folder, json.loads((folder / "modules.json").read_text())


@pytest.mark.parametrize(
    ("command", "imported"),
    [
        ("help", set()),
        ("configuration", {"hydra"}),
        ("finished", {"hydra"}),
        ("plan", {"hydra"}),
        ("runs", {"hydra"}),
        ("trained", {"hydra", "numpy", "torch"}),
        ("compiler", {"hydra", "numpy", "torch", "torch._dynamo", "torch._inductor", "sympy"}),  # what was left out
    ],
)
def test_a_command_imports_nothing_heavy_that_it_does_not_need(started, command, imported):
    code, modules = started[1][command]
    assert code == 0 and HEAVY & set(modules) == imported


def test_without_the_compiler_every_optimizer_alone_and_stacked_gives_the_same_numbers(started):
    folder, _ = started
    others = sorted((folder / "compiler" / "runs").iterdir())
    assert len(others) == len(OPTIMIZERS) + 2
    for other in others:
        ours = folder / "results" / "runs" / other.name
        assert layout.read_manifest(ours)["deterministic"] is layout.read_manifest(other)["deterministic"] is True
        lines = [(path / "metrics.csv").read_text().splitlines() for path in (ours, other)]
        numbers = [[line.rsplit(",", 2)[0] for line in text] for text in lines]  # the last two are seconds
        assert len(numbers[0]) == 2 and numbers[0] == numbers[1]


METHODS = {name: vars(torch.optim.Optimizer)[name] for name in eager.WRAPPED}


@pytest.fixture
def public(monkeypatch):
    """Calls of torch's own function, in a torch whose compiler seems not to be imported and to have left no mark."""
    calls = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", calls.append)
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    for method in METHODS.values():
        monkeypatch.delattr(method.__wrapped__, eager.HOOK, raising=False)
    was = torch.are_deterministic_algorithms_enabled()
    yield calls
    torch._C._set_deterministic_algorithms(was, warn_only=False)
    for method in METHODS.values():
        vars(method.__wrapped__).pop(eager.HOOK, None)


def test_this_torch_has_the_private_hooks(public):
    wrapper = torch._disable_dynamo(lambda: None).__code__
    classes = {base for name in ("Adagrad", "SGD", "Adam", "AdamW") for base in getattr(torch.optim, name).__mro__}
    found = {name for base in classes for name, value in vars(base).items() if code_of(value) is wrapper}
    assert found == set(eager.WRAPPED)
    for mode in (True, False):
        eager.use_deterministic_algorithms(mode, compiled=False)
        assert torch.are_deterministic_algorithms_enabled() is mode and public == []
    for method in METHODS.values():
        setattr(method.__wrapped__, eager.HOOK, lambda *words: words)
        assert method("called", "instead") == ("called", "instead")


def code_of(value):
    return getattr(value, "__code__", None)


@pytest.mark.parametrize("reason", ["compiled", "imported", "unknown version", "no switch"])
def test_torchs_own_function_serves_where_the_hooks_may_not(public, monkeypatch, reason):
    eager.use_deterministic_algorithms(True, compiled=False)
    assert public == [] and all(eager.HOOK in vars(method.__wrapped__) for method in METHODS.values())
    with monkeypatch.context() as patched:
        if reason == "imported":
            patched.setitem(sys.modules, "torch._dynamo", None)
        elif reason == "unknown version":
            patched.setattr(torch, "__version__", "2.99.0")
        elif reason == "no switch":
            patched.delattr(torch._C, "_set_deterministic_algorithms")
        eager.use_deterministic_algorithms(True, compiled=reason == "compiled")
    assert public == [True] and not any(eager.HOOK in vars(method.__wrapped__) for method in METHODS.values())
