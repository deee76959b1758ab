"""A cell, or a stack of them, as a job of somebody else's launcher: its share of the machine, and how it is stopped.

Imports no torch before it must: a job's number of threads is settled first.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from dbnrun import sweep


def in_worker() -> bool:
    """Whether this process trains for a sweep of another process."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN and not sweep.cells_to_train


@contextlib.contextmanager
def job(threads: int | None) -> Iterator[None]:
    """What a launcher's job does around its work: take the job's cores and its device, and end in order when stopped.

    `threads` is what the user asked for, and wins.
    """
    hydra = HydraConfig.get()
    cpus = cpus_of(hydra.launcher, os.environ)
    if cpus and not threads:
        import torch  # noqa: PLC0415

        torch.set_num_threads(cpus)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if (device := device_of(hydra.job.num, visible.split(",") if visible else _devices())) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    with _stopped_in_order():
        yield


def cpus_of(launcher: Mapping[str, Any], environment: Mapping[str, str]) -> int | None:
    """The cores that belong to this job; None where nobody says, as under joblib, which divides them itself."""
    told = environment.get("SLURM_CPUS_PER_TASK") or launcher.get("cpus_per_task")
    return int(told) if told else None


def device_of(number: int, devices: list[str]) -> str | None:
    """Jobs take turns on the devices of a machine; None where there is no choice, as in a job that was given one."""
    return devices[number % len(devices)] if len(devices) > 1 else None


def _devices() -> list[str]:
    import torch  # noqa: PLC0415

    # Counted without starting CUDA, after which the choice would come too late.
    return [str(number) for number in range(torch.cuda.device_count())]


@contextlib.contextmanager
def _stopped_in_order() -> Iterator[None]:
    """End as after Ctrl-C where a job is stopped: the cell is marked interrupted, and its folder free for the next job.

    submitit answers the signal before Slurm's time limit by putting the job back into the queue and leaving through
    SystemExit, which must not count as the cell's own; and it ignores SIGTERM, which Slurm sends to a job that is
    cancelled or preempted, until SIGKILL follows.
    """
    theirs = signal.getsignal(signal.SIGUSR2)

    def requeued(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm's, for a job that it has put back
        with contextlib.suppress(BaseException):
            theirs(number, frame)  # pyright: ignore[reportCallIssue, reportOptionalCall] - callable, as checked below
        raise KeyboardInterrupt

    def stopped(_number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    if callable(theirs):
        signal.signal(signal.SIGUSR2, requeued)
    signal.signal(signal.SIGTERM, stopped)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
