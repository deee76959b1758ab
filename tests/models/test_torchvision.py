"""torchvision's networks as cells: against torchvision itself, and through the corridor."""

import csv
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dbnrun.config import registry
from dbnrun.config.compose import composed
from dbnrun.config.identity import cell_of, readable_name
from dbnrun.config.registry import UserError
from dbnrun.data.dataset import fixed_shuffle
from dbnrun.models.layers import Dropout
from dbnrun.models.torchvision import StochasticDepth
from dbnrun.norm.options import Normalizers, RunFacts
from dbnrun.norm.schedules import Constant
from dbnrun.report.tables import describe
from dbnrun.runner import plan
from dbnrun.runner.build import build_cell, load_data
from dbnrun.runner.execute import run, run_all
from dbnrun.runner.grouping import grouped
from dbnrun.runs import metrics
from dbnrun.torchvision_shim import torchvision
from dbnrun.train.rng import Rngs

NORMS = {name: registry.make("norm", name) for name in registry.of("norm") if name != "custom"}
BATCH = 16
RUN = RunFacts(Constant(alpha=0.1), steps_per_epoch=10, epochs=3, batch_size=BATCH)
TINY = ["model=torchvision", f"train.batch_size={BATCH}", "device=cpu", "progress=false"]
QUICK_SWEEP = ["dataset=digits", "train.epochs=1", "train.limit_batches=1", "threads=1", "progress=false"]
RESNET = [*TINY, "model.arch=resnet18"]


@pytest.fixture
def cell(tmp_path):
    return lambda *words, results="results": composed([*words, f'results_dir="{tmp_path / results}"'])


def build(arch, shape, norm="bn", seed=0, stem="auto"):
    rngs = Rngs.of(seed)
    options = registry.make("model", "torchvision", arch=arch, stem=stem)
    network = options.build(shape, 10, Normalizers(NORMS[norm], RUN), rngs.dropout)
    network.initialize(rngs.init)
    return network


def numbers_of(outcome):
    assert outcome.status == "done", outcome.message
    rows = csv.DictReader((outcome.folder / "metrics.csv").open())
    return [{key: value for key, value in row.items() if key not in metrics.TIME_COLUMNS} for row in rows]


def cifar_resnet18(channels, seed=0):
    """torchvision's resnet18 with the stem for small images, its weights from where a cell's initialization begins."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(Rngs.of(seed).init.get_state())
        network = torchvision.models.resnet18(num_classes=10)
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network


LR, DECAY = 0.01, 0.05


def trained_by_hand(data, steps):
    """Loss and gradient norm of each step of SGD with momentum, batch norms not decayed; the network afterwards."""
    network = cifar_resnet18(1).to(memory_format=torch.channels_last)  # as cells train: it rounds in the same places
    decayed = [weight for weight in network.parameters() if weight.dim() > 1]
    biases = [
        network.fc.bias,
        *(w for layer in network.modules() if isinstance(layer, nn.BatchNorm2d) for w in (layer.weight, layer.bias)),
    ]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": DECAY}, {"params": biases, "weight_decay": 0.0}], lr=LR, momentum=0.9
    )
    order, measured = Rngs.of(0).order, []
    for _ in range(steps):
        index = torch.randperm(len(data.train), generator=order)[:BATCH]
        loss = F.cross_entropy(network(data.train.x[index]), data.train.y[index])
        optimizer.zero_grad()
        loss.backward()
        whole = [w.grad + DECAY * w.detach() for w in decayed] + [w.grad for w in biases]
        measured.append((loss.item(), torch.cat([gradient.double().flatten() for gradient in whole]).norm().item()))
        optimizer.step()
    return measured, network.eval()


@torch.no_grad()
def set_population_statistics(network, x):
    """Let each batch norm evaluate with the moments of its input when the whole network normalizes x by x's own."""
    norms, inputs = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)], {}
    hooks = [
        layer.register_forward_pre_hook(lambda own, given: inputs.update({own: given[0].clone()})) for layer in norms
    ]
    network.train()(x)
    for layer, hook in zip(norms, hooks, strict=True):
        hook.remove()
        layer.running_mean.copy_(inputs[layer].mean((0, 2, 3)))
        layer.running_var.copy_(inputs[layer].var((0, 2, 3), correction=0))
    network.eval()
    return torch.cat([layer.running_mean for layer in norms]), torch.cat([layer.running_var for layer in norms])


