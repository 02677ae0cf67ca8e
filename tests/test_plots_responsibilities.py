"""The numbers behind the responsibilities picture, against Bayes' rule written with scipy."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from scipy.stats import norm

from probmix.errors import DataError
from probmix.models import GaussianMixture
from probmix.plots import plot_responsibilities

matplotlib.use("Agg")

MODEL = GaussianMixture(2, covariance="spherical")
RNG = np.random.default_rng(2)
WEIGHTS, LOC, VAR = np.array([0.4, 0.6]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]), np.array([0.7, 1.2])
SITES = {"weights": WEIGHTS, "loc": LOC, "var": VAR}
X = RNG.normal(size=(80, 3)) + RNG.choice([0.0, 2.0], size=(80, 1)) * np.array([0.0, 0.0, 1.0])


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def bayes(x: np.ndarray, weights: np.ndarray, loc: np.ndarray, var: np.ndarray) -> np.ndarray:
    joint = weights * norm(loc, np.sqrt(var)[:, None]).pdf(x[:, None, :]).prod(axis=-1)
    return joint / joint.sum(axis=1, keepdims=True)


def groups(ax: Axes) -> dict[str, PathCollection]:
    """Collections by the first words of their label: ``component 0``, ..., ``largest responsibility``."""
    return {" ".join(str(c.get_label()).split()[:2]).rstrip(":"): c for c in ax.collections}


@pytest.mark.parametrize("features", [(0, 1), (2, 0)])
def test_points_have_the_colour_of_their_component(features: tuple[int, int]) -> None:
    resp = bayes(X, WEIGHTS, LOC, VAR)  # of all three features: in the plane (0, 1) the components coincide
    ax = plot_responsibilities(X, MODEL, SITES, features=features)
    for k, shade in enumerate(["#0072B2", "#D55E00"]):
        drawn, mine = groups(ax)[f"component {k}"], resp.argmax(axis=1) == k
        np.testing.assert_array_equal(drawn.get_offsets(), X[mine][:, features])
        np.testing.assert_allclose(drawn.get_facecolor()[:, :3], [to_rgba(shade)[:3]] * mine.sum())
        assert drawn.get_label() == f"component {k}: {mine.sum()} of 80"


def test_certainty_shows_in_opacity_and_size() -> None:
    resp = bayes(X, WEIGHTS, LOC, VAR)
    ax = plot_responsibilities(X, MODEL, SITES)
    for k in (0, 1):
        certainty = resp[resp.argmax(axis=1) == k].max(axis=1)
        drawn = groups(ax)[f"component {k}"]
        order = np.argsort(certainty)
        assert (np.diff(drawn.get_facecolor()[order, 3]) > 0).all()
        assert (np.diff(drawn.get_sizes()[order]) > 0).all()
        assert drawn.get_facecolor()[:, 3].min() >= 0.3  # still visible


def test_the_uncertain_are_outlined_and_counted() -> None:
    unsure = bayes(X, WEIGHTS, LOC, VAR).max(axis=1) < 0.9
    assert 0 < unsure.sum() < len(X)
    outlined = groups(plot_responsibilities(X, MODEL, SITES))["largest responsibility"]
    np.testing.assert_array_equal(outlined.get_offsets(), X[unsure][:, :2])
    assert len(outlined.get_facecolor()) == 0
    assert outlined.get_label() == f"largest responsibility < 0.9: {unsure.sum()}"


def test_one_feature_is_drawn_against_the_largest_responsibility() -> None:
    sites = SITES | {"loc": LOC[:, 2:]}
    resp = bayes(X[:, 2:], WEIGHTS, LOC[:, 2:], VAR)
    ax = plot_responsibilities(X[:, 2], MODEL, sites, feature_names=["speed"])
    mine = resp.argmax(axis=1) == 1
    expected = np.stack([X[mine, 2], resp[mine, 1]], axis=1)
    np.testing.assert_allclose(groups(ax)["component 1"].get_offsets(), expected, rtol=1e-12)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("speed", "largest responsibility")
    assert ax.get_ylim()[0] < 0.5
    assert ax.get_ylim()[1] > 1


def test_draws_are_averaged() -> None:
    loc = LOC + 0.5 * RNG.normal(size=(2, 3, 2, 3))
    sites = {"weights": np.tile(WEIGHTS, (2, 3, 1)), "loc": loc, "var": np.tile(VAR, (2, 3, 1))}
    resp = np.mean([bayes(X, WEIGHTS, one, VAR) for one in loc.reshape(6, 2, 3)], axis=0)
    drawn = groups(plot_responsibilities(X, MODEL, sites))
    np.testing.assert_array_equal(drawn["component 0"].get_offsets(), X[resp.argmax(axis=1) == 0][:, :2])
    np.testing.assert_array_equal(drawn["largest responsibility"].get_offsets(), X[resp.max(axis=1) < 0.9][:, :2])


def test_one_component_and_an_empty_one() -> None:
    one = {"weights": np.ones(1), "loc": LOC[:1], "var": VAR[:1]}
    ax = plot_responsibilities(X, GaussianMixture(1, covariance="spherical"), one)
    assert len(groups(ax)["component 0"].get_offsets()) == 80
    empty = SITES | {"loc": LOC + np.array([[0.0], [1e3]])}
    drawn = groups(plot_responsibilities(X, MODEL, empty))
    assert drawn["component 1"].get_label() == "component 1: 0 of 80"


def test_two_features_are_needed() -> None:
    with pytest.raises(DataError, match=r"expected 2 different columns, got \[1\]"):
        plot_responsibilities(X, MODEL, SITES, features=[1])
