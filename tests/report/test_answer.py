"""The page of any runs, and the answer that it opens with."""

import json
import re

import pytest
import scipy.stats
from synthetic import cell, constant, run, table_1

from dbnrun.paper import page as paper_page
from dbnrun.paper.result_set import result_set
from dbnrun.report import answer, page, tables
from dbnrun.report.series import runs_of, settings_of

OWN = {"name": "custom", "target": "BatchRenorm", "source": "sha256:" + "12345678" * 8}


def digits(norm, seed, last, **other):
    """A run of a normalizer without a schedule on digits."""
    return run(cell(norm="bn", seed=seed, dataset="digits") | {"norm": norm} | other, [5.0, last])


def dbn(alpha, seed, last, protocol="B", **model):
    content = cell(constant(alpha), seed, dataset="digits", protocol=protocol)
    content["model"] |= model
    return run(content, [5.0, last])


BN, LN = {"name": "bn", "eps": 1e-5}, {"name": "ln", "eps": 1e-5}


def setting_of(*runs):
    ((setting),) = settings_of(runs)
    return setting


def page_of(runs, title=""):
    settings = settings_of(runs)
    return page.page(settings, runs_of(settings), title)


def test_the_sentence_names_the_least_error_and_what_a_corrected_test_tells_from_the_baseline():
    noise = [0.01, -0.02, 0.03, 0.0, -0.01, 0.02, -0.03, 0.01, 0.0, -0.01]
    runs = [digits(BN, seed, 2 + seed / 10) for seed in range(10)]
    runs += [digits(OWN, seed, 1.5 + seed / 10 + noise[seed]) for seed in range(10)]
    runs += [digits(LN, seed, 2 + seed / 10 + noise[seed]) for seed in range(10)]
    setting = setting_of(*runs)
    mean = 1.5 + sum(range(10)) / 100 + sum(noise) / 10
    assert answer.sentence(setting).startswith(
        f"BatchRenorm has the lowest mean test error after the last epoch: {mean:.2f} % ["
    )
    assert answer.sentence(setting).endswith(
        "]. After Holm's correction, BatchRenorm (−0.50 pp) has a lower error than BN (PyTorch)."
    )
    # All ten differences below 0: p = 2/1024, Holm over two comparisons.
    assert answer.against_baseline(setting)["BatchRenorm"].p_holm == pytest.approx(2 * 2 / 1024)


def test_with_few_seeds_the_sentence_goes_by_intervals_and_says_so():
    setting = setting_of(*[digits(BN, s, 2 + s / 10) for s in range(3)], *[digits(LN, s, 3 + s / 5) for s in range(3)])
    differences = [1 + s / 10 for s in range(3)]
    low, _ = scipy.stats.t.interval(0.95, 2, 1.1, scipy.stats.sem(differences))
    assert low > 0
    assert answer.sentence(setting).endswith(
        "3 seeds are too few for a test, which needs 6. "
        "By the 95 % intervals alone, LN (+1.10 pp) has a higher error than BN (PyTorch)."
    )


def test_one_series_is_compared_with_nothing_and_one_seed_is_not_tested():
    assert answer.sentence(setting_of(digits(BN, 0, 2.0))) == (
        "BN (PyTorch) has this mean test error after the last epoch: 2.00 %."
    )
    two = answer.sentence(setting_of(digits(BN, 0, 2.0), digits(LN, 0, 3.0)))
    assert two.endswith("has neither an interval nor a test.")
    text = page_of([digits(BN, 0, 2.0), digits(LN, 1, 3.0)])
    assert not re.search(r"\bnan\b", text.split('id="curves"')[0], re.I)


