"""Whether a user's own classes can be trained: tried on two batches before the first cell, on the network's shapes."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbnrun.config.own import Own, refusal
from dbnrun.config.registry import GROUPS, UserError
from dbnrun.config.schema import RunConfig
from dbnrun.data.dataset import Data
from dbnrun.runner.build import Cell, build_cell
from dbnrun.train.evaluate import at_least_float32, autocast


def check(config: RunConfig, data: Data, device: torch.device) -> None:
    """Raise UserError where a cell with classes of the user's own cannot be trained, evaluated or gone on with."""
    if not config.own:
        return
    parts = asdict(config)
    key = json.dumps([parts[group] for group in GROUPS] + [config.train.batch_size, config.precision], default=str)
    if key in _sound:
        return
    targets = ", ".join(
        f"{group}.target={choice.code}" if isinstance(choice, Own) else f"{group}={choice.name}"
        for group, choice in config.own.items()
    )
    try:
        _try(config, data, device)
    except UserError:
        raise
    except _Unfit as unfit:
        raise UserError(f"{targets}: {unfit}") from None
    except Exception as error:
        raise refusal(targets, error) from None
    _sound.add(key)


_sound: set[str] = set()  # what has been tried in this process


class _Unfit(Exception):
    """What is wrong, and what is expected."""


def _try(config: RunConfig, data: Data, device: torch.device) -> None:
    cell, twin, other = (build_cell(config, data, device) for _ in range(3))
    size, classes = config.train.batch_size, data.num_classes
    index = torch.arange(2 * size, device=device) % len(data.train)
    (x, y), second = ((data.train.inputs(batch), data.train.y[batch]) for batch in index.split(size))
    for each in (cell, twin, other):
        _expect_sound_outputs(each)
    twin.model.train()
    if not torch.equal(_step(cell, x, y, classes), _logits(twin, x, classes)):
        raise _Unfit(
            "two networks of one seed differ in their first step; draw random numbers from torch's global generator "
            f"of the {device.type}, and in a normalizer only in the constructor, not in forward."
        )
    _step(cell, *second, classes)
    other.restore(cell.state(0))
    cell.model.eval()
    other.model.eval()
    with torch.no_grad():
        first, again = (_logits(cell, x, classes) for _ in range(2))
        if not torch.equal(first, again):
            raise _Unfit("two evaluations of one batch differ; expected the same numbers each time in eval mode.")
        if not torch.equal(first, _logits(other, x, classes)):
            raise _Unfit(
                "a network restored from state_dict gives other numbers; keep what training changes in parameters "
                "and buffers (register_buffer)."
            )


def _expect_sound_outputs(cell: Cell) -> None:
    """Let every layer of a normalizer of the user's own be refused if it returns another shape or infinite numbers."""
    norm = cell.config.norm
    if not isinstance(norm, Own):
        return

    def check(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if came != (given := tuple(inputs[0].shape)):
            raise _Unfit(f"forward returned {came} for an input {given}; a normalizer keeps the shape.")
        if inputs[0].isfinite().all() and not output.isfinite().all():
            raise _Unfit(f"forward returned NaN or infinity for a finite input {given}.")

    for layer in cell.model.modules():
        if type(layer).__name__ == norm.code.rpartition(":")[2]:
            layer.register_forward_hook(check)


def _step(cell: Cell, x: Tensor, y: Tensor, classes: int) -> Tensor:
    """The logits of one update, every number of which is finite."""
    cell.model.train()
    logits = _logits(cell, x, classes)
    if logits.dtype != torch.float32 and cell.config.precision == "fp32":
        raise _Unfit(f"turned float32 into {logits.dtype}; expected the dtype of its input.")
    loss = F.cross_entropy(logits, y)
    cell.optimizer.zero_grad()
    loss.backward()
    for name, parameter in cell.model.named_parameters():
        if parameter.grad is None and list(cell.config.own) == ["norm"] and ".norm" not in name:
            raise _Unfit(f"{name} gets no gradient through the normalizer; return what depends on its input.")
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise _Unfit(f"the gradient of {name} is not finite in the first two steps.")
    if not loss.isfinite():
        raise _Unfit("the training loss is not finite in the first two steps.")
    cell.optimizer.step()
    return logits.detach()


def _logits(cell: Cell, x: Tensor, classes: int) -> Tensor:
    with autocast(x.device, cell.config.precision):
        logits = cell.model(x)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (len(x), classes):
        raise _Unfit(f"returned {shape} for {len(x)} records of {classes} classes; expected {(len(x), classes)}.")
    return logits if logits.dtype == torch.float64 else at_least_float32(logits)
