"""Fits of spectral-mixture processes: their starts, every method, what is kept of them, and what they find."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from process_cases import alike
from scipy import stats
from spectral_mixture_cases import (
    BRICK,
    HOLED,
    LATTICE,
    MONTHS,
    PLANE,
    SCATTERED,
    beside,
    half_a_cycle_per_median_step,
    observations,
)
from torch import Tensor

from probmix.arguments import Arguments
from probmix.datasets import load_co2
from probmix.errors import MethodError
from probmix.inference import MAP, NUTS, SVI, ChEES, Laplace, infer
from probmix.inference.method import Problem
from probmix.inference.starts import starting_points
from probmix.isolation import isolated
from probmix.log_density import LogDensity
from probmix.models import SpectralMixtureGP
from probmix.noise_variance import least_noise
from probmix.posterior import AbstractPosterior, load_posterior
from probmix.relabel import Order, relabel

pytestmark = [
    pytest.mark.filterwarnings("ignore::probmix.status.FitWarning"),
    pytest.mark.filterwarnings("ignore:the inputs are a grid with"),
]

QUICK = MAP(restarts=4, tolerance=0.01)

# --- starts -----------------------------------------------------------------------------------------------------------


def starts(model: SpectralMixtureGP, name: str, x: Tensor, y: Tensor, num: int = 20) -> dict[str, Tensor]:
    with isolated(0, dtype=x.dtype, device=x.device):
        return model.starts(name, num, x, y)


STARTED: dict[str, tuple[dict[str, Any], Tensor, int]] = {
    "even": ({}, MONTHS, 1),
    "with holes": ({}, MONTHS[HOLED], 1),
    "scattered, two outputs": ({"spectrum": "student_t"}, SCATTERED, 2),
    "two inputs": ({"max_frequency": (1.0, 2.0)}, PLANE, 1),
    "grid": ({"product": True}, LATTICE, 2),
    "grid of three inputs": ({"product": True, "weight_prior": "jeffreys"}, BRICK, 1),
    "known noise": ({"noise_var": 0.1}, MONTHS, 1),
}
both_starts = pytest.mark.parametrize("start", ["lomb_scargle", "spectrum"])


@both_starts
@pytest.mark.parametrize("name", STARTED)
def test_starts_are_sites_inside_their_bounds(start, name):
    """Of the right shapes, positive, most of them different, and with the noise the variance of the observations.

    A product's have a root of it for each input; a weight is at least 1e-4 of that.
    """
    settings, x, outputs = STARTED[name]
    model, y = SpectralMixtureGP(4, **settings), observations(len(x), outputs)
    assert start in model.start_names
    found, density = starts(model, start, x, y), LogDensity.trace(model, (x, y))
    assert {key: value.shape[1:] for key, value in found.items()} == {s.name: s.shape for s in density.latents}
    assert all(len(value) == 20 and value.isfinite().all() for value in found.values())
    highest = torch.tensor(settings.get("max_frequency") or half_a_cycle_per_median_step(x)).double()
    axis = -2 if model.product else -1
    frequencies = found["kernel.frequencies"].movedim(axis, -1)
    assert ((frequencies > 0) & (frequencies < highest)).all()
    assert density.log_joint(found).isfinite().all()
    variance, total = float(y.reshape(len(y), -1).var(0).mean()), found["kernel.log_weights"].exp().sum(-1)
    if model.product:
        assert (total <= 1.001 * variance ** (1 / x.shape[1])).all()
        assert (total >= 0.7 * variance ** (1 / x.shape[1])).all()
    elif "noise_var" in found:
        torch.testing.assert_close(total + found["noise_var"], torch.full((20,), variance).double())
    assert len(frequencies.flatten(1).unique(dim=0)) > 10


def planted(seed: int, count: int = 3, rows: int = 100, lowest: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Scattered times over 20 units, cosines of amplitude 1 in noise of 0.3, no two nearer than 4 over the span."""
    rng = np.random.default_rng(seed)
    frequencies = np.zeros(count)
    while np.diff(frequencies).min() < 4 / 20:
        frequencies = np.sort(rng.uniform(lowest, 3.0, count))
    times = rng.uniform(0, 20, (rows, 1))
    waves = np.cos(2 * np.pi * frequencies * times + rng.uniform(0, 2 * np.pi, count)).sum(1)
    return (
        torch.from_numpy(times),
        torch.from_numpy(waves + 0.3 * rng.standard_normal(rows)),
        torch.from_numpy(frequencies),
    )


