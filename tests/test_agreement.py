"""Methods agree with closed forms, with an exact sum over allocations, with an independent sampler and each other.

Statistical tests: the null is that the draws come from the posterior of the reference. A mean is compared in units of
its Monte-Carlo standard error; with ``FALSE_ALARM`` in a test for a fresh seed, shared out over its quantities by
Bonferroni. `test_z_scores_are_standard_normal` shows that these units are right for chains as short as these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gibbs_reference import Array, Prior, exact, gibbs, log_prob
from scipy.special import digamma
from scipy.stats import invwishart, truncnorm
from torch import Tensor
from z_scores import critical, standard_error, z_scores

from probmix.conjugate import NormalInverseGamma, NormalInverseWishart
from probmix.datasets import load_faithful
from probmix.inference import NUTS, SVI, infer
from probmix.models import GaussianMixture
from probmix.program_sites import LatentSite

FALSE_ALARM = 1e-4

Draws = dict[str, Array]


def tensor(value: object) -> Tensor:
    return torch.as_tensor(np.asarray(value, dtype=np.float64))


def agrees(draws: Array, truth: Array) -> bool:
    """Whether the means of ``(chain, draw, q)`` are those expected, ``(q,)``."""
    return bool(np.abs(z_scores(draws, truth)).max() < critical(len(truth), FALSE_ALARM))


def nuts(program: Callable[..., None], x: Array, **settings: object) -> Draws:
    method = NUTS(**{"chains": 1, "warmup": 80, "draws": 250, **settings})
    return {name: value.numpy() for name, value in infer(program, tensor(x), method, seed=0).draws.items()}


def moments(z: Array, mean: Array) -> Array:
    """The vector and the products of its offsets from the true mean, ``(*b, d) -> (*b, d + d (d + 1) / 2)``."""
    row, column = np.tril_indices(z.shape[-1])
    offset = z - mean
    return np.concatenate([z, offset[..., row] * offset[..., column]], -1)


# --- small targets with known moments -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A program whose posterior is known: quantities ``(chain, draw, q)`` of its draws, and their means ``(q,)``."""

    program: Callable[..., None]
    x: Array
    quantities: Callable[[Draws], Array]
    truth: Array
    draws: int = 250


def correlated_gaussian() -> Target:
    """Scales of 0.7 and 12, correlation 0.9: catches a mass matrix used for its inverse, and a momentum not redrawn."""
    x = np.array([1.0, -1.5, 0.2])

    def program(x: Tensor) -> None:
        first = pyro.sample("first", dist.Normal(0.0, 1.0))
        second = pyro.sample("second", dist.Normal(15.0 * first, 5.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(first + second / 20, 5.0), obs=x)

    precision = np.array([[1 + 9, -0.6], [-0.6, 0.04]]) + len(x) / 25 * np.array([[1, 0.05], [0.05, 0.0025]])
    cov = np.linalg.inv(precision)
    mean = cov @ (x.sum() / 25 * np.array([1, 0.05]))

    def quantities(draws: Draws) -> Array:
        return moments(np.stack([draws["first"], draws["second"]], -1), mean)

    return Target(program, x, quantities, np.concatenate([mean, cov[np.tril_indices(2)]]))


def skewed_rate() -> Target:
    """Gamma(2.5, 4): a symmetric target cannot see the wrong sign, or the lack, of a log Jacobian."""

    def program(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(1.5, 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def quantities(draws: Draws) -> Array:
        return np.stack([draws["rate"], np.log(draws["rate"])], -1)

    return Target(program, np.array([0.0, 1.0, 0.0]), quantities, np.array([2.5 / 4, digamma(2.5) - np.log(4)]))


def probabilities() -> Target:
    """Dirichlet(1.5, 2.5, 4.5): catches a wrong Jacobian of the simplex, whose corners are treated unequally."""

    def program(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 0.5)))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Categorical(weights), obs=x)

    concentration = np.array([1.5, 2.5, 4.5])
    truth = np.concatenate([concentration / 8.5, digamma(concentration) - digamma(8.5)])
    return Target(
        program,
        np.array([0.0, 1, 1, 2, 2, 2, 2]),
        lambda draws: np.concatenate([draws["weights"], np.log(draws["weights"])], -1),
        truth,
    )


