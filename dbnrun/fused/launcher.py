"""hydra/launcher=fused: the cells of a sweep in this process, those that share a training run together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dbnrun.config import UserError
from dbnrun.fused.grouping import grouped
from dbnrun.plan import Composer
from dbnrun.records import Outcome
from dbnrun.sweep import FAILED, announce


class FusedLauncher(Launcher):
    """Trains each distinct training run of a sweep once, and up to `max_stack` runs of a kind as one program.

    Every cell gets the folder it would have had alone; with max_stack=1 the same numbers bit for bit. "auto" takes as
    many as fit into a quarter of the free memory and gain by it.
    """

    def __init__(self, max_stack: int | str = 1) -> None:
        self.max_stack = max_stack

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        self.loader = hydra_context.config_loader
        self.master = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        if self.max_stack != "auto" and (not isinstance(self.max_stack, int) or self.max_stack < 1):
            raise UserError(f"hydra.launcher.max_stack={self.max_stack}: expected auto, or a number of at least 1.")
        from dbnrun.fused.memory import fitting  # noqa: PLC0415 - torch, not needed until something trains
        from dbnrun.fused.run import run_stack  # noqa: PLC0415

        composer = Composer(self.loader, self.master)
        configs = [composer(job) for job in job_overrides]
        outcomes: dict[int, Outcome] = {}
        limit = fitting if self.max_stack == "auto" else lambda _: int(self.max_stack)
        for runs in grouped(configs, limit):
            results = run_stack([[configs[position] for position in run] for run in runs])
            for position, outcome in zip(chain.from_iterable(runs), chain.from_iterable(results), strict=True):
                outcomes[position] = outcome
                announce(outcome, initial_job_idx + len(outcomes))
            if configs[0].fail_fast and any(outcome.status in FAILED for outcome in outcomes.values()):
                break
        return [_returned(outcomes[position]) for position in sorted(outcomes)]


def _returned(outcome: Outcome) -> JobReturn:
    returned = JobReturn()
    returned.status = JobStatus.COMPLETED
    returned.return_value = outcome
    return returned
