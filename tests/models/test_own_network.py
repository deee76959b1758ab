"""Networks of the user's own as cells: where weights and noise come from, and what becomes of their normalizers."""

import pytest
import torch
from torch import nn

from dbnrun.config import registry
from dbnrun.config.compose import composed
from dbnrun.config.overrides import prepared
from dbnrun.models.layers import global_draws_from
from dbnrun.norm.options import Normalizers, RunFacts
from dbnrun.norm.schedules import Constant
from dbnrun.runner.build import build_cell, load_data
from dbnrun.runner.grouping import grouped
from dbnrun.torchvision_shim import torchvision
from dbnrun.train.rng import Rngs

SHAPE = (3, 8, 8)
SOURCE = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, input_shape, num_classes, norm, width=4):
        super().__init__()
        self.first = nn.Conv2d(input_shape[0], width, 3)
        self.a = norm(width, 2)
        self.hidden = nn.Linear(width, 6)
        self.b = norm(6, 0)
        self.out = nn.Linear(6, num_classes)
        self.register_buffer("frequencies", torch.randn(6))

    def forward(self, x):
        h = self.a(self.first(x)).relu().mean((2, 3))
        h = F.dropout(self.b(self.hidden(h)), 0.4, self.training)
        return self.out(torch.sin(h * self.frequencies))


class Plain(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.1), nn.ReLU(), nn.Flatten())
        self.last = nn.BatchNorm1d(144)
        self.out = nn.Linear(144, num_classes)
        self.own = nn.LayerNorm(num_classes)

    def forward(self, x):
        return self.own(self.out(self.last(self.body(x))))


def made(num_classes=3, **more):
    return Plain(num_classes, **more)


class Drawing(nn.Module):
    def __init__(self, features, spatial):
        super().__init__()
        self.scale = nn.Parameter(torch.randn((1, features) + spatial * (1,)))

    def forward(self, x):
        return x * self.scale
