"""The conjugate algebra of Gaussian components, against scipy, brute force and its own other descriptions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import Tensor

from probmix import gaussian_family
from probmix.conjugate import GaussianPrior, NormalInverseGamma, NormalInverseWishart
from probmix.covariance import COVARIANCES
from probmix.gaussian_family import FAMILIES
from probmix.positive_definite import LogCholeskyTransform

NAMES = ["full", "tied", "diagonal", "spherical", "EEI", "EII"]
WISHART = ("full", "tied")
POOLED = ("tied", "EEI", "EII")
SIZE, COMPONENTS = 3, 2
every_family = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_prior(name: str, size: int = SIZE) -> GaussianPrior:
    loc = random(size)
    if name in WISHART:
        root = random(size, size, seed=2)
        return NormalInverseWishart(loc, 0.7, size + 3.5, root @ root.T + torch.eye(size, dtype=torch.float64))
    rate = random(size, seed=3).exp() if name in ("diagonal", "EEI") else torch.tensor(1.3, dtype=torch.float64)
    return NormalInverseGamma(loc, 0.7, 3.25, rate)


def make_data(size: int = SIZE, count: int = 25) -> tuple[Tensor, Tensor]:
    x = random(count, size, seed=4) * torch.arange(1, size + 1) + 3
    return x, random(count, COMPONENTS, seed=5).softmax(-1)


def make_posterior(name: str, size: int = SIZE) -> GaussianPrior:
    x, weights = make_data(size)
    family = FAMILIES[name]
    return family.posterior(make_prior(name, size), family.sufficient_statistics(x, weights))


def full_cov(name: str, sites: dict[str, Tensor], k: int) -> np.ndarray:
    """Covariance matrix of component k, whatever the shape of the site."""
    size = sites["loc"].shape[-1]
    if name == "tied":
        return sites["cov"].numpy()
    if name == "full":
        return sites["cov"][k].numpy()
    var = sites["var"] if name in POOLED else sites["var"][k]
    return np.diag(np.broadcast_to(var.numpy(), (size,)))


def scatter_like(name: str, scatter: np.ndarray) -> np.ndarray:
    """What each family keeps of component scatter matrices (K, D, D)."""
    diagonal = np.einsum("kii->ki", scatter)
    return {
        "full": scatter,
        "tied": scatter.sum(0, keepdims=True),
        "diagonal": diagonal,
        "spherical": diagonal.sum(-1),
        "EEI": diagonal.sum(0, keepdims=True),
        "EII": diagonal.sum(keepdims=True)[0],
    }[name]


# --- statistics ------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("size", [2, 3])  # on either side of the choice between two products
def test_statistics_are_those_of_numpy(name: str, size: int) -> None:
    x, weights = make_data(size)
    statistics = FAMILIES[name].sufficient_statistics(x, weights)
    columns = weights.numpy().T
    np.testing.assert_allclose(statistics.count, columns.sum(1), rtol=1e-13)
    np.testing.assert_allclose(statistics.mean, [np.average(x, axis=0, weights=w) for w in columns], rtol=1e-13)
    scatter = np.stack([np.cov(x.numpy().T, aweights=w, ddof=0) * w.sum() for w in columns])
    np.testing.assert_allclose(statistics.scatter, scatter_like(name, scatter), rtol=1e-11, atol=1e-11)


@every_family
def test_chunks_of_rows_give_the_same_statistics(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = make_data()
    whole = FAMILIES[name].sufficient_statistics(x, weights)
    monkeypatch.setattr(gaussian_family, "_LARGEST_TABLE", 4 * SIZE**2)  # four rows at a time
    chunked = FAMILIES[name].sufficient_statistics(x, weights)
    torch.testing.assert_close(chunked.scatter, whole.scatter, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(chunked.mean, whole.mean, rtol=1e-13, atol=0)


@every_family
@pytest.mark.parametrize("distance", [300.0, 1000.0])
def test_float32_data_keep_their_digits_in_tight_clusters_far_apart(name: str, distance: float) -> None:
    """The variance of a cluster that is ``distance`` standard deviations from the other one.

    Each value is rounded to float32, 6e-8 of at most ``distance``, which moves the sum of squares by less than 1e-4.
    Uncentred sums in float32 are wrong by 6e-8 * distance**2: 0.5 % and 6 %.
    """
    x = random(400, 2)
    x[:200] += distance
    labels = torch.zeros(400, 2)
    labels[:200, 0] = labels[200:, 1] = 1
    sites = FAMILIES[name].maximum_likelihood(FAMILIES[name].sufficient_statistics(x.float(), labels))
    exact = FAMILIES[name].maximum_likelihood(FAMILIES[name].sufficient_statistics(x, labels.double()))
    site = COVARIANCES[name].site
    assert sites[site].dtype == torch.float32
    torch.testing.assert_close(sites[site].double(), exact[site], rtol=1e-4, atol=1e-4)


@every_family
def test_a_large_offset_costs_no_digits(name: str) -> None:
    """An offset of 1e8 leaves 8 digits of each value, so that means of squares agree to about 1e-7."""
    x, weights = make_data()
    family, sites = FAMILIES[name], {}
    for offset in (0.0, 1e8):
        sites = family.maximum_likelihood(family.sufficient_statistics(x + offset, weights))
        spread = sites[COVARIANCES[name].site]
        log_prob = family.log_prob(x + offset, sites)
        if offset == 0.0:
            expected = spread, log_prob
    torch.testing.assert_close(spread, expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_prob, expected[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", WISHART)
def test_densities_lose_no_digits_to_an_offset_that_the_data_represent_exactly(name: str) -> None:
    """Whole numbers plus 2**40 are exact in float64; whitening them before the shift would leave 4 digits."""
    x = torch.tensor([[0.0, 0.0], [3.0, 1.0], [-2.0, 2.0]], dtype=torch.float64)
    cov = torch.tensor([[4.0, 1.9], [1.9, 1.0]], dtype=torch.float64)
    sites = {"loc": x[:2], "cov": cov.expand(2, 2, 2) if name == "full" else cov}
    moved = {**sites, "loc": sites["loc"] + 2.0**40}
    log_prob = FAMILIES[name].log_prob(x + 2.0**40, moved)
    torch.testing.assert_close(log_prob, FAMILIES[name].log_prob(x, sites), rtol=1e-12, atol=1e-12)


def test_a_nearly_singular_covariance_keeps_the_digits_it_can() -> None:
    """Against 50-digit arithmetic: with a condition number of 4e10 a relative error of about 1e-5 is unavoidable."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 50
    cov = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-10]], dtype=torch.float64)
    x = torch.tensor([[1.0, 1.00002], [0.5, -0.5]], dtype=torch.float64)
    exact_cov = mpmath.matrix(cov.tolist())
    log_det = mpmath.log(mpmath.det(exact_cov))
    sites = {"loc": torch.zeros(1, 2, dtype=torch.float64), "cov": cov[None]}
    for row, log_prob in zip(x.tolist(), FAMILIES["full"].log_prob(x, sites)[:, 0].tolist(), strict=True):
        distance = (mpmath.matrix([row]) * mpmath.lu_solve(exact_cov, mpmath.matrix(row)))[0]
        assert log_prob == pytest.approx(float(-(2 * mpmath.log(2 * mpmath.pi) + log_det + distance) / 2), rel=1e-5)


