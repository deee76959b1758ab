"""The corridor: configuration, data, model, optimizer, training, records; for one cell, or several along one run."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dbnrun import interrupt
from dbnrun.config import registry
from dbnrun.config.registry import UserError
from dbnrun.config.schema import RunConfig
from dbnrun.data.dataset import Data
from dbnrun.models.layers import Network
from dbnrun.norm.following import follow, share_weights
from dbnrun.norm.options import Normalizers
from dbnrun.norm.schedules import Alpha
from dbnrun.optim.groups import build_optimizer, load_state
from dbnrun.runs.checkpoint import Position
from dbnrun.runs.lock import Held
from dbnrun.runs.metrics import EpochRow
from dbnrun.runs.run_dir import Finished, RunDir
from dbnrun.runs.status import Outcome
from dbnrun.train import eager
from dbnrun.train.compile import check_compiler
from dbnrun.train.evaluate import View
from dbnrun.train.loop import Alone, Training, TrainingRun, steps_per_epoch
from dbnrun.train.rng import Rngs
from dbnrun.train.stack.program import Stacked
from dbnrun.train.sums import EpochProgress


@dataclass(frozen=True)
class Cell:
    """The built parts of one cell, on its device."""

    config: RunConfig
    model: Network
    optimizer: torch.optim.Optimizer
    rngs: Rngs
    schedule: Alpha

    def view(self) -> View:
        return View(self.model, self.schedule if self.config.norm.scheduled else None)

    def state(self, epoch: int, under_way: EpochProgress | None = None) -> dict[str, Any]:
        """Where everything stands after `epoch` epochs, and so much of the next one, for a checkpoint."""
        return {
            "epoch": epoch,
            "under_way": None if under_way is None else asdict(under_way),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "streams": self.rngs.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put everything back to where a checkpoint was taken."""
        self.model.load_state_dict(state["model"])
        load_state(self.optimizer, state["optimizer"])
        self.rngs.restore(state["streams"])


def run(config: RunConfig) -> Outcome:
    """Train one cell into its folder, from its checkpoint where there is one; a finished cell is left as it is.

    A cell that raises ends with the outcome "failed" (or "refused", where the user can mend it) and its traceback in
    the folder's run.log; with debug=true it raises.
    """
    return run_all([[config]])[0][0]


def run_all(runs: Sequence[Sequence[RunConfig]]) -> list[list[Outcome]]:
    """The same for several training runs, stacked, each given by the cells that share it.

    Cells that share a run are alike but for their schedules, under train_stats=batch. The run trains once and moves
    every cell's lambda; each cell gets the folder, and the numbers bit for bit, that it would have had alone. Runs are
    alike but for what `grouping.stack` lets differ. A cell's seconds are its share of the time. Cells that stopped at
    different points go on apart. Where memory is short, halves go one by one.
    """
    try:
        return _run_all(runs)
    except Exception as error:
        if len(runs) == 1 or not is_out_of_memory(error):
            raise
    half = len(runs) // 2
    return run_all(runs[:half]) + run_all(runs[half:])


def _run_all(runs: Sequence[Sequence[RunConfig]]) -> list[list[Outcome]]:
    """Open every cell's folder, train what is not finished, and say how each cell ended.

    A folder that cannot be opened ends its own cell; an error in training ends all cells that are still open. Raises
    it where debug=true, or where memory is short for several runs.
    """
    interrupt.check()  # importing torch took seconds, and preparing the device may take more
    run_dirs = [[RunDir(config) for config in configs] for configs in runs]
    everyone = list(itertools.chain.from_iterable(run_dirs))
    outcomes: dict[str, Outcome] = {}
    try:
        with contextlib.ExitStack() as stack:
            device = prepare_device(everyone[0].config)
            for run_dir in everyone:
                outcomes |= _opened(run_dir, stack)
            waiting = [run_dir for run_dir in everyone if run_dir.name not in outcomes]
            for run_dir in waiting:
                if run_dir.config.theory:
                    _say_theory(run_dir.config)
            _agree(waiting)
            outcomes |= {r.name: r.finish() for r in waiting if r.diverged}  # cut off just before that
            waiting = [run_dir for run_dir in waiting if run_dir.name not in outcomes]
            for position in sorted({run_dir.position for run_dir in waiting}):
                now = [[r for r in run if r in waiting and r.position == position] for run in run_dirs]
                try:
                    _train([run for run in now if run], device)
                except Exception:
                    interrupt.check()  # Ctrl-C ends child processes, too, such as a compiler: no fault of the cell's
                    raise
                outcomes |= {r.name: r.finish() for r in itertools.chain.from_iterable(now)}
    except (Exception, SystemExit) as error:  # a cell that calls sys.exit ends itself alone
        if everyone[0].config.debug or (len(runs) > 1 and is_out_of_memory(error)):
            raise
        outcomes = {run_dir.name: run_dir.failure(error) for run_dir in everyone} | outcomes
    return [[outcomes[run_dir.name] for run_dir in run] for run in run_dirs]


