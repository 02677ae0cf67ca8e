"""The picture of a calibration: are ranks of true values uniform, and if not, how?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import binom

from probmix.errors import DataError
from probmix.plots_axes import colour, new_panels
from probmix.ranks import TESTS, Calibration
from probmix.uniformity import IntArray

__all__ = ["plot_calibration"]

_MOST_COLUMNS = 4
_MOST_BARS, _RANKS_TO_A_BAR = 20, 20
_BAND, _LINE = "0.88", "0.45"


def plot_calibration(
    calibration: Calibration,
    kind: Literal["ecdf", "rank"] = "ecdf",
    *,
    quantities: Sequence[str] | None = None,
    fig: Figure | None = None,
) -> Figure:
    r"""Draw the ranks of every quantity, with the band that correct fits keep to.

    - ``"ecdf"``: the share of ranks below each place minus that of uniform ranks. A hump says that the fit is biased
      upwards, a dip downwards; first a hump, then a dip: too narrow; first a dip, then a hump: too wide.
      The line leaves the band exactly where the calibration's test of it refuses.
    - ``"rank"``: a histogram of ranks over their expected number, with the binomial band of its bars. Weight on the
      left says that the fit is biased upwards; a valley: too narrow; a hill: too wide.

    All lines (or bars) of all panels keep inside their bands with the probability in the title. Quantities that
    the calibration refuses have another colour, and their title says why: the spread of ranks is tested too, which sees
    smaller errors than a band does, so a line may be refused inside its band.

    Args:
        calibration: what `probmix.calibration.calibrate` returned.
        kind: which picture.
        quantities: which ones to draw, in this order; all if left out.
        fig: an empty figure to draw on; a new one if left out.

    Returns:
        The figure. The line, or the bars, of a quantity have its name as gid.

    Raises:
        DataError: an unknown kind or quantity, or a figure that is in use.

    Source:
        Säilynoja, Bürkner and Vehtari (2022); for ranks Talts, Betancourt, Simpson, Vehtari and Gelman (2018).

    Example:
        >>> import matplotlib.pyplot as plt
        >>> even = np.arange(200) % 20
        >>> fig = plot_calibration(Calibration({"loc": even, "rate": even // 2}, draws=19))
        >>> [ax.get_title() for ax in fig.axes]
        ['loc', 'rate\nbiased upwards and too wide']
        >>> plt.close(fig)
    """
    names = _chosen(calibration, kind, quantities)
    columns = min(len(names), _MOST_COLUMNS)
    rows = -(-len(names) // columns)
    fig, panels = new_panels(fig, rows, columns, (2.6 * columns + 0.8, 2.3 * rows + 0.9))
    draw = _draw_ecdf if kind == "ecdf" else _draw_ranks
    for ax, name in zip(panels.flat, names, strict=False):
        found = calibration.quantities[name]
        draw(ax, calibration, name, colour(1 if found.words else 0))
        ax.set_title(f"{name}\n{found.words}" if found.words else name, fontsize="small", wrap=True)
        ax.tick_params(labelsize="small")
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    for ax in panels.flat[len(names) :]:
        ax.remove()
    _same_height([ax for ax in panels.flat if ax.figure is not None])
    _label(fig, calibration, kind)
    return fig


def _chosen(calibration: Calibration, kind: str, quantities: Sequence[str] | None) -> list[str]:
    if kind not in ("ecdf", "rank"):
        raise DataError(f'kind: expected "ecdf" or "rank", got {kind!r}.')
    names = list(calibration.ranks) if quantities is None else list(quantities)
    unknown = [name for name in names if name not in calibration.ranks]
    if unknown or not names:
        raise DataError(f"quantities: expected some of {list(calibration.ranks)}, got {names}. Leave it out for all.")
    return names


def _draw_ecdf(ax: Axes, calibration: Calibration, name: str, shade: str) -> None:
    test = calibration.test
    place = np.arange(test.places + 1) / test.places
    low, line, high = (
        np.concatenate([[0], counts, [test.simulations]]) / test.simulations - place
        for counts in (calibration.band.low, test.counts(calibration.of(name)), calibration.band.high)
    )
    ax.fill_between(place, low, high, color=_BAND, linewidth=0)
    ax.axhline(0.0, color=_LINE, linewidth=0.8)
    ax.plot(place, line, color=shade, linewidth=1.5, gid=name)
    ax.set_xlim(0, 1)


def _draw_ranks(ax: Axes, calibration: Calibration, name: str, shade: str) -> None:
    ranks, edges = calibration.of(name), _edges(calibration)
    chance = np.diff(edges) / edges[-1]
    expected = len(ranks) * chance
    alarm = calibration.false_alarm_of_a_test / len(chance)
    low, high = (binom.ppf(alarm / 2, len(ranks), chance), binom.isf(alarm / 2, len(ranks), chance))
    ax.fill_between(
        edges, _closed(low / expected), _closed(high / expected), step="post", color=_BAND, linewidth=0, zorder=0
    )
    height = np.histogram(ranks, edges)[0] / expected
    ax.stairs(height, edges, fill=True, color=shade, alpha=0.6, gid=name)
    ax.axhline(1.0, color=_LINE, linewidth=0.8)
    ax.set_xlim(0, int(edges[-1]))


def _edges(calibration: Calibration) -> IntArray:
    """Cut the places into bars of about twenty expected ranks each; none is empty."""
    places = calibration.draws + 1
    bars = int(np.clip((calibration.simulations - calibration.failed) // _RANKS_TO_A_BAR, 2, min(_MOST_BARS, places)))
    return np.linspace(0, places, bars + 1).round().astype(np.int64)


def _closed(values: Any) -> Any:
    return np.append(values, values[-1])


def _same_height(panels: list[Axes]) -> None:
    limits = [ax.get_ylim() for ax in panels]
    for ax in panels:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _label(fig: Figure, calibration: Calibration, kind: str) -> None:
    inside = 100 * (1 - calibration.false_alarm / TESTS)
    what = "lines" if kind == "ecdf" else "bars"
    fig.suptitle(f"grey: {inside:.4g}% of correct fits keep all {what} inside", fontsize="small", color="0.3")
    fig.supxlabel("rank of the true value" + (" / draws" if kind == "ecdf" else ""), fontsize="medium")
    fig.supylabel("ECDF minus uniform" if kind == "ecdf" else "ranks / expected", fontsize="medium")
