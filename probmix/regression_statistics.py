"""Weighted moments of a design and its responses: what a linear regression needs, additive over chunks of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RegressionStatistics"]


@dataclass(frozen=True, eq=False)
class RegressionStatistics:
    r"""Sufficient statistics of the regression of M responses on P columns, with weights :math:`r_{nk}`.

    .. math:: n_k = \sum_n r_{nk}, \quad G_k = \sum_n r_{nk} (z_n - \bar z_k)(z_n - \bar z_k)^T, \quad
              C_k = \sum_n r_{nk} (y_n - \bar y_k)(z_n - \bar z_k)^T, \quad
              s_k = \sum_n r_{nk} (y_n - \bar y_k)^2

    All are centred about the component's own means, so that an offset of the data costs no digits.

    Attributes:
        count: :math:`n`, ``(*b, K)``.
        design_mean: :math:`\bar z`, ``(*b, K, P)``; finite (and of no consequence) where the count is 0.
        response_mean: :math:`\bar y`, ``(*b, K, M)``.
        gram: :math:`G`, ``(*b, K, P, P)``.
        cross: :math:`C`, ``(*b, K, M, P)``.
        square: :math:`s`, ``(*b, K, M)``.

    Example:
        >>> design, response = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0], [5.0]])
        >>> one = RegressionStatistics.of(design, response, torch.ones(1, 3))
        >>> (one.cross / one.gram).flatten()
        tensor([2.])
    """

    count: Tensor
    design_mean: Tensor
    response_mean: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor

    @classmethod
    def of(cls, design: Tensor, response: Tensor, weights: Tensor) -> RegressionStatistics:
        """Statistics of rows, with sums in float64 whatever the data.

        Args:
            design: ``(n, P)``, or ``(*b, K, n, P)`` where every component has its own.
            response: ``(n, M)``.
            weights: ``(*b, K, n)``.
        """
        wide = design.dtype if design.device.type == "mps" else torch.float64  # Apple's devices have no float64
        narrow, design, response, weights = response, design.to(wide), response.to(wide), weights.to(wide)
        z_centre, y_centre = design.mean(-2), response.mean(-2)
        design, response = design - z_centre[..., None, :], response - y_centre
        count = weights.sum(-1)
        share = (weights / count.clamp_min(torch.finfo(wide).tiny)[..., None])[..., None, :]
        z_mean, y_mean = (share @ design).squeeze(-2), (share @ response).squeeze(-2)
        weighted = (weights[..., None] * design).mT
        means = (z_mean[..., :, None], y_mean[..., :, None], count[..., None, None])
        statistics = cls(
            count,
            z_centre + z_mean,
            y_centre + y_mean,
            weighted @ design - means[2] * means[0] * means[0].mT,
            (weighted @ response).mT - means[2] * means[1] * means[0].mT,
            (weights @ response.square() - count[..., None] * y_mean.square()).clamp_min(0),
        )
        return statistics.to(narrow)

    def to(self, like: Tensor) -> RegressionStatistics:
        """Return a copy with the dtype and device of ``like``."""
        return RegressionStatistics(*(getattr(self, name).to(like) for name in self.__dataclass_fields__))

    def about(self, centre: Tensor, loc: Tensor, weight: Tensor) -> RegressionStatistics:
        """Add ``weight`` times the squares and products of the means' offsets from other means.

        Args:
            centre: of the design, broadcasts to ``(*b, K, P)``.
            loc: of the responses, broadcasts to ``(*b, K, M)``.
            weight: ``(*b, K)``.
        """
        offset, rise = self.design_mean - centre, self.response_mean - loc
        heavy = weight[..., None] * offset
        return RegressionStatistics(
            self.count,
            self.design_mean,
            self.response_mean,
            self.gram + heavy[..., :, None] * offset[..., None, :],
            self.cross + rise[..., :, None] * heavy[..., None, :],
            self.square + weight[..., None] * rise.square(),
        )

    def merge(self, other: RegressionStatistics) -> RegressionStatistics:
        """Return the statistics of the two sets of rows together, exactly (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        fraction = other.count / count.clamp_min(torch.finfo(count.dtype).tiny)
        moved = other.about(self.design_mean, self.response_mean, self.count * fraction)
        return RegressionStatistics(
            count,
            self.design_mean + fraction[..., None] * (other.design_mean - self.design_mean),
            self.response_mean + fraction[..., None] * (other.response_mean - self.response_mean),
            self.gram + moved.gram,
            self.cross + moved.cross,
            self.square + moved.square,
        )

    __add__ = merge
