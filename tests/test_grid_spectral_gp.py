"""The model of a sparse sum of spectral kernels: its law, its predictions, what it reports and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from probmix.errors import DataError, MethodError, ProgramError
from probmix.inference import MAP, SCA, infer
from probmix.models import GaussianMixture, GridSpectralGP
from probmix.noise_variance import evar
from probmix.posterior import load_posterior
from probmix.spectral_grid import SpectralGrid, spectral_grid

pytestmark = pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")

X = torch.arange(12.0, dtype=torch.float64)[:, None]
Y = 5 + (2 * math.pi * 0.2 * X[:, 0]).sin() + 0.1 * torch.as_tensor(np.random.default_rng(0).normal(size=12))
SITES = {
    "weights": torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64),
    "noise_var": torch.tensor(0.3, dtype=torch.float64),
}
SMALL = GridSpectralGP(num_points=3)


def covariance(x1, x2, weights=(0.5, 0.0, 2.0)) -> np.ndarray:
    tau = (x1 - x2.T).numpy()
    waves = [np.cos(2 * np.pi * mu * tau) for mu in (0.0, 0.25, 0.5)]
    return np.exp(-2 * np.pi**2 * 1e-6 * tau**2) * sum(w * c for w, c in zip(weights, waves, strict=True))


def test_the_program_is_scipys_normal():
    trace = pyro.poutine.trace(pyro.poutine.condition(SMALL, SITES)).get_trace(X, Y)
    ours = trace.nodes["y"]["fn"].log_prob(Y)
    theirs = stats.multivariate_normal(np.full(12, float(Y.mean())), covariance(X, X) + 0.3 * np.eye(12)).logpdf(Y)
    assert float(ours) == pytest.approx(theirs, rel=1e-10)
    assert set(pyro.poutine.trace(SMALL).get_trace(X, Y).stochastic_nodes) == set(SITES)


@pytest.mark.parametrize(("centre", "mean"), [(True, float(Y.mean())), (False, 0.0)])
def test_predictions_are_the_textbooks(centre, mean):
    new = torch.tensor([[12.0], [3.5]], dtype=torch.float64)
    model = GridSpectralGP(num_points=3, centre=centre)
    ours = model.predictive(new, SITES, X, Y)
    solved = np.linalg.solve(covariance(X, X) + 0.3 * np.eye(12), np.c_[(Y - mean).numpy(), covariance(X, new)])
    np.testing.assert_allclose(ours.mean, mean + covariance(new, X) @ solved[:, 0], rtol=1e-10)
    variance = 2.5 + 0.3 - np.diag(covariance(new, X) @ solved[:, 1:])
    np.testing.assert_allclose(ours.variance, variance, rtol=1e-9)
    np.testing.assert_allclose(model.predictive(new, SITES, X, Y, noise=False).variance, variance - 0.3, rtol=1e-9)


def test_at_frequency_zero_it_is_scikit_learns():
    grid = SpectralGrid(torch.zeros(1, 1), torch.tensor([[1 / (2 * math.pi * 1.7)]], dtype=torch.float64))
    model = GridSpectralGP(grid=grid, noise_var=0.2)
    ours = model.predictive(X + 0.3, {"weights": torch.ones(1, dtype=torch.float64)}, X, Y)
    theirs = GaussianProcessRegressor(RBF(1.7), alpha=0.2, optimizer=None).fit(X, Y - Y.mean())
    mean, std = theirs.predict(X + 0.3, return_std=True)
    np.testing.assert_allclose(ours.mean, mean + float(Y.mean()), rtol=1e-6)  # 1 / 1.7 twice in floating point
    np.testing.assert_allclose(ours.variance, std**2 + 0.2, rtol=1e-6)


def test_draws_are_averaged():
    """Mean and variance of the mixture of two, by the law of total variance."""
    sites = {name: torch.stack([value, 2 * value]) for name, value in SITES.items()}
    each = [SMALL.predictive(X[:4] + 0.5, {n: v[i] for n, v in sites.items()}, X, Y) for i in range(2)]
    both = SMALL.predictive(X[:4] + 0.5, sites, X, Y)
    means, variances = (torch.stack([getattr(one, part) for one in each]) for part in ("mean", "variance"))
    torch.testing.assert_close(both.mean, means.mean(0))
    torch.testing.assert_close(both.variance, variances.mean(0) + means.var(0, correction=0))


def test_the_noise_is_learnt_estimated_or_given():
    assert set(infer(SMALL, (X, Y), SCA(), seed=0).sites()) == {"weights", "noise_var"}
    for noise_var, expected in (("evar", float(evar(Y))), (0.25, 0.25)):
        model = GridSpectralGP(num_points=3, noise_var=noise_var)
        fit = infer(model, (X, Y), SCA(), seed=0)
        assert set(fit.sites()) == {"weights"}
        assert float(model.condition(X, Y, fit.sites()).noise_var) == pytest.approx(expected)
        assert float(model.covariance_sum(X, Y).noise_var) == pytest.approx(expected)


def test_planted_frequencies_are_reported():
    """Two waves of 200 points in noise of a tenth of their variance: both on the grid, largest first."""
    x = torch.arange(200.0, dtype=torch.float64)[:, None]
    noise = 0.3 * torch.as_tensor(np.random.default_rng(1).normal(size=200))
    y = 2 * (2 * math.pi * 0.11 * x[:, 0]).sin() + (2 * math.pi * 0.3 * x[:, 0]).cos() + noise
    model = GridSpectralGP(num_points=101)
    fit = infer(model, (x, y), SCA(), seed=0)
    found = model.components(x, fit.sites())
    assert found.frequencies[:2, 0].tolist() == pytest.approx([0.11, 0.3], abs=1e-9)
    assert (found.weights.diff() <= 0).all()
    assert (found.weights > 1e-4 * fit.sites()["weights"].max()).all()
    assert int((fit.sites()["weights"] > 1e-4 * found.weights[0]).sum()) == len(found.places)
    assert found.weights[:2].sum() > 0.9 * fit.sites()["weights"].sum()
    assert torch.equal(found.weights, fit.sites()["weights"][found.places])


def test_map_knows_the_priors():
    """Its log joint is the likelihood's and those of the two priors; at the same weights."""
    fit = infer(SMALL, (X, Y), MAP(restarts=2), seed=0)
    sites, var = fit.sites(), float(((Y - Y.mean()) ** 2).mean())
    law = stats.multivariate_normal(
        np.full(12, float(Y.mean())),
        covariance(X, X, sites["weights"].numpy()) + float(sites["noise_var"]) * np.eye(12),
    )
    prior = stats.expon(scale=var).logpdf(sites["weights"].numpy()).sum()
    noise = stats.lognorm(1.5, scale=0.1 * var).logpdf(float(sites["noise_var"]))
    assert fit.objective == pytest.approx(law.logpdf(Y) + prior + noise, rel=1e-8)
    assert infer(SMALL, (X, Y), SCA(), seed=0).objective >= law.logpdf(Y)


