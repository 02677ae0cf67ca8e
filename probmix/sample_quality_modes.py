"""Which modes of a known mixture a generator reaches, and how many of its samples are near one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probmix.errors import DataError
from probmix.sample_quality_inputs import as_pair, distances, row_blocks
from probmix.table import wide_dtype

__all__ = ["ModeCoverage", "mode_coverage"]


class ModeCoverage(NamedTuple):
    """What `mode_coverage` found, for k modes.

    Args:
        high_quality: share of the samples that are near their nearest mode.
        modes: number of modes with enough samples near them.
        kl: divergence in nats of the histogram of nearest modes, all samples counted, from the uniform one; 0 to log k.
        near: number of samples near each mode, ``(k,)``.

    Example:
        >>> found = ModeCoverage(torch.tensor(0.9), torch.tensor(7), torch.tensor(0.2), torch.zeros(8))
        >>> int(found.modes)
        7
    """

    high_quality: Tensor
    modes: Tensor
    kl: Tensor
    near: Tensor


def mode_coverage(
    generated: Tensor, loc: Tensor, mode_std: float | Tensor, *, within: float = 3.0, least: int = 1
) -> ModeCoverage:
    r"""Count the modes that samples reach and the samples that are near one.

    A sample belongs to its nearest mode, the first of equals, and is near it, or of high quality, if its distance is
    at most ``within * mode_std``. With the share :math:`h_i` of samples that belong to mode i,

    .. math:: \mathrm{KL}(h \,\Vert\, u) = \sum_{i=1}^k h_i \log(k h_i)

    which has a mean of about (k - 1) / 2n, not 0, for n perfect samples of equal modes. Nor is the share of high
    quality 1 for them: it is the probability of :math:`\chi^2_d \le 9` for normal modes, 0.989 in the plane, 0.47 in
    ten dimensions; choose ``within`` accordingly.

    Args:
        generated: samples, ``(n, d)``.
        loc: centres of the modes, ``(k, d)``.
        mode_std: standard deviation of a mode in each direction, one for all or one for each, ``(k,)``.
        within: how many standard deviations are near.
        least: fewest near samples with which a mode counts as reached. With 1, as in the literature, a single stray
            sample suffices; take more where there are many samples.

    Raises:
        DataError: samples or centres not of shapes ``(n, d)`` and ``(k, d)`` or not finite, or a setting not positive.

    Source:
        Srivastava, Valkov, Russell, Gutmann and Sutton (2017), VEEGAN, NeurIPS, for both counts; Lin,
        Khetan, Fanti and Oh (2018), PacGAN, NeurIPS, for the divergence.

    Example:
        >>> loc = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
        >>> samples = torch.tensor([[0.1, 0.0], [0.0, 0.2], [-0.1, 0.1], [1.0, 5.0]])
        >>> found = mode_coverage(samples, loc, 0.1)
        >>> found.high_quality, found.modes, found.near
        (tensor(0.7500), tensor(1), tensor([3, 0]))
    """
    samples, centres = as_pair(generated, loc, names=("generated", "loc"))
    radius = within * _check_settings(mode_std, centres, within, least)
    total = centres.new_zeros(len(centres), dtype=torch.long)
    near = total.clone()
    for block in row_blocks(len(samples), len(centres)):
        distance, nearest = distances(samples[block], centres).min(1)
        total += nearest.bincount(minlength=len(centres))
        near += nearest[distance <= radius[nearest]].bincount(minlength=len(centres))
    share = total.to(wide_dtype(samples)) / len(samples)
    kl = torch.xlogy(share, len(centres) * share).sum().clamp_min(0)
    high_quality = near.sum().to(share) / len(samples)
    return ModeCoverage(high_quality.to(samples), (near >= least).sum(), kl.to(samples), near)


def _check_settings(mode_std: float | Tensor, centres: Tensor, within: float, least: int) -> Tensor:
    """Return a standard deviation for each mode, ``(k,)``."""
    std = torch.as_tensor(mode_std, dtype=centres.dtype, device=centres.device)
    if std.shape not in ((), (len(centres),)) or not (std > 0).all() or not std.isfinite().all():
        got = f"shape {tuple(std.shape)}" if std.ndim else f"{float(std):g}"
        raise DataError(
            f"mode_std: expected a positive number, or one for each of {len(centres)} modes, got {got}. "
            "Pass the standard deviation that the modes were drawn with."
        )
    if not within > 0 or least < 1:
        raise DataError(
            f"within, least: expected a positive number and 1 or more, got {within:g} and {least}. "
            "Leave them out for 3 standard deviations and one sample."
        )
    return std.expand(len(centres))
