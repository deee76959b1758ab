"""Send a training SIGINT or SIGTERM at a random moment, many times over, and look how it ends.

    python scripts/signals.py --moments 500

Four trainings of digits at a time, of one cell or of two stacked, each with one signal: four in five between 0.2 and
3 s after the start, while Python imports and the cell is built, the others before 14 s. Each must exit with 130 and
leave no lock, no half-written file, no traceback, and cells that call themselves interrupted; a sample of them goes on
to its end and must record the bytes of an undisturbed run, time columns aside. Prints how many did not; exit code 1 if
any.

A process that does not yet catch SIGTERM when its moment comes, for Python itself is starting, gets the signal as soon
as it does; how many those were is told.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dbnrun.runs.layout import read_manifest
from soak import numbers

CELL = ["dataset=digits", "norm=dbn", "schedule=harmonic", "threads=1", "progress=false", "device=cpu"]
KINDS = {"one cell": [], "two stacked": ["-m", "seed=0,1", "hydra.launcher.max_stack=2"]}


def command(kind: str, epochs: int, results: Path) -> list[str]:
    """The training command, as a user would type it."""
    words = [*KINDS[kind], *CELL, f"train.epochs={epochs}", f"results_dir={results}"]
    return [sys.executable, "-m", "dbnrun", *words]


def catches_sigterm(pid: int) -> bool:
    """Whether a process has got as far as to handle SIGTERM itself (Linux); True once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return True
    caught = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")]
    return not caught or bool(caught[0] >> (signal.SIGTERM - 1) & 1)


def stop(kind: str, epochs: int, results: Path, after: float, how: signal.Signals) -> list[str]:
    """Train into `results` and send the signal `after` so many seconds; return what is to be counted of it."""
    started = time.monotonic()
    process = subprocess.Popen(
        command(kind, epochs, results), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    time.sleep(after)
    early = not catches_sigterm(process.pid)
    while not catches_sigterm(process.pid):
        time.sleep(0.005)
    sent = time.monotonic() - started
    process.send_signal(how)
    try:
        said, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
    wrong = faults(process.returncode, said, results)
    if wrong:
        print(f"{how.name} after {sent:.3f} s, {kind}: {', '.join(wrong)}\n{said}", file=sys.stderr, flush=True)
    return [*wrong, *["before Python was up"] * early, "amid training" if numbers(results) else "before the first row"]


def faults(code: int, said: str, results: Path) -> list[str]:
    """What is not as it should be after a signal."""
    found = [] if code == 128 + signal.SIGINT else [f"exit code {code}"]
    logs = "".join(path.read_text() for path in results.rglob("run.log"))
    found += ["traceback"] * ("Traceback" in said + logs)
    names = [path.name for path in results.rglob("*") if path.is_file()]
    found += ["lock left"] * ("lock" in names) + ["file left"] * any(name.startswith(".") for name in names)
    statuses = {read_manifest(folder).get("status") for folder in results.glob("runs/*")}
    return found + ["not marked interrupted"] * (not statuses <= {"interrupted"})


def main() -> int:
    parser = argparse.ArgumentParser(description="Send trainings a signal at random moments and look how they end.")
    parser.add_argument("--moments", type=int, default=60)
    parser.add_argument("--parallel", type=int, default=4, help="trainings at a time")
    parser.add_argument("--epochs", type=int, default=600, help="of a training: enough for 15 s and more")
    parser.add_argument("--resume", type=int, default=6, help="how many go on to their end")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    # In the background of a shell Ctrl-C is ignored, and would be by the trainings.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.parallel) as pool:

        def moment(number: int) -> tuple[str, int, Path, float, signal.Signals]:
            after = generator.uniform(0.2, 3) if generator.random() < 0.8 else generator.uniform(3, 14)
            how = generator.choice([signal.SIGINT, signal.SIGTERM])
            return generator.choice(list(KINDS)), options.epochs, Path(folder) / str(number), after, how

        moments = [moment(number) for number in range(options.moments)]
        counts = Counter(word for words in pool.map(lambda one: stop(*one), moments) for word in words)
        rows = [one for one in moments if numbers(one[2])]
        sample = [*rows[: options.resume - 1], *[one for one in moments if one not in rows][:1]]
        whole = [(kind, options.epochs, Path(folder) / kind) for kind in KINDS]
        for done in pool.map(to_the_end, [*whole, *[one[:3] for one in sample]]):
            counts["resumed with an error"] += done.returncode != 0
        expected = {kind: numbers(Path(folder) / kind) for kind in KINDS}
        counts["resumed"] = len(sample)
        counts["resumed to other numbers"] = sum(numbers(one[2]) != expected[one[0]] for one in sample)
    harmless = {"before Python was up", "before the first row", "amid training", "resumed"}
    print(json.dumps({"moments": options.moments, **counts}))
    return int(any(count for word, count in counts.items() if word not in harmless))


def to_the_end(one: tuple[str, int, Path]) -> subprocess.CompletedProcess[str]:
    """Train, or go on, without a disturbance."""
    done = subprocess.run(command(*one), capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    return done


if __name__ == "__main__":
    sys.exit(main())
