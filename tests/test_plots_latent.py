"""Pictures of latent mixtures: planes, ellipses and maps, against NumPy and generators whose map is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Ellipse
from picture_laws import draws_on_given_axes, keeps_all_laws
from torch import Tensor

from probmix.errors import DataError, ProbmixError
from probmix.models import FactoredLatent, MixtureGAN, MixtureLatent
from probmix.plots import plane_colours, plot_latent, plot_latent_map
from probmix.plots_axes import colour

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def latent(num_components: int = 3, dim: int = 2, *, seed: int = 0, **settings: Any) -> MixtureLatent:
    """A mixture with full covariances and unequal weights."""
    generator = torch.Generator().manual_seed(seed)
    mixture = MixtureLatent(num_components, dim, covariance="full", loc_range=3.0, **settings)
    with torch.no_grad():
        mixture.root += 0.3 * torch.randn(mixture.root.shape, generator=generator)
        mixture.logits += torch.randn(num_components, generator=generator)
    return mixture


class Linear:
    """A generator whose map is known: x = z M."""

    def __init__(self, mixture: Any, matrix: Tensor | None = None) -> None:
        self.latent, self.matrix = mixture, torch.eye(2) if matrix is None else matrix

    def generate(self, z: Tensor) -> Tensor:
        return z @ self.matrix


def shapes(ax: Axes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Centre and matrix (radius^2 times covariance) of every ellipse."""
    found = []
    for patch in ax.patches:
        assert isinstance(patch, Ellipse)
        angle = np.radians(patch.angle)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        half = np.diag([patch.width / 2, patch.height / 2])
        found.append((np.array(patch.center), turn @ half @ half @ turn.T))
    return found


def picture(ax: Axes) -> np.ndarray:
    (image,) = ax.images
    return np.asarray(image.get_array())


# --- components -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("along", [None, (0, 1), (1, 0)])
def test_ellipses_are_those_of_the_covariances(along: Any, temperature: float) -> None:
    mixture = latent()
    ax = plot_latent(mixture, along=along, temperature=temperature, num_std=(2, 1))
    chosen = list(along or (0, 1))
    loc, cov = mixture.loc.detach().numpy(), (mixture.tril @ mixture.tril.mT).detach().numpy()
    expected = [(loc[k], radius**2 * temperature * cov[k]) for k in range(3) for radius in (1, 2)]
    for (centre, shape), (place, matrix) in zip(shapes(ax), expected, strict=True):
        np.testing.assert_allclose(centre, place[chosen], rtol=1e-6)
        np.testing.assert_allclose(shape, matrix[np.ix_(chosen, chosen)], rtol=1e-4, atol=1e-6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == tuple(f"latent axis {i}" for i in chosen)
    edges = [patch.get_edgecolor()[:3] for patch in ax.patches]
    assert edges == [to_rgb(colour(k)) for k in (0, 0, 1, 1, 2, 2)]
    labels = ax.get_legend_handles_labels()[1]
    assert labels[:3] == [f"component {k}, weight {float(mixture.weights[k]):.2f}" for k in range(3)]
    assert labels[3] == "ellipses: 1, 2 std" + (", temperature 0.25" if temperature != 1 else "")


def test_heavier_components_have_larger_marks() -> None:
    mixture = latent()
    areas = [float(marks.get_sizes()[0]) for marks in plot_latent(mixture).collections]
    assert np.argsort(areas).tolist() == mixture.weights.argsort().tolist()


def test_many_vectors_are_seen_along_the_principal_axes_of_the_locations() -> None:
    """By the singular vectors of centred locations, each times the root of its weight; up to the sign."""
    mixture = latent(6, 9)
    ax = plot_latent(mixture)
    weights, loc = mixture.weights.detach().numpy(), mixture.loc.detach().numpy()
    residual = loc - weights @ loc
    _, sizes, axes = np.linalg.svd(np.sqrt(weights)[:, None] * residual)
    marks = np.concatenate([drawn.get_offsets() for drawn in ax.collections])
    expected = loc @ axes[:2].T
    # 1e-2: covariances have a share of a thousandth in the choice of axes
    for i in (0, 1):
        sign = np.sign(marks[:, i] @ expected[:, i])
        np.testing.assert_allclose(marks[:, i], sign * expected[:, i], atol=1e-2)
    shares = 100 * sizes**2 / (sizes**2).sum()
    assert ax.get_xlabel() == f"principal axis 0 of the locations ({shares[0]:.0f} %)"
    assert ax.get_ylabel() == f"principal axis 1 of the locations ({shares[1]:.0f} %)"


@pytest.mark.parametrize("num_components", [1, 2])
def test_few_locations_leave_axes_to_the_covariances(num_components: int) -> None:
    """With one component the plane is that of its two longest axes, by NumPy."""
    mixture = latent(num_components, 5)
    ax = plot_latent(mixture)
    assert all(np.isfinite(shape).all() for _, shape in shapes(ax))
    if num_components == 1:
        cov = (mixture.tril @ mixture.tril.mT)[0].detach().numpy()
        largest = np.linalg.eigvalsh(cov)[::-1][:2]
        np.testing.assert_allclose(np.linalg.eigvalsh(shapes(ax)[0][1])[::-1], largest, rtol=1e-4)
        assert ax.get_xlabel().endswith("(0 %)")


def test_vectors_are_drawn_where_they_are_in_the_colour_of_their_component() -> None:
    mixture = latent(3, 4)
    draws = mixture.sample(50, seed=0)
    ax = plot_latent(mixture, along=(3, 1), z=draws.z, component=draws.component)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), draws.z[:, [3, 1]], rtol=1e-6)
    shades = ax.collections[0].get_facecolors()[:, :3]
    np.testing.assert_allclose(shades, [to_rgb(colour(int(k))) for k in draws.component])
    grey = plot_latent(mixture, z=draws.z).collections[0].get_facecolors()
    assert len(grey) == 1
    assert grey[0, 0] == grey[0, 1] == grey[0, 2]


