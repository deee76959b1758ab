"""Tables of a user's own: features, classes and split against pandas and scikit-learn; what is refused; the command."""

import csv
import hashlib
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from dbnrun.config import registry
from dbnrun.config.identity import cell_of
from dbnrun.config.registry import UserError
from dbnrun.runs import archive

N = 150


def flowers(seed=0):
    """A sorted table, as that of the irises is: three kinds, numbers, a text, a flag, and a column that is constant."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(["setosa", "versicolor", "virginica"], N // 3)
    size = {"setosa": 0.0, "versicolor": 2.0, "virginica": 4.0}
    return pd.DataFrame(
        {
            "petal length": rng.normal([size[k] for k in kind], 0.5).round(3),
            "color": rng.choice(["red", "blue", "green"], N),
            "count": rng.integers(10**9, 10**9 + 50, N),  # float32 could not tell these apart
            "wild": rng.random(N) < 0.3,
            "always": 0.1,
            "kind": kind,
        }
    )


@pytest.fixture
def table(tmp_path):
    """Write a frame to a file, and describe it as a data set; of text, write just that."""

    def make(frame, name="a table.csv", **changes):
        path = tmp_path / name
        if isinstance(frame, str):
            path.write_text(frame, errors="surrogateescape")
        elif path.suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False)
        return registry.make("dataset", "table", **{"val_size": 0.1, "path": str(path), "label": "kind", **changes})

    return make


@pytest.fixture
def load(table, tmp_path):
    return lambda frame, **changes: table(frame, **changes).load(tmp_path / "data")


def parts_of(frame, val_size=0.1, test_size=0.2):
    """The three parts of a frame, drawn as README and conf/ say: the test part first, each in the file's order."""

    def drawn(rows, share):
        order = np.random.default_rng(170508011).permutation(len(rows))
        count = round(share * len(rows))
        return rows[np.sort(order[count:])], rows[np.sort(order[:count])]

    rest, test = drawn(np.arange(len(frame)), test_size)
    train, val = drawn(rest, val_size)
    return frame.iloc[train], frame.iloc[val], frame.iloc[test]


def test_features_and_classes_equal_those_of_scikit_learn(load, capsys):
    frame = flowers()
    data = load(frame)
    numeric, words = ["petal length", "count"], ["color", "wild"]
    train = parts_of(frame)[0]
    scaler = StandardScaler().fit(train[numeric].to_numpy())
    encoder = OneHotEncoder(sparse_output=False).fit(train[words].astype(str).to_numpy())
    for part, records in zip((data.train, data.val, data.test), parts_of(frame), strict=True):
        scaled = scaler.transform(records[numeric].to_numpy())
        constant = np.zeros((len(records), 1))
        encoded = encoder.transform(records[words].astype(str).to_numpy())
        # float32 of numbers worked out in float64.
        np.testing.assert_allclose(part.x.numpy(), np.hstack([scaled, constant, encoded]), rtol=1e-6, atol=1e-6)
        assert part.x.dtype == torch.float32 and part.y.dtype == torch.int64
        assert part.y.tolist() == [["setosa", "versicolor", "virginica"].index(kind) for kind in records["kind"]]
    assert data.input_shape == (2 + 1 + 3 + 2,) and data.num_classes == 3
    assert "column 'always'" in capsys.readouterr().err


def test_the_population_pass_takes_a_sorted_table_in_mixed_order(load):
    data = load(flowers())
    assert sorted(data.shuffle_order.tolist()) == list(range(len(data.train)))
    assert len(data.train.y[data.shuffle_order][:20].unique()) == 3 > len(data.train.y[:20].unique())


def test_labels_of_numbers_are_classes_in_the_order_of_the_numbers(load):
    frame = flowers().assign(kind=lambda f: f["kind"].map({"setosa": 10, "versicolor": -1, "virginica": 9}))
    data = load(frame)
    assert [[-1, 9, 10][y] for y in data.train.y] == parts_of(frame)[0]["kind"].tolist()


