"""A 1×1 convolution is a linear layer: the one place that turns factors of the one into factors of the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from erasediff_lora import families
from erasediff_lora.adapter.weights import AnyLayer, LoraLayer, magnitude_shape, squeezed


def like(layer: LoraLayer, shape: tuple[int, ...]) -> LoraLayer | None:
    """The layer with factors for a weight of this shape; None if it is for another weight."""
    if layer.shape == shape:
        return layer
    if squeezed(layer.shape) != squeezed(shape):
        return None
    rank, ones = layer.rank, [1] * (len(shape) - 2)
    magnitude = layer.magnitude
    return replace(
        layer,
        down=layer.down.reshape(rank, *shape[1:]),
        up=layer.up.reshape(shape[0], rank, *ones),
        magnitude=None if magnitude is None else magnitude.reshape(magnitude_shape(len(shape), layer.by_input)),
    )


def canonical(layers: Mapping[str, AnyLayer], architecture: str | None) -> dict[str, AnyLayer]:
    """The layers with factors as the architecture's modules have them, where it has published models."""
    convolutions = _convolutions(architecture)
    done = dict(layers)
    for name, layer in layers.items():
        if name in convolutions and isinstance(layer, LoraLayer):
            shape = squeezed(layer.shape)
            if len(shape) == 2:
                done[name] = like(layer, (*shape, 1, 1) if convolutions[name] else shape) or layer
    return done


def _convolutions(architecture: str | None) -> dict[str, bool]:
    """Module -> whether it is a convolution."""
    found = families.of_architecture(architecture)
    if found is None:
        return {}
    family, one = found
    sizes = [size for size in families.sizes(family) if size.architecture is one]
    return {name: len(shape) == 4 for size in sizes for name, shape in size.shapes.items()}
