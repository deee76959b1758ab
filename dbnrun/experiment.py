"""The corridor: configuration, data, model, optimizer, training, records; for one cell, or several along one run."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dbnrun import data as datasets
from dbnrun import eager
from dbnrun.compiling import check_compiler
from dbnrun.config import DatasetConfig, RunConfig, UserError
from dbnrun.data.augment import flip_crop
from dbnrun.data.parts import Data
from dbnrun.lease import Held
from dbnrun.models import Network, build_model
from dbnrun.norm import norm_factory
from dbnrun.norm.following import follow, share_weights
from dbnrun.norm.schedules import Schedule, build_schedule
from dbnrun.optimizer import build_optimizer, load_state
from dbnrun.recording import Finished, Position, Recording
from dbnrun.records import EpochRow, Outcome
from dbnrun.streams import Streams
from dbnrun.train import UnderWay, View, steps_per_epoch, train


@dataclass(frozen=True)
class Cell:
    """The built parts of one cell, on its device."""

    config: RunConfig
    model: Network
    optimizer: torch.optim.Optimizer
    streams: Streams
    schedule: Schedule

    def view(self) -> View:
        return View(self.model, self.schedule if self.config.norm.name == "dbn" else None)

    def state(self, epoch: int, under_way: UnderWay | None = None) -> dict[str, Any]:
        """Where everything stands after `epoch` epochs, and so much of the next one, for a checkpoint."""
        return {
            "epoch": epoch,
            "under_way": None if under_way is None else asdict(under_way),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "streams": self.streams.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put everything back to where a checkpoint was taken."""
        self.model.load_state_dict(state["model"])
        load_state(self.optimizer, state["optimizer"])
        self.streams.restore(state["streams"])


def run(config: RunConfig) -> Outcome:
    """Train one cell into its folder, from its checkpoint where there is one; a finished cell is left as it is.

    A cell that raises ends with the outcome "failed" (or "refused", where the user can mend it) and its traceback in
    the folder's run.log; with debug=true it raises.
    """
    return run_together([config])[0]


def run_together(configs: Sequence[RunConfig]) -> list[Outcome]:
    """The same for cells that share one training run: alike but for their schedules, under train_stats=batch.

    The run trains once and moves every cell's lambda; each cell gets the folder, and the numbers bit for bit, that it
    would have had alone. Its seconds are its share of the time. Cells that stopped at different epochs go on apart.
    """

    def one_by_one(runs: Sequence[Sequence[Recording]], device: torch.device) -> None:
        for recordings in runs:
            _corridor(recordings, device)

    return record([configs], one_by_one)[0]


# Trains runs, each the recordings of the cells that share it, all of them at the same epoch.
Corridor = Callable[[Sequence[Sequence[Recording]], torch.device], None]


def record(runs: Sequence[Sequence[RunConfig]], corridor: Corridor) -> list[list[Outcome]]:
    """Open every cell's folder, let `corridor` train what is not finished, and say how each cell ended.

    A folder that cannot be opened ends its own cell; an error in training ends all cells that are still open. Raises
    it where debug=true, or where memory is short for several runs.
    """
    recordings = [[Recording(config) for config in configs] for configs in runs]
    everyone = list(itertools.chain.from_iterable(recordings))
    outcomes: dict[str, Outcome] = {}
    try:
        with contextlib.ExitStack() as stack:
            device = prepare_device(everyone[0].config)
            for recording in everyone:
                outcomes |= _opened(recording, stack)
            waiting = [recording for recording in everyone if recording.name not in outcomes]
            for recording in waiting:
                if recording.config.theory:
                    _say_theory(recording.config)
            _agree(waiting)
            outcomes |= {r.name: r.finish() for r in waiting if r.diverged}  # cut off just before that
            waiting = [recording for recording in waiting if recording.name not in outcomes]
            for position in sorted({recording.position for recording in waiting}):
                now = [[r for r in run if r in waiting and r.position == position] for run in recordings]
                corridor([run for run in now if run], device)
                outcomes |= {r.name: r.finish() for r in itertools.chain.from_iterable(now)}
    except (Exception, SystemExit) as error:  # a cell that calls sys.exit ends itself alone
        if everyone[0].config.debug or (len(runs) > 1 and is_out_of_memory(error)):
            raise
        outcomes = {recording.name: recording.failure(error) for recording in everyone} | outcomes
    return [[outcomes[recording.name] for recording in run] for run in recordings]


