"""Population statistics against a two-pass computation over the same batches in numpy."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from dbnrun.norm import DiminishingBatchNorm1d
from dbnrun.norm.population import lambda_drift, population_moments, using_statistics

EPS = 1e-3


def network(make):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), make(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 4), make(4)).double()


LAYERS = {
    "bn": lambda c: nn.BatchNorm1d(c, eps=EPS),
    "dbn": lambda c: DiminishingBatchNorm1d(c, 0.2, eps=EPS, eps_at="var"),
    "dbn var": lambda c: DiminishingBatchNorm1d(c, 0.2, eps=EPS, eps_at="var", average="var"),
    "dbn inv_std": lambda c: DiminishingBatchNorm1d(c, 0.2, eps=EPS, average="inv_std"),
}
BATCHES = [torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) * s for s in (1, 2, 3)]


def _numpy_pass(model):
    """Each layer normalizes a batch by that batch's moments; pooled: mean of variances plus variance of means."""
    first, second = model[0], model[4]
    seen = [[], []]
    for batch in BATCHES:
        z = batch.numpy() @ first.weight.detach().numpy().T + first.bias.detach().numpy()
        seen[0].append(z)
        y = np.tanh((z - z.mean(0)) / np.sqrt(z.var(0) + EPS))
        seen[1].append(y @ second.weight.detach().numpy().T + second.bias.detach().numpy())
    means = [np.array([z.mean(0) for z in zs]) for zs in seen]
    variances = [np.array([z.var(0) for z in zs]) for zs in seen]
    return [(m.mean(0), v.mean(0) + m.var(0)) for m, v in zip(means, variances, strict=True)]


@pytest.mark.parametrize("kind", LAYERS)
def test_pooled_moments_equal_a_two_pass_computation_and_lambda_stays(kind):
    model = network(LAYERS[kind])
    model(BATCHES[0])  # move lambda somewhere
    model.eval()
    before = copy.deepcopy(model.state_dict())
    moments = population_moments(model, BATCHES)
    for (mean, var), (expected_mean, expected_var) in zip(moments.values(), _numpy_pass(model), strict=True):
        np.testing.assert_allclose(mean.numpy(), expected_mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(var.numpy(), expected_var, rtol=1e-9)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert not model.training


@pytest.mark.parametrize("kind", LAYERS)
def test_evaluating_with_statistics_uses_exactly_those_and_then_the_own_again(kind):
    model = network(LAYERS[kind]).eval()
    x = BATCHES[1]
    own = model(x)
    moments = {layer: (torch.full((c,), 0.5), torch.full((c,), 4.0)) for layer, c in ((model[1], 5), (model[5], 4))}
    with using_statistics(moments):
        inside = model(x)
    y = torch.tanh((model[0](x) - 0.5) / (4 + EPS) ** 0.5)
    expected = (model[4](y) - 0.5) / (4 + EPS) ** 0.5
    torch.testing.assert_close(inside, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(model(x), own)


def test_lambda_drift_is_the_rms_of_the_standardized_distance():
    layers = [DiminishingBatchNorm1d(2, eps=0.5), DiminishingBatchNorm1d(1, eps=0.5)]
    layers[0].mu.copy_(torch.tensor([1.0, 3.0]))
    layers[1].mu.fill_(-2.0)
    moments = {
        layers[0]: (torch.tensor([0.0, 0.0]), torch.tensor([0.25, 1.0])),
        layers[1]: (torch.tensor([0.0]), torch.tensor([2.25])),
    }
    distances = np.array([1 / 1.0, 3 / 1.5, -2 / 2.0])
    assert lambda_drift(nn.Sequential(*layers), moments) == pytest.approx(np.sqrt((distances**2).mean()))


def test_a_network_without_statistics_has_no_population_and_no_drift():
    for norm in (nn.LayerNorm(5), nn.BatchNorm1d(5, track_running_stats=False)):
        model = nn.Sequential(nn.Linear(6, 5), norm).eval()
        assert population_moments(model, BATCHES) == {}
        assert lambda_drift(model, {}) is None


def test_statistics_come_back_when_the_pass_is_cut_short():
    model = network(LAYERS["dbn"]).eval()
    before = copy.deepcopy(model.state_dict())

    def batches():
        yield BATCHES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        population_moments(model, batches())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert not model[1]._forward_pre_hooks


def test_records_that_lie_in_groups_are_passed_in_their_mixed_order():
    """The whole evaluation of a data set with a mixing order equals that of the same records lying in that order."""

    from dbnrun.config.compose import composed
    from dbnrun.data.dataset import Part, fixed_shuffle
    from dbnrun.runner.build import build_cell
    from dbnrun.train import evaluate

    config = composed(["norm=dbn_inference", "device=cpu", "model.widths=[8,8]"])
    data = config.dataset.load(None)
    grouped = data.train.y.argsort(stable=True)
    part = Part(data.train.x[grouped], data.train.y[grouped])
    order = fixed_shuffle(len(grouped))
    assert sorted(order.tolist()) == list(range(len(grouped))) and torch.equal(order, fixed_shuffle(len(grouped)))

    def drift(train_part, shuffle_order):
        there = dataclasses.replace(data, train=train_part, shuffle_order=shuffle_order)
        model = build_cell(config, there, torch.device("cpu")).model
        return evaluate._evaluations([model], there, config.train, "fp32")[0]["lambda_drift"]

    in_mixed_order = drift(Part(part.x[order], part.y[order]), None)
    assert drift(part, order) == in_mixed_order
    assert abs(drift(part, None) / in_mixed_order - 1) > 0.001  # a batch of one class has its own statistics
