"""Ranks with shards of a batch against one process with the whole of it, in float64."""

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from dbnrun.norm import DiminishingBatchNorm1d, DiminishingBatchNorm2d, convert_sync
from dbnrun.norm.schedules import Harmonic

AXES = list(itertools.product(("lambda", "batch"), (True, False, "mean", "var"), ("std", "var", "inv_std")))
SHARDS = {"unequal": (3, 5), "one value": (1, 7), "empty": (8, 0)}
STEPS = 3


def layer(axes, spatial):
    kind = DiminishingBatchNorm2d if spatial else DiminishingBatchNorm1d
    train_stats, stats_grad, average = axes
    made = kind(4, Harmonic(), train_stats=train_stats, stats_grad=stats_grad, average=average, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
        made.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    return made.double()


def batches(spatial):
    """Inputs and the weights of a loss, by step; one channel is dead."""
    generator = torch.Generator().manual_seed(0)
    shape = (8, 4, 3, 2) if spatial else (8, 4)
    pairs = [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for _ in range(STEPS)]
    for x, _ in pairs:
        x[:, 2] = 1.5
    return pairs


def train(made, parts):
    """Outputs, input gradients, summed parameter gradients and lambda after the steps."""
    outputs, gradients = [], []
    for part, w in parts:
        x = part.clone().requires_grad_()
        y = made(x)
        (y * w + y.square() / 2).sum().backward()
        outputs.append(y.detach())
        gradients.append(x.grad)
    return outputs, gradients, [made.weight.grad, made.bias.grad], [made.mu, made.spread, made.m]


def _rank(rank, file, cut, spatial, results):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for axes in AXES:
        made = convert_sync(layer(axes, spatial))
        rows = slice(0, cut) if rank == 0 else slice(cut, None)
        results[rank, axes] = train(made, [pair[:, rows] for pair in batches(spatial)])
    dist.destroy_process_group()


@pytest.mark.parametrize("spatial", [False, True], ids=["1d", "2d"])
@pytest.mark.parametrize("shards", SHARDS)
def test_two_ranks_equal_one_process_on_the_joined_batch(tmp_path, shards, spatial):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (tmp_path / "store", SHARDS[shards][0], spatial, results), nprocs=2)
        results = dict(results)
    for axes in AXES:
        outputs, gradients, parameters, moved = train(layer(axes, spatial), batches(spatial))
        first, second = results[0, axes], results[1, axes]
        close = {"rtol": 1e-10, "atol": 1e-10}
        for step in range(STEPS):
            torch.testing.assert_close(torch.cat([first[0][step], second[0][step]]), outputs[step], **close)
            torch.testing.assert_close(torch.cat([first[1][step], second[1][step]]), gradients[step], **close)
        for one, other, whole in zip(first[2], second[2], parameters, strict=True):
            torch.testing.assert_close(one + other, whole, **close)
        for one, other, whole in zip(first[3], second[3], moved, strict=True):
            assert torch.equal(one, other)  # ranks never drift apart
            torch.testing.assert_close(one, whole, **close)


def _ddp_rank(rank, file, results):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(convert_sync(_model()))
    x = batches(False)[0][0][rank * 4 : rank * 4 + 4]
    model(x).square().mean().backward()  # DDP averages over ranks: the mean over the joined batch
    results[rank] = [p.grad for p in model.parameters()], [b.clone() for b in model.buffers()]
    dist.destroy_process_group()


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), DiminishingBatchNorm1d(5, 0.3), nn.ReLU(), nn.Linear(5, 2)).double()


def test_inside_distributed_data_parallel_ranks_train_as_one(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_ddp_rank, (tmp_path / "store", results), nprocs=2)
        results = dict(results)
    model = _model()
    model(batches(False)[0][0]).square().mean().backward()
    for rank in (0, 1):
        torch.testing.assert_close(results[rank][0], [p.grad for p in model.parameters()], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(results[rank][1], list(model.buffers()), rtol=1e-10, atol=1e-12)


def test_without_a_process_group_a_synchronized_layer_is_the_plain_one():
    x = batches(True)[0][0]
    plain, synced = layer(AXES[0], True), layer(AXES[0], True)
    assert torch.equal(convert_sync(synced)(x), plain(x))
    assert synced.sync and "sync=True" in repr(synced) and "sync" not in repr(plain)
