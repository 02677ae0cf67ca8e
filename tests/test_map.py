"""MAP: closed-form modes, agreement with EM, restarts, refusals."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import COUNTS, gamma_poisson, one_dimensional, two_groups

from probmix.datasets import load_faithful
from probmix.errors import FitError, MethodError
from probmix.inference import EM, MAP, infer
from probmix.models import GaussianMixture


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
