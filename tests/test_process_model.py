"""Laws of every process model: the program is the process, a batch is its members, every method runs."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import gpytorch
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from process_cases import alike, normal, t
from scipy import stats
from torch import Tensor

from probmix.burr import BurrXII
from probmix.errors import DataError, ProgramError
from probmix.inference import MAP, NUTS, SVI, ChEES, Laplace, infer
from probmix.log_density import LogDensity
from probmix.models import ScaleMixtureNNGP, ScaleMixtureProcess, StudentTProcess
from probmix.models.process_model import AbstractProcessModel
from probmix.nngp import NNGPKernel
from probmix.posterior import AbstractPosterior, load_posterior

pytestmark = pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")

N = 20
X, NEW = normal(N, 2), normal(3, 2, seed=1)
Y = {1: X[:, 0].sin() + 0.3 * normal(N, seed=2), 2: X.sin() + 0.3 * normal(N, 2, seed=3)}


def rbf() -> gpytorch.kernels.Kernel:
    """In single precision, as GPyTorch makes it."""
    base = gpytorch.kernels.RBFKernel(ard_num_dims=2, lengthscale_prior=gpytorch.priors.GammaPrior(3.0, 2.0))
    return gpytorch.kernels.ScaleKernel(base, outputscale_prior=gpytorch.priors.GammaPrior(2.0, 1.0))


def burr() -> dist.TorchDistribution:
    return BurrXII(pyro.sample("c", dist.LogNormal(0.5, 0.5)), 2.0)


GAMMA = dist.Gamma(2.0, 0.1)
MODELS: dict[str, AbstractProcessModel] = {
    "Student-t": StudentTProcess(kernel=rbf(), df=5.0),
    "Student-t, df unknown": StudentTProcess(kernel=rbf(), df=GAMMA, noise_var=0.1),
    "Student-t through points": StudentTProcess(kernel=rbf(), inducing=X[:7]),
    "Gaussian": ScaleMixtureProcess(kernel=rbf(), scale_prior=None, noise_var=dist.HalfNormal(1.0)),
    "Gaussian about a parabola": ScaleMixtureProcess(kernel=rbf(), scale_prior=None, trend=2),
    "half-Cauchy": ScaleMixtureProcess(kernel=rbf(), scale_prior=dist.HalfCauchy(1.0)),
    "Burr, c unknown": ScaleMixtureProcess(kernel=rbf(), scale_prior=burr),
    "log-normal through points": ScaleMixtureProcess(
        kernel=rbf(), scale_prior=dist.LogNormal(0.0, 1.0), inducing=X[:7]
    ),
    "explicit": ScaleMixtureProcess(kernel=rbf(), scale_prior=dist.Pareto(0.5, 2.0), integrate_scale=False),
    "explicit through points": StudentTProcess(kernel=rbf(), inducing=X[:7], integrate_scale=False),
    "NNGP": ScaleMixtureNNGP(depth=2, activation="erf"),
    "NNGP, half-Cauchy, through points": ScaleMixtureNNGP(depth=1, scale_prior=dist.HalfCauchy(1.0), inducing=X[:7]),
}
every_model = pytest.mark.parametrize("name", MODELS)
outputs_too = pytest.mark.parametrize("outputs", [1, 2])

#: Hyperparameters of three draws.
VALUES = {
    "kernel.outputscale": t([0.5, 1.0, 2.0]),
    "kernel.base_kernel.lengthscale": t([[[0.7, 1.0]], [[1.0, 2.0]], [[1.5, 0.6]]]),
    "kernel.base_kernel.weight_var": t([1.5, 2.0, 3.0])[:, None, None],
    "kernel.base_kernel.bias_var": t([0.05, 0.2, 0.5])[:, None, None],
    "noise_var": t([0.05, 0.1, 0.4]),
    "df": t([2.0, 5.0, 30.0]),
    "c": t([0.8, 1.5, 3.0]),
    "scale_var": t([0.6, 1.0, 2.0]),
}


@cache
def density(name: str, outputs: int) -> LogDensity:
    return LogDensity.trace(MODELS[name], (X, Y[outputs]))


@cache
def fitted(name: str, outputs: int, method: str) -> AbstractPosterior:
    return infer(MODELS[name], (X, Y[outputs]), METHODS[method], seed=0, throw=False)


VALUES_OF = [{site: value[i] for site, value in VALUES.items()} for i in range(3)]


def traced(model: AbstractProcessModel, outputs: int, draw: int) -> pyro.poutine.Trace:
    trace = pyro.poutine.trace(pyro.poutine.condition(model, VALUES_OF[draw])).get_trace(X, Y[outputs])
    trace.compute_log_prob()
    return trace


def sites(model: AbstractProcessModel, draw: int | slice) -> dict[str, Tensor]:
    """The values that a model has a site for."""
    return {site: value[draw] for site, value in VALUES.items() if site in traced(model, 1, 0).nodes}


def likelihood(model: AbstractProcessModel, outputs: int, draw: int) -> float:
    """What the program makes of the data at one draw: the observed site and the factor."""
    nodes = traced(model, outputs, draw).nodes
    return sum(float(nodes[site]["log_prob_sum"]) for site in ("y", "unexplained") if site in nodes)


# --- the program against dense NumPy ---------------------------------------------------------------------------------


def covariance(name: str, draw: int, x: Tensor, y: Tensor) -> Tensor:
    """The kernel by hand: squared exponential, or the network's own class at these values."""
    values = VALUES_OF[draw]
    if name.startswith("NNGP"):
        model = MODELS[name]
        kernel = NNGPKernel(model.depth, model.activation, readout=False).double()
        kernel.weight_var, kernel.bias_var = (
            values["kernel.base_kernel.weight_var"],
            values["kernel.base_kernel.bias_var"],
        )
        return values["kernel.outputscale"] * kernel(x, y).to_dense().detach()
    lengths = values["kernel.base_kernel.lengthscale"][0]
    return values["kernel.outputscale"] * (-0.5 * torch.cdist(x / lengths, y / lengths).square()).exp()


