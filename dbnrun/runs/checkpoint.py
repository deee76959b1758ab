"""Checkpoints as bytes: the one place in runs/ that needs torch, imported when a run trains."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


Position = tuple[int, int]  # epochs done, and updates of the next one


def position_of(state: dict[str, Any]) -> Position:
    under_way = state.get("under_way")
    return state["epoch"], under_way["steps"] if under_way else 0


def _bytes(state: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(_compact(state), buffer)
    return buffer.getvalue()


def _compact(state: Any) -> Any:
    """The same with every tensor on its own: a view into a stack would be saved with the whole stack."""
    import torch

    if isinstance(state, torch.Tensor):
        whole = state.untyped_storage().nbytes() == state.numel() * state.element_size()
        return state.detach() if whole else state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _compact(value) for key, value in state.items()}
    return [_compact(value) for value in state] if isinstance(state, list) else state
