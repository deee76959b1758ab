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
    columns = torch.arange(width, device=x.device).expand(n, width)
    # The flip acts on the image, the crop on its padded frame, where pixel j lies at j + PADDING.
    framed = columns + left - PADDING
    source = torch.where(flip == 1, width - 1 - framed, framed) + PADDING
    rows = torch.arange(height, device=x.device) + top
    padded = F.pad(x, (2 * PADDING,) * 2 + (PADDING,) * 2)
    n_index = torch.arange(n, device=x.device)[:, None, None]
    # Indexing with n, row and column around a full slice puts the channels last.
    return padded[n_index, :, rows[:, :, None], source[:, None, :] + PADDING].permute(0, 3, 1, 2)