def test_a_second_file_is_the_test_part_and_is_encoded_as_the_first(load, table, tmp_path):
    frame = flowers()
    frame["zip"] = frame["color"].map({"red": "007", "blue": "A12", "green": "12"})
    other = frame.iloc[[5, 70, 140]].assign(color=["red", "violet", "blue"], zip=["007", "12", "12"])[
        frame.columns[::-1]
    ]
    table(other, "second.csv")  # its zip has digits alone, and its columns lie the other way round
    data = load(frame, test_path=str(tmp_path / "second.csv"), test_size=0.5)
    assert (len(data.train), len(data.val), len(data.test)) == (135, 15, 3)
    assert data.test.y.tolist() == [0, 1, 2]
    colors, zips = data.test.x[:, 3:6], data.test.x[:, 8:11]
    assert colors.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]  # blue, green, red; violet is none of them
    assert zips.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]  # 007, 12, A12


def test_missing_values_are_refused_by_name_or_filled_with_the_training_mean_and_zeros(load):
    frame = flowers()
    frame.loc[[7, 30, 31], "petal length"] = np.nan
    frame.loc[[40, 41], "color"] = None
    with pytest.raises(
        UserError, match=r"a table\.csv: column 'petal length' in row 8 below the header is empty; .*mean"
    ):
        load(frame)
    data = load(frame, missing="mean")
    for part, records in zip((data.train, data.val, data.test), parts_of(frame), strict=True):
        filled = records["petal length"].fillna(parts_of(frame)[0]["petal length"].mean())
        scaler = StandardScaler().fit(parts_of(frame)[0][["petal length"]].to_numpy())
        np.testing.assert_allclose(part.x[:, 0], scaler.transform(filled.to_numpy()[:, None])[:, 0], atol=1e-6)
        empty = records["color"].isna().to_numpy()
        assert (part.x[:, 3:6].sum(1) == 0).tolist() == empty.tolist()


