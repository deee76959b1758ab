"""Networks. Each takes its normalizer as a factory, norm(features, spatial), and knows no kind of it."""

from __future__ import annotations

import math

from dbnrun.config import ModelConfig
from dbnrun.models.cnn import CNN
from dbnrun.models.fnn import FNN
from dbnrun.models.layers import Network, NormFactory, initialize
from dbnrun.models.two_layer import TwoLayer
from dbnrun.streams import Streams

__all__ = ["CNN", "FNN", "MODELS", "Network", "TwoLayer", "build_model"]


def _fnn(config: ModelConfig, shape: tuple[int, ...], classes: int, norm: NormFactory, _: Streams) -> Network:
    return FNN(math.prod(shape), config.widths, classes, norm, config.activation, str(config.norm_position))


def _cnn(config: ModelConfig, shape: tuple[int, ...], classes: int, norm: NormFactory, streams: Streams) -> Network:
    assert config.dropout is not None
    position = str(config.norm_position)
    return CNN(shape, config.widths, classes, norm, config.activation, position, config.dropout, streams.dropout)


def _two_layer(config: ModelConfig, shape: tuple[int, ...], classes: int, norm: NormFactory, _: Streams) -> Network:
    return TwoLayer(math.prod(shape), config.widths[0], classes, norm, config.activation)


MODELS = {"fnn": _fnn, "cnn": _cnn, "two_layer": _two_layer}


def build_model(
    config: ModelConfig, input_shape: tuple[int, ...], num_classes: int, norm: NormFactory, streams: Streams
) -> Network:
    """The network that conf/model names, on the CPU, with weights from the seed's initialization stream."""
    model = MODELS[config.name](config, input_shape, num_classes, norm, streams)
    initialize(model, streams.init)
    return model
