"""`dbnrun compare`: its numbers against scipy, statsmodels and the records' own table, what it pairs, and its files."""

import csv
import io
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from dbnrun import cli
from dbnrun.config.filters import matcher
from dbnrun.report import contrast_text, forest, methods, stats
from dbnrun.report.contrasts import tables
from dbnrun.report.methods import Reading

ROOT = Path(__file__).parents[2]
PAPERS = "optimizer.lr=0.01 optimizer.groups.weights.weight_decay=1e-4 model.norm_position=before train.batch_size=100"
PROTOCOLS = {
    "A": "norm=dbn_inference norm.average=std",
    "B": "norm=dbn norm.stats_grad=true norm.average=std",
    "C": "norm=dbn norm.stats_grad=false norm.average=std",
    "baselines": "norm=bn,ln,gn,none",
}
SELECT = {"last": "last", "best_on_val": "best_val", "best_on_test": "best_test"}


def compare(capsys, *words):
    """The exit code, what is printed, and what is said on stderr."""
    try:
        code = cli.main(["compare", *map(str, words)])
    except SystemExit as ended:
        code = ended.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows_of(capsys, *words):
    """The rows of every table, by label."""
    code, out, err = compare(capsys, *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    return {row["label"]: row for table in found["tables"] for row in table["rows"]}, found


# The records


@pytest.fixture(scope="module")
def recorded():
    runs = methods.runs_under([ROOT / "results"])
    return [method for method in methods.methods_of(runs, Reading().columns) if method.n]


@pytest.fixture(scope="module")
def published():
    return pd.read_csv(ROOT / "results" / "tables" / "statistics.csv").set_index(
        ["dataset", "protocol", "selection", "curve"]
    )


@pytest.mark.parametrize(("dataset", "protocol"), list(itertools.product(("mnist", "ni", "cifar10"), PROTOCOLS)))
@pytest.mark.parametrize(("reference", "baseline"), [("vs_alpha_1", "schedule=alpha_1"), ("vs_bn", "norm=bn")])
def test_the_records_give_the_numbers_of_their_own_statistics(
    recorded, published, dataset, protocol, reference, baseline
):
    features = ["dataset.features=log"] if dataset == "ni" else []
    words = [f"dataset={dataset}", *PAPERS.split(), *features]
    asked = matcher([*words, *PROTOCOLS[protocol].split()])
    base = matcher([*words, *([] if baseline == "norm=bn" else PROTOCOLS[protocol].split()), baseline])
    chosen = [method for method in recorded if asked(method.cell) or base(method.cell)]
    if not any(base(method.cell) for method in chosen):
        found = published.xs((dataset, protocol), level=("dataset", "protocol")) if chosen else None
        assert found is None or found[f"{reference}_diff"].isna().all()
        return
    for selection, select in SELECT.items():
        ((table,), alone) = tables(chosen, base, Reading(select=select), 0.1)
        assert not alone
        for row in table.rows:
            key = (dataset, protocol, selection, row.method.key)
            if row.is_baseline and key not in published.index:
                continue  # BN beside the schedules stands under "baselines"
            theirs = published.loc[key]
            one, d = row.contrast, row.contrast.difference
            ours = (row.mean.mean, row.mean.low, row.mean.high, d.mean, d.low, one.p, one.p_holm)
            names = ("mean", "low", "high", *(f"{reference}_{name}" for name in ("diff", "low", "p", "p_holm")))
            assert ours == pytest.approx([theirs[name] for name in names], rel=2e-5, abs=1e-6, nan_ok=True), key
            assert row.mean.n == theirs["n"]
        assert (
            len(table.compared)
            == published.xs((dataset, protocol, selection), level=(0, 1, 2))[f"{reference}_diff"].count()
        )


# Hand-made runs


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """Ten seeds of BN, LN and GN with known last test errors: 6 epochs, the best on validation being the third."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 0.3, 10)
    errors = {"bn": 3.0 + shared, "ln": 2.8 + shared + rng.normal(0, 0.1, 10), "gn": 3.1 + rng.normal(0, 0.2, 10)}
    errors = {name: np.round(values, 2) for name, values in errors.items()}
    for name, values in errors.items():
        for seed, value in enumerate(values):
            curve = [value + step for step in (2.0, 1.0, -0.5, 0.25, -1.0, 0.0)]
            synthetic.write_run(folder, synthetic.cell(None, seed, norm=name), curve, val=[5, 4, 1, 2, 3, 2])
    return folder, errors


@pytest.fixture
def made(made_once, tmp_path):
    """The same in a folder of the test's own."""
    return shutil.copytree(made_once[0], tmp_path / "made"), made_once[1]


def test_interval_sign_flips_holm_and_seeds_are_those_of_scipy_and_statsmodels(made, capsys):
    folder, errors = made
    rows, found = rows_of(capsys, folder, "--baseline", "norm=bn", "--effect", "0.2")
    assert found["not_compared"] == [] and list(rows) == ["BN (PyTorch)", "LN", "GN"]
    p = []
    for name, label in (("ln", "LN"), ("gn", "GN")):
        row, difference = rows[label], errors[name] - errors["bn"]
        for low, high, values in (("low", "high", errors[name]), ("difference_low", "difference_high", difference)):
            interval = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
            assert (row[low], row[high]) == pytest.approx((interval.low, interval.high), rel=1e-9)
        assert (row["n"], row["pairs"], row["test"]) == (10, 10, "sign_flip")
        assert row["mean"] == pytest.approx(errors[name].mean())
        p.append(enumerated(difference))
        assert row["p"] == pytest.approx(p[-1])
        needed = TTestPower().solve_power(0.2 / difference.std(ddof=1), power=0.8, alpha=0.05)
        assert row["seeds_needed"] == max(np.ceil(needed), 7)  # 7: the least n with 2 · 2^(1-n) < 0.05
        pairs = [(a < b) + (a == b) / 2 for a in errors[name] for b in errors["bn"]]
        assert row["p_improvement"] == pytest.approx(np.mean(pairs))
    assert [rows["LN"]["p_holm"], rows["GN"]["p_holm"]] == pytest.approx(multipletests(p, method="holm")[1])


def enumerated(differences):
    """scipy's exact sign-flip test, on whole numbers so that equal sums are equal."""
    whole = np.round(differences * 100)
    flipped = scipy_stats.permutation_test((whole,), np.mean, permutation_type="samples", n_resamples=np.inf)
    return flipped.pvalue


@pytest.mark.parametrize(
    ("words", "shift"),
    [(["--select", "last"], 0), (["--select", "best_val"], -0.5), (["--select", "best_test"], -1), (["--at", 2], 1)],
)
def test_the_epoch_that_is_asked_for_counts(made, capsys, words, shift):
    folder, errors = made
    rows, found = rows_of(capsys, folder, "norm=ln", *words)
    assert rows["LN"]["mean"] == pytest.approx(errors["ln"].mean() + shift)
    assert found["optimistic"] == ("best_test" in words)
    assert ("optimistic" in compare(capsys, folder, *words)[1]) == ("best_test" in words)


def test_any_column_can_be_compared_and_seconds_and_losses_have_their_units(made, capsys):
    folder, errors = made
    rows, found = rows_of(capsys, folder, "--baseline", "norm=bn", "--metric", "val_loss")
    assert found["unit"] == "nat" and found["effect"] is None
    assert rows["LN"]["difference"] == pytest.approx((errors["ln"] - errors["bn"]).mean() / 10)
    assert rows["LN"]["seeds_needed"] is None  # 0.1 pp is no loss
    assert "[nat]" in compare(capsys, folder, "--baseline", "norm=bn", "--metric", "val_loss")[1]


def test_too_few_seeds_say_so_and_how_many_it_takes(made, capsys):
    folder, _ = made
    _, out, _ = compare(capsys, folder, "seed=0,1,2", "--baseline", "norm=bn")
    assert out.count("n too small") == 3 and "n too small: p < 0.05 then needs 7 seeds." in out
    rows, _ = rows_of(capsys, folder, "seed=0,1,2", "--baseline", "norm=bn", "--effect", "50")
    assert rows["LN"]["seeds_needed"] == 7 and "can never reject" in rows["LN"]["verdict"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda cell: cell["model"].update(widths=[100]), "another network"),
        (lambda cell: cell["dataset"].update(val_size=0.2), "other data"),
        (lambda cell: cell["train"].update(batch_size=50), "other batches"),
        (lambda cell: cell["train"].update(limit_batches=5), "other batches"),
        (lambda cell: cell.update(seed=cell["seed"] + 100), "fewer than two seeds in common"),
    ],
)
def test_what_cannot_be_paired_is_compared_by_welchs_test_and_said(made, capsys, change, reason):
    folder, errors = made
    others = np.random.default_rng(5).normal(2.7, 0.1, 6)
    for seed, value in enumerate(others):
        cell = synthetic.cell(None, seed, norm="none")
        change(cell)
        synthetic.write_run(folder, cell, [9.0] * 5 + [value])
    words = [folder, "norm=none", "--baseline", "norm=bn"]
    rows, _ = rows_of(capsys, *words)
    (row,) = [row for row in rows.values() if not row["baseline"]]
    welch = scipy_stats.ttest_ind(others, errors["bn"], equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert (row["test"], row["note"]) == ("welch", f"unpaired: {reason} (Welch)")
    assert row["p"] == row["p_holm"] == pytest.approx(welch.pvalue)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((interval.low, interval.high))
    assert f"unpaired: {reason} (Welch)" in compare(capsys, *words)[1]


def test_seeds_that_both_have_are_paired_and_what_is_unfinished_is_said(made, capsys):
    folder, errors = made
    for seed in (8, 9):
        (run,) = (folder / "runs").glob(f"mnist-fnn-ln-seed{seed}-*")
        lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
        (run / "metrics.csv").write_text("".join(lines[:-1]))
    rows, _ = rows_of(capsys, folder, "--baseline", "norm=ln")
    assert rows["LN"]["n"] == 8 and rows["LN"]["note"] == "2 incomplete left out"
    assert rows["BN (PyTorch)"]["pairs"] == 8 and rows["BN (PyTorch)"]["note"] == "paired over 8 seeds"
    assert rows["BN (PyTorch)"]["difference"] == pytest.approx((errors["bn"] - errors["ln"])[:8].mean())


def test_each_method_is_compared_with_the_baseline_on_its_data(tmp_path, capsys):
    for dataset, norm, seed in itertools.product(("mnist", "ni"), ("bn", "ln"), range(3)):
        level = {"mnist": 2.0, "ni": 7.0}[dataset] + (norm == "ln") + seed / 100
        write_on(tmp_path, dataset, synthetic.cell(None, seed, dataset, norm=norm), level)
    write_on(tmp_path, "digits", synthetic.cell(None, 0, "digits", norm="ln"), 1.0)
    _, found = rows_of(capsys, tmp_path, "--baseline", "norm=bn")
    differences = {table["name"]: table["rows"][1]["difference"] for table in found["tables"]}
    assert differences == {"MNIST": pytest.approx(1), "NI (KDD Cup 1999)": pytest.approx(1)}
    assert found["not_compared"] == ["Digits: LN"]
    assert "Not compared" in compare(capsys, tmp_path, "--baseline", "norm=bn")[1]


def write_on(folder, digest, cell, level):
    """A run whose manifest says other data than synthetic's."""
    run = synthetic.write_run(folder, cell, [level])
    manifest = json.loads((run / "manifest.json").read_text()) | {"data_digest": digest}
    (run / "manifest.json").write_text(json.dumps(manifest))


def test_runs_that_differ_in_more_than_the_seed_are_never_pooled_and_labels_say_in_what(made, capsys):
    folder, _ = made
    for seed, momentum in ((10, 0.1), (11, 0.1), (0, 0.01), (1, 0.01)):
        cell = synthetic.cell(None, seed, norm="bn")
        cell["norm"]["momentum"] = momentum
        synthetic.write_run(folder, cell, [4.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    rows, _ = rows_of(capsys, folder, "norm=bn")
    assert {label: row["n"] for label, row in rows.items()} == {
        "BN (PyTorch), momentum=0.1": 12,  # those of the fixture do not record the option, and so had its default
        "BN (PyTorch), momentum=0.01": 2,
    }


def test_a_trial_is_labelled_and_compared(tmp_path, capsys):
    for norm, seed in itertools.product(("bn", "ln"), range(3)):
        cell = synthetic.cell(None, seed, norm=norm)
        cell["train"]["limit_batches"] = 3
        synthetic.write_run(tmp_path, cell, [5.0 + seed])
    code, out, _ = compare(capsys, tmp_path, "--baseline", "norm=bn")
    assert code == 0 and "LN (trial)" in out and "at most 3 batches each" in out and "train.limit_batches" in out


def test_by_makes_a_table_for_each_value(made, capsys):
    folder, errors = made
    for norm, seed in itertools.product(("bn", "ln"), range(10)):
        cell = synthetic.cell(None, seed, norm=norm)
        cell["precision"] = "bf16"
        synthetic.write_run(folder, cell, [1.0] * 5 + [errors[norm][seed] + 1])
    _, found = rows_of(capsys, folder, "norm=ln", "--baseline", "norm=bn", "--by", "precision")
    names = [(table["name"], [row["label"] for row in table["rows"]]) for table in found["tables"]]
    assert sorted(names) == [(f"MNIST, precision={word}", ["BN (PyTorch)", "LN"]) for word in ("bf16", "fp32")]


# Tuning


@pytest.fixture
def grid(tmp_path):
    """Two normalizers at three rates, six seeds; validation and test errors by (norm, rate, seed)."""
    rng = np.random.default_rng(11)
    validation, test = {}, {}
    for norm, rate, seed in itertools.product(("bn", "ln"), (0.003, 0.01, 0.03), range(6)):
        cell = synthetic.cell(None, seed, norm=norm)
        for group in cell["optimizer"]["groups"].values():
            group["lr"] = rate
        best = {"bn": 0.03, "ln": 0.003}[norm]
        # On the later seeds another rate is best: whoever peeks at them chooses otherwise.
        level = 2.0 if (rate == best) == (seed < 2) else 3.0
        validation[norm, rate, seed], test[norm, rate, seed] = rng.normal(level, 0.1, 2)
        synthetic.write_run(tmp_path, cell, [test[norm, rate, seed]], val=[validation[norm, rate, seed]])
    return tmp_path, validation, test


def test_each_method_takes_the_rate_best_on_the_tuning_seeds_validation_and_is_compared_on_the_others(grid, capsys):
    folder, validation, test = grid
    words = [folder, "--baseline", "norm=bn", "--tune", "optimizer.lr"]
    rows, found = rows_of(capsys, *words)
    assert found["tuned"]["seeds"] == [0, 1]
    assert {label: row["seeds"] for label, row in rows.items()} == {
        "BN (PyTorch), lr=0.03": [2, 3, 4, 5], "LN, lr=0.003": [2, 3, 4, 5],
    }  # fmt: skip
    means = {
        norm: np.mean([test[norm, rate, seed] for seed in range(2, 6)]) for norm, rate in (("bn", 0.03), ("ln", 0.003))
    }
    assert rows["LN, lr=0.003"]["difference"] == pytest.approx(means["ln"] - means["bn"])
    out = compare(capsys, *words)[1]
    assert "Tuned: optimizer.lr by validation error on the seeds 0, 1; compared on the others." in out
    error = np.mean([validation["bn", 0.03, seed] for seed in (0, 1)])
    assert f"BN (PyTorch): lr=0.03, with a validation error of {error:.2f} %; lr=0.003" in out


def test_the_tuning_seeds_can_be_named_and_what_lacks_one_does_not_count(grid, capsys):
    folder, *_ = grid
    for run in (folder / "runs").iterdir():
        cell = run / "config.yaml"
        if "lr: 0.003" in cell.read_text() and "-ln-" in run.name and "seed5" in run.name:
            shutil.rmtree(run)
    rows, found = rows_of(capsys, folder, "--baseline", "norm=bn", "--tune", "optimizer.lr", "--tune-seeds", "4,5")
    assert all(row["seeds"] == [0, 1, 2, 3] for row in rows.values())
    assert not any("LN, lr=0.003" in label for label in rows)
    assert any("not finished on these seeds: lr=0.003" in line for line in found["tuned"]["methods"])


# Files


def test_the_csv_has_the_columns_that_are_promised_and_the_numbers_of_the_json(made, capsys):
    folder, _ = made
    rows, _ = rows_of(capsys, folder, "--baseline", "norm=bn", "--csv", folder / "new" / "table.csv")
    written = list(csv.DictReader(io.StringIO((folder / "new" / "table.csv").read_text())))
    assert list(written[0]) == [
        "label", "n", "mean", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm",
        "p_improvement", "seeds_needed",
    ]  # fmt: skip
    for line in written:
        row = rows[line.pop("label")]
        for name, value in line.items():
            assert float(value or "nan") == pytest.approx(row[name] or float(row[name] or "nan"), nan_ok=True)


def test_markdown_has_a_row_a_method(made, capsys):
    folder, _ = made
    compare(capsys, folder, "--baseline", "norm=bn", "--markdown", folder / "table.md")
    lines = (folder / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][1:] == ["| BN (PyTorch)", "| LN", "| GN"]


HOSTILE = r"50%_of {x} & \y ~ ^2 $#"


def test_latex_compiles_whatever_letters_the_labels_have(made, capsys, tmp_path):
    compiler = shutil.which("pdflatex")
    if not compiler:
        pytest.skip("needs pdflatex")
    folder, _ = made
    for schedule, seed in itertools.product(
        (synthetic.constant(0.25), {"name": "inverse_square", "unit": "step"}), (0, 1)
    ):
        synthetic.write_run(folder, synthetic.cell(schedule, seed), [1.0] * 6)
    code, _, err = compare(capsys, folder, "--baseline", "norm=bn", "--latex", tmp_path / "table.tex")
    assert code == 0, err
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{table}" + contrast_text.tex(HOSTILE)
    (tmp_path / "page.tex").write_text(page + r"\end{document}")
    done = subprocess.run(
        [compiler, "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 and (tmp_path / "page.pdf").stat().st_size > 5000, done.stdout[-800:]


class Closed(io.StringIO):
    """Standard output whose reader has gone."""

    def write(self, _: str) -> int:
        raise BrokenPipeError

    def fileno(self) -> int:
        return 1


def test_files_are_written_though_nobody_reads_the_output(made, monkeypatch, tmp_path):
    folder, _ = made
    files = [tmp_path / name for name in ("table.csv", "table.md", "table.tex", "forest.png")]
    flags = zip(("--csv", "--markdown", "--latex", "--figure"), map(str, files), strict=True)
    monkeypatch.setattr("sys.stdout", Closed())
    monkeypatch.setattr("os.dup2", lambda *_: None)  # main lets standard output go, which is pytest's here
    assert cli.main(["compare", str(folder), "--baseline", "norm=bn", *itertools.chain(*flags)]) == 0
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "report")]) == 0
    files += [
        tmp_path / "report" / name for name in ("report.html", "tables/table1.csv", "figures/mnist-test-error.png")
    ]
    assert all(file.stat().st_size > 0 for file in files)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_figure_is_of_the_kind_that_its_name_says(made, capsys, ending):
    folder, _ = made
    path = folder / f"figure.{ending}"
    assert compare(capsys, folder, "--baseline", "norm=bn", "--figure", path)[0] == 0
    assert path.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])