"""
BUILT_IN = [name for name in registry.of("norm") if name != "custom"]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "nets.py").write_text(SOURCE)
    return tmp_path / "nets.py"


@pytest.fixture
def build(file):
    def build(name, norm="bn", seed=0, target=None, shape=SHAPE, **options):
        chosen = registry.make("norm", norm, **({"target": f"{file}:Drawing"} if norm == "custom" else {}))
        rngs = Rngs.of(seed)
        model = registry.make("model", "custom", target=target or f"{file}:{name}", options=options)
        network = model.build(
            shape, 10, Normalizers(chosen, RunFacts(Constant(alpha=0.1), 7, 3, 50), seed), rngs.dropout
        )
        network.initialize(rngs.init)
        return network

    return build


def x_of(shape=SHAPE, records=5):
    return torch.randn(records, *shape, generator=torch.Generator().manual_seed(1))


def kinds(network):
    return [type(layer).__name__ for layer in network.modules() if not isinstance(layer, nn.Sequential)]


def test_norm_in_the_signature_makes_the_chosen_normalizer_in_each_place(build):
    assert [type(layer) for layer in (build("Net").net.a, build("Net").net.b)] == [nn.BatchNorm2d, nn.BatchNorm1d]
    network = build("Net", "dbn", width=8)
    assert kinds(network)[2:] == ["Conv2d", "DiminishingBatchNorm2d", "Linear", "DiminishingBatchNorm1d", "Linear"]
    assert network.net.first.out_channels == 8 and network(x_of()).shape == (5, 10)


def test_without_norm_in_the_signature_each_batch_norm_is_exchanged_and_other_normalizers_stay(build):
    network = build("Plain", "gn")
    assert kinds(network)[2:] == ["Conv2d", "GroupNorm", "ReLU", "Flatten", "GroupNorm", "Linear", "LayerNorm"]
    assert build("Plain").net.body[1].eps == 1e-5  # norm=bn's own, as in every network


def test_a_function_that_takes_any_keyword_is_given_the_number_of_classes_and_options_win(build):
    assert build("made").net.out.out_features == 10
    passes_on = build(None, target="torchvision.models:resnet18", shape=(3, 32, 32))
    assert passes_on.net.fc.out_features == 10
    assert build(None, target="torchvision.models:resnet18", shape=(3, 32, 32), num_classes=7).net.fc.out_features == 7


def test_torchvisions_resnet18_by_its_name_computes_what_it_does_from_the_weights_of_the_cells_stream(build):
    network = build(None, target="torchvision.models:resnet18", seed=3, shape=(3, 32, 32))
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(Rngs.of(3).init.get_state())
        theirs = torchvision.models.resnet18(num_classes=10)
    x = x_of((3, 32, 32))
    assert torch.equal(network(x), theirs(x)) and torch.equal(network.eval()(x), theirs.eval()(x))
    exchanged = build(None, "dbn", target="torchvision.models:resnet18", seed=3, shape=(3, 32, 32))
    assert kinds(exchanged).count("DiminishingBatchNorm2d") == 20 and "BatchNorm2d" not in kinds(exchanged)


@pytest.mark.parametrize("name", ["Net", "Plain"])
def test_cells_that_differ_in_norm_start_from_the_same_weights_even_where_a_normalizer_draws(build, name):
    def drawn(**how):
        own = ("first.weight", "hidden.weight", "out.bias", "frequencies", "body.0.weight")
        return [value for key, value in build(name, **how).net.state_dict().items() if key in own]

    first = drawn(seed=3)
    assert len(first) == (4 if name == "Net" else 2)
    for norm in (*BUILT_IN, "custom"):
        assert all(map(torch.equal, first, drawn(norm=norm, seed=3))), norm
    assert not any(map(torch.equal, first, drawn(seed=4)))


def test_what_a_normalizer_draws_depends_on_the_seed_and_its_place(build):
    def scales(seed):
        net = build("Net", "custom", seed, width=6).net
        return net.a.scale.flatten(), net.b.scale.flatten()

    (a, b), (again, _), (other, _) = scales(3), scales(3), scales(4)
    assert torch.equal(a, again) and not torch.equal(a, other) and not torch.equal(a, b)


def test_dropout_of_any_kind_draws_from_the_cells_stream_and_the_global_one_stands_where_it_stood(build):
    network, x = build("Net"), x_of()
    before = torch.get_rng_state()
    first = network(x)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(Rngs.of(0).dropout.get_state())
        assert torch.equal(first, build("Net").net(x))
    assert not torch.equal(first, network(x))  # the stream has moved on
    assert torch.equal(network.eval()(x), network(x))


def test_an_error_inside_leaves_the_global_generator_where_it_stood():
    before, stream = torch.get_rng_state(), Rngs.of(0).init
    with pytest.raises(ZeroDivisionError), global_draws_from(stream):
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)
    expected = Rngs.of(0).init
    torch.rand(3, generator=expected)
    assert torch.equal(stream.get_state(), expected.get_state())


def test_the_group_norm_holds_the_parameters_of_the_normalizers_whatever_a_network_calls_them(file):
    (target,) = prepared([f"model.target={file}:Net"], sweep=False)
    config = composed(["model=custom", target, "norm=dbn"])
    cell = build_cell(config, load_data(config, torch.device("cpu")), torch.device("cpu"))
    names = {id(parameter): name for name, parameter in cell.model.named_parameters()}
    groups = {g["name"]: {names[id(p)] for p in g["params"]} for g in cell.optimizer.param_groups}
    assert groups["norm"] == {f"net.{layer}.{kind}" for layer in "ab" for kind in ("weight", "bias")}
    assert groups["biases"] == {"net.first.bias", "net.hidden.bias", "net.out.bias"}
    assert groups["weights"] == {"net.first.weight", "net.hidden.weight", "net.out.weight"}


def test_cells_of_ones_own_network_share_no_run_for_it_may_hold_statistics_of_its_own(file):
    (target,) = prepared([f"model.target={file}:Net"], sweep=False)
    schedules = ["schedule=alpha_0.5", "schedule=harmonic"]
    own = [composed(["model=custom", target, "norm=dbn_inference", schedule]) for schedule in schedules]
    assert list(grouped(own, lambda _: 20)) == [[[0]], [[1]]]
    known = [composed(["model=fnn", "norm=dbn_inference", schedule]) for schedule in schedules]
    assert list(grouped(known, lambda _: 20)) == [[[0, 1]]]
