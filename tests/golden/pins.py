"""Short runs whose rows are written down in `rows.csv`, beside this file.

    make golden    # trains them all again, writes down what differs, and says what; then read the diff

Set DBNRUN_DATA to the folder of the real data first: pins whose data are not at hand keep their rows.

A change of the numbers is declared by what that diff shows, by a higher `results_version` of the data set's class in
dbnrun/data/options.py, and by a line in CHANGELOG.md. `layers.py` has the same for one step of each layer in float64.
"""

from __future__ import annotations

import csv
import functools
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from dbnrun.config.compose import composed
from dbnrun.config.schema import RunConfig
from dbnrun.runner.execute import run_all
from dbnrun.runner.grouping import grouped
from dbnrun.runs import metrics

ROWS = Path(__file__).with_name("rows.csv")

# How far a row may lie from the one written down, as a share of each loss, gradient norm and drift.
#
# Another processor rounds otherwise. Measured on 2026-11-25 against these rows, alone and together, with
# ATEN_CPU_CAPABILITY=default, avx2 and avx512, with ONEDNN_MAX_CPU_ISA=SSE41 and AVX2, with 1 and 2 threads, and with
# all the lowest at once (MKL_CBWR=COMPATIBLE too): the furthest row was off by 1.3e-6 where all functions are smooth,
# by 5.9e-5 where rectifiers and max-pooling make a unit change sides by rounding, and by 3.8e-4 in bfloat16.
# (Convolutions add their own: on a CPU torch sums a channel in channels-last order in float32, one value after the
# other. Over the 10^5 values of a CIFAR-10 batch its variance is off by 6e-4, so CIFAR-10 is pinned without it.)
# Of the changes planted in test_pins.py the smallest moves every cell by 2.3e-4, 2.3e-3 and 0.1.
SMOOTH, KINKS, BFLOAT16 = 2e-5, 1e-3, 5e-3
# Two of the 240 validation records of the digits, the smallest part: a record near the border between two classes
# changes sides by rounding.
ERROR_PCT = 0.9


@dataclass(frozen=True)
class Pin:
    """Cells with the `common` overrides; each adds one of `cells`.

    Each is trained alone. Several are trained together as well and must give the same rows: cells that can share a
    run share it, and the runs are stacked.
    """

    common: str
    cells: tuple[str, ...] = ("",)
    rtol: float = SMOOTH