@pytest.mark.parametrize("rows", [3, 20])
def test_no_text_of_the_figure_overlaps_another_or_leaves_it(tmp_path, rows):
    for place, seed in itertools.product(range(rows), range(3)):
        cell = synthetic.cell(None, seed, norm="bn")
        if place:
            name = ["Short", "ANormalizerWithAnUncommonlyLongNameOfItsOwn"][place % 2]
            cell["norm"] = {"name": "custom", "target": name, "source": "ab" * 32, "options": {"momentum": place / 100}}
        level = 100.0 if place == 2 else 3.0  # one reaches far beyond the others
        synthetic.write_run(tmp_path, cell, level + np.random.default_rng(place * 9 + seed).normal(0, 0.1, 4))
    made = methods.methods_of(methods.runs_under([tmp_path]), Reading().columns)
    found = tables(made, matcher(["norm=bn"]), Reading(), 0.1)
    figure = forest._figure(contrast_text.Compared(*found, Reading(), 0.1))
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = list(figure.texts)
    for ax in figure.axes:
        ticks = [*ax.xaxis._update_ticks(), *ax.yaxis._update_ticks()]  # those that are drawn
        texts += [*ax.texts, ax.xaxis.label, ax.yaxis.label, ax._left_title, *(tick.label1 for tick in ticks)]
    texts = [text for text in texts if text.get_text().strip() and text.get_visible()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    shown = [text.get_text() for text in texts]
    assert sum("Short" in text for text in shown) + sum("ANorm" in text for text in shown) == rows - 1
    width, height = figure.canvas.get_width_height()
    for box, text in zip(boxes, shown, strict=True):
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text
    for (a, one), (b, two) in itertools.combinations(zip(boxes, shown, strict=True), 2):
        assert not (a.x0 < b.x1 and b.x0 < a.x1 and a.y0 + 1 < b.y1 and b.y0 + 1 < a.y1), (one, two)


# The page


@pytest.mark.parametrize(
    "command", re.findall(r"^(?:    )?dbnrun compare (.*)$", (ROOT / "docs" / "compare.md").read_text(), flags=re.M)
)
def test_every_command_on_the_page_runs_on_the_records(monkeypatch, tmp_path, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DBNRUN_RESULTS", str(ROOT / "results"))
    code, out, err = compare(capsys, *shlex.split(command))
    assert code == 0 and "[95 % t interval]" in out, err
    files = re.findall(r"\w+\.(?:csv|tex|svg)", command)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


def test_a_folder_of_records_is_compared_without_the_runs_beside_it(tmp_path):
    (tmp_path / "records").symlink_to(ROOT / "results" / "records")
    synthetic.write_run(tmp_path, synthetic.cell(synthetic.constant(1.0)), [3.0])
    with_runs, records = (methods.runs_under([path]) for path in (tmp_path, tmp_path / "records"))
    assert len(with_runs) == len(records) + 1


def test_without_a_path_own_runs_come_before_the_records_if_they_include_a_method_and_its_baseline(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "records").symlink_to(ROOT / "results" / "records")
    monkeypatch.setenv("DBNRUN_RESULTS", str(tmp_path))
    words = ("dataset=mnist", "model.norm_position=before", "norm=bn,ln")

    def seeds(*paths):
        code, out, err = compare(capsys, *paths, *words, "--baseline", "norm=bn", "--json")
        assert code == 0, err
        return [row["n"] for row in json.loads(out)["tables"][0]["rows"]]

    for seed in range(2):
        synthetic.write_run(tmp_path, synthetic.cell(None, seed, norm="bn"), [3.0 + seed])
    assert seeds() == [10, 10]
    remark = compare(capsys, *words, "--baseline", "norm=bn")[1].splitlines()[0]
    assert remark == (
        f"Your runs in {tmp_path / 'runs'} do not include what is compared (no run has norm=ln): "
        "the committed records are read, too."
    )
    for seed in range(2):
        synthetic.write_run(tmp_path, synthetic.cell(None, seed, norm="ln"), [2.0 + seed])
    assert seeds() == [2, 2]
    remark = compare(capsys, *words, "--baseline", "norm=bn")[1].splitlines()[-1]
    assert remark.startswith("Compared: the runs in ") and re.search(r"[1-9]\d* committed records match", remark)
    assert f"`dbnrun compare {tmp_path} …` includes them." in remark and seeds(tmp_path) == [10, 10]


def test_what_no_baseline_fits_is_listed_with_the_reason(tmp_path, capsys):
    for seed in range(2):
        synthetic.write_run(tmp_path, synthetic.cell(None, seed, norm="ln"), [3.0 + seed])
        write_on(tmp_path, "ni", synthetic.cell(None, seed, "ni", norm="gn"), 3.0 + seed)
        for epochs in (2, 3):
            synthetic.write_run(tmp_path, synthetic.cell(None, seed, norm="bn"), [3.0 + seed] * epochs)
    out = compare(capsys, tmp_path, "--baseline", "norm=bn train.epochs=2,3")[1]
    assert "NI (KDD Cup 1999): GN. No baseline is on their data." in out
    said = (
        "MNIST: LN. Several baselines have as many settings in common with them; name one more in --baseline, such as "
    )
    assert f"{said}train.epochs=2." in out


def test_values_that_some_methods_lack_are_listed_without_them(tmp_path, capsys):
    for options in ({}, {"trim": 0.1}, {"trim": 0.25}):
        content = synthetic.cell(None, norm="bn")
        content["norm"] = {"name": "custom", "target": "Trim", "source": "x", "options": options}
        synthetic.write_run(tmp_path, content, [3.0])
    code, _, err = compare(capsys, tmp_path, "--baseline", "norm.options.trim=0.5")
    assert code == 2 and "none of 3 runs has it; they have norm.options.trim=0.1,0.25." in err, err


def test_without_a_baseline_a_heading_states_only_what_all_rows_share(tmp_path, capsys):
    for epochs in (2, 3):
        synthetic.write_run(tmp_path, synthetic.cell(None, norm="bn"), [3.0] * epochs)
    synthetic.write_run(tmp_path, synthetic.cell(synthetic.constant(0.1)), [3.0] * 2)
    assert compare(capsys, tmp_path, "norm=bn")[1].startswith("MNIST\n")
    out = compare(capsys, tmp_path, "--by", "schedule", "train.epochs=2")[1]
    assert "MNIST, no schedule: fnn 300-300, adagrad 0.01, batch 100, 2 epochs" in out, out


def test_one_shared_seed_gives_no_p_and_the_caption_says_why(tmp_path, capsys):
    for norm in ("bn", "ln"):
        synthetic.write_run(tmp_path, synthetic.cell(None, norm=norm), [3.0])
    out = compare(capsys, tmp_path, "--baseline", "norm=bn")[1]
    assert "No p: fewer than two seeds are shared." in out and "Holm" not in out.split("No p")[1]


# What is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--baseline", "norm=bnn"], "norm=bnn: expected one of .* Did you mean 'bn'?"),
        (["--baseline", "norm=none"], "--baseline norm=none: none of 30 runs has it; they have norm=bn,gn,ln."),
        (["nrom=bn"], "there is no key 'nrom'. Did you mean 'norm'?"),
        (["--baseline", "bn"], "bn: expected a filter .* Did you mean 'norm=bn'?"),
        (["dbn"], "dbn: there is no such folder; .* Did you mean 'norm=dbn'?"),
        (["norm.momentum=0.3"], "norm.momentum=0.3: none of 30 runs has it; they have norm.momentum=0.1."),
        (["optimizer.lr=7"], "optimizer.lr=7: none of 30 runs has it; they have optimizer.lr=0.01."),
        (
            ["--baseline", "norm=bn seed=0"],
            "--baseline seed=0: a method has all of its seeds; to compare some, filter: seed=0.",
        ),
        (["--baseline", "norm=bn,ln,gn"], "--baseline: 3 methods match, and no other is there to compare (BN"),
        (["--csv"], "--csv: expected a value after it."),
        (["seed=77"], "seed=77: none of 30 runs has it; they have seed=0,1,2,3,4,5,6,7,…."),
        (["norm=ln", "norm=bn"], "norm=ln norm=bn: none of 30 runs passes all of the filters."),
        (
            ["norm=bn,frn", "--baseline", "norm=bn"],
            "No run has norm=frn. Only the baseline is left: there is nothing to compare.",
        ),
        (["--metric", "test_eror_pct"], "Did you mean 'test_error_pct'?"),
        (["--at", "7"], "--at 7: the longest run has 6 epochs."),
        (["--at", "2", "--select", "best_val"], "--at 2: leave out --select, or --at."),
        (["--by", "nrom"], "--by nrom: no run has such a key. Did you mean 'norm'?"),
        (["--tune", "optimizer.lrr"], "--tune optimizer.lrr: no run has such a key. Did you mean 'optimizer.lr'?"),
        (["--tune", "optimizer.lr", "--tune-seeds", "0,1,2,3,4,5,6,7,8,9"], "no other seeds are finished"),
        (["--tune-seeds", "0"], "--tune-seeds: goes with --tune KEY"),
        (["--effect", "0"], "--effect 0: expected a number above 0."),
        (["--figure", "x.jpg"], "--figure x.jpg: expected a name that ends in .png, .svg, .pdf."),
        (["--metric", "lambda_drift"], "--metric lambda_drift: no run has a number there, last epoch."),
    ],
)
def test_a_mistake_is_refused_in_one_line(made_once, capsys, words, said):
    code, out, err = compare(capsys, made_once[0], *words)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert all(part in err for part in said.split(".*"))


