"""Distances against closed forms and independent computations."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure

from erasediff_lora.evaluation.metrics import distances
from erasediff_lora.evaluation.metrics.distances import compare, frechet_distance, kernel_distance, precision_recall
from erasediff_lora.evaluation.metrics.drift import structural_similarity


def gaussian(count: int, mean: float, deviation: float, seed: int, size: int = 4) -> torch.Tensor:
    """Samples whose mean and covariance are exactly those asked for."""
    raw = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    raw = raw - raw.mean(dim=0)
    whitened = raw @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(raw.T))).T
    return whitened * deviation + mean


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (2.0, 1.0), (0.0, 3.0), (-1.5, 0.5)])
def test_frechet_distance_of_two_gaussians(mean: float, deviation: float) -> None:
    """d² = ‖μ₁ − μ₂‖² + Σ (σ₁ − σ₂)² for diagonal covariances."""
    one, other = gaussian(200, 0.0, 1.0, seed=1), gaussian(300, mean, deviation, seed=2)
    assert frechet_distance(one, other) == pytest.approx(4 * mean**2 + 4 * (deviation - 1) ** 2, abs=1e-6)


def test_frechet_distance_of_correlated_gaussians_against_scipy() -> None:
    generator = torch.Generator().manual_seed(3)
    one = (
        torch.randn(150, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
    )
    other = (
        torch.randn(170, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
    )
    first, second = torch.cov(one.T).numpy(), torch.cov(other.T).numpy()
    expected = (
        float((one.mean(0) - other.mean(0)).square().sum())
        + (first + second - 2 * scipy.linalg.sqrtm(first @ second).real).trace()
    )
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_the_unbiased_estimate() -> None:
    """Over all of the pictures: mean k(x, x') + mean k(y, y') over distinct pairs, less 2 mean k(x, y)."""
    generator = torch.Generator().manual_seed(4)
    one, other = (torch.randn(40, 5, generator=generator).double() + shift for shift in (0.0, 0.7))

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: torch.Tensor) -> torch.Tensor:
        values = kernel(a, a)
        return (values.sum() - values.diag().sum()) / (len(a) * (len(a) - 1))

    expected = float(within(one) + within(other) - 2 * kernel(one, other).mean())
    mean, deviation = kernel_distance(one, other)
    assert mean == pytest.approx(expected, abs=3 * deviation / 50**0.5)
    assert deviation > 0
    assert kernel_distance(one, other) == (mean, deviation), "the subsets are drawn from a fixed seed"


def test_equal_sets_are_not_apart() -> None:
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(5))
    found = compare(features, features.clone())
    assert found["frechet"] == pytest.approx(0, abs=1e-8)
    assert found["precision"] == found["recall"] == 1.0
    assert found["kernel"] <= 3 * found["kernel_deviation"]


def test_precision_and_recall_tell_a_lost_mode_from_an_invented_one() -> None:
    generator = torch.Generator().manual_seed(6)
    here = torch.randn(60, 2, generator=generator)
    there = torch.randn(60, 2, generator=generator) + 100
    both = torch.cat([here, there])
    precision, recall = precision_recall(both, here)
    assert precision == 1.0 and recall == pytest.approx(0.5)
    precision, recall = precision_recall(here, both)
    assert precision == pytest.approx(0.5) and recall == 1.0


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_precision_and_recall_in_parts(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all distances at once, as Kynkäänniemi et al. write it."""
    monkeypatch.setattr(distances, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    for count, others, k in ((2, 2, 1), (5, 9, 3), (60, 40, 3)):
        one = torch.randn(count, 16, generator=generator, dtype=torch.float64)
        other = 1.2 * torch.randn(others, 16, generator=generator, dtype=torch.float64)
        radii = [torch.cdist(own, own).sort(dim=1).values[:, min(k, len(own) - 1)] for own in (one, other)]
        between = torch.cdist(other, one)
        precision = (between <= radii[0]).any(dim=1).double().mean()
        recall = (between <= radii[1][:, None]).any(dim=0).double().mean()
        assert precision_recall(one, other, k) == (float(precision), float(recall))


def test_structural_similarity() -> None:
    noise = torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(7)).byte().numpy()
    one, other = (Image.fromarray(pixels) for pixels in noise)
    values = structural_similarity([one, one], [one, other])
    assert float(values[0]) == pytest.approx(1.0)
    pair = [torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255.0 for pixels in noise]
    assert float(values[1]) == pytest.approx(
        float(torch.as_tensor(structural_similarity_index_measure(pair[1], pair[0], data_range=1.0))), abs=1e-6
    )
