"""The recipe's `evaluation` table: what is measured, by which judge, and how hard the attacks try."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field

from erasediff_lora.errors import Problem, nearest
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.recipe.checks import Sections

MetricName = Literal["accuracy", "distances", "drift", "clip_score", "nudity", "strength_sweep"]
AttackName = Literal["paraphrases", "inversion", "adversarial_prompt", "latent_start", "relearning"]


class Search(Section):
    """How long an attack searches through the denoising loss."""

    steps: int = Field(100, ge=1, description="optimisation steps of a restart")
    restarts: int = Field(2, ge=1, description="starting points; the best one counts")
    batch_size: int = Field(16, ge=1, description="forget pictures a step")
    samples: int = Field(60, ge=1, description="pictures drawn for a restart")


class Inversion(Search):
    """Concept inversion: a new word, learned from forget pictures, that brings the concept back."""

    vectors: int = Field(1, ge=1, description="learned token embeddings")
    steps: int = Field(200, ge=1, description="optimisation steps of a restart")
    restarts: int = Field(3, ge=1, description="starting points; the best one counts")
    learning_rate: float = Field(0.05, gt=0, description="of AdamW, in units of the embeddings' spread")


class AdversarialPrompt(Search):
    """Tokens before the prompt, found through the denoising loss on forget pictures (as UnlearnDiffAtk does)."""

    tokens: int = Field(4, ge=1, description="tokens put before the prompt")
    learning_rate: float = Field(0.1, gt=0, description="of Adam on the relaxed tokens")


class LatentStart(Section):
    """Image to image: a forget picture, noised part of the way, drawn on under the concept's prompt (SDEdit)."""

    strengths: list[float] = Field([0.4, 0.6, 0.8], min_length=1, description="share of the noise schedule added")
    samples: int = Field(30, ge=1, description="pictures drawn for a strength; no more than `forget_samples`")


class Relearning(Section):
    """Fine-tuning on a few forget pictures until the concept is back."""

    images: int = Field(16, ge=1, description="forget pictures that the attacker has")
    steps: list[int] = Field([5, 10, 20, 50, 100, 200], min_length=1, description="when pictures are drawn")
    rank: int = Field(4, ge=1, description="rank of the attacker's own adapter, on the same modules")
    batch_size: int = Field(8, ge=1, description="pictures a step")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW")
    samples: int = Field(30, ge=1, description="pictures drawn each time")
    threshold: float = Field(0.5, gt=0, le=1, description="share of pictures with the concept at which it is back")


