"""What every layer of a peer must do beside its own equations, whichever it is."""

import copy

import pytest
import torch
from test_online import rand
from torch import nn
from torch.utils.checkpoint import checkpoint

from dbnrun.norm.batch_renorm import BatchRenorm
from dbnrun.norm.dyt import DynamicTanh
from dbnrun.norm.evonorm import EvoNormS0
from dbnrun.norm.frn import FilterResponseNorm
from dbnrun.norm.mabn import MovingAverageBatchNorm
from dbnrun.norm.momentum_bn import MomentumBatchNorm
from dbnrun.norm.online import OnlineNorm
from dbnrun.norm.population import lambda_drift, population_moments
from dbnrun.norm.powernorm import PowerNorm
from dbnrun.norm.rms import RMSNorm

RUNNING = {
    "batch_renorm": lambda c: BatchRenorm(c, warmup=1, r_full=4, d_full=3),
    "momentum_bn": lambda c: MomentumBatchNorm(c, batch_size=8, epochs=3, steps_per_epoch=2),
    "online_norm": lambda c: OnlineNorm(c, forward_decay=0.9),
    "online_norm clamp": lambda c: OnlineNorm(c, guard="clamp"),
    "mabn": lambda c: MovingAverageBatchNorm(c, memory=2, warmup=0),
    "powernorm": PowerNorm,
    "powernorm warm": lambda c: PowerNorm(c, warmup=2),
}
STATELESS = {
    "rms": RMSNorm,
    "dyt": DynamicTanh,
    "frn": FilterResponseNorm,
    "frn learned": lambda c: FilterResponseNorm(c, learned_eps=1e-4),
    "evonorm_s0": lambda c: EvoNormS0(c, num_groups=1),
}
EVERY = RUNNING | STATELESS


@pytest.fixture(autouse=True)
def ratio_from_the_third_update(monkeypatch):
    monkeypatch.setattr(MovingAverageBatchNorm, "UNIT_RATIO", 2)


def network(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), EVERY[kind](5), nn.Tanh(), nn.Linear(5, 4), EVERY[kind](4))


def train(model, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in steps:
        optimizer.zero_grad()
        model(rand(8, 6, seed=step).float()).sin().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", RUNNING)
def test_a_run_that_stopped_and_went_on_equals_one_that_ran_through(kind):
    whole, first, second = network(kind), network(kind), network(kind)
    train(whole, range(6))
    train(first, range(3))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, range(3, 6))
    state, fresh = second.state_dict(), network(kind).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())
    # Every buffer moves, those of the backward pass too: a resumed run would differ without it.
    assert not any(torch.equal(buffer, fresh[name]) for name, buffer in second.named_buffers())


@pytest.mark.parametrize("kind", EVERY)
def test_a_compiled_layer_is_one_graph_and_computes_the_same(kind):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager = EVERY[kind](3)
    layer = copy.deepcopy(eager)
    # aot_eager traces forward and backward as inductor would, without a C++ compiler.
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for seed in range(5):
        inputs = [rand(6, 3, 2, 2, seed=seed).float().requires_grad_() for _ in range(2)]
        outputs = [own(x) for own, x in zip((compiled, eager), inputs, strict=True)]
        for y in outputs:
            y.sin().sum().backward()
        # float32 values of order 1, in another order.
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(layer.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("kind", EVERY)
def test_autocast_and_casting_keep_the_inputs_type_and_statistics_in_float32(kind):
    layer, conv = EVERY[kind](4), nn.Conv2d(3, 4, 3)
    x = torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(conv(x))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and {p.grad.dtype for p in layer.parameters()} == {torch.float32}
    # bfloat16 has 8 bits: its rounding of what the convolution returns and of the result.
    torch.testing.assert_close(y.float(), EVERY[kind](4)(conv(x)), rtol=0.05, atol=0.05)
    layer.to(torch.bfloat16)
    assert layer(conv(x).bfloat16()).dtype == torch.bfloat16
    assert {buffer.dtype for buffer in layer.buffers()} <= {torch.float32, torch.int64}
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", EVERY)
def test_channels_last_keeps_its_layout_and_its_numbers(kind):
    x, found = rand(4, 3, 5, 5), []
    for layout in (torch.contiguous_format, torch.channels_last):
        inner = x.clone().to(memory_format=layout).requires_grad_()
        y = EVERY[kind](3).double()(inner)
        y.backward(rand(4, 3, 5, 5, seed=1).to(memory_format=layout))
        assert y.is_contiguous(memory_format=layout) and inner.grad.is_contiguous(memory_format=layout)
        found.append((y, inner.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", RUNNING)
def test_the_population_pass_takes_each_layers_input_and_leaves_every_buffer(kind):
    model = network(kind).double()
    batches = [rand(8, 6, seed=seed) for seed in range(3)]
    model(batches[0]).sum().backward()
    model.eval()
    before = copy.deepcopy(model.state_dict())
    moments = population_moments(model, batches)
    inputs = torch.cat([model[0](x) for x in batches])
    mean, var = moments[model[1]]
    torch.testing.assert_close(mean, inputs.mean(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(var, inputs.var(0, correction=0), rtol=1e-9, atol=1e-12)
    assert lambda_drift(model, moments) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    mean_square = inputs.square().mean(0)
    model[1].set_statistics(mean, var)
    if hasattr(model[1], "square"):  # no mean is subtracted: a mean and a variance make a second moment
        torch.testing.assert_close(model[1].square, mean_square, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", RUNNING)
def test_what_would_move_the_statistics_twice_or_differentiate_twice_is_refused(kind):
    layer, x = EVERY[kind](3), rand(5, 3).float().requires_grad_()
    with pytest.raises(RuntimeError, match="a second time"):
        checkpoint(layer, x, use_reentrant=False).sum().backward()
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)
