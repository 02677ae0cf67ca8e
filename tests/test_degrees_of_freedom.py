"""Degrees of freedom: roots, modes, integrals and draws against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats
from torch import Tensor

from probmix.degrees_of_freedom import DofPrior, solve_dof

#: concentration, rate, rows, and how far the mean of u - log u is above the 1 of equal widths
CASES = [(2.0, 0.1, 0.0, 0.0), (2.0, 0.1, 50.0, 0.2), (2.0, 0.1, 5.0, 3.0), (1.5, 0.5, 1e5, 0.5), (2.0, 0.1, 3.0, 1e-3)]
every_case = pytest.mark.parametrize("case", CASES)


def prior_of(case: tuple[float, ...], *batch: int) -> DofPrior:
    concentration, rate, count, above = case
    values = (concentration, rate, count, -(1 + above) * count)
    return DofPrior(*(torch.full(batch, value, dtype=torch.float64) for value in values))


class Reference:
    """The density of log dof by quadrature, from the formula in the docstring."""

    def __init__(self, case: tuple[float, ...]) -> None:
        self.case = case
        self.top = optimize.minimize_scalar(lambda s: -self.log_kernel(s), bounds=(-8, 12), method="bounded").x
        self.nodes = self.top + np.linspace(-25, 12, 400_001) / np.sqrt(1 + case[2] / 2)
        density = np.exp(self.log_kernel(self.nodes) - self.log_kernel(self.top))
        self.log_integral = np.log(integrate.simpson(density, x=self.nodes)) + self.log_kernel(self.top)
        self.density = density / integrate.simpson(density, x=self.nodes)

    def log_kernel(self, log_dof: np.ndarray) -> np.ndarray:
        concentration, rate, count, above = self.case
        half = np.exp(log_dof) / 2
        constant = half * np.log(half) - special.gammaln(half)
        return concentration * log_dof - rate * 2 * half + count * constant - half * (1 + above) * count

    def mean(self, values: np.ndarray) -> float:
        return float(integrate.simpson(self.density * values, x=self.nodes))

    def cdf(self, dof: np.ndarray) -> np.ndarray:
        cumulative = integrate.cumulative_trapezoid(self.density, x=self.nodes, initial=0)
        return np.interp(np.log(dof), self.nodes, cumulative)


@pytest.mark.parametrize("above", [1e-5, 1e-3, 0.1, 3.0, 100.0])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_root_is_scipys(above: float, power: float) -> None:
    """The left side is a difference of numbers near log x, which costs up to seven digits."""

    def left(half: float) -> float:
        return 7 * (np.log(half) - special.digamma(half) - above) + power / half - 0.2 * power

    expected = 2 * optimize.brentq(left, 1e-4, 1e6, xtol=1e-14, rtol=1e-14)
    arguments = (7.0, -7 * (1 + above), power, 0.1 * power)
    root = solve_dof(*(torch.tensor(value, dtype=torch.float64) for value in arguments))
    assert root.item() == pytest.approx(expected, rel=1e-9)


@every_case
def test_mode_mean_and_integrals_are_quadratures(case: tuple[float, ...]) -> None:
    prior, reference = prior_of(case), Reference(case)
    dof = np.exp(reference.nodes)
    assert prior.mean().item() == pytest.approx(reference.mean(dof), rel=1e-8)
    constant = dof / 2 * np.log(dof / 2) - special.gammaln(dof / 2)
    assert prior.expected_log_constant().item() == pytest.approx(reference.mean(constant), rel=1e-8, abs=1e-8)
    log_density = reference.log_kernel(reference.nodes) - reference.nodes  # of dof, not of its logarithm
    assert prior.mode().item() == pytest.approx(dof[log_density.argmax()], rel=1e-3)  # as fine as the grid


@every_case
def test_divergence_is_a_quadrature(case: tuple[float, ...]) -> None:
    reference, before = Reference(case), Reference(CASES[0])
    log_ratio = reference.log_kernel(reference.nodes) - before.log_kernel(reference.nodes)
    expected = reference.mean(log_ratio) - reference.log_integral + before.log_integral
    result = prior_of(case).divergence(prior_of(CASES[0])).item()
    assert result == pytest.approx(expected, rel=1e-6, abs=1e-8)  # terms of 1e5 cancel in the largest case


@every_case
def test_draws_follow_the_density(case: tuple[float, ...]) -> None:
    """Null: the density's own distribution, by Kolmogorov and Smirnov; fails once in 1e6. Control: 5% more."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = prior_of(case, 20_000).sample().numpy()
    reference = Reference(case)
    assert stats.kstest(draws, reference.cdf).pvalue > 1e-6
    assert stats.kstest(draws * 1.05, reference.cdf).pvalue < 1e-6


def test_a_prior_and_rows_add_up() -> None:
    prior = prior_of((2.0, 0.1, 3.0, 0.5))
    again = prior.posterior(torch.tensor(4.0).double(), torch.tensor(-8.0).double())
    assert again.count.item() == 7
    assert again.total.item() == pytest.approx(-12.5)
    before = DofPrior(prior.concentration, prior.rate)
    assert before.posterior(prior.count, prior.total).mode() == prior.mode()
    gamma = stats.gamma(2.0, scale=10.0)
    value: Tensor = torch.tensor(3.0, dtype=torch.float64)
    assert before.prior().log_prob(value).item() == pytest.approx(gamma.logpdf(3.0), rel=1e-12)
