"""Short runs whose rows are written down: `rows.csv` and `layers.json` beside this file.

    make golden    # train them all again and write down what differs; then read the diff

A change of the numbers is declared by what that diff shows, a higher number in dbnrun.records.RESULTS_VERSIONS (or in
the version of the choice that changed), and a line in CHANGELOG.md. A row that still matches keeps its digits, so the
diff shows changes alone and not another processor's rounding. Cells whose data are not at hand keep their rows.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dbnrun import norm, records
from dbnrun.config import RunConfig
from dbnrun.fused.grouping import grouped
from dbnrun.fused.run import run_stack
from dbnrun.norm.schedules import build_schedule
from dbnrun.overrides import composed
from dbnrun.recording import Recording

HERE = Path(__file__).parent
ROWS = HERE / "rows.csv"
LAYERS = HERE / "layers.json"


@dataclass(frozen=True)
class Pin:
    """Cells that have `common` overrides; each adds one of `cells`.

    Each is trained alone. Several are also trained together and must give the same rows: cells that can share a run
    share it, and up to `max_stack` runs are stacked.
    """

    common: str
    cells: tuple[str, ...] = ("",)
    max_stack: int = 1


# Two passes over the digits, 11 updates each.
PINS = {
    "bn": Pin("norm=bn", ("", "seed=1"), 2),
    "bn sgd": Pin(
        "norm=bn norm.momentum=0.3 norm.affine=false optimizer=sgd optimizer.nesterov=true optimizer.lr=0.02 "
        "dataset.augment=flip_crop model.activation=tanh dataset.val_size=0.3"
    ),
    "bn eps": Pin("norm=bn norm.eps=0.1 optimizer=adam optimizer.eps=0.01 model.norm_position=after", ("", "optimizer.lr=0.002"), 2),
    "B": Pin(
        "norm=dbn",
        (
            "schedule=alpha_1",
            "seed=1 schedule=harmonic optimizer.lr=0.02",
            "seed=2 schedule=alpha_0.25 norm.init=[0.5,2]",
            "seed=2 schedule=power schedule.unit=epoch optimizer.groups.weights.weight_decay=0.01",
        ),
        4,
    ),
    "B eps": Pin("norm=dbn norm.eps=0.1 norm.eps_at=var optimizer=adam", ("", "schedule=inverse_square seed=1"), 2),
    "B var": Pin("norm=dbn norm.average=var norm.affine=false optimizer=adamw model.norm_position=after"),
    "C": Pin("norm=dbn norm.stats_grad=false", ("schedule=alpha_1", "schedule=harmonic"), 2),
    "C inv_std": Pin(
        "norm=dbn norm.stats_grad=false norm.average=inv_std norm.eps=0.1 schedule=alpha_0.25 optimizer=sgd "
        "optimizer.momentum=0 model.activation=elu"
    ),
    "A": Pin(
        "norm=dbn_inference",
        (
            "schedule=alpha_1",
            "schedule=alpha_0.1 norm.init=[0.5,2]",
            "schedule=harmonic",
            "schedule=harmonic schedule.unit=epoch",
            "schedule=inverse_square",
        ),
    ),
    "A eps": Pin(
        "norm=dbn_inference norm.average=inv_std norm.eps=0.1 optimizer=sgd optimizer.lr=0.02 "
        "optimizer.groups.weights.weight_decay=0.01",
        ("schedule=alpha_0.5", "schedule=power schedule.exponent=0.7", "seed=1 schedule=alpha_0.5"),
        2,
    ),
    "A var": Pin("norm=dbn_inference norm.average=var norm.eps_at=var norm.stats_grad=false train.batch_size=50"),
    "ln": Pin("norm=ln optimizer=adam model.activation=gelu", ("", "seed=1"), 2),
    "gn": Pin("norm=gn norm.num_groups=4 norm.affine=false model.norm_position=after dataset.augment=flip_crop"),
    "none": Pin("norm=none optimizer=sgd optimizer.lr=0.01 model.activation=leaky_relu", ("", "seed=1"), 2),
    "two_layer B": Pin(
        "model=two_layer model.activation=tanh norm=dbn", ("schedule=harmonic", "seed=1 schedule=alpha_0.25"), 2
    ),
    "two_layer none": Pin("model=two_layer model.activation=sigmoid norm=none optimizer=adamw"),
    "cnn bn": Pin(
        "model=cnn model.widths=[4,4,8,8,16] norm=bn optimizer=sgd optimizer.lr=0.02 dataset.augment=flip_crop",
        ("", "seed=1"),
        2,
    ),
    "cnn B": Pin(
        "model=cnn model.widths=[4,4,8,8,16] norm=dbn norm.eps=0.1",
        ("schedule=harmonic", "seed=1 schedule=alpha_0.25 model.dropout=[0,0.1,0.2]"),
        2,
    ),
    "cnn C": Pin(
        "model=cnn model.widths=[4,4,8,8,16] norm=dbn norm.stats_grad=false norm.average=var schedule=alpha_0.25 "
        "optimizer=sgd optimizer.lr=0.002 dataset.val_size=0.5"
    ),
    "cnn A": Pin(
        "model=cnn model.widths=[4,4,8,8,16] model.norm_position=after norm=dbn_inference "
        "optimizer.initial_accumulator=0.1",
        ("schedule=alpha_0.1", "schedule=harmonic"),
    ),
    "cnn ln": Pin("model=cnn model.widths=[4,4,8,8,16] norm=ln model.dropout=[0,0,0]"),
    "cnn gn": Pin("model=cnn model.widths=[4,4,8,8,16] norm=gn norm.num_groups=2 optimizer=adamw optimizer.eps=0.01"),
    "bf16": Pin("precision=bf16 norm=dbn schedule=harmonic optimizer=sgd optimizer.lr=0.01 train.limit_batches=2"),
    "mnist B": Pin("dataset=mnist train.limit_batches=10 train.epochs=1 norm=dbn", ("schedule=harmonic", "seed=1"), 2),
    "ni B": Pin("dataset=ni train.limit_batches=20 train.epochs=1 norm=dbn schedule=harmonic"),
    "cifar10 B": Pin(
        "dataset=cifar10 model.widths=[4,4,8,8,16] train.limit_batches=4 train.epochs=1 norm=dbn schedule=harmonic"
    ),
}
