"""Pictures of the choice of the number of components: a criterion against it, and the entropy of merged clusters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from probmix.errors import DataError
from probmix.plots_axes import colour, legend_beside, line_style, marker, new_axes
from probmix.plots_inputs import FloatArray, Values, to_numbers

__all__ = ["plot_merging", "plot_selection"]


def plot_selection(table: pd.DataFrame, criterion: str = "bic", *, ax: Axes | None = None) -> Axes:
    """Draw a criterion against the number of components, a line for each covariance, the best marked.

    Fits that failed leave a gap. The vertical axis ends at the value of the best fit with one component, or where half
    of the values lie below, whichever is higher: what is much worse than that need not be told apart.

    Args:
        table: columns ``num_components``, the criterion (lower is better), and ``covariance`` if there are several.
        criterion: which column to draw.
        ax: where to draw; a new figure if left out.

    Returns:
        The axes. A line's gid is the name of its covariance; that of the best point is ``best``.

    Raises:
        DataError: a column is missing, or there is no finite value in it.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> table = pd.DataFrame({"num_components": [1, 2, 3], "bic": [30.0, 20.0, 25.0]})
        >>> ax = plot_selection(table)
        >>> ax.get_legend_handles_labels()[1]
        ['best: 2']
        >>> plt.close(ax.figure)
    """
    missing = sorted({"num_components", criterion} - set(table.columns))
    if missing:
        raise DataError(f"table: expected the columns {missing}, got {list(table.columns)}. Pass selection.table.")
    values = table[criterion].to_numpy(float)
    finite = np.isfinite(values)
    if not finite.any():
        raise DataError(f"{criterion}: expected a finite value, got none in {len(values)} fits. Read their status.")
    outside = ax is None
    ax = new_axes(ax, (7.6, 4.8))
    names = list(dict.fromkeys(table["covariance"])) if "covariance" in table else [None]
    for number, name in enumerate(names):
        rows = table if name is None else table[table["covariance"] == name]
        _draw_line(ax, rows, criterion, number, name)
    best = table.loc[table[criterion].where(finite).idxmin()]
    _draw_best(ax, best, criterion)
    _set_window(ax, table, criterion, finite)
    legend_beside(ax, outside=outside)
    return ax


def plot_merging(entropies: Values, *, elbow: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw the entropy of clusters made of merged components against their number, and the elbow.

    Args:
        entropies: with 1, 2, ..., K clusters.
        elbow: number of clusters where the two lines meet; no lines without it.
        ax: where to draw; a new figure if left out.

    Returns:
        The axes. The gid of the points is ``entropy``; of the lines ``piece-0`` and ``piece-1``.

    Raises:
        DataError: not a vector of finite values, or an elbow at its end or beyond.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = plot_merging([0.0, 0.1, 0.2, 5.0, 10.0], elbow=3)
        >>> ax.get_legend_handles_labels()[1]
        ['elbow: 3 clusters']
        >>> plt.close(ax.figure)
    """
    y = to_numbers(entropies, "entropies")
    if y.ndim != 1 or not len(y) or not np.isfinite(y).all():
        raise DataError(f"entropies: expected a vector of finite values, got the shape {y.shape}. Pass .entropies.")
    if elbow is not None and not 1 < elbow < len(y):
        raise DataError(f"elbow: expected a number between 1 and {len(y)}, got {elbow}. Leave it out.")
    ax = new_axes(ax, (6.0, 4.0))
    x = np.arange(1.0, len(y) + 1)
    ax.plot(x, y, "o", color=colour(0), gid="entropy", zorder=3)
    if elbow is not None:
        _draw_pieces(ax, x, y, elbow)
    ax.set(xlabel="clusters", ylabel="entropy, nats", xticks=x)
    return ax


def _draw_line(ax: Axes, rows: pd.DataFrame, criterion: str, number: int, name: str | None) -> None:
    style: dict[str, Any] = {
        "color": colour(number),
        "linestyle": line_style(number // 7),
        "marker": marker(number),
        "markersize": 3.5,
    }
    rows = rows.sort_values("num_components")
    label: dict[str, Any] = {} if name is None else {"label": name}
    x, y = rows["num_components"].to_numpy(float), rows[criterion].to_numpy(float)
    ax.plot(x, np.where(np.isfinite(y), y, np.nan), linewidth=1.2, gid=name, **style, **label)


def _draw_best(ax: Axes, best: pd.Series, criterion: str) -> None:
    label = f"best: {best['num_components']:.0f}" + (f", {best['covariance']}" if "covariance" in best else "")
    ax.plot(
        [best["num_components"]],
        [best[criterion]],
        "o",
        markersize=12,
        markerfacecolor="none",
        markeredgecolor="black",
        linestyle="none",
        label=label,
        gid="best",
    )


def _set_window(ax: Axes, table: pd.DataFrame, criterion: str, finite: FloatArray) -> None:
    values, k = table[criterion].to_numpy(float), table["num_components"].to_numpy()
    low, middle = values[finite].min(), np.median(values[finite])
    ones = values[finite & (k == k[finite].min())]
    high = max(middle, ones.min() if len(ones) else -math.inf)
    pad = 0.06 * (high - low) or 1.0
    ax.set_ylim(low - pad, high + pad)
    ax.set(xlabel="components", ylabel=f"{criterion.upper()}, lower is better", xticks=sorted(set(k)))


def _draw_pieces(ax: Axes, x: FloatArray, y: FloatArray, elbow: int) -> None:
    for number, piece in enumerate((slice(None, elbow), slice(elbow - 1, None))):
        line = np.polyval(np.polyfit(x[piece], y[piece], 1), x[piece])
        ax.plot(x[piece], line, color=colour(1), linewidth=1.2, gid=f"piece-{number}")
    ax.axvline(elbow, color="0.6", linewidth=0.8, linestyle="--", label=f"elbow: {elbow} clusters")
    ax.legend(fontsize="small")