@pytest.mark.parametrize(
    ("runs", "base"),
    [
        ([digits(LN, 0, 2.0), digits(BN, 0, 2.0), dbn(1.0, 0, 2.0)], "BN (PyTorch)"),
        ([digits(LN, 0, 2.0), dbn(1.0, 0, 2.0)], "α = 1"),
        ([digits(OWN, 0, 2.0), digits(LN, 0, 2.0), dbn(0.5, 0, 2.0)], "LN"),
        ([digits(BN | {"momentum": momentum}, 0, 2.0) for momentum in (0.01, 0.1)], "BN (PyTorch), momentum=0.1"),
    ],
)
def test_the_baseline_is_bn_else_alpha_one_else_the_first_of_the_table(runs, base):
    found = answer.baseline_of(setting_of(*runs))
    assert found and found.label == base
    assert set(tables.differences(setting_of(*runs))["baseline"]) == {answer.name(found)}


def test_a_small_constant_alpha_that_broke_the_training_is_explained_and_nothing_else():
    def note(alpha, last, **how):
        runs = [digits(BN, seed, 2 + seed / 10) for seed in range(3)]
        return answer.note(setting_of(*runs, *[dbn(alpha, seed, last + seed / 10, **how) for seed in range(3)]))

    assert note(0.1, 16.0).startswith("dbn α = 0.1: here λ, a moving average, normalizes in training too.")
    assert note(0.1, 2.0) == "" and note(0.5, 16.0) == "" and note(0.0, 16.0) == ""
    assert note(0.1, 16.0, protocol="A") == ""  # trains by each batch's own statistics


def test_the_page_opens_with_answer_and_differences_and_has_no_section_without_runs():
    runs = [digits(norm, seed, 2 + seed / 10) for norm in (BN, OWN, OWN | {"options": {"r": 1}}) for seed in range(2)]
    text = page_of(runs, title="Mine & yours")
    assert "<title>Mine &amp; yours</title>" in text
    assert [place for place in re.findall(r'<section id="(\w+)"', text)] == ["answer", "runs", "explorer", "provenance"]
    assert re.findall(r'href="#(\w+)"', text) == ["answer", "runs", "explorer", "provenance"]
    first = text.split('<section id="answer">')[1].split("</section>")[0]
    (chart,) = re.findall(r"data-chart='([^']+)'", first)
    rows = json.loads(chart)["rows"]
    assert [row["curve"] for row in rows] == ["BatchRenorm", "BatchRenorm, r=1"]
    assert all(row["from"] <= row["diff"] <= row["to"] for row in rows)
    shown = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.S).replace("experiment=paper_mnist_a", "")
    assert "paper" not in shown.lower()


def test_a_page_of_many_settings_has_every_one_and_no_id_twice():
    runs = [digits(norm, s, 2.0 + s) for norm in (BN, LN) for s in range(2)]
    for model in ({"name": "vit", "depth": 3}, {"name": "mlp"}, {"name": "kan"}, {"name": "cnn2"}):
        runs += [digits(norm, s, 2.0 + s, model=model) for norm in (BN, {"name": "frn", "tau": 1}) for s in range(2)]
    text = page_of(runs)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert all(f"<h3>Digits, {name}</h3>" in text for name in ("fnn", "vit", "mlp", "kan", "cnn2"))
    assert text.count('"kind": "differences"') == 5


def test_two_curves_of_a_chart_never_look_the_same():
    norms = [OWN | {"target": f"Norm{i}"} for i in range(10)] + [BN | {"momentum": m} for m in (0.1, 0.01, 0.001)]
    (panel,) = page.section(setting_of(*[digits(norm, 0, 2.0) for norm in norms]))["panels"]
    for _, _, chart in panel["charts"]:
        looks = list(zip(chart["colors"], map(str, chart["dashes"]), strict=True))
        assert len(set(looks)) == len(norms) == len(set(chart["curves"]))


def test_the_papers_page_shows_own_runs_beside_its_claims():
    own = [run(cell(norm="bn", seed=s) | {"norm": OWN}, [5.0] * 11 + [2.0 + s]) for s in range(2)]
    runs = [*table_1(datasets=["mnist"], protocols="A"), *own, digits(BN, 0, 2.0)]
    text = paper_page.page(result_set(runs))
    assert "<p class=answer>Of the paper" in text and 'id="claims"' in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    section = text.split('id="runs"')[1].split("</section>")[0]
    assert "<h2>Other runs</h2>" in text and "BatchRenorm" in section and "<h3>Digits</h3>" in section
