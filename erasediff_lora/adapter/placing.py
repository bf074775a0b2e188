"""Whether a layer fits a weight of a base: one place knows what may differ.

A 1×1 convolution is a linear layer. Factors of LoRA may have kernels as rows of a matrix, and those of some kinds have
a kernel's height and width among the inputs. The first convolution of bases for inpainting, of depth and of
instructions has further inputs behind those of the latents.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from erasediff_lora.adapter.checkpoint import Checkpoint
from erasediff_lora.adapter.composite import Composite
from erasediff_lora.adapter.pointwise import is_flattened
from erasediff_lora.adapter.weighted import Weighted
from erasediff_lora.adapter.weights import BIAS, Adapter, AnyLayer, LoraLayer, squeezed
from erasediff_lora.errors import Problem, UserError

log = logging.getLogger(__name__)
FIRST = ".conv_in"
"""What the name of a network's first convolution ends in."""


def columns_of(name: str, layer: AnyLayer, shape: tuple[int, ...]) -> int | None:
    """The columns of a weight, as a matrix, that a layer changes: all, or the first ones of a base with more inputs.

    None if the layer is for another weight.
    """
    if fits(layer, shape):
        return math.prod(shape[1:])
    is_first = name.endswith(FIRST) and len(shape) == 4 and layer.magnitude is None
    return math.prod(layer.shape[1:]) if is_first and _extends(layer, shape) else None


def require_places(weighted: Weighted, checkpoint: Checkpoint) -> None:
    """Stop unless a base has all weights that an adapter changes, in their shapes.

    Raises:
        UserError: If it has not: how many, and the first.
    """
    missing, other = [], []
    for name, layer in weighted.adapter.layers.items():
        found = checkpoint.find(name)
        if found is None:
            if not name.endswith(BIAS) or bool(layer.delta().any()):
                missing.append(name)
            continue
        shape = found[0].shape(found[1])
        columns = columns_of(name, layer, shape)
        if columns is None:
            other.append(f"{name} is {list(layer.shape)} here and {list(shape)} there")
        elif columns < math.prod(shape[1:]):
            known = columns // math.prod(shape[2:])
            log.info(
                "note: %s has %d inputs in %s and %d in %s: the others stay as they are",
                *(name, known, weighted.source, shape[1], checkpoint.path),
            )
    count = len(weighted.adapter.layers)
    if other:
        more = f" ({len(other)} of {count} weights differ)" if len(other) > 1 else ""
        what = f"does not fit {checkpoint.path}: {other[0]}{more}."
    elif missing and all(name.endswith(BIAS) for name in missing):
        first = missing[0].removesuffix(BIAS)
        raise UserError(
            Problem(
                "adapter",
                weighted.source,
                f"has biases for {len(missing)} layers that have none in {checkpoint.path}, such as {first}.",
                "Load it beside the model with peft or diffusers: merged, there is no place for them.",
            )
        )
    elif missing:
        what = f"adapts {len(missing)} weights that {checkpoint.path} does not have, such as {missing[0]}."
    else:
        return
    raise UserError(Problem("adapter", weighted.source, what, other_base(weighted.adapter)))


def fits(layer: AnyLayer | Any, shape: tuple[int, ...]) -> bool:
    """Whether a layer changes weights of this shape."""
    if isinstance(layer, Composite) and layer.kind.is_flat:
        return layer.shape == (shape[0], math.prod(shape[1:]))
    if isinstance(layer, LoraLayer) and is_flattened(layer, shape):
        return True
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
