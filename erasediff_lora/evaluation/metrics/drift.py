"""How far the adapter moves what was to stay: predictions on retain pictures, and same-seed pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from erasediff_lora.data.imaging import to_unit_tensor
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.pictures import Drawn

TIMESTEPS = 8
PICTURES = 32


def measure(evidence: Evidence) -> dict[str, Any]:
    """The metric `drift`.

    Raises:
        UserError: If the features cannot be loaded.
    """
    base, erased = evidence.candidates.base, evidence.candidates.erased
    before, after = evidence.retain(base), evidence.retain(erased)
    name, extract = evidence.features
    one, other = extract([item.image for item in before]), extract([item.image for item in after])
    similarity = structural_similarity([item.image for item in before], [item.image for item in after])
    return {
        "prediction": prediction_drift(evidence, spread(before, PICTURES)),
        "structural_similarity": float(similarity.mean()),
        "features": name,
        "feature_distance": float((1 - F.cosine_similarity(one, other, dim=1)).mean()),
        "pictures": len(before),
    }


def spread(drawn: Sequence[Drawn], count: int) -> list[Drawn]:
    """`count` of them, evenly spaced."""
    step = max(1, len(drawn) / count)
    return [drawn[int(index * step)] for index in range(min(count, len(drawn)))]


@torch.no_grad()
def prediction_drift(evidence: Evidence, drawn: Sequence[Drawn]) -> dict[str, list[float]]:
    """Mean squared difference of the two models' predictions on the base's retain pictures, by timestep.

    Args:
        evidence: The models.
        drawn: The pictures; each is noised with one draw of noise for all timesteps.

    Returns:
        timesteps; drift: the difference; relative: over the mean square of the base's prediction.
    """
    base, erased = evidence.candidates.base, evidence.candidates.erased
    with base.active() as denoiser:
        side = evidence.recipe.sampling.resolution or denoiser.resolution
        prompts = denoiser.encode_prompts([item.prompt.text for item in drawn])
        size = evidence.recipe.sampling.batch_size
        pixels = torch.stack([to_unit_tensor(item.image, side) for item in drawn])
        latents = torch.cat([denoiser.encode_images(chunk) for chunk in pixels.split(size)])
    generator = torch.Generator().manual_seed(evidence.spare_seed)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    total = int(denoiser.noise_scheduler.config.num_train_timesteps)
    timesteps = [int((index + 0.5) * total / TIMESTEPS) for index in range(TIMESTEPS)]
    drifts, relative = [], []
    for timestep in timesteps:
        steps = torch.full((len(latents),), timestep, device=latents.device)
        noisy = denoiser.noise_scheduler.add_noise(latents, noise, steps)
        with base.active():
            was = _in_batches(denoiser, noisy, steps, prompts, size)
        with erased.active():
            now = _in_batches(denoiser, noisy, steps, prompts, size)
        drifts.append(float((now - was).square().mean()))
        relative.append(drifts[-1] / max(float(was.square().mean()), 1e-12))
    return {"timesteps": timesteps, "drift": drifts, "relative": relative}  # type: ignore[dict-item]


def _in_batches(denoiser: Denoiser, noisy: Tensor, steps: Tensor, prompts: Tensor, size: int) -> Tensor:
    predict: Callable[..., Tensor] = denoiser.predict
    rows = zip(noisy.split(size), steps.split(size), prompts.split(size), strict=True)
    return torch.cat([predict(*row).float() for row in rows])


def structural_similarity(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> Tensor:
    """SSIM of each pair of pictures, (N,): 1 for equal ones. By torchmetrics.

    Args:
        before: Pictures.
        after: Their partners, of the same size.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = []
    for one, other in zip(before, after, strict=True):
        pair = [(to_unit_tensor(image, min(one.size))[None] + 1) / 2 for image in (one, other)]
        values.append(structural_similarity_index_measure(pair[1], pair[0], data_range=1.0))
    return torch.stack([torch.as_tensor(value) for value in values])
