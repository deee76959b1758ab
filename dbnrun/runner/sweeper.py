"""Hydra's grid sweep with every cell checked, duplicates folded and finished cells left out, before one trains."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from tqdm import tqdm

from dbnrun import interrupt
from dbnrun.config.compose import Composer
from dbnrun.config.registry import UserError, one_line
from dbnrun.config.schema import RunConfig
from dbnrun.runner.plan import Plan, PlannedCell, duplicates, plan, planned, plural, statuses
from dbnrun.runs import layout
from dbnrun.runs.run_dir import RunDir, lacking
from dbnrun.runs.status import Outcome, RunStatus

# How many cells the sweep under way in this process trains, for "[3/12]"; 0 outside a sweep, or in a launcher's worker.
cells_to_train = 0


FAILED = ("failed", "refused")


class CellFailed(Exception):
    """A cell, or some cells of a sweep, failed or diverged. Exit code 1."""


MENDED = "a smaller optimizer.lr may help; retry=diverged trains diverged runs again"


class CellSweeper(Sweeper):
    """Launches each distinct unfinished cell of a grid once, through whichever launcher Hydra is told to use.

    The task returns an Outcome. `params` are the overrides that conf/experiment files sweep; the command's
    own come after them and win.
    """

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader = hydra_context.config_loader
        self.master = config
        self.runner = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        global cells_to_train  # noqa: PLW0603 - read by the task, which Hydra calls with a config alone
        if not isinstance(self.params, Mapping):
            raise UserError(f"hydra.sweeper.params={self.params}: expected keys with the values to sweep over.")
        asked = plan(Composer(self.loader, self.master), self.params, arguments)
        retry = asked.cells[0].config.retry
        pairs = list(zip(asked.cells, statuses(asked.cells), strict=True))
        ended = [name for name in layout.FINISHED if name != retry]
        finished = [(cell, how) for cell, how in pairs if how.name in ended]
        new = [(cell, how) for cell, how in pairs if how.name not in (*ended, "recorded", "left")]
        # Cells whose process died silently go last: they may have killed it.
        new.sort(key=lambda pair: pair[1].name == "unfinished" and _died(pair[0].folder))
        _say(_summary(asked, pairs, finished, new))
        without = Counter(setting for cell, _ in finished for setting in lacking(cell.config, cell.folder))
        for setting, count in without.items():
            _say(f"{setting}=true: {plural(count, 'run')} finished without it; force=true trains again")
        cells = [cell for cell, _ in new]
        if any(cell.config.fail_fast for cell in cells) and not self._here:
            raise UserError(
                "fail_fast=true: this launcher submits all runs at once and cannot stop them; leave fail_fast out, or "
                "train in this process (hydra/launcher=fused, without inner)."
            )
        _check_inputs([cell.config for cell in cells])
        for cell, how in new:
            if how.name == "forced":
                RunDir(cell.config).begin_anew()
        cells_to_train = len(cells)
        try:
            returns = self._launched(cells) if cells else []
        finally:
            cells_to_train = 0
        # The same command ends with the same exit code, whether it trained a cell that diverged or finds it.
        before = 0 if retry else sum(how.name == "diverged" for _, how in finished)
        _conclude([outcome_of(returned) for returned in returns], len(cells), before)
        return returns

    @property
    def _here(self) -> bool:
        """Whether the fused launcher trains in this process: an error is then ours, and a sweep can stop early."""
        return self.master.hydra.launcher.get("inner", "") is None

    def _launched(self, cells: Sequence[PlannedCell]) -> list[JobReturn]:
        """Hand the cells to the launcher. If it fails, say so and count the statuses on disk."""
        try:
            # Another launcher waits for its jobs without looking whether to stop.
            with contextlib.nullcontext() if self._here else interrupt.raising():
                return list(self.runner.launch([_without_force(cell.job) for cell in cells], initial_job_idx=0))
        except Exception as error:
            if self._here or isinstance(error, UserError) or cells[0].config.debug:
                raise
            _say(f"The launcher stopped at a job: {one_line(error)}")
        ended = Counter(cell.status().name for cell in cells)
        _say(f"{plural(len(cells), 'run')}: " + ", ".join(f"{count} {name}" for name, count in ended.items()))
        raise CellFailed(
            "jobs that are queued or running go on; `dbnrun status` shows them. Repeat the command to train the rest."
        )


def _without_force(job: Sequence[str]) -> list[str]:
    """A cell's overrides for who trains it: a job that starts twice must not train again what it has finished."""
    return [line for line in job if not line.startswith("force=")]


def _check_inputs(configs: Sequence[RunConfig]) -> None:
    """Load the user's own files, and try what only a trial shows, before the first run: a late mistake shows at once.

    What runs no code of the user's is tried on the CPU: the device may be another machine's.
    """
    inputs = [each for each in configs if each.own or each.dataset.test_records is None or each.model.tried]
    inputs = list({str(replace(each, seed=0)): each for each in inputs}.values())
    if not inputs:
        return
    import torch  # noqa: PLC0415

    from dbnrun.runner import build, own_check  # noqa: PLC0415 - torch

    for config in sorted(inputs, key=lambda config: str(config.dataset)):  # one data set is kept at a time
        device = build.prepare_device(config) if config.own else torch.device("cpu")
        data = build.load_data(config, device)
        if config.own:
            own_check.check(config, data, device)
        elif config.model.tried:
            build.build_cell(config, data, device)


