"""Batch Renormalization against numpy and autograd from the paper's Algorithm 1, and against torch.nn.BatchNorm."""

import numpy as np
import pytest
import torch
from test_online import rand
from torch import nn

from dbnrun.config import registry
from dbnrun.config.registry import UserError
from dbnrun.norm.batch_renorm import BatchRenorm1d, BatchRenorm2d
from dbnrun.norm.options import RunFacts
from dbnrun.norm.population import population_moments, using_statistics
from dbnrun.norm.schedules import Constant

SHAPES = [(BatchRenorm1d, (7, 3)), (BatchRenorm1d, (4, 3, 5)), (BatchRenorm2d, (4, 3, 2, 5))]
RAMP = {"warmup": 3, "r_full": 9, "d_full": 6, "momentum": 0.2}


def batch(shape, m):
    """Batches that drift, so that r and d meet their bounds."""
    return rand(*shape, seed=m) * m**0.7 + 0.3 * m


@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_warm_up_ramp_and_evaluation_are_the_papers_algorithm_in_numpy(kind, shape):
    layer = kind(3, **RAMP, eps=1e-3, dtype=torch.float64)
    layer.weight.data, layer.bias.data = rand(3, seed=1), rand(3, seed=2)
    gamma, beta = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    across = tuple(axis for axis in range(len(shape)) if axis != 1)
    aligned = [1, 3, *[1] * (len(shape) - 2)]
    mu, sigma, clipped = np.zeros(3), np.ones(3), set()
    for m in range(1, 13):
        x = batch(shape, m).numpy()
        mu_b, sigma_b = x.mean(across), np.sqrt(x.var(across) + 1e-3)
        # By section 4: 1 and 0 for the first steps, then linear in the step.
        r_max, d_max = np.interp(m, [3, 9], [1, 3]), np.interp(m, [3, 6], [0, 5])
        r = np.clip(sigma_b / sigma, 1 / r_max, r_max)
        d = np.clip((mu_b - mu) / sigma, -d_max, d_max)
        clipped |= {bool(inside) for inside in (r == sigma_b / sigma)} if m > 3 else set()
        hat = (x - mu_b.reshape(aligned)) / sigma_b.reshape(aligned) * r.reshape(aligned) + d.reshape(aligned)
        expected = gamma.reshape(aligned) * hat + beta.reshape(aligned)
        np.testing.assert_allclose(layer(torch.tensor(x)).detach().numpy(), expected, rtol=1e-10, atol=1e-10)
        mu, sigma = mu + 0.2 * (mu_b - mu), sigma + 0.2 * (sigma_b - sigma)
    assert clipped == {True, False} and int(layer.m) == 12
    x = batch(shape, 20)
    expected = gamma.reshape(aligned) * (x.numpy() - mu.reshape(aligned)) / sigma.reshape(aligned)
    np.testing.assert_allclose(layer.eval()(x).detach().numpy(), expected + beta.reshape(aligned), rtol=1e-10)


@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_in_the_warm_up_it_trains_as_torch_batchnorm(kind, shape):
    layer = kind(3, warmup=5, dtype=torch.float64)
    peer = (nn.BatchNorm2d if kind is BatchRenorm2d else nn.BatchNorm1d)(3, dtype=torch.float64)
    for m in range(1, 6):
        mine, theirs = batch(shape, m).requires_grad_(), batch(shape, m).requires_grad_()
        y, expected, g = layer(mine), peer(theirs), rand(*shape, seed=50 + m)
        y.backward(g)
        expected.backward(g)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.weight.grad, peer.weight.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.bias.grad, peer.bias.grad, rtol=1e-10, atol=1e-10)


def test_in_the_warm_up_the_gradient_matches_finite_differences():
    inputs = [rand(4, 3, 2, 2), rand(3, seed=1), rand(3, seed=2)]

    def forward(x, gamma, beta):
        layer = BatchRenorm2d(3, dtype=torch.float64)
        return torch.func.functional_call(layer, {"weight": gamma, "bias": beta}, (x,))

    assert torch.autograd.gradcheck(forward, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("affine", [True, False])
def test_the_gradient_holds_r_and_d_constant(affine):
    layer = BatchRenorm1d(3, warmup=0, r_full=1, d_full=1, momentum=0.5, affine=affine, dtype=torch.float64)
    layer(batch((7, 3), 1))
    mu, sigma = layer.mu.clone(), layer.sigma.clone()
    x, g = batch((7, 3), 2).requires_grad_(), rand(7, 3, seed=9)
    layer(x).backward(g)
    other = x.detach().clone().requires_grad_()
    gamma, beta = torch.ones(3).double().requires_grad_(), torch.zeros(3).double().requires_grad_()
    mu_b, sigma_b = other.mean(0), (other.var(0, correction=0) + 1e-5).sqrt()
    r = (sigma_b / sigma).clamp(1 / 3, 3).detach()
    d = ((mu_b - mu) / sigma).clamp(-5, 5).detach()
    assert (r != 1).all() and (d != 0).all()
    (gamma * ((other - mu_b) / sigma_b * r + d) + beta).backward(g)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-9, atol=1e-11)
    if affine:
        torch.testing.assert_close(layer.weight.grad, gamma.grad, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(layer.bias.grad, beta.grad, rtol=1e-10, atol=1e-11)


def test_population_statistics_normalize_by_all_batches_together():
    layer = BatchRenorm1d(3, eps=1e-3, dtype=torch.float64).eval()
    x = batch((12, 3), 2)
    moments = population_moments(nn.Sequential(layer), x.split(4))
    with using_statistics(moments):
        y = layer(x)
    expected = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-3).sqrt()
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


def test_shares_of_the_run_become_updates_and_an_end_before_the_warm_up_is_refused():
    run = RunFacts(Constant(), steps_per_epoch=100, epochs=10, batch_size=4)
    layer = registry.make("norm", "batch_renorm", warmup=0.1).build(4, 2, run)
    assert isinstance(layer, BatchRenorm2d) and (layer.warmup, layer.r_full, layer.d_full) == (100, 310, 190)
    with pytest.raises(UserError, match=r"norm\.d_full=0\.19: expected a number of at least 0\.3, at most 1\."):
        registry.make("norm", "batch_renorm", warmup=0.3)


def test_a_wrong_input_is_refused():
    layer = BatchRenorm1d(3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.ones(1, 3))
    with pytest.raises(ValueError, match="expected 3 channels, got 4"):
        layer(torch.ones(2, 4))
    assert int(layer.m) == 0
