"""One writer a cell, also on a file system that machines share: a lease that its holder keeps renewing.

The file `lock` in a cell's folder names its holder. A holder on this machine is alive while its process runs. A holder
on another machine is alive while it renews its lease: every HEARTBEAT seconds it sets the file's modification time
anew. The file server stamps that time and the time of a file written beside it, so no two machines' clocks are ever
compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dbnrun import interrupt

HEARTBEAT = 10.0  # seconds between two renewals
EXPIRY = 60.0  # a holder on another machine that has not renewed for so many seconds is taken for dead

# Processes on other machines that were found dead: hundreds of cells of one dead machine cost one wait.
_dead: set[tuple[str, int, str] | None] = set()


class Held(Exception):
    """Another live process trains this cell."""


class Lost(Exception):
    """The lease is no longer ours: another process took it over, or the folder is gone."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease, described so that another one can tell whether it is alive."""

    host: str
    machine: str
    pid: int
    started: str  # tells a process from a later one with the same number
    since: str
    token: str  # of this very lease

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@functools.cache
def _machine() -> str:
    """Names what process numbers belong to: this boot of this machine, and in it this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """When a process began, in ticks since the boot; '' where it is alive and that is hidden, None where it is dead."""
    try:
        # The second field is the program's name in parentheses, and may hold anything.
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if stat[0] in "ZX" else stat[19]
    except OSError:
        pass  # it is dead, or /proc does not show other users' processes, or this is not Linux
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass  # it is alive, as another user's
    return ""


def read(path: Path) -> Holder | None:
    """The holder that a lock file names; None where the file is not legible. Raises OSError where it cannot be read."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        return None


def _is_running(holder: Holder | None) -> bool | None:
    """Whether a process of this machine runs; None for another machine's, and for one that an illegible lock hides."""
    if holder is None or holder.machine != _machine():
        return None
    started = _start_time(holder.pid)
    return started is not None and started in ("", holder.started)


def live_holder(folder: Path) -> Holder | None:
    """The live holder of a folder, for display: read without writing, by this machine's clock."""
    path = folder / "lock"
    try:
        holder = read(path)
        age = time.time() - path.stat().st_mtime
    except OSError:
        return None
    running = _is_running(holder)
    return holder if running or (running is None and age <= EXPIRY) else None


def was_requeued() -> bool:
    """Whether Slurm has started this job before, so that the process that had its cell may still seem alive."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


class Lease:
    """A folder's lease, from `take` to `release`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        pid = os.getpid()
        since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        started = _start_time(pid) or ""
        self.holder = Holder(socket.gethostname(), _machine(), pid, started, since, secrets.token_hex(8))
        self._released = threading.Event()

    def take(self, patience: float = 0.0) -> None:
        """Take the lease, a dead holder's too. Raises Held where a live process has it.

        Tries for `patience` seconds, for a holder that is expected to be dead.
        """
        deadline = time.monotonic() + patience
        # The claim is written in full, then linked as the lock: a lock always names its holder.
        claim = self.path.with_name(f".lock.{self.holder.token}")
        try:
            claim.write_text(json.dumps(asdict(self.holder)))
            while not _created(self.path, claim):
                try:
                    self._remove_if_dead(claim)
                except Held:
                    if time.monotonic() >= deadline:
                        raise
                    interrupt.wait(1)
        finally:
            claim.unlink(missing_ok=True)
        threading.Thread(target=self._renew_until_released, name="dbnrun lease", daemon=True).start()

    def _remove_if_dead(self, claim: Path) -> None:
        """Remove a dead holder's lock. Raises Held where the holder is alive."""
        with contextlib.suppress(FileNotFoundError):  # the lock is gone: free for whoever is first
            holder = read(self.path)
            if self._is_alive(holder, claim):
                raise Held(str(holder or f"an unreadable lock, {self.path}"))
            with open(self.path, "rb+") as judged:
                # Of several processes that find the same holder dead, one goes on at a time, so that none removes the
                # next holder's lock. Where the file system has no flock, that holder notices before it writes.
                with contextlib.suppress(OSError):
                    fcntl.flock(judged, fcntl.LOCK_EX)
                if read(self.path) == holder:
                    self.path.unlink()

    def _is_alive(self, holder: Holder | None, claim: Path) -> bool:
        """Whether the holder of the lock is alive: by its process where that can be seen, else by its renewals."""
        running = _is_running(holder)
        if running is not None:
            return running
        renewed = self.path.stat().st_mtime
        os.utime(claim)
        if claim.stat().st_mtime - renewed <= EXPIRY:
            return True
        process = holder and (holder.machine, holder.pid, holder.started)
        if process not in _dead:
            # After the file server was away, or its clock leapt, all leases look expired until their next renewal.
            interrupt.wait(1.5 * HEARTBEAT)
            if self.path.stat().st_mtime != renewed:
                return True
            _dead.add(process)
        return False

    def _renew_until_released(self) -> None:
        while not self._released.wait(HEARTBEAT):
            with contextlib.suppress(Lost, OSError):  # `check` tells before the next write
                self.check()
                os.utime(self.path)

    def check(self) -> None:
        """Raises Lost where the lease is no longer ours; to be called before each write to the folder."""
        try:
            holder = read(self.path)
        except FileNotFoundError:
            raise Lost(f"{self.path.parent} was removed, or its lock") from None
        if holder != self.holder:
            raise Lost(f"taken over by {holder or 'a process that left an unreadable lock'}")

    def release(self) -> None:
        self._released.set()
        with contextlib.suppress(Lost, OSError):
            self.check()
            self.path.unlink()


@contextlib.contextmanager
def leased(folder: Path) -> Iterator[Lease]:
    """Hold a folder's lease for a block. Raises Held where a live process has it."""
    lease = Lease(folder)
    lease.take()
    try:
        yield lease
    finally:
        lease.release()


def _created(path: Path, claim: Path) -> bool:
    """Make the claim the lock; False where there is a lock."""
    try:
        os.link(claim, path)
    except FileExistsError:
        return False
    except OSError:  # exFAT, and some network file systems, have no hard links
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
        claim.replace(path)
    return True
