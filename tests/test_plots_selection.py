"""The pictures of selection and merging: lines, gaps, the best, the window, the elbow."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from probmix.errors import DataError
from probmix.plots_selection import plot_merging, plot_selection

matplotlib.use("Agg")

TABLE = pd.DataFrame(
    {
        "num_components": [1, 2, 3, 1, 2, 3],
        "covariance": ["EII"] * 3 + ["VVV"] * 3,
        "bic": [30.0, 20.0, 25.0, 28.0, np.nan, 1e6],
    }
)


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def lines(ax: Axes) -> dict[str, Line2D]:
    return {line.get_gid(): line for line in ax.lines if line.get_gid()}


def test_a_line_for_each_covariance_and_a_gap_for_a_failure() -> None:
    drawn = lines(plot_selection(TABLE))
    np.testing.assert_array_equal(drawn["EII"].get_xydata(), [[1, 30], [2, 20], [3, 25]])
    np.testing.assert_array_equal(drawn["VVV"].get_ydata(), [28, np.nan, 1e6])
    np.testing.assert_array_equal(drawn["best"].get_xydata(), [[2, 20]])
    assert drawn["EII"].get_color() != drawn["VVV"].get_color()


def test_the_best_is_named_and_the_axis_labelled() -> None:
    ax = plot_selection(TABLE)
    assert ax.get_legend_handles_labels()[1] == ["EII", "VVV", "best: 2, EII"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("components", "BIC, lower is better")


def test_what_is_much_worse_is_out_of_the_window() -> None:
    low, high = plot_selection(TABLE).get_ylim()
    assert low < 20
    assert 28 < high < 100


def test_fourteen_lines_are_told_apart() -> None:
    names = [f"c{i}" for i in range(14)]
    table = pd.DataFrame([(k, n, k + i) for i, n in enumerate(names) for k in (1, 2)], columns=list(TABLE.columns))
    drawn = [line for gid, line in lines(plot_selection(table)).items() if gid != "best"]
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in drawn}) == 14


def test_bad_tables_are_named() -> None:
    with pytest.raises(DataError, match=r"expected the columns \['icl'\], got .* Pass selection\.table"):
        plot_selection(TABLE, "icl")
    with pytest.raises(DataError, match="expected a finite value, got none in 6 fits"):
        plot_selection(TABLE.assign(bic=np.nan))
    assert plt.get_fignums() == []


def test_merging_draws_points_and_two_lines() -> None:
    drawn = lines(plot_merging([0.0, 1.0, 2.0, 13.0, 24.0], elbow=3))
    np.testing.assert_array_equal(drawn["entropy"].get_xydata(), [[1, 0], [2, 1], [3, 2], [4, 13], [5, 24]])
    np.testing.assert_allclose(drawn["piece-0"].get_ydata(), [0, 1, 2], atol=1e-12)  # exact lines, up to rounding
    np.testing.assert_allclose(drawn["piece-1"].get_ydata(), [2, 13, 24], atol=1e-12)


def test_merging_without_an_elbow_draws_points_alone() -> None:
    assert set(lines(plot_merging([0.0, 1.0]))) == {"entropy"}


def test_bad_entropies_are_named() -> None:
    with pytest.raises(DataError, match=r"vector of finite values, got the shape \(1, 2\)"):
        plot_merging([[0.0, 1.0]])
    with pytest.raises(DataError, match="between 1 and 3, got 3"):
        plot_merging([0.0, 1.0, 2.0], elbow=3)