@both_starts
def test_starts_are_likelier_than_the_prior(start):
    """Of sixteen each, the best: by more than 10 nats."""
    x, y, _ = planted(0)
    model = SpectralMixtureGP(4)
    density = LogDensity.trace(model, (x, y))
    with isolated(0, dtype=x.dtype, device=x.device):
        priors = {**model._kernel_priors(x, y), "noise_var": torch.distributions.LogNormal((0.1 * y.var()).log(), 1.5)}
        drawn = {site: law.sample((16,)) for site, law in priors.items()}
    prior, best = (density.log_joint(sites).max() for sites in (drawn, starts(model, start, x, y, 16)))
    assert best > prior + 10


@both_starts
def test_outputs_that_cancel_are_guessed_as_one_of_them(start):
    """Nothing is left of the mean of y and -y; what is guessed has the frequencies of y, with the same seed."""
    x, y, _ = planted(1)
    model = SpectralMixtureGP(4)
    one, both = (starts(model, start, x, outputs) for outputs in (y, torch.stack([y, -y], -1)))
    for name in one:
        torch.testing.assert_close(both[name], one[name], rtol=1e-6, atol=1e-6)


@both_starts
def test_what_a_trend_explains_is_not_guessed(start):
    """With trend=1 the sites are those of the residuals of a line, however steep; with trend=0 the line has a share."""
    x, y, _ = planted(2)
    steep = y + 100 * x[:, 0]
    line = np.polynomial.Polynomial.fit(x[:, 0].numpy(), y.numpy(), 1)(x[:, 0].numpy())
    model = SpectralMixtureGP(4, trend=1)
    found = starts(model, start, x, steep)
    total = found["kernel.log_weights"].exp().sum(-1) + found["noise_var"]
    expected = np.var(y.numpy() - line, ddof=1)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    without = starts(SpectralMixtureGP(4), start, x, steep)
    assert (without["kernel.log_weights"].exp().sum(-1) > 100 * expected).all()


def test_starts_by_name():
    """The first name is what MAP starts from."""
    x, y, _ = planted(0)
    problem = Problem(SpectralMixtureGP(2), Arguments.of((x, y)).checked_by(SpectralMixtureGP(2)), 0)
    density, found = problem.log_density, {}
    for init in ("auto", "lomb_scargle", "spectrum"):
        with isolated(0, dtype=x.dtype, device=x.device):
            found[init] = starting_points(problem, density, init, 3, otherwise="prior")
    assert torch.equal(found["auto"], found["lomb_scargle"])
    assert not torch.equal(found["auto"], found["spectrum"])
    with pytest.raises(
        MethodError, match=r'"lomb_scargle", "spectrum" or sites, got \'peaks\'. Change the setting init'
    ):
        starting_points(problem, density, "peaks", 3)


# --- every method -----------------------------------------------------------------------------------------------------

FITS: dict[str, tuple[dict[str, Any], Tensor, int, Any]] = {
    "MAP": ({"spectrum": "student_t"}, SCATTERED, 2, MAP(restarts=2, max_steps=10)),
    "Laplace": ({"weight_prior": "jeffreys"}, MONTHS, 1, Laplace(restarts=2)),
    "SVI": ({}, MONTHS[HOLED], 1, SVI(max_steps=30)),
    "ChEES": ({"product": True}, LATTICE, 1, ChEES(chains=8, warmup=20, draws=10)),
    "NUTS": ({}, SCATTERED, 1, NUTS(chains=1, warmup=10, draws=6)),
}
every_method = pytest.mark.parametrize("name", FITS)
predicting = pytest.mark.parametrize("name", FITS)


@cache
def fitted(name: str) -> AbstractPosterior:
    settings, x, outputs, method = FITS[name]
    data = x, observations(len(x), outputs)
    return infer(SpectralMixtureGP(2, **settings), data, method, seed=0, throw=False)


def answers(fit: AbstractPosterior) -> dict[str, Tensor]:
    """A point, or draws."""
    return fit.sites() if fit.kind == "point" else fit.sample(6, seed=1)


