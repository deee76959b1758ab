"""One run after another from its folder's opening to its end: open, train, record each epoch, finish.

The whole story of a cell is here; what it calls is in build.py (what trains), train/ (how) and runs/ (what is kept).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from dbnrun import interrupt
from dbnrun.config.schema import RunConfig
from dbnrun.data.dataset import Data
from dbnrun.norm.tracking import share_weights, track_schedules
from dbnrun.runner import own_check
from dbnrun.runner.build import Cell, build_cell, captured, device_facts, load_data, prepare_device, training_of
from dbnrun.runner.progress import Progress
from dbnrun.runs.lock import Held
from dbnrun.runs.metrics import EpochRow
from dbnrun.runs.run_dir import Finished, RunDir
from dbnrun.runs.status import Outcome
from dbnrun.theory import cell as theory
from dbnrun.train.loop import Training
from dbnrun.train.sums import EpochProgress


def run(config: RunConfig) -> Outcome:
    """Train one cell into its folder, from its checkpoint where there is one; a finished cell is left as it is.

    A cell that raises ends with the outcome "failed" (or "refused", where the user can mend it) and its traceback in
    the folder's run.log; with debug=true it raises.
    """
    return run_all([[config]])[0][0]


def run_all(runs: Sequence[Sequence[RunConfig]]) -> list[list[Outcome]]:
    """`run` for a stack of training runs, each given as the list of cells that share it.

    Cells that share a run differ only in schedule and init, under train_stats=batch. The run trains once and moves
    every cell's lambda; each cell gets the folder, and the numbers bit for bit, that it would have had alone. Runs
    differ only in what `grouping.stack` allows. A cell's seconds are its share of the time. Cells that stopped at
    different points continue apart. Out of memory, each half is tried in turn.
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
        with contextlib.ExitStack() as exits:
            device = prepare_device(everyone[0].config)
            for run_dir in everyone:
                outcomes |= _opened(run_dir, exits)
            waiting = [run_dir for run_dir in everyone if run_dir.name not in outcomes]
            for run_dir in waiting:
                if run_dir.config.theory:
                    print(theory.line(run_dir.config), file=sys.stderr)
            _agree(waiting)
            outcomes |= {r.name: r.finish() for r in waiting if r.diverged}  # killed before it was marked as diverged
            waiting = [run_dir for run_dir in waiting if run_dir.name not in outcomes]
            for position in sorted({run_dir.position for run_dir in waiting}):
                now = [[r for r in run if r in waiting and r.position == position] for run in run_dirs]
                _say_where(itertools.chain.from_iterable(now))
                try:
                    _train([run for run in now if run], device)
                except Exception:
                    interrupt.check()  # Ctrl-C ends child processes, too, such as a compiler: no fault of the cell's
                    raise
                outcomes |= {r.name: r.finish() for r in itertools.chain.from_iterable(now)}
    except (Exception, SystemExit) as error:  # a cell that calls sys.exit ends itself alone
        if everyone[0].config.debug or (len(runs) > 1 and is_out_of_memory(error)):
            raise
        outcomes = {r.name: r.outcome or r.failure(error) for r in everyone} | outcomes
    return [[outcomes[run_dir.name] for run_dir in run] for run in run_dirs]


def _agree(run_dirs: Sequence[RunDir]) -> None:
    """Continue the cells together from the latest position of which all have a checkpoint, if there is one.

    A crash can fall between two cells' checkpoints; each keeps the one before, too.
    """
    if run_dirs and (common := set.intersection(*(set(run_dir.states) for run_dir in run_dirs))):
        for run_dir in run_dirs:
            run_dir.go_on_from(max(common))


def _say_where(run_dirs: Iterable[RunDir]) -> None:
    """Print which epoch each unfinished run continues after; nothing for a new one."""
    for run_dir in run_dirs:
        epoch, updates = run_dir.position
        if (epoch, updates) != (0, 0):
            within = f" and {updates} updates" if updates else ""
            print(
                f"dbnrun: {run_dir.name}: continues after epoch {epoch} of {run_dir.config.train.epochs}{within}",
                file=sys.stderr,
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up, on a device or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, RuntimeError) and "allocate memory" in str(error):
        return True
    # If it aborts the capture of a CUDA graph, it is the context of the capture's error.
    return error.__context__ is not None and is_out_of_memory(error.__context__)


def _opened(run_dir: RunDir, exits: contextlib.ExitStack) -> dict[str, Outcome]:
    """Enter a cell's folder in `exits`; return its outcome if there is nothing to train."""
    interrupt.check()
    try:
        if finished := run_dir.finished():
            return {run_dir.name: finished}
        exits.enter_context(run_dir)
    except Finished:
        return _opened(run_dir, exits)
    except Held as held:
        return {run_dir.name: Outcome(run_dir.name, run_dir.folder, "held", message=str(held))}
    except Exception as error:
        if run_dir.config.debug:
            raise
        return {run_dir.name: run_dir.failure(error)}
    return {}


