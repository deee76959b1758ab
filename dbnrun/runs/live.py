"""The loggers: where a run's rows can be watched beside metrics.csv, which stays the record.

Each logger is a class. Made, it brings what it shows of a run to exactly the rows that metrics.csv holds, so that a
resumed run goes on in its curve without gaps, duplicates or zigzags; `write` adds the row of an epoch; `close` ends the
run with its status. Its package is imported when it is made. A run is known by its signature.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import io
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dbnrun.config.filters import options
from dbnrun.config.registry import UserError, one_line
from dbnrun.runs.layout import FINISHED
from dbnrun.runs.metrics import EpochRow, values

PROJECT = "dbnrun"  # the experiment or project that runs belong to, unless the logger's own variable names another


class Logger(Protocol):
    """What a logger offers. `cell` is the run's configuration, `rows` are its rows so far, `status` is how it ended."""

    def __init__(self, folder: Path, signature: str, cell: Mapping[str, Any], rows: Sequence[EpochRow]) -> None: ...
    def write(self, row: EpochRow) -> None: ...
    def close(self, status: str) -> None: ...


class TensorBoard:
    """Event files in the run's folder; a resumed run writes them anew."""

    def __init__(self, folder: Path, signature: str, cell: Mapping[str, Any], rows: Sequence[EpochRow]) -> None:  # noqa: ARG002
        from torch.utils.tensorboard import SummaryWriter

        target = folder / "tensorboard"
        before = list(target.glob("events.out.tfevents.*"))
        # A viewer that has read the old files drops their values at this step, the first.
        self._writer = SummaryWriter(str(target), purge_step=1)
        for row in rows:
            self._add(row)
        self._writer.flush()
        for path in before:
            path.unlink(missing_ok=True)

    def _add(self, row: EpochRow) -> None:
        for name, value in values(row).items():
            self._writer.add_scalar(name, value, row.epoch)  # float32: TensorBoard does not show others by default

    def write(self, row: EpochRow) -> None:
        self._add(row)
        self._writer.flush()

    def close(self, status: str) -> None:  # noqa: ARG002
        self._writer.close()


