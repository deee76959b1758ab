"""Whether dbnrun can rely on this machine. What else torch knows of it, `python -m torch.utils.collect_env` says."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import dbnrun
from dbnrun.config.compose import composed
from dbnrun.config.registry import UserError, first_line, of, one_line
from dbnrun.data.download import faults, missing
from dbnrun.data.options import Dataset
from dbnrun.runner.execute import run
from dbnrun.runner.memory import free_bytes
from dbnrun.runs.metrics import TIME_COLUMNS
from dbnrun.runs.run_dir import git_revision
from dbnrun.train.compile import check_compiler

# What is looked at, how it stands, and what was found. True: checked, and in order. None: not there or not usable here,
# and runs that do not ask for it do without. False: wrong.
Finding = tuple[str, bool | None, str]
MARKS = {True: "ok", None: "-", False: "NOT"}


def report(data_dir: Path, results_dir: Path, as_json: bool = False) -> bool:
    """Print every finding as it is made, the slow ones last; whether nothing is wrong."""
    findings = []
    for what, good, found in _examine(data_dir, results_dir):
        findings.append({"check": what, "ok": good, "found": found})
        if not as_json:
            print(f"{MARKS[good]:3}  {what:13}  {found}", flush=True)
    if as_json:
        print(json.dumps(findings, indent=1, ensure_ascii=False))
    return all(finding["ok"] is not False for finding in findings)


def _examine(data_dir: Path, results_dir: Path) -> Iterator[Finding]:
    revision = git_revision() or "not from a checkout"
    python = f"python {platform.python_version()} on {platform.platform()}"
    yield "versions", True, f"dbnrun {dbnrun.__version__}, {revision}; torch {torch.__version__}; {python}"
    yield "device", *_device()
    yield "compile", *_compiling()
    yield "torchvision", *_torchvision()
    yield "results", *_writable(results_dir)
    for name, data in of("dataset").items():
        if data.downloads:  # others come with a package, or are the user's own
            yield name, *_data(name, data, data_dir)
    yield "determinism", *_deterministic()


def _device() -> tuple[bool, str]:
    """Compute on the device that device=auto takes."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(8, 8, device=kind).matmul(torch.ones(8, 8, device=kind)).sum().item()
        free = free_bytes(torch.device(kind)) / 2**30
    except RuntimeError as error:
        return False, f"device=auto is {kind}, which cannot compute ({first_line(error)}); device=cpu may"
    threads = torch.get_num_threads()
    return True, f"device=auto is {kind}, {free:.1f} GiB free; {threads} threads on {os.cpu_count()} cores"


def _compiling() -> tuple[bool | None, str]:
    try:
        check_compiler("fnn", "cuda" if torch.cuda.is_available() else "cpu")
    except UserError as error:
        return None, str(error)
    return True, "compile=true can be used"


def _torchvision() -> tuple[bool, str]:
    """Evaluate one of its networks: the import alone may succeed where they do not."""
    try:
        from dbnrun.torchvision_shim import torchvision  # noqa: PLC0415 - it may be broken

        net = torchvision.models.get_model("resnet18", weights=None).eval()
        with torch.no_grad():
            net(torch.zeros(1, 3, 32, 32))
    except Exception as error:  # whatever a torchvision of another torch raises
        needs = "model=torchvision, MNIST and CIFAR need it"
        return False, f"it cannot be used ({one_line(error)}); {needs}"
    return True, f"torchvision {torchvision.__version__}: its networks and data sets can be used"


def _data(name: str, data: type[Dataset], folder: Path) -> tuple[bool | None, str]:
    if absent := missing(data, folder):
        return None, f"{absent[0]} is missing; downloaded when needed, or now with `dbnrun data {name}`"
    damaged = [f"{folder / path}: {fault}" for path, fault in faults(data.downloads, folder).items()]
    return not damaged, "; ".join(damaged) or f"complete, SHA-256 {data.digest[:16]}…"


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
                return False, f"a small run {outcome.status}: {outcome.message}"
            rows.append({name: value for name, value in vars(outcome.row).items() if name not in TIME_COLUMNS})
    same = rows[0] == rows[1]
    return same, "two trainings of a small run agree bit for bit" if same else "two trainings of a small run differ"
