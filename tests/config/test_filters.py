"""Filters of recorded runs: what each matches, and what is refused."""

import functools

import pytest
import yaml

from dbnrun.config import registry
from dbnrun.config.filters import matcher, options
from dbnrun.config.identity import cell_of
from dbnrun.config.registry import UserError
from dbnrun.runs import layout


@pytest.fixture(scope="module")
def cell(composed, tmp_path_factory):
    """A cell as its config.yaml gives it back, from the overrides of a command."""

    @functools.cache
    def recorded(*words):
        folder = tmp_path_factory.mktemp("cell")
        layout.write_cell(folder, cell_of(composed("dataset=digits", *words)))
        return yaml.safe_load((folder / "config.yaml").read_text())

    return recorded


def passes(cell, *words):
    return matcher(words)(cell)


@pytest.mark.parametrize("group", ["model", "norm", "schedule", "optimizer", "lr_schedule"])
def test_what_a_choice_composes_matches_that_choice_and_no_other_but_its_plain_one(cell, group):
    names = [name for name in registry.files()[group] if name not in ("custom", "torchvision", "cnn")]
    for name in names:
        made = cell(f"{group}={name}", *(["norm=dbn"] if group == "schedule" else []))
        plain = {"constant"} if name.startswith("alpha_") else set()
        default = {"alpha_0.1"} if (group, name) == ("schedule", "constant") else set()  # has its value
        assert {other for other in names if passes(made, f"{group}={other}")} == {name} | plain | default, made


def test_a_choice_matches_whatever_its_options_and_a_preset_only_with_its_values(cell):
    made = cell("norm=dbn_inference", "norm.eps=0.01", "schedule.alpha=0.3")
    assert passes(made, "norm=dbn_inference", "schedule=constant", "schedule.alpha=0.3,1", "norm.eps=1e-2")
    assert not passes(made, "norm=dbn") and not passes(made, "schedule=alpha_0.1")
    assert not passes(cell("norm=bn"), "schedule=constant")  # it has no schedule


@pytest.mark.parametrize(
    ("filters", "matches"),
    [
        ("seed=0,3", True), ("seed=0,1", False), ("train.epochs=10 train.batch_size=50", True),
        ("train.epochs=10 train.batch_size=100", False), ("optimizer.lr=0.05", True), ("optimizer.lr=0.01", False),
        ("model.widths=[64,64]", True), ("model.widths=[64]", False), ("norm.affine=true", True),
        ("norm.affine=false", False), ("lr_schedule=constant lr_schedule.warmup=0", True),
        ("lr_schedule=cosine", False),
        ("train.eval_every=1 train.label_smoothing=0 train.limit_batches=null", True), ("train.eval_every=2", False),
        ("optimizer.groups.weights.weight_decay=1e-4", True), ("optimizer.groups.*.lr=0.05", True),
        ("optimizer.groups.*.weight_decay=1e-4", False), ("deterministic=auto,true", True),
    ],
)  # fmt: skip
def test_values_are_compared_as_the_cell_has_them_defaults_that_it_leaves_out_included(cell, filters, matches):
    made = cell("seed=3", "train.batch_size=50", "optimizer.lr=0.05")
    assert passes(made, *filters.split()) is matches


def test_options_say_what_a_command_would_have_to_say_to_compose_the_cell_again(cell, composed):
    made = cell("norm=dbn_inference", "schedule=harmonic", "optimizer=sgd", "seed=2", "train.eval_every=3")
    said = options(made)
    words = [f"{key}={value}".replace("None", "null").replace(" ", "") for key, value in said.items()]
    assert cell_of(composed(*words)) == cell_of(
        composed(
            "dataset=digits", "norm=dbn_inference", "schedule=harmonic", "optimizer=sgd", "seed=2", "train.eval_every=3"
        )
    )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("norm", "norm: expected a filter KEY=VALUE"),
        ("nrom=bn", "there is no key 'nrom'. Did you mean 'norm'?"),
        ("epochs=3", "Did you mean 'train.epochs'?"),
        ("norm=bnn", "Did you mean 'bn'?"),
        ("status=dome", "status=dome: expected one of done, failed. Did you mean 'done'?"),
        ("seed=zero", "seed=zero: expected a number."),
        ("norm.affine=yess", "norm.affine=yess: expected true or false."),
        ("norm.average=vra", "norm.average=vra: expected one of std, var, inv_std. Did you mean 'var'?"),
        ("threads=2", "threads changes no result, and runs do not record it"),
    ],
)
def test_a_mistyped_filter_is_refused_with_the_nearest_name(word, said):
    with pytest.raises(UserError) as refused:
        matcher([word], status=["done", "failed"])
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_facts_beside_the_cell_are_compared_as_words(cell):
    made = cell() | {"status": "failed"}
    assert matcher(["status=done,failed"], status=["done", "failed"])(made)
    assert not matcher(["status=done"], status=["done", "failed"])(made)
