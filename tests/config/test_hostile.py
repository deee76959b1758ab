"""Whatever is typed, or stands in a file that others can write: one line, no traceback, nothing half-written."""

import contextlib
import io
import json
import string

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dbnrun.cli import main
from dbnrun.config.registry import UserError, files
from dbnrun.config.schema import known_keys
from dbnrun.norm.dbn import DiminishingBatchNorm
from dbnrun.runner import plan
from dbnrun.runs import lock as lock_module
from dbnrun.runs import status
from dbnrun.runs.metrics import COLUMNS, csv_text, read_rows

SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
WORDS = st.text(string.ascii_letters + string.digits + "_.-:äß€∑", min_size=1, max_size=12)
ANY_TEXT = st.text(max_size=30).filter(lambda text: "\0" not in text)

# For each key, values that it cannot take.
NOT_A_NUMBER = st.sampled_from(["nan", "inf", "-inf", "abc", "[1,2]", "{a: 1}", "true", "''", "1e", "0x"])
BELOW_ZERO = st.floats(-1e30, -1e-30).map(repr)
WRONG = {
    "seed": st.one_of(NOT_A_NUMBER, st.integers(max_value=-1).map(str), st.integers(2**63, 2**80).map(str), BELOW_ZERO),
    "train.epochs": st.one_of(NOT_A_NUMBER, st.integers(max_value=0).map(str), st.sampled_from(["1.5", "1e3.2"])),
    "train.batch_size": st.one_of(NOT_A_NUMBER, st.integers(max_value=1).map(str)),
    "train.limit_batches": st.one_of(NOT_A_NUMBER, st.integers(max_value=0).map(str)),
    "train.eval_every": st.one_of(NOT_A_NUMBER, st.integers(max_value=0).map(str)),
    "train.limit_eval": st.one_of(NOT_A_NUMBER, st.integers(max_value=99).map(str)),
    "optimizer.lr": st.one_of(st.sampled_from(["nan", "inf", "abc", "[1]", "{a: 1}"]), BELOW_ZERO),
    "schedule.alpha": st.one_of(
        st.sampled_from(["nan", "inf", "abc", "[1]"]), BELOW_ZERO, st.floats(1.0001, 1e30).map(repr)
    ),
    "norm.eps": st.one_of(st.sampled_from(["nan", "inf", "abc", "0", "2"]), BELOW_ZERO),
    "norm.momentum": st.one_of(st.sampled_from(["nan", "abc", "1.5"]), BELOW_ZERO),
    "model.widths": st.sampled_from(["[]", "[0]", "[-3,2]", "[a]", "{a: 1}", "abc", "[1.5]", "[100000]"]),
    "model.activation": WORDS.filter(lambda word: word not in ("relu", "tanh", "elu", "gelu", "sigmoid", "identity")),
    "dataset.val_size": st.one_of(st.sampled_from(["nan", "0", "abc", "1.5", "[1]"]), BELOW_ZERO),
    "checkpoint.minutes": st.one_of(st.sampled_from(["nan", "abc", "inf"]), BELOW_ZERO),
    "threads": st.one_of(NOT_A_NUMBER.filter(lambda text: text != "''"), st.integers(max_value=0).map(str)),
    "precision": WORDS.filter(lambda word: word not in ("fp32", "tf32", "bf16")),
    "device": WORDS.filter(lambda word: word not in ("auto", "cpu", "cuda")),
    "deterministic": st.sampled_from(["maybe", "2", "[true]", "nan"]),
    "retry": WORDS.filter(lambda word: word not in ("failed", "null")),
    "fail_fast": st.sampled_from(["maybe", "[true]", "nan"]),
}
CHOICES = files()


