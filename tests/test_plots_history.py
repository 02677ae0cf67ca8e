"""The history picture: which lines, which is the best, which window."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from probmix.errors import DataError
from probmix.plots import plot_history

matplotlib.use("Agg")

NAN = np.nan
RUNS = [[-9.0, -5.0, -4.0, NAN], [-8.0, -6.0, -3.5, -3.2], [-7.0, NAN, NAN, NAN], [NAN, NAN, NAN, NAN]]


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def runs(ax: Axes) -> dict[str, Line2D]:
    return {line.get_gid(): line for line in ax.lines if line.get_gid()}


def test_every_restart_ends_where_it_stopped() -> None:
    drawn = runs(plot_history({"objective": np.array(RUNS)}))
    assert sorted(drawn) == ["restart-0", "restart-1", "restart-2"]  # the fourth has nothing to show
    for restart, steps in enumerate([3, 4, 1]):
        np.testing.assert_array_equal(drawn[f"restart-{restart}"].get_xdata(), np.arange(steps))
        np.testing.assert_array_equal(drawn[f"restart-{restart}"].get_ydata(), RUNS[restart][:steps])


@pytest.mark.parametrize(("options", "best", "value"), [({}, 1, "-3.2"), ({"best": 0}, 0, "-4")])
def test_the_best_restart_stands_out(options: dict[str, int], best: int, value: str) -> None:
    ax = plot_history({"objective": np.array(RUNS)}, **options)
    drawn = runs(ax)
    highlighted = drawn.pop(f"restart-{best}")
    assert all(highlighted.get_linewidth() > line.get_linewidth() for line in drawn.values())
    assert highlighted.get_color() not in {line.get_color() for line in drawn.values()}
    assert ax.get_legend_handles_labels()[1] == ["2 other restarts", f"restart {best}, ends at {value}"]


@pytest.mark.parametrize("convert", [list, np.array, lambda v: torch.tensor(v, requires_grad=True)])
def test_one_run_needs_no_restart_axis(convert: type) -> None:
    ax = plot_history({"objective": convert([-3.0, -2.0, -1.5])})
    np.testing.assert_array_equal(runs(ax)["restart-0"].get_ydata(), [-3.0, -2.0, -1.5])
    assert ax.get_legend_handles_labels()[1] == ["ends at -1.5"]


def test_a_far_start_does_not_flatten_the_rest() -> None:
    objective = np.append([-1e6], -10 + np.linspace(0, 5, 99))
    low, high = plot_history({"objective": objective}).get_ylim()
    assert low < objective[10]
    assert low > -20
    assert high > objective[-1]


BAD = {
    "no objective": ({"loss": [1.0]}, {}, r"entry 'objective', got \['loss'\]\. Pass the history of a fit"),
    "three axes": ({"objective": np.zeros((2, 3, 4))}, {}, r"\(restarts, steps\) .* got the shape \(2, 3, 4\) with 24"),
    "all failed": ({"objective": np.full((2, 3), NAN)}, {}, r"shape \(2, 3\) with 0 of them\. Read the status"),
    "failed best": ({"objective": RUNS}, {"best": 3}, r"finite values, \[0, 1, 2\], got 3\. Leave it out"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_histories_are_named_and_leave_no_figure(case: str) -> None:
    history, options, message = BAD[case]
    with pytest.raises(DataError, match=message):
        plot_history(history, **options)
    assert plt.get_fignums() == []
