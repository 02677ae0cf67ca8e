"""Bayesian mixture of factor analysers: Gaussians of low-rank covariance, as a program and in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.errors import DataError, ProgramError
from probmix.family import AbstractConditionallyConjugateFamily, gather_component
from probmix.linear_regression import RegressionPrior, RegressionSites, least_squares
from probmix.models.mixture import AbstractMixture
from probmix.positive_definite import safe_cholesky
from probmix.regression_statistics import RegressionStatistics
from probmix.rows import check_rows
from probmix.table import Expectation, Table, accumulate

__all__ = ["FactorFamily", "MixtureOfFactorAnalysers"]

NoiseName = Literal["diagonal", "isotropic"]

_ROWS = 0.01  # observations that the default prior of locations and loadings is worth
_NOISE_FLOOR = 1e-9  # least noise variance, in units of the feature's variance within the components


class _Projection(NamedTuple):
    """What a row needs of the components: how to score it, and how to find its factors.

    Attributes:
        loc: ``(*b, K, D)``.
        noise_precision: ``(*b, K, D)``.
        whitener: turns a centred row into its whitened factors, ``(*b, K, D, Q)``.
        shift: to be taken off those, ``(*b, K, Q)``.
        colour: turns whitened factors into factors, ``(*b, K, Q, Q)``.
        centre: to be added to those, ``(*b, K, Q)``.
        constant: of the log density, ``(*b, K)``.
    """

    loc: Tensor
    noise_precision: Tensor
    whitener: Tensor
    shift: Tensor
    colour: Tensor
    centre: Tensor
    constant: Tensor

    @classmethod
    def of(cls, sites: RegressionSites, centre: Tensor, extra: Tensor, constant: Tensor) -> _Projection:
        """Invert the precision of the factors given a row, ``I + loadings' Psi^-1 loadings + extra``.

        Args:
            sites: location at ``centre``, loadings and noise variances of all features.
            centre: of the factors.
            extra: precision that doubt about the loadings adds.
            constant: of the log density, but for the determinant.
        """
        loadings, noise_precision = sites.coefficients, 1 / sites.noise_var
        weighted = loadings * noise_precision[..., None]
        identity = torch.eye(loadings.shape[-1], dtype=loadings.dtype, device=loadings.device)
        tril = safe_cholesky(identity + loadings.mT @ weighted + extra)
        colour = torch.linalg.solve_triangular(tril, identity, upper=False)
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        shift = (centre[..., None, :] @ colour.mT).squeeze(-2)
        constant = constant - log_det - centre.square().sum(-1) / 2
        return cls(sites.intercept, noise_precision, weighted @ colour.mT, shift, colour, centre, constant)

    def whitened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log density ``(*b, K, n)`` and whitened factors ``(*b, K, n, Q)`` of rows."""
        offset = x - self.loc[..., None, :]
        white = offset @ self.whitener - self.shift[..., None, :]
        distance = (offset.square() @ self.noise_precision[..., None]).squeeze(-1) - white.square().sum(-1)
        return self.constant[..., None] - distance / 2, white

    def factors(self, white: Tensor) -> Tensor:
        """Factors of whitened ones, ``(*b, K, n, Q)``."""
        return white @ self.colour + self.centre[..., None, :]

    def statistics(self, x: Tensor, responsibilities: Tensor, white: Tensor) -> RegressionStatistics:
        """Expected moments of factors and rows, with the factors' own covariance."""
        statistics = RegressionStatistics.of(self.factors(white), x, responsibilities.mT)
        cov = statistics.count[..., None, None] * (self.colour.mT @ self.colour)
        return RegressionStatistics(
            statistics.count,
            statistics.design_mean,
            statistics.response_mean,
            statistics.gram + cov,
            statistics.cross,
            statistics.square,
        )


