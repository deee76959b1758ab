"""How fast the command answers, in a new interpreter each time, over what torch alone takes there."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

from bench import Finding
from bench.timing import by_turns, duration, ratio

ROUNDS = 5
TORCH, OPTIMIZER = "import torch", "import torch and its first optimizer"
EPOCH, FINISHED = "dbnrun dataset=digits train.epochs=1", "dbnrun dataset=digits train.epochs=1, finished before"
PLAN, HELP, CONFIGURATION = "dbnrun plan experiment=paper_mnist_a", "dbnrun --help", "dbnrun --cfg job"
RATIOS = (
    (EPOCH, OPTIMIZER, "≤ 1.25"),
    (EPOCH, TORCH, "≤ 1.5"),
    (FINISHED, TORCH, "≤ 0.5"),
    (PLAN, TORCH, "≤ 0.9"),
    (HELP, TORCH, "≤ 0.1"),
)


def measure(_device: str) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        times = by_turns(_subjects(functools.partial(_run, folder)), ROUNDS, least=0)
    for command, alone, target in RATIOS:
        yield ratio("cli", f"{command}, over {alone}", times[command], times[alone], target)
    for command, target in ((HELP, "≤ 0.4 s"), (CONFIGURATION, "≤ 1.0 s")):
        yield duration("cli", command, times[command], target)


def _subjects(run: Callable[..., None]) -> dict[str, Callable[[], None]]:
    seeds = itertools.count(1)
    cell = ("-m", "dbnrun", "dataset=digits", "train.epochs=1")
    return {
        TORCH: lambda: run("-c", "import torch"),
        OPTIMIZER: lambda: run("-c", "import torch; torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)"),
        EPOCH: lambda: run(*cell, f"seed={next(seeds)}"),
        FINISHED: lambda: run(*cell),  # from the second call on, which is still the warm-up's
        PLAN: lambda: run("-m", "dbnrun", "plan", "experiment=paper_mnist_a"),
        HELP: lambda: run("-m", "dbnrun", "--help"),
        CONFIGURATION: lambda: run("-m", "dbnrun", "--cfg", "job"),
    }


def _run(folder: str, *words: str) -> None:
    environment = {**os.environ, "DBNRUN_RESULTS": folder}
    subprocess.run([sys.executable, *words], check=True, capture_output=True, cwd=folder, env=environment)
