"""Named groups, and the penalty against torch's own weight decay."""

import copy

import pytest
import torch
from torch import nn

from dbnrun.config import registry
from dbnrun.config.registry import UserError
from dbnrun.optim.groups import add_penalty, build_optimizer, group_parameters, lr_of
from dbnrun.optim.options import Group

OPTIONS = {
    "adagrad": {"eps": 1e-10, "initial_accumulator": 0.0},
    "sgd": {"momentum": 0.9, "nesterov": False},
    "adam": {"eps": 1e-8, "betas": [0.9, 0.999]},
    "adamw": {"eps": 1e-8, "betas": [0.9, 0.999]},
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.out = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.norm(self.linear(x)))


def groups(**decay):
    patterns = {"norm": "*norm*", "biases": "*.bias", "weights": "*.weight"}
    return {name: Group(pattern=p, lr=0.05, weight_decay=decay.get(name, 0.0)) for name, p in patterns.items()}


def test_every_parameter_lies_in_exactly_one_group_the_first_that_fits():
    net = Net()
    members = group_parameters(net.named_parameters(), groups())
    assert members["norm"] == [net.norm.weight, net.norm.bias]
    assert members["biases"] == [net.linear.bias, net.out.bias]
    assert members["weights"] == [net.linear.weight, net.out.weight]


def test_a_parameter_that_no_pattern_fits_is_named():
    with pytest.raises(UserError, match=r"miss 2 parameter\(s\), first 'linear.bias'; groups tried, in order: weights"):
        group_parameters(nn.ModuleDict({"linear": nn.Linear(2, 2), "out": nn.Linear(2, 2)}).named_parameters(),
                         {"weights": Group(pattern="*.weight", lr=1, weight_decay=0)})  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_ten_steps_equal_torchs_own_optimizer_with_its_weight_decay(name):
    torch.manual_seed(0)
    ours, theirs = Net().double(), Net().double()
    theirs.load_state_dict(ours.state_dict())
    config = registry.make("optimizer", name, lr=0.05, groups=groups(weights=0.01), **OPTIONS[name])
    mine = build_optimizer(config, ours)
    decayed = [theirs.linear.weight, theirs.out.weight]
    rest = [p for p in theirs.parameters() if all(p is not d for d in decayed)]
    kind = {
        "adagrad": torch.optim.Adagrad,
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    extra = {"momentum": 0.9} if name == "sgd" else {"eps": OPTIONS[name]["eps"]}
    peer = kind[name](
        [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}], lr=0.05, **extra
    )
    for _ in range(10):
        x, y = torch.randn(8, 4).double(), torch.randint(0, 2, (8,))
        for net, optimizer in ((ours, mine), (theirs, peer)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            if optimizer is mine:
                add_penalty(mine)
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        # float64; Adam divides by the root of small second moments, which magnifies the order of its sums.
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_the_gradient_norm_is_that_of_loss_plus_l2():
    net = Net().double()
    config = registry.make("optimizer", "adagrad", lr=0.05, groups=groups(weights=0.3), **OPTIONS["adagrad"])
    optimizer = build_optimizer(config, net)
    x, y = torch.randn(8, 4).double(), torch.randint(0, 2, (8,))
    nn.functional.cross_entropy(net(x), y).backward()
    norm = add_penalty(optimizer)
    twin = copy.deepcopy(net)
    twin.zero_grad()
    penalty = 0.15 * (twin.linear.weight.square().sum() + twin.out.weight.square().sum())
    (nn.functional.cross_entropy(twin(x), y) + penalty).backward()
    expected = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
    torch.testing.assert_close(norm, expected)


def test_a_group_has_its_own_learning_rate_and_empty_groups_vanish():
    own = groups()
    own["norm"].lr = 0.5
    own["unused"] = Group(pattern="nothing", lr=9, weight_decay=0)
    optimizer = build_optimizer(registry.make("optimizer", "sgd", lr=0.05, groups=own, **OPTIONS["sgd"]), Net())
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == {"norm": 0.5, "biases": 0.05, "weights": 0.05}
    assert lr_of(optimizer) == 0.05 and lr_of(optimizer, "norm") == 0.5
