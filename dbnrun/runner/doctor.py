"""Whether dbnrun can rely on this machine. What else torch knows of it, `python -m torch.utils.collect_env` says."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import dbnrun
from dbnrun.config.compose import composed
from dbnrun.config.registry import UserError, of
from dbnrun.data.download import faults, missing
from dbnrun.runner.execute import run
from dbnrun.runner.memory import free_bytes
from dbnrun.runs.metrics import TIME_COLUMNS
from dbnrun.runs.run_dir import git_revision
from dbnrun.train.compile import check_compiler

# A line of the report: what is looked at, whether it is well, and what was found.
Finding = tuple[str, bool, str]


def report(data_dir: Path, results_dir: Path) -> bool:
    """Print every finding as it is made, the slow ones last; whether all is well."""
    well = True
    for what, good, found in _examine(data_dir, results_dir):
        print(f"{'ok ' if good else 'NOT'}  {what:12}  {found}")
        well = well and good
    return well


def _examine(data_dir: Path, results_dir: Path) -> Iterator[Finding]:
    revision = git_revision() or "not from a checkout"
    python = f"python {platform.python_version()} on {platform.platform()}"
    yield "versions", True, f"dbnrun {dbnrun.__version__}, {revision}; torch {torch.__version__}; {python}"
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    free = free_bytes(torch.device(kind)) / 2**30
    threads = torch.get_num_threads()
    yield "device", True, f"device=auto is {kind}, {free:.1f} GiB free; {threads} threads on {os.cpu_count()} cores"
    yield "compile", True, _compiling(kind)
    yield "results", *_writable(results_dir)
    for name, data in of("dataset").items():
        if not data.downloads:
            continue  # comes with a package, or is the user's own
        if absent := missing(data, data_dir):
            yield name, True, f"{absent[0]} is not there; fetched when needed, or now by `dbnrun data {name}`"
        else:
            damaged = [f"{data_dir / path}: {fault}" for path, fault in faults(data.downloads, data_dir).items()]
            yield name, not damaged, "; ".join(damaged) or f"complete, SHA-256 {data.digest[:16]}…"
    yield "determinism", *_deterministic()


def _compiling(kind: str) -> str:
    try:
        check_compiler("fnn", kind)
    except UserError as error:
        return str(error)
    return "compile=true can be used"


def _writable(folder: Path) -> tuple[bool, str]:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return True, f"{folder}: writable"
    except OSError as error:
        return False, f"{folder}: cannot be written ({error.strerror or error})"


def _deterministic() -> tuple[bool, str]:
    """Train a small cell twice and compare every number."""
    rows = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            words = ["norm=dbn", "schedule=harmonic", "train.epochs=2", "train.limit_batches=5", "progress=false"]
            outcome = run(composed([*words, f"results_dir='{folder}'"]))
            if outcome.row is None:
                return False, f"a small cell {outcome.status}: {outcome.message}"
            rows.append({name: value for name, value in vars(outcome.row).items() if name not in TIME_COLUMNS})
    same = rows[0] == rows[1]
    return same, "two runs of a small cell agree bit for bit" if same else "two runs of a small cell differ"
