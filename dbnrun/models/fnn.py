"""The paper's fully connected network."""

from __future__ import annotations

from torch import Tensor, nn

from dbnrun.models.layers import NormFactory, block, needs_bias


class FNN(nn.Module):
    """x (N, …) flattened -> hidden layers of linear, normalization and activation -> logits (N, num_classes)."""

    def __init__(
        self, inputs: int, widths: list[int], num_classes: int, norm: NormFactory, activation: str, norm_position: str
    ) -> None:
        super().__init__()
        self.hidden = nn.ModuleList()
        for width in widths:
            layer = norm(width, 0)
            linear = nn.Linear(inputs, width, bias=needs_bias(layer, norm_position))
            self.hidden.append(block(linear, layer, activation, norm_position))
            inputs = width
        self.out = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for hidden in self.hidden:
            for layer in hidden.values():  # pyright: ignore[reportCallIssue]
                x = layer(x)
        return self.out(x)
