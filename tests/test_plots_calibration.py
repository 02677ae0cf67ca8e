"""The calibration picture: its lines, bars and bands, what it says, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from scipy import stats

from probmix.errors import DataError
from probmix.plots import plot_calibration
from probmix.ranks import FAILED, Calibration

matplotlib.use("Agg")

GENERATOR = np.random.default_rng(0)


def ranks(shift: float = 0.0, stretch: float = 1.0, simulations: int = 200, draws: int = 99) -> np.ndarray:
    truth = GENERATOR.standard_normal(simulations)
    return (shift + stretch * GENERATOR.standard_normal((simulations, draws)) < truth[:, None]).sum(1)


RANKS = {"right": ranks(), "high": ranks(shift=0.6), "narrow": ranks(stretch=0.5), "wide": ranks(stretch=1.3)}
CALIBRATION = Calibration(RANKS, 99)


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def panel(figure: Figure, name: str) -> Axes:
    return next(ax for ax in figure.axes if ax.get_title().split("\n")[0] == name)


def band_of(ax: Axes) -> np.ndarray:
    (band,) = (c for c in ax.collections if isinstance(c, PolyCollection))
    return band.get_paths()[0].vertices


@pytest.mark.parametrize("name", RANKS)
def test_the_line_is_the_share_of_ranks_below_less_that_of_uniform_ones(name: str) -> None:
    (line,) = (line for line in panel(plot_calibration(CALIBRATION), name).lines if line.get_gid() == name)
    place = np.arange(101)
    expected = (RANKS[name][:, None] < place).mean(0) - place / 100
    np.testing.assert_allclose(line.get_xdata(), place / 100)
    np.testing.assert_allclose(line.get_ydata(), expected, atol=1e-12)


def test_the_line_leaves_the_band_where_the_test_refuses() -> None:
    """The wide posterior is refused by its spread alone: its line keeps inside, its title says so all the same."""
    figure, outside, refused = plot_calibration(CALIBRATION), {}, {}
    limits = CALIBRATION.test.band(CALIBRATION.false_alarm_of_a_test)
    for name in RANKS:
        ax = panel(figure, name)
        edge = band_of(ax)
        line = next(line for line in ax.lines if line.get_gid() == name)
        x, y = line.get_xdata()[1:-1], line.get_ydata()[1:-1]
        inside = [edge[np.isclose(edge[:, 0], at), 1] for at in x]
        np.testing.assert_allclose([e.min() for e in inside], limits.low / 200 - x, atol=1e-12)
        np.testing.assert_allclose([e.max() for e in inside], limits.high / 200 - x, atol=1e-12)
        outside[name] = any(v < e.min() - 1e-9 or v > e.max() + 1e-9 for v, e in zip(y, inside, strict=True))
        refused[name] = CALIBRATION.test.p_value(RANKS[name]) <= CALIBRATION.false_alarm_of_a_test
    assert outside == refused
    assert set(outside.values()) == {True, False}


@pytest.mark.parametrize("kind", ["ecdf", "rank"])
def test_titles_and_colours_say_what_is_refused(kind: str) -> None:
    figure = plot_calibration(CALIBRATION, kind)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["right", "high\nbiased upwards", "narrow\ntoo narrow", "wide\ntoo wide"]
    drawn = [next(p for p in [*ax.lines, *ax.patches] if p.get_gid()) for ax in figure.axes]
    colours = [part.get_facecolor() if kind == "rank" else part.get_color() for part in drawn]
    assert len({str(c) for c in colours[1:]}) == 1
    assert str(colours[0]) != str(colours[1])
    assert "99.5% of correct fits" in figure.get_suptitle()
    assert len({ax.get_ylim() for ax in figure.axes}) == 1


def test_bars_count_every_rank_and_their_band_is_binomial() -> None:
    """10 bars of 200 ranks, 20 expected in each; 4 quantities, 2 tests and 10 bars share the 1% of false alarms."""
    figure = plot_calibration(CALIBRATION, "rank")
    for name, values in RANKS.items():
        ax = panel(figure, name)
        (bars,) = (patch for patch in ax.patches if patch.get_gid() == name)
        height, edges, _ = bars.get_data()
        np.testing.assert_array_equal(edges, np.arange(0, 101, 10))
        np.testing.assert_allclose(20 * height, np.bincount(values // 10, minlength=10))
        law, alarm = stats.binom(200, 0.1), 0.01 / 2 / 4 / 10
        assert band_of(ax)[:, 1].min() * 20 == pytest.approx(law.ppf(alarm / 2))
        assert band_of(ax)[:, 1].max() * 20 == pytest.approx(law.isf(alarm / 2))


def test_bars_of_unequal_width_have_equal_expectations() -> None:
    """Six bars of 103 places are 17 or 18 wide: with one rank on every place, each bar is as high as expected."""
    figure = plot_calibration(Calibration({"a": np.arange(103)}, 102), "rank")
    height, edges, _ = next(p for p in figure.axes[0].patches if p.get_gid() == "a").get_data()
    assert set(np.diff(edges)) == {20, 21}
    np.testing.assert_allclose(height, 1.0)


def test_failed_fits_are_left_out() -> None:
    values = RANKS["right"].copy()
    values[:50] = FAILED
    ax = plot_calibration(Calibration({"a": values}, 99)).axes[0]
    line = next(line for line in ax.lines if line.get_gid() == "a")
    assert line.get_ydata()[50] == pytest.approx((values[50:] < 50).mean() - 0.5)


def test_chosen_quantities_in_their_order_on_a_figure_of_ones_own() -> None:
    mine = Figure()
    assert plot_calibration(CALIBRATION, quantities=["narrow", "right"], fig=mine) is mine
    assert [ax.get_title().split("\n")[0] for ax in mine.axes] == ["narrow", "right"]
    assert plt.get_fignums() == []


@pytest.mark.parametrize("kind", ["ecdf", "rank"])
@pytest.mark.parametrize("count", [1, 5])
def test_all_text_is_inside_and_apart(kind: str, count: int) -> None:
    names = {f"loc sorted[{i}, 0]": RANKS["narrow"] for i in range(count)}
    figure = plot_calibration(Calibration(names, 99), kind)
    figure.set_dpi(100)
    figure.canvas.draw()
    assert len(figure.axes) == count
    boxes = [part.get_tightbbox() for ax in figure.axes for part in (ax.xaxis, ax.yaxis, ax.title)]
    for box in boxes:  # one pixel: text boxes are rounded up to whole ones
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1
    titles = [ax.title.get_tightbbox() for ax in figure.axes]
    assert not any(one.overlaps(other) for i, one in enumerate(titles) for other in titles[:i])


BAD = {
    "kind": ({"kind": "histogram"}, r'kind: expected "ecdf" or "rank", got \'histogram\''),
    "quantity": ({"quantities": ["loc"]}, r"expected some of \['right', .*, got \['loc'\]\. Leave it out for all"),
    "none": ({"quantities": []}, r"got \[\]\. Leave it out for all"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_leaves_no_figure(case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(DataError, match=message):
        plot_calibration(CALIBRATION, **options)
    assert plt.get_fignums() == []


def test_a_figure_that_is_in_use_is_refused() -> None:
    with pytest.raises(DataError, match=r"empty figure, got one with 3 axes"):
        plot_calibration(CALIBRATION, fig=plt.subplots(1, 3)[0])
