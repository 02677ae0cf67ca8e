"""Student-t process regression: its law by Pyro and scipy, its limits, and its scale by sampling."""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from process_cases import alike, normal, t
from scipy import stats
from torch import Tensor
from z_scores import critical, standard_error, z_scores

from probmix.errors import ProgramError
from probmix.inference import MAP, NUTS, ChEES, infer
from probmix.models import ScaleMixtureProcess, StudentTProcess

pytestmark = pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")

N = 12
X, NEW = normal(N, 1), normal(3, 1, seed=1)
Y = 2 * X[:, 0].sin() + 0.5 * normal(N, seed=2)


def rbf(**settings) -> gpytorch.kernels.Kernel:
    kernel = gpytorch.kernels.RBFKernel(**settings).double().requires_grad_(False)
    kernel.lengthscale = t(1.1)
    return kernel


def covariance(x: Tensor, noise_var: float) -> Tensor:
    return (-0.5 * torch.cdist(x, x).square() / 1.1**2).exp() + noise_var * torch.eye(len(x), dtype=x.dtype)


def evidence(model: StudentTProcess, y: Tensor = Y) -> float:
    return float(pyro.poutine.trace(model).get_trace(X, y).nodes["y"]["fn"].log_prob(y))


# --- the law --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [0.5, 1.0, 4.0, 300.0])
def test_evidence_is_the_multivariate_ts(df):
    """Pyro's and scipy's, with K + noise for its shape matrix, to 1e-10."""
    model, cov = StudentTProcess(kernel=rbf(), df=df, noise_var=0.3), covariance(X, 0.3)
    loc = Y.mean().expand(N)
    pyros = dist.MultivariateStudentT(t(df), loc, torch.linalg.cholesky(cov)).log_prob(Y)
    assert evidence(model) == pytest.approx(float(pyros), rel=1e-10)
    assert evidence(model) == pytest.approx(
        stats.multivariate_t(loc.numpy(), cov.numpy(), df).logpdf(Y.numpy()), rel=1e-10
    )


def test_it_is_the_mixture_with_an_inverse_gamma():
    mixture = ScaleMixtureProcess(kernel=rbf(), scale_prior=dist.InverseGamma(t(1.7), t(1.7)), noise_var=0.3)
    ours = StudentTProcess(kernel=rbf(), df=3.4, noise_var=0.3)
    assert evidence(ours) == pytest.approx(evidence(mixture), rel=1e-12)
    alike(ours.condition(X, Y, {}).predictive(NEW), mixture.condition(X, Y, {}).predictive(NEW), 1e-12)


def test_bands_widen_where_residuals_are_larger_than_expected():
    """Variances are the Gaussian process' times (df + q) / (df + n), times df' / (df' - 2) where df' = df + n."""
    ours, gaussian = (
        StudentTProcess(kernel=rbf(), df=4.0, noise_var=0.3),
        ScaleMixtureProcess(kernel=rbf(), scale_prior=None, noise_var=0.3),
    )
    for factor in (0.3, 3.0):
        y = factor * Y
        residuals = y - y.mean()
        quadratic = float(residuals @ torch.linalg.solve(covariance(X, 0.3), residuals))
        new, old = (model.condition(X, y, {}).predictive(NEW) for model in (ours, gaussian))
        torch.testing.assert_close(new.mean, old.mean, rtol=1e-10, atol=1e-10)
        expected = (4 + quadratic) / (4 + N) * (4 + N) / (4 + N - 2)
        torch.testing.assert_close(new.variance / old.variance, t([expected] * 3), rtol=1e-10, atol=0)


def test_without_end_it_is_the_gaussian_process():
    """The distance falls like 1 / df: to 1e-6 of evidence and predictive density at 1e8."""
    gaussian = ScaleMixtureProcess(kernel=rbf(), scale_prior=None, noise_var=0.3)
    errors = []
    for df in (1e4, 1e6, 1e8):
        model = StudentTProcess(kernel=rbf(), df=df, noise_var=0.3)
        errors.append(abs(evidence(model) - evidence(gaussian)))
    assert errors[2] < 1e-6
    assert 50 < errors[0] / errors[1] < 200
    alike(model.condition(X, Y, {}).predictive(NEW), gaussian.condition(X, Y, {}).predictive(NEW), 1e-6)


# --- what maximum likelihood does -----------------------------------------------------------------------------------


def test_maximum_likelihood_drives_the_degrees_of_freedom_up():
    """The evidence, maximised over the scale of K + noise, is the Gaussian's less 1/2 log((df + n) / df): it rises.

    At the maximum q = n, whatever df; Stirling's remainder, 1 / 6 df, bounds the error.
    """
    residuals, cov = Y - Y.mean(), covariance(X, 0.3)
    best = float(residuals @ torch.linalg.solve(cov, residuals)) / N
    gaussian = float(dist.MultivariateNormal(Y.mean().expand(N), best * cov).log_prob(Y))
    found = []
    for df in (1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4):
        kernel = gpytorch.kernels.ScaleKernel(rbf()).double().requires_grad_(False)
        values = []
        for factor in (0.9 * best, best, 1.1 * best):
            kernel.outputscale = t(factor)
            values.append(evidence(StudentTProcess(kernel=kernel, df=df, noise_var=0.3 * factor)))
        assert max(values) == values[1]
        found.append(values[1])
        assert found[-1] == pytest.approx(gaussian - 0.5 * math.log((df + N) / df), abs=1 / (6 * df))
    assert found == sorted(found)


