"""The paper's fully connected network."""

from __future__ import annotations

from torch import Tensor, nn

from dbnrun.models.layers import Network, NormFactory, before_norm, block, from_norm, map_before, needs_bias


class FNN(Network):
    """x (N, …) flattened -> hidden layers of linear, normalization and activation -> logits (N, num_classes)."""

    def __init__(
        self, inputs: int, widths: list[int], num_classes: int, norm: NormFactory, activation: str, norm_position: str
    ) -> None:
        super().__init__()
        self.hidden = nn.ModuleList()
        for width in widths:
            layer = norm(width, 0)
            linear = nn.Linear(inputs, width, bias=needs_bias(norm, norm_position))
            self.hidden.append(block(map_before(norm, linear), layer, activation, norm_position))
            inputs = width
        self.out = nn.Linear(inputs, num_classes)

    def prefix(self, x: Tensor) -> Tensor:
        return before_norm(self.hidden[0], x.flatten(1))

    def suffix(self, h: Tensor) -> Tensor:
        h = from_norm(self.hidden[0], h)
        for hidden in self.hidden[1:]:
            h = from_norm(hidden, before_norm(hidden, h))
        return self.out(h)
