"""Scale mixtures of network processes: which kernel, which priors, which law, and that a fit of one is a file."""

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

from probmix.burr import BurrXII
from probmix.dual_activations import LeakyReLU
from probmix.errors import DataError, ProgramError
from probmix.inference import MAP, infer
from probmix.models import ScaleMixtureNNGP, ScaleMixtureProcess
from probmix.nngp import NNGPKernel
from probmix.posterior import load_posterior
from probmix.scale_integral import importance_sample

pytestmark = pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")

N = 25
X, NEW = normal(N, 3), normal(4, 3, seed=1)
Y = X.sin().sum(1) + 0.2 * normal(N, seed=2)
SITES = {
    "kernel.outputscale": t(0.7),
    "kernel.base_kernel.weight_var": t([[1.8]]),
    "kernel.base_kernel.bias_var": t([[0.3]]),
    "noise_var": t(0.05),
}


def relu_by_hand(x: np.ndarray, depth: int, weight_var: float, bias_var: float) -> np.ndarray:
    """The arc-cosine recursion of Cho and Saul, and a last layer of unit weights without biases."""
    k = weight_var * x @ x.T / x.shape[1] + bias_var
    for layer in range(depth):
        std = np.sqrt(np.diag(k))
        cosine = np.clip(k / np.outer(std, std), -1, 1)
        angle = np.arccos(cosine)
        mean = np.outer(std, std) * (np.sin(angle) + (math.pi - angle) * cosine) / (2 * math.pi)
        k = mean if layer == depth - 1 else weight_var * mean + bias_var
    return k


@pytest.mark.parametrize("depth", [1, 3])
def test_the_law_is_a_multivariate_t_with_the_networks_covariance(depth):
    """InverseGamma(2, 3): four degrees of freedom and shape matrix 3 / 2 (v K + noise), by NumPy and scipy; 1e-9."""
    model = ScaleMixtureNNGP(depth=depth, scale_prior=dist.InverseGamma(2.0, 3.0))
    nodes = pyro.poutine.trace(pyro.poutine.condition(model, SITES)).get_trace(X, Y).nodes
    cov = 0.7 * relu_by_hand(X.numpy(), depth, 1.8, 0.3) + 0.05 * np.eye(N)
    expected = stats.multivariate_t(np.full(N, float(Y.mean())), 1.5 * cov, df=4.0).logpdf(Y.numpy())
    assert float(nodes["y"]["fn"].log_prob(Y)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "settings", [{"activation": "erf"}, {"residual": True}, {"activation": LeakyReLU(0.2), "depth": 2}]
)
def test_it_is_the_process_with_that_kernel(settings):
    model = ScaleMixtureNNGP(scale_prior=BurrXII(2.0, 2.0), **settings)
    kernel = NNGPKernel(readout=False, **settings).double()
    kernel.weight_var, kernel.bias_var = t(1.8), t(0.3)
    scaled = gpytorch.kernels.ScaleKernel(kernel).double().requires_grad_(False)
    scaled.outputscale = t(0.7)
    process = ScaleMixtureProcess(kernel=scaled, scale_prior=BurrXII(2.0, 2.0), noise_var=0.05)
    alike(model.condition(X, Y, SITES).predictive(NEW), process.condition(X, Y, {}).predictive(NEW))


def test_default_priors_are_the_documented_ones():
    """By scipy: medians 2, 0.1, the variance of y and, above the least noise, a tenth of it; log-normal in any unit."""
    for unit in (1.0, 1e3):
        nodes = pyro.poutine.trace(pyro.poutine.condition(ScaleMixtureNNGP(), SITES)).get_trace(X, unit * Y).nodes
        var = float((unit * Y).var())
        laws = {
            "kernel.base_kernel.weight_var": stats.lognorm(0.5, scale=2.0),
            "kernel.base_kernel.bias_var": stats.lognorm(1.5, scale=0.1),
            "kernel.outputscale": stats.lognorm(1.5, scale=var),
            "noise_var": stats.lognorm(1.5, loc=2.0**-26 * var, scale=0.1 * var),
        }
        assert {name for name, node in nodes.items() if node["type"] == "sample"} == {*laws, "y"}
        for name, law in laws.items():
            log_prob = nodes[name]["fn"].log_prob(SITES[name])
            assert float(log_prob) == pytest.approx(law.logpdf(float(SITES[name])), rel=1e-6), name


def test_the_units_of_y_do_not_matter():
    """Every prior moves along, so a fit in other units is the same fit: to 1e-4 of where L-BFGS stops."""
    one, other = (
        infer(ScaleMixtureNNGP(depth=2), (X, unit * Y), MAP(restarts=1), seed=0).sites() for unit in (1.0, 1e3)
    )
    torch.testing.assert_close(other["noise_var"] / 1e6, one["noise_var"], rtol=1e-3, atol=0)
    weights = "kernel.base_kernel.weight_var"
    torch.testing.assert_close(other[weights], one[weights], rtol=1e-3, atol=0)


