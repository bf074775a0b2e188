"""An adapter in memory, whatever file it came from."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.errors import Problem, UserError

RANK_LIMIT = 16
"""Times the height and width of a weight: no stack of adapters needs more, and a file can claim anything."""


@dataclass(frozen=True)
class LoraLayer:
    """The update of one weight: ΔW = scale · up @ down.

    Attributes:
        down: A, (r, in) for a linear layer or (r, in, kh, kw) for a convolution.
        up: B, (out, r) or (out, r, 1, 1).
        alpha: Numerator of the scale.
        rslora: Whether the scale is alpha / sqrt(r) instead of alpha / r.
        magnitude: DoRA's magnitude vector as peft keeps it, (out,) or (1, out, 1, 1); None without DoRA.
    """

    down: Tensor
    up: Tensor
    alpha: float
    rslora: bool = False
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the adapted weight, (out, in) or (out, in, kh, kw)."""
        return (int(self.up.shape[0]), *self.down.shape[1:])

    def delta(self) -> Tensor:
        """ΔW in float32, of `shape`."""
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        return (up @ down).mul_(self.scale).reshape(self.shape)


@dataclass(frozen=True)
class LoraAdapter:
    """The layers of an adapter by the weight's name, such as 'unet.mid_block.attentions.0.proj_in'.

    Attributes:
        layers: Name -> layer. A name is the pipeline's component, a dot, and the module's path in diffusers.
        provenance: Where the adapter comes from.
        header: What else stood in the file's header, such as another trainer's notes.
    """

    layers: dict[str, LoraLayer]
    provenance: Provenance = field(default_factory=Provenance)
    header: dict[str, str] = field(default_factory=dict)

    @property
    def components(self) -> list[str]:
        """The adapted parts of the pipeline, such as ['unet']."""
        return sorted({name.partition(".")[0] for name in self.layers})

    @property
    def uses_dora(self) -> bool:
        return any(layer.magnitude is not None for layer in self.layers.values())

    @property
    def rank(self) -> int:
        """The rank that most layers have."""
        return Counter(layer.rank for layer in self.layers.values()).most_common(1)[0][0]

    def component(self, component: str) -> dict[str, LoraLayer]:
        """The layers of one component, by module path."""
        prefix = component + "."
        return {name.removeprefix(prefix): layer for name, layer in self.layers.items() if name.startswith(prefix)}

    @property
    def architecture(self) -> str:
        """Modelspec id of the base's architecture: as recorded, or guessed from the width of the prompt embeddings."""
        return self.provenance.architecture or architecture_of(self.layers)

    def with_history(self, line: str) -> LoraAdapter:
        """A copy whose provenance has one line more."""
        return replace(self, provenance=replace(self.provenance, history=(*self.provenance.history, line)))

    def refuse_dora(self, verb: str, source: str) -> None:
        """Stop where ΔW alone would be wrong.

        Raises:
            UserError: If the adapter is a DoRA.
        """
        if self.uses_dora:
            raise UserError(
                Problem(
                    "adapter",
                    source,
                    f"is a DoRA, whose update depends on the base's weights; {verb} takes plain LoRA only.",
                    "Load it with diffusers and call fuse_lora, or train with adapter.dora: false.",
                )
            )


def architecture_of(layers: dict[str, LoraLayer]) -> str:
    """Modelspec id of the base that layers fit, from the width of its prompt embeddings."""
    if any(name.startswith("transformer.") for name in layers):
        return "stable-diffusion-3"
    widths = {layer.shape[1] for name, layer in layers.items() if name.endswith(("attn2.to_k", "attn2.to_v"))}
    if widths == {2048} or any(name.startswith("text_encoder_2.") for name in layers):
        return "stable-diffusion-xl-v1-base"
    return "stable-diffusion-v2-512" if widths == {1024} else "stable-diffusion-v1"


def with_one_alpha(layers: dict[str, LoraLayer]) -> dict[str, LoraLayer]:
    """The same updates with one alpha, the commonest rank, in all layers; what differs goes into B.

    diffusers gets the scale wrong where the alphas of a kohya file differ.
    """
    alpha = float(Counter(layer.rank for layer in layers.values()).most_common(1)[0][0])
    return {
        name: replace(layer, up=layer.up * (layer.scale * layer.rank / alpha), alpha=alpha)
        for name, layer in layers.items()
    }


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1×1 convolution is a linear layer: (out, in, 1, 1) as (out, in)."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def unusable(source: object, what: str, remedy: str = "Export the file again.") -> UserError:
    """What is wrong with an adapter's file."""
    return UserError(Problem("adapter", str(source), what, remedy))


def checked(layers: dict[str, LoraLayer], source: str) -> dict[str, LoraLayer]:
    """The layers, in the order of their names.

    Raises:
        UserError: If there are none, the factors do not fit, or a number is not finite.
    """
    if not layers:
        raise unusable(source, "holds no LoRA layer.", "Give an adapter file, not a checkpoint.")
    for name, layer in layers.items():
        if layer.down.ndim not in (2, 4) or layer.up.ndim != layer.down.ndim or layer.up.shape[1] != layer.rank:
            raise unusable(
                source,
                f"has factors that do not fit at {name}: A {list(layer.down.shape)}, B {list(layer.up.shape)}.",
                "Its second dimension of B must be the first of A; export the file again.",
            )
        if not 0 < layer.rank <= RANK_LIMIT * (layer.shape[0] + math.prod(layer.shape[1:])):
            raise unusable(source, f"has rank {layer.rank} at {name}, whose weight is {list(layer.shape)}.")
        if layer.magnitude is not None and layer.magnitude.numel() != layer.shape[0]:
            count = layer.magnitude.numel()
            raise unusable(source, f"has {count} magnitudes at {name}, whose weight is {list(layer.shape)}.")
        for factor, tensor in (("A", layer.down), ("B", layer.up), ("alpha", torch.tensor(layer.alpha))):
            if not bool(torch.isfinite(tensor.float()).all()):
                raise unusable(source, f"has NaN or Inf in {factor} of {name}.", "Train or export the file again.")
    return dict(sorted(layers.items()))