@dataclass(frozen=True)
class _Run:
    """A training run, and the folders of the cells that share it: the first cell trains, the others follow."""

    run_dirs: Sequence[RunDir]
    cells: Sequence[Cell]
    data: Data

    @classmethod
    def built(cls, run_dirs: Sequence[RunDir], data: Data, device: torch.device) -> _Run:
        """The run at the point where it stopped."""
        cells = [build_cell(run_dir.config, data, device) for run_dir in run_dirs]
        for run_dir, cell in zip(run_dirs, cells, strict=True):
            if run_dir.state:
                cell.restore(run_dir.state)
        for cell in cells[1:]:
            share_weights(cells[0].model, cell.model)
        track_schedules(cells[0].model, [cell.model for cell in cells[1:]])
        return cls(run_dirs, cells, data)

    @property
    def under_way(self) -> EpochProgress | None:
        """Progress in the epoch that the run stopped in; None at an epoch's end."""
        state = self.run_dirs[0].state
        return EpochProgress(**state["under_way"]) if state and state.get("under_way") else None

    def keep(self, epoch: int, under_way: EpochProgress | None = None) -> None:
        """Write a checkpoint for each cell: they differ in lambda alone."""
        shared = self.cells[0].state(epoch, under_way)
        for run_dir, cell in zip(self.run_dirs, self.cells, strict=True):
            run_dir.checkpoint({**shared, "model": cell.model.state_dict()})

    def record(self, rows: Sequence[EpochRow]) -> None:
        """Record an epoch: each cell's row, and a checkpoint."""
        for run_dir, cell, row in zip(self.run_dirs, self.cells, rows, strict=True):
            probes = run_dir.config.probe and row.test_loss is not None  # where the epoch was evaluated
            run_dir.write(row, cell.probe(row.epoch, self.data) if probes else None)
        self.keep(rows[0].epoch)

    def keep_weights(self) -> None:
        for run_dir, cell in zip(self.run_dirs, self.cells, strict=True):
            if run_dir.config.save_weights:
                run_dir.keep_weights(cell.model.state_dict())

    def diverged(self, step: int) -> None:
        """End the run; its loss was first not finite at update `step`."""
        for run_dir in self.run_dirs:
            run_dir.diverged_step = step
            run_dir.finish()


def _keep_under_way(runs: Sequence[_Run], training: Training, alive: Sequence[int]) -> None:
    """Write a checkpoint inside the epoch for the runs whose loss is still finite."""
    under_way = training.under_way()
    for run in alive:
        runs[run].keep(training.epoch - 1, under_way[run])


def _train(groups: Sequence[Sequence[RunDir]], device: torch.device) -> None:
    """Train runs that stand at one position, each given by the folders of its cells; record every epoch."""
    groups = sorted(groups, key=lambda group: group[0].config.seed)  # networks that see the same batches side by side
    config, position = groups[0][0].config, groups[0][0].position
    folders = list(itertools.chain.from_iterable(groups))
    data = load_data(config, device)
    for run_dir in folders:
        own_check.check(run_dir.config, data, device)
    runs = [_Run.built(group, data, device) for group in groups]
    facts = device_facts(config, device)
    if config.dataset.test_records is None:  # not known before the files are
        facts["test_records"] = len(data.test)
    for run_dir in folders:
        run_dir.describe_training(**facts, stacked=len(runs), together=sum(map(len, groups)))
    begun = [progress for run in runs if (progress := run.under_way)]
    how = {"epochs_done": position[0], "under_way": begun, "captured": captured(config, device)}
    training = training_of([run.cells for run in runs], data, **how)
    for run_dir in folders:
        run_dir.show_live()
    with Progress([run_dir.name for run_dir in folders], config, training.steps, position) as progress:
        while not training.over:
            alive = [run for run, lives in enumerate(training.alive) if lives]

            for _ in training.updates():
                progress.update()
                if groups[alive[0]][0].due() or interrupt.noted():
                    _keep_under_way(runs, training, alive)
                interrupt.check()
            progress.evaluating()
            try:
                rows_by_run = training.rows()
            except KeyboardInterrupt:  # evaluating changes nothing: the epoch's updates stand as they stood
                _keep_under_way(runs, training, alive)
                raise
            for number in alive:
                rows = rows_by_run[number]
                diverged = not math.isfinite(rows[0].train_loss)
                if diverged or training.over:  # before the last row: a run that has it is finished
                    runs[number].keep_weights()
                runs[number].record(rows)
                if diverged:
                    runs[number].diverged(training.diverged_at(number))
            progress.epoch(training.epoch, rows_by_run)
