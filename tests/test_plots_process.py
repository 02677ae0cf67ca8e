"""The numbers behind pictures of processes: bands, medians, spectra and periodograms, against scipy and NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from process_cases import normal, t
from scipy import optimize, stats

from probmix.errors import DataError
from probmix.models import SpectralMixtureGP
from probmix.plots_process import plot_forecast, plot_parts, plot_spectrum

matplotlib.use("Agg")

X = torch.linspace(0, 3, 7, dtype=torch.float64)
LOC, STD = X.sin(), 0.2 + 0.1 * X
LAW = dist.Normal(LOC, STD)
MIXED = dist.MixtureSameFamily(
    dist.Categorical(probs=torch.full((7, 2), 0.5).double()),
    dist.Normal(torch.stack([LOC, LOC + 1], -1), torch.stack([STD, 2 * STD], -1)),
)
FREQUENCIES = np.linspace(0, 2, 9)
DRAWS = np.exp(normal(40, 9).numpy())
POWER = 5 * np.abs(normal(9, seed=2).numpy())


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def bands(ax: Axes) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Label -> places, lower and upper edge of every band, of the polygons as they are drawn."""
    found = {}
    for drawn in ax.collections:
        assert isinstance(drawn, PolyCollection)
        corners = drawn.get_paths()[0].vertices
        places = np.unique(corners[:, 0])
        edges = np.array([np.unique(corners[corners[:, 0] == place, 1])[[0, -1]] for place in places]).T
        found[str(drawn.get_label())] = places, *edges
    return found


def line(ax: Axes, label: str) -> np.ndarray:
    (found,) = [drawn for drawn in ax.lines if drawn.get_label() == label]
    return np.stack(found.get_data())


def labels(ax: Axes) -> list[str]:
    return ax.get_legend_handles_labels()[1]


# --- forecasts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(0.5, 0.95), (0.8,), (0.95, 0.1, 0.5)])
def test_bands_are_the_quantiles(levels):
    """Of a normal, by scipy; the widest is drawn first, so that all can be seen."""
    ax = plot_forecast(X, LAW, levels=levels)
    found, law = bands(ax), stats.norm(LOC, STD)
    assert list(found) == [f"{100 * level:g} %" for level in sorted(levels, reverse=True)]
    for level in levels:
        places, low, high = found[f"{100 * level:g} %"]
        np.testing.assert_allclose(places, X)
        np.testing.assert_allclose([low, high], law.interval(level), rtol=1e-9)
    np.testing.assert_allclose(line(ax, "median"), [X, LOC], atol=1e-12)