Pairs = Sequence[tuple[PlannedCell, RunStatus]]


def _summary(asked: Plan, pairs: Pairs, finished: Pairs, new: Pairs) -> str:
    """'6 runs: 2 to train, 3 finished before, 1 in the records; 1 duplicate left out'."""
    counts = Counter(how.name for _, how in pairs)
    text = f"{plural(len(pairs), 'run')}: {len(new)} to train, {len(finished)} finished before"
    text += f", {counts['recorded']} in the records" if counts["recorded"] else ""
    text += f", {counts['left']} skipped by retry={asked.cells[0].config.retry}" if counts["left"] else ""
    return text + (f"; {duplicates(asked.folded)}" if asked.folded else "")


def _died(folder: Path) -> bool:
    return layout.read_manifest(folder).get("status") == "running"


def _conclude(outcomes: Sequence[Outcome], asked: int, diverged_before: int) -> None:
    """Say in one table how the cells of a sweep ended. Raises CellFailed where one failed or diverged."""
    counts = Counter(outcome.status for outcome in outcomes)
    if len(outcomes) < asked:
        counts["not started"] = asked - len(outcomes)
    if asked:
        _say(f"{plural(asked, 'run')}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    failed = [outcome for outcome in outcomes if outcome.status in FAILED]
    for outcome in failed:
        _say(f"  {outcome.status} {outcome.name}: {outcome.message}" + _log_of(outcome, "\n    log: {}"))
    diverged = [outcome for outcome in outcomes if outcome.diverged]
    for outcome in diverged:
        where = f": the training loss is not finite from {outcome.where} on" if outcome.where else ""
        _say(f"  diverged {outcome.name}{where}")
    wrong = []
    if failed:
        refused = all(outcome.status == "refused" for outcome in failed)
        then = "correct what was refused and repeat the command" if refused else "the same command tries them again"
        wrong.append(f"{len(failed)} of {plural(asked, 'run')} failed; {then}.")
    if diverged:
        also = f", and {diverged_before} before" if diverged_before else ""
        wrong.append(f"{len(diverged)} of {plural(asked, 'run')} diverged{also}; {MENDED}.")
    elif diverged_before:
        wrong.append(f"{plural(diverged_before, 'run')} diverged before (`dbnrun status` shows where); {MENDED}.")
    if wrong:
        raise CellFailed(" ".join(wrong))


def outcome_of(returned: JobReturn) -> Outcome:
    """How a launcher's job ended: its Outcome, or a failed one where it raised something instead."""
    if returned.status == JobStatus.COMPLETED and isinstance(returned.return_value, Outcome):
        return returned.return_value
    error = returned._return_value
    name = " ".join(returned.overrides or [])
    return Outcome(name, Path(), "failed", message=one_line(error))


def left_alone(config: RunConfig) -> Outcome | None:
    """The outcome "left" for a cell that retry=… does not select."""
    if config.retry is None:
        return None
    cell = planned(config)
    how = cell.status().name
    if how == config.retry:
        return None
    message = f"skipped ({how}): retry={config.retry} trains only {config.retry} runs"
    return Outcome(cell.folder.name, cell.folder, "left", message=message)


def announce(outcome: Outcome, number: int) -> None:
    """One line for a cell that ended, with its number in the sweep."""
    place = f"[{number}/{cells_to_train}] " if cells_to_train else ""
    tqdm.write(place + sentence(outcome), file=sys.stderr)


def sentence(outcome: Outcome) -> str:
    """How a cell ended; the folder bears its name."""
    if outcome.status == "held":
        return f"skipped: {outcome.message} trains it: {outcome.folder}"
    if outcome.status == "left":
        return f"{outcome.message}: {outcome.folder}"
    if outcome.status in FAILED:
        return f"{outcome.status}: {outcome.message}" + _log_of(outcome, " (traceback in {})")
    before = outcome.status == "skipped"
    ended = f"{outcome.message} before" if before else outcome.status
    ended += f" at {outcome.where}: the training loss is not finite" if outcome.where else ""
    ended = f"skipped ({ended})" if before else ended
    row, result = outcome.row, ""
    if row and row.test_error_pct is not None:
        result = f", test error {row.test_error_pct:.2f} % after epoch {row.epoch}"
    return f"{ended}{result}: {outcome.folder}"


def _log_of(outcome: Outcome, words: str) -> str:
    log = outcome.folder / "run.log"
    # Not Path.exists, which raises where the name is too long.
    return words.format(log) if outcome.status == "failed" and os.path.exists(log) else ""  # noqa: PTH110


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