def test_a_fit_follows_it_and_a_prior_holds_it():
    """MAP under a prior flat up to 10,000 ends near there; under a Gamma of mean 20 it stays below."""
    kernel = gpytorch.kernels.ScaleKernel(rbf(), outputscale_prior=gpytorch.priors.LogNormalPrior(0.0, 2.0)).double()
    free, held = (StudentTProcess(kernel=kernel, df=df) for df in (dist.Uniform(1.0, 1e4), dist.Gamma(2.0, 0.1)))
    high, low = (float(infer(model, (X, Y), MAP(restarts=2), seed=0).sites()["df"]) for model in (free, held))
    assert high > 5000
    assert low < 20


# --- the scale, integrated or drawn ---------------------------------------------------------------------------------


def exact_scale() -> stats.rv_continuous:
    """Of df 3 and the fixed kernel: an inverse gamma with shape (3 + n) / 2 and rate (3 + q) / 2."""
    residuals = Y - Y.mean()
    quadratic = float(residuals @ torch.linalg.solve(covariance(X, 0.3), residuals))
    return stats.invgamma((3 + N) / 2, scale=(3 + quadratic) / 2)


def check_scale(draws: np.ndarray, false_alarm: float) -> None:
    """Means of log s, of its square and of 1 / s, in Monte-Carlo errors from scipy's; the control is off by a tenth."""
    exact = exact_scale()
    moments = np.stack([np.log(draws), np.log(draws) ** 2, 1 / draws], -1)
    truth = [exact.expect(f) for f in (np.log, lambda s: np.log(s) ** 2, lambda s: 1 / s)]
    limit = critical(3, false_alarm)
    assert (np.abs(z_scores(moments, np.array(truth))) < limit).all()
    assert np.abs(z_scores(moments, np.array(truth) * 1.1)).max() > limit


SAMPLERS = [
    ChEES(chains=32, warmup=100, draws=100),
    pytest.param(NUTS(chains=2, warmup=300, draws=2000), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("method", SAMPLERS, ids=lambda method: type(method).__name__)
def test_sampling_the_scale_agrees_with_the_closed_form(method):
    """Null: draws follow the inverse gamma. False alarm 1e-4."""
    model = StudentTProcess(kernel=rbf(), df=3.0, noise_var=0.3, integrate_scale=False)
    fit = infer(model, (X, Y), method, seed=0)
    assert set(fit.draws) == {"scale_var"}
    check_scale(fit.draws["scale_var"].numpy(), 1e-4)
    process = model.condition(X, Y, {})
    assert float(process.scale.concentration) == pytest.approx((3 + N) / 2)
    assert float(process.scale.rate) == pytest.approx(exact_scale().kwds["scale"], rel=1e-10)


@pytest.mark.slow
def test_hyperparameters_with_the_scale_and_without_it_agree():
    """Null: they have one posterior whether s is integrated or drawn. False alarm 1e-4.

    The control, a tenth of the degrees of freedom, is told apart.
    """
    kernel = rbf(lengthscale_prior=gpytorch.priors.GammaPrior(3.0, 2.0))

    def draws(df: float, integrate: bool) -> np.ndarray:
        model = StudentTProcess(kernel=kernel, df=df, integrate_scale=integrate)
        fit = infer(model, (X, Y), ChEES(chains=64, warmup=300, draws=300), seed=0)
        sites = [fit.draws["kernel.lengthscale"].squeeze((-1, -2)), fit.draws["noise_var"]]
        return torch.stack(sites, -1).log().numpy()

    integrated, explicit, other = draws(4.0, True), draws(4.0, False), draws(0.4, True)

    def worst(one: np.ndarray, two: np.ndarray) -> float:
        gap = one.mean((0, 1)) - two.mean((0, 1))
        return float(np.abs(gap / np.hypot(standard_error(one), standard_error(two))).max())

    assert worst(integrated, explicit) < critical(2, 1e-4)
    assert worst(integrated, other) > critical(2, 1e-4)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [0.0, -1.0, math.nan, math.inf])
def test_degrees_of_freedom_out_of_range(df):
    message = (
        rf"df: expected a positive number of degrees of freedom, or its prior, got {df}. Above 2 .* has a variance"
    )
    with pytest.raises(ProgramError, match=message):
        StudentTProcess(kernel=rbf(), df=df)


@pytest.mark.parametrize("df", [dist.Normal(4.0, 1.0), "4", t(4.0)])
def test_what_is_no_prior_of_them(df):
    with pytest.raises(
        ProgramError, match=rf"df: expected a distribution of a positive number, got {type(df).__name__} on"
    ):
        StudentTProcess(kernel=rbf(), df=df)


def test_two_observations_are_enough_for_a_variance():
    """df + n exceeds 2 after any data that a fit takes; before, torch says infinite, or NaN where there is no mean."""
    for df, prior_variance in ((0.5, torch.isnan), (1.5, torch.isinf), (3.0, torch.isfinite)):
        model = StudentTProcess(kernel=rbf(), df=df, noise_var=0.3)
        assert model.condition(X[:2], Y[:2], {}).predictive(NEW).variance.isfinite().all()
        assert prior_variance(model.process(X, Y, {}).predictive(NEW).variance).all()
