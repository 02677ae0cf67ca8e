"""Squared maximum mean discrepancy of two samples, unbiased: with a Gaussian kernel, or with that of the KID."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

import torch
from torch import Tensor

from probmix.errors import DataError
from probmix.sample_quality_inputs import as_pair, row_blocks
from probmix.table import wide_dtype

__all__ = ["GaussianKernel", "Kernel", "PolynomialKernel", "median_bandwidth", "squared_mmd"]

#: ``(n, d), (m, d) -> (n, m)``.
Kernel: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_MEDIAN_ROWS = 1000  # of each sample: half a million distances and more, whose median hardly varies


@dataclass(frozen=True)
class GaussianKernel:
    r"""The kernel :math:`k(x, y) = \exp(-\lVert x - y \rVert^2 / 2 h^2)`.

    Args:
        bandwidth: h, in units of the features.

    Example:
        >>> value = GaussianKernel(1.0)(torch.zeros(1, 1), torch.tensor([[2.0]]))
        >>> bool((value - 0.1353).abs() < 1e-4)  # exp(-2)
        True
    """

    bandwidth: float | Tensor

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise DataError(
                f"bandwidth: expected a positive number, got {float(self.bandwidth):g}. See median_bandwidth."
            )

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the kernel's matrix."""
        centre = y.mean(0)  # far from the origin the distances would lose their digits
        return torch.exp(-0.5 * (torch.cdist(x - centre, y - centre) / self.bandwidth).square())


@dataclass(frozen=True)
class PolynomialKernel:
    r"""The kernel :math:`k(x, y) = (x^T y / d + c)^p` of d features; by default that of the kernel inception distance.

    Args:
        degree: p; the discrepancy sees moments up to this order.
        constant: c.

    Source:
        Bińkowski, Sutherland, Arbel and Gretton (2018), Demystifying MMD GANs, ICLR.

    Example:
        >>> PolynomialKernel()(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        tensor([[8., 1.]])
    """

    degree: int = 3
    constant: float = 1.0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the kernel's matrix."""
        return (x @ y.mT / x.shape[1] + self.constant) ** self.degree


def median_bandwidth(real: Tensor, generated: Tensor) -> Tensor:
    """Return the median distance of all pairs in the two samples together, a usual bandwidth.

    At most 1,000 rows of each sample are looked at, evenly spaced.

    Args:
        real: features, ``(n, d)``.
        generated: features, ``(m, d)``.

    Raises:
        DataError: features not of shapes ``(n, d)`` and ``(m, d)`` or not finite, or a median of 0, of many copies.

    Source:
        Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), A kernel two-sample test, JMLR 13, section 8.

    Example:
        >>> median_bandwidth(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]]))  # of 1, 3 and 2
        tensor(2.)
    """
    x, y = as_pair(real, generated)
    thinned = torch.cat([rows[:: ceil(len(rows) / _MEDIAN_ROWS)] for rows in (x, y)])
    median = torch.pdist(thinned.to(wide_dtype(x))).median()
    if not median > 0:
        raise DataError(
            "real, generated: expected samples of which most differ, got a median distance of 0. "
            "Pass GaussianKernel(bandwidth)."
        )
    return median.to(x)


def squared_mmd(real: Tensor, generated: Tensor, kernel: Kernel | None = None) -> Tensor:
    r"""Return the unbiased estimate of the squared maximum mean discrepancy.

    .. math:: \frac{1}{n (n - 1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{m (m - 1)} \sum_{i \ne j} k(y_i, y_j)
        - \frac{2}{n m} \sum_{i, j} k(x_i, y_j)

    Its mean is 0 where both come from one distribution, so it is negative about as often as not there. With
    `PolynomialKernel` on the features of a certain network it is the kernel inception distance, of all samples at once
    where the authors average over subsets. The cost grows as the square of the number of samples, the memory does not.

    Args:
        real: features of real samples, ``(n, d)``; images are flattened.
        generated: the same features of generated ones, ``(m, d)``.
        kernel: `GaussianKernel`, `PolynomialKernel` or any symmetric positive definite function of two tables; None: a
            Gaussian one of the `median_bandwidth`. It is given float64 where the device has it.

    Raises:
        DataError: features not of shapes ``(n, d)`` and ``(m, d)``, not finite, or fewer than two rows.

    Source:
        Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), A kernel two-sample test, JMLR 13, equation 3.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> bool(squared_mmd(x, x + 10.0) > 0.5), bool(squared_mmd(x, x + 0.1) < 0.0)
        (True, True)
    """
    x, y = as_pair(real, generated, least=2)
    chosen = GaussianKernel(median_bandwidth(x, y)) if kernel is None else kernel
    wide_x, wide_y = (rows.to(wide_dtype(x)) for rows in (x, y))
    within = _mean(chosen, wide_x) + _mean(chosen, wide_y)
    return (within - 2 * _mean(chosen, wide_x, wide_y)).to(x)


def _mean(kernel: Kernel, x: Tensor, other: Tensor | None = None) -> Tensor:
    """Return the mean of the kernel over pairs of two samples, or over pairs of different rows of one."""
    y = x if other is None else other
    total = x.new_zeros(())
    for block in row_blocks(len(x), len(y)):
        gram = kernel(x[block], y)
        total = total + gram.sum()
        if other is None:
            total = total - gram.diagonal(block.start).sum()
    return total / (len(x) * (len(y) - (other is None)))
