"""One cell's folder while the cell trains: lease, manifest, rows, log and checkpoints, kept true to what happens.

Imports torch where something trains: a finished cell answers without it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import dbnrun
from dbnrun.config.identity import cell_of, readable_name, signature
from dbnrun.config.registry import UserError
from dbnrun.config.schema import RunConfig
from dbnrun.data import expected_digest
from dbnrun.runs import layout, metrics
from dbnrun.runs.lock import EXPIRY, Lease, Lost, was_requeued
from dbnrun.runs.metrics import EpochRow, MetricsWriter
from dbnrun.runs.status import Outcome

if TYPE_CHECKING:
    import torch
from dbnrun.runs.checkpoint import CHECKPOINT, PREVIOUS, Position, _bytes, position_of


class Finished(Exception):
    """Another process has ended the cell between our look at it and our lease."""


class RunDir:
    """A cell's folder, from before its training to its end.

    As a context it holds the lease and marks the status: running, then done or diverged by `finish`, else failed or
    interrupted. Entering raises lock.Held where another process trains the cell, and Finished where one just did.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.cell = cell_of(config)
        self.digest = expected_digest(config.dataset.name)
        self.signature = signature(self.cell, self.digest)
        self.folder = layout.run_folder(Path(config.results_dir), self.cell, self.signature)
        self.name = f"{readable_name(self.cell)}-{self.signature}"
        self.rows: list[EpochRow] = []
        self.state: dict[str, Any] | None = None  # of the checkpoint to go on from
        self.outcome: Outcome | None = None  # once it has ended
        self.diverged_step: int | None = None  # the first update whose loss was not finite
        self._states: dict[Position, dict[str, Any]] = {}  # of every checkpoint that one could go on from
        self._writer: MetricsWriter | None = None
        self._open = False
        self._saved = time.monotonic()

    def finished(self) -> Outcome | None:
        """The outcome "skipped" where the cell was done, or diverged, before."""
        if not self._is_finished():
            return None
        if self.config.save_weights and not (self.folder / layout.WEIGHTS).exists():
            _warn(f"{self.name}: was finished without save_weights=true; move its folder away to train it again")
        rows = metrics.read_rows(self.folder / "metrics.csv")
        manifest = layout.read_manifest(self.folder)
        where = layout.divergence(manifest)
        return Outcome(self.name, self.folder, "skipped", rows[-1] if rows else None, manifest["status"], where)

    def failure(self, error: BaseException) -> Outcome:
        status = "refused" if isinstance(error, UserError) else "failed"
        return Outcome(self.name, self.folder, status, message=one_line(error))

    @property
    def position(self) -> Position:
        """Where to go on from; (0, 0): the beginning."""
        return position_of(self.state) if self.state else (0, 0)

    @property
    def diverged(self) -> bool:
        """Whether it ended with a loss that is not finite, but for being told so."""
        return bool(self.rows) and not math.isfinite(self.rows[-1].train_loss)

    @property
    def positions(self) -> set[Position]:
        """Where one could go on from; empty for a cell that has no checkpoint."""
        return set(self._states)

    def go_on_from(self, position: Position) -> None:
        """Choose one of `positions`; entering has chosen the latest."""
        self.state = self._states[position]
        self.rows = self._recorded[: position[0]]

    def __enter__(self) -> RunDir:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"results_dir={self.config.results_dir}: {self.folder.name} cannot be made there "
                f"({error.strerror}); expected a folder that can be written to, such as results_dir=$HOME/results."
            ) from None
        self._new = not any(self.folder.iterdir())
        self._lease = Lease(self.folder)
        # A job that Slurm starts again follows one on a machine that may have died.
        self._lease.take(patience=2 * EXPIRY if was_requeued() else 0)
        try:
            if self._is_finished():
                raise Finished
            self._set_aside()
            self._recorded = metrics.read_rows(self.folder / "metrics.csv")
            metrics.refuse_unknown_columns(self.folder / "metrics.csv")
            before = layout.read_manifest(self.folder)
            self._manifest = self._describe(before)
            began = {"compile": False, **before} if before else {}  # not noted while there was no choice
            for key in ("threads", "compile"):
                if began.get(key, self._manifest[key]) != self._manifest[key]:
                    setting = f"{key}={json.dumps(began[key])}"
                    _warn(f"{self.folder.name}: began with {setting}; from here on it rounds otherwise")
            self._started, self._before = time.perf_counter(), self._manifest["wall_seconds"]
            layout.write_cell(self.folder, self.cell)
            self._mark("running")
            self._read_checkpoints(stacked=before.get("stacked", 1) > 1)
            self._log(f"{_now()} {' '.join(sys.argv)}\n{json.dumps(self._manifest)}\n{json.dumps(_environment())}")
        except BaseException:
            self._lease.release()
            raise
        self._open = True
        return self

    def write(self, row: EpochRow) -> None:
        self._lease.check()
        if self._writer is None:  # not before there is a row: a cell that is refused leaves no empty metrics.csv
            self._writer = MetricsWriter(self.folder, self.rows)
        self._writer.write(row)
        self.rows.append(row)

    def due(self) -> bool:
        """Whether it is time for a checkpoint inside the epoch."""
        return time.monotonic() - self._saved >= 60 * self.config.checkpoint.minutes

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Keep `state` to go on from, and the one before it; it must have "epoch", the number of epochs done."""
        self._lease.check()
        layout.write_atomic(self.folder / CHECKPOINT, _bytes(state), keep=self.folder / PREVIOUS)
        self._saved = time.monotonic()

    def weights(self, state: dict[str, Any]) -> None:
        layout.write_atomic(self.folder / layout.WEIGHTS, _bytes(state))

    def finish(self) -> Outcome:
        """The cell is trained: mark it done or diverged, let go of the folder, and return how it ended."""
        if self.outcome is None:
            self._lease.check()
            ended = "diverged" if self.diverged else "done"
            known = self.diverged and self.diverged_step is not None
            at = {"diverged_epoch": self.rows[-1].epoch, "diverged_step": self.diverged_step} if known else {}
            self._close(ended, **at)
            for name in (CHECKPOINT, PREVIOUS):
                (self.folder / name).unlink(missing_ok=True)
            self.outcome = Outcome(self.name, self.folder, ended, self.rows[-1], where=layout.divergence(at))
        return self.outcome

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._open:
            return
        # What goes wrong here, on a full disk or in a folder that is gone, must not hide what went wrong before.
        with contextlib.suppress(OSError):
            if isinstance(error, Lost):
                self._let_go()  # the folder is another's
            elif isinstance(error, UserError) and self._new and not self.rows:
                self._let_go()
                self._remove_traces()
            elif isinstance(error, Exception | SystemExit):
                self._log("".join(traceback.format_exception(error)))
                self._close("failed", error=one_line(error))
            else:
                self._close("interrupted")

    def _close(self, status: str, **more: Any) -> None:
        try:
            self._mark(status, **more)
        finally:
            self._let_go()

    def _remove_traces(self) -> None:
        """A cell that was refused before it trained leaves nothing behind."""
        for name in ("manifest.json", "config.yaml", "run.log"):
            (self.folder / name).unlink(missing_ok=True)
        self.folder.rmdir()

    def _let_go(self) -> None:
        self._open = False
        try:
            if self._writer is not None:
                self._writer.__exit__(None, None, None)
        finally:
            self._lease.release()

    def _mark(self, status: str, **more: Any) -> None:
        wall = round(self._before + time.perf_counter() - self._started, 3)
        self._manifest.update(status=status, wall_seconds=wall, updated=_now(), **more)
        layout.write_manifest(self.folder, self._manifest)

    def _log(self, text: str) -> None:
        with open(self.folder / "run.log", "a", encoding="utf-8") as log:
            log.write(text.rstrip() + "\n")

    def _is_finished(self) -> bool:
        """Whether nothing is left to train: the cell has ended, and is not asked for again."""
        return layout.is_finished(self.folder, self.config.dataset.name) and not self._is_retried()

    def _is_retried(self) -> bool:
        """Whether the cell diverged before and retry=diverged asks for it."""
        return self.config.retry == "diverged" == layout.read_manifest(self.folder).get("status")

    def _set_aside(self) -> None:
        """Keep aside what was recorded of a cell that is trained from its beginning again."""
        if layout.is_stale(layout.read_manifest(self.folder), self.config.dataset.name):
            _warn(f"{self.folder}: recorded by code whose numbers differ from this one's; kept aside, trained again")
        elif not self._is_retried():
            return
        for name in ("metrics.csv", CHECKPOINT, PREVIOUS, layout.WEIGHTS, "manifest.json"):
            layout.set_aside(self.folder / name)

    def _read_checkpoints(self, stacked: bool) -> None:
        """Take every checkpoint that one can go on from; set aside, with a warning, what is damaged.

        `stacked`: the run was part of a stack when it stopped.
        """
        import torch

        for path in (self.folder / CHECKPOINT, self.folder / PREVIOUS):
            if path.exists():
                try:
                    state = torch.load(path, map_location="cpu", weights_only=True)
                    epoch = position_of(state)[0]
                    if missing := {"model", "optimizer", "streams"} - state.keys():
                        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
                    if [row.epoch for row in self._recorded[:epoch]] != list(range(1, epoch + 1)):
                        raise ValueError(
                            f"it ends at epoch {epoch} and metrics.csv lacks a row before that, or has one twice"
                        )
                    if stacked and state.get("under_way") and "sound" not in state["under_way"]:
                        # Before there was this key, stacks summed the batches' mean losses, not those of the records.
                        state["under_way"]["loss"] *= self.config.train.batch_size
                    self._states[position_of(state)] = state
                except Exception as error:  # whatever a damaged file makes the loader say
                    _warn(f"a checkpoint that cannot be used is kept as {layout.set_aside(path)}: {one_line(error)}")
        if self._states:
            self.go_on_from(max(self._states))
        elif self._recorded:
            _warn(f"{self.folder}: no usable checkpoint; starting over, the rows so far are kept aside")
            layout.set_aside(self.folder / "metrics.csv")

    def _describe(self, before: dict[str, Any]) -> dict[str, Any]:
        import torch

        config = self.config
        return {
            "signature": self.signature,
            "status": "new",
            "results_version": layout.RESULTS_VERSIONS[config.dataset.name],
            "seed": config.seed,
            "threads": torch.get_num_threads(),
            "compile": config.compile,
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
            "wall_seconds": wall if isinstance(wall := before.get("wall_seconds"), int | float) else 0.0,
        }

    def describe_training(self, device: torch.device, stacked: int, together: int) -> None:
        """Note the device, how many runs the stack has, and how many cells share the wall clock with this one.

        A stacked cell differs from one alone by rounding.
        """
        import torch

        cuda = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine()
        self._manifest.update(device=device.type, device_name=name, stacked=stacked, together=together)
        self._mark("running")


def finished_before(config: RunConfig) -> Outcome | None:
    """The outcome "skipped" of a cell that is finished; None where it is not, or where its folder cannot be read.

    What is wrong with such a folder comes up when the cell is trained.
    """
    with contextlib.suppress(Exception):
        return RunDir(config).finished()
    return None


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


def _environment() -> dict[str, str]:
    """The variables that can change what a run does."""
    prefixes = ("DBNRUN_", "CUDA_", "CUBLAS_", "NVIDIA_", "OMP_", "MKL_", "SLURM_", "TORCH", "PYTORCH_")
    return {key: value for key, value in sorted(os.environ.items()) if key.startswith(prefixes)}


def _warn(line: str) -> None:
    tqdm.write(f"dbnrun: warning: {line}", sys.stderr)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
