"""Do chains agree? The nested r-hat of many short chains, its limit, and which chains stand apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from probmix.plots_inputs import to_numbers

__all__ = ["Array", "nested_rhat", "nested_rhat_limit", "standing_apart"]

Array = NDArray[np.float64]

_CUSTOMARY = 1.01  # the r-hat that Vehtari et al. (2021) advise, reached where chains are long
_FALSE_ALARM = 1e-3
_STANDARD_ERRORS = 5.0


def nested_rhat(values: Any, superchains: int) -> Array:
    r"""Return the nested r-hat of an array ``(chain, draw, ...)``, shape ``(...)``.

    Chains that start at one point form a superchain; K superchains of M chains lie one after the other. With B the
    variance of the K superchain means, and W the mean over superchains of the variance between the M chain means plus
    the mean variance within chains, it is ``sqrt(1 + B / W)`` (Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and
    Gelman 2024). With as many superchains as chains it is the plain r-hat of Gelman and Rubin (1992), but for a factor
    ``(N - 1) / N`` on its first term; with one draw a chain it compares superchains by their chains alone.

    Args:
        values: draws, an array or a tensor.
        superchains: K, at least 2, a divisor of the number of chains.

    Returns:
        NaN where a value is not finite or nothing varies.

    Raises:
        ValueError: fewer than two superchains, or a number that does not divide the chains.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(64, 50, 2))
        >>> apart = draws + np.repeat([0.0, 3.0], 32)[:, None, None]
        >>> nested_rhat(draws, 8).round(1), nested_rhat(apart, 8).round(1)
        (array([1., 1.]), array([1.9, 1.9]))
    """
    between, among, within = _variances(values, superchains)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(1 + between / (among + within))


def nested_rhat_limit(values: Any, superchains: int, *, quantities: int = 1) -> Array:
    r"""Return the nested r-hat above which superchains disagree, shape ``(...)``.

    The rule of this library. Chains that have forgotten their starts are independent, so M times B over the mean
    variance A between the chains of a superchain follows ``F(K - 1, K (M - 1))``. With its quantile q at one false
    alarm in 1,000 the limit is ``sqrt(1.01^2 + q A / (M W))``: short chains are allowed their noise, and long chains
    the customary 1.01. With one chain to a superchain there is no A, and the limit is 1.01.

    Args:
        values: draws, as for `nested_rhat`.
        superchains: K.
        quantities: how many are looked at together, among which the false alarms are divided.

    Raises:
        ValueError: as `nested_rhat`.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(64, 10))
        >>> bool(nested_rhat(draws, 8) < nested_rhat_limit(draws, 8) < 1.05)
        True
    """
    _, among, within = _variances(values, superchains)
    chains = np.shape(values)[0] // superchains
    quantile = 0.0
    if chains > 1:
        quantile = f_distribution.isf(_FALSE_ALARM / quantities, superchains - 1, superchains * (chains - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(_CUSTOMARY**2 + quantile * among / (chains * (among + within)))


def standing_apart(values: Any, superchains: int) -> tuple[NDArray[np.int64], Array]:
    """Return which superchains lie clearly below or above the middle one, and by how much.

    Clearly means by more than five standard errors and a tenth of the standard deviation within chains. Of an even
    number of superchains the upper of the two in the middle is meant.

    Args:
        values: draws ``(chain, draw)`` of one quantity, such as the log density.
        superchains: K.

    Returns:
        Indices of superchains from 0, and their distances, negative below, each ``(found,)``.

    Raises:
        ValueError: as `nested_rhat`.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(64, 50))
        >>> draws[8:16] -= 12.0
        >>> found, distance = standing_apart(draws, 8)
        >>> found, distance.round()
        (array([1]), array([-12.]))
    """
    values = to_numbers(values, "values")
    _, among, within = _variances(values, superchains)
    means = values.reshape(superchains, -1).mean(1)
    distance = means - np.sort(means)[superchains // 2]
    error = np.sqrt(among / (np.shape(values)[0] // superchains))
    apart = np.abs(distance) > max(_STANDARD_ERRORS * error, 0.1 * np.sqrt(within))
    return np.flatnonzero(apart), distance[apart]


def _variances(values: Any, superchains: int) -> tuple[Array, Array, Array]:
    """Return variances between superchains, among the chains of one (mean), and within chains (mean)."""
    array = to_numbers(values, "values")
    chains, draws = array.shape[:2]
    if superchains < 2 or chains % superchains:
        raise ValueError(
            f"superchains: expected a divisor of the {chains} chains, from 2 on, got {superchains}. "
            "Chains of one superchain start at one point and lie one after the other."
        )
    nested = array.reshape(superchains, chains // superchains, *array.shape[1:])
    means = nested.mean(2)
    nothing = np.zeros(array.shape[2:])
    between = means.mean(1).var(0, ddof=1)
    among = means.var(1, ddof=1).mean(0) if chains > superchains else nothing
    within = nested.var(2, ddof=1).mean((0, 1)) if draws > 1 else nothing
    return between, among, within
