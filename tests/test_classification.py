"""Classifiers by densities against scikit-learn's discriminant analyses and naive Bayes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.model_selection import cross_val_score
from sklearn.naive_bayes import GaussianNB

from probmix.classification import fit_edda, fit_mclust_da, join_classes
from probmix.datasets import load_iris, load_wine
from probmix.errors import DataError, ProgramError
from probmix.estimators import MixtureClassifier
from probmix.inference import EM
from probmix.models import GaussianMixture

IRIS, SPECIES = load_iris().x, load_iris().target
WINE, CULTIVAR = load_wine().x, load_wine().target
MCLUST = ["EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV"]

each_table = pytest.mark.parametrize(("x", "labels"), [(IRIS, SPECIES), (WINE, CULTIVAR)], ids=["iris", "wine"])


def agrees(rule, theirs, x, labels):
    """The same probabilities as a fitted estimator of scikit-learn, to 1e-8."""
    theirs.fit(x.numpy(), labels.numpy())
    np.testing.assert_allclose(rule.probabilities(x).numpy(), theirs.predict_proba(x.numpy()), atol=1e-8)
    np.testing.assert_array_equal(rule.labels(x).numpy(), theirs.predict(x.numpy()))


@each_table
def test_one_covariance_is_linear_discriminant_analysis(x, labels):
    agrees(fit_edda(x, labels, covariance="tied"), LinearDiscriminantAnalysis(solver="lsqr"), x, labels)
    agrees(fit_edda(x, labels, covariance="EEE"), LinearDiscriminantAnalysis(solver="lsqr"), x, labels)


@each_table
def test_a_covariance_each_is_quadratic_discriminant_analysis(x, labels):
    theirs = QuadraticDiscriminantAnalysis(store_covariance=True).fit(x.numpy(), labels.numpy())
    # scikit-learn 1.9 divides by the rows; versions before it by one less
    unbiased = np.allclose(theirs.covariance_[0], np.cov(x[labels == 0].numpy().T))
    agrees(fit_edda(x, labels, unbiased=unbiased), theirs, x, labels)


@each_table
def test_unbiased_covariances_are_those_of_numpy(x, labels):
    each = fit_edda(x, labels, unbiased=True).sites["cov"].numpy()
    for c in range(3):
        np.testing.assert_allclose(each[c], np.cov(x[labels == c].numpy().T), rtol=1e-10)
    counts = np.bincount(labels.numpy())
    pooled = sum((n - 1) * cov for n, cov in zip(counts, each, strict=True)) / (len(x) - 3)
    np.testing.assert_allclose(fit_edda(x, labels, covariance="tied", unbiased=True).sites["cov"].numpy(), pooled)
    variances = fit_edda(x, labels, covariance="diagonal", unbiased=True).sites["var"].numpy()
    np.testing.assert_allclose(variances, np.stack([np.diag(cov) for cov in each]))


@each_table
def test_a_diagonal_covariance_each_is_naive_bayes(x, labels):
    agrees(fit_edda(x, labels, covariance="diagonal"), GaussianNB(var_smoothing=0), x, labels)


@each_table
def test_class_weights_are_its_priors(x, labels):
    weights = torch.tensor([1.0, 2.0, 5.0])
    theirs = LinearDiscriminantAnalysis(priors=[1 / 8, 2 / 8, 5 / 8])
    theirs.fit(x.numpy(), labels.numpy())
    # its covariance is pooled with the priors as weights, not with the rows, so the covariance is handed over
    rule = fit_edda(x, labels, covariance="tied", unbiased=True, class_weights=weights)
    np.testing.assert_allclose(rule.sites["weights"].numpy(), theirs.priors_)
    np.testing.assert_allclose(rule.log_prob_classes(x).logsumexp(-1).numpy(), rule.log_prob(x).numpy(), rtol=1e-10)


@pytest.mark.parametrize("covariance", MCLUST)
def test_every_covariance_of_mclust_classifies(covariance):
    """The rule errs on few rows, at a stationary point."""
    rule = fit_edda(IRIS, SPECIES, covariance=covariance)
    assert (rule.labels(IRIS) != SPECIES).sum() <= 12  # of 150; a coin of three sides errs on 100
    model = GaussianMixture(3, covariance)
    share = torch.nn.functional.one_hot(SPECIES, 3).double()
    again = model.maximise(model.sufficient_statistics(IRIS, share), None, rule.sites)
    for name, value in rule.sites.items():
        torch.testing.assert_close(again[name], value, rtol=1e-6, atol=1e-9)  # one more sweep changes nothing


def test_richer_covariances_have_more_likelihood():
    def log_likelihood(covariance):
        return float(
            fit_edda(IRIS, SPECIES, covariance=covariance).log_prob_classes(IRIS).gather(1, SPECIES[:, None]).sum()
        )

    chain = [log_likelihood(name) for name in ("EII", "EEI", "EEE", "VEE", "VVE", "VVV")]
    assert np.diff(chain).min() > 0


def test_shrinkage_lets_fewer_rows_than_columns_be_classified():
    """One covariance from 20 rows in 40 columns: the shrunk rule is right on new rows, the other is refused."""
    rng = np.random.default_rng(0)
    labels = torch.arange(20) % 2
    train = torch.as_tensor(rng.normal(size=(20, 40))) + 1.5 * labels[:, None]
    test_labels = torch.arange(1000) % 2
    test = torch.as_tensor(rng.normal(size=(1000, 40))) + 1.5 * test_labels[:, None]
    with pytest.raises(DataError, match=r'singular covariance in class \d. Use covariance="tied"'):
        fit_edda(train, labels, covariance="tied")
    for shrinkage in ("oas", "ledoit_wolf", "ks", 0.5):
        rule = fit_edda(train, labels, covariance="tied", shrinkage=shrinkage)
        # the best rule errs with Phi(-1.5 sqrt(40) / 2) = 1e-6; a coin with 0.5
        assert (rule.labels(test) == test_labels).double().mean() > 0.95


# --- mixtures -------------------------------------------------------------------------------------------------------


def two_moons(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class 0 in two clusters with class 1 between them: no single Gaussian tells them."""
    rng = np.random.default_rng(seed)
    centres = np.array([[-4.0, 0.0], [0.0, 0.0], [4.0, 0.0]])
    part = rng.integers(3, size=n)
    return torch.as_tensor(rng.normal(size=(n, 2)) + centres[part]), torch.as_tensor((part == 1).astype(np.int64))