@predicting
def test_methods_run_and_their_answers_predict(name):
    """At the data better than their mean and spread would, and in finite numbers elsewhere."""
    _, x, _, _ = FITS[name]
    fit, model = fitted(name), fitted(name).program
    y = fit.args[1]
    found = answers(fit)
    assert set(found) == {site.name for site in fit.log_density.latents}
    plain = torch.distributions.Normal(y.mean(0), y.std(0)).log_prob(y).sum()
    assert model.predictive(x, found, x, y).log_prob(y).sum() > plain
    assert model.predictive(beside(x), found, x, y).variance.isfinite().all()


@every_method
def test_axes_have_their_names(name):
    """Sites, and weights and bandwidths themselves, which are the exponentials of their sites."""
    fit = fitted(name)
    tree = fit.to_arviz(prior_draws=0, predictive_draws=0, log_likelihood=False)
    group = tree.point_estimate if fit.kind == "point" else tree.posterior
    of_inputs = ("input", "component") if fit.program.product else ("component", "input")
    of_weights = of_inputs if fit.program.product else ("component",)
    expected = {
        "kernel.log_weights": of_weights, "weights": of_weights, "noise_var": (), "bandwidths": of_inputs,
        "kernel.frequencies": of_inputs, "kernel.log_bandwidths": of_inputs,
    }  # fmt: skip
    leading = () if fit.kind == "point" else ("chain", "draw")
    assert {name: tuple(values.dims) for name, values in group.data_vars.items()} == {
        name: (*leading, *axes) for name, axes in expected.items()
    }
    for value in ("weights", "bandwidths"):
        np.testing.assert_allclose(group[value], np.exp(group[f"kernel.log_{value}"]), rtol=1e-12)


@predicting
def test_a_fit_is_saved_with_its_model(name, tmp_path):
    fit = fitted(name)
    fit.save(tmp_path / "fit")
    again = load_posterior(tmp_path / "fit")
    assert isinstance(again.program, SpectralMixtureGP)
    assert repr(again.program) == repr(fit.program)
    one, two = answers(fit), answers(again)
    x, y = fit.args
    alike(again.program.predictive(beside(x), two, *again.args), fit.program.predictive(beside(x), one, x, y))


@pytest.mark.parametrize("name", ["NUTS", "ChEES"])
def test_components_are_relabelled_by_their_axis(name):
    """By the frequency along the first input: sorted in every draw, the other sites along, the density as it was."""
    fit = fitted(name)
    again = relabel(fit, Order("kernel.frequencies", 0))
    along = again.draws["kernel.frequencies"].select(-2 if fit.program.product else -1, 0)
    assert (along.diff(dim=-1) >= 0).all()
    old = fit.draws["kernel.frequencies"].select(-2 if fit.program.product else -1, 0)
    assert not (old.diff(dim=-1) >= 0).all()
    before, after = (fit.log_density.log_joint(draws) for draws in (fit.draws, again.draws))
    torch.testing.assert_close(after, before, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("settings", "x"), [({}, MONTHS - 1958), ({"product": True}, LATTICE)])
