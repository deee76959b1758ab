"""How several networks' convolutions are best done at once: forward and backward, bf16, channels last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Finding
from bench.subjects import BATCH, captured
from bench.timing import by_turns, ratio

SHAPES = ((32, 32), (64, 16))  # channels in and out, height and width: the second and the fourth convolution


def grouped(x: Tensor, weight: Tensor, networks: int) -> Tensor:
    """One convolution with a group a network; x (B, T*C, H, W), weight (T*C, C, 3, 3)."""
    return F.conv2d(x, weight, padding=1, groups=networks)


def apart(x: Tensor, weight: Tensor, networks: int) -> Tensor:
    """A convolution a network; on a device each in a stream of its own."""
    pairs = list(zip(x.chunk(networks, 1), weight.chunk(networks), strict=True))
    if x.device.type != "cuda":
        return torch.cat([F.conv2d(*pair, padding=1) for pair in pairs], 1)
    here, results = torch.cuda.current_stream(), []
    for pair, stream in zip(pairs, _streams(networks), strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            results.append(F.conv2d(*pair, padding=1))
    for stream in _streams(networks):
        here.wait_stream(stream)
    return torch.cat(results, 1)


_made: list[torch.cuda.Stream] = []


def _streams(count: int) -> Sequence[torch.cuda.Stream]:
    _made.extend(torch.cuda.Stream() for _ in range(count - len(_made)))
    return _made[:count]


def unfolded(x: Tensor, weight: Tensor, networks: int) -> Tensor:
    """Patches as columns, and one batched matrix product."""
    b, channels, height, width = x.shape
    columns = F.unfold(x, 3, padding=1).view(b, networks, -1, height * width)  # (B, T, C*9, H*W)
    kernels = weight.view(networks, channels // networks, -1)  # (T, C, C*9)
    return (kernels @ columns).view(b, channels, height, width)


VARIANTS = {
    "a convolution a network, in streams": apart,
    "unfold and a batched product": unfolded,
    "grouped": grouped,
}


def measure(device: str) -> Iterator[Finding]:
    for networks in (10, 50) if device == "cuda" else (5,):
        for channels, size in SHAPES:
            times = by_turns(
                {name: _subject(how, networks, channels, size, device) for name, how in VARIANTS.items()},
                rounds=5,
                least=0.05,
            )
            label = f"convolutions of {networks} networks, {channels} channels, {size}x{size}"
            for name in list(VARIANTS)[:-1]:
                yield ratio("grid", f"{label}: {name}, over one grouped", times[name], times["grouped"])


def _subject(
    how: Callable[[Tensor, Tensor, int], Tensor], networks: int, channels: int, size: int, device: str
) -> Callable[[], object]:
    shape = (BATCH, networks * channels, size, size)
    like = {"device": device, "dtype": torch.bfloat16}
    x, g = (torch.randn(shape, **like).contiguous(memory_format=torch.channels_last) for _ in range(2))
    x.requires_grad_()
    weight = torch.randn(networks * channels, channels, 3, 3, requires_grad=True, **like)

    def step() -> None:
        x.grad = weight.grad = None
        how(x, weight, networks).backward(g)

    return captured(step, [], torch.optim.SGD([weight])) if device == "cuda" else step
