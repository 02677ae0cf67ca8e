"""Pictures of processes in one input: forecasts with their bands, the parts of a forecast, and spectra."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.integrate import trapezoid
from torch.distributions import Distribution

from probmix.errors import DataError
from probmix.plots_axes import colour, new_axes, new_panels
from probmix.plots_inputs import FloatArray, Values, to_finite, to_numbers
from probmix.quantiles import quantile

__all__ = ["plot_forecast", "plot_parts", "plot_spectrum"]

_FLOOR = 1e-8  # of the largest density: below it there is nothing to see


def plot_forecast(
    x_new: Values,
    law: Distribution,
    *,
    x: Values | None = None,
    y: Values | None = None,
    levels: Sequence[float] = (0.5, 0.95),
    transform: Callable[[FloatArray], FloatArray] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a predictive distribution along one input: the median, central bands, and the observations.

    Args:
        x_new: ``(m,)`` or ``(m, 1)``, in ascending order.
        law: marginal distributions ``(m,)``, such as ``model.predictive(x_new, sites, x, y)``.
        x: inputs of observations, ``(n,)`` or ``(n, 1)``.
        y: observations, ``(n,)``.
        levels: probability of each band.
        transform: an increasing function to the scale of the picture, such as ``numpy.exp`` where y are logarithms.
        ax: where to draw; a new figure if left out.

    Raises:
        DataError: shapes that do not fit each other, a level outside 0 to 1, or a transform that does not increase.

    Example:
        >>> import matplotlib.pyplot as plt, torch
        >>> x = torch.linspace(0, 1, 5)
        >>> ax = plot_forecast(x, torch.distributions.Normal(x, 0.1), x=x, y=x)
        >>> ax.get_legend_handles_labels()[1]
        ['95 %', '50 %', 'median', 'observed']
        >>> plt.close(ax.figure)
    """
    places = _axis(x_new, "x_new")
    curves = _curves(places, law, levels)
    if (x is None) != (y is None):
        raise DataError("expected both x and y of the observations, or neither, got one of them. Pass the other, too.")
    observed = None if x is None or y is None else (_axis(x, "x"), to_finite(y, "y"))
    if observed is not None and observed[0].shape != observed[1].shape:
        raise DataError(
            f"expected one y for each x, got shapes {observed[1].shape} and {observed[0].shape}. Pass one output."
        )
    if transform is not None:
        curves = curves.through(transform)
        observed = observed and (observed[0], transform(observed[1]))
    ax = new_axes(ax, (8.0, 4.0))
    _draw(ax, places, curves, colour(0))
    if observed is not None:
        ax.plot(*observed, ".", color="0.2", markersize=3, label="observed", zorder=3)
    ax.set(xlabel="x", ylabel="y")
    ax.legend(fontsize="small")
    return ax


def plot_parts(
    x_new: Values, parts: Mapping[str, Distribution], *, levels: Sequence[float] = (0.95,), fig: Figure | None = None
) -> Figure:
    """Draw the parts of a function, one panel each below the other: median and bands.

    Args:
        x_new: ``(m,)`` or ``(m, 1)``, in ascending order.
        parts: name -> marginal distributions ``(m,)``, as `probmix.models.SpectralMixtureGP.decompose` returns them.
        levels: probability of each band.
        fig: an empty figure to draw in; a new one if left out.

    Raises:
        DataError: no part, or shapes that do not fit.

    Example:
        >>> import matplotlib.pyplot as plt, torch
        >>> x = torch.linspace(0, 1, 5)
        >>> fig = plot_parts(x, {"trend": torch.distributions.Normal(x, 0.1)})
        >>> [ax.get_title("left") for ax in fig.axes]
        ['trend']
        >>> plt.close(fig)
    """
    if not parts:
        raise DataError("parts: expected at least one part, got none. Name a band of frequencies.")
    places = _axis(x_new, "x_new")
    curves = {name: _curves(places, law, levels) for name, law in parts.items()}
    fig, panels = new_panels(fig, len(parts), 1, (8.0, 1.0 + 1.8 * len(parts)))
    for i, (name, of_part) in enumerate(curves.items()):
        ax = panels[i, 0]
        _draw(ax, places, of_part, colour(i))
        ax.set_title(name, fontsize="medium", loc="left")
        ax.sharex(panels[0, 0])
        ax.tick_params(labelbottom=i == len(parts) - 1)
    panels[-1, 0].set_xlabel("x")
    return fig


