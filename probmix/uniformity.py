"""Are ranks uniform? An exact test of their distribution function, with its band, and a test of their spread."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi2, norm, poisson

from probmix.errors import DataError

__all__ = ["SMALLEST_P_VALUE", "EcdfTest", "FloatArray", "IntArray", "Limits", "normal_scores", "spread_p_value"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

#: Rounding errors of a sum of products of probabilities: a smaller p-value is given as this.
SMALLEST_P_VALUE = 1e-12

_ROUNDING = 1e-9  # tails that are equal by symmetry differ by less
_HALVINGS = 50  # of an interval of logarithms 700 wide: the level of a band is exact to 1e-12


class Limits(NamedTuple):
    """Counts of ranks below places 1, 2, ..., places - 1: least and greatest that are inside, ``(places - 1,)``.

    Example:
        >>> limits = EcdfTest(simulations=40, places=4).band(0.05)
        >>> limits.low, limits.high
        (array([ 4, 13, 24]), array([16, 27, 36]))
    """

    low: IntArray
    high: IntArray


@dataclass(frozen=True)
class EcdfTest:
    r"""Test that ranks are uniform on ``0 .. places - 1`` by all values of their distribution function at once.

    The number of N ranks below place i, :math:`c_i`, is binomial with probability :math:`z_i = i / P`. The statistic is
    the smallest of all two-sided binomial tail probabilities,

    .. math:: \gamma = \min_i 2 \min\{P(B_i \le c_i), P(B_i \ge c_i)\}, \quad B_i \sim \mathrm{Binomial}(N, z_i).

    It sees too many ranks near an end as well as in the middle (Säilynoja, Bürkner and Vehtari 2022). Its distribution
    is not simulated but exact: given that N fell in all, uniform ranks are a Poisson process, whose increments are
    independent, so the chance that every :math:`c_i` keeps inside its limits is a product of convolutions (Moscovich
    and Nadler 2017).

    Args:
        simulations: number of ranks, N.
        places: number of values that a rank can take, P.

    Raises:
        DataError: fewer than one rank or two places.

    Example:
        >>> test = EcdfTest(simulations=200, places=20)
        >>> even = np.arange(200) % 20
        >>> test.p_value(even), test.p_value(even // 2) < 1e-6
        (1.0, True)
        >>> [int(limit[9]) for limit in test.band(0.05)]  # of 200 ranks, how many below place 10
        [81, 119]
    """

    simulations: int
    places: int

    def __post_init__(self) -> None:
        if self.simulations < 1 or self.places < 2:
            raise DataError(
                f"expected at least one rank and two places, got {self.simulations} and {self.places}. "
                "Simulate more data sets, and keep at least one draw of each."
            )

    def p_value(self, ranks: Any) -> float:
        """Return the exact probability, under uniform ranks, of a statistic as small as that of ``ranks`` ``(N,)``.

        Raises:
            DataError: another number of ranks, or a rank outside ``0 .. places - 1``.
        """
        counts = self.counts(ranks)
        least = float(self._tails[counts, np.arange(self.places - 1)].min())
        return max(1 - self._probability_inside(self._limits(least)), SMALLEST_P_VALUE)

    def counts(self, ranks: Any) -> IntArray:
        """Return the number of ranks below places 1, 2, ..., ``(places - 1,)``.

        Raises:
            DataError: as `p_value`.
        """
        values = np.asarray(ranks)
        if values.shape != (self.simulations,) or values.min() < 0 or values.max() >= self.places:
            raise DataError(
                f"expected {self.simulations} ranks from 0 to {self.places - 1}, got the shape {values.shape}"
                + (f" from {values.min()} to {values.max()}" if values.size else "")
                + ". Count, for each data set, the draws below the true value."
            )
        return np.bincount(values, minlength=self.places).cumsum()[:-1]

    def band(self, false_alarm: float) -> Limits:
        """Return the limits that uniform ranks leave, anywhere, with probability ``false_alarm`` at most.

        Ranks leave them exactly if their p-value is ``false_alarm`` at most.
        """
        low, high = -700.0, 0.0  # logarithms of a statistic that is allowed, and of one that is not
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            alarms = 1 - self._probability_inside(self._limits(math.exp(middle)))
            low, high = (middle, high) if alarms <= false_alarm else (low, middle)
        return self._limits(math.exp(low))

    @cached_property
    def _tails(self) -> FloatArray:
        """Two-sided tail probability of every count at every place, ``(N + 1, places - 1)``."""
        count = np.arange(self.simulations + 1)[:, None]
        chance = np.arange(1, self.places) / self.places
        below, above = (
            binom.cdf(count, self.simulations, chance),
            binom.sf(count - 1, self.simulations, chance),
        )
        return np.asarray(2 * np.minimum(below, above))

    def _limits(self, statistic: float) -> Limits:
        """Return the counts whose tail probability is greater."""
        inside = self._tails > statistic * (1 + _ROUNDING)
        low, high = inside.argmax(0), self.simulations - inside[::-1].argmax(0)
        return Limits(np.where(inside.any(0), low, self.simulations + 1), np.where(inside.any(0), high, -1))

    def _probability_inside(self, limits: Limits) -> float:
        """Return the probability that uniform ranks keep inside all limits."""
        increment = poisson.pmf(np.arange(self.simulations + 1), self.simulations / self.places)
        increment = increment[: int(np.flatnonzero(increment > 0)[-1]) + 1]
        reached = np.zeros(self.simulations + 1)
        reached[0] = 1.0
        count = np.arange(self.simulations + 1)
        for low, high in zip(*limits, strict=True):
            reached = np.convolve(reached, increment)[: self.simulations + 1]
            reached = np.where((count >= low) & (count <= high), reached, 0.0)
        all_of_them = np.convolve(reached, increment)[self.simulations]
        return float(min(all_of_them / poisson.pmf(self.simulations, self.simulations), 1.0))


def normal_scores(ranks: Any, places: int, *, seed: int) -> FloatArray:
    r"""Return :math:`\Phi^{-1}((r + u) / P)` for ranks r ``(N,)``, u uniform on (0, 1): normal if ranks are uniform.

    Where a posterior is normal, a score is about the true value minus the mean of the draws, over their standard
    deviation.

    Example:
        >>> normal_scores(np.array([0, 10, 19]), 20, seed=0).round(1)
        array([-1.9,  0. ,  1.7])
    """
    ranks = np.asarray(ranks)
    return np.asarray(norm.ppf((ranks + np.random.default_rng(seed).random(ranks.shape)) / places))


def spread_p_value(scores: Any) -> float:
    """Return the p-value that normal scores ``(N,)`` have variance 1 about 0: chi-square, two-sided.

    Sees posteriors that are too narrow or too wide, with far fewer data sets than a distribution function needs.

    Source:
        Cook, Gelman and Rubin (2006).

    Example:
        >>> scores = norm.ppf((np.arange(200) + 0.5) / 200)
        >>> spread_p_value(scores) > 0.5, spread_p_value(1.5 * scores) < 1e-6
        (True, True)
    """
    scores = np.asarray(scores)
    total, count = float(np.square(scores).sum()), scores.size
    return float(np.clip(2 * min(chi2.cdf(total, count), chi2.sf(total, count)), SMALLEST_P_VALUE, 1.0))
