"""The paper's convolutional network for CIFAR-10."""

from __future__ import annotations

from torch import Generator, Tensor, nn

from dbnrun.models.layers import Dropout, Network, NormFactory, before_norm, block, from_norm, map_before, needs_bias


class CNN(Network):
    """Conv-Conv-MaxPool-Dropout twice, then FC-Dropout-FC; the convolutions and the first FC are normalized.

    x (N, C, H, W), H and W at least 4 -> logits (N, num_classes). Convolutions are 3x3 with padding 1, pools 2x2.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        widths: list[int],
        num_classes: int,
        norm: NormFactory,
        activation: str,
        norm_position: str,
        dropout: list[float],
        dropout_rng: Generator,
    ) -> None:
        super().__init__()
        channels, height, length = input_shape
        self.convs = nn.ModuleList()
        for width in widths[:4]:
            layer = norm(width, 2)
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=needs_bias(norm, norm_position))
            self.convs.append(block(map_before(norm, conv), layer, activation, norm_position))
            channels = width
        layer = norm(widths[4], 0)
        linear = nn.Linear(channels * (height // 4) * (length // 4), widths[4], bias=needs_bias(norm, norm_position))
        self.hidden = block(map_before(norm, linear), layer, activation, norm_position)
        self.pool = nn.MaxPool2d(2)
        self.dropouts = nn.ModuleList(Dropout(rate, dropout_rng) for rate in dropout)
        self.out = nn.Linear(widths[4], num_classes)

    def prefix(self, x: Tensor) -> Tensor:
        return before_norm(self.convs[0], x)

    def suffix(self, h: Tensor) -> Tensor:
        for index, conv in enumerate(self.convs):
            h = from_norm(conv, h if index == 0 else before_norm(conv, h))
            if index % 2:
                h = self.dropouts[index // 2](self.pool(h))
        h = from_norm(self.hidden, before_norm(self.hidden, h.flatten(1)))
        return self.out(self.dropouts[2](h))
