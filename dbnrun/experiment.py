"""The corridor for one cell: configuration, data, model, optimizer, training, records."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import platform
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import dbnrun
from dbnrun import data as datasets
from dbnrun import records
from dbnrun.config import DatasetConfig, RunConfig, UserError, cell_of, readable_name, signature
from dbnrun.data.augment import flip_crop
from dbnrun.data.parts import Data
from dbnrun.models import build_model
from dbnrun.norm import norm_factory
from dbnrun.norm.schedules import build_schedule
from dbnrun.optimizer import build_optimizer
from dbnrun.records import EpochRow, Outcome, RecordWriter
from dbnrun.streams import Streams
from dbnrun.train import steps_per_epoch, train


def run(config: RunConfig) -> Outcome:
    """Train one cell into its folder, from its checkpoint where there is one; a finished cell is left as it is.

    A cell that raises ends with the outcome "failed" (or "refused", where the user can mend it) and its traceback in
    the folder's run.log; with debug=true it raises.
    """
    cell = cell_of(config)
    sig = signature(cell, datasets.expected_digest(config.dataset.name))
    folder = records.run_folder(Path(config.results_dir), cell, sig)
    name = f"{readable_name(cell)}-{sig}"
    if finished := _finished(folder, name):
        return finished
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with records.lock(folder):
            # Another process may have finished it while we waited for the lock.
            return _finished(folder, name) or _train(config, cell, sig, folder, name)
    except records.Held as held:
        return Outcome(name, folder, "held", message=str(held))
    except Exception as error:
        if config.debug:
            raise
        return Outcome(name, folder, "refused" if isinstance(error, UserError) else "failed", message=one_line(error))


def _finished(folder: Path, name: str) -> Outcome | None:
    manifest = records.read_manifest(folder)
    if manifest.get("status") not in records.FINISHED:
        return None
    rows = records.read_rows(folder / "metrics.csv")
    return Outcome(name, folder, "skipped", rows[-1] if rows else None, manifest["status"])


def _train(config: RunConfig, cell: dict[str, Any], sig: str, folder: Path, name: str) -> Outcome:
    """Train with the manifest kept true to what happens: running, then done, diverged, interrupted or failed."""
    manifest = _manifest(config, sig, records.read_manifest(folder))
    started, before = time.perf_counter(), manifest["wall_seconds"]

    def mark(status: str, **more: Any) -> None:
        wall = round(before + time.perf_counter() - started, 3)
        manifest.update(status=status, wall_seconds=wall, updated=_now(), **more)
        records.write_manifest(folder, manifest)

    records.write_cell(folder, cell)
    mark("running")
    try:
        row = _corridor(config, folder)
    except KeyboardInterrupt:
        mark("interrupted")
        raise
    except Exception as error:
        mark("failed", error=one_line(error))
        (folder / "run.log").write_text(traceback.format_exc())
        raise
    status = "done" if math.isfinite(row.train_loss) else "diverged"
    mark(status)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return Outcome(name, folder, status, row)


def _corridor(config: RunConfig, folder: Path) -> EpochRow:
    """Build the parts, train, store rows and a checkpoint at each epoch's end. Returns the last row."""
    device = prepare_device(config)
    data = _data(config.dataset, Path(config.data_dir), device)
    steps = _checked_steps(config, data)
    schedule = build_schedule(config.schedule, steps)
    streams = Streams.of(config.seed, device)
    model = build_model(config.model, data.input_shape, data.num_classes, norm_factory(config.norm, schedule), streams)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload] # convolutions only; faster
    optimizer = build_optimizer(config.optimizer, model)
    state = _read_checkpoint(folder, device)
    done = _restore(state, model, optimizer, streams) if state else 0
    rows = records.read_rows(folder / "metrics.csv")[:done]
    with RecordWriter(folder, rows) as writer, _progress(config, steps, done) as bar:
        for row in train(
            model,
            optimizer,
            data,
            config.train,
            streams,
            precision=config.precision,
            alpha=schedule if config.norm.name == "dbn" else None,
            augment=_augment(config.dataset),
            epochs_done=done,
            on_step=bar.update,
        ):
            writer.write(row)
            rows.append(row)
            _save_checkpoint(folder, model, optimizer, streams, row.epoch)
            bar.set_postfix(loss=f"{row.train_loss:.3f}", test=f"{row.test_error_pct:.2f}%", refresh=False)
    if config.save_weights:
        records.write_atomic(folder / "weights.pt", _bytes(model.state_dict()))
    return rows[-1]


def prepare_device(config: RunConfig) -> torch.device:
    """Set threads, determinism and matrix precision as configured; return the device to train on."""
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no CUDA device here; use device=cpu or device=auto.")
    if kind == "cpu" and config.precision == "tf32":
        raise UserError("precision=tf32 is a mode of CUDA devices and none is here: use fp32 or bf16.")
    if config.threads:
        torch.set_num_threads(config.threads)
    deterministic = kind == "cpu" if config.deterministic == "auto" else bool(config.deterministic)
    if deterministic and kind == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by torch's deterministic matmul
    torch.use_deterministic_algorithms(deterministic)
    # A debugging aid that costs a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    return torch.device(kind)


@functools.lru_cache(maxsize=1)
def _load(key: str, data_dir: Path, device: torch.device) -> Data:
    return datasets.load(DatasetConfig(**json.loads(key)), data_dir).to(device)


def _data(config: DatasetConfig, data_dir: Path, device: torch.device) -> Data:
    """The data on the device; cells of a sweep that stand on the same data share one copy."""
    return _load(json.dumps(asdict(config)), data_dir, device)


def _checked_steps(config: RunConfig, data: Data) -> int:
    if config.train.batch_size > len(data.train):
        raise UserError(
            f"train.batch_size={config.train.batch_size}: dataset {config.dataset.name} has {len(data.train)} "
            "training records after the validation split; choose a smaller batch."
        )
    return steps_per_epoch(len(data.train), config.train)


def _augment(config: DatasetConfig) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    if config.augment != "flip_crop":
        return None
    return flip_crop


def _progress(config: RunConfig, steps: int, done: int) -> tqdm:
    hidden = None if config.progress else True  # None: hidden where stderr is no terminal
    total = config.train.epochs * steps
    return tqdm(total=total, initial=done * steps, unit="step", leave=False, disable=hidden, dynamic_ncols=True)


def _bytes(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, streams: Streams, epoch: int
) -> None:
    state = {
        "epoch": epoch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "streams": streams.state(),
    }
    records.write_atomic(folder / "checkpoint.pt", _bytes(state))


def _read_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The last checkpoint, if it and the rows up to it are sound; else set aside what cannot be continued."""
    path, metrics = folder / "checkpoint.pt", folder / "metrics.csv"
    recorded = len(records.read_rows(metrics))
    if path.exists():
        try:
            state = torch.load(path, map_location=device, weights_only=True)
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


def _restore(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, streams: Streams) -> int:
    """Put everything back to where a checkpoint was taken; return the epochs done by then."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    streams.restore(state["streams"])
    return state["epoch"]


def _manifest(config: RunConfig, sig: str, before: dict[str, Any]) -> dict[str, Any]:
    device = prepare_device(config)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else (platform.processor() or platform.machine())
    return {
        "signature": sig,
        "status": "new",
        "seed": config.seed,
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "data_digest": datasets.expected_digest(config.dataset.name),
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


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def one_line(error: BaseException) -> str:
    """An error as one line: its kind and the first line of what it says."""
    text = str(error).strip().split("\n", maxsplit=1)[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
