"""The picture of a dial: the curve, its temperatures, and that they can be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from picture_laws import draws_on_given_axes, keeps_all_laws

from probmix.errors import DataError
from probmix.plots import plot_dial

matplotlib.use("Agg")

TEMPERATURES = [0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
QUALITY = [0.99, 0.98, 0.96, 0.92, 0.8, 0.55, 0.3]
DIVERSITY = [0.1, 0.2, 0.32, 0.5, 0.66, 0.8, 0.86]


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def line(ax: Axes, gid: str) -> np.ndarray:
    (found,) = [drawn for drawn in ax.lines if drawn.get_gid() == gid]
    return np.stack(found.get_data())


def written(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6], [6, 2, 0, 5, 1, 3, 4]])
def test_the_curve_goes_from_cold_to_hot(order: list[int]) -> None:
    ax = plot_dial(*(np.array(values)[order] for values in (TEMPERATURES, QUALITY, DIVERSITY)))
    np.testing.assert_array_equal(line(ax, "dial"), [DIVERSITY, QUALITY])
    np.testing.assert_array_equal(line(ax, "training"), [[0.5], [0.92]])
    assert written(ax) == ["0.1", "0.25", "0.5", "1", "2", "4", "8"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("diversity", "quality")


def test_without_the_temperature_of_training_there_is_no_mark() -> None:
    ax = plot_dial([0.5, 2.0], [1.0, 0.5], [0.1, 0.2])
    assert ax.get_legend_handles_labels()[1] == ["by temperature"]


def overlaps(ax: Axes) -> list[tuple[str, str]]:
    ax.figure.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in ax.texts]
    return [(a, b) for i, (a, one) in enumerate(boxes) for b, other in boxes[:i] if one.overlaps(other)]


@pytest.mark.parametrize("seed", range(6))
def test_texts_do_not_overlap_and_the_important_ones_are_written(seed: int) -> None:
    """Also where many points are in one place; monotone curves, as a dial's mostly are."""
    rng = np.random.default_rng(seed)
    temperatures = [0.1, 0.2, 0.5, 0.7, 1.0, 1.2, 1.5, 2.0, 3.0]
    steps = rng.random((2, 8)) ** 4  # most of them small
    diversity, quality = np.cumsum([[0.1, 1.0], *(steps * [[1], [-1]]).T], 0).T
    ax = plot_dial(temperatures, quality, diversity)
    assert overlaps(ax) == []
    assert "1" in written(ax)


def test_where_texts_stand_beside_the_curve() -> None:
    """Above a level curve, to the upper right of a falling one."""
    level = plot_dial([0.5, 1, 2], [0.5, 0.5, 0.5], [0.1, 0.2, 0.3])
    assert all(text.xyann == pytest.approx((0, 11)) for text in level.texts)
    falling = plot_dial([0.5, 1, 2], [0.9, 0.5, 0.1], [0.1, 0.5, 0.9])
    assert all(text.xyann == pytest.approx((11 / np.sqrt(2), 11 / np.sqrt(2))) for text in falling.texts)


BAD: dict[str, tuple[tuple[Any, Any, Any], str]] = {
    "lengths": (([1, 2], [1, 1], [1, 1, 1]), r"one length, \(t,\), got \(2,\), \(2,\) and \(3,\)"),
    "seeds": (([1, 2], np.ones((3, 2)), np.ones((3, 2))), r"got \(2,\), \(3, 2\) and \(3, 2\)\. Take means over seeds"),
    "none": (([], [], []), r"got \(0,\)"),
    "cold": (([-1, 2], [1, 1], [1, 1]), r"different numbers of at least 0, got \[-1\.0, 2\.0\]"),
    "twice": (([1, 1], [1, 1], [1, 1]), r"different numbers of at least 0, got \[1\.0, 1\.0\]\. Take means"),
    "not finite": (([1, 2], [1, np.nan], [1, 1]), r"quality: expected finite numbers, got 1 others, first at \(1,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_leaves_no_figure(name: str) -> None:
    given, message = BAD[name]
    with pytest.raises(DataError, match=message):
        plot_dial(*given)
    assert plt.get_fignums() == []


def draw(**where: Any) -> Axes:
    return plot_dial(torch.tensor(TEMPERATURES), torch.tensor(QUALITY), DIVERSITY, **where)


def test_manners(monkeypatch: pytest.MonkeyPatch) -> None:
    keeps_all_laws(draw, monkeypatch, on=draws_on_given_axes)


def test_one_temperature_is_a_point() -> None:
    assert written(plot_dial([1.0], [0.5], [0.5])) == ["1"]
