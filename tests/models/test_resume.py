"""Networks that others wrote: a run that is cut inside an epoch goes on byte for byte."""

import csv

import pytest

from dbnrun.config.compose import composed
from dbnrun.config.overrides import prepared
from dbnrun.runner.execute import run
from dbnrun.runs import metrics
from dbnrun.runs.run_dir import RunDir

SOURCE = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, input_shape, num_classes, norm):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(input_shape[0], 8, 3), norm(8, 2), nn.ReLU(), nn.Dropout(0.2))
        self.out = nn.Linear(8, num_classes)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += len(x)
        return self.out(F.dropout(self.body(x).mean((2, 3)), 0.3, self.training)) / (1 + self.seen / 1000)


class Plain(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, num_classes),
        )


class Renorm(nn.Module):
    def __init__(self, features, spatial, momentum=0.2):
        super().__init__()
        self.momentum, self.axes, self.shape = momentum, (0, 2, 3), (1, features, 1, 1)
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(features))
        self.register_buffer("mu", torch.zeros(features))
        self.eps = 1e-5

    def set_statistics(self, mean, var):
        self.mu.copy_(mean)

    def forward(self, x):
        mu = self.mu
        if self.training:
            mu = x.mean(self.axes)
            with torch.no_grad():
                self.mu.lerp_(mu, self.momentum)
        return (x - mu.view(self.shape)) * self.weight.view(self.shape)
"""
SMALL = ["train.epochs=2", "train.limit_batches=3", "train.limit_eval=32", "train.batch_size=16", "device=cpu"]
RUNS = {
    "torchvision": ["model=torchvision", "model.arch=mobilenet_v3_small", "model.stem=imagenet", "norm=dbn"],
    "norm in its signature": ["model=custom", "model.target={file}:Net", "norm=dbn", "schedule=harmonic"],
    "batch norms exchanged": ["model=custom", "model.target={file}:Plain", "norm=custom", "norm.target={file}:Renorm"],
}


@pytest.fixture
def goes_on(tmp_path, monkeypatch):
    """Train a cell at one go, and once more cut after so many updates; assert that the files are the same."""
    (tmp_path / "nets.py").write_text(SOURCE)

    def compare(words, cut_after):
        words = [word.replace("{file}", str(tmp_path / "nets.py")) for word in words]

        def trained(where):
            folder = f'results_dir="{tmp_path / where}"'
            return run(composed(prepared([*words, "save_weights=true", "progress=false", folder], sweep=False)))

        whole, updates, save = trained("whole"), [], RunDir.checkpoint

        def due(self):
            updates.append(self)
            return len(updates) == cut_after

        def cut(self, state):
            save(self, state)
            if state["under_way"]:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(RunDir, "due", due)
            patch.setattr(RunDir, "checkpoint", cut)
            trained("cut")
        resumed = trained("cut")
        assert (whole.status, resumed.status, len(updates)) == ("done", "done", cut_after), resumed.message
        assert lines(whole) == lines(resumed)
        weights = [(outcome.folder / "weights.pt").read_bytes() for outcome in (whole, resumed)]
        assert weights[0] == weights[1]
        return lines(whole)

    return compare


def lines(outcome):
    """The rows of metrics.csv as the texts that stand there, but for the times."""
    with (outcome.folder / "metrics.csv").open() as file:
        return [
            {key: text for key, text in row.items() if key not in metrics.TIME_COLUMNS} for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("network", RUNS)
def test_a_run_that_is_cut_inside_an_epoch_goes_on_byte_for_byte(goes_on, network):
    rows = goes_on([*RUNS[network], *SMALL], cut_after=4)
    assert len(rows) == 2 and all(row["test_error_pct_population"] and row["lambda_drift"] for row in rows)


RESNET = ["model=torchvision", "model.arch=resnet18"]
MINE = ["model=custom", "model.target=torchvision.models:resnet18"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "norm"), [(RESNET, "bn"), (RESNET, "dbn"), (RESNET, "gn"), (RESNET, "custom"), (MINE, "dbn")]
)
def test_a_resnet18_on_cifar10_goes_on_byte_for_byte_with_every_kind_of_normalizer(goes_on, real_data, model, norm):
    own = ["norm.target={file}:Renorm"] if norm == "custom" else []
    size = ["train.batch_size=8", "train.limit_eval=40", "train.epochs=2", "train.limit_batches=5", "device=cpu"]
    rows = goes_on([*model, "dataset=cifar10", f'data_dir="{real_data}"', f"norm={norm}", *own, *size], cut_after=7)
    assert len(rows) == 2 and rows[-1]["step"] == "10"
