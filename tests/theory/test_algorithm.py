"""Algorithm 1 against a version written by hand in numpy, record by record where that is clearer."""

import numpy as np
import pytest
import torch

from dbnrun.theory import algorithm
from dbnrun.theory.algorithm import Lambda, Setup, Theta
from dbnrun.theory.problems import ACTIVATIONS, Problem, build
from dbnrun.theory.settings import ACTIVATION_NOTES, LOSSES

EPS = 1e-4
N, INPUTS, WIDTH, OUTPUTS = 17, 5, 4, 3
SLOPES = {
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.01 * x), lambda x: np.where(x > 0, 1.0, 0.01)),
    "tanh": (np.tanh, lambda x: np.cosh(x) ** -2.0),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2),
    "elu": (lambda x: np.where(x > 0, x, np.exp(x) - 1), lambda x: np.where(x > 0, 1.0, np.exp(x))),
    "softplus": (lambda x: np.log(1 + np.exp(x)), lambda x: 1 / (1 + np.exp(-x))),
    "identity": (lambda x: x, np.ones_like),
}


def problem(activation="tanh", loss="cross_entropy", seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, OUTPUTS, N)
    targets = np.eye(OUTPUTS)[labels].T if loss == "cross_entropy" else rng.normal(size=(OUTPUTS, N))
    x = rng.normal(size=(N, INPUTS))
    return Problem(torch.from_numpy(x), torch.from_numpy(targets.copy()), ACTIVATIONS[activation], loss)


def start(seed=0, pairs=1):
    theta = algorithm.initial([seed + i for i in range(pairs)], INPUTS, WIDTH, OUTPUTS)
    rng = torch.Generator().manual_seed(seed)
    for part in (theta.gamma, theta.beta):  # off their special values 1 and 0
        part.add_(0.3 * torch.randn(part.shape, dtype=torch.float64, generator=rng))
    return theta


def by_hand(theta, lam, x, targets, activation, loss):
    """f and its gradient, a loop over records, from equations 2 to 5 as printed."""
    a, slope = SLOPES[activation]
    w1, w2, gamma, beta = theta
    mu, sigma = lam
    f, dw1, dw2, dgamma, dbeta = 0.0, *(np.zeros_like(part) for part in theta)
    for record, target in zip(x, targets.T, strict=True):
        pre1 = w1 @ record
        z1 = a(pre1)
        normal = (z1 - mu) / (sigma + EPS)
        y1 = gamma * normal + beta
        pre2 = w2 @ y1
        z2 = a(pre2)
        if loss == "cross_entropy":
            p = np.exp(z2) / np.exp(z2).sum()
            f -= np.log(p[target.argmax()])
            dz2 = p - target
        else:
            f += ((z2 - target) ** 2).mean()
            dz2 = 2 * (z2 - target) / OUTPUTS
        dpre2 = dz2 * slope(pre2)
        dw2 += np.outer(dpre2, y1)
        dy1 = w2.T @ dpre2
        dgamma += dy1 * normal
        dbeta += dy1
        dw1 += np.outer(dy1 * gamma / (sigma + EPS) * slope(pre1), record)
    return f, (dw1, dw2, dgamma, dbeta)


def as_numpy(theta, entry=0):
    return [part[entry].numpy().copy() for part in theta.parts()]


def close(ours, reference, atol=1e-12):
    # float64: sums of 17 terms of order 1 in another order.
    np.testing.assert_allclose(np.asarray(ours), reference, rtol=1e-12, atol=atol)


