"""Classification and outlier detection by mixtures as scikit-learn estimators."""

# ruff: noqa: N803, N806 - X is scikit-learn's name
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, OutlierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
from torch import Tensor

from probmix.classification import ClassMixture, fit_edda, join_classes
from probmix.errors import DataError, ProgramError
from probmix.estimators_base import model_name
from probmix.estimators_gaussian import GaussianMixture
from probmix.estimators_inputs import in_blocks, rows_of, weights_of
from probmix.estimators_starts import Start
from probmix.shrinkage import Shrinkage

__all__ = ["MixtureClassifier", "MixtureOutlierDetector"]


class MixtureClassifier(ClassifierMixin, BaseEstimator):
    r"""Classify by the density of a mixture for each class.

    .. math:: p(c \mid x) \propto \pi_c \sum_k w_{ck} \, N(x \mid \mu_{ck}, \Sigma_{ck})

    One component for each class (the default) is discriminant analysis: linear for covariance_type="tied", quadratic
    for "full", naive Bayes for "diag", and those between for the names of mclust (EDDA). More components are mclust's
    MclustDA; a covariance is then shared by the components of one class alone.

    Args:
        n_components: components of each class; ``"auto"``: for each class the number of smallest BIC.
        covariance_type: as in `GaussianMixture`.
        priors: probability of each class, in the order of ``classes_``; None: its share of the rows.
        shrinkage: None, ``"ledoit_wolf"``, ``"oas"``, ``"ks"`` or a number from 0 to 1; for one component in each
            class and covariance_type "full" or "tied".
        max_components: the largest number that ``"auto"`` tries.
        tol: as in `GaussianMixture`.
        reg_covar: as in `GaussianMixture`.
        max_iter: as in `GaussianMixture`.
        n_init: as in `GaussianMixture`.
        init_params: as in `GaussianMixture`.
        random_state: of the starts.
        device: as in `GaussianMixture`.

    Attributes:
        classes_: labels of the classes.
        priors_: probability of each class.
        n_components_: components of each class.
        n_iter_: iterations of the class that took most; 1 for one component each.
        mixture_: all of it as a `probmix.classification.ClassMixture`.
        n_features_in_: D.
        feature_names_in_: names of the columns, if they had any.

    Example:
        >>> from probmix.datasets import load_iris
        >>> iris = load_iris()
        >>> X, y = iris.x.numpy(), iris.target.numpy()
        >>> MixtureClassifier(covariance_type="tied").fit(X, y).score(X, y)
        0.98
    """

    def __init__(
        self,
        n_components: int | Literal["auto"] = 1,
        *,
        covariance_type: str = "full",
        priors: ArrayLike | None = None,
        shrinkage: Shrinkage | None = None,
        max_components: int = 5,
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: Start = "kmeans",
        random_state: Any = None,
        device: str | None = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.priors = priors
        self.shrinkage = shrinkage
        self.max_components = max_components
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.random_state = random_state
        self.device = device

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit a density to the rows of each class.

        Args:
            X: the rows, ``(n_samples, n_features)``.
            y: class of each row, numbers or words.
            sample_weight: how many observations each row stands for, ``(n_samples,)``; None: one each.

        Raises:
            DataError: rows, labels or weights that cannot be used (a ValueError).
            ProgramError: a setting is out of range (a ValueError).
        """
        rows: NDArray
        rows, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        self._mixture(self.n_components)._check_settings()
        x = rows_of(rows, self.device)
        weights = weights_of(sample_weight, x)
        if self.n_components == 1:
            self.n_iter_ = 1
            self.mixture_ = self._one_gaussian_each(x, torch.as_tensor(labels, device=x.device), weights)
        else:
            self.mixture_ = self._one_mixture_each(rows, labels, weights)
        component_class = self.mixture_.component_class.cpu().numpy()
        self.n_components_ = np.bincount(component_class, minlength=len(self.classes_))
        self.priors_ = np.bincount(component_class, self.mixture_.sites["weights"].cpu().numpy(), len(self.classes_))
        return self

    def predict(self, X: ArrayLike) -> NDArray:
        """Return the class of greatest probability for each row, ``(n_samples,)``."""
        labels = self._by_blocks(lambda x: self.mixture_.labels(x), X)
        return self.classes_[labels]

    def predict_proba(self, X: ArrayLike) -> NDArray:
        """Return the probability of each class for each row, ``(n_samples, n_classes)``."""
        return self._by_blocks(lambda x: self.mixture_.probabilities(x), X)

    def predict_log_proba(self, X: ArrayLike) -> NDArray:
        """Return the log probability of each class for each row, without underflow, ``(n_samples, n_classes)``."""
        return self._by_blocks(lambda x: self.mixture_.log_prob_classes(x).log_softmax(-1), X)

    def score_samples(self, X: ArrayLike) -> NDArray:
        """Return the log density of each row, ``(n_samples,)``: low for rows that are like none of the classes."""
        return self._by_blocks(lambda x: self.mixture_.log_prob(x), X)

    def _by_blocks(self, function: Callable[[Tensor], Tensor], X: ArrayLike) -> NDArray:
        check_is_fitted(self)
        rows: NDArray = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        x = rows_of(rows, self.device).to(self.mixture_.sites["loc"])
        width = len(self.mixture_.component_class) * (x.shape[1] + len(self.classes_))
        return in_blocks(function, x, width).cpu().numpy()

    def _mixture(self, n_components: int | Literal["auto"]) -> GaussianMixture:
        return GaussianMixture(
            self.max_components if n_components == "auto" else n_components,
            covariance_type=self.covariance_type,
            tol=self.tol,
            reg_covar=self.reg_covar,
            max_iter=self.max_iter,
            n_init=self.n_init,
            init_params=self.init_params,
            device=self.device,
        )

    def _class_weights(self) -> Tensor | None:
        return None if self.priors is None else torch.as_tensor(np.asarray(self.priors, np.float64))

    def _one_gaussian_each(self, x: Tensor, labels: Tensor, weights: Tensor | None) -> ClassMixture:
        return fit_edda(
            x,
            labels,
            covariance=model_name(self.covariance_type),
            shrinkage="none" if self.shrinkage is None else self.shrinkage,
            class_weights=self._class_weights(),
            row_weights=weights,
            ridge_var=self.reg_covar,
        )

    def _one_mixture_each(self, X: NDArray, labels: NDArray, weights: Tensor | None) -> ClassMixture:
        if self.shrinkage is not None:
            raise ProgramError(
                f"shrinkage: expected None for mixtures (n_components={self.n_components!r}), got {self.shrinkage!r}. "
                "Use reg_covar, or n_components=1."
            )
        random = check_random_state(self.random_state)
        row_weights = np.ones(len(X)) if weights is None else weights.cpu().numpy()
        fits = [
            self._fit_class(X[labels == c], row_weights[labels == c], name, int(random.randint(2**31 - 1)))
            for c, name in enumerate(self.classes_)
        ]
        self.n_iter_ = max(fit.n_iter_ for fit in fits)
        shares = torch.as_tensor(np.bincount(labels, row_weights) / row_weights.sum())
        given = self._class_weights()
        like = fits[0].sites()["loc"]
        shares = shares if given is None else given / given.sum()
        return join_classes([fit.model() for fit in fits], [fit.sites() for fit in fits], shares.to(like))

    def _fit_class(self, X: NDArray, row_weights: NDArray, name: object, seed: int) -> GaussianMixture:
        """The mixture of one class, of the size asked for or of smallest BIC."""
        auto = self.n_components == "auto"
        sizes = range(1, min(self.max_components, len(X)) + 1) if auto else [self.n_components]
        best, least = None, np.inf
        for size in sizes:
            mixture = self._mixture(size).set_params(random_state=seed)
            try:
                mixture.fit(X, sample_weight=row_weights)
            except ValueError as error:
                if best is not None:
                    break  # more components than this class can carry
                raise DataError(f"class {name!r} with {len(X)} rows: {error}") from error
            if (bic := mixture.bic(X, row_weights)) < least:
                best, least = mixture, bic
        assert best is not None
        return best


class MixtureOutlierDetector(OutlierMixin, BaseEstimator):
    """Call the rows of lowest density under a fitted mixture outliers.

    Args:
        n_components: as all others but ``contamination``, as in `GaussianMixture`.
        contamination: share of the training rows that are outliers, above 0 and at most 0.5.
        covariance_type: shape of the components.
        tol: largest estimated distance to the optimum, nats of the mean log-likelihood.
        reg_covar: added to every variance.
        max_iter: at most so many iterations.
        n_init: starts, of which the best is kept.
        init_params: where they come from.
        random_state: of the starts.
        device: where to compute.

    Attributes:
        mixture_: the fitted `GaussianMixture`.
        offset_: log density below which a row is an outlier.
        n_iter_: iterations of the fit.
        n_features_in_: D.
        feature_names_in_: names of the columns, if they had any.

    Example:
        >>> from probmix.datasets import load_faithful
        >>> X = load_faithful().x.numpy()
        >>> detector = MixtureOutlierDetector(n_components=2, contamination=0.05, random_state=0).fit(X)
        >>> int((detector.predict(X) == -1).sum()), detector.predict([[10.0, 10.0]])
        (13, array([-1]))
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        contamination: float = 0.1,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: Start = "kmeans",
        random_state: Any = None,
        device: str | None = None,
    ) -> None:
        self.n_components = n_components
        self.contamination = contamination
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.random_state = random_state
        self.device = device

    def fit(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the mixture, and the threshold that a share ``contamination`` of the training rows does not reach.

        Raises:
            DataError: rows or weights that cannot be used (a ValueError).
            ProgramError: a setting is out of range (a ValueError).
        """
        if not 0 < self.contamination <= 0.5:
            raise ProgramError(
                f"contamination: expected a number above 0 and at most 0.5, got {self.contamination!r}. Pass 0.05 for "
                "one row in twenty."
            )
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        settings = {name: value for name, value in self.get_params().items() if name != "contamination"}
        self.mixture_ = GaussianMixture(**settings).fit(X, sample_weight=sample_weight)
        scores = self.mixture_.score_samples(X)
        weights = weights_of(sample_weight, torch.as_tensor(scores))
        self.n_iter_ = self.mixture_.n_iter_
        self.offset_ = _threshold(scores, self.contamination, None if weights is None else weights.numpy())
        return self

    def score_samples(self, X: ArrayLike) -> NDArray:
        """Return the log density of each row, ``(n_samples,)``: the lower, the more of an outlier."""
        check_is_fitted(self)
        return self.mixture_.score_samples(validate_data(self, X, dtype=[np.float64, np.float32], reset=False))

    def decision_function(self, X: ArrayLike) -> NDArray:
        """Return ``score_samples`` less ``offset_``, ``(n_samples,)``: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray:
        """Return 1 for inliers and -1 for outliers, ``(n_samples,)``."""
        return np.where(self.decision_function(X) < 0, -1, 1)


def _threshold(scores: NDArray, share: float, weights: NDArray | None) -> float:
    """The score that so large a share of the rows is below; a row of weight 2 is two rows."""
    order = np.argsort(scores)
    cumulative = np.cumsum(np.ones(len(scores)) if weights is None else weights[order])
    level = share * cumulative[-1] * (1 + 1e-9)  # a whole number of rows, but for rounding
    return float(scores[order][np.searchsorted(cumulative, level, side="right")])