def typed(*words):
    """Exit code, and what the command wrote to stderr; no exception may come out."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(words))
        except SystemExit as exit:
            code = exit.code
    return code, err.getvalue()


def assert_refused(words, folder):
    code, said = typed(*words)
    assert code == 2, (words, code, said)
    assert said.startswith("dbnrun") and said.count("\n") == 1 and "Traceback" not in said, (words, said)
    assert list(folder.iterdir()) == []


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DBNRUN_RESULTS", str(tmp_path / "results"))
    return tmp_path


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=SHARED)
@given(wrong=st.sampled_from(sorted(WRONG)).flatmap(lambda key: st.tuples(st.just(key), WRONG[key])))
def test_a_value_that_a_key_cannot_take_is_refused_in_one_line(empty, wrong):
    key, value = wrong
    assert_refused(["plan", f"{key}={value}"], empty)


@settings(max_examples=60, deadline=None, suppress_health_check=SHARED)
@given(key=WORDS, value=WORDS)
def test_a_key_that_does_not_exist_is_refused_in_one_line(empty, key, value):
    assume(key not in known_keys() and key not in CHOICES and "." not in key.strip("."))
    assert_refused(["plan", f"{key}={value}"], empty)


@settings(max_examples=60, deadline=None, suppress_health_check=SHARED)
@given(group=st.sampled_from(sorted(CHOICES)), name=WORDS)
def test_a_choice_that_does_not_exist_is_refused_in_one_line(empty, group, name):
    assume(name not in CHOICES[group])
    assert_refused(["plan", f"{group}={name}"], empty)


@settings(max_examples=150, deadline=None, suppress_health_check=SHARED)
@given(words=st.lists(ANY_TEXT, min_size=1, max_size=3))
def test_whatever_is_typed_ends_in_an_answer_or_one_line(empty, words):
    assume(not any(word.startswith(("-", "hydra")) for word in words))
    code, said = typed("plan", *words)
    assert code in (0, 2), (words, said)
    assert code == 0 or (said.startswith("dbnrun") and said.count("\n") == 1), (words, said)
    assert not (empty / "results").exists()


@settings(max_examples=100, deadline=None)
@given(alpha=st.one_of(st.floats(), st.integers(), st.none(), st.text("abc[,", max_size=5)))
def test_a_schedule_outside_its_range_is_refused_when_the_layer_is_made(alpha):
    assume(not (isinstance(alpha, int | float) and 0 <= alpha <= 1))
    for schedule in (alpha, lambda m: alpha):
        with pytest.raises((ValueError, TypeError)):
            DiminishingBatchNorm(2, schedule)


NUMBERS = st.lists(st.floats() | st.integers(), min_size=15, max_size=15).map(lambda row: ",".join(map(repr, row)))


@settings(max_examples=200, deadline=None, suppress_health_check=SHARED)
@given(lines=st.lists(st.text(max_size=60) | NUMBERS, max_size=4), header=st.booleans())
def test_any_metrics_file_is_read_or_refused_in_one_line(tmp_path, lines, header):
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join([",".join(COLUMNS)] * header + lines) + "\n", errors="surrogatepass")
    try:
        rows = read_rows(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        text = csv_text(rows)
        path.write_text(text)
        assert csv_text(read_rows(path)) == text  # as text, in which NaN equals itself


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
MANIFESTS = st.dictionaries(st.sampled_from(["status", "results_version", "error", "wall_seconds"]), JSON) | JSON


@settings(max_examples=150, deadline=None, suppress_health_check=SHARED)
@given(manifest=MANIFESTS.map(json.dumps) | st.text(max_size=40), lock=MANIFESTS.map(json.dumps) | st.text(max_size=40))
def test_any_manifest_and_lock_are_read_as_some_standing(tmp_path, manifest, lock):
    (tmp_path / "manifest.json").write_text(manifest, errors="replace")
    (tmp_path / "lock").write_text(lock, errors="replace")
    assert status.status_of(tmp_path, "digits").name in status.STATUSES
    assert lock_module.live_holder(tmp_path) is None


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code of a checkpoint ran",))


def test_no_code_of_a_checkpoint_is_run(empty):
    words = ["train.epochs=2", "train.limit_batches=2", "progress=false"]
    assert typed("plan", *words)[0] == 0
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(["plan", "--json", *words])
    folder = empty / json.loads(out.getvalue())["cells"][0]["folder"]
    folder.mkdir(parents=True)
    torch.save({"epoch": 0, "model": _Bomb()}, folder / "checkpoint.pt")
    from dbnrun.runs.run_dir import RunDir

    with RunDir(plan.asked(words).cells[0].config) as run_dir:
        assert run_dir.position == (0, 0)
    assert list(folder.glob("checkpoint.set-aside-1.pt"))
