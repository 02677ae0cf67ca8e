"""Bayesian mixture of multivariate Student-t distributions: a Pyro program and its closed form, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.conjugate import GaussianPrior
from probmix.degrees_of_freedom import DofPrior, solve_dof
from probmix.errors import ProgramError
from probmix.family import AbstractConditionallyConjugateFamily, gather_component
from probmix.gaussian_family import FAMILIES, GaussianFamily
from probmix.models.mixture import AbstractMixture
from probmix.statistics import Statistics
from probmix.student_t import EllipticalStudentT, log_radial
from probmix.table import Expectation, Table, accumulate

__all__ = ["StudentTFamily", "StudentTMixture", "StudentTPrior", "StudentTStatistics"]

ScaleName = Literal["full", "tied", "diagonal", "spherical"]

_DOF_LIMITS = (0.1, 1000.0)  # the likelihood may have no maximum inside; a thousand is a Gaussian to a part in 1e3
_START_DOF = 8.0  # from infinity EM would come back slowly


@dataclass(frozen=True, eq=False)
class StudentTPrior:
    """Conjugate prior, and posterior, of Student-t components.

    Attributes:
        gaussian: of ``loc`` and the scale matrix, as of a Gaussian with that covariance.
        dof: of the degrees of freedom; None where they are fixed.

    Example:
        >>> from probmix.conjugate import NormalInverseGamma
        >>> gaussian = NormalInverseGamma(torch.zeros(2), mean_precision=0.01, concentration=2.0, rate=torch.ones(2))
        >>> StudentTPrior(gaussian, DofPrior(torch.tensor(2.0), torch.tensor(0.1))).dof.mode()
        tensor(10.)
    """

    gaussian: GaussianPrior
    dof: DofPrior | None

    def to(self, like: Tensor) -> StudentTPrior:
        """Return a copy with the dtype and device of ``like``."""
        return StudentTPrior(self.gaussian.to(like), None if self.dof is None else self.dof.to(like))


@dataclass(frozen=True, eq=False)
class StudentTStatistics:
    r"""Sufficient statistics of Student-t components given the latent precisions u of the rows, or their means.

    Attributes:
        count: sum of the responsibilities, ``(*b, K)``.
        gaussian: of the rows with weights :math:`r_{nk} u_{nk}`.
        log_precision: sum of :math:`r_{nk} \log u_{nk}`, ``(*b, K)``.

    Example:
        >>> one = Statistics(torch.ones(1), torch.zeros(1, 1), torch.zeros(1))
        >>> both = StudentTStatistics(torch.ones(1), one, torch.zeros(1))
        >>> (both + both).count
        tensor([2.])
    """

    count: Tensor
    gaussian: Statistics
    log_precision: Tensor

    def __add__(self, other: StudentTStatistics) -> StudentTStatistics:
        return StudentTStatistics(
            self.count + other.count, self.gaussian + other.gaussian, self.log_precision + other.log_precision
        )


@dataclass(frozen=True)
class StudentTFamily(AbstractConditionallyConjugateFamily[StudentTPrior, StudentTStatistics]):
    r"""Multivariate Student-t components as Gaussians of random width.

    .. math:: u_n \sim \mathrm{Gamma}(\nu_k / 2, \nu_k / 2), \qquad x_n \mid u_n \sim N(\mu_k, \Sigma_k / u_n)

    Given the rows' :math:`u` the algebra is that of the Gaussian; of :math:`\nu` see
    `probmix.degrees_of_freedom.DofPrior`.

    Attributes:
        gaussian: the family with the same shape of :math:`\Sigma`.
        dof: fixed degrees of freedom, or None.
        shared_dof: whether all components have the same.

    Source:
        Peel and McLachlan (2000), Robust mixture modelling using the t distribution, Statistics and Computing 10,
        339-348; Liu and Rubin (1995), ML estimation of the t distribution using EM and its extensions, ECM and ECME,
        Statistica Sinica 5, 19-39.

    Example:
        >>> family = StudentTFamily(FAMILIES["spherical"], dof=4.0)
        >>> sites = {"loc": torch.zeros(1, 1), "scale_var": torch.ones(1)}
        >>> family.log_prob(torch.zeros(1, 1), sites).exp()
        tensor([[0.3750]])
    """

    gaussian: GaussianFamily
    dof: float | None = None
    shared_dof: bool = False

    @property
    def site(self) -> str:
        """Name of the scale matrix or variance."""
        return f"scale_{self.gaussian.covariance.site}"

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes of each site."""
        own = {"loc": ("component", "feature"), self.site: self.gaussian.covariance.axes}
        return own if self.dof is not None else {**own, "dof": () if self.shared_dof else ("component",)}

    def num_parameters(self, num_components: int, num_features: int) -> int:
        """Those of the Gaussian, and the degrees of freedom that are learnt."""
        learnt = 0 if self.dof is not None else 1 if self.shared_dof else num_components
        return self.gaussian.num_parameters(num_components, num_features) + learnt

    def _as_gaussian(self, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loc": sites["loc"], self.gaussian.covariance.site: sites[self.site]}

    def _from_gaussian(self, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loc": sites["loc"], self.site: sites[self.gaussian.covariance.site]}

    def _dof_of(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Degrees of freedom with a component axis (of size 1 where all share them)."""
        if self.dof is not None:
            return sites["loc"].new_full((1,), self.dof)
        return sites["dof"][..., None] if self.shared_dof else sites["dof"]

    def _pool(self, value: Tensor) -> Tensor:
        return value.sum(-1) if self.shared_dof else value

    # The prior, and the data that it is for.

    def default_prior(self, x: Tensor, num_components: int) -> StudentTPrior:
        """The Gaussian's default for the scale matrix; Gamma(2, 0.1) for the degrees of freedom."""
        dof = DofPrior(x.new_tensor(2.0), x.new_tensor(0.1)) if self.dof is None else None
        return StudentTPrior(self.gaussian.default_prior(x, num_components), dof)

    def check(self, x: Tensor, num_components: int, prior: StudentTPrior | None) -> None:
        """Refuse what the Gaussian refuses, and an improper prior of the degrees of freedom.

        Raises:
            DataError: it says which rows or columns.
            ProgramError: a prior of another type, for other data, or improper.
        """
        self.gaussian.check(x, num_components, None if prior is None else prior.gaussian)
        if prior is None or prior.dof is None:
            return
        if not ((prior.dof.concentration > 0) & (prior.dof.rate > 0)).all():
            raise ProgramError(
                "component_prior: expected a concentration and a rate above 0 in the prior of dof, got "
                f"{prior.dof.concentration} and {prior.dof.rate}: change them"
            )

    def check_prior_type(self, prior: object) -> None:
        """Refuse a prior of another type.

        Raises:
            ProgramError: it names the type.
        """
        if prior is None:
            return
        if not isinstance(prior, StudentTPrior) or (prior.dof is None) != (self.dof is not None):
            raise ProgramError(
                f"component_prior: expected StudentTPrior with {'no' if self.dof is not None else 'a'} prior of dof "
                f"for dof={self.dof}, got {prior!r}: build it with probmix.models.student_t_mixture.StudentTPrior"
            )
        self.gaussian.check_prior_type(prior.gaussian)

    # The program.

    def draw_parameters(self, prior: StudentTPrior, num_components: int) -> dict[str, tuple[Tensor, int]]:
        """Draw the degrees of freedom, the scale matrix, and ``loc`` given it."""
        shape = self.gaussian.covariance
        plate = pyro.plate("component", num_components)
        if prior.dof is None:
            dof = (prior.gaussian.loc.new_tensor(self.dof), -1)
        else:
            with nullcontext() if self.shared_dof else plate:
                dof = (pyro.sample("dof", prior.dof.prior()), -1 if self.shared_dof else 0)
        with nullcontext() if shape.pooled else plate:
            factor = shape.factor(pyro.sample(self.site, self.gaussian.spread_prior(prior.gaussian)))
        with plate:
            loc = pyro.sample("loc", self.gaussian.loc_prior(prior.gaussian, factor))
        return {"dof": dof, "loc": (loc, 1), "factor": (factor, -1 if shape.pooled else shape.spread_dim)}

    def row(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Multivariate Student-t."""
        normal = self.gaussian.covariance.normal(parameters["loc"], parameters["factor"])
        return EllipticalStudentT(parameters["dof"], normal, validate_args=False)

    def draw_rows(self, sites: Mapping[str, Tensor], assignment: Tensor, generator: torch.Generator) -> Tensor:
        """Divide the Gaussian's noise by the root of a gamma draw."""
        x = self.gaussian.draw_rows(self._as_gaussian(sites), assignment, generator)
        half = (self._dof_of(sites) / 2).expand(sites["loc"].shape[:-1])
        half = gather_component(half, assignment, 0)
        u = (torch._standard_gamma(half, generator=generator) / half).clamp_min(torch.finfo(x.dtype).tiny)
        loc = gather_component(sites["loc"], assignment, 1)
        return loc + (x - loc) / u.sqrt()[..., None]

    # The closed form.

    def _distance(self, x: Tensor, loc: Tensor, spread: Tensor) -> Tensor:
        """Squared Mahalanobis distance, ``(N, D) -> (*b, N, K)``."""
        shape = self.gaussian.covariance
        return shape.block_distance(x, loc, shape.lift(spread)).sum(-2).mT

    def _log_density(self, distance: Tensor, size: int, sites: Mapping[str, Tensor]) -> Tensor:
        shape = self.gaussian.covariance
        log_det = shape.replicates(size) * shape.log_det(shape.lift(sites[self.site]))
        top = -(size * math.log(2 * math.pi) + log_det) / 2
        return top[..., None, :] + log_radial(distance, self._dof_of(sites)[..., None, :], size)

    def log_prob(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Student-t log density; NaN for a scale matrix that is not positive definite."""
        return self._log_density(self._distance(x, sites["loc"], sites[self.site]), x.shape[-1], sites)

    def log_prior(self, sites: Mapping[str, Tensor], prior: StudentTPrior) -> Tensor:
        """That of the Gaussian's sites and of the degrees of freedom."""
        log_prob = self.gaussian.log_prior(self._as_gaussian(sites), prior.gaussian)
        if prior.dof is None:
            return log_prob
        log_dof = prior.dof.prior().log_prob(sites["dof"])
        return log_prob + (log_dof if self.shared_dof else log_dof.sum(-1))

    def sufficient_statistics(
        self, x: Tensor, responsibilities: Tensor, sites: Mapping[str, Tensor] | None = None
    ) -> StudentTStatistics:
        """Statistics under the mean latent precisions given the sites; without sites these are 1."""
        if sites is None:
            half = responsibilities.new_tensor(_START_DOF / 2)
            mean, mean_log = torch.ones_like(responsibilities), half.digamma() - half.log()
            return self._statistics(x, responsibilities, mean, mean_log)
        distance = self._distance(x, sites["loc"], sites[self.site])
        return self._expected(x, responsibilities, distance, self._dof_of(sites)[..., None, :])

    def _expected(self, x: Tensor, responsibilities: Tensor, distance: Tensor, dof: Tensor) -> StudentTStatistics:
        """Given everything else u is gamma with concentration (dof + D) / 2 and rate (dof + distance) / 2."""
        concentration, rate = (dof + x.shape[-1]) / 2, (dof + distance) / 2
        return self._statistics(x, responsibilities, concentration / rate, concentration.digamma() - rate.log())

    def _statistics(self, x: Tensor, responsibilities: Tensor, u: Tensor, log_u: Tensor) -> StudentTStatistics:
        gaussian = self.gaussian.sufficient_statistics(x, responsibilities * u)
        return StudentTStatistics(responsibilities.sum(-2), gaussian, (responsibilities * log_u).sum(-2))

    def expectation(self, table: Table, log_weights: Tensor, sites: Mapping[str, Tensor]) -> Expectation:
        """One pass in which density and statistics share the distances of each block."""
        dof, size = self._dof_of(sites)[..., None, :], table.x.shape[-1]
        block: list[Tensor] = []

        def scores(x: Tensor) -> Tensor:
            block[:] = [self._distance(x, sites["loc"], sites[self.site])]
            return log_weights[..., None, :] + self._log_density(block[0], size, sites)

        def statistics(x: Tensor, shares: Tensor) -> StudentTStatistics:
            return self._expected(x, shares, block[0], dof)

        return accumulate(table, scores, statistics, width=log_weights.numel() * size)

    def drawn_statistics(self, x: Tensor, assigned: Tensor, sites: Mapping[str, Tensor]) -> StudentTStatistics:
        """Draw the latent precision of every row in its component, by torch's global generator."""
        own = (assigned > 0).to(x)
        dof, distance = self._dof_of(sites)[..., None, :], self._distance(x, sites["loc"], sites[self.site])
        concentration = (own * (dof + x.shape[-1])).sum(-1) / 2
        u = torch._standard_gamma(concentration) / ((own * (dof + distance)).sum(-1) / 2)
        u = u.clamp_min(torch.finfo(x.dtype).tiny)[..., None]
        return self._statistics(x, assigned, u, u.log())

    def maximum_likelihood(self, statistics: StudentTStatistics) -> dict[str, Tensor]:
        r"""Sites of greatest expected log likelihood, the mean latent precision being free as well.

        Dividing the scatter by :math:`\sum r u`, not by :math:`\sum r`, is EM for a model with one more parameter, that
        mean; it rises as surely and gets there in fewer steps. Degrees of freedom are kept from 0.1 to 1000.

        Source:
            Liu, Rubin and Wu (1998), Parameter expansion to accelerate EM: the PX-EM algorithm, Biometrika 85, 755-770.
        """
        sites = self._from_gaussian(self.gaussian.maximum_likelihood(statistics.gaussian))
        if self.dof is not None:
            return sites
        count, weight = statistics.count, statistics.gaussian.count
        pooled = self.gaussian.covariance.pooled
        free = weight.sum(-1, keepdim=True) / count.sum(-1, keepdim=True) if pooled else weight / count
        free = torch.where(free > 0, free, 1.0)
        total = self._pool(statistics.log_precision - count * free.log() - weight / free)
        dof = solve_dof(self._pool(count), total, torch.zeros_like(total), torch.zeros_like(total))
        return {**sites, "dof": dof.clamp(*_DOF_LIMITS).nan_to_num(_START_DOF)}

    def singular(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Tell which scale matrices are nothing beside the others, or singular."""
        return self.gaussian.singular(self._as_gaussian(sites))

    def posterior(self, prior: StudentTPrior, statistics: StudentTStatistics) -> StudentTPrior:
        """Condition on the rows and their latent precisions; of the rows the scale matrix counts each as one."""
        gaussian, shape = self.gaussian.posterior(prior.gaussian, statistics.gaussian), self.gaussian.covariance
        missing = shape.drop(statistics.count - statistics.gaussian.count, 0)
        dof = gaussian.dof + shape.replicates(gaussian.loc.shape[-1]) * missing
        gaussian = gaussian.updated(gaussian.loc, gaussian.mean_precision, dof, gaussian.scatter)
        if prior.dof is None:
            return StudentTPrior(gaussian, None)
        total = self._pool(statistics.log_precision - statistics.gaussian.count)
        return StudentTPrior(gaussian, prior.dof.posterior(self._pool(statistics.count), total))

    def mode(self, prior: StudentTPrior) -> dict[str, Tensor]:
        """Joint mode; a prior that has no mode of the degrees of freedom above 0 gives the limits of the likelihood."""
        sites = self._from_gaussian(self.gaussian.mode(prior.gaussian))
        return sites if prior.dof is None else {**sites, "dof": prior.dof.mode().clamp(*_DOF_LIMITS)}

    def mean(self, prior: StudentTPrior) -> dict[str, Tensor]:
        """Mean of each site, NaN where it does not exist."""
        sites = self._from_gaussian(self.gaussian.mean(prior.gaussian))
        return sites if prior.dof is None else {**sites, "dof": prior.dof.mean()}

    def sample(self, prior: StudentTPrior) -> dict[str, Tensor]:
        """Draw the Gaussian's sites and the degrees of freedom, which are independent given the latent precisions."""
        sites = self._from_gaussian(self.gaussian.sample(prior.gaussian))
        return sites if prior.dof is None else {**sites, "dof": prior.dof.sample()}

    # Variational Bayes: sites and latent precisions of the rows independent.

    def _mean_distance(self, x: Tensor, prior: GaussianPrior) -> Tensor:
        """Mean of the squared Mahalanobis distance, ``(*b, N, K)``."""
        dof = self.gaussian.covariance.lift(prior.dof, 0)
        distance = dof[..., None, :] * self._distance(x, prior.loc, prior.scatter)
        return distance + (x.shape[-1] / prior.mean_precision)[..., None, :]

    def _mean_dof(self, prior: StudentTPrior) -> tuple[Tensor, Tensor]:
        """Mean degrees of freedom, and mean of the log constant of the gamma density, with a component axis."""
        if prior.dof is None:
            dof = prior.gaussian.loc.new_full((1,), self.dof or 0.0)
            return dof, dof / 2 * (dof / 2).log() - (dof / 2).lgamma()
        mean, constant = prior.dof.mean(), prior.dof.expected_log_constant()
        return (mean[..., None], constant[..., None]) if self.shared_dof else (mean, constant)

    def expected_log_prob(self, x: Tensor, prior: StudentTPrior) -> Tensor:
        """Log of the latent precision's integral of the exponential of the mean log density, ``(*b, N, K)``."""
        distance = self._mean_distance(x, prior.gaussian)
        return self._expected_log(x.shape[-1], distance, prior)

    def _expected_log(self, size: int, distance: Tensor, prior: StudentTPrior) -> Tensor:
        shape = self.gaussian.covariance
        wishart_dof, scatter = shape.lift(prior.gaussian.dof, 0), shape.lift(prior.gaussian.scatter)
        order = torch.arange(shape.order(size), dtype=scatter.dtype, device=scatter.device)
        log_precision = (((wishart_dof[..., None] - order) / 2).digamma() + math.log(2.0)).sum(-1)
        log_precision = shape.blocks(size) * log_precision - shape.log_det(scatter)
        dof, log_constant = self._mean_dof(prior)
        half = (dof + size) / 2
        constant = shape.replicates(size) * log_precision - size * math.log(2 * math.pi)
        constant = constant / 2 + log_constant + half.lgamma()
        return constant[..., None, :] - half[..., None, :] * ((dof[..., None, :] + distance) / 2).log()

    def variational_expectation(self, table: Table, log_weights: Tensor, posterior: StudentTPrior) -> Expectation:
        """One pass in which scores and statistics share the mean distances of each block."""
        dof, size = self._mean_dof(posterior)[0][..., None, :], table.x.shape[-1]
        block: list[Tensor] = []

        def scores(x: Tensor) -> Tensor:
            block[:] = [self._mean_distance(x, posterior.gaussian)]
            return log_weights[..., None, :] + self._expected_log(size, block[0], posterior)

        def statistics(x: Tensor, shares: Tensor) -> StudentTStatistics:
            return self._expected(x, shares, block[0], dof)

        return accumulate(table, scores, statistics, width=log_weights.numel() * size)

    def divergence(self, posterior: StudentTPrior, prior: StudentTPrior) -> Tensor:
        """Sum of that of the Gaussian's sites and of the degrees of freedom."""
        divergence = self.gaussian.divergence(posterior.gaussian, prior.gaussian)
        if posterior.dof is None or prior.dof is None:
            return divergence
        of_dof = posterior.dof.divergence(prior.dof)
        return divergence + (of_dof if self.shared_dof else of_dof.sum(-1))


@dataclass(frozen=True)
class StudentTMixture(AbstractMixture):
    r"""Bayesian mixture of K multivariate Student-t distributions: a Gaussian mixture with room for outliers.

    .. math:: w \sim \mathrm{Dirichlet}(\alpha), \quad \nu_k \sim \mathrm{Gamma}(2, 0.1), \quad
              p(x_n) = \sum_k w_k t_{\nu_k}(x_n \mid \mu_k, \Sigma_k)

    Sites, after any leading batch ``*b``: ``weights`` ``(K,)``, ``loc`` ``(K, D)``, the scale matrix ``scale_cov``
    ``(K, D, D)`` (full) or ``(D, D)`` (tied), or ``scale_var`` ``(K, D)`` (diagonal) or ``(K,)`` (spherical), and
    ``dof`` ``(K,)`` (``()`` if shared), which is no site if fixed. The scale matrix is not the covariance: that is
    ``scale_cov * dof / (dof - 2)`` where dof is above 2, and infinite below. All features of a row share one latent
    width, in the diagonal and spherical shapes too.

    The prior of location and scale matrix is the Gaussian mixture's (`probmix.models.GaussianMixture`); that of the
    degrees of freedom has mode 10 and mean 20, and is from Juarez and Steel (2010).

    Args:
        num_components: K.
        covariance: shape of the scale matrix.
        dof: degrees of freedom of all components; None: learnt.
        shared_dof: learn one number for all components.
        weight_concentration: :math:`\alpha`, the same for every component; 1 is uniform.
        component_prior: a `StudentTPrior` of the user's own.

    Raises:
        ProgramError: a setting is out of range, or the prior is not the one for these settings.

    Source:
        Peel and McLachlan (2000), Robust mixture modelling using the t distribution, Statistics and Computing 10,
        339-348.

    Example:
        >>> model = StudentTMixture(2, "spherical", dof=4.0)
        >>> sites = {"weights": torch.ones(2) / 2, "loc": torch.tensor([[0.0], [9.0]]), "scale_var": torch.ones(2)}
        >>> model.responsibilities(torch.tensor([[4.5]]), sites)
        tensor([[0.5000, 0.5000]])
    """

    num_components: int
    covariance: ScaleName = "full"
    dof: float | None = None
    shared_dof: bool = False
    weight_concentration: float = 1.0
    component_prior: StudentTPrior | None = None

    def __post_init__(self) -> None:
        self._check_settings()
        if self.covariance not in get_args(ScaleName):
            raise ProgramError(
                f"covariance: expected one of {', '.join(get_args(ScaleName))}, got {self.covariance!r}: "
                "pass one of these names"
            )
        if self.dof is not None and not 0 < self.dof < math.inf:
            raise ProgramError(
                f"dof: expected a finite number above 0, got {self.dof}: pass None to learn it; for infinitely many "
                "use GaussianMixture"
            )
        self.family.check_prior_type(self.component_prior)

    @property
    def family(self) -> StudentTFamily:
        """The family of the components."""
        return StudentTFamily(FAMILIES[self.covariance], self.dof, self.shared_dof)
