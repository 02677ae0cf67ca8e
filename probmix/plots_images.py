"""The picture of images: many of them in one grid, with missing pixels in a colour of their own."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from probmix.errors import DataError
from probmix.plots_axes import colour, new_axes
from probmix.plots_inputs import FloatArray, Values, to_numbers

__all__ = ["plot_images"]

_INCHES = 0.75  # side of an image in a figure of our own
_WIDEST = 12.0  # of such a figure, inches
_GAP = 0.08  # between two images, as a share of their longer side
_TITLE = 0.3  # above an image that has a title, as a share of its height


def plot_images(
    images: Values,
    *,
    columns: int = 10,
    row_labels: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw images in a grid, row by row, as one picture.

    Grey images are drawn dark on white: the largest value is black. Pixels that are NaN are missing, and drawn in a
    reddish purple, as are those of which one of three channels is NaN.

    Args:
        images: ``(n, height, width)``, or ``(n, channels, height, width)`` with 1 or 3 channels (red, green, blue).
        columns: images in a row.
        row_labels: a text to the left of each row.
        titles: a text above each image, ``n``.
        value_range: ``(low, high)``, the values drawn as the lightest and the darkest grey, or as no and full red,
            green and blue; what lies beyond is drawn like the nearer of them. None: the least and the largest of all.
        ax: where to draw; a new figure if left out.

    Returns:
        The axes. Their one image is the whole grid; the texts are the titles.

    Raises:
        DataError: another shape, infinite or no values, a range that does not rise, or labels of another number.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = plot_images(np.random.default_rng(0).random((6, 8, 8)), columns=3, row_labels=["real", "generated"])
        >>> len(ax.images), [label.get_text() for label in ax.get_yticklabels()]
        (1, ['real', 'generated'])
        >>> plt.close(ax.figure)
    """
    tiles = _tiles(images)
    low, high = _range(tiles, value_range)
    if not isinstance(columns, int) or columns < 1:
        raise DataError(f"columns: expected a whole number of at least 1, got {columns!r}. Leave it out for 10.")
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    row_labels = _texts(row_labels, "row_labels", rows, "rows")
    titles = _texts(titles, "titles", len(tiles), "images")
    height, width = tiles.shape[1:3]
    gap = max(1, round(_GAP * max(height, width)))
    above = gap + (round(_TITLE * height) or 1) if titles else gap
    top, left = np.arange(rows) * (height + above) + (above if titles else 0), np.arange(columns) * (width + gap)
    canvas = np.ones((top[-1] + height, left[-1] + width, 3))
    for i, colours in enumerate(_colours(tiles, low, high)):
        y, x = top[i // columns], left[i % columns]
        canvas[y : y + height, x : x + width] = colours
    ax = new_axes(ax, _figsize(columns, canvas))
    ax.imshow(canvas, interpolation="nearest")
    frames = [Rectangle((left[i % columns] - 0.5, top[i // columns] - 0.5), width, height) for i in range(len(tiles))]
    edges = PatchCollection(frames, facecolor="none", edgecolor="0.75", linewidth=0.5, clip_on=False)
    ax.add_collection(edges, autolim=False)
    for i, title in enumerate(titles):
        place = left[i % columns] + (width - 1) / 2, top[i // columns] - 0.5 - 0.03 * height
        ax.text(*place, title, ha="center", va="bottom", fontsize="x-small")
    ax.set(xticks=[], yticks=[])
    if row_labels:
        ax.set_yticks(top + (height - 1) / 2, row_labels)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def _tiles(images: Values) -> FloatArray:
    """Return images as ``(n, height, width, channels)``."""
    tiles = to_numbers(images, "images")
    if tiles.ndim == 3:
        tiles = tiles[:, None]
    if tiles.ndim != 4 or tiles.shape[1] not in (1, 3) or not tiles.size:
        raise DataError(
            "images: expected (n, height, width), or (n, channels, height, width) with 1 or 3 channels, got shape "
            f"{np.shape(images)}. Rows of pixels become images by x.reshape(-1, height, width); one image is x[None]."
        )
    if np.isinf(tiles).any() or np.isnan(tiles).all():
        count = int(np.isinf(tiles).sum())
        raise DataError(
            f"images: expected finite numbers, NaN where pixels are missing, got {count or 'no'} "
            f"{'infinite ones' if count else 'number at all'}. Set infinite ones to NaN, or drop such images."
        )
    return np.moveaxis(tiles, 1, -1)


def _range(tiles: FloatArray, value_range: tuple[float, float] | None) -> tuple[float, float]:
    if value_range is None:
        return float(np.nanmin(tiles)), float(np.nanmax(tiles))
    low, high = value_range
    if not -np.inf < low < high < np.inf:
        raise DataError(f"value_range: expected (low, high) with low < high, got {value_range!r}. Leave it out.")
    return low, high


def _texts(texts: Sequence[str] | None, name: str, num: int, things: str) -> list[str]:
    found = [] if texts is None else [str(text) for text in texts]
    if texts is not None and len(found) != num:
        raise DataError(f"{name}: expected a text for each of {num} {things}, got {len(found)}. Use '' for none.")
    return found


def _colours(tiles: FloatArray, low: float, high: float) -> FloatArray:
    """Return colours ``(n, height, width, 3)``."""
    share = np.clip((tiles - low) / ((high - low) or 1.0), 0, 1)
    missing = np.isnan(share).any(-1, keepdims=True)
    share = np.where(missing, 0, share)
    shown = share if tiles.shape[-1] == 3 else mpl.colormaps["gray_r"](share[..., 0])[..., :3]
    return np.where(missing, to_rgb(colour(3)), shown)


def _figsize(columns: int, canvas: FloatArray) -> tuple[float, float]:
    width = min(_INCHES * columns, _WIDEST)
    return width + 0.9, width * canvas.shape[0] / canvas.shape[1] + 0.3
