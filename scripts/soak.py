"""Kill a training at random moments, let it go on, and compare what it records with an undisturbed run.

    python scripts/soak.py --kills 200 [--stack]

Prints how often it killed and resumed, and how many rows and bytes of metrics.csv (time columns aside) were lost or
differ; exit code 1 if any. With --stack the cells train as one stacked program.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dbnrun.runs.layout import FINISHED, read_manifest
from dbnrun.runs.metrics import TIME_COLUMNS

# Three cells of a second or so each, with dropout, augmentation and a moving lambda; a checkpoint after every update.
CELLS = [
    "-m", "dataset=digits", "model=cnn", "model.widths=[4,4,8,8,16]", "dataset.augment=flip_crop", "norm=dbn",
    "schedule=harmonic", "seed=0,1,2", "train.epochs=6", "threads=1", "progress=false", "device=cpu",
]  # fmt: skip


def command(results: Path, stack: bool, minutes: float) -> list[str]:
    """The training command, as a user would type it."""
    stacked = ["hydra.launcher.max_stack=3"] if stack else []
    own = [f"results_dir={results}", f"checkpoint.minutes={minutes}"]
    return [sys.executable, "-m", "dbnrun", *CELLS, *own, *stacked]


def numbers(results: Path) -> dict[str, list[str]]:
    """The lines of every cell's metrics.csv but for the time columns."""
    found = {}
    for path in sorted(results.glob("runs/*/metrics.csv")):
        with path.open(newline="") as file:
            rows = [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in csv.DictReader(file)]
        found[path.parent.name] = [",".join(row.values()) for row in rows]
    return found


def finished(results: Path) -> bool:
    folders = list(results.glob("runs/*"))
    return len(folders) == 3 and all(read_manifest(folder).get("status") in FINISHED for folder in folders)


def soak(folder: Path, kills: int, stack: bool, seed: int) -> dict[str, int]:
    """Kill until `kills` have hit, begin anew whenever all cells are finished, and count what differs."""
    generator = random.Random(seed)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    started = time.monotonic()
    subprocess.run(command(folder / "whole", stack, 10), check=True, capture_output=True)
    span = time.monotonic() - started
    expected = numbers(folder / "whole")
    counts = {"kills": 0, "resumes": 0, "sweeps": 0, "rows lost": 0, "differing bytes": 0, "other errors": 0}
    while counts["kills"] < kills:
        results = folder / f"cut-{counts['sweeps']}"
        while not finished(results):
            # Every other time with a checkpoint after each update, so that kills fall into writing one.
            process = subprocess.Popen(command(results, stack, 0 if generator.random() < 0.5 else 10), **quiet)
            if counts["kills"] < kills:
                try:
                    process.wait(generator.uniform(0.2, 1.2) * span)
                except subprocess.TimeoutExpired:
                    os.kill(process.pid, signal.SIGKILL)
                    counts["kills"] += 1
            errors = process.communicate()[1]
            if process.returncode not in (0, -signal.SIGKILL):
                counts["other errors"] += 1
                print(errors, file=sys.stderr)
            counts["resumes"] += not finished(results)
        counts["sweeps"] += 1
        for name, lines in expected.items():
            got = numbers(results).get(name, [])
            counts["rows lost"] += max(0, len(lines) - len(got))
            pairs = itertools.zip_longest("\n".join(lines), "\n".join(got))  # a row too many differs, too
            counts["differing bytes"] += sum(a != b for a, b in pairs)
        print(json.dumps(counts), flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a training at random moments and compare what it records.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stack", action="store_true", help="train the cells as one stacked program")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = soak(Path(folder), options.kills, options.stack, options.seed)
    return int(any(counts[key] for key in ("rows lost", "differing bytes", "other errors")))


if __name__ == "__main__":
    sys.exit(main())
