"""How far the adapter moves what was to stay: predictions on retain pictures, and same-seed pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from erasediff_lora.evaluation.metrics.base import Metric
from erasediff_lora.evaluation.metrics.distances import feature_networks, features_of, require_features
from erasediff_lora.evaluation.parts import Found, Rehearsal, Table, Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image
    from torch import Tensor

    from erasediff_lora.denoisers import Denoiser
    from erasediff_lora.evaluation.charts import Chart
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.pictures import Drawn
    from erasediff_lora.objectives.condition import Condition
    from erasediff_lora.recipe.evaluation import Evaluation

TIMESTEPS = 8
PICTURES = 32


class Drift(Metric):
    """The change of what is kept, in predictions and in pictures."""

    quick = True

    def require_means(self, evaluation: Evaluation) -> None:
        require_features(evaluation)

    def work(self, evaluation: Evaluation, concepts: int) -> Work:
        return Work(looked=2 * TIMESTEPS * PICTURES)

    def networks(self, evaluation: Evaluation) -> Mapping[str, Rehearsal]:
        return feature_networks(evaluation)

    def measure(self, evidence: Evidence) -> dict[str, Any]:
        """The change of predictions, and of same-seed pictures.

        Raises:
            UserError: If the features cannot be loaded.
        """
        from torch.nn import functional as F

        from erasediff_lora.evaluation.pictures import images_of

        base, erased = evidence.candidates.base, evidence.candidates.erased
        before, after = evidence.retain(base), evidence.retain(erased)
        name, extract = features_of(evidence)
        pictures = images_of(before), images_of(after)
        one, other = map(extract, pictures)
        similarity = structural_similarity(*pictures)
        return {
            "prediction": prediction_drift(evidence, spread(before, PICTURES)),
            "structural_similarity": float(similarity.mean()),
            "features": name,
            "feature_distance": float((1 - F.cosine_similarity(one, other, dim=1)).mean()),
            "pictures": len(before),
        }

    def tables(self, found: Found) -> list[Table]:
        return [
            Table(
                f"Same-seed pictures of {found['pictures']} retain prompts: structural similarity"
                f" {found['structural_similarity']:.3f} (1: unchanged), distance in features of {found['features']}"
                f" {found['feature_distance']:.4f} (0: unchanged)."
            )
        ]

    def charts(self, found: Found) -> list[Chart]:
        from erasediff_lora.evaluation.charts import ERASED, draw

        timesteps, relative = found["prediction"]["timesteps"], found["prediction"]["relative"]

        def paint(figure: Figure) -> None:
            axes = figure.add_subplot()
            axes.plot(timesteps, [100 * value for value in relative], "o-", color=ERASED)
            axes.set_xlabel("timestep (more noise to the right)")
            axes.set_ylabel("change of the prediction, %")
            axes.set_ylim(bottom=0)

        listed = ", ".join(f"{t}: {value:.2%}" for t, value in zip(timesteps, relative, strict=True))
        alt = f"Mean squared change of the prediction over its mean square, by timestep. {listed}"
        return [draw("Drift on what is kept", alt, paint, 5)]

    def rows(self, found: Found) -> dict[str, str | None]:
        return {"structural similarity": f"{found['structural_similarity']:.3f}"}


def spread(drawn: Sequence[Drawn], count: int) -> list[Drawn]:
    """`count` of them, evenly spaced."""
    step = max(1, len(drawn) / count)
    return [drawn[int(index * step)] for index in range(min(count, len(drawn)))]


def prediction_drift(evidence: Evidence, drawn: Sequence[Drawn]) -> dict[str, list[float]]:
    """Mean squared difference of the two models' predictions on the base's retain pictures, by timestep.

    Args:
        evidence: The models.
        drawn: The pictures; each is noised with one draw of noise for all timesteps.

    Returns:
        timesteps; drift: the difference; relative: over the mean square of the base's prediction.
    """
    import torch

    from erasediff_lora.data.imaging import to_unit_tensor

    base, erased = evidence.candidates.base, evidence.candidates.erased
    with base.active() as denoiser, torch.no_grad():
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


def _in_batches(denoiser: Denoiser, noisy: Tensor, steps: Tensor, prompts: Condition, size: int) -> Tensor:
    import torch

    predict: Callable[..., Tensor] = denoiser.predict
    rows = zip(noisy.split(size), steps.split(size), prompts.split(size), strict=True)
    with torch.no_grad():
        return torch.cat([predict(*row).float() for row in rows])


def structural_similarity(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> Tensor:
    """SSIM of each pair of pictures, (N,): 1 for equal ones. By torchmetrics.

    Args:
        before: Pictures.
        after: Their partners, of the same size.
    """
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    from erasediff_lora.data.imaging import to_unit_tensor

    values = []
    for one, other in zip(before, after, strict=True):
        pair = [(to_unit_tensor(image, min(one.size))[None] + 1) / 2 for image in (one, other)]
        values.append(structural_similarity_index_measure(pair[1], pair[0], data_range=1.0))
    return torch.stack([torch.as_tensor(value) for value in values])
