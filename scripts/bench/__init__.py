"""What `dbnrun bench` measures: what dbnrun costs, as ratios in one run. In a checkout alone.

The machines are shared and noisy: subjects take turns, and a ratio is the median over rounds of the ratio within a
round. Records are random numbers of the data sets' shapes, so no data is needed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dbnrun.config.registry import UserError

BENCHES = ("layer", "cell", "grid", "cli", "plan", "report")
BENCH_HELP = (
    "layer: a normalizer; cell: a training step; grid: several runs that train together; cli: commands; "
    "plan: a plan of a large sweep; report: a report of many runs (default: all)"
)


@dataclass(frozen=True)
class Finding:
    """One measured line: `value` in `unit` (× for a ratio), its range over rounds, and what it should not exceed."""

    bench: str
    what: str
    value: float
    unit: str
    low: float
    high: float
    target: str = ""


def main(arguments: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Run the verb. Raises UserError where its input is refused."""
    parser.add_argument("names", nargs="*", help=BENCH_HELP)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this JSON file")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHES]:
        raise UserError(f"{unknown[0]}: no such bench; expected any of {', '.join(BENCHES)}.")
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu.")
    run(options.names or BENCHES, options.device, options.json)
    return 0


def run(names: Sequence[str], device: str, out: Path | None) -> list[Finding]:
    """Measure, print a table as it grows, and write JSON where asked."""
    import torch

    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    findings: list[Finding] = []
    for name in names:
        for finding in importlib.import_module(f"bench.{name}").measure(device):
            findings.append(finding)
            print(_line(finding), flush=True)
    if out is not None:
        out.write_text(json.dumps({"machine": machine, "findings": [asdict(f) for f in findings]}, indent=2) + "\n")
    return findings


def _line(finding: Finding) -> str:
    span = f"({finding.low:.3g} to {finding.high:.3g})"
    target = f"  target {finding.target}" if finding.target else ""
    return f"{finding.bench:7s}{finding.what:86s}{finding.value:8.3g} {finding.unit:2s} {span:18s}{target}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