def bounded_mean() -> Target:
    """A normal cut off on both sides, mode near an end: catches a wrong Jacobian of an interval."""

    def program(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Uniform(-1.0, 2.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(loc, 2.0), obs=x)

    posterior = truncnorm((-1 - 2.5) / 2**0.5, (2 - 2.5) / 2**0.5, 2.5, 2**0.5)
    truth = np.array([posterior.mean(), posterior.var()])
    return Target(
        program,
        np.array([2.0, 3.0]),
        lambda draws: np.stack([draws["loc"], (draws["loc"] - truth[0]) ** 2], -1),
        truth,
    )


def groups() -> Target:
    """Means of three groups around a common one, spreads known, all jointly normal.

    Catches a site counted once for each row of a deeper plate, and local sites in the wrong order.
    """
    x = np.array([[-2.0, -1.0], [0.5, 1.5], [3.0, 7.0]])

    def program(x: Tensor) -> None:
        centre = pyro.sample("centre", dist.Normal(0.0, 3.0))
        with pyro.plate("group", 3, dim=-2):
            loc = pyro.sample("loc", dist.Normal(centre, 1.0))
            with pyro.plate("row", 2, dim=-1):
                pyro.sample("x", dist.Normal(loc, 1.5), obs=x)

    precision = np.zeros((4, 4))
    precision[0, 0] = 1 / 9 + 3
    precision[0, 1:] = precision[1:, 0] = -1
    precision[1:, 1:] = np.eye(3) * (1 + 2 / 1.5**2)
    cov = np.linalg.inv(precision)
    mean = cov @ np.concatenate([[0.0], x.sum(1) / 1.5**2])

    def quantities(draws: Draws) -> Array:
        return moments(np.concatenate([draws["centre"][..., None], draws["loc"][..., 0]], -1), mean)

    return Target(program, x, quantities, np.concatenate([mean, cov[np.tril_indices(4)]]))


def one_component() -> Target:
    """Normal-inverse-Wishart: catches a wrong Jacobian or prior of a covariance matrix, and rate taken for scale."""
    x = np.array([[0.3, 1.0], [1.2, 3.5], [-0.7, -1.5], [0.4, 2.0], [-1.5, -2.0], [0.9, 0.0], [0.1, -1.0], [2.0, 3.0]])
    prior = NormalInverseWishart(tensor([0.5, -0.5]), 0.7, 6.0, tensor([[1.0, 0.5], [0.5, 2.0]]))
    kappa, dof = 0.7 + len(x), 6.0 + len(x)
    mean = (0.7 * np.array([0.5, -0.5]) + x.sum(0)) / kappa
    shift = x.mean(0) - np.array([0.5, -0.5])
    between = 0.7 * len(x) / kappa * np.outer(shift, shift)
    scatter = np.array([[1.0, 0.5], [0.5, 2.0]]) + np.cov(x.T) * (len(x) - 1) + between
    cov = invwishart(dof, scatter).mean()
    lower = np.tril_indices(2)

    def quantities(draws: Draws) -> Array:
        loc, cov = draws["loc"][..., 0, :], draws["cov"][..., 0, :, :]
        return np.concatenate([moments(loc, mean), cov[..., lower[0], lower[1]]], -1)

    truth = np.concatenate([mean, cov[lower] / kappa, cov[lower]])  # var loc = E cov / kappa
    return Target(GaussianMixture(1, component_prior=prior), x, quantities, truth, draws=100)


TARGETS = [correlated_gaussian, skewed_rate, probabilities, bounded_mean, groups, one_component]


@pytest.mark.parametrize("make", TARGETS, ids=lambda make: make.__name__)
def test_nuts_has_the_moments_of_known_targets(make):
    """Null: the draws' means are the posterior's; false-alarm rate `FALSE_ALARM` for each target."""
    target = make()
    assert agrees(target.quantities(nuts(target.program, target.x, draws=target.draws)), target.truth)


@pytest.mark.slow
def test_nuts_with_a_dense_mass_matrix_has_the_moments_too():
    target = correlated_gaussian()
    assert agrees(target.quantities(nuts(target.program, target.x, draws=target.draws, mass="dense")), target.truth)


@pytest.mark.parametrize(
    "make",
    [skewed_rate, *(pytest.param(target, marks=pytest.mark.slow) for target in (probabilities, one_component))],
    ids=lambda make: make.__name__,
)
def test_the_targets_see_a_lost_jacobian(make, monkeypatch):
    """Negative control: without the log Jacobians the same check must refuse the draws."""
    constrain = LatentSite.constrain
    monkeypatch.setattr(LatentSite, "constrain", lambda site, z: (constrain(site, z)[0], torch.zeros(())))
    target = make()
    assert not agrees(target.quantities(nuts(target.program, target.x, draws=target.draws)), target.truth)


@pytest.mark.slow
def test_the_grouped_target_sees_a_site_counted_for_each_row():
    """Negative control: the prior of a group's mean counted once for each of its two rows must be refused."""
    target = groups()

    def program(x: Tensor) -> None:
        centre = pyro.sample("centre", dist.Normal(0.0, 3.0))
        with pyro.plate("group", 3, dim=-2):
            with pyro.poutine.scale(scale=2.0):
                loc = pyro.sample("loc", dist.Normal(centre, 1.0))
            with pyro.plate("row", 2, dim=-1):
                pyro.sample("x", dist.Normal(loc, 1.5), obs=x)

    assert not agrees(target.quantities(nuts(program, target.x)), target.truth)


def test_z_scores_are_standard_normal():
    """The units: AR(1) chains of 2 x 250 with correlation 0.5, 400 repeats, of the mean, which is 0.

    Null: z ~ N(0, 1). Their sum of squares is chi-square with 400 degrees of freedom; an error of 15% in the standard
    error moves it by 4.5 of its standard deviations, sqrt(2 * 400). The band is those 15%, as effective sample sizes
    of 170 are themselves known to about 10% only; chance alone leaves it once in 10,000 seeds.
    """
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((2, 250, 400))
    draws = [noise[:, 0]]
    for step in np.moveaxis(noise[:, 1:], 1, 0):
        draws.append(0.5 * draws[-1] + 0.75**0.5 * step)
    scores = z_scores(np.stack(draws, 1), np.zeros(400))
    assert 0.85 < np.sqrt(np.mean(scores**2)) < 1.15


# --- a small mixture, exactly ---------------------------------------------------------------------------------------

ROWS = np.array([-1.6, -1.1, -0.9, -0.4, 0.7, 1.2, 1.5, 2.3])[:, None]
SMALL = Prior(loc=np.zeros(1), mean_precision=0.5, dof=5.0, scatter=np.eye(1) * 1.5, weight_concentration=1.5)
POINTS = np.array([-2.0, -0.5, 0.5, 1.5])[:, None]


def label_free(draws: Draws) -> Array:
    """Density at `POINTS`, mean of the mixture and product of the weights, ``(chain, draw, 6)``."""
    mean = (draws["weights"][..., None] * draws["loc"]).sum(-2)
    return np.concatenate([np.exp(log_prob(POINTS, draws)), mean, draws["weights"].prod(-1, keepdims=True)], -1)


def exact_means(prior: Prior) -> Array:
    posterior = exact(ROWS, prior, num_components=2)
    total = 2 * prior.weight_concentration + len(ROWS)
    densities = [posterior.mean_density(point) for point in POINTS]
    return np.array([*densities, *posterior.mean_of_means(), posterior.mean_product_of_weights(total)])


def test_nuts_and_the_gibbs_sampler_agree_with_the_exact_sum_over_allocations():
    """Eight rows, two components: 256 allocations summed. Nothing of ours is in the reference but its prior's numbers.

    Negative control: the same draws against the answer for a prior whose variances are four times as large.
    """
    prior = NormalInverseGamma(tensor(SMALL.loc), SMALL.mean_precision, SMALL.dof / 2, tensor(SMALL.scatter[0] / 2))
    model = GaussianMixture(2, "diagonal", weight_concentration=SMALL.weight_concentration, component_prior=prior)
    draws = nuts(model, ROWS)
    draws["cov"] = draws.pop("var")[..., None]
    truth, wrong = exact_means(SMALL), exact_means(Prior(**{**vars(SMALL), "scatter": 4 * SMALL.scatter}))
    assert agrees(label_free(draws), truth)
    assert not agrees(label_free(draws), wrong)
    reference = label_free(gibbs(ROWS, SMALL, num_components=2, chains=50, draws=200, seed=0))
    assert agrees(reference, truth)
    assert not agrees(reference, wrong)


def test_the_exact_sum_is_the_evidence():
    """The reference itself: the evidence of a single component is SciPy's Student-t, one row after another."""
    x = np.array([[0.3, 1.0], [1.2, 3.5], [-0.7, -1.5]])
    prior = Prior(loc=np.array([0.5, -0.5]), mean_precision=0.7, dof=4.5, scatter=np.array([[1.0, 0.5], [0.5, 2.0]]))
    steps = [np.log(exact(x[:n], prior, num_components=1).mean_density(x[n])) for n in range(1, 3)]
    first = exact(x[:1], prior, num_components=1).log_evidence
    assert exact(x, prior, num_components=1).log_evidence == pytest.approx(first + sum(steps), rel=1e-12)


# --- Old Faithful: NUTS, SVI and a long run of the Gibbs sampler ----------------------------------------------------


#: Changes of the default prior, whose mean precision is 0.01 and whose degrees of freedom are 4.
WRONG = [{"mean_precision": 1.0}, {"dof": 14.0}]


def ordered(draws: Draws) -> Array:
    """First weight, all means and all covariances, components in the order of their first mean, ``(*b, 11)``."""
    order = draws["loc"][..., 0].argsort(-1)
    weights = np.take_along_axis(draws["weights"], order, -1)
    loc = np.take_along_axis(draws["loc"], order[..., None], -2)
    cov = np.take_along_axis(draws["cov"], order[..., None, None], -3)
    lower = cov[..., *np.tril_indices(2)]
    batch = order.shape[:-1]
    return np.concatenate([weights[..., :1], loc.reshape(*batch, -1), lower.reshape(*batch, -1)], -1)


@pytest.fixture(scope="module")
def faithful() -> tuple[Array, Prior]:
    x = load_faithful().x
    return x.numpy(), Prior.of(GaussianMixture(2).prior(x))


@pytest.fixture(scope="module")
def reference(faithful) -> Array:
    """A long run: 100 independent chains of 300 sweeps after 100 of burn-in."""
    x, prior = faithful
    return ordered(gibbs(x, prior, num_components=2, chains=100, draws=300, seed=0))


@pytest.fixture(scope="module")
def nuts_draws(faithful) -> Array:
    return ordered(nuts(GaussianMixture(2), faithful[0], chains=4, warmup=150, draws=250))


def differences(draws: Array, reference: Array) -> Array:
    """Z-scores of the difference of two means; the reference's error from its independent chains."""
    reference_error = reference.mean(1).std(0, ddof=1) / len(reference) ** 0.5
    return (draws.mean((0, 1)) - reference.mean((0, 1))) / np.hypot(standard_error(draws), reference_error)


@pytest.mark.slow
def test_nuts_agrees_with_a_long_reference_run(nuts_draws, reference):
    """Null: same posterior means of weights, locations and covariances; false-alarm rate `FALSE_ALARM`."""
    assert np.abs(differences(nuts_draws, reference)).max() < critical(11, FALSE_ALARM)


@pytest.mark.slow
@pytest.mark.parametrize("change", WRONG, ids=lambda change: next(iter(change)))
def test_a_reference_run_with_a_wrong_prior_disagrees(nuts_draws, faithful, change):
    """Negative control, which also shows that the draws are many enough to tell."""
    x, prior = faithful
    wrong = Prior(**{**vars(prior), **change})
    draws = ordered(gibbs(x, wrong, num_components=2, chains=50, draws=100, seed=0))
    assert np.abs(differences(nuts_draws, draws)).max() > critical(11, FALSE_ALARM)


@pytest.fixture(scope="module")
def svi_draws(faithful) -> Array:
    """20,000 draws from the guide: their own error is below 0.01 posterior standard deviations."""
    fit = infer(GaussianMixture(2), tensor(faithful[0]), SVI(), seed=0)
    assert fit.status.state == "converged"
    return ordered({name: value.numpy() for name, value in fit.sample(20_000, seed=1).items()})


def close(approximate: Array, reference: Array) -> bool:
    """Means within 0.1 posterior standard deviations, and standard deviations within 7%.

    Not a Monte-Carlo error: a Gaussian on the unconstrained scale is not the posterior. The largest errors measured
    were 0.02 and 4.8%, the same to 0.1% over three seeds; those of a mean-field guide 0.09 and 18%.
    """
    mean, std = reference.mean((0, 1)), reference.std((0, 1))
    bias, ratio = (approximate.mean(0) - mean) / std, approximate.std(0) / std
    return bool((np.abs(bias) < 0.1).all() and (np.abs(ratio - 1) < 0.07).all())


@pytest.mark.slow
def test_svi_is_close_to_a_long_reference_run(svi_draws, reference):
    assert close(svi_draws, reference)


@pytest.mark.slow
@pytest.mark.parametrize("change", WRONG, ids=lambda change: next(iter(change)))
def test_svi_is_not_close_to_a_reference_run_with_a_wrong_prior(svi_draws, faithful, change):
    x, prior = faithful
    draws = gibbs(x, Prior(**{**vars(prior), **change}), num_components=2, chains=50, draws=100, seed=0)
    assert not close(svi_draws, ordered(draws))


@pytest.mark.slow
def test_a_mean_field_guide_is_not_close(faithful, reference):
    """Negative control of the spread: independent coordinates make the standard deviations too small."""
    fit = infer(GaussianMixture(2), tensor(faithful[0]), SVI(guide="diagonal"), seed=0)
    draws = ordered({name: value.numpy() for name, value in fit.sample(20_000, seed=1).items()})
    assert not close(draws, reference)
