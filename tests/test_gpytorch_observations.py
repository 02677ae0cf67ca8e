"""Likelihoods with a normal function value integrated out, against SciPy's quadrature and series."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gpytorch.likelihoods import (
    BernoulliLikelihood,
    BetaLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    Likelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from scipy import integrate
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from probmix.gpytorch_observations import LeadingMixture, observation

LOC, VAR = torch.tensor([0.8], dtype=torch.float64), torch.tensor([1.5], dtype=torch.float64)


def likelihood_of(kind: type[Likelihood], **values: float) -> Any:
    likelihood = kind().double().requires_grad_(requires_grad=False)
    return likelihood.initialize(**values)


def exact(likelihood: Likelihood, y: Tensor) -> float:
    def integrand(f: float) -> float:
        at = torch.tensor([f], dtype=torch.float64)
        return float((likelihood(at).log_prob(y) + Normal(LOC, VAR.sqrt()).log_prob(at)).exp())

    edges = sorted({0.0, *(float(y) + step for step in (-0.5, -0.05, 0.0, 0.05, 0.5))})
    return integrate.quad(integrand, -9, 11, points=edges, epsabs=0, epsrel=1e-10, limit=500)[0]


OBSERVED: dict[str, tuple[Likelihood, float, float]] = {  # with the relative error that the docstrings promise
    "Gaussian": (likelihood_of(GaussianLikelihood), 0.7, 1e-9),
    "probit, 1": (likelihood_of(BernoulliLikelihood), 1.0, 1e-9),
    "probit, 0": (likelihood_of(BernoulliLikelihood), 0.0, 1e-9),
    "Poisson": (likelihood_of(PoissonLikelihood), 3.0, 1e-6),
    "beta": (likelihood_of(BetaLikelihood), 0.3, 1e-6),
    "Student-t": (likelihood_of(StudentTLikelihood, deg_free=4.0), -0.4, 2e-4),
    "Student-t, an outlier": (likelihood_of(StudentTLikelihood, deg_free=2.5), 9.0, 2e-4),
    "Student-t, sharp": (likelihood_of(StudentTLikelihood, noise=1e-4), -0.4, 2e-4),
    "Laplace": (likelihood_of(LaplaceLikelihood), 1.1, 1e-3),
    "Laplace, sharp": (likelihood_of(LaplaceLikelihood, noise=1e-4), 1.1, 1e-3),
}


@pytest.mark.parametrize(("likelihood", "y", "error"), OBSERVED.values(), ids=OBSERVED)
def test_the_function_is_integrated_out(likelihood, y, error):
    value = torch.tensor([y], dtype=torch.float64)
    density = observation(likelihood, LOC, VAR).log_prob(value).exp()
    assert float(density) == pytest.approx(exact(likelihood, value), rel=error)


def test_sharp_noise_is_beyond_quadrature_over_the_function():
    """The control: why Student-t and Laplace noise have a way of their own."""
    likelihood, y, _ = OBSERVED["Student-t, sharp"]
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    value = torch.tensor([y], dtype=torch.float64)
    at = LOC + VAR.sqrt() * torch.as_tensor(nodes)
    naive = (torch.as_tensor(weights / weights.sum()) * likelihood(at).log_prob(value).exp()).sum()
    assert abs(float(naive) / exact(likelihood, value) - 1) > 0.5


def test_far_away_classes_keep_their_digits():
    """log Phi(-a) is -a^2/2 - log(a sqrt(2 pi)) and a series in 1/a^2. The slope at 0 is 4 phi(0)."""
    loc = torch.tensor([-30.0, 0.0, 30.0], dtype=torch.float64, requires_grad=True)
    classes = observation(BernoulliLikelihood(), loc, torch.zeros(3, dtype=torch.float64))
    tail = -450 - math.log(30 * math.sqrt(2 * math.pi)) + math.log1p(-1 / 900 + 3 / 900**2)
    ones = classes.log_prob(torch.ones(3, dtype=torch.float64))
    zeros = classes.log_prob(torch.zeros(3, dtype=torch.float64))
    assert float(ones[0].detach()) == pytest.approx(tail, rel=1e-10)
    assert float(zeros[2].detach()) == pytest.approx(tail, rel=1e-10)
    (slope,) = torch.autograd.grad(classes.logits[1], loc)
    assert float(slope[1]) == pytest.approx(4 / math.sqrt(2 * math.pi))


def test_a_leading_mixture_is_the_one_over_the_last_axis():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loc, weights = torch.randn(2, 3, 4), torch.rand(2, 3, 4)
        leading = LeadingMixture(Normal(loc, 0.5), weights.log(), axes=2)
        last = MixtureSameFamily(Categorical(weights.flatten(0, 1).mT), Normal(loc.flatten(0, 1).mT, 0.5))
        value, draws = torch.randn(4), leading.sample((800,))
    torch.testing.assert_close(leading.log_prob(value), last.log_prob(value))
    torch.testing.assert_close(leading.mean, last.mean)
    torch.testing.assert_close(leading.variance, last.variance)
    assert draws.shape == (800, 4)
    z = (draws.mean(0) - last.mean) / (last.variance / 800).sqrt()
    assert bool((z.abs() < 4.5).all())  # null: draws have the mean of the mixture; false alarms: 4 x 7e-6
    shared = LeadingMixture(Normal(loc, 0.5), torch.zeros(2, 1, 1), axes=2)
    torch.testing.assert_close(shared.mean, loc.mean((0, 1)))
