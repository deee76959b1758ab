"""hydra/launcher=fused: cells that share a training run, or a stack, trained together; here, or each stack as a job."""

from __future__ import annotations

import base64
import copy
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from dbnrun.config.compose import Composer
from dbnrun.config.registry import UserError, nearest
from dbnrun.runner import worker
from dbnrun.runner.grouping import grouped
from dbnrun.runner.sweeper import FAILED, announce, outcome_of
from dbnrun.runs.status import Outcome


class FusedLauncher(Launcher):
    """Trains each distinct training run of a sweep once, and up to `max_stack` runs of a kind as one program.

    Every cell gets the folder it would have had alone; with max_stack=1 the same numbers bit for bit. "auto": as many
    as fit into a quarter of the free memory, at most the network's `most_stacked`. `inner` names another launcher that
    trains each stack as one job, `inner_settings` what to change in its configuration.
    """

    def __init__(
        self, max_stack: int | str = 1, inner: str | None = None, inner_settings: Mapping[str, Any] | None = None
    ) -> None:
        self.max_stack = max_stack
        self.inner = inner
        self.inner_settings = dict(inner_settings or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        self.loader = hydra_context.config_loader
        self.master = config
        if self.inner is None:
            return
        if self.inner == "fused" or self.max_stack == "auto":
            raise UserError(
                f"hydra.launcher.inner={self.inner}, max_stack={self.max_stack}: expected a launcher other than fused, "
                "and a number for max_stack; free memory is unknown until the job starts."
            )
        master = with_launcher(self.loader, config, self.inner, self.inner_settings)
        self.jobs = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=StackTask(self.loader, config), config=master
        )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        if self.max_stack != "auto" and (not isinstance(self.max_stack, int) or self.max_stack < 1):
            raise UserError(f"hydra.launcher.max_stack={self.max_stack}: expected auto, or a number of at least 1.")
        composer = Composer(self.loader, self.master)
        configs = [composer(job) for job in job_overrides]
        if self.inner is not None:
            groups = grouped(configs, lambda _: int(self.max_stack))
            return self._as_jobs([list(chain.from_iterable(runs)) for runs in groups], job_overrides, initial_job_idx)
        from dbnrun.runner.execute import run_all  # noqa: PLC0415
        from dbnrun.runner.memory import fitting  # noqa: PLC0415 - torch, not needed until something trains

        outcomes: dict[int, Outcome] = {}
        limit = fitting if self.max_stack == "auto" else lambda _: int(self.max_stack)
        for runs in grouped(configs, limit):
            results = run_all([[configs[position] for position in run] for run in runs])
            for position, outcome in zip(chain.from_iterable(runs), chain.from_iterable(results), strict=True):
                outcomes[position] = outcome
                announce(outcome, initial_job_idx + len(outcomes))
            if configs[0].fail_fast and any(outcome.status in FAILED for outcome in outcomes.values()):
                break
        return [_returned(outcomes[position]) for position in sorted(outcomes)]

    def _as_jobs(
        self, stacks: Sequence[Sequence[int]], job_overrides: Sequence[Sequence[str]], first: int
    ) -> Sequence[JobReturn]:
        """Launch each stack, given by its cells' positions, as one job of the inner launcher."""
        jobs = [[packed([job_overrides[position] for position in stack])] for stack in stacks]
        print(f"{len(job_overrides)} runs as {len(jobs)} jobs of {self.inner}", file=sys.stderr, flush=True)
        outcomes: dict[int, Outcome] = {}
        for stack, returned in zip(stacks, self.jobs.launch(jobs, first), strict=True):
            whole = returned.status == JobStatus.COMPLETED and isinstance(returned._return_value, list)
            ended = returned._return_value if whole else [outcome_of(returned)] * len(stack)
            for position, outcome in zip(stack, ended, strict=True):
                outcomes[position] = outcome
                announce(outcome, first + len(outcomes))
        return [_returned(outcomes[position]) for position in sorted(outcomes)]


class StackTask:
    """What Hydra runs in a job of the inner launcher: the cells of one stack. Pickled and sent to where it runs."""

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader = loader
        self.master = master

    def __call__(self, config: DictConfig) -> list[Outcome]:
        composer = Composer(self.loader, self.master)
        configs = [composer(overrides) for overrides in unpacked(config[CELLS])]
        with worker.job(configs[0].threads):
            from dbnrun.runner.execute import run_all  # noqa: PLC0415

            (runs,) = grouped(configs, lambda _: len(configs))
            results = run_all([[configs[position] for position in run] for run in runs])
        ended = dict(zip(chain.from_iterable(runs), chain.from_iterable(results), strict=True))
        return [ended[position] for position in range(len(configs))]


CELLS = "cells_of_stack"  # the key that carries a job's cells; base64, for they hold quotes and commas of their own


def packed(cells: Sequence[Sequence[str]]) -> str:
    """A stack's cells, each its overrides, as one override of Hydra's."""
    text = base64.urlsafe_b64encode(json.dumps([list(cell) for cell in cells]).encode()).decode()
    return f"+{CELLS}='{text}'"


def unpacked(text: str) -> list[list[str]]:
    """The words of each run of a job, from the text that the job was given."""
    return json.loads(base64.urlsafe_b64decode(text))


def with_launcher(loader: ConfigLoader, config: DictConfig, name: str, settings: Mapping[str, Any]) -> DictConfig:
    """A sweep's configuration with another launcher in it. Raises UserError where there is none of that name."""
    known = loader.get_group_options("hydra/launcher")
    if name not in known:
        raise UserError(
            f"hydra.launcher.inner={name}: expected one of {', '.join(sorted(known))}.{nearest(name, known)} "
            "Others come with pip install 'dbnrun[joblib]', 'dbnrun[slurm]' or 'dbnrun[ray]'."
        )
    composed = loader.load_configuration(
        config.hydra.job.config_name, [f"hydra/launcher={name}"], run_mode=RunMode.MULTIRUN
    )
    changed = copy.deepcopy(config)
    launcher = composed.hydra.launcher
    with open_dict(changed), open_dict(launcher):
        for key in settings:
            if key not in launcher:
                raise UserError(
                    f"hydra.launcher.inner_settings.{key}: {name} has no such setting.{nearest(key, launcher)}"
                )
        changed.hydra.launcher = OmegaConf.merge(OmegaConf.to_container(launcher), settings)
    return changed


def _returned(outcome: Outcome) -> JobReturn:
    returned = JobReturn()
    returned.status = JobStatus.COMPLETED
    returned.return_value = outcome
    return returned
