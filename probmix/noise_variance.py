"""How noisy observations are, before any model of them: a prior, a bound, and Garcia's estimate of an even series."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.fft import dct
from scipy.optimize import minimize_scalar
from torch import Tensor

from probmix.distributions import ShiftedLogNormal
from probmix.errors import DataError

__all__ = ["evar", "least_noise", "noise_prior"]

_SHARE, _LOG_STD = 0.1, 1.5  # the default prior: median a tenth of the variance of the observations

_LEAST, _MOST = 1e-6, 0.99  # leverage of a smoother that is worth trying: nearly a straight line, nearly the data


def evar(y: Tensor, *, tolerance: float = 1e-6) -> Tensor:
    r"""Return an estimate of the variance of white noise in an evenly spaced series ``(n,)``.

    A smoothing spline is diagonal in the cosine basis: with :math:`\hat y` the discrete cosine transform of y and
    :math:`g_k = 1 - 1 / (1 + s (2 - 2 \cos(\pi k / n))^2)`, the residuals have mean square
    :math:`V(s) = \tfrac1n \sum_k g_k^2 \hat y_k^2`. The answer is V where the generalised cross-validation score
    :math:`V(s) / (\tfrac1n \sum_k g_k)^2` is least. Rows in no order (a shuffled table) have no smooth part: there it
    is the variance of the labels, and no estimate of the noise.

    Args:
        y: observations, in the order of their even spacing.
        tolerance: of the common logarithm of s. The program in MATLAB has 0.1, and returns V at the *last* s that was
            tried, which is off by some per cent; 0.1 here does the same.

    Raises:
        DataError: fewer than three observations, not a vector, or not finite.

    Source:
        Garcia (2010), Robust smoothing of gridded data in one and higher dimensions with missing values, and his
        program evar.m.

    Example:
        >>> x = torch.linspace(0, 100, 10_000, dtype=torch.float64)
        >>> noise = 0.02**0.5 * torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> evar((x / 10).cos() + x / 50 + noise).round(decimals=3)
        tensor(0.0200, dtype=torch.float64)
    """
    if y.dim() != 1 or len(y) < 3 or not bool(y.isfinite().all()):
        raise DataError(
            f"y: expected at least 3 finite observations, (n,), got {tuple(y.shape)}. Estimate one series at a time."
        )
    values = y.detach().cpu().double().numpy()
    squares = dct(values, norm="ortho") ** 2
    penalty = (2 - 2 * np.cos(np.pi * np.arange(len(values)) / len(values))) ** 2
    last = 0.0

    def score(log10_s: float) -> float:
        nonlocal last
        gain = 1 - 1 / (1 + 10**log10_s * penalty)
        last = float(np.mean(squares * gain**2))
        return last / float(np.mean(gain)) ** 2

    bounds = [math.log10(_smoothness(leverage)) for leverage in (_MOST, _LEAST)]
    minimize_scalar(score, bounds=bounds, method="bounded", options={"xatol": tolerance})
    return torch.as_tensor(last, dtype=torch.float64).to(y)


def least_noise(variance: Tensor) -> Tensor:
    r"""Return the noise variance below which a covariance cannot be told from a singular one.

    .. math:: \sigma^2_{\min} = \sqrt{\epsilon} \, \mathrm{var}(y)

    with the resolution :math:`\epsilon` of the dtype: 1.5e-8 of the variance in float64, 3.5e-4 in float32. Of
    observations without noise a likelihood has no maximum at all.

    Args:
        variance: of the observations, ``()``.

    Example:
        >>> least_noise(torch.tensor(1.0, dtype=torch.float64))
        tensor(1.4901e-08, dtype=torch.float64)
    """
    return torch.finfo(variance.dtype).eps ** 0.5 * variance


def noise_prior(variance: Tensor) -> ShiftedLogNormal:
    """Return the default prior of a noise variance: above `least_noise`, median a tenth of the observations' variance.

    Args:
        variance: of the observations, ``()``.

    Example:
        >>> prior = noise_prior(torch.tensor(4.0, dtype=torch.float64))
        >>> prior.log_loc.exp(), prior.least
        (tensor(0.4000, dtype=torch.float64), tensor(5.9605e-08, dtype=torch.float64))
    """
    log_loc, log_std = (_SHARE * variance).log(), torch.full_like(variance, _LOG_STD)
    return ShiftedLogNormal(log_loc, log_std, least_noise(variance))


def _smoothness(leverage: float) -> float:
    """Return the s at which the average leverage is this (Garcia 2010, equation 12)."""
    return (((1 + math.sqrt(1 + 8 * leverage**2)) / (4 * leverage**2)) ** 2 - 1) / 16
