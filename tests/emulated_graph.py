"""A CUDA graph without CUDA: what a step asks of the device is recorded operation by operation, and replayed.

As with the real one, a replay repeats operations on the very memory that they were recorded on. Whatever the step
computes in Python (a counter, a branch, a number read back) stays as it was at the capture, and a step that depends
on it gives other numbers when it is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORBIDDEN = {
    torch.tensor, torch.as_tensor, torch.nonzero, Tensor.nonzero, Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy,
    Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__,
}  # fmt: skip


class _NoHost(TorchFunctionMode):
    """Refuses what would copy between host and device; `host` tensors (an optimizer's counters) may be read."""

    def __init__(self, host: Sequence[Tensor]) -> None:
        self.host = {id(tensor) for tensor in host}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in FORBIDDEN and not (args and id(args[0]) in self.host):
            raise AssertionError(f"a captured step may not wait for the host: {func}")
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    def __init__(self, host: Sequence[Tensor]) -> None:
        super().__init__()
        self.host = {tensor.untyped_storage().data_ptr() for tensor in host}
        self.operations: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            raise AssertionError("a captured step may not wait for the host: indexing by a mask counts it there")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_host = tensors and all(t.untyped_storage().data_ptr() in self.host for t in tensors)
        if not on_host:
            self.operations.append((func, args, kwargs or {}, results))
        return results

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, recorded in self.operations:
            for old, new in zip(tree_leaves(recorded), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


def emulate(monkeypatch, graphs, optimizer: torch.optim.Optimizer | None) -> list[int]:
    """Let `graphs` capture and replay on the CPU; `optimizer` counts its updates on the host (None: on the device).

    Returns a list that grows by the number of operations of each capture.
    """
    captured: list[int] = []

    def counters() -> list[Tensor]:
        return [] if optimizer is None else graphs.host_counters(optimizer)

    def capture(step, generators):
        recorder = _Recorder(counters())
        with _NoHost(counters()), recorder:
            step()
        captured.append(len(recorder.operations))
        first = iter([None])  # a real capture computes nothing, this one has: the replay that follows it is done
        return lambda: next(first, False) is None or recorder.replay()

    monkeypatch.setattr(graphs, "run_aside", lambda step: step())
    monkeypatch.setattr(graphs, "capture", capture)
    if optimizer is None:
        monkeypatch.setattr(graphs, "host_counters", lambda _: [])
    return captured
