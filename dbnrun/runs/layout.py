"""What a run leaves behind, each file written crash-safe.

<results_dir>/runs/<readable name>-<signature>/
    metrics.csv     one EpochRow a line, appended and synced as each epoch ends
    probe.csv       with probe=true a ProbeRow a line, appended before the epoch's row: dbnrun.runs.probe
    config.yaml     the cell: everything that decides the numbers
    manifest.json   status, versions, device, data digest, wall time
    run.log         versions and environment of each attempt, and its traceback where it failed
    checkpoint.pt   while unfinished, with the one before it as checkpoint.previous.pt
    weights.pt      with save_weights=true the trained network's state dict
    source/         the code of classes of the user's own
    *.set-aside-N.* older records that a new training replaces
    lock            while a process trains it: dbnrun.runs.lock
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dbnrun.config import registry
from dbnrun.config.identity import readable_name

FINISHED = ("done", "diverged")  # statuses of a manifest that leave nothing to train
CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
WEIGHTS = "weights.pt"  # the trained network, kept where save_weights=true
PROBE = "probe.csv"  # written where probe=true
KEPT_ON_REQUEST = {"save_weights": WEIGHTS, "probe": PROBE}  # by the setting that asks for it


def results_dir() -> Path:
    """Where runs are kept unless a command says otherwise."""
    return Path(os.environ.get("DBNRUN_RESULTS", "results"))


def run_folder(results_dir: Path, cell: Mapping[str, Any], signature: str) -> Path:
    """The folder of a run, below its results folder."""
    return results_dir / "runs" / f"{readable_name(cell)}-{signature}"


def write_atomic(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write to a temporary file beside `path`, sync, rename: a crash leaves the old file or the new one.

    With `keep`, the file that was there before is kept under that name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, keep)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename = str(path)  # what its user knows
        raise


class Appended:
    """A text file that grows; what is written is synced to disk before `write` returns."""

    def __init__(self, path: Path, text: str) -> None:
        """Begin with exactly `text`."""
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text.encode())
        self._file = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - closed by close

    def write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def remove_torn(folder: Path) -> None:
    """Remove what processes left that were killed inside `write_atomic`; for who holds the folder's lease alone."""
    for path in folder.glob(".*.*.*"):
        path.unlink(missing_ok=True)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a run's manifest.json."""
    write_atomic(folder / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, or {} where there is none to read: the run never got as far as writing one."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def divergence(manifest: Mapping[str, Any]) -> str:
    """Where a run's training loss was not finite first, such as 'epoch 2, step 37'; '' where it does not say."""
    if "diverged_step" not in manifest:
        return ""
    return f"epoch {manifest['diverged_epoch']}, step {manifest['diverged_step']}"


def is_stale(manifest: Mapping[str, Any], dataset: str) -> bool:
    """Whether the records of a cell on this data set were made by code whose numbers differ from ours."""
    known = registry.of("dataset").get(dataset)
    return known is not None and bool(manifest) and manifest.get("results_version", 1) != known.results_version


def write_cell(folder: Path, cell: Mapping[str, Any]) -> None:
    """Write a run's config.yaml."""
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(cell))).encode())


def set_aside(*paths: Path) -> list[Path]:
    """Rename files that nobody goes on with, in this order, under one free number: nothing recorded is lost."""
    number = 1
    while any(_aside(path, number).exists() for path in paths):
        number += 1
    return [path.rename(_aside(path, number)) for path in paths if path.exists()]


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.set-aside-{number}{path.suffix}")
