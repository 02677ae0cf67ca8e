"""Outlier scores against scipy and scikit-learn, and on images where data are at hand."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from probmix.datasets import load_iris, load_wine
from probmix.errors import DataError
from probmix.inference import EM, infer
from probmix.models import GaussianMixture
from probmix.outliers import DensityScore, MahalanobisScore, detection, fit_mahalanobis, threshold_of

IRIS, SPECIES = load_iris().x, load_iris().target
WINE, CULTIVAR = load_wine().x, load_wine().target


@pytest.mark.parametrize(("x", "labels"), [(IRIS, SPECIES), (WINE, CULTIVAR)], ids=["iris", "wine"])
@pytest.mark.parametrize("shrinkage", ["none", "ledoit_wolf"])
def test_the_score_is_the_squared_distance_to_the_nearest_class(x, labels, shrinkage):
    """Rows centred by class; scipy for the distances, scikit-learn for the covariance."""
    means = np.stack([x[labels == c].mean(0).numpy() for c in range(3)])
    centred = x.numpy() - means[labels.numpy()]
    cov = (
        LedoitWolf(assume_centered=True).fit(centred).covariance_
        if shrinkage != "none"
        else centred.T @ centred / len(x)
    )
    squared = cdist(x.numpy(), means, "mahalanobis", VI=np.linalg.inv(cov)) ** 2
    score = fit_mahalanobis(x, labels, shrinkage=shrinkage)
    np.testing.assert_allclose(score.distances(x).numpy(), squared, rtol=1e-6)  # condition of wine's covariance: 1e7
    np.testing.assert_allclose(score.score(x).numpy(), squared.min(1), rtol=1e-6)
    # relative: less the distance to all rows together
    everything = np.cov(x.numpy().T, bias=True)
    if shrinkage == "none":
        background = cdist(x.numpy(), x.numpy().mean(0)[None], "mahalanobis", VI=np.linalg.inv(everything))[:, 0] ** 2
        relative = fit_mahalanobis(x, labels, relative=True).score(x).numpy()
        np.testing.assert_allclose(relative, squared.min(1) - background, rtol=1e-5, atol=1e-5)


def test_it_is_the_squared_distance_not_half_of_it():
    score = MahalanobisScore(torch.zeros(1, 1), torch.ones(1, 1))
    assert score.score(torch.tensor([[3.0]])).tolist() == [9.0]


def test_the_ranking_is_that_of_the_largest_class_density():
    """With one covariance and equal classes, the nearest class is the class of greatest density."""
    score = fit_mahalanobis(IRIS, SPECIES)
    sites = {"weights": torch.ones(3).double() / 3, "loc": score.loc, "cov": score.cov}
    best = GaussianMixture(3, "tied").log_prob_components(IRIS, sites).amax(-1)
    torch.testing.assert_close(score.score(IRIS) - score.score(IRIS)[0], -2 * (best - best[0]), rtol=1e-8, atol=1e-8)


def test_a_shift_of_the_data_and_names_of_the_classes_change_nothing():
    plain = fit_mahalanobis(IRIS, SPECIES, relative=True).score(IRIS)
    moved = fit_mahalanobis(IRIS + 1e4, 7 - 2 * SPECIES, relative=True).score(IRIS + 1e4)
    torch.testing.assert_close(
        plain, moved, rtol=1e-6, atol=1e-6
    )  # 1e4 costs four of sixteen digits, the condition two


def test_a_direction_in_which_all_rows_vary_alike_is_no_news_to_the_relative_score():
    """Outliers in a noise direction of large spread: only the plain score rises with it."""
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 2
    x = np.stack([rng.normal(size=2000) + 6 * labels, 10 * rng.normal(size=2000)], 1)
    far = np.array([[0.0, 50.0], [6.0, -50.0]])
    plain, relative = (fit_mahalanobis(x, labels, relative=r) for r in (False, True))
    assert plain.score(far).min() > 20
    # what is left is sampling error: the two estimates of that variance differ by less than 1 %
    assert np.abs(relative.score(far) - relative.score(far * [1, 0])).max() < 0.01 * 25 + 0.1


@pytest.mark.parametrize("kind", ["array", "float32", "tensor"])
def test_what_comes_in_comes_out(kind):
    x = {"array": IRIS.numpy(), "float32": IRIS.float(), "tensor": IRIS}[kind]
    labels = SPECIES.numpy() if kind == "array" else SPECIES
    scores = fit_mahalanobis(x, labels).score(x)
    assert type(scores) is type(x)
    assert scores.dtype == x.dtype


def test_the_density_score_and_its_threshold():
    em = infer(GaussianMixture(3), IRIS, EM(), seed=0)
    score = DensityScore(em.program, em.sites())
    np.testing.assert_allclose(score.score(IRIS.numpy()), -em.program.log_prob(IRIS, em.sites()).numpy())
    limit = threshold_of(score.score(IRIS), fraction=0.1)
    assert int((score.score(IRIS) > limit).sum()) == 15
    assert (score.score(IRIS + 100.0) > limit).all()


def test_a_singular_covariance_is_refused_with_the_remedy():
    x = torch.cat([IRIS, IRIS[:, :1] + IRIS[:, 1:2]], 1)
    with pytest.raises(DataError, match=r'all 5 columns, got a singular covariance. Use shrinkage="oas"'):
        fit_mahalanobis(x, SPECIES)
    assert fit_mahalanobis(x, SPECIES, shrinkage="oas").score(x).isfinite().all()


# --- metrics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(200, 100), (37, 500), (20, 20)])
def test_the_metrics_are_those_of_scikit_learn(sizes, ties):
    rng = np.random.default_rng(sum(sizes))
    inside, outside = rng.normal(size=sizes[0]), rng.normal(1.0, 1.5, size=sizes[1])
    if ties:
        inside, outside = inside.round(), outside.round()
    truth, scores = np.repeat([0, 1], sizes), np.concatenate([inside, outside])
    found = detection(inside, outside)
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores), rel=1e-12)
    assert found.aupr == pytest.approx(average_precision_score(truth, scores), rel=1e-12)
    assert found.aupr_inliers == pytest.approx(average_precision_score(1 - truth, -scores), rel=1e-12)
    false, true, _ = roc_curve(1 - truth, -scores, drop_intermediate=False)  # inliers are those to be kept
    assert found.fpr_95 == pytest.approx(false[true >= 0.95].min(), rel=1e-12)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match="got 2 and 1, of which 1 and 0 are not finite"):
        detection(np.array([0.0, np.nan]), np.array([1.0]))


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(DataError, match=f"fraction: .*got {fraction}"):
        threshold_of(IRIS[:, 0], fraction=fraction)


# --- images ---------------------------------------------------------------------------------------------------------


def idx(file: Path) -> np.ndarray:
    """An array in the IDX format of MNIST."""
    raw = gzip.decompress(file.read_bytes())
    sizes = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)


@pytest.mark.slow
def test_digits_are_told_from_clothes():
    """MNIST is known, Fashion-MNIST is not: the distance in 784 pixels (shrunk) tells nearly all of it."""
    folder = Path(os.environ.get("PROBMIX_DATA", ""), "mnist")
    if not (folder / "fashion").is_dir():
        pytest.skip("set PROBMIX_DATA to a folder that holds mnist/mnist and mnist/fashion in IDX format")
    pixels = {
        name: idx(folder / name / f"{part}-images-idx3-ubyte.gz").reshape(-1, 784) / 255.0
        for name, part in (("mnist", "train"), ("fashion", "t10k"))
    }
    labels = idx(folder / "mnist" / "train-labels-idx1-ubyte.gz").astype(np.int64)
    score = fit_mahalanobis(pixels["mnist"][:10_000], labels[:10_000], shrinkage="oas")
    found = detection(score.score(pixels["mnist"][10_000:12_000]), score.score(pixels["fashion"][:2000]))
    assert found.auroc > 0.95
