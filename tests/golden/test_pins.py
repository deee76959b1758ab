"""Short runs and single steps against the numbers written down, and changes of the mathematics that must not pass."""

from dataclasses import replace

import layers
import pins
import pytest
import remake

from dbnrun.config import registry
from dbnrun.models.options import ACTIVATIONS
from dbnrun.norm.dbn import DiminishingBatchNorm
from dbnrun.runner import build
from dbnrun.train.loop import BatchSampler

EVERY_WAY = [(name, way) for name, pin in pins.PINS.items() for way in pins.WAYS[: 1 if len(pin.cells) == 1 else 2]]


def unlike(name: str, way: str) -> list[list[str]]:
    """What differs from the rows written down, for each cell of a pin trained that way."""
    pin, written = pins.PINS[name], pins.read()
    found = zip(pin.cells, pins.trained(pin, way), strict=True)
    return [pins.differences(written.get((name, cell), []), rows, pin.rtol) for cell, rows in found]


@pytest.mark.parametrize(("name", "way"), EVERY_WAY)
def test_a_short_run_gives_the_rows_written_down(name, way):
    if pins.missing_data(pins.PINS[name]):
        pytest.skip("needs the real data: set DBNRUN_DATA to its folder (`dbnrun data` fetches it)")
    # A change that is meant: `make golden`, and see tests/golden/pins.py for how to declare it.
    assert not any(found := unlike(name, way)), found


def test_one_step_in_float64_gives_the_numbers_written_down():
    assert layers.differences(layers.read(), layers.computed()) == []


def test_what_is_written_down_is_what_is_pinned():
    assert list(pins.read()) == [(name, cell) for name, pin in pins.PINS.items() for cell in pin.cells]


def test_remaking_keeps_the_digits_of_rows_that_match_and_replaces_the_others(monkeypatch, tmp_path):
    pin = {"two_layer dbn": pins.PINS["two_layer dbn"]}
    matching, other = ((name, cell) for name in pin for cell in pin[name].cells)
    written = {cell: [dict(row) for row in pins.read()[cell]] for cell in (matching, other)}
    written[matching][0]["train_loss"] *= 1 + 1e-5
    right, written[other][0]["train_loss"] = written[other][0]["train_loss"], 1.0
    monkeypatch.setattr(pins, "PINS", pin)
    monkeypatch.setattr(pins, "ROWS", tmp_path / "rows.csv")
    pins.write(written)
    (said, _) = remake.remade_rows()
    remade = pins.read()
    assert said.startswith("two_layer dbn, schedule=alpha_0.25 seed=1: epoch 1, train_loss: 1.0 is written down")
    assert remade[matching][0]["train_loss"] == pytest.approx(written[matching][0]["train_loss"], rel=1e-8)
    assert remade[other][0]["train_loss"] == pytest.approx(right, rel=pins.SMOOTH)


def test_the_pins_have_every_choice_and_every_way_of_running():
    configs = [config for pin in pins.PINS.values() for config in pins.configs(pin)]
    dbn = [config.norm for config in configs if config.norm.name == "dbn"]
    built_in = {group: set(registry.of(group)) - {"custom"} for group in registry.GROUPS}  # a user's own are not pinned
    # MNIST's and CIFAR-10's readers read two more, whose files few have; a folder's and a table's are their user's.
    unpinned = {"fashion_mnist", "cifar100", "folder", "table"}
    assert {config.dataset.name for config in configs} == built_in["dataset"] - unpinned
    assert {getattr(config.dataset, "augment", None) for config in configs} == {None, "none", "flip_crop"}
    assert {getattr(config.dataset, "features", None) for config in configs} == {None, "log", "standard"}
    assert {(config.model.name, config.norm.name) for config in configs} >= {
        (model, name) for model in ("fnn", "cnn") for name in built_in["norm"]
    }
    assert {config.model.name for config in configs} == built_in["model"]
    assert {getattr(config.model, "activation", None) for config in configs} == {None, *ACTIVATIONS}
    assert {getattr(config.model, "norm_position", None) for config in configs} == {None, "before", "after"}
    assert {config.optimizer.name for config in configs} == built_in["optimizer"]
    assert {config.lr_schedule.name for config in configs} == built_in["lr_schedule"]
    assert {config.precision for config in configs} == {"fp32", "bf16"}  # tf32 is a mode of CUDA devices
    steered = [config for config in configs if config.norm.name == "dbn"]
    assert {config.schedule.name for config in steered} == built_in["schedule"]
    assert {config.schedule.unit for config in steered} == {"step", "epoch"}
    assert {(own.train_stats, own.stats_grad) for own in dbn} == {
        (s, g) for s in ("lambda", "batch") for g in (True, False, "mean", "var")
    }
    assert {(own.train_stats, own.average) for own in dbn} == {
        (stats, average) for stats in ("lambda", "batch") for average in ("std", "var", "inv_std")
    }
    assert {(own.train_stats, own.eps_at) for own in dbn} == {
        (s, at) for s in ("lambda", "batch") for at in ("std", "var")
    }
    shapes = {(len(runs), max(map(len, runs))) for pin in pins.PINS.values() for runs in pins.stacks(pin, "together")}
    assert {(1, 1), (1, 5), (2, 1), (4, 1), (2, 2)} <= shapes  # runs in a stack, cells that share a run


