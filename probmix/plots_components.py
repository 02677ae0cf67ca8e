"""The picture of component draws: a trace and the ranks of each chain, for every weight and location."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import binom, rankdata

from probmix.errors import DataError, ProgramError
from probmix.plots_axes import colour, line_style, new_panels
from probmix.plots_inputs import FloatArray, Values, check_names, to_finite
from probmix.typing import Dims

__all__ = ["plot_components"]

_MAX_ROWS = 40
_MAX_NAMED = 12  # components or chains in a legend


def plot_components(
    draws: Mapping[str, Values],
    *,
    dims: Dims,
    sites: Sequence[str] = ("weights", "loc"),
    feature_names: Sequence[str] | None = None,
    fig: Figure | None = None,
) -> Figure:
    """Draw traces and rank histograms of the components, one row for each site and feature.

    Left, the draws of every chain (shade) and component (colour). Right, for every component the histogram of the ranks
    of each chain (line style) among the draws of all chains, about the line of equal counts, with the band that holds
    95 % of the counts of independent draws, Binomial(draws, 1 / bins). Autocorrelated draws leave it more often; a
    chain that keeps to one side has not mixed, or has its labels switched. The rank histogram is that of Vehtari,
    Gelman, Simpson, Carpenter and Bürkner (2021).

    Args:
        draws: site -> (chain, draw, ...).
        dims: site -> names of its axes after (chain, draw), as in ``model.dims``.
        sites: which ones, in which order; at most 40 rows come of them.
        feature_names: one name per feature.
        fig: an empty figure to draw in; a new one if left out.

    Returns:
        The figure; its axes are trace, ranks, trace, ranks, ...

    Raises:
        DataError: a site is not among the draws, values are not finite, or rows are too many.
        ProgramError: a site has not the axes (chain, draw, ...).

    Example:
        >>> import matplotlib.pyplot as plt
        >>> draws = {"weights": np.random.default_rng(0).dirichlet([2, 3], size=(4, 100))}
        >>> fig = plot_components(draws, dims={"weights": ("component",)}, sites=["weights"])
        >>> [ax.get_ylabel() for ax in fig.axes]
        ['weights', 'component']
        >>> plt.close(fig)
    """
    rows = [row for name in sites for row in _component_rows(name, draws, dims, feature_names)]
    if not 1 <= len(rows) <= _MAX_ROWS:
        raise DataError(f"sites: expected 1 to {_MAX_ROWS} rows, got {len(rows)} from {list(sites)}. Name other sites.")
    fig, panels = new_panels(fig, len(rows), 2, (9.0, 1.0 + 1.6 * len(rows)), width_ratios=(3, 2))
    for (label, values), (left, right) in zip(rows, panels, strict=True):
        _draw_trace(left, label, values)
        _draw_ranks(right, values)
    panels[0, 0].set_title("trace", fontsize="medium")
    panels[0, 1].set_title("ranks by chain, 95 % band", fontsize="medium")
    panels[-1, 0].set_xlabel("draw")
    panels[-1, 1].set_xlabel("rank among all chains")
    _draw_legends(fig, max((values.shape for _, values in rows), key=lambda shape: shape[2]))
    return fig


def _component_rows(
    name: str, draws: Mapping[str, Values], dims: Dims, feature_names: Sequence[str] | None
) -> Iterator[tuple[str, FloatArray]]:
    """Label and draws (chain, draw, component) for every index along the other axes of a site."""
    if name not in draws or name not in dims:
        raise DataError(f"sites: expected names in both draws {sorted(draws)} and dims {sorted(dims)}, got {name!r}.")
    values, axes = to_finite(draws[name], name), dims[name]
    if values.ndim != 2 + len(axes) or values.size == 0:
        wanted = ("chain", "draw", *axes)
        raise ProgramError(
            f"site {name!r}: expected the axes {wanted}, got {values.shape}. One chain has a leading axis 1."
        )
    values = np.moveaxis(values, 2 + axes.index("component"), -1) if "component" in axes else values[..., None]
    others = [axis for axis in axes if axis != "component"]
    names = check_names(feature_names, None, values.shape[2 + others.index("feature")]) if "feature" in others else []
    for index in np.ndindex(values.shape[2:-1]):
        if "feature_bis" not in others or index[-2] <= index[-1]:  # a covariance is symmetric
            labels = [
                names[i] if axis.startswith("feature") else f"{axis} {i}" for axis, i in zip(others, index, strict=True)
            ]
            yield "\n".join([name, *labels]), values[(slice(None), slice(None), *index)]


def _shade(chain: int, num_chains: int) -> float:
    return 0.9 - 0.5 * chain / max(1, num_chains - 1)


def _draw_trace(ax: Axes, label: str, values: FloatArray) -> None:
    num_chains, num_draws, num_components = values.shape
    for k in range(num_components):
        for chain in range(num_chains):
            ax.plot(
                values[chain, :, k],
                color=colour(k),
                alpha=_shade(chain, num_chains),
                linewidth=0.8 if num_draws < 500 else 0.4,
            )
    ax.set_ylabel(label)
    ax.set_xlim(0, max(1, num_draws - 1))


def _draw_ranks(ax: Axes, values: FloatArray) -> None:
    """One lane per component: counts by bin of rank, as a share of the equal count, which is the grey line."""
    num_chains, num_draws, num_components = values.shape
    if num_chains == 1:
        ax.set(xticks=[], yticks=[], ylabel="component")
        ax.text(0.5, 0.5, "one chain: no other to rank it with", ha="center", va="center", transform=ax.transAxes)
        return
    num_bins = int(np.clip(num_draws // 10, 2, 20))  # ten draws of each chain in a bin, if there are enough
    edges = np.linspace(0.5, num_chains * num_draws + 0.5, num_bins + 1)
    ranks = rankdata(values.reshape(-1, num_components), axis=0).reshape(values.shape)
    equal = num_draws / num_bins
    counts = np.array([[np.histogram(r, edges)[0] for r in ranks[..., k]] for k in range(num_components)]) / equal - 1
    band = binom.ppf([0.025, 0.975], num_draws, 1 / num_bins) / equal - 1
    lane = 2.2 * max(np.abs(counts).max(), np.abs(band).max())  # lanes do not meet
    for k in range(num_components):
        ax.axhspan(*(band - lane * k), color="0.9", linewidth=0)
        ax.axhline(-lane * k, color="0.5", linewidth=0.8)
        for chain in range(num_chains):
            height, style = counts[k, chain] - lane * k, line_style(chain)
            ax.stairs(height, edges, baseline=None, color=colour(k), linestyle=style)
    ax.set_yticks([-lane * k for k in range(num_components)], [str(k) for k in range(num_components)])
    ax.set(xlim=(edges[0], edges[-1]), ylabel="component", ylim=(-lane * (num_components - 0.45), 0.55 * lane))


def _draw_legends(fig: Figure, shape: tuple[int, ...]) -> None:
    """Name the components on the left and the chains on the right, unless there are very many."""
    num_chains, _, num_components = shape
    named = range(num_components if num_components <= _MAX_NAMED else 0)
    components = [Line2D([], [], color=colour(k), label=f"component {k}") for k in named]
    fig.legend(handles=components, loc="outside upper left", ncols=4, fontsize="small")
    chains = [
        Line2D([], [], color="0.2", alpha=_shade(c, num_chains), ls=line_style(c), label=f"chain {c}")
        for c in range(num_chains if num_chains <= _MAX_NAMED else 0)
    ]
    fig.legend(handles=chains, loc="outside upper right", ncols=4, fontsize="small")
