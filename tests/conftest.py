"""What several test rooms share: the real data where it is at hand, and a way to run the command."""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import settings
from warm import WarmCommand

from dbnrun.runs import metrics
from dbnrun.runs.metrics import EpochRow

# The same examples in every run: a suite that is red by chance tells nothing of the change at hand.
settings.register_profile("steady", derandomize=True)
settings.load_profile("steady")
# One thread a test process: two processes with two threads each cost more than they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A script in the background ignores Ctrl-C, and so would the commands that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# One under nohup ignores SIGHUP.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data; skips where DBNRUN_DATA does not name one."""
    folder = os.environ.get("DBNRUN_DATA")
    if not folder or not (Path(folder) / "MNIST").is_dir():
        pytest.skip("needs the real data: set DBNRUN_DATA to its folder (`dbnrun data` fetches it)")
    return Path(folder)


@pytest.fixture(scope="module")
def composed():
    """Compose a configuration from overrides, as the command does."""
    from hydra import compose, initialize_config_dir

    from dbnrun.config.registry import conf_dir
    from dbnrun.config.schema import checked, store_schema

    store_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield lambda *overrides: checked(compose("config", list(overrides)))


@pytest.fixture(scope="session")
def warm_command():
    command = WarmCommand()
    yield command
    command.close()


@dataclass(frozen=True, kw_only=True)
class NewerRow(EpochRow):
    """A row of a later version, which has two more columns."""

    gamma_norm: float | None = None
    dead_units: int | None = None


@pytest.fixture
def newer_version(monkeypatch):
    """A context in which a row has the columns of NewerRow, as a later version of dbnrun may."""
    from dbnrun.runs import archive

    @contextlib.contextmanager
    def newer():
        columns = tuple(field.name for field in fields(NewerRow))
        with monkeypatch.context() as patched:
            patched.setattr(metrics, "EpochRow", NewerRow)
            patched.setattr(metrics, "_TYPES", get_type_hints(NewerRow))
            patched.setattr(metrics, "COLUMNS", columns)
            patched.setattr(archive, "COLUMNS", columns)
            yield

    return newer


@pytest.fixture
def dbnrun(tmp_path, warm_command):
    """Run the command in a process of its own, with torch imported, in an empty folder; returns the finished process.

    `before` is Python code to run first in that process, to break something inside.
    """

    def run(*words: str, env: dict[str, str] | None = None, timeout: float = 300, before: str = ""):
        return warm_command.run(words, tmp_path, {**os.environ, **(env or {})}, timeout, before)

    return run


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command in this process, in an empty folder; returns its exit code and what it said."""
    from dbnrun.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main(words)
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.fixture
def fresh_dbnrun(tmp_path):
    """The same from a new interpreter, as a user starts it: seconds slower."""

    def run(*words: str, env: dict[str, str] | None = None, timeout: float = 300):
        return subprocess.run(
            [sys.executable, "-m", "dbnrun", *words],
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
