"""Putting normalizers in the place of batch norms."""

import pytest
import torch
from torch import nn

from dbnrun.models import convert_norm
from dbnrun.norm import DiminishingBatchNorm2d
from dbnrun.torchvision_shim import torchvision


def test_each_batch_norm_is_replaced_by_what_the_factory_makes_for_its_features():
    asked = []
    shared = nn.BatchNorm1d(5)
    inner = nn.Sequential(nn.BatchNorm2d(3), nn.ModuleDict({"deep": nn.BatchNorm3d(4)}), shared)
    module = nn.Sequential(inner, nn.Linear(2, 2), shared)
    linear = module[1]
    assert convert_norm(module, lambda *sizes: asked.append(sizes) or nn.Identity()) is module
    assert asked == [(3, 2), (4, 3), (5, 0)]
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())
    assert module[2] is inner[2] and module[1] is linear  # one layer in two places stays one


def test_a_network_converted_to_batch_norm_computes_what_it_did():
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10)
    expected = network(x)
    convert_norm(network, lambda c, _: DiminishingBatchNorm2d(c, 1.0, eps=1e-5, eps_at="var"))
    assert sum(isinstance(layer, DiminishingBatchNorm2d) for layer in network.modules()) == 20
    # float32 through 20 layers; logits of order 1.
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-4)


def test_the_new_layers_take_the_type_and_the_mode_of_the_old():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double().eval()
    convert_norm(module, lambda c, _: nn.LayerNorm(c))
    assert module[1].weight.dtype == torch.float64 and not module[1].training
    alone = convert_norm(nn.BatchNorm1d(3), lambda c, _: nn.LayerNorm(c))
    assert isinstance(alone, nn.LayerNorm)  # in place of the module itself


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.LayerNorm(3), "Sequential has no batch norm to replace"),
        (nn.SyncBatchNorm(3), "1 is a SyncBatchNorm; expected nn.BatchNorm1d, 2d or 3d itself"),
        (nn.LazyBatchNorm2d(), "1 is a LazyBatchNorm2d"),
        (torchvision.ops.FrozenBatchNorm2d(3), "1 is a FrozenBatchNorm2d"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_normalizers_are_refused_and_the_module_is_left_as_it_was(layer, message):
    before = nn.Conv2d(3, 3, 1) if "no batch norm" in message else nn.BatchNorm2d(3)
    module = nn.Sequential(before, layer)
    with pytest.raises(ValueError, match=message):
        convert_norm(module, lambda c, _: nn.Identity())
    assert list(module) == [before, layer]
