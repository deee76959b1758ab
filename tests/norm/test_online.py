"""Online Normalization against a loop over records in numpy, written from the paper's equations.

The authors' own layer needs a compiled extension for torch 1.1; no package has one.
"""

import numpy as np
import pytest
import torch

from dbnrun.norm.online import OnlineNorm, recursion

SHAPES = [(7, 3), (5, 3, 4), (6, 3, 2, 5)]


def rand(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Loop:
    """One record after another, in numpy; the state is (mu, var, u, v)."""

    def __init__(self, features, a, b, eps):
        self.a, self.b, self.eps = a, b, eps
        self.state = [np.zeros(features), np.ones(features), np.zeros(features), np.zeros(features)]

    def forward(self, x):
        mu, var = self.state[:2]
        self.y, self.sigma = np.empty_like(x), []
        for t, record in enumerate(x):
            flat = record.reshape(len(record), -1)
            self.sigma.append(np.sqrt(var + self.eps))
            self.y[t] = ((flat - mu[:, None]) / self.sigma[t][:, None]).reshape(record.shape)
            m, s = flat.mean(1), flat.var(1)
            var = self.a * var + (1 - self.a) * s + self.a * (1 - self.a) * (m - mu) ** 2
            mu = self.a * mu + (1 - self.a) * m
        self.state[:2] = mu, var
        return self.y

    def backward(self, g):
        u, v = self.state[2:]
        dx = np.empty_like(g)
        for t, slope in enumerate(g):
            y, slope_t = (array.reshape(len(slope), -1) for array in (self.y[t], slope))
            h = slope_t - (1 - self.b) * v[:, None] * y
            v = v + (h * y).mean(1)
            d = h / self.sigma[t][:, None] - (1 - self.b) * u[:, None]
            u = u + d.mean(1)
            dx[t] = d.reshape(slope.shape)
        self.state[2:] = u, v
        return dx


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
def test_five_steps_forward_and_backward_equal_a_loop_over_records_in_numpy(shape, affine):
    options = {"forward_decay": 0.9, "backward_decay": 0.8, "guard": "none", "eps": 1e-3, "affine": affine}
    layer = OnlineNorm(3, dtype=torch.float64, **options)
    gamma, beta = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    if affine:
        layer.weight.data.copy_(gamma := rand(3, seed=1))
        layer.bias.data.copy_(beta := rand(3, seed=2))
    over = [1, 3, *[1] * (len(shape) - 2)]
    loop = Loop(3, 0.9, 0.8, 1e-3)
    for step in range(5):
        x = (rand(*shape, seed=10 + step) * (step + 1) + 2).requires_grad_()
        g = rand(*shape, seed=20 + step)
        z = layer(x)
        z.backward(g)
        y = loop.forward(x.detach().numpy())
        dx = loop.backward((g * gamma.view(over)).numpy())
        np.testing.assert_allclose(
            z.detach().numpy(), (gamma.view(over) * torch.from_numpy(y) + beta.view(over)), rtol=1e-10
        )
        np.testing.assert_allclose(x.grad.numpy(), dx, rtol=1e-9, atol=1e-12)
    for name, expected in zip(("mu", "var", "u", "v"), loop.state, strict=True):
        np.testing.assert_allclose(getattr(layer, name).numpy(), expected, rtol=1e-10, atol=1e-13)


def test_a_recursion_by_doubling_equals_the_loop():
    factor, term, start = rand(13, 4), rand(13, 4, seed=1), rand(4, seed=2)
    expected = [start]
    for f, t in zip(factor, term, strict=True):
        expected.append(f * expected[-1] + t)
    torch.testing.assert_close(recursion(factor, term, start), torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("guard", "clamp"), [("layer_scaling", 5.0), ("clamp", 0.5)])
def test_the_guards_equal_their_definitions_and_their_gradients_finite_differences(guard, clamp):
    x = rand(4, 3, 2, 2)
    plain = OnlineNorm(3, guard="none", dtype=torch.float64)(x)
    z = OnlineNorm(3, guard=guard, clamp=clamp, dtype=torch.float64)(x)
    wanted = (
        plain.clamp(-0.5, 0.5)
        if guard == "clamp"
        else plain / (plain.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    )
    torch.testing.assert_close(z, wanted, rtol=1e-12, atol=1e-12)
    layer = OnlineNorm(3, guard=guard, clamp=clamp, dtype=torch.float64).eval()
    assert torch.autograd.gradcheck(layer, x.requires_grad_())


def test_without_control_the_gradient_is_that_of_constant_statistics():
    def forward(x, gamma, beta):
        layer = OnlineNorm(3, backward_decay=1.0, guard="none", dtype=torch.float64)
        return torch.func.functional_call(layer, {"weight": gamma, "bias": beta}, (x,))

    # Of one record: what follows from it in the same batch is left out of the gradient by definition.
    inputs = [rand(1, 3, 2, 2), rand(3, seed=1), rand(3, seed=2)]
    assert torch.autograd.gradcheck(forward, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("make", [lambda: OnlineNorm(3, guard="none!"), lambda: OnlineNorm(3)(torch.zeros(2, 4))])
def test_what_it_cannot_take_is_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()


def test_evaluation_normalizes_by_what_is_set():
    layer, x = OnlineNorm(3, guard="none", dtype=torch.float64).eval(), rand(5, 3)
    layer.set_statistics(torch.full((3,), 2.0), torch.full((3,), 4.0))
    torch.testing.assert_close(layer(x), (x - 2) / (4 + 1e-5) ** 0.5)
