"""The Burr XII distribution, a prior for variances with a tail of any weight."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

__all__ = ["BurrXII"]


class BurrXII(dist.TorchDistribution):
    r"""Burr's distribution of type XII.

    .. math:: h(s) = \frac{c d \, s^{c - 1}}{(1 + s^c)^{d + 1}}, \quad s > 0

    Its tail falls like :math:`s^{-cd - 1}`, so that moments below ``c d`` exist. The same as scipy's ``burr12(c, d)``.

    Args:
        c: first shape, positive, ``(*b,)``: the power at zero.
        d: second shape, positive, ``(*b,)``.

    Source:
        Burr (1942), Cumulative frequency functions, Annals of Mathematical Statistics 13, 215-232, equation 20.

    Example:
        >>> BurrXII(2.0, 2.0).log_prob(torch.tensor(1.0)).exp()  # 4 / 2^3
        tensor(0.5000)
        >>> BurrXII(2.0, 1.0).icdf(torch.tensor(0.5))  # the median of a log-logistic is 1
        tensor(1.)
    """

    arg_constraints = {"c": constraints.positive, "d": constraints.positive}  # noqa: RUF012 (torch's own shape)
    support = constraints.positive
    has_rsample = True

    def __init__(self, c: Tensor | float, d: Tensor | float, validate_args: bool | None = None) -> None:
        self.c, self.d = broadcast_all(c, d)
        super().__init__(self.c.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> BurrXII:
        """Return the same distribution with a larger batch."""
        return BurrXII(self.c.expand(batch_shape), self.d.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, ``(*b,)``."""
        if self._validate_args:
            self._validate_sample(value)
        log_value = value.log()
        return self.c.log() + self.d.log() + (self.c - 1) * log_value - (self.d + 1) * self._log_tail(log_value)

    def cdf(self, value: Tensor) -> Tensor:
        """Return ``1 - (1 + s^c)^(-d)``."""
        return -torch.expm1(-self.d * self._log_tail(value.log()))

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantile."""
        return torch.expm1(-torch.log1p(-value) / self.d).pow(1 / self.c)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        """Return draws, differentiable in both shapes."""
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.c.dtype, device=self.c.device)
        return self.icdf(uniform.clamp(min=torch.finfo(self.c.dtype).tiny))

    @property
    def mean(self) -> Tensor:
        """``d B(d - 1/c, 1 + 1/c)``, infinite unless ``c d > 1``."""
        a, b = self.d - 1 / self.c, 1 + 1 / self.c
        moment = self.d * (a.lgamma() + b.lgamma() - (a + b).lgamma()).exp()
        return torch.where(a > 0, moment, torch.inf)

    def _log_tail(self, log_value: Tensor) -> Tensor:
        """Return ``log(1 + s^c)`` without overflow; torch's own threshold, 20, is 2e-9 off."""
        return torch.nn.functional.softplus(self.c * log_value, threshold=50.0)
