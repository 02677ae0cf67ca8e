"""What the scikit-learn estimators of mixtures share: checks of the data, conversions, and what a fit is asked for."""

# ruff: noqa: N803 - X is scikit-learn's name
from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, ClassVar, Self, cast, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
from torch import Tensor

from probmix.errors import DataError, FitError, ProgramError
from probmix.estimators_inputs import in_blocks, rows_of, weights_of
from probmix.estimators_starts import Start
from probmix.models.gaussian_mixture import CovarianceName
from probmix.models.gaussian_mixture import GaussianMixture as GaussianModel

__all__ = [
    "AbstractMixtureEstimator",
    "ConvergenceWarning",
    "EstimatorFitError",
    "dense_covariances",
    "model_name",
    "precision_factors",
]

#: scikit-learn's name of a covariance -> the model's.
_NAMES = {"diag": "diagonal"}
_NATIVE = ("full", "tied", "diag", "spherical")  # whose attributes have the shapes of scikit-learn; others are dense


class EstimatorFitError(FitError, ValueError):
    """A fit failed; a ValueError too, as scikit-learn raises."""


class AbstractMixtureEstimator(DensityMixin, BaseEstimator, ABC):
    """A mixture of Gaussians as a scikit-learn estimator; arrays in, arrays out.

    Subclasses have the constructor of scikit-learn's class of the same name, and ``device``.
    """

    n_components: int
    covariance_type: str
    tol: float
    reg_covar: float
    max_iter: int
    n_init: int
    init_params: Start
    random_state: Any
    warm_start: bool
    verbose: int
    verbose_interval: int
    device: str | None
    weights_: NDArray
    means_: NDArray
    covariances_: NDArray
    n_features_in_: int
    converged_: bool
    n_iter_: int
    lower_bound_: float
    lower_bounds_: list[float]
    _trail: Tensor  # the last bounds of the fit before, for warm_start

    _positive: ClassVar[tuple[str, ...]] = ()  # settings that are None or numbers above 0

    def fit(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the mixture.

        Args:
            X: the rows, ``(n_samples, n_features)``; float32 data are fitted in float32.
            y: not used.
            sample_weight: how many observations each row stands for, ``(n_samples,)``; None: one each.

        Raises:
            DataError: rows or weights that cannot be used (a ValueError).
            ProgramError: a setting is out of range (a ValueError).
            EstimatorFitError: every start collapsed (a ValueError).
        """
        rows: NDArray = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        self._check_settings()
        if len(rows) < self.n_components:
            raise DataError(
                f"expected n_samples >= n_components, got n_samples = {len(rows)} and n_components = "
                f"{self.n_components}: lower n_components or add rows"
            )
        x = rows_of(rows, self.device)
        self._fit(x, weights_of(sample_weight, x), check_random_state(self.random_state))
        return self

    def fit_predict(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> NDArray:
        """Fit, and return the label of each row: the same as ``fit(X).predict(X)``."""
        return self.fit(X, y, sample_weight).predict(X)

    def predict(self, X: ArrayLike) -> NDArray:
        """Return the component of greatest probability for each row, ``(n_samples,)``."""
        return self._by_blocks(lambda x: self._log_parts(x).argmax(-1), X)

    def predict_proba(self, X: ArrayLike) -> NDArray:
        """Return the probability of each component for each row, ``(n_samples, n_components)``."""
        return self._by_blocks(lambda x: self._log_parts(x).softmax(-1), X)

    def score_samples(self, X: ArrayLike) -> NDArray:
        """Return the log density of each row, ``(n_samples,)``."""
        return self._by_blocks(self._log_density, X)

    def score(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> float:
        """Return the (weighted) mean log density of the rows."""
        scores = self.score_samples(X)
        weights = weights_of(sample_weight, torch.as_tensor(scores))
        return float(np.average(scores, weights=None if weights is None else weights.numpy()))

    def bic(self, X: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        r"""Return :math:`-2 \ell + p \log n`: the lower the better. With weights, n is their sum."""
        n = _total(X, sample_weight)
        return -2 * n * self.score(X, sample_weight=sample_weight) + self._n_parameters() * math.log(n)

    def aic(self, X: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        r"""Return :math:`-2 \ell + 2 p`: the lower the better."""
        return -2 * _total(X, sample_weight) * self.score(X, sample_weight=sample_weight) + 2 * self._n_parameters()

    def sample(self, n_samples: int = 1) -> tuple[NDArray, NDArray]:
        """Draw rows and their components from the fitted mixture, sorted by component.

        Raises:
            DataError: ``n_samples`` is below 1.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise DataError(f"n_samples: expected 1 or more, got {n_samples}. Ask for at least one row.")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        x, labels = self.model().sample(n_samples, self.sites(), seed=seed, return_assignments=True)
        order = labels.argsort(stable=True)
        return x[order].cpu().numpy(), labels[order].cpu().numpy()

    def model(self) -> GaussianModel:
        """Return the probmix model that is fitted, for the other methods: ``infer(gm.model(), X, NUTS(...))``."""
        return GaussianModel(self.n_components, self._model_name)

    def sites(self) -> dict[str, Tensor]:
        """Return the fitted parameters as probmix names them, for ``init=`` of other methods and for plots."""
        check_is_fitted(self)
        sites = {"weights": self.weights_, "loc": self.means_, **self._native_spread(self.covariances_)}
        return {name: torch.tensor(np.asarray(value), device=self.device) for name, value in sites.items()}

    # What the subclasses say.

    @abstractmethod
    def _fit(self, x: Tensor, row_weights: Tensor | None, random: np.random.RandomState) -> None:
        """Set the attributes."""

    @abstractmethod
    def _log_parts(self, x: Tensor) -> Tensor:
        """Log weight plus log density of each row in each component, up to a constant of the row, ``(N, K)``."""

    @abstractmethod
    def _log_density(self, x: Tensor) -> Tensor:
        """Log density of each row, ``(N,)``."""

    @property
    def _model_name(self) -> CovarianceName:
        return model_name(self.covariance_type)

    @property
    def _covariance_shape(self) -> tuple[int, ...]:
        """Shape of ``covariances_`` and ``precisions_``."""
        size = self.n_features_in_
        shapes = {"tied": (size, size), "diag": (self.n_components, size), "spherical": (self.n_components,)}
        return shapes.get(self.covariance_type, (self.n_components, size, size))

    @property
    def _spread_axes(self) -> tuple[str, tuple[str, ...]]:
        """Name and axes of the model's site ``cov`` or ``var``."""
        return next((name, axes) for name, axes in self.model().dims.items() if name in ("cov", "var"))

    def _shown_spread(self, spread: Tensor) -> NDArray:
        """The attribute ``covariances_`` that belongs to a site: dense for the names that only mclust has."""
        sizes = {"component": self.n_components, "feature": self.n_features_in_}
        native = self.covariance_type in _NATIVE
        spread = spread if native else dense_covariances(spread, self._spread_axes[1], sizes)
        return spread.cpu().numpy().copy()

    def _native_spread(self, covariances: NDArray) -> dict[str, NDArray]:
        """The site that belongs to the attribute ``covariances_``."""
        name, axes = self._spread_axes
        if self.covariance_type in _NATIVE or len(axes) == 3:
            return {name: covariances}
        spread = covariances if "component" in axes else covariances[0]
        if "feature_bis" not in axes:
            spread = np.diagonal(spread, axis1=-2, axis2=-1)
            spread = spread if "feature" in axes else spread[..., 0]
        return {name: spread}

    def _n_parameters(self) -> int:
        return self.model().num_parameters(self.n_features_in_)

    def _set_precisions(self) -> None:
        self.precisions_cholesky_ = precision_factors(self.covariances_, self.covariance_type)
        matrix = self.precisions_cholesky_.ndim >= 2 and self.covariance_type != "diag"
        factor = self.precisions_cholesky_
        self.precisions_ = factor @ factor.swapaxes(-1, -2) if matrix else factor**2

    def _by_blocks(self, function: Callable[[Tensor], Tensor], X: ArrayLike) -> NDArray:
        check_is_fitted(self)
        rows: NDArray = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        x = rows_of(rows.astype(np.result_type(rows, self.means_), copy=False), self.device)
        return in_blocks(function, x, self.n_components * max(1, x.shape[1])).cpu().numpy()

    def _check_settings(self) -> None:
        whole = {"n_components": 1, "n_init": 1, "max_iter": 0, "verbose_interval": 1}
        for name, least in whole.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ProgramError(f"{name}: expected a whole number of {least} or more, got {value!r}. Change it.")
        for name in ("tol", "reg_covar"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
                raise ProgramError(f"{name}: expected a number of 0 or more, got {value!r}. Change it.")
        for name in self._positive:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Real) or not 0 < float(value) < math.inf):
                raise ProgramError(f"{name}: expected None or a number above 0, got {value!r}. Change it.")
        names = (*_NATIVE, *(name for name in get_args(CovarianceName) if name.isupper()))
        if self.covariance_type not in names:
            raise ProgramError(
                f"covariance_type: expected one of {', '.join(names)}, got {self.covariance_type!r}. Pass one of these."
            )

    def _report(self, lower_bounds: list[float], *, per_row: str = "") -> None:
        """Print the bounds of a fit, as ``verbose`` asks for."""
        if self.verbose:
            state = "converged" if self.converged_ else "did not converge"
            print(f"{type(self).__name__} {state} after {self.n_iter_} iterations, lower bound {self.lower_bound_:.5f}")
        for step, bound in enumerate(lower_bounds, 1):
            if self.verbose >= 2 and step % self.verbose_interval == 0:
                print(f"  iteration {step}: lower bound {bound:.5f}{per_row}")