def test_bands_of_a_mixture_hold_their_probability():
    """Half below the median, 2.5% outside either edge, by scipy's distribution function; the mean is elsewhere."""
    ax = plot_forecast(X[:, None], MIXED, levels=[0.95])

    def below(values: np.ndarray) -> np.ndarray:
        return 0.5 * stats.norm(LOC, STD).cdf(values) + 0.5 * stats.norm(LOC + 1, 2 * STD).cdf(values)

    _, low, high = bands(ax)["95 %"]
    median = line(ax, "median")[1]
    np.testing.assert_allclose(
        [below(low), below(median), below(high)], [[0.025] * 7, [0.5] * 7, [0.975] * 7], rtol=1e-9
    )
    assert np.abs(median - MIXED.mean.numpy()).min() > 0.01
    root = optimize.brentq(lambda value: below(np.full(7, value))[3] - 0.5, -5, 5)
    assert median[3] == pytest.approx(root, rel=1e-9)


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_observations_are_drawn_where_they_are(shape):
    seen, values = normal(5, seed=3), normal(5, seed=4)
    ax = plot_forecast(X, LAW, x=seen.reshape(shape), y=values)
    np.testing.assert_array_equal(line(ax, "observed"), [seen, values])
    assert labels(ax) == ["95 %", "50 %", "median", "observed"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")
    assert labels(plot_forecast(X, LAW)) == ["95 %", "50 %", "median"]


def test_quantiles_go_through_an_increasing_function():
    """Of a log-normal, by scipy; observations go with them."""
    values = normal(7, seed=4)
    ax = plot_forecast(X, LAW, x=X, y=values, levels=[0.9], transform=np.exp)
    law = stats.lognorm(STD, scale=np.exp(LOC))
    np.testing.assert_allclose(bands(ax)["90 %"][1:], law.interval(0.9), rtol=1e-9)
    np.testing.assert_allclose(line(ax, "median")[1], law.median(), rtol=1e-9)
    np.testing.assert_allclose(line(ax, "observed")[1], np.exp(np.asarray(values)))


# --- parts ------------------------------------------------------------------------------------------------------------


def test_every_part_has_a_panel_with_its_own_bands():
    parts = {"trend": LAW, "year": dist.Normal(2 * LOC, 3 * STD), "rest": MIXED}
    fig = plot_parts(X, parts, levels=[0.5])
    assert [ax.get_title("left") for ax in fig.axes] == list(parts)
    for ax, factor in zip(fig.axes[:2], (1, 2), strict=True):
        _, low, high = bands(ax)["50 %"]
        np.testing.assert_allclose(
            [low, high], stats.norm(factor * LOC, (2 * factor - 1) * STD).interval(0.5), rtol=1e-9
        )
        np.testing.assert_allclose(line(ax, "median"), [X, factor * LOC], atol=1e-12)
    assert len({line.get_color() for ax in fig.axes for line in ax.lines}) == 3
    assert [ax.get_xlabel() for ax in fig.axes] == ["", "", "x"]
    fig.axes[0].set_xlim(1, 2)
    assert fig.axes[2].get_xlim() == (1, 2)


def test_parts_of_a_model_can_be_drawn():
    """As `decompose` returns them, a band without components included."""
    x, model = X[:, None], SpectralMixtureGP(2)
    sites = {
        "kernel.log_weights": t([0.0, -1.0]),
        "kernel.frequencies": t([[0.1], [0.5]]),
        "kernel.log_bandwidths": t([[-3.0], [-3.0]]),
        "noise_var": t(0.1),
    }
    parts = model.decompose(x, sites, x, LOC, {"slow": (0.0, 0.3), "fast": (0.3, 0.8), "nothing": (0.8, 2.0)})
    fig = plot_parts(x, parts)
    for ax, part in zip(fig.axes, parts.values(), strict=True):
        np.testing.assert_allclose(line(ax, "median")[1], part.mean, atol=1e-12)
        _, low, high = bands(ax)["95 %"]
        np.testing.assert_allclose(high - low, 2 * 1.959964 * part.stddev, rtol=1e-6, atol=1e-12)


# --- spectra ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.9, 0.5])
def test_the_band_of_a_spectrum_is_the_quantiles_of_draws(level):
    ax = plot_spectrum(FREQUENCIES, DRAWS, level=level)
    places, low, high = bands(ax)[f"{100 * level:g} % of draws"]
    np.testing.assert_array_equal(places, FREQUENCIES)
    expected = np.quantile(DRAWS, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    np.testing.assert_allclose([low, high], expected, rtol=1e-12)
    np.testing.assert_allclose(line(ax, "median"), [FREQUENCIES, np.median(DRAWS, 0)], rtol=1e-12)
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == "frequency, cycles per unit"


def test_one_spectrum_has_no_band():
    ax = plot_spectrum(t(FREQUENCIES.tolist()), t(DRAWS[0].tolist()))
    assert labels(ax) == ["spectral density"]
    np.testing.assert_allclose(line(ax, "spectral density")[1], DRAWS[0])
    assert not ax.collections


@pytest.mark.parametrize("unit", [1.0, 1e6])
def test_a_periodogram_is_scaled_to_the_area_of_the_median(unit):
    """Whatever its unit; by the trapezoid rule, written out."""
    ax = plot_spectrum(FREQUENCIES, DRAWS, periodogram=unit * POWER)
    drawn, median = line(ax, "periodogram, scaled")[1], np.median(DRAWS, 0)

    def area(values: np.ndarray) -> float:
        return float(((values[1:] + values[:-1]) / 2 * np.diff(FREQUENCIES)).sum())

    assert area(drawn) == pytest.approx(area(median))
    np.testing.assert_allclose(drawn / POWER, drawn[0] / POWER[0])


def test_what_is_next_to_nothing_is_below_the_floor():
    """1e-8 of the top, where the axis ends; the median has a gap, since nothing is known to be there."""
    ax = plot_spectrum([0.0, 1.0, 2.0], [[4.0, 1e-300, 0.0], [4.0, 1e-300, 0.0]], periodogram=[1.0, 0.0, 0.0])
    floor = 4e-8
    assert ax.get_ylim()[0] == pytest.approx(floor)
    np.testing.assert_allclose(line(ax, "median")[1], [4.0, np.nan, np.nan])
    assert line(ax, "periodogram, scaled")[1][1] == pytest.approx(floor)
    assert bands(ax)["90 % of draws"][1][2] == pytest.approx(floor)


# --- what is refused --------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[], object], str]] = {
    "two columns": (lambda: plot_forecast(torch.stack([X, X], -1), LAW), r"x_new: expected one input, .* got \(7, 2\)"),
    "another length": (lambda: plot_forecast(X[:5], LAW), r"a distribution of shape \(5,\), .* place, got \(7,\)"),
    "two outputs": (
        lambda: plot_forecast(X, dist.Normal(torch.zeros(7, 2), 1.0)),
        r"a distribution of shape \(7,\), one for each place, got \(7, 2\)",
    ),
    "no such level": (lambda: plot_forecast(X, LAW, levels=[0.5, 95]), r"strictly between 0 and 1, got \[0.5, 95\]"),
    "level of 1": (lambda: plot_parts(X, {"a": LAW}, levels=[1.0]), r"strictly between 0 and 1, got \[1.0\]"),
    "x without y": (
        lambda: plot_forecast(X, LAW, x=X),
        "both x and y of the observations, or neither, got one of them",
    ),
    "y without x": (
        lambda: plot_forecast(X, LAW, y=X),
        "both x and y of the observations, or neither, got one of them",
    ),
    "fewer y": (lambda: plot_forecast(X, LAW, x=X, y=X[:3]), r"one y for each x, got shapes \(3,\) and \(7,\)"),
    "missing": (
        lambda: plot_forecast(X, LAW, x=X, y=X / X[0]),
        r"y: expected finite numbers, got 7 others, first at \(0,\)",
    ),
    "falls": (lambda: plot_forecast(X, LAW, transform=np.negative), "transform: expected an increasing function, got"),
    "no parts": (lambda: plot_parts(X, {}), "parts: expected at least one part, got none. Name a band of frequencies"),
    "another part": (
        lambda: plot_parts(X, {"a": LAW, "b": dist.Normal(X[:2], 1.0)}),
        r"a distribution of shape \(7,\), one for each place, got \(2,\)",
    ),
    "transposed draws": (
        lambda: plot_spectrum(FREQUENCIES, DRAWS.T),
        r"frequencies \(f,\) and a density \(f,\) or \(draws, f\), got \(9,\) and \(9, 40\)",
    ),
    "chains of draws": (lambda: plot_spectrum(FREQUENCIES, DRAWS[None]), r"got \(9,\) and \(1, 40, 9\)"),
    "a table of frequencies": (lambda: plot_spectrum(FREQUENCIES[:, None], DRAWS), r"got \(9, 1\) and \(40, 9\)"),
    "another periodogram": (
        lambda: plot_spectrum(FREQUENCIES, DRAWS, periodogram=POWER[:4]),
        r"periodogram: expected one number for each of 9 frequencies, got \(4,\)",
    ),
    "a level of 90": (lambda: plot_spectrum(FREQUENCIES, DRAWS, level=90), "level: expected a probability .* got 90"),
}


@pytest.mark.parametrize("name", BAD)
def test_clear_errors_and_no_figure_left(name):
    picture, message = BAD[name]
    with pytest.raises(DataError, match=message):
        picture()
    assert plt.get_fignums() == []


# --- manners ----------------------------------------------------------------------------------------------------------

AXES_PICTURES: dict[str, Callable[..., Axes]] = {
    "forecast": lambda **where: plot_forecast(X, MIXED, x=X, y=LOC, **where),
    "spectrum": lambda **where: plot_spectrum(FREQUENCIES, DRAWS, periodogram=POWER, **where),
}
PICTURES = {**AXES_PICTURES, "parts": lambda **where: plot_parts(X, {"a": LAW, "b": MIXED}, **where)}


@pytest.mark.parametrize("name", PICTURES)
def test_no_setting_is_changed_and_nothing_shown(name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("plt.show was called"))
    before, torch_state = matplotlib.rcParams.copy(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002 (it is the global one)
    drawn = PICTURES[name]()
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    assert isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine)
    assert matplotlib.rcParams == before
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_drawn_where_it_should(name):
    mine = Figure()  # unknown to pyplot
    if name in AXES_PICTURES:
        ax = mine.add_subplot()
        assert PICTURES[name](ax=ax) is ax
    else:
        assert PICTURES[name](fig=mine) is mine
        with pytest.raises(DataError, match="empty figure, got one with 2 axes"):
            PICTURES[name](fig=mine)
    assert mine.axes
    assert plt.get_fignums() == []


def test_any_kind_of_array_will_do():
    expected = plot_spectrum(FREQUENCIES, DRAWS, periodogram=POWER)
    tensors = [torch.tensor(values, requires_grad=True) for values in (FREQUENCIES, DRAWS, POWER)]
    for one in (tensors, [tensor.tolist() for tensor in tensors]):
        found = plot_spectrum(one[0], one[1], periodogram=one[2])
        for drawn, other in zip(found.lines, expected.lines, strict=True):
            np.testing.assert_array_equal(drawn.get_data(), other.get_data())
    ax = plot_forecast(X.tolist(), LAW, x=X.numpy(), y=LOC.tolist())
    np.testing.assert_array_equal(line(ax, "observed"), [X, LOC])