def test_float32_stays_float32():
    x, y = X.float(), Y.float()
    fit = infer(SMALL, (x, y), SCA(tolerance=1e-5), seed=0)
    assert {value.dtype for value in fit.sites().values()} == {torch.float32}
    assert SMALL.predictive(x, fit.sites(), x, y).mean.dtype == torch.float32
    precise = infer(SMALL, (X, Y), SCA(tolerance=1e-5), seed=0)
    assert fit.objective == pytest.approx(precise.objective, abs=1e-2)


def test_saved_and_read_again(tmp_path):
    fit = infer(SMALL, (X, Y), SCA(), seed=0)
    fit.save(tmp_path / "fit.safetensors")
    again = load_posterior(tmp_path / "fit.safetensors")
    assert again.objective == fit.objective
    assert again.program.num_points == 3
    assert torch.equal(again.sites()["weights"], fit.sites()["weights"])


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:, 0], Y, r"rows x of shape \(n, d\) .* got \(12,\) and \(12,\)\. A single input column is x\[:, None\]"),
        (X, Y[:, None], r"got \(12, 1\) and \(12, 1\).*one of outputs y\[:, 0\]"),
        (X[:5], Y, r"got \(5, 1\) and \(12,\)"),
        (X[:2], Y[:2], r"n at least 3, got \(2, 1\)"),
        (X, torch.full_like(Y, 3.0), r"y: expected observations that differ, got 12 equal ones"),
        (torch.ones_like(X), Y, r"x: expected rows that differ, got 12 equal ones"),
        (X, torch.where(Y > 5.5, torch.nan, Y), r"y: expected finite numbers, got \d of 12 rows with NaN"),
        (X.float(), Y, r"x and y of one dtype"),
    ],
)
def test_wrong_data(x, y, message):
    with pytest.raises(DataError, match=message):
        infer(SMALL, (x, y), SCA(), seed=0)


def test_a_grid_over_other_columns():
    with pytest.raises(DataError, match=r"x: expected 2 columns, as the grid, got 1"):
        infer(GridSpectralGP(grid=spectral_grid("axes", 2, 3)), (X, Y), SCA(), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_var": 0.0}, r"noise_var: expected None, 'evar' or a positive number, got 0.0"),
        ({"noise_var": "guess"}, r"got 'guess'"),
        ({"grid": "cubic"}, r"got 'cubic'"),
        ({"frequency_range": (0.2, 0.1)}, r"0 <= lowest < highest"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ProgramError, match=message):
        GridSpectralGP(**settings)


def test_a_program_that_is_not_linear_in_weights():
    def program(y):
        pyro.sample("y", dist.Normal(pyro.sample("loc", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    with pytest.raises(MethodError, match=r"a sum of kernels with unknown weights, got function.*GridSpectralGP"):
        infer(program, torch.tensor(1.0), SCA(), seed=0)
    with pytest.raises(MethodError, match=r"got GaussianMixture"):
        infer(GaussianMixture(2), X, SCA(), seed=0)
