"""What adapters do to a tensor of a base, block by block.

W' = W + Σ s · ΔW. A DoRA's ΔW is m · (W + Δ) / ‖W + Δ‖ − W, with Δ = scale · B A and one norm and one magnitude m for
each output (peft, LyCORIS) or each input (OneTrainer, old LyCORIS); s mixes linearly, as in ComfyUI, so that nothing is
changed at 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from erasediff_lora.adapter.kinds.base import chunks
from erasediff_lora.adapter.weight_file import WeightFile
from erasediff_lora.adapter.weights import AnyLayer
from erasediff_lora.families import Slot


@dataclass(frozen=True)
class Update:
    """One layer's part in one tensor.

    Attributes:
        layer: What changes it.
        slot: Where in the tensor.
        strength: How much; negative to take it out.
        columns: The layer's inputs times kernel; fewer than the tensor's where a base has further inputs.
        norms: Of DoRA by input: ‖W + Δ‖ of each input; None otherwise.
    """

    layer: AnyLayer
    slot: Slot
    strength: float
    columns: int
    norms: Tensor | None = None

    def prepared(self, file: WeightFile) -> Update:
        """The same with what has to be known of the whole tensor before any block of it can be changed."""
        if self.layer.magnitude is None or not self.layer.by_input:
            return self
        return self.with_norms(file.weight(self.slot))

    def with_norms(self, weight: Tensor) -> Update:
        """The same with the norms of a DoRA by input."""
        if self.layer.magnitude is None or not self.layer.by_input:
            return self
        weight = weight.flatten(1)
        squares = torch.zeros(weight.shape[1], dtype=torch.float64)
        for first, last in chunks(tuple(weight.shape)):
            rows = weight[first:last].double()
            self.layer.add_to(rows, first, 1.0)
            squares += rows.square().sum(0)
        inputs = squares.view(self.layer.magnitude.numel(), -1).sum(1)
        return replace(self, norms=inputs.sqrt())


@torch.no_grad()
def change(layer: AnyLayer, weight: Tensor) -> Tensor:
    """All that a layer at strength 1 does to a weight, in float64 and the weight's shape."""
    rows = weight.flatten(1).double()
    update = Update(layer, Slot(""), 1.0, rows.shape[1]).with_norms(weight)
    changed = rows.clone()
    apply(changed, 0, rows=len(rows), updates=[update])
    return (changed - rows).reshape(weight.shape)


@torch.no_grad()
def apply(block: Tensor, first: int, *, rows: int, updates: Sequence[Update]) -> None:
    """Change a block of a tensor in place.

    Args:
        block: Some rows of the tensor, in float32 or float64.
        first: The first one's number.
        rows: How many the tensor has.
        updates: All that happens to the tensor.
    """
    is_scaled = any(update.layer.magnitude is not None for update in updates)
    before = block.clone() if is_scaled else block
    for update in updates:
        for here, there in _stretches(update.slot, rows, first, len(block)):
            part = block[here, : update.columns]
            if update.layer.magnitude is None:
                update.layer.add_to(part, there, update.strength)
            else:
                original = before[here, : update.columns]
                part.add_(_scaled(update, original, there) - original, alpha=update.strength)


def _scaled(update: Update, weight: Tensor, first: int) -> Tensor:
    """What a DoRA makes, m (W + Δ) / ‖W + Δ‖, of some rows; rows and columns without length stay without."""
    layer = update.layer
    assert layer.magnitude is not None
    moved = weight.clone()
    layer.add_to(moved, first, 1.0)
    magnitude = layer.magnitude.flatten().to(moved.dtype)
    if update.norms is None:
        factor = (magnitude[first : first + len(moved)] / moved.norm(dim=1))[:, None]
    else:
        factor = magnitude / update.norms.to(moved.dtype)
        factor = factor.repeat_interleave(moved.shape[1] // len(factor))[None]
    return moved * torch.where(factor.isfinite(), factor, 0)


def _stretches(slot: Slot, rows: int, first: int, count: int) -> Iterator[tuple[slice, int]]:
    """Which rows of a block belong to a slot, and the number of the first of each stretch in the slot's weight."""
    for offset, start, height in slot.stretches(rows):
        begin, end = max(first, offset), min(first + count, offset + height)
        if begin < end:
            yield slice(begin - first, end - first), begin - offset + start
