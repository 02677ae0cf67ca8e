"""The numbers behind traces and rank histograms."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch
from scipy.stats import binom

from probmix.errors import DataError, ProgramError
from probmix.models import GaussianMixture
from probmix.plots import plot_components

matplotlib.use("Agg")

CHAINS, DRAWS, BINS = 4, 400, 20
RNG = np.random.default_rng(4)
FIRST = RNG.uniform(size=(CHAINS, DRAWS))
SITES = {
    "weights": np.stack([FIRST, 1 - FIRST], axis=-1),
    "loc": RNG.normal(size=(CHAINS, DRAWS, 2, 3)) + np.array([[0.0], [10.0]]),
    "cov": RNG.normal(size=(CHAINS, DRAWS, 2, 3, 3)),
}
DIMS = GaussianMixture(2).dims


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def lanes(ax: Axes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heights of the histograms (component, chain, bin), lines of equal counts (component,), bands (component, 2)."""
    steps = [patch for patch in ax.patches if isinstance(patch, StepPatch)]
    heights = np.array([step.get_data().values for step in steps]).reshape(-1, CHAINS, BINS)
    bands = np.array([[p.get_y(), p.get_y() + p.get_height()] for p in ax.patches if isinstance(p, Rectangle)])
    return heights, np.array([line.get_ydata()[0] for line in ax.lines]), bands


def share_outside(figure: Figure, row: int, component: int) -> float:
    heights, _, bands = lanes(figure.axes[2 * row + 1])
    low, high = bands[component]
    return float(((heights[component] < low - 1e-9) | (heights[component] > high + 1e-9)).mean())


def test_one_row_for_each_site_and_feature() -> None:
    figure = plot_components(SITES, dims=DIMS, feature_names=["a", "b", "c"])
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == ["weights", "loc\na", "loc\nb", "loc\nc"]
    figure = plot_components(SITES, dims=DIMS, sites=["cov"])
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]  # a covariance is symmetric
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == [f"cov\nfeature {i}\nfeature {j}" for i, j in pairs]
    np.testing.assert_array_equal(figure.axes[2].lines[0].get_ydata(), SITES["cov"][0, :, 0, 0, 1])


def test_traces_are_the_draws() -> None:
    ax = plot_components(SITES, dims=DIMS, sites=["loc"]).axes[2]
    expected = [SITES["loc"][chain, :, k, 1] for k in (0, 1) for chain in range(CHAINS)]
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines], expected)
    assert [line.get_color() for line in ax.lines] == ["#0072B2"] * CHAINS + ["#D55E00"] * CHAINS
    assert len({line.get_alpha() for line in ax.lines}) == CHAINS


def test_the_component_axis_may_stand_anywhere_or_be_absent() -> None:
    draws = {"swapped": SITES["loc"].swapaxes(2, 3), "cov": SITES["cov"][:, :, 0]}
    dims = {"swapped": ("feature", "component"), "cov": ("feature", "feature_bis")}
    figure = plot_components(draws, dims=dims, sites=["swapped", "cov"])
    np.testing.assert_array_equal(figure.axes[2].lines[0].get_ydata(), SITES["loc"][0, :, 0, 1])
    assert len(figure.axes[6].lines) == CHAINS
    assert len(figure.axes) == 2 * (3 + 6)


def test_rank_histograms_count_ranks_about_the_equal_count() -> None:
    heights, centres, bands = lanes(plot_components(SITES, dims=DIMS, sites=["weights"]).axes[1])
    equal = DRAWS / BINS
    for k in (0, 1):
        order = np.argsort(SITES["weights"][..., k].ravel())  # no ties
        chain_of_rank = np.repeat(np.arange(CHAINS), DRAWS)[order].reshape(BINS, -1)
        counts = np.array([(chain_of_rank == chain).sum(axis=1) for chain in range(CHAINS)])
        np.testing.assert_allclose(heights[k] - centres[k], counts / equal - 1, atol=1e-12)
        expected = np.array(binom(DRAWS, 1 / BINS).interval(0.95)) / equal - 1
        np.testing.assert_allclose(bands[k] - centres[k], expected, atol=1e-12)
    lowest_of_first, highest_of_second = heights[0].min(), heights[1].max()
    assert lowest_of_first > highest_of_second  # lanes do not meet


def test_mixed_chains_stay_in_the_band_and_a_switched_one_leaves_it() -> None:
    """Null: independent draws of one law, 80 counts per component of which at most 5 % leave the band.

    Of 80 counts 12 or more (15 %) would leave it with probability 4e-4 if they were independent with 5 % each; ranks
    without replacement vary less. The negative control is the same figure with the labels of one chain switched.
    """
    figure = plot_components(SITES, dims=DIMS)
    assert all(share_outside(figure, row, k) < 0.15 for row in range(4) for k in (0, 1))
    switched = {name: value.copy() for name, value in SITES.items()}
    switched["loc"][3] = switched["loc"][3][:, ::-1]
    figure = plot_components(switched, dims=DIMS)
    assert all(share_outside(figure, row, k) > 0.5 for row in (1, 2, 3) for k in (0, 1))
    assert share_outside(figure, 0, 0) < 0.15  # the weights were left alone


def test_equal_draws_share_their_rank() -> None:
    counts, centres, _ = lanes(plot_components({"a": np.ones((CHAINS, DRAWS))}, dims={"a": ()}, sites=["a"]).axes[1])
    np.testing.assert_allclose(counts - centres[0], np.broadcast_to(counts[0, 0] - centres[0], counts.shape))


def test_one_chain_has_no_other_to_be_ranked_with() -> None:
    ax = plot_components({"weights": SITES["weights"][:1]}, dims=DIMS, sites=["weights"]).axes[1]
    assert [text.get_text() for text in ax.texts] == ["one chain: no other to rank it with"]
    assert not ax.patches


def test_legends_name_components_and_chains() -> None:
    legends = plot_components(SITES, dims=DIMS, sites=["weights"]).legends
    names = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert names == [["component 0", "component 1"], [f"chain {c}" for c in range(CHAINS)]]


BAD = {
    "unknown site": (
        {"sites": ["cow"]},
        DataError,
        r"names in both draws \['cov', 'loc', 'weights'\] and dims .* got 'cow'",
    ),
    "no sites": ({"sites": []}, DataError, r"1 to 40 rows, got 0"),
    "wrong number of names": ({"feature_names": ["a"]}, DataError, r"expected 3, one per feature, got 1"),
    "no chain axis": (
        {"draws": {"weights": SITES["weights"][0]}, "sites": ["weights"]},
        ProgramError,
        r"\('chain', 'draw', 'component'\), got \(400, 2\)\. One chain has a leading axis 1",
    ),
    "more rows than fit": (
        {"draws": {"cov": np.ones((2, 5, 2, 9, 9))}, "sites": ["cov"]},
        DataError,
        r"expected 1 to 40 rows, got 45 from \['cov'\]\. Name other sites",
    ),
    "missing values": (
        {"draws": {"weights": np.full((2, 3, 2), np.nan)}, "sites": ["weights"]},
        DataError,
        r"weights: expected finite numbers, got 12 others, first at \(0, 0, 0\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_draws_are_named_and_leave_no_figure(case: str) -> None:
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        plot_components(**({"draws": SITES, "dims": DIMS} | options))
    assert plt.get_fignums() == []
