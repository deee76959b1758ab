"""Compare what a device computes with the CPU, captured steps with launched ones, stacked cells with the same alone.

    python scripts/gpu_check.py --out check.jsonl [--device cuda] [--steps 20]

Of every kind of cell it takes the first 20 steps on the digits. A line of the file is one kind; those that the file
holds already are left out, so that the command goes on where it stopped. Exit code 1 where a kind has a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dbnrun.config import registry
from dbnrun.config.compose import composed
from dbnrun.config.schema import RunConfig
from dbnrun.runner import grouping
from dbnrun.runner.build import build_cell, prepare_device, training_of

# 28 batches an epoch. AdaGrad and Adam divide a gradient by its own size, and so one that is rounding noise; an
# accumulator above 0, or a larger eps, takes that out of the comparison. Dropout would draw otherwise there.
COMMON = ("dataset=digits", "train.batch_size=50", "progress=false")
CALM = {"adagrad": "optimizer.initial_accumulator=0.1", "adam": "optimizer.eps=0.1", "adamw": "optimizer.eps=0.1"}
MODELS = {
    "fnn": ["model=fnn"],
    "cnn": ["model=cnn", "model.widths=[4,4,8,8,16]", "model.dropout=[0,0,0]"],
    "two_layer": ["model=two_layer"],
}
# How far a loss may be off, as a share: sums in another order. Over 20 steps a unit at the edge of a ReLU or of a
# maximum can fall to the other side, and float32 then says little; float64 is compared to the end.
BOUNDS = {"fp32": 1e-4, "bf16": 3e-2, "float64": 1e-7}


def kinds() -> dict[str, list[str]]:
    """The overrides of every kind of cell, by name."""
    norms = [name for name in registry.files()["norm"] if name != "custom"]
    optimizers = [name for name in registry.files()["optimizer"] if name != "custom"]
    found = {f"{model} {norm}": [*words, f"norm={norm}"] for model, words in MODELS.items() for norm in norms}
    for norm in ("gn", "gn_ws", "evonorm_s0"):
        found[f"cnn {norm}"].append("norm.num_groups=2")  # by default two of the 16 units: see docs/gpu.md
    found |= {f"fnn dbn {name}": ["norm=dbn", f"optimizer={name}"] for name in optimizers}
    found["fnn dbn constant statistics"] = ["norm=dbn", "norm.stats_grad=false"]
    found["fnn dbn cosine"] = ["norm=dbn", "lr_schedule=cosine"]
    found["resnet18 dbn"] = ["model=torchvision", "model.arch=resnet18", "norm=dbn", "train.batch_size=10"]
    return found | {f"cnn {norm} bf16": [*MODELS["cnn"], f"norm={norm}", "precision=bf16"] for norm in ("bn", "dbn")}


def config_of(words: Sequence[str], device: str) -> RunConfig:
    optimizer = next((word.partition("=")[2] for word in words if word.startswith("optimizer=")), "adagrad")
    calm = [CALM[optimizer]] if optimizer in CALM else []
    return composed([*COMMON, f"device={device}", *calm, *words])


def steps(
    configs: Sequence[RunConfig], device: torch.device, count: int, *, double: bool = False, captured: bool = False
) -> Tensor:
    """The losses of the first steps of cells trained together, (count, cells), float64 on the CPU."""
    data = configs[0].dataset.load(Path(configs[0].data_dir))
    with _default_type(torch.float64 if double else torch.float32):
        data = replace(data, train=replace(data.train, x=data.train.x.to(torch.get_default_dtype()))).to(device)
        training = training_of([[build_cell(one, data, device)] for one in configs], data, captured=captured)
        sums = [training.sums.loss.clone()]
        for _ in itertools.islice(training.updates(), count):
            sums.append(training.sums.loss.clone())
    return (torch.stack(sums).diff(dim=0) / configs[0].train.batch_size).cpu()


@contextlib.contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def compared(words: Sequence[str], device: str, count: int) -> dict[str, Any]:
    """What one kind of cell gives on the device, and how far from the other ways to compute it."""
    reference, here = config_of(words, "cpu"), config_of(words, device)
    three = [replace(here, seed=seed) for seed in (0, 1, 2)]
    sharp = here.precision == "fp32"
    cpu = prepare_device(reference)
    expected = {double: steps([reference], cpu, count, double=double) for double in {False, sharp}}
    on = prepare_device(here)
    found, again = steps([here], on, count), steps([here], on, count)
    result: dict[str, Any] = {
        "precision": here.precision,
        "losses": found[:, 0].tolist(),
        "first loss from the cpu's": _off(found[:1], expected[False][:1]),
        "losses from the cpu's": _off(found, expected[False]),
        "twice the same": torch.equal(found, again),
    }
    if sharp:
        result["float64 from the cpu's"] = _off(steps([here], on, count, double=True), expected[True])
    if on.type == "cuda":
        result["captured the same"] = torch.equal(steps([here], on, count, captured=True), found)
    if sharp and not grouping.alone(here):
        alone = torch.cat([steps([one], on, count, double=True) for one in three], dim=1)
        result["float64 stacked from alone"] = _off(steps(three, on, count, double=True), alone)
    return result


def _off(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected) / expected).abs().max())


def faults(result: Mapping[str, Any]) -> list[str]:
    """What is not as it should be. Where a step is not repeatable, a captured one need not be the same."""
    bounds = {"first loss from the cpu's": BOUNDS[result["precision"]]}
    bounds |= dict.fromkeys(("float64 from the cpu's", "float64 stacked from alone"), BOUNDS["float64"])
    off = [name for name, bound in bounds.items() if not result.get(name, 0.0) <= bound]  # NaN is off
    differs = result["twice the same"] and not result.get("captured the same", True)
    return [*off, *(["captured the same"] if differs else [])]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare a device with the CPU, kind by kind.")
    parser.add_argument("--out", type=Path, required=True, help="a line of JSON a kind; those it holds are left out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    lines = options.out.read_text().splitlines(keepends=True) if options.out.exists() else []
    whole = [line for line in lines if line.endswith("\n")]  # the last one may have been cut
    options.out.write_text("".join(whole))
    results = [json.loads(line) for line in whole]
    done = {result["kind"] for result in results}
    for kind, words in kinds().items():
        if kind in done:
            continue
        result = compared(words, options.device, options.steps)
        results.append({"kind": kind, "device": options.device, "faults": faults(result), **result})
        with options.out.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        print(f"{kind}: {', '.join(results[-1]['faults']) or 'as it should be'}", flush=True)
    return int(any(result["faults"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
