"""MABN and PowerNorm against programs in numpy, written from the papers' equations; no package has either."""

import numpy as np
import pytest
import torch
from test_online import rand

from dbnrun.norm.mabn import MovingAverageBatchNorm
from dbnrun.norm.online import OnlineNorm
from dbnrun.norm.powernorm import PowerNorm

SHAPES = [(7, 3), (4, 3, 5), (4, 3, 2, 5)]


def channels(values, x):
    return values.reshape(-1, *[1] * (x.ndim - 2))


def mean(x):
    return x.mean(axis=tuple(axis for axis in range(x.ndim) if axis != 1))


def numpy_mabn(xs, gs, gamma, beta, *, memory, decay, limit, warmup, eps, unit_ratio):
    """Outputs and input gradients of each step, and the second moment that evaluation uses."""
    square, squares, slopes = np.ones(len(gamma)), [], []
    for m, (x, g) in enumerate(zip(xs, gs, strict=True), start=1):
        squares = [*squares, mean(x**2)][-memory:]
        alone = m <= memory or m < warmup
        averaged = squares[-1] if alone else np.mean(squares, axis=0)
        chi = np.sqrt(averaged + eps)
        r = np.clip(chi / np.sqrt(square + eps), 1 / limit, limit) if m > unit_ratio else np.ones_like(chi)
        square = decay * square + (1 - decay) * averaged
        z = x / channels(chi, x)
        inner = g * channels(gamma * r, x)
        slopes = [*slopes, mean(inner * z)][-memory:]
        slope = slopes[-1] if alone else np.mean(slopes, axis=0)
        yield (
            z * channels(gamma * r, x) + channels(beta, x),
            (inner - z * channels(slope, x)) / channels(chi, x),
            square,
        )


def numpy_powernorm(xs, gs, gamma, beta, *, a, b, warmup, eps):
    square, nu = np.ones(len(gamma)), np.zeros(len(gamma))
    for m, (x, g) in enumerate(zip(xs, gs, strict=True), start=1):
        newest = mean(x**2)
        psi = np.sqrt((newest if m <= warmup else square) + eps)
        square = square * (m - 1) / m + newest / m if m <= warmup else a * square + (1 - a) * newest
        z = x / channels(psi, x)
        inner = g * channels(gamma, x)
        dx = (inner - channels(nu, x) * z) / channels(psi, x)
        nu = nu * (1 - (1 - b) * mean(z**2)) + (1 - b) * mean(inner * z)
        yield z * channels(gamma, x) + channels(beta, x), dx, square


def compare(layer, program, shape, steps, **options):
    gamma, beta = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    if layer.affine:
        layer.weight.data.copy_(gamma := rand(3, seed=1))
        layer.bias.data.copy_(beta := rand(3, seed=2))
    xs = [rand(*shape, seed=10 + step) * (1 + step / 3) + 1 for step in range(steps)]
    gs = [rand(*shape, seed=50 + step) + 0.5 for step in range(steps)]
    expected = program(
        [x.numpy() for x in xs], [g.numpy() for g in gs], gamma.numpy(), beta.numpy(), eps=1e-3, **options
    )
    for x, g, (y, dx, square) in zip(xs, gs, expected, strict=True):
        inner = x.requires_grad_()
        out = layer(inner)
        out.backward(g)
        np.testing.assert_allclose(out.detach().numpy(), y, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(inner.grad.numpy(), dx, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(layer.square.numpy(), square, rtol=1e-12)
    assert int(layer.m) == steps
    last = layer.eval()(xs[0]).detach().numpy()
    rate = channels(gamma.numpy() / np.sqrt(square + 1e-3), last)
    np.testing.assert_allclose(last, xs[0].detach().numpy() * rate + channels(beta.numpy(), last), rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("memory", "warmup", "unit_ratio"), [(3, 0, 5), (2, 7, 0), (1, 0, 4)])
def test_twelve_steps_of_mabn_equal_a_numpy_program(shape, memory, warmup, unit_ratio, monkeypatch):
    monkeypatch.setattr(MovingAverageBatchNorm, "UNIT_RATIO", unit_ratio)
    options = {"memory": memory, "warmup": warmup, "decay": 0.7, "limit": 1.3}
    layer = MovingAverageBatchNorm(3, eps=1e-3, dtype=torch.float64, **options)
    compare(layer, numpy_mabn, shape, 12, unit_ratio=max(unit_ratio, warmup), **options)


def test_mabn_with_its_own_first_thousand_updates_and_without_gamma_and_beta_equals_a_numpy_program():
    options = {"memory": 4, "warmup": 10, "decay": 0.9, "limit": 1.3}
    layer = MovingAverageBatchNorm(3, eps=1e-3, affine=False, dtype=torch.float64, **options)
    compare(layer, numpy_mabn, (7, 3), 1010, unit_ratio=1000, **options)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("affine", [True, False])
def test_eight_steps_of_powernorm_equal_a_numpy_program(shape, warmup, affine):
    options = {"forward_decay": 0.7, "backward_decay": 0.6, "warmup": warmup, "eps": 1e-3, "affine": affine}
    compare(PowerNorm(3, dtype=torch.float64, **options), numpy_powernorm, shape, 8, a=0.7, b=0.6, warmup=warmup)


@pytest.mark.parametrize("make", [MovingAverageBatchNorm, PowerNorm, OnlineNorm])
@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)])
def test_an_empty_batch_is_refused_in_training_and_moves_nothing(make, shape):
    layer = make(3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match="expected at least one example when training, got shape"):
        layer(torch.zeros(shape))
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert layer.eval()(torch.zeros(shape)).shape == shape


# Without averages, where the definition is a gradient.
DIFFERENTIABLE = {
    "mabn of one batch": lambda: MovingAverageBatchNorm(3, memory=1, dtype=torch.float64),
    "powernorm without control": lambda: PowerNorm(3, backward_decay=1.0, dtype=torch.float64),
}


@pytest.mark.parametrize("case", DIFFERENTIABLE)
def test_gradients_match_finite_differences_where_nothing_is_averaged(case):
    def forward(x, gamma, beta):
        return torch.func.functional_call(DIFFERENTIABLE[case](), {"weight": gamma, "bias": beta}, (x,))

    inputs = [rand(4, 3, 2, 2), rand(3, seed=1), rand(3, seed=2)]
    assert torch.autograd.gradcheck(forward, [t.requires_grad_() for t in inputs])
