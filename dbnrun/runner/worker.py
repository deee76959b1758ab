"""A cell, or a stack of them, as a job of somebody else's launcher: its share of the machine, and how it is stopped.

Imports no torch before it must: a job's number of threads is settled first.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from dbnrun import interrupt
from dbnrun.runner import sweeper


def in_worker() -> bool:
    """Whether this process trains for a sweep of another process."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN and not sweeper.cells_to_train


@contextlib.contextmanager
def job(threads: int | None) -> Iterator[None]:
    """Wrap a launcher's job: take its cores and its device, and shut down cleanly when stopped.

    `threads` is what the user asked for, and wins.
    """
    hydra = HydraConfig.get()
    with _stopped_in_order():
        cpus = cpus_of(hydra.launcher, os.environ)
        if cpus and not threads:
            import torch  # noqa: PLC0415

            torch.set_num_threads(cpus)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if (device := device_of(hydra.job.num, visible.split(",") if visible else _devices())) is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = device
        yield


def cpus_of(launcher: Mapping[str, Any], environment: Mapping[str, str]) -> int | None:
    """The cores that belong to this job; None where nobody says, as under joblib, which divides them itself."""
    told = environment.get("SLURM_CPUS_PER_TASK") or launcher.get("cpus_per_task")
    return int(told) if told else None


def device_of(number: int, devices: list[str]) -> str | None:
    """Assign devices round-robin; None where at most one is visible."""
    return devices[number % len(devices)] if len(devices) > 1 else None


def _devices() -> list[str]:
    import torch  # noqa: PLC0415

    # Counted without starting CUDA, after which the choice would come too late.
    return [str(number) for number in range(torch.cuda.device_count())]


@contextlib.contextmanager
def _stopped_in_order() -> Iterator[None]:
    """End as after Ctrl-C where a job is stopped: the cell is marked interrupted, and its folder free for the next job.

    submitit answers the signal before Slurm's time limit by putting the job back into the queue and leaving through
    SystemExit, at any bytecode; and it ignores SIGTERM, which Slurm sends to a job that is cancelled or preempted,
    until SIGKILL follows. So we take note of both, and ask submitit to put the job back once the cell has stopped.
    """
    theirs = signal.getsignal(signal.SIGUSR2)
    asked = False

    def before_the_limit(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        interrupt.note(number, frame)

    with interrupt.noting():
        if callable(theirs):
            signal.signal(signal.SIGUSR2, before_the_limit)
        try:
            yield
        except KeyboardInterrupt:
            if asked and callable(theirs):
                for number in (signal.SIGUSR2, signal.SIGTERM):  # Slurm's, for a job that it has put back
                    signal.signal(number, signal.SIG_IGN)
                with contextlib.suppress(BaseException):
                    theirs(signal.SIGUSR2, None)
            raise
        finally:
            if callable(theirs):
                signal.signal(signal.SIGUSR2, theirs)