def law_of(name: str, draw: int):
    """The prior of the scale, by scipy; a number where it is known."""
    values = VALUES_OF[draw]
    if name.startswith("explicit"):
        return float(values["scale_var"])
    if name.startswith("Student"):
        half = (float(values["df"]) if "unknown" in name else 5.0 if name == "Student-t" else 4.0) / 2
        return stats.invgamma(half, scale=half)
    return {
        "Gaussian": 1.0,
        "Gaussian about a parabola": 1.0,
        "half-Cauchy": stats.halfcauchy(),
        "Burr, c unknown": stats.burr12(float(values["c"]), 2.0),
        "log-normal through points": stats.lognorm(1.0),
        "NNGP": stats.invgamma(2.0, scale=2.0),
        "NNGP, half-Cauchy, through points": stats.halfcauchy(),
    }[name]


def log_average(law, cov: np.ndarray, y: np.ndarray) -> float:
    """The normal density of all outputs averaged over the scale, by the trapezoid rule on log s."""
    quadratic = float((y * np.linalg.solve(cov, y)).sum())
    rest = -0.5 * y.shape[1] * (np.linalg.slogdet(cov)[1] + len(cov) * math.log(2 * math.pi))
    if isinstance(law, float):
        return rest - 0.5 * y.size * math.log(law) - 0.5 * quadratic / law
    u = np.linspace(-15, 25, 40_001)
    with np.errstate(all="ignore"):
        integrand = law.logpdf(np.exp(u)) + u - 0.5 * y.size * u - 0.5 * quadratic * np.exp(-u)
    return rest + integrand.max() + math.log(np.trapezoid(np.exp(integrand - integrand.max()), u))


@every_model
@outputs_too
@pytest.mark.parametrize("draw", [0, 2])
def test_the_program_is_the_dense_formula(name, outputs, draw):
    """All outputs by one covariance, Q + noise with the bound's trace where there are inducing points.

    1e-6: inducing points get 1e-10 of jitter, which a condition of some 1e3 multiplies.
    """
    y = Y[outputs].reshape(N, -1).numpy()
    design = np.concatenate([X**power for power in range(3 if "parabola" in name else 1)], 1)
    y, noise = (
        y - design @ np.linalg.lstsq(design, y)[0],
        0.1 if "df unknown" in name else float(VALUES_OF[draw]["noise_var"]),
    )
    cov, missing = covariance(name, draw, X, X), 0.0
    if "points" in name:
        z = X[:7]
        low = covariance(name, draw, X, z) @ torch.linalg.solve(
            covariance(name, draw, z, z), covariance(name, draw, z, X)
        )
        missing = -0.5 * outputs * float((cov - low).diagonal().sum()) / noise
        cov = low
    expected = log_average(law_of(name, draw), cov.numpy() + noise * np.eye(N), y) + missing
    assert likelihood(MODELS[name], outputs, draw) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("points", [name for name in MODELS if "points" in name])
