"""Programs run forwards, one vectorised pass or one by one."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from probmix.arguments import Arguments
from probmix.isolation import isolated
from probmix.simulation import simulate, trace_sites


@pytest.fixture(autouse=True)
def _seeded():
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


def program(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 3.0])))  # torch cannot vectorise its sampler
    rate = pyro.sample("rate", dist.Gamma(4.0, 2.0))
    with pyro.plate("row", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(rate * z, 1.0), obs=x)


DATA = Arguments.of(torch.zeros(6))


def test_prior_draws_have_the_priors_moments():
    """4.5 standard errors of 500 draws, four quantities: false alarm 3e-5."""
    draws = trace_sites(lambda: DATA.call(program), 500)
    assert draws["x"].shape == (500, 6)
    assert abs(draws["weights"][:, 0].mean() - 0.4) < 4.5 * math.sqrt(0.04 / 500)
    assert abs(draws["rate"].mean() - 2.0) < 4.5 * 1.0 / math.sqrt(500)
    assert abs(draws["z"].double().mean() - 0.6) < 4.5 * math.sqrt(0.24 / 500)  # rows of one draw share weights
    assert abs(draws["x"].mean() - 1.2) < 4.5 * 2.0 / math.sqrt(500)


def test_replicates_follow_their_own_draw():
    sites = {"weights": torch.tensor([[1.0, 0.0], [0.0, 1.0]]).expand(3, 2, 2), "rate": torch.full((3, 2), 100.0)}
    x = simulate(program, DATA, sites, depths={"weights": 1, "rate": 0})["x"]
    assert x.shape == (3, 2, 6)
    assert (x[:, 0].abs() < 10).all()
    assert ((x[:, 1] - 100).abs() < 10).all()
    assert len(x.flatten().unique()) == 36  # every replicate has randomness of its own


def test_control_flow_runs_one_by_one():
    def branching(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(10.0 if a > 0 else -10.0, 1.0), obs=x)

    x = simulate(branching, DATA, {"a": torch.tensor([-1.0, 1.0])}, depths={"a": 0})["x"]
    assert (x[0] < 0).all()
    assert (x[1] > 0).all()


def test_a_factor_is_not_data():
    """It has no value: it would be an empty variable among the draws."""

    def bounded(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.factor("less", -a.square())
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    assert set(trace_sites(lambda: DATA.call(bounded), 5)) == {"a", "x"}
    assert set(simulate(bounded, DATA, {"a": torch.zeros(3)}, depths={"a": 0})) == {"x"}
