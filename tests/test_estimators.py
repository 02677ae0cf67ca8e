"""The scikit-learn estimators against scikit-learn itself, and where they are meant to do better."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn.mixture
import torch
from scipy import stats
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV

from probmix.datasets import load_faithful, load_iris
from probmix.errors import DataError, ProgramError
from probmix.estimators import BayesianGaussianMixture, GaussianMixture, MixtureOutlierDetector
from probmix.estimators_base import EstimatorFitError
from probmix.estimators_starts import device_responsibilities, first_responsibilities
from probmix.inference import EM, infer

IRIS = load_iris().x.numpy()
FAITHFUL = load_faithful().x.numpy()
TYPES = ["full", "tied", "diag", "spherical"]
MCLUST = ["EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV"]
PARAMETERS = ["weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"]


def silent(estimator, *arguments, **named):
    """Fit without the warning that a few iterations are not enough."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(*arguments, **named)


# --- the same numbers as scikit-learn -------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("max_iter", [0, 1, 12])
def test_the_same_iterations_give_the_parameters_of_scikit_learn(covariance_type, max_iter):
    settings = {
        "covariance_type": covariance_type,
        "random_state": 3,
        "tol": 0,
        "max_iter": max_iter,
        "reg_covar": 1e-3,
    }
    ours = silent(GaussianMixture(3, **settings), IRIS)
    theirs = silent(sklearn.mixture.GaussianMixture(3, **settings), IRIS)
    assert ours.n_iter_ == theirs.n_iter_ == max_iter
    for name in PARAMETERS:
        if max_iter or not name.startswith("precisions_") or name == "precisions_cholesky_":
            # rounding of float64 (1e-16), times the condition of the covariances (about 1e3), over twelve iterations
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=1e-11)


def test_the_optimum_and_the_criteria_are_those_of_scikit_learn():
    ours = GaussianMixture(3, random_state=0, tol=1e-10, max_iter=2000).fit(IRIS)
    theirs = sklearn.mixture.GaussianMixture(3, random_state=0, tol=1e-13, max_iter=20_000).fit(IRIS)
    # tol=1e-10 nats for each of 150 rows
    assert ours.score(IRIS) == pytest.approx(theirs.score(IRIS), abs=1e-9)
    assert ours.bic(IRIS) == pytest.approx(theirs.bic(IRIS), abs=1e-6)
    assert ours.aic(IRIS) == pytest.approx(theirs.aic(IRIS), abs=1e-6)
    np.testing.assert_allclose(ours.predict_proba(IRIS), theirs.predict_proba(IRIS), atol=1e-4)
    np.testing.assert_array_equal(ours.predict(IRIS), theirs.predict(IRIS))


@pytest.mark.parametrize("covariance_type", TYPES)
def test_the_shapes_are_those_of_scikit_learn(covariance_type):
    ours = GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(IRIS)
    theirs = sklearn.mixture.GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(IRIS)
    for name in PARAMETERS:
        assert getattr(ours, name).shape == getattr(theirs, name).shape
    assert ours.sample(5)[0].shape == (5, 4)
    assert {name for name in vars(theirs) if name.endswith("_")} <= {name for name in vars(ours) if name.endswith("_")}


def test_the_constructors_are_those_of_scikit_learn():
    for name in ("GaussianMixture", "BayesianGaussianMixture"):
        theirs = getattr(sklearn.mixture, name)().get_params()
        ours = getattr(importlib.import_module("probmix.estimators"), name)().get_params()
        assert ours == {**theirs, "device": None}


# --- the fourteen covariances, other methods ------------------------------------------------------------------------


@pytest.mark.parametrize("name", MCLUST)
def test_the_names_of_mclust_give_dense_covariances_that_fit_the_density(name):
    gm = GaussianMixture(2, covariance_type=name, random_state=0).fit(FAITHFUL)
    assert gm.covariances_.shape == (2, 2, 2)
    parts = [w * stats.multivariate_normal(m, c).pdf(FAITHFUL) for w, m, c in
             zip(gm.weights_, gm.means_, gm.covariances_, strict=True)]  # fmt: skip
    np.testing.assert_allclose(gm.score_samples(FAITHFUL), np.log(sum(parts)), rtol=1e-8)
    np.testing.assert_allclose(gm.precisions_ @ gm.covariances_, np.broadcast_to(np.eye(2), (2, 2, 2)), atol=1e-8)


