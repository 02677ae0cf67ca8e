"""The predictive check picture: p-values and curves against scipy, panels, shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from scipy.stats import gaussian_kde, skew

from probmix.errors import DataError
from probmix.plots import plot_predictive_check

matplotlib.use("Agg")

RNG = np.random.default_rng(3)
OBSERVED = RNG.gamma(2.0, size=(120, 3))
REPLICATED = RNG.gamma(2.2, size=(200, 120, 3))


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def p_values(ax: Axes) -> list[float]:
    found = re.fullmatch(r"p-values: mean (\S+), std (\S+), skewness (\S+)", ax.get_title())
    assert found
    return [float(text) for text in found.groups()]


def test_p_values_are_the_shares_of_replicates_above() -> None:
    figure = plot_predictive_check(OBSERVED, REPLICATED)
    for j, ax in enumerate(figure.axes):
        expected = [np.mean(of(REPLICATED[:, :, j], axis=1) >= of(OBSERVED[:, j])) for of in (np.mean, np.std, skew)]
        np.testing.assert_allclose(p_values(ax), expected, atol=0.005)  # two decimals are printed


def test_a_model_that_misses_the_skewness_is_seen() -> None:
    normal = OBSERVED.mean(axis=0) + OBSERVED.std(axis=0) * RNG.normal(size=(500, 120, 3))
    for ax in plot_predictive_check(OBSERVED, normal).axes:
        mean, std, skewness = p_values(ax)
        # The skewness of 120 normal values has standard deviation sqrt(6 / 120) = 0.22, that of a gamma(2) is 1.4: none
        # of 500 replicates reaches even 0.9. Mean and std are those of the data: p-values near one half.
        assert skewness == 0.0
        assert 0.3 < mean < 0.7
        assert 0.3 < std < 0.7


def test_curves_are_kernel_densities_of_one_bandwidth() -> None:
    ax = plot_predictive_check(OBSERVED, REPLICATED, num_replicates=20).axes[0]
    curves = {line.get_label(): line for line in ax.lines}
    assert len(ax.lines) == 21
    assert "replicated data, 20 of 200 sets" in curves
    values = OBSERVED[:, 0]
    iqr = np.subtract(*np.percentile(values, [75, 25]))
    bandwidth_std = 0.9 * min(values.std(), iqr / 1.34) / len(values) ** 0.2
    for values, line in [(OBSERVED[:, 0], curves["observed"]), (REPLICATED[0, :, 0], ax.lines[0])]:
        expected = gaussian_kde(values, bw_method=bandwidth_std / values.std(ddof=1))
        # Moving values by half a cell, h = 1/30 of a bandwidth, changes a kernel by 0.6 h = 2 % at most where it is
        # steepest; the moves of many values cancel, and half a percent of the top is left.
        np.testing.assert_allclose(line.get_ydata(), expected(line.get_xdata()), atol=0.01 * line.get_ydata().max())


def test_of_many_features_the_first_six_are_drawn_and_the_title_says_so() -> None:
    names = [f"f{i}" for i in range(13)]
    figure = plot_predictive_check(RNG.normal(size=(40, 13)), RNG.normal(size=(5, 40, 13)), feature_names=names)
    assert [ax.get_xlabel() for ax in figure.axes] == names[:6]
    assert "first 6 of 13 features" in figure.get_suptitle()


@pytest.mark.parametrize("num_features", [1, 2, 3, 4, 5, 6])
def test_every_feature_has_one_panel(num_features: int) -> None:
    data = RNG.normal(size=(30, num_features))
    figure = plot_predictive_check(data, np.stack([data, data + 1]))
    assert [ax.get_xlabel() for ax in figure.axes] == [f"feature {i}" for i in range(num_features)]
    assert figure.get_suptitle() == ""


@pytest.mark.parametrize("shape", [(12, 120), (12, 120, 1), (3, 4, 120), (3, 4, 120, 1)])
def test_leading_axes_count_replicates(shape: tuple[int, ...]) -> None:
    flat = REPLICATED[:12, :, 0]
    expected = plot_predictive_check(OBSERVED[:, 0], flat).axes[0]
    ax = plot_predictive_check(OBSERVED[:, 0], flat.reshape(shape)).axes[0]
    assert ax.get_title() == expected.get_title()
    assert len(ax.lines) == 13


def test_constant_data_have_a_picture(recwarn: pytest.WarningsRecorder) -> None:
    ax = plot_predictive_check(np.full(20, 3.0), np.full((4, 20), 3.0)).axes[0]
    assert p_values(ax) == [1.0, 1.0, 1.0]  # all replicates are equal to the data
    assert not recwarn.list


BAD = {
    "other number of rows": (
        OBSERVED,
        REPLICATED[:, :100],
        {},
        r"\('replicates', 120, 3\), got \(200, 100, 3\)\. Draw",
    ),
    "other number of features": (OBSERVED, REPLICATED[:, :, :2], {}, r"expected \('replicates', 120, 3\), got"),
    "one data set without its axis": (
        OBSERVED,
        REPLICATED[0],
        {},
        r"expected \('replicates', 120, 3\), got \(120, 3\)",
    ),
    "no data sets": (OBSERVED, REPLICATED[:0], {}, r"got \(0, 120, 3\)"),
    "missing values": (OBSERVED, np.full((2, 120, 3), np.nan), {}, r"got 720 others, first at \(0, 0, 0\)"),
    "nothing to draw": (OBSERVED, REPLICATED, {"num_replicates": 0}, r"at least 1, got 0"),
    "names": (OBSERVED, REPLICATED, {"feature_names": ["a"]}, r"expected 3, one per feature, got 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_replicates_are_named_and_leave_no_figure(case: str) -> None:
    observed, replicated, options, message = BAD[case]
    with pytest.raises(DataError, match=message):
        plot_predictive_check(observed, replicated, **options)
    assert plt.get_fignums() == []