def test_resnet18_with_batch_norm_has_the_losses_of_torchvisions_own_in_a_loop_by_hand(cell):
    config = cell(
        *RESNET, "norm=bn", "train.epochs=5", "train.limit_batches=1", "train.eval_every=5", "optimizer=sgd",
        f"train.limit_eval={BATCH}", f"optimizer.lr={LR}", f"optimizer.groups.weights.weight_decay={DECAY}",
    )  # fmt: skip
    rows = numbers_of(run(config))
    data = load_data(config, torch.device("cpu"))
    steps, network = trained_by_hand(data, 5)
    # An epoch is one step. The same operations in float32, where the updates of ours are one fused kernel.
    close = functools.partial(pytest.approx, rel=1e-5)
    assert [float(row["train_loss"]) for row in rows] == [close(loss) for loss, _ in steps]
    # float32 sums of 11 million squares.
    assert [float(row["grad_norm"]) for row in rows] == [pytest.approx(norm, rel=1e-4) for _, norm in steps]
    assert len({loss for loss, _ in steps}) == 5  # it did learn something
    test, train = (
        (part.x[index], part.y[index])
        for part in (data.test, data.train)
        for index in [fixed_shuffle(len(part))[:BATCH]]
    )
    with torch.no_grad():
        logits = network(test[0])
        assert float(rows[-1]["test_loss"]) == close(F.cross_entropy(logits, test[1]).item())
        assert float(rows[-1]["test_error_pct"]) == 100 * (logits.argmax(1) != test[1]).float().mean()
        moving = torch.cat([own.running_mean for own in network.modules() if isinstance(own, nn.BatchNorm2d)])
        mean, var = set_population_statistics(network, train[0])
        wrong = (network(test[0]).argmax(1) != test[1]).float()
    assert float(rows[-1]["test_error_pct_population"]) == 100 * wrong.mean()
    drift = (moving - mean) / (var.sqrt() + 1e-5)
    assert float(rows[-1]["lambda_drift"]) == pytest.approx(drift.square().mean().sqrt().item(), rel=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_every_normalizer_stands_in_every_place_and_learns(norm):
    network = build("resnet18", (3, 16, 16), norm)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    logits = network(x)
    assert logits.shape == (4, 10)
    logits.square().sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())
    kind = type(NORMS[norm].build(64, 2, RUN))
    assert sum(type(layer) is kind for layer in network.net.modules()) == 20 + 2 * (norm == "none")


def test_cells_that_differ_in_norm_start_from_the_same_weights_and_other_seeds_do_not():
    def weights(**how):
        layers = build("resnet18", (1, 8, 8), **how).modules()
        return [layer.weight for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]

    first = weights(seed=3)
    assert len(first) == 21
    for norm in NORMS:
        assert all(map(torch.equal, first, weights(norm=norm, seed=3)))
    assert not any(map(torch.equal, first, weights(seed=4)))


def test_drawing_weights_moves_the_given_generator_and_leaves_the_global_one_where_it_was():
    network, rngs = build("resnet18", (1, 8, 8)), Rngs.of(0)
    before, own = torch.get_rng_state(), rngs.init.get_state()
    network.initialize(rngs.init)
    assert not torch.equal(rngs.init.get_state(), own)
    assert torch.equal(torch.get_rng_state(), before)


QUICK = {
    "resnet18": 64, "densenet121": 64, "mobilenet_v2": 32, "mobilenet_v3_small": 32, "efficientnet_b0": 32,
    "googlenet": 32, "shufflenet_v2_x0_5": 32, "regnet_y_400mf": 32, "mnasnet0_5": 32,
}  # fmt: skip
LARGE = {"vgg11_bn": 32, "inception_v3": 80, "maxvit_t": 224, "wide_resnet50_2": 64, "resnext50_32x4d": 64}
FAMILIES = [*QUICK.items(), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in LARGE.items())]