class Trackio:
    """A local project of trackio; a resumed run is written anew. A remote one keeps what it has."""

    def __init__(self, folder: Path, signature: str, cell: Mapping[str, Any], rows: Sequence[EpochRow]) -> None:  # noqa: ARG002
        trackio = importlib.import_module("trackio")
        remote = {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"} & set(os.environ)
        if not remote:
            with contextlib.suppress(ValueError):  # there is no such project yet
                for run in trackio.Api().runs(PROJECT):
                    if run.name == folder.name:
                        run.delete()
        how = {"config": options(cell), "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        with contextlib.redirect_stdout(io.StringIO()):
            # In a context of its own: init ends the run that it finds in the current one.
            begin = contextvars.Context().run
            self._run = begin(trackio.init, project=PROJECT, name=folder.name, resume="allow", **how)
        for row in [] if remote else rows:
            self.write(row)

    def write(self, row: EpochRow) -> None:
        shown = values(row)
        shown["updates"] = shown.pop("step")  # a name that trackio keeps for itself
        self._run.log(shown, step=row.epoch)

    def close(self, status: str) -> None:  # noqa: ARG002
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


class WandB:
    """A run of Weights & Biases, its id the signature. Its history can only grow: it gets the rows that it lacks.

    Offline each process writes a folder of its own, with all rows.
    """

    def __init__(self, folder: Path, signature: str, cell: Mapping[str, Any], rows: Sequence[EpochRow]) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=signature,
            name=folder.name,
            config=options(cell),
            resume="allow",
            reinit="create_new",  # beside the other runs of this process
            settings=wandb.Settings(console="off", silent=True, login_timeout=60),
        )
        for row in rows:
            if row.epoch >= self._run.step:
                self.write(row)

    def write(self, row: EpochRow) -> None:
        self._run.log(values(row), step=row.epoch)

    def close(self, status: str) -> None:
        """Not waited for: an upload takes seconds, and the next run can train meanwhile."""
        code = 0 if status in FINISHED else 1
        threading.Thread(target=self._finish, args=[code], name="wandb finish").start()

    def _finish(self, exit_code: int) -> None:
        with contextlib.suppress(Exception):
            self._run.finish(exit_code=exit_code)


class MLflow:
    """A run of MLflow, found by its tags signature and folder; where it has other rows, a new one takes its place."""

    ROWS_AT_ONCE = 50  # a request holds 1000 values at most

    def __init__(self, folder: Path, signature: str, cell: Mapping[str, Any], rows: Sequence[EpochRow]) -> None:
        # A server that is away would be asked for four minutes, and a run stands still meanwhile.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self._entities = importlib.import_module("mlflow.entities")
        self._client = importlib.import_module("mlflow").MlflowClient()
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        tags = {"signature": signature, "folder": str(folder.absolute())}
        kept = None
        for run in self._client.search_runs([experiment], filter_string=f"tags.signature = '{signature}'"):
            if run.data.tags.get("folder") != tags["folder"]:
                continue  # somebody else's training of the same cell
            shown = self._shown(run.info.run_id)
            if kept is None and shown == [_mark(row) for row in rows][: len(shown)]:
                kept, rows = run.info.run_id, rows[len(shown) :]
            else:
                self._client.delete_run(run.info.run_id)
        if kept is None:
            kept = self._new(experiment, folder.name, tags, cell)
        self._id = kept
        self._client.update_run(kept, status="RUNNING")
        for start in range(0, len(rows), self.ROWS_AT_ONCE):
            self._log(rows[start : start + self.ROWS_AT_ONCE])

    def _experiment(self, name: str) -> str:
        if found := self._client.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return self._client.create_experiment(name)
        except Exception:
            if found := self._client.get_experiment_by_name(name):  # another process was faster
                return found.experiment_id
            raise

    def _shown(self, run: str) -> list[float]:
        """What marks each row that a run of MLflow has, in order."""
        history = self._client.get_metric_history(run, MARK)
        return [metric.value for metric in sorted(history, key=lambda metric: metric.step)]

    def _new(self, experiment: str, name: str, tags: Mapping[str, str], cell: Mapping[str, Any]) -> str:
        run = self._client.create_run(experiment, run_name=name, tags=tags).info.run_id
        params = [self._entities.Param(key, str(value)) for key, value in options(cell).items()]
        self._client.log_batch(run, params=params[:100])
        return run

    def _log(self, rows: Sequence[EpochRow]) -> None:
        now = int(1000 * time.time())
        pairs = [(row.epoch, *pair) for row in rows for pair in values(row).items()]
        metrics = [self._entities.Metric(name, value, now, epoch) for epoch, name, value in pairs]
        self._client.log_batch(self._id, metrics=metrics)

    def write(self, row: EpochRow) -> None:
        self._log([row])

    def close(self, status: str) -> None:
        ended = "FINISHED" if status in FINISHED else "FAILED" if status == "failed" else "KILLED"
        self._client.set_terminated(self._id, ended)


MARK = "eval_seconds"  # tells one training's rows from another's


def _mark(row: EpochRow) -> float:
    return values(row)[MARK]


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB, "mlflow": MLflow}
EXPORTS = ("tensorboard", "trackio", "mlflow")  # whose runs can be written anew


def show(
    name: str, folder: Path, signature: str, cell: Mapping[str, Any], rows: Sequence[EpochRow], status: str
) -> None:
    """Bring what a logger shows of a run to its recorded rows. Raises UserError where the logger fails."""
    try:
        LOGGERS[name](folder, signature, cell, rows).close(status)
    except Exception as error:
        raise UserError(f"{name}: {_why(name, error)}.") from error


def _why(name: str, error: Exception) -> str:
    hint = f"; pip install 'dbnrun[{name}]'" if isinstance(error, ImportError) else ""
    return one_line(error).rstrip(".") + hint


class Live:
    """The logger of a run that trains, if it has one. Where that fails, a warning says so, and the run goes on without.

    One that cannot be opened is not tried again in this process: each run would wait for it anew.
    """

    unusable: ClassVar[set[str]] = set()

    def __init__(self, name: str, warn: Callable[[str], None]) -> None:
        self._name, self._warn = name, warn
        self._logger: Logger | None = None

    def open(self, folder: Path, signature: str, cell: Mapping[str, Any], rows: Sequence[EpochRow]) -> None:
        if self._name == "none" or self._name in self.unusable:
            return
        try:
            self._logger = LOGGERS[self._name](folder, signature, cell, rows)
        except Exception as error:
            self.unusable.add(self._name)
            self._warn(f"logger={self._name}: {_why(self._name, error)}. Training goes on without it.")

    def write(self, row: EpochRow) -> None:
        if self._logger is not None:
            self._tried(self._logger.write, row)

    def close(self, status: str) -> None:
        if self._logger is not None:
            self._tried(self._logger.close, status)
            self._logger = None

    def _tried(self, call: Callable[[Any], None], argument: Any) -> None:
        try:
            call(argument)
        except Exception as error:
            self._logger = None
            self._warn(f"logger={self._name}: {_why(self._name, error)}. This run goes on without it.")
