"""Factors as a weight has them: a 1×1 convolution is a linear layer, and kernels may be written as matrices.

The one place that turns the one into the other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from erasediff_lora import families
from erasediff_lora.adapter.weights import AnyLayer, LoraLayer, magnitude_shape, squeezed


def like(layer: LoraLayer, shape: tuple[int, ...]) -> LoraLayer | None:
    """The layer with factors for a weight of this shape; None if it is for another weight."""
    if layer.shape == shape:
        return layer
    if squeezed(layer.shape) != squeezed(shape) and not is_flattened(layer, shape):
        return None
    rank, ones = layer.rank, [1] * (len(shape) - 2)
    magnitude = layer.magnitude
    return replace(
        layer,
        down=layer.down.reshape(rank, *shape[1:]),
        up=layer.up.reshape(shape[0], rank, *ones),
        magnitude=None if magnitude is None else magnitude.reshape(magnitude_shape(len(shape), layer.by_input)),
    )


def is_flattened(layer: LoraLayer, shape: tuple[int, ...]) -> bool:
    """Whether a layer is for a weight of this shape with its kernels as rows of a matrix, as ComfyUI reads it too."""
    return layer.shape == (shape[0], math.prod(shape[1:])) and not (layer.magnitude is not None and layer.by_input)


def canonical(layers: Mapping[str, AnyLayer], architectures: Collection[str]) -> dict[str, AnyLayer]:
    """The layers with factors as the modules have them, of the published models of these architectures."""
    published = _published(architectures)
    done = dict(layers)
    for name, layer in layers.items():
        shapes = published.get(name, [])
        if isinstance(layer, LoraLayer) and shapes and layer.shape not in shapes:
            made = (like(layer, shape) for shape in shapes)
            done[name] = next((one for one in made if one is not None), None) or _of_any_size(layer, shapes[0])
    return done


def _of_any_size(layer: LoraLayer, published: tuple[int, ...]) -> LoraLayer:
    """The same of a base that is smaller or larger than the published ones, as far as the shape tells."""
    (rows, *rest), kernel = squeezed(layer.shape), published[2:]
    if len(rest) != 1 or rest[0] % math.prod(kernel):
        return layer
    return like(layer, (rows, rest[0] // math.prod(kernel), *kernel)) or layer


def _published(architectures: Collection[str]) -> dict[str, list[tuple[int, ...]]]:
    """Module -> shapes of its weight in published models."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for family in families.asked():
        for size in families.sizes(family):
            for name, shape in size.shapes.items() if size.architecture.id in architectures else ():
                shapes.setdefault(name, []).append(shape)
    return shapes
