"""Pictures of processes in one input: forecasts with their bands, the parts of a forecast, and spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
    ax: Axes | None = None,
) -> Axes:
    """Draw a predictive distribution along one input: the median, central bands, and the observations.

    Args:
        x_new: ``(m,)`` or ``(m, 1)``, in ascending order.
        law: marginal distributions ``(m,)``, such as ``model.predictive(x_new, sites, x, y)``.
        x: inputs of observations, ``(n,)`` or ``(n, 1)``.
        y: observations, ``(n,)``.
        levels: probability of each band.
        ax: where to draw; a new figure if left out.

    Raises:
        DataError: shapes that do not fit each other, or a level outside 0 to 1.

    Example:
        >>> import matplotlib.pyplot as plt, torch
        >>> x = torch.linspace(0, 1, 5)
        >>> ax = plot_forecast(x, torch.distributions.Normal(x, 0.1), x=x, y=x)
        >>> ax.get_legend_handles_labels()[1]
        ['95 %', '50 %', 'median', 'observed']
        >>> plt.close(ax.figure)
    """
    ax = new_axes(ax, (8.0, 4.0))
    _draw_bands(ax, _axis(x_new, "x_new"), law, levels, colour(0))
    if (x is None) != (y is None):
        raise DataError("expected both x and y of the observations, or neither, got one of them. Pass the other, too.")
    if x is not None and y is not None:
        seen, values = _axis(x, "x"), to_finite(y, "y")
        if seen.shape != values.shape:
            raise DataError(f"expected one y for each x, got shapes {values.shape} and {seen.shape}.")
        ax.plot(seen, values, ".", color="0.2", markersize=3, label="observed", zorder=3)
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
    fig, panels = new_panels(fig, len(parts), 1, (8.0, 1.0 + 1.8 * len(parts)))
    places = _axis(x_new, "x_new")
    for i, (name, law) in enumerate(parts.items()):
        ax = panels[i, 0]
        _draw_bands(ax, places, law, levels, colour(i))
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
        DataError: shapes that do not fit each other.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = plot_spectrum([0.0, 1.0, 2.0], [[1.0, 2.0, 1.0], [1.0, 4.0, 1.0]])
        >>> ax.get_legend_handles_labels()[1]
        ['90 % of draws', 'median']
        >>> plt.close(ax.figure)
    """
    places, values = to_finite(frequencies, "frequencies"), np.atleast_2d(to_numbers(density, "density"))
    if places.ndim != 1 or values.ndim != 2 or values.shape[-1] != len(places):
        raise DataError(
            f"expected frequencies (f,) and a density (f,) or (draws, f), got {places.shape} and {values.shape}."
        )
    ax = new_axes(ax, (8.0, 4.0))
    middle = np.median(values, 0)
    floor = max(middle.max() * _FLOOR, np.finfo(float).tiny)
    if periodogram is not None:
        power = to_finite(periodogram, "periodogram")
        power = power * np.trapezoid(middle, places) / np.trapezoid(power, places)
        ax.plot(places, power.clip(floor), color="0.7", linewidth=0.6, label="periodogram, scaled")
    if len(values) > 1:
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0).clip(floor)
        label = f"{100 * level:g} % of draws"
        ax.fill_between(places, low, high, color=colour(0), alpha=0.3, linewidth=0, label=label)
    ax.plot(places, middle.clip(floor), color=colour(0), label="median" if len(values) > 1 else "spectral density")
    ax.set(xlabel="frequency, cycles per unit", ylabel="spectral density", yscale="log", ylim=(floor, None))
    ax.legend(fontsize="small")
    return ax


def _axis(values: Values, name: str) -> FloatArray:
    """Return the values of one input, ``(n,)``."""
    array = to_finite(values, name)
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1:
        raise DataError(f"{name}: expected one input, (n,) or (n, 1), got {array.shape}. Choose a column.")
    return array


def _draw_bands(ax: Axes, places: FloatArray, law: Distribution, levels: Sequence[float], shade: Any) -> None:
    if law.batch_shape != (len(places),):
        raise DataError(
            f"expected a distribution of shape ({len(places)},), one for each place, got {tuple(law.batch_shape)}."
        )
    if not all(0 < level < 1 for level in levels):
        raise DataError(f"levels: expected probabilities strictly between 0 and 1, got {list(levels)}.")
    for level in sorted(levels, reverse=True):
        low, high = to_numbers(quantile(law, [(1 - level) / 2, (1 + level) / 2]), "law")
        ax.fill_between(places, low, high, color=shade, alpha=0.25, linewidth=0, label=f"{100 * level:g} %")
    ax.plot(places, to_numbers(quantile(law, 0.5), "law"), color=shade, label="median")
