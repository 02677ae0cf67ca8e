"""Laws that every picture keeps, for the tests of single pictures."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

Draw = Callable[..., Axes | Figure]


def figure_of(picture: Axes | Figure) -> Figure:
    return picture if isinstance(picture, Figure) else picture.get_figure(root=True)


def keeps_all_laws(draw: Draw, monkeypatch: pytest.MonkeyPatch, *, on: Callable[[Draw], None]) -> None:
    """All of them; ``on`` is the one about the axes, or the figure, that are given."""
    for law in (lambda picture: touches_nothing_global(picture, monkeypatch), all_text_is_inside, on):
        law(draw)
        plt.close("all")


def touches_nothing_global(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting, no random state, nothing shown, one figure."""
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("plt.show was called"))
    before, torch_state = matplotlib.rcParams.copy(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002 (it is the global one)
    figure = figure_of(draw())
    assert isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine)
    assert matplotlib.rcParams == before
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert plt.get_fignums() == [figure.number]


def draws_on_given_axes(draw: Draw) -> None:
    """In a figure that pyplot does not know, beside another that stays current."""
    theirs, mine = plt.subplots()[0], Figure()
    ax = mine.add_subplot()
    assert draw(ax=ax) is ax
    assert not theirs.axes[0].has_data()
    assert plt.get_fignums() == [theirs.number]
    assert plt.gcf() is theirs


def draws_in_given_figure(draw: Draw) -> None:
    """Likewise, if it is empty."""
    theirs, mine = plt.subplots()[0], Figure()
    assert draw(fig=mine) is mine
    assert mine.axes
    assert plt.get_fignums() == [theirs.number]
    assert plt.gcf() is theirs


def all_text_is_inside(draw: Draw) -> None:
    """Nothing is cut off, and legends cover no axes."""
    figure = figure_of(draw())
    figure.set_dpi(100)
    figure.canvas.draw()
    legends = [legend for ax in figure.axes if (legend := ax.get_legend()) is not None] + list(figure.legends)
    texts = [text for ax in figure.axes for text in ax.texts if text.get_text()]
    parts = [part for ax in figure.axes for part in (ax.xaxis, ax.yaxis, ax.title)]
    # One pixel: text boxes are rounded up to whole ones.
    for box in filter(None, [part.get_tightbbox() for part in [*parts, *texts, *legends]]):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1
    frames = [ax.get_window_extent() for ax in figure.axes]
    assert not any(legend.get_window_extent().overlaps(frame) for legend in legends for frame in frames)
