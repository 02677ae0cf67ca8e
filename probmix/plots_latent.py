"""Pictures of a latent mixture: where its components are, and where a generator takes what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Ellipse

from probmix.errors import DataError, ProgramError
from probmix.plots_axes import colour, legend_beside, marker, new_axes, outline
from probmix.plots_inputs import FloatArray, Values, check_features, to_numbers, to_table
from probmix.trained_networks import require_trained
from probmix.typing import Generative

__all__ = ["plane_colours", "plot_latent", "plot_latent_map"]

_FIGSIZE = (8.0, 4.8)  # inches; a quarter is for the legend
_FIGSIZE_MAP = (6.2, 4.8)
_MAX_NAMED = 14  # components in a legend
_MARGIN = 0.08  # of the range, around what is drawn
_WITHIN = 1e-3  # share of the covariances in the axes of the locations: decides where locations leave a choice
_LIGHTNESS, _CHROMA = 0.75, 0.16  # in Oklab: as strong as colours of one lightness can be on a screen
_NONE = "0.93"


def plot_latent(
    latent: Any,
    *,
    along: Sequence[int] | None = None,
    temperature: float = 1.0,
    num_std: Sequence[float] = (1, 2),
    z: Values | None = None,
    component: Values | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw the components of a latent mixture in a plane: locations, and ellipses of their covariances.

    Ellipses are those of the marginal distribution in the plane, at :math:`s \Sigma_k` for the temperature s. The area
    of the mark at a location grows with the weight. Of vectors of more than two numbers, the plane is that of the
    first two principal axes of the locations.

    Args:
        latent: a `probmix.models.MixtureLatent`, or anything with ``weights`` (K,), ``loc`` (K, d) and ``tril``
            (K, d, d).
        along: two axes of the latent space instead of principal ones.
        temperature: factor of all covariances.
        num_std: radii of the ellipses in standard deviations.
        z: latent vectors to draw as points, ``(n, d)``.
        component: the component of each, ``(n,)``, which gives its colour; grey without it.
        ax: where to draw; a new figure if left out.

    Raises:
        ProgramError: the prior is no mixture of Gaussians, or not finite.
        DataError: vectors of one number, or a setting, vectors or components that do not fit.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> from probmix.models import MixtureLatent
        >>> latent = MixtureLatent(3, 8)
        >>> ax = plot_latent(latent, along=(0, 5), z=latent.sample(100, seed=0).z)
        >>> ax.get_xlabel(), len(ax.patches)
        ('latent axis 0', 6)
        >>> plt.close(ax.figure)
    """
    mixture, radii = _mixture(latent), _radii(num_std, temperature)
    plane = _plane(mixture, along)
    points = None if z is None else to_table(z, "z")
    if points is not None and points.shape[1] != mixture.loc.shape[1]:
        raise DataError(
            f"z: expected latent vectors of {mixture.loc.shape[1]} numbers, got shape {points.shape}. Pass the z of "
            "draws, not the x."
        )
    shades = None if points is None else _shades(component, len(points), len(mixture.loc))
    outside, ax = ax is None, new_axes(ax, _FIGSIZE)
    if points is not None:
        flat, area = points @ plane.directions.T, float(np.clip(6000 / len(points), 2.0, 16.0))
        ax.scatter(
            flat[:, 0], flat[:, 1], s=area, c=shades, linewidths=0, alpha=0.5, zorder=1, rasterized=len(flat) > 5000
        )
    _draw_components(ax, mixture.projected(plane.directions), radii, outline_only=False)
    ax.plot([], [], color="0.2", label=_label(num_std, temperature))
    ax.autoscale_view()
    ax.set(xlabel=plane.names[0], ylabel=plane.names[1])
    ax.set_aspect("equal", adjustable="datalim" if outside else "box")  # shared axes of others must keep their limits
    legend_beside(ax, outside=outside)
    return ax


