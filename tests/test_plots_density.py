"""The numbers behind the density picture: ellipses, contours, curves and bands, against scipy and closed forms."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.contour import QuadContourSet
from matplotlib.patches import Ellipse
from scipy.stats import chi2, multivariate_normal, norm

from probmix.errors import DataError, ProgramError
from probmix.models import GaussianMixture
from probmix.plots import plot_density

matplotlib.use("Agg")

COVARIANCES = ["full", "tied", "diagonal", "spherical"]
WEIGHTS = np.array([0.7, 0.3])
LOC = np.array([[0.0, 1.0, -2.0], [5.0, -1.0, 2.0]])
RNG = np.random.default_rng(1)
X = np.concatenate([LOC[0] + RNG.normal(size=(70, 3)), LOC[1] + RNG.normal(size=(30, 3))])


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def spread(covariance: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The site of the spread, and the covariances (2, 3, 3) that it means, written out by hand."""
    root = np.array([[[1.0, 0, 0], [0.5, 0.8, 0], [-0.3, 0.2, 1.2]], [[0.6, 0, 0], [-0.4, 1.1, 0], [0.2, 0.3, 0.5]]])
    cov, var = root @ root.transpose(0, 2, 1), np.array([[0.3, 1.0, 2.0], [1.5, 0.2, 0.6]])
    return {
        "full": ({"cov": cov}, cov),
        "tied": ({"cov": cov[0]}, np.stack([cov[0], cov[0]])),
        "diagonal": ({"var": var}, np.stack([np.diag(var[0]), np.diag(var[1])])),
        "spherical": ({"var": var[:, 0]}, np.stack([0.3 * np.eye(3), 1.5 * np.eye(3)])),
    }[covariance]


def three_features(covariance: str) -> tuple[GaussianMixture, dict[str, np.ndarray], np.ndarray]:
    site, cov = spread(covariance)
    return GaussianMixture(2, covariance=covariance), {"weights": WEIGHTS, "loc": LOC, **site}, cov


def contours(ax: Axes) -> QuadContourSet:
    return next(c for c in ax.collections if isinstance(c, QuadContourSet) and not c.filled)


def marks(ax: Axes) -> list[PathCollection]:
    """The marks at the means, in the order of the components."""
    return [c for c in ax.collections if isinstance(c, PathCollection) and c.get_label().startswith("component")]


def line(ax: Axes, start: str) -> tuple[np.ndarray, np.ndarray]:
    found = [artist for artist in ax.lines if str(artist.get_label()).startswith(start)]
    assert len(found) == 1
    return found[0].get_data()


def test_axes_of_an_ellipse_are_the_roots_of_the_eigenvalues() -> None:
    cov = np.array([[[2.0, 0.6], [0.6, 1.0]], [[0.5, 0.0], [0.0, 3.0]]])
    ax = plot_density(X[:, :2], GaussianMixture(2), {"weights": WEIGHTS, "loc": LOC[:, :2], "cov": cov}, num_std=(2, 1))
    expected = [2 * s * np.sqrt(np.linalg.eigvalsh(cov[k])[::-1]) for k in (0, 1) for s in (1, 2)]
    np.testing.assert_allclose([[e.width, e.height] for e in ax.patches], expected, rtol=1e-12)  # rounding


@pytest.mark.parametrize("features", [(0, 1), (2, 0), (1, 2)])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_ellipses_lie_at_their_distance_in_the_marginal(covariance: str, features: tuple[int, int]) -> None:
    model, sites, cov = three_features(covariance)
    ax = plot_density(X, model, sites, features=features, num_std=(1, 2.5))
    assert [type(patch) for patch in ax.patches] == [Ellipse] * 4
    unit = np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [0.6, 0.8]])
    for ellipse, k, radius in zip(ax.patches, [0, 0, 1, 1], [1, 2.5, 1, 2.5], strict=True):
        away = ellipse.get_patch_transform().transform(unit) - LOC[k, features]
        kept = np.linalg.inv(cov[k][np.ix_(features, features)])
        distance = np.sqrt(np.einsum("ni,ij,nj->n", away, kept, away))
        np.testing.assert_allclose(distance, radius, rtol=1e-9)  # rounding


@pytest.mark.parametrize("features", [(0, 1), (2, 0)])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_contours_are_level_sets_of_the_marginal_density(covariance: str, features: tuple[int, int]) -> None:
    model, sites, cov = three_features(covariance)
    drawn = contours(plot_density(X, model, sites, features=features))
    assert (np.diff(drawn.levels) > 0).all()
    parts = [multivariate_normal(LOC[k, features], cov[k][np.ix_(features, features)]) for k in (0, 1)]
    for level, path in zip(drawn.levels, drawn.get_paths(), strict=True):
        density = WEIGHTS @ [part.pdf(path.vertices) for part in parts]
        # Linear interpolation on a grid of step h = 0.2 s, s the smallest standard deviation, errs by h^2 / 8 times the
        # second derivative, which is (2.45^2 - 1) / s^2 of the density at the outermost contour: 2.5 %.
        np.testing.assert_allclose(density, level, rtol=0.04)


