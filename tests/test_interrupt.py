"""A signal is noted when it comes and looked at where stopping is safe."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from dbnrun import cli, interrupt
from dbnrun.config.compose import composed
from dbnrun.data.dataset import Part
from dbnrun.runner import execute, plan
from dbnrun.runner import sweeper as sweeper_module
from dbnrun.runner.build import build_cell, load_data
from dbnrun.runner.execute import run_all
from dbnrun.runs import layout, metrics
from dbnrun.runs.checkpoint import position_of
from dbnrun.runs.lock import Lease
from dbnrun.train import evaluate as evaluate_module
from dbnrun.train import loop

QUICK = ["norm=dbn", "schedule=harmonic", "train.epochs=3", "train.limit_batches=4", "device=cpu", "progress=false"]


@pytest.fixture(autouse=True)
def unnoted(monkeypatch):
    """No signal is noted before the test, nor after it."""
    monkeypatch.setattr(interrupt, "_noted_at", None)


def config(results, *more):
    return composed([*QUICK, f'results_dir="{results}"', *more])


def numbers(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in metrics.TIME_COLUMNS} for row in csv.DictReader(file)]


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_a_signal_raises_nothing_where_it_falls_and_is_seen_at_the_next_look(number):
    before = signal.getsignal(number)
    with interrupt.noting():
        send(number)
        assert interrupt.noted()
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
        with pytest.raises(KeyboardInterrupt):  # swallowed once, it is seen again
            interrupt.check()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("seconds", "exits"), [(0.0, []), (1.0, [130])])
def test_a_second_signal_ends_the_process_at_once_unless_it_is_the_first_ones_echo(monkeypatch, capfd, seconds, exits):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(interrupt, "_noted_at", time.monotonic() - seconds)
    with interrupt.noting():
        send()
    assert ended == exits and capfd.readouterr().err.count("\n") == len(exits)


def test_work_that_does_not_look_is_interrupted_where_it_is_and_at_once_by_what_was_noted_before():
    with interrupt.noting():
        with pytest.raises(KeyboardInterrupt), interrupt.raising():
            send()
        assert not interrupt.noted()
        send()
        with pytest.raises(KeyboardInterrupt), interrupt.raising():
            pytest.fail("entered")


def test_a_verb_is_interrupted_where_it_is(monkeypatch, capsys):
    monkeypatch.setitem(cli.VERBS, "status", cli.Verb(lambda _: (send(), pytest.fail("went on"))))
    assert cli.main(["status"]) == interrupt.EXIT_CODE == 130
    assert capsys.readouterr().err.startswith("dbnrun: interrupted")


@pytest.mark.parametrize(("launcher", "seen"), [({}, []), ({"inner": None}, ["launched"])], ids=["other", "fused"])
def test_waiting_for_another_launchers_jobs_is_interrupted_and_training_here_is_not(launcher, seen):
    launched = []
    sweeper = sweeper_module.CellSweeper()
    sweeper.master = OmegaConf.create({"hydra": {"launcher": launcher}})
    sweeper.runner = SimpleNamespace(launch=lambda *_, **__: (send(), launched.append("launched"), [])[2])
    with interrupt.noting(), contextlib.suppress(KeyboardInterrupt):
        sweeper._launched([])
    assert launched == seen


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interrupt.noting():
            send(signal.SIGHUP)
        assert not interrupt.noted() and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_waiting_for_a_lease_ends_with_a_signal_and_leaves_nothing_behind(tmp_path, monkeypatch):
    holder = Lease(tmp_path)
    holder.take()
    monkeypatch.setattr(time, "sleep", lambda _: send())
    with interrupt.noting(), pytest.raises(KeyboardInterrupt):
        Lease(tmp_path).take(patience=100)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    holder.release()


def at_update(monkeypatch, module, wanted, what):
    """Do `what` inside the wanted update; returns a list that grows by the updates made."""
    step, made = module.Step.__call__, []

    def counting(*given):
        made.append(len(made) + 1)
        step(*given)
        if len(made) == wanted:
            what()

    monkeypatch.setattr(module.Step, "__call__", counting)
    return made


@pytest.mark.parametrize("stack", [False, True], ids=["alone", "stacked"])
@pytest.mark.parametrize(("wanted", "position"), [(1, (0, 1)), (6, (1, 2)), (8, (1, 4))])
def test_training_stops_after_the_very_update_and_goes_on_with_the_next(tmp_path, monkeypatch, stack, wanted, position):
    seeds = (0, 1) if stack else (0,)

    def run(results):
        configs = [config(tmp_path / results, f"seed={seed}") for seed in seeds]
        return [outcome for (outcome,) in run_all([[one] for one in configs])]

    whole = run("whole")
    with monkeypatch.context() as patch:
        made = at_update(patch, loop, wanted, send)
        with interrupt.noting(), pytest.raises(KeyboardInterrupt):
            run("cut")
        assert len(made) == wanted
    for folder in (tmp_path / "cut" / "runs").iterdir():
        assert layout.read_manifest(folder)["status"] == "interrupted" and not (folder / "lock").exists()
        assert position_of(torch.load(folder / "checkpoint.pt", weights_only=True)) == position
    monkeypatch.setattr(interrupt, "_noted_at", None)
    made = at_update(monkeypatch, loop, 0, send)
    again = run("cut")
    assert len(made) == 3 * 4 - wanted
    assert [numbers(one.folder) for one in again] == [numbers(one.folder) for one in whole]


@pytest.mark.parametrize("seeds", [(0,), (0, 1)], ids=["alone", "stacked"])
def test_a_signal_amid_an_evaluation_keeps_the_updates_before_it(tmp_path, monkeypatch, seeds):
    def run(results):
        return [one for (one,) in run_all([[config(tmp_path / results, f"seed={seed}")] for seed in seeds])]

    whole = run("whole")
    evaluate, called = evaluate_module.evaluate, []
    with monkeypatch.context() as patch:
        patch.setattr(
            evaluate_module,
            "evaluate",
            lambda *given: (called.append(1), len(called) == 5 and send(), evaluate(*given))[2],
        )
        with interrupt.noting(), pytest.raises(KeyboardInterrupt):
            run("cut")
    positions = {position_of(torch.load(path, weights_only=True)) for path in tmp_path.glob("cut/runs/*/checkpoint.pt")}
    assert positions == {(1, 4) if len(seeds) == 1 else (0, 4)}  # the fifth evaluation: of epoch 2, or of run 2
    monkeypatch.setattr(interrupt, "_noted_at", None)
    made = at_update(monkeypatch, loop, 0, send)
    again = run("cut")
    assert len(made) == (4 if len(seeds) == 1 else 8)
    assert [numbers(one.folder) for one in again] == [numbers(one.folder) for one in whole]


def test_an_error_that_a_signal_has_caused_is_an_interrupt_and_no_fault_of_the_cell(tmp_path, monkeypatch):
    def killed():
        send(signal.SIGINT)
        raise RuntimeError("the compiler was ended by Ctrl-C, as all of its process group")

    at_update(monkeypatch, loop, 2, killed)
    with interrupt.noting(), pytest.raises(KeyboardInterrupt):
        execute.run(config(tmp_path))
    (folder,) = (tmp_path / "runs").iterdir()
    assert (
        layout.read_manifest(folder)["status"] == "interrupted" and "Traceback" not in (folder / "run.log").read_text()
    )


def test_after_a_signal_no_cell_begins_and_none_is_composed(tmp_path):
    one = config(tmp_path)
    with interrupt.noting():
        send()
        with pytest.raises(KeyboardInterrupt):
            execute.run(one)
        with pytest.raises(KeyboardInterrupt):
            plan.asked(["seed=0,1"])
        with pytest.raises(KeyboardInterrupt):
            plan.PlannedCell([], one, "0").status()
    assert list(tmp_path.iterdir()) == []


def test_evaluation_and_the_population_pass_stop_before_their_next_batch(tmp_path, monkeypatch):
    one = config(tmp_path)
    data = load_data(one, torch.device("cpu"))
    model = build_cell(one, data, torch.device("cpu")).model.eval()
    seen = []
    prefix = model.prefix
    monkeypatch.setattr(model, "prefix", lambda x: (seen.append(len(x)), send(), prefix(x))[2])
    with interrupt.noting(), pytest.raises(KeyboardInterrupt):
        evaluate_module.evaluate([model], Part(data.train.x, data.train.y), "fp32")
    assert seen == [evaluate_module.EVAL_BATCH]
    monkeypatch.setattr(interrupt, "_noted_at", None)
    with interrupt.noting(), pytest.raises(KeyboardInterrupt):
        evaluate_module.population_moments(model, evaluate_module._batches(data.train, 100, None))
    assert seen == [evaluate_module.EVAL_BATCH, 100]


AMID = """
import os, signal, sys
class Amid:
    def find_spec(self, name, path=None, target=None):
        if name == "argparse":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Amid())
from dbnrun.__main__ import main
sys.exit(main())
"""


def test_the_command_notes_signals_before_it_imports_anything(tmp_path):
    words = [sys.executable, "-c", AMID, "train.epochs=1"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 130 and done.stderr.startswith("dbnrun: interrupted;"), done.stderr
    assert done.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []
