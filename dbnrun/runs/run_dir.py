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
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import dbnrun
from dbnrun.config import own
from dbnrun.config.identity import cell_of, readable_name, signature
from dbnrun.config.registry import UserError, one_line
from dbnrun.config.schema import RunConfig
from dbnrun.runs import layout, metrics
from dbnrun.runs.live import Live
from dbnrun.runs.lock import EXPIRY, Held, Lease, Lost, leased, was_requeued
from dbnrun.runs.metrics import EpochRow, MetricsWriter
from dbnrun.runs.probe import ProbeRow, ProbeWriter, csv_lines
from dbnrun.runs.status import Outcome, recorded_status

if TYPE_CHECKING:
    from dbnrun.runs.checkpoint import Checkpoints, Position, State


class Finished(Exception):
    """Another process has ended the cell between our look at it and our lease."""


class Manifest:
    """A run's manifest.json while it trains: what is known of the run, its status, and its wall time so far."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content
        self.started, self.before = time.perf_counter(), content["wall_seconds"]

    def write(self, status: str, **more: Any) -> None:
        wall = round(self.before + time.perf_counter() - self.started, 3)
        self.content.update(status=status, wall_seconds=wall, updated=_now(), **more)
        layout.write_manifest(self.folder, self.content)


class RunDir:
    """A cell's folder, from before its training to its end.

    As a context it holds the lease and keeps the status: running, then done or diverged by `finish`, else failed or
    interrupted. Entering raises lock.Held where another process trains the cell, and Finished where one just did.
    """

    manifest: Manifest
    checkpoints: Checkpoints

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.cell = cell_of(config)
        self.digest = config.dataset.digest_in(Path(config.data_dir))
        self.signature = signature(self.cell, self.digest)
        self.folder = layout.run_folder(Path(config.results_dir), self.cell, self.signature)
        self.name = f"{readable_name(self.cell)}-{self.signature}"
        self.rows: list[EpochRow] = []
        self.states: dict[Position, State] = {}  # by position, every checkpoint that the run can continue from
        self.position: Position = (0, 0)  # where it continues; (0, 0): at the beginning
        self.state: State | None = None  # of that position; None at the beginning
        self.outcome: Outcome | None = None  # once it has ended
        self.diverged_step: int | None = None  # the first update whose loss was not finite
        self._lease = Lease(self.folder)
        self._writer: MetricsWriter | None = None
        self._probe: ProbeWriter | None = None
        self._live = Live(config.logger, _warn)
        self._open = False

    def finished(self) -> Outcome | None:
        """The outcome "skipped" where the cell was done, or diverged, before."""
        if not self._is_finished():
            return None
        for setting in lacking(self.config, self.folder):
            _warn(f"{self.name}: finished without {setting}=true; force=true trains it again")
        rows = metrics.read_rows(self.folder / "metrics.csv")
        manifest = layout.read_manifest(self.folder)
        where = layout.divergence(manifest)
        return Outcome(self.name, self.folder, "skipped", rows[-1] if rows else None, manifest["status"], where)

    def failure(self, error: BaseException) -> Outcome:
        status = "refused" if isinstance(error, UserError) else "failed"
        return Outcome(self.name, self.folder, status, message=one_line(error))

    def begin_anew(self) -> None:
        """Keep aside what a finished cell has recorded: force=true. One that another process holds is left to it."""
        if not self._is_finished():
            return
        try:
            with contextlib.suppress(Held), leased(self.folder):
                if self._is_finished():
                    self._set_records_aside()
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written to ({error.strerror}); force=true needs that.") from None

    @property
    def diverged(self) -> bool:
        """Whether the last recorded training loss is not finite."""
        return bool(self.rows) and not math.isfinite(self.rows[-1].train_loss)

    def go_on_from(self, position: Position) -> None:
        """Continue from a position in `states`; `__enter__` chose the latest."""
        self.position, self.state = position, self.states[position]
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
        # The predecessor of a requeued Slurm job may have died and left its lease.
        self._lease.take(patience=2 * EXPIRY if was_requeued() else 0)
        try:
            if self._is_finished():
                raise Finished
            self._continue()
        except BaseException:
            self._lease.release()
            raise
        self._open = True
        return self

    def _continue(self) -> None:
        """Read what an earlier attempt has left, set aside what cannot be used, and mark the run as running."""
        layout.remove_torn(self.folder)
        self._set_aside()
        self._recorded = metrics.read_rows(self.folder / "metrics.csv")
        metrics.refuse_unknown_columns(self.folder / "metrics.csv")
        before = layout.read_manifest(self.folder)
        layout.write_cell(self.folder, self.cell)
        self._keep_sources()
        self.manifest = Manifest(self.folder, self._describe(before))
        self.manifest.write("running")
        self._read_checkpoints(stacked=before.get("stacked", 1) > 1)
        facts = json.dumps(self.manifest.content), json.dumps(_environment())
        self._log("\n".join([f"{_now()} {' '.join(sys.argv)}", *facts]))

    def _keep_sources(self) -> None:
        """Keep the code of classes of the user's own beside what it produced, in the folder `source`."""
        for group, choice in self.config.own.items():
            for name, path in own.files(f"{group}.target", choice.code).items():
                kept = self.folder / "source" / group / name
                kept.parent.mkdir(parents=True, exist_ok=True)
                layout.write_atomic(kept, path.read_bytes())

    def _read_checkpoints(self, stacked: bool) -> None:
        """Go on from the latest usable checkpoint; `stacked`: the run was part of a stack when it stopped."""
        from dbnrun.runs.checkpoint import Checkpoints

        self.checkpoints = Checkpoints(self.folder)
        self.states = self.checkpoints.read(self._recorded, _warn)
        for state in self.states.values():
            if stacked and state.get("under_way") and "sound" not in state["under_way"]:
                # Stacks older than this key summed the means of batches, not the losses of records.
                state["under_way"]["loss"] *= self.config.train.batch_size
        if self.states:
            self.go_on_from(max(self.states))
        elif self._recorded:
            _warn(f"{self.folder}: no checkpoint can be used; training starts over, and the old rows are kept aside")
            layout.set_aside(self.folder / layout.PROBE, self.folder / "metrics.csv")

    def describe_training(self, **facts: Any) -> None:
        """Note in the manifest how the run is trained: threads, compile, device, who shares its wall clock.

        Warns where the run began with other threads or another `compile`.
        """
        before = self.manifest.content
        for key in ("threads", "compile"):
            if before.get(key, facts[key]) != facts[key]:
                setting = f"{key}={json.dumps(before[key])}"
                _warn(f"{self.folder.name}: began with {setting}; rounding differs from here on")
        self.manifest.write("running", **facts)

    def show_live(self) -> None:
        """Open the logger, if there is one, and show there what is recorded so far."""
        self._live.open(self.folder, self.signature, self.cell, self.rows)

    def write(self, row: EpochRow, probed: Sequence[ProbeRow] | None = None) -> None:
        """Record an epoch, and what was probed at its end; None where nothing was."""
        self._lease.check()
        if probed is not None:
            if self._probe is None:
                self._probe = ProbeWriter(self.folder, row.epoch)
            self._probe.write(csv_lines(probed))
        if self._writer is None:  # not before there is a row: a cell that is refused leaves no empty metrics.csv
            self._writer = MetricsWriter(self.folder, self.rows)
        self._writer.write(row)
        self.rows.append(row)
        self._live.write(row)

    def due(self) -> bool:
        """Whether it is time for a checkpoint inside the epoch."""
        return time.monotonic() - self.checkpoints.written >= 60 * self.config.checkpoint.minutes

    def checkpoint(self, state: State) -> None:
        """Keep `state` to go on from."""
        self._lease.check()
        self.checkpoints.write(state)

    def keep_weights(self, state: Any) -> None:
        """Keep the trained network's state dict."""
        from dbnrun.runs.checkpoint import to_bytes

        self._lease.check()
        layout.write_atomic(self.folder / layout.WEIGHTS, to_bytes(state))

    def finish(self) -> Outcome:
        """The cell is trained: mark it done or diverged, let go of the folder, and return how it ended."""
        if self.outcome is None:
            self._lease.check()
            ended = "diverged" if self.diverged else "done"
            known = self.diverged and self.diverged_step is not None
            at = {"diverged_epoch": self.rows[-1].epoch, "diverged_step": self.diverged_step} if known else {}
            self._close(ended, **at)
            self.checkpoints.remove()
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
            self.manifest.write(status, **more)
        finally:
            self._let_go(status)

    def _let_go(self, status: str = "interrupted") -> None:
        self._open = False
        self._live.close(status)
        try:
            for writer in (self._writer, self._probe):
                if writer is not None:
                    writer.close()
        finally:
            self._lease.release()

    def _remove_traces(self) -> None:
        """A cell that was refused before it trained leaves nothing behind."""
        for name in ("manifest.json", "config.yaml", "run.log"):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "source", ignore_errors=True)
        self.folder.rmdir()

    def _log(self, text: str) -> None:
        with open(self.folder / "run.log", "a", encoding="utf-8") as log:
            log.write(text.rstrip() + "\n")

    def _is_finished(self) -> bool:
        """Whether nothing is left to train: the cell has ended, and is not asked for again."""
        status = recorded_status(self.folder, self.config.dataset.name).name
        return status in layout.FINISHED and status != self.config.retry

    def _set_aside(self) -> None:
        """Keep aside what was recorded of a cell that is stale, or diverged and asked for again."""
        manifest = layout.read_manifest(self.folder)
        if layout.is_stale(manifest, self.config.dataset.name):
            _warn(f"{self.folder}: a version with other numbers recorded it; it trains again and keeps the old records")
        elif not self.config.retry == "diverged" == manifest.get("status"):
            return
        self._set_records_aside()

    def _set_records_aside(self) -> None:
        # The manifest last: until it is gone too, whoever is killed in between leaves a cell that is not lost.
        names = *layout.KEPT_ON_REQUEST.values(), layout.CHECKPOINT, layout.PREVIOUS, "metrics.csv", "manifest.json"
        layout.set_aside(*(self.folder / name for name in names))

    def _describe(self, before: dict[str, Any]) -> dict[str, Any]:
        """The manifest's entries that do not depend on the device; `before`: the manifest of the attempt before."""
        from importlib.metadata import version

        wall = before.get("wall_seconds")
        began = {"compile": False, **before} if before else {}  # not noted while there was no choice
        return {
            "signature": self.signature,
            "status": "new",
            "results_version": self.config.dataset.results_version,
            "seed": self.config.seed,
            **{key: began[key] for key in ("threads", "compile") if key in began},
            "data_digest": self.digest,
            **_outside_cell(self.config),
            "versions": {
                "dbnrun": dbnrun.__version__,
                "python": platform.python_version(),
                "torch": version("torch"),
                "torchvision": version("torchvision"),
            },
            "git": git_revision(),
            "host": socket.gethostname(),
            "command": sys.argv,
            "started": before.get("started", _now()),
            "wall_seconds": wall if isinstance(wall, int | float) else 0.0,
        }


