"""Cells, signatures, names: what decides a number and what does not."""

import copy

import pytest
from omegaconf import OmegaConf

from dbnrun.config.identity import SETTINGS, cell_of, readable_name, signature
from dbnrun.config.registry import UserError, files
from dbnrun.config.schema import RunConfig, checked


@pytest.fixture(scope="module")
def sig(composed):
    return lambda *overrides: signature(cell_of(composed(*overrides)), "digest")


EVERY = [(group, name) for group, names in files().items() for name in names if group != "experiment"]


MUST_BE_GIVEN = {"torchvision": ["model.arch=resnet18"]}  # options without a default


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_every_choice_composes_and_passes_the_schema(composed, group, name):
    own = {"dataset": "torch:zeros", "model": "torch.nn:Linear", "norm": "torch.nn:BatchNorm1d"}
    own["optimizer"] = "torch.optim:SGD"
    given = [f"{group}.target='{own[group]}'"] if name == "custom" else MUST_BE_GIVEN.get(name, [])
    config = composed(f"{group}={name}", *(["dataset=mnist"] if group == "model" else []), *given)
    assert isinstance(config, RunConfig)


@pytest.mark.parametrize("name", files()["experiment"])
def test_every_experiment_composes(composed, name):
    assert composed(f"experiment={name}").dataset.name in ("digits", "mnist", "ni", "cifar10")


@pytest.mark.parametrize(
    ("dataset", "model", "widths"),
    [("mnist", "fnn", [300, 300]), ("ni", "fnn", [50, 50]), ("cifar10", "cnn", [32, 32, 64, 64, 512])],
)
def test_a_data_set_brings_the_papers_network_unless_another_is_named(composed, dataset, model, widths):
    config = composed(f"dataset={dataset}")
    assert (config.model.name, config.model.widths) == (model, widths)
    assert composed(f"dataset={dataset}", "model=two_layer").model.name == "two_layer"


def test_table_1s_constants_are_the_constant_schedule(sig):
    assert sig("norm=dbn", "schedule=alpha_0.75") == sig("norm=dbn", "schedule=constant", "schedule.alpha=0.75")
    alphas = [name.removeprefix("alpha_") for name in files()["schedule"] if name.startswith("alpha_")]
    assert sorted(map(float, alphas)) == [0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["norm=bn", "schedule=harmonic"], ["norm=bn", "schedule=alpha_0"]),
        (["norm=dbn", "schedule=alpha_0.5", "schedule.unit=epoch"], ["norm=dbn", "schedule=alpha_0.5"]),
        (["norm=dbn", "norm.average=inv_std", "norm.eps_at=var"], ["norm=dbn", "norm.average=inv_std"]),
        (["norm=dbn", "norm.train_stats=batch"], ["norm=dbn_inference"]),
        (["dataset=mnist", "dataset.fnn_widths=[300,300]"], ["dataset=mnist"]),
        (["model=cnn", "dataset.fnn_widths=[7]"], ["model=cnn"]),
        (["optimizer.lr=1"], ["optimizer.lr=1.0"]),
        (["train.eval_every=1", "train.limit_eval=null"], []),
        (["train.eval_every=11", "train.epochs=5"], ["train.eval_every=5", "train.epochs=5"]),
        (["train.eval_every=2", "train.epochs=1"], ["train.epochs=1"]),
        (["lr_schedule=constant", "lr_schedule.warmup=0", "train.label_smoothing=0"], []),
        (["lr_schedule=step", "lr_schedule.every=0"], ["lr_schedule=step"]),
    ],
)
def test_what_a_choice_ignores_is_not_part_of_the_cell(sig, one, other):
    assert sig(*one) == sig(*other)


ANOTHER_VALUE = {
    "results_dir": "results_dir=y", "data_dir": "data_dir=x", "device": "device=cpu", "threads": "threads=3",
    "compile": "compile=true", "cuda_graphs": "cuda_graphs=false", "debug": "debug=true", "progress": "progress=false",
    "save_weights": "save_weights=true", "checkpoint": "checkpoint.minutes=3", "retry": "retry=failed",
    "fail_fast": "fail_fast=true", "skip_recorded": "skip_recorded=true", "theory": "theory=true",
    "plugins": "plugins=[mylab.norms]", "force": "force=true",
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_changes_a_signature(composed, sig, setting):
    assert getattr(composed(ANOTHER_VALUE[setting]), setting) != getattr(composed(), setting)
    assert sig(ANOTHER_VALUE[setting]) == sig()


@pytest.mark.parametrize(
    "change",
    ["seed=1", "train.epochs=11", "train.limit_batches=5", "train.eval_every=2", "train.limit_eval=500",
     "optimizer.lr=0.02", "norm.eps=0.001", "precision=bf16", "deterministic=false", "dataset.val_size=100",
     "model.widths=[65,64]", "model.activation=tanh",
     "optimizer.groups.norm.weight_decay=0.1", "model.norm_position=after", "dataset.augment=flip_crop",
     "lr_schedule=cosine", "lr_schedule=one_cycle", "lr_schedule.warmup=1", "train.label_smoothing=0.1"],
)  # fmt: skip
def test_what_changes_a_number_changes_the_signature(sig, change):
    assert sig(change) != sig()


def test_the_data_is_part_of_the_signature(composed):
    cell = cell_of(composed())
    assert signature(cell, "a") != signature(cell, "b")


def test_the_order_of_optimizer_groups_is_part_of_the_signature(composed):
    cell = cell_of(composed())
    turned = copy.deepcopy(cell)
    turned["optimizer"]["groups"] = dict(reversed(cell["optimizer"]["groups"].items()))
    assert turned == cell and signature(turned, "d") != signature(cell, "d")


def test_a_signature_stays_what_it_was(sig):
    # Recorded results are found by it: if this fails, a default in conf/ or the hash has changed. Say so in CHANGELOG.
    assert sig("dataset=mnist", "norm=dbn", "schedule=harmonic") == "81b5aa8b"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["dataset=mnist"], "mnist-fnn-bn-seed0"),
        (["norm=dbn", "schedule=alpha_0.25", "seed=3"], "digits-fnn-dbn-alpha0.25-seed3"),
        (
            ["norm=dbn_inference", "schedule=harmonic", "schedule.unit=epoch"],
            "digits-fnn-dbn_inference-harmonic_epoch-seed0",
        ),
        (["norm=dbn", "schedule=power", "schedule.exponent=1.5"], "digits-fnn-dbn-power1.5-seed0"),
    ],
)
def test_a_cell_has_a_name_that_people_can_read(composed, overrides, name):
    assert readable_name(cell_of(composed(*overrides))) == name


def test_a_cell_is_plain_data_that_survives_yaml(composed):
    cell = cell_of(composed("norm=dbn", "dataset=ni"))
    again = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(cell))))
    assert again == cell and signature(again, "d") == signature(cell, "d")


def test_a_check_without_the_schema_is_a_fault_of_ours(composed):
    with pytest.raises(AssertionError, match="schema first"):
        checked(OmegaConf.create({"seed": 1}))


def test_a_refused_value_is_a_user_error(composed):
    with pytest.raises(UserError, match=r"schedule.alpha=1.5: expected a number of at least 0, at most 1"):
        composed("norm=dbn", "schedule.alpha=1.5")
