"""Laplace: exact for normal posteriors, a known error for others, and no answer where there is no peak."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import COUNTS, gamma_poisson, one_dimensional, two_groups
from scipy import integrate, stats

from probmix.arguments import Arguments
from probmix.datasets import load_faithful
from probmix.errors import FitError, MethodError
from probmix.inference import infer
from probmix.inference.hessian import _differences, hessian
from probmix.inference.laplace import Laplace
from probmix.isolation import isolated
from probmix.log_density import LogDensity
from probmix.models import GaussianMixture
from probmix.posterior import load_posterior
from probmix.status import FitWarning

PRIOR_MEAN, PRIOR_STD, NOISE_STD = np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.0, 0.1, 100.0, 1.0]), 0.7


def regression_data() -> tuple[np.ndarray, np.ndarray]:
    """Columns whose units differ ten-thousandfold."""
    rng = np.random.default_rng(0)
    design = rng.normal(size=(40, 4)) * np.array([1.0, 100.0, 0.01, 1.0])
    return design, design @ np.array([1.0, 0.02, 50.0, 0.0]) + rng.normal(size=40)


def regression(design, y):
    prior = dist.Normal(torch.as_tensor(PRIOR_MEAN), torch.as_tensor(PRIOR_STD))
    slopes = pyro.sample("slopes", prior.to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(design @ slopes, NOISE_STD), obs=y)


def evidence_of_regression(design: np.ndarray, y: np.ndarray, prior_std: np.ndarray) -> float:
    cov = NOISE_STD**2 * np.eye(len(y)) + design * prior_std**2 @ design.T
    return float(stats.multivariate_normal(design @ PRIOR_MEAN, cov).logpdf(y))


def test_linear_regression_is_exact():
    """The posterior is normal. 1e-10 relative: rounding of sums of 40 terms, through one matrix inverse.

    The control: a prior variance where the standard deviation is meant changes the evidence by more than a nat.
    """
    design, y = regression_data()
    fit = infer(regression, (design, y), Laplace(), seed=0)
    exact = evidence_of_regression(design, y, PRIOR_STD)
    assert fit.status.state == "converged"
    assert fit.log_evidence == pytest.approx(exact, rel=1e-10)
    assert abs(fit.log_evidence - evidence_of_regression(design, y, PRIOR_STD**2)) > 1
    precision = np.diag(PRIOR_STD**-2.0) + design.T @ design / NOISE_STD**2
    cov = np.linalg.inv(precision)
    mean = cov @ (PRIOR_MEAN / PRIOR_STD**2 + design.T @ y / NOISE_STD**2)
    std, q = np.sqrt(np.diag(cov)), fit.guide.distribution()
    assert np.abs((q.mean.numpy() - mean) / std).max() < 1e-8
    assert np.abs((q.covariance_matrix.numpy() - cov) / np.outer(std, std)).max() < 1e-10


def test_a_normal_posterior_leaves_nothing_to_the_importance_ratios():
    """log p - log q is the evidence at every draw, so that the ELBO is the evidence and has no error."""
    fit = infer(regression, regression_data(), Laplace(), seed=0)
    elbo, error = fit.elbo
    assert elbo == pytest.approx(fit.log_evidence, rel=1e-9)
    assert error < 1e-9
    assert "Pareto k" in fit.status.message


def stirling(x: float) -> float:
    """What Stirling's formula lacks of log Gamma(x): 1 / 12x, less at most 1 / 360x^3."""
    return 1 / (12 * x)


