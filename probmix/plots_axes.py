"""What the pictures share on the way out: colours and styles of components, new axes and panels, legends."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probmix.errors import DataError

__all__ = ["LineStyle", "colour", "legend_beside", "line_style", "marker", "new_axes", "new_panels", "outline"]

LineStyle: TypeAlias = Literal["-", "--", ":", "-."]

# Okabe and Ito (2008), "Color Universal Design", less its yellow, which is lost on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^Dv"
_LINE_STYLES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")


def colour(component: int) -> str:
    """Return the colour of a component; after seven they come round again.

    Example:
        >>> colour(0)
        '#0072B2'
    """
    return _COLOURS[component % len(_COLOURS)]


def marker(component: int) -> str:
    """Return the mark of a component: the next one each time the colours come round.

    Example:
        >>> marker(0), marker(7)
        ('o', 's')
    """
    return _MARKERS[component // len(_COLOURS) % len(_MARKERS)]


def outline(component: int) -> LineStyle:
    """Return the line style of a component: the next one each time the colours come round.

    Example:
        >>> outline(0), outline(7)
        ('-', '--')
    """
    return line_style(component // len(_COLOURS))


def line_style(turn: int) -> LineStyle:
    """Return a line style; after four they come round again.

    Example:
        >>> line_style(1)
        '--'
    """
    return _LINE_STYLES[turn % len(_LINE_STYLES)]


def new_axes(ax: Axes | None, figsize: tuple[float, float] = (6.4, 4.8)) -> Axes:
    """Return the given axes, or those of a new figure of size ``figsize`` (inches).

    Example:
        >>> ax = new_axes(None)
        >>> new_axes(ax) is ax
        True
        >>> plt.close(ax.figure)
    """
    return plt.subplots(figsize=figsize, layout="constrained")[1] if ax is None else ax


def legend_beside(ax: Axes, *, outside: bool) -> None:
    """Add a legend: to the right of axes of our own, inside those of others, who may have neighbours there.

    Example:
        >>> ax = new_axes(None)
        >>> line = ax.plot([0, 1], label="data")
        >>> legend_beside(ax, outside=True)
        >>> ax.get_legend().get_texts()[0].get_text()
        'data'
        >>> plt.close(ax.figure)
    """
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if outside else {"loc": "best"}
    ax.legend(fontsize="small", borderaxespad=0.0 if outside else None, **place)


def new_panels(fig: Figure | None, rows: int, columns: int, figsize: tuple[float, float], **ratios: Any) -> Any:
    """Return a figure and its rows x columns of new axes; without a figure, one of size ``figsize`` (inches) is made.

    Raises:
        DataError: the figure has axes already.

    Example:
        >>> fig, panels = new_panels(None, 2, 3, (6.0, 4.0))
        >>> panels.shape
        (2, 3)
        >>> plt.close(fig)
    """
    if fig is None:
        return plt.subplots(rows, columns, figsize=figsize, squeeze=False, layout="constrained", gridspec_kw=ratios)
    if fig.axes:
        raise DataError(f"fig: expected an empty figure, got one with {len(fig.axes)} axes. Pass a new one, or none.")
    if isinstance(fig, Figure) and fig.get_layout_engine() is None:
        fig.set_layout_engine("constrained")
    return fig, fig.subplots(rows, columns, squeeze=False, gridspec_kw=ratios)
