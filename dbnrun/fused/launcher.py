"""hydra/launcher=fused: the cells of a sweep in this process, those that share a training run together."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dbnrun.fused.grouping import by_trajectory
from dbnrun.records import Outcome
from dbnrun.sweep import announce, composed


class FusedLauncher(Launcher):
    """Trains each distinct training run of a sweep once. Every cell gets the folder it would have had alone."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        self.loader = hydra_context.config_loader
        self.master = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from dbnrun.experiment import run_together  # noqa: PLC0415 - torch, not needed until something trains

        configs = [composed(self.loader, self.master, job) for job in job_overrides]
        outcomes: dict[int, Outcome] = {}
        for positions in by_trajectory(configs):
            for position, outcome in zip(positions, run_together([configs[p] for p in positions]), strict=True):
                outcomes[position] = outcome
                announce(outcome, initial_job_idx + len(outcomes))
        return [_returned(outcomes[position]) for position in range(len(configs))]


def _returned(outcome: Outcome) -> JobReturn:
    returned = JobReturn()
    returned.status = JobStatus.COMPLETED
    returned.return_value = outcome
    return returned
