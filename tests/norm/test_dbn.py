"""The layers against independent references: nn.BatchNorm, finite differences, a recursion in numpy."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dbnrun.config import registry
from dbnrun.norm import DiminishingBatchNorm1d, DiminishingBatchNorm2d, DiminishingBatchNorm3d
from dbnrun.norm.dbn import DiminishingBatchNorm, check_schedule
from dbnrun.norm.schedules import Constant, Harmonic, InverseSquare, PerEpoch, Power

PAIRS = [
    (DiminishingBatchNorm1d, nn.BatchNorm1d, (7, 3)),
    (DiminishingBatchNorm1d, nn.BatchNorm1d, (4, 3, 5)),
    (DiminishingBatchNorm2d, nn.BatchNorm2d, (4, 3, 2, 5)),
    (DiminishingBatchNorm3d, nn.BatchNorm3d, (2, 3, 2, 3, 2)),
]
AXES = list(itertools.product(["lambda", "batch"], ["std", "var", "inv_std"], ["std", "var"]))


def rand(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("ours", "reference", "shape"), PAIRS)
@pytest.mark.parametrize("affine", [True, False])
def test_alpha_one_trains_as_torch_batchnorm_even_with_a_dead_unit(ours, reference, shape, affine):
    x = rand(*shape) * 3 + 1
    x[:, 0] = 2.0  # sigma_B = 0
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer = ours(3, 1.0, eps=1e-5, eps_at="var", affine=affine, dtype=torch.float64)
    peer = reference(3, eps=1e-5, affine=affine, dtype=torch.float64)
    if affine:
        for own in (layer, peer):
            own.weight.data.copy_(rand(3, seed=1))
            own.bias.data.copy_(rand(3, seed=2))
    g = rand(*shape, seed=3)
    y, expected = layer(mine), peer(theirs)
    y.backward(g)
    expected.backward(g)
    # float64; gradients of the dead unit are of order 1/sqrt(eps) = 300.
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-10)
    if affine:
        torch.testing.assert_close(layer.weight.grad, peer.weight.grad, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(layer.bias.grad, peer.bias.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 1e-3, 0.0])
@pytest.mark.parametrize(("train_stats", "average", "eps_at"), AXES)
def test_gradients_match_finite_differences(alpha, train_stats, average, eps_at):
    def forward(x, gamma, beta):
        layer = DiminishingBatchNorm2d(
            3, alpha, train_stats=train_stats, average=average, eps_at=eps_at, init=(0.3, 0.8), dtype=torch.float64
        )
        return torch.func.functional_call(layer, {"weight": gamma, "bias": beta}, (x,))

    inputs = [rand(4, 3, 2, 2), rand(3, seed=1), rand(3, seed=2)]
    assert torch.autograd.gradcheck(forward, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("alpha", [1.0, 0.5, 1e-3, 0.0])
@pytest.mark.parametrize(("train_stats", "average", "eps_at"), AXES)
def test_without_stats_grad_the_gradient_holds_the_statistics_constant(alpha, train_stats, average, eps_at):
    axes = {"train_stats": train_stats, "average": average, "eps_at": eps_at, "dtype": torch.float64}
    layer = DiminishingBatchNorm1d(3, alpha, stats_grad=False, init=(0.3, 0.8), **axes)
    x, gamma, beta = rand(6, 3).requires_grad_(), rand(3, seed=1), rand(3, seed=2)
    layer.weight.data.copy_(gamma)
    layer.bias.data.copy_(beta)
    y, g = layer(x), rand(6, 3, seed=3)
    y.backward(g)
    # With constant statistics y is affine in x: y = gamma r x + const, so r can be read off y itself.
    r = (y[1] - y[0]).detach() / (gamma * (x[1] - x[0]).detach())
    torch.testing.assert_close(x.grad, gamma * r * g, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.weight.grad, (g * (y.detach() - beta) / gamma).sum(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.bias.grad, g.sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5)])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("stats_grad", ["mean", "var"])
@pytest.mark.parametrize(("train_stats", "average", "eps_at"), AXES)
def test_a_gradient_through_mean_or_variance_alone_is_that_of_autograd(
    stats_grad, train_stats, average, eps_at, alpha, shape
):
    axes = {"train_stats": train_stats, "average": average, "eps_at": eps_at, "eps": 0.1, "dtype": torch.float64}
    layer = DiminishingBatchNorm1d(3, alpha, stats_grad=stats_grad, init=(0.3, 0.8), **axes)
    gamma, beta = rand(3, seed=2).requires_grad_(), rand(3, seed=3).requires_grad_()
    layer.weight.data.copy_(gamma)
    layer.bias.data.copy_(beta)
    x, g = rand(*shape).requires_grad_(), rand(*shape, seed=1)
    y = layer(x)
    y.backward(g)

    def spread(sigma):
        return {"std": sigma, "var": sigma**2, "inv_std": (sigma**2 + 0.1).rsqrt()}[average]

    def held(t, still):
        return t.detach() if still else t

    # The value that lambda has, with the gradient that the batch's own has.
    other = x.detach().clone().requires_grad_()
    axis = [0, *range(2, len(shape))]
    mu_b, s_b = other.mean(axis), spread(other.std(axis, correction=0))
    weight = 1.0 if train_stats == "batch" else alpha
    mu, s = (
        weight * mu_b + (1 - weight) * 0.3,
        weight * s_b + (1 - weight) * spread(torch.tensor(0.8, dtype=torch.float64)),
    )
    mu = mu.detach() + held(mu_b, stats_grad == "var") - mu_b.detach()
    s = s.detach() + held(s_b, stats_grad == "mean") - s_b.detach()
    sigma = s if average == "std" else s.sqrt()
    rate = s if average == "inv_std" else 1 / (sigma + 0.1) if eps_at == "std" else (sigma**2 + 0.1).rsqrt()
    mu, rate, scale, shift = (t.view(-1, *[1] * (len(shape) - 2)) for t in (mu, rate, gamma, beta))
    expected = scale * (other - mu) * rate + shift
    expected.backward(g)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in ((x, other), (layer.weight, gamma), (layer.bias, beta)):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("average", ["std", "var", "inv_std"])
@pytest.mark.parametrize("train_stats", ["lambda", "batch"])
@pytest.mark.parametrize(
    ("schedule", "alpha"),
    [
        (0.3, lambda m: 0.3),
        (Harmonic(), lambda m: 1 / m),
        (InverseSquare(), lambda m: m**-2),
        (Power(exponent=0.5), lambda m: m**-0.5),
    ],
)
def test_fifty_updates_of_lambda_equal_a_numpy_recursion(average, train_stats, schedule, alpha):
    eps, init = 1e-3, (0.2, 1.5)
    layer = DiminishingBatchNorm1d(
        3, schedule, average=average, train_stats=train_stats, eps=eps, init=init, dtype=torch.float64
    )
    of_sigma = {"std": lambda s: s, "var": lambda s: s**2, "inv_std": lambda s: 1 / np.sqrt(s**2 + eps)}[average]
    mu, spread = np.full(3, init[0]), of_sigma(np.full(3, init[1]))
    for m in range(1, 51):
        x = rand(8, 3, seed=m) * m**0.5 + 0.1 * m
        layer(x)
        a, batch = alpha(m), x.numpy()
        mu = a * batch.mean(0) + (1 - a) * mu
        spread = a * of_sigma(batch.std(0)) + (1 - a) * spread
    assert int(layer.m) == 50
    np.testing.assert_allclose(layer.mu.numpy(), mu, rtol=1e-12)
    np.testing.assert_allclose(layer.spread.numpy(), spread, rtol=1e-12)


@pytest.mark.parametrize("average", ["std", "var", "inv_std"])
@pytest.mark.parametrize("eps_at", ["std", "var"])
def test_evaluation_uses_lambda_exactly_and_leaves_it_still(average, eps_at):
    eps = 1e-2
    layer = DiminishingBatchNorm2d(3, 0.3, average=average, eps_at=eps_at, eps=eps, dtype=torch.float64)
    for m in range(5):
        layer(rand(4, 3, 2, 2, seed=m) + m)
    layer.weight.data.copy_(rand(3, seed=8))
    layer.bias.data.copy_(rand(3, seed=9))
    before = copy.deepcopy(layer.state_dict())
    x = rand(2, 3, 4, 4, seed=7)
    y = layer.eval()(x)
    mu, spread = (t.numpy()[:, None, None] for t in (before["mu"], before["spread"]))
    if average == "inv_std":
        rate = spread
    else:
        sigma = spread if average == "std" else np.sqrt(spread)
        rate = 1 / (sigma + eps) if eps_at == "std" else 1 / np.sqrt(sigma**2 + eps)
    gamma, beta = (before[k].numpy()[:, None, None] for k in ("weight", "bias"))
    np.testing.assert_allclose(y.detach().numpy(), gamma * (x.numpy() - mu) * rate + beta, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, layer.state_dict()[key]) for key, value in before.items())


def test_training_under_lambda_normalizes_by_the_lambda_that_includes_the_batch():
    layer = DiminishingBatchNorm1d(2, 0.25, eps=1e-3, affine=False, init=(1.0, 2.0), dtype=torch.float64)
    x = rand(6, 2)
    y = layer(x).numpy()
    mu = 0.25 * x.numpy().mean(0) + 0.75 * 1.0
    sigma = 0.25 * x.numpy().std(0) + 0.75 * 2.0
    np.testing.assert_allclose(y, (x.numpy() - mu) / (sigma + 1e-3), rtol=1e-12)


def test_alpha_zero_leaves_lambda_where_it_began():
    layer = DiminishingBatchNorm1d(2, 0.0, init=(0.5, 2.0), dtype=torch.float64)
    for seed in range(3):
        layer(rand(6, 2, seed=seed))
    assert layer.mu.tolist() == [0.5, 0.5]
    assert layer.sigma.tolist() == [2.0, 2.0]


def test_sigma_is_the_standard_deviation_whatever_lambda_averages():
    for average in ("std", "var", "inv_std"):
        layer = DiminishingBatchNorm1d(2, 1.0, average=average, dtype=torch.float64)
        x = rand(9, 2)
        layer(x)
        np.testing.assert_allclose(layer.sigma.numpy(), x.numpy().std(0), rtol=1e-9)


def test_per_epoch_schedule_holds_alpha_through_an_epoch_and_moves_lambda_at_every_step():
    schedule = PerEpoch(Harmonic(), 3)
    assert [schedule(m) for m in range(1, 8)] == [1, 1, 1, 1 / 2, 1 / 2, 1 / 2, 1 / 3]
    layer = DiminishingBatchNorm1d(1, schedule, dtype=torch.float64)
    mu = 0.0
    for m in range(1, 8):
        x = rand(5, 1, seed=m)
        layer(x)
        alpha = 1 / -(-m // 3)
        mu = alpha * x.mean().item() + (1 - alpha) * mu
        assert layer.mu.item() == pytest.approx(mu, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4,), "2-D or 3-D"),
        ((4, 5), "3 channels, got 5"),
        ((1, 3), "more than 1 value per channel"),
        ((0, 3), r"more than 1 value per channel when training, got shape \(0, 3\)"),
        ((4, 3, 0), "more than 1 value per channel"),
        ((2, 3, 4, 4), "got 4-D"),
    ],
)
def test_a_wrong_input_is_refused_with_what_came_and_what_was_expected(shape, message):
    layer = DiminishingBatchNorm1d(3)
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(shape))
    assert int(layer.m) == 0


def test_one_value_a_channel_is_fine_in_evaluation():
    assert DiminishingBatchNorm1d(3).eval()(torch.zeros(1, 3)).shape == (1, 3)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"schedule": 1.5}, "schedule.alpha=1.5: expected a number of at least 0, at most 1"),
        ({"schedule": lambda m: m / 5000}, "at m = 5001"),
        ({"schedule": float("nan")}, "schedule.alpha=nan: expected a number"),
        ({"train_stats": "population"}, "expected one of 'lambda', 'batch'"),
        ({"average": "mean"}, "expected one of 'std', 'var', 'inv_std'"),
        ({"eps_at": "sigma"}, "expected one of 'std', 'var'"),
    ],
)
def test_an_impossible_axis_is_refused_at_construction(axes, message):
    with pytest.raises(ValueError, match=message):
        DiminishingBatchNorm1d(3, **axes)


# Schedules that take single numbers only, which no tensor of several m can be given to.
ONE_BY_ONE = {
    "max": lambda m: max(1 / m, 0.1),
    "branch": lambda m: 1.0 if m <= 7000 else 1.5,
    "math": lambda m: math.exp(-m / 100),
}


@pytest.mark.parametrize(
    ("schedule", "m", "alpha"),
    [
        (ONE_BY_ONE["branch"], 7001, "1.5"),
        (lambda m: 1 - m / 9999, 10000, "-0.00010001"),
        (lambda m: (m - 4) / m, 1, "-3"),
        (lambda m: m / m if m != 3 else float("nan"), 3, "nan"),
        (lambda m: np.where(m > 8, 2.0, 0.5), 9, "2"),
    ],
)
def test_a_schedule_is_refused_at_the_first_m_where_alpha_is_no_weight(schedule, m, alpha):
    with pytest.raises(ValueError, match=f"alpha = {alpha} at m = {m}; expected a number in"):
        check_schedule(schedule)


@pytest.mark.parametrize("schedule", [*ONE_BY_ONE.values(), torch.reciprocal, lambda m: (1 / m) ** 0.5, lambda m: 0.5])
def test_any_function_of_m_within_bounds_is_a_schedule_under_any_default_device(schedule):
    with torch.device("meta"):
        check_schedule(schedule, up_to=5000)


def test_a_schedules_name_gives_the_one_that_a_command_composes_by_it(composed):
    for name in registry.files()["schedule"]:
        asked = composed("norm=dbn", f"schedule={name}").schedule
        assert DiminishingBatchNorm2d(4, schedule=name).schedule == asked, name
    assert DiminishingBatchNorm2d(4, "alpha_0.3").schedule == Constant(alpha=0.3)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("harmonics", "schedule=harmonics: expected one of .* Did you mean 'harmonic'?"),
        ("alpha_2", "schedule.alpha=2.0: expected a number of at least 0, at most 1"),
        ("alpha_", "Did you mean 'alpha_0.1'?"),
    ],
)
def test_an_unknown_name_of_a_schedule_is_one_line_with_the_nearest(name, said):
    with pytest.raises(ValueError, match=said.replace("?", r"\?")) as refused:
        DiminishingBatchNorm2d(4, schedule=name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "schedule", [Constant(alpha=0.3), Harmonic(), InverseSquare(), Power(exponent=0.7), PerEpoch(Harmonic(), 9)]
)
def test_the_papers_schedules_are_checked_in_one_call(schedule):
    calls = []

    def counted(m):
        calls.append(m)
        return schedule(m)

    check_schedule(counted)
    assert len(calls) == 1


def gradient_in_float64(x, g, alpha, init, eps):
    """dL/dx of Algorithm 1, line 7 and equation 3, written out and differentiated by torch."""
    x = x.detach().double().requires_grad_()
    axes = [axis for axis in range(x.dim()) if axis != 1]
    mu = alpha * x.mean(axes, keepdim=True) + (1 - alpha) * init[0]
    sigma = alpha * x.std(axes, correction=0, keepdim=True) + (1 - alpha) * init[1]
    return torch.autograd.grad((x - mu) / (sigma + eps), x, g.double())[0]


@pytest.mark.parametrize("distance", [0.0, 30.0, 1e4])
@pytest.mark.parametrize("alpha", [0.9, 0.01])
@pytest.mark.parametrize(
    ("dtype", "bound"),
    # float32: the sums, of up to 64,000 terms. bfloat16: the rounding of the result, at most 2^-8 of each value.
    [(torch.float32, 3e-5), (torch.bfloat16, 2.0**-8)],
)
def test_the_gradient_keeps_its_digits_however_far_lambda_lies_from_the_batch(distance, alpha, dtype, bound):
    rng = torch.Generator().manual_seed(0)
    for shape, layout in (
        ((100, 6), torch.contiguous_format),
        ((40, 6, 40, 40), torch.contiguous_format),  # large: a bfloat16 gradient is computed piece by piece
        ((40, 6, 40, 40), torch.channels_last),
    ):
        # A gradient of mean 1: all but a tenth of it cancels where alpha is near 1.
        x, g = (torch.randn(shape, generator=rng) * scale + mean for scale, mean in ((1, 0), (0.1, 1)))
        x, g = (t.to(dtype).to(memory_format=layout) for t in (x, g))
        layer = DiminishingBatchNorm(6, alpha, init=(distance, 1.0), affine=False)
        layer(x.requires_grad_()).backward(g)
        assert x.grad is not None and x.grad.stride() == x.stride()
        expected = gradient_in_float64(x, g, alpha, (distance, 1.0), layer.eps)
        error = (x.grad.double() - expected).norm() / expected.norm()
        assert error < bound


def deep(**axes):
    """Two DBN layers, of which the second's input depends on how the first normalizes."""
    torch.manual_seed(0)
    first, second = (DiminishingBatchNorm1d(c, Harmonic(), **axes) for c in (6, 5))
    return nn.Sequential(nn.Linear(4, 6), first, nn.ReLU(), nn.Linear(6, 5), second, nn.Tanh()).double()


