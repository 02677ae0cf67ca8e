"""The spectrum of an unevenly sampled series: generalised Lomb-Scargle periodogram, and its peaks one after another."""

from __future__ import annotations

import math

import scipy.fft
import torch
from torch import Tensor

from probmix.errors import DataError

__all__ = ["frequency_grid", "lomb_scargle", "nyquist", "peaks", "periodogram"]

_AT_ONCE = 2**22  # numbers in the largest table of one block of frequencies
_ZOOMS = 4  # refinements of a peak, each by a factor of ten
_SINGULAR = 1e-10  # of a determinant: sine and cosine say the same at all times
_SPREAD = 12  # points of a grid to either side onto which a time is spread: 12 digits (Greengard and Lee, table 1)


def nyquist(times: Tensor) -> Tensor:
    """Return the highest frequency that times resolve without doubt, in cycles per unit.

    Half a cycle per step: of even steps the Nyquist frequency; of uneven ones by their median, where higher frequencies
    may be told from lower ones all the same, since no single step fits them all.

    Args:
        times: ``(n,)``, in any order; repeated ones count once.

    Raises:
        DataError: all times are one.

    Example:
        >>> nyquist(torch.arange(10) / 12)
        tensor(6.)
    """
    steps = times.sort().values.diff()
    steps = steps[steps > 4 * torch.finfo(times.dtype).eps * times.abs().max()]
    if not len(steps):
        raise DataError("expected times that differ, got one and the same throughout. Drop this column.")
    return 0.5 / steps.median()


def frequency_grid(times: Tensor, max_frequency: Tensor | float, *, oversampling: float = 5.0) -> Tensor:
    """Return frequencies from 1 / (oversampling * span) up, so close that no peak falls between two of them.

    Args:
        times: ``(n,)``.
        max_frequency: the bound of them, cycles per unit.
        oversampling: frequencies in the width of a peak, ``1 / span``.

    Example:
        >>> frequency_grid(torch.tensor([0.0, 10.0]), 0.1)
        tensor([0.0200, 0.0400, 0.0600, 0.0800, 0.1000])
    """
    step = 1 / (oversampling * (times.max() - times.min()))
    count = int(max_frequency / step + 1e-3)
    return step * torch.arange(1, max(count, 1) + 1, dtype=times.dtype, device=times.device)


