"""Cells and runs with chosen numbers, for the tests of the report."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from dbnrun.config import registry
from dbnrun.config.identity import signature
from dbnrun.runs import layout
from dbnrun.runs.load import RunRecord
from dbnrun.runs.metrics import EpochRow, MetricsWriter

CONSTANTS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.01, 0.001, 0.0)
SCHEDULES = [{"name": "constant", "alpha": alpha} for alpha in CONSTANTS] + [
    {"name": name, "unit": unit} for name in ("harmonic", "inverse_square") for unit in ("epoch", "step")
]
PROTOCOLS = {"A": ("batch", True), "B": ("lambda", True), "C": ("lambda", False)}
DIGEST = "9e1d27889be9"


def constant(alpha: float) -> dict[str, Any]:
    return {"name": "constant", "alpha": alpha}


def cell(
    schedule: Any = None, seed: int = 0, dataset: str = "mnist", protocol: str = "A", norm: str = "dbn", epochs: int = 4
) -> dict[str, Any]:
    """A whole cell as the runner writes it; a schedule makes it DBN, none makes it a baseline."""
    train_stats, stats_grad = PROTOCOLS[protocol]
    dbn = {"name": "dbn", "eps": 1e-4, "affine": True, "train_stats": train_stats, "stats_grad": stats_grad,
           "average": "std", "eps_at": "std", "init": [0.0, 1.0]}  # fmt: skip
    group = {"lr": 0.01, "weight_decay": 0.0}
    content = {
        "dataset": {"name": dataset, "val_size": 0.1} | ({"features": "log"} if dataset == "ni" else {}),
        "model": {"name": "fnn", "widths": [300, 300], "activation": "relu", "norm_position": "before"},
        "norm": dbn if schedule else {"name": norm, "eps": 1e-5},
        "optimizer": {
            "name": "adagrad",
            "groups": {
                "norm": {"pattern": "*norm*", **group},
                "weights": {"pattern": "*.weight", **group, "weight_decay": 1e-4},
            },
        },
        "train": {"epochs": epochs, "batch_size": 100},
        "seed": seed,
        "precision": "fp32",
    }
    return content | ({"schedule": schedule} if schedule else {})


def rows(test: Any, val: Any = None, val_loss: Any = None) -> tuple[EpochRow, ...]:
    """Rows with the given test errors [%], and validation errors and losses where they matter."""
    test = np.asarray(test, dtype=float)
    val = test if val is None else np.asarray(val, dtype=float)
    loss = test / 10 if val_loss is None else np.asarray(val_loss, dtype=float)
    return tuple(
        EpochRow(
            epoch=i + 1, step=500 * (i + 1), alpha=0.25, lr=0.01, train_loss=0.1, train_error_pct=1.0,
            val_loss=float(loss[i]), val_error_pct=float(val[i]), test_loss=0.2, test_error_pct=float(test[i]),
            test_error_pct_population=float(test[i]), lambda_drift=None, grad_norm=1.0, train_seconds=1.234,
            eval_seconds=0.1,
        )
        for i in range(len(test))
    )  # fmt: skip


def manifest(content: Any, status: str = "done") -> dict[str, Any]:
    return {
        "signature": signature(content, DIGEST), "status": status, "data_digest": DIGEST, "threads": 2,
        "results_version": registry.of("dataset")[content["dataset"]["name"]].results_version,
        "versions": {"dbnrun": "0.1.0", "torch": "2.13.0"}, "git": "23708c5" + "0" * 33, "host": "h", "device": "cpu",
        "command": ["dbnrun", "experiment=paper_mnist_a"], "started": "2026-11-23T16:00:00+0000", "wall_seconds": 9.5,
    }  # fmt: skip


def run(content: Any, test: Any, status: str = "done", **values: Any) -> RunRecord:
    """A recorded run in memory."""
    content = {**content, "train": {**content["train"], "epochs": len(test)}}
    described = manifest(content, status)
    return RunRecord(Path("memory"), described["signature"], DIGEST, content, status, rows(test, **values), described)


def write_run(results: Path, content: Any, test: Any, status: str = "done", **values: Any) -> Path:
    """The same as a run folder; returns it."""
    content = {**content, "train": {**content["train"], "epochs": len(test)}}
    described = manifest(content, status)
    folder = layout.run_folder(results, content, described["signature"])
    folder.mkdir(parents=True)
    layout.write_cell(folder, content)
    layout.write_manifest(folder, described)
    with contextlib.closing(MetricsWriter(folder, [])) as writer:
        for row in rows(test, **values):
            writer.write(row)
    return folder


def table_1(
    datasets: Any = ("mnist", "ni", "cifar10"),
    protocols: Any = "ABC",
    seeds: int = 3,
    epochs: int = 12,
    gain: float = 0.5,
) -> list[RunRecord]:
    """Every schedule and baseline: α = 1 and BN at 3 % and noisy, α = 0 at 20 %, the others `gain` pp below.

    0.25 is the best. The validation loss of all but α = 0 falls alike.
    """
    rng = np.random.default_rng(0)
    runs = []
    for dataset in datasets:
        for seed in range(seeds):
            shared = rng.normal(0, 0.1)  # what pairing by seed takes out
            for protocol in protocols:
                for schedule in SCHEDULES:
                    test = _curve(schedule, rng, epochs, gain) + shared
                    loss = 0.2 + 1 / np.arange(1, epochs + 1) + 2 * (schedule.get("alpha") == 0)
                    runs.append(run(cell(schedule, seed, dataset, protocol), test, val_loss=loss))
            for norm in ("bn", "ln", "gn", "none"):
                test = _curve({"alpha": 1}, rng, epochs, gain) + shared
                runs.append(run(cell(None, seed, dataset, norm=norm), test))
    return runs


def _curve(schedule: Any, rng: np.random.Generator, epochs: int, gain: float) -> np.ndarray:
    alpha = schedule.get("alpha")
    level = {1: 3.0, 0: 20.0, 0.25: 3.0 - 1.2 * gain}.get(alpha, 3.0 - gain)
    noise = 0.1 if alpha == 1 else 0.02
    return level + 2 / np.arange(1, epochs + 1) ** 2 + rng.normal(0, noise, epochs)
