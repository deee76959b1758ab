"""How a training is stopped: a signal is noted when it comes, and looked at where stopping is safe.

An exception that a signal's handler raises can fall on any bytecode. Amid an import it ends in anything: an abort, a
half-loaded module, an interrupt that nobody sees. So while cells are trained the handlers only take note, and `check`
raises KeyboardInterrupt where the work can stop and go on later: after an update, between two batches of an
evaluation, before the next cell. A second signal ends the process at once; anyone may take over a dead one's lock.

The command calls this before it imports anything else, so this imports next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | None  # as signal has them

EXIT_CODE = 130
# SIGTERM last: whoever sees a process catch it knows that the others are caught, too (scripts/signals.py). No SIGHUP on
# Windows.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGTERM") if hasattr(signal, name)]
# Seconds in which another signal counts as the same: `timeout`, and a terminal that is closed, send two in a row.
SAME = 0.5
LOOK = 0.2  # seconds between two looks while waiting

_noted_at: float | None = None


def note(_number: int, _frame: FrameType | None) -> None:
    """The handler of a signal: take note of the first, end the process at the second."""
    global _noted_at  # noqa: PLW0603 - signals are the process's
    if _noted_at is None:
        _noted_at = time.monotonic()
    elif time.monotonic() - _noted_at > SAME:
        os.write(2, b"dbnrun: interrupted twice; ended at once. The same command goes on from the last checkpoint.\n")
        os._exit(EXIT_CODE)


def noted() -> bool:
    """Whether this process has been asked to stop."""
    return _noted_at is not None


def check() -> None:
    """Raise KeyboardInterrupt where a signal was noted."""
    if noted():
        raise KeyboardInterrupt


def wait(seconds: float) -> None:
    """Sleep, looking now and then. Raises KeyboardInterrupt where a signal was noted."""
    while seconds > 0:
        check()
        time.sleep(min(seconds, LOOK))
        seconds -= LOOK
    check()


def note_signals() -> None:
    """Take note of signals from here on, to the end of the process."""
    _handle(note)


def noting() -> contextlib.AbstractContextManager[None]:
    """Take note of signals within a block."""
    return _handled(note)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Let signals raise KeyboardInterrupt within a block, wherever they fall: for work that does not look.

    Raises it at once where one was noted before.
    """
    with _handled(signal.default_int_handler):
        check()
        yield


@contextlib.contextmanager
def within_a_call() -> Iterator[None]:
    """Take note of the first Ctrl-C within a library's call and raise at the second; forget both at the end.

    For a program that is not ours, such as a notebook: it goes on, and SIGTERM stays its own. Outside the main thread,
    where Python handles no signals, nothing is noted.
    """
    global _noted_at  # noqa: PLW0603 - signals are the process's
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled(_note_once, [signal.SIGINT]):
        try:
            yield
        finally:
            _noted_at = None


def _note_once(_number: int, _frame: FrameType | None) -> None:
    if noted():
        raise KeyboardInterrupt
    note(_number, _frame)


@contextlib.contextmanager
def _handled(handler: Handler, numbers: Sequence[int] = SIGNALS) -> Iterator[None]:
    before = _handle(handler, numbers)
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def _handle(handler: Handler, numbers: Sequence[int] = SIGNALS) -> dict[int, Handler]:
    """Handle these signals so, and return who did before. One that is ignored, as under nohup, stays ignored."""
    before = {number: signal.getsignal(number) for number in numbers}
    handled = {number: own for number, own in before.items() if own not in (signal.SIG_IGN, None)}
    for number in handled:
        signal.signal(number, handler)
    return handled