def trained(model, forward):
    """Input gradients, parameter gradients and statistics after four steps."""
    inputs = [rand(8, 4, seed=seed).requires_grad_() for seed in range(4)]
    for x in inputs:
        forward(x).square().sum().backward()
    return [t.grad for t in (*inputs, *model.parameters())] + list(model.buffers())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("stats_grad", [True, False])
def test_activation_checkpointing_changes_no_bit_under_batch_statistics(stats_grad, reentrant):
    plain, model = (deep(train_stats="batch", stats_grad=stats_grad) for _ in range(2))
    expected = trained(plain, plain)
    got = trained(model, lambda x: checkpoint(model, x, use_reentrant=reentrant))
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_is_refused_where_lambda_would_move_twice(reentrant):
    model = deep()
    loss = checkpoint(model, rand(8, 4).requires_grad_(), use_reentrant=reentrant).sum()
    before = [buffer.clone() for buffer in model.buffers()]
    with pytest.raises(RuntimeError, match=r"statistics have moved since the first; call the layer outside"):
        loss.backward()
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), before, strict=True))


@pytest.mark.parametrize("train_stats", ["lambda", "batch"])
def test_activation_checkpointing_of_a_compiled_layer_is_refused(train_stats):
    torch._dynamo.reset()
    layer = DiminishingBatchNorm1d(4, 0.3, train_stats=train_stats)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y = checkpoint(compiled, rand(8, 4).float().requires_grad_(), use_reentrant=False)
    with pytest.raises(RuntimeError, match="statistics have moved since the first"):
        y.sum().backward()
    assert int(layer.m) == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("second", [torch.autograd.functional.hessian, torch.autograd.functional.hvp])
