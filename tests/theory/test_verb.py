"""`dbnrun theory` as a user meets it, and its records and figures."""

import csv
import json

import numpy as np
import pytest

from dbnrun.config.registry import UserError
from dbnrun.theory import cell, figures, rows
from dbnrun.theory.settings import ACTIVATION_NOTES

RUN = ["theory", "run", "--iterations", "300", "--examples", "60", "--threads", "1"]
WRONG = [
    (["theory"], "check|run|figures"),
    (["theory", "chekc"], "chekc"),
    (["theory", "check", "--h", "2"], "no eta: expected --eta TEXT or --k K"),
    (["theory", "check", "--k", "1"], "no alpha: expected --alpha TEXT or --h H"),
    (["theory", "check", "--h", "two", "--k", "1"], "--h: 'two': expected a number"),
    (["theory", "check", "--h", "1,2", "--k", "1"], "2 alphas and 1 etas"),
    (["theory", "check", "--h", "2", "--k", "1", "--alpha0", "2"], "above 1 at m = 1; expected a number in [0, 1]"),
    (["theory", "check", "--alpha", "sin(m)", "--k", "1"], "alpha 'sin(m)': expected c*m**-p*log(m + 2)**-q"),
    (["theory", "check", "--alpha", "1/m", "--eta=-1/m"], "c of at least 0"),
    (["theory", "check", "--h=-0.5", "--k", "1"], "alpha 'm**0.5': a factor grows with m"),
    ([*RUN, "--h", "2", "--k", "1", "--data", "regression"], "use --loss mse"),
    ([*RUN, "--h", "2", "--k", "1", "--examples", "99999"], "digits has 1197 training examples"),
    ([*RUN, "--h", "2", "--k", "1", "--activation", "gelu"], "invalid choice: 'gelu'"),
    ([*RUN, "--h", "2", "--k", "1", "--eps", "0"], "expected a number above 0"),
    ([*RUN, "--h", "2", "--k", "1", "--iterations", "0"], "whole number from 1"),
    ([*RUN, "--h", "2", "--k", "1", "--seed", "one"], "expected a whole number from 0"),
    ([*RUN, "--h", "2,3", "--k", "1", "--zip"], "2 alphas and 1 etas"),
    ([*RUN, "--h", "2", "--k", "1", "--seed", "9" * 30], "from 0 to 9223372036854775807"),
    ([*RUN, "--h", "2", "--k", "1", "--seed", "0" * 20 + "9" * 30], "from 0 to 9223372036854775807"),
    ([*RUN, "--h", "2", "--k", "1", "--data-seed", "-1"], "from 0 to 9223372036854775807"),
    ([*RUN, "--h", "2", "--k", "1", "--width", "10000000"], "hidden values at once"),
    ([*RUN, "--h", "2", "--k", "1", "--out", "x.json"], "ends in .csv"),
    ([*RUN, "--h", "2", "--k", "1", "--out", "/proc/no/x.csv"], "/proc/no"),
    (["theory", "figures", "nowhere"], "no CSV here"),
]


