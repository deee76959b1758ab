"""The networks: shapes, shared weights across normalizers, and Algorithm 1 against a hand-written numpy program."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dbnrun.config import registry
from dbnrun.models.layers import ACTIVATIONS, Dropout, initialize
from dbnrun.models.two_layer import TwoLayer
from dbnrun.norm.options import Normalizers, RunFacts
from dbnrun.norm.schedules import Power
from dbnrun.train.rng import Rngs

NORMS = {name: registry.make("norm", name) for name in registry.of("norm") if name != "custom"}
RUN = RunFacts(Power(exponent=1.0), steps_per_epoch=10, epochs=3, batch_size=4)
SHAPES = {"fnn": (1, 8, 8), "cnn": (3, 8, 8), "two_layer": (1, 8, 8)}


def build(name, norm="bn", seed=0, **changes):
    widths = {"fnn": [30, 20], "cnn": [8, 8, 16, 16, 24], "two_layer": [12]}[name]
    model = registry.make("model", name, **{"widths": widths, **changes})
    rngs = Rngs.of(seed)
    network = model.build(SHAPES[name], 10, Normalizers(NORMS[norm], RUN), rngs.dropout)
    initialize(network, rngs.init)
    return network


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SHAPES)
def test_every_network_takes_every_normalizer_and_returns_logits(name, norm):
    model = build(name, norm)
    logits = model(torch.randn(4, *SHAPES[name]))
    assert logits.shape == (4, 10)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_networks_that_differ_only_in_norm_start_from_the_same_weights(name):
    weights = []
    for norm in NORMS:
        layers = [layer for layer in build(name, norm, seed=3).modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        weights.append([layer.weight for layer in layers])
    for others in weights[1:]:
        assert all(torch.equal(one, other) for one, other in zip(weights[0], others, strict=True))
    other_seed = next(p for p in build(name, seed=4).parameters() if p.dim() > 1)
    assert not torch.equal(weights[0][0], other_seed)


def test_weights_have_glorots_variance():
    model = build("fnn", widths=[400, 300])
    weight = next(p for p in model.parameters() if p.shape == (300, 400))
    # 120,000 draws: the standard error of a standard deviation is 0.2 %.
    assert weight.std().item() == pytest.approx((2 / 700) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("position", "norm", "expected"), [("before", "bn", 0), ("after", "bn", 2), ("before", "none", 2)]
)
def test_a_hidden_layer_has_a_bias_unless_a_shift_follows_directly(position, norm, expected):
    model = build("fnn", norm, norm_position=position)
    assert sum(name.endswith("linear.bias") for name, _ in model.named_parameters()) == expected


def test_norm_position_decides_what_is_normalized():
    for position, order in (("before", ["linear", "norm", "act"]), ("after", ["linear", "act", "norm"])):
        assert list(build("fnn", norm_position=position).hidden[0]) == order
        assert list(build("cnn", norm_position=position).convs[0]) == order


def test_the_cnn_normalizes_four_convolutions_and_the_first_fc():
    model = build("cnn")
    kinds = [type(layer) for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert kinds == [nn.BatchNorm2d] * 4 + [nn.BatchNorm1d]
    assert [layer.rate for layer in model.modules() if isinstance(layer, Dropout)] == [0.25, 0.25, 0.5]


@pytest.mark.parametrize(
    ("name", "function"), [("relu", F.relu), ("tanh", torch.tanh), ("elu", F.elu), ("gelu", F.gelu)]
)
def test_activations_are_found_by_name(name, function):
    x = torch.linspace(-2, 2, 9)
    assert torch.equal(ACTIVATIONS[name]()(x), function(x))


def test_dropout_keeps_the_mean_follows_its_stream_and_rests_in_evaluation():
    x = torch.ones(400, 500)
    a, b = (Dropout(0.25, Rngs.of(7).dropout)(x) for _ in range(2))
    assert torch.equal(a, b)
    assert a.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    # 200,000 draws of standard deviation 0.58: the mean's standard error is 0.0013.
    assert a.mean().item() == pytest.approx(1.0, abs=0.006)
    assert torch.equal(Dropout(0.25, Rngs.of(7).dropout).eval()(x), x)


def test_streams_of_one_seed_are_independent_and_reproducible():
    one, again, other = Rngs.of(1), Rngs.of(1), Rngs.of(2)
    draw = lambda g: torch.rand(4, generator=g)  # noqa: E731
    assert torch.equal(draw(one.init), draw(again.init))
    assert not torch.equal(draw(one.order), draw(one.dropout))
    state = one.state()
    after = draw(one.order)
    other.restore(state)
    assert torch.equal(draw(other.order), after)


def _numpy_algorithm_1(x, labels, w1, w2, activation, alpha, eta, eps, iterations):
    """Algorithm 1 with full gradients for equations 3 to 5, mean cross-entropy, by hand; yields theta and lambda."""
    n = len(x)
    act, slope = {
        "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
        "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
    }[activation]
    gamma, beta = np.ones(len(w1)), np.zeros(len(w1))
    mu, sigma = np.zeros(len(w1)), np.ones(len(w1))
    for m in range(1, iterations + 1):
        h1 = x @ w1.T
        z1 = act(h1)
        mu = alpha(m) * z1.mean(0) + (1 - alpha(m)) * mu
        sigma = alpha(m) * z1.std(0) + (1 - alpha(m)) * sigma
        hat = (z1 - mu) / (sigma + eps)
        y1 = gamma * hat + beta
        h2 = y1 @ w2.T
        z2 = act(h2)
        p = np.exp(z2 - z2.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        dz2 = (p - np.eye(w2.shape[0])[labels]) / n
        dh2 = dz2 * slope(h2)
        dy1 = dh2 @ w2
        dz1 = dy1 * gamma / (sigma + eps)  # lambda held fixed, equation 2
        gradients = (dz1 * slope(h1)).T @ x, dh2.T @ y1, (dy1 * hat).sum(0), dy1.sum(0)
        w1, w2, gamma, beta = (t - eta(m) * g for t, g in zip((w1, w2, gamma, beta), gradients, strict=True))
    return w1, w2, gamma, beta, mu, sigma


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_algorithm_1_on_the_two_layer_network_equals_a_numpy_program_over_20_iterations(activation):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 6)), rng.integers(0, 3, 40)
    alpha, eta, eps = lambda m: m**-1.5, lambda m: 0.8 / m, 1e-3
    norm = registry.make("norm", "dbn", stats_grad=False, eps=eps)
    model = TwoLayer(6, 5, 3, Normalizers(norm, RunFacts(Power(exponent=1.5), 1, 20, 40)), activation).double()
    w1, w2 = (w.weight.detach().numpy().copy() for w in (model.w1, model.w2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for m in range(1, 21):
        optimizer.param_groups[0]["lr"] = eta(m)
        optimizer.zero_grad()
        F.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(labels)).backward()
        optimizer.step()
    expected = _numpy_algorithm_1(x, labels, w1, w2, activation, alpha, eta, eps, 20)
    norm = model.norm
    actual = model.w1.weight, model.w2.weight, norm.weight, norm.bias, norm.mu, norm.spread
    assert not np.allclose(expected[0], w1)  # it did learn
    for mine, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), theirs, rtol=1e-9, atol=1e-12)


class Gated(nn.BatchNorm1d):
    """A normalizer with a linear map of its own, which begins at zero."""

    def __init__(self, features):
        super().__init__(features)
        self.gate = nn.Linear(features, features)
        nn.init.zeros_(self.gate.weight)


@pytest.mark.parametrize("name", ["fnn", "two_layer"])
def test_a_linear_map_inside_a_normalizer_keeps_its_weights_and_takes_no_draw_of_the_network(name, monkeypatch):
    plain = build(name)
    monkeypatch.setattr(type(NORMS["bn"]), "build", lambda self, features, spatial, run: Gated(features))
    gated = build(name)
    layers = [layer for layer in gated.modules() if isinstance(layer, Gated)]
    assert layers and all(not layer.gate.weight.any() for layer in layers)
    weights = gated.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in plain.state_dict().items())
