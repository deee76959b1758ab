"""A network of the user's own as one of a cell's."""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dbnrun.models.convert import convert_norm
from dbnrun.models.layers import Network, NormFactory, global_draws_from


class OwnNetwork(Network):
    """The network that `make` makes, x (N, *input_shape) -> logits (N, num_classes).

    What torch's global generator gives its constructor comes from the cell's initialization, and what it gives its
    `forward` in training from the cell's dropout, whichever layer or function draws. Where the first normalizer stands
    is unknown, so all of the network is suffix. `exchange` takes the place of its batch norms; None: they stay.
    """

    def __init__(self, make: Callable[[], nn.Module], exchange: NormFactory | None, dropout_rng: Generator) -> None:
        super().__init__()
        self.make, self.exchange, self.dropout_rng = make, exchange, dropout_rng

    def initialize(self, generator: Generator) -> None:
        """Make the network: its constructor draws the weights, and any buffers."""
        with global_draws_from(generator):
            net = self.make()
        if self.exchange is not None and any(isinstance(layer, _BatchNorm) for layer in net.modules()):
            net = convert_norm(net, self.exchange)
        self.net = net

    def prefix(self, x: Tensor) -> Tensor:
        return x

    def suffix(self, h: Tensor) -> Tensor:
        if not self.training:
            return self.net(h)
        with global_draws_from(self.dropout_rng):
            return self.net(h)