@pytest.mark.parametrize(("words", "line"), WRONG, ids=range(len(WRONG)))
def test_a_mistake_is_one_line_and_exit_code_2(words, line, capsys):
    from dbnrun.cli import main

    try:
        code = main(words)
    except SystemExit as refused:  # argparse's way
        code = refused.code
    printed = capsys.readouterr()
    assert code == 2
    assert line in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_check_prints_a_table_and_as_json_the_same_verdicts(capsys):
    from dbnrun.cli import main

    assert main(["theory", "check", "--h", "2.5", "--k", "0.75"]) == 0
    table = capsys.readouterr().out
    assert "Theorem 11    holds" in table
    assert "outside  paper, Lemma 8: h > 2 and k ≥ 1" in table
    assert "inside   worked out" in table
    assert main(["theory", "check", "--h", "2.5", "--k", "0.75", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {theorem["name"]: theorem["verdict"] for theorem in report["theorems"]}["Theorem 11"] == "holds"
    assert (report["h"], report["k"]) == ("5/2", "3/4")


def test_a_grid_is_recorded_and_drawn(dbnrun, tmp_path):
    grid = ["--h", "0,1,2.5", "--alpha", "0", "--k", "0.5,0.75,1", "--per-decade", "10", "--out", "records/grid.csv"]
    done = dbnrun(*RUN, *grid)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "records" / "grid.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == rows.COLUMNS
    assert len({(line["alpha"], line["eta"]) for line in lines}) == 12
    settings = json.loads((tmp_path / "records" / "grid.json").read_text())
    assert settings["command"].startswith("dbnrun theory run --iterations 300 --examples 60")
    assert (settings["records"], settings["reached"], settings["box"]) == (60, 300, None)
    drawn = dbnrun("theory", "figures", "records", "--out", "drawn")
    assert drawn.stdout.split() == ["drawn/grid.png"], drawn.stderr


def test_pairs_one_by_one_with_several_seeds_are_drawn_as_curves(dbnrun, tmp_path):
    pairs = ["--zip", "--h", "2.5,1", "--alpha", "1,0", "--k", "1,0.75,0.75", "--eta", "0.01", "--seed", "0,1"]
    assert dbnrun(*RUN, *pairs, "--out", "r/some.csv").returncode == 0
    curves, _ = rows.read(tmp_path / "r" / "some.csv")
    assert len(curves) == 8
    (once,) = figures.draw(tmp_path / "r", tmp_path / "out")
    first = once.read_bytes()
    pairs[-1] = "3"
    assert dbnrun(*RUN, *pairs, "--out", "r/alone.csv").returncode == 0
    drawn = figures.draw(tmp_path / "r", tmp_path / "out")
    assert [path.name for path in drawn] == [*(f"alone-{name}.png" for name in figures.QUANTITIES), "some-gradient.png"]
    assert drawn[-1].read_bytes() == first


def test_a_sequence_that_is_no_pure_power_is_named_as_it_was_typed(dbnrun, tmp_path):
    alphas = ["--h", "1", "--alpha", "0.5/m,m**-1*log(m+2)**-2,0.1"]
    etas = ["--k", "0.6,1", "--eta", "0.001/m*log(m+2)**-1"]
    assert dbnrun(*RUN, *alphas, *etas, "--out", "r/some.csv").returncode == 0
    pairs = [figures._pair(curve) for curve in rows.read(tmp_path / "r" / "some.csv")[0]]
    names = list(dict.fromkeys(pair.label.rpartition(", ")[0] for pair in pairs))
    assert names == ["h = 1", "α = 0.5/m", "α = m**-1*log(m+2)**-2", "α ≡ 0.1"]
    assert figures.draw(tmp_path / "r", tmp_path / "out")  # an eta that is no power makes curves, not a map


@pytest.mark.parametrize("activation", ACTIVATION_NOTES)
def test_every_activation_trains_on_the_made_regression(activation, capsys):
    from dbnrun.cli import main

    words = ["--activation", activation, "--data", "regression", "--loss", "mse", "--init", "0,1", "--box", "10"]
    assert main([*RUN, "--h", "2.5", "--k", "0.75", *words]) == 0
    assert "nan" not in capsys.readouterr().out


@pytest.mark.parametrize("record", ["digits_pairs", "digits_seeds"])
def test_on_digits_inside_the_region_the_recorded_gradient_falls_a_hundredfold_for_k_below_one(record, real_records):
    """At k = 1 it fell 125, 83 and 62 times in three seeds: sum eta is log m (docs/theory.md)."""
    curves, settings = real_records(record)
    assert (settings["data"], settings["activation"], settings["reached"]) == ("digits", "tanh", 100_000)
    inside = [c for c in curves if c.alpha == "m**-2.5" and not c.eta.endswith("m**-1")]
    assert len(inside) == 3 * len({c.seed for c in curves})
    for curve in inside:
        assert curve.first_decade("grad_sq") > 100 * curve.last_decade("grad_sq")


def test_in_a_short_run_inside_the_region_the_gradient_falls(dbnrun, tmp_path):
    """The claim of the committed record in small: a subset, 5,000 iterations, tenfold."""
    words = ["theory", "run", "--h", "2.5", "--k", "0.6", "--records", "100", "--iterations", "5000", "--threads", "1"]
    assert dbnrun(*words, "--out", "short.csv").returncode == 0
    curve = rows.read(tmp_path / "short.csv")[0][0]
    assert curve.first_decade("grad_sq") > 10 * curve.last_decade("grad_sq")


def test_records_that_are_none_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"x\.csv: expected the CSV and the JSON"):
        figures.draw(tmp_path, tmp_path)


def test_a_slope_is_the_exponent_of_a_power():
    m = np.array([1, 10, 100, 300, 1000], dtype=float)
    curve = rows.Curve(0, "1/m", "1/m", {"m": m, "grad_sq": 7 * m**-1.5})
    assert figures.slope(curve, "grad_sq") == pytest.approx(-1.5)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["norm=dbn", "schedule=harmonic"], "alpha(m) = 1/m: Theorem 7 fails (Σ α = ∞: harmonic series)"),
        (["norm=dbn", "schedule=alpha_0"], "Theorem 7 holds, Lemma 8 holds"),
        (["norm=bn"], "norm=bn has no alpha(m)"),
        (["norm=dbn_inference", "schedule=alpha_0"], "plays no part in it and serves evaluation alone"),
        (["norm=dbn", "norm.train_stats=batch", "schedule=alpha_0"], "the theorem does not apply"),
    ],
)
def test_theory_says_one_line_of_a_cells_schedule(overrides, said, composed):
    line = cell.line(composed(*overrides))
    assert line.startswith("theory: ") and said in line and "\n" not in line


def test_theory_true_says_its_line_before_training_and_changes_no_cell(dbnrun):
    words = ["norm=dbn", "schedule=harmonic", "train.epochs=1", "train.limit_batches=2", "progress=false"]
    done = dbnrun(*words, "theory=true")
    assert done.returncode == 0, done.stderr
    first, *others = done.stderr.splitlines()
    assert first.startswith("theory: ")
    assert not any(line.startswith("theory:") for line in others)
    # A setting, not part of the cell: the same command without it finds the cell finished.
    again = dbnrun(*words)
    assert "done before" in again.stderr


@pytest.fixture
def real_records():
    from pathlib import Path

    folder = Path(__file__).parent.parent.parent / "results" / "records" / "theory"

    def read(name):
        return rows.read(folder / f"{name}.csv")

    return read
