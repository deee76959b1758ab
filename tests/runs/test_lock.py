"""One writer a folder, among processes that live, die and run on other machines."""

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import time
from dataclasses import replace

import pytest

from dbnrun.runs import lock
from dbnrun.runs.lock import Held, Lease, Lost


@pytest.fixture
def quick(monkeypatch):
    """A heartbeat fast enough for tests."""
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    monkeypatch.setattr(lock, "EXPIRY", 0.5)
    monkeypatch.setattr(lock, "_dead", set())


def elsewhere(folder, age, **changes):
    """The lock of a process on another machine, renewed `age` seconds ago by the file system's clock."""
    holder = replace(Lease(folder).holder, host="far", machine="another", pid=7, token="theirs", **changes)
    (folder / "lock").write_text(json.dumps(vars(holder)))
    now = (folder / "lock").stat().st_mtime
    os.utime(folder / "lock", (now - age, now - age))
    return holder


def test_a_lease_excludes_another_and_leaves_nothing_behind(tmp_path):
    first = Lease(tmp_path)
    first.take()
    with pytest.raises(Held, match=f"process {os.getpid()} on "):
        Lease(tmp_path).take()
    assert lock.live_holder(tmp_path) == first.holder
    first.release()
    assert list(tmp_path.iterdir()) == [] and lock.live_holder(tmp_path) is None


@pytest.mark.parametrize("waited_for", [True, False])
def test_a_process_of_this_machine_that_is_dead_gives_way_at_once_however_fresh_its_lease(tmp_path, waited_for):
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    started = lock._start_time(process.pid)
    holder = replace(Lease(tmp_path).holder, pid=process.pid, started=started, token="theirs")
    (tmp_path / "lock").write_text(json.dumps(vars(holder)))
    assert lock.live_holder(tmp_path) == holder
    process.stdin.close()
    os.waitid(
        os.P_PID, process.pid, os.WEXITED | (0 if waited_for else os.WNOWAIT)
    )  # what nobody waits for is a zombie
    assert lock.live_holder(tmp_path) is None
    ours = Lease(tmp_path)
    ours.take()
    assert lock.read(tmp_path / "lock") == ours.holder
    ours.release()


def test_of_two_that_find_the_same_holder_dead_the_later_one_leaves_the_lock_of_the_earlier_one(tmp_path, monkeypatch):
    (tmp_path / "lock").write_text(json.dumps(vars(replace(Lease(tmp_path).holder, started="1", token="theirs"))))
    earlier, later, flock = Lease(tmp_path), Lease(tmp_path), fcntl.flock

    def flock_after_the_earlier_one(file, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        earlier.take()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock_after_the_earlier_one)
    with pytest.raises(Held):
        later.take()
    earlier.check()
    earlier.release()
    assert list(tmp_path.iterdir()) == []


