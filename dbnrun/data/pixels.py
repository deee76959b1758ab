"""Images as pixels: uint8, (N, C, H, W), and how each channel is standardized."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Moments = tuple[Tensor, Tensor]  # mean and standard deviation of each channel of pixels in [0, 1], each (C, 1, 1)
SLICE = 500  # images converted at a time, so that no second copy of a whole set is in memory


def channel_moments(pixels: np.ndarray, index: np.ndarray) -> Moments:
    """Mean and standard deviation of each channel over the images of `index`; a constant channel's deviation is 1.

    From the counts of the 256 pixel values: exact, and without a floating-point copy of the images.
    """
    channels = pixels.shape[1]
    counts = np.zeros((channels, 256))
    for start in range(0, len(index), SLICE):
        chunk = pixels[index[start : start + SLICE]]
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    constant = np.count_nonzero(counts, axis=1) == 1  # asked of the counts, since rounding can leave a deviation
    std = np.sqrt(np.where(constant, 1, share @ values**2 - mean**2))
    return tuple(torch.tensor(moment, dtype=torch.float32).view(-1, 1, 1) for moment in (mean, std))  # pyright: ignore[reportReturnType]


def standardized(pixels: Tensor, moments: Moments) -> Tensor:
    """uint8 pixels (…, C, H, W) as float32, each channel standardized."""
    mean, std = moments
    return pixels.float().div_(255).sub_(mean).div_(std)
