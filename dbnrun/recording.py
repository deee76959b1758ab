"""One cell's folder while the cell trains: lock, manifest, rows and checkpoint, kept true to what happens."""

from __future__ import annotations

import functools
import io
import math
import platform
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

import dbnrun
from dbnrun import records
from dbnrun.config import RunConfig, UserError, cell_of, readable_name, signature
from dbnrun.data import expected_digest
from dbnrun.records import EpochRow, Outcome, RecordWriter


class Recording:
    """A cell's folder, from before its training to its end.

    As a context it holds the lock and marks the status: running, then done or diverged by `finish`, else failed or
    interrupted. Entering raises records.Held where another process trains the cell.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.cell = cell_of(config)
        self.digest = expected_digest(config.dataset.name)
        self.signature = signature(self.cell, self.digest)
        self.folder = records.run_folder(Path(config.results_dir), self.cell, self.signature)
        self.name = f"{readable_name(self.cell)}-{self.signature}"
        self.rows: list[EpochRow] = []
        self.state: dict[str, Any] | None = None  # of the checkpoint to go on from
        self._writer: RecordWriter | None = None
        self._open = False

    def finished(self) -> Outcome | None:
        """The outcome "skipped" where the cell was done, or diverged, before."""
        manifest = records.read_manifest(self.folder)
        if manifest.get("status") not in records.FINISHED:
            return None
        rows = records.read_rows(self.folder / "metrics.csv")
        return Outcome(self.name, self.folder, "skipped", rows[-1] if rows else None, manifest["status"])

    def failure(self, error: BaseException) -> Outcome:
        status = "refused" if isinstance(error, UserError) else "failed"
        return Outcome(self.name, self.folder, status, message=one_line(error))

    @property
    def epochs_done(self) -> int:
        return self.state["epoch"] if self.state else 0

    def __enter__(self) -> Recording:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = records.lock(self.folder)
        self._lock.__enter__()
        try:
            before = records.read_manifest(self.folder)
            self._manifest = self._describe(before)
            self._started, self._before = time.perf_counter(), self._manifest["wall_seconds"]
            records.write_cell(self.folder, self.cell)
            self._mark("running")
            self.state = self._read_checkpoint()
            self.rows = records.read_rows(self.folder / "metrics.csv")[: self.epochs_done]
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        self._open = True
        return self

    def write(self, row: EpochRow) -> None:
        if self._writer is None:  # not before there is a row: a cell that is refused leaves no empty metrics.csv
            self._writer = RecordWriter(self.folder, self.rows)
        self._writer.write(row)
        self.rows.append(row)

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Keep `state` to go on from, in place of the one before; it must have the number of epochs as "epoch"."""
        records.write_atomic(self.folder / "checkpoint.pt", _bytes(state))

    def weights(self, state: dict[str, Any]) -> None:
        records.write_atomic(self.folder / "weights.pt", _bytes(state))

    def finish(self) -> Outcome:
        """The cell is trained: mark it done or diverged, let go of the folder, and return how it ended."""
        self._close(self._ended())
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        return Outcome(self.name, self.folder, self._ended(), self.rows[-1])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._open:
            return
        if isinstance(error, Exception):
            (self.folder / "run.log").write_text("".join(traceback.format_exception(error)))
            self._close("failed", error=one_line(error))
        else:
            self._close("interrupted")

    def _close(self, status: str, **more: Any) -> None:
        self._open = False
        try:
            if self._writer is not None:
                self._writer.__exit__(None, None, None)
            self._mark(status, **more)
        finally:
            self._lock.__exit__(None, None, None)

    def _ended(self) -> str:
        return "done" if math.isfinite(self.rows[-1].train_loss) else "diverged"

    def _mark(self, status: str, **more: Any) -> None:
        wall = round(self._before + time.perf_counter() - self._started, 3)
        self._manifest.update(status=status, wall_seconds=wall, updated=_now(), **more)
        records.write_manifest(self.folder, self._manifest)

    def _read_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, if it and the rows up to it are sound; else set aside what cannot be continued."""
        path, metrics = self.folder / "checkpoint.pt", self.folder / "metrics.csv"
        recorded = len(records.read_rows(metrics))
        if path.exists():
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if recorded >= state["epoch"]:
                    return state
                problem = f"it ends at epoch {state['epoch']} and metrics.csv has {recorded} rows"
            except Exception as error:  # whatever a damaged file makes the loader say
                problem = one_line(error)
            kept = records.set_aside(path)
            tqdm.write(f"dbnrun: warning: starting over, checkpoint kept as {kept}: {problem}", sys.stderr)
        if recorded:
            records.set_aside(metrics)
        return None

    def _describe(self, before: dict[str, Any]) -> dict[str, Any]:
        config = self.config
        return {
            "signature": self.signature,
            "status": "new",
            "seed": config.seed,
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "data_digest": self.digest,
            "versions": {
                "dbnrun": dbnrun.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
            "git": git_revision(),
            "host": socket.gethostname(),
            "command": sys.argv,
            "started": before.get("started", _now()),
            "wall_seconds": float(before.get("wall_seconds", 0.0)),
        }

    def describe_training(self, device: torch.device, stacked: int) -> None:
        """Note the device and how many runs the stack has: a stacked cell differs from one alone by rounding."""
        cuda = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine()
        self._manifest.update(device=device.type, device_name=name, stacked=stacked)


@functools.cache
def git_revision() -> str | None:
    """The commit of the checkout this code runs from, '-dirty' where files differ; None outside a checkout."""
    checkout = Path(dbnrun.__file__).parent.parent
    if not (checkout / "pyproject.toml").exists():  # an installed wheel, perhaps inside some other checkout
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def one_line(error: BaseException) -> str:
    """An error as one line: its kind and the first line of what it says."""
    text = str(error).strip().split("\n", maxsplit=1)[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _bytes(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
