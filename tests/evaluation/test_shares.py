"""Intervals of shares of pictures, and of what pairs of them lose, against likelihoods and whole distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import multinomial

from erasediff_lora.evaluation.shares import Pairs, interval

Z = 1.959964


def likely_variance(lost: int, gained: int, of: int, loss: float) -> float:
    """Of one pair, at the maximum of the multinomial likelihood under a given loss."""

    def against(q: float) -> float:
        cells = ((lost, q + loss), (gained, q), (of - lost - gained, 1 - 2 * q - loss))
        return -sum(n * math.log(max(p, 1e-300)) for n, p in cells if n)

    low, high = max(0.0, -loss), (1 - loss) / 2
    inner = minimize_scalar(against, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    q = min((inner, low, high), key=against)
    return 2 * q + loss - loss * loss


@pytest.mark.parametrize(
    ("lost", "gained", "of"),
    [(1, 0, 44), (3, 2, 60), (2, 9, 20), (0, 4, 216), (12, 0, 216), (6, 6, 216), (86, 150, 1600), (30, 25, 60)],
)
def test_the_ends_of_the_interval_are_where_the_score_statistic_says_so(lost: int, gained: int, of: int) -> None:
    pairs = Pairs(lost, gained, of)
    assert pairs.loss == pytest.approx((lost - gained) / of)

    def inside(loss: float) -> float:
        return abs(pairs.loss - loss) - Z * math.sqrt(likely_variance(lost, gained, of, loss) / of)

    expected = [brentq(inside, pairs.loss, far, xtol=1e-10) for far in (-0.999, 0.999)]
    assert pairs.interval() == pytest.approx(expected, abs=1e-6)
    mirrored = Pairs(gained, lost, of).interval()
    assert pairs.interval() == pytest.approx((-mirrored[1], -mirrored[0]))


@pytest.mark.parametrize(("lost", "of"), [(0, 1), (0, 188), (3, 60), (20, 20)])
def test_where_nothing_is_gained_the_most_that_is_lost_is_that_of_a_plain_share(lost: int, of: int) -> None:
    assert Pairs(lost, 0, of).interval()[1] == pytest.approx(interval(lost / of, of)[1])


@pytest.mark.parametrize("gained", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("of", [189, 300])
def test_a_loss_at_the_margin_is_seldom_taken_for_a_smaller_one(gained: float, of: int) -> None:
    """Over the whole distribution of counts: nominally 2.5% of the time."""
    margin, wrong = 0.02, 0.0
    counts = [(lost, won) for lost in range(60) for won in range(60) if lost + won <= of]
    rows = np.array([(lost, won, of - lost - won) for lost, won in counts])
    chances = multinomial.pmf(rows, of, [gained + margin, gained, 1 - 2 * gained - margin])
    for (lost, won), chance in zip(counts, chances, strict=True):
        if chance > 1e-9 and Pairs(lost, won, of).interval()[1] <= margin:
            wrong += chance
    assert wrong <= 0.035


@pytest.mark.parametrize(("lost", "gained", "of"), [(0, 0, 100), (2, 2, 216), (1, 3, 60), (20, 1, 60)])
def test_the_pairs_it_takes(lost: int, gained: int, of: int) -> None:
    needed = Pairs(lost, gained, of).to_tell(0.02)
    assert needed is not None
    spread = math.sqrt(likely_variance(lost, gained, of, 0.02))  # it depends on the shares alone
    deviations = [abs((lost - gained) / of - 0.02) / spread * math.sqrt(count) for count in (needed - 1, needed)]
    assert deviations[0] < Z <= deviations[1] + 1e-6


def test_at_the_margin_no_number_of_pairs_tells() -> None:
    assert Pairs(4, 0, 200).to_tell(0.02) is None
