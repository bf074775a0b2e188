"""What the tensors behind a module's name are, in the names of kohya and LyCORIS: LoRA, another kind, or a bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from erasediff_lora.adapter.composite import StoredComposite, composite, is_by_input
from erasediff_lora.adapter.kinds import full
from erasediff_lora.adapter.kinds.base import Kind
from erasediff_lora.adapter.weights import BIAS, StoredLayer, unusable
from erasediff_lora.registry import KINDS
from erasediff_lora.storage.tensors import StoredTensor

T = TypeVar("T")
DOWN, UP, ALPHA, MAGNITUDE = "lora_down.weight", "lora_up.weight", "alpha", "dora_scale"
UP_BIAS = "lora_up.bias"
"""B's own bias (peft's `lora_bias`), which adds itself times the scale to the bias of the base."""
_LORA = frozenset((DOWN, UP))


def part_names() -> frozenset[str]:
    """All that may stand behind a module's name and a dot."""
    kinds = (KINDS[name].parts for name in KINDS)
    return _LORA.union((ALPHA, MAGNITUDE), full.BIASES, *kinds)


def layers_of(
    name: str,
    parts: Mapping[str, StoredTensor],
    source: Path,
    theirs: str | None = None,
    *,
    alpha: float | None = None,
    rank: int | None = None,
    rslora: bool = False,
) -> dict[str, StoredLayer | StoredComposite]:
    """The updates that the parts of a module make up: of its weight, and of its bias.

    Args:
        name: The module, such as 'unet.conv_in'.
        parts: Its tensors by what stands behind its name.
        source: The file, for messages.
        theirs: What the file calls the module, for messages.
        alpha: From the file's configuration, where no tensor says it.
        rank: What that divides alpha by, if not the rank that the tensors have.
        rslora: Whether LoRA's scale is alpha / sqrt(r).

    Raises:
        UserError: If parts are missing, are of several kinds, or do not fit.
    """
    theirs = theirs or name
    alpha = float(parts[ALPHA].array().item()) if ALPHA in parts else alpha
    magnitude = parts.get(MAGNITUDE)
    found: dict[str, StoredLayer | StoredComposite] = {}
    try:
        for part in full.BIASES & parts.keys():
            found[name + BIAS] = composite(KINDS["full"], {full.WEIGHT: parts[part]}, None)
        kind, mine = _kind_of(parts)
        if magnitude is not None and (not mine or (kind is not None and not kind.has_magnitudes)):
            raise ValueError(f"{MAGNITUDE} beside {', '.join(sorted(parts.keys() - {ALPHA, MAGNITUDE}))}")
        if kind is not None:
            found[name] = composite(kind, mine, alpha, rank, magnitude)
        elif mine:
            found[name] = layer = _lora(mine, alpha, magnitude, rslora, source, theirs)
            if UP_BIAS in parts:
                found[name + BIAS] = replace(_bias_of(parts), scale=layer.scale)
    except ValueError as error:
        raise unusable(source, f"has parts that do not fit at {theirs}: {error}.") from None
    return found


def _bias_of(parts: Mapping[str, StoredTensor]) -> StoredComposite:
    """B's bias, as a difference of the base's.

    Raises:
        ValueError: If there is another one, or DoRA, with which it would mean something else.
    """
    if others := {MAGNITUDE, *full.BIASES} & parts.keys():
        raise ValueError(f"{UP_BIAS} beside {', '.join(sorted(others))}")
    bias = parts[UP_BIAS]
    if bias.shape != parts[UP].shape[:1]:
        raise ValueError(f"{UP_BIAS} is {list(bias.shape)}, {UP} {list(parts[UP].shape)}")
    return composite(KINDS["full"], {full.WEIGHT: bias}, None)


def shape_of(parts: Mapping[str, StoredTensor]) -> tuple[int, ...] | None:
    """Shape of the weight that parts of another kind than LoRA change; None if they are LoRA's, or do not fit."""
    try:
        kind, mine = _kind_of(parts)
        return None if kind is None else kind.shape(mine)
    except ValueError:
        return None


def _kind_of(parts: Mapping[str, T]) -> tuple[Kind | None, dict[str, T]]:
    """The kind that a module's parts are of, and the parts of its weight; no kind: LoRA's, or none.

    Raises:
        ValueError: If they are of more than one kind; it says which parts are left over.
    """
    beside = {ALPHA, MAGNITUDE, *full.BIASES}
    rest = {part: tensor for part, tensor in parts.items() if part not in beside}
    kind: Kind | None = next((KINDS[name] for name in KINDS if rest.keys() & KINDS[name].marks), None)
    if kind is None and rest.keys() & _LORA:
        rest.pop(UP_BIAS, None)
    foreign = rest.keys() - (_LORA if kind is None else kind.parts)
    if foreign:
        raise ValueError(f"{', '.join(sorted(foreign))} beside {', '.join(sorted(rest.keys() - foreign))}")
    return kind, {full.ALIASES.get(part, part): tensor for part, tensor in rest.items()}


def _of_one_kind(down: StoredTensor, up: StoredTensor) -> tuple[StoredTensor, StoredTensor]:
    """A and B of a convolution where one of them is written as a matrix, as LyCORIS' DyLoRA does."""
    if down.ndim == 4 and up.ndim == 2:
        return down, replace(up, shape=(*up.shape, 1, 1))
    if up.ndim == 4 and down.ndim == 2 and up.shape[2:] == (1, 1):
        return replace(down, shape=(*down.shape, 1, 1)), up
    return down, up


def _lora(
    parts: Mapping[str, StoredTensor],
    alpha: float | None,
    magnitude: StoredTensor | None,
    rslora: bool,
    source: Path,
    theirs: str,
) -> StoredLayer:
    for part in (DOWN, UP):
        if part not in parts:
            raise unusable(source, f"lacks the tensor {theirs}.{part}.")
    down, up = _of_one_kind(parts[DOWN], parts[UP])
    rank = down.shape[0] if down.ndim else 1
    is_single = magnitude is not None and magnitude.count == up.shape[0] == 1
    by_input = magnitude is not None and is_by_input(magnitude) and not is_single
    alpha = float(rank) if alpha is None else alpha
    return StoredLayer(down, up, alpha, rslora, magnitude, by_input=by_input)
