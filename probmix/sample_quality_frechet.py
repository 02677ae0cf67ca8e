"""The Fréchet distance between normal distributions fitted to features, as in the FID."""

from __future__ import annotations

import torch
from torch import Tensor

from probmix.sample_quality_inputs import as_pair, row_blocks
from probmix.table import wide_dtype

__all__ = ["frechet_distance"]


def frechet_distance(real: Tensor, generated: Tensor) -> Tensor:
    r"""Return the squared 2-Wasserstein distance between normal distributions with the moments of the two samples.

    .. math:: F = \lVert m_1 - m_2 \rVert^2 + \operatorname{tr}(S_1) + \operatorname{tr}(S_2)
        - 2 \operatorname{tr}\bigl((S_1^{1/2} S_2 S_1^{1/2})^{1/2}\bigr)

    Of the features of a certain network it is the Fréchet inception distance. With :math:`S_i = R_i^T R_i`, where
    :math:`R_i` is the triangular factor of the centred rows, the last trace is the sum of the singular values of
    :math:`R_1 R_2^T`. No covariance is inverted or rooted, so fewer samples than features are no trouble, and a
    direction without variance costs no accuracy. Covariances have the divisor n - 1. All is computed in float64.

    It is biased upwards by an amount that falls as 1 / n and differs between generators: compare equal numbers of
    samples. `probmix.sample_quality.squared_mmd` is not biased.

    Args:
        real: features of real samples, ``(n, d)``; images are flattened.
        generated: the same features of generated ones, ``(m, d)``.

    Raises:
        DataError: features not of shapes ``(n, d)`` and ``(m, d)``, not finite, or fewer than two rows.

    Source:
        Dowson and Landau (1982), The Fréchet distance between multivariate normal distributions, Journal of
        Multivariate Analysis 12; Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter (2017), GANs trained by a two
        time-scale update rule converge to a local Nash equilibrium, NeurIPS.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
        >>> moved = frechet_distance(x, x + torch.tensor([3.0, 4.0]))
        >>> bool((moved - 25).abs() < 1e-4)
        True
    """
    x, y = as_pair(real, generated, least=2)
    wide = wide_dtype(x)
    shift = x.mean(0, dtype=wide) - y.mean(0, dtype=wide)
    first, second = _triangle(x), _triangle(y)
    mixed = torch.linalg.svdvals(first @ second.mT).sum()
    return (shift.square().sum() + first.square().sum() + second.square().sum() - 2 * mixed).clamp_min(0).to(x)


def _triangle(rows: Tensor) -> Tensor:
    """Return R with the sample covariance ``R^T R``, ``(min(n, d), d)``, going through the rows in blocks."""
    wide = wide_dtype(rows)
    centre = rows.mean(0, dtype=wide)
    factor = centre.new_empty(0, rows.shape[1])
    for block in row_blocks(len(rows), rows.shape[1]):
        factor = torch.linalg.qr(torch.cat([factor, rows[block].to(wide) - centre]), mode="r").R
    return factor / (len(rows) - 1) ** 0.5