def test_a_fit_predicts_what_a_network_can_learn():
    """Thirty rows of a sine: within 0.1 between them, and far from them less certain."""
    x = torch.linspace(-2, 2, 30).double()[:, None]
    y = (2 * x[:, 0]).sin()
    model = ScaleMixtureNNGP(depth=2, scale_prior=dist.HalfCauchy(1.0))
    fit = infer(model, (x, y), MAP(restarts=2), seed=0)
    between = torch.linspace(-1.9, 1.9, 17).double()[:, None]
    found = model.predictive(between, fit.sites(), x, y)
    assert (found.mean - (2 * between[:, 0]).sin()).abs().max() < 0.1
    assert model.predictive(t([[10.0]]), fit.sites(), x, y).stddev > 10 * found.stddev.max()


def test_a_fit_is_saved_and_read_again(tmp_path):
    model = ScaleMixtureNNGP(depth=1, activation="erf", scale_prior=BurrXII(2.0, 2.0), inducing=X[:6])
    fit = infer(model, (X, Y), MAP(restarts=1, max_steps=5), seed=0, throw=False)
    fit.save(tmp_path / "fit")
    again = load_posterior(tmp_path / "fit")
    for name, value in fit.sites().items():
        assert torch.equal(again.sites()[name], value)
    ours, theirs = (p.program.predictive(NEW, p.sites(), X, Y) for p in (fit, again))
    assert torch.equal(ours.log_prob(t(0.3)), theirs.log_prob(t(0.3)))


def test_a_prior_of_the_users_asks_for_the_program(tmp_path):
    def scale_prior():
        return dist.LogNormal(pyro.sample("centre", dist.Normal(0.0, 1.0)), 0.5)

    model = ScaleMixtureNNGP(depth=1, scale_prior=scale_prior)
    fit = infer(model, (X, Y), MAP(restarts=1, max_steps=5), seed=0, throw=False)
    assert "centre" in fit.sites()
    fit.save(tmp_path / "fit")
    with pytest.raises(
        ProgramError, match=r"a ScaleMixtureNNGP with your own scale_prior=.*scale_prior, which no data file"
    ):
        load_posterior(tmp_path / "fit")
    assert load_posterior(tmp_path / "fit", program=model).objective == fit.objective


def test_single_precision_runs_and_stays():
    """Of data in float32 everything is, to 1e-3 of what float64 gives."""
    model, sites = ScaleMixtureNNGP(scale_prior=dist.HalfCauchy(1.0)), {n: v.float() for n, v in SITES.items()}
    single = model.predictive(NEW.float(), sites, X.float(), Y.float())
    double = model.predictive(NEW, SITES, X, Y)
    assert single.mean.dtype == torch.float32
    torch.testing.assert_close(single.mean.double(), double.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(single.variance.double(), double.variance, rtol=1e-3, atol=0)


def test_importance_sampling_checks_the_evidence_where_rows_are_few():
    """Null: the mean of 40 estimates is the integral, four standard errors (false alarm 3e-4); six rows of data.

    With all of a larger set in units five times as large no draw counts: k tells, and the quadrature needs no draws.
    """
    prior, process = BurrXII(t(2.0), t(2.0)), ScaleMixtureNNGP(scale_prior=BurrXII(2.0, 2.0)).process(X, Y, SITES)
    quadratic = process.condition(X[:6], Y[:6]).solver.quadratic
    exact = process.joint(X[:6]).log_prob(Y[:6])
    gaussian = ScaleMixtureNNGP(scale_prior=None).process(X, Y, SITES).joint(X[:6]).log_prob(Y[:6]) + 0.5 * quadratic
    found = [importance_sample(prior, 6.0, quadratic, 2000, seed=seed) for seed in range(40)]
    ratios = np.array([float((gaussian + one.log_integral - exact).exp()) for one in found])
    assert abs(ratios.mean() - 1) < 4 * ratios.std(ddof=1) / math.sqrt(40)
    x = normal(200, 3, seed=5)
    y = 5 * x.sin().sum(1)
    many = ScaleMixtureNNGP(scale_prior=None).process(x, y, SITES).condition(x, y)
    worse = importance_sample(prior, 200.0, many.solver.quadratic, seed=0)
    assert worse.ess < 2
    assert worse.pareto_k > 0.7


def test_what_is_refused():
    with pytest.raises(ProgramError, match="depth: expected at least 1 hidden layer, got 0"):
        ScaleMixtureNNGP(depth=0)
    with pytest.raises(ProgramError, match="scale_prior: expected a distribution of a positive number, got Normal"):
        ScaleMixtureNNGP(scale_prior=dist.Normal(0.0, 1.0))
    with pytest.raises(DataError, match="got a constant column"):
        infer(ScaleMixtureNNGP(), (X, torch.zeros(N).double()), MAP(), seed=0)
    with pytest.raises(ProgramError, match=r"expected a value for the site 'kernel.outputscale', got \['noise_var'\]"):
        ScaleMixtureNNGP().condition(X, Y, {"noise_var": t(0.1)})