@outputs_too
def test_the_bound_is_below_the_evidence_and_reaches_it(points, outputs):
    """With seven of twenty rows below, with all of them equal to 1e-6."""
    evidences = [likelihood(replace(MODELS[points], inducing=z), outputs, 1) for z in (X[:7], X[:14], X, None)]
    assert evidences[0] < evidences[1] < evidences[2] + 1e-9
    assert evidences[2] == pytest.approx(evidences[3], abs=1e-5)


@every_model
@outputs_too
def test_the_process_is_the_program(name, outputs):
    """Before data, the density of all observations under the process is what the program makes of them."""
    model = replace(MODELS[name], inducing=None, integrate_scale=True)
    process = model.process(X, Y[outputs], sites(model, 1))
    expected = likelihood(model, outputs, 1)
    assert float(process.joint(X).log_prob(Y[outputs])) == pytest.approx(expected, rel=1e-10)


@every_model
@outputs_too
def test_draws_condition_as_one_by_one(name, outputs):
    model, y = MODELS[name], Y[outputs]
    draws = sites(model, slice(None))
    together = model.condition(X, y, draws)
    marginals, shape = together.predictive(NEW), (3,) if outputs == 1 else (3, 2)
    assert marginals.batch_shape == (3, *shape)
    points = torch.linspace(-3, 3, 7).double().reshape(-1, *[1] * len(shape))
    singles = [model.condition(X, y, sites(model, i)).predictive(NEW).log_prob(points) for i in range(3)]
    torch.testing.assert_close(marginals.log_prob(points[:, None]), torch.stack(singles, 1), rtol=1e-7, atol=1e-7)
    averaged = model.predictive(NEW, draws, X, y)
    assert averaged.batch_shape == shape
    expected = torch.stack(singles).logsumexp(0) - math.log(3)
    torch.testing.assert_close(averaged.log_prob(points), expected, rtol=1e-7, atol=1e-7)
    one = model.predictive(NEW, sites(model, 1), X, y)
    alike(one, model.condition(X, y, sites(model, 1)).predictive(NEW))


def test_chains_of_draws_are_draws():
    """Sites ``(chain, draw, ...)``, as a sampler leaves them, with the noise fixed and so without their batch."""
    model = MODELS["Student-t, df unknown"]
    flat = {site: torch.cat([value, value]) for site, value in sites(model, slice(None)).items()}
    chains = {site: value.unflatten(0, (2, 3)) for site, value in flat.items()}
    assert model.condition(X, Y[1], chains).predictive(NEW).batch_shape == (2, 3, 3)
    alike(model.predictive(NEW, chains, X, Y[1]), model.predictive(NEW, flat, X, Y[1]))


# --- the program as a log density -------------------------------------------------------------------------------------

TRACED = [
    ("Student-t, df unknown", 1),
    ("Burr, c unknown", 2),
    ("log-normal through points", 2),
]


@pytest.mark.parametrize(("name", "outputs"), TRACED)
def test_a_batch_goes_through_vmap_and_its_gradient_is_right(name, outputs):
    """1e-6 of finite differences over 2e-4, in the dtype of the data though priors and kernel came in float32."""
    log_density = density(name, outputs)
    assert log_density.batching == "vmap"
    assert set(sites(MODELS[name], 0)) == {site.name for site in log_density.latents}
    z = 0.3 * normal(4, log_density.dim)
    value, gradient = log_density.value_and_grad(z)
    steps = 1e-4 * torch.eye(log_density.dim).double()
    numeric = (log_density.value(z[:, None] + steps) - log_density.value(z[:, None] - steps)) / 2e-4
    torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.stack([log_density.value(row) for row in z]), value, rtol=1e-12, atol=1e-12)


def test_priors_are_the_documented_ones():
    """Log joint less likelihood, by scipy: Gammas of the kernel, the noise's default, and the df's."""
    model = StudentTProcess(kernel=rbf(), df=GAMMA)
    nodes, median = traced(model, 1, 0).nodes, 0.1 * float(Y[1].var())
    expected = {
        "kernel.outputscale": stats.gamma(2.0).logpdf(0.5),
        "kernel.base_kernel.lengthscale": stats.gamma(3.0, scale=0.5).logpdf([0.7, 1.0]).sum(),
        "noise_var": stats.lognorm(1.5, scale=median).logpdf(0.05),
        "df": stats.gamma(2.0, scale=10.0).logpdf(2.0),
    }
    for site, value in expected.items():
        assert float(nodes[site]["log_prob_sum"]) == pytest.approx(value, rel=1e-6), site


