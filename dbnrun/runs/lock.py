"""One writer a cell, on a shared file system too: a lease that its holder keeps renewing.

The file `lock` in a cell's folder says who holds it. On the machine that reads it, the holder lives if its process
does. On another machine it lives while it renews: every HEARTBEAT seconds the file's modification time is set anew. The
file server stamps that time and that of a file written beside it, so no two machines' clocks are ever compared.
"""

from __future__ import annotations

import contextlib
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
EXPIRY = 60.0  # without renewal for so long, a holder on another machine is taken for dead


class Held(Exception):
    """Another live process trains this cell."""


class Lost(Exception):
    """The lease is no longer ours: another process took it over, or the folder is gone."""


@dataclass(frozen=True)
class Holder:
    """A process, so that another on the same machine can tell whether it still lives."""

    host: str
    machine: str  # this boot of this machine, this space of process numbers
    pid: int
    started: str  # tells a process from a later one with its number
    since: str
    token: str  # of this very lease

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@functools.cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the boot; '' where it lives and that is unknown, None where it is dead."""
    try:
        # The second field is the program's name in parentheses, and may hold anything.
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if stat[0] in "ZX" else stat[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:
        pass  # it lives, as another user's
    return ""


def read(path: Path) -> Holder | None:
    """Who a lock file names; None where it is gone or says nothing legible."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def alive(holder: Holder, age: float) -> bool:
    """Whether a holder still trains, its lease last renewed `age` seconds ago."""
    if holder.machine == _machine():
        started = _started(holder.pid)
        return started is not None and started in ("", holder.started)
    return age <= EXPIRY


def was_requeued() -> bool:
    """Whether Slurm has started this job before, and the process that had its cell may be seen as alive yet."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def live_holder(folder: Path) -> Holder | None:
    """The live holder of a folder, for display: read without writing, by this machine's clock."""
    path = folder / "lock"
    holder = read(path)
    if holder is None:
        return None
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return None
    return holder if alive(holder, age) else None


class Lease:
    """A folder's lease, from `take` to `release`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        pid = os.getpid()
        since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.mine = Holder(socket.gethostname(), _machine(), pid, _started(pid) or "", since, secrets.token_hex(8))
        self.lost = False

    def take(self, patience: float = 0.0) -> None:
        """Raises Held where a live process has the folder; a dead one's lease is taken over.

        `patience` are the seconds to try for, where the holder is expected to be dead.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                return self._take()
            except Held:
                if time.monotonic() >= deadline:
                    raise
                interrupt.wait(1)

    def _take(self) -> None:
        # Written whole under another name, then linked: the lock never exists without saying who holds it.
        claim = self.path.with_name(f".lock.{self.mine.token}")
        try:
            claim.write_text(json.dumps(asdict(self.mine)))
            while not _linked(claim, self.path):
                self._depose(claim)
        finally:
            claim.unlink(missing_ok=True)
        _heart.keep(self)

    def _depose(self, claim: Path) -> None:
        """Remove the lock of a dead holder. Raises Held where the holder lives."""
        holder = read(self.path)
        if holder is not None and holder.machine == _machine():
            if alive(holder, 0):
                raise Held(str(holder))
        elif not self._expired(claim):
            raise Held(str(holder) if holder else f"an unreadable lock, {self.path}")
        # Renaming picks out one of several that judge at once; what was picked may by then be another's fresh lock.
        picked = self.path.with_name(f".lock.deposed.{self.mine.token}")
        try:
            self.path.rename(picked)
        except FileNotFoundError:
            return
        if read(picked) != holder:
            _linked(picked, self.path)
        picked.unlink(missing_ok=True)

    def _expired(self, claim: Path) -> bool:
        """Whether the lock has not been renewed for EXPIRY seconds, nor is while we watch."""
        try:
            renewed = self.path.stat().st_mtime
            os.utime(claim)
            if claim.stat().st_mtime - renewed <= EXPIRY:
                return False
            holder = read(self.path)
            process = (holder.machine, holder.pid, holder.started) if holder else None
            if process is None or process not in _seen_dead:
                interrupt.wait(1.5 * HEARTBEAT)  # the file server's clock may have leapt
                if self.path.stat().st_mtime != renewed:
                    return False
                _seen_dead.add(process)
        except FileNotFoundError:
            pass  # gone meanwhile: free for whoever is first
        return True

    def renew(self) -> None:
        """Tell that the holder lives; notice where the lease is another's by now."""
        if self.lost:
            return
        try:
            self.lost = read(self.path) != self.mine and not self._unreadable()
            if not self.lost:
                os.utime(self.path)
        except FileNotFoundError:
            self.lost = True
        except OSError:
            pass  # the file server is away: the next beat tells

    def _unreadable(self) -> bool:
        """Whether the lock is there and cannot be read for now."""
        try:
            self.path.read_bytes()
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def check(self) -> None:
        """Raises Lost once a renewal has found that the lease is gone."""
        if self.lost:
            holder = read(self.path)
            raise Lost(f"taken over by {holder}" if holder else f"{self.path.parent} was removed, or its lock")

    def release(self) -> None:
        _heart.let_go(self)
        if read(self.path) == self.mine:
            self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def leased(folder: Path) -> Iterator[Lease]:
    """Hold a folder's lease for a block. Raises Held where a live process has it."""
    lease = Lease(folder)
    lease.take()
    try:
        yield lease
    finally:
        lease.release()


# Holders on other machines that we have watched in vain: all their leases are free.
_seen_dead: set[tuple[str, int, str] | None] = set()


def _linked(source: Path, target: Path) -> bool:
    """Give a whole file a second name; False where that name is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with open(target, "x") as file:
                file.write(source.read_text())
        except FileExistsError:
            return False
    return True


class _Heart:
    """Renews every lease of this process from one thread."""

    def __init__(self) -> None:
        self.leases: set[Lease] = set()
        self.guard = threading.Lock()
        self.thread: threading.Thread | None = None

    def keep(self, lease: Lease) -> None:
        with self.guard:
            self.leases.add(lease)
            if self.thread is None or not self.thread.is_alive():  # none yet, or left behind by a fork
                self.thread = threading.Thread(target=self._beat, name="dbnrun leases", daemon=True)
                self.thread.start()

    def let_go(self, lease: Lease) -> None:
        with self.guard:
            self.leases.discard(lease)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT)
            with self.guard:
                leases = list(self.leases)
            for lease in leases:
                with contextlib.suppress(Exception):  # one folder's trouble is not another's
                    lease.renew()


_heart = _Heart()
