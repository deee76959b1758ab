"""compile=true: what surrounds the matrix products of a training step as code compiled for this machine.

A small network's step is some hundred small operations, each a call into torch and a pass over memory. TorchInductor
makes a few loops of them; the products stay the library's. It rounds in other places, as another number of threads
does.
"""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dbnrun.config.registry import UserError

Piece = Callable[..., Any]


def pieces(*written: Piece, compiled: bool, first: bool) -> Sequence[Piece]:
    """The pieces of a run's step, to be called instead of these: the same, or compiled when they are needed.

    `first`: the run's very first update is still to come. It runs as written, for in it optimizers make their state,
    which no compiler follows. Code compiled for earlier runs is forgotten: torch keeps eight versions of a function
    and then none. What an earlier run or process compiled is found again on the disk.
    """
    if not compiled:
        return written
    torch.compiler.reset()
    made = [torch.compile(piece, dynamic=False) for piece in written]
    return [_from_second_call(*pair) for pair in zip(written, made, strict=True)] if first else made


def _from_second_call(written: Piece, compiled: Piece) -> Piece:
    following = itertools.chain([written], itertools.repeat(compiled))

    def piece(*arguments: Any) -> Any:
        return next(following)(*arguments)

    return piece


@functools.cache
def _runs(compiler: str) -> bool:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return False


def check_compiler(model: str, device: str) -> None:
    """Raise UserError where a model's step cannot be compiled for a kind of device, or only gets slower by it."""
    if device != "cpu":
        return  # Triton comes with torch
    if model in ("cnn", "torchvision"):
        raise UserError(
            "compile=true: on a CPU compiled convolutions take 1.3 to 1.8 times as long (docs/performance.md); "
            f"use compile=false with model={model}."
        )
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if not _runs(compiler):
        raise UserError(
            f"compile=true: no C++ compiler {compiler!r} that runs; install one (Debian: apt install g++), name one "
            "in CXX, or use compile=false."
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise UserError(
            f"compile=true: {header} is missing, which compiled code includes; install Python's headers (Debian: apt "
            "install python3-dev), or use compile=false."
        )
