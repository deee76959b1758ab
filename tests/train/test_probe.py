"""probe=true: what passes through each normalizer, measured without a change to any number of the run."""

import copy
import csv
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dbnrun.config.compose import composed
from dbnrun.config.registry import UserError
from dbnrun.data.dataset import Data, Part
from dbnrun.norm.dbn import DiminishingBatchNorm1d
from dbnrun.runner.execute import run, run_all
from dbnrun.runs import layout, metrics
from dbnrun.runs import probe as records
from dbnrun.runs.probe import ProbeRow
from dbnrun.runs.run_dir import RunDir
from dbnrun.train.probe import probe

TINY = ["train.limit_batches=3", "device=cpu", "threads=1", "progress=false", "save_weights=true"]


@pytest.fixture
def cell(tmp_path):
    def make(*overrides, results="results"):
        return composed(["train.epochs=3", *TINY, f'results_dir="{tmp_path / results}"', *overrides])

    return make


def numbers(folder):
    """metrics.csv without its seconds, and the trained weights, as bytes."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    kept = [{key: value for key, value in row.items() if key not in metrics.TIME_COLUMNS} for row in rows]
    return kept, (folder / layout.WEIGHTS).read_bytes()


def probed(outcome):
    return (outcome.folder / layout.PROBE).read_bytes()


CELLS = [
    ["norm=dbn", "schedule=harmonic"],
    ["norm=bn", "model=cnn", "model.widths=[4,4,8,8,16]", "model.dropout=[0.2,0.3,0.4]", "dataset.augment=flip_crop"],
    ["norm=online_norm", "precision=bf16"],
    ["norm=mabn", "norm.memory=2", "norm.warmup=1"],
    ["norm=gn"],
]


@pytest.mark.parametrize("overrides", CELLS, ids=lambda o: o[0])
def test_a_probed_run_has_the_numbers_and_weights_of_one_that_is_not_byte_for_byte(cell, overrides):
    looked, plain = (run(cell(*overrides, f"probe={p}", results=p)).folder for p in ("true", "false"))
    assert numbers(looked) == numbers(plain)
    assert looked.name == plain.name and not (plain / layout.PROBE).exists()
    layers = 5 if "model=cnn" in overrides else 2
    assert [row.epoch for row in records.read_rows(looked / layout.PROBE)] == [
        e for e in (1, 2, 3) for _ in range(layers)
    ]


NORMS = {
    "bn": lambda: nn.BatchNorm1d(6, eps=1e-3),
    "lambda": lambda: DiminishingBatchNorm1d(6, 0.3, init=(0.4, 1.5)),
    "constant": lambda: DiminishingBatchNorm1d(6, 0.3, init=(0.4, 1.5), stats_grad=False),
    "mean": lambda: DiminishingBatchNorm1d(6, 0.3, init=(0.4, 1.5), stats_grad="mean"),
    "var": lambda: DiminishingBatchNorm1d(6, 0.3, init=(0.4, 1.5), stats_grad="var"),
}
# By name: eps, where it is added, alpha, lambda's beginning, and what of d mu / d mu_B and of d sigma / d sigma_B.
DEFINITIONS = {
    "bn": (1e-3, "var", 1.0, (0.0, 1.0), (1.0, 1.0)),
    "lambda": (1e-4, "std", 0.3, (0.4, 1.5), (0.3, 0.3)),
    "constant": (1e-4, "std", 0.3, (0.4, 1.5), (0.0, 0.0)),
    "mean": (1e-4, "std", 0.3, (0.4, 1.5), (1.0, 0.0)),
    "var": (1e-4, "std", 0.3, (0.4, 1.5), (0.0, 1.0)),
}


def a_network(norm):
    """Linear, normalizer, a rectifier that works in place, linear; and data of 20 records."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(inplace=True), nn.Linear(6, 3))
    with torch.no_grad():
        if getattr(norm, "weight", None) is not None and norm.weight.dim() == 1:
            norm.weight.copy_(torch.rand(6, generator=rng) + 0.5)
    x, y = torch.randn(20, 4, generator=rng) + 1, torch.randint(3, (20,), generator=rng)
    return model, Data(Part(x, y), Part(x, y), Part(x, y), (4,), 3, "")


