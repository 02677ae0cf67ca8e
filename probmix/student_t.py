"""Multivariate Student-t distributions of any shape of scale matrix: Gaussians of random width."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["EllipticalStudentT", "log_radial"]


def log_radial(distance: Tensor, df: Tensor, size: int) -> Tensor:
    r"""Log density of a Student-t less that of the Gaussian with its scale matrix at the centre, elementwise.

    .. math:: \log \frac{\Gamma(\frac{\nu + D}2)}{\Gamma(\frac\nu2)} - \frac D2 \log \frac\nu2
              - \frac{\nu + D}2 \log \Bigl( 1 + \frac{\delta}{\nu} \Bigr)

    Args:
        distance: squared Mahalanobis distance :math:`\delta` from the centre.
        df: degrees of freedom :math:`\nu`.
        size: D.

    Example:
        >>> log_radial(torch.tensor(3.0), torch.tensor(1e6), 2)  # a Gaussian's: -3 / 2
        tensor(-1.5000)
    """
    half = (df if df.device.type == "mps" else df.double()) / 2  # the two log gammas cancel
    constant = torch.lgamma(half + size / 2) - torch.lgamma(half) - size / 2 * half.log()
    return constant.to(df) - (df + size) / 2 * (distance / df).log1p()


class EllipticalStudentT(TorchDistribution):
    r"""Gaussian whose precision is multiplied by :math:`u \sim \mathrm{Gamma}(\nu / 2, \nu / 2)` in every row.

    .. math:: x \mid u \sim N(\mu, \Sigma / u)

    All features of a row share one :math:`u`, whatever the shape of :math:`\Sigma`: a multivariate Student-t.

    Args:
        df: degrees of freedom :math:`\nu`, ``(*b,)``.
        normal: :math:`N(\mu, \Sigma)` with events of one axis, batch shape ``(*b,)``.
        validate_args: check the arguments and values; None leaves it to torch's global setting.

    Example:
        >>> import pyro.distributions as dist
        >>> normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> EllipticalStudentT(torch.tensor(3.0), normal).log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    arg_constraints = {"df": constraints.positive}  # noqa: RUF012 - torch's API
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, df: Tensor, normal: TorchDistribution, validate_args: bool | None = None) -> None:
        self.df = df
        self.normal = normal
        batch_shape = torch.broadcast_shapes(df.shape, normal.batch_shape)
        super().__init__(batch_shape, normal.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> EllipticalStudentT:
        """Return the same distribution with a larger batch shape."""
        new = self._get_checked_instance(EllipticalStudentT, _instance)
        batch_shape = torch.Size(batch_shape)
        new.df, new.normal = self.df.expand(batch_shape), self.normal.expand(batch_shape)
        super(EllipticalStudentT, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw rows, ``(*sample_shape, *b, D)``."""
        shape = torch.Size(sample_shape)
        half = (self.df / 2).expand(self.batch_shape)
        u = torch.distributions.Gamma(half, half, validate_args=False).rsample(shape)
        loc = self.normal.mean
        noise = self.normal.expand(self.batch_shape).rsample(shape) - loc
        return loc + noise / u.clamp_min(torch.finfo(u.dtype).tiny).sqrt()[..., None]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, ``(*b,)``: the Gaussian's own tells the distance."""
        if self._validate_args:
            self._validate_sample(value)
        top = self.normal.log_prob(self.normal.mean)
        distance = (2 * (top - self.normal.log_prob(value))).clamp_min(0)
        return top + log_radial(distance, self.df, self.event_shape[-1])