METHODS = {
    "MAP": MAP(restarts=2, max_steps=30),
    "Laplace": Laplace(),
    "SVI": SVI(max_steps=50),
    "ChEES": ChEES(chains=8, warmup=30, draws=10),
    "NUTS": NUTS(chains=1, warmup=20, draws=10),
}
FITS = [
    ("Student-t, df unknown", 1, "ChEES"),
    ("Burr, c unknown", 2, "MAP"),
    ("log-normal through points", 2, "Laplace"),
    ("half-Cauchy", 1, "SVI"),
    ("explicit", 1, "NUTS"),
    ("NNGP, half-Cauchy, through points", 2, "MAP"),
]


@pytest.mark.parametrize(("name", "outputs", "method"), FITS)
def test_methods_run_and_their_answers_predict(name, outputs, method):
    """At the data better than their mean and spread would, from a point and from draws."""
    model, y, fit = MODELS[name], Y[outputs], fitted(name, outputs, method)
    answers = [fit.sites()] if fit.kind == "point" else [fit.sites(), fit.sample(6, seed=1)]
    plain = dist.Normal(y.mean(0), y.std(0)).log_prob(y).sum()
    for answer in answers:
        assert model.predictive(X, answer, X, y).log_prob(y).sum() > plain


# --- a fit is saved ---------------------------------------------------------------------------------------------------


def test_a_fit_with_a_kernel_of_the_users_asks_for_the_program(tmp_path):
    model, fit = MODELS["half-Cauchy"], fitted("half-Cauchy", 1, "SVI")
    fit.save(tmp_path / "fit")
    message = (
        r"the fit used a ScaleMixtureProcess with your own kernel=ScaleKernel, which no data file can hold. Pass it: "
        r"load_posterior\('.*fit', program=ScaleMixtureProcess\(...\)\)"
    )
    with pytest.raises(ProgramError, match=message):
        load_posterior(tmp_path / "fit")
    again = load_posterior(tmp_path / "fit", program=model)
    assert again.program is model
    assert again.elbo == fit.elbo


# --- what is refused --------------------------------------------------------------------------------------------------


BAD_ROW = X.clone()
BAD_ROW[7, 1] = torch.nan
BAD_Y = Y[1].clone()
BAD_Y[3] = torch.inf


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:, 0], Y[1], r"got \(20,\) and \(20,\). A single input column is x\[:, None\]"),
        (X, Y[1][:5], r"observations y of shape \(n,\) or \(n, p\), n at least 2, got \(20, 2\) and \(5,\)"),
        (X[:1], Y[1][:1], r"n at least 2, got \(1, 2\) and \(1,\)"),
        (
            X.float(),
            Y[1],
            r"of one dtype on one device, got torch.float32 on cpu and torch.float64 on cpu. Convert one",
        ),
        (BAD_ROW, Y[1], r"x: expected finite numbers, got 1 of 20 rows with NaN or infinity, the first at index 7"),
        (X, BAD_Y, r"y: expected finite numbers, got 1 of 20 rows with NaN or infinity, the first at index 3"),
        (X, torch.ones(N).double(), "y: expected observations that differ, got a constant column. Drop it"),
        (X, torch.stack([Y[1], 0 * Y[1]], 1), "got a constant column"),
    ],
)
def test_data_that_cannot_be_used(x, y, message):
    """By a fit and by `condition`, with the same words."""
    model = StudentTProcess(kernel=rbf())
    with pytest.raises(DataError, match=message):
        model.condition(x, y, VALUES_OF[0])
    with pytest.raises(DataError, match=message):
        infer(model, (x, y), MAP(), seed=0)


def test_data_on_two_devices():
    with pytest.raises(
        DataError, match=r"on one device, got torch.float64 on cpu and torch.float64 on meta. Convert one"
    ):
        StudentTProcess(kernel=rbf()).observe(X, Y[1].to("meta"))