@every_family
def test_maximum_likelihood_is_the_weighted_mean_and_covariance(name: str) -> None:
    x, weights = make_data()
    sites = FAMILIES[name].maximum_likelihood(FAMILIES[name].sufficient_statistics(x, weights))
    columns = weights.numpy().T
    cov = np.stack([np.cov(x.numpy().T, aweights=w, ddof=0) for w in columns])
    diagonal = np.einsum("kii->ki", cov)
    expected = {
        "full": cov,
        "tied": np.average(cov, axis=0, weights=columns.sum(1)),
        "diagonal": diagonal,
        "spherical": diagonal.mean(-1),
        "EEI": np.average(diagonal, axis=0, weights=columns.sum(1)),
        "EII": np.average(diagonal.mean(-1), weights=columns.sum(1)),
    }
    np.testing.assert_allclose(sites[COVARIANCES[name].site], expected[name], rtol=1e-11, atol=1e-11)


# --- densities -------------------------------------------------------------------------------------------------------


@every_family
def test_log_prob_is_that_of_scipy(name: str) -> None:
    x, _ = make_data()
    sites = FAMILIES[name].sample(make_posterior(name))
    log_prob = FAMILIES[name].log_prob(x, sites)
    for k in range(COMPONENTS):
        reference = scipy.stats.multivariate_normal(sites["loc"][k], full_cov(name, sites, k))
        np.testing.assert_allclose(log_prob[:, k], reference.logpdf(x), rtol=1e-11)


