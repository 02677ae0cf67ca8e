"""Conjugate priors, and what every engine may ask of a family of mixture components that has one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Generic, TypeAlias, TypeVar

import pyro.distributions as dist
from torch import Tensor

__all__ = ["AbstractComponentFamily", "GaussianPrior", "NormalInverseGamma", "NormalInverseWishart"]

Prior = TypeVar("Prior")
Sums = TypeVar("Sums")


@dataclass(frozen=True, eq=False)
class NormalInverseWishart:
    r"""Conjugate prior, and posterior, of a Gaussian with a dense covariance.

    .. math:: \mu \mid \Sigma \sim N(m, \Sigma / \kappa), \qquad \Sigma \sim \mathrm{IW}(\nu, S)

    Shapes broadcast against those given, and numbers become tensors. With a tied covariance the K means share one
    :math:`\Sigma`: then ``dof`` is ``(*b,)`` and ``scatter`` ``(*b, D, D)``.

    Attributes:
        loc: :math:`m`, ``(*b, K, D)``.
        mean_precision: :math:`\kappa`, the number of observations that the prior mean is worth, ``(*b, K)``.
        dof: :math:`\nu > D - 1`, ``(*b, K)``.
        scatter: :math:`S`, in squared units of the data, ``(*b, K, D, D)``.

    Source:
        Gelman et al. (2013), Bayesian Data Analysis, 3rd edition, section 3.6.

    Example:
        >>> import torch
        >>> prior = NormalInverseWishart(torch.zeros(2), mean_precision=0.01, dof=4.0, scatter=torch.eye(2))
        >>> prior.dof
        tensor(4.)
    """

    loc: Tensor
    mean_precision: Tensor
    dof: Tensor
    scatter: Tensor

    def __post_init__(self) -> None:
        _numbers_to_tensors(self)

    def to(self, like: Tensor) -> NormalInverseWishart:
        """Return a copy with the dtype and device of ``like``."""
        return _converted(self, like)

    def updated(self, loc: Tensor, mean_precision: Tensor, dof: Tensor, scatter: Tensor) -> NormalInverseWishart:
        """Return the same kind of distribution with other parameters."""
        return NormalInverseWishart(loc, mean_precision, dof, scatter)


@dataclass(frozen=True, eq=False)
class NormalInverseGamma:
    r"""Conjugate prior, and posterior, of a Gaussian whose features are independent given the component.

    .. math:: \mu_j \mid v_j \sim N(m_j, v_j / \kappa), \qquad v_j \sim \mathrm{InverseGamma}(a, b_j)

    Shapes broadcast against those given, and numbers become tensors. With a spherical covariance one :math:`v` serves
    all features, and ``rate`` has no feature axis.

    Attributes:
        loc: :math:`m`, ``(*b, K, D)``.
        mean_precision: :math:`\kappa`, the number of observations that the prior mean is worth, ``(*b, K)``.
        concentration: :math:`a`, ``(*b, K)``.
        rate: :math:`b`, in squared units of the data, ``(*b, K, D)`` (diagonal) or ``(*b, K)`` (spherical).

    Source:
        Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, section 6.

    Example:
        >>> import torch
        >>> prior = NormalInverseGamma(torch.zeros(2), mean_precision=0.01, concentration=2.0, rate=torch.ones(2))
        >>> prior.dof, prior.scatter
        (tensor(4.), tensor([2., 2.]))
    """

    loc: Tensor
    mean_precision: Tensor
    concentration: Tensor
    rate: Tensor

    def __post_init__(self) -> None:
        _numbers_to_tensors(self)

    @property
    def dof(self) -> Tensor:
        """Degrees of freedom of the same distribution as an inverse Wishart of order 1."""
        return 2 * self.concentration

    @property
    def scatter(self) -> Tensor:
        """Scatter of the same distribution as an inverse Wishart of order 1."""
        return 2 * self.rate

    def to(self, like: Tensor) -> NormalInverseGamma:
        """Return a copy with the dtype and device of ``like``."""
        return _converted(self, like)

    def updated(self, loc: Tensor, mean_precision: Tensor, dof: Tensor, scatter: Tensor) -> NormalInverseGamma:
        """Return the same kind of distribution with other parameters, given in the words of the inverse Wishart."""
        return NormalInverseGamma(loc, mean_precision, dof / 2, scatter / 2)


GaussianPrior: TypeAlias = NormalInverseWishart | NormalInverseGamma
_Gaussian = TypeVar("_Gaussian", NormalInverseWishart, NormalInverseGamma)


def _numbers_to_tensors(prior: GaussianPrior) -> None:
    """Let the fields of a new prior be plain numbers, in the dtype and on the device of ``loc``."""
    for field in fields(prior):
        value = getattr(prior, field.name)
        if not isinstance(value, Tensor):
            object.__setattr__(prior, field.name, prior.loc.new_tensor(value))


def _converted(prior: _Gaussian, like: Tensor) -> _Gaussian:
    values = {field.name: getattr(prior, field.name).to(like) for field in fields(prior)}
    return type(prior)(**values)


class AbstractComponentFamily(ABC, Generic[Prior, Sums]):
    """What every engine may ask of one family of mixture components.

    ``Prior`` holds the parameters of the conjugate distribution of the component's parameters, before the data or
    after; ``Sums`` the sufficient statistics, which add up over the data with ``+``. Parameters of the components are
    *sites*: a dictionary of tensors with any leading batch shape ``*b``. Methods are pure functions.
    """

    @property
    @abstractmethod
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes of each site, batch axes aside."""

    @abstractmethod
    def sufficient_statistics(self, x: Tensor, responsibilities: Tensor) -> Sums:
        """Statistics of the rows of ``x`` given how much each belongs to each component, ``(*b, N, K)``."""

    @abstractmethod
    def posterior(self, prior: Prior, statistics: Sums) -> Prior:
        """Condition the prior on data with these statistics."""

    @abstractmethod
    def mode(self, prior: Prior) -> dict[str, Tensor]:
        """Return the joint mode of all sites, as a density over their free entries."""

    @abstractmethod
    def mean(self, prior: Prior) -> dict[str, Tensor]:
        """Mean of each site, NaN or infinite where it does not exist."""

    @abstractmethod
    def maximum_likelihood(self, statistics: Sums) -> dict[str, Tensor]:
        """Sites of greatest likelihood."""

    @abstractmethod
    def sample(self, prior: Prior) -> dict[str, Tensor]:
        """Draw all sites once from each distribution of the batch, by torch's global random state."""

    @abstractmethod
    def log_prob(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Log density of each row in each component, ``(*b, N, K)``."""

    @abstractmethod
    def log_prior(self, sites: Mapping[str, Tensor], prior: Prior) -> Tensor:
        """Log density of the sites under the prior, ``(*b,)``."""

    @abstractmethod
    def expected_log_prob(self, x: Tensor, prior: Prior) -> Tensor:
        """Mean of ``log_prob`` when the sites follow ``prior``, ``(*b, N, K)``."""

    @abstractmethod
    def predictive(self, prior: Prior) -> dist.TorchDistribution:
        """Distribution of one new row of each component, sites integrated out; batch shape ``(*b, K)``."""

    @abstractmethod
    def log_predictive(self, x: Tensor, prior: Prior) -> Tensor:
        """Log density of each row, alone, under ``predictive``, ``(*b, N, K)``."""

    @abstractmethod
    def log_marginal(self, prior: Prior, statistics: Sums) -> Tensor:
        """Log evidence of all data with these statistics, sites integrated out, ``(*b,)``."""
