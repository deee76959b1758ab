"""Planning many cells: time, and the memory that the process took in all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from bench import Finding

# A grid with group choices, values that others refer to, and nothing recorded yet.
GRID = ["norm=dbn", "schedule=alpha_1,alpha_0.5,alpha_0.1,harmonic,inverse_square", "optimizer.lr=0.003,0.01"]
MEASURE = r"""
import json, re, sys, time
started = time.perf_counter()
from dbnrun.runner import plan
found = plan.asked(sys.argv[1:])
statuses = [cell.status() for cell in found.cells]
text = "\n".join(plan.lines(found, statuses, False))
# Not getrusage, whose maximum a child begins with its parent's: a bench that has run before would be counted.
mb = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps([len(found.cells), time.perf_counter() - started, mb]))
"""


def measure(device: str) -> Iterator[Finding]:  # noqa: ARG001 - the same on every device
    for cells, target in ((1000, "≤ 15 s"), (10_000, "≤ 90 s")):
        seconds, memory = zip(*(_plan(cells) for _ in range(3)), strict=True)
        what = f"dbnrun plan of {cells:,} cells"
        yield Finding("plan", what, sorted(seconds)[1], "s", min(seconds), max(seconds), target)
        yield Finding("plan", f"{what}, memory", sorted(memory)[1], "MB", min(memory), max(memory), "≤ 500 MB")


def _plan(cells: int) -> tuple[float, float]:
    """Seconds and megabytes of a fresh process that plans so many cells."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*GRID, f"seed=range({cells // 10})", f"results_dir={folder}"]
        env = {**os.environ, "DBNRUN_RESULTS": folder}
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *words], check=True, capture_output=True, text=True, env=env
        )
    count, seconds, memory = json.loads(done.stdout)
    assert count == cells, f"{count} cells planned, expected {cells}"
    return seconds, memory