def test_who_judges_a_holder_dead_keeps_other_judges_out_until_its_lock_is_removed(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    path.write_text(json.dumps(vars(replace(Lease(tmp_path).holder, started="1", token="theirs"))))
    unlink, removed = type(path).unlink, []

    def unlink_with_another_at_the_door(self, **words):
        if self == path and not removed:
            with path.open("rb+") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            removed.append(self)
        unlink(self, **words)

    monkeypatch.setattr(type(path), "unlink", unlink_with_another_at_the_door)
    Lease(tmp_path).take()
    assert removed == [path]


def test_a_later_process_with_a_dead_holders_number_is_not_taken_for_it(tmp_path):
    holder = replace(Lease(tmp_path).holder, started="1", token="theirs")  # our own number, begun at another time
    (tmp_path / "lock").write_text(json.dumps(vars(holder)))
    Lease(tmp_path).take()


def test_a_living_process_of_this_machine_keeps_its_lease_however_old(tmp_path, quick):
    holder = replace(Lease(tmp_path).holder, token="theirs")
    (tmp_path / "lock").write_text(json.dumps(vars(holder)))
    os.utime(tmp_path / "lock", (0, 0))
    with pytest.raises(Held):
        Lease(tmp_path).take()


@pytest.mark.parametrize("age", [-1e6, 0, 0.3])
def test_a_lease_of_another_machine_that_is_renewed_is_respected(tmp_path, quick, age):
    elsewhere(tmp_path, age)
    with pytest.raises(Held, match="process 7 on far"):
        Lease(tmp_path).take()


def test_a_lease_of_another_machine_that_is_no_longer_renewed_is_taken_over(tmp_path, quick):
    elsewhere(tmp_path, 5)
    ours = Lease(tmp_path)
    ours.take()
    assert lock.live_holder(tmp_path) == ours.holder
    ours.release()


def test_of_a_dead_holder_only_the_first_lease_is_watched(tmp_path, monkeypatch, quick):
    slept = []
    monkeypatch.setattr(lock.time, "sleep", slept.append)
    for name in "abc":
        (tmp_path / name).mkdir()
        elsewhere(tmp_path / name, 5)
        Lease(tmp_path / name).take()
    assert [seconds for seconds in slept if seconds == 1.5 * lock.HEARTBEAT] == [1.5 * lock.HEARTBEAT]


def test_a_holder_whose_file_servers_clock_leapt_is_seen_to_renew(tmp_path, monkeypatch, quick):
    elsewhere(tmp_path, 5)  # as if the clock had leapt five seconds since the last beat
    monkeypatch.setattr(lock.time, "sleep", lambda _: os.utime(tmp_path / "lock"))  # it beats while we watch
    with pytest.raises(Held):
        Lease(tmp_path).take()


def test_an_unreadable_lock_is_respected_until_it_is_old(tmp_path, quick):
    (tmp_path / "lock").write_text("torn")
    with pytest.raises(Held, match="unreadable lock"):
        Lease(tmp_path).take()
    os.utime(tmp_path / "lock", (0, 0))
    Lease(tmp_path).take()


def test_a_lease_renews_itself(tmp_path, quick):
    ours = Lease(tmp_path)
    ours.take()
    os.utime(tmp_path / "lock", (0, 0))
    deadline = time.monotonic() + 30
    while (tmp_path / "lock").stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "lock").stat().st_mtime > 0
    ours.release()


@pytest.mark.parametrize("how", ["taken over", "removed"])
def test_a_holder_that_lost_its_lease_finds_out_before_its_next_write_and_leaves_the_others_lock(tmp_path, how):
    ours = Lease(tmp_path)
    ours.take()
    if how == "removed":
        (tmp_path / "lock").unlink()
    else:
        theirs = elsewhere(tmp_path, 0)
    with pytest.raises(Lost, match=how):
        ours.check()
    ours.release()
    assert how == "removed" or lock.read(tmp_path / "lock") == theirs


def test_without_links_the_lease_is_made_by_an_exclusive_file(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    ours = Lease(tmp_path)
    ours.take()
    with pytest.raises(Held):
        Lease(tmp_path).take()
    ours.release()
    assert list(tmp_path.iterdir()) == []


def _compete(folder, seconds, tally):
    """Take the lease as often as can be; a file in the folder betrays two holders at once."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        ours = Lease(folder)
        try:
            ours.take()
        except Held:
            continue
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # fails where another is inside
        os.unlink(folder / "inside")
        ours.release()
        with tally.get_lock():
            tally.value += 1


def test_of_many_processes_one_is_inside_at_a_time_and_killed_holders_do_not_stop_the_rest(tmp_path):
    context = multiprocessing.get_context("fork")
    tally = context.Value("i", 0)
    workers = [context.Process(target=_compete, args=(tmp_path, 3, tally)) for _ in range(4)]
    for worker in workers:
        worker.start()
    time.sleep(1)
    os.kill(workers[0].pid, signal.SIGKILL)
    for worker in workers:
        worker.join()
    (tmp_path / "inside").unlink(missing_ok=True)  # of the killed one, perhaps
    assert [worker.exitcode for worker in workers[1:]] == [0, 0, 0]
    assert tally.value > 10
    Lease(tmp_path).take()
