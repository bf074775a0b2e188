"""Layers by the names of the authors' own code, which holds several of diffusers' weights in one.

Adapters of rank r of q, k and v are one of rank 3r of the whole: A_q, A_k and A_v one below the other, and B block
diagonal. It is exact. Where they share A, as they do when they were read from such a weight, it stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from erasediff_lora.adapter.weights import LoraLayer
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.families import NativeNames
from erasediff_lora.families.native import Stacked

if TYPE_CHECKING:
    from torch import Tensor


def in_native_names(layers: Mapping[str, LoraLayer], native: NativeNames) -> dict[str, LoraLayer]:
    """Name of a module in the authors' code, with the component before it, -> layer; encoders' stay as they are.

    Raises:
        UserError: If a DoRA leaves out a part of a weight of theirs: its magnitudes are the base's there.
    """
    found: dict[str, LoraLayer] = {}
    for module, layer in layers.items():
        component, _, path = module.partition(".")
        held = native.holding(path) if component == native.component else None
        if held is None:
            found[module] = layer
        elif (name := f"{component}.{held.name}") not in found:
            found[name] = _whole(name, held, [layers.get(f"{component}.{ours}") for ours in held.modules])
    return found


def biases_in_native_names(biases: Mapping[str, Tensor], native: NativeNames) -> dict[str, Tensor]:
    """The same of what is added to biases; nothing is added to those of the parts that are not there."""
    import torch

    found: dict[str, Tensor] = {}
    for module, bias in biases.items():
        component, _, path = module.partition(".")
        held = native.holding(path) if component == native.component else None
        if held is None:
            found[module] = bias
            continue
        unit = len(bias) // held.shares[held.modules.index(path)]
        parts = [
            biases.get(f"{component}.{ours}", bias.new_zeros(unit * share))
            for ours, share in zip(held.modules, held.shares, strict=True)
        ]
        found[f"{component}.{held.name}"] = torch.cat(_turned(parts[0]) if held.swapped else parts)
    return found


def _turned(tensor: Tensor) -> list[Tensor]:
    """Its halves, the second one first."""
    return list(reversed(tensor.chunk(2)))


def _whole(name: str, held: Stacked, parts: Sequence[LoraLayer | None]) -> LoraLayer:
    import torch

    there = [part for part in parts if part is not None]
    if held.swapped:
        (only,) = there
        swapped = torch.cat(_turned(only.up))
        magnitude = only.magnitude
        if magnitude is not None and not only.by_input:
            magnitude = torch.cat(_turned(magnitude))
        return replace(only, up=swapped, magnitude=magnitude)
    if len(parts) == 1:
        return there[0]
    if any(part.magnitude is not None for part in there):
        return _whole_dora(name, there, parts)
    return _joined(there, parts, held.shares)


def _whole_dora(name: str, there: Sequence[LoraLayer], parts: Sequence[LoraLayer | None]) -> LoraLayer:
    """Of all parts: their norms are those of rows, which stay what they are."""
    import torch

    if len(there) < len(parts) or any(part.magnitude is None or part.by_input for part in there):
        raise UserError(
            Problem(
                "adapter",
                name,
                "is one weight there, of which this DoRA changes a part; the rest has no magnitudes.",
                "Write it as diffusers or peft, or make it a LoRA with convert --as lora --rank RANK --base BASE.",
            )
        )
    magnitudes = [part.magnitude for part in there if part.magnitude is not None]
    return replace(_joined(there, parts, (1,) * len(parts)), magnitude=torch.cat(magnitudes))


def _joined(there: Sequence[LoraLayer], parts: Sequence[LoraLayer | None], shares: Sequence[int]) -> LoraLayer:
    """One layer of all; rows of parts that are not changed are zero."""
    import torch

    first = there[0]
    unit = next(len(part.up) // share for part, share in zip(parts, shares, strict=True) if part is not None)
    heights = [unit * share if part is None else len(part.up) for part, share in zip(parts, shares, strict=True)]
    alike = all(part.scale == first.scale for part in there)
    ups = [part.up if alike else part.up.float() * part.scale for part in there]
    scale = first.scale if alike else 1.0
    if len(there) == len(parts) and all(_same(part.down, first.down) for part in there):
        up, down = torch.cat(ups), first.down
    else:
        down = torch.cat([part.down for part in there])
        rest, columns = iter(ups), iter(_starts([part.rank for part in there]))
        up = ups[0].new_zeros(sum(heights), len(down))
        for part, top in zip(parts, _starts(heights), strict=True):
            if part is not None:
                block, left = next(rest), next(columns)
                up[top : top + len(block), left : left + block.shape[1]] = block.flatten(1)
    return LoraLayer(down, up, alpha=scale * len(down))


def _starts(lengths: Sequence[int]) -> list[int]:
    return [sum(lengths[:index]) for index in range(len(lengths))]


def _same(one: Tensor, other: Tensor) -> bool:
    import torch

    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