def _say_theory(config: RunConfig) -> None:
    """Which conditions of the theorem the cell's schedule meets, in one line."""
    from dbnrun.theory import cell  # noqa: PLC0415 - sympy takes its time

    print(cell.line(config), file=sys.stderr)


def _agree(recordings: Sequence[Recording]) -> None:
    """Let cells that trained together go on together, from the latest point that every one of them has kept.

    A crash can fall between two cells' checkpoints; each keeps the one before, too.
    """
    common = set.intersection(*(recording.positions for recording in recordings)) if recordings else set()
    if common:
        for recording in recordings:
            recording.go_on_from(max(common))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up, on a device or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, RuntimeError) and "allocate memory" in str(error):
        return True
    # One that ends the capture of a graph comes as the cause of the error that the capture was cut short.
    return error.__context__ is not None and is_out_of_memory(error.__context__)


def _opened(recording: Recording, stack: contextlib.ExitStack) -> dict[str, Outcome]:
    """Open a cell's folder for as long as the stack lives; its outcome already, where there is nothing to train."""
    try:
        if finished := recording.finished():
            return {recording.name: finished}
        stack.enter_context(recording)
    except Finished:
        return _opened(recording, stack)
    except Held as held:
        return {recording.name: Outcome(recording.name, recording.folder, "held", message=str(held))}
    except Exception as error:
        if recording.config.debug:
            raise
        return {recording.name: recording.failure(error)}
    return {}


def _corridor(recordings: Sequence[Recording], device: torch.device) -> None:
    """Build the parts of one training run, train, store rows and a checkpoint at each epoch's end."""
    config = recordings[0].config
    data = load_data(config, device)
    cells = build_run(recordings, data, device)
    leader, (done, _) = cells[0], recordings[0].position
    with progress(config, steps_per_epoch(len(data.train), config.train), recordings[0].position) as bar:
        epoch = done

        def on_step(stand: Callable[[], UnderWay]) -> None:
            bar.update()
            if recordings[0].due():
                keep(recordings, cells, epoch, stand())

        for rows in train(
            [cell.view() for cell in cells],
            leader.optimizer,
            data,
            config.train,
            leader.streams,
            precision=config.precision,
            augment=augmentation(config.dataset),
            epochs_done=done,
            under_way=under_way(recordings[0]),
            on_step=on_step,
            on_evaluation=lambda: bar.set_description("evaluating"),
            captured=captured(config, device),
            compiled=config.compile,
        ):
            epoch = rows[0].epoch
            store(recordings, cells, rows)
            error = rows[0].test_error_pct
            tested = "" if error is None else f", test={error:.2f}%"
            bar.set_postfix_str(f"loss={rows[0].train_loss:.3f}{tested}", refresh=False)
            bar.set_description()  # draws the bar without "evaluating"
    keep_weights(recordings, cells)


def build_run(
    recordings: Sequence[Recording], data: Data, device: torch.device, stacked: int = 1, together: int = 0
) -> list[Cell]:
    """The cells of one training run, at the epoch where they stopped; the first leads, the others follow it.

    For the record: `stacked`, the number of runs that train together, and `together`, of their cells (0: these alone).
    """
    cells = [build_cell(recording.config, data, device) for recording in recordings]
    for recording, cell in zip(recordings, cells, strict=True):
        recording.describe_training(device, stacked, together or len(recordings))
        if recording.state:
            cell.restore(recording.state)
    for cell in cells[1:]:
        share_weights(cells[0].model, cell.model)
    follow(cells[0].model, [cell.model for cell in cells[1:]])
    return cells