def test_contours_enclose_the_masses_that_the_legend_names() -> None:
    cov = np.array([[[2.0, 0.6], [0.6, 1.0]]])
    sites = {"weights": np.ones(1), "loc": np.zeros((1, 2)), "cov": cov}
    ax = plot_density(RNG.multivariate_normal(np.zeros(2), cov[0], size=300), GaussianMixture(1), sites)
    peak = 1 / (2 * np.pi * np.sqrt(np.linalg.det(cov[0])))
    # In the plane the squared distance is chi-square with 2 degrees of freedom.
    expected = peak * np.exp(-chi2(2).ppf([0.95, 0.75, 0.5, 0.25]) / 2)
    # A level is the density of one of 120 x 120 grid points: the next one is 1 / 500 of the mass away.
    np.testing.assert_allclose(contours(ax).levels, expected, rtol=0.02)
    assert "25, 50, 75, 95 % of the density" in ax.get_legend_handles_labels()[1]


def test_a_mass_beyond_the_window_has_no_contour() -> None:
    sites = {"weights": np.ones(1), "loc": np.zeros((1, 2)), "var": np.array([100.0])}
    ax = plot_density(RNG.normal(size=(50, 2)), GaussianMixture(1, covariance="spherical"), sites)
    assert not [label for label in ax.get_legend_handles_labels()[1] if "%" in label]
    assert ax.get_xlim()[1] < 10


def test_weight_shows_in_the_mark_the_lines_and_the_legend() -> None:
    model, sites, _ = three_features("full")
    ax = plot_density(X, model, sites)
    heavy, light = marks(ax)
    assert heavy.get_sizes()[0] > 1.5 * light.get_sizes()[0]
    assert ax.patches[0].get_linewidth() > ax.patches[2].get_linewidth()
    assert [mark.get_label() for mark in (heavy, light)] == ["component 0, weight 0.70", "component 1, weight 0.30"]
    np.testing.assert_allclose([heavy.get_offsets()[0], light.get_offsets()[0]], LOC[:, :2])


def test_many_components_differ_in_colour_or_mark() -> None:
    sites = {"weights": np.full(14, 1 / 14), "loc": RNG.normal(size=(14, 2)), "var": np.ones(14)}
    ax = plot_density(X[:, :2], GaussianMixture(14, covariance="spherical"), sites)
    looks = {(tuple(mark.get_facecolor()[0]), mark.get_paths()[0].vertices.tobytes()) for mark in marks(ax)}
    assert len(looks) == 14


def test_curves_of_one_feature_are_the_densities() -> None:
    values = X[:, 0]
    sites = {"weights": WEIGHTS, "loc": LOC[:, :1], "var": np.array([0.5, 2.0])}
    ax = plot_density(values, GaussianMixture(2, covariance="spherical"), sites, feature_names=["speed"])
    grid, mixture = line(ax, "mixture")
    parts = [WEIGHTS[k] * norm(LOC[k, 0], np.sqrt(sites["var"][k])).pdf(grid) for k in (0, 1)]
    for k in (0, 1):
        np.testing.assert_allclose(line(ax, f"component {k}")[1], parts[k], rtol=1e-9)  # rounding
    np.testing.assert_allclose(mixture, sum(parts), rtol=1e-9)
    bars = ax.containers[0].patches
    assert sum(bar.get_width() * bar.get_height() for bar in bars) == pytest.approx(1.0)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("speed", "density")
    assert grid[0] < values.min()
    assert grid[-1] > values.max()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_one_of_three_features_is_its_marginal(covariance: str) -> None:
    model, sites, cov = three_features(covariance)
    grid, mixture = line(plot_density(X, model, sites, features=[2]), "mixture")
    expected = sum(WEIGHTS[k] * norm(LOC[k, 2], np.sqrt(cov[k, 2, 2])).pdf(grid) for k in (0, 1))
    np.testing.assert_allclose(mixture, expected, rtol=1e-9)  # rounding


def drawn_sites(chains: int, draws: int) -> dict[str, np.ndarray]:
    first = RNG.uniform(0.5, 0.9, size=(chains, draws))
    loc = LOC[:, :2] + 0.2 * RNG.normal(size=(chains, draws, 2, 2))
    var = np.exp(0.2 * RNG.normal(size=(chains, draws, 2, 2)))
    return {"weights": np.stack([first, 1 - first], axis=-1), "loc": loc, "var": var}


def test_median_and_band_of_draws() -> None:
    sites = {name: value[..., :1] if value.ndim == 4 else value for name, value in drawn_sites(4, 30).items()}
    ax = plot_density(X[:, 0], GaussianMixture(2, covariance="diagonal"), sites)
    grid, median = line(ax, "mixture: median")
    band = next(c for c in ax.collections if isinstance(c, PolyCollection)).get_paths()[0].vertices
    weights, loc, std = (sites[name].reshape(120, 1, 2) for name in ("weights", "loc", "var"))
    densities = (weights * norm(loc, np.sqrt(std)).pdf(grid[:, None])).sum(axis=-1)
    low, middle, high = np.quantile(densities, [0.05, 0.5, 0.95], axis=0)
    np.testing.assert_allclose(median, middle, rtol=1e-9)
    for i in range(5, 395, 10):
        edge = np.sort(np.unique(band[np.isclose(band[:, 0], grid[i], rtol=0, atol=1e-12), 1]))
        np.testing.assert_allclose(edge, [low[i], high[i]], rtol=1e-9)


