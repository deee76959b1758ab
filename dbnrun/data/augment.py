"""Augmentation of whole batches on their device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

PADDING = 4


def flip_crop(x: Tensor, generator: Generator) -> Tensor:
    """Flip each image left to right with probability 1/2, then crop it at random after padding by 4 zeros.

    x and the result (N, C, H, W), on x's device; `generator` draws on its own: N flips, N rows, N columns.
    """
    n, _, height, width = x.shape

    def draw(high: int) -> Tensor:
        return torch.randint(high, (n, 1), generator=generator, device=generator.device).to(x.device)

    flip, top, left = draw(2), draw(2 * PADDING + 1), draw(2 * PADDING + 1)
    rows = torch.arange(height, device=x.device) + top
    columns = torch.arange(width, device=x.device) + left
    # In the padded frame, which is as wide on both sides, a flip of the image is a flip of the frame.
    columns = torch.where(flip == 1, width + 2 * PADDING - 1 - columns, columns)
    padded = F.pad(x, (PADDING,) * 4)
    n_index = torch.arange(n, device=x.device)[:, None, None]
    # Indexing with n, row and column around a full slice puts the channels last.
    return padded[n_index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
