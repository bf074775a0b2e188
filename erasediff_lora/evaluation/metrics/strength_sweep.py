"""What a weaker or stronger adapter does: accuracy and distance over its strength."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from erasediff_lora.errors import Problem
from erasediff_lora.evaluation.metrics.accuracy import kept, success
from erasediff_lora.evaluation.metrics.base import Metric
from erasediff_lora.evaluation.metrics.distances import (
    feature_networks,
    features_of,
    frechet_distance,
    require_features,
    require_two,
)
from erasediff_lora.evaluation.parts import Found, Rehearsal, Table, Work, out_of_range
from erasediff_lora.evaluation.shares import percent, share
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from erasediff_lora.evaluation.charts import Chart
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.pictures import Drawn
    from erasediff_lora.recipe.checks import Sections
    from erasediff_lora.recipe.evaluation import Evaluation


PICTURES = 6
"""Shown at each strength."""


class SweepSettings(Section):
    """Which strengths, and how many pictures."""

    strengths: list[float] = Field(
        [0.25, 0.5, 0.75, 1.25, 1.5], description="adapter strengths of the sweep, beside 0 and 1"
    )
    samples: int = Field(
        60, ge=1, description="pictures of each kind for a strength of the sweep, and for training.evaluate_every"
    )

    def check(self, sections: Sections) -> list[Problem]:
        return out_of_range("evaluation.strength_sweep.strengths", self.strengths, 0, 10)


class StrengthSweep(Metric):
    """Accuracies and distance on the first of the forget and the retain pictures."""

    Settings = SweepSettings

    def require_means(self, evaluation: Evaluation) -> None:
        require_features(evaluation)
        require_two(self.name, min(evaluation.settings(SweepSettings).samples, evaluation.retain_samples))

    def work(self, evaluation: Evaluation, concepts: int) -> Work:
        options = evaluation.settings(SweepSettings)
        return Work(drawn=2 * options.samples * len(options.strengths))

    def networks(self, evaluation: Evaluation) -> Mapping[str, Rehearsal]:
        return feature_networks(evaluation)

    def measure(self, evidence: Evidence) -> dict[str, Any]:
        """The numbers of every strength.

        Raises:
            UserError: If there is no judge, or the features cannot be loaded.
        """
        from erasediff_lora.evaluation.pictures import images_of

        judge = evidence.require_judge(self.name)
        name, extract = features_of(evidence)
        options = evidence.settings(SweepSettings)
        retain = evidence.retain_prompts[: options.samples]
        reference = extract(images_of(evidence.reference()[: len(retain)]))
        rows = []
        for strength, forgotten in self._forgotten(evidence).items():
            candidate = evidence.candidates.at(strength)
            retained = candidate.generate(retain, evidence.retain_seed, "retain")
            rows.append(
                {
                    "strength": strength,
                    "unlearning_accuracy": share([not seen for seen in success(judge, forgotten)]),
                    "retain_accuracy": share([row[0] for row in kept(judge, retained)]),
                    "frechet": frechet_distance(reference, extract(images_of(retained))),
                }
            )
        return {
            "features": name,
            "samples": {"forget": len(evidence.forget_prompts[: options.samples]), "retain": len(retain)},
            "rows": rows,
        }

    def _forgotten(self, evidence: Evidence) -> dict[float, list[Drawn]]:
        """Pictures of the forget prompts by strength; from the cache, once they are drawn."""
        options = evidence.settings(SweepSettings)
        prompts = evidence.forget_prompts[: options.samples]
        return {
            strength: evidence.candidates.at(strength).generate(prompts, evidence.forget_seed, "forget")
            for strength in sorted({0.0, 1.0, *options.strengths})
        }

    def pictures(self, evidence: Evidence) -> dict[str, dict[str, list[Drawn]]]:
        """The first concept at every strength."""
        concept = evidence.forgotten[0]
        drawn = self._forgotten(evidence).items()
        rows = {
            f"at {strength:g}": [item for item in items if item.prompt.concept == concept] for strength, items in drawn
        }
        return {f"{concept}, by the adapter's strength": {name: items[:PICTURES] for name, items in rows.items()}}

    def tables(self, found: Found) -> list[Table]:
        head = ("strength", "forgotten", "retained", "Fréchet distance")
        rows = [
            [
                f"{row['strength']:g}",
                percent(row["unlearning_accuracy"]),
                percent(row["retain_accuracy"]),
                f"{row['frechet']:.1f}",
            ]
            for row in found["rows"]
        ]
        counts = found["samples"]
        intro = f"By the adapter's strength, each of {counts['forget']} forget and {counts['retain']} retain pictures."
        return [Table(intro, head, rows)]

    def charts(self, found: Found) -> list[Chart]:
        from erasediff_lora.evaluation.charts import ACCENT, BASE, ERASED, draw, per_cent

        rows = found["rows"]
        strengths = [row["strength"] for row in rows]

        def paint(figure: Figure) -> None:
            upper, lower = figure.subplots(2, 1, sharex=True)
            forgotten = [100 * row["unlearning_accuracy"] for row in rows]
            retained = [per_cent(row["retain_accuracy"]) for row in rows]
            upper.plot(strengths, forgotten, "o-", color=ACCENT, label="forgotten")
            upper.plot(strengths, retained, "s-", color=ERASED, label="retained")
            upper.set_ylabel("%")
            upper.set_ylim(-3, 103)
            upper.legend(loc="center right")
            lower.plot(strengths, [row["frechet"] for row in rows], "o-", color=BASE)
            lower.set_ylabel("Fréchet distance")
            lower.set_ylim(bottom=0)
            lower.set_xlabel("adapter strength")

        listed = "; ".join(
            f"at {row['strength']:g} forgotten {percent(row['unlearning_accuracy'])}, retained"
            f" {percent(row['retain_accuracy'])}, distance {row['frechet']:.1f}"
            for row in rows
        )
        alt = f"Accuracy and distance of retained pictures by strength: {listed}"
        return [draw("Strength of the adapter", alt, paint, 8)]