def test_a_covariance_that_is_not_positive_definite_spoils_its_own_component_only() -> None:
    x, _ = make_data(2)
    cov = torch.stack([torch.eye(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])]).double()
    log_prob = FAMILIES["full"].log_prob(x, {"loc": torch.zeros(2, 2, dtype=torch.float64), "cov": cov})
    assert log_prob[:, 0].isfinite().all()
    assert log_prob[:, 1].isnan().all()


@every_family
def test_log_prior_is_that_of_scipy(name: str) -> None:
    prior, family = make_prior(name), FAMILIES[name]
    sites = family.sample(make_posterior(name))
    expected = 0.0
    for k in range(COMPONENTS):
        cov = full_cov(name, sites, k)
        expected += scipy.stats.multivariate_normal(prior.loc, cov / prior.mean_precision.item()).logpdf(
            sites["loc"][k]
        )
    if name in WISHART:
        matrices = sites["cov"].reshape(-1, SIZE, SIZE).numpy()
        expected += sum(scipy.stats.invwishart(prior.dof.item(), prior.scatter.numpy()).logpdf(m) for m in matrices)
    else:
        reference = scipy.stats.invgamma(prior.concentration.item(), scale=prior.rate.numpy())
        expected += reference.logpdf(sites["var"].numpy()).sum()
    assert family.log_prior(sites, prior).item() == pytest.approx(expected, rel=1e-11)


@every_family
def test_log_prior_is_the_density_of_the_distributions_that_a_program_draws_from(name: str) -> None:
    prior, family, shape = make_prior(name), FAMILIES[name], COVARIANCES[name]
    sites = family.sample(make_posterior(name))
    spread = sites[shape.site]
    log_loc = family.loc_prior(prior, shape.factor(shape.lift(spread))).log_prob(sites["loc"])
    expected = family.spread_prior(prior).log_prob(spread).sum() + log_loc.sum()
    torch.testing.assert_close(family.log_prior(sites, prior), expected, rtol=1e-12, atol=0)


# --- posteriors ------------------------------------------------------------------------------------------------------


@every_family
def test_posterior_over_prior_is_the_likelihood_up_to_the_evidence(name: str) -> None:
    """Bayes' theorem at several sites: prior * likelihood / posterior is the same number, the evidence."""
    x, _ = make_data()
    labels = torch.nn.functional.one_hot(torch.arange(len(x)) % COMPONENTS).double()
    family, prior = FAMILIES[name], make_prior(name)
    statistics = family.sufficient_statistics(x, labels)
    posterior = family.posterior(prior, statistics)
    for _ in range(3):
        sites = family.sample(posterior)
        log_likelihood = (labels * family.log_prob(x, sites)).sum()
        ratio = family.log_prior(sites, prior) + log_likelihood - family.log_prior(sites, posterior)
        torch.testing.assert_close(family.log_marginal(prior, statistics), ratio, rtol=1e-11, atol=0)


@every_family
def test_two_updates_are_one(name: str) -> None:
    x, weights = make_data()
    family, prior = FAMILIES[name], make_prior(name)
    first, second = (family.sufficient_statistics(x[rows], weights[rows]) for rows in (slice(10), slice(10, None)))
    together = family.posterior(prior, first + second)
    in_turn = family.posterior(family.posterior(prior, first), second)
    for part in ("loc", "mean_precision", "dof", "scatter"):
        torch.testing.assert_close(getattr(in_turn, part), getattr(together, part), rtol=1e-12, atol=1e-12)


