"""The grid of images: every pixel where it belongs, in the colour that it should have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from picture_laws import draws_on_given_axes, keeps_all_laws

from probmix.errors import DataError
from probmix.plots import plot_images

matplotlib.use("Agg")

NAN = np.nan
RNG = np.random.default_rng(0)
GREY = RNG.random((7, 8, 10))
COLOUR = RNG.random((5, 3, 20, 30))
MISSING = (0.8, 0.47, 0.65)  # the reddish purple of Okabe and Ito, #CC79A7


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def canvas(ax: Axes) -> np.ndarray:
    (image,) = ax.images
    return np.asarray(image.get_array())


def tile(ax: Axes, i: int, height: int, width: int) -> np.ndarray:
    """The pixels inside the frame of the i-th image, as it is drawn."""
    low = ax.collections[0].get_paths()[i].vertices.min(0)
    x, y = np.ceil(low).astype(int)
    return canvas(ax)[y : y + height, x : x + width]


def luminance(colours: np.ndarray) -> np.ndarray:
    assert (colours == colours[..., :1]).all()  # grey
    return colours[..., 0]


# --- where pixels go, and their colours -------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 3, 7, 10])
def test_every_image_is_in_its_place_dark_on_white(columns: int) -> None:
    ax = plot_images(GREY, columns=columns)
    share = (GREY - GREY.min()) / (GREY.max() - GREY.min())
    for i in range(7):
        found = luminance(tile(ax, i, 8, 10))
        np.testing.assert_allclose(found, 1 - share[i], atol=1 / 250)  # a colour map has 256 steps
    rows, height, width = -(-7 // columns), 8, 10
    used = min(columns, 7)
    gap = 1  # 8 % of 10 pixels, and at least one
    assert canvas(ax).shape == (rows * height + (rows - 1) * gap, used * width + (used - 1) * gap, 3)
    corners = np.array([path.vertices.min(0) + 0.5 for path in ax.collections[0].get_paths()])
    expected = [[(i % columns) * (width + gap), (i // columns) * (height + gap)] for i in range(7)]
    np.testing.assert_allclose(corners, expected)


def test_between_and_after_images_it_is_white() -> None:
    ax = plot_images(np.ones((3, 4, 4)), columns=2, value_range=(0, 1))
    found = luminance(canvas(ax))
    assert found.shape == (9, 9)
    black = np.zeros((9, 9), bool)
    black[:4, :4] = black[:4, 5:] = black[5:, :4] = True
    np.testing.assert_array_equal(found, np.where(black, 0.0, 1.0))


def test_one_channel_is_as_none_and_three_are_red_green_and_blue() -> None:
    np.testing.assert_array_equal(canvas(plot_images(GREY[:, None])), canvas(plot_images(GREY)))
    ax = plot_images(COLOUR, value_range=(0, 1), columns=2)
    for i in range(5):
        np.testing.assert_allclose(tile(ax, i, 20, 30), np.moveaxis(COLOUR[i], 0, -1))


@pytest.mark.parametrize(("value_range", "expected"), [(None, [1, 0.75, 0.5, 0]), ((0.0, 1.0), [1, 1, 1, 0.0])])
def test_values_beyond_the_range_are_as_its_ends(value_range: Any, expected: list[float]) -> None:
    ax = plot_images([[[-2.0, -1.0], [0.0, 2.0]]], value_range=value_range)
    np.testing.assert_allclose(luminance(canvas(ax)).ravel(), expected, atol=1 / 250)


def test_an_image_of_one_value_is_white() -> None:
    np.testing.assert_array_equal(canvas(plot_images(np.full((1, 3, 3), 7.0))), np.ones((3, 3, 3)))


def test_missing_pixels_have_a_colour_of_their_own() -> None:
    holed, colours = GREY.copy(), COLOUR.copy()
    holed[2, 3, 4:6] = NAN
    colours[1, 2, 0, 0] = NAN  # blue alone
    ax = plot_images(holed)
    found, others = tile(ax, 2, 8, 10), np.isfinite(holed[2])
    np.testing.assert_allclose(found[3, 4:6], [MISSING] * 2, atol=0.01)
    np.testing.assert_array_equal(found[others], tile(plot_images(GREY), 2, 8, 10)[others])
    np.testing.assert_allclose(tile(plot_images(colours), 1, 20, 30)[0, 0], MISSING, atol=0.01)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_labels_stand_beside_their_rows_and_titles_above_their_images() -> None:
    ax = plot_images(GREY, columns=3, row_labels=["a", "b", "c"], titles=[f"t{i}" for i in range(7)])
    boxes = [path.get_extents() for path in ax.collections[0].get_paths()]
    for label, at, box in zip(ax.get_yticklabels(), ax.get_yticks(), boxes[::3], strict=True):
        assert label.get_text() == "abc"[boxes[::3].index(box)]
        assert at == (box.y0 + box.y1) / 2
    assert [text.get_text() for text in ax.texts] == [f"t{i}" for i in range(7)]
    for text, box in zip(ax.texts, boxes, strict=True):
        x, y = text.get_position()
        assert x == (box.x0 + box.x1) / 2
        assert box.y0 - 1 < y < box.y0  # the vertical axis points down
        above = canvas(ax)[round(box.y0 + 0.5) - 1, round(x)]
        np.testing.assert_array_equal(above, 1)


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (64, 48)])
def test_titles_touch_no_other_image(shape: tuple[int, int]) -> None:
    ax = plot_images(RNG.random((6, *shape)), columns=3, titles=["Mg, 10%"] * 6)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    frames = [path.get_extents().transformed(ax.transData) for path in ax.collections[0].get_paths()]
    touching = [(i, j) for i, box in enumerate(boxes) for j, frame in enumerate(frames) if box.overlaps(frame)]
    assert touching == []
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


# --- what is refused --------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "rows of pixels": (GREY.reshape(7, 80), {}, r"got shape \(7, 80\)\. Rows of pixels become images by x\.reshape"),
    "one image": (GREY[0], {}, r"got shape \(8, 10\)\. .* one image is x\[None\]"),
    "two channels": (COLOUR[:, :2], {}, r"1 or 3 channels, got shape \(5, 2, 20, 30\)"),
    "channels last": (np.moveaxis(COLOUR, 1, -1), {}, r"got shape \(5, 20, 30, 3\)"),
    "none": (GREY[:0], {}, r"got shape \(0, 8, 10\)"),
    "infinite": (np.where(GREY > 0.99, np.inf, GREY), {}, r"got [1-9]\d* infinite ones\. Set infinite ones to NaN"),
    "all missing": (GREY * NAN, {}, "got no number at all"),
    "text": ([[["a"]]], {}, "images: expected an array of numbers"),
    "no columns": (GREY, {"columns": 0}, "columns: expected a whole number of at least 1, got 0. Leave it out for 10"),
    "half a column": (GREY, {"columns": 2.5}, "at least 1, got 2.5"),
    "labels of images": (GREY, {"columns": 4, "row_labels": "abcdefg"}, "row_labels: .* each of 2 rows, got 7"),
    "too few titles": (GREY, {"titles": ["a"]}, "titles: expected a text for each of 7 images, got 1. Use '' for none"),
    "falling range": (GREY, {"value_range": (1, 0)}, r"low < high, got \(1, 0\)\. Leave it out"),
    "endless range": (GREY, {"value_range": (0, np.inf)}, r"got \(0, inf\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_leaves_no_figure(name: str) -> None:
    images, options, message = BAD[name]
    with pytest.raises(DataError, match=message):
        plot_images(images, **options)
    assert plt.get_fignums() == []


# --- manners ----------------------------------------------------------------------------------------------------------


def draw(**where: Any) -> Axes:
    return plot_images(GREY, columns=3, row_labels=["real", "generated", "rest"], titles=list("abcdefg"), **where)


def test_manners(monkeypatch: pytest.MonkeyPatch) -> None:
    keeps_all_laws(draw, monkeypatch, on=draws_on_given_axes)


def test_any_kind_of_array_will_do() -> None:
    expected = canvas(plot_images(GREY))
    for images in (torch.tensor(GREY, requires_grad=True), GREY.tolist(), GREY[::-1][::-1]):
        np.testing.assert_array_equal(canvas(plot_images(images)), expected)
    np.testing.assert_array_equal(canvas(plot_images((255 * GREY).astype(np.uint8))).shape, expected.shape)