def test_parquet_gives_the_same_as_csv(load):
    pytest.importorskip("pyarrow")
    frame = flowers()
    for made in (frame, frame.astype({"color": "category", "kind": "category"})):
        one, two = load(frame), load(made, name="table.parquet")
        for part in ("train", "val", "test"):
            assert torch.equal(getattr(one, part).x, getattr(two, part).x)
            assert torch.equal(getattr(one, part).y, getattr(two, part).y)
    with pytest.raises(UserError, match=r"lists\.parquet: column 'kind' holds labels that have no order"):
        load(frame.assign(kind=[[1], [2]] * (N // 2)), name="lists.parquet")
    with pytest.raises(UserError, match=r"when\.parquet: column 'when' is datetime64"):
        load(frame.assign(when=pd.Timestamp("2026-01-01")), name="when.parquet")


def test_parquet_without_pyarrow_is_refused_with_what_to_install(table, monkeypatch, tmp_path):
    monkeypatch.setattr("dbnrun.data.table.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"x\.parquet: .*pip install 'dbnrun\[parquet\]'"):
        table("", "x.csv", path=str(shutil.copy(__file__, tmp_path / "x.parquet"))).load(tmp_path)


def test_the_digest_is_of_the_bytes_and_not_of_the_path(table, tmp_path):
    one = table(flowers()).digest_in(tmp_path)
    path = tmp_path / "a table.csv"
    assert one == hashlib.sha256(path.read_bytes()).hexdigest()
    assert table(flowers(), "other=name.csv").digest_in(tmp_path) == one
    path.write_bytes(path.read_bytes().replace(b"red", b"blue", 1))
    changed = registry.make("dataset", "table", val_size=0.1, path=str(path), label="kind")
    assert changed.digest_in(tmp_path) == hashlib.sha256(path.read_bytes()).hexdigest() != one
    both = registry.make("dataset", "table", val_size=0.1, path=str(path), label="kind", test_path=str(path))
    assert both.digest_in(tmp_path) not in (one, changed.digest_in(tmp_path))


def test_a_plan_of_many_cells_reads_the_table_once(table, tmp_path, monkeypatch):
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda stream, kind: read.append(stream) or digest(stream, kind))
    config = table(flowers(seed=1))
    assert len({config.digest_in(tmp_path) for _ in range(5)}) == len(read) == 1


def test_a_cell_has_the_options_that_decide_numbers_and_no_path(composed):
    path = ["dataset=table", "dataset.label=kind", 'dataset.path="/some where/x.csv"']
    cell = cell_of(composed(*path))["dataset"]
    assert cell == {"name": "table", "label": "kind", "val_size": 0.1, "test_size": 0.2, "missing": "refuse"}
    second = cell_of(composed(*path, "dataset.test_path=y.csv"))["dataset"]
    assert second == {"name": "table", "label": "kind", "val_size": 0.1, "missing": "refuse"}


BASE = "a,kind\n" + "1,x\n2,y\n" * 20
WRONG = {
    "an empty file": ("", {}, r"t\.csv: is empty"),
    "a header alone": ("a,kind\n", {}, r"t\.csv: has a header and no records"),
    "no such label column": (BASE, {"label": "kin"}, r"dataset\.label=kin: .*t\.csv has no such column.*'kind'"),
    "a label that is missing": (BASE + "3,\n", {"missing": "mean"}, r"t\.csv: column 'kind' in row 41 .* is empty"),
    "a line that is too long": (BASE + "3,x,4\n", {}, r"t\.csv: line 42 has 3 fields; expected 2"),
    "lines that are all too long": ("a,kind\n" + "1,x,3\n" * 9, {}, r"t\.csv: line 2 has 3 fields; expected 2"),
    "a line that is too short": (BASE + "3\n", {"missing": "mean"}, r"t\.csv: line 42 has 1 fields; expected 2"),
    "an open quote": (BASE + '"3,x\n', {}, r"t\.csv: line 42 has 1 fields; expected 2"),
    "bytes that are no UTF-8": ("a,kind\n1,\udcff\n", {}, r"t\.csv: cannot be read as CSV \(.*utf-8.*\)"),
    "two columns of one name": ("a,a,kind\n1,2,x\n", {}, r"t\.csv: has two columns named 'a'"),
    "no feature": ("kind\nx\ny\n" * 5, {}, r"t\.csv: expected columns of features beside"),
    "an infinite number": (BASE + "inf,x\n", {}, r"t\.csv: column 'a' in row 41 .* is infinite"),
    "numbers that overflow": (BASE + "1e300,x\n-1e300,y\n" * 40, {}, r"t\.csv: column 'a' has numbers too large"),
    "too few records": ("a,kind\n1,x\n2,y\n", {"test_size": 1}, r"t\.csv: dataset\.val_size=0\.1: expected at least 1"),
    "a test part that is too large": (BASE, {"test_size": 40}, r"t\.csv: dataset\.test_size=40: expected at least 1"),
    "a validation part that is too large": (
        BASE,
        {"val_size": 32},
        r"t\.csv: dataset\.val_size=32: expected .* the 32",
    ),
    "half a record": (BASE, {"test_size": 1.5}, r"dataset\.test_size=1\.5: expected a share below 1"),
    "no path": (BASE, {"path": ""}, r"dataset\.path: expected the table's file"),
    "no label": (BASE, {"label": ""}, r"dataset\.label: expected the name"),
    "one class": (BASE.replace("y", "x"), {}, r"t\.csv: column 'kind' is x in all the training part; expected two"),
    "a file of another kind": (BASE, {"name": "t.txt"}, r"t\.txt: a file of another kind; expected a \.csv or"),
    "text with too many categories": (
        "a,kind\n" + "".join(f"n{i},{i % 2}\n" for i in range(1500)),
        {},
        r"t\.csv: column 'a' is text with \d+ categories in the training part, such as 'n0'; expected",
    ),
    "too many classes": (
        "a,kind\n" + "".join(f"{i},{i}\n" for i in range(15_000)),
        {},
        r"t\.csv: column 'kind' has 10800 different labels .* at most 10000 classes",
    ),
}


@pytest.mark.parametrize("content, changes, line", WRONG.values(), ids=WRONG)
def test_a_wrong_table_is_refused_in_one_line_that_names_it(load, content, changes, line):
    with pytest.raises(UserError, match=line) as refused:
        load(content, **{"name": "t.csv", **changes})
    assert "\n" not in str(refused.value)


SECOND = {
    "a label of its own": (
        BASE.replace("y", "z"),
        r"s\.csv: the training part has no record with label z in .*'kind'",
    ),
    "other columns": (BASE.replace("a,", "b,"), r"t\.csv: has no column 'b', which .*s\.csv has"),
    "text for numbers": (BASE.replace("1,", "one,"), r"s\.csv: column 'a' holds text, and numbers in .*t\.csv"),
}


@pytest.mark.parametrize("content, line", SECOND.values(), ids=SECOND)
def test_a_second_file_that_does_not_fit_is_refused(load, table, content, line, tmp_path):
    table(content, "s.csv")
    with pytest.raises(UserError, match=line):
        load(BASE, name="t.csv", test_path=str(tmp_path / "s.csv"))


def test_a_label_that_only_the_test_part_has_is_refused(load):
    frame = flowers()
    frame.loc[parts_of(frame)[2].index[0], "kind"] = "tulip"
    with pytest.raises(UserError, match=r"the training part has no record with label tulip"):
        load(frame)


@pytest.mark.parametrize(
    "typed, line",
    [
        (['dataset.path="no such.csv"', "dataset.label=kind"], r"dataset\.path=no such\.csv: there is no such file"),
        (["dataset.path=.", "dataset.label=kind"], r"dataset\.path=\.: this is a folder"),
        (["dataset.path=t.csv", "dataset.label=kint"], r"dataset\.label=kint: t\.csv has no .* Did you mean 'kind'\?"),
        (["dataset.path=t.csv", "dataset.label=kind"], r"train\.batch_size=100: dataset table has 29 training records"),
    ],
)
def test_the_command_refuses_with_one_line_and_records_nothing(dbnrun, tmp_path, typed, line):
    (tmp_path / "t.csv").write_text(BASE)
    done = dbnrun("dataset=table", *typed, "progress=false")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.search(line, done.stderr), done.stderr
    assert not list(tmp_path.glob("results/runs/*"))


def test_a_sweep_is_refused_before_the_first_cell_where_the_table_of_the_last_one_cannot_be_used(dbnrun, tmp_path):
    (tmp_path / "t.csv").write_text(BASE)
    typed = ["dataset=table", "dataset.path=t.csv", "dataset.label=kind,kint", "seed=0,1", "train.batch_size=10"]
    done = dbnrun("-m", *typed, "progress=false")
    said = done.stderr.splitlines()
    assert done.returncode == 2 and said[0].startswith("4 runs: 4 to train") and len(said) == 2, done.stderr
    assert "dataset.label=kint: t.csv has no" in said[1] and not (tmp_path / "results").exists()


STOP_AFTER_AN_EPOCH = """
from dbnrun.runs import run_dir
kept = run_dir.RunDir.checkpoint
def checkpoint(self, state):
    kept(self, state)
    raise KeyboardInterrupt
run_dir.RunDir.checkpoint = checkpoint
"""


def test_a_table_is_planned_trained_resumed_and_reported(dbnrun, tmp_path):
    flowers().to_csv(tmp_path / "my flowers.csv", index=False)
    shutil.copy(tmp_path / "my flowers.csv", tmp_path / "copy.csv")
    cell = ["dataset=table", "dataset.label=kind", "train.epochs=3", "train.batch_size=20", "progress=false"]
    here = [*cell, 'dataset.path="my flowers.csv"']
    planned = dbnrun("plan", *here, "seed=0,1")
    assert planned.returncode == 0 and "2 runs" in planned.stdout and "missing data" not in planned.stdout
    assert dbnrun(*here, before=STOP_AFTER_AN_EPOCH).returncode == 130
    (folder,) = tmp_path.glob("results/runs/table-fnn-bn-seed0-*")
    assert len(rows(folder)) == 1
    assert dbnrun(*here).returncode == 0
    assert dbnrun(*cell, "dataset.path=copy.csv", "results_dir=whole").returncode == 0
    assert rows(folder) == rows(tmp_path / "whole" / "runs" / folder.name) and len(rows(folder)) == 3
    assert float(rows(folder)[-1]["test_error_pct_population"]) < 20  # the kinds lie four deviations apart
    assert json.loads((folder / "manifest.json").read_text())["test_records"] == N // 5
    report = dbnrun("report", "results")
    assert report.returncode == 0 and "BN" in report.stdout, report.stderr


def test_a_record_of_a_run_names_no_path_of_its_table():
    typed = ["dataset=table", "dataset.path=/home/me/x.csv", "dataset.test_path=/home/me/y.csv", "dataset.label=kind"]
    assert archive._own({"command": ["/bin/dbnrun", *typed]})["command"] == ["dbnrun", typed[0], typed[3]]


def rows(folder):
    """The rows of a run, but for its times."""
    with (folder / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in csv.DictReader(file)]