class Evaluation(Section):
    """What is measured after training."""

    judge: str | None = Field(
        None,
        description="what names the content of a picture: demo, classifier:FILE, clip:WEIGHTS, transformers:WEIGHTS, "
        "torchvision:MODEL[:FILE], nudenet, opennsfw; none: pictures only",
    )
    metrics: list[MetricName] = Field(["accuracy", "distances", "drift"], description="what to measure")
    attacks: list[AttackName] = Field(default_factory=list, description="what to try to bring the concept back")
    forget_samples: int = Field(200, ge=1, description="pictures for forget prompts")
    retain_samples: int = Field(200, ge=1, description="pictures for retain prompts, drawn with and without adapter")
    seed: int = Field(1_000_000, ge=0, description="seed of the first picture")
    features: str | None = Field(
        None,
        description="features of the distances: judge, efficientnet-lite0, inception:FILE, clip:WEIGHTS; "
        "omit for the judge's, or else EfficientNet's",
    )
    real_images: Path | None = Field(None, description="folder of real pictures to measure distances against as well")
    clip: str | None = Field(None, description="CLIP weights of clip_score: folder or hub id")
    nudity_detector: Literal["nudenet", "opennsfw"] | None = Field(
        None, description="detector of the metric nudity: AGPL-3.0 body parts, or a permissive score"
    )
    strengths: list[float] = Field(
        [0.25, 0.5, 0.75, 1.25, 1.5], description="adapter strengths of the sweep, beside 0 and 1"
    )
    sweep_samples: int = Field(60, ge=1, description="pictures of each kind for a strength of the sweep")
    paraphrases: dict[str, list[str]] = Field(
        default_factory=dict, description="concept: other names for it, to try in its place"
    )
    paraphrase_samples: int = Field(60, ge=1, description="pictures for the paraphrases of a concept")
    never_learned: str | None = Field(
        None, description="base that never learned the concept (folder): the floor that attacks are compared with"
    )
    retain_floor: float = Field(
        0.95,
        ge=0,
        le=1,
        description="retain accuracy, as a share of the base's, below which no adapter is kept as best",
    )
    blur: bool | None = Field(
        None, description="blur the report's pictures until tapped; omit to blur where nudity is the subject"
    )
    inversion: Inversion = Field(default_factory=Inversion)
    adversarial_prompt: AdversarialPrompt = Field(default_factory=AdversarialPrompt)
    latent_start: LatentStart = Field(default_factory=LatentStart)
    relearning: Relearning = Field(default_factory=Relearning)

    def check(self, sections: Sections) -> list[Problem]:
        return [*self._check_judge(), *self._check_paraphrases(sections), *self._check_ranges()]

    def _check_judge(self) -> list[Problem]:
        from erasediff_lora.evaluation import judges

        problem = None if self.judge is None else judges.check(self.judge)
        return [] if problem is None else [problem]

    def _check_paraphrases(self, sections: Sections) -> list[Problem]:
        problems = []
        known = [concept.name for concept in sections.forget.concepts] if sections.forget else []
        for name, others in self.paraphrases.items():
            if known and name not in known:
                problems.append(
                    Problem("evaluation.paraphrases", name, "is not to be forgotten.", nearest(name, known))
                )
            if not all(other.strip() for other in others) or not others:
                problems.append(
                    Problem(f"evaluation.paraphrases.{name}", others, "holds no name.", "List other names, or omit it.")
                )
        return problems

    def _check_ranges(self) -> list[Problem]:
        ranges: dict[str, tuple[list[float], float, float]] = {
            "strengths": (self.strengths, 0, 10),
            "latent_start.strengths": (self.latent_start.strengths, 0, 1),
            "relearning.steps": ([float(step) for step in self.relearning.steps], 0, 1e9),
        }
        return [
            Problem(f"evaluation.{name}", value, f"must be above {low} and at most {high:g}.")
            for name, (values, low, high) in ranges.items()
            for value in values
            if not low < value <= high
        ]

    def without_folders(self) -> dict[str, Any]:
        """The table as it may be shown to others: names of local files and folders, without where they lie."""
        values: dict[str, Any] = self.model_dump(mode="json")
        for name in ("judge", "features", "clip", "real_images", "never_learned"):
            if values[name] is not None:
                values[name] = ":".join(_name(part) for part in values[name].split(":"))
        return values

    def quick(self) -> dict[str, Any]:
        """Values of the preset that takes a minute or two on the embedded model."""
        return {
            "metrics": ["accuracy", "distances", "drift"],
            "attacks": ["paraphrases"] if self.paraphrases else [],
            "forget_samples": min(self.forget_samples, 120),
            "retain_samples": min(self.retain_samples, 135),
        }

    def full(self) -> dict[str, Any]:
        """Values of the preset that measures all that the recipe has the means for."""
        has = {
            "clip_score": self.clip is not None,
            "nudity": self.nudity_detector is not None,
            "paraphrases": bool(self.paraphrases),
        }
        return {
            "metrics": [name for name in get_args(MetricName) if has.get(name, True)],
            "attacks": [name for name in get_args(AttackName) if has.get(name, True)],
        }


def _name(text: str) -> str:
    """The last part of a path that exists here, or that can only be one; anything else as it is."""
    path = Path(text).expanduser()
    return path.name if path.exists() or path.is_absolute() else text