@every_family
def test_the_evidence_is_the_product_of_the_predictive_densities_of_each_row_in_turn(name: str) -> None:
    x, _ = make_data(count=6)
    labels = torch.nn.functional.one_hot(torch.arange(len(x)) % COMPONENTS).double()
    family, prior = FAMILIES[name], make_prior(name)
    current = family.posterior(prior, family.sufficient_statistics(x, torch.zeros_like(labels)))
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(x.split(1), labels.split(1), strict=True):
        total = total + (label * family.log_predictive(row, current)).sum()
        current = family.posterior(current, family.sufficient_statistics(row, label))
    expected = family.log_marginal(prior, family.sufficient_statistics(x, labels))
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)


@every_family
def test_the_evidence_is_an_integral(name: str) -> None:
    """One column, one component: prior times likelihood, summed over a grid of mean and log variance."""
    x = torch.tensor([[0.3], [1.7], [-0.4]], dtype=torch.float64)
    family, prior = FAMILIES[name], make_prior(name, size=1)
    log_var, loc = torch.linspace(-6, 9, 201).double(), torch.linspace(-60, 60, 2001).double()
    grid_var, grid_loc = (grid.flatten() for grid in torch.meshgrid(log_var.exp(), loc, indexing="ij"))
    spread = grid_var.reshape(-1, *(1,) * len(family.covariance.axes))
    sites = {"loc": grid_loc[:, None, None], family.covariance.site: spread}
    log_joint = family.log_prior(sites, prior) + family.log_prob(x, sites).sum((-2, -1)) + grid_var.log()
    cell = (log_var[1] - log_var[0]) * (loc[1] - loc[0])
    statistics = family.sufficient_statistics(x, torch.ones_like(x))
    evidence = family.log_marginal(prior, statistics).exp().item()
    # The trapezoidal rule; the mean's standard deviation is below its step of 0.06 only where the density is nil.
    assert (log_joint.exp().sum() * cell).item() == pytest.approx(evidence, rel=1e-4)


@every_family
def test_predictive_densities_are_those_of_scipy(name: str) -> None:
    x, _ = make_data()
    family, posterior = FAMILIES[name], make_posterior(name)
    log_density = family.log_predictive(x, posterior)
    for k in range(COMPONENTS):
        kappa = posterior.mean_precision[k].item()
        loc = posterior.loc[k].numpy()
        if name in WISHART:
            dof = (posterior.dof[k] if name == "full" else posterior.dof).item() - SIZE + 1
            scatter = (posterior.scatter[k] if name == "full" else posterior.scatter).numpy()
            expected = scipy.stats.multivariate_t(loc, scatter * (kappa + 1) / (kappa * dof), dof).logpdf(x)
        else:
            shape = (posterior.concentration if name in POOLED else posterior.concentration[k]).item()
            rate = posterior.rate if name in POOLED else posterior.rate[k]
            squared = rate.numpy() * (kappa + 1) / (shape * kappa)
            if name in ("diagonal", "EEI"):
                expected = scipy.stats.t(2 * shape, loc, np.sqrt(squared)).logpdf(x).sum(-1)
            else:
                expected = scipy.stats.multivariate_t(loc, squared * np.eye(SIZE), 2 * shape).logpdf(x)
        np.testing.assert_allclose(log_density[:, k], expected, rtol=1e-11)


@every_family
def test_the_predictive_distribution_has_the_predictive_density(name: str) -> None:
    x, _ = make_data()
    family, posterior = FAMILIES[name], make_posterior(name)
    predictive = family.predictive(posterior)
    assert predictive.batch_shape == (COMPONENTS,)
    log_density = family.log_predictive(x, posterior)
    torch.testing.assert_close(predictive.log_prob(x[:, None, :]), log_density, rtol=1e-11, atol=0)


# --- modes and means -------------------------------------------------------------------------------------------------


