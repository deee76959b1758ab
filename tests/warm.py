"""Runs the command in a fork of a process that has imported torch already: imported once, not once a command.

`python warm.py FD` serves requests that come over the socket FD. A request is a line of JSON with the file descriptors
of standard output and standard error; the answer is the fork's exit code, or null where its time was up.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn


class WarmCommand:
    """The command, run in forks of one warm process."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.server = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()

    def run(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float, before: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the command with `words` in `folder`, after the Python code `before`; what it printed is text."""
        request = {"words": words, "folder": str(folder), "environment": dict(environment), "before": before}
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        line = json.dumps(request | {"timeout": timeout}).encode() + b"\n"
        socket.send_fds(self.socket, [line], [out_end, err_end])
        os.close(out_end)
        os.close(err_end)
        with ThreadPoolExecutor() as readers:
            said = list(readers.map(_read, (out, err)))
        code = json.loads(_line(self.socket))
        if code is None:
            raise subprocess.TimeoutExpired(["dbnrun", *words], timeout, *said)
        return subprocess.CompletedProcess(["dbnrun", *words], code, *said)

    def close(self) -> None:
        self.socket.close()
        self.server.wait()


def _read(descriptor: int) -> str:
    with os.fdopen(descriptor, errors="replace") as stream:
        return stream.read()


def _line(source: socket.socket, begun: bytes = b"") -> bytes:
    while not begun.endswith(b"\n"):
        more = source.recv(1 << 16)
        if not more:
            raise EOFError("the other side is gone")
        begun += more
    return begun


def serve(requests: socket.socket) -> None:
    """Fork for each request, one at a time, until the other side closes the socket."""
    from hydra.core.plugins import Plugins

    import dbnrun.cli
    import dbnrun.runner.execute  # noqa: F401 - and with it torch and all that trains

    Plugins.instance()  # finds and imports Hydra's plugins
    while True:
        begun, descriptors, _, _ = socket.recv_fds(requests, 1 << 16, 2)
        if not begun:
            return
        request = json.loads(_line(requests, begun))
        child = os.fork()
        if child == 0:
            requests.close()
            _become_command(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        requests.sendall(json.dumps(_ended(child, request["timeout"])).encode() + b"\n")


def _become_command(request: Mapping[str, Any], descriptors: Sequence[int]) -> NoReturn:
    code = 1
    try:
        for number, descriptor in enumerate(descriptors, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["dbnrun", *request["words"]]
        exec(request["before"], {})
        code = sys.modules["dbnrun.cli"].main(request["words"])
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(child: int, timeout: float) -> int | None:
    deadline = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return None
        time.sleep(0.005)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
