"""Leave-one-out from ArviZ on our results is what leaving out each of 50 rows and fitting again gives.

Statistical tests: the null is that ``az.loo`` estimates ``log p(x_i | the other rows)`` without bias. Its error is that
of the mean of ``1 / p(x_i | draw)``, by the delta method and ArviZ's effective sample size; that of a brute-force
reference comes from its independent chains. False-alarm rate of a test, for a fresh seed: `FALSE_ALARM`, by Bonferroni
over 50 rows and their sum. Nearly normal errors need a finite variance of ``1 / p``: every Pareto k must be below 0.7,
which is asserted.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gibbs_reference import Array, Prior, exact, gibbs, log_prob, log_prob_components
from scipy.stats import invwishart
from z_scores import critical, standard_error

from probmix.arviz import Group, convert
from probmix.conjugate import NormalInverseWishart
from probmix.datasets import load_faithful
from probmix.inference import EM, MAP, NUTS, SVI, ChEES, infer
from probmix.models import GaussianMixture

FALSE_ALARM = 1e-3
X = load_faithful().x[:50]

#: A fixed prior: the default one is scaled to the data, and would change with every row left out.
PRIOR = Prior(np.array([3.5, 70.0]), 0.05, 6.0, np.diag([1.0, 150.0]), 2.0)


def model(num_components: int) -> GaussianMixture:
    loc, scatter = torch.as_tensor(PRIOR.loc), torch.as_tensor(PRIOR.scatter)
    component = NormalInverseWishart(loc, PRIOR.mean_precision, PRIOR.dof, scatter)
    return GaussianMixture(num_components, weight_concentration=PRIOR.weight_concentration, component_prior=component)


def left_out() -> Array:
    """All 50 data sets of 49 rows, ``(50, 49, 2)``."""
    return np.stack([np.delete(X.numpy(), row, 0) for row in range(len(X))])


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Log predictive density of each row, ``(50,)``, with the standard errors of each and of their sum."""

    log_density: Array
    error: Array
    error_of_sum: float
    worst_k: float = 0.0


def from_arviz(result: Any) -> Estimate:
    """What ``az.loo`` makes of a result, in either ArviZ line."""
    loo = az.loo(result, pointwise=True)
    pointwise = loo.elpd_i if hasattr(loo, "elpd_i") else loo.loo_i
    log_likelihood = np.asarray(result["log_likelihood"]["x"])
    inverse = np.exp(-log_likelihood.reshape(*log_likelihood.shape[:2], -1))
    relative = inverse / inverse.mean((0, 1))
    (error_of_sum,) = standard_error(relative.sum(-1, keepdims=True))
    worst_k = float(np.max(loo.pareto_k))
    return Estimate(np.ravel(pointwise), standard_error(relative), float(error_of_sum), worst_k)


def agree(one: Estimate, other: Estimate) -> bool:
    assert one.worst_k < 0.7
    difference = one.log_density - other.log_density
    z = difference / np.hypot(one.error, other.error)
    total = difference.sum() / np.hypot(one.error_of_sum, other.error_of_sum)
    return bool(np.abs([*z, total]).max() < critical(len(z) + 1, FALSE_ALARM))


# --- one component: the answer is a Student-t -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed_form() -> Estimate:
    """SciPy's Student-t of each row given the others; no error."""
    values = [
        np.log(exact(rest, PRIOR, num_components=1).mean_density(row))
        for row, rest in zip(X.numpy(), left_out(), strict=True)
    ]
    return Estimate(np.array(values), np.zeros(50), 0.0)


def test_the_predictive_of_the_conjugate_family_is_that_student_t(closed_form):
    """No tolerance but rounding."""
    family, prior = model(1).family, model(1).prior(X).component
    for row, rest in enumerate(torch.as_tensor(left_out())):
        statistics = family.sufficient_statistics(rest, rest.new_ones(49, 1))
        ours = family.log_predictive(X[row : row + 1], family.posterior(prior, statistics))
        assert float(ours) == pytest.approx(closed_form.log_density[row], rel=1e-9)


@pytest.fixture(scope="module")
def conjugate_result() -> Any:
    """2 x 1000 exact draws by SciPy, put in the place of NUTS's, through our own way to ArviZ."""
    posterior, generator = exact(X.numpy(), PRIOR, num_components=1), np.random.default_rng(0)
    cov = invwishart(posterior.dof[0, 0], posterior.scatter[0, 0]).rvs(2000, random_state=generator)
    noise = generator.standard_normal((2000, 2, 1))
    loc = posterior.loc[0, 0] + (np.linalg.cholesky(cov / posterior.kappa[0, 0]) @ noise)[..., 0]
    draws = {"weights": np.ones((2, 1000, 1)), "loc": loc.reshape(2, 1000, 1, 2), "cov": cov.reshape(2, 1000, 1, 2, 2)}
    fit = infer(model(1), X, NUTS(chains=2, warmup=2, draws=2), seed=0)
    fit = dataclasses.replace(fit, draws={name: torch.as_tensor(value) for name, value in draws.items()})
    return dataclasses.replace(fit, sample_stats={"lp": torch.zeros(2, 1000)}).to_arviz(
        predictive_draws=0, prior_draws=0
    )


def test_each_row_has_one_log_likelihood(conjugate_result):
    """A discrete site that can take one value only leaves no axis behind."""
    assert conjugate_result["log_likelihood"]["x"].dims == ("chain", "draw", "data")
    assert conjugate_result["log_likelihood"]["x"].shape == (2, 1000, 50)