def two_batches_swapped(monkeypatch):
    shuffle = BatchSampler.shuffle

    def swapped(self, orders, dealt=0):
        shuffle(self, orders, dealt)
        self.order[:, [0, 1]] = self.order[:, [1, 0]]

    monkeypatch.setattr(BatchSampler, "shuffle", swapped)


def no_l2_penalty(monkeypatch):
    original = build.build_optimizer

    def without(*arguments):
        optimizer = original(*arguments)
        for group in optimizer.param_groups:
            group["l2"] = 0.0
        return optimizer

    monkeypatch.setattr(build, "build_optimizer", without)


def lambda_moves_after_the_normalization(monkeypatch):
    update = DiminishingBatchNorm._update

    def late(self, mu_b, spread_b):
        before = self.mu.clone(), self.spread.clone()
        alpha, *_ = update(self, mu_b, spread_b)
        return 0.0 * alpha, *before  # which do not depend on this batch

    monkeypatch.setattr(DiminishingBatchNorm, "_update", late)


def eps_one_percent_larger(monkeypatch):
    for name, kind in registry.of("norm").items():
        if name in ("none", "dyt"):
            continue  # they have no eps

        def larger(config, *rest, build=kind.build):
            return build(replace(config, eps=1.01 * config.eps), *rest)

        monkeypatch.setattr(kind, "build", larger)


# Each with the cells that it concerns.
PLANTED = {
    two_batches_swapped: lambda _config: True,
    no_l2_penalty: lambda c: c.optimizer.name != "adamw" and c.optimizer.groups["weights"].weight_decay >= 0.01,
    lambda_moves_after_the_normalization: lambda config: getattr(config.norm, "train_stats", "") == "lambda",
    eps_one_percent_larger: lambda config: getattr(config.norm, "eps", 0) == 0.1,
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_change_fails_every_cell_that_it_concerns(plant, monkeypatch):
    concerned = [
        (name, way)
        for name, way in EVERY_WAY
        if (configs := pins.configs(pins.PINS[name]))[0].dataset.name == "digits" and all(map(PLANTED[plant], configs))
    ]
    assert len(concerned) >= 8
    plant(monkeypatch)
    passed = [(name, way) for name, way in concerned if not all(unlike(name, way))]
    assert passed == []


@pytest.mark.parametrize("plant", [lambda_moves_after_the_normalization, eps_one_percent_larger])
def test_a_planted_change_of_a_layer_fails_its_step(plant, monkeypatch):
    plant(monkeypatch)
    found = layers.differences(layers.read(), layers.computed())
    failing = {line.partition(": ")[0].rpartition(", ")[0] for line in found}
    concerned = [name for name in layers.read() if not name.startswith(("schedule", "none", "dyt"))]
    if plant is lambda_moves_after_the_normalization:
        concerned = [name for name in concerned if "train_stats=lambda" in name]
    assert failing == set(concerned)
