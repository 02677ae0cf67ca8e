"""The tests of ranks, against counting, simulation and SciPy; the band and its coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from probmix.errors import DataError
from probmix.uniformity import EcdfTest, normal_scores, spread_p_value


def binomial_limits(trials: int, chance: float) -> tuple[float, float]:
    """Counts that a binomial leaves once in 10,000 seeds."""
    return float(stats.binom.ppf(5e-5, trials, chance)), float(stats.binom.isf(5e-5, trials, chance))


@pytest.mark.parametrize(("simulations", "places"), [(4, 3), (3, 5), (6, 2)])
def test_p_values_are_those_of_counting_all_outcomes(simulations, places):
    """Every vector of ranks is as likely as any other: the p-value is the share whose statistic is as small."""
    test = EcdfTest(simulations, places)
    outcomes = [np.array(ranks) for ranks in itertools.product(range(places), repeat=simulations)]

    def statistic(ranks):
        law = [stats.binom(simulations, i / places) for i in range(1, places)]
        below = [(ranks < i).sum() for i in range(1, places)]
        return min(2 * min(b.cdf(c), b.sf(c - 1)) for b, c in zip(law, below, strict=True))

    values = np.array([statistic(ranks) for ranks in outcomes])
    for ranks, value in zip(outcomes, values, strict=True):
        assert test.p_value(ranks) == pytest.approx((values <= value + 1e-12).mean(), abs=1e-10)


@pytest.mark.parametrize(("simulations", "places", "alarm"), [(200, 100, 0.05), (60, 20, 0.1), (1000, 64, 0.2)])
def test_uniform_ranks_leave_the_band_as_often_as_it_says(simulations, places, alarm):
    """Null: uniform ranks. 4,000 sets of them; the count outside is binomial, `binomial_limits`.

    The band has at most the alarms that it says, and, counts being whole numbers, not many fewer: at least 0.8 of them
    in these cases. The control: limits that hold at each place by itself are left far more often.
    """
    trials, band = 4000, EcdfTest(simulations, places).band(alarm)
    ranks = np.random.default_rng(0).integers(0, places, (trials, simulations))
    below = (ranks[:, :, None] < np.arange(1, places)).sum(1) if places < 50 else np.stack(
        [np.bincount(r, minlength=places).cumsum()[:-1] for r in ranks]
    )  # fmt: skip
    outside = ((below < band.low) | (below > band.high)).any(1).sum()
    assert binomial_limits(trials, 0.8 * alarm)[0] <= outside <= binomial_limits(trials, alarm)[1]

    chance = np.arange(1, places) / places
    low, high = stats.binom.ppf(alarm / 2, simulations, chance), stats.binom.isf(alarm / 2, simulations, chance)
    assert ((below < low) | (below > high)).any(1).sum() > 2 * binomial_limits(trials, alarm)[1]


def test_ranks_leave_the_band_exactly_where_the_p_value_is_small():
    test, generator = EcdfTest(50, 20), np.random.default_rng(0)
    band, seen = test.band(0.3), set()
    for _ in range(200):
        ranks = generator.integers(0, 20, 50)
        counts = test.counts(ranks)
        outside = bool(((counts < band.low) | (counts > band.high)).any())
        assert outside == (test.p_value(ranks) <= 0.3)
        seen.add(outside)
    assert seen == {True, False}


def test_the_spread_test_is_chi_square():
    scores = np.random.default_rng(0).standard_normal(50)
    both = [f(np.square(scores).sum(), 50) for f in (stats.chi2.cdf, stats.chi2.sf)]
    assert spread_p_value(scores) == pytest.approx(2 * min(both))
    uniform = stats.norm.cdf(normal_scores(np.repeat(np.arange(4), 5), 4, seed=0))
    assert ((uniform * 4).astype(int) == np.repeat(np.arange(4), 5)).all()


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (np.array([0, 1, 20]), r"expected 3 ranks from 0 to 19, got the shape \(3,\) from 0 to 20\. Count"),
        (np.array([0, 1]), r"expected 3 ranks from 0 to 19, got the shape \(2,\)"),
    ],
)
def test_ranks_that_are_none(ranks, message):
    with pytest.raises(DataError, match=message):
        EcdfTest(3, 20).p_value(ranks)
    with pytest.raises(DataError, match=r"at least one rank and two places, got 0 and 20\. Simulate more"):
        EcdfTest(0, 20)