def _say_theory(config: RunConfig) -> None:
    """Which conditions of the theorem the cell's schedule meets, in one line."""
    from dbnrun.theory import cell  # noqa: PLC0415 - sympy takes its time

    print(cell.line(config), file=sys.stderr)


def _agree(run_dirs: Sequence[RunDir]) -> None:
    """Let cells that trained together go on together, from the latest point that every one of them has kept.

    A crash can fall between two cells' checkpoints; each keeps the one before, too.
    """
    common = set.intersection(*(run_dir.positions for run_dir in run_dirs)) if run_dirs else set()
    if common:
        for run_dir in run_dirs:
            run_dir.go_on_from(max(common))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up, on a device or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, RuntimeError) and "allocate memory" in str(error):
        return True
    # One that ends the capture of a graph comes as the cause of the error that the capture was cut short.
    return error.__context__ is not None and is_out_of_memory(error.__context__)


def _opened(run_dir: RunDir, stack: contextlib.ExitStack) -> dict[str, Outcome]:
    """Open a cell's folder for as long as the stack lives; its outcome already, where there is nothing to train."""
    interrupt.check()
    try:
        if finished := run_dir.finished():
            return {run_dir.name: finished}
        stack.enter_context(run_dir)
    except Finished:
        return _opened(run_dir, stack)
    except Held as held:
        return {run_dir.name: Outcome(run_dir.name, run_dir.folder, "held", message=str(held))}
    except Exception as error:
        if run_dir.config.debug:
            raise
        return {run_dir.name: run_dir.failure(error)}
    return {}


def _train(runs: Sequence[Sequence[RunDir]], device: torch.device) -> None:
    """Build what trains, train, and store rows and a checkpoint at each epoch's end; all runs stand at one position."""
    runs = sorted(runs, key=lambda run: run[0].config.seed)  # networks that see the same batches side by side
    config, position = runs[0][0].config, runs[0][0].position
    data = load_data(config, device)
    together = sum(map(len, runs))
    built = [build_run(run_dirs, data, device, len(runs), together) for run_dirs in runs]
    begun = [u for run in runs if (u := under_way(run[0]))]
    training = training_of(built, data, epochs_done=position[0], under_way=begun, captured=captured(config, device))
    with progress(config, training.steps, position) as bar:
        while not training.over:
            alive = [number for number, lives in enumerate(training.alive) if lives]
            for _ in training.updates():
                bar.update()
                if runs[alive[0]][0].due() or interrupt.noted():
                    _keep_under_way(runs, built, training, alive)
                interrupt.check()
            bar.set_description("evaluating")
            try:
                rows_by_run = training.rows()
            except KeyboardInterrupt:  # evaluating changes nothing: the epoch's updates stand as they stood
                _keep_under_way(runs, built, training, alive)
                raise
            for number, (run_dirs, cells, rows) in enumerate(zip(runs, built, rows_by_run, strict=True)):
                if rows:  # none of a run that has diverged
                    _end_epoch(run_dirs, cells, rows, training, number)
            bar.set_postfix_str(_shown(rows_by_run), refresh=False)
            bar.set_description()  # draws the bar without "evaluating"


def _keep_under_way(
    runs: Sequence[Sequence[RunDir]], built: Sequence[Sequence[Cell]], training: Training, alive: Sequence[int]
) -> None:
    """Write a checkpoint inside an epoch, or before its evaluation, for each run that was alive when it began."""
    stands = training.under_way()
    for number in alive:
        keep(runs[number], built[number], training.epoch - 1, stands[number])


def _end_epoch(
    run_dirs: Sequence[RunDir], cells: Sequence[Cell], rows: Sequence[EpochRow], training: Training, number: int
) -> None:
    """Record an epoch of one training run; end the run where it has diverged, or trained for all its epochs."""
    for run_dir, row in zip(run_dirs, rows, strict=True):
        run_dir.write(row)
    keep(run_dirs, cells, rows[0].epoch)
    diverged = not math.isfinite(rows[0].train_loss)
    if diverged or training.over:
        keep_weights(run_dirs, cells)
    if diverged:
        for run_dir in run_dirs:
            run_dir.diverged_step = training.diverged_at(number)
            run_dir.finish()