def gradient(model, data, kind, *, mean, scale):
    """dL/dx by autograd in float64 through the normalizer's definition, with or without each statistic's part."""
    eps, at, alpha, (mu0, sigma0), (by_mean, by_sigma) = DEFINITIONS[kind]
    first, norm, _, last = model
    part = data.train
    x = F.linear(part.x.double(), first.weight.double(), first.bias.double()).detach().requires_grad_()
    mu_b, var_b = x.mean(0), x.var(0, correction=0)
    sigma_b = var_b.sqrt()
    # The value of alpha, and the slope that the layer gives the batch's moments.
    mu = (alpha * mu_b + (1 - alpha) * mu0).detach() + (by_mean * mean) * (mu_b - mu_b.detach())
    sigma = (alpha * sigma_b + (1 - alpha) * sigma0).detach() + (by_sigma * scale) * (sigma_b - sigma_b.detach())
    divisor = sigma + eps if at == "std" else (sigma**2 + eps).sqrt()
    z = ((x - mu) / divisor * norm.weight.double() + norm.bias.double()).relu()
    logits = F.linear(z, last.weight.double(), last.bias.double())
    return torch.autograd.grad(F.cross_entropy(logits, part.y, label_smoothing=0.1), x)[0], x.detach()


@pytest.mark.parametrize("kind", NORMS)
def test_the_shares_are_those_of_autograd_through_the_definition(kind):
    model, data = a_network(NORMS[kind]())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    (row,) = probe(model, [], data, batch_size=20, label_smoothing=0.1, epoch=4)
    whole, x = gradient(model, data, kind, mean=True, scale=True)
    for share, kept in (
        (row.mean_share, {"mean": False, "scale": True}),
        (row.scale_share, {"mean": True, "scale": False}),
    ):
        through = whole - gradient(model, data, kind, **kept)[0]
        # float32 against float64
        assert share == pytest.approx(float(through.norm() / whole.norm()), rel=1e-4, abs=1e-6)
    assert (row.epoch, row.layer) == (4, "1")
    x, (mu0, _) = x.numpy(), DEFINITIONS[kind][3]
    rms = {
        "mean_over_sigma": x.mean(0) / x.std(0), "sigma": x.std(0), "lambda_lag": (mu0 - x.mean(0)) / x.std(0),
    }  # fmt: skip
    for name, values in rms.items():
        assert getattr(row, name) == pytest.approx(math.sqrt(np.mean(values**2)), rel=1e-3)
    assert row.gamma_norm == pytest.approx(np.linalg.norm(model[1].weight.detach().numpy()), rel=1e-6)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_normalizer_of_records_has_moments_and_gamma_and_no_shares():
    layer = nn.LayerNorm(6)
    model, data = a_network(layer)
    assert probe(model, [], data, 20, 0.0, 1) == []  # nobody has said that it is a normalizer
    (row,) = probe(model, [layer], data, 20, 0.0, 1)
    assert row.sigma and row.mean_over_sigma and row.gamma_norm
    assert (row.mean_share, row.scale_share, row.lambda_lag) == (None, None, None)


def test_of_a_layer_in_two_places_the_first_counts():
    alone, data = a_network(nn.BatchNorm1d(6))
    (wanted,) = probe(alone, [], data, 20, 0.0, 1)
    twice = nn.Sequential(*alone[:3], alone[1], *alone[3:])
    (row,) = probe(twice, [], data, 20, 0.0, 1)
    assert (row.mean_over_sigma, row.sigma, row.lambda_lag) == (wanted.mean_over_sigma, wanted.sigma, wanted.lambda_lag)
    # Its dL/dx is that of the first place: with the second one held constant, another loss behind the same layer.
    x = alone[0](data.train.x).detach().requires_grad_()
    other = copy.deepcopy(alone[1])
    z = alone[1](x).relu()
    loss = F.cross_entropy(alone[3](other(z)), data.train.y)
    (whole,) = torch.autograd.grad(loss, x, retain_graph=True)
    (g,) = torch.autograd.grad(loss, z)
    held = (g * (z > 0)) * alone[1].weight / (x.var(0, correction=0) + alone[1].eps).sqrt()
    assert row.mean_share == pytest.approx(
        float((20**0.5 * (whole - held).mean(0).norm() / whole.norm()).detach()), rel=1e-4
    )


def test_units_that_do_not_vary_are_left_out_of_what_is_divided_by_their_sigma():
    model, data = a_network(nn.BatchNorm1d(6))
    with torch.no_grad():
        model[0].weight[2:] = 0
        model[0].bias.fill_(5.0)
    (row,) = probe(model, [], data, 20, 0.0, 1)
    x = F.linear(data.train.x, model[0].weight, model[0].bias).detach().double().numpy()[:, :2]
    assert row.mean_over_sigma == pytest.approx(math.sqrt(np.mean((x.mean(0) / x.std(0)) ** 2)), rel=1e-3)
    assert row.sigma == pytest.approx(math.sqrt(np.sum(x.std(0) ** 2) / 6), rel=1e-4)
    assert 0 < row.mean_share < 10 and 0 < row.scale_share < 10


