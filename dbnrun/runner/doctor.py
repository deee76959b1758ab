"""What this machine has, and whether dbnrun can rely on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dbnrun.config.compose import composed
from dbnrun.config.registry import UserError
from dbnrun.config.schema import RunConfig
from dbnrun.data import expected_digest, source
from dbnrun.runner.memory import free_bytes
from dbnrun.runs.metrics import TIME_COLUMNS
from dbnrun.train.compile import check_compiler

PACKAGES = (
    "torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "hydra-core", "omegaconf", "matplotlib",
)  # fmt: skip

# A line of the report: what is looked at, whether it is well, and what was found.
Finding = tuple[str, bool, str]


def examine(data_dir: Path, results_dir: Path) -> Iterator[Finding]:
    """Every finding, as it is made; the slow ones come last."""
    yield from _versions()
    yield from _device()
    yield _torchvision()
    yield _writable("results", results_dir)
    yield from _data(data_dir)
    yield _determinism()


def _versions() -> Iterator[Finding]:
    from dbnrun.runs.run_dir import git_revision

    yield "python", True, f"{platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        try:
            yield package, True, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, False, "not installed; run `make venv`, or pip install dbnrun"
    yield "dbnrun", True, f"{importlib.metadata.version('dbnrun')}, {git_revision() or 'not from a checkout'}"


def _device() -> Iterator[Finding]:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or platform.machine()
    free = free_bytes(torch.device(kind)) / 2**30
    yield "device", True, f"device=auto is {kind}: {name}, {free:.1f} GiB free"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    yield "threads", threads <= (cores or threads), f"{threads} of torch on {cores} usable cores; threads=N changes it"
    modes = "fp32, tf32, bf16" if kind == "cuda" else "fp32, bf16"
    yield "precision", True, f"{modes}; bf16 in hardware: {'yes' if _has_bf16(kind) else 'no, so slow'}"
    yield "compile", True, _compiling(kind)


def _compiling(kind: str) -> str:
    try:
        check_compiler("fnn", kind)
    except UserError as error:
        return str(error)
    return "compile=true can be used"


def _has_bf16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _torchvision() -> Finding:
    try:
        from dbnrun.data.torchvision_shim import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except ImportError as error:
        return "torchvision operators", False, str(error)
    except (RuntimeError, NotImplementedError):
        return (
            "torchvision operators",
            True,
            "not loadable beside this torch; nothing here needs them",
        )
    return "torchvision operators", True, "loaded"


def _writable(what: str, folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free / 2**30
    try:
        with tempfile.NamedTemporaryFile(dir=there) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return what, False, f"{folder}: cannot be written ({error.strerror or error})"
    return what, free > 1, f"{folder}: writable, {free:.1f} GiB free"


def _data(data_dir: Path) -> Iterator[Finding]:
    for name in source.SOURCES:
        if name == "digits":
            yield "data digits", True, "inside scikit-learn, verified when it is loaded"
        elif not source.missing(name, data_dir):
            yield f"data {name}", *_verified(name, data_dir)
        else:
            yield f"data {name}", True, f"not in {data_dir}; fetched when needed, or now by `dbnrun data {name}`"


def _verified(name: str, data_dir: Path) -> tuple[bool, str]:
    try:
        source.verify(name, data_dir)
    except UserError as error:
        return False, str(error)
    return True, f"complete, {data_dir}, SHA-256 {expected_digest(name)[:16]}…"


def _determinism() -> Finding:
    """Train a small cell twice and compare every number."""
    from dbnrun.runner.execute import run

    rows = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            outcome = run(_small_cell(folder))
            if outcome.row is None:
                return "determinism", False, f"a small cell {outcome.status}: {outcome.message}"
            rows.append({k: v for k, v in vars(outcome.row).items() if k not in TIME_COLUMNS})
    same = rows[0] == rows[1]
    return "determinism", same, "two runs of a small cell agree bit for bit" if same else "two runs of a cell differ"


def _small_cell(results: str) -> RunConfig:
    quick = ["norm=dbn", "schedule=harmonic", "train.epochs=2", "train.limit_batches=5", "progress=false"]
    return composed([*quick, f"results_dir='{results}'"])


def report(data_dir: Path, results_dir: Path, say: Callable[[str], object] = print) -> bool:
    """Print every finding; whether all is well."""
    well = True
    for what, good, found in examine(data_dir, results_dir):
        say(f"{'ok ' if good else 'NOT'}  {what:22}  {found}")
        well = well and good
    return well