def lomb_scargle(times: Tensor, y: Tensor, frequencies: Tensor) -> Tensor:
    r"""Return the share of the variance of y that a sinusoid with a constant explains, ``(f,)``, 0 to 1.

    .. math:: P(f) = 1 - \min_{a, b, c} \sum_i \big(y_i - a \cos 2 \pi f t_i - b \sin 2 \pi f t_i - c\big)^2
              \big/ \sum_i (y_i - \bar y)^2

    Args:
        times: ``(n,)``, evenly spaced or not, in any order.
        y: ``(n,)``.
        frequencies: ``(f,)``, cycles per unit.

    Source:
        Zechmeister and Kuerster (2009), The generalised Lomb-Scargle periodogram, equations 4 to 15.

    Example:
        >>> times = torch.linspace(0, 10, 101) ** 1.1
        >>> y = (2 * torch.pi * 0.5 * times).sin()
        >>> lomb_scargle(times, y, torch.tensor([0.25, 0.5])).round(decimals=2)
        tensor([0.0100, 1.0000])
    """
    times, y = times - times.mean(), y - y.mean()
    rows = max(1, _AT_ONCE // len(times))
    return torch.cat([_explained(times, y, block) for block in frequencies.split(rows)])


def periodogram(
    times: Tensor, y: Tensor, max_frequency: Tensor | float, *, oversampling: float = 5.0
) -> tuple[Tensor, Tensor]:
    """Return the frequencies of `frequency_grid` and there what `lomb_scargle` says, ``(f,)`` each.

    By a fast transform, in time n + f log f instead of n f, in float64 whatever the dtype of the data: within 1e-12 of
    the same, less where sine and cosine hardly differ.

    Args:
        times: ``(n,)``, evenly spaced or not, in any order.
        y: ``(n,)``.
        max_frequency: the last, cycles per unit.
        oversampling: frequencies in the width of a peak, ``1 / span``.

    Source:
        Press and Rybicki (1989), Fast algorithm for spectral analysis of unevenly sampled data, equations 5 to 9.

    Example:
        >>> times = torch.linspace(0, 10, 101) ** 1.1
        >>> frequencies, share = periodogram(times, (2 * torch.pi * 0.5 * times).sin(), 2.0)
        >>> frequencies[share.argmax()].round(decimals=1), share.max().round(decimals=1)
        (tensor(0.5000), tensor(1.))
    """
    grid = frequency_grid(times, max_frequency, oversampling=oversampling)
    count, centred = len(grid), (y - y.mean()).double()
    turns = ((times - times.mean()).double() * grid[0].double()).remainder(1)
    waves, of_y = _sums(turns, torch.ones_like(turns), 2 * count), _sums(turns, centred, count)
    once, twice, n = waves[:count], waves[1::2], len(times)  # cos² and sin² are made of cosines of twice the angle
    cc = 0.5 * (n + twice.real) - once.real.square() / n
    ss = 0.5 * (n - twice.real) - once.imag.square() / n
    cs = 0.5 * twice.imag - once.real * once.imag / n
    return grid, _share(cc, ss, cs, of_y.real, of_y.imag, centred.square()).to(y)


def peaks(times: Tensor, y: Tensor, num: int, max_frequency: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return the frequencies of a series, the strongest first, and the variance that each explains, ``(num,)`` each.

    One after another: the highest peak of what all sinusoids before leave over, its place refined, then all their
    amplitudes anew. So a strong peak's side lobes, which uneven times scatter, are not taken for peaks.

    Args:
        times: ``(n,)``.
        y: ``(n,)``.
        num: how many, at most a third of the rows.
        max_frequency: the highest to look at, cycles per unit.

    Source:
        Roberts, Lehar and Dreher (1987), Time series analysis with CLEAN, in its least-squares form (prewhitening).

    Example:
        >>> times = torch.linspace(0, 20, 201, dtype=torch.float64) ** 1.1
        >>> y = (2 * torch.pi * 0.5 * times).sin() + 0.5 * (2 * torch.pi * 0.9 * times).cos()
        >>> peaks(times, y, 2, 2.0)[0].round(decimals=2)
        tensor([0.5000, 0.9000], dtype=torch.float64)
    """
    times, left = times - times.mean(), y - y.mean()
    max_frequency = torch.as_tensor(max_frequency, dtype=times.dtype, device=times.device)
    found: list[Tensor] = []
    variances: list[Tensor] = []
    for _ in range(max(1, min(num, len(y) // 3))):
        grid, share = periodogram(times, left, max_frequency)
        found.append(_refined(times, left, grid[share.argmax()], grid[0], max_frequency))
        before = left
        columns = 2 * math.pi * torch.stack(found) * times[:, None]
        design = torch.cat([torch.ones_like(times)[:, None], columns.cos(), columns.sin()], -1)
        left = y - design @ (torch.linalg.pinv(design) @ y)
        variances.append((before.var() - left.var()).clamp(min=0))
    return torch.stack(found), torch.stack(variances)


def _explained(times: Tensor, y: Tensor, frequencies: Tensor) -> Tensor:
    """Return the periodogram of centred y: the least-squares fit of cosine and sine, both centred."""
    angles = 2 * math.pi * frequencies[:, None] * times
    cosines, sines = (values - values.mean(-1, keepdim=True) for values in (angles.cos(), angles.sin()))
    cc, ss, cs = cosines.square().sum(-1), sines.square().sum(-1), (cosines * sines).sum(-1)
    return _share(cc, ss, cs, cosines @ y, sines @ y, y.square())


def _share(cc: Tensor, ss: Tensor, cs: Tensor, yc: Tensor, ys: Tensor, squares: Tensor) -> Tensor:
    """Return what the fit explains of squares of y, given inner products of centred cosine, sine and y."""
    determinant = cc * ss - cs.square()
    both = (ss * yc.square() + cc * ys.square() - 2 * cs * yc * ys) / determinant
    larger = torch.where(cc > ss, yc.square() / cc, ys.square() / ss)
    explained = torch.where(determinant > _SINGULAR * (cc + ss).square(), both, larger)
    explained = torch.where(torch.maximum(cc, ss) > _SINGULAR * len(squares), explained, 0)  # constant at all times
    return (explained / squares.sum()).nan_to_num().clamp(0, 1)


def _sums(turns: Tensor, values: Tensor, count: int) -> Tensor:
    """Return ``sum_i values_i exp(2 pi i k turns_i)`` for k = 1 to count, of turns in [0, 1].

    Each value is spread onto a grid by a Gaussian, whose transform is known and divided out.

    Source:
        Greengard and Lee (2004), Accelerating the nonuniform fast Fourier transform, section 3, at a ratio of 2.
    """
    size = scipy.fft.next_fast_len(max(4 * count, 2 * _SPREAD), real=True)
    width = 4 * _SPREAD / (3 * math.pi)  # squared, in units of the grid: 4 tau (size / 2 pi)^2
    places = turns * size
    below = places.floor()
    table = torch.zeros(size, dtype=values.dtype, device=values.device)
    for k in range(1 - _SPREAD, _SPREAD + 1):
        weights = (-(places - below - k).square() / width).exp()
        table.index_add_(0, (below.long() + k) % size, values * weights)
    orders = torch.arange(1, count + 1, dtype=values.dtype, device=values.device)
    gaussian = math.sqrt(math.pi * width) * (-width * (math.pi * orders / size).square()).exp()
    return torch.fft.rfft(table)[1 : count + 1].conj() / gaussian


def _refined(times: Tensor, y: Tensor, frequency: Tensor, width: Tensor, max_frequency: Tensor) -> Tensor:
    """Return the highest place of the periodogram within a width of a frequency."""
    around = torch.linspace(-1, 1, 21, dtype=times.dtype, device=times.device)
    for _ in range(_ZOOMS):
        near = torch.minimum((frequency + width * around).clamp(min=1e-3 * frequency), max_frequency)
        frequency, width = near[lomb_scargle(times, y, near).argmax()], width / 10
    return frequency