def test_a_choice_that_no_run_has_is_said(made_once, capsys):
    code, out, _ = compare(capsys, made_once[0], "norm=bn,ln,frn,mabn", "--baseline", "norm=bn")
    assert code == 0 and "No run has norm=frn or norm=mabn." in out


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    code, _, err = compare(capsys, tmp_path)
    assert code == 2 and f"{tmp_path}: no runs; train some, such as `dbnrun -m norm=bn,ln" in err


# The statistics


@pytest.mark.parametrize("paired", [True, False])
def test_the_power_is_that_of_simulated_t_tests(paired):
    rng = np.random.default_rng(0)
    for n, effect in ((2, 6.2), (3, 2.0), (5, 1.5), (12, 0.9)):
        x = rng.normal(effect, 1, (n, 40_000))
        test = scipy_stats.ttest_1samp(x, 0) if paired else scipy_stats.ttest_ind(x, rng.normal(0, 1, x.shape))
        # Five binomial standard errors.
        found = stats.power(n, effect, 1.0, paired=paired)
        assert found == pytest.approx(np.mean(test.pvalue < 0.05), abs=5 * 0.5 / 200)


def test_seeds_needed_have_no_number_without_a_spread_and_no_end_where_the_effect_is_tiny():
    assert np.isnan(stats.seeds_needed(0.1, float("nan"), paired=True))
    assert stats.seeds_needed(1e-6, 1.0, paired=True) == float("inf")
    assert stats.seeds_needed(0.1, 0.0, paired=True, least=6) == 6


def test_of_more_than_16_seeds_the_drawn_flips_agree_with_scipys():
    differences = np.random.default_rng(2).normal(0.1, 0.25, 20)
    reference = scipy_stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=50_000, rng=np.random.default_rng(1)
    ).pvalue
    # Five binomial standard errors of 9,999 flips.
    assert stats.sign_flip_p(differences) == pytest.approx(reference, abs=5 * (reference / 9_999) ** 0.5)


def test_a_comparison_with_its_figure_imports_no_torch(made_once):
    words = ["compare", str(made_once[0]), "--baseline", "norm=bn", "--figure", str(made_once[0] / "alone.svg")]
    script = f"import sys; from dbnrun.cli import main; assert main({words}) == 0; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