def test_two_mixtures_can_share_their_axes() -> None:
    fig, axes = plt.subplots(1, 2, sharex=True, sharey=True)
    for ax, seed in zip(axes, (0, 1), strict=True):
        plot_latent(latent(seed=seed), ax=ax)
    fig.canvas.draw()
    assert axes[0].get_xlim() == axes[1].get_xlim()
    for ax in axes:
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        marks = np.concatenate([drawn.get_offsets() for drawn in ax.collections])
        assert ((marks > [left, bottom]) & (marks < [right, top])).all()


# --- maps -------------------------------------------------------------------------------------------------------------


def test_each_place_has_the_colour_of_its_label() -> None:
    """Quadrants, of a generator that exchanges the axes: the upper left is where x is large and y small."""

    def quadrant(x: Tensor) -> Tensor:
        return torch.where((x > 0).all(-1), -1, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0))

    model = Linear(latent(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    ax = plot_latent_map(model, quadrant, limits=((-2, 2), (-1, 1)), resolution=8)
    found = picture(ax)  # from the bottom up
    lower_left, lower_right, upper_left, upper_right = found[0, 0], found[0, -1], found[-1, 0], found[-1, -1]
    for shade, label in ((lower_left, 0), (upper_left, 1), (lower_right, 2)):
        np.testing.assert_allclose(shade, 0.45 + 0.55 * np.array(to_rgb(colour(label))))
    np.testing.assert_allclose(upper_right, 0.93)
    assert ax.images[0].get_extent() == [-2, 2, -1, 1]
    assert ax.images[0].origin == "lower"
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2, 2), (-1, 1))


def test_numbers_have_a_colour_bar() -> None:
    ax = plot_latent_map(Linear(latent()), lambda x: x[:, 0], limits=((-1, 3), (0, 4)), resolution=5)
    np.testing.assert_allclose(picture(ax), [np.linspace(-1, 3, 5)] * 5, rtol=1e-6)
    assert len(ax.figure.axes) == 2


def test_colours_are_taken_as_they_are() -> None:
    shade = (0.1, 0.5, 0.9)
    ax = plot_latent_map(Linear(latent()), lambda x: torch.tensor(shade).expand(len(x), 3), resolution=70)
    np.testing.assert_allclose(picture(ax), np.broadcast_to(shade, (70, 70, 3)), rtol=1e-6)


