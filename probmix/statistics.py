"""Weighted counts, means and centred second moments of data: additive over chunks of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Statistics", "weighted_square"]


def weighted_square(difference: Tensor, weight: Tensor, spread_dim: int, *, pooled: bool = False) -> Tensor:
    r"""Weighted second moment of one vector per component, in the shape of the spread that it informs.

    :math:`w \delta \delta^T` for a matrix (``spread_dim=2``), :math:`w \delta_j^2` for a variance per feature (1),
    :math:`w \sum_j \delta_j^2` for a single variance (0).

    Args:
        difference: ``(*b, K, D)``.
        weight: not negative, ``(*b, K)``.
        spread_dim: number of axes of one spread.
        pooled: sum over the components and keep an axis of size 1.

    Example:
        >>> import torch
        >>> weighted_square(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]), 0)
        tensor([15.])
    """
    if spread_dim == 2:
        square = difference[..., :, None] * difference[..., None, :] * weight[..., None, None]
    elif spread_dim == 1:
        square = difference.square() * weight[..., None]
    else:
        square = difference.square().sum(-1) * weight
    return square.sum(-1 - spread_dim, keepdim=True) if pooled else square


@dataclass(frozen=True, eq=False)
class Statistics:
    r"""Sufficient statistics of Gaussian components, from responsibilities :math:`r_{nk}`.

    .. math:: n_k = \sum_n r_{nk}, \quad \bar x_k = \frac1{n_k} \sum_n r_{nk} x_n, \quad
              S_k = \sum_n r_{nk} (x_n - \bar x_k)(x_n - \bar x_k)^T

    The scatter is centred about the component's own mean, so that large offsets of the data cost no digits, and the
    statistics of two chunks add up with ``+``.

    Attributes:
        count: sum of the responsibilities, ``(*b, K)``.
        mean: weighted mean, ``(*b, K, D)``; finite (and of no consequence) where the count is 0.
        scatter: ``(*b, K, D, D)``, or ``(*b, K, D)`` (one variance per feature), or ``(*b, K)`` (one variance). A
            component axis of size 1 holds the sum over all components (tied covariance).

    Example:
        >>> import torch
        >>> one = Statistics(torch.tensor([1.0]), torch.tensor([[0.0]]), torch.tensor([0.0]))
        >>> two = Statistics(torch.tensor([1.0]), torch.tensor([[2.0]]), torch.tensor([0.0]))
        >>> (one + two).mean, (one + two).scatter
        (tensor([[1.]]), tensor([2.]))
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor

    @property
    def spread_dim(self) -> int:
        """Number of axes of one spread: 2 for a matrix, 1 for a variance per feature, 0 for one variance."""
        return self.scatter.ndim - self.count.ndim

    @property
    def pooled(self) -> bool:
        """Whether the scatter is summed over the components."""
        return self.scatter.shape[-1 - self.spread_dim] == 1

    def merge(self, other: Statistics) -> Statistics:
        r"""Return the statistics of the two sets of rows together, exactly.

        .. math:: S = S_a + S_b + \frac{n_a n_b}{n_a + n_b} \delta \delta^T, \quad \delta = \bar x_b - \bar x_a

        Source:
            Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance: analysis and recommendations,
            The American Statistician 37, 242-247.
        """
        count = self.count + other.count
        fraction = other.count / count.clamp_min(torch.finfo(count.dtype).tiny)
        mean = self.mean + fraction[..., None] * (other.mean - self.mean)
        scatter = self.scatter + other.scatter_about(self.mean, self.count * fraction)
        return Statistics(count, mean, scatter)

    __add__ = merge

    def scatter_about(self, loc: Tensor, weight: Tensor) -> Tensor:
        """Scatter plus ``weight`` times the squared offset of the means from ``loc``, in the scatter's shape.

        Args:
            loc: broadcasts to ``(*b, K, D)``.
            weight: ``(*b, K)``.
        """
        return self.scatter + weighted_square(self.mean - loc, weight, self.spread_dim, pooled=self.pooled)