# Together they have every choice in conf/ and every value of a choice's options (test_pins.py asks for it).
# A penalty of the default's size would be lost in rounding.
DECAY = "optimizer.groups.weights.weight_decay=0.01"
# AdaGrad and Adam divide a gradient by its own size. Of one that is mere rounding they would make a whole step, in
# which no two processors agree.
ADAGRAD = f"optimizer=adagrad optimizer.initial_accumulator=0.1 {DECAY}"
ADAM = f"optimizer=adam optimizer.eps=0.01 {DECAY}"
ADAMW = "optimizer=adamw optimizer.eps=0.01"
SGD = f"optimizer=sgd optimizer.lr=0.02 {DECAY}"
CNN = "model=cnn model.widths=[4,4,8,8,16] train.batch_size=50 train.limit_batches=4"
REAL = f"train.epochs=1 {ADAGRAD}"
PINS = {
    "bn": Pin(f"norm=bn {ADAGRAD} model.activation=tanh", ("", "seed=1")),
    "bn eps": Pin(f"norm=bn norm.eps=0.1 {ADAM} model.activation=gelu model.norm_position=after"),
    "bn momentum": Pin(
        f"norm=bn norm.momentum=0.3 norm.affine=false {SGD} optimizer.nesterov=true dataset.augment=flip_crop "
        "model.activation=tanh dataset.val_size=0.3"
    ),
    "rates": Pin(
        f"norm=bn {SGD} train.label_smoothing=0.1 model.activation=tanh",
        (
            "lr_schedule=cosine lr_schedule.warmup=0.5",
            "lr_schedule=cosine lr_schedule.warmup=0.5 seed=1 optimizer.lr=0.05",
            "lr_schedule=step lr_schedule.every=0.5",
            "lr_schedule=one_cycle",
        ),
    ),
    "dbn": Pin(
        f"norm=dbn {ADAGRAD} model.activation=tanh",
        (
            "schedule=alpha_1",
            "schedule=harmonic seed=1 optimizer.lr=0.02",
            "schedule=alpha_0.25 seed=2 norm.init=[0.5,2]",
            "schedule=power schedule.unit=epoch seed=2 optimizer.groups.biases.lr=0.03",
        ),
    ),
    "dbn eps": Pin(
        f"norm=dbn norm.eps=0.1 norm.eps_at=var {ADAM} model.activation=elu",
        ("schedule=alpha_0.25", "schedule=inverse_square seed=1 optimizer.groups.norm.weight_decay=0.1"),
    ),
    "dbn var": Pin(
        f"norm=dbn norm.average=var norm.affine=false {ADAMW} model.norm_position=after model.activation=identity"
    ),
    "dbn constant": Pin(
        f"norm=dbn norm.stats_grad=false {ADAGRAD} model.activation=tanh", ("schedule=alpha_1", "schedule=harmonic")
    ),
    "dbn constant inv_std": Pin(
        f"norm=dbn norm.stats_grad=false norm.average=inv_std norm.eps=0.1 schedule=alpha_0.25 {SGD} "
        "optimizer.momentum=0 model.activation=elu"
    ),
    "dbn through mean": Pin(f"norm=dbn norm.stats_grad=mean schedule=alpha_0.25 {ADAGRAD} model.activation=tanh"),
    "dbn through variance": Pin(f"norm=dbn norm.stats_grad=var schedule=alpha_0.25 {ADAGRAD} model.activation=tanh"),
    "dbn_inference through mean": Pin(f"norm=dbn_inference norm.stats_grad=mean {ADAGRAD} model.activation=tanh"),
    "dbn_inference through variance": Pin(f"norm=dbn_inference norm.stats_grad=var {ADAGRAD} model.activation=tanh"),
    "dbn_inference": Pin(
        f"norm=dbn_inference {ADAGRAD} model.activation=tanh",
        (
            "schedule=alpha_1",
            "schedule=alpha_0.1 norm.init=[0.5,2]",
            "schedule=harmonic",
            "schedule=harmonic schedule.unit=epoch",
            "schedule=inverse_square",
        ),
    ),
    "dbn_inference eps": Pin(
        f"norm=dbn_inference norm.average=inv_std norm.eps=0.1 {SGD} model.activation=gelu",
        ("schedule=alpha_0.5", "schedule=power schedule.exponent=0.7", "schedule=alpha_0.5 seed=1"),
    ),
    "dbn_inference var": Pin(
        f"norm=dbn_inference norm.average=var norm.eps_at=var norm.stats_grad=false train.batch_size=50 {ADAGRAD} "
        "model.activation=tanh"
    ),
    "batch_renorm": Pin(f"norm=batch_renorm {ADAGRAD} model.activation=tanh"),
    "batch_renorm eps": Pin(
        f"norm=batch_renorm norm.eps=0.1 norm.warmup=0 norm.momentum=0.1 {SGD} model.activation=elu"
    ),
    "momentum_bn": Pin(
        f"norm=momentum_bn norm.eps=0.1 train.batch_size=16 train.limit_batches=20 {ADAGRAD} model.activation=tanh"
    ),
    "ln": Pin(f"norm=ln {ADAM} model.activation=gelu", ("", "seed=1")),
    "gn": Pin(
        f"norm=gn norm.num_groups=4 norm.affine=false model.norm_position=after {ADAGRAD} model.activation=sigmoid"
    ),
    "none": Pin(f"norm=none {SGD} model.activation=tanh", ("", "seed=1")),
    "online_norm": Pin(
        f"norm=online_norm {ADAGRAD} model.activation=tanh", ("", "norm.guard=clamp norm.clamp=2 seed=1")
    ),
    "online_norm eps": Pin(
        f"norm=online_norm norm.eps=0.1 norm.forward_decay=0.99 norm.guard=none {SGD} model.activation=gelu"
    ),
    "mabn": Pin(
        f"norm=mabn norm.memory=2 norm.warmup=0 {ADAGRAD} model.activation=tanh",
        ("", "norm.eps=0.1 norm.centralize=false seed=1"),
    ),
    "powernorm": Pin(
        f"norm=powernorm {ADAGRAD} model.activation=tanh", ("", "norm.warmup=3 norm.layer_scale=true seed=1")
    ),
    "rms": Pin(f"norm=rms {ADAM} model.activation=gelu"),
    "dyt": Pin(f"norm=dyt {ADAM} model.activation=gelu"),
    "frn": Pin(
        f"norm=frn norm.eps=0.1 {SGD} model.activation=tanh", ("", "norm.tlu=false norm.learned_eps=0.01"), KINKS
    ),
    "evonorm_s0": Pin(f"norm=evonorm_s0 norm.num_groups=4 norm.eps=0.1 {SGD} model.activation=identity"),
    "gn_ws": Pin(f"norm=gn_ws {ADAGRAD} model.activation=tanh", ("", "model.norm_position=after")),
    "two_layer dbn": Pin(
        f"model=two_layer model.activation=tanh norm=dbn {ADAGRAD}",
        ("schedule=harmonic", "schedule=alpha_0.25 seed=1"),
    ),
    "two_layer none": Pin(f"model=two_layer model.activation=sigmoid norm=none {ADAMW} optimizer.lr=0.01"),
    "bf16": Pin(
        "precision=bf16 norm=dbn schedule=harmonic optimizer=sgd optimizer.lr=0.01 train.limit_batches=2 "
        "deterministic=true",
        rtol=BFLOAT16,
    ),
    "relu": Pin("deterministic=false", ("norm=bn", "norm=bn seed=1"), KINKS),
    "leaky_relu": Pin(f"norm=none {SGD} model.activation=leaky_relu", rtol=KINKS),
    "cnn bn": Pin(f"{CNN} norm=bn {SGD} dataset.augment=flip_crop", ("", "seed=1"), KINKS),
    "cnn dbn": Pin(
        f"{CNN} norm=dbn norm.eps=0.1 {ADAGRAD}",
        ("schedule=harmonic", "schedule=alpha_0.25 seed=1 model.dropout=[0,0.1,0.2]"),
        KINKS,
    ),
    "cnn dbn constant": Pin(
        f"{CNN} norm=dbn norm.stats_grad=false norm.average=var schedule=alpha_0.25 {SGD} dataset.val_size=0.5",
        rtol=KINKS,
    ),
    "cnn dbn_inference": Pin(
        f"{CNN} model.norm_position=after norm=dbn_inference {ADAGRAD}",
        ("schedule=alpha_0.1", "schedule=harmonic"),
        KINKS,
    ),
    "cnn batch_renorm": Pin(f"{CNN} norm=batch_renorm {SGD}", rtol=KINKS),
    "cnn momentum_bn": Pin(f"{CNN} norm=momentum_bn norm.m0=128 norm.tau0=0.8 {SGD}", rtol=KINKS),
    "cnn ln": Pin(f"{CNN} norm=ln model.dropout=[0,0,0] {ADAGRAD}", rtol=KINKS),
    "cnn gn": Pin(f"{CNN} norm=gn norm.num_groups=2 {ADAMW}", rtol=KINKS),
    "cnn none": Pin(f"{CNN} norm=none {SGD}", rtol=KINKS),
    "cnn of records": Pin(
        f"{CNN} {SGD}",
        (
            "norm=rms",
            "norm=dyt",
            "norm=frn norm.eps=0.1 norm.learned_eps=0.1",
            "norm=evonorm_s0 norm.num_groups=4 norm.eps=0.1",
            "norm=gn_ws norm.num_groups=2",
        ),
        KINKS,
    ),
    "cnn of running statistics": Pin(
        f"{CNN} {SGD}",
        ("norm=online_norm norm.eps=0.1", "norm=mabn norm.eps=0.1 norm.warmup=0", "norm=powernorm norm.eps=0.1"),
        KINKS,
    ),
    "torchvision": Pin(
        "model=torchvision model.arch=resnet18 train.batch_size=16 train.limit_batches=2 train.limit_eval=32 norm=dbn "
        f"norm.eps=1 {SGD} optimizer.lr=1e-4",  # twenty normalizers, some of them over 16 values
        ("schedule=harmonic", "schedule=alpha_0.25 seed=1"),
        KINKS,
    ),
    "mnist": Pin(
        f"dataset=mnist train.limit_batches=10 norm=dbn {REAL}",
        ("schedule=harmonic", "schedule=alpha_0.1 seed=1"),
        KINKS,
    ),
    "ni": Pin(f"dataset=ni train.limit_batches=20 norm=dbn_inference schedule=harmonic {REAL}", rtol=KINKS),
    "ni standard": Pin(f"dataset=ni dataset.features=standard train.limit_batches=20 norm=bn {REAL}", rtol=KINKS),
    "cifar10": Pin(
        f"dataset=cifar10 model.widths=[4,4,8,8,16] train.limit_batches=4 norm=ln {REAL}",
        rtol=KINKS,
    ),
}

