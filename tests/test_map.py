"""MAP: closed-form modes, agreement with EM, restarts, refusals."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import COUNTS, gamma_poisson, one_dimensional, two_groups
from scipy import optimize

from probmix.arguments import Arguments
from probmix.datasets import load_faithful
from probmix.errors import FitError, MethodError
from probmix.inference import EM, MAP, infer
from probmix.log_density import LogDensity
from probmix.models import GaussianMixture
from probmix.status import FitWarning


def test_conjugate_mode():
    """The mode of Gamma(22, 11) in the constrained space is 21 / 11; 1e-6 is the square root of the tolerance."""
    fit = infer(gamma_poisson, COUNTS, MAP(tolerance=1e-12), seed=0)
    assert float(fit.sites()["rate"]) == pytest.approx(21 / 11, rel=1e-6)
    assert fit.status.state == "converged"


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_stays_at_the_answer_of_em(covariance):
    """Two descriptions of one optimum: closed form and traced program. 1e-6 nats is both tolerances."""
    x, model = load_faithful().x, GaussianMixture(2, covariance)
    em = infer(model, x, EM(), seed=0)
    fit = infer(model, x, MAP(restarts=1, init=em.sites()), seed=0)
    assert fit.objective == pytest.approx(em.objective, abs=1e-5)
    for name, value in em.sites().items():
        torch.testing.assert_close(fit.sites()[name], value, rtol=1e-3, atol=1e-4)  # flat top: square root of 1e-6


def test_finds_the_optimum_of_em_from_random_starts():
    x, model = two_groups(), one_dimensional()
    em = infer(model, x, EM(), seed=0)
    fit = infer(model, x, MAP(restarts=8, init="random"), seed=0)
    assert fit.objectives.shape == (8,)
    assert fit.objective == pytest.approx(em.objective, abs=1e-4)


def own_mixture(x):
    """As users write it, with a prior that knows the data's range."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        loc = pyro.sample("loc", dist.Normal(x.mean(0), 2 * x.std(0)).to_event(1))
        std = pyro.sample("std", dist.HalfNormal(x.std(0)).to_event(1))
    with pyro.plate("row", len(x)):
        label = pyro.sample("label", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[label], std[label]).to_event(1), obs=x)


def test_restarts_from_the_prior_find_what_random_starts_miss():
    """Uniform starts lie 70 units from the data, where both components fall into one: no number of them helps.

    The optimum is that of scipy from the groups' own means; 1e-4 nats covers both tolerances.
    """
    x = load_faithful().x[::4]
    density = LogDensity(own_mixture, Arguments.of(x))
    groups = [x[x[:, 0] > 3], x[x[:, 0] <= 3]]
    first = {
        "weights": torch.tensor([0.6, 0.4], dtype=x.dtype),
        "loc": torch.stack([g.mean(0) for g in groups]),
        "std": torch.stack([g.std(0) for g in groups]),
    }

    def objective(z):
        value, gradient = density.value_and_grad(torch.as_tensor(z), jacobian=False)
        return -float(value), -gradient.numpy()

    best = -optimize.minimize(objective, density.unconstrain(first).numpy(), jac=True, options={"gtol": 1e-6}).fun
    prior = infer(own_mixture, x, MAP(restarts=16, init="prior"), seed=0)
    random = infer(own_mixture, x, MAP(restarts=16, init="random"), seed=0)
    assert prior.objective == pytest.approx(best, abs=1e-4)
    assert random.objective < best - 10


def test_every_restart_of_a_batch_climbs_as_it_would_alone():
    """64 rows in one batch from EM's answer, each moved by another amount; all come back to it."""
    x, model = two_groups(), one_dimensional()
    em = infer(model, x, EM(), seed=0)
    factors = 1 + 0.3 * torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    sites = {name: value.expand(64, *value.shape) for name, value in em.sites().items()}
    moved = {**sites, "loc": sites["loc"] * factors[:, None, None], "var": sites["var"] * factors[:, None]}
    fit = infer(model, x, MAP(restarts=64, init=moved), seed=0)
    assert fit.objectives.shape == (64,)
    assert fit.history["objective"].shape[0] == 64
    torch.testing.assert_close(fit.objectives, torch.full_like(fit.objectives, em.objective), rtol=0, atol=1e-5)
    assert (fit.history["objective"].diff(dim=-1) >= -1e-9).all()  # never falls, but for rounding


def test_a_restart_that_is_lost_takes_nobody_along():
    """Below zero the density grows as ``a`` falls to -1, where it ends; above, it has its maximum, 21 / 11."""

    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 100.0))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.factor("cliff", torch.where(a > 0, -((a - 1.0) ** 2), -torch.log(a + 1.0)))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    a = torch.tensor([-0.5, 2.0, -0.1, 0.5], dtype=torch.float64)
    fit = infer(program, COUNTS, MAP(restarts=4, init={"a": a, "rate": torch.ones_like(a)}), seed=0)
    assert fit.objectives.isnan().tolist() == [True, False, True, False]
    assert float(fit.sites()["rate"]) == pytest.approx(21 / 11, rel=1e-4)


def test_a_straggler_is_not_waited_for():
    """One start is in a narrow curved valley, far below the other: it takes more than the 40 blocks allowed here."""

    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        creeping = -1e6 * ((a + 20) ** 2 + 1e-7 * (b[0] - 1e3) ** 2 + (b[1] - b[0].square()).square()) - 1e7
        pyro.factor("valley", torch.where(a < -10, creeping, 0.0))
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    first = {"a": torch.tensor([0.0, -20.0]), "b": torch.tensor([[0.1, 0.1], [-30.0, 900.0]])}
    first = {name: value.double() for name, value in first.items()}
    fit = infer(program, torch.tensor(2.0, dtype=torch.float64), MAP(restarts=2, init=first, tolerance=1e-9), seed=0)
    assert fit.status.state == "converged"
    assert "in the best restart; below it, 1 still gained" in fit.status.message
    assert float(fit.sites()["a"]) == pytest.approx(1.0, abs=1e-6)
    assert len(fit.history["objective"][0]) < 40


def test_a_density_that_grows_on_and_on_says_so():
    def program(x):
        std = pyro.sample("std", dist.HalfNormal(5.0))
        with pyro.plate("row", len(x)):
            loc = pyro.sample("loc", dist.Normal(0.0, std))
            pyro.sample("x", dist.Normal(loc, 10.0), obs=x)

    with pytest.warns(FitWarning, match=r"still gained after 3 steps.*grows on and on.*NUTS\(\)"):
        infer(program, COUNTS, MAP(max_steps=3), seed=0)


def test_no_maximum_is_a_failure_with_advice():
    def program(x):
        std = pyro.sample("std", dist.Uniform(0.0, 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(0.0, std), obs=x)  # all data zero: the density grows without bound

    with pytest.raises(FitError, match=r"no maximum inside the support.*priors"):
        infer(program, torch.zeros(3), MAP(), seed=0)


@pytest.mark.parametrize(("settings", "message"), [({"restarts": 0}, "restarts"), ({"tolerance": 0.0}, "tolerance")])
def test_settings_out_of_range(settings, message):
    with pytest.raises(MethodError, match=message):
        MAP(**settings)