def test_beta_binomial_misses_what_stirlings_formula_misses():
    """On the logit scale Laplace's approximation of the Beta function is Stirling's; so its error is known.

    Exact by quadrature. Control: without the Jacobian, at the mode of the constrained density, it would be 3 times off.
    """
    num, successes = 10, 3

    def program(k):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("k", dist.Binomial(num, p), obs=k)

    fit = infer(program, torch.tensor(float(successes)), Laplace(), seed=0)
    exact = math.log(integrate.quad(lambda p: stats.binom(num, p).pmf(successes), 0, 1)[0])
    a, b = 1.0 + successes, 1.0 + num - successes
    expected = stirling(a) + stirling(b) - stirling(a + b)
    assert exact - fit.log_evidence == pytest.approx(expected, abs=(a**-3 + b**-3) / 360)
    assert float(fit.sites()["p"]) == pytest.approx(a / (a + b), rel=1e-6)  # of the logit density: not (a - 1) / ...


def test_gamma_poisson_misses_what_stirlings_formula_misses():
    fit = infer(gamma_poisson, COUNTS, Laplace(), seed=0)
    shape, rate = 2 + float(COUNTS.sum()), 1.0 + len(COUNTS)
    exact = math.lgamma(shape) - shape * math.log(rate) - float(torch.lgamma(COUNTS + 1).sum())
    assert exact - fit.log_evidence == pytest.approx(stirling(shape), abs=shape**-3 / 360 + 1e-9)
    elbo, error = fit.elbo
    assert elbo - 4 * error < exact  # a lower bound; 4 standard errors: false alarm 3e-5


def two_means(x):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    with pyro.plate("row", len(x)):
        label = pyro.sample("label", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(loc[label.long()], 1.0), obs=x)


def test_labels_are_summed_out_and_each_of_two_modes_has_half_of_the_evidence():
    """Against a sum over a grid of both means; 60 points, so that the normal approximation is within 0.01 nats."""
    x = two_groups()[:, 0]
    fit = infer(two_means, x, Laplace(), seed=0)
    grid = torch.linspace(-3, 9, 601, dtype=x.dtype)
    one = dist.Normal(grid, 1.0).log_prob(x[:, None])
    likelihood = torch.stack([torch.logaddexp(one, other[:, None]).sum(0) for other in one.T]) + len(x) * math.log(0.5)
    prior = dist.Normal(0.0, 10.0).log_prob(grid)
    exact = float((likelihood + prior + prior[:, None]).logsumexp((0, 1))) + 2 * math.log(12 / 600)
    assert fit.log_evidence + math.log(2) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("covariance", ["full", "spherical"])
def test_the_hessian_is_the_derivative_of_the_gradient(covariance):
    """Fourth-order differences lose 3 of 16 digits of the gradient, whose size is that of the largest curvature."""
    x = load_faithful().x
    with isolated(0, dtype=x.dtype, device=x.device):
        density = LogDensity(GaussianMixture(2, covariance), Arguments.of(x))
        fit = infer(GaussianMixture(2, covariance), x, Laplace(restarts=2), seed=0)
        z = fit.guide.parameters["loc"] + 0.1
        exact = hessian(density, z)
        torch.testing.assert_close(exact, _differences(density, z), rtol=1e-7, atol=1e-9 * float(exact.abs().max()))
        assert (exact - exact.mT).abs().max() == 0


