"""The eraser's own forget set, in an attacker's hands."""

from __future__ import annotations

import torch
from torch import Tensor

from erasediff_lora.data import sets
from erasediff_lora.data.buckets import by_shape, cut, padded
from erasediff_lora.data.captioned import CaptionedPictures
from erasediff_lora.data.imaging import to_unit_tensor
from erasediff_lora.data.prompts import substitute
from erasediff_lora.denoisers import SLOT, Denoiser
from erasediff_lora.evaluation.candidates import Candidate
from erasediff_lora.evaluation.evidence import Evidence


def forget_pictures(evidence: Evidence, candidate: Candidate, concept: str) -> CaptionedPictures:
    """The recipe's forget set, as far as it shows this concept: the strongest attacker has the eraser's own data.

    Args:
        evidence: The recipe, and the base that draws or encodes the set.
        candidate: The attacked model; one of another base encodes the pictures itself.
        concept: A forgotten concept.

    Raises:
        UserError: If no picture shows it.
    """
    base = evidence.candidates.base
    with base.active() as denoiser:
        encoded = sets.prepare(evidence.recipe, denoiser, "forget")
        texts = [encoded.prompts[row] for row in encoded.captions.tolist()]
        chosen = encoded.rows_of(concept)
        shown = encoded.select(torch.tensor(chosen))
        latents, shapes = shown.latents, shown.shapes
        if not _same_autoencoder(denoiser, candidate.denoiser, cut(latents[:1], shapes[0])):
            own: dict[int, Tensor] = {}
            for shape, alike in by_shape(shapes):
                for rows in alike.split(evidence.recipe.sampling.batch_size):
                    pictures = denoiser.decode(cut(latents[rows], shape))
                    pixels = torch.stack([to_unit_tensor(image, image.size) for image in pictures])
                    own |= zip(rows.tolist(), candidate.denoiser.encode_images(pixels).cpu(), strict=True)
            latents, shapes = padded([own[row] for row in range(len(chosen))])
    return CaptionedPictures(latents, shapes, [substitute(texts[index], concept, SLOT) for index in chosen])


def _same_autoencoder(one: Denoiser, other: Denoiser, latents: Tensor) -> bool:
    """Whether both decode the latents to the same picture."""
    if one is other:
        return True
    return one.decode(latents)[0].tobytes() == other.decode(latents)[0].tobytes()
