"""Maximum likelihood of a mixture of Gaussians as a scikit-learn estimator."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from probmix.conjugate import GaussianPrior, NormalInverseGamma, NormalInverseWishart
from probmix.errors import DataError
from probmix.estimators_base import AbstractMixtureEstimator, ConvergenceWarning, EstimatorFitError
from probmix.estimators_inputs import checked_weights, shaped
from probmix.estimators_starts import Start, first_responsibilities
from probmix.inference.em import EM
from probmix.inference.infer import infer
from probmix.inference.stopping import still_to_gain
from probmix.models.gaussian_mixture import GaussianMixture as GaussianModel
from probmix.posterior import PointPosterior
from probmix.status import FitWarning

__all__ = ["GaussianMixture"]


class GaussianMixture(AbstractMixtureEstimator):
    r"""Mixture of Gaussians fitted by maximum likelihood, as `sklearn.mixture.GaussianMixture`.

    .. math:: p(x) = \sum_k w_k \, N(x \mid \mu_k, \Sigma_k)

    Differences from scikit-learn, all meant:

    - ``tol`` is compared with Aitken's estimate of what is left to gain as well as with the last gain: slow fits go on;
    - ``lower_bounds_`` are the bounds after each iteration, so that the last one is ``score(X)``;
    - a start that collapses is dropped as long as another does not;
    - ``weights_init`` that do not sum to one exactly are normalised;
    - the starts "k-means++" and "random_from_data" give each row to the nearest seed.

    Args:
        n_components: K.
        covariance_type: ``"full"``, ``"tied"``, ``"diag"``, ``"spherical"``, or mclust's name, such as ``"VEI"``, for
            which ``covariances_`` are always dense, ``(K, D, D)``.
        tol: the largest estimated distance to the optimum, nats of the mean log-likelihood of a row.
        reg_covar: added to every variance after each iteration, in squared units of the data.
        max_iter: at most so many iterations; 0 leaves the start as it is.
        n_init: starts, of which the best is kept.
        init_params: ``"kmeans"``, ``"k-means++"``, ``"random"``, ``"random_from_data"`` or ``"hierarchical"``.
        weights_init: weights to start from, ``(K,)``.
        means_init: means to start from, ``(K, D)``.
        precisions_init: inverse covariances to start from, in the shape of ``precisions_``.
        random_state: of the starts and of ``sample``.
        warm_start: go on from the last fit.
        verbose: 1 prints a summary and shows a progress bar on a terminal; 2 prints the bounds as well.
        verbose_interval: iterations from one printed bound to the next.
        device: where to compute, such as ``"cuda"``; None: the host.

    Attributes:
        weights_: ``(K,)``.
        means_: ``(K, D)``.
        covariances_: ``(K, D, D)`` (full), ``(D, D)`` (tied), ``(K, D)`` (diag), ``(K,)`` (spherical).
        precisions_: their inverses.
        precisions_cholesky_: U with :math:`\Sigma^{-1} = U U^T`, or 1 over the standard deviations.
        converged_: whether the best start did.
        n_iter_: its iterations.
        lower_bound_: its mean log-likelihood.
        lower_bounds_: the same after each iteration.
        n_features_in_: D.
        feature_names_in_: names of the columns, if they had any.

    Example:
        >>> from probmix.datasets import load_faithful
        >>> gm = GaussianMixture(n_components=2, random_state=0).fit(load_faithful().x.numpy())
        >>> gm.weights_.round(2), gm.converged_
        (array([0.36, 0.64]), True)
    """

    precisions_: NDArray
    precisions_cholesky_: NDArray

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: Start = "kmeans",
        weights_init: ArrayLike | None = None,
        means_init: ArrayLike | None = None,
        precisions_init: ArrayLike | None = None,
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
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.device = device

    @classmethod
    def from_parameters(
        cls,
        weights: ArrayLike,
        means: ArrayLike,
        covariances: ArrayLike,
        *,
        covariance_type: str = "full",
        random_state: Any = None,
        device: str | None = None,
    ) -> Self:
        """Return an estimator with these parameters, as if fitted: to predict, to score and to sample.

        Args:
            weights: ``(K,)``; normalised if they do not sum to one.
            means: ``(K, D)``.
            covariances: in the shape of ``covariances_``.
            covariance_type: as above.
            random_state: of ``sample``.
            device: as above.

        Raises:
            DataError: parameters of shapes that do not fit each other, or weights below 0.
            EstimatorFitError: a covariance is not positive definite.

        Example:
            >>> gm = GaussianMixture.from_parameters([0.5, 0.5], [[0.0], [9.0]], [[[1.0]], [[1.0]]])
            >>> gm.predict([[1.0], [8.0]])
            array([0, 1])
        """
        weights, means = np.atleast_1d(np.asarray(weights, float)), np.atleast_2d(np.asarray(means, float))
        gm = cls(len(weights), covariance_type=covariance_type, random_state=random_state, device=device)
        gm._check_settings()
        gm.n_features_in_ = means.shape[1]
        gm.weights_ = checked_weights("weights", weights, len(weights))
        gm.means_ = shaped("means", means, (len(weights), means.shape[1]))
        gm.covariances_ = shaped("covariances", np.asarray(covariances, float), gm._covariance_shape)
        gm._set_precisions()
        gm.converged_, gm.n_iter_, gm.lower_bound_, gm.lower_bounds_ = True, 0, float("nan"), []
        return gm

    def _fit(self, x: Tensor, row_weights: Tensor | None, random: np.random.RandomState) -> None:
        total = float(len(x) if row_weights is None else row_weights.sum())
        going_on = self.warm_start and hasattr(self, "converged_")
        starts = self._last(x) if going_on else self._starts(x, row_weights, random)
        if self.max_iter == 0:
            self._keep(_pick(starts, 0))
            self.converged_, self.n_iter_, self.lower_bound_, self.lower_bounds_ = False, 0, float("-inf"), []
            return
        posterior, bounds = self._ascend(x, row_weights, starts, total)
        self._keep(posterior.sites())
        self.converged_ = self._close(bounds, total, going_on)
        self.n_iter_ = len(bounds) - 1
        self.lower_bounds_ = (bounds[1:].double() / total).tolist()
        self.lower_bound_ = self.lower_bounds_[-1]
        self._report(self.lower_bounds_, per_row=" per row")
        if not self.converged_:
            warnings.warn(
                f"the best of {self.n_init} starts did not converge in max_iter={self.max_iter} iterations to "
                f"tol={self.tol:g}. Raise max_iter or tol, or try another init_params.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _ascend(
        self, x: Tensor, row_weights: Tensor | None, starts: Mapping[str, Tensor], total: float
    ) -> tuple[PointPosterior, Tensor]:
        em = EM(
            init=starts,
            objective="ml",
            max_steps=self.max_iter,
            tolerance=max(self.tol * total, np.finfo(float).tiny),
            row_weights=row_weights,
            ridge_var=self.reg_covar,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # said in scikit-learn's words below
            posterior = infer(self._fitted_model(x), x, em, seed=0, progress=bool(self.verbose), throw=False)
        if posterior.status.state == "failed":
            raise EstimatorFitError(
                f"{posterior.status.message} Or raise reg_covar (now {self.reg_covar:g}, in squared units of the data)."
            )
        assert isinstance(posterior, PointPosterior)
        bounds = posterior.history["objective"][posterior.objectives.nan_to_num(-torch.inf).argmax()]
        return posterior, bounds[bounds.isfinite()].cpu()

    def _fitted_model(self, x: Tensor) -> GaussianModel:
        """The model with a prior that is not used: maximum likelihood can do with columns that the default cannot."""
        return GaussianModel(self.n_components, self._model_name, component_prior=_any_prior(self._model_name, x))

    def _close(self, bounds: Tensor, total: float, going_on: bool) -> bool:
        """Whether the fit is as close to its optimum as asked for, the last bounds of a fit before it included."""
        trail = bounds
        if going_on and torch.isclose(bounds[0], self._trail[-1].to(bounds), rtol=1e-6):
            trail = torch.cat([self._trail[:-1].to(bounds), bounds])
        self._trail = trail[-3:]
        # EM has not seen the last value when it stops, and a warm start has not seen those before it
        return any(self._settled(values, total) for values in (trail, trail[:-1]))

    def _settled(self, bounds: Tensor, total: float) -> bool:
        if len(bounds) < 3:
            return False
        left = float(still_to_gain(list(bounds[-3:, None])))
        return max(left, abs(float(bounds[-1] - bounds[-2]))) <= self.tol * total

    # Starts.

    def _last(self, x: Tensor) -> dict[str, Tensor]:
        return {name: value.to(x)[None] for name, value in self.sites().items()}

    def _starts(self, x: Tensor, row_weights: Tensor | None, random: np.random.RandomState) -> dict[str, Tensor]:
        given = self._given(x)
        if len(given) == 3:
            return {name: value[None] for name, value in given.items()}
        drawn = [self._start(x, row_weights, random) for _ in range(self.n_init)]
        sites = {name: torch.stack([start[name] for start in drawn]) for name in drawn[0]}
        sites |= {name: value.expand(self.n_init, *value.shape) for name, value in given.items()}
        singular = self._fitted_model(x).singular_components(sites).any(-1)
        if singular.all():
            raise EstimatorFitError(
                f"a component collapsed onto too few distinct points in all {self.n_init} starts. Lower n_components "
                f"(now {self.n_components}) or raise reg_covar (now {self.reg_covar:g}, in squared units of the data)."
            )
        return {name: value[~singular] for name, value in sites.items()}

    def _start(self, x: Tensor, row_weights: Tensor | None, random: np.random.RandomState) -> dict[str, Tensor]:
        share = first_responsibilities(x, self.n_components, self.init_params, random, row_weights)
        share = share if row_weights is None else share * row_weights[:, None]
        model = self._fitted_model(x)
        return self._widened(model.maximise(model.sufficient_statistics(x, share), None))

    def _widened(self, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        name, axes = self._spread_axes
        ridge = (
            self.reg_covar * torch.eye(sites["loc"].shape[-1]).to(sites["loc"])
            if "feature_bis" in axes
            else self.reg_covar
        )
        return sites | {name: sites[name] + ridge}

    def _given(self, x: Tensor) -> dict[str, Tensor]:
        """The parameters that the user wants to start from, checked."""
        given: dict[str, NDArray] = {}
        size = x.shape[1]
        if self.weights_init is not None:
            given["weights"] = checked_weights("weights_init", self.weights_init, self.n_components)
        if self.means_init is not None:
            given["loc"] = shaped("means_init", self.means_init, (self.n_components, size))
        if self.precisions_init is not None:
            given |= self._given_spread(size)
        return {name: torch.as_tensor(value).to(x) for name, value in given.items()}

    def _given_spread(self, size: int) -> dict[str, NDArray]:
        precisions = shaped("precisions_init", self.precisions_init, self._covariance_shape)
        dense = precisions.ndim > 1 and self.covariance_type != "diag"
        symmetric = not dense or np.allclose(precisions, precisions.swapaxes(-1, -2))
        least = np.linalg.eigvalsh(precisions).min() if dense else precisions.min()
        if not symmetric or not least > 0:
            raise DataError(
                f"precisions_init: expected {'symmetric, positive definite matrices' if dense else 'numbers above 0'} "
                f"for covariance_type={self.covariance_type!r}, got a least {'eigenvalue' if dense else 'value'} of "
                f"{least:.3g}{'' if symmetric else ' and a matrix that is not symmetric'}. Pass inverse covariances."
            )
        return self._native_spread(np.linalg.inv(precisions) if dense else 1 / precisions)

    # Attributes.

    def _keep(self, sites: Mapping[str, Tensor]) -> None:
        weights = sites["weights"].double()
        self.weights_ = (weights / weights.sum()).to(sites["weights"]).cpu().numpy()
        self.means_ = sites["loc"].cpu().numpy()
        self.covariances_ = self._shown_spread(sites[self._spread_axes[0]])
        self._set_precisions()

    def _log_parts(self, x: Tensor) -> Tensor:
        return self.model().log_prob_components(x, {name: value.to(x) for name, value in self.sites().items()})

    def _log_density(self, x: Tensor) -> Tensor:
        return self._log_parts(x).logsumexp(-1)


def _pick(sites: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    return {name: value[index] for name, value in sites.items()}


def _any_prior(covariance: str, x: Tensor) -> GaussianPrior:
    """A proper prior of the right type and shape."""
    size, one = x.shape[1], x.new_ones(())
    if covariance in ("spherical", "VII", "EII"):
        return NormalInverseGamma(x.new_zeros(size), one, one, one)
    if covariance == "diagonal" or covariance.endswith("I"):
        return NormalInverseGamma(x.new_zeros(size), one, one, x.new_ones(size))
    return NormalInverseWishart(x.new_zeros(size), one, (size + 2) * one, torch.eye(size).to(x))
