"""Making a plain LoRA of an adapter of any kind, so that every program reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from erasediff_lora.adapter import factors, updates
from erasediff_lora.adapter.checkpoint import Checkpoint, fingerprint
from erasediff_lora.adapter.composite import Composite
from erasediff_lora.adapter.extraction import EMBEDDINGS
from erasediff_lora.adapter.placing import fits, other_base
from erasediff_lora.adapter.scaling import in_factors, with_one_alpha
from erasediff_lora.adapter.weights import Adapter, AnyLayer, LoraAdapter, LoraLayer
from erasediff_lora.errors import Problem, UserError

_KERNEL = re.compile(r"(.*\.)?(conv_in|conv_out|conv1|conv2|(down|up)samplers\.\d+\.conv)")
"""Modules of UNets with kernels of 3×3."""


@dataclass(frozen=True)
class Reduced:
    """A plain LoRA and what it does not hold.

    Attributes:
        adapter: The LoRA.
        energy: Share of Σ‖ΔW‖² over linear and convolution weights that it keeps, in [0, 1].
        exact: How many of its layers are as they were.
        unheld: Norms, biases and embeddings that the adapter changes.
    """

    adapter: LoraAdapter
    energy: float
    exact: int
    unheld: list[str]


def as_lora(
    adapter: Adapter[AnyLayer],
    source: str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    base: Path | str | None = None,
    strict: bool = False,
) -> Reduced:
    """The nearest LoRA, layer by layer, by SVD of ΔW; layers that are plain LoRA of that rank stay as they are.

    Args:
        adapter: Of any kind.
        source: What the user calls it.
        rank: The most that a layer may have.
        energy: Share of a layer's ‖ΔW‖² to keep, in (0, 1]; with `rank`, whichever is less.
        base: The model that it is for: ΔW of a DoRA depends on its weights.
        strict: Refuse another base than the adapter's own instead of warning.

    Raises:
        UserError: If the base is needed and missing, does not fit, or there is nothing that a LoRA can hold.
    """
    checkpoint = None if base is None else Checkpoint(base)
    if checkpoint is None:
        _require_no_dora(adapter, source)
    else:
        adapter.provenance.require_base(fingerprint(checkpoint), str(base), strict=strict)
    layers: dict[str, LoraLayer] = {}
    unheld: list[str] = []
    total = held = 0.0
    exact = 0
    for name, layer in tqdm(adapter.layers.items(), desc="convert", unit="weight"):
        if len(layer.shape) == 1 or name.endswith(EMBEDDINGS):
            unheld.append(name)
            continue
        is_plain = isinstance(layer, LoraLayer) and layer.magnitude is None
        if isinstance(layer, LoraLayer) and is_plain and (rank is None or layer.rank <= rank):
            layers[name], share = layer, 1.0
            norm = float(factors.orthonormal(layer)[1].square().sum())
            exact += 1
        else:
            delta = _change(name, layer, checkpoint, adapter, source)
            layers[name], share = factors.nearest(delta, rank, energy)
            norm = float(delta.square().sum())
        total, held = total + norm, held + share * norm
    if not layers:
        raise UserError(
            Problem("adapter", source, f"changes norms and biases only, {len(unheld)} of them.", "Merge it instead.")
        )
    kept = held / total if total else 1.0
    provenance = adapter.provenance
    if adapter.architecture is None and checkpoint is not None and len(checkpoint.architectures) == 1:
        provenance = replace(provenance, architecture=checkpoint.architectures[0])
    made = LoraAdapter(layers, provenance, adapter.header, adapter.possible)
    if exact < len(layers):
        made = replace(made, layers=with_one_alpha(dict(in_factors(made).layers)))
    return Reduced(made.with_history(f"made a LoRA, energy kept {kept:.6f}"), kept, exact, unheld)


def _change(
    name: str, layer: AnyLayer, checkpoint: Checkpoint | None, adapter: Adapter[AnyLayer], source: str
) -> Tensor:
    """ΔW in float64."""
    if checkpoint is None:
        return layer.delta().double().reshape(_shape(name, layer))
    found = checkpoint.find(name)
    if found is None or not fits(layer, found[0].shape(found[1])):
        there = "missing" if found is None else list(found[0].shape(found[1]))
        raise UserError(
            Problem(
                "--base",
                str(checkpoint.path),
                f"does not fit {source}: {name} is {there} there and {list(layer.shape)} here.",
                other_base(adapter),
            )
        )
    return updates.change(layer, found[0].weight(found[1]))


def _shape(name: str, layer: AnyLayer) -> tuple[int, ...]:
    """The weight's shape; of flat kinds by what the module is."""
    rows, *rest = layer.shape
    is_flat = isinstance(layer, Composite) and layer.kind.is_flat
    if is_flat and _KERNEL.fullmatch(name) and rest[0] % 9 == 0:
        return rows, rest[0] // 9, 3, 3
    return layer.shape


def _require_no_dora(adapter: Adapter[AnyLayer], source: str) -> None:
    dora = [name for name, layer in adapter.layers.items() if layer.magnitude is not None]
    if dora:
        raise UserError(
            Problem(
                "--base",
                None,
                f"must be given: {source} has DoRA at {len(dora)} weights, first at {dora[0]}, and what that changes"
                " depends on the base's weights.",
                "Give the model that it was trained on.",
            )
        )