def model_name(covariance_type: str) -> CovarianceName:
    """Return the name that the model has for a covariance type.

    Example:
        >>> model_name("diag"), model_name("VEI")
        ('diagonal', 'VEI')
    """
    return cast(CovarianceName, _NAMES.get(covariance_type, covariance_type))  # the model refuses others


def dense_covariances(spread: Tensor, axes: tuple[str, ...], sizes: Mapping[str, int]) -> Tensor:
    """Return the covariance matrix of every component, ``(K, D, D)``, from a spread of any shape.

    Args:
        spread: the site ``cov`` or ``var``.
        axes: names of its axes.
        sizes: of the axes ``component`` and ``feature``.

    Example:
        >>> dense_covariances(torch.tensor([4.0, 9.0]), ("component",), {"component": 2, "feature": 1}).flatten()
        tensor([4., 9.])
    """
    if "component" not in axes:
        spread = spread.expand(sizes["component"], *spread.shape)
    if "feature_bis" in axes:
        return spread
    if "feature" not in axes:
        spread = spread[:, None].expand(-1, sizes["feature"])
    return torch.diag_embed(spread)


def precision_factors(covariances: NDArray, covariance_type: str) -> NDArray:
    r"""Return the upper triangular U of each precision :math:`\Sigma^{-1} = U U^T`, or 1 over standard deviations.

    Raises:
        EstimatorFitError: a covariance is not positive definite.

    Example:
        >>> precision_factors(np.array([4.0]), "spherical")
        array([0.5])
    """
    try:
        if covariance_type in ("diag", "spherical"):
            if not (covariances > 0).all():
                raise np.linalg.LinAlgError
            return 1 / np.sqrt(covariances)
        lower = np.linalg.cholesky(covariances.astype(np.float64))
    except np.linalg.LinAlgError:
        raise EstimatorFitError(
            f"expected covariances that are positive definite, got some ({covariance_type}) that are not. "
            "Raise reg_covar, lower n_components, or take a simpler covariance_type."
        ) from None
    identity = np.broadcast_to(np.eye(lower.shape[-1]), lower.shape)
    return np.linalg.solve(lower, identity).swapaxes(-1, -2).astype(covariances.dtype)


def _total(X: ArrayLike, sample_weight: ArrayLike | None) -> float:
    return float(len(X) if sample_weight is None or np.ndim(sample_weight) == 0 else np.sum(sample_weight))  # type: ignore[arg-type]
