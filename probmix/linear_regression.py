"""Bayesian linear regression: the conjugate algebra that mixtures of regressions and factor analysers share."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.positive_definite import safe_cholesky
from probmix.regression_statistics import RegressionStatistics

__all__ = ["RegressionPrior", "RegressionSites", "least_squares"]


class RegressionSites(NamedTuple):
    r"""Parameters of regressions :math:`y_m = \alpha_m + \beta_m \cdot z + \epsilon_m`.

    Attributes:
        intercept: :math:`\alpha`, ``(*b, K, M)``.
        coefficients: :math:`\beta`, ``(*b, K, M, P)``.
        noise_var: variance of :math:`\epsilon`, ``(*b, K, M)``, or ``(*b, K, 1)`` where all responses share one.

    Example:
        >>> sites = RegressionSites(torch.zeros(1, 1), torch.ones(1, 1, 2), torch.ones(1, 1))
        >>> sites.fitted(torch.tensor([[1.0, 2.0]])).shape
        torch.Size([1, 1, 1])
    """

    intercept: Tensor
    coefficients: Tensor
    noise_var: Tensor

    def fitted(self, design: Tensor) -> Tensor:
        """Mean responses of rows, ``(N, P) -> (*b, K, N, M)``."""
        return design @ self.coefficients.mT + self.intercept[..., None, :]


@dataclass(frozen=True, eq=False)
class RegressionPrior:
    r"""Conjugate prior, and posterior, of the regression of M responses on P columns.

    .. math:: v_m \sim \mathrm{InverseGamma}(a, b_m), \quad
              \beta_m \mid v_m \sim N(B_m, v_m \Lambda^{-1}), \quad
              \alpha_m + \beta_m \cdot c \mid v_m \sim N(\mu_m, v_m / \kappa)

    The prior of the intercept is that of the response at a point :math:`c` of the design: as if :math:`\kappa` rows
    with that design and the mean response :math:`\mu` had been seen. It does not depend on where the columns have their
    zero. :math:`\kappa = \infty` with c and :math:`\mu` at 0 is a regression without intercept. Shapes broadcast
    against those given, and numbers become tensors.

    Attributes:
        centre: :math:`c`, ``(*b, K, P)``.
        loc: :math:`\mu`, ``(*b, K, M)``.
        mean_precision: :math:`\kappa`, the number of rows that the prior mean is worth, ``(*b, K)``.
        coefficients: :math:`B`, ``(*b, K, M, P)``.
        precision: :math:`\Lambda`, in units of the noise, ``(*b, K, P, P)``.
        concentration: :math:`a`, ``(*b, K)``.
        rate: :math:`b`, in squared units of the response, ``(*b, K, M)``; ``(*b, K, 1)`` where all share one variance.

    Source:
        Gelman et al. (2013), Bayesian Data Analysis, 3rd edition, chapter 14; Bishop (2006), Pattern Recognition and
        Machine Learning, section 3.3.

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> prior = RegressionPrior(zero, zero, 1.0, zero[None], one[None], concentration=2.0, rate=one)
        >>> design, response = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0], [5.0]])
        >>> posterior = prior.posterior(RegressionStatistics.of(design, response, torch.ones(1, 3)))
        >>> [round(float(value), 4) for value in posterior.mode()]
        [1.0, 1.6667, 0.5758]
    """

    centre: Tensor
    loc: Tensor
    mean_precision: Tensor
    coefficients: Tensor
    precision: Tensor
    concentration: Tensor
    rate: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, Tensor):
                object.__setattr__(self, field.name, self.loc.new_tensor(value))

    def to(self, like: Tensor) -> RegressionPrior:
        """Return a copy with the dtype and device of ``like``."""
        return RegressionPrior(*(getattr(self, field.name).to(like) for field in fields(self)))

    @property
    def _told(self) -> int:
        """Numbers that one row tells each noise variance."""
        return self.loc.shape[-1] // self.rate.shape[-1]

    def posterior(self, statistics: RegressionStatistics) -> RegressionPrior:
        r"""Condition on statistics.

        .. math:: \Lambda_n = \Lambda + G', \quad B_n \Lambda_n = B \Lambda + C', \quad
                  b_n = b + \tfrac12 \{ s' - 2 B_n \cdot C' + B_n G' B_n^T + (B_n - B) \Lambda (B_n - B)^T \}

        Primes: the statistics about the prior's means, with :math:`\kappa n / (\kappa + n)` of the means' offsets.
        """
        ratio = statistics.count / self.mean_precision
        fraction = (ratio / (1 + ratio))[..., None]
        data = statistics.about(self.centre, self.loc, statistics.count / (1 + ratio))
        precision = self.precision + data.gram
        coefficients = torch.cholesky_solve(
            (self.coefficients @ self.precision + data.cross).mT, safe_cholesky(precision)
        ).mT
        moved = coefficients - self.coefficients
        residual = data.square + (
            coefficients * (coefficients @ data.gram - 2 * data.cross) + moved * (moved @ self.precision)
        ).sum(-1)
        residual = residual.clamp_min(0)  # rounding may leave less than nothing
        shared = self._told > 1
        return RegressionPrior(
            self.centre + fraction * (statistics.design_mean - self.centre),
            self.loc + fraction * (statistics.response_mean - self.loc),
            self.mean_precision + statistics.count,
            coefficients,
            precision,
            self.concentration + statistics.count * self._told / 2,
            self.rate + (residual.sum(-1, keepdim=True) if shared else residual) / 2,
        )

    def mode(self) -> RegressionSites:
        """Joint mode of all parameters: every coefficient and intercept brings half a power of the noise variance."""
        intercepts = self.mean_precision.isfinite().to(self.rate)
        powers = self._told * (self.precision.shape[-1] + intercepts) / 2
        return self._sites(self.rate / (self.concentration + 1 + powers)[..., None])

    def mean(self) -> RegressionSites:
        """Mean of all parameters; the noise has none where the concentration is not above 1."""
        excess = (self.concentration - 1)[..., None]
        return self._sites(torch.where(excess > 0, self.rate / excess, torch.nan))

    def _sites(self, noise_var: Tensor) -> RegressionSites:
        return RegressionSites(self._intercept(self.coefficients), self.coefficients, noise_var)

    def _intercept(self, coefficients: Tensor) -> Tensor:
        return self.loc - (coefficients @ self.centre[..., None]).squeeze(-1)

    # Distributions of the sites, in the order in which they are drawn. Their events are all responses at once.

    def noise_prior(self) -> dist.TorchDistribution:
        """Distribution of ``noise_var``."""
        return dist.InverseGamma(self.concentration[..., None], self.rate, validate_args=False).to_event(1)

    def coefficients_prior(self, noise_var: Tensor) -> dist.TorchDistribution:
        """Distribution of ``coefficients`` given ``noise_var``."""
        tril = noise_var.sqrt()[..., None, None] * self._root()[..., None, :, :]
        return dist.MultivariateNormal(self.coefficients, scale_tril=tril, validate_args=False).to_event(1)

    def intercept_prior(self, noise_var: Tensor, coefficients: Tensor) -> dist.TorchDistribution:
        """Distribution of ``intercept`` given the others; of no width if there is none."""
        std = (noise_var / self.mean_precision[..., None]).sqrt()
        loc = self._intercept(coefficients)
        return dist.Normal(loc, std.expand(loc.shape), validate_args=False).to_event(1)

    def _root(self) -> Tensor:
        """Lower Cholesky factor of the inverse of the precision."""
        identity = torch.eye(self.precision.shape[-1], dtype=self.precision.dtype, device=self.precision.device)
        return safe_cholesky(torch.cholesky_solve(identity, safe_cholesky(self.precision)))

    def sample(self) -> RegressionSites:
        """Draw all parameters once from each distribution of the batch, by torch's global random state."""
        noise_var = self.noise_prior().sample()
        coefficients = self.coefficients_prior(noise_var).sample()
        return RegressionSites(self.intercept_prior(noise_var, coefficients).sample(), coefficients, noise_var)

    def log_prob(self, sites: RegressionSites) -> Tensor:
        """Log density of the parameters of each component, ``(*b, K)``; without intercept, of the other two."""
        present = self.mean_precision.isfinite()
        var = sites.noise_var / torch.where(present, self.mean_precision, 1.0)[..., None]  # no infinity in a gradient
        offset = sites.intercept - self._intercept(sites.coefficients)
        log_intercept = -(offset.square() / var + var.log() + math.log(2 * math.pi)).sum(-1) / 2
        log_intercept = torch.where(present, log_intercept, 0.0)
        log_coefficients = self.coefficients_prior(sites.noise_var).log_prob(sites.coefficients)
        return self.noise_prior().log_prob(sites.noise_var) + log_coefficients + log_intercept

    # Parameters averaged out.

    def _leverage(self, design: Tensor) -> Tensor:
        """Variance of the fitted response in units of the noise, ``(N, P) -> (*b, K, N)``."""
        white = (design - self.centre[..., None, :]) @ self._root()
        return white.square().sum(-1) + (1 / self.mean_precision)[..., None]

    def expected_log_prob(self, design: Tensor, response: Tensor) -> Tensor:
        """Mean log density of responses ``(N, M)`` when the parameters follow this distribution, ``(*b, K, N)``."""
        return self._expected_log(design, response, self._leverage(design))

    def _expected_log(self, design: Tensor, response: Tensor, leverage: Tensor) -> Tensor:
        fitted = (design - self.centre[..., None, :]) @ self.coefficients.mT + self.loc[..., None, :]
        noise_precision = (self.concentration[..., None] / self.rate)[..., None, :]
        constant = (self.concentration.digamma()[..., None] - self.rate.log() - math.log(2 * math.pi)).sum(-1)
        distance = (noise_precision * (response - fitted).square()).sum(-1)
        return (self._told * constant[..., None] - distance - self.loc.shape[-1] * leverage) / 2

    def predictive(self, design: Tensor) -> dist.TorchDistribution:
        """Student-t of each new response given its row of the design, batch shape ``(*b, K, N, M)``."""
        fitted = (design - self.centre[..., None, :]) @ self.coefficients.mT + self.loc[..., None, :]
        noise = (self.rate / self.concentration[..., None])[..., None, :]
        std = (noise * (1 + self._leverage(design))[..., None]).sqrt()
        df = (2 * self.concentration)[..., None, None].expand(fitted.shape)
        return dist.StudentT(df, fitted, std.expand(fitted.shape), validate_args=False)

    def divergence(self, prior: RegressionPrior) -> Tensor:
        """``KL(self || prior)`` of all parameters of each component, ``(*b, K)``."""
        size, responses = self.precision.shape[-1], self.loc.shape[-1]
        moved = self.coefficients - prior.coefficients
        apart = self.centre - prior.centre
        rise = self.loc - prior.loc - (self.coefficients @ apart[..., None]).squeeze(-1)
        ratio = prior.mean_precision / self.mean_precision
        kappa = torch.where(ratio.isfinite(), prior.mean_precision, 0.0)
        ratio = torch.where(ratio.isfinite(), ratio, 1.0)
        noise_precision = self.concentration[..., None] / self.rate
        quadratic = (moved * (moved @ prior.precision)).sum(-1) + kappa[..., None] * rise.square()
        root = self._root()
        spread = (root * (prior.precision @ root)).sum((-2, -1)) - size
        spread = spread + kappa * (apart[..., None, :] @ root).square().sum((-2, -1)) + ratio - 1 - ratio.log()
        log_dets = _log_det(self.precision) - _log_det(prior.precision)
        of_coefficients = responses * (spread + log_dets) + (noise_precision * quadratic).sum(-1)
        return of_coefficients / 2 + self._noise_divergence(prior)

    def _noise_divergence(self, prior: RegressionPrior) -> Tensor:
        a, b = self.concentration[..., None], prior.concentration[..., None]
        gammas = (a - b) * a.digamma() - a.lgamma() + b.lgamma()
        return (gammas + b * (self.rate / prior.rate).log() + a * (prior.rate - self.rate) / self.rate).sum(-1)

    def log_marginal(self, statistics: RegressionStatistics) -> Tensor:
        """Log density of all responses with these statistics, parameters integrated out, ``(*b, K)``."""
        after = self.posterior(statistics)
        responses = self.loc.shape[-1]
        log_dets = _log_det(self.precision) - _log_det(after.precision)
        log_coefficients = log_dets - (1 + statistics.count / self.mean_precision).log()
        per_response = log_coefficients - statistics.count * math.log(2 * math.pi)
        return responses * per_response / 2 + self._log_noise() - after._log_noise()

    def _log_noise(self) -> Tensor:
        """Log of what makes the inverse gammas integrate to one."""
        concentration = self.concentration[..., None]
        return (concentration * self.rate.log() - concentration.lgamma()).sum(-1)


def least_squares(
    statistics: RegressionStatistics, *, intercept: bool = True, shared_noise: bool = False
) -> RegressionSites:
    """Sites of greatest likelihood; of several solutions the shortest, with variance 0 where the fit is perfect.

    Args:
        statistics: of the rows.
        intercept: whether there is one; if not it is 0.
        shared_noise: whether all responses have one noise variance.

    Example:
        >>> design, response = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0], [5.5]])
        >>> sites = least_squares(RegressionStatistics.of(design, response, torch.ones(1, 3)))
        >>> [round(float(value), 4) for value in sites]
        [0.9167, 2.25, 0.0139]
    """
    count = statistics.count
    if not intercept:
        zero = statistics.count.new_zeros(())
        statistics = statistics.about(zero, zero, count)
    width = statistics.gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    width = torch.where(width > 0, width, 1.0)
    correlation = statistics.gram / (width[..., :, None] * width[..., None, :])
    cross = statistics.cross / width[..., None, :]
    # Columns whose correlation with the others is one up to the rounding of sums get the shortest coefficients.
    rounding = 64 * width.shape[-1] * torch.finfo(count.dtype).eps
    coefficients = cross @ torch.linalg.pinv(correlation, rtol=rounding, hermitian=True)
    explained = (coefficients * (2 * cross - coefficients @ correlation)).sum(-1)
    residual = (statistics.square - explained).clamp_min(0)
    residual = residual.mean(-1, keepdim=True) if shared_noise else residual
    coefficients = coefficients / width[..., None, :]
    fitted = (coefficients @ statistics.design_mean[..., None]).squeeze(-1)
    alpha = statistics.response_mean - fitted if intercept else torch.zeros_like(statistics.response_mean)
    return RegressionSites(alpha, coefficients, residual / count.clamp_min(torch.finfo(count.dtype).tiny)[..., None])


def _log_det(matrix: Tensor) -> Tensor:
    return 2 * safe_cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1)