@pytest.mark.parametrize(("arch", "pixels"), FAMILIES)
def test_a_network_of_each_family_computes_what_torchvisions_does_from_the_same_weights(arch, pixels):
    network = build(arch, (3, pixels, pixels), stem="imagenet").eval()
    more = {"aux_logits": False, "init_weights": True} if arch in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(Rngs.of(0).init.get_state())
        theirs = torchvision.models.get_model(arch, num_classes=10, **more).eval()
    for layer in (*theirs.modules(), *network.modules()):  # each class has an eps of its own; ours is the cell's
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-5
    x = torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    met = []
    first = next(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    first.register_forward_pre_hook(lambda _, inputs: met.append(inputs[0].clone()))
    with torch.no_grad():
        assert torch.equal(network(x), theirs(x))
        assert torch.equal(met[0], network.prefix(x))  # what comes before the first normalizer, and no less


def test_a_first_convolution_takes_any_number_of_channels_and_small_images_keep_their_size():
    for shape, stem, kernel, stride, pool in [
        ((1, 64, 64), "auto", 7, 2, nn.MaxPool2d),
        ((1, 63, 64), "auto", 3, 1, nn.Identity),
        ((3, 64, 64), "cifar", 3, 1, nn.Identity),
        ((3, 16, 16), "imagenet", 7, 2, nn.MaxPool2d),
    ]:
        network = build("resnet18", shape, stem=stem)
        assert network.stem.weight.shape == (64, shape[0], kernel, kernel) and network.stem.stride == (stride, stride)
        assert isinstance(network.net.maxpool, pool)
        # 3,136 or more draws: the standard error of a standard deviation is 1.3 % at most.
        assert network.stem.weight.std().item() == pytest.approx((2 / (64 * kernel**2)) ** 0.5, rel=0.06)
    dense = build("densenet121", (1, 32, 32))
    assert dense.stem.kernel_size == (3, 3) and isinstance(dense.net.features.pool0, nn.Identity)


def test_dropout_and_stochastic_depth_draw_from_the_cells_own_stream():
    network = build("efficientnet_b0", (3, 32, 32), stem="imagenet")
    drawing = [layer for layer in network.modules() if isinstance(layer, Dropout)]
    assert {type(layer) for layer in drawing} == {Dropout, StochasticDepth}
    assert not any(isinstance(layer, nn.Dropout | torchvision.ops.StochasticDepth) for layer in network.modules())
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    first = network(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, build("efficientnet_b0", (3, 32, 32), stem="imagenet")(x))
    assert not torch.equal(first, network(x))  # the stream has moved on


def test_stochastic_depth_drops_whole_records_and_keeps_the_mean():
    x = torch.ones(20_000, 2, 3, 3)
    y = StochasticDepth(0.2, Rngs.of(7).dropout)(x)
    assert torch.equal(y, y[:, :1, :1, :1].expand_as(y)) and y.unique().tolist() == pytest.approx([0.0, 1.25])
    # 20,000 draws of standard deviation 0.5: the mean's standard error is 0.0035.
    assert y.mean().item() == pytest.approx(1.0, abs=0.015)
    assert torch.equal(StochasticDepth(0.2, Rngs.of(7).dropout).eval()(x), x)


def test_the_group_norm_holds_every_parameter_of_the_normalizers_and_nothing_else(cell):
    config = cell(*RESNET, "norm=dbn")
    built = build_cell(config, load_data(config, torch.device("cpu")), torch.device("cpu"))
    norm, biases, weights = built.optimizer.param_groups
    names = {id(parameter): name for name, parameter in built.model.named_parameters()}
    assert norm["l2"] == 0 and weights["l2"] > 0
    assert len(norm["params"]) == 40 and "net.bn1.weight" in {names[id(parameter)] for parameter in norm["params"]}
    assert [names[id(parameter)] for parameter in biases["params"]] == ["net.fc.bias"]
    assert len(weights["params"]) == 21


def test_cells_that_share_a_run_have_the_numbers_that_each_has_alone(cell):
    words = [*RESNET, "norm=dbn_inference", "train.epochs=1", "train.limit_batches=2", "train.limit_eval=32"]
    schedules = ["schedule=alpha_0.5", "schedule=harmonic"]
    (together,) = run_all([[cell(*words, schedule, results="together") for schedule in schedules]])
    alone = [run(cell(*words, schedule, results="alone")) for schedule in schedules]
    found = [numbers_of(outcome) for outcome in together]
    assert found == [numbers_of(outcome) for outcome in alone] and found[0] != found[1]


def test_its_runs_train_alone_whatever_a_stack_may_hold_and_the_plan_says_so(cell):
    configs = [cell(*RESNET, f"seed={seed}") for seed in (0, 1)]
    assert list(grouped(configs, lambda _: 20)) == [[[0]], [[1]]]
    asked = plan.asked([*RESNET, "seed=0,1", "hydra.launcher.max_stack=20"])
    said = list(plan.lines(asked, plan.statuses(asked.cells), everything=False))
    assert "model=torchvision: these runs train one by one, because stacks do not support them" in said
    for words in (["seed=0,1", "hydra.launcher.max_stack=20"], [*RESNET, "seed=0,1"]):
        other = plan.asked(words)
        assert not any("one by one" in line for line in plan.lines(other, plan.statuses(other.cells), everything=False))


def test_folders_and_tables_call_a_network_by_its_own_name(cell):
    recorded = cell_of(cell(*RESNET))
    assert readable_name(recorded) == "digits-resnet18-bn-seed0"
    assert describe(recorded).startswith("resnet18, adagrad 0.01, batch 16")
    assert describe(cell_of(cell(*RESNET, "model.stem=imagenet"))).startswith("resnet18 with the imagenet stem, ")


def test_a_network_without_batch_norm_is_refused_whatever_the_normalizer():
    for norm in NORMS:
        with pytest.raises(UserError, match=r"^model.arch=alexnet: it has no batch norm .* resnet18\.$"):
            build("alexnet", (3, 64, 64), norm)


def test_a_sweep_over_networks_one_of_which_does_not_exist_is_refused_before_the_first_run(dbnrun, tmp_path):
    done = dbnrun("-m", "model=torchvision", "model.arch=resnet18,resnet19", *QUICK_SWEEP)
    assert done.returncode == 2 and "model.arch=resnet19" in done.stderr.splitlines()[-1], done.stderr
    assert not list(tmp_path.glob("results/runs/*"))
