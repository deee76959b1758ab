"""Normalizers of single records against torch's own where it has them, and numpy after the papers' equations.

timm has FRN, EvoNorm-S0 and standardized convolutions, but brings a dozen packages along.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_online import rand
from torch import nn

from dbnrun.config import registry
from dbnrun.config.registry import UserError
from dbnrun.models.layers import map_before
from dbnrun.norm import weights
from dbnrun.norm.dyt import DynamicTanh
from dbnrun.norm.evonorm import EvoNormS0
from dbnrun.norm.frn import FilterResponseNorm
from dbnrun.norm.options import Normalizers, RunFacts
from dbnrun.norm.rms import RMSNorm

SHAPES = [(5, 6), (4, 6, 5), (4, 6, 2, 3)]


def channels(values, x):
    return values.reshape(-1, *[1] * (x.ndim - 2))


def rms(x, p):
    return x / np.sqrt((x**2).mean(axis=tuple(range(1, x.ndim)), keepdims=True) + 1e-3) * channels(p["weight"], x)


def dyt(x, p):
    return np.tanh(p["alpha"] * x) * channels(p["weight"], x) + channels(p["bias"], x)


def frn(x, p):
    axes = tuple(range(2, x.ndim))
    power = (x**2).mean(axis=axes, keepdims=True) if axes else x**2
    y = x / np.sqrt(power + 1e-3 + abs(p.get("learned_eps", 0))) * channels(p["weight"], x) + channels(p["bias"], x)
    return np.maximum(y, channels(p["tau"], x))


def evonorm_s0(x, p):
    std = [np.sqrt(group.reshape(len(x), -1).var(1) + 1e-3) for group in np.split(x, 2, axis=1)]
    std = np.repeat(np.stack(std, 1), 3, axis=1).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    swish = x / (1 + np.exp(-channels(p["v"], x) * x))
    return swish / std * channels(p["weight"], x) + channels(p["bias"], x)


LAYERS = {
    "rms": (lambda: RMSNorm(6, eps=1e-3), rms),
    "dyt": (lambda: DynamicTanh(6, alpha=0.8), dyt),
    "frn": (lambda: FilterResponseNorm(6, eps=1e-3), frn),
    "frn learned": (lambda: FilterResponseNorm(6, eps=1e-3, learned_eps=0.1), frn),
    "evonorm_s0": (lambda: EvoNormS0(6, num_groups=2, eps=1e-3), evonorm_s0),
}
CASES = [(kind, shape) for kind in LAYERS for shape in SHAPES if kind != "frn" or len(shape) > 2]


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_a_layer_equals_its_equation_in_numpy_and_its_gradients_finite_differences(kind, shape):
    make, equation = LAYERS[kind]
    layer = make().double()
    for number, parameter in enumerate(layer.parameters()):
        parameter.data += 0.3 * rand(*parameter.shape, seed=number + 1)
    named = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    x = rand(*shape)
    np.testing.assert_allclose(layer(x).detach().numpy(), equation(x.numpy(), named), rtol=1e-10, atol=1e-12)

    def forward(x, *values):
        return torch.func.functional_call(layer, dict(zip(named, values, strict=True)), (x,))

    values = [torch.from_numpy(value).clone().requires_grad_() for value in named.values()]
    assert torch.autograd.gradcheck(forward, [x.requires_grad_(), *values])


@pytest.mark.parametrize("make", [lambda **a: RMSNorm(6, eps=1e-3, **a), lambda **a: DynamicTanh(6, alpha=0.8, **a)])
def test_without_gamma_and_beta_a_layer_computes_as_with_1_and_0(make):
    for shape in SHAPES:
        x = rand(*shape)
        assert torch.equal(make(affine=False).double()(x), make().double()(x))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("shape", [(6,), (3, 1), (3, 5), (3, 1, 2, 2)])
def test_inputs_of_other_shapes_are_refused(kind, shape):
    with pytest.raises(ValueError, match=r"^expected (at least 2-D|6 channels)"):
        LAYERS[kind][0]()(torch.ones(shape))


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 1, 1)])
def test_frn_of_one_place_needs_a_learned_eps(shape):
    with pytest.raises(ValueError, match="expects feature maps larger than 1x1, got shape"):
        FilterResponseNorm(6)(torch.ones(shape))
    assert FilterResponseNorm(6, learned_eps=1e-4)(torch.ones(shape)).shape == shape


@pytest.mark.parametrize("kind", LAYERS)
def test_a_bfloat16_input_is_rounded_once_at_the_end(kind):
    layer, x = LAYERS[kind][0](), rand(4, 6, 2, 3).bfloat16()
    for number, parameter in enumerate(layer.parameters()):
        parameter.data += 0.3 * rand(*parameter.shape, seed=number + 1).float()
    assert torch.equal(layer(x), layer(x.float()).bfloat16())


def test_rms_of_units_equals_torchs():
    x, ours, theirs = rand(7, 5), RMSNorm(5, eps=1e-6).double(), nn.RMSNorm(5, eps=1e-6).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_groups_that_evonorm_cannot_divide_by_are_refused():
    with pytest.raises(ValueError, match="expected a divisor of the 6 channels"):
        EvoNormS0(6, num_groups=4)
    with pytest.raises(ValueError, match="groups of more than one value"):
        EvoNormS0(6, num_groups=6)(rand(2, 6))
    with pytest.raises(UserError, match=r"^norm.num_groups=16: a layer of 16 units .* such as norm.num_groups=4\.$"):
        registry.make("norm", "evonorm_s0", num_groups=16).build(16, 0, None)


CHANGES = {
    "gn_ws": (weights.standardized, lambda w: (w - w.mean()) / np.sqrt(w.var() + 1e-5)),
    "mabn": (weights.centralized, lambda w: w - w.mean()),
}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 3, 2)])
def test_weights_are_changed_by_each_output_as_in_numpy(kind, shape):
    ours, equation = CHANGES[kind]
    w = rand(*shape) * 2 + 1
    expected = np.stack([equation(own) for own in w.numpy()])
    np.testing.assert_allclose(ours(w).numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_map_before_a_normalizer_computes_with_changed_weights_and_keeps_its_parameters(kind):
    norm, change = Normalizers(registry.make("norm", kind), None), CHANGES[kind][0]
    for layer, x, plain in (
        (nn.Linear(6, 4), rand(5, 6).float(), F.linear),
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), rand(5, 3, 6, 6).float(), None),
    ):
        names, w, bias = list(layer.state_dict()), layer.weight.clone(), layer.bias
        expected = plain(x, change(w), bias) if plain else F.conv2d(x, change(w), bias, stride=2, padding=1)
        assert map_before(norm, layer) is layer
        torch.testing.assert_close(layer(x), expected)
        assert list(layer.state_dict()) == names and torch.equal(layer.weight, w)
        layer(x).square().sum().backward()
        # What the change takes out of the weights, no gradient puts back.
        torch.testing.assert_close(layer.weight.grad.flatten(1).mean(1), torch.zeros(4), rtol=0, atol=1e-4)


def test_a_map_is_left_alone_where_the_normalizer_asks_for_nothing():
    assert type(map_before(Normalizers(registry.make("norm", "gn"), None), nn.Linear(3, 2))) is nn.Linear
    assert Normalizers(registry.make("norm", "mabn", centralize=False), None).of_weights is None


def test_every_map_that_is_normalized_is_changed_and_no_other():
    def changed(model, shape, **options):
        run = RunFacts(None, 10, 1, 8)
        network = registry.make("model", model, **options).build(
            shape, 10, Normalizers(registry.make("norm", "gn_ws", num_groups=2), run), torch.Generator()
        )
        maps = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        return sum(hasattr(layer, "of_weights") for layer in maps), len(maps)

    for position in ("before", "after"):
        assert changed("fnn", (6,), widths=[4, 4], norm_position=position) == (2, 3)
        assert changed("cnn", (3, 8, 8), widths=[4, 4, 4, 4, 8], norm_position=position) == (5, 6)
    assert changed("two_layer", (6,), widths=[4]) == (1, 2)
    assert changed("torchvision", (3, 16, 16), arch="resnet18") == (20, 21)
    # Squeeze and excitation has convolutions of its own, two a block of nine, that nothing normalizes.
    assert changed("torchvision", (3, 32, 32), arch="mobilenet_v3_small", stem="imagenet") == (34, 54)


def test_a_number_of_groups_that_does_not_divide_a_layer_is_refused_and_the_default_takes_every_layer():
    for name in ("gn", "evonorm_s0"):
        with pytest.raises(UserError, match=r"^norm.num_groups=3: expected a divisor of the 64 features of a layer\.$"):
            registry.make("norm", name, num_groups=3).build(64, 2, None)
        assert registry.make("norm", name).build(50, 2, None).num_groups == 2
