"""Variational Bayes behind scikit-learn's interface, against scikit-learn and closed forms."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import sklearn.mixture
import torch
from sklearn.exceptions import ConvergenceWarning

from probmix.datasets import load_faithful, load_galaxies, load_iris
from probmix.errors import DataError, ProgramError
from probmix.estimators import BayesianGaussianMixture

IRIS = load_iris().x.numpy()
FAITHFUL = load_faithful().x.numpy()
TYPES = ["full", "tied", "diag", "spherical"]
PARAMETERS = ["weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"]


def silent(estimator, x):
    """Fit without the warning that a few iterations are not enough."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(x)


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_variational_bayes_with_a_dirichlet_prior_is_that_of_scikit_learn(covariance_type):
    settings = {
        "n_components": 4, "covariance_type": covariance_type, "random_state": 1, "tol": 0, "max_iter": 9,
        "reg_covar": 0,
        "weight_concentration_prior_type": "dirichlet_distribution", "degrees_of_freedom_prior": 7.5,
        "mean_precision_prior": 0.3, "weight_concentration_prior": 0.2, "mean_prior": [5.0, 3.0, 4.0, 1.0],
    }  # fmt: skip
    ours = silent(BayesianGaussianMixture(**settings), IRIS)
    theirs = silent(sklearn.mixture.BayesianGaussianMixture(**settings), IRIS)
    names = ["weight_concentration_", "mean_precision_", "degrees_of_freedom_", *PARAMETERS]
    for name in names:  # rounding of float64, as above
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.predict_proba(IRIS), theirs.predict_proba(IRIS), atol=1e-10)


@pytest.mark.parametrize("prior", ["dirichlet_process", "dirichlet_distribution"])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_from_the_same_responsibilities_every_update_is_that_of_scikit_learn(covariance_type, prior):
    settings = {
        "n_components": 3, "covariance_type": covariance_type, "random_state": 0, "max_iter": 0, "reg_covar": 0,
        "weight_concentration_prior_type": prior,
    }  # fmt: skip
    ours = BayesianGaussianMixture(**settings).fit(IRIS)
    theirs = sklearn.mixture.BayesianGaussianMixture(**settings).fit(IRIS)
    for name in [
        "means_",
        "covariances_",
        "mean_precision_",
        "degrees_of_freedom_",
        "covariance_prior_",
        "mean_prior_",
    ]:
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-10)  # rounding
    mine, yours = np.array(ours.weight_concentration_), np.array(theirs.weight_concentration_)
    if prior == "dirichlet_process":
        np.testing.assert_allclose(mine[:, :-1], yours[:, :-1])
        assert mine[1, -1] == 0  # the last stick is what is left over
        assert ours.weights_.sum() == pytest.approx(1)
    else:
        np.testing.assert_allclose(mine, yours)


def test_weights_are_copies_for_variational_bayes():
    weights = np.random.default_rng(1).integers(0, 3, len(FAITHFUL))
    weighted = BayesianGaussianMixture(random_state=0).fit(FAITHFUL, sample_weight=weights)
    copied = BayesianGaussianMixture(random_state=0).fit(np.repeat(FAITHFUL, weights, axis=0))
    assert weighted.lower_bound_ == pytest.approx(copied.lower_bound_, rel=1e-12)
    np.testing.assert_allclose(weighted.covariances_, copied.covariances_, rtol=1e-10)


def test_bic_of_variational_bayes():
    bgm = silent(BayesianGaussianMixture(n_components=2, random_state=0), FAITHFUL)
    log_likelihood, parameters = bgm.score(FAITHFUL) * 272, 1 + 2 * 2 + 2 * 3
    assert bgm.bic(FAITHFUL) == pytest.approx(-2 * log_likelihood + parameters * np.log(272))
    assert bgm.aic(FAITHFUL) == pytest.approx(-2 * log_likelihood + 2 * parameters)


def test_components_that_are_not_needed_keep_nothing():
    bgm = BayesianGaussianMixture(n_components=8, weight_concentration_prior=0.01, max_iter=1000, random_state=0)
    bgm.set_params(weight_concentration_prior_type="dirichlet_distribution").fit(FAITHFUL)
    assert bgm.n_effective_ == 2
    assert bgm.log_evidence_ == pytest.approx(bgm.lower_bound_ + np.log(8 * 7))  # 8! / 6!, the empty six being alike


def test_the_lower_bounds_of_different_sizes_can_be_compared():
    bounds = [
        BayesianGaussianMixture(n_components=k, max_iter=1000, random_state=0, n_init=3,
                                weight_concentration_prior_type="dirichlet_distribution",
                                weight_concentration_prior=1.0).fit(FAITHFUL).log_evidence_
        for k in (1, 2, 3)
    ]  # fmt: skip
    assert np.argmax(bounds) == 1


def test_the_bound_of_one_component_is_the_exact_evidence():
    """With one component there is nothing to approximate: the evidence of a normal-inverse-Wishart in closed form."""
    x = load_galaxies().x.numpy()
    bgm = BayesianGaussianMixture(weight_concentration_prior_type="dirichlet_distribution", reg_covar=0).fit(x)
    n, mean, var = len(x), x.mean(), x.var(ddof=1)  # the defaults: kappa = nu = 1, m and S from the rows
    scatter = var + var * (n - 1)
    exact = (
        -n / 2 * np.log(np.pi)
        + _log_gamma((1 + n) / 2) - _log_gamma(1 / 2) + np.log(var) / 2 - (1 + n) / 2 * np.log(scatter)
        - np.log(1 + n) / 2
    )  # fmt: skip
    assert bgm.lower_bound_ == pytest.approx(exact, abs=1e-6)
    assert bgm.mean_prior_ == pytest.approx(mean)


def _log_gamma(value: float) -> float:
    return float(torch.lgamma(torch.tensor(value, dtype=torch.float64)))


@pytest.mark.parametrize("prior", ["dirichlet_process", "dirichlet_distribution"])
def test_the_density_of_variational_bayes_integrates_to_one(prior):
    x = load_galaxies().x.numpy() / 1000
    settings = {"weight_concentration_prior_type": prior, "degrees_of_freedom_prior": 12.0, "random_state": 0}
    bgm = silent(BayesianGaussianMixture(n_components=4, **settings), x)
    grid = np.linspace(x.min() - 300, x.max() + 300, 40_001)
    total = np.trapezoid(np.exp(bgm.score_samples(grid[:, None])), grid)
    assert total == pytest.approx(1, abs=1e-6)  # tails of Student-t with 12 degrees of freedom


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"degrees_of_freedom_prior": 1.0},
            r"degrees_of_freedom_prior: expected a number above 1 for 2 columns, got 1",
        ),
        ({"weight_concentration_prior": 0}, r"weight_concentration_prior: expected None or a number above 0, got 0"),
        ({"covariance_type": "VEV"}, r"covariance_type: expected one of full, tied, diag, spherical, .*got 'VEV'"),
        ({"covariance_prior": -np.eye(2)}, r"covariance_prior: expected .* got a least eigenvalue of -1"),
        (
            {"weight_concentration_prior_type": "dp"},
            r"expected 'dirichlet_process' or 'dirichlet_distribution', got 'dp'",
        ),
    ],
)
def test_priors_out_of_range_are_named(setting, message):
    with pytest.raises((ProgramError, DataError), match=message):
        BayesianGaussianMixture(**setting).fit(FAITHFUL)
