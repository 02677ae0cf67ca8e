"""Gaussian components: the conjugate algebra from which EM, variational Bayes, Gibbs and evidences follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from types import MappingProxyType
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.conjugate import AbstractComponentFamily, GaussianPrior
from probmix.covariance import COVARIANCES, AbstractCovariance
from probmix.distributions import log_multigamma
from probmix.statistics import Statistics, weighted_square

__all__ = ["FAMILIES", "GaussianFamily", "Natural"]

_LARGEST_TABLE = 2**26  # numbers in the table of products of features made at a time: 512 MiB in float64

# Sums of squares are kept in float64, eps 2e-16, and rounding grows with the sum: below this a variance is noise.
_NEGLIGIBLE = 1e-13

# Nats that rounding may take from the log density of a row. In float64 it takes more from three million standard
# deviations on, which is where a variance is negligible.
_LOST_LOG = 1e-3


class Natural(NamedTuple):
    r"""Natural parameters of Gaussian components, for data shifted by ``centre``.

    Attributes:
        centre: what the data are shifted by, ``(D,)``.
        loc: :math:`\mu`, the means less the centre, ``(*b, K, D)``.
        linear: :math:`\Sigma^{-1} \mu`, coefficients of the features, ``(*b, K, D)``.
        quadratic: coefficients of the features' squares and products, ``(*b, K, Q)``; K is 1 if the spread is shared.
        log_det: log determinant of the blocks, ``(*b, K)``; K is 1 if the spread is shared.

    Example:
        >>> import torch
        >>> sites = {"loc": torch.tensor([[3.0]]), "var": torch.tensor([2.0])}
        >>> FAMILIES["spherical"].natural(sites, centre=torch.ones(1)).linear
        tensor([[1.]])
    """

    centre: Tensor
    loc: Tensor
    linear: Tensor
    quadratic: Tensor
    log_det: Tensor


@dataclass(frozen=True)
class GaussianFamily(AbstractComponentFamily[GaussianPrior, Statistics]):
    r"""Gaussian components with their conjugate prior, for any shape of covariance.

    In each block of the covariance (see :class:`probmix.covariance.AbstractCovariance`) the spread is inverse Wishart
    with :math:`\nu` degrees of freedom and scatter :math:`S`. A row adds to :math:`\nu` one for each number that it
    tells an entry of the block (D for spherical, else 1).

    Attributes:
        covariance: the shape of the spread.

    Source:
        Gelman et al. (2013), Bayesian Data Analysis, 3rd edition, section 3.6; Bishop (2006), Pattern Recognition and
        Machine Learning, section 10.2; Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution.

    Example:
        >>> import torch
        >>> family = FAMILIES["spherical"]
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> statistics = family.sufficient_statistics(x, torch.ones(2, 1))
        >>> family.maximum_likelihood(statistics)
        {'loc': tensor([[1.]]), 'var': tensor([1.])}
    """

    covariance: AbstractCovariance

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes of ``loc`` and of ``cov`` or ``var``."""
        return {"loc": ("component", "feature"), self.covariance.site: self.covariance.axes}

    def sufficient_statistics(self, x: Tensor, responsibilities: Tensor) -> Statistics:
        """Count, mean and scatter about the mean, ``(N, D), (*b, N, K) -> Statistics``.

        One matrix product for each statistic, after the rows have been shifted by their overall mean. Sums are kept in
        float64 whatever the data, so that tight clusters far apart lose no digits.
        """
        rows = max(1, _LARGEST_TABLE // x.shape[-1] ** max(1, self.covariance.spread_dim))
        chunks = zip(x.split(rows), responsibilities.split(rows, -2), strict=True)
        return reduce(add, (self._chunk_statistics(*chunk) for chunk in chunks))

    def _chunk_statistics(self, x: Tensor, responsibilities: Tensor) -> Statistics:
        wide = x.dtype if x.device.type == "mps" else torch.float64  # Apple's devices have no float64
        rows, weights = x.to(wide), responsibilities.to(wide)
        centre = rows.mean(-2)
        rows = rows - centre
        count = weights.sum(-2)
        offset = weights.mT @ rows / count.clamp_min(torch.finfo(wide).tiny)[..., None]
        shape = self.covariance
        pooled_weights = weights.sum(-1, keepdim=True) if shape.pooled else weights
        between = weighted_square(offset, count, shape.spread_dim, pooled=shape.pooled)
        scatter = shape.second_moments(rows, pooled_weights) - between
        scatter = scatter if shape.spread_dim == 2 else scatter.clamp_min(0)  # rounding may leave less than nothing
        return Statistics(count.to(x), (centre + offset).to(x), scatter.to(x))

    def posterior(self, prior: GaussianPrior, statistics: Statistics) -> GaussianPrior:
        r"""Condition on the statistics.

        .. math:: \kappa_n = \kappa + n, \quad m_n = m + \tfrac{n}{\kappa_n} (\bar x - m), \quad \nu_n = \nu + n, \quad
                  S_n = S + S_{data} + \tfrac{\kappa n}{\kappa_n} (\bar x - m)(\bar x - m)^T
        """
        shape, count = self.covariance, statistics.count
        mean_precision = prior.mean_precision + count
        fraction = count / mean_precision
        loc = prior.loc + fraction[..., None] * (statistics.mean - prior.loc)
        scatter = shape.drop(statistics.scatter_about(prior.loc, prior.mean_precision * fraction))
        gained = shape.replicates(loc.shape[-1]) * shape.drop(count, 0)
        return prior.updated(loc, mean_precision, prior.dof + gained, prior.scatter + scatter)

    def mode(self, prior: GaussianPrior) -> dict[str, Tensor]:
        r"""Joint mode: ``loc`` at :math:`m` and the spread at :math:`S / (\nu + p + 1 + q)`.

        :math:`p` is the order of a block, and :math:`q` counts the numbers of all means that share one entry of it (1
        for full and diagonal, K for tied, D for spherical): each brings one more power of the spread to the density.
        """
        size = prior.loc.shape[-1]
        shared = self.covariance.replicates(size) * (prior.loc.shape[-2] if self.covariance.pooled else 1)
        return self._sites(prior, prior.dof + self.covariance.order(size) + 1 + shared)

    def mean(self, prior: GaussianPrior) -> dict[str, Tensor]:
        r"""Mean: ``loc`` at :math:`m` and the spread at :math:`S / (\nu - p - 1)`, NaN where that is not positive."""
        excess = prior.dof - self.covariance.order(prior.loc.shape[-1]) - 1
        return self._sites(prior, torch.where(excess > 0, excess, torch.nan))

    def maximum_likelihood(self, statistics: Statistics) -> dict[str, Tensor]:
        """Weighted mean and covariance about it (divisor n); an empty component has a spread of 0."""
        shape = self.covariance
        told = shape.replicates(statistics.mean.shape[-1]) * shape.drop(statistics.count, 0)
        divisor = _append_axes(told.clamp_min(torch.finfo(told.dtype).tiny), shape.spread_dim)
        return {"loc": statistics.mean, shape.site: shape.drop(statistics.scatter) / divisor}

    def _sites(self, prior: GaussianPrior, divisor: Tensor) -> dict[str, Tensor]:
        spread = prior.scatter / _append_axes(divisor, self.covariance.spread_dim)
        return {"loc": prior.loc, self.covariance.site: spread}

    def spread_prior(self, prior: GaussianPrior) -> dist.TorchDistribution:
        """Distribution of the site ``cov`` or ``var``."""
        return self.covariance.prior(prior.dof, prior.scatter)

    def loc_prior(self, prior: GaussianPrior, factor: Tensor) -> dist.TorchDistribution:
        """Distribution of the site ``loc``, given the square root of a spread that broadcasts against it."""
        root = _append_axes(prior.mean_precision.sqrt(), self.covariance.spread_dim)
        return self.covariance.normal(prior.loc, factor / root)

    def sample(self, prior: GaussianPrior) -> dict[str, Tensor]:
        """Draw the spread, then ``loc`` given it."""
        spread = self.spread_prior(prior).sample()
        loc = self.loc_prior(prior, self.covariance.factor(self.covariance.lift(spread))).sample()
        return {"loc": loc, self.covariance.site: spread}

    def log_prob(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Gaussian log density, ``(N, D) -> (*b, N, K)``; NaN for a ``cov`` that is not positive definite."""
        shape = self.covariance
        spread = shape.lift(sites[shape.site])
        log_det = shape.replicates(x.shape[-1]) * shape.log_det(spread)
        distance = shape.block_distance(x, sites["loc"], spread).sum(-2).mT
        return -(x.shape[-1] * math.log(2 * math.pi) + log_det[..., None, :] + distance) / 2

    def natural(self, sites: Mapping[str, Tensor], centre: Tensor) -> Natural:
        r"""Natural parameters, for data that are shifted by ``centre`` ``(D,)``.

        The terms of the log density cancel. Where a component is s standard deviations from the centre, rounding costs
        each of its rows up to ``eps * s**2`` nats: in float64 1e-10 at a thousand, 1e-4 at a million (where the score
        of the spread is right to a hundredth of its standard deviation). Where the cost may be above 0.001, and for a
        ``cov`` that is not positive definite, ``log_det`` is NaN. An elongated ``cov`` pays as if s were the root of
        its condition number.
        """
        shape, loc = self.covariance, sites["loc"] - centre
        spread = shape.lift(sites[shape.site])
        linear, quadratic, log_det = shape.natural(loc, spread)
        extent = loc.abs() + shape.variances(spread, loc.shape[-1]).sqrt()
        terms = (quadratic.abs() * shape.squares(extent.mT).mT).sum(-1).amax(-1, keepdim=True)
        kept = terms * torch.finfo(loc.dtype).eps < _LOST_LOG
        return Natural(centre, loc, linear, quadratic, torch.where(kept, log_det, torch.nan))

    def coefficients(self, natural: Natural, log_weights: Tensor) -> Tensor:
        r"""Log weight plus log density as coefficients of ``covariance.features(x - centre)``, ``(*b, K, P)``.

        .. math:: \log w - \tfrac12 (D \log 2\pi + \log |\Sigma| + \mu^T \Sigma^{-1} \mu)
                  + \mu^T \Sigma^{-1} x - \tfrac12 \sum_{ij} \Sigma^{-1}_{ij} x_i x_j
        """
        size = natural.loc.shape[-1]
        log_det = self.covariance.replicates(size) * natural.log_det
        distance = (natural.linear * natural.loc).sum(-1)
        constant = log_weights - (size * math.log(2 * math.pi) + log_det + distance) / 2
        quadratic = natural.quadratic.expand(*natural.linear.shape[:-1], -1)
        return torch.cat([constant[..., None], natural.linear, quadratic], -1)

    def singular(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Tell which components have collapsed onto too few points to have a density, ``(*b, K)``.

        A variance is nothing beside the squared distance between the components (or their largest variance), or one
        feature is a linear function of the others, up to rounding.
        """
        shape, loc = self.covariance, sites["loc"]
        spread = shape.lift(sites[shape.site])
        var = shape.variances(spread, loc.shape[-1])
        reference_var = var.amax(-2, keepdim=True) + (loc.amax(-2) - loc.amin(-2)).square()[..., None, :]
        flat = ~(var > _NEGLIGIBLE * reference_var).all(-1)
        dependent = ~(shape.independence(spread) > 8 * loc.shape[-1] * torch.finfo(loc.dtype).eps)
        return (flat | dependent).expand(loc.shape[:-1])

    def log_prior(self, sites: Mapping[str, Tensor], prior: GaussianPrior) -> Tensor:
        """Log density of ``loc`` and the spread, summed over the components, ``(*b,)``."""
        spread = self.covariance.lift(sites[self.covariance.site])
        trace = partial(self.covariance.trace, spread=spread)
        return self._log_prior(sites["loc"] - prior.loc, self.covariance.log_det(spread), trace, prior)

    def log_prior_natural(self, natural: Natural, prior: GaussianPrior) -> Tensor:
        """``log_prior`` of natural parameters, ``(*b,)``: no Cholesky factor is made again."""

        def trace(scatter: Tensor) -> Tensor:
            return -2 * (natural.quadratic * self.covariance.pack(scatter)).sum(-1)

        return self._log_prior(natural.loc - (prior.loc - natural.centre), natural.log_det, trace, prior)

    def _log_prior(
        self, offset: Tensor, log_det: Tensor, trace: Callable[[Tensor], Tensor], prior: GaussianPrior
    ) -> Tensor:
        """Log density where ``loc`` is off the prior's by ``offset``; ``trace`` multiplies by the precision."""
        shape, (num_components, size) = self.covariance, offset.shape[-2:]
        scatter, dof = shape.lift(prior.scatter), shape.lift(prior.dof, 0)
        weight = prior.mean_precision.expand(offset.shape[:-1])
        around = weighted_square(offset, weight, shape.spread_dim, pooled=shape.pooled)
        shared = shape.replicates(size) * (num_components if shape.pooled else 1)
        log_spread = (
            self._log_normaliser(dof, scatter, size)
            - (dof + shape.order(size) + 1 + shared) * log_det / 2
            - trace(scatter + around) / 2
        )
        log_loc = size * (weight / (2 * math.pi)).log().sum(-1) / 2
        return log_spread.sum(-1) + log_loc

    def _log_normaliser(self, dof: Tensor, scatter: Tensor, num_features: int) -> Tensor:
        """Log of what makes the inverse Wishart of all blocks of one component integrate to one."""
        order, blocks = self.covariance.order(num_features), self.covariance.blocks(num_features)
        log_gamma = log_multigamma(dof / 2, order) + dof / 2 * order * math.log(2.0)
        return dof / 2 * self.covariance.log_det(scatter) - blocks * log_gamma

    def expected_log_prob(self, x: Tensor, prior: GaussianPrior) -> Tensor:
        r"""Mean of the Gaussian log density, ``(N, D) -> (*b, N, K)``.

        .. math:: \tfrac12 E \log|\Sigma^{-1}| - \tfrac D2 \log 2\pi
                  - \tfrac12 \{ D / \kappa + \nu (x - m)^T S^{-1} (x - m) \}

        Source:
            Bishop (2006), Pattern Recognition and Machine Learning, equations 10.64 and 10.65.
        """
        shape, size = self.covariance, x.shape[-1]
        dof, scatter = shape.lift(prior.dof, 0), shape.lift(prior.scatter)
        distance = shape.block_distance(x, prior.loc, scatter).sum(-2).mT
        order, blocks = shape.order(size), shape.blocks(size)
        half = (dof[..., None] - torch.arange(order, dtype=dof.dtype, device=dof.device)) / 2
        log_precision = blocks * (torch.digamma(half) + math.log(2.0)).sum(-1) - shape.log_det(scatter)
        constant = shape.replicates(size) * log_precision - size * math.log(2 * math.pi) - size / prior.mean_precision
        return (constant[..., None, :] - dof[..., None, :] * distance) / 2

    def predictive(self, prior: GaussianPrior) -> dist.TorchDistribution:
        r"""Student-t of one new row, in each block with :math:`\nu - p + 1` degrees of freedom.

        Its squared scale is :math:`S (\kappa + 1) / \{\kappa (\nu - p + 1)\}`.

        Source:
            Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, section 9 (Wishart) and section 6
            (gamma).
        """
        df, scale_cov = self._student_parameters(prior)
        return self.covariance.student(df, prior.loc, self.covariance.factor(scale_cov))

    def _student_parameters(self, prior: GaussianPrior) -> tuple[Tensor, Tensor]:
        shape = self.covariance
        df = shape.lift(prior.dof, 0) - shape.order(prior.loc.shape[-1]) + 1
        ratio = (prior.mean_precision + 1) / (prior.mean_precision * df)
        scale_cov = _append_axes(ratio, shape.spread_dim) * shape.lift(prior.scatter)
        return df.expand(ratio.shape), scale_cov

    def log_predictive(self, x: Tensor, prior: GaussianPrior) -> Tensor:
        """Log density of each row alone under ``predictive``, ``(N, D) -> (*b, N, K)``."""
        shape, size = self.covariance, x.shape[-1]
        df, scale_cov = self._student_parameters(prior)
        blocks = shape.blocks(size)
        half_width = size // blocks / 2
        log_constant = blocks * (torch.lgamma(df / 2 + half_width) - torch.lgamma(df / 2) - half_width * df.log())
        log_det = shape.replicates(size) * shape.log_det(scale_cov)
        distance = shape.block_distance(x, prior.loc, scale_cov)
        log_tail = (df / 2 + half_width)[..., None] * (distance / df[..., None, None]).log1p().sum(-2)
        return ((log_constant - (size * math.log(math.pi) + log_det) / 2)[..., None] - log_tail).mT

    def log_marginal(self, prior: GaussianPrior, statistics: Statistics) -> Tensor:
        """Log evidence: the ratio of the normalisers of posterior and prior, ``(*b,)``.

        Source:
            Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, section 9.
        """
        shape, size = self.covariance, statistics.mean.shape[-1]
        posterior = self.posterior(prior, statistics)
        before = self._log_normaliser(shape.lift(prior.dof, 0), shape.lift(prior.scatter), size)
        after = self._log_normaliser(shape.lift(posterior.dof, 0), shape.lift(posterior.scatter), size)
        log_precision_ratio = (prior.mean_precision / posterior.mean_precision).log()
        log_loc = size * (log_precision_ratio - statistics.count * math.log(2 * math.pi)) / 2
        return (before - after).sum(-1) + log_loc.sum(-1)


def _append_axes(value: Tensor, count: int) -> Tensor:
    """Append axes of size 1."""
    return value[(..., *(None,) * count)]


FAMILIES: Mapping[str, GaussianFamily] = MappingProxyType(
    {name: GaussianFamily(covariance) for name, covariance in COVARIANCES.items()}
)
