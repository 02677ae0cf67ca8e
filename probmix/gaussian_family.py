"""Gaussian components: the conjugate algebra from which EM, variational Bayes, Gibbs and evidences follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from types import MappingProxyType

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.conjugate import GaussianPrior, NormalInverseGamma, NormalInverseWishart
from probmix.covariance import COVARIANCES, AbstractCovariance
from probmix.distributions import log_multigamma
from probmix.errors import ProgramError
from probmix.family import gather_component
from probmix.gaussian_passes import LOST_LOG, AbstractQuadraticFamily, Natural
from probmix.rows import check_rows
from probmix.statistics import Statistics, weighted_square

__all__ = ["FAMILIES", "GaussianFamily", "Natural"]

_LARGEST_TABLE = 2**26  # numbers in the table of products of features made at a time: 512 MiB in float64

# Sums of squares are kept in float64, eps 2e-16, and rounding grows with the sum: below this a variance is noise.
_NEGLIGIBLE = 1e-13


@dataclass(frozen=True)
class GaussianFamily(AbstractQuadraticFamily):
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

    def num_parameters(self, num_components: int, num_features: int) -> int:
        """Means, and the free entries of the spreads."""
        shape = self.covariance
        order = shape.order(num_features)
        entries = shape.blocks(num_features) * order * (order + 1) // 2
        return num_components * num_features + (1 if shape.pooled else num_components) * entries

    # The prior, and the data that it is for.

    @property
    def _prior_type(self) -> type[GaussianPrior]:
        return NormalInverseWishart if self.covariance.spread_dim == 2 else NormalInverseGamma

    def default_prior(self, x: Tensor, num_components: int) -> GaussianPrior:
        """Prior of Fraley and Raftery (2007), scaled to the rows; see `probmix.models.GaussianMixture`."""
        size = x.shape[-1]
        shrinkage = num_components ** (2 / size)
        loc, mean_precision, dof = x.mean(0), x.new_tensor(0.01), x.new_tensor(size + 2.0)
        centred = x - loc
        if self.covariance.spread_dim == 2:
            scatter = centred.mT @ centred / ((x.shape[0] - 1) * shrinkage)
            return NormalInverseWishart(loc, mean_precision, dof, scatter)
        var = centred.square().sum(0) / (x.shape[0] - 1)
        var = var if self.covariance.spread_dim == 1 else var.mean()
        return NormalInverseGamma(loc, mean_precision, dof / 2, var / (2 * shrinkage))

    def check(self, x: Tensor, num_components: int, prior: GaussianPrior | None) -> None:
        """Refuse rows that are not finite or too few; for the default prior also constant or dependent columns.

        Raises:
            DataError: it says which rows or columns.
            ProgramError: a prior of another type, for other data, or improper.
        """
        check_rows(x, num_components, spread=prior is None, independent=self.covariance.spread_dim == 2)
        if prior is not None:
            self._check_prior(prior.to(x), x.shape[-1])

    def check_prior_type(self, prior: object, covariance: str | None = None) -> None:
        """Refuse a prior that is not of the type for this covariance, which the message may call by another name.

        Raises:
            ProgramError: it names the type.
        """
        expected, name = self._prior_type, covariance or self.covariance.name
        if not isinstance(prior, expected | None):
            raise ProgramError(
                f"component_prior: expected {expected.__name__} for covariance={name!r}, "
                f"got {type(prior).__name__}: build the prior with probmix.conjugate.{expected.__name__}"
            )

    def _check_prior(self, prior: GaussianPrior, size: int) -> None:
        shape = self.covariance
        expected = (size,) * shape.spread_dim
        got = tuple(prior.scatter.shape[prior.scatter.ndim - shape.spread_dim :])
        if prior.loc.shape[-1:] != (size,) or got != expected:
            raise ProgramError(
                f"component_prior: expected loc to end in ({size},) and the spread in {expected} for {size} columns, "
                f"got {tuple(prior.loc.shape)} and {tuple(prior.scatter.shape)}: give it the features of the data"
            )
        dense = isinstance(prior, NormalInverseWishart)
        good = {
            "mean_precision": prior.mean_precision > 0,
            "dof" if dense else "concentration": prior.dof > shape.order(size) - 1,
            "scatter" if dense else "rate": shape.log_det(prior.scatter).isfinite(),
        }
        bad = [name for name, holds in good.items() if not holds.all()]
        if bad:
            raise ProgramError(
                "component_prior: expected a proper prior (mean_precision above 0, dof above D - 1 or concentration "
                f"above 0, scatter positive definite or rate above 0), got an improper {' and '.join(bad)}: change it"
            )

    # The program.

    def draw_parameters(self, prior: GaussianPrior, num_components: int) -> dict[str, tuple[Tensor, int]]:
        """Draw the spread, then ``loc`` given it; a row needs ``loc`` and the square root of the spread."""
        shape = self.covariance
        plate = pyro.plate("component", num_components)
        with nullcontext() if shape.pooled else plate:
            factor = shape.factor(pyro.sample(shape.site, self.spread_prior(prior)))
        with plate:
            loc = pyro.sample("loc", self.loc_prior(prior, factor))
        return {"loc": (loc, 1), "factor": (factor, -1 if shape.pooled else shape.spread_dim)}

    def row(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Gaussian."""
        return self.covariance.normal(parameters["loc"], parameters["factor"])

    def draw_rows(self, sites: Mapping[str, Tensor], assignment: Tensor, generator: torch.Generator) -> Tensor:
        """Colour standard normal numbers."""
        shape, loc = self.covariance, sites["loc"]
        noise = torch.randn((*assignment.shape, loc.shape[-1]), generator=generator, dtype=loc.dtype, device=loc.device)
        factor = shape.lift(shape.factor(sites[shape.site]))
        factor = factor if shape.pooled else gather_component(factor, assignment, shape.spread_dim)
        return gather_component(loc, assignment, 1) + shape.colour(factor, noise)

    # The closed form.

    def sufficient_statistics(
        self, x: Tensor, responsibilities: Tensor, sites: Mapping[str, Tensor] | None = None
    ) -> Statistics:
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
        kept = terms * torch.finfo(loc.dtype).eps < LOST_LOG
        return Natural(centre, loc, linear, quadratic, torch.where(kept, log_det, torch.nan), terms)

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
        log_precision = self._expected_log_precision(dof, scatter, size)
        constant = shape.replicates(size) * log_precision - size * math.log(2 * math.pi) - size / prior.mean_precision
        return (constant[..., None, :] - dof[..., None, :] * distance) / 2

    def divergence(self, posterior: GaussianPrior, prior: GaussianPrior) -> Tensor:
        r"""Kullback-Leibler divergence of two such distributions of all sites, ``(*b,)``.

        .. math:: E_q \log q - E_q \log p = \log \frac{Z_q}{Z_p} + \frac{\nu_p - \nu_q}2 E_q \log |\Sigma|
                  + \frac{\nu_q}2 \{ \mathrm{tr}(S_q^{-1} S_p') - p \}
                  + \frac D2 \Bigl( \log \frac{\kappa_q}{\kappa_p} + \frac{\kappa_p}{\kappa_q} - 1 \Bigr), \qquad
                  S_p' = S_p + \kappa_p (m_q - m_p)(m_q - m_p)^T

        Here :math:`1 / Z` is what the density is divided by to integrate to one.
        """
        shape, size = self.covariance, posterior.loc.shape[-1]
        dof, scatter = shape.lift(posterior.dof, 0), shape.lift(posterior.scatter)
        prior_dof, prior_scatter = shape.lift(prior.dof, 0), shape.lift(prior.scatter)
        kappa = prior.mean_precision.expand(posterior.loc.shape[:-1])
        around = weighted_square(posterior.loc - prior.loc, kappa, shape.spread_dim, pooled=shape.pooled)
        width = shape.order(size) * shape.blocks(size)
        of_spread = (
            self._log_normaliser(dof, scatter, size)
            - self._log_normaliser(prior_dof, prior_scatter, size)
            - (prior_dof - dof) / 2 * self._expected_log_precision(dof, scatter, size)
            + dof / 2 * (shape.trace(prior_scatter + around, scatter) - width)
        )
        ratio = kappa / posterior.mean_precision
        return of_spread.sum(-1) + size / 2 * (ratio - 1 - ratio.log()).sum(-1)

    def _expected_log_precision(self, dof: Tensor, scatter: Tensor, size: int) -> Tensor:
        """Mean of the log determinant of the precision, all blocks of a component together, ``(*b, K)``."""
        order, blocks = self.covariance.order(size), self.covariance.blocks(size)
        half = (dof[..., None] - torch.arange(order, dtype=dof.dtype, device=dof.device)) / 2
        return blocks * (torch.digamma(half) + math.log(2.0)).sum(-1) - self.covariance.log_det(scatter)

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
