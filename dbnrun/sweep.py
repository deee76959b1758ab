"""Hydra's grid sweep with every cell checked, duplicates folded and finished cells left out, before one trains."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf, open_dict

from dbnrun import records
from dbnrun.config import RunConfig, cell_of, checked, signature
from dbnrun.data import expected_digest

# How many cells the sweep in this process trains, for "[3/12]"; 0 outside a sweep, or in a launcher's worker.
cells_to_train = 0


class CellFailed(Exception):
    """A cell, or some cells of a sweep, failed. Exit code 1."""


class CellSweeper(BasicSweeper):
    """Launches each distinct unfinished cell of a grid once, through whichever launcher Hydra is told to use."""

    def sweep(self, arguments: list[str]) -> Any:
        global cells_to_train  # noqa: PLW0603 - read by the task, which Hydra calls with a config alone
        assert self.hydra_context is not None and self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        grid = self.split_arguments(overrides, None)[0]
        cells = {}
        for job in grid:
            config = self._composed(job)
            cells.setdefault(signature(cell_of(config), expected_digest(config.dataset.name)), (job, config))
        new = [job for sig, (job, config) in cells.items() if not _is_finished(config, sig)]
        folded = len(grid) - len(cells)
        _say(
            f"{_count(len(cells), 'cell')}: {len(new)} to train, {len(cells) - len(new)} finished before"
            + (f"; {_count(folded, 'duplicate')} folded" if folded else "")
        )
        cells_to_train = len(new)
        returns = list(self.launcher.launch(new, initial_job_idx=0)) if new else []
        _conclude(returns)
        return returns

    def _composed(self, job: Sequence[str]) -> RunConfig:
        assert self.hydra_context is not None and self.config is not None
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(job))
        with open_dict(composed):
            del composed["hydra"]
        OmegaConf.resolve(composed)
        return checked(composed)


def _is_finished(config: RunConfig, sig: str) -> bool:
    folder = records.run_folder(Path(config.results_dir), cell_of(config), sig)
    return records.read_manifest(folder).get("status") in records.FINISHED


def _conclude(returns: list[JobReturn]) -> None:
    """One closing line for the sweep; CellFailed where a cell failed."""
    failed = [r for r in returns if r.status == JobStatus.FAILED]
    if failed:
        raise CellFailed(
            f"{len(failed)} of {_count(len(returns), 'cell')} failed, each named above; the others are recorded."
        )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
