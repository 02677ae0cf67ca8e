"""Means of draws against a known value, in units of their Monte-Carlo standard error."""

from __future__ import annotations

import arviz as az
import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Array = NDArray[np.float64]


def critical(count: int, false_alarm: float) -> float:
    """The largest of ``count`` absolute z-scores exceeds this with at most this probability (Bonferroni)."""
    return float(norm.isf(false_alarm / (2 * count)))


def standard_error(draws: Array) -> Array:
    """Monte-Carlo standard error of the mean of ``(chain, draw, q)``, by ArviZ's effective sample size, ``(q,)``."""
    return np.array([float(az.mcse(series, method="mean")) for series in np.moveaxis(draws, -1, 0)])


def z_scores(draws: Array, truth: Array) -> Array:
    """Z-scores ``(q,)`` of the means of ``(chain, draw, q)``."""
    return (draws.mean((0, 1)) - truth) / standard_error(draws)