def test_equal_rows_need_noise():
    x, model = X[[0, 0, 1, 1, 1, 2]], ScaleMixtureProcess(kernel=rbf(), noise_var=0.0)
    message = "no noise, got equal rows 0 and 1. Drop one of them, or give noise_var a prior"
    with pytest.raises(DataError, match=message):
        infer(model, (x, Y[1][:6]), MAP(), seed=0)
    ScaleMixtureProcess(kernel=rbf()).observe(x, Y[1][:6])


def test_a_forecast_returns_to_the_trend():
    """Far away only the line is left; near the data it makes the answer of a line and the process on what is left."""
    x, line = torch.linspace(0, 5, 12).double()[:, None].expand(12, 2), t([0.7])
    y = 3 + line * x[:, 0] + 0.1 * normal(12, seed=5)
    model = replace(MODELS["Gaussian"], trend=1)
    seen = model.condition(x, y, sites(model, 0))
    slope, constant = np.polyfit(x[:, 0], y, 1)
    far = t([[1000.0, 1000.0]])
    assert float(seen.predictive(far).mean) == pytest.approx(constant + 1000 * slope, rel=1e-9)
    left = y - constant - slope * x[:, 0]
    alike(
        replace(seen, trend=None, loc=t(0.0)).predictive(x + 0.1),
        replace(model, trend=0).condition(x, left - left.mean(), sites(model, 0)).predictive(x + 0.1),
    )


def test_whole_numbers_become_floating_point():
    x, y = StudentTProcess(kernel=rbf()).observe(torch.arange(6).reshape(3, 2), torch.tensor([1, 0, 2]))
    assert x.dtype == y.dtype == torch.float32
    x, y = StudentTProcess(kernel=rbf()).observe(torch.arange(6).reshape(3, 2), Y[1][:3])
    assert x.dtype == y.dtype == torch.float64


def test_a_polynomial_leaves_nothing_to_a_process():
    with pytest.raises(DataError, match=r"differ from a polynomial of degree 2 in x, got one. Set trend=0"):
        replace(MODELS["Gaussian"], trend=2).observe(X, 1 + X[:, 0] - X[:, 1] ** 2)


def test_inducing_points_of_another_shape():
    model = StudentTProcess(kernel=rbf(), inducing=X[:7, :1])
    with pytest.raises(
        DataError, match=r"inducing: expected rows of shape \(r, 2\), as x, got \(7, 1\). Pass some rows"
    ):
        infer(model, (X, Y[1]), MAP(), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"scale_prior": dist.Normal(0.0, 1.0)},
            "scale_prior: expected a distribution of a positive number, got Normal",
        ),
        ({"scale_prior": 2.0}, "scale_prior: expected a distribution of a positive number, got float"),
        ({"noise_var": -0.1}, "noise_var: expected a number of 0 or more, or a prior, got -0.1"),
        ({"noise_var": math.nan}, "noise_var: expected a number of 0 or more, or a prior, got nan"),
        (
            {"noise_var": dist.Normal(0.0, 1.0)},
            "noise_var: expected a distribution of a positive number, got Normal on",
        ),
        ({"trend": -1}, "trend: expected the degree of a polynomial, 0, 1, 2, ..., got -1"),
        ({"noise_var": t(0.1)}, "noise_var: expected a distribution of a positive number, got Tensor on None"),
        (
            {"noise_var": 0.0, "inducing": X[:7]},
            "expected some noise where data are seen through inducing points, got 0",
        ),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ProgramError, match=message):
        ScaleMixtureProcess(**{"kernel": rbf(), **settings})


@pytest.mark.parametrize("site", ["kernel.base_kernel.lengthscale", "noise_var", "df"])
def test_a_site_that_is_missing_is_named(site):
    """None is drawn from the prior in its place."""
    values = {name: value for name, value in VALUES_OF[0].items() if name != site}
    with pytest.raises(
        ProgramError, match=rf"expected .*value.* for the site.*'{site}'.*Pass sites of a fit of this model"
    ):
        StudentTProcess(kernel=rbf(), df=GAMMA).condition(X, Y[1], values)


def test_the_users_kernel_stays_as_it_is():
    """What runs is a copy, with the data's dtype and no gradient."""
    kernel = rbf()
    before = {name: value.detach().clone() for name, value in kernel.state_dict().items()}
    StudentTProcess(kernel=kernel).condition(X, Y[1], VALUES_OF[0])
    assert kernel.base_kernel.raw_lengthscale.dtype == torch.float32
    assert kernel.base_kernel.raw_lengthscale.requires_grad
    for name, value in kernel.state_dict().items():
        assert torch.equal(value, before[name])
