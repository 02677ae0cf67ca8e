"""First guesses of the components of a spectral mixture: peaks of the periodogram, and components without a cycle."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probmix.covariance import Spherical
from probmix.gaussian_family import GaussianFamily
from probmix.periodogram import peaks, periodogram
from probmix.table import Table

__all__ = ["Guess", "periodogram_guesses", "spectrum_guesses"]

_LEAST_SHARE = 1e-4  # of the variance, for a peak to be a candidate
_NARROW = 0.01, 1.0  # bandwidth of a peak, in units of 1 / span
_WEIGHT_LOG_STD = 0.5
_EM_STEPS = 30
_NOISE = 1e-3, 0.3  # share of the variance that noise is guessed to have


class Guess(NamedTuple):
    """Components of a spectral mixture along one input, in as many guesses as asked for.

    Args:
        weights: ``(g, q)``, in units of the variance of y, with the noise about 1 in all.
        frequencies: ``(g, q)``, cycles per unit.
        bandwidths: ``(g, q)``, cycles per unit.
        noise_share: ``(g,)``.

    Example:
        >>> times = torch.arange(50.0)
        >>> periodogram_guesses(times, times.sin(), 2, 3, 0.5).weights.shape
        torch.Size([2, 3])
    """

    weights: Tensor
    frequencies: Tensor
    bandwidths: Tensor
    noise_share: Tensor


def periodogram_guesses(
    times: Tensor, y: Tensor, num: int, num_components: int, max_frequency: Tensor | float
) -> Guess:
    """Return guesses that take some components from the peaks of the Lomb-Scargle periodogram.

    After a parabola is taken off. In each guess some peaks, the stronger the likelier, get a narrow component; the
    others are without a cycle, with bandwidths over all scales: they are for trends and for what is left.

    Args:
        times: one input, ``(n,)``, evenly spaced or not.
        y: ``(n,)``.
        num: g.
        num_components: q.
        max_frequency: the highest frequency, cycles per unit.

    Example:
        >>> times = torch.linspace(0, 10, 200, dtype=torch.float64)
        >>> guess = periodogram_guesses(times, (2 * torch.pi * 3 * times).sin(), 50, 2, 10.0)
        >>> round(float(guess.frequencies.max()), 1)
        3.0
    """
    found, variances = peaks(times, _detrended(times, y), 2 * num_components, max_frequency)
    share = variances / y.var()
    candidates = torch.where(share > _LEAST_SHARE, share, 0.0)
    candidates[0] = share[0].clamp(min=_LEAST_SHARE)
    at_most = min(int((candidates > 0).sum()), max(1, num_components - 1))
    shape, like = (num, num_components), times
    order = (0.5 * candidates.log() + _gumbel((num, len(found)), like)).argsort(-1, descending=True)
    chosen = torch.cat([order, order.new_zeros(num, num_components)], -1)[:, :num_components]
    count = torch.randint((at_most + 1) // 2, at_most + 1, (num, 1), device=times.device)
    is_peak = torch.arange(num_components, device=times.device) < count
    span = _span(times)
    frequencies = torch.where(is_peak, found[chosen], 0.1 / span * torch.rand(shape, dtype=y.dtype, device=y.device))
    narrow = _log_uniform(shape, _NARROW[0] / span, _NARROW[1] / span, like)
    wide = _log_uniform(shape, 0.1 / span, 0.25 * max_frequency, like)
    trend_share = (1 - share.sum()).clamp(min=0.1)
    raw = torch.where(is_peak, share[chosen], trend_share / (num_components - count))
    weights, noise_share = _shares(raw)
    return Guess(weights, _inside(frequencies, span, max_frequency), torch.where(is_peak, narrow, wide), noise_share)


def spectrum_guesses(times: Tensor, y: Tensor, num: int, num_components: int, max_frequency: Tensor | float) -> Guess:
    """Return guesses that see the periodogram as a density of frequencies, to which EM fits a Gaussian mixture.

    For broad spectra, which have no peaks to speak of. Each guess is a run of its own, from means that are drawn from
    the periodogram.

    Args:
        times: one input, ``(n,)``, evenly spaced or not.
        y: ``(n,)``.
        num: g.
        num_components: q.
        max_frequency: the highest frequency, cycles per unit.

    Example:
        >>> times = torch.linspace(0, 10, 200, dtype=torch.float64)
        >>> guess = spectrum_guesses(times, (2 * torch.pi * 3 * times).sin(), 4, 1, 10.0)
        >>> guess.frequencies.mean().round(decimals=0)
        tensor(3., dtype=torch.float64)
    """
    frequencies, power = periodogram(times, y, max_frequency, oversampling=2.0)
    family = GaussianFamily(Spherical())
    table = Table(frequencies[:, None], len(power) * power / power.sum(), family.prepare(frequencies[:, None]))
    loc = frequencies[torch.multinomial(power.expand(num, -1), num_components, replacement=True)]
    width = max_frequency / num_components
    sites = {"loc": loc[..., None], "var": torch.full_like(loc, float(width) ** 2)}
    weights = torch.full_like(loc, 1 / num_components)
    floor = (0.1 / _span(times)) ** 2  # what a peak's own width hides
    for _ in range(_EM_STEPS):
        statistics = family.expectation(table, weights.log(), sites).statistics
        weights = statistics.count / statistics.count.sum(-1, keepdim=True)
        weights = 0.999 * weights + 0.001 / num_components
        sites = family.maximise(statistics, None, sites)
        sites["var"] = sites["var"] + floor
    shares, noise_share = _shares(weights)
    frequencies = _inside(sites["loc"][..., 0], _span(times), max_frequency)
    return Guess(shares, frequencies, sites["var"].sqrt(), noise_share)


def _inside(frequencies: Tensor, span: Tensor, max_frequency: Tensor | float) -> Tensor:
    """Return frequencies off the bounds of their prior by a hundredth of a peak's width: there are no gradients."""
    return frequencies.clamp(1e-2 / span, max_frequency - 1e-2 / span)


def _detrended(times: Tensor, y: Tensor) -> Tensor:
    """Return what is left of y after the best parabola."""
    scaled = (times - times.mean()) / _span(times)
    design = torch.stack([torch.ones_like(scaled), scaled, scaled.square()], -1)
    return y - design @ (torch.linalg.pinv(design) @ y)


def _shares(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights about in proportion to some numbers, and the share of the noise; together 1."""
    noise_share = _log_uniform(raw.shape[:1], *_NOISE, raw)
    weights = raw * (_WEIGHT_LOG_STD * torch.randn_like(raw)).exp()
    return (1 - noise_share[:, None]) * weights / weights.sum(-1, keepdim=True), noise_share


def _log_uniform(shape: tuple[int, ...], low: Tensor | float, high: Tensor | float, like: Tensor) -> Tensor:
    low, high = (torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in (low, high))
    return low * (high / low) ** torch.rand(shape, dtype=like.dtype, device=like.device)


def _gumbel(shape: tuple[int, ...], like: Tensor) -> Tensor:
    uniform = torch.rand(shape, dtype=like.dtype, device=like.device).clamp(min=torch.finfo(like.dtype).tiny)
    return -(-uniform.log()).log()


def _span(times: Tensor) -> Tensor:
    return times.max() - times.min()
