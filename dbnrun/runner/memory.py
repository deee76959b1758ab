"""How many runs fit into one stack."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dbnrun.config.registry import UserError
from dbnrun.config.schema import RunConfig
from dbnrun.data.cache import free_memory
from dbnrun.data.dataset import Data
from dbnrun.runner.build import build_cell, load_data, prepare_device
from dbnrun.train.evaluate import autocast


def fitting(config: RunConfig) -> int:
    """How many such runs fit into a quarter of the free memory; 1 where the configuration is refused."""
    try:
        device = prepare_device(config)
        data = load_data(config, device)
        most = config.model.most_stacked[device.type]
        return max(1, min(most, free_bytes(device) // 4 // step_bytes(config, data, device)))
    except UserError:
        return 1  # training it says why


def step_bytes(config: RunConfig, data: Data, device: torch.device) -> int:
    """Memory of one training step of one run: parameters, gradients and optimizer state, and what backward keeps.

    Measured on a step of a network built for it. Kept values are counted twice, for their gradients.
    """
    cell = build_cell(config, data, device)
    kept = 0

    def count(value: Tensor) -> Tensor:
        nonlocal kept
        kept += value.numel() * value.element_size()
        return value

    cell.model.train()
    batch = slice(0, config.train.batch_size)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value), autocast(device, config.precision):
        F.cross_entropy(cell.model(data.train.inputs(batch)).float(), data.train.y[batch])
    held = sum(p.numel() * p.element_size() for p in cell.model.parameters())
    return 5 * held + 2 * kept  # itself, its gradient, at most two numbers of state, a copy in the checkpoint


def free_bytes(device: torch.device) -> int:
    """Free memory of the device; of this machine as Linux counts it, elsewhere 4 GiB."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
