"""Ranks of true values among posterior draws, and what they say about the fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probmix.uniformity import EcdfTest, FloatArray, IntArray, Limits, normal_scores, spread_p_value

__all__ = ["FAILED", "TESTS", "Calibration", "Quantity", "Tally"]

#: Rank of a data set that could not be fitted.
FAILED = -1

#: Tests of each quantity, among which (and the quantities) the false alarms are divided.
TESTS = 2

_CLEAR = 3.0  # standard errors from which a bias or a spread is named as the cause


class Quantity(NamedTuple):
    """What the ranks of one quantity say.

    Args:
        p_value: of both tests, allowing for there being two of them.
        bias: mean of the fit minus the right one, in posterior standard deviations, from normal scores.
        spread: standard deviation of the fit over the right one, likewise; both are damped where they are extreme, as
            a rank cannot be lower than the lowest.
        words: what is wrong, or nothing.

    Example:
        >>> Quantity(p_value=1e-6, bias=0.4, spread=1.0, words="biased upwards").words
        'biased upwards'
    """

    p_value: float
    bias: float
    spread: float
    words: str


@dataclass(frozen=True)
class Tally:
    """Draws below, and equal to, the true value of one quantity: the rank but for ties, each ``(simulations,)``.

    Example:
        >>> draws, truth = np.array([[1.0, 2.0, 2.0, 3.0]]), np.array([2.0])
        >>> tally = Tally.of(draws, truth)
        >>> tally.below, tally.equal
        (array([1]), array([2]))
    """

    below: IntArray
    equal: IntArray

    @classmethod
    def of(cls, draws: FloatArray, truth: FloatArray) -> Tally:
        """Return the tally of draws ``(simulations, draws)`` against true values ``(simulations,)``."""
        return cls((draws < truth[:, None]).sum(1), (draws == truth[:, None]).sum(1))

    def ranks(self, generator: np.random.Generator) -> IntArray:
        """Return ranks, ties broken at random, so that those of discrete quantities are uniform too."""
        drawn = generator.integers(0, self.equal + 1)
        return np.where(self.below == FAILED, FAILED, self.below + drawn)

    def says_the_same_as(self, other: Tally, draws: int) -> bool:
        """Whether the other quantity has the same ranks, from below or from above: a mirrored or repeated entry."""
        same = np.array_equal(self.below, other.below)
        fitted = self.below != FAILED
        above = draws - other.below - other.equal
        mirrored = np.array_equal(self.below[fitted], above[fitted])
        return np.array_equal(self.equal, other.equal) and (same or mirrored)


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""Ranks of true values among posterior draws, quantity by quantity, with tests of their uniformity.

    If data sets come from true values and these from the prior, the rank of any quantity of the true values among L
    independent posterior draws is uniform on 0 .. L (Talts, Betancourt, Simpson, Vehtari and Gelman 2018). Each
    quantity is tested twice: the distribution function of its ranks (`probmix.uniformity.EcdfTest`) and their spread
    (`probmix.uniformity.spread_p_value`). `ok` allows for there being two tests of several quantities (Bonferroni).
    `str` of it is a table with the cause in words; `probmix.plots.plot_calibration` draws it.

    Args:
        ranks: quantity -> ranks ``(simulations,)``, -1 where the fit failed.
        draws: posterior draws that a true value is ranked among, L.
        false_alarm: probability of refusing a correct fit.
        troubles: kind of trouble -> which data sets had it, ``(simulations,)``.
        seed: of the run.
        seconds: wall time.
        message: what the first failed fit said.

    Example:
        >>> even = np.arange(200) % 20
        >>> calibration = Calibration({"loc": even, "rate": even // 2}, draws=19)
        >>> calibration.ok, calibration.quantities["loc"].words, calibration.quantities["rate"].words
        (False, '', 'biased upwards and too wide')
    """

    ranks: Mapping[str, IntArray]
    draws: int
    false_alarm: float = 0.01
    troubles: Mapping[str, NDArray[np.bool_]] | None = None
    seed: int = 0
    seconds: float = float("nan")
    message: str = ""

    @property
    def simulations(self) -> int:
        """Number of data sets."""
        return len(next(iter(self.ranks.values())))

    @property
    def failed(self) -> int:
        """Number of data sets that could not be fitted; their ranks are left out, so nothing else is certain."""
        return int((next(iter(self.ranks.values())) == FAILED).sum())

    def of(self, name: str) -> IntArray:
        """Return the ranks of one quantity, without failed fits."""
        ranks = self.ranks[name]
        return ranks[ranks != FAILED]

    @cached_property
    def test(self) -> EcdfTest:
        """The test of the distribution function of ranks."""
        return EcdfTest(self.simulations - self.failed, self.draws + 1)

    @property
    def false_alarm_of_a_test(self) -> float:
        """What each test of each quantity is allowed, so that all together keep to `false_alarm`."""
        return self.false_alarm / (TESTS * len(self.ranks))

    @cached_property
    def band(self) -> Limits:
        """Counts of ranks below each place that correct fits keep to, all quantities together."""
        return self.test.band(self.false_alarm_of_a_test)

    @cached_property
    def quantities(self) -> dict[str, Quantity]:
        """What the ranks of each quantity say."""
        return {name: self._judge(i, name) for i, name in enumerate(self.ranks)}

    @property
    def p_value(self) -> float:
        """P-value of everything together (Bonferroni)."""
        return min(1.0, len(self.ranks) * min(quantity.p_value for quantity in self.quantities.values()))

    @property
    def ok(self) -> bool:
        """True where every data set was fitted and nothing speaks against uniform ranks."""
        return self.failed == 0 and self.p_value > self.false_alarm

    def to_dataset(self) -> xr.Dataset:
        """Return the ranks with the axis ``simulation``, for tables and files of one's own."""
        variables = {name: ("simulation", np.asarray(ranks)) for name, ranks in self.ranks.items()}
        return xr.Dataset(variables, attrs={"draws": self.draws, "seed": self.seed, "p_value": self.p_value})

    def __str__(self) -> str:
        found = self.quantities
        width = max(len(name) for name in ("quantity", *found))
        rows = [f"{'quantity':<{width}}    p-value   bias  spread"]
        for name, q in found.items():
            rows.append(f"{name:<{width}}  {q.p_value:9.2g}  {q.bias:+5.2f}  {q.spread:6.2f}  {q.words}".rstrip())
        return "\n".join([self._headline(), *rows, *self._remarks()])

    def _judge(self, index: int, name: str) -> Quantity:
        ranks = self.of(name)
        scores = normal_scores(ranks, self.draws + 1, seed=self.seed + index)
        p_value = min(1.0, TESTS * min(self.test.p_value(ranks), spread_p_value(scores)))
        refused = p_value * len(self.ranks) <= self.false_alarm
        return Quantity(p_value, -float(scores.mean()), 1 / float(scores.std()), _words(scores) if refused else "")

    def _headline(self) -> str:
        verdict = "Calibrated" if self.ok else "NOT calibrated"
        if self.failed:
            verdict = "Incomplete" if self.p_value > self.false_alarm else verdict
        sign = ">" if self.p_value > self.false_alarm else "<="
        return (
            f"{verdict} (p-value {self.p_value:.2g} {sign} {self.false_alarm:g}): {self.simulations} data sets, "
            f"ranks among {self.draws} draws, {self.seconds:.0f} s"
        )

    def _remarks(self) -> list[str]:
        counted = {kind: int(np.sum(where)) for kind, where in (self.troubles or {}).items()}
        remarks = [f"{count} of {self.simulations} data sets: {kind}." for kind, count in counted.items() if count]
        if self.failed:
            remarks.append(
                f"{self.failed} of {self.simulations} data sets could not be fitted, and those that could are a choice "
                f"that may hide or feign an error. The first said: {self.message}"
            )
        if self.p_value <= self.false_alarm:
            remarks.append(
                "If the simulator draws from the program's own prior and likelihood, the method does not give the "
                "posterior of this program."
            )
        return remarks


def _words(scores: FloatArray) -> str:
    """Say what is wrong with the draws, from the normal scores of the true values among them."""
    count = len(scores)
    shift = -scores.mean() * np.sqrt(count)
    spread = (np.log(scores.std()) + 0.5 / count) * np.sqrt(2 * count)
    words = [
        *(["biased upwards" if shift > 0 else "biased downwards"] if abs(shift) > _CLEAR else []),
        *(["too narrow" if spread > 0 else "too wide"] if abs(spread) > _CLEAR else []),
    ]
    return " and ".join(words) or "of another shape"