def store(recordings: Sequence[Recording], cells: Sequence[Cell], rows: Sequence[EpochRow]) -> None:
    """Record an epoch of one training run: each cell's row, and a checkpoint of each."""
    for recording, row in zip(recordings, rows, strict=True):
        recording.write(row)
    keep(recordings, cells, rows[0].epoch)


def keep(recordings: Sequence[Recording], cells: Sequence[Cell], epoch: int, under_way: UnderWay | None = None) -> None:
    """Write a checkpoint for each cell of one training run: they differ in lambda alone."""
    shared = cells[0].state(epoch, under_way)
    for recording, cell in zip(recordings, cells, strict=True):
        recording.checkpoint({**shared, "model": cell.model.state_dict()})


def under_way(recording: Recording) -> UnderWay | None:
    """Where the epoch stands that a recording goes on in the middle of."""
    kept = recording.state and recording.state.get("under_way")
    return UnderWay(**kept) if kept else None


def keep_weights(recordings: Sequence[Recording], cells: Sequence[Cell]) -> None:
    for recording, cell in zip(recordings, cells, strict=True):
        if recording.config.save_weights:
            recording.weights(cell.model.state_dict())


def build_cell(config: RunConfig, data: Data, device: torch.device) -> Cell:
    """Model, optimizer, schedule and streams of a cell. Raises UserError where they do not fit the data."""
    if config.train.batch_size > len(data.train):
        raise UserError(
            f"train.batch_size={config.train.batch_size}: dataset {config.dataset.name} has {len(data.train)} "
            "training records after the validation split; choose a smaller batch."
        )
    schedule = build_schedule(config.schedule, steps_per_epoch(len(data.train), config.train))
    streams = Streams.of(config.seed, device)
    model = build_model(config.model, data.input_shape, data.num_classes, norm_factory(config.norm, schedule), streams)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload] # convolutions only; faster
    return Cell(config, model, build_optimizer(config.optimizer, model, config.compile), streams, schedule)


def prepare_device(config: RunConfig) -> torch.device:
    """Set threads, determinism and matrix precision as configured; return the device to train on."""
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no CUDA device here; use device=cpu or device=auto.")
    if kind == "cpu" and config.precision == "tf32":
        raise UserError("precision=tf32 is a mode of CUDA devices and none is here: use fp32 or bf16.")
    if config.compile:
        check_compiler(config.model.name, kind)
    if config.threads:
        torch.set_num_threads(config.threads)
    deterministic = kind == "cpu" if config.deterministic == "auto" else bool(config.deterministic)
    if deterministic and kind == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by torch's deterministic matmul
    eager.use_deterministic_algorithms(deterministic, compiled=config.compile)
    # A debugging aid that costs a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    return torch.device(kind)


@functools.lru_cache(maxsize=1)
def _load(key: str, data_dir: Path, device: torch.device) -> Data:
    return datasets.load(DatasetConfig(**json.loads(key)), data_dir).to(device)


def load_data(config: RunConfig, device: torch.device) -> Data:
    """The data on the device; cells of a sweep that stand on the same data share one copy."""
    return _load(json.dumps(asdict(config.dataset)), Path(config.data_dir), device)


def captured(config: RunConfig, device: torch.device) -> bool:
    """Whether training steps are replayed as a captured graph."""
    return config.cuda_graphs and device.type == "cuda"


def augmentation(config: DatasetConfig) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    """What conf/dataset asks to do with each training batch; None for nothing."""
    return flip_crop if config.augment == "flip_crop" else None


def progress(config: RunConfig, steps: int, position: Position) -> tqdm:
    """A bar over the steps of a run, or of a stack of runs, from a position on."""
    initial = position[0] * steps + position[1]
    hidden = None if config.progress else True  # None: hidden where stderr is no terminal
    total = config.train.epochs * steps
    return tqdm(total=total, initial=initial, unit="step", leave=False, disable=hidden, dynamic_ncols=True)
