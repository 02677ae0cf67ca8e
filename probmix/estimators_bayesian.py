"""Variational Bayes of a mixture of Gaussians as a scikit-learn estimator."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from probmix.arguments import Arguments
from probmix.conjugate import GaussianPrior, NormalInverseGamma, NormalInverseWishart
from probmix.errors import DataError, ProgramError
from probmix.estimators_base import AbstractMixtureEstimator, ConvergenceWarning, EstimatorFitError
from probmix.estimators_inputs import shaped
from probmix.estimators_starts import Start, first_responsibilities
from probmix.gaussian_family import GaussianFamily
from probmix.inference.method import Problem
from probmix.inference.stopping import still_to_gain
from probmix.inference.vb import VB, VBState
from probmix.models.gaussian_mixture import GaussianMixture as GaussianModel
from probmix.models.mixture import MixturePrior
from probmix.nested import map_tensors
from probmix.statistics import Statistics
from probmix.weight_priors import DirichletWeights, StickBreakingWeights

__all__ = ["BayesianGaussianMixture"]

_PRIORS: Mapping[str, Literal["stick_breaking", "dirichlet"]] = {
    "dirichlet_process": "stick_breaking",
    "dirichlet_distribution": "dirichlet",
}
_COVARIANCES = ("full", "tied", "diag", "spherical")


class BayesianGaussianMixture(AbstractMixtureEstimator):
    r"""Mixture of Gaussians fitted by variational Bayes, as `sklearn.mixture.BayesianGaussianMixture`.

    With covariance_type="full" and weight_concentration_prior_type="dirichlet_distribution" the algorithm is that of
    scikit-learn, number by number (but for ``reg_covar``, see there). Differences, all meant:

    - "tied", "diag" and "spherical": the expected log determinant is that of the inverse Wishart or inverse gamma
      distribution in question (scikit-learn takes the one of a full matrix for all). Each update of the parameters from
      given responsibilities is the same.
    - "dirichlet_process": cut off at K, so the last stick is what is left over, and the second row of
      ``weight_concentration_`` ends in 0 (scikit-learn breaks it once more, and normalises the weights afterwards).
    - ``lower_bound_`` is the evidence lower bound with all its constants, in nats, so that fits with other
      ``n_components`` or priors can be compared; ``log_evidence_`` adds the log number of labellings of the components.
    - ``score_samples`` is the log of the posterior predictive density, which integrates to one.
    - ``tol`` is compared with an estimate of what is left to gain, not with the last gain.

    Args:
        n_components: K, the most components that there can be.
        covariance_type: ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.
        tol: the largest estimated distance to the optimum, nats of the lower bound.
        reg_covar: added once to the diagonal of ``covariance_prior_``, in squared units of the data (scikit-learn adds
            it to the covariance of the rows in each iteration).
        max_iter: at most so many iterations; 0 leaves the start as it is.
        n_init: starts, of which the best is kept.
        init_params: ``"kmeans"``, ``"k-means++"``, ``"random"``, ``"random_from_data"`` or ``"hierarchical"``.
        weight_concentration_prior_type: ``"dirichlet_process"`` or ``"dirichlet_distribution"``.
        weight_concentration_prior: of the sticks, or of each component; None: 1 / K.
        mean_precision_prior: observations that the prior mean is worth; None: 1.
        mean_prior: prior mean, ``(D,)``; None: the mean of the rows.
        degrees_of_freedom_prior: of a component, above D - 1; None: D.
        covariance_prior: prior scatter of a component, in the shape of one covariance; None: that of the rows.
        random_state: of the starts and of ``sample``.
        warm_start: go on from the last fit.
        verbose: 1 prints a summary; 2 the bounds as well.
        verbose_interval: iterations from one printed bound to the next.
        device: where to compute, such as ``"cuda"``; None: the host.

    Attributes:
        weights_: mean weights, ``(K,)``.
        means_: means, ``(K, D)``.
        covariances_: scatter over degrees of freedom, in the shapes of `GaussianMixture`.
        precisions_: their inverses, which are the mean precisions.
        precisions_cholesky_: U with :math:`\Sigma^{-1} = U U^T`, or 1 over the standard deviations.
        weight_concentration_: ``(K,)``, or for the process the two rows of the sticks, a tuple.
        mean_precision_: ``(K,)``.
        degrees_of_freedom_: ``(K,)``, or one number for tied.
        weight_concentration_prior_: and ``mean_precision_prior_``, ``mean_prior_``, ``degrees_of_freedom_prior_``,
            ``covariance_prior_``: the priors as used.
        n_effective_: components that hold one row or more.
        log_evidence_: ``lower_bound_`` and, where the prior is the same for all, the log number of labellings.
        converged_: whether the best start did.
        n_iter_: its iterations.
        lower_bound_: its evidence lower bound.
        lower_bounds_: the same after each iteration.
        n_features_in_: D.
        feature_names_in_: names of the columns, if they had any.

    Example:
        >>> from probmix.datasets import load_faithful
        >>> bgm = BayesianGaussianMixture(n_components=6, weight_concentration_prior=0.01, random_state=0, max_iter=500)
        >>> bgm.fit(load_faithful().x.numpy()).n_effective_
        2
    """

    precisions_: NDArray
    precisions_cholesky_: NDArray
    weight_concentration_: NDArray | tuple[NDArray, NDArray]
    covariance_prior_: Any
    _statistics: Statistics  # of the best start, for warm_start
    _positive = ("weight_concentration_prior", "mean_precision_prior", "degrees_of_freedom_prior")

    def __init__(
        self,
        *,
        n_components: int = 1,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: Start = "kmeans",
        weight_concentration_prior_type: str = "dirichlet_process",
        weight_concentration_prior: float | None = None,
        mean_precision_prior: float | None = None,
        mean_prior: ArrayLike | None = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: ArrayLike | None = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        device: str | None = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.device = device

    def model(self) -> GaussianModel:
        """Return the probmix model with the priors that were used."""
        return GaussianModel(
            self.n_components,
            self._model_name,
            weight_concentration=getattr(self, "weight_concentration_prior_", 1.0),
            component_prior=self._component_prior() if hasattr(self, "covariance_prior_") else None,
            weight_prior=_PRIORS[self.weight_concentration_prior_type],
        )

    def _check_settings(self) -> None:
        if self.weight_concentration_prior_type not in _PRIORS:
            raise ProgramError(
                f"weight_concentration_prior_type: expected {' or '.join(map(repr, _PRIORS))}, got "
                f"{self.weight_concentration_prior_type!r}. Pass one of these names."
            )
        super()._check_settings()
        if self.covariance_type not in _COVARIANCES:
            raise ProgramError(
                f"covariance_type: expected one of {', '.join(_COVARIANCES)}, which have a conjugate prior, got "
                f"{self.covariance_type!r}. Take one of these, or GaussianMixture, which has no prior."
            )

    def _fit(self, x: Tensor, row_weights: Tensor | None, random: np.random.RandomState) -> None:
        self._set_priors(x, row_weights)
        model = self.model()
        problem = Problem(model, Arguments.of(x).checked_by(model), 0)
        table = model.table(model.rows(*problem.arguments.args), row_weights)
        going_on = self.warm_start and hasattr(self, "converged_")
        statistics = self._statistics if going_on else self._starts(model, table.x, row_weights, random)
        statistics = map_tensors(lambda value: value.to(x), statistics)
        active = torch.ones_like(statistics.count[..., 0], dtype=torch.bool)
        state = VBState(statistics, (), active, model.prior(table.x), table)
        vb = VB(max_steps=max(1, self.max_iter), tolerance=max(self.tol, np.finfo(float).tiny))
        while self.max_iter and vb.status(problem, state) is None:
            state = vb.step(problem, state)
        last = vb.step(problem, state._replace(active=active))  # one more for the bound at the end
        bounds = torch.stack(last.objectives, -1).double().cpu()
        best = int(bounds[:, -1].nan_to_num(-torch.inf).argmax())
        self._statistics = map_tensors(lambda value: value[best : best + 1], state.statistics)
        self._keep(model.posterior(state.prior, map_tensors(lambda value: value[best], state.statistics)))
        self._judge(bounds[best][bounds[best].isfinite()], x.dtype, going_on)

    def _judge(self, bounds: Tensor, dtype: torch.dtype, going_on: bool) -> None:
        if not len(bounds):
            raise EstimatorFitError(
                f"the lower bound is not finite in any of {self.n_init} starts: the prior is improper or numbers "
                "overflow. Scale the columns, or raise reg_covar or covariance_prior."
            )
        self.n_iter_ = len(bounds) - 1
        self.lower_bounds_ = bounds[1:].tolist()
        self.lower_bound_ = float(bounds[-1])
        count = self._statistics.count[0]
        self.n_effective_ = int((count >= 1).sum())
        self.log_evidence_ = self.lower_bound_
        if self.weight_concentration_prior_type == "dirichlet_distribution":
            empty = self.n_components - self.n_effective_
            self.log_evidence_ += math.lgamma(self.n_components + 1) - math.lgamma(empty + 1)
        trail = torch.cat([self._trail[:-1], bounds]) if going_on else bounds
        self._trail = trail[-3:]
        self.converged_ = bool(still_to_gain(list(trail.to(dtype)[:, None])) <= self.tol)
        self._report(self.lower_bounds_)
        if not self.converged_ and self.max_iter:
            warnings.warn(
                f"the best of {self.n_init} starts did not converge in max_iter={self.max_iter} iterations to "
                f"tol={self.tol:g}. Raise max_iter or tol, or try another init_params.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _starts(
        self, model: GaussianModel, x: Tensor, row_weights: Tensor | None, random: np.random.RandomState
    ) -> Statistics:
        shares = torch.stack(
            [
                first_responsibilities(x, self.n_components, self.init_params, random, row_weights)
                for _ in range(self.n_init)
            ]
        )
        return model.sufficient_statistics(x, shares if row_weights is None else shares * row_weights[:, None])

    # Priors, and the distribution of the parameters, in scikit-learn's units: of one component.

    def _set_priors(self, x: Tensor, row_weights: Tensor | None) -> None:
        size = x.shape[1]
        self.weight_concentration_prior_ = self.weight_concentration_prior or 1 / self.n_components
        self.mean_precision_prior_ = self.mean_precision_prior or 1.0
        self.degrees_of_freedom_prior_ = (
            size if self.degrees_of_freedom_prior is None else self.degrees_of_freedom_prior
        )
        if self.degrees_of_freedom_prior_ <= size - 1:
            raise ProgramError(
                f"degrees_of_freedom_prior: expected a number above {size - 1} for {size} columns, got "
                f"{self.degrees_of_freedom_prior_:g}. Raise it."
            )
        mean, cov = _moments(x, row_weights)
        self.mean_prior_ = mean if self.mean_prior is None else shaped("mean_prior", self.mean_prior, (size,))
        spreads = {"diag": np.diagonal(cov).copy(), "spherical": float(np.diagonal(cov).mean())}
        spread = spreads.get(self.covariance_type, cov)
        if self.covariance_prior is not None:
            spread = shaped("covariance_prior", self.covariance_prior, np.asarray(spread).shape)
            _require_positive(spread, self.covariance_type)
        self.covariance_prior_ = spread

    @property
    def _numbers(self) -> int:
        """How many of the model's degrees of freedom make one of scikit-learn's (per component and feature)."""
        if self.covariance_type == "tied":
            return self.n_components
        return self.n_features_in_ if self.covariance_type == "spherical" else 1

    def _component_prior(self) -> GaussianPrior:
        covariances = np.asarray(self.covariance_prior_, np.float64)
        ridge = self.reg_covar * (np.eye(self.n_features_in_) if covariances.ndim == 2 else 1.0)
        dof = np.asarray(self.degrees_of_freedom_prior_, np.float64)
        return self._component(self.mean_prior_, self.mean_precision_prior_, dof, covariances + ridge)

    def _component(self, loc: ArrayLike, precision: ArrayLike, dof: NDArray, scatter: NDArray) -> GaussianPrior:
        """Distribution of a mean and a spread, from degrees of freedom and scatter of one component."""
        values = [torch.as_tensor(np.asarray(value, np.float64), device=self.device) for value in
                  (loc, precision, self._numbers * dof, self._numbers * scatter)]  # fmt: skip
        if self.covariance_type in ("full", "tied"):
            return NormalInverseWishart(*values)
        return NormalInverseGamma(values[0], values[1], values[2] / 2, values[3] / 2)

    def _keep(self, posterior: MixturePrior) -> None:
        component, weights = posterior.component, posterior.weights
        assert isinstance(weights, StickBreakingWeights | DirichletWeights)
        if isinstance(weights, StickBreakingWeights):
            end = torch.ones_like(weights.first[:1]) if len(weights.first) else component.loc.new_ones(1)
            last = 1 + self._statistics.count[0, -1:]
            self.weight_concentration_ = (
                _array(torch.cat([weights.first, last])),
                _array(torch.cat([weights.second, 0 * end])),
            )
        else:
            self.weight_concentration_ = _array(weights.concentration)
        self.weights_ = _array(weights.mean())
        self.mean_precision_ = _array(component.mean_precision)
        self.means_ = _array(component.loc)
        self.degrees_of_freedom_ = _array(component.dof / self._numbers)
        divisor = component.dof[(...,) + (None,) * (component.scatter.ndim - component.dof.ndim)]
        self.covariances_ = _array(component.scatter / divisor)
        self._set_precisions()

    def _posterior(self, x: Tensor) -> MixturePrior:
        """The fitted distribution of the parameters, from the attributes."""
        dof = np.asarray(self.degrees_of_freedom_, np.float64)
        scatter = dof[(...,) + (None,) * (self.covariances_.ndim - dof.ndim)] * self.covariances_
        component = self._component(self.means_, self.mean_precision_, dof, scatter).to(x)
        rows = [torch.as_tensor(row).to(x) for row in np.atleast_2d(np.asarray(self.weight_concentration_))]
        if self.weight_concentration_prior_type == "dirichlet_process":
            return MixturePrior(StickBreakingWeights(rows[0][:-1], rows[1][:-1]), component)
        return MixturePrior(DirichletWeights(rows[0]), component)

    @property
    def _family(self) -> GaussianFamily:
        family = self.model().family
        assert isinstance(family, GaussianFamily)  # the covariances that have passed _check_settings are conjugate
        return family

    def _log_parts(self, x: Tensor) -> Tensor:
        posterior = self._posterior(x)
        expected = self._family.expected_log_prob(x, posterior.component)
        return posterior.weights.expected_log()[None] + expected

    def _log_density(self, x: Tensor) -> Tensor:
        posterior = self._posterior(x)
        log_weights = posterior.weights.mean().log()
        return (log_weights + self._family.log_predictive(x, posterior.component)).logsumexp(-1)


def _array(value: Tensor) -> NDArray:
    return value.cpu().numpy().copy()


def _moments(x: Tensor, row_weights: Tensor | None) -> tuple[NDArray, NDArray]:
    """Mean and covariance of the rows (divisor n - 1), in float64."""
    rows = x.double().cpu().numpy()
    weights = None if row_weights is None else row_weights.double().cpu().numpy()
    mean = np.average(rows, axis=0, weights=weights)
    centred = rows - mean
    scatter = (centred if weights is None else centred * weights[:, None]).T @ centred
    return mean, scatter / ((len(rows) if weights is None else weights.sum()) - 1)


def _require_positive(spread: NDArray, covariance_type: str) -> None:
    least = np.linalg.eigvalsh(spread).min() if spread.ndim == 2 else spread.min()
    if not least > 0 or (spread.ndim == 2 and not np.allclose(spread, spread.T)):
        raise DataError(
            f"covariance_prior: expected a symmetric positive definite matrix or numbers above 0 for covariance_type="
            f"{covariance_type!r}, got a least {'eigenvalue' if spread.ndim == 2 else 'value'} of {least:.3g}."
            " Raise it."
        )
