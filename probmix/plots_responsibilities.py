"""The picture of who is responsible for each point, and how surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from probmix.plots_axes import colour, legend_beside, marker, new_axes
from probmix.plots_inputs import (
    FloatArray,
    Mixture,
    Values,
    check_features,
    check_names,
    evaluate,
    flatten_draws,
    thin,
    to_table,
)

__all__ = ["plot_responsibilities"]

_CERTAIN = 0.9
_MAX_DRAWS = 200
_MAX_NAMED = 14  # components in a legend
_FIGSIZE = (8.0, 4.8)  # inches; a quarter is for the legend


def plot_responsibilities(
    x: Values,
    model: Mixture,
    sites: Mapping[str, Values],
    *,
    features: Sequence[int] = (0, 1),
    feature_names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw each point in the colour of its most probable component, fainter and smaller the less certain it is.

    Points whose largest responsibility is below 0.9 have a black outline. All features enter the responsibilities;
    ``features`` only says which two are drawn. Data with one column are drawn against the largest responsibility.
    Sites with draw axes give the mean over (at most 200) draws; match the labels across draws first.

    Args:
        x: data (N, D); (N,) counts as (N, 1). The columns of a data frame name the features.
        model: any mixture.
        sites: the sites of the model, with draw axes or none.
        features: the two columns to draw; needless for data with one.
        feature_names: D names.
        ax: where to draw; a new figure if left out.

    Raises:
        DataError: the data are no finite table, or features or names do not fit.
        ProgramError: a site is missing or not finite, or its shape does not fit the data.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> from probmix.models import GaussianMixture
        >>> sites = {"weights": [0.5, 0.5], "loc": [[0.0], [4.0]], "var": [1.0, 1.0]}
        >>> ax = plot_responsibilities([-1, 2, 4], GaussianMixture(2, covariance="spherical"), sites)
        >>> ax.get_ylabel()
        'largest responsibility'
        >>> plt.close(ax.figure)
    """
    data = to_table(x, "x")
    names = check_names(feature_names, x, data.shape[1])
    chosen = check_features(features, data.shape[1], fewest=2)
    flat = thin(flatten_draws(model.dims, sites, data.shape[1]), _MAX_DRAWS)
    resp = evaluate(model.responsibilities, data, flat).mean(axis=0)
    outside, ax = ax is None, new_axes(ax, _FIGSIZE)
    height = data[:, chosen[1]] if len(chosen) == 2 else resp.max(axis=1)
    _draw_certainty(ax, data[:, chosen[0]], height, resp)
    ax.set(xlabel=names[chosen[0]], ylabel=names[chosen[1]] if len(chosen) == 2 else "largest responsibility")
    if len(chosen) == 1:
        ax.set_ylim(0.97 / resp.shape[1], 1.03)
    legend_beside(ax, outside=outside)
    return ax


def _draw_certainty(ax: Axes, across: FloatArray, up: FloatArray, resp: FloatArray) -> None:
    num_rows, num_components = resp.shape
    likely, certainty = resp.argmax(axis=1), resp.max(axis=1)
    # From 0 where all components are equally probable to 1 where one is sure.
    excess = (certainty - 1 / num_components) / (1 - 1 / num_components) if num_components > 1 else certainty
    area = float(np.clip(9000 / num_rows, 4.0, 36.0))
    for k in range(num_components):
        mine = likely == k
        shades = np.array([to_rgba(colour(k))] * mine.sum()).reshape(-1, 4)
        shades[:, 3] = 0.3 + 0.6 * excess[mine]
        label = f"component {k}: {mine.sum()} of {num_rows}" if num_components <= _MAX_NAMED else None
        areas = area * (0.4 + 0.6 * excess[mine])
        ax.scatter(across[mine], up[mine], s=areas, c=shades, marker=marker(k), linewidths=0, label=label)
    unsure = certainty < _CERTAIN
    label = f"largest responsibility < {_CERTAIN}: {unsure.sum()}"
    ax.scatter(
        across[unsure],
        up[unsure],
        s=1.8 * area,
        facecolors="none",
        edgecolors="black",
        linewidths=0.8 if num_rows < 2000 else 0.3,
        label=label,
    )
