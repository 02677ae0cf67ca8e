"""Bayesian mixture of linear regressions: a Pyro program and its closed form, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.errors import DataError, ProgramError
from probmix.family import AbstractConjugateFamily, gather_component
from probmix.linear_regression import RegressionPrior, RegressionSites, least_squares
from probmix.models.mixture import AbstractMixture
from probmix.regression_statistics import RegressionStatistics
from probmix.rows import as_rows

__all__ = ["RegressionFamily", "RegressionMixture"]

_ROWS = 0.01  # observations that the default prior of the coefficients is worth

# A residual variance this small beside the response's is the rounding of sums in float64.
_NEGLIGIBLE = 1e-13


@dataclass(frozen=True)
class RegressionFamily(AbstractConjugateFamily[RegressionPrior, RegressionStatistics]):
    r"""Linear regressions of the last column on the others.

    .. math:: y \mid x, k \sim N(\alpha_k + \beta_k \cdot x, v_k)

    Rows are ``(N, P + 1)``: the design, then the response. "Density of a row" means that of its response.

    Attributes:
        intercept: whether there is one.

    Example:
        >>> rows = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 5.5]])
        >>> family = RegressionFamily()
        >>> family.maximum_likelihood(family.sufficient_statistics(rows, torch.ones(3, 1)))["coefficients"]
        tensor([[2.2500]])
    """

    intercept: bool = True

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes of each site."""
        own = {"coefficients": ("component", "feature"), "noise_var": ("component",)}
        return {"intercept": ("component",), **own} if self.intercept else own

    def num_parameters(self, num_components: int, num_features: int) -> int:
        """Coefficients, intercepts and noise variances; ``num_features`` counts the response as well."""
        return num_components * (num_features + self.intercept)

    # The prior, and the data that it is for.

    def default_prior(self, x: Tensor, num_components: int) -> RegressionPrior:
        """Zellner's prior, scaled to the rows; see `RegressionMixture`."""
        centre = x.mean(0) if self.intercept else x.new_zeros(x.shape[-1])
        rows = x - centre
        moments = rows.mT @ rows / max(len(x) - 1, 1)
        size = x.shape[-1] - 1
        return RegressionPrior(
            centre[:-1],
            centre[-1:],
            x.new_tensor(_ROWS if self.intercept else math.inf),
            x.new_zeros(1, size),
            _ROWS * moments[:-1, :-1],
            x.new_tensor(1.5),
            moments[-1:, -1] / (2 * num_components**2),
        )

    def check(self, x: Tensor, num_components: int, prior: RegressionPrior | None) -> None:
        """Refuse rows that are not finite or too few; for the default prior also a design without full rank.

        Raises:
            DataError: it says which rows or columns.
            ProgramError: a prior of another type, for other data, or improper.
        """
        _check_finite(x)
        if len(x) < num_components:
            raise DataError(
                f"expected at least as many rows as components, got {len(x)} rows for {num_components} components: "
                "lower num_components or add data"
            )
        if prior is None:
            self._check_rank(x)
        else:
            _check_prior(prior.to(x), x.shape[-1] - 1, self.intercept)

    def _check_rank(self, x: Tensor) -> None:
        rows = x - x.mean(0) if self.intercept else x
        width = rows.double().norm(dim=0)
        flat = (width <= 8 * torch.finfo(x.dtype).eps * x.double().norm(dim=0)).nonzero().flatten()
        if len(flat):
            column = "the response" if int(flat[0]) == x.shape[-1] - 1 else f"column {int(flat[0])} of the design"
            raise DataError(
                f"expected columns that vary, got {len(flat)} constant, the first of them {column}: drop it (a column "
                "of ones is what intercept=True is for), or pass component_prior"
            )
        size = x.shape[-1] - 1
        rank = int(torch.linalg.matrix_rank(rows[:, :-1].double() / width[:-1], rtol=1e-7))
        if rank < size:
            raise DataError(
                f"expected a design whose {size} columns are independent, got rank {rank}: drop columns that follow "
                "from others, or pass component_prior"
            )

    # The program.

    def draw_parameters(self, prior: RegressionPrior, num_components: int) -> dict[str, tuple[Tensor, int]]:
        """Draw the noise variance, then the coefficients, then the intercept."""
        with pyro.plate("component", num_components):
            noise = dist.InverseGamma(prior.concentration, prior.rate.squeeze(-1), validate_args=False)
            noise_var = pyro.sample("noise_var", noise)
            drawn = {"noise_var": (noise_var, 0)}
            given = prior.coefficients_prior(noise_var[..., None]).base_dist
            slopes = dist.MultivariateNormal(
                given.loc.squeeze(-2), scale_tril=given.scale_tril.squeeze(-3), validate_args=False
            )
            coefficients = pyro.sample("coefficients", slopes)
            drawn["coefficients"] = (coefficients, 1)
            if self.intercept:
                pinned = prior.intercept_prior(noise_var[..., None], coefficients[..., None, :]).base_dist
                level = dist.Normal(pinned.loc.squeeze(-1), pinned.scale.squeeze(-1), validate_args=False)
                drawn["intercept"] = (pyro.sample("intercept", level), 0)
        return drawn

    def row(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Refuse: a design has no distribution, and a response none without its design.

        Raises:
            ProgramError: always.
        """
        raise ProgramError("a regression has no distribution of whole rows: use emit, or predict and draw_responses")

    def emit(self, parameters: Mapping[str, Tensor], x: Tensor) -> None:
        """Run the Pyro statement of the responses, ``"y"``."""
        fitted = (parameters["coefficients"] * x[..., :-1]).sum(-1) + parameters.get("intercept", 0.0)
        normal = dist.Normal(fitted, parameters["noise_var"].sqrt(), validate_args=False)
        pyro.sample("y", normal, obs=x[..., -1])

    def draw_rows(self, sites: Mapping[str, Tensor], assignment: Tensor, generator: torch.Generator) -> Tensor:
        """Refuse: see ``row``.

        Raises:
            ProgramError: always.
        """
        raise ProgramError(
            "RegressionMixture draws responses for a design, not whole rows: "
            "write model.draw_responses(x, sites, seed=0) instead of model.sample(n, sites, seed=0)"
        )

    # The closed form.

    def _unpack(self, sites: Mapping[str, Tensor]) -> RegressionSites:
        noise_var = sites["noise_var"][..., None]
        level = sites["intercept"][..., None] if self.intercept else torch.zeros_like(noise_var)
        return RegressionSites(level, sites["coefficients"][..., None, :], noise_var)

    def _pack(self, sites: RegressionSites) -> dict[str, Tensor]:
        named = {"coefficients": sites.coefficients.squeeze(-2), "noise_var": sites.noise_var.squeeze(-1)}
        return {"intercept": sites.intercept.squeeze(-1), **named} if self.intercept else named

    def fitted(self, design: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Mean response of each row in each component, ``(N, P) -> (*b, N, K)``."""
        return self._unpack(sites).fitted(design).squeeze(-1).mT

    def log_prob(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Log density of each response given its design."""
        noise_var = sites["noise_var"][..., None, :]
        residual = x[:, -1:] - self.fitted(x[:, :-1], sites)
        return -(residual.square() / noise_var + noise_var.log() + math.log(2 * math.pi)) / 2

    def log_prior(self, sites: Mapping[str, Tensor], prior: RegressionPrior) -> Tensor:
        """Sum over the components."""
        return prior.log_prob(self._unpack(sites)).sum(-1)

    def sufficient_statistics(
        self, x: Tensor, responsibilities: Tensor, sites: Mapping[str, Tensor] | None = None
    ) -> RegressionStatistics:
        """Weighted moments of design and response about their means."""
        return RegressionStatistics.of(x[:, :-1], x[:, -1:], responsibilities.mT)

    def singular(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Tell which components pass through their rows exactly, up to rounding."""
        noise_var = sites["noise_var"]
        return ~(noise_var > _NEGLIGIBLE * noise_var.amax(-1, keepdim=True)) | ~self._pack_finite(sites)

    def _pack_finite(self, sites: Mapping[str, Tensor]) -> Tensor:
        return sites["coefficients"].isfinite().all(-1)

    def posterior(self, prior: RegressionPrior, statistics: RegressionStatistics) -> RegressionPrior:
        """See `probmix.linear_regression.RegressionPrior`."""
        return prior.posterior(statistics)

    def mode(self, prior: RegressionPrior) -> dict[str, Tensor]:
        """Joint mode."""
        return self._pack(prior.mode())

    def mean(self, prior: RegressionPrior) -> dict[str, Tensor]:
        """Mean of each site."""
        return self._pack(prior.mean())

    def maximum_likelihood(self, statistics: RegressionStatistics) -> dict[str, Tensor]:
        """Weighted least squares, divisor n."""
        return self._pack(least_squares(statistics, intercept=self.intercept))

    def sample(self, prior: RegressionPrior) -> dict[str, Tensor]:
        """Draw noise variance, coefficients and intercept."""
        return self._pack(prior.sample())

    def expected_log_prob(self, x: Tensor, prior: RegressionPrior) -> Tensor:
        """Mean log density of each response."""
        return prior.expected_log_prob(x[:, :-1], x[:, -1:]).mT

    def divergence(self, posterior: RegressionPrior, prior: RegressionPrior) -> Tensor:
        """Sum over the components."""
        return posterior.divergence(prior).sum(-1)

    def predictive(self, prior: RegressionPrior) -> dist.TorchDistribution:
        """Refuse: see ``row``.

        Raises:
            ProgramError: always.
        """
        raise ProgramError("a response has no distribution without its design: use log_predictive(x, prior)")

    def log_predictive(self, x: Tensor, prior: RegressionPrior) -> Tensor:
        """Student-t of each response given its design."""
        return prior.predictive(x[:, :-1]).log_prob(x[:, -1:]).squeeze(-1).mT

    def log_marginal(self, prior: RegressionPrior, statistics: RegressionStatistics) -> Tensor:
        """Log density of all responses given the design."""
        return prior.log_marginal(statistics).sum(-1)


@dataclass(frozen=True)
class RegressionMixture(AbstractMixture):
    r"""Bayesian mixture of K linear regressions with a conjugate prior.

    .. math:: w \sim \mathrm{Dirichlet}(a), \quad p(y_n \mid x_n) = \sum_k w_k N(y_n \mid \alpha_k + \beta_k \cdot x_n,
              v_k)

    The data are two tables: ``infer(RegressionMixture(2), (x, y), EM(), seed=0)``. The weights do not depend on x: a
    row's design says nothing about its component, only design and response together do. Sites, after any leading batch
    ``*b``: ``weights`` ``(K,)``, ``intercept`` ``(K,)``, ``coefficients`` ``(K, P)``, ``noise_var`` ``(K,)``.
    ``log_prob``, ``responsibilities`` and ``labels`` take the merged rows, ``model.rows(x, y)``.

    The default prior is Zellner's, :math:`\beta \sim N(0, v \Lambda^{-1})` with the covariance of the design times 0.01
    as :math:`\Lambda` (worth a hundredth of a row, g = 100 N), the mean response at the mean design with as much
    weight, and :math:`v` inverse gamma with concentration 1.5 and rate :math:`\widehat{\mathrm{var}}(y) / (2 K^2)`, as
    in `probmix.models.GaussianMixture` for one column. Without intercept the moments are about zero.

    Args:
        num_components: K.
        intercept: whether every regression has one; if not, there is no such site.
        weight_concentration: :math:`a`, the same for every component; 1 is uniform.
        component_prior: a `probmix.linear_regression.RegressionPrior` of the user's own, with one response (M = 1).

    Raises:
        ProgramError: a setting is out of range, or the prior is of another type.

    Source:
        De Veaux (1989), Mixtures of linear regressions, Computational Statistics and Data Analysis 8, 227-245; Zellner
        (1986), On assessing prior distributions and Bayesian regression analysis with g-prior distributions.

    Example:
        >>> model = RegressionMixture(2)
        >>> x = torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0, 2.0])
        >>> y = torch.tensor([0.0, 1.0, 2.1, 5.0, 3.0, 1.1])
        >>> statistics = model.sufficient_statistics(model.rows(x, y), torch.eye(2).repeat_interleave(3, 0))
        >>> model.maximise(statistics, None)["coefficients"]
        tensor([[ 1.0500],
                [-1.9500]])
    """

    num_components: int
    intercept: bool = True
    weight_concentration: float = 1.0
    component_prior: RegressionPrior | None = None

    def __post_init__(self) -> None:
        self._check_settings()
        if not isinstance(self.component_prior, RegressionPrior | None):
            raise ProgramError(
                f"component_prior: expected RegressionPrior, got {type(self.component_prior).__name__}: "
                "build the prior with probmix.linear_regression.RegressionPrior"
            )

    @property
    def family(self) -> RegressionFamily:
        """The conjugate family of the components."""
        return RegressionFamily(self.intercept)

    @property
    def observed_dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes of the responses."""
        return {"y": ("data",)}

    def rows(self, *data: Tensor) -> Tensor:
        """Return design and response as one table ``(N, P + 1)``; such a table passes as it is.

        Raises:
            DataError: the two tables do not belong together.
        """
        tables = [as_rows(table) for table in data]
        if len(tables) > 2 or not tables:
            raise DataError(f"expected a design and a response, got {len(tables)} tables: pass (x, y)")
        if len(tables) == 2:
            _check_pair(*tables)
        rows = torch.cat(tables, -1)
        if rows.shape[-1] < 2:
            raise DataError("expected a design and a response, got a single column: pass (x, y)")
        return rows

    def observe(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return design ``(N, P)`` and response ``(N,)``, checked for what would spoil a fit.

        Raises:
            DataError: wrong type or shape, or data that no regression can be fitted to.
            ProgramError: a ``component_prior`` that is for other data, or improper.
        """
        rows = self.rows(x, y)
        self.family.check(rows, self.num_components, self.component_prior)
        return rows[:, :-1].contiguous(), rows[:, -1].contiguous()

    def predict(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Mean response of rows of a design, ``(N, P) -> (*b, N)``."""
        weights = sites["weights"] / sites["weights"].sum(-1, keepdim=True)
        return (self.family.fitted(as_rows(x), sites) @ weights[..., None]).squeeze(-1)

    def draw_responses(
        self, x: Tensor, sites: Mapping[str, Tensor], *, seed: int, return_assignments: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw a response for each row of a design, ``(N, P) -> (*b, N)``, and on request its component.

        The draws depend on ``seed`` alone; torch's global random state is neither used nor changed.
        """
        design, weights = as_rows(x), sites["weights"]
        generator = torch.Generator(weights.device).manual_seed(seed)
        flat = weights.reshape(-1, weights.shape[-1])
        assignment = torch.multinomial(flat, len(design), replacement=True, generator=generator)
        assignment = assignment.reshape(*weights.shape[:-1], len(design))
        fitted = self.family.fitted(design, sites).gather(-1, assignment[..., None]).squeeze(-1)
        noise = torch.randn(fitted.shape, generator=generator, dtype=fitted.dtype, device=fitted.device)
        y = fitted + gather_component(sites["noise_var"], assignment, 0).sqrt() * noise
        return (y, assignment) if return_assignments else y


def _check_finite(x: Tensor) -> None:
    bad = (~x.isfinite().all(-1)).nonzero().flatten()
    if len(bad):
        raise DataError(
            f"expected finite numbers, got {len(bad)} of {len(x)} rows with NaN or infinity, the first at index "
            f"{int(bad[0])}: drop those rows from x and y, or impute them"
        )


def _check_pair(x: Tensor, y: Tensor) -> None:
    if y.shape[-1] != 1 or len(x) != len(y):
        raise DataError(
            f"expected one response for each of {len(x)} rows of x, got y of shape {tuple(y.shape)}: "
            "pass y as a vector as long as x (several responses: fit one model for each)"
        )
    if x.dtype != y.dtype:
        raise DataError(f"expected x and y of one dtype, got {x.dtype} and {y.dtype}: write y.to(x)")


def _check_prior(prior: RegressionPrior, size: int, intercept: bool) -> None:
    got = {"centre": prior.centre.shape[-1:], "coefficients": prior.coefficients.shape[-2:]}
    expected = {"centre": (size,), "coefficients": (1, size)}
    wrong = [name for name in expected if tuple(got[name]) != expected[name]]
    if wrong or tuple(prior.precision.shape[-2:]) != (size, size) or prior.rate.shape[-1:] != (1,):
        raise ProgramError(
            f"component_prior: expected centre to end in ({size},), coefficients in (1, {size}), precision in "
            f"({size}, {size}) and rate in (1,) for {size} columns of the design, got {tuple(prior.centre.shape)}, "
            f"{tuple(prior.coefficients.shape)}, {tuple(prior.precision.shape)} and {tuple(prior.rate.shape)}: "
            "give it the columns of the data"
        )
    good = {
        "mean_precision": (prior.mean_precision > 0) & (prior.mean_precision.isfinite() == intercept),
        "precision": torch.linalg.cholesky_ex(prior.precision).info == 0,
        "concentration": prior.concentration > 0,
        "rate": prior.rate > 0,
    }
    bad = [name for name, holds in good.items() if not holds.all()]
    if bad:
        raise ProgramError(
            "component_prior: expected a proper prior (precision positive definite, concentration and rate above 0, "
            "mean_precision above 0, and infinite where there is no intercept), got an improper "
            f"{' and '.join(bad)}: change it"
        )
