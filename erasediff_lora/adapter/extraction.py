"""The LoRA of the difference of two checkpoints, so that a fine-tuned erasure becomes an adapter."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from erasediff_lora import __version__, families
from erasediff_lora.adapter import factors
from erasediff_lora.adapter.checkpoint import Checkpoint, fingerprint
from erasediff_lora.adapter.placing import FIRST
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.adapter.scaling import with_one_alpha
from erasediff_lora.adapter.weight_file import WeightFile
from erasediff_lora.adapter.weights import BIAS, LoraAdapter, LoraLayer, squeezed
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.families import Slot
from erasediff_lora.machine.progress import tqdm

log = logging.getLogger(__name__)
EMBEDDINGS = (".token_embedding", ".position_embedding", ".class_embedding", ".shared", ".relative_attention_bias")
"""Tables whose rows are looked up: a LoRA of one is another thing than that of a weight."""


@dataclass(frozen=True)
class Extracted:
    """An adapter and what it does not hold.

    Attributes:
        adapter: The adapter.
        energy: Share of Σ‖ΔW‖² over linear and convolution weights that it keeps, in [0, 1].
        unheld: Changed norms, biases and embeddings, which no LoRA holds, by the tuned checkpoint's names.
    """

    adapter: LoraAdapter
    energy: float
    unheld: list[str]


def extract(
    base: Path | str,
    tuned: Path | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    concepts: tuple[str, ...] = (),
    family: tuple[str, ...] = (),
) -> Extracted:
    """Factor W_tuned − W_base of every linear and convolution weight that changed.

    Args:
        base: The model before: diffusers folder, single file, or bare UNet.
        tuned: The model after, in any of these layouts.
        rank: The most that a layer may have.
        energy: Share of a layer's ‖ΔW‖² to keep, in (0, 1]; with `rank`, whichever is less.
        concepts: What was erased, for the header.
        family: Ids of the architectures that the base may be of, if that is known.

    Raises:
        UserError: If the models differ in shape, hold NaN, or do not differ at all.
    """
    before, after = Checkpoint(base), Checkpoint(tuned)
    _require_same_network(before, after, base, tuned)
    layers: dict[str, LoraLayer] = {}
    unheld: list[str] = []
    total = held = 0.0
    weights = [(name, file, slot) for file in after.main_files for name, slot in file.slots.items()]
    for name, file, slot in tqdm(weights, desc="extract", unit="weight"):
        pair = _pair(before, name, file, slot)
        if pair is None:
            continue
        old, new = pair
        if new.ndim not in (2, 4) or name.endswith(EMBEDDINGS):
            unheld.append(slot.key)
            continue
        delta = new.double() - old.double()
        if not bool(torch.isfinite(delta).all()):
            raise UserError(Problem("tuned", str(tuned), f"or its base has NaN or Inf in {name}.", "Get a sound file."))
        layers[name], share = factors.nearest(delta, rank, energy)
        norm = float(delta.square().sum())
        total, held = total + norm, held + share * norm
    unheld += _changed_biases(before, after)
    if not layers:
        raise UserError(
            Problem(
                "tuned",
                str(tuned),
                f"differs from {base} in no linear or convolution weight.",
                "Give the base first and the fine-tuned model second.",
            )
        )
    share = held / total
    provenance = replace(
        _origin(before, family),
        concepts=concepts,
        history=(f"extracted from {Path(tuned).name}, energy kept {share:.6f}",),
    )
    return Extracted(LoraAdapter(with_one_alpha(dict(sorted(layers.items()))), provenance), share, unheld)


def _origin(base: Checkpoint, family: tuple[str, ...]) -> Provenance:
    """Where an adapter of this base comes from."""
    return Provenance(
        base_model=base.path.name if base.is_folder else base.path.stem,
        base_fingerprint=fingerprint(base),
        architecture=_architecture(base, family),
        version=__version__,
    )


def _architecture(base: Checkpoint, family: tuple[str, ...]) -> str | None:
    """The base's, if that can be told.

    Raises:
        UserError: If it is another one than was said.
    """
    left = [name for name in base.architectures if name in family] if family else base.architectures
    if not left and base.architectures:
        named = " or ".join(base.architectures)
        raise UserError(Problem("--family", family[0], f"is not what {base.path} is.", f"It is {named}."))
    left = left or family
    return left[0] if len(left) == 1 else None


def _require_same_network(before: Checkpoint, after: Checkpoint, base: Path | str, tuned: Path | str) -> None:
    """Stop unless both models have the same weights; text encoders may have fewer layers, as diffusers leaves some out.

    Raises:
        UserError: If they have not: how many differ, and the first.
    """
    here, there = (
        {name: file.shape(slot) for file in model.main_files for name, slot in file.slots.items()}
        for model in (after, before)
    )
    networks = families.networks()
    other = [name for name in here.keys() & there.keys() if not _comparable(name, here[name], there[name])]
    lone = [name for name in here.keys() ^ there.keys() if name.partition(".")[0] in networks]
    if differing := sorted(other) or sorted(lone):
        first = differing[0]
        one, two = (list(shapes[first]) if first in shapes else "missing" for shapes in (here, there))
        more = f", and so are {len(differing) - 1} more" if len(differing) > 1 else ""
        raise UserError(
            Problem(
                "tuned",
                str(tuned),
                f"is no fine-tune of {base}: {first} is {one} here and {two} there{more}.",
                "Give the model that it was tuned from.",
            )
        )


def _comparable(name: str, one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether shapes are the same but for what may differ: 1×1 kernels, and further inputs of first convolutions."""
    if name.endswith(FIRST) and len(one) == len(other) == 4:
        return (one[0], one[2:]) == (other[0], other[2:])
    return squeezed(one) == squeezed(other)


def _pair(before: Checkpoint, name: str, file: WeightFile, slot: Slot) -> tuple[Tensor, Tensor] | None:
    """A weight in the base and in the tuned model, in the latter's shape.

    None of those that the base lacks, and of those that are the same at the precision that both have. Of first
    convolutions with different inputs, the ones that both have.
    """
    found = before.find(name)
    if found is None:
        return None
    new, old = file.weight(slot), found[0].weight(found[1])
    if name.endswith(FIRST) and new.shape != old.shape:
        inputs = min(new.shape[1], old.shape[1])
        counts = (name, old.shape[1], new.shape[1], inputs)
        log.info("note: %s has %d and %d inputs: the first %d are compared", *counts)
        new, old = new[:, :inputs], old[:, :inputs]
    old = old.reshape(new.shape)
    return None if file.is_same(slot, *found, (new, old)) else (old, new)


def _changed_biases(before: Checkpoint, after: Checkpoint) -> list[str]:
    """Biases that differ; a LoRA holds weights only."""
    found = []
    for file in after.main_files:
        for name in file.slots:
            if (located := before.find(name)) is None:
                continue
            mine, theirs = file.slot(name + BIAS), located[0].slot(name + BIAS)
            if mine is None or theirs is None:
                continue
            values = file.weight(mine), located[0].weight(theirs)
            if values[0].shape != values[1].shape or not file.is_same(mine, located[0], theirs, values):
                found.append(mine.key)
    return found
