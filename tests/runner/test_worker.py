"""What a job of somebody else's launcher takes of its machine, and how a signal ends it."""

import os
import signal

import pytest

from dbnrun import interrupt
from dbnrun.runner import worker


def test_jobs_take_turns_on_the_devices_and_keep_the_one_they_were_given():
    assert [worker.device_of(number, ["0", "2", "5"]) for number in range(5)] == ["0", "2", "5", "0", "2"]
    assert worker.device_of(3, ["1"]) is None and worker.device_of(3, []) is None


def test_a_job_takes_the_cores_that_it_was_given():
    assert worker.cpus_of({"cpus_per_task": 2}, {"SLURM_CPUS_PER_TASK": "4"}) == 4
    assert worker.cpus_of({"cpus_per_task": 2}, {}) == 2
    assert worker.cpus_of({"n_jobs": 2}, {}) is None


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_stopped_job_ends_as_after_ctrl_c_and_asks_for_its_place_in_the_queue(monkeypatch, number):
    asked = []

    def put_back(number, _frame):
        asked.append(number)
        raise SystemExit(-1)  # as submitit does once Slurm has the job back

    monkeypatch.setattr(interrupt, "_noted_at", None)
    before = {n: signal.signal(n, put_back) for n in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt), worker._stopped_in_order():
            os.kill(os.getpid(), number)
            assert asked == []  # not before the cell has stopped
            interrupt.check()
        assert asked == [signal.SIGUSR2] * (number == signal.SIGUSR2)
        assert signal.getsignal(signal.SIGTERM) is put_back
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_the_cells_of_a_stack_travel_as_one_override():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from dbnrun.runner.launcher import packed, unpacked

    cells = [["norm=dbn", "schedule.alpha=0.1", "results_dir='a ü, ${b} \"c\"'"], ["seed=1"]]
    (override,) = OverridesParser.create().parse_overrides([packed(cells)])
    assert unpacked(str(override.value())) == cells