def test_data_in_the_plane_need_no_function() -> None:
    ax = plot_latent_map(Linear(latent()), limits=((-1, 1), (-1, 1)), resolution=3)
    places = [[x, y] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    np.testing.assert_allclose(picture(ax).reshape(-1, 3), plane_colours(places, limits=(-1, 1)), atol=1e-6)


def test_a_map_holds_all_ellipses_in_black() -> None:
    mixture = latent(5)
    ax = plot_latent_map(Linear(mixture), temperature=4.0, num_std=[2], resolution=4)
    assert len(ax.patches) == 5
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for (centre, shape), patch in zip(shapes(ax), ax.patches, strict=True):
        reach = np.sqrt(np.diag(shape))
        assert left < centre[0] - reach[0]
        assert right > centre[0] + reach[0]
        assert bottom < centre[1] - reach[1]
        assert top > centre[1] + reach[1]
        assert patch.get_edgecolor()[:3] == (0, 0, 0)
    np.testing.assert_allclose(shapes(ax)[2][1], 16 * (mixture.tril @ mixture.tril.mT)[2].detach(), rtol=1e-4)


# --- colours of the plane ---------------------------------------------------------------------------------------------


def oklab(colours: np.ndarray) -> np.ndarray:
    """Ottosson's forward formulas: from sRGB to lightness, a and b."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ cones.T) @ lab.T


def test_colours_are_even_and_of_one_lightness() -> None:
    """Back by the forward formulas, near the middle, where a screen has all colours."""
    places = np.array([[x, y] for x in (-0.4, 0, 0.4) for y in (-0.4, 0, 0.4)])
    found = oklab(plane_colours(places, limits=(-1, 1)))
    np.testing.assert_allclose(found[:, 0], 0.75, atol=1e-4)
    np.testing.assert_allclose(found[:, 1:], 0.16 * places, atol=1e-4)


def test_colours_of_a_grid_of_modes_can_be_told_apart() -> None:
    """Just noticeable is a distance of about 0.02 in Oklab."""
    places = np.array([[x, y] for x in range(5) for y in range(5)])
    lab = oklab(plane_colours(places))
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.eye(25)
    assert distance.min() > 0.03


def test_points_beyond_the_limits_are_as_its_edge() -> None:
    np.testing.assert_array_equal(plane_colours([[9, -9]], limits=(-1, 1)), plane_colours([[1, -1]], limits=(-1, 1)))
    assert plane_colours([[2.0, 2.0]]).shape == (1, 3)


# --- what is refused --------------------------------------------------------------------------------------------------

DRAWS = latent().sample(5, seed=0)
MODEL = Linear(latent())
BROKEN = latent()
with torch.no_grad():
    BROKEN.loc[0, 0] = torch.nan
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "not a mixture": (lambda: plot_latent(torch.nn.Linear(2, 2)), "got Linear without weights, loc, tril. Pass model"),
    "several parts": (
        lambda: plot_latent(FactoredLatent(latent(), latent())),
        "FactoredLatent without .* its parts",
    ),
    "not finite": (lambda: plot_latent(BROKEN), "expected finite weights, locations and covariances"),
    "one number": (lambda: plot_latent(MixtureLatent(3, 1)), "at least two numbers, got one. Draw its density instead"),
    "one axis": (lambda: plot_latent(latent(), along=[0]), r"expected 2 different columns, got \[0\]"),
    "no such axis": (lambda: plot_latent(latent(), along=(0, 2)), r"from 0 to 1, got \[0, 2\]"),
    "no radius": (lambda: plot_latent(latent(), num_std=()), r"num_std: expected positive numbers .* got \[\]\. Try"),
    "radius of 0": (lambda: plot_latent_map(MODEL, num_std=(0, 1)), r"num_std: .* got \[0.0, 1.0\]"),
    "cold": (lambda: plot_latent(latent(), temperature=-1.0), "temperature: expected a number of at least 0, got -1.0"),
    "data as z": (lambda: plot_latent(latent(), z=torch.zeros(5, 64)), r"z: .* of 2 numbers, got shape \(5, 64\)"),
    "other draws": (
        lambda: plot_latent(latent(), z=DRAWS.z, component=DRAWS.component[:3]),
        r"component: expected a number from 0 to 2 for each of 5 vectors, got shape \(3,\)",
    ),
    "no such component": (lambda: plot_latent(latent(), z=DRAWS.z, component=[0, 1, 2, 3, 0]), "from 0 to 2 for each"),
    "not trained": (
        lambda: plot_latent_map(MixtureGAN(latent(), value_range=None)),
        "model: expected a trained model .* got MixtureGAN. Pass fit.program",
    ),
    "three numbers": (
        lambda: plot_latent_map(Linear(latent(3, 3))),
        "latent vectors of two numbers, got 3.* draw plot_latent instead",
    ),
    "images without a function": (
        lambda: plot_latent_map(Linear(latent(), torch.ones(2, 64)), resolution=4),
        r"expected data in the plane, got shape \(64,\)\. Pass paint=",
    ),
    "scores": (
        lambda: plot_latent_map(MODEL, lambda x: torch.zeros(len(x), 10), resolution=4),
        r"paint: .* each of 16 rows, or three of a colour, got shape \(16, 10\)\. Of scores take argmax",
    ),
    "bytes": (
        lambda: plot_latent_map(MODEL, lambda x: torch.full((len(x), 3), 255.0), resolution=4),
        "from 0 to 1, got values from 255 to 255. Divide bytes by 255",
    ),
    "coarse": (
        lambda: plot_latent_map(MODEL, resolution=1),
        "resolution: .* at least 2, got 1",
    ),
    "colours of space": (lambda: plane_colours(torch.zeros(4, 3)), r"points of a plane, \(n, 2\), got \(4, 3\)"),
    "falling limits": (lambda: plane_colours([[0, 0]], limits=(1, -1)), r"low < high, got \(1, -1\)\. Leave them out"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_leaves_no_figure(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ProbmixError, match=message):
        call()
    assert plt.get_fignums() == []


def test_the_errors_are_of_the_kind_that_is_promised() -> None:
    with pytest.raises(DataError):
        plot_latent(MixtureLatent(3, 1))


# --- manners ----------------------------------------------------------------------------------------------------------

MANY = latent(20)
PICTURES: dict[str, Callable[..., Axes]] = {
    "latent": lambda **where: plot_latent(latent(4, 6), z=torch.zeros(3, 6), **where),
    "many components": lambda **where: plot_latent(MANY, **where),
    "map": lambda **where: plot_latent_map(MODEL, resolution=9, **where),
    "map with a bar": lambda **where: plot_latent_map(MODEL, lambda x: x[:, 1], resolution=9, **where),
}


@pytest.mark.parametrize("name", PICTURES)
def test_manners(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keeps_all_laws(PICTURES[name], monkeypatch, on=draws_on_given_axes)
