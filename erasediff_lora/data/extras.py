"""What an objective may need of a forget batch besides x_t, t, c and the denoising target.

A new one is a class here, or in another package, and a line in the registry; objectives name it in `Settings.needs`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erasediff_lora.data.buckets import cut, of_shape
from erasediff_lora.data.noising import counterpart_shift, denoising_target
from erasediff_lora.data.sets import EncodedSet
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.objectives.condition import Condition


@dataclass(frozen=True)
class Drawn:
    """The random choices of a joint forget batch; all of it on the CPU.

    Attributes:
        rows: Which pictures of the set, (B,) int64.
        shape: Height and width of their latents, (2,) int64.
        latents: x_0, (B, C, h, w).
        noise: ε, (B, C, h, w).
        timesteps: t, (B,) int64.
        anchor_draw: What decides which of its anchors a picture gets, (B,) in [0, 1).
        uniform: A draw from U(0, 1), (B, C, h, w).
        generator: For further choices.
        dtype: What the network computes in.
    """

    rows: Tensor
    shape: Tensor
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    anchor_draw: Tensor
    uniform: Tensor
    generator: torch.Generator
    dtype: torch.dtype


class Extra(ABC):
    """Computes further fields of forget batches.

    Args:
        forget: D_f.
        retain: D_r.
        noise_scheduler: A diffusers scheduler.
    """

    def __init__(self, forget: EncodedSet, retain: EncodedSet, noise_scheduler: Any) -> None:
        self.forget, self.retain, self.noise_scheduler = forget, retain, noise_scheduler

    @abstractmethod
    def __call__(self, drawn: Drawn) -> Mapping[str, Tensor | Condition]:
        """The fields by their names in `Batch.extras`, each (B, …) or of B prompts, of a joint batch on the CPU."""


class Anchors(Extra):
    """`anchors`: what the network is told of the B anchors' prompts."""

    def __call__(self, drawn: Drawn) -> dict[str, Condition]:
        return {"anchors": self.forget.embeddings[chosen_anchors(self.forget, drawn)].to(drawn.dtype)}


class Empty(Extra):
    """`empty`: what the network is told of the empty prompt, B times."""

    def __call__(self, drawn: Drawn) -> dict[str, Condition]:
        return {"empty": self.forget.embeddings[torch.zeros_like(drawn.rows)].to(drawn.dtype)}


class Scattered(Extra):
    """`scattered`: random conditions about as large as the B captions', rather unlike than like them (SPM).

    Each is Gaussian noise of 0.8 to 1.2 times the norm of the caption's own, and is taken with the probability 1 − cos.
    """

    def __call__(self, drawn: Drawn) -> dict[str, Condition]:
        told = self.forget.embeddings[self.forget.captions[drawn.rows]]
        parts = {name: part for name, part in told.parts.items() if part.is_floating_point()}
        found = {name: scattered(part.float(), drawn.generator) for name, part in parts.items()}
        return {"scattered": Condition(**told.parts | found).to(drawn.dtype)}


class Uniform(Extra):
    """`uniform`: a draw from U(0, 1) of the prediction's shape, (B, C, h, w)."""

    def __call__(self, drawn: Drawn) -> dict[str, Tensor]:
        return {"uniform": drawn.uniform}


class Shift(Extra):
    """`shift`: what the denoising target changes by as the picture becomes its counterpart, (B, C, h, w)."""

    def __call__(self, drawn: Drawn) -> dict[str, Tensor]:
        assert self.forget.counterparts is not None  # settings that need the shift ask for counterparts
        counterparts = cut(self.forget.counterparts[drawn.rows], drawn.shape)
        return {"shift": counterpart_shift(self.noise_scheduler, drawn.latents, counterparts, drawn.timesteps)}


class NoiseSurrogate(Extra):
    """`surrogate_noisy`, `surrogate_target`: x_t and its target with uniform noise of unit variance as the pictures."""

    def __call__(self, drawn: Drawn) -> dict[str, Tensor]:
        return _surrogate(self.noise_scheduler, drawn, (2 * drawn.uniform - 1) * 3**0.5)


class AnchorSurrogate(Extra):
    """`surrogate_noisy`, `surrogate_target`: x_t and its target with retain pictures of the anchors as the pictures.

    Raises:
        UserError: If the retain set has no picture of an anchor.
    """

    def __init__(self, forget: EncodedSet, retain: EncodedSet, noise_scheduler: Any) -> None:
        super().__init__(forget, retain, noise_scheduler)
        self.rows_of = _rows_of_anchors(forget, retain)

    def __call__(self, drawn: Drawn) -> dict[str, Tensor]:
        height, width = drawn.shape.tolist()
        rows = []
        for anchor in chosen_anchors(self.forget, drawn).tolist():
            found = self.rows_of[anchor, height, width]
            rows.append(int(found[torch.randint(len(found), (1,), generator=drawn.generator)]))
        return _surrogate(self.noise_scheduler, drawn, cut(self.retain.latents[rows], drawn.shape))


def scattered(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of about the size of each row of (B, …), the less like it the likelier."""
    rows = []
    for row in like:
        while True:
            noise = torch.randn(row.shape, generator=generator)
            cosine = torch.cosine_similarity(noise.flatten(), row.flatten(), dim=0)
            if torch.rand((), generator=generator) < 1 - cosine:
                break
        scale = 0.8 + 0.4 * torch.rand((), generator=generator)
        rows.append(scale * row.norm() * noise / noise.norm())
    return torch.stack(rows)


def chosen_anchors(forget: EncodedSet, drawn: Drawn) -> Tensor:
    """Rows of the set's embeddings: for each picture one of its anchors, (B,) int64."""
    columns = (drawn.anchor_draw * forget.anchors.shape[1]).long()
    return forget.anchors[drawn.rows, columns]


def _surrogate(noise_scheduler: Any, drawn: Drawn, pictures: Tensor) -> dict[str, Tensor]:
    """Other pictures under the same noise and timesteps."""
    noisy = noise_scheduler.add_noise(pictures, drawn.noise, drawn.timesteps)
    target = denoising_target(noise_scheduler, pictures, drawn.noise, drawn.timesteps)
    return {"surrogate_noisy": noisy.to(drawn.dtype), "surrogate_target": target}


def _rows_of_anchors(forget: EncodedSet, retain: EncodedSet) -> dict[tuple[int, int, int], Tensor]:
    """Rows of the retain pictures that show an anchor, by the anchor's row in the forget set, height and width."""
    wanted = {
        (anchor, *shape)
        for anchors, shape in zip(forget.anchors.tolist(), forget.shapes.tolist(), strict=True)
        for anchor in anchors
    }
    known = {text: row for row, text in enumerate(retain.prompts)}
    found = {}
    for anchor, height, width in sorted(wanted):
        shows = retain.captions == known.get(forget.prompts[anchor], -1)
        rows = (shows & of_shape(retain.shapes, torch.tensor([height, width]))).nonzero().flatten()
        if not len(rows):
            what, remedy = "", "Add the anchor to retain.concepts with the templates of the forget set."
            if bool(shows.any()):
                what, remedy = f" at {width}:{height}", "Add some, or set images.aspect_buckets: false for both sets."
            raise UserError(
                Problem(
                    "retain",
                    forget.prompts[anchor],
                    f"no picture of the retain set{what} has this prompt, which names an anchor.",
                    remedy,
                )
            )
        found[anchor, height, width] = rows
    return found
