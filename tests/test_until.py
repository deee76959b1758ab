"""The verb `until`: seeds of all methods together, until every comparison is decided at a margin."""

import json
import re
import shlex
from pathlib import Path

import pytest

ASKED = ["--baseline", "norm=bn", "norm=bn,none", "dataset=digits", "threads=1"]
QUICK = ["train.epochs=1", "train.limit_batches=4"]

# Ctrl-C as the third sweep begins.
INTERRUPTED = """
import os, signal
from dbnrun.runner import app
sweeps, train = [], app.run
def run(words):
    sweeps.append(words)
    if len(sweeps) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    train(words)
app.run = run
"""


def decisions(done):
    assert done.returncode == 0, done.stderr
    return {one["label"]: one for one in json.loads(done.stdout)["comparisons"]}


def test_seeds_are_added_until_a_large_difference_shows_and_the_same_command_goes_on(tmp_path, dbnrun):
    page = (Path(__file__).parents[1] / "docs" / "compare.md").read_text()
    (command,) = re.findall(r"^    dbnrun (until .*)$", page, flags=re.MULTILINE)
    words = [*shlex.split(command), "threads=1", "--json"]
    stopped = dbnrun(*words, before=INTERRUPTED)
    assert stopped.returncode == 130 and "2 seeds: 0 of 1 comparison decided" in stopped.stderr, stopped.stderr
    (one,) = decisions(dbnrun(*words)).values()
    assert one["decision"] == "higher" and 3 <= one["decided_at"] == one["n"] < 15 and one["low"] > 0
    runs = list((tmp_path / "results" / "runs").iterdir())
    assert len(runs) == 2 * one["n"]
    again = dbnrun(*words)
    assert decisions(again) == {one["label"]: one} and " to train" in again.stderr and "[1/" not in again.stderr


def test_a_margin_wide_enough_ends_in_no_relevant_difference_and_too_few_seeds_in_none(dbnrun):
    words = ["until", *ASKED, *QUICK, "--max-seeds", "3"]
    narrow = dbnrun(*words, "--margin", "0")
    assert "not decided: too few seeds for an interval" in narrow.stdout and "inf]" not in narrow.stdout
    assert "97.5 %" not in narrow.stdout and "95 %" in narrow.stdout, narrow.stdout
    wide = dbnrun(*words, "--margin", "1000", "--max-seeds", "8")
    assert "no relevant difference, decided at" in wide.stdout, wide.stdout


def test_a_method_that_diverges_does_not_keep_the_others_from_a_decision(dbnrun):
    sgd = ["optimizer=sgd", "optimizer.lr=0.01,1e30", "norm=none"]
    words = ["until", *sgd, "--baseline", "norm=bn optimizer.lr=0.01", "norm=none,bn", *QUICK, "threads=1"]
    done = dbnrun(*words, "--margin", "1000", "--max-seeds", "6", "--json")
    assert done.returncode == 1 and "their pairs are left out" in done.stderr, done.stderr
    found = {one["label"]: one for one in json.loads(done.stdout, parse_constant=lambda text: 1 / 0)["comparisons"]}
    assert sorted(one["decision"] or "" for one in found.values())[-1] == "no relevant difference"
    assert any(one["n"] == 0 and one["difference"] is None for one in found.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--baseline", "norm=bn", "norm=bn,ln"], "--margin"),
        (["--baseline", "norm=bn", "--margin", "-1", "norm=bn,ln"], "--margin -1: expected a number of at least 0"),
        (["--baseline", "norm=gn", "--margin", "1", "norm=bn,ln"], "expected one of the methods that are trained"),
        (["--baseline", "norm=bn", "--margin", "1", "norm=bn"], "and another one to compare"),
        (["--baseline", "norm=bn", "--margin", "1", "norm=bn,ln", "seed=0,1"], "seed=0,1: `until` chooses the seeds"),
        (["--baseline", "norm=bn", "--margin", "1", "--max-seeds", "1", "norm=bn,ln"], "--max-seeds 1"),
        (["--baseline", "norm=bnn", "--margin", "1", "norm=bn,ln"], "expected one of"),
        (["--baseline", "norm=bn train.epochs=1", "--margin", "1", "norm=bn,ln", "train.epochs=1,2"], "other batches"),
        (["--baseline", "norm=bn", "--margin", "1", "norm=bn,lnn"], "Did you mean 'ln'?"),
        (["--baseline", "norm=bn", "--margin", "1", "norm=bn,ln", "--metric", "error"], "--metric=error"),
        (["--baseline", "norm=bn", "--margin", "1", "norm=bn,ln", "force=true"], "force=true: `until` comes back"),
    ],
)
def test_what_cannot_be_compared_is_one_line_before_anything_is_trained(tmp_path, dbnrun, words, said):
    done = dbnrun("until", *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert not (tmp_path / "results").exists()