@dataclass(frozen=True)
class FactorFamily(AbstractConditionallyConjugateFamily[RegressionPrior, RegressionStatistics]):
    r"""Gaussians whose features depend on each other through Q factors only.

    .. math:: z_n \sim N(0, I_Q), \qquad x_n \mid z_n \sim N(\mu_k + \Lambda_k z_n, \Psi_k), \qquad
              \Sigma_k = \Lambda_k \Lambda_k^T + \Psi_k

    Given the factors each feature is a linear regression on them: see `probmix.linear_regression.RegressionPrior`. No
    matrix of D x D numbers is ever made.

    Attributes:
        num_factors: Q.
        isotropic: whether all features have one noise variance.

    Source:
        Ghahramani and Hinton (1996), The EM algorithm for mixtures of factor analyzers, technical report CRG-TR-96-1,
        University of Toronto; Ghahramani and Beal (2000), Variational inference for Bayesian mixtures of factor
        analysers, Advances in Neural Information Processing Systems 12, 449-455.

    Example:
        >>> family = FactorFamily(1)
        >>> sites = {"loc": torch.zeros(1, 2), "loadings": torch.ones(1, 2, 1), "noise_var": torch.ones(1, 2)}
        >>> family.log_prob(torch.zeros(1, 2), sites)  # minus half the log determinant of 2 pi [[2, 1], [1, 2]]
        tensor([[-2.3872]])
    """

    num_factors: int
    isotropic: bool = False

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes of each site."""
        return {
            "loc": ("component", "feature"),
            "loadings": ("component", "feature", "factor"),
            "noise_var": ("component",) if self.isotropic else ("component", "feature"),
        }

    def num_parameters(self, num_components: int, num_features: int) -> int:
        """Locations, noise variances, and loadings up to a rotation of the factors."""
        factors = self.num_factors
        loadings = num_features * factors - factors * (factors - 1) // 2
        return num_components * (num_features + loadings + (1 if self.isotropic else num_features))

    # The prior, and the data that it is for.

    def default_prior(self, x: Tensor, num_components: int) -> RegressionPrior:
        """Vague in units of the noise, scaled to the columns; see `MixtureOfFactorAnalysers`."""
        var = x.var(0)
        factors = torch.eye(self.num_factors, dtype=x.dtype, device=x.device)
        return RegressionPrior(
            x.new_zeros(self.num_factors),
            x.mean(0),
            x.new_tensor(_ROWS),
            x.new_zeros(x.shape[-1], self.num_factors),
            _ROWS * factors,
            x.new_tensor(1.1),
            0.05 * (var.mean(-1, keepdim=True) if self.isotropic else var),
        )

    def check(self, x: Tensor, num_components: int, prior: RegressionPrior | None) -> None:
        """Refuse rows that are not finite or too few, too few columns, and (default prior) constant columns.

        Raises:
            DataError: it says which rows or columns.
            ProgramError: a prior for other data, or improper.
        """
        check_rows(x, num_components, spread=prior is None, independent=False)
        size = x.shape[-1]
        if self.num_factors >= size:
            raise DataError(
                f"expected more columns than factors, got {size} columns for {self.num_factors} factors: lower "
                "num_factors, or use GaussianMixture, whose covariance is free"
            )
        if prior is not None:
            self._check_prior(prior.to(x), size)

    def _check_prior(self, prior: RegressionPrior, size: int) -> None:
        factors = self.num_factors
        expected = {
            "centre": (factors,),
            "loc": (size,),
            "coefficients": (size, factors),
            "precision": (factors, factors),
            "rate": (1,) if self.isotropic else (size,),
        }
        for name, shape in expected.items():
            got = tuple(getattr(prior, name).shape)
            if got[len(got) - len(shape) :] != shape:
                raise ProgramError(
                    f"component_prior: expected {name} to end in {shape} for {size} columns and {factors} factors, "
                    f"got {got}: give it the columns of the data"
                )
        positive = {name: getattr(prior, name) for name in ("mean_precision", "concentration", "rate")}
        bad = [name for name, value in positive.items() if not ((value > 0) & value.isfinite()).all()]
        bad += ["precision"] if torch.linalg.cholesky_ex(prior.precision).info.any() else []
        if bad:
            raise ProgramError(
                "component_prior: expected a proper prior (precision positive definite; mean_precision, concentration "
                f"and rate finite and above 0), got an improper {' and '.join(bad)}: change it"
            )

    # The program.

    def draw_parameters(self, prior: RegressionPrior, num_components: int) -> dict[str, tuple[Tensor, int]]:
        """Draw the noise variances, then the loadings, then the location."""
        with pyro.plate("component", num_components):
            noise = prior.noise_prior()
            if self.isotropic:
                noise = dist.InverseGamma(prior.concentration, prior.rate.squeeze(-1), validate_args=False)
            noise_var = pyro.sample("noise_var", noise)
            spread = noise_var[..., None] if self.isotropic else noise_var
            loadings = pyro.sample("loadings", prior.coefficients_prior(spread))
            loc = pyro.sample("loc", prior.intercept_prior(spread, loadings))
        return {"loc": (loc, 1), "loadings": (loadings, 2), "noise_var": (spread.expand(loc.shape), 1)}

    def row(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Gaussian of low-rank covariance plus noise."""
        return dist.LowRankMultivariateNormal(
            parameters["loc"], parameters["loadings"], parameters["noise_var"], validate_args=False
        )

    def draw_rows(self, sites: Mapping[str, Tensor], assignment: Tensor, generator: torch.Generator) -> Tensor:
        """Draw factors and noise."""
        named = self._unpack(sites)
        loc, loadings = gather_component(named.intercept, assignment, 1), named.coefficients
        shape = (*assignment.shape, self.num_factors)
        factors = torch.randn(shape, generator=generator, dtype=loc.dtype, device=loc.device)
        noise = torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)
        common = (gather_component(loadings, assignment, 2) @ factors[..., None]).squeeze(-1)
        noise_var = named.noise_var.expand(named.intercept.shape)
        return loc + common + gather_component(noise_var, assignment, 1).sqrt() * noise

    # The closed form.

    def _unpack(self, sites: Mapping[str, Tensor]) -> RegressionSites:
        noise_var = sites["noise_var"]
        return RegressionSites(sites["loc"], sites["loadings"], noise_var[..., None] if self.isotropic else noise_var)

    def _pack(self, sites: RegressionSites) -> dict[str, Tensor]:
        noise_var = sites.noise_var.squeeze(-1) if self.isotropic else sites.noise_var
        return {"loc": sites.intercept, "loadings": sites.coefficients, "noise_var": noise_var}

    def _projection(self, sites: Mapping[str, Tensor]) -> _Projection:
        named = self._unpack(sites)
        named = named._replace(noise_var=named.noise_var.expand(named.intercept.shape))
        size = named.intercept.shape[-1]
        constant = -(size * math.log(2 * math.pi) + named.noise_var.log().sum(-1)) / 2
        zero = torch.zeros_like(named.coefficients[..., 0, :])
        return _Projection.of(named, zero, zero[..., None, :] * 0, constant)

    def log_prob(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Gaussian log density by Woodbury's identity; ``O(N K D Q)``."""
        return self._projection(sites).whitened(x)[0].mT

    def log_prior(self, sites: Mapping[str, Tensor], prior: RegressionPrior) -> Tensor:
        """Sum over the components."""
        return prior.log_prob(self._unpack(sites)).sum(-1)

    def sufficient_statistics(
        self, x: Tensor, responsibilities: Tensor, sites: Mapping[str, Tensor] | None = None
    ) -> RegressionStatistics:
        """Moments of rows and expected factors given the sites; without sites, of rows and a sketch of them.

        The sketch multiplies standardised rows with a fixed matrix ``(D, Q)``. A component's regression on it is the
        Nystrom approximation of its covariance: a start from labels that takes ``O(N D Q)``.
        """
        if sites is None:
            return RegressionStatistics.of(self._sketch(x), x, responsibilities.mT)
        projection = self._projection(sites)
        return projection.statistics(x, responsibilities, projection.whitened(x)[1])

    def _sketch(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        index = torch.arange(1, size * self.num_factors + 1, dtype=x.dtype, device=x.device)
        chirp = (math.sqrt(2) * index.square()).cos().reshape(size, -1)  # no two alike, and nothing drawn
        std = x.std(0, correction=0)
        return (x - x.mean(0)) / torch.where(std > 0, std, 1.0) @ chirp / math.sqrt(size)

    def expectation(self, table: Table, log_weights: Tensor, sites: Mapping[str, Tensor]) -> Expectation:
        """One pass in which density and factors share the projections of each block."""
        return _expectation(self._projection(sites), table, log_weights)

    def drawn_statistics(self, x: Tensor, assigned: Tensor, sites: Mapping[str, Tensor]) -> RegressionStatistics:
        """Draw the factors of every row in its component, by torch's global generator."""
        projection = self._projection(sites)
        white = projection.whitened(x)[1]
        white = white + torch.randn_like(white[..., :1, :, :])
        return RegressionStatistics.of(projection.factors(white), x, assigned.mT)

    def maximise(
        self, statistics: RegressionStatistics, prior: RegressionPrior | None, sites: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Mode of the regressions on the factors, or sites of greatest likelihood; without sites, of a sketch of them.

        A sketch is standardised, and taken to tell half of what the factors would: a column that it happens to resemble
        would else start, and stay, with next to no noise.
        """
        if sites is None:
            statistics = _standardised(statistics)
        return self.maximum_likelihood(statistics) if prior is None else self.mode(prior.posterior(statistics))

    def maximum_likelihood(self, statistics: RegressionStatistics) -> dict[str, Tensor]:
        """Sites of greatest expected log likelihood, mean and covariance of the factors being free as well.

        That is EM for a model with more parameters than it needs: it rises as surely and gets there in fewer steps. No
        noise variance is less than 1e-9 times the feature's variance within the components.

        Source:
            Liu, Rubin and Wu (1998), Parameter expansion to accelerate EM: the PX-EM algorithm, Biometrika 85, 755-770.
        """
        named = least_squares(statistics, shared_noise=self.isotropic)
        count = statistics.count[..., None].clamp_min(torch.finfo(statistics.count.dtype).tiny)
        within = statistics.square.sum(-2, keepdim=True) / count.sum(-2, keepdim=True)
        within = within.mean(-1, keepdim=True) if self.isotropic else within
        return self._pack(
            RegressionSites(
                statistics.response_mean,
                named.coefficients @ _root(statistics.gram / count[..., None]),
                torch.maximum(named.noise_var, _NOISE_FLOOR * within),
            )
        )

    def singular(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Tell which components have no noise left in any feature: too few rows for their factors."""
        named = self._unpack(sites)
        var = (named.coefficients.square().sum(-1) + named.noise_var).amax(-2, keepdim=True)
        return ~(named.noise_var > 2 * _NOISE_FLOOR * var).any(-1) | ~var.isfinite().all(-1)

    def posterior(self, prior: RegressionPrior, statistics: RegressionStatistics) -> RegressionPrior:
        """Condition on rows and their factors."""
        return prior.posterior(statistics)

    def mode(self, prior: RegressionPrior) -> dict[str, Tensor]:
        """Joint mode."""
        return self._pack(prior.mode())

    def mean(self, prior: RegressionPrior) -> dict[str, Tensor]:
        """Mean of each site given the factors' orientation."""
        return self._pack(prior.mean())

    def sample(self, prior: RegressionPrior) -> dict[str, Tensor]:
        """Draw noise variances, loadings and location."""
        return self._pack(prior.sample())

    # Variational Bayes: sites and factors of the rows independent.

    def _mean_projection(self, prior: RegressionPrior) -> _Projection:
        size = prior.loc.shape[-1]
        tril = safe_cholesky(prior.precision)
        concentration = prior.concentration[..., None]
        log_noise = (prior.rate.log() - concentration.digamma()).expand(prior.loc.shape).sum(-1)
        constant = -(size * math.log(2 * math.pi) + log_noise + size / prior.mean_precision) / 2
        noise_var = (prior.rate / concentration).expand(prior.loc.shape)
        identity = torch.eye(self.num_factors, dtype=tril.dtype, device=tril.device)
        extra = size * torch.cholesky_solve(identity, tril)
        return _Projection.of(RegressionSites(prior.loc, prior.coefficients, noise_var), prior.centre, extra, constant)

    def expected_log_prob(self, x: Tensor, prior: RegressionPrior) -> Tensor:
        """Log of the factors' integral of the exponential of the mean log density, ``(*b, N, K)``."""
        return self._mean_projection(prior).whitened(x)[0].mT

    def variational_expectation(self, table: Table, log_weights: Tensor, posterior: RegressionPrior) -> Expectation:
        """One pass in which scores and factors share the projections of each block."""
        return _expectation(self._mean_projection(posterior), table, log_weights)

    def divergence(self, posterior: RegressionPrior, prior: RegressionPrior) -> Tensor:
        """Sum over the components."""
        return posterior.divergence(prior).sum(-1)


def _expectation(projection: _Projection, table: Table, log_weights: Tensor) -> Expectation:
    block: list[Tensor] = []

    def scores(x: Tensor) -> Tensor:
        log_prob, white = projection.whitened(x)
        block[:] = [white]
        return log_weights[..., None, :] + log_prob.mT

    def statistics(x: Tensor, shares: Tensor) -> RegressionStatistics:
        return projection.statistics(x, shares, block[0])

    return accumulate(table, scores, statistics, width=log_weights.numel() * table.x.shape[-1])


def _root(cov: Tensor, *, inverse: bool = False) -> Tensor:
    """A square root A of each matrix, ``A A^T``, or its (pseudo-)inverse; also of one that is not of full rank."""
    values, vectors = torch.linalg.eigh(cov)
    floor = 64 * torch.finfo(cov.dtype).eps * values[..., -1:]
    roots = torch.where(values > floor, values, 0.0).sqrt()
    if not inverse:
        return vectors * roots[..., None, :]
    return torch.where(roots > 0, 1 / roots, 0.0)[..., None] * vectors.mT


def _standardised(statistics: RegressionStatistics) -> RegressionStatistics:
    """Statistics of a sketch moved to mean zero and covariance one in each component, half of it noise."""
    count = statistics.count.clamp_min(torch.finfo(statistics.count.dtype).tiny)[..., None, None]
    whitener = _root(statistics.gram / count, inverse=True)
    return RegressionStatistics(
        statistics.count,
        torch.zeros_like(statistics.design_mean),
        statistics.response_mean,
        whitener @ statistics.gram @ whitener.mT,
        math.sqrt(0.5) * statistics.cross @ whitener.mT,
        statistics.square,
    )


@dataclass(frozen=True)
class MixtureOfFactorAnalysers(AbstractMixture):
    r"""Bayesian mixture of K Gaussians with low-rank covariances, for hundreds of columns.

    .. math:: w \sim \mathrm{Dirichlet}(\alpha), \quad
              p(x_n) = \sum_k w_k N(x_n \mid \mu_k, \Lambda_k \Lambda_k^T + \Psi_k)

    Sites, after any leading batch ``*b``: ``weights`` ``(K,)``, ``loc`` ``(K, D)``, ``loadings`` ``(K, D, Q)`` and
    ``noise_var`` ``(K, D)``, the diagonal of :math:`\Psi` (``(K,)`` if isotropic: mixtures of probabilistic principal
    components). Loadings are free up to a rotation of the factors: compare :math:`\Lambda \Lambda^T`, not
    :math:`\Lambda`. A component may have fewer rows than columns; of ``objective="ml"`` no noise variance is less than
    1e-9 times the feature's variance within the components.

    The default prior, in units of the noise: locations about the mean of the columns and loadings about 0, worth 0.01
    rows each; noise variances inverse gamma with concentration 1.1 and rate 0.05 times the column's variance (the mean
    of all columns if isotropic), which expects half of it.

    Args:
        num_components: K.
        num_factors: Q, less than the number of columns.
        noise: ``"diagonal"`` (factor analysis) or ``"isotropic"`` (principal components).
        weight_concentration: :math:`\alpha`, the same for every component; 1 is uniform.
        component_prior: a `probmix.linear_regression.RegressionPrior` of the user's own: of D responses on Q factors.

    Raises:
        ProgramError: a setting is out of range, or the prior is of another type.

    Source:
        Ghahramani and Hinton (1996), The EM algorithm for mixtures of factor analyzers; Tipping and Bishop (1999),
        Mixtures of probabilistic principal component analyzers, Neural Computation 11, 443-482; Lopes and West (2004),
        Bayesian model assessment in factor analysis, Statistica Sinica 14, 41-67, for the prior of the noise.

    Example:
        >>> from probmix.datasets import load_wine
        >>> from probmix.inference import EM, infer
        >>> fit = infer(MixtureOfFactorAnalysers(3, num_factors=2), load_wine().x, EM(restarts=2), seed=0)
        >>> fit.sites()["loadings"].shape
        torch.Size([3, 13, 2])
    """

    num_components: int
    num_factors: int = 1
    noise: NoiseName = "diagonal"
    weight_concentration: float = 1.0
    component_prior: RegressionPrior | None = None

    def __post_init__(self) -> None:
        self._check_settings()
        if isinstance(self.num_factors, bool) or not self.num_factors >= 1:
            raise ProgramError(
                f"num_factors: expected 1 or more, got {self.num_factors}: pass a positive integer, or use "
                'GaussianMixture(covariance="diagonal") for none'
            )
        if self.noise not in get_args(NoiseName):
            raise ProgramError(f'noise: expected "diagonal" or "isotropic", got {self.noise!r}: pass one of these')
        if not isinstance(self.component_prior, RegressionPrior | None):
            raise ProgramError(
                f"component_prior: expected RegressionPrior, got {type(self.component_prior).__name__}: "
                "build the prior with probmix.linear_regression.RegressionPrior"
            )

    @property
    def family(self) -> FactorFamily:
        """The family of the components."""
        return FactorFamily(self.num_factors, self.noise == "isotropic")
