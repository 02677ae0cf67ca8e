"""The picture of a posterior predictive check: replicated data sets behind the observed one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d

from probmix.errors import DataError
from probmix.plots_axes import new_panels
from probmix.plots_inputs import FloatArray, Values, check_names, to_finite, to_table

__all__ = ["plot_predictive_check"]

_MAX_PANELS = 6
_REPLICATE_COLOUR = "#56B4E9"
_NUM_CELLS = 512  # of the histogram that a density curve smooths


def plot_predictive_check(
    observed: Values,
    replicated: Values,
    *,
    feature_names: Sequence[str] | None = None,
    num_replicates: int = 50,
    fig: Figure | None = None,
) -> Figure:
    r"""Draw the density of each observed feature over those of data sets replicated from the posterior predictive.

    Above each panel stand the posterior predictive p-values :math:`P(T(y^{rep}) \ge T(y) \mid y)` of the mean, the
    standard deviation and the skewness over all replicates (Gelman, Meng and Stern, 1996). One near 0 or 1 says that
    the model does not reproduce that property. All curves of a panel share one kernel bandwidth, Silverman's rule for
    the observed values (1986, equation 3.31).

    Args:
        observed: data (N, D) or (N,). The columns of a data frame name the features.
        replicated: data sets (..., N, D), or (..., N) for data (N,); all leading axes count replicates.
        feature_names: D names.
        num_replicates: how many replicates to draw, evenly spaced.
        fig: an empty figure to draw in; a new one if left out.

    Returns:
        The figure, one panel per feature; of more than six the first six, as its title says.

    Raises:
        DataError: shapes that do not agree, or values that are not finite.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> rng = np.random.default_rng(0)
        >>> fig = plot_predictive_check(rng.normal(size=(80, 2)), rng.normal(size=(20, 80, 2)))
        >>> len(fig.axes)
        2
        >>> plt.close(fig)
    """
    data = to_table(observed, "observed")
    copies = _replicates(replicated, data)
    names = check_names(feature_names, observed, data.shape[1])
    if num_replicates < 1:
        raise DataError(f"num_replicates: expected at least 1, got {num_replicates}. Leave it out to draw 50.")
    shown = min(data.shape[1], _MAX_PANELS)
    columns = 2 if shown == 4 else min(shown, 3)
    rows = -(-shown // columns)
    fig, panels = new_panels(fig, rows, columns, (max(4.8, 3.5 * columns), 0.7 + 2.8 * rows))
    for ax in panels.flat[shown:]:
        ax.remove()
    for j, ax in enumerate(panels.flat[:shown]):
        _draw_check(ax, data[:, j], copies[:, :, j], num_replicates)
        ax.set_xlabel(names[j])
    for ax in panels[:, 0]:
        ax.set_ylabel("density")
    if shown < data.shape[1]:
        fig.suptitle(f"posterior predictive check: first {shown} of {data.shape[1]} features", fontsize="medium")
    fig.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    return fig


def _replicates(replicated: Values, data: FloatArray) -> FloatArray:
    """Replicated data sets as (R, N, D)."""
    copies = to_finite(replicated, "replicated")
    shape = copies.shape
    if data.shape[1] == 1 and shape[-1:] == data.shape[:1] and shape[-2:] != data.shape:
        copies = copies[..., None]
    if copies.ndim < 3 or copies.shape[-2:] != data.shape or copies.size == 0:
        wanted = ("replicates", *data.shape)
        raise DataError(f"replicated: expected {wanted}, got {shape}. Draw data sets of the size of the observed one.")
    return copies.reshape(-1, *data.shape)


def _draw_check(ax: Axes, observed: FloatArray, copies: FloatArray, most: int) -> None:
    bandwidth_std = _silverman_bandwidth(observed)
    few = copies[np.linspace(0, len(copies) - 1, min(most, len(copies))).round().astype(int)]
    low, high = np.quantile(few, [0.001, 0.999])
    low, high = min(low, observed.min()) - 3 * bandwidth_std, max(high, observed.max()) + 3 * bandwidth_std
    edges = np.linspace(low, high, _NUM_CELLS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    for i, copy in enumerate(few):
        label = f"replicated data, {len(few)} of {len(copies)} sets" if i == 0 else None
        curve = _smooth_density(copy, edges, bandwidth_std)
        ax.plot(centres, curve, color=_REPLICATE_COLOUR, alpha=0.4, linewidth=0.7, label=label)
    ax.plot(centres, _smooth_density(observed, edges, bandwidth_std), color="black", linewidth=1.8, label="observed")
    ax.set_title(_p_values(observed, copies), fontsize="small")
    ax.set(xlim=(low, high), yticks=[])
    ax.set_ylim(bottom=0)


def _silverman_bandwidth(values: FloatArray) -> float:
    """Silverman (1986, equation 3.31); the standard deviation alone if half of the values are equal."""
    iqr = float(np.subtract(*np.quantile(values, [0.75, 0.25])))
    spreads = [spread for spread in (float(values.std()), iqr / 1.34) if spread > 0]
    return 0.9 * min(spreads, default=1.0) * len(values) ** -0.2


def _smooth_density(values: FloatArray, edges: FloatArray, bandwidth_std: float) -> FloatArray:
    """Gaussian kernel density on the cells of a fine histogram: linear in N, whatever the number of values."""
    width = edges[1] - edges[0]
    counts = np.histogram(values, edges)[0] / (len(values) * width)
    return gaussian_filter1d(counts, bandwidth_std / width, mode="constant")


def _p_values(observed: FloatArray, copies: FloatArray) -> str:
    statistics: dict[str, Callable[..., FloatArray]] = {"mean": np.mean, "std": np.std, "skewness": _skewness}
    shares = {name: np.mean(of(copies, axis=-1) >= of(observed, axis=-1)) for name, of in statistics.items()}
    return "p-values: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items())


def _skewness(values: FloatArray, axis: int) -> FloatArray:
    """Third standardised moment; 0 for equal values."""
    centred = values - values.mean(axis=axis, keepdims=True)
    spread_std = np.sqrt((centred**2).mean(axis=axis, keepdims=True))
    return ((centred / np.where(spread_std > 0, spread_std, 1.0)) ** 3).mean(axis=axis)