Row = dict[str, str | float | None]
COLUMNS = [name for name in metrics.COLUMNS if name not in metrics.TIME_COLUMNS]
WAYS = ("alone", "together")


def configs(pin: Pin) -> list[RunConfig]:
    """The checked configuration of each of its cells."""
    return [_composed(f"{pin.common} {cell}") for cell in pin.cells]


@functools.cache
def _composed(overrides: str) -> RunConfig:
    return composed(["train.epochs=2", "device=cpu", "progress=false", *overrides.split()])


def missing_data(pin: Pin) -> bool:
    """Whether the data of its cells are not at hand."""
    data = os.environ.get("DBNRUN_DATA")
    needed = configs(pin)[0].dataset.name != "digits"
    return needed and not (data and (Path(data) / "MNIST").is_dir())


def stacks(pin: Pin, way: str) -> list[list[list[int]]]:
    """Stacks of runs of cells, by their number, in which a pin is trained that way."""
    cells = range(len(pin.cells))
    return [[[cell]] for cell in cells] if way == "alone" else list(grouped(configs(pin), lambda _: len(cells)))


def trained(pin: Pin, way: str) -> list[list[Row]]:
    """The rows of each cell of a pin, trained that way in this process."""
    rows: list[list[Row]] = [[] for _ in pin.cells]
    with tempfile.TemporaryDirectory() as results:
        cells = [replace(config, results_dir=results) for config in configs(pin)]
        for runs in stacks(pin, way):
            outcomes = run_all([[cells[number] for number in run] for run in runs])
            for number, outcome in zip(chain.from_iterable(runs), chain.from_iterable(outcomes), strict=True):
                assert outcome.status == "done", outcome.message
                signature = outcome.name.rsplit("-", 1)[1]
                found = metrics.read_rows(outcome.folder / "metrics.csv")
                rows[number] = [
                    {"signature": signature} | {name: getattr(row, name) for name in COLUMNS} for row in found
                ]
    return rows


