"""The picture of a dial: what a temperature buys in diversity, and what it costs in quality."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from probmix.errors import DataError
from probmix.plots_axes import colour, new_axes
from probmix.plots_inputs import FloatArray, Values, to_finite

__all__ = ["plot_dial"]

_OFFSET = 11.0  # points from the curve to the text of a temperature
_APART = 0.055  # of the axes' sides: nearer texts would overlap, and one of them is left out


def plot_dial(temperatures: Values, quality: Values, diversity: Values, *, ax: Axes | None = None) -> Axes:
    """Draw quality against diversity as a curve along the temperatures, which stand beside it.

    The temperature of training, 1, has a mark of its own. Where points are too close for all texts, those of 1, of
    both ends and of every point that still has room are written.

    Args:
        temperatures: that data were drawn at, ``(t,)``, in any order.
        quality: a score at each, ``(t,)``: higher is better, such as the share of data near a mode.
        diversity: a score at each, ``(t,)``: higher is more diverse.
        ax: where to draw; a new figure if left out.

    Returns:
        The axes, named "diversity" and "quality"; give them the names of the scores. The curve's gid is ``dial``, that
        of the mark ``training``; the texts are the temperatures.

    Raises:
        DataError: not three vectors of one length with finite values, or temperatures below 0 or twice the same.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = plot_dial([0.25, 1.0, 4.0], quality=[1.0, 0.9, 0.5], diversity=[0.2, 0.5, 0.8])
        >>> [text.get_text() for text in ax.texts]
        ['0.25', '1', '4']
        >>> plt.close(ax.figure)
    """
    place, good, diverse = _checked(temperatures, quality, diversity)
    ax = new_axes(ax, (6.0, 4.4))
    ax.plot(diverse, good, "o-", color=colour(0), linewidth=1.2, markersize=4, gid="dial", label="by temperature")
    trained = place == 1
    if trained.any():
        label = "temperature 1: as in training"
        ax.plot(
            diverse[trained], good[trained], "o", color=colour(1), markeredgecolor="white", markersize=9,
            linestyle="none", gid="training", label=label,
        )  # fmt: skip
    points = np.stack([_unit(diverse), _unit(good)], -1)
    offsets = _OFFSET * _normals(points)
    for i in _written(points, place):
        ax.annotate(
            f"{place[i]:.3g}", (diverse[i], good[i]), xytext=offsets[i], textcoords="offset points", ha="center",
            va="center", fontsize="small",
        )  # fmt: skip
    ax.margins(0.1)
    ax.set(xlabel="diversity", ylabel="quality")
    ax.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    return ax


def _checked(temperatures: Values, quality: Values, diversity: Values) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return all three in order of temperature."""
    place = to_finite(temperatures, "temperatures")
    good, diverse = to_finite(quality, "quality"), to_finite(diversity, "diversity")
    if place.ndim != 1 or not len(place) or not place.shape == good.shape == diverse.shape:
        raise DataError(
            f"expected temperatures, quality and diversity of one length, (t,), got {place.shape}, {good.shape} and "
            f"{diverse.shape}. Take means over seeds."
        )
    if place.min() < 0 or len(np.unique(place)) < len(place):
        raise DataError(
            f"temperatures: expected different numbers of at least 0, got {place.tolist()}. Take means over seeds."
        )
    order = np.argsort(place)
    return place[order], good[order], diverse[order]


def _unit(values: FloatArray) -> FloatArray:
    """Return values as a share of their range."""
    return (values - values.min()) / (np.ptp(values) or 1.0)


def _normals(points: FloatArray) -> FloatArray:
    """Return unit vectors across a curve ``(t, 2)``, to the upper right where there is a choice."""
    if len(points) == 1:
        return np.array([[0.0, 1.0]])
    steps = np.gradient(points, axis=0)
    lengths = np.linalg.norm(steps, axis=1, keepdims=True)
    steps = np.where(lengths > 0, steps / np.where(lengths > 0, lengths, 1.0), [1.0, 0.0])
    normals = np.stack([-steps[:, 1], steps[:, 0]], -1)
    return np.where(normals.sum(1, keepdims=True) < 0, -normals, normals)


def _written(points: FloatArray, temperatures: FloatArray) -> list[int]:
    """Return which points have room for a text: that nearest to temperature 1 and the ends before all others."""
    first = int(np.abs(np.log(temperatures.clip(1e-9))).argmin())
    kept: list[int] = []
    for i in dict.fromkeys([first, 0, len(points) - 1, *range(len(points))]):
        if all(np.abs(points[i] - points[j]).max() >= _APART for j in kept):
            kept.append(i)
    return sorted(kept)