def test_draws_in_the_plane() -> None:
    sites = drawn_sites(2, 50)
    ax = plot_density(X[:, :2], GaussianMixture(2, covariance="diagonal"), sites, num_std=(1, 2))
    assert len(ax.patches) == 2 * 30
    outer = 2 * 2 * np.sqrt(sites["var"].max(axis=-1))
    assert all(np.isclose(ellipse.width, outer[..., 0], rtol=1e-9).any() for ellipse in ax.patches[:30])
    mean_loc = sites["loc"].mean(axis=(0, 1))
    np.testing.assert_allclose([mark.get_offsets()[0] for mark in marks(ax)], mean_loc)
    labels = ax.get_legend_handles_labels()[1]
    assert "ellipses: 2 std, 30 draws" in labels
    assert labels[2] == f"component 0, weight {np.median(sites['weights'][..., 0]):.2f}"


def test_contours_of_draws_are_those_of_the_mean_density() -> None:
    sites = drawn_sites(2, 20)
    drawn = contours(plot_density(X[:, :2], GaussianMixture(2, covariance="diagonal"), sites))
    weights, loc, var = (sites[name].reshape(40, 2, -1) for name in ("weights", "loc", "var"))
    vertices = drawn.get_paths()[1].vertices[::20]
    parts = norm(loc, np.sqrt(var)).pdf(vertices[:, None, None]).prod(axis=-1) * weights[..., 0]
    np.testing.assert_allclose(parts.sum(axis=-1).mean(axis=-1), drawn.levels[1], rtol=0.04)  # interpolation, as above


def test_draw_axes_may_be_flat() -> None:
    sites, model = drawn_sites(3, 5), GaussianMixture(2, covariance="diagonal")
    flat = {name: value.reshape(15, *value.shape[2:]) for name, value in sites.items()}
    one, other = plot_density(X[:, :2], model, sites), plot_density(X[:, :2], model, flat)
    np.testing.assert_array_equal(contours(one).levels, contours(other).levels)


def test_many_draws_are_thinned_over_all_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    log_prob = GaussianMixture.log_prob_components

    def spy(self: GaussianMixture, x: object, sites: dict) -> object:
        seen.append(sites["weights"][:, 0].numpy())
        return log_prob(self, x, sites)

    monkeypatch.setattr(GaussianMixture, "log_prob_components", spy)
    sites = drawn_sites(4, 300)
    plot_density(X[:, :2], GaussianMixture(2, covariance="diagonal"), sites, features=[0])
    used = np.concatenate(seen)
    assert [np.isin(used, sites["weights"][chain, :, 0]).sum() for chain in range(4)] == [50] * 4


def test_a_component_far_away_does_not_shrink_the_data() -> None:
    sites = {"weights": np.array([0.99, 0.01]), "loc": np.array([[0.0, 0.0], [1e6, 0.0]]), "var": np.ones(2)}
    data = RNG.normal(size=(200, 2))
    left, right = plot_density(data, GaussianMixture(2, covariance="spherical"), sites).get_xlim()
    assert right - left < 2.2 * np.ptp(data[:, 0])  # half the range and 5 % on either side


def test_a_constant_column_can_be_drawn() -> None:
    sites = {"weights": np.ones(1), "loc": np.zeros((1, 2)), "var": np.ones(1)}
    data = np.stack([RNG.normal(size=30), np.zeros(30)], axis=1)
    left, right = plot_density(data, GaussianMixture(1, covariance="spherical"), sites).get_ylim()
    assert left < -2
    assert right > 2


def test_far_outliers_do_not_ask_for_endless_bins() -> None:
    sites = {"weights": np.ones(1), "loc": np.zeros((1, 1)), "var": np.ones(1)}
    ax = plot_density(np.append(RNG.normal(size=100), 1e9), GaussianMixture(1, covariance="spherical"), sites)
    assert len(ax.containers[0].patches) == 60


@pytest.mark.parametrize("num_std", [(), (0, 1), (-1,), (float("nan"),)])
def test_radii_are_positive(num_std: tuple[float, ...]) -> None:
    model, sites, _ = three_features("full")
    with pytest.raises(DataError, match=r"positive numbers of standard deviations, got .*\. Try \(1, 2\)"):
        plot_density(X, model, sites, num_std=num_std)


def test_a_singular_component_is_named() -> None:
    model, sites, cov = three_features("full")
    sites["cov"] = np.stack([cov[0], -cov[1]])
    smallest = np.linalg.eigvalsh(-cov[1][:2, :2])[0]
    with pytest.raises(ProgramError, match=rf"got {smallest:.3g} among those of the components \[1\]\. Leave"):
        plot_density(X, model, sites)
    assert plt.get_fignums() == []
