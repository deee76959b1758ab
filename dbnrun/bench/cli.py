"""How fast the command answers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from dbnrun.bench import Finding
from dbnrun.bench.timing import duration

ROUNDS = 5


def measure(_device: str) -> Iterator[Finding]:
    for words, target in ((["--help"], "≤ 0.4 s"), (["--cfg", "job"], "≤ 1.0 s")):
        times = [_run(words) for _ in range(ROUNDS + 1)][1:]
        yield duration("cli", f"dbnrun {' '.join(words)}", times, target)


def _run(words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dbnrun.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