def test_model_and_sites_go_on_to_other_methods():
    gm = GaussianMixture(2, random_state=0, reg_covar=0).fit(FAITHFUL)
    em = infer(gm.model(), torch.as_tensor(FAITHFUL), EM(init=gm.sites(), objective="ml"), seed=0)
    assert em.objective / len(FAITHFUL) == pytest.approx(gm.score(FAITHFUL), abs=1e-3)  # tol of gm


def test_a_grid_search_chooses_the_number_of_components():
    search = GridSearchCV(GaussianMixture(random_state=0), {"n_components": [1, 2]}, cv=3).fit(FAITHFUL)
    assert search.best_params_ == {"n_components": 2}


def test_column_names_are_kept():
    frame = pd.DataFrame(FAITHFUL, columns=["eruptions", "waiting"])
    assert list(GaussianMixture(2, random_state=0).fit(frame).feature_names_in_) == ["eruptions", "waiting"]


# --- what users asked scikit-learn for ------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", TYPES)
def test_weights_are_copies(covariance_type):
    weights = np.random.default_rng(0).integers(0, 4, len(FAITHFUL))
    settings = {"covariance_type": covariance_type, "means_init": [[2.0, 55.0], [4.3, 80.0]]}
    start = GaussianMixture(2, random_state=0, **settings).fit(FAITHFUL)
    settings |= {"weights_init": [0.4, 0.6], "precisions_init": start.precisions_}
    weighted = GaussianMixture(2, **settings).fit(FAITHFUL, sample_weight=weights)
    copied = GaussianMixture(2, **settings).fit(np.repeat(FAITHFUL, weights, axis=0))
    assert weighted.n_iter_ == copied.n_iter_
    assert weighted.lower_bound_ == pytest.approx(copied.lower_bound_, rel=1e-12)  # rounding
    np.testing.assert_allclose(weighted.covariances_, copied.covariances_, rtol=1e-9)
    assert weighted.bic(FAITHFUL, weights) == pytest.approx(copied.bic(np.repeat(FAITHFUL, weights, axis=0)))
    assert weighted.score(FAITHFUL) != pytest.approx(weighted.score(FAITHFUL, sample_weight=weights), rel=1e-6)


@pytest.mark.parametrize("weights", [np.zeros(272), np.full(272, -1.0), np.ones(3), np.full(272, np.nan)])
def test_weights_that_cannot_be_used_are_refused(weights):
    with pytest.raises(DataError, match="row_weights: expected"):
        GaussianMixture().fit(FAITHFUL, sample_weight=weights)


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("shift", [1e3, 1e4])
def test_float32_far_from_the_origin(covariance_type, shift):
    """Two clusters of unit variance 300 apart, all of it ``shift`` from the origin: scikit-learn fails here."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2)) + np.where(np.arange(2000) < 800, 0.0, 300.0)[:, None]
    settings = {"covariance_type": covariance_type, "random_state": 0}
    narrow = GaussianMixture(2, **settings).fit((x + shift).astype(np.float32))
    wide = GaussianMixture(2, **settings).fit((x + shift).astype(np.float32).astype(np.float64))
    assert narrow.means_.dtype == narrow.covariances_.dtype == narrow.score_samples(x.astype("f")).dtype == np.float32
    # a float32 at 1e4 is right to 5e-4, which is in both fits; the sums themselves are kept in float64
    np.testing.assert_allclose(narrow.covariances_, wide.covariances_, rtol=1e-3, atol=1e-3)
    draws, labels = narrow.sample(4000)
    spreads = [np.std(draws[labels == k] - narrow.means_[k]) for k in (0, 1)]
    np.testing.assert_allclose(spreads, 1, atol=0.15)  # a standard deviation from 800 rows is right to 0.025


def test_scikit_learn_fails_where_float32_is_far_from_the_origin():
    """The control: were it to succeed, the test above would prove nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2)) + np.where(np.arange(2000) < 800, 0.0, 300.0)[:, None]
    try:
        theirs = sklearn.mixture.GaussianMixture(2, covariance_type="diag", random_state=0).fit((x + 1e4).astype("f"))
    except ValueError:
        return
    assert np.abs(theirs.covariances_ - 1).max() > 0.2