def test_mixtures_tell_what_one_gaussian_cannot():
    x, labels = two_moons(600, 0)
    new, truth = two_moons(4000, 1)
    rule = fit_mclust_da(x, labels, seed=0)
    assert torch.bincount(rule.component_class).tolist() == [2, 1]
    wrong = float((rule.labels(new) != truth).double().mean())
    # the boundaries of the best rule are about half-way: Phi(-2) of each neighbour, 4 / 3 * 0.023 = 0.030
    assert wrong < 0.04
    assert float((fit_edda(x, labels, covariance="tied").labels(new) != truth).double().mean()) > 0.25


def test_probabilities_are_bayes_rule_over_the_densities_of_the_classes():
    rule = fit_mclust_da(IRIS, SPECIES, num_components=2, covariance="full", method=EM(restarts=3), seed=0)
    densities = np.zeros((len(IRIS), 3))
    for k, c in enumerate(rule.component_class.tolist()):
        normal = stats.multivariate_normal(rule.sites["loc"][k].numpy(), rule.sites["cov"][k].numpy())
        densities[:, c] += float(rule.sites["weights"][k]) * normal.pdf(IRIS.numpy())
    np.testing.assert_allclose(
        rule.probabilities(IRIS).numpy(), densities / densities.sum(1, keepdims=True), rtol=1e-6, atol=1e-12
    )
    np.testing.assert_allclose(rule.log_prob(IRIS).numpy(), np.log(densities.sum(1)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("covariance", ["tied", "EII", "EEI"])
def test_a_covariance_shared_within_a_class_is_not_shared_between_classes(covariance):
    rule = fit_mclust_da(IRIS, SPECIES, num_components=2, covariance=covariance, seed=0)
    spread = rule.sites.get("cov", rule.sites.get("var"))
    assert spread.shape[0] == 6
    torch.testing.assert_close(spread[0], spread[1])
    assert not torch.allclose(spread[0], spread[2])


def test_parameters_are_counted_as_fitted():
    """VEE of two components in D = 4: 8 means, 1 weight, 2 volumes, 3 shapes, 6 angles, in 3 classes with 2 weights."""
    rule = fit_mclust_da(IRIS, SPECIES, num_components=2, covariance="VEE", seed=0)
    assert rule.num_parameters == 3 * (8 + 1 + 2 + 3 + 6) + 2
    assert fit_edda(IRIS, SPECIES, covariance="tied").num_parameters == 3 * 4 + 10 + 2


def test_classes_with_other_covariances_are_not_joined():
    sites = {"weights": torch.ones(1), "loc": torch.zeros(1, 1), "var": torch.ones(1)}
    with pytest.raises(ProgramError, match=r"expected one covariance for all classes, got \['EII', 'spherical'\]"):
        join_classes([GaussianMixture(1, "spherical"), GaussianMixture(1, "EII")], [sites, sites], torch.ones(2) / 2)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (SPECIES[:-1], r"expected one whole number for each of 150 rows, got torch.int64 of shape \(149,\)"),
        (SPECIES.double(), "got torch.float64"),
        (SPECIES - 1, r"expected classes 0, 1, \.\.\., got -1"),
        (2 * SPECIES, "expected rows of each class from 0 to 4, got none of class 1"),
    ],
)
def test_labels_out_of_the_range_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        fit_edda(IRIS, labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"covariance": "VEE", "unbiased": True}, "unbiased: expected one of the covariances .* got 'VEE'"),
        ({"covariance": "diagonal", "shrinkage": "oas"}, "shrinkage: expected .* got covariance='diagonal'"),
        ({"class_weights": torch.tensor([1.0, -1.0, 1.0])}, r"class_weights: expected 3 numbers .* \[1.0, -1.0, 1.0\]"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises((ProgramError, DataError), match=message):
        fit_edda(IRIS, SPECIES, **settings)


def test_a_class_that_cannot_be_fitted_is_named():
    x = torch.cat([IRIS[:50], torch.ones(20, 4).double()])
    labels = torch.cat([torch.zeros(50), torch.ones(20)]).long()
    with pytest.raises(DataError, match="class 1: expected columns that vary, got 4 of 4 constant"):
        fit_mclust_da(x, labels, seed=0)


@pytest.mark.slow
def test_digits_in_an_embedding():
    """70,000 digits in a UMAP embedding of 10 columns: half of them teach, the others are classified."""
    folder = Path(os.environ.get("PROBMIX_DATA", ""), "mnist-embeddings", "MNIST")
    if not folder.is_dir():
        pytest.skip("set PROBMIX_DATA to a folder that holds mnist-embeddings/MNIST/train_data.pt and train_labels.pt")
    x, labels = (torch.load(folder / f"train_{part}.pt", weights_only=True) for part in ("data", "labels"))
    x, labels = x.double(), labels.long()
    rule = fit_edda(x[::2], labels[::2])
    assert (rule.labels(x[1::2]) == labels[1::2]).double().mean() > 0.985


# --- the estimator --------------------------------------------------------------------------------------------------


def test_the_estimator_takes_words_for_classes():
    names = np.array(["setosa", "versicolor", "virginica"])[SPECIES.numpy()]
    classifier = MixtureClassifier(covariance_type="tied", reg_covar=0).fit(IRIS.numpy(), names)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(IRIS.numpy(), names)
    np.testing.assert_array_equal(classifier.predict(IRIS.numpy()), theirs.predict(IRIS.numpy()))
    np.testing.assert_allclose(
        classifier.predict_log_proba(IRIS.numpy()), theirs.predict_log_proba(IRIS.numpy()), rtol=1e-6
    )


def test_the_estimator_chooses_components_for_each_class():
    x, labels = two_moons(600, 0)
    classifier = MixtureClassifier("auto", random_state=0).fit(x.numpy(), labels.numpy())
    assert classifier.n_components_.tolist() == [2, 1]
    np.testing.assert_allclose(classifier.priors_, np.bincount(labels) / 600, rtol=1e-12)
    assert cross_val_score(MixtureClassifier(2, random_state=0), x.numpy(), labels.numpy(), cv=3).mean() > 0.94


def test_weights_of_rows_are_copies():
    weights = np.random.default_rng(0).integers(1, 4, 150)
    weighted = MixtureClassifier().fit(IRIS.numpy(), SPECIES.numpy(), weights)
    copied = MixtureClassifier().fit(np.repeat(IRIS.numpy(), weights, 0), np.repeat(SPECIES.numpy(), weights))
    np.testing.assert_allclose(weighted.predict_proba(IRIS.numpy()), copied.predict_proba(IRIS.numpy()), atol=1e-10)


def test_shrinkage_of_mixtures_is_refused():
    with pytest.raises(ProgramError, match=r"shrinkage: expected None for mixtures \(n_components=2\), got 'oas'"):
        MixtureClassifier(2, shrinkage="oas").fit(IRIS.numpy(), SPECIES.numpy())