@pytest.mark.parametrize("from_data", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATION_NOTES)
def test_one_iteration_equals_a_hand_written_numpy_version(activation, loss, from_data):
    data, theta = problem(activation, loss), start()
    x, targets = data.x.numpy(), data.targets.numpy()
    old = as_numpy(theta)
    a = SLOPES[activation][0]
    z1 = a(x @ old[0].T)
    lam = (z1.mean(0), z1.std(0)) if from_data else (np.zeros(WIDTH), np.ones(WIDTH))
    f, gradient = by_hand(old, lam, x, targets, activation, loss)
    eta, alpha_2 = 0.3, 0.25
    new = [part - eta * grad for part, grad in zip(old, gradient, strict=True)]
    z1 = a(x @ new[0].T)
    next_lam = [
        alpha_2 * now + (1 - alpha_2) * before for now, before in zip((z1.mean(0), z1.std(0)), lam, strict=True)
    ]
    f2, gradient2 = by_hand(new, next_lam, x, targets, activation, loss)

    # alpha(1) = 1 must not be used: the first alpha of Algorithm 1 is alpha(2).
    alphas, etas = [lambda m: np.where(m == 2, alpha_2, 1.0)], [lambda m: np.full_like(m, eta)]
    columns = algorithm.run(data, theta, alphas, etas, 2, [1, 2], Setup(EPS, from_data))
    first, second = ({name: column[0, i] for name, column in columns.items()} for i in (0, 1))
    for ours, reference in zip(as_numpy(theta), new, strict=True):
        close(ours, reference)
    close(first["f"], f)
    close(second["f"], f2)
    close(first["grad_sq"], sum((g**2).sum() for g in gradient))
    close(second["grad_sq"], sum((g**2).sum() for g in gradient2))
    moved = np.concatenate([n - b for n, b in zip(next_lam, lam, strict=True)])
    close(second["lambda_step"], np.linalg.norm(moved))
    close(second["lambda_path"], np.linalg.norm(moved))
    apart = np.concatenate([n - s for n, s in zip(next_lam, (z1.mean(0), z1.std(0)), strict=True)])
    close(second["lambda_distance"], np.linalg.norm(apart))
    # lambda bar is lambda(2): the gradient at theta(1) with it, afterwards.
    close(first["grad_sq_final"], sum((g**2).sum() for g in by_hand(old, next_lam, x, targets, activation, loss)[1]))
    close(second["grad_sq_final"], second["grad_sq"])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATION_NOTES)
def test_gradients_with_lambda_fixed_equal_finite_differences(activation, loss):
    data, theta = problem(activation, loss, seed=1), start(seed=2)
    lam = algorithm.statistics(algorithm.hidden(start(seed=7), data))  # not the statistics at theta

    def f(parts):
        moved = Theta(*parts)
        value = algorithm.loss_and_gradient(moved, lam, algorithm.hidden(moved, data), data, EPS)[0]
        assert value is not None
        return float(value[0])

    gradient = algorithm.loss_and_gradient(theta, lam, algorithm.hidden(theta, data), data, EPS)[1]
    step = 1e-6
    for number, (part, grad) in enumerate(zip(theta.parts(), gradient.parts(), strict=True)):
        for place in np.ndindex(*part.shape):
            values = []
            for way in (step, -step):
                parts = list(theta.clone().parts())
                parts[number][place] += way
                values.append(f(parts))
            # Central differences: error about step^2 times a third derivative, and 1e-16 f / step.
            assert float(grad[place]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6, abs=1e-6)


def test_gradients_equal_autograd_of_the_equations():
    data, theta = problem(seed=3), start(seed=3)
    lam = Lambda(torch.full((1, WIDTH), 0.2).double(), torch.full((1, WIDTH), 0.7).double())
    parts = [part[0].clone().requires_grad_() for part in theta.parts()]
    w1, w2, gamma, beta = parts
    y1 = gamma * (torch.tanh(data.x @ w1.T) - lam.mu[0]) / (lam.sigma[0] + EPS) + beta
    z2 = torch.tanh(y1 @ w2.T)
    f = torch.nn.functional.cross_entropy(z2, data.targets.argmax(0), reduction="sum")
    expected = torch.autograd.grad(f, parts)
    ours, gradient = algorithm.loss_and_gradient(theta, lam, algorithm.hidden(theta, data), data, EPS)
    assert ours is not None
    torch.testing.assert_close(ours[0], f.detach(), rtol=1e-12, atol=0)
    for got, wanted in zip(gradient.parts(), expected, strict=True):
        torch.testing.assert_close(got[0], wanted, rtol=1e-11, atol=1e-12)


