"""How far two sets of pictures lie apart: Fréchet and kernel distance, precision and recall."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.metrics.base import Metric, ScorePart
from erasediff_lora.evaluation.parts import Found, Rehearsal, Table, Work
from erasediff_lora.evaluation.shares import percent
from erasediff_lora.machine.devices import wide
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.features import Extract
    from erasediff_lora.recipe.evaluation import Evaluation

SUBSETS = 50
LARGEST_SUBSET = 1000
"""As in the paper (Bińkowski et al. 2018): memory goes with its square."""
NEIGHBOURS = 3
BLOCK = 1024
"""Points whose distances from all others are held at once."""
FOLDER_FIELD = "evaluation.distances.real_images"
INTRO = (
    "Distance of the pictures for retain prompts in features of {}. The base's own row is the scale: two samples of one"
    " model are never 0 apart. The kernel distance is estimated without bias, so that it may fall below 0."
)
REFERENCES = {"own_samples": "the base, other seeds", "real_images": "real pictures"}


class DistancesSettings(Section):
    """What distances are measured in, and from what."""

    features: str | None = Field(
        None,
        description="features of all distances: judge, efficientnet-lite0, inception:FILE, clip:WEIGHTS; "
        "omit for the judge's, or else EfficientNet's",
    )
    real_images: Path | None = Field(None, description="folder of real pictures to measure distances against as well")


class Distances(Metric):
    """Retain pictures of both models against the base's own from other seeds.

    The base's distance from itself is the scale: two samples of one model are never 0 apart.
    """

    Settings = DistancesSettings
    quick = True

    def require_means(self, evaluation: Evaluation) -> None:
        options = evaluation.settings(DistancesSettings)
        require_features(evaluation)
        require_two(self.name, evaluation.retain_samples)
        if options.real_images is not None:
            pictures_in(options.real_images)

    def work(self, evaluation: Evaluation, concepts: int) -> Work:
        return Work(drawn=evaluation.retain_samples)

    def networks(self, evaluation: Evaluation) -> Mapping[str, Rehearsal]:
        return feature_networks(evaluation)

    def measure(self, evidence: Evidence) -> dict[str, Any]:
        """The distances.

        Raises:
            UserError: If the features cannot be loaded, or the folder of real pictures is of no use.
        """
        from erasediff_lora.evaluation.pictures import images_of

        name, extract = features_of(evidence)
        real_folder = evidence.settings(DistancesSettings).real_images
        real = None if real_folder is None else read_images(real_folder)
        sets = {
            "base": extract(images_of(evidence.retain(evidence.candidates.base))),
            "erased": extract(images_of(evidence.retain(evidence.candidates.erased))),
        }
        references = {"own_samples": extract(images_of(evidence.reference()))}
        if real is not None:
            references["real_images"] = extract(real)
        result: dict[str, Any] = {"features": name}
        for reference, target in references.items():
            result[reference] = {"pictures": len(target)} | {
                candidate: compare(target, found) for candidate, found in sets.items()
            }
        return result

    def tables(self, found: Found) -> list[Table]:
        rows = []
        for reference, label in REFERENCES.items():
            for model in ("base", "erased") if reference in found else ():
                row = found[reference][model]
                kernel = f"{1000 * row['kernel']:.3f} ± {1000 * row['kernel_deviation']:.3f}"
                ends = percent(row["precision"]), percent(row["recall"])
                rows.append([label, model, f"{row['frechet']:.2f}", kernel, *ends])
        head = ("from", "of", "Fréchet", "kernel × 1000", "precision", "recall")
        return [Table(INTRO.format(found["features"]), head, rows, texts=2)]

    def rows(self, found: Found) -> dict[str, str | None]:
        own = found["own_samples"]
        return {
            "Fréchet distance, times the base's own": _ratio(own["erased"]["frechet"], own["base"]["frechet"]),
            "features": found["features"],
        }

    def score_parts(self, found: Found) -> dict[str, ScorePart]:
        reference = "real_images" if "real_images" in found else "own_samples"
        distances = {model: float(found[reference][model]["frechet"]) for model in ("base", "erased")}
        value = min(distances["base"] / distances["erased"], 1.0) if distances["erased"] > 0 else 1.0
        words = f"the base's Fréchet distance over the adapter's, from {REFERENCES[reference]}"
        return {"quality": ScorePart(value, words)}

    def damage(self, found: Found) -> float:
        own = found["own_samples"]
        return float(own["erased"]["frechet"]) / float(own["base"]["frechet"])


def _ratio(distance: float, of_base: float) -> str | None:
    """Distances of different bases, sizes of sets and features do not compare; what they are multiples of does."""
    return f"{distance / of_base:.2f}" if of_base else None


def features_of(evidence: Evidence) -> tuple[str, Extract]:
    """Name and function of the features that the recipe chooses, for all metrics that compare pictures."""
    return evidence.features(evidence.settings(DistancesSettings).features)


def require_features(evaluation: Evaluation) -> None:
    """See that the features that the recipe names can be loaded.

    Raises:
        UserError: If they cannot.
    """
    from erasediff_lora.evaluation import features

    if (asked := evaluation.settings(DistancesSettings).features) is not None:
        features.load(features.chosen(asked, evaluation.judge))


def feature_networks(evaluation: Evaluation) -> Mapping[str, Rehearsal]:
    """What features take, for the metrics that compare pictures."""
    from erasediff_lora.evaluation import features

    return features.networks(evaluation.settings(DistancesSettings).features, evaluation.judge)


def require_two(metric: str, retain_samples: int) -> None:
    """See that there are pictures enough for a distance between sets.

    Raises:
        UserError: If there is one only.
    """
    if retain_samples < 2:
        what = f"leaves {metric} with nothing to compare: a set is two pictures at least."
        remedy = f"Draw more, or take {metric} out of evaluation.metrics."
        raise UserError(Problem("evaluation.retain_samples", retain_samples, what, remedy))


def compare(reference: Tensor, found: Tensor) -> dict[str, float]:
    """All distances between two sets of features, (N, D) and (M, D)."""
    precision, recall = precision_recall(reference, found)
    kernel, deviation = kernel_distance(reference, found)
    return {
        "frechet": frechet_distance(reference, found),
        "kernel": kernel,
        "kernel_deviation": deviation,
        "precision": precision,
        "recall": recall,
    }


def _given(num_features: int) -> nn.Module:
    """Stands where torchmetrics wants a network: the features are computed already."""
    from torch import nn

    network = nn.Identity()
    network.num_features = num_features  # type: ignore[assignment]
    return network


def frechet_distance(reference: Tensor, found: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features.

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½), by torchmetrics. With fewer pictures than features it is biased upwards:
    compare it between sets of one size only.

    Args:
        reference: (N, D).
        found: (M, D).
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_given(reference.shape[1]))
    metric.update(wide(reference), real=True)
    metric.update(wide(found), real=False)
    return max(float(metric.compute()), 0.0)


def kernel_distance(reference: Tensor, found: Tensor, seed: int = 0) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the cubic kernel, unbiased; mean and deviation over random subsets.

    Args:
        reference: (N, D).
        found: (M, D).
        seed: Of the subsets.
    """
    import torch

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        from torchmetrics.image.kid import KernelInceptionDistance

        torch.manual_seed(seed)
        size = max(2, min(LARGEST_SUBSET, min(len(reference), len(found)) * 3 // 4))
        metric = KernelInceptionDistance(feature=_given(reference.shape[1]), subsets=SUBSETS, subset_size=size)
        metric.update(wide(reference), real=True)
        metric.update(wide(found), real=False)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def precision_recall(reference: Tensor, found: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    Precision: the share of `found` that lies within some reference picture's distance to its k-th neighbour, so that
    the reference could have made it. Recall: the same the other way round, so how much of the reference is reached.

    Args:
        reference: (N, D).
        found: (M, D).
        neighbours: k.
    """
    import torch

    found, reference = wide(found), wide(reference)
    inside_found, inside_reference = _radii(found, neighbours), _radii(reference, neighbours)
    near = torch.zeros(len(reference), dtype=torch.bool)
    precise = 0
    for rows, radii in zip(found.split(BLOCK), inside_found.split(BLOCK), strict=True):
        between = torch.cdist(rows, reference)
        precise += int((between <= inside_reference[None, :]).any(dim=1).sum())
        near |= (between <= radii[:, None]).any(dim=0).cpu()
    return precise / len(found), float(near.double().mean())


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Of each of the points, (N, D), the distance to its k-th neighbour, (N,)."""
    import torch

    k = min(neighbours, len(points) - 1)
    return torch.cat([torch.cdist(rows, points).kthvalue(k + 1, dim=1).values for rows in points.split(BLOCK)])


def read_images(folder: Path) -> Sequence[Image.Image]:
    """The pictures in a folder, in the order of their names, each read when it is asked for.

    Raises:
        UserError: If there are fewer than two, or, later, one cannot be read.
    """
    from erasediff_lora.data.pictures import open_picture
    from erasediff_lora.evaluation.picture_store import OneByOne

    files = pictures_in(folder)

    def read(row: int) -> Image.Image:
        try:
            return open_picture(files[row])
        except OSError as error:
            raise UserError(
                Problem(FOLDER_FIELD, str(files[row]), f"is not readable: {error}.", "Remove it.")
            ) from None

    return OneByOne(len(files), read)


def pictures_in(folder: Path) -> list[Path]:
    """The files of the pictures in a folder, in the order of their names.

    Raises:
        UserError: If there are fewer than two.
    """
    from erasediff_lora.data.pictures import SUFFIXES

    folder = folder.expanduser()
    found = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    files = sorted(found) if folder.is_dir() else []
    if len(files) < 2:
        what = f"holds {len(files)} picture(s)." if folder.is_dir() else "is no folder."
        raise UserError(
            Problem(FOLDER_FIELD, str(folder), what, "Give a folder with two pictures or more, or omit it.")
        )
    return files
