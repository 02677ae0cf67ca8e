"""A polynomial in the inputs, fitted by least squares: what a stationary process is not to explain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PolynomialTrend"]


@dataclass(frozen=True)
class PolynomialTrend:
    r"""A polynomial of each input by itself, without products between them.

    .. math:: m(x) = b_0 + \sum_d \sum_{k = 1}^K b_{dk} u_d^k, \qquad u = (x - c) / h

    Args:
        centre: c, ``(d,)``.
        width: h, ``(d,)``.
        coefficients: b, ``(1 + d K, p)``.
        degree: K.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> line = PolynomialTrend.fit(x, 2 * x + 1, degree=1)
        >>> line(torch.tensor([[10.0]])).round(decimals=3)
        tensor([[21.]])
    """

    centre: Tensor
    width: Tensor
    coefficients: Tensor
    degree: int

    @classmethod
    def fit(cls, x: Tensor, y: Tensor, degree: int) -> PolynomialTrend:
        """Return the polynomial nearest to observations ``(n, p)`` at rows ``(n, d)``; the shortest of several such."""
        low, high = x.min(0).values, x.max(0).values
        width = torch.where(high > low, 0.5 * (high - low), 1.0)
        flat = cls(0.5 * (low + high), width, y.new_zeros(0), degree)
        return cls(flat.centre, flat.width, torch.linalg.pinv(flat._powers(x)) @ y, degree)

    def __call__(self, x: Tensor) -> Tensor:
        """Return its values at rows ``(m, d)``, ``(m, p)``."""
        return self._powers(x) @ self.coefficients

    def _powers(self, x: Tensor) -> Tensor:
        scaled = (x - self.centre) / self.width
        return torch.cat([torch.ones_like(x[:, :1]), *(scaled**k for k in range(1, self.degree + 1))], -1)