def test_weights_that_nearly_sum_to_one_are_normalised():
    settings = {"means_init": [[2.0, 55.0], [4.3, 80.0]], "random_state": 0, "max_iter": 0}
    gm = silent(GaussianMixture(2, weights_init=[0.3500001, 0.65], **settings), FAITHFUL)
    np.testing.assert_allclose(gm.weights_, np.array([0.3500001, 0.65]) / 1.0000001, rtol=1e-12)
    with pytest.raises(DataError, match=r"weights_init: expected weights of 0 or more .* from -0\.50000 to 1\.50000"):
        GaussianMixture(2, weights_init=[-0.5, 1.5]).fit(FAITHFUL)


def test_parameters_without_a_fit():
    """From given parameters: the density is that of scipy, the sample has its moments."""
    gm = GaussianMixture.from_parameters(
        [0.25, 0.75], [[0.0], [10.0]], [4.0, 1.0], covariance_type="spherical", random_state=0
    )
    x = np.linspace(-5, 15, 7)
    density = 0.25 * stats.norm(0, 2).pdf(x) + 0.75 * stats.norm(10, 1).pdf(x)
    np.testing.assert_allclose(gm.score_samples(x[:, None]), np.log(density), rtol=1e-12)
    draws, labels = gm.sample(40_000)
    # five standard errors of a share and of a variance (2 var^2 / n): a false alarm in a million
    assert labels.mean() == pytest.approx(0.75, abs=5 * np.sqrt(0.75 * 0.25 / 40_000))
    assert draws[labels == 0].var() == pytest.approx(4, abs=5 * np.sqrt(2 * 16 / 10_000))
    assert (np.diff(labels) >= 0).all()


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_sample_has_the_moments_of_its_components(covariance_type):
    """False alarms: one in a million for each of 2 x 2 means and variances."""
    gm = GaussianMixture(2, covariance_type=covariance_type, random_state=1).fit(FAITHFUL)
    draws, labels = gm.sample(50_000)
    assert draws.shape == (50_000, 2)
    variances = {"full": lambda c, k: np.diag(c[k]), "tied": lambda c, k: np.diag(c), "diag": lambda c, k: c[k],
                 "spherical": lambda c, k: np.full(2, c[k])}[covariance_type]  # fmt: skip
    for k in (0, 1):
        rows, var = draws[labels == k], variances(gm.covariances_, k)
        assert (np.abs(rows.mean(0) - gm.means_[k]) < 5 * np.sqrt(var / len(rows))).all()
        assert (np.abs(rows.var(0) - var) < 5 * var * np.sqrt(2 / len(rows))).all()
    with pytest.raises(DataError, match="n_samples: expected 1 or more, got 0"):
        gm.sample(0)


@pytest.mark.parametrize("covariance_type", [*TYPES, "EEI", "EII", "VEV"])
def test_from_parameters_gives_the_fit_back(covariance_type):
    gm = GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(FAITHFUL)
    again = GaussianMixture.from_parameters(gm.weights_, gm.means_, gm.covariances_, covariance_type=covariance_type)
    np.testing.assert_allclose(again.score_samples(FAITHFUL), gm.score_samples(FAITHFUL))


def test_parameters_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"covariances: expected shape \(2, 1, 1\), got \(2,\)"):
        GaussianMixture.from_parameters([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0])
    with pytest.raises(EstimatorFitError, match="positive definite"):
        GaussianMixture.from_parameters([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]])


def test_ill_conditioned_covariances_keep_their_digits():
    """Condition 1e10: scipy in float64 against a quadratic form in exact rational arithmetic is right to 1e-6."""
    rotation = stats.ortho_group.rvs(3, random_state=0)
    cov = rotation @ np.diag([1e5, 1.0, 1e-5]) @ rotation.T
    cov = (cov + cov.T) / 2
    gm = GaussianMixture.from_parameters([1.0], [[0.0, 0.0, 0.0]], [cov])
    z = np.random.default_rng(0).normal(size=(50, 3))
    x = z * np.sqrt([1e5, 1.0, 1e-5]) @ rotation.T
    exact = stats.norm.logpdf(z).sum(1)  # log det is 0
    np.testing.assert_allclose(gm.score_samples(x), exact, atol=1e-3)  # eps * condition, times 10


