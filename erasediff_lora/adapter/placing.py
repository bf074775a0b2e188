"""Whether a layer fits a weight of a base: one place knows what may differ.

A 1×1 convolution is a linear layer. Factors of some kinds have a kernel's height and width among the inputs. The first
convolution of bases for inpainting, of depth and of instructions has further inputs behind those of the latents.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from erasediff_lora.adapter.checkpoint import Checkpoint
from erasediff_lora.adapter.composite import Composite
from erasediff_lora.adapter.weighted import Weighted
from erasediff_lora.adapter.weights import Adapter, AnyLayer, squeezed
from erasediff_lora.errors import Problem, UserError

log = logging.getLogger(__name__)
FIRST = ".conv_in"
"""What the name of a network's first convolution ends in."""


def placed(name: str, layer: AnyLayer, shape: tuple[int, ...], weighted: Weighted, checkpoint: Checkpoint) -> int:
    """The columns of a weight, as a matrix, that a layer changes: all, or the first ones of a base with more inputs.

    Raises:
        UserError: If the layer is for another weight.
    """
    columns = math.prod(shape[1:])
    if fits(layer, shape):
        return columns
    mine = layer.shape
    if name.endswith(FIRST) and len(shape) == 4 and _extends(layer, shape) and layer.magnitude is None:
        count = math.prod(mine[1:]) // math.prod(shape[2:])
        log.info(
            "note: %s has %d inputs in %s and %d in %s: the others stay as they are",
            *(name, count, weighted.source, shape[1], checkpoint.path),
        )
        return math.prod(mine[1:])
    raise UserError(
        Problem(
            "adapter",
            weighted.source,
            f"does not fit {checkpoint.path}: {name} is {list(mine)} here and {list(shape)} there.",
            other_base(weighted.adapter),
        )
    )


def fits(layer: AnyLayer | Any, shape: tuple[int, ...]) -> bool:
    """Whether a layer changes weights of this shape."""
    if isinstance(layer, Composite) and layer.kind.is_flat:
        return layer.shape == (shape[0], math.prod(shape[1:]))
    return squeezed(shape) == squeezed(layer.shape)


def _extends(layer: AnyLayer, shape: tuple[int, ...]) -> bool:
    """Whether a kernel has the layer's inputs and more."""
    kernel = math.prod(shape[2:])
    rows, *rest = layer.shape
    same = len(rest) == 1 or tuple(rest[1:]) == shape[2:]
    return rows == shape[0] and same and math.prod(rest) % kernel == 0 and math.prod(rest) < math.prod(shape[1:])


def other_base(adapter: Adapter[Any]) -> str:
    """What base an adapter is for, as a remedy."""
    named = f", {adapter.provenance.base_model!r}" if adapter.provenance.base_model else ""
    return f"It is an adapter for a {adapter.architecture} base{named}."