def power(exponent, scale=1.0):
    return lambda m: scale * m**-exponent


def test_a_stack_of_pairs_equals_each_pair_alone():
    data = problem()
    pairs = [(0.0, 0.5), (1.0, 0.75), (2.5, 1.0)]
    together = algorithm.run(
        data,
        algorithm.initial([0] * 3, INPUTS, WIDTH, OUTPUTS),
        [power(h) for h, _ in pairs],
        [power(k, 0.1) for _, k in pairs],
        200,
        [1, 10, 200],
        Setup(),
    )
    for i, (h, k) in enumerate(pairs):
        theta = algorithm.initial([0], INPUTS, WIDTH, OUTPUTS)
        alone = algorithm.run(data, theta, [power(h)], [power(k, 0.1)], 200, [1, 10, 200], Setup())
        for name in ("grad_sq", "lambda_path"):
            # A stacked product sums in another order, and 200 updates carry that on.
            close(together[name][i], alone[name][0], atol=1e-9)


def test_alpha_zero_leaves_lambda_and_alpha_one_forgets_it():
    data, theta = problem(), start(pairs=2)
    for part in theta.parts():
        part[1] = part[0]
    alphas = [np.zeros_like, np.ones_like]
    last = algorithm.run(data, theta, alphas, [power(1.0, 0.2)] * 2, 30, [30], Setup(from_data=False))
    assert float(last["lambda_path"][0]) == 0
    assert float(last["lambda_distance"][0]) > 0
    assert float(last["lambda_distance"][1]) == 0


def test_the_box_bounds_theta_and_lambda():
    data, theta = problem(), start()
    algorithm.run(data, theta, [power(0.0)], [power(0.0, 5.0)], 50, [50], Setup(box=0.5))
    assert all(float(part.abs().max()) <= 0.5 for part in theta.parts())


def test_logged_iterations_are_log_spaced_with_both_ends():
    assert algorithm.log_spaced(1, 20) == [1]
    points = algorithm.log_spaced(100_000, 20)
    assert points[0] == 1
    assert points[-1] == 100_000
    assert set(range(1, 9)) <= set(points)
    assert sum(m >= 10_000 for m in points) == 21


@pytest.mark.parametrize(("data", "loss"), [("digits", "cross_entropy"), ("digits", "mse"), ("regression", "mse")])
def test_problems_have_the_shapes_that_they_say(data, loss, tmp_path):
    built = build(data, 50, "tanh", loss, 0, tmp_path)
    assert built.x.shape[0] == built.targets.shape[1] == 50
    assert built.x.dtype == built.targets.dtype == torch.float64
    again = build(data, 50, "tanh", loss, 0, tmp_path)
    assert torch.equal(built.x, again.x)
    assert not torch.equal(built.x, build(data, 50, "tanh", loss, 1, tmp_path).x)


def test_a_seeded_subset_of_mnist_is_a_problem(real_data):
    built = build("mnist", 30, "tanh", "cross_entropy", 0, real_data)
    assert built.x.shape == (30, 784)
    assert torch.equal(built.targets.sum(0), torch.ones(30).double())


def test_an_interrupted_run_keeps_what_it_logged():
    def interrupt(m):
        if m == 20:
            raise KeyboardInterrupt

    columns = algorithm.run(
        problem(), start(), [power(1.0)], [power(1.0, 0.1)], 100, [1, 10, 100], Setup(), on_iteration=interrupt
    )
    assert columns["m"].tolist() == [[1, 10]]
