"""Train a fully connected network whose weights keep their norms, and probe it: a row per layer and epoch.

    python scripts/scales.py dataset=mnist norm=dbn schedule=alpha_0.01 train.epochs=8 --csv held.csv

After each step, each unit's weights before a normalizer get the norm back that they began with. That is an intervention
that no option of a run makes, so it has no folder among the runs. The same run without it is `dbnrun … probe=true`.
Columns: the errors [%] of metrics.csv, and those of probe.csv (docs/probes.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dbnrun.config.compose import composed
from dbnrun.config.overrides import check_overrides, refusal
from dbnrun.config.registry import UserError
from dbnrun.models.fnn import FNN
from dbnrun.runner.build import build_cell, load_data, prepare_device, training_of


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of one run, model=fnn")
    parser.add_argument(
        "--csv", type=Path, help="put the rows into this file too, in place of those it has of this run"
    )
    given = parser.parse_intermixed_args(arguments)
    if given.csv and given.csv.exists() and "run" not in pd.read_csv(given.csv, nrows=0):
        raise UserError(f"{given.csv}: this script did not write it, or an earlier version did; name another file.")
    check_overrides(given.overrides)
    config = composed(given.overrides)
    device = prepare_device(config)
    data = load_data(config, device)
    cell = build_cell(config, data, device)
    if not isinstance(cell.model, FNN):
        raise UserError(f"model={config.model.name}: expected model=fnn.")
    hold = holding([block["linear"].weight for block in cell.model.hidden])  # pyright: ignore[reportIndexIssue, reportArgumentType]
    training = training_of([[cell]], data)
    table = pd.DataFrame()
    while not training.over:
        for _ in training.updates():
            hold()
        ((row,),) = training.rows()
        errors = {"train_error_pct": row.train_error_pct, "test_error_pct": row.test_error_pct}
        rows = [{"run": " ".join(given.overrides), **errors, **asdict(one)} for one in cell.probe(row.epoch, data)]
        print(shown(rows, header=table.empty), flush=True)
        table = pd.concat([table, pd.DataFrame(rows)])
    if given.csv:
        put(given.csv, table)


def shown(rows: list[dict[str, Any]], *, header: bool) -> str:
    table = pd.DataFrame(rows).drop(columns="run")
    text = table.to_string(index=False, float_format=lambda value: f"{value:.4g}", col_space=16)
    return text if header else text.partition("\n")[2]


def holding(weights: list[Tensor]) -> Callable[[], None]:
    """After a step: each unit's weights back to the norm that they have now."""
    norms = [weight.detach().norm(dim=1, keepdim=True) for weight in weights]

    @torch.no_grad()
    def hold() -> None:
        for weight, norm in zip(weights, norms, strict=True):
            weight.mul_(norm / weight.norm(dim=1, keepdim=True))

    return hold


def put(path: Path, table: pd.DataFrame) -> None:
    if path.exists():
        old = pd.read_csv(path)
        table = pd.concat([old[~old["run"].isin(table["run"])], table])
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception as error:
        if (line := refusal(error)) is None:
            raise
        sys.exit(f"scales: {line}")
