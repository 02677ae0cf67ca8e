"""Laws that every picture keeps: nothing global is touched, nothing is clipped, inputs of any kind, clear errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine, TightLayoutEngine

from probmix.datasets import load_faithful
from probmix.errors import DataError, ProgramError
from probmix.models import GaussianMixture
from probmix.plots import (
    plot_calibration,
    plot_components,
    plot_density,
    plot_history,
    plot_predictive_check,
    plot_responsibilities,
)
from probmix.ranks import Calibration

matplotlib.use("Agg")

FAITHFUL = load_faithful()
NAMES = FAITHFUL.feature_names
MODEL = GaussianMixture(2)
SITES = {
    "weights": np.array([0.36, 0.64]),
    "loc": np.array([[2.04, 54.5], [4.29, 80.0]]),
    "cov": np.array([[[0.07, 0.44], [0.44, 33.7]], [[0.17, 0.94], [0.94, 36.0]]]),
}
RNG = np.random.default_rng(0)
DRAWS = {name: value * (1 + 0.02 * RNG.normal(size=(4, 10, *(1,) * value.ndim))) for name, value in SITES.items()}
REPLICATED = FAITHFUL.x.numpy()[RNG.integers(0, 272, size=(30, 272))]
HISTORY = {"objective": np.array([[-1300.0, -1180.0, -1131.0], [-1290.0, -1140.0, np.nan]])}

AXES_PICTURES: dict[str, Callable[..., plt.Axes]] = {
    "density": lambda **kw: plot_density(FAITHFUL.x, MODEL, SITES, feature_names=NAMES, **kw),
    "density of draws": lambda **kw: plot_density(FAITHFUL.x, MODEL, DRAWS, feature_names=NAMES, **kw),
    "one feature": lambda **kw: plot_density(FAITHFUL.x, MODEL, DRAWS, features=[1], feature_names=NAMES, **kw),
    "responsibilities": lambda **kw: plot_responsibilities(FAITHFUL.x, MODEL, SITES, feature_names=NAMES, **kw),
    "history": lambda **kw: plot_history(HISTORY, **kw),
}
FIGURE_PICTURES: dict[str, Callable[..., Figure]] = {
    "components": lambda **kw: plot_components(DRAWS, dims=MODEL.dims, feature_names=NAMES, **kw),
    "predictive check": lambda **kw: plot_predictive_check(FAITHFUL.x, REPLICATED, feature_names=NAMES, **kw),
    "calibration": lambda **kw: plot_calibration(Calibration({"loc": np.arange(200) % 20}, 19), **kw),
}
PICTURES = AXES_PICTURES | FIGURE_PICTURES


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def figure_of(picture: plt.Axes | Figure) -> Figure:
    return picture if isinstance(picture, Figure) else picture.get_figure(root=True)


@pytest.mark.parametrize("name", PICTURES)
def test_touches_nothing_global(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("plt.show was called"))
    before = matplotlib.rcParams.copy()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (it is the global one)
    figure = figure_of(PICTURES[name]())
    assert matplotlib.rcParams == before
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert plt.get_fignums() == [figure.number]
    plt.close(figure)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", PICTURES)
def test_draws_where_it_is_told(name: str) -> None:
    theirs, mine = plt.subplots()[0], Figure()  # a bare Figure is unknown to pyplot
    if name in AXES_PICTURES:
        ax = mine.add_subplot()
        assert AXES_PICTURES[name](ax=ax) is ax
    else:
        assert FIGURE_PICTURES[name](fig=mine) is mine
    assert mine.axes
    assert not theirs.axes[0].has_data()
    assert plt.get_fignums() == [theirs.number]
    assert plt.gcf() is theirs


@pytest.mark.parametrize("name", PICTURES)
def test_all_text_is_inside_and_legends_cover_no_axes(name: str) -> None:
    figure = figure_of(PICTURES[name]())
    figure.set_dpi(100)
    figure.canvas.draw()
    legends = [ax.get_legend() for ax in figure.axes] + list(figure.legends)
    axis_parts = [part for ax in figure.axes for part in (ax.xaxis, ax.yaxis, ax.title)]
    boxes = [part.get_tightbbox() for part in [*axis_parts, *filter(None, legends)]]
    # One pixel: text boxes are rounded up to whole ones.
    for box in filter(None, boxes):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1
    if name != "history":  # its lower right corner is free, for the objective rises
        frames = [ax.get_window_extent() for ax in figure.axes]
        assert not any(
            legend.get_window_extent().overlaps(frame) for legend in filter(None, legends) for frame in frames
        )


@pytest.mark.parametrize("layout", [None, "tight"])
@pytest.mark.parametrize("name", FIGURE_PICTURES)
def test_panels_have_a_layout_and_the_callers_own_is_kept(name: str, layout: str | None) -> None:
    figure = FIGURE_PICTURES[name](fig=Figure(layout=layout))
    expected = TightLayoutEngine if layout == "tight" else ConstrainedLayoutEngine
    assert isinstance(figure.get_layout_engine(), expected)


@pytest.mark.parametrize("name", FIGURE_PICTURES)
def test_refuses_a_figure_that_is_in_use(name: str) -> None:
    with pytest.raises(DataError, match=r"empty figure, got one with 3 axes\. Pass a new one"):
        FIGURE_PICTURES[name](fig=plt.subplots(1, 3)[0])


def as_float32_with_gradient(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float32, requires_grad=True)


KINDS: dict[str, Callable[[np.ndarray], object]] = {
    "tensor": torch.tensor,
    "tensor that needs a gradient": as_float32_with_gradient,
    "list": np.ndarray.tolist,
    "reversed view": lambda array: np.ascontiguousarray(array[::-1])[::-1],
    "read-only": lambda array: np.broadcast_to(array, array.shape),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_array_gives_the_same_picture(kind: str, recwarn: pytest.WarningsRecorder) -> None:
    data = FAITHFUL.x.numpy()
    expected = plot_density(data, MODEL, SITES)
    convert = KINDS[kind]
    ax = plot_density(convert(data), MODEL, {name: convert(value) for name, value in SITES.items()})
    # Tolerance: float32 keeps seven digits.
    for one, other in zip(expected.patches, ax.patches, strict=True):
        np.testing.assert_allclose([one.width, one.height], [other.width, other.height], rtol=1e-5)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), expected.collections[0].get_offsets(), rtol=1e-6)
    assert not recwarn.list


def test_columns_of_a_data_frame_name_the_axes() -> None:
    frame = pd.DataFrame(FAITHFUL.x.numpy(), columns=list(NAMES))
    ax = plot_density(frame, MODEL, SITES, features=(1, 0))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("waiting", "eruptions")
    assert plot_predictive_check(frame, REPLICATED).axes[1].get_xlabel() == "waiting"


def changed(**sites: np.ndarray) -> dict[str, np.ndarray]:
    return SITES | sites


X = FAITHFUL.x.numpy()
HOLED = np.where(np.arange(272)[:, None] == 5, np.nan, X)
BAD_INPUTS = {
    "feature that is not there": (
        X,
        SITES,
        {"features": (0, 2)},
        r"from 0 to 1, got \[0, 2\]\. The data have 2 columns",
    ),
    "negative feature": (X, SITES, {"features": (0, -1)}, r"from 0 to 1, got \[0, -1\]"),
    "same feature twice": (X, SITES, {"features": (1, 1)}, r"different columns, got \[1, 1\]"),
    "three features": (
        X[:, [0, 1, 1]],
        SITES,
        {"features": (0, 1, 2)},
        r"got \[0, 1, 2\]\. Draw further ones in another",
    ),
    "features by name": (X, SITES, {"features": ("eruptions", "waiting")}, r"numbers of columns such as \(0, 1\), got"),
    "too few names": (X, SITES, {"feature_names": ["eruptions"]}, r"expected 2, one per feature, got 1"),
    "three axes": (X[None], SITES, {}, r"table \(rows, columns\) .* got \(1, 272, 2\)\. Reshape"),
    "no rows": (X[:0], SITES, {}, r"at least one row, got \(0, 2\)"),
    "missing values": (HOLED, SITES, {}, r"finite numbers, got 2 others, first at \(5, 0\)\. Drop or fill"),
    "text": ([["a", "b"]], SITES, {}, r"expected an array of numbers, got list .* Convert"),
    "site left out": (
        X,
        {"weights": [1.0], "loc": [[0.0, 0.0]]},
        {},
        r"expected 'cov' .* got only \['loc', 'weights'\]\. Add",
    ),
    "loc of other data": (
        X,
        changed(loc=np.zeros((2, 3))),
        {},
        r"site 'loc': expected the size 2 along 'feature', got 3",
    ),
    "one weight too many": (X, changed(weights=np.ones(3) / 3), {}, r"expected the size 3 along 'component', got 2"),
    "flat loc": (X, changed(loc=np.zeros(2)), {}, r"the last axes \('component', 'feature'\), got the shape \(2,\)"),
    "failed draw": (
        X,
        changed(weights=np.full(2, np.nan)),
        {},
        r"site 'weights': expected finite .* Leave out the draws",
    ),
    "unequal draws": (X, changed(loc=np.zeros((5, 2, 2)), weights=np.ones((4, 2)) / 2), {}, r"5 draws .* got 4\. Keep"),
}


@pytest.mark.parametrize("plot", [plot_density, plot_responsibilities])
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_named_and_leaves_no_figure(case: str, plot: Callable[..., plt.Axes]) -> None:
    x, sites, options, message = BAD_INPUTS[case]
    with pytest.raises((DataError, ProgramError), match=message):
        plot(x, MODEL, sites, **options)
    assert plt.get_fignums() == []
