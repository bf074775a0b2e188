"""Making one adapter of several, and telling beforehand which will disturb each other."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from erasediff_lora.adapter import factors
from erasediff_lora.adapter.pointwise import like
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.adapter.scaling import with_one_alpha
from erasediff_lora.adapter.weighted import Weighted
from erasediff_lora.adapter.weights import LoraAdapter, LoraLayer, squeezed
from erasediff_lora.errors import Problem, UserError

log = logging.getLogger(__name__)
MEASURES = (
    "input_overlap",
    "input_chance",
    "output_overlap",
    "output_chance",
    "interference",
    "interference_chance",
    "cosine",
)


def stack(adapters: Sequence[Weighted]) -> LoraAdapter:
    """One adapter whose ΔW is the sum of all, exactly: ranks are concatenated, strength and scale go into B.

    Raises:
        UserError: If the adapters are for different bases, or one is a DoRA.
    """
    require_same_base(adapters)
    plain = [(weighted.plain("stack"), weighted.strength) for weighted in adapters]
    for weighted in adapters:
        weighted.warn_of_strength()
    layers = {}
    for name in sorted({name for adapter, _ in plain for name in adapter.layers}):
        parts = [(adapter.layers[name], strength) for adapter, strength in plain if name in adapter.layers]
        parts = [(like(layer, parts[0][0].shape) or layer, strength) for layer, strength in parts]
        layers[name] = LoraLayer(
            down=torch.cat([layer.down.float() for layer, _ in parts]),
            up=torch.cat([layer.up.double() * (layer.scale * strength) for layer, strength in parts], dim=1).float(),
            alpha=float(sum(layer.rank for layer, _ in parts)),
        )
    biases: dict[str, torch.Tensor] = {}
    for adapter, strength in plain:
        for name, bias in adapter.biases.items():
            biases[name] = bias * strength + biases[name] if name in biases else bias * strength
    return LoraAdapter(with_one_alpha(layers), _provenance(adapters), biases=biases)


def compress(adapter: LoraAdapter, rank: int) -> tuple[LoraAdapter, float]:
    """The nearest adapter of a rank or less, layer by layer, by SVD of ΔW.

    Returns:
        The adapter, and the share of Σ‖ΔW‖² that it keeps, in [0, 1].
    """
    layers, before, after = {}, 0.0, 0.0
    for name, layer in adapter.layers.items():
        u, s, vt = factors.orthonormal(layer)
        count = factors.kept(s, rank, None)
        layers[name] = factors.from_svd(u[:, :count], s[:count], vt[:count], layer.shape)
        before += float(s.square().sum())
        after += float(s[:count].square().sum())
    energy = after / before if before else 1.0
    line = f"compressed to rank {rank}, energy kept {energy:.6f}"
    return replace(adapter, layers=with_one_alpha(layers)).with_history(line), energy


def require_same_base(adapters: Sequence[Weighted]) -> None:
    """Stop if two adapters can't act on one model.

    Raises:
        UserError: If fingerprints or shapes differ.
    """
    for one, other in itertools.combinations(adapters, 2):
        a, b = one.adapter.provenance, other.adapter.provenance
        if a.base_fingerprint and b.base_fingerprint and a.base_fingerprint != b.base_fingerprint:
            raise UserError(
                Problem(
                    "adapter",
                    other.source,
                    f"was trained on {b.base_model} ({b.base_fingerprint}), but {one.source} on"
                    f" {a.base_model} ({a.base_fingerprint}).",
                    "Stack adapters of one base only.",
                )
            )
        for name in one.adapter.layers.keys() & other.adapter.layers.keys():
            here, there = one.adapter.layers[name].shape, other.adapter.layers[name].shape
            if squeezed(here) != squeezed(there):
                raise UserError(
                    Problem(
                        "adapter",
                        other.source,
                        f"is for another model than {one.source}: {name} is {list(there)} and {list(here)}.",
                        "Stack adapters of one base only.",
                    )
                )


@dataclass(frozen=True)
class Overlap:
    """How two adapters meet in one layer.

    Attributes:
        layer: Name of the weight.
        norms: ‖ΔW‖ (Frobenius) of either, strength included.
        input_overlap: Of the row spaces: mean squared cosine of the principal angles, 0 if they read different
            directions of the input, 1 if one's lie within the other's.
        output_overlap: The same of the column spaces, the directions that they write to.
        input_chance: What two random row spaces of these ranks would have.
        output_chance: The same of the column spaces.
        cosine: Of the two ΔW as vectors: negative if they pull against each other.
    """

    layer: str
    norms: tuple[float, float]
    input_overlap: float
    output_overlap: float
    input_chance: float
    output_chance: float
    cosine: float

    @property
    def interference(self) -> float:
        """How far they read and write the same: sqrt(input · output overlap)."""
        return (self.input_overlap * self.output_overlap) ** 0.5

    @property
    def interference_chance(self) -> float:
        """The interference of two random updates of these ranks."""
        return (self.input_chance * self.output_chance) ** 0.5


def interference(one: Weighted, other: Weighted) -> list[Overlap]:
    """The layers that two adapters share, those that interfere most first."""
    overlaps = []
    ours, theirs = one.plain("stack").layers, other.plain("stack").layers
    for name in ours.keys() & theirs.keys():
        first, second = ours[name], theirs[name]
        (u1, s1, v1), (u2, s2, v2) = factors.orthonormal(first), factors.orthonormal(second)
        s1, s2 = s1 * abs(one.strength), s2 * abs(other.strength)
        r1, r2 = _numerical_rank(s1), _numerical_rank(s2)
        if not r1 or not r2:
            continue
        inputs, outputs = v1[:r1] @ v2[:r2].T, u1[:, :r1].T @ u2[:, :r2]
        sign = 1.0 if one.strength * other.strength >= 0 else -1.0
        product = sign * float((s1[:r1, None] * inputs * outputs * s2[:r2]).sum())
        norms = float(s1.norm()), float(s2.norm())
        overlaps.append(
            Overlap(
                layer=name,
                norms=norms,
                input_overlap=float(inputs.square().sum()) / min(r1, r2),
                output_overlap=float(outputs.square().sum()) / min(r1, r2),
                input_chance=min(1.0, max(r1, r2) / v1.shape[1]),
                output_chance=min(1.0, max(r1, r2) / u1.shape[0]),
                cosine=product / (norms[0] * norms[1]),
            )
        )
    return sorted(overlaps, key=lambda overlap: -overlap.interference * min(overlap.norms))


def summary(one: Weighted, other: Weighted, overlaps: Sequence[Overlap]) -> dict[str, Any]:
    """A pair's report as plain data; the means are weighted by the norms' product."""
    weights = [a.norms[0] * a.norms[1] for a in overlaps]
    total = sum(weights) or 1.0

    def mean(attribute: str) -> float:
        return sum(w * getattr(o, attribute) for w, o in zip(weights, overlaps, strict=True)) / total

    return {
        "adapters": [one.source, other.source],
        "strengths": [one.strength, other.strength],
        "shared_layers": len(overlaps),
        "layers": [len(one.adapter.layers), len(other.adapter.layers)],
        **{name: mean(name) for name in MEASURES},
        "per_layer": [
            {"layer": o.layer, "norms": list(o.norms)} | {name: getattr(o, name) for name in MEASURES} for o in overlaps
        ],
    }


def _numerical_rank(s: torch.Tensor) -> int:
    return int((s > 1e-7 * s.max()).sum()) if len(s) and float(s.max()) > 0 else 0


def _provenance(adapters: Sequence[Weighted]) -> Provenance:
    first = adapters[0].adapter.provenance
    each = [weighted.adapter.provenance for weighted in adapters]

    def agreed(name: str) -> Any:
        values = {getattr(provenance, name) for provenance in each} - {None}
        return values.pop() if len(values) == 1 else None

    concepts = dict.fromkeys(concept for provenance in each for concept in provenance.concepts)
    parts = " + ".join(f"{w.strength:g} × {w.adapter.provenance.title}" for w in adapters)
    history = dict.fromkeys(line for provenance in each for line in provenance.history)
    return Provenance(
        base_model=first.base_model,
        base_fingerprint=agreed("base_fingerprint"),
        architecture=adapters[0].adapter.architecture,
        prediction_type=agreed("prediction_type"),
        resolution=agreed("resolution"),
        concepts=tuple(concepts),
        objective=agreed("objective"),
        version=agreed("version"),
        history=(*history, f"stack of {parts}"),
    )
