"""Momentum Batch Normalization against numpy from the paper's Algorithm 1, torch.nn.BatchNorm, and the DBN layer."""

import copy

import numpy as np
import pytest
import torch
from test_online import rand
from torch import nn

from dbnrun.config import registry
from dbnrun.norm import DiminishingBatchNorm1d
from dbnrun.norm.momentum_bn import MomentumBatchNorm1d, MomentumBatchNorm2d
from dbnrun.norm.options import RunFacts
from dbnrun.norm.population import population_moments, using_statistics
from dbnrun.norm.schedules import Constant

SHAPES = [(MomentumBatchNorm1d, (4, 3)), (MomentumBatchNorm1d, (4, 3, 5)), (MomentumBatchNorm2d, (4, 3, 2, 5))]
RUN = {"batch_size": 4, "epochs": 4, "steps_per_epoch": 3}


def lambda_of(t, n, epochs, m0):
    """The paper's formula as it stands."""
    rho = min(n / m0, 1) ** (1 / epochs)
    return rho ** (epochs / (epochs - 1) * max(epochs - t, 0)) - rho**epochs


def test_lambda_grows_from_0_in_the_first_epoch_to_its_bound_in_the_last_and_is_0_from_batches_of_m0_on():
    for n, m0, epochs in [(4, 32, 10), (16, 32, 3), (2, 64, 2), (100, 32, 5), (32, 32, 5)]:
        layer = MomentumBatchNorm1d(2, batch_size=n, epochs=epochs, steps_per_epoch=7, m0=m0, dtype=torch.float64)
        found = []
        for m in range(1, 7 * epochs + 8):  # one epoch beyond the last
            layer.m.fill_(m)
            found.append(float(layer._lambda()))
        expected = [lambda_of(-(-m // 7), n, epochs, m0) for m in range(1, 7 * epochs + 8)]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
        assert found[0] == 0 and found[-1] == pytest.approx(1 - min(n / m0, 1), abs=1e-14)
        assert n < m0 or not any(found)


@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_both_averages_and_both_outputs_are_the_papers_algorithm_in_numpy(kind, shape):
    layer = kind(3, **RUN, eps=1e-3, dtype=torch.float64)
    layer.weight.data, layer.bias.data = rand(3, seed=1), rand(3, seed=2)
    across = tuple(axis for axis in range(len(shape)) if axis != 1)
    aligned = [1, 3, *[1] * (len(shape) - 2)]
    gamma, beta = (t.detach().numpy().reshape(aligned) for t in (layer.weight, layer.bias))
    mu, var, mu_inf, var_inf = np.zeros(3), np.ones(3), np.zeros(3), np.ones(3)
    tau = 0.9 ** (4 / 32)
    for m in range(1, 13):
        x = rand(*shape, seed=m).numpy() * m**0.5 + 0.3 * m
        mu_b, var_b, mixing = x.mean(across), x.var(across), lambda_of(-(-m // 3), 4, 4, 32)
        mu, var = mixing * mu + (1 - mixing) * mu_b, mixing * var + (1 - mixing) * var_b
        expected = gamma * (x - mu.reshape(aligned)) / np.sqrt(var.reshape(aligned) + 1e-3) + beta
        np.testing.assert_allclose(layer(torch.tensor(x)).detach().numpy(), expected, rtol=1e-10, atol=1e-10)
        mu_inf, var_inf = tau * mu_inf + (1 - tau) * mu_b, tau * var_inf + (1 - tau) * var_b
    expected = gamma * (x - mu_inf.reshape(aligned)) / np.sqrt(var_inf.reshape(aligned) + 1e-3) + beta
    np.testing.assert_allclose(layer.eval()(torch.tensor(x)).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


def test_at_the_default_batch_of_100_it_trains_as_torch_batchnorm_in_every_epoch():
    layer = MomentumBatchNorm1d(3, batch_size=100, epochs=3, steps_per_epoch=2, dtype=torch.float64)
    peer = nn.BatchNorm1d(3, dtype=torch.float64)
    for m in range(6):
        mine, theirs = rand(100, 3, seed=m).requires_grad_(), rand(100, 3, seed=m).requires_grad_()
        g = rand(100, 3, seed=50 + m)
        y, expected = layer(mine), peer(theirs)
        y.backward(g)
        expected.backward(g)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.weight.grad, peer.weight.grad, rtol=1e-10, atol=1e-10)


def test_it_trains_as_the_dbn_layer_whose_alpha_is_1_minus_lambda():
    layer = MomentumBatchNorm1d(3, **RUN, dtype=torch.float64)
    axes = {"average": "var", "eps_at": "var", "eps": 1e-5, "dtype": torch.float64}
    dbn = DiminishingBatchNorm1d(3, lambda m: 1 - lambda_of(-(-int(m) // 3), 4, 4, 32), **axes)
    for m in range(12):
        mine, theirs = rand(4, 3, seed=m).requires_grad_(), rand(4, 3, seed=m).requires_grad_()
        y, expected, g = layer(mine), dbn(theirs), rand(4, 3, seed=50 + m)
        y.backward(g)
        expected.backward(g)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-10)


def test_the_gradient_of_a_mixing_layer_matches_finite_differences():
    layer = MomentumBatchNorm2d(3, **RUN, dtype=torch.float64)
    for m in range(9):  # three epochs: lambda is 0.5
        layer(rand(4, 3, 2, 2, seed=m) + 0.5)

    def forward(x, gamma, beta):
        return torch.func.functional_call(copy.deepcopy(layer), {"weight": gamma, "bias": beta}, (x,))

    inputs = [rand(4, 3, 2, 2, seed=20), rand(3, seed=1), rand(3, seed=2)]
    assert torch.autograd.gradcheck(forward, [t.requires_grad_() for t in inputs])


def test_population_statistics_normalize_by_all_batches_together():
    layer = MomentumBatchNorm1d(3, **RUN, eps=1e-3, dtype=torch.float64).eval()
    x = rand(12, 3) * 2 + 1
    with using_statistics(population_moments(nn.Sequential(layer), x.split(4))):
        y = layer(x)
    torch.testing.assert_close(y, (x - x.mean(0)) / (x.var(0, correction=0) + 1e-3).sqrt(), rtol=1e-9, atol=1e-9)


def test_the_choice_is_told_the_length_of_its_run():
    run = RunFacts(Constant(), steps_per_epoch=100, epochs=10, batch_size=16)
    layer = registry.make("norm", "momentum_bn", m0=64).build(4, 0, run)
    assert isinstance(layer, MomentumBatchNorm1d)
    assert (layer.steps_per_epoch, layer.epochs, layer.batch_size, layer.m0) == (100, 10, 16, 64)