def test_loo_of_exact_draws_is_the_closed_form(conjugate_result, closed_form):
    """Negative control: the density of each row given all rows, itself included, must be told apart."""
    estimate = from_arviz(conjugate_result)
    assert agree(estimate, closed_form)
    density = np.exp(np.asarray(conjugate_result["log_likelihood"]["x"])).reshape(2, 1000, 50)
    within = dataclasses.replace(estimate, log_density=np.log(density.mean((0, 1))))
    assert not agree(within, closed_form)


@pytest.mark.slow
def test_loo_of_nuts_is_the_closed_form(closed_form):
    fit = infer(model(1), X, NUTS(chains=2, warmup=100, draws=300), seed=0)
    assert agree(from_arviz(fit.to_arviz(predictive_draws=0, prior_draws=0)), closed_form)


# --- two components: brute force ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brute_force() -> Estimate:
    """50 fits of 49 rows by the Gibbs sampler, 20 independent chains of 200 sweeps each."""
    draws = gibbs(left_out(), PRIOR, num_components=2, chains=20, draws=200, seed=1)
    by_chain = np.exp(log_prob(X.numpy()[:, None, None, None], draws))[..., 0].mean(-1)
    density = by_chain.mean(-1)
    error = by_chain.std(-1, ddof=1) / 20**0.5 / density
    return Estimate(np.log(density), error, float(np.sqrt((error**2).sum())))


@pytest.fixture(scope="module")
def drawn() -> Any:
    """Of 800 draws the estimate of Pareto's k may pass 0.7 by noise alone; of these 25,600 it is 0.37."""
    fit = infer(model(2), X, ChEES(draws=400, compile=False), seed=0)
    return fit.to_arviz(predictive_draws=0, prior_draws=0)


@pytest.mark.slow
def test_loo_of_a_mixture_is_leaving_out_each_row(drawn, brute_force):
    assert agree(from_arviz(drawn), brute_force)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Pareto:UserWarning")
def test_without_the_sum_over_assignments_loo_is_another_number(drawn, brute_force):
    """Negative control: the likelihood of each row in a component drawn for it, weights left out."""
    posterior = drawn["posterior"]
    sites = {name: np.asarray(posterior[name]) for name in ("weights", "loc", "cov")}
    joint = log_prob_components(X.numpy(), sites)
    ours = np.asarray(drawn["log_likelihood"]["x"])
    np.testing.assert_allclose(ours, log_prob(X.numpy(), sites), rtol=1e-9)  # with the sum: the same numbers
    labels = (joint + np.random.default_rng(0).gumbel(size=joint.shape)).argmax(-1)[..., None]
    chosen = np.take_along_axis(joint - np.log(sites["weights"])[..., None, :], labels, -1)[..., 0]
    conditional = convert({"posterior": Group(sites), "log_likelihood": Group({"x": chosen})})
    assert not agree(dataclasses.replace(from_arviz(conditional), worst_k=0.0), brute_force)


# --- who has a log-likelihood ---------------------------------------------------------------------------------------


def enumerated(x: torch.Tensor) -> None:
    """A discrete site, summed out: ``az.from_pyro`` drops the log-likelihood of such a program."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        loc = pyro.sample("loc", dist.Normal(70.0, 20.0))
    with pyro.plate("row", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 6.0), obs=x)


def same_family(x: torch.Tensor) -> None:
    """The same model without a discrete site, its parameters events and not plates: dropped there too."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    loc = pyro.sample("loc", dist.Normal(torch.full((2,), 70.0), 20.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 6.0)), obs=x)


PROGRAMS = {"model": (model(2), X), "enumerated": (enumerated, X[:, 1]), "same_family": (same_family, X[:, 1])}
METHODS = {"nuts": NUTS(chains=2, warmup=20, draws=20, max_tree_depth=3), "svi": SVI(max_steps=40, num_draws=60)}


@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning", "ignore:.*Pareto:UserWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_result_with_a_spread_has_a_log_likelihood(name, method):
    """Short runs: enough for loo to run; the numbers are those of the mixture's density at each draw, by NumPy."""
    program, x = PROGRAMS[name]
    result = infer(program, x, METHODS[method], seed=0).to_arviz(predictive_draws=0, prior_draws=0)
    ours = np.asarray(result["log_likelihood"]["x"])
    sites = {site: np.asarray(values) for site, values in result["posterior"].data_vars.items()}
    if name != "model":
        sites = {**sites, "loc": sites["loc"][..., None], "cov": np.full((*sites["loc"].shape, 1, 1), 36.0)}
    np.testing.assert_allclose(ours, log_prob(x.numpy().reshape(50, -1), sites), rtol=1e-8)
    assert from_arviz(result).log_density.shape == (50,)


@pytest.mark.parametrize("method", [EM(restarts=2), MAP(restarts=1)], ids=["em", "map"])
def test_a_point_has_none(method):
    """A point has no predictive distribution to leave a row out of: no number is better than a wrong one."""
    result = infer(model(2), X, method, seed=0).to_arviz(predictive_draws=0, prior_draws=0)
    assert not {"posterior", "log_likelihood"} & set(getattr(result, "children", None) or result.groups())
    with pytest.raises((TypeError, KeyError, ValueError), match=r"log_likelihood|log likelihood|posterior"):
        az.loo(result)
