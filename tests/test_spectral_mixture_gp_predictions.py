"""What spectral-mixture processes predict, of which parts, and their spectra: by GPyTorch, scipy and by hand."""

from __future__ import annotations

import math
from typing import Any

import gpytorch
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from process_cases import alike, t
from scipy import integrate, stats
from spectral_mixture_cases import (
    HOLED,
    LATTICE,
    LAYOUTS,
    MONTHS,
    PLANE,
    SCATTERED,
    N,
    Q,
    beside,
    components,
    covariance,
    holes_are_meant,
    noise_of,
    observations,
    sites_of,
)
from torch import Tensor

from probmix.errors import DataError, ProgramError
from probmix.log_density import LogDensity
from probmix.models import SpectralMixtureGP, spectral_mixture_gp
from probmix.process_solvers import DenseSolver
from probmix.toeplitz_solver import ToeplitzSolver

# --- predictions ------------------------------------------------------------------------------------------------------


def gpytorchs_kernel(model: SpectralMixtureGP, sites: dict[str, Tensor]) -> gpytorch.kernels.Kernel:
    """Of GPyTorch's envelopes and cosines, whose period is half a cycle."""
    frequencies, bandwidths = sites["kernel.frequencies"], sites["kernel.log_bandwidths"].exp()
    if not model.product:
        frequencies, bandwidths = frequencies.T, bandwidths.T

    def term(d: int, q: int) -> gpytorch.kernels.Kernel:
        plain = gpytorch.kernels.RBFKernel if model.spectrum == "gaussian" else gpytorch.kernels.MaternKernel
        envelope, cosine = plain(active_dims=d).double(), gpytorch.kernels.CosineKernel(active_dims=d).double()
        envelope.lengthscale, cosine.period_length = 1 / (2 * math.pi * bandwidths[d, q]), 0.5 / frequencies[d, q]
        return envelope * cosine

    def weighted(kernel: gpytorch.kernels.Kernel, weight: Tensor) -> gpytorch.kernels.Kernel:
        scaled = gpytorch.kernels.ScaleKernel(kernel).double()
        scaled.outputscale = weight
        return scaled

    weights, inputs = sites["kernel.log_weights"].exp(), range(len(frequencies))
    if model.product:
        factors = [
            gpytorch.kernels.AdditiveKernel(*(weighted(term(d, q), weights[d, q]) for q in range(Q))) for d in inputs
        ]
        return gpytorch.kernels.ProductKernel(*factors)
    parts = (weighted(gpytorch.kernels.ProductKernel(*(term(d, q) for d in inputs)), weights[q]) for q in range(Q))
    return gpytorch.kernels.AdditiveKernel(*parts)


class Exact(gpytorch.models.ExactGP):
    def __init__(self, model: SpectralMixtureGP, sites: dict[str, Tensor], x: Tensor, y: Tensor) -> None:
        likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
        likelihood.noise = t(noise_of(model, sites))
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = gpytorch.means.ConstantMean().double(), gpytorchs_kernel(model, sites)
        self.mean_module.constant = y.mean()

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@holes_are_meant
@pytest.mark.filterwarnings("ignore::gpytorch.utils.warnings.GPInputWarning")
@pytest.mark.parametrize("name", list(LAYOUTS))
def test_predictions_are_gpytorchs_and_numpys(name):
    """1e-6 from GPyTorch's, which adds 1e-8 to factors of a product that are singular; 1e-10 from NumPy's solution."""
    settings, x, _ = LAYOUTS[name]
    model, y, new = SpectralMixtureGP(Q, **settings), observations(len(x)), beside(x)
    sites = sites_of(model, x)
    theirs = Exact(model, sites, x, y).eval()
    cross = components(model, sites, new, x).sum(0)
    solved = np.linalg.solve(covariance(model, sites, x), np.c_[(y - y.mean()).numpy(), cross.T])
    by_hand = components(model, sites, new, new).sum(0) - cross @ solved[:, 1:]
    with torch.no_grad():
        of_function, of_data = theirs(new), theirs.likelihood.eval()(theirs(new))
    for noise, expected in ((True, of_data), (False, of_function)):
        found = model.predictive(new, sites, x, y, noise=noise)
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.variance, expected.variance, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.mean, float(y.mean()) + cross @ solved[:, 0], rtol=1e-10)
        cov = t(by_hand) + noise * noise_of(model, sites) * torch.eye(len(new)).double()
        torch.testing.assert_close(found.variance, cov.diagonal(), rtol=1e-10, atol=0)
        joint, at = model.condition(x, y, sites).joint(new, noise=noise), found.mean + 0.5
        torch.testing.assert_close(joint.log_prob(at), dist.MultivariateNormal(found.mean, cov).log_prob(at))


