"""How the scales of weights and of lambda move while a cell trains, and which gradient keeps them: a row an epoch.

    python scripts/scales.py dataset=mnist norm=dbn schedule=alpha_0.01 train.epochs=8 norm.stats_grad=mean

Takes the overrides of one cell. Columns: the running training error and the test error [%]; for each normalizer
lambda's sigma and its |mu| / sigma, means over units, and the norm of the weights before it. Three interventions:

norm.stats_grad=mean  a step can gain nothing by moving a unit's mean, as in batch normalization.
norm.stats_grad=var   nothing by scaling it.
--hold                each unit's weights before a normalizer keep, after each step, the norm that they began with.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from dbnrun.config.compose import composed
from dbnrun.config.overrides import check_overrides, refusal
from dbnrun.config.registry import UserError
from dbnrun.models.fnn import FNN
from dbnrun.norm.tracking import dbn_layers
from dbnrun.runner.build import Cell, build_cell, load_data, prepare_device, training_of


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of one cell, norm=dbn and model=fnn")
    parser.add_argument("--hold", action="store_true")
    parser.add_argument("--csv", type=Path, help="put the rows into this file too")
    given = parser.parse_intermixed_args(arguments)
    check_overrides(given.overrides)
    config = composed(given.overrides)
    device = prepare_device(config)
    data = load_data(config, device)
    cell = build_cell(config, data, device)
    if not dbn_layers(cell.model) or not isinstance(cell.model, FNN):
        raise UserError(f"norm={config.norm.name}, model={config.model.name}: expected norm=dbn and model=fnn.")
    hold = holding(weights_of(cell)) if given.hold else lambda: None
    training = training_of([[cell]], data)
    rows = []
    while not training.over:
        for _ in training.updates():
            hold()
        ((row,),) = training.rows()
        rows.append(
            {
                "epoch": row.epoch,
                "train_error_pct": row.train_error_pct,
                "test_error_pct": math.nan if row.test_error_pct is None else row.test_error_pct,
                **scales(cell),
            }
        )
        if len(rows) == 1:
            print(" ".join(f"{name:>15}" for name in rows[-1]))
        print(" ".join(f"{value:15.4g}" for value in rows[-1].values()), flush=True)
    if given.csv:
        put(given.csv, rows, " ".join([*given.overrides, *["--hold"] * given.hold]))


def weights_of(cell: Cell) -> list[Tensor]:
    """The weights before each normalizer, (units, inputs)."""
    return [block["linear"].weight for block in cell.model.hidden]  # pyright: ignore[reportReturnType, reportIndexIssue, reportGeneralTypeIssues]


def scales(cell: Cell) -> dict[str, float]:
    numbers = {}
    for n, (layer, weight) in enumerate(zip(dbn_layers(cell.model), weights_of(cell), strict=True), start=1):
        numbers[f"sigma{n}"] = layer.sigma.mean()
        numbers[f"|mu|/sigma{n}"] = (layer.mu.abs() / layer.sigma.clamp_min(1e-6)).mean()
        numbers[f"|W{n}|"] = weight.detach().norm()
    return {name: round(float(value), 4) for name, value in numbers.items()}


def holding(weights: list[Tensor]) -> Callable[[], None]:
    """After a step: each unit's weights back to the norm that they have now."""
    norms = [weight.detach().norm(dim=1, keepdim=True) for weight in weights]

    @torch.no_grad()
    def hold() -> None:
        for weight, norm in zip(weights, norms, strict=True):
            weight.mul_(norm / weight.norm(dim=1, keepdim=True))

    return hold


def put(path: Path, rows: list[dict[str, float]], cell: str) -> None:
    """Put the rows of a cell into a CSV, in place of those it has of that cell."""
    new = pd.DataFrame([{"cell": cell, **row} for row in rows])
    if path.exists():
        old = pd.read_csv(path)
        new = pd.concat([old[old["cell"] != cell], new])
    path.parent.mkdir(parents=True, exist_ok=True)
    new.to_csv(path, index=False)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception as error:
        if (line := refusal(error)) is None:
            raise
        sys.exit(f"scales: {line}")