def _shown(rows_by_run: Sequence[Sequence[EpochRow]]) -> str:
    """What the bar shows of an epoch: a run's loss and test error, or the range of several runs' losses."""
    rows = [rows[0] for rows in rows_by_run if rows]
    losses = [row.train_loss for row in rows]
    if len(rows_by_run) > 1:
        return f"loss={min(losses):.3f} to {max(losses):.3f}" if losses else ""
    error = rows[0].test_error_pct
    return f"loss={losses[0]:.3f}" + ("" if error is None else f", test={error:.2f}%")


def training_of(built: Sequence[Sequence[Cell]], data: Data, **how: Any) -> Training:
    """The training of several runs, ordered by seed, each given by the cells that share it; `how` as in Training."""
    config = built[0][0].config
    runs = [TrainingRun(c[0].model, c[0].optimizer, c[0].rngs, [cell.view() for cell in c]) for c in built]
    program = Alone(runs[0]) if len(runs) == 1 else Stacked(runs, [cells[0].config.seed for cells in built])
    settings = {"precision": config.precision, "augment": config.dataset.augmentation, "compiled": config.compile}
    return Training(program, runs, data, config.train, **settings, **how)


def build_run(
    run_dirs: Sequence[RunDir], data: Data, device: torch.device, stacked: int = 1, together: int = 0
) -> list[Cell]:
    """The cells of one training run, at the epoch where they stopped; the first leads, the others follow it.

    For the record: `stacked`, the number of runs that train together, and `together`, of their cells (0: these alone).
    """
    cells = [build_cell(run_dir.config, data, device) for run_dir in run_dirs]
    for run_dir, cell in zip(run_dirs, cells, strict=True):
        run_dir.describe_training(device, stacked, together or len(run_dirs))
        if run_dir.state:
            cell.restore(run_dir.state)
    for cell in cells[1:]:
        share_weights(cells[0].model, cell.model)
    follow(cells[0].model, [cell.model for cell in cells[1:]])
    return cells


def keep(run_dirs: Sequence[RunDir], cells: Sequence[Cell], epoch: int, under_way: EpochProgress | None = None) -> None:
    """Write a checkpoint for each cell of one training run: they differ in lambda alone."""
    shared = cells[0].state(epoch, under_way)
    for run_dir, cell in zip(run_dirs, cells, strict=True):
        run_dir.checkpoint({**shared, "model": cell.model.state_dict()})


def under_way(run_dir: RunDir) -> EpochProgress | None:
    """Where the epoch stands that a recording goes on in the middle of."""
    kept = run_dir.state and run_dir.state.get("under_way")
    return EpochProgress(**kept) if kept else None


def keep_weights(run_dirs: Sequence[RunDir], cells: Sequence[Cell]) -> None:
    for run_dir, cell in zip(run_dirs, cells, strict=True):
        if run_dir.config.save_weights:
            run_dir.weights(cell.model.state_dict())


def build_cell(config: RunConfig, data: Data, device: torch.device) -> Cell:
    """Model, optimizer, schedule and streams of a cell. Raises UserError where they do not fit the data."""
    if config.train.batch_size > len(data.train):
        raise UserError(
            f"train.batch_size={config.train.batch_size}: dataset {config.dataset.name} has {len(data.train)} "
            "training records after the validation split; choose a smaller batch."
        )
    schedule = config.schedule.of_steps(steps_per_epoch(len(data.train), config.train))
    rngs = Rngs.of(config.seed, device)
    norm = Normalizers(config.norm, schedule)
    model = config.model.network(data.input_shape, data.num_classes, norm, rngs)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload] # convolutions only; faster
    return Cell(config, model, build_optimizer(config.optimizer, model, config.compile, norm.built), rngs, schedule)


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
    return registry.make("dataset", **json.loads(key)).load(data_dir).to(device)


def load_data(config: RunConfig, device: torch.device) -> Data:
    """The data on the device; cells of a sweep that stand on the same data share one copy."""
    data = _load(json.dumps(asdict(config.dataset)), Path(config.data_dir), device)
    interrupt.check()
    return data


def captured(config: RunConfig, device: torch.device) -> bool:
    """Whether training steps are replayed as a captured graph."""
    return config.cuda_graphs and device.type == "cuda"


def progress(config: RunConfig, steps: int, position: Position) -> tqdm:
    """A bar over the steps of a run, or of a stack of runs, from a position on."""
    initial = position[0] * steps + position[1]
    hidden = None if config.progress else True  # None: hidden where stderr is no terminal
    total = config.train.epochs * steps
    return tqdm(total=total, initial=initial, unit="step", leave=False, disable=hidden, dynamic_ncols=True)