def test_a_second_derivative_is_refused_rather_than_zero(training, second):
    layer, x = DiminishingBatchNorm1d(3, 0.3).double().train(training), rand(5, 3)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        second(lambda x: layer(x).square().sum(), x, *([x] if second is torch.autograd.functional.hvp else []))


def forward_mode(layer, x):
    with torch.autograd.forward_ad.dual_level():
        return layer(torch.autograd.forward_ad.make_dual(x, x))


# By torch itself, each with an error of its own.
UNSUPPORTED = {
    "grad": lambda layer, x: torch.func.grad(lambda x: layer(x).sum())(x),
    "vjp": torch.func.vjp,
    "jvp": lambda layer, x: torch.func.jvp(layer, (x,), (x,)),
    "vmap": lambda layer, x: torch.func.vmap(layer)(torch.stack([x, x])),
    "forward mode": forward_mode,
    "script": lambda layer, x: torch.jit.script(layer)(x),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", UNSUPPORTED)
@pytest.mark.filterwarnings("ignore")
def test_what_the_docstring_calls_unsupported_raises(kind, training):
    layer = DiminishingBatchNorm1d(3, 0.3).train(training)
    with pytest.raises((RuntimeError, NotImplementedError, ValueError)):
        UNSUPPORTED[kind](layer, torch.ones(5, 3) * torch.arange(3))


@pytest.mark.parametrize("stats_grad", [True, "mean", "var"])
@pytest.mark.parametrize("train_stats", ["lambda", "batch"])
def test_a_compiled_layer_is_one_graph_that_never_recompiles(train_stats, stats_grad):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager = DiminishingBatchNorm2d(3, Harmonic(), train_stats=train_stats, stats_grad=stats_grad)
    layer = copy.deepcopy(eager)
    # aot_eager traces forward and backward as inductor would, without a C++ compiler.
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for m in range(12):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(m))
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, expected = compiled(a), eager(b)
        y.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        # float32 sums of order 100, in another order.
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    assert int(layer.m) == 12
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_autocast_keeps_moments_and_lambda_in_float32():
    layer = DiminishingBatchNorm2d(4, 1.0)
    conv = nn.Conv2d(3, 4, 3)
    x = torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = conv(x)
        y = layer(z)
    assert z.dtype == y.dtype == torch.bfloat16
    assert layer.mu.dtype == layer.spread.dtype == torch.float32
    # lambda = the moments of the bf16 activations, computed in float32: far finer than bf16's 3 digits.
    torch.testing.assert_close(layer.sigma, z.float().std((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)
    y.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_casting_the_module_to_bfloat16_leaves_lambda_in_float32():
    layer = DiminishingBatchNorm2d(4, Harmonic())
    layer(torch.randn(4, 4, 3, 3))
    mu = layer.mu.clone()
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.mu, mu) and layer.mu.dtype == torch.float32
    y = layer(torch.randn(4, 4, 3, 3).bfloat16())
    y.float().sum().backward()
    assert y.dtype == layer.weight.grad.dtype == torch.bfloat16


def test_state_dict_round_trip_and_deepcopy_keep_lambda_and_its_counter():
    layer = DiminishingBatchNorm1d(3, Harmonic())
    for seed in range(4):
        layer(rand(5, 3, seed=seed).float())
    fresh = DiminishingBatchNorm1d(3, Harmonic())
    fresh.load_state_dict(layer.state_dict())
    twin = copy.deepcopy(layer)
    x = rand(5, 3, seed=9).float()
    y = layer(x)
    for other in (fresh, twin):
        assert torch.equal(other(x), y) and torch.equal(other.mu, layer.mu) and int(other.m) == int(layer.m) == 5


def test_it_is_a_drop_in_norm_layer_for_resnet18():
    from dbnrun.torchvision_shim import torchvision

    model = torchvision.models.resnet18(norm_layer=lambda c: DiminishingBatchNorm2d(c, Harmonic()), num_classes=10)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    layers = [layer for layer in model.modules() if isinstance(layer, DiminishingBatchNorm)]
    assert len(layers) == 20 and all(int(layer.m) == 1 for layer in layers)
    assert all(torch.isfinite(layer.weight.grad).all() for layer in layers)


def test_channels_last_gives_the_same_numbers():
    x = rand(4, 3, 5, 5)
    outputs = []
    for layout in (torch.contiguous_format, torch.channels_last):
        layer = DiminishingBatchNorm2d(3, 0.3, dtype=torch.float64)
        a = x.clone().to(memory_format=layout).requires_grad_()
        y = layer(a)
        y.backward(rand(4, 3, 5, 5, seed=1))
        outputs.append((y, a.grad, layer.spread))
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_constant_is_known_by_its_number():
    assert DiminishingBatchNorm1d(3, 0.25).schedule == Constant(alpha=0.25)
    assert "schedule=Constant(unit='step', alpha=0.25)" in repr(DiminishingBatchNorm1d(3, 0.25))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("train_stats", ["lambda", "batch"])
@pytest.mark.parametrize("stats_grad", [True, False, "mean", "var"])
@pytest.mark.parametrize("shape", [(16, 3), (4, 3, 5, 5)])
def test_cuda_equals_the_cpu(train_stats, stats_grad, shape):
    results = []
    for device in ("cpu", "cuda"):
        layer = DiminishingBatchNorm(
            3, 0.3, train_stats=train_stats, stats_grad=stats_grad, dtype=torch.float64, device=device
        )
        x = rand(*shape).to(device).requires_grad_()
        layer(x).backward(rand(*shape, seed=1).to(device))
        results.append([t.cpu() for t in (x.grad, layer.weight.grad, layer.bias.grad, layer.mu, layer.spread)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("average", ["std", "var", "inv_std"])
def test_a_lambda_that_began_at_sigma_zero_gives_finite_gradients(average, alpha):
    layer = DiminishingBatchNorm1d(3, alpha, average=average, init=(0.0, 0.0), eps=1e-3)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer(x).square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