def plot_spectrum(
    frequencies: Values,
    density: Values,
    *,
    level: float = 0.9,
    periodogram: Values | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a spectral density on a logarithmic scale, with its uncertainty where there are draws.

    Args:
        frequencies: ``(f,)``.
        density: ``(f,)``, or of draws ``(draws, f)``: then the median, and a central band at each frequency.
        level: probability of the band.
        periodogram: of the data at these frequencies, ``(f,)``, in any unit; scaled to the area of the density.
        ax: where to draw; a new figure if left out.

    Raises:
        DataError: shapes that do not fit each other, values that are not finite, or a level outside 0 to 1.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = plot_spectrum([0.0, 1.0, 2.0], [[1.0, 2.0, 1.0], [1.0, 4.0, 1.0]])
        >>> ax.get_legend_handles_labels()[1]
        ['90 % of draws', 'median']
        >>> plt.close(ax.figure)
    """
    places, values = to_finite(frequencies, "frequencies"), np.atleast_2d(to_finite(density, "density"))
    if places.ndim != 1 or values.ndim != 2 or values.shape[-1] != len(places):
        raise DataError(
            f"expected frequencies (f,) and a density (f,) or (draws, f), got {places.shape} and {values.shape}. "
            "Flatten chains of draws into one axis."
        )
    if not 0 < level < 1:
        raise DataError(f"level: expected a probability strictly between 0 and 1, got {level}. Try 0.9.")
    power = None if periodogram is None else to_finite(periodogram, "periodogram")
    if power is not None and power.shape != places.shape:
        raise DataError(
            f"periodogram: expected one number for each of {len(places)} frequencies, got {power.shape}. Ask for it at "
            "these frequencies."
        )
    ax = new_axes(ax, (8.0, 4.0))
    middle = np.median(values, 0)
    floor = max(middle.max() * _FLOOR, np.finfo(float).tiny)
    if power is not None:
        power = power * trapezoid(middle, places) / trapezoid(power, places)
        ax.plot(places, power.clip(floor), color="0.7", linewidth=0.6, label="periodogram, scaled")
    if len(values) > 1:
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0).clip(floor)
        label = f"{100 * level:g} % of draws"
        ax.fill_between(places, low, high, color=colour(0), alpha=0.3, linewidth=0, label=label)
    ax.plot(
        places,
        np.where(middle < floor, np.nan, middle),
        color=colour(0),
        label="median" if len(values) > 1 else "spectral density",
    )
    ax.set(xlabel="frequency, cycles per unit", ylabel="spectral density", yscale="log", ylim=(floor, None))
    ax.legend(fontsize="small")
    return ax


class _Curves(NamedTuple):
    """What is drawn of a distribution at each place."""

    edges: dict[float, FloatArray]
    median: FloatArray

    def through(self, transform: Callable[[FloatArray], FloatArray]) -> _Curves:
        """Return them on another scale: quantiles of an increasing function are the function of the quantiles."""
        edges = {level: transform(band) for level, band in self.edges.items()}
        if not all((low <= high).all() for low, high in edges.values()):
            raise DataError("transform: expected an increasing function, got one that turns a band upside down.")
        return _Curves(edges, transform(self.median))


def _axis(values: Values, name: str) -> FloatArray:
    """Return the values of one input, ``(n,)``."""
    array = to_finite(values, name)
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1:
        raise DataError(f"{name}: expected one input, (n,) or (n, 1), got {array.shape}. Choose a column.")
    return array


def _curves(places: FloatArray, law: Distribution, levels: Sequence[float]) -> _Curves:
    """Return the edges of each band by its level, the widest first, and the median."""
    if law.batch_shape != (len(places),):
        raise DataError(
            f"expected a distribution of shape ({len(places)},), one for each place, got {tuple(law.batch_shape)}. "
            "Pass the places that it was made for, and one output."
        )
    if not all(0 < level < 1 for level in levels):
        raise DataError(
            f"levels: expected probabilities strictly between 0 and 1, got {list(levels)}. Try (0.5, 0.95)."
        )
    widest_first = sorted(levels, reverse=True)
    edges = {level: to_numbers(quantile(law, [(1 - level) / 2, (1 + level) / 2]), "law") for level in widest_first}
    return _Curves(edges, to_numbers(quantile(law, 0.5), "law"))


def _draw(ax: Axes, places: FloatArray, curves: _Curves, shade: str) -> None:
    for level, (low, high) in curves.edges.items():
        ax.fill_between(places, low, high, color=shade, alpha=0.25, linewidth=0, label=f"{100 * level:g} %")
    ax.plot(places, curves.median, color=shade, label="median")