@pytest.mark.parametrize("name", ["scattered", "grid, any order"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_over_draws_the_prediction_is_a_mixture(name, outputs):
    settings, x, _ = LAYOUTS[name]
    model, y, new = SpectralMixtureGP(Q, **settings), observations(len(x), outputs), beside(x)
    draws = sites_of(model, x, 3)
    averaged = model.predictive(new, draws, x, y)
    singles = [model.predictive(new, {site: value[i] for site, value in draws.items()}, x, y) for i in range(3)]
    points = torch.linspace(0, 6, 7).double().reshape(-1, *[1] * averaged.mean.dim())
    assert averaged.batch_shape == (len(new),) if outputs == 1 else (len(new), 2)
    expected = torch.stack([one.log_prob(points) for one in singles]).logsumexp(0) - math.log(3)
    torch.testing.assert_close(averaged.log_prob(points), expected, rtol=1e-9, atol=1e-9)
    chains = {site: torch.stack([value, value]) for site, value in draws.items()}
    alike(model.predictive(new, chains, x, y), averaged)


@holes_are_meant
@pytest.mark.parametrize("name", ["even", "with holes", "scattered"])
def test_leave_one_out_is_a_fit_to_the_others(name):
    """About the mean of all, which stays."""
    settings, x, _ = LAYOUTS[name]
    model, y = SpectralMixtureGP(Q, **settings), observations(len(x))
    sites = sites_of(model, x)
    found, cov, mean = model.condition(x, y, sites).leave_one_out(y), covariance(model, sites, x), float(y.mean())
    for i in range(0, len(x), 5):
        others = np.arange(len(x)) != i
        solved = np.linalg.solve(cov[others][:, others], cov[others, i])
        expected = stats.norm(mean + solved @ (y.numpy()[others] - mean), np.sqrt(cov[i, i] - solved @ cov[others, i]))
        assert float(found.log_prob[i]) == pytest.approx(expected.logpdf(float(y[i])), rel=1e-8)
        assert float(found.predictive.mean[i]) == pytest.approx(expected.mean(), rel=1e-8)


@pytest.mark.parametrize("name", ["grid, any order", "even, any order"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_on_a_grid_predictions_are_those_of_a_dense_matrix(name, outputs, monkeypatch):
    """Of long series, too; such a process takes no more data and says so."""
    monkeypatch.setattr(spectral_mixture_gp, "_LONG", N)
    settings, x, _ = LAYOUTS[name]
    grid, dense = (SpectralMixtureGP(Q, structure=how, **settings) for how in ("grid", "dense"))
    y, new, draws = observations(len(x), outputs), beside(x), sites_of(grid, x, 2)
    one, two = (model.condition(x, y, draws) for model in (grid, dense))
    assert type(one.solver) is not type(two.solver)
    alike(one.predictive(new), two.predictive(new), 1e-8)
    torch.testing.assert_close(one.solver.quadratic, two.solver.quadratic, rtol=1e-8, atol=0)
    two.leave_one_out(y)
    with pytest.raises(ProgramError, match=r"saw them on a grid. Condition once, on all data together"):
        one.condition(new, y[:5])
    with pytest.raises(ProgramError, match="all rows in full, neither on a grid nor through inducing points"):
        one.leave_one_out(y)


def test_a_short_series_takes_more_data():
    """Even ones of up to 1,999 rows: as if all had been there at once, to 1e-9."""
    model, y = SpectralMixtureGP(Q), observations(N)
    sites = sites_of(model, MONTHS)
    process = model.process(MONTHS, y, sites)
    step_by_step = process.condition(MONTHS[:20], y[:20]).condition(MONTHS[20:], y[20:])
    alike(step_by_step.predictive(beside(MONTHS)), model.predictive(beside(MONTHS), sites, MONTHS, y))
    x, y = torch.arange(2000.0).double()[:, None], observations(2000)
    kinds = [type(model.condition(x[:n], y[:n], sites_of(model, x)).solver) for n in (1999, 2000)]
    assert kinds == [DenseSolver, ToeplitzSolver]


@pytest.mark.parametrize("settings", [{}, {"product": True, "spectrum": "student_t"}])
def test_through_inducing_points(settings):
    """The bound is below the evidence, rises with the points, and with all rows is the evidence, to 1e-5 (jitter)."""
    x, y = (LATTICE if settings else MONTHS), observations(N, 2)
    bounds = []
    for inducing in (x[::4], x[::2], x, None):
        model = SpectralMixtureGP(Q, inducing=inducing, **settings)
        density = LogDensity.trace(model, (x, y))
        assert density.batching == "vmap"
        bounds.append(float(density.log_joint(sites_of(model, x))))
    assert bounds[0] < bounds[1] < bounds[2] + 1e-9
    assert bounds[2] == pytest.approx(bounds[3], abs=1e-5)
    through, exact = SpectralMixtureGP(Q, inducing=x, **settings), SpectralMixtureGP(Q, structure="dense", **settings)
    laws = [model.predictive(beside(x), sites_of(model, x), x, y) for model in (through, exact)]
    alike(*laws, 1e-5)


# --- parts ------------------------------------------------------------------------------------------------------------

EVERYTHING = {"slow": (0.0, 4.0), "middle": (4.0, 7.0), "fast": (7.0, math.inf)}
PARTED = {
    "even": MONTHS,
    "with holes": MONTHS[HOLED],
    "scattered years": 2 * SCATTERED.exp(),
    "two inputs": torch.cat([2 * SCATTERED.exp(), PLANE[:, :1]], -1),
}


def parted(x: Tensor, *batch: int, **settings: Any) -> tuple[SpectralMixtureGP, Tensor, dict[str, Tensor]]:
    """A model whose first centres are at 2, 5 and 6: none in the third band, two in the second."""
    model = SpectralMixtureGP(Q, spectrum="student_t", **settings)
    sites = sites_of(model, x, *batch)
    sites["kernel.frequencies"][..., 0] = t([2.0, 5.0, 6.0])
    return model, observations(len(x)), sites


@holes_are_meant
@pytest.mark.parametrize("name", PARTED)
def test_parts_are_the_joint_normals(name):
    """Function and data are jointly normal; each band's row of the joint covariance, conditioned by NumPy.

    1e-8: a condition number of some hundreds. The means of all bands and of the data are the function's mean; the
    covariances of bands, by hand, make its variance of their variances.
    """
    x = PARTED[name]
    model, y, sites = parted(x)
    new = beside(x)
    parts = model.decompose(new, sites, x, y, EVERYTHING)
    solve = np.linalg.solve(covariance(model, sites, x), np.eye(len(x)))
    cross, own = components(model, sites, new, x), components(model, sites, new, new)
    residuals, between = (y - y.mean()).numpy(), np.zeros(len(new))
    for band, chosen in (("slow", [0]), ("middle", [1, 2])):
        k = cross[chosen].sum(0)
        np.testing.assert_allclose(parts[band].mean, k @ solve @ residuals, rtol=1e-8, atol=1e-8)
        expected = np.diag(own[chosen].sum(0) - k @ solve @ k.T)
        np.testing.assert_allclose(parts[band].variance, expected, rtol=1e-8, atol=1e-8)
    between = -np.diag(cross[0] @ solve @ (cross[1] + cross[2]).T)
    whole = model.predictive(new, sites, x, y, noise=False)
    torch.testing.assert_close(sum(part.mean for part in parts.values()) + y.mean(), whole.mean)
    torch.testing.assert_close(sum(part.variance for part in parts.values()) + 2 * t(between), whole.variance)
    assert (parts["fast"].mean == 0).all()
    assert (parts["fast"].stddev < 1e-100).all()


def test_one_band_of_everything_is_the_function():
    """Less the mean of y, with the function's variance; a centre on a border belongs to the band above it."""
    model, y, sites = parted(MONTHS)
    new, whole = beside(MONTHS), model.predictive(beside(MONTHS), sites, MONTHS, y, noise=False)
    alike(
        model.decompose(new, sites, MONTHS, y, {"all": (0.0, math.inf)})["all"],
        dist.Normal(whole.mean - y.mean(), whole.stddev),
    )
    borders = model.decompose(new, sites, MONTHS, y, {"below": (0.0, 5.0), "above": (5.0, 9.0), "same": (4.9, 9.0)})
    alike(borders["above"], borders["same"])
    torch.testing.assert_close(borders["below"].mean + borders["above"].mean + y.mean(), whole.mean)


@pytest.mark.parametrize("x", PARTED.values(), ids=PARTED)
@holes_are_meant
def test_parts_of_draws_are_mixtures(x):
    model, y, draws = parted(x, 3)
    new, points = beside(x), torch.linspace(-3, 3, 7).double()[:, None]
    found = model.decompose(new, draws, x, y, EVERYTHING)
    chains = {site: torch.stack([value, value]) for site, value in draws.items()}
    again = model.decompose(new, chains, x, y, EVERYTHING)
    for band in ("slow", "middle"):
        singles = [
            model.decompose(new, {site: value[i] for site, value in draws.items()}, x, y, EVERYTHING)[band]
            for i in range(3)
        ]
        expected = torch.stack([one.log_prob(points) for one in singles]).logsumexp(0) - math.log(3)
        torch.testing.assert_close(found[band].log_prob(points), expected, rtol=1e-8, atol=1e-8)
        alike(again[band], found[band])


def test_parts_by_blocks_of_rows_by_lags_and_through_points(monkeypatch):
    """The same answer from two rows at a time; a long even series by its lags; all rows as inducing points (jitter)."""
    model, y, draws = parted(MONTHS, 2)
    arguments = beside(MONTHS), draws, MONTHS, y, EVERYTHING
    expected = model.decompose(*arguments)

    def same(found: dict[str, dist.TorchDistribution], tolerance: float) -> None:
        for band in ("slow", "middle"):
            alike(found[band], expected[band], tolerance)

    same(parted(MONTHS, inducing=MONTHS)[0].decompose(*arguments), 1e-5)
    monkeypatch.setattr(spectral_mixture_gp, "_LONG", N)
    assert isinstance(model.condition(MONTHS, y, draws).solver, ToeplitzSolver)
    same(model.decompose(*arguments), 1e-8)
    monkeypatch.setattr(spectral_mixture_gp, "_AT_ONCE", 2 * N * 2 * 3 * Q)
    same(model.decompose(*arguments), 1e-8)


def test_what_has_no_parts():
    model, y, sites = parted(MONTHS)
    product = SpectralMixtureGP(Q, product=True)
    message = r"decompose: expected a sum of components, got a product of sums. Set product=False"
    with pytest.raises(ProgramError, match=message):
        product.decompose(LATTICE, sites_of(product, LATTICE), LATTICE, observations(N), EVERYTHING)
    with pytest.raises(DataError, match=r"one output, y of shape \(n,\), got \(24, 2\). Pass one column at a time"):
        model.decompose(MONTHS, sites, MONTHS, observations(N, 2), EVERYTHING)
    for bands in ({}, {"a": (1.0, 1.0)}, {"a": (0.0, 1.0), "b": (2.0, 1.0)}):
        with pytest.raises(DataError, match=r"bands: expected at least one name with a lowest frequency below the"):
            model.decompose(MONTHS, sites, MONTHS, y, bands)
    with pytest.raises(ProgramError, match=r"expected values for the sites \['noise_var'\], got.*Pass sites of a fit"):
        model.decompose(MONTHS, {k: v for k, v in sites.items() if k != "noise_var"}, MONTHS, y, EVERYTHING)


# --- the spectrum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spectrum", ["gaussian", "student_t"])
def test_spectra_are_scipys_and_have_the_area_of_the_weights(spectrum):
    """Of a sum: every component counts at its frequency along the input that is asked for, at both signs."""
    model = SpectralMixtureGP(Q, spectrum=spectrum)
    for x in (SCATTERED, PLANE):
        sites = sites_of(model, x, 2)
        for column in range(x.shape[1]):
            at = torch.linspace(0, 8, 50).double()
            found = model.spectrum_at(at, sites, x, column=column)
            assert found.shape == (2, 50)
            weights, bandwidths = sites["kernel.log_weights"].exp(), sites["kernel.log_bandwidths"].exp()
            law = stats.norm if spectrum == "gaussian" else stats.t(5)
            for i in range(2):
                centres, widths = (
                    value[i, :, column, None].numpy() for value in (sites["kernel.frequencies"], bandwidths)
                )
                sides = [law.pdf((at.numpy() - side) / widths) / widths for side in (centres, -centres)]
                expected = (weights[i, :, None].numpy() * sum(sides)).sum(0)
                np.testing.assert_allclose(found[i], expected, rtol=1e-9, atol=1e-12)
            one = {site: value[0] for site, value in sites.items()}
            area, _ = integrate.quad(
                lambda f, one=one, x=x, column=column: float(model.spectrum_at(t([f]), one, x, column=column)),
                0, np.inf, limit=400,
            )  # fmt: skip
            assert area == pytest.approx(float(weights[0].sum()), rel=1e-6)


def test_of_a_product_the_other_inputs_are_at_lag_zero():
    """The area is the variance of the function along every input: the product of the sums of weights."""
    model = SpectralMixtureGP(Q, product=True)
    sites = sites_of(model, PLANE)
    total = float(sites["kernel.log_weights"].exp().sum(-1).prod())
    fine = torch.linspace(0, 40, 20_001).double()  # errors of the trapezoid rule fall with every digit of its step
    for column in (0, 1):
        density = model.spectrum_at(fine, sites, PLANE, column=column)
        assert float(torch.trapezoid(density, fine)) == pytest.approx(total, rel=1e-8)
    assert not torch.allclose(density, model.spectrum_at(fine, sites, PLANE, column=0))