def test_a_fit_without_a_density_is_an_error_that_names_the_component():
    x = np.repeat([[0.0, 0.0], [1.0, 1.0]], 5, axis=0)
    with pytest.raises(EstimatorFitError, match=r"collapsed onto too few distinct points.*raise reg_covar \(now 0"):
        silent(GaussianMixture(2, reg_covar=0), x)
    gm = silent(GaussianMixture(2), x)
    np.testing.assert_allclose(gm.covariances_, np.broadcast_to(1e-6 * np.eye(2), (2, 2, 2)), rtol=1e-6)


@pytest.mark.parametrize("estimator", [GaussianMixture(5), BayesianGaussianMixture(n_components=5)])
def test_more_components_than_distinct_points_give_no_nan(estimator):
    x = np.repeat([[0.0, 1.0], [5.0, 1.0]], 6, axis=0)  # and a column that does not vary
    fitted = silent(estimator.set_params(random_state=0, init_params="k-means++"), x)
    assert all(np.isfinite(getattr(fitted, name)).all() for name in PARAMETERS)
    assert np.isfinite(fitted.predict_proba(x)).all()


def test_a_slow_fit_goes_on_until_it_is_near_its_optimum():
    """Overlapping components: scikit-learn's rule stops early, where there is far more than tol still to gain."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, 3000), rng.normal(3, 1, 1000)])[:, None]
    settings = {"means_init": [[-1.0], [1.0]], "weights_init": [0.5, 0.5], "precisions_init": [[[1.0]], [[1.0]]]}
    best = GaussianMixture(2, tol=1e-9, max_iter=100_000, **settings).fit(x).score(x)
    ours = GaussianMixture(2, tol=1e-4, max_iter=10_000, **settings).fit(x)
    theirs = sklearn.mixture.GaussianMixture(2, tol=1e-4, max_iter=10_000, **settings).fit(x)
    assert best - ours.score(x) < 1e-4 < best - theirs.score(x)


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data", "hierarchical"])
@pytest.mark.parametrize("estimator", [GaussianMixture, BayesianGaussianMixture])
def test_every_start_leads_to_the_two_kinds_of_eruption(estimator, init_params):
    fitted = estimator(n_components=2, init_params=init_params, random_state=0, n_init=5, max_iter=1000, tol=1e-6)
    fitted.fit(FAITHFUL)
    np.testing.assert_allclose(np.sort(fitted.means_[:, 0]), [2.04, 4.29], atol=0.03)  # mclust: 2.04, 4.29
    again = estimator(**fitted.get_params()).fit(FAITHFUL)
    np.testing.assert_array_equal(again.means_, fitted.means_)  # the same random_state, the same bits


def test_the_start_of_an_accelerator_finds_the_same_clusters():
    """Well separated, so that scaled columns make no difference; the caller's random numbers stay as they are."""
    x = torch.as_tensor(np.concatenate([FAITHFUL[:100] / 100, FAITHFUL[:60] / 100 + 5]))
    before = torch.random.get_rng_state()
    share = device_responsibilities(x, 2, "kmeans", seed=0)
    assert sorted(share.sum(0).tolist()) == [60, 100]
    theirs = first_responsibilities(x, 2, "kmeans", np.random.RandomState(0))
    assert (share == theirs).all() or (share.flip(1) == theirs).all()
    assert (torch.random.get_rng_state() == before).all()


def test_more_starts_are_not_worse():
    for seed in range(5):
        x = np.random.default_rng(seed).normal(size=(60, 2))
        one = silent(GaussianMixture(3, max_iter=3, random_state=seed), x)
        ten = silent(GaussianMixture(3, max_iter=3, random_state=seed, n_init=10), x)
        assert ten.lower_bound_ >= one.lower_bound_ - 1e-12  # rounding: a batch of ten sums in another order


