"""The picture of a mixture over its data: its density and its components."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from torch import Tensor

from probmix.errors import DataError, ProgramError
from probmix.plots_axes import colour, legend_beside, marker, new_axes, outline
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
from probmix.typing import Dims, Sites

__all__ = ["plot_density"]

_CONTOUR_MASSES = (0.95, 0.75, 0.5, 0.25)  # outermost first, so that the levels rise
_MAX_DRAWS = 200  # a 5 % quantile is then the tenth smallest value
_MAX_DRAWN_ELLIPSES = 30
_MAX_NAMED = 14  # components in a legend
_GRID_1D, _GRID_2D = 400, 120
_FIGSIZE = (8.0, 4.8)  # inches; a quarter is for the legend


def plot_density(
    x: Values,
    model: Mixture,
    sites: Mapping[str, Values],
    *,
    features: Sequence[int] = (0, 1),
    feature_names: Sequence[str] | None = None,
    num_std: Sequence[float] = (1, 2),
    ax: Axes | None = None,
) -> Axes:
    r"""Draw the data, the density of the mixture, and its components.

    Two features: points, contours that enclose 25, 50, 75 and 95 % of the density, and for each component the ellipses
    :math:`(y - \mu_k)^\top \Sigma_k^{-1} (y - \mu_k) = s^2` for s in ``num_std``. The area of the mark at the mean and
    the width of the ellipses grow with the weight. One feature: a histogram, the density, the weighted densities of the
    components. Features that are not drawn are integrated out exactly: the marginal of a Gaussian keeps the rows and
    columns of its parameters.

    Sites with draw axes in front show a posterior: in one dimension the median and the pointwise 90 % band of each
    density, in two the contours of the mean density and the outer ellipses of up to 30 draws. At most 200 draws are
    used, evenly spaced. Match the labels across draws first, otherwise the components mix.

    Args:
        x: data (N, D); (N,) counts as (N, 1). The columns of a data frame name the features.
        model: a mixture of Gaussians.
        sites: weights (*b, K), loc (*b, K, D) and cov or var, with draw axes ``*b`` or none.
        features: one or two columns to draw; needless for data with one.
        feature_names: D names.
        num_std: radii of the ellipses in standard deviations.
        ax: where to draw; a new figure if left out.

    Raises:
        DataError: the data are no finite table, or features, names or radii do not fit.
        ProgramError: a site is missing or not finite, its shape does not fit the data, or a component is singular.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> from probmix.models import GaussianMixture
        >>> sites = {"weights": [0.5, 0.5], "loc": [[0.0], [4.0]], "var": [1.0, 1.0]}
        >>> ax = plot_density([-1, 0, 1, 4], GaussianMixture(2, covariance="spherical"), sites, feature_names=["speed"])
        >>> ax.get_xlabel()
        'speed'
        >>> plt.close(ax.figure)
    """
    data = to_table(x, "x")
    names = check_names(feature_names, x, data.shape[1])
    chosen = check_features(features, data.shape[1])
    radii = _check_radii(num_std)
    flat = thin(flatten_draws(model.dims, sites, data.shape[1]), _MAX_DRAWS)
    marginal = _keep_features(model.dims, flat, chosen)
    _check_positive(_component_covs(model.dims, marginal))
    grid = _grid(data[:, chosen], model.dims, marginal, radii[-1])
    function = model.log_prob_components if len(chosen) == 1 else model.log_prob
    density = np.exp(evaluate(function, grid.reshape(-1, len(chosen)), marginal))
    outside, ax = ax is None, new_axes(ax, _FIGSIZE)
    if len(chosen) == 1:
        _draw_curves(ax, data[:, chosen[0]], grid[:, 0], density, marginal)
    else:
        _draw_contours(ax, data[:, chosen], grid, density.mean(axis=0))
        for k in range(marginal["weights"].shape[-1]):
            _draw_component(ax, k, model.dims, marginal, radii)
        ax.plot([], [], color="0.2", label=_ellipse_label(radii, len(marginal["loc"])))
    ax.set(xlabel=names[chosen[0]], ylabel=names[chosen[1]] if len(chosen) == 2 else "density")
    legend_beside(ax, outside=outside)
    return ax


def _check_radii(num_std: Sequence[float]) -> list[float]:
    radii = sorted(float(radius) for radius in num_std)
    if not radii or not radii[0] > 0:
        raise DataError(f"num_std: expected positive numbers of standard deviations, got {radii}. Try (1, 2).")
    return radii


def _check_positive(cov: Tensor) -> None:
    variances = torch.linalg.eigvalsh(cov)[..., 0]  # (S, K), the smallest of each
    bad = (variances <= 0).any(dim=0).nonzero().flatten().tolist()
    if bad:
        raise ProgramError(
            f"sites: expected covariances with positive eigenvalues, got {float(variances.min()):.3g} among those of "
            f"the components {bad}. Leave these components or draws out, or refit with a stronger prior."
        )


def _keep_features(dims: Dims, flat: Sites, chosen: Sequence[int]) -> Sites:
    """Sites of the marginal over the chosen features: those entries along every feature axis."""
    kept = dict(flat)
    for name, axes in dims.items():
        for position, axis in enumerate(axes, start=1):
            if axis.removesuffix("_bis") == "feature":
                index = torch.as_tensor(chosen, device=kept[name].device)
                kept[name] = kept[name].index_select(position, index)
    return kept


def _component_covs(dims: Dims, sites: Sites) -> Tensor:
    """Covariance of every draw and component, (S, K, D, D), whatever the sites leave unsaid."""
    loc = sites["loc"]
    if "cov" in dims:
        cov = sites["cov"] if "component" in dims["cov"] else sites["cov"].unsqueeze(1)
        return cov.expand(*loc.shape, loc.shape[-1])
    var = sites["var"] if "feature" in dims["var"] else sites["var"].unsqueeze(-1)
    return torch.diag_embed(var.expand(loc.shape))


def _array(value: Tensor) -> FloatArray:
    return value.cpu().double().numpy()


# --- one feature ---


def _draw_curves(ax: Axes, values: FloatArray, grid: FloatArray, weighted: FloatArray, sites: Sites) -> None:
    """Draw a histogram, and the densities ``weighted`` (S, G, K) of the components and their sum."""
    ax.hist(values, bins=_num_bins(values), density=True, color="0.87", edgecolor="white", label="data")
    _draw_mixture(ax, grid, weighted.sum(axis=-1))
    for k in range(weighted.shape[-1]):
        label = _component_label(k, sites)
        ax.plot(grid, np.median(weighted[..., k], axis=0), color=colour(k), linestyle="--", label=label)
    ax.set_xlim(grid[0], grid[-1])


def _num_bins(values: FloatArray) -> int:
    """Freedman and Diaconis (1981), bounded: too few for separate groups, too many with far outliers."""
    iqr = np.subtract(*np.quantile(values, [0.75, 0.25]))
    return int(np.clip(np.ptp(values) * len(values) ** (1 / 3) / (2 * iqr), 20, 60)) if iqr > 0 else 20


def _draw_mixture(ax: Axes, grid: FloatArray, density: FloatArray) -> None:
    low, middle, high = np.quantile(density, [0.05, 0.5, 0.95], axis=0)
    is_point = len(density) == 1
    if not is_point:
        ax.fill_between(grid, low, high, color="0.3", alpha=0.25, linewidth=0, label="mixture: 90 % of the draws")
    ax.plot(grid, middle, color="0.2", linewidth=1.4, label="mixture" if is_point else "mixture: median")


# --- two features ---


def _draw_contours(ax: Axes, data: FloatArray, grid: FloatArray, density: FloatArray) -> None:
    """Draw points and the contours of a density on the flattened grid (G, G, 2)."""
    across, up = grid[0, :, 0], grid[:, 0, 1]
    density = density.reshape(grid.shape[:2])
    _draw_points(ax, data)
    levels, masses = _mass_levels(density, float((across[1] - across[0]) * (up[1] - up[0])))
    if levels:
        greys = [str(shade) for shade in np.linspace(0.95, 0.8, len(levels))]
        ax.contourf(across, up, density, levels=[*levels, np.inf], colors=greys, zorder=0)
        ax.contour(across, up, density, levels=levels, colors="0.65", linewidths=0.7, zorder=1)
        ax.plot([], [], "s", color="0.9", markeredgecolor="0.65", markersize=9, label=f"{masses} % of the density")
    ax.set(xlim=(across[0], across[-1]), ylim=(up[0], up[-1]))


def _draw_points(ax: Axes, data: FloatArray) -> None:
    area = float(np.clip(6000 / len(data), 2.0, 16.0))
    ax.scatter(
        data[:, 0], data[:, 1], s=area, color="0.45", linewidths=0, zorder=2, rasterized=len(data) > 5000, label="data"
    )


def _mass_levels(density: FloatArray, cell_area: float) -> tuple[list[float], str]:
    """Heights, rising, whose upper level sets hold the contour masses, and those masses in percent.

    Masses that lie partly outside the window, or within one cell, have no contour.
    """
    falling = np.sort(density, axis=None)[::-1]
    mass = np.cumsum(falling) * cell_area
    mass /= max(1.0, mass[-1])  # a coarse grid may overshoot
    found = {
        float(falling[i]): share
        for share, i in zip(_CONTOUR_MASSES, np.searchsorted(mass, _CONTOUR_MASSES), strict=True)
        if i < len(falling) and falling[i] < falling[0]
    }
    return sorted(found), ", ".join(f"{100 * share:g}" for share in sorted(found.values()))


def _draw_component(ax: Axes, k: int, dims: Dims, sites: Sites, radii: Sequence[float]) -> None:
    weight = _weight(k, sites)
    is_point = len(sites["loc"]) == 1
    few = sites if is_point else thin(sites, _MAX_DRAWN_ELLIPSES)
    width, alpha = (0.8 + 2.4 * weight, 0.95) if is_point else (0.4 + 0.8 * weight, 0.3)
    for ellipse in _ellipses(few["loc"][:, k], _component_covs(dims, few)[:, k], radii if is_point else radii[-1:]):
        ellipse.set(facecolor="none", edgecolor=colour(k), linestyle=outline(k), linewidth=width, alpha=alpha, zorder=3)
        ax.add_patch(ellipse)
    mean = _array(sites["loc"][:, k].mean(dim=0))
    label = _component_label(k, sites)
    area = 20 + 180 * weight
    ax.scatter(mean[0], mean[1], s=area, marker=marker(k), color=colour(k), edgecolors="white", zorder=4, label=label)


def _ellipse_label(radii: Sequence[float], num_draws: int) -> str:
    if num_draws > 1:
        return f"ellipses: {radii[-1]:g} std, {min(num_draws, _MAX_DRAWN_ELLIPSES)} draws"
    return f"ellipses: {', '.join(f'{radius:g}' for radius in radii)} std"


def _ellipses(loc: Tensor, cov: Tensor, radii: Sequence[float]) -> Iterator[Ellipse]:
    """Ellipses for loc (S, 2) and cov (S, 2, 2): full axes of 2 s sqrt(eigenvalue)."""
    variances, directions = np.linalg.eigh(_array(cov))
    angles = np.degrees(np.arctan2(directions[:, 1, 1], directions[:, 0, 1]))  # of the longer axis
    for centre, (short_var, long_var), angle in zip(_array(loc), variances, angles, strict=True):
        for radius in radii:
            width, height = 2 * radius * np.sqrt(max(long_var, 0.0)), 2 * radius * np.sqrt(max(short_var, 0.0))
            yield Ellipse((centre[0], centre[1]), width, height, angle=angle)


# --- shared by both ---


def _grid(data: FloatArray, dims: Dims, sites: Sites, radius: float) -> FloatArray:
    """Points over the window: (G, 1) for one feature, (G, G, 2) for two."""
    low, high = _limits(data, dims, sites, max(radius, 2.6))  # 95 % of a Gaussian in the plane are within 2.45
    if len(low) == 1:
        return np.linspace(low, high, _GRID_1D)
    axes = [np.linspace(low[i], high[i], _GRID_2D) for i in (0, 1)]
    return np.stack(np.meshgrid(*axes), axis=-1)


def _limits(data: FloatArray, dims: Dims, sites: Sites, radius: float) -> tuple[FloatArray, FloatArray]:
    """Window around data and components; a component far outside stretches it by half the range of the data at most."""
    reach = radius * torch.diagonal(_component_covs(dims, sites), dim1=-2, dim2=-1).sqrt()
    bottom = _array((sites["loc"] - reach).median(dim=0).values).min(axis=0)
    top = _array((sites["loc"] + reach).median(dim=0).values).max(axis=0)
    span = np.ptp(data, axis=0)
    span = np.where(span > 0, span, np.maximum(top - bottom, 1e-12))
    low = np.clip(bottom, data.min(axis=0) - 0.5 * span, data.min(axis=0)) - 0.05 * span
    high = np.clip(top, data.max(axis=0), data.max(axis=0) + 0.5 * span) + 0.05 * span
    return low, high


def _component_label(k: int, sites: Sites) -> str | None:
    return f"component {k}, weight {_weight(k, sites):.2f}" if sites["weights"].shape[-1] <= _MAX_NAMED else None


def _weight(k: int, sites: Sites) -> float:
    return float(np.median(_array(sites["weights"][:, k])))