def differences(expected: Sequence[Row], got: Sequence[Row], rtol: float) -> list[str]:
    """What differs between the rows of a cell by more than rounding, in a line each."""
    if len(expected) != len(got):
        return [f"{len(expected)} rows are written down, {len(got)} came"]
    return [
        f"epoch {now['epoch']}, {name}: {then.get(name)} is written down, {now[name]} came"
        for then, now in zip(expected, got, strict=True)
        for name in now
        if not of_tolerance(name, then, now, rtol) <= 1
    ]


def of_tolerance(name: str, then: Row, now: Row, rtol: float) -> float:
    """How far the values of a column lie apart, as a share of how far they may."""
    return distance(name, then.get(name), now[name]) / tolerance(name, rtol)


def tolerance(name: str, rtol: float) -> float:
    """How far a column's values may lie apart."""
    if name in ("signature", "epoch", "step", "alpha", "lr"):
        return 1e-7  # written down with nine digits, and known before any training
    return ERROR_PCT if "error_pct" in name else rtol


def distance(name: str, then: str | float | None, now: str | float | None) -> float:
    """How far two values of a column lie apart: a difference of errors in %, a share of all else."""
    if isinstance(then, float | int) and isinstance(now, float | int):
        apart = abs(now - then)
        return apart if "error_pct" in name or not then else apart / abs(then)
    return 0.0 if then == now else math.inf


def read() -> dict[tuple[str, str], list[Row]]:
    """The rows written down, by pin and cell."""
    rows: dict[tuple[str, str], list[Row]] = {}
    with ROWS.open(newline="") as file:
        for line in csv.DictReader(file):
            values: Row = {name: _value(name, line[name]) for name in line if name not in ("pin", "cell")}
            rows.setdefault((line["pin"], line["cell"]), []).append(values)
    return rows


def _value(name: str, text: str) -> str | float | None:
    return text if name == "signature" else float(text) if text else None


def write(rows: Mapping[tuple[str, str], Sequence[Row]]) -> None:
    with ROWS.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["pin", "cell", "signature", *COLUMNS])
        for (pin, cell), own in rows.items():
            for row in own:
                values = ["" if v is None else v if isinstance(v, str) else f"{v:.9g}" for v in row.values()]
                lines.writerow([pin, cell, *values])