def _outside_cell(config: RunConfig) -> dict[str, Any]:
    """Where the run's data and modules are found, by keys: a cell leaves that out, and `load_run` needs it."""
    paths = {name: getattr(config.dataset, name, None) for name in ("path", "test_path")}
    found: dict[str, Any] = {
        f"dataset.{name}": str(Path(path).expanduser().absolute()) for name, path in paths.items() if path
    }
    targets = {f"{group}.target": choice.target for group, choice in config.own.items() if isinstance(choice, own.Own)}
    found |= {key: target for key, target in targets.items() if ".py:" not in target}
    found |= {"plugins": config.plugins} if config.plugins else {}
    return {"outside_cell": found} if found else {}


def lacking(config: RunConfig, folder: Path) -> list[str]:
    """The settings whose file a finished run lacks, as it was trained without them."""
    asked = {setting: name for setting, name in layout.KEPT_ON_REQUEST.items() if getattr(config, setting)}
    return [setting for setting, name in asked.items() if not (folder / name).exists()]


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


def _environment() -> dict[str, str]:
    """The variables that can change what a run does."""
    prefixes = ("DBNRUN_", "CUDA_", "CUBLAS_", "NVIDIA_", "OMP_", "MKL_", "SLURM_", "TORCH", "PYTORCH_")
    return {key: value for key, value in sorted(os.environ.items()) if key.startswith(prefixes)}


def _warn(line: str) -> None:
    tqdm.write(f"dbnrun: warning: {line}", sys.stderr)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
