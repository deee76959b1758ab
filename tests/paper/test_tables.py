"""The paper beside ours, the sensitivity runs, and the README's results."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from synthetic import cell, constant, run, table_1

from dbnrun.cli import DOCUMENTS
from dbnrun.config.registry import UserError
from dbnrun.paper import documents, table1
from dbnrun.paper.result_set import result_set
from dbnrun.report import stats
from dbnrun.runs import archive

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results():
    return result_set(table_1(seeds=10, epochs=8))


def test_a_row_of_the_statistics_by_hand():
    runs = [run(cell(constant(1.0), seed), [4.0, 3.0 + seed], val=[1.0, 2.0]) for seed in range(3)]
    runs += [run(cell(constant(0.25), seed), [4.0, 2.0 + seed], val=[1.0, 2.0]) for seed in range(3)]
    table: Any = result_set(runs).statistics.set_index(["curve", "selection"])
    last = table.loc["0.25", "last"]
    assert (last["mean"], last["sd"], last["n"], last["paper"]) == (3, 1, 3, 1.91)
    assert (last["vs_alpha_1_diff"], last["vs_alpha_1_p"], last["vs_alpha_1_word"][:11]) == (-1, 0.25, "n too small")
    assert table.loc["0.25", "best_on_val"]["mean"] == 4 and table.loc["0.25", "best_on_test"]["mean"] == 3
    assert last["noise_floor"] == pytest.approx(stats.noise_floor(3, 10_000))
    assert np.isnan(table.loc["1", "last"]["vs_alpha_1_diff"]) and np.isnan(last["vs_bn_diff"])


def test_both_references_stand_side_by_side(results):
    table: Any = results.statistics
    table = table[table["dataset"] == "mnist"]
    shown = table[(table["selection"] == "last") & (table["protocol"] == "A")].set_index("curve")
    assert shown["vs_alpha_1_n"].drop("1").eq(10).all() and shown["vs_bn_n"].eq(10).all()
    assert shown.loc["0.25", "vs_alpha_1_p_holm"] == pytest.approx(11 * 2 / 1024)
    assert shown.loc["0.25", "vs_bn_p_holm"] == pytest.approx(12 * 2 / 1024)  # α = 1 is compared too
    baselines = table[(table["protocol"] == "baselines") & (table["selection"] == "last")].set_index("curve")
    assert list(baselines.index) == ["bn", "ln", "gn", "none"] and baselines["vs_bn_n"].drop("bn").eq(10).all()


def test_the_markdown_has_a_line_a_curve_and_the_csv_a_row_a_selection(results, tmp_path):
    table1.write(results, tmp_path)
    text = (tmp_path / "paper.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 3 * (3 * (12 + 1) + 4 + 1)
    # The normalizers without a schedule have no difference to α = 1, no p of it, and no number of the paper.
    assert {line.count("|") - 1 for line in lines} == {len(table1.HEADS), len(table1.HEADS) - 3}
    assert len(pd.read_csv(tmp_path / "statistics.csv")) == 3 * (3 * 12 + 4) * 3
    assert "1/m² (epochs)" in text and "does not apply to" in text and "optimistic" in text


def varied(name, value, alpha, seed, error):
    content = cell(constant(alpha), seed)
    if name == "l2":
        content["optimizer"]["groups"]["weights"]["weight_decay"] = value
    if name == "lr":
        for group in content["optimizer"]["groups"].values():
            group["lr"] = value
    if name == "average":
        content["norm"]["average"] = value
        if value == "inv_std":
            del content["norm"]["eps_at"]
    return run(content, [5.0, error])


def test_a_hyperparameter_is_varied_alone_beside_the_runs_it_varies():
    runs = []
    for seed in range(3):
        for alpha in (1.0, 0.25):
            runs += [varied("l2", value, alpha, seed, 2 + alpha + 100 * value) for value in (0.0, 1e-4, 1e-3)]
            runs += [varied("lr", 0.03, alpha, seed, 4 + alpha)]
            runs += [varied("average", value, alpha, seed, 3 + alpha) for value in ("var", "inv_std")]
    results = result_set(runs)
    assert results.mains["mnist"].n == 6  # the paper's hyperparameters alone
    table: Any = results.sensitivity.set_index(["knob", "value", "curve"])
    assert table.loc[("l2", "0.001", "0.25"), "mean"] == pytest.approx(2.35)
    assert table["vs_alpha_1_diff"].dropna().round(9).eq(-0.75).all()
    assert table.loc["average"].index.get_level_values(0).unique().tolist() == ["inv_std", "std", "var"]
    assert table.loc["l2"].index.get_level_values(0).unique().tolist() == ["0.0", "0.0001", "0.001"]
    assert table.loc[("lr", "0.01", "1"), "paper_value"] and not table.loc[("lr", "0.03", "1"), "paper_value"]
    assert (table["n"] == 3).all() and len(table) == 2 * (3 + 2 + 3)


def test_the_differences_of_a_hyperparameter_are_tested_as_a_column_is():
    generator = np.random.default_rng(0)
    errors = {alpha: generator.normal(2 + alpha, 0.2, 10) for alpha in (1.0, 0.5, 0.25)}
    runs = [varied("l2", l2, a, s, errors[a][s] + l2) for a in errors for s in range(10) for l2 in (1e-4, 1e-3)]
    table: Any = result_set(runs).sensitivity.set_index(["value", "curve"])
    raw = [
        scipy.stats.permutation_test(
            (errors[alpha] - errors[1.0],), np.mean, permutation_type="samples", n_resamples=np.inf
        ).pvalue
        for alpha in (0.5, 0.25)
    ]
    low, high = sorted(raw)  # Holm by hand: the least of two p doubled, and none below it
    by_hand = {low: min(1, 2 * low), high: max(2 * low, high)}
    assert table.loc[("0.001", "0.5"), "vs_alpha_1_p_holm"] == pytest.approx(by_hand[raw[0]])
    assert table.loc[("0.001", "0.25"), "vs_alpha_1_p_holm"] == pytest.approx(by_hand[raw[1]])
    assert np.isnan(table.loc[("0.001", "1"), "vs_alpha_1_p_holm"])


def errors_of(runs, curve):
    table: Any = result_set(runs).statistics.set_index(["curve", "selection"])
    return table.loc[curve, "last"]["n"], table.loc[curve, "last"]["mean"]


@pytest.mark.parametrize(("key", "value"), [("eps", 1e-3), ("eps_at", "var"), ("init", [0.0, 0.5]), ("affine", False)])
def test_a_normalizer_off_the_papers_runs_is_a_hyperparameter_and_replaces_no_number(key, value):
    runs = [run(cell(constant(alpha), seed), [5.0, 2.0]) for seed in range(2) for alpha in (1.0, 0.1)]
    other = cell(constant(0.1))
    other["norm"][key] = value
    results = result_set([*runs, run(other, [5.0, 50.0])])
    assert errors_of(results.runs, "0.1") == (2, 2.0) and errors_of(results.runs, "1") == (2, 2.0)
    shown = {(v.hyperparameter, v.value): v.series["0.1"].n for v in results.variants}
    assert shown == {(f"dbn {key}", str(other["norm"][key])): 1} | {
        (f"dbn {key}", str(runs[0].cell["norm"][key])): 2  # as the paper's runs have it
    }
    assert [setting.n for setting in results.settings] == [4]


def test_another_momentum_of_bn_replaces_no_number():
    runs = [run(cell(seed=seed, norm="bn"), [5.0, 2.0]) for seed in range(2)]
    for one in runs:
        one.cell["norm"]["momentum"] = 0.1
    other = cell(norm="bn")
    other["norm"]["momentum"] = 0.2
    assert errors_of([*runs, run(other, [5.0, 50.0])], "bn") == (2, 2.0)


def test_sensitivity_at_another_setting_stands_apart(tmp_path):
    runs = [varied("l2", l2, alpha, seed, 3.0) for l2 in (1e-4, 0.0) for alpha in (1.0, 0.1) for seed in range(3)]
    for l2, seed in itertools.product((1e-4, 0.0), range(2)):
        small = varied("l2", l2, 1.0, seed, 40.0)
        small.cell["train"]["batch_size"] = 50
        runs.append(run(small.cell, [5.0, 40.0]))
    table: Any = result_set(runs).sensitivity
    assert table.groupby("family")["main"].first().tolist() == [True, False]
    path = tmp_path / "findings.md"
    path.write_text(f"{documents.BEGIN.replace('results', 'results of mnist sensitivity', 1)}\n{documents.END}\n")
    assert documents.update(path, result_set(runs))
    assert path.read_text().count("| 3.00 [3.00, 3.00] |") == 2 and "40.00" not in path.read_text()


def test_another_optimizer_is_another_setting_and_so_is_what_varies_no_recorded_run():
    runs = [run(cell(constant(alpha)), [5.0, 2.0]) for alpha in (1.0, 0.1)]
    adam = cell(constant(0.1))
    adam["optimizer"] = {"name": "adam", "groups": {"weights": {"pattern": "*", "lr": 0.001, "weight_decay": 0.0}}}
    twice = varied("l2", 0.0, 0.1, 0, 3.0)
    twice.cell["norm"]["average"] = "var"
    results = result_set([*runs, run(adam, [5.0, 50.0]), twice])
    assert {setting.slug: setting.n for setting in results.settings} == {
        "mnist": 2, "mnist-adam": 1, "mnist-adagrad-weights.weight_decay0": 1
    }  # fmt: skip
    assert results.mains["mnist"].cell["optimizer"]["name"] == "adagrad"


def test_two_constants_that_look_alike_in_short_stay_two():
    runs = [run(cell(constant(alpha)), [5.0, error]) for alpha, error in ((0.1, 2.0), (0.1 + 1e-9, 3.0))]
    assert errors_of(runs, "0.1") == (1, 2.0) and errors_of(runs, "0.100000001") == (1, 3.0)
    table: Any = result_set(runs).statistics.set_index(["curve", "selection"])
    assert table.loc[("0.1", "last"), "paper"] == 1.90 and np.isnan(table.loc[("0.100000001", "last"), "paper"])


def test_a_data_set_of_baselines_alone_has_no_population_line(tmp_path):
    path = tmp_path / "findings.md"
    path.write_text(f"{documents.BEGIN.replace('results', 'results of mnist A', 1)}\n{documents.END}\n")
    assert documents.update(path, result_set([run(cell(norm="bn"), [5.0, 2.0])]))
    assert "population" not in path.read_text()


def test_the_main_setting_is_that_with_most_runs_and_is_named_by_its_data_set():
    runs = table_1(["mnist"], "A", seeds=3, epochs=8) + table_1(["mnist"], "A", seeds=1, epochs=4)
    results = result_set(runs)
    assert results.mains["mnist"].cell["train"]["epochs"] == 8
    assert [setting.slug for setting in results.settings] == ["mnist-epochs4", "mnist"]


def test_many_short_runs_do_not_outweigh_a_column_that_was_trained():
    runs = table_1(["mnist"], "A", seeds=2, epochs=8) + table_1(["mnist"], "A", seeds=10, epochs=1)
    assert result_set(runs).mains["mnist"].cell["train"]["epochs"] == 8


def test_a_main_setting_without_a_hyperparameter_varied_has_no_sensitivity(results):
    assert results.variants == [] and len(results.sensitivity) == 0


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_of_this_checkout_has_the_results_of_its_records(name):
    results = result_set(archive.read(ROOT / "results" / "records"))
    text = (ROOT / name).read_text()
    assert documents.with_results(text, results, ROOT / name) == text, (
        f"{name} differs from results/records: write it again with `dbnrun report --readme`"
    )


def test_a_documents_columns_are_those_of_its_marker(tmp_path):
    runs = [run(cell(constant(1.0), seed), [4.0, 3.0 + seed]) for seed in range(2)]
    runs += [run(cell(constant(0.25), seed), [4.0, 2.0 + 2 * seed]) for seed in range(2)]
    runs += [run(cell(constant(1.0), seed=0, protocol="B"), [4.0, 3.5])]
    path = tmp_path / "findings.md"
    one, two = (documents.BEGIN.replace("results", f"results of {what}") for what in ("mnist A", "mnist B C"))
    path.write_text(f"before\n{one}\nformer\n{documents.END}\nbetween\n{two}\n{documents.END}\nafter\n")
    assert documents.update(path, result_set(runs)) and not documents.update(path, result_set(runs))
    # By hand: 2 and 4 have mean 3 and t interval 3 ± 12.706 · √2 / √2; their differences to 3 and 4 are −1 and 0.
    assert path.read_text().splitlines() == [
        "before",
        one,
        "| MNIST | A, n = 2: test error [%] | difference from its α = 1 [pp] |",
        "|---|---|---|",
        "| α = 1 | 3.50 [−2.85, 9.85] |  |".replace("−", "-"),
        "| α = 0.25 | 3.00 [-9.71, 15.71] | −0.50 [−6.85, +5.85] |",
        "| the same weights, population statistics | 3.50 [-2.85, 9.85] | +0.00 [+0.00, +0.00] |",
        documents.END,
        "between",
        two,
        "| MNIST | B, n = 1: test error [%] | difference from its α = 1 [pp] "
        "| C: test error [%] | difference from its α = 1 [pp] |",
        "|---|---|---|---|---|",
        "| α = 1 | 3.50 |  | not run |  |",
        documents.END,
        "after",
    ]


def test_a_documents_sensitivity_has_a_line_a_value(tmp_path):
    runs = [
        varied("l2", l2, alpha, seed, error)
        for l2, alpha, error in ((1e-4, 1.0, 3.0), (1e-4, 0.1, 2.5), (0.0, 1.0, 4.0), (0.0, 0.1, 3.75))
        for seed in range(2)
    ]
    path = tmp_path / "findings.md"
    path.write_text(f"{documents.BEGIN.replace('results', 'results of mnist sensitivity', 1)}\n{documents.END}\n")
    assert documents.update(path, result_set(runs))
    _, head, _, none, main, _ = path.read_text().splitlines()
    assert head.split(" | ")[:3] == ["| MNIST", "n", "α = 1: test error [%]"]
    assert none.startswith("| l2 0.0 | 2 | 4.00 [4.00, 4.00] | not run | −0.25 [−0.25, −0.25] |")
    assert main.startswith("| l2 0.0001 (main) | 2 | 3.00 [3.00, 3.00] | not run | −0.50 [−0.50, −0.50] |")


def test_a_documents_sensitivity_can_be_of_another_protocol(tmp_path):
    runs = []
    for position, seed in itertools.product(("before", "after"), range(2)):
        for schedule, error in ((constant(1.0), 3.0), ({"name": "harmonic", "unit": "step"}, 2.5)):
            content = cell(schedule, seed, protocol="B")
            content["model"]["norm_position"] = position
            runs.append(run(content, [4.0, error]))
    path = tmp_path / "findings.md"
    path.write_text(f"{documents.BEGIN.replace('results', 'results of mnist sensitivity B', 1)}\n{documents.END}\n")
    assert documents.update(path, result_set(runs))
    _, head, _, after, before, _ = path.read_text().splitlines()
    assert "| 1/m (steps) [pp] |" in head and after.startswith("| norm position after | 2 | 3.00 [3.00, 3.00] |")
    assert before.startswith("| norm position before (main) |") and "−0.50 [−0.50, −0.50]" in before


def test_all_results_are_written_between_the_markers(results, tmp_path):
    path = tmp_path / "results.md"
    path.write_text(f"before\n{documents.BEGIN}\nformer\n{documents.END}\nafter\n")
    assert documents.update(path, results) and not documents.update(path, results)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith(f"{documents.END}\nafter\n") and "former" not in text
    row = next(line for line in text.splitlines() if line.startswith("| α = 0.25 |"))
    assert "(1.91)" in row and "(7.24)" in row and "(17.00)" in row and row.count("[") == 3
    assert text.count("| holds") >= 3 and "MNIST, n = 10" in text


def test_a_claim_that_holds_by_a_rule_younger_than_its_runs_carries_a_footnote():
    results = result_set(table_1(protocols="A", seeds=10, epochs=20))
    text = documents.overview(results)
    row = next(line for line in text.splitlines() if line.startswith("| C3") and "epochs" in line)
    _, mnist, ni, cifar10 = row.strip("| ").split(" | ")
    assert ni.startswith("holds¹") and "¹" not in mnist + cifar10
    assert "¹ By a rule that was changed after these runs were complete; [claims.md]" in text
    assert "¹" not in documents.overview(result_set(table_1(datasets=["mnist"], protocols="A", seeds=10, epochs=20)))


def test_the_readme_has_five_of_the_rows(results, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"{documents.BEGIN.replace('results', 'results of five rows', 1)}\n{documents.END}\n")
    assert documents.update(path, results)
    rows = [line for line in path.read_text().splitlines() if line.startswith("| ")][1:]
    everything = documents.overview(results).splitlines()
    assert [row.split(" | ")[0] for row in rows] == [
        "| α = 1",
        "| α = 0.1",
        "| 1/m (epochs)",
        "| α = 0",
        "| BN (PyTorch)",
    ]
    assert set(rows) <= set(everything)


def test_a_readme_without_markers_is_refused_in_one_line(results, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("nothing\n")
    with pytest.raises(UserError, match=r"README.md: expected the lines .* put them where the results should stand"):
        documents.update(path, results)


def test_what_was_not_run_says_so_in_the_readme():
    results = result_set(table_1(datasets=["mnist"], protocols="A", seeds=2))
    text = documents.overview(results)
    row = next(line for line in text.splitlines() if line.startswith("| α = 0.25 |"))
    assert row.endswith("| not run | not run |")