def from_free(name: str, free: Tensor) -> dict[str, Tensor]:
    """Sites from unconstrained numbers: means, then log-Cholesky vectors or log variances."""
    loc = free[: COMPONENTS * SIZE].reshape(COMPONENTS, SIZE)
    rest = free[COMPONENTS * SIZE :]
    if name in WISHART:
        cov = LogCholeskyTransform()(rest.reshape(-1, SIZE * (SIZE + 1) // 2))
        return {"loc": loc, "cov": cov if name == "full" else cov[0]}
    shapes = {"diagonal": (COMPONENTS, SIZE), "spherical": (COMPONENTS,), "EEI": (SIZE,), "EII": ()}
    return {"loc": loc, "var": rest.exp().reshape(shapes[name])}


@every_family
def test_the_mode_is_where_an_optimiser_ends(name: str) -> None:
    """BFGS on unconstrained numbers; the density itself is over the constrained ones, without a Jacobian."""
    family, posterior = FAMILIES[name], make_posterior(name)
    lengths = {"full": 12, "tied": 6, "diagonal": 6, "spherical": 2, "EEI": 3, "EII": 1}

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        z = torch.tensor(free, requires_grad=True)
        value = -family.log_prior(from_free(name, z), posterior)
        return value.item(), torch.autograd.grad(value, z)[0].numpy()

    start = random(COMPONENTS * SIZE + lengths[name], seed=9).numpy()
    best = scipy.optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 2000})
    found, mode = from_free(name, torch.tensor(best.x)), family.mode(posterior)
    for site, value in mode.items():
        torch.testing.assert_close(found[site], value, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(family.mean(posterior)[COVARIANCES[name].site], mode[COVARIANCES[name].site], rtol=1e-2)


def worst_z_score(draws: Tensor, mean: Tensor) -> float:
    return ((draws.mean(0) - mean).abs() / (draws.std(0) / len(draws) ** 0.5)).max().item()


def many(posterior: GaussianPrior, count: int) -> GaussianPrior:
    parts = [part.expand(count, *part.shape) for part in (posterior.loc, posterior.mean_precision)]
    return posterior.updated(*parts, *(part.expand(count, *part.shape) for part in (posterior.dof, posterior.scatter)))


@every_family
def test_draws_have_the_moments_of_the_posterior(name: str) -> None:
    """Null: each mean over 4000 draws is within 5.5 standard errors: at most 60 entries, false alarms below 3e-6."""
    family, posterior = FAMILIES[name], make_posterior(name)
    draws, mean = family.sample(many(posterior, 4000)), family.mean(posterior)
    site = COVARIANCES[name].site
    assert draws["loc"].shape == (4000, COMPONENTS, SIZE)
    assert worst_z_score(draws["loc"], mean["loc"]) < 5.5
    assert worst_z_score(draws[site], mean[site]) < 5.5
    squares = (draws["loc"] - posterior.loc).square() * posterior.mean_precision[:, None]
    var = COVARIANCES[name].variances(COVARIANCES[name].lift(mean[site]), SIZE)
    assert worst_z_score(squares, var) < 5.5
    assert worst_z_score(draws[site], family.mode(posterior)[site]) > 5.5  # the control: the mode is not the mean


@every_family
def test_expected_log_prob_is_the_mean_over_draws(name: str) -> None:
    """Null: each mean over 4000 draws is within 5.5 standard errors: 10 entries, false alarms below 4e-7."""
    x, _ = make_data(count=5)
    family, posterior = FAMILIES[name], make_posterior(name)
    draws = family.log_prob(x, family.sample(many(posterior, 4000)))
    assert worst_z_score(draws, family.expected_log_prob(x, posterior)) < 5.5
    assert worst_z_score(draws, family.log_prob(x, family.mean(posterior))) > 5.5  # the control: plugging in the mean


@every_family
def test_a_mean_that_does_not_exist_is_nan(name: str) -> None:
    family, prior = FAMILIES[name], make_prior(name)
    order = SIZE if name in WISHART else 1
    few = prior.updated(prior.loc[None], prior.mean_precision, torch.tensor(order + 1.0).double(), prior.scatter)
    assert family.mean(few)[COVARIANCES[name].site].isnan().all()


# --- laws ------------------------------------------------------------------------------------------------------------


def everything(name: str, x: Tensor, weights: Tensor, prior: GaussianPrior) -> dict[str, Tensor]:
    """What the family computes from one data set, by name."""
    family = FAMILIES[name]
    statistics = family.sufficient_statistics(x, weights)
    posterior = family.posterior(prior, statistics)
    mode = family.mode(posterior)
    return {
        "log_marginal": family.log_marginal(prior, statistics),
        "log_prior": family.log_prior(mode, prior),
        "log_prob": family.log_prob(x, mode),
        "expected_log_prob": family.expected_log_prob(x, posterior),
        "log_predictive": family.log_predictive(x, posterior),
        "loc": mode["loc"],
        "spread": mode[family.covariance.site],
        "ml": family.maximum_likelihood(statistics)[family.covariance.site],
    }


@every_family
def test_a_batch_gives_what_a_loop_gives(name: str) -> None:
    x, _ = make_data()
    weights = random(2, 3, len(x), COMPONENTS, seed=6).softmax(-1)
    prior = make_prior(name)
    batch = everything(name, x, weights, prior)
    for i, j in np.ndindex(2, 3):
        for part, value in everything(name, x, weights[i, j], prior).items():
            torch.testing.assert_close(batch[part][i, j], value, rtol=1e-11, atol=1e-11)


def test_in_one_dimension_full_diagonal_and_spherical_are_one_family() -> None:
    x, weights = make_data(size=1)
    wishart = make_prior("full", size=1)
    rate = wishart.scatter.flatten() / 2
    full = everything("full", x, weights, wishart)
    for name, own_rate in (("diagonal", rate), ("spherical", rate[0])):
        other = everything(name, x, weights, NormalInverseGamma(wishart.loc, 0.7, wishart.dof / 2, own_rate))
        for part, value in full.items():
            torch.testing.assert_close(other[part].flatten(), value.flatten(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("own", "shared"), [("full", "tied"), ("diagonal", "EEI"), ("spherical", "EII")])
def test_with_one_component_an_own_spread_and_a_shared_one_are_one_family(own: str, shared: str) -> None:
    x, weights = make_data()
    prior = make_prior(own)
    first, second = (everything(name, x, weights[:, :1], prior) for name in (own, shared))
    for part, value in first.items():
        torch.testing.assert_close(second[part].flatten(), value.flatten(), rtol=1e-12, atol=1e-12)


@every_family
def test_float32_stays_float32(name: str) -> None:
    x, weights = make_data()
    prior = make_prior(name)
    narrow = everything(name, x.float(), weights.float(), prior.to(x.float()))
    wide = everything(name, x, weights, prior)
    for part, value in narrow.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), wide[part], rtol=1e-4, atol=1e-4)


