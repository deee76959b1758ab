"""How the scales of weights and of lambda move while a cell trains: a row an epoch.

    python scripts/scales.py dataset=mnist norm=dbn schedule=alpha_0.01 train.epochs=8

Takes the overrides of one cell, records nothing. Columns: the running training error [%]; for each normalizer the mean
over units of lambda's sigma, and the norm of the weights before it.
"""

from __future__ import annotations

import sys

import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from dbnrun.config import RunConfig, UserError, checked
from dbnrun.experiment import build_cell, load_data, prepare_device
from dbnrun.models import FNN
from dbnrun.norm.following import dbn_layers
from dbnrun.overrides import conf_dir
from dbnrun.train import train


def main(overrides: list[str]) -> None:
    ConfigStore.instance().store(name="schema", node=RunConfig)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = checked(compose("config", overrides))
    device = prepare_device(config)
    data = load_data(config, device)
    cell = build_cell(config, data, device)
    layers = dbn_layers(cell.model)
    if not layers or not isinstance(cell.model, FNN):
        raise UserError(f"norm={config.norm.name}, model={config.model.name}: expected norm=dbn and model=fnn.")
    names = "".join(f"  sigma{n}  |W{n}|" for n in range(1, len(layers) + 1))
    print(f"epoch  train error [%]{names}")
    for (row,) in train([cell.view()], cell.optimizer, data, config.train, cell.streams, precision=config.precision):
        numbers = ""
        for layer, block in zip(layers, cell.model.hidden, strict=True):
            weight: torch.Tensor = block["linear"].weight  # pyright: ignore[reportIndexIssue, reportAssignmentType]
            numbers += f"{layer.sigma.mean():8.2f}{weight.norm():6.1f}"
        print(f"{row.epoch:5d}{row.train_error_pct:17.2f}{numbers}", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"scales: {error}")
