"""Conjugate priors, and posteriors, of Gaussian components."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeAlias, TypeVar

from torch import Tensor

__all__ = ["GaussianPrior", "NormalInverseGamma", "NormalInverseWishart"]


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