@every_family
def test_densities_can_be_batched_by_vmap(name: str) -> None:
    x, _ = make_data()
    family, prior = FAMILIES[name], make_prior(name)
    sites = family.sample(many(make_posterior(name), 4))
    for function in (lambda s: family.log_prior(s, prior), lambda s: family.log_prob(x, s)):
        torch.testing.assert_close(torch.func.vmap(function)(sites), function(sites), rtol=1e-12, atol=0)


@every_family
def test_a_component_without_room_is_singular(name: str) -> None:
    x, _ = make_data()
    x[0] += 1e3
    weights = torch.zeros(len(x), 2, dtype=torch.float64)
    weights[0, 1] = 1.0  # the second component sees a single row
    weights[1:, 0] = 1.0
    family = FAMILIES[name]
    sites = family.maximum_likelihood(family.sufficient_statistics(x, weights))
    assert family.singular(sites).tolist() == [False, name not in POOLED]
    shrunk = family.mode(family.posterior(make_prior(name), family.sufficient_statistics(x, weights)))
    assert family.singular(shrunk).tolist() == [False, False]


def test_a_component_on_a_line_is_singular() -> None:
    line = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None] * torch.tensor([1.0, 3.0])
    x = torch.cat([line, random(20, 2)])
    weights = torch.nn.functional.one_hot((torch.arange(29) > 8).long()).double()
    family = FAMILIES["full"]
    sites = family.maximum_likelihood(family.sufficient_statistics(x, weights))
    assert family.singular(sites).tolist() == [True, False]
    nothing = {"loc": torch.zeros(1, 2).double(), "cov": torch.zeros(1, 2, 2).double()}
    assert math.isnan(family.log_prob(x, nothing)[0, 0])
