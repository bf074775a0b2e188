"""How good the retained pictures look, without real ones to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from erasediff_lora.evaluation.metrics.base import Metric, ScorePart
from erasediff_lora.evaluation.parts import Found, Table
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from PIL import Image

    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.recipe.evaluation import Evaluation

FIELD = "evaluation.quality.weights"
NAMES = {"clip_iqa": "CLIP-IQA", "total_variation": "total variation"}
INTRO = (
    "Quality of retained pictures without real ones, means over the same prompts and seeds, by torchmetrics. CLIP-IQA"
    " (Wang et al., 2023), from 0 to 1: how much more a picture is like 'Good photo.' than like 'Bad photo.'. Total"
    " variation: the mean difference of neighbouring pixels, of 255; it rises with noise and falls with blur."
)


class QualitySettings(Section):
    """Quality of retained pictures without real ones to compare with."""

    weights: str | None = Field(None, description="CLIP weights of CLIP-IQA: folder or hub id; omit to leave it out")


class Quality(Metric):
    """CLIP-IQA and total variation of the retained pictures of both models."""

    Settings = QualitySettings

    def require_means(self, evaluation: Evaluation) -> None:
        from erasediff_lora.evaluation.clip_model import Clip

        if (weights := evaluation.settings(QualitySettings).weights) is not None:
            Clip(weights, FIELD, weights)

    def measure(self, evidence: Evidence) -> dict[str, Any]:
        """The means of both models.

        Raises:
            UserError: If the weights cannot be loaded.
        """
        weights = evidence.settings(QualitySettings).weights
        models = (evidence.candidates.base, evidence.candidates.erased)
        pictures = {one.name: [item.image for item in evidence.retain(one)] for one in models}
        found: dict[str, Any] = {"pictures": len(evidence.retain_prompts)}
        if weights is not None:
            found["weights"] = evidence.recipe.evaluation.without_folders()["quality"]["weights"]
            found["clip_iqa"] = {name: clip_iqa(weights, images) for name, images in pictures.items()}
        return found | {"total_variation": {name: total_variation(images) for name, images in pictures.items()}}

    def tables(self, found: Found) -> list[Table]:
        told = [(label, found[name]) for name, label in NAMES.items() if name in found]
        rows = [(label, f"{one['base']:.3f}", f"{one['erased']:.3f}", str(found["pictures"])) for label, one in told]
        return [Table(INTRO, ("", "base", "with adapter", "pictures"), rows)]

    def score_parts(self, found: Found) -> dict[str, ScorePart]:
        scores = found.get("clip_iqa")
        if scores is None or not scores["base"]:
            return {}
        value = min(scores["erased"] / scores["base"], 1.0)
        return {"quality": ScorePart(value, "CLIP-IQA of retained pictures over the base's", stand_in=True)}

    def rows(self, found: Found) -> dict[str, str | None]:
        return {
            f"{label} of retained pictures{end}": f"{found[name][model]:.3f}"
            for name, label in NAMES.items()
            if name in found
            for model, end in (("erased", ""), ("base", ", base"))
        }


def clip_iqa(weights: str, images: Sequence[Image.Image]) -> float:
    """The mean CLIP-IQA of pictures, in [0, 1]. By torchmetrics.

    Args:
        weights: Folder or hub id of a CLIPModel with its processor.
        images: Pictures.

    Raises:
        UserError: If the weights cannot be loaded.
    """
    import torch
    from torchmetrics.functional.multimodal import clip_image_quality_assessment

    from erasediff_lora.data.imaging import to_unit_tensor
    from erasediff_lora.evaluation.clip_model import BATCH, Clip

    clip = Clip(weights, FIELD, weights)
    named: Any = lambda: (clip, clip.processor)  # noqa: E731
    values = []
    for size in dict.fromkeys(image.size for image in images):
        alike = [image for image in images if image.size == size]
        for start in range(0, len(alike), BATCH):
            pixels = [((to_unit_tensor(image, size) + 1) * 127.5).round() for image in alike[start : start + BATCH]]
            # of 255, and a range of 1: the processor divides by 255 itself
            found = clip_image_quality_assessment(torch.stack(pixels), named, data_range=1.0, prompts=("quality",))
            values.append(torch.as_tensor(found).reshape(-1))
    return float(torch.cat(values).mean())


def total_variation(images: Sequence[Image.Image]) -> float:
    """The mean absolute difference of neighbouring pixels, both ways, of 255. By torchmetrics."""
    import torch
    from torchmetrics.functional.image import total_variation as variation

    from erasediff_lora.data.imaging import to_unit_tensor

    values = []
    for image in images:
        pixels = (to_unit_tensor(image, image.size) + 1) * 127.5
        count = (pixels[:, 1:].numel() + pixels[:, :, 1:].numel()) or 1
        values.append(float(variation(pixels[None], reduction="sum")) / count)
    return float(torch.tensor(values).mean())
