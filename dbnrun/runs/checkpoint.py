"""A run's checkpoints; the one place in runs/ that needs torch."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dbnrun.config.registry import one_line
from dbnrun.runs import layout
from dbnrun.runs.metrics import EpochRow

State = dict[str, Any]  # "epoch", the epochs done; "under_way" inside an epoch; "model", "optimizer" and "streams"
Position = tuple[int, int]  # epochs done, and updates of the next one


def position_of(state: State) -> Position:
    """The epoch of a checkpoint, and the updates within the next one."""
    under_way = state.get("under_way")
    return state["epoch"], under_way["steps"] if under_way else 0


class Checkpoints:
    """The last two checkpoints in a run's folder: a crash can fall between those of two cells that train together."""

    def __init__(self, folder: Path) -> None:
        self.paths = folder / layout.CHECKPOINT, folder / layout.PREVIOUS
        self.written = time.monotonic()

    def read(self, rows: Sequence[EpochRow], warn: Callable[[str], object]) -> dict[Position, State]:
        """Every checkpoint that can be used with these rows; a damaged one is set aside, with a warning."""
        states = {}
        for path in self.paths:
            if path.exists():
                try:
                    state = torch.load(path, map_location="cpu", weights_only=True)
                    _check(state, rows)
                    states[position_of(state)] = state
                except Exception as error:  # whatever a damaged file makes the loader say
                    (kept,) = layout.set_aside(path)
                    warn(f"a checkpoint that cannot be used is kept as {kept}: {one_line(error)}")
        return states

    def write(self, state: State) -> None:
        """Keep `state`, and the one before it."""
        latest, previous = self.paths
        layout.write_atomic(latest, to_bytes(state), keep=previous)
        self.written = time.monotonic()

    def remove(self) -> None:
        for path in self.paths:
            path.unlink(missing_ok=True)


def _check(state: State, rows: Sequence[EpochRow]) -> None:
    """Raise ValueError where a checkpoint lacks a part, or a row before the epoch that it continues."""
    epoch = position_of(state)[0]
    if missing := {"model", "optimizer", "streams"} - state.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    if [row.epoch for row in rows[:epoch]] != list(range(1, epoch + 1)):
        raise ValueError(f"it ends at epoch {epoch} and metrics.csv lacks a row before that, or has one twice")


def to_bytes(state: Any) -> bytes:
    """`state` as torch.save writes it, every tensor on its own: a view into a stack would bring the whole stack."""
    buffer = io.BytesIO()
    torch.save(_compact(state), buffer)
    return buffer.getvalue()


def _compact(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        whole = state.untyped_storage().nbytes() == state.numel() * state.element_size()
        return state.detach() if whole else state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _compact(value) for key, value in state.items()}
    return [_compact(value) for value in state] if isinstance(state, list) else state
