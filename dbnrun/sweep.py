"""Hydra's grid sweep with every cell checked, duplicates folded and finished cells left out, before one trains."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from tqdm import tqdm

from dbnrun import records
from dbnrun.config import RunConfig, UserError, cell_of, checked, signature
from dbnrun.data import expected_digest
from dbnrun.records import Outcome

# How many cells the sweep in this process trains, for "[3/12]"; 0 outside a sweep, or in a launcher's worker.
cells_to_train = 0


class CellFailed(Exception):
    """A cell, or some cells of a sweep, failed. Exit code 1."""


class CellSweeper(Sweeper):
    """Launches each distinct unfinished cell of a grid once, through whichever launcher Hydra is told to use.

    The task returns a records.Outcome. `params` are the overrides that conf/experiment files sweep; the command's
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
        parser = OverridesParser.create(config_loader=self.loader)
        own = [f"{key}={value}" for key, value in self.params.items()]
        jobs = grid(parser.parse_overrides([*own, *arguments]))
        cells: dict[str, tuple[list[str], RunConfig]] = {}
        for job in jobs:
            config = composed(self.loader, self.master, job)
            cells.setdefault(signature(cell_of(config), expected_digest(config.dataset.name)), (job, config))
        new = [job for sig, (job, config) in cells.items() if not _is_finished(config, sig)]
        folded = len(jobs) - len(cells)
        _say(
            f"{_count(len(cells), 'cell')}: {len(new)} to train, {len(cells) - len(new)} finished before"
            + (f"; {_count(folded, 'duplicate')} folded" if folded else "")
        )
        cells_to_train = len(new)
        returns = list(self.runner.launch(new, initial_job_idx=0)) if new else []
        _conclude(returns)
        return returns


def composed(loader: ConfigLoader, master: DictConfig, job: Sequence[str]) -> RunConfig:
    """The checked configuration of one cell of a sweep."""
    config = loader.load_sweep_config(master, list(job))
    with open_dict(config):
        del config["hydra"]
    return checked(config)


def grid(overrides: Sequence[Override]) -> list[list[str]]:
    """Every combination of the values that the overrides sweep over; of two for one key the later one counts."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise UserError(f"{override.input_line}: expected values to sweep over, such as {key}=1,2,3 or range(1,4).")
    return [list(job) for job in itertools.product(*values.values())]


def _is_finished(config: RunConfig, sig: str) -> bool:
    folder = records.run_folder(Path(config.results_dir), cell_of(config), sig)
    return records.read_manifest(folder).get("status") in records.FINISHED


def _conclude(returns: Sequence[JobReturn]) -> None:
    """Raise CellFailed where a cell of the sweep failed; each has said so itself."""
    failed = sum(r.status == JobStatus.FAILED or r.return_value.status in ("failed", "refused") for r in returns)
    if failed:
        raise CellFailed(f"{failed} of {_count(len(returns), 'cell')} failed, each named above.")


def announce(outcome: Outcome, number: int) -> None:
    """One line for a cell that ended, with its number in the sweep."""
    tqdm.write(f"[{number}/{cells_to_train}] " * bool(cells_to_train) + sentence(outcome), file=sys.stderr)


def sentence(outcome: Outcome) -> str:
    """How a cell ended; the folder bears its name."""
    if outcome.status == "held":
        return f"left to {outcome.message}: {outcome.folder}"
    if outcome.status in ("refused", "failed"):
        log = outcome.folder / "run.log"
        return f"{outcome.status}: {outcome.message}" + (f" (traceback in {log})" if log.exists() else "")
    ended = f"{outcome.message} before" if outcome.status == "skipped" else outcome.status
    result = f", test error {outcome.row.test_error_pct:.2f} % after epoch {outcome.row.epoch}" if outcome.row else ""
    return f"{ended}{result}: {outcome.folder}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