def plot_latent_map(
    model: Generative,
    paint: Callable[[torch.Tensor], Values] | None = None,
    *,
    temperature: float = 1.0,
    num_std: Sequence[float] = (1, 2),
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
    resolution: int = 300,
    ax: Axes | None = None,
) -> Axes:
    """Draw where a generator takes each place of a latent plane, with the components of the mixture over it.

    Args:
        model: a trained model with latent vectors of two numbers: ``latent`` and ``generate``.
        paint: a function of generated data ``(n, *shape)``, such as a classifier or the index of the nearest of some
            centres. Whole numbers ``(n,)`` are labels, drawn in the colours of components, and light grey below 0;
            other numbers ``(n,)`` are drawn with a colour bar; ``(n, 3)`` are red, green and blue from 0 to 1, such as
            `plane_colours` gives. None, for data in the plane: `plane_colours` of them.
        temperature: factor of all covariances.
        num_std: radii of the ellipses in standard deviations.
        limits: ``((left, right), (bottom, top))``. None: all ellipses, and a margin.
        resolution: places along each side.
        ax: where to draw; a new figure if left out.

    Returns:
        The axes. Their one image is the map.

    Raises:
        ProgramError: no trained model, or a prior that is no mixture of Gaussians.
        DataError: latent vectors that are not of two numbers, data outside the plane without ``paint``, or something
            else from ``paint`` than is said above.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> from probmix.inference import Adversarial, infer
        >>> from probmix.models import MixtureGAN, MixtureLatent
        >>> model = MixtureGAN(MixtureLatent(3, 2), value_range=None, width=16)
        >>> fit = infer(model, torch.randn(500, 2), Adversarial(steps=20), seed=0)
        >>> ax = plot_latent_map(fit.program, lambda x: (x[:, 0] > 0).long(), resolution=20)
        >>> ax.images[0].get_array().shape
        (20, 20, 3)
        >>> plt.close(ax.figure)
    """
    require_trained(model)
    mixture, radii = _mixture(model.latent), _radii(num_std, temperature)
    if mixture.loc.shape[1] != 2:
        raise DataError(
            f"model: expected latent vectors of two numbers, got {mixture.loc.shape[1]}. A map of a plane through more "
            "would miss most components: draw plot_latent instead."
        )
    if not isinstance(resolution, int) or resolution < 2:
        raise DataError(f"resolution: expected a whole number of at least 2, got {resolution!r}. Leave it out.")
    (left, right), (bottom, top) = _limits(mixture, radii[-1]) if limits is None else limits
    painted = _painted(model, paint, (left, right), (bottom, top), resolution)
    outside, ax = ax is None, new_axes(ax, _FIGSIZE_MAP)
    picture = ax.imshow(painted, extent=(left, right, bottom, top), origin="lower", interpolation="nearest")
    if painted.ndim == 2:
        ax.figure.colorbar(picture, ax=ax)
    _draw_components(ax, mixture, radii, outline_only=True)
    ax.plot([], [], color="0.2", label=_label(num_std, temperature))
    ax.set(xlabel="latent axis 0", ylabel="latent axis 1", xlim=(left, right), ylim=(bottom, top), aspect="equal")
    if outside:
        ax.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return ax