def test_a_fit_in_single_precision(settings, x):
    """Of an even series and of a grid; a prediction is float64's to 1e-3 of the spread."""
    model, y = SpectralMixtureGP(2, **settings), observations(len(x))
    fit = infer(model, (x.float(), y.float()), MAP(restarts=2, max_steps=5, tolerance=0.1), seed=0, throw=False)
    sites = fit.sites()
    assert {value.dtype for value in sites.values()} == {torch.float32}
    single = model.predictive(beside(x).float(), sites, x.float(), y.float())
    double = model.predictive(beside(x), {name: value.double() for name, value in sites.items()}, x, y)
    assert single.mean.dtype == torch.float32
    torch.testing.assert_close(single.mean.double(), double.mean, rtol=0, atol=1e-3 * float(y.std()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", STARTED)
def test_everything_runs_on_the_datas_device(name):
    """Log joint as on the host, to 1e-8, from both starts; a fit, a prediction, parts and a spectrum stay there."""
    settings, x, outputs = STARTED[name]
    model, y = SpectralMixtureGP(2, **settings), observations(len(x), outputs)
    there = x.cuda()
    for start in model.start_names:
        sites = starts(model, start, x, y)
        on_device = {key: value.cuda() for key, value in sites.items()}
        value = LogDensity.trace(model, (there, y.cuda())).log_joint(on_device)
        torch.testing.assert_close(value.cpu(), LogDensity.trace(model, (x, y)).log_joint(sites), rtol=1e-8, atol=0)
        assert all(value.is_cuda for value in starts(model, start, there, y.cuda()).values())
    fit = infer(model, (there, y.cuda()), MAP(restarts=2, max_steps=2), seed=0, throw=False)
    assert all(value.is_cuda for value in fit.sites().values())
    assert model.predictive(beside(there), fit.sites(), there, y.cuda()).mean.is_cuda
    assert model.spectrum_at(torch.linspace(0, 1, 5), fit.sites(), there).is_cuda
    if outputs == 1 and not model.product:
        parts = model.decompose(there, fit.sites(), there, y.cuda(), {"all": (0.0, math.inf)})
        assert parts["all"].mean.is_cuda


# --- what is found ----------------------------------------------------------------------------------------------------


def off(model: SpectralMixtureGP, x: Tensor, y: Tensor, frequencies: Tensor, method: MAP) -> float:
    """Largest relative distance of a planted frequency from the centres of as many heaviest components."""
    fit = infer(model, (x, y), method, seed=0, throw=False)
    centres = torch.tensor(model.table(fit.sites(), x)["frequency"].to_numpy()[: len(frequencies)])
    return float(((centres[:, None] - frequencies).abs().min(0).values / frequencies).max())


@pytest.mark.parametrize("structure", ["auto", "dense"])
def test_observations_without_noise(structure):
    """Likelihood has no maximum there: every start ends above the least noise, finite, and predicts to 1e-3."""
    x = torch.linspace(0, 10, 80, dtype=torch.float64)[:, None]
    y = (2 * torch.pi * 0.7 * x[:, 0]).sin()
    model = SpectralMixtureGP(2, structure=structure)
    fit = infer(model, (x, y), MAP(restarts=4), seed=0)
    assert fit.objectives.isfinite().all()
    least = float(least_noise(y.var()))
    assert least < float(fit.sites()["noise_var"]) < 2 * least
    new = torch.linspace(10, 12, 9, dtype=torch.float64)[:, None]
    expected = (2 * torch.pi * 0.7 * new[:, 0]).sin()
    torch.testing.assert_close(model.predictive(new, fit.sites(), x, y).mean, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("seed", [0, 2])
def test_planted_frequencies_are_found(seed):
    """Null: each is found within 1%, four times the error that 100 rows allow at the lowest frequency (Cramer and Rao:
    sqrt(6 / 100) 0.3 / (20 pi) = 0.0012 cycles, 0.23% of 0.5). False alarm 2e-4 for the three of a set.

    The control, two components for three cosines, misses one by more than half the distance to the next.
    """
    x, y, frequencies = planted(seed)
    assert off(SpectralMixtureGP(4), x, y, frequencies, QUICK) < 0.01
    assert off(SpectralMixtureGP(2), x, y, frequencies, QUICK) > 0.03


def hard_set(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """2 to 6 cosines of amplitudes 0.5 to 1.5, frequencies 0.2 to 4, in noise of 0.3, at 200 times within 20 units."""
    rng = np.random.default_rng(seed)
    count = 2 + seed % 5
    frequencies = np.zeros(count)
    while np.diff(frequencies).min() < 4 / 20:
        frequencies = np.sort(rng.uniform(0.2, 4.0, count))
    amplitudes, phases = rng.uniform(0.5, 1.5, count), rng.uniform(0, 2 * np.pi, count)
    times = rng.uniform(0, 20, (200, 1))
    y = np.cos(2 * np.pi * frequencies * times + phases) @ amplitudes + 0.3 * rng.standard_normal(200)
    return torch.from_numpy(times), torch.from_numpy(y), torch.from_numpy(frequencies)


@pytest.mark.slow
def test_planted_frequencies_are_found_on_19_of_20_sets():
    """Null: a set fails with a probability of 1% at most, so that two or more of 20 do with 1.7% (binomial).

    The control, fits that start from one draw of the prior, misses some of 4 to 6 cosines.
    """
    assert stats.binom(20, 0.99).cdf(18) < 0.017
    sets, method = [hard_set(seed) for seed in range(20)], MAP(restarts=8, tolerance=0.01)
    assert sum(off(SpectralMixtureGP(8), *each, method) < 0.01 for each in sets) >= 19
    control = MAP(restarts=1, init="prior", tolerance=0.01)
    assert sum(off(SpectralMixtureGP(8), *each, control) < 0.01 for each in sets[2:5]) < 3


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_jeffreys_prior_takes_the_weight_of_superfluous_components(seed):
    """Of one cosine, with five components: the other four together weigh less than the noise, 0.05^2.

    They cannot vanish, since of the noise's own peaks some are above its level. The control, a log-normal prior, leaves
    them more than the noise.
    """
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(np.sort(rng.uniform(0, 10, 60)))[:, None]
    y = (2 * math.pi * 1.3 * x[:, 0] + 1).cos() + 0.05 * torch.from_numpy(rng.standard_normal(60))
    rest = {}
    for prior in ("jeffreys", "log_normal"):
        model = SpectralMixtureGP(5, weight_prior=prior)
        weights = infer(model, (x, y), QUICK, seed=0, throw=False).sites()["kernel.log_weights"].exp()
        rest[prior] = float(weights.sum() - weights.max())
    assert rest["jeffreys"] < 0.05**2 < rest["log_normal"]


def co2() -> tuple[Tensor, Tensor]:
    """All months, standardised; the five without a value take that of the next."""
    years, level = load_co2().x.T.numpy()
    months = np.rint(12 * (years - years[0])).astype(int)
    filled = level[np.searchsorted(months, np.arange(months[-1] + 1))]
    x = torch.arange(len(filled), dtype=torch.float64)[:, None] / 12
    return x, torch.from_numpy((filled - filled.mean()) / filled.std())


def negative_log_likelihood(sites: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
    """Per point, by PyTorch's normal distribution on a dense matrix."""
    lags = 2 * math.pi * (x - x.mT)
    terms = zip(*(sites[f"kernel.{name}"] for name in ("log_weights", "frequencies", "log_bandwidths")), strict=True)
    cov = sum(w.exp() * (-0.5 * (v.exp() * lags).square()).exp() * (f * lags).cos() for w, f, v in terms)
    cov = cov + sites["noise_var"] * torch.eye(len(x)).double()
    return -float(torch.distributions.MultivariateNormal(y.mean().expand(len(y)), cov).log_prob(y)) / len(y)


@pytest.mark.slow
def test_seeds_end_at_one_optimum_of_carbon_dioxide():
    """Within 0.05 of the best of three, which is -1.74 or better (GPyTorch's best of ten seeds); the control, one start
    from the prior that is not climbed, is not.
    """
    x, y = co2()
    assert len(x) == 526
    model = SpectralMixtureGP(8)
    found = [
        negative_log_likelihood(infer(model, (x, y), MAP(restarts=16, tolerance=0.1), seed=seed).sites(), x, y)
        for seed in range(3)
    ]
    assert max(found) < min(found) + 0.05
    assert min(found) < -1.74
    start = infer(model, (x, y), MAP(1, "prior", max_steps=1), seed=0, throw=False)
    assert negative_log_likelihood(start.sites(), x, y) > min(found) + 0.05


def test_the_last_ten_years_of_carbon_dioxide_have_a_year():
    """The heaviest component with a period below ten years is the season, to 1%; a forecast of a year is within 1 ppm.

    The last value alone is off by more.
    """
    years, level = load_co2().x[-120:].T
    x, y = (years - years[0])[:, None].double(), level.double()
    seen = slice(None, 108)
    model = SpectralMixtureGP(4, trend=1)
    sites = infer(model, (x[seen], y[seen]), QUICK, seed=0, throw=False).sites()
    table = model.table(sites, x[seen])
    season = table[table["period"] < 10].iloc[0]["period"]
    assert season == pytest.approx(1.0, rel=0.01)
    forecast = model.predictive(x[108:], sites, x[seen], y[seen]).mean
    errors = [float((guess - y[108:]).abs().mean()) for guess in (forecast, y[107])]
    assert errors[0] < 1 < errors[1]
