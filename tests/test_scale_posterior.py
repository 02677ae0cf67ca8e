"""The common variance given data: density, draws and the one mean that EM needs."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from probmix.burr import BurrXII
from probmix.scale_integral import log_integral
from probmix.scale_posterior import ScalePosterior, harmonic_mean, scale_posterior


def t(value) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


PRIORS = {
    "inverse gamma": dist.InverseGamma(t(2.0), t(3.0)),
    "half-Cauchy": dist.HalfCauchy(t(1.0)),
    "Pareto": dist.Pareto(t(0.5), t(2.0)),
    "log-normal": dist.LogNormal(t(0.0), t(1.0)),
    "Burr": BurrXII(t(2.0), t(2.0)),
    "uniform": dist.Uniform(t(0.5), t(2.0)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_density_integrates_to_one(name):
    """1e-8: scipy's own error bound, on log s between bounds of the support that leave e^-60 out."""
    given = ScalePosterior(PRIORS[name], 6.0, t(8.0))
    low, high = {"Pareto": (math.log(0.5), 10.0), "uniform": (math.log(0.5), math.log(2.0))}.get(name, (-4.0, 10.0))

    def density(u):
        return math.exp(float(given.log_prob(t(math.exp(u)))) + u)

    total, error = integrate.quad(density, low, high, epsabs=1e-10, limit=200)
    assert error < 1e-8
    assert total == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("name", PRIORS)
def test_draws_follow_the_density(name):
    """Null: draws have the law whose density scipy integrates. False alarm 1e-4; the control sees more data."""
    torch.manual_seed(1)
    draws = ScalePosterior(PRIORS[name], 6.0, t(8.0)).sample((4000,)).numpy()
    assert len(np.unique(draws)) == 4000
    assert stats.kstest(draws, cdf(PRIORS[name], 6.0, 8.0)).pvalue > 1e-4
    assert stats.kstest(draws, cdf(PRIORS[name], 8.0, 8.0)).pvalue < 1e-4


def cdf(prior, count: float, quadratic: float):
    """By the trapezoid rule on a grid of 100,000 values of log s."""
    low, high = (
        math.log(end) if 0 < end < math.inf else sign * 20.0 for end, sign in zip(bounds(prior), (-1, 1), strict=True)
    )
    u = np.linspace(low + 1e-12, high - 1e-12, 100_001)
    log_density = prior.log_prob(t(np.exp(u))).numpy() + u - 0.5 * count * u - 0.5 * quadratic * np.exp(-u)
    below = integrate.cumulative_trapezoid(np.exp(log_density - log_density.max()), u, initial=0.0)
    return lambda s: np.interp(np.log(s), u, below / below[-1])


def bounds(prior) -> tuple[float, float]:
    support = prior.support
    return float(support.lower_bound), float(getattr(support, "upper_bound", math.inf))


def test_draws_of_a_batch_of_priors_and_data():
    """Each entry by itself. Null: every one follows its own law, false alarm 1e-4 in all (Bonferroni)."""
    prior, quadratic = dist.LogNormal(t([[-1.0], [2.0]]), t(0.5)), t([1.0, 8.0, 60.0])
    torch.manual_seed(2)
    given = ScalePosterior(prior, 6.0, quadratic)
    assert given.batch_shape == (2, 3)
    draws = given.sample((2000,)).numpy()
    for i in range(2):
        for j in range(3):
            one = dist.LogNormal(prior.loc[i, 0], t(0.5))
            p = stats.kstest(draws[:, i, j], cdf(one, 6.0, float(quadratic[j]))).pvalue
            assert p > 1e-4 / 6


def test_an_inverse_gamma_stays_one():
    """Two batches of data in a row are both at once: shape + m / 2 and rate + q / 2, by hand."""
    first = scale_posterior(dist.InverseGamma(t(2.0), t(3.0)), 4.0, t([6.0, 7.0]))
    both = scale_posterior(first, 1.0, t(0.5))
    assert isinstance(both, dist.InverseGamma)
    assert both.concentration.tolist() == [4.5, 4.5]
    assert both.rate.tolist() == [6.25, 6.75]
    assert scale_posterior(None, 4.0, t(6.0)) is None


@pytest.mark.parametrize("name", PRIORS)
def test_data_in_two_steps_are_all_at_once(name):
    """The chain rule: p(1, 2) = p(1) p(2 | 1), to 1e-10 of quadratures over different integrands."""
    prior = PRIORS[name]
    first = scale_posterior(prior, 4.0, t(6.0))
    chained = log_integral(prior, 4.0, t(6.0)) + log_integral(first, 3.0, t(5.0))
    torch.testing.assert_close(chained, log_integral(prior, 7.0, t(11.0)), rtol=1e-10, atol=1e-10)
    s = t([0.6, 1.0, 1.9])
    both = scale_posterior(first, 3.0, t(5.0))
    torch.testing.assert_close(
        both.log_prob(s), scale_posterior(prior, 7.0, t(11.0)).log_prob(s), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("name", PRIORS)
def test_harmonic_mean_is_a_ratio_of_integrals(name):
    """1 / s is two observations more: E[1 / s] = I(m + 2, q) / I(m, q)."""
    prior, quadratic = PRIORS[name], t([1.0, 8.0, 60.0])
    expected = (log_integral(prior, 6.0, quadratic) - log_integral(prior, 8.0, quadratic)).exp()
    torch.testing.assert_close(harmonic_mean(prior, 6.0, quadratic), expected, rtol=1e-9, atol=0)


def test_expands():
    given = ScalePosterior(PRIORS["Burr"], 6.0, t(8.0)).expand((4, 2))
    assert given.batch_shape == (4, 2)
    assert given.sample((3,)).shape == (3, 4, 2)
    assert given.support is PRIORS["Burr"].support