def plane_colours(points: Values, *, limits: tuple[float, float] | None = None) -> FloatArray:
    """Return a colour for every point of a plane: grey in the middle, and each direction with a hue of its own.

    Colours are of one lightness and change evenly (Oklab). Points of another picture have the same colours by the same
    ``limits``.

    Args:
        points: ``(n, 2)``.
        limits: from left to right and from bottom to top; points beyond have the colour of the edge. None: the least
            and the largest number.

    Returns:
        Red, green and blue from 0 to 1, ``(n, 3)``.

    Raises:
        DataError: points not in a plane or not finite, or limits that do not rise.

    Source:
        Ottosson (2020), A perceptual color space for image processing.

    Example:
        >>> plane_colours([[0.0, 0.0], [1.0, 0.0]], limits=(-1, 1)).round(2)  # grey, and red to the right
        array([[0.68, 0.68, 0.68],
               [0.99, 0.5 , 0.67]])
    """
    table = to_table(points, "points")
    if table.shape[1] != 2:
        raise DataError(f"points: expected points of a plane, (n, 2), got {table.shape}. Choose two columns.")
    low, high = limits or (table.min(), table.max())
    if limits is not None and not low < high:
        raise DataError(f"limits: expected (low, high) with low < high, got {limits!r}. Leave them out.")
    across, up = _CHROMA * np.clip(2 * (table - low) / ((high - low) or 1.0) - 1, -1, 1).T
    # Ottosson's inverse matrices: from lightness, a (green to red) and b (blue to yellow) to linear red, green and blue
    cones = np.stack(
        [
            _LIGHTNESS + 0.3963377774 * across + 0.2158037573 * up,
            _LIGHTNESS - 0.1055613458 * across - 0.0638541728 * up,
            _LIGHTNESS - 0.0894841775 * across - 1.2914855480 * up,
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(to_linear @ cones**3, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).T


# --- the mixture ------------------------------------------------------------------------------------------------------


class _Components(NamedTuple):
    """Weights (K,), locations (K, d) and covariances (K, d, d)."""

    weights: FloatArray
    loc: FloatArray
    cov: FloatArray

    def projected(self, directions: FloatArray) -> _Components:
        """Return the marginal in the plane of two orthonormal directions, ``(2, d)``."""
        return _Components(self.weights, self.loc @ directions.T, directions @ self.cov @ directions.T)


class _Plane(NamedTuple):
    directions: FloatArray
    names: tuple[str, str]


def _mixture(latent: Any) -> _Components:
    missing = [name for name in ("weights", "loc", "tril") if not hasattr(latent, name)]
    if missing:
        raise ProgramError(
            f"latent: expected a mixture of Gaussians with weights, loc and tril, got {type(latent).__name__} without "
            f"{', '.join(missing)}. Pass model.latent; of a FactoredLatent, one of its parts."
        )
    weights, loc, tril = (to_numbers(getattr(latent, name), name) for name in ("weights", "loc", "tril"))
    if not all(np.isfinite(value).all() for value in (weights, loc, tril)):
        raise ProgramError("latent: expected finite weights, locations and covariances, got some that are not.")
    return _Components(weights, loc, tril @ np.swapaxes(tril, -1, -2))


def _radii(num_std: Sequence[float], temperature: float) -> list[float]:
    radii = sorted(float(radius) for radius in num_std)
    if not radii or not 0 < radii[0] <= radii[-1] < np.inf:
        raise DataError(f"num_std: expected positive numbers of standard deviations, got {radii}. Try (1, 2).")
    if not 0 <= temperature < np.inf:
        raise DataError(f"temperature: expected a number of at least 0, got {temperature!r}. 1 is that of training.")
    return [np.sqrt(temperature) * radius for radius in radii]


def _plane(mixture: _Components, along: Sequence[int] | None) -> _Plane:
    dim = mixture.loc.shape[1]
    if dim < 2:
        raise DataError(
            "latent: expected vectors of at least two numbers, got one. Draw its density instead: "
            "latent.log_prob(z).exp() along z."
        )
    if along is not None or dim == 2:
        chosen = check_features((0, 1) if along is None else along, dim, fewest=2)
        return _Plane(np.eye(dim)[chosen], (f"latent axis {chosen[0]}", f"latent axis {chosen[1]}"))
    residual = mixture.loc - mixture.weights @ mixture.loc
    between = (residual.T * mixture.weights) @ residual
    within = np.einsum("k,kij->ij", mixture.weights, mixture.cov)
    directions = np.linalg.eigh(between + _WITHIN * within)[1].T[::-1][:2]
    directions *= np.sign(directions[[0, 1], np.abs(directions).argmax(1)])[:, None]  # else of either sign
    total = np.trace(between)
    shares = [direction @ between @ direction / total if total else 0.0 for direction in directions]
    first, second = (f"principal axis {i} of the locations ({100 * share:.0f} %)" for i, share in enumerate(shares))
    return _Plane(directions, (first, second))


def _limits(mixture: _Components, radius: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the least window of the axes around all ellipses, with a margin."""
    reach = radius * np.sqrt(np.diagonal(mixture.cov, axis1=1, axis2=2))
    low, high = (mixture.loc - reach).min(0), (mixture.loc + reach).max(0)
    margin = _MARGIN * (high - low).max() or 1.0
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    return (left, right), (bottom, top)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def _shades(component: Values | None, num: int, num_components: int) -> Any:
    if component is None:
        return "0.45"
    found = to_numbers(component, "component")
    if found.shape != (num,) or (found % 1 != 0).any() or found.min() < 0 or found.max() >= num_components:
        raise DataError(
            f"component: expected a number from 0 to {num_components - 1} for each of {num} vectors, got shape "
            f"{found.shape}. Pass the component of the same draws."
        )
    return [colour(int(k)) for k in found]


def _draw_components(ax: Axes, mixture: _Components, radii: Sequence[float], *, outline_only: bool) -> None:
    """Draw ellipses and locations: in the colours of components, or in black, over a picture."""
    named = len(mixture.loc) <= _MAX_NAMED and not outline_only
    for k, (weight, loc, cov) in enumerate(zip(*mixture, strict=True)):
        shade = "black" if outline_only else colour(k)
        for ellipse in _ellipses(loc, cov, radii):
            ellipse.set(facecolor="none", edgecolor=shade, linestyle="-" if outline_only else outline(k), zorder=3)
            ellipse.set(linewidth=0.9 if outline_only else 1.2)
            ax.add_patch(ellipse)
        label = f"component {k}, weight {weight:.2f}" if named else None
        area = 12.0 if outline_only else 20 + 180 * weight
        sign = "o" if outline_only else marker(k)
        ax.scatter(
            loc[0], loc[1], s=area, marker=sign, color=shade, edgecolors="white", linewidths=0.7, zorder=4, label=label
        )


def _ellipses(loc: FloatArray, cov: FloatArray, radii: Sequence[float]) -> Iterator[Ellipse]:
    """Yield the sets at these Mahalanobis distances: full axes of 2 r sqrt(eigenvalue)."""
    (short_var, long_var), directions = np.linalg.eigh(cov)
    angle = np.degrees(np.arctan2(directions[1, 1], directions[0, 1]))  # of the longer axis
    for radius in radii:
        width, height = (2 * radius * np.sqrt(max(var, 0.0)) for var in (long_var, short_var))
        yield Ellipse((loc[0], loc[1]), width, height, angle=angle)


def _label(num_std: Sequence[float], temperature: float) -> str:
    radii = ", ".join(f"{radius:g}" for radius in sorted(num_std))
    return f"ellipses: {radii} std" + ("" if temperature == 1 else f", temperature {temperature:g}")


def _painted(
    model: Generative,
    paint: Callable[[torch.Tensor], Values] | None,
    across: tuple[float, float],
    up: tuple[float, float],
    resolution: int,
) -> FloatArray:
    """Return colours ``(r, r, 3)`` or numbers ``(r, r)`` of a grid, from the bottom up."""
    loc = model.latent.loc
    sides = [torch.linspace(*ends, resolution, dtype=loc.dtype, device=loc.device) for ends in (across, up)]
    second, first = torch.meshgrid(sides[1], sides[0], indexing="ij")
    z = torch.stack([first, second], -1).flatten(0, 1)
    with torch.no_grad():
        blocks = [model.generate(rows) for rows in z.split(4096)]
        if paint is None:
            if blocks[0].dim() != 2 or blocks[0].shape[1] != 2:
                shape = tuple(blocks[0].shape[1:])
                raise DataError(f"expected data in the plane, got shape {shape}. Pass paint=, a function of such data.")
            colours = plane_colours(torch.cat(blocks))
        else:
            colours = _as_colours([_host(paint(rows)) for rows in blocks], len(z))
    return colours.reshape(resolution, resolution, *colours.shape[1:])


def _host(values: Values) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _as_colours(blocks: list[Any], num: int) -> FloatArray:
    """Return what a user's function gave as colours ``(n, 3)``, or numbers ``(n,)`` as they are."""
    found = np.concatenate([np.atleast_1d(block) for block in blocks])
    if found.shape == (num, 3):
        colours = to_numbers(found, "paint")
        if not ((colours >= 0) & (colours <= 1)).all():
            raise DataError(
                f"paint: expected red, green and blue from 0 to 1, got values from {colours.min():g} to "
                f"{colours.max():g}. Divide bytes by 255."
            )
        return colours
    if found.shape != (num,):
        raise DataError(
            f"paint: expected a label or a number for each of {num} rows, or three of a colour, got shape "
            f"{found.shape}. Of scores take argmax(-1)."
        )
    if found.dtype.kind in "iub":
        labels = found.astype(int)
        table = np.array([to_rgb(colour(label)) for label in range(max(1, int(labels.max()) + 1))])
        return np.where(labels[:, None] < 0, to_rgb(_NONE), table[labels.clip(0)] * 0.55 + 0.45)
    return to_numbers(found, "paint")