@pytest.mark.parametrize("covariance_type", TYPES)
def test_the_bound_never_falls_and_ends_at_the_score(covariance_type):
    gm = GaussianMixture(3, covariance_type=covariance_type, reg_covar=0, max_iter=3000, tol=1e-8, random_state=0).fit(
        IRIS
    )
    assert gm.converged_
    assert len(gm.lower_bounds_) == gm.n_iter_
    assert np.diff(gm.lower_bounds_).min() >= -1e-13  # rounding
    assert gm.lower_bound_ == gm.lower_bounds_[-1] == pytest.approx(gm.score(IRIS), abs=1e-12)


def test_going_on_in_pieces_is_going_on():
    settings = {"random_state": 0, "tol": 1e-6, "init_params": "random"}
    whole = GaussianMixture(3, max_iter=500, **settings).fit(IRIS)
    pieces = GaussianMixture(3, max_iter=5, warm_start=True, **settings)
    for _ in range(100):
        if silent(pieces, IRIS).converged_:
            break
    assert pieces.converged_
    np.testing.assert_allclose(pieces.means_, whole.means_, atol=1e-2)


# --- settings and messages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_components": 0}, r"n_components: expected a whole number of 1 or more, got 0"),
        ({"max_iter": -1}, r"max_iter: expected a whole number of 0 or more, got -1"),
        ({"tol": -1.0}, r"tol: expected a number of 0 or more, got -1\.0"),
        ({"covariance_type": "diagonal"}, r"covariance_type: expected one of full, tied, diag, spherical, EII"),
        ({"init_params": "k-mean"}, r"init_params: expected one of 'kmeans', .*, got 'k-mean'"),
        ({"means_init": [[1.0]]}, r"means_init: expected shape \(1, 2\), got \(1, 1\)"),
        ({"precisions_init": [-np.eye(2)]}, r"precisions_init: expected symmetric, positive definite .* of -1\b"),
    ],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises((ProgramError, DataError), match=message):
        GaussianMixture(**setting).fit(FAITHFUL)


@pytest.mark.parametrize("estimator", [GaussianMixture(), BayesianGaussianMixture()])
def test_iterations_are_counted_and_too_few_rows_refused(estimator):
    assert silent(estimator.set_params(max_iter=1), IRIS).n_iter_ == 1
    with pytest.raises(DataError, match="n_samples = 10 and n_components = 12"):
        estimator.set_params(n_components=12).fit(IRIS[:10])


def test_a_fit_that_stops_early_warns_with_advice():
    with pytest.warns(
        ConvergenceWarning, match="the best of 2 starts did not converge in max_iter=1 .* Raise max_iter"
    ):
        GaussianMixture(3, max_iter=1, n_init=2, random_state=0).fit(IRIS)


def test_an_estimator_that_is_not_fitted_says_so():
    with pytest.raises(NotFittedError):
        GaussianMixture().sites()


def test_verbose_prints_the_bounds(capsys):
    gm = GaussianMixture(2, verbose=2, verbose_interval=2, random_state=0).fit(FAITHFUL)
    printed = capsys.readouterr().out
    assert f"converged after {gm.n_iter_} iterations, lower bound {gm.lower_bound_:.5f}" in printed
    assert f"iteration 2: lower bound {gm.lower_bounds_[1]:.5f}" in printed


# --- outliers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contamination", [0.02, 0.1, 0.5])
def test_so_many_training_rows_are_outliers(contamination):
    detector = MixtureOutlierDetector(2, contamination=contamination, random_state=0).fit(FAITHFUL)
    assert (detector.predict(FAITHFUL) == -1).sum() == int(contamination * len(FAITHFUL))
    np.testing.assert_allclose(
        detector.decision_function(FAITHFUL), detector.score_samples(FAITHFUL) - detector.offset_
    )


@pytest.mark.parametrize("contamination", [0.0, 0.6])
def test_a_share_of_outliers_out_of_range_is_refused(contamination):
    with pytest.raises(ProgramError, match=f"contamination: .*got {contamination}"):
        MixtureOutlierDetector(contamination=contamination).fit(FAITHFUL)