def test_only_evaluated_epochs_are_probed(cell):
    outcome = run(cell("norm=dbn", "train.eval_every=2", "probe=true"))
    assert [(r.epoch, r.layer) for r in records.read_rows(outcome.folder / layout.PROBE)] == [
        (epoch, f"hidden.{n}.norm") for epoch in (2, 3) for n in (0, 1)
    ]


@pytest.mark.parametrize("cut_in", ["write", "checkpoint"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_probed_run_that_is_cut_anywhere_goes_on_to_the_same_file_byte_for_byte(cell, cut_in, epoch, monkeypatch):
    words = ["norm=dbn", "schedule=harmonic", "probe=true"]
    whole = run(cell(*words, results="whole"))
    original = getattr(metrics.MetricsWriter if cut_in == "write" else RunDir, cut_in)
    calls = []

    def cut(self, content):  # between an epoch's probe and its row, or between its row and its checkpoint
        calls.append(content)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        original(self, content)

    with monkeypatch.context() as patched:
        patched.setattr(metrics.MetricsWriter if cut_in == "write" else RunDir, cut_in, cut)
        with pytest.raises(KeyboardInterrupt):
            run(cell(*words, results="cut"))
    (folder,) = (whole.folder.parents[2] / "cut" / "runs").iterdir()
    assert len(records.read_rows(folder / layout.PROBE)) == 2 * epoch  # the epoch that is trained again is there
    with (folder / layout.PROBE).open("a") as file:
        file.write("3,hidden.0.no")  # what a power cut leaves
    resumed = run(cell(*words, results="cut"))
    assert probed(resumed) == probed(whole) and numbers(resumed.folder) == numbers(whole.folder)


def test_cells_along_one_run_and_in_a_stack_are_probed_each_with_its_own_lambda(cell):
    schedules = ["schedule=alpha_0.1", "schedule=harmonic"]

    def cells(results):
        return [
            [cell("norm=dbn_inference", s, f"seed={seed}", "probe=true", results=results) for s in schedules]
            for seed in (0, 1)
        ]

    together = run_all(cells("together"))
    alone = [run_all([[config]])[0][0] for runs in cells("alone") for config in runs]
    for one, other in zip((o for outcomes in together for o in outcomes), alone, strict=True):
        stacked, single = (records.read_rows(o.folder / layout.PROBE) for o in (one, other))
        for row, wanted in zip(stacked, single, strict=True):
            assert (row.epoch, row.layer) == (wanted.epoch, wanted.layer)
            # A stack rounds otherwise, and training multiplies that.
            values = [[getattr(r, name) for name in records.MEASURED] for r in (row, wanted)]
            assert values[0] == pytest.approx(values[1], rel=1e-3)
    assert probed(together[0][0]) != probed(together[0][1])


def test_a_finished_run_without_its_probe_says_how_to_get_it_and_force_keeps_the_old_one(command, tmp_path):
    words = ["train.epochs=1", *TINY]
    assert command(*words)[0] == 0
    assert "finished without probe=true; force=true" in command(*words, "probe=true")[1]
    assert "probe=true: 1 run finished without it" in command("-m", *words, "probe=true")[1]
    for _ in range(2):
        assert command(*words, "probe=true", "force=true")[0] == 0
    assert "finished without" not in command(*words, "probe=true")[1]
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    assert probed_names(folder) == ["probe.csv", "probe.set-aside-2.csv"]


def probed_names(folder):
    return sorted(path.name for path in folder.glob("probe*"))


def test_rows_read_back_exactly_and_a_damaged_file_is_refused_in_one_line(tmp_path):
    empty = dict.fromkeys(records.MEASURED)
    rows = [
        ProbeRow(epoch=1, layer='a,"b"', **(empty | {"sigma": 1 / 3})),
        ProbeRow(epoch=1, layer="c", **(empty | {"mean_share": 0.0})),
    ]
    writer = records.ProbeWriter(tmp_path, 1)
    writer.write(records.csv_lines(rows))
    writer.close()
    path = tmp_path / layout.PROBE
    assert records.read_rows(path) == rows and records.read_rows(tmp_path / "none" / layout.PROBE) == []
    path.write_text(path.read_text() + "2,d,x,,,,,\n")
    with pytest.raises(UserError, match=r"probe.csv: line 4: expected epoch,layer,mean_over_sigma[^\n]*$"):
        records.read_rows(path)
