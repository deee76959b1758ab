"""The network of the paper's analysis."""

from __future__ import annotations

from torch import Tensor, nn

from dbnrun.models.layers import ACTIVATIONS, Network, NormFactory, map_before


class TwoLayer(Network):
    """Equations 3 to 5, without biases: z1 = a(W1 x), y1 = DBN(z1), z2 = a(W2 y1).

    The normalizer acts after the activation. x (N, …) flattened to (N, n) -> z2 (N, num_classes).
    """

    def __init__(self, inputs: int, width: int, num_classes: int, norm: NormFactory, activation: str) -> None:
        super().__init__()
        self.w1 = map_before(norm, nn.Linear(inputs, width, bias=False))
        self.norm = norm(width, 0)
        self.w2 = nn.Linear(width, num_classes, bias=False)
        self.a = ACTIVATIONS[activation]()

    def prefix(self, x: Tensor) -> Tensor:
        return self.a(self.w1(x.flatten(1)))  # z1

    def suffix(self, h: Tensor) -> Tensor:
        y1 = self.norm(h)
        return self.a(self.w2(y1))  # z2