class OnlyOnce(torch.autograd.Function):
    """A square that can be differentiated once: torch then leaves it out of second derivatives, and is silent."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_value):
        return 2 * ctx.saved_tensors[0] * of_value


@pytest.mark.filterwarnings("ignore:the program .* cannot be traced")
def test_a_program_that_can_be_differentiated_once_gets_differences():
    """Minus the log density is a^2 / 2 + (a^2 - 4)^2 / 4: derivatives a^3 - 3a, 0 at a^2 = 3, and 3a^2 - 3 = 6."""

    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(OnlyOnce.apply(a), math.sqrt(2.0)), obs=x)

    fit = infer(program, torch.tensor(4.0, dtype=torch.float64), Laplace(restarts=2), seed=0)
    assert float(fit.sites()["a"]) ** 2 == pytest.approx(3.0, rel=1e-6)
    assert float(fit.guide.distribution().variance) == pytest.approx(1 / 6, rel=1e-6)


def test_a_program_that_runs_row_by_row():
    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        std = 1.0 if a > -50 else 2.0
        pyro.sample("x", dist.Normal(a, std), obs=x)

    with pytest.warns(UserWarning, match="cannot be traced as a batch"):
        fit = infer(program, torch.tensor(2.0, dtype=torch.float64), Laplace(restarts=2), seed=0)
    assert fit.log_evidence == pytest.approx(float(stats.norm(0, math.sqrt(2)).logpdf(2.0)), rel=1e-9)


def test_a_flat_direction_is_named():
    """Only the sum of the two is known, to which a prior of width 1e9 adds nothing that float64 can see."""

    def program(x):
        level = pyro.sample("level", dist.Normal(0.0, 1e9))
        spread_std = pyro.sample("spread_std", dist.HalfNormal(1.0))
        shift = pyro.sample("shift", dist.Normal(0.0, 1e9))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(level + shift, spread_std), obs=x)

    with pytest.raises(
        FitError, match=r"combination of the sites '(level|shift)', '(level|shift)' it is flat"
    ) as caught:
        infer(program, COUNTS, Laplace(), seed=0)
    assert "spread_std" not in str(caught.value)
    assert "Give a proper prior" in str(caught.value)


def test_a_saddle_is_not_a_peak():
    """Two equal means do not leave each other along the gradient; minus the variance of the labels, they would."""
    middle = {"loc": two_groups().mean().expand(2)}
    with pytest.warns(FitWarning, match=r"failed: expected a peak .*site 'loc' it curves upwards.*Raise restarts"):
        fit = infer(two_means, two_groups()[:, 0], Laplace(restarts=1, init=middle), seed=0, throw=False)
    assert fit.status.state == "failed"
    assert fit.log_evidence is None


def test_a_density_without_a_mode_is_a_failure_with_advice():
    def program(x):
        std = pyro.sample("std", dist.Uniform(0.0, 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(0.0, std), obs=x)  # all data zero: the density grows without bound

    with pytest.raises(FitError, match="so it has no mode to approximate: check the priors"):
        infer(program, torch.zeros(3), Laplace(), seed=0)


def test_a_poor_approximation_is_told_by_its_pareto_k():
    """A Cauchy posterior has tails that no normal has: k = 1 and more. The control is a normal posterior: k = 0."""

    def program(x):
        a = pyro.sample("a", dist.Cauchy(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0 * a, 1.0), obs=x)

    fit = infer(program, torch.tensor(0.0, dtype=torch.float64), Laplace(), seed=0)
    assert fit.pareto_k > 0.7
    assert (
        "the guide is too narrow somewhere for importance weights to correct it; use SVI(), NUTS() or ChEES()"
        in fit.status.message
    )
    assert infer(regression, regression_data(), Laplace(), seed=0).pareto_k < 0.1


def test_interrupted_before_the_peak(monkeypatch):
    monkeypatch.setattr(Laplace, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.warns(FitWarning, match="interrupted: stopped by the user after 0 of at most 200"):
        fit = infer(gamma_poisson, COUNTS, Laplace(), seed=0)
    assert fit.sites()["rate"] > 0


def test_saved_shown_and_repeated(tmp_path):
    x, model = two_groups(), one_dimensional()
    fit, again = (infer(model, x, Laplace(restarts=4), seed=0) for _ in range(2))
    assert fit.log_evidence == again.log_evidence
    fit.save(tmp_path / "fit")
    loaded = load_posterior(tmp_path / "fit")
    assert loaded.log_evidence == fit.log_evidence
    assert torch.equal(loaded.sample(5, seed=1)["loc"], fit.sample(5, seed=1)["loc"])
    shown = fit.to_arviz(prior_draws=0, predictive_draws=0)
    assert shown["posterior"].attrs["log_evidence"] == fit.log_evidence


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"restarts": 0}, "restarts"), ({"tolerance": 0.0}, "tolerance"), ({"num_draws": 0}, "num_draws")],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(MethodError, match=message):
        Laplace(**settings)
