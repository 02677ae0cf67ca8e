"""Simulation-based calibration of NUTS (Talts, Betancourt, Simpson, Vehtari and Gelman 2018), and of the check itself.

Parameters from the prior, data from the parameters, draws from the posterior: the rank of a quantity of the true
parameters among those of L independent draws is then uniform on 0 .. L, whatever the model. Components have no names,
so all quantities here are the same under every labelling. Prior and data are simulated by NumPy and SciPy alone.
"""

from __future__ import annotations

from dataclasses import replace

import arviz as az
import numpy as np
import pytest
import torch
from gibbs_reference import Array, Prior, draw_rows, log_prob
from numpy.random import Generator
from scipy.stats import chi2, kstest, norm

from probmix.conjugate import NormalInverseGamma
from probmix.inference import NUTS, infer
from probmix.models import GaussianMixture

KEPT = 19  # draws that a true value is ranked among: 20 places
FALSE_ALARM = 1e-3  # of one test, for a fresh seed

#: Two components, variances around 1, means a few of their standard deviations apart.
PRIOR = Prior(loc=np.zeros(1), mean_precision=0.05, dof=6.0, scatter=np.array([[4.0]]), weight_concentration=2.0)
ROWS = 40


# --- the check ------------------------------------------------------------------------------------------------------


def smallest_p_value(ranks: Array, seed: int = 0) -> float:
    """P-value that ranks ``(simulations, q)`` are uniform on 0 .. `KEPT`, Bonferroni over quantities and two tests.

    ``(rank + U) / (KEPT + 1)`` is exactly uniform on (0, 1). Kolmogorov and Smirnov's test sees shifts; the sum of
    squared normal scores (Cook, Gelman and Rubin 2006), chi-square, sees spreads that are too wide or too narrow.
    """
    uniform = (ranks + np.random.default_rng(seed).random(ranks.shape)) / (KEPT + 1)
    shift = [kstest(column, "uniform").pvalue for column in uniform.T]
    tail = chi2(len(ranks)).cdf((norm.ppf(uniform) ** 2).sum(0))
    smallest = min(*shift, *(2 * np.minimum(tail, 1 - tail)))
    return float(min(1.0, smallest * 2 * ranks.shape[1]))


def conjugate_ranks(simulations: int, generator: Generator, shift: float = 0.0, stretch: float = 1.0) -> Array:
    """Ranks for a normal mean with a normal prior, from exact draws of the posterior, moved and stretched at will."""
    loc = generator.standard_normal(simulations)
    x = loc[:, None] + generator.standard_normal((simulations, 5))
    mean, std = x.sum(1) / 6, 6**-0.5
    draws = mean[:, None] + std * (shift + stretch * generator.standard_normal((simulations, KEPT)))
    return (draws < loc[:, None]).sum(1)[:, None]


def test_the_check_keeps_its_false_alarm_rate():
    """Null: exact draws. Of 400 checks of 64 simulations, those with p < 0.05 are binomial, 5% of 400 at most.

    Bonferroni makes it fewer, not more. 38 or more come once in 10,000 seeds.
    """
    generator = np.random.default_rng(0)
    alarms = sum(smallest_p_value(conjugate_ranks(64, generator), seed) < 0.05 for seed in range(400))
    assert 0 < alarms < 38


@pytest.mark.parametrize("wrong", [{"stretch": 1.5}, {"stretch": 1 / 1.5}, {"shift": 0.75}, {"shift": -0.75}])
def test_the_check_refuses_a_wrong_posterior(wrong):
    """Negative control: standard deviation times or over 1.5, mean off by 0.75 of it: 200 simulations see 98% of such.

    With any one of eight quantities wrong, the 56 simulations of NUTS below see eight in ten errors of a factor of 2 in
    the standard deviation, and seven in ten of 0.75 of it in the mean (measured with this check on exact draws).
    """
    generator = np.random.default_rng(1)
    assert smallest_p_value(conjugate_ranks(200, generator)) > FALSE_ALARM
    assert smallest_p_value(conjugate_ranks(200, generator, **wrong)) < FALSE_ALARM


# --- NUTS on a mixture ----------------------------------------------------------------------------------------------


def quantities(x: Array, sites: dict[str, Array], log_joint: Array) -> Array:
    """What is ranked: eight numbers that relabelling leaves alone, ``(*b, 8)``."""
    weights, loc = sites["weights"], sites["loc"][..., 0]
    values = [
        log_joint,
        log_prob(x, sites).sum(-1),
        np.exp(log_prob(np.zeros((1, 1)), sites))[..., 0],
        (weights * loc).sum(-1),
        weights.min(-1),
        loc.min(-1),
        loc.max(-1),
        np.take_along_axis(sites["cov"][..., 0, 0], loc.argmin(-1)[..., None], -1)[..., 0],
    ]
    return np.stack(values, -1)


def ranks_of_one(assumed: Prior, generator: Generator, seed: int) -> Array:
    """Simulate from `PRIOR`, fit under the assumed prior; ranks ``(8,)``."""
    truth = PRIOR.draw(2, generator)
    x = draw_rows(ROWS, truth, generator)
    model = mixture(assumed)

    draws = independent_draws(model, x, seed)
    ours, true = (quantities(x, sites, log_joint(model, x, sites)) for sites in (draws, truth))
    return (ours < true).sum(0)


def log_joint(model: GaussianMixture, x: Array, sites: dict[str, Array]) -> Array:
    values = {"weights": sites["weights"], "loc": sites["loc"], "var": sites["cov"][..., 0]}
    return model.log_joint(torch.as_tensor(x), {name: torch.as_tensor(v) for name, v in values.items()}).numpy()


def mixture(assumed: Prior) -> GaussianMixture:
    loc, rate = torch.as_tensor(assumed.loc), torch.as_tensor(assumed.scatter[0] / 2)
    component = NormalInverseGamma(loc, assumed.mean_precision, assumed.dof / 2, rate)
    return GaussianMixture(2, "diagonal", weight_concentration=assumed.weight_concentration, component_prior=component)


def independent_draws(model: GaussianMixture, x: Array, seed: int) -> dict[str, Array]:
    """`KEPT` draws, evenly spaced, of chains long enough for as many effective ones; else again, four times as long.

    No data set is dropped, which would bias the ranks. Effective sample sizes are those of label-free quantities.
    """
    for draws in (60, 240, 960):
        settings = NUTS(chains=2, warmup=45 + draws // 4, draws=draws)
        fit = infer(model, torch.as_tensor(x), settings, seed=seed)
        sites = {name: value.numpy() for name, value in fit.draws.items()}
        sites["cov"] = sites.pop("var")[..., None]
        watched = quantities(x, sites, fit.sample_stats["lp"].numpy())
        if min(float(az.ess(series)) for series in np.moveaxis(watched, -1, 0)) >= KEPT:
            kept = np.linspace(0, 2 * draws - 1, KEPT).round().astype(int)
            return {name: value.reshape(-1, *value.shape[2:])[kept] for name, value in sites.items()}
    pytest.fail(f"two chains of {draws} draws are worth fewer than {KEPT} independent ones")


def simulated_ranks(assumed: Prior, simulations: int) -> Array:
    generator = np.random.default_rng(2018)
    return np.stack([ranks_of_one(assumed, generator, seed) for seed in range(simulations)])


@pytest.mark.slow
def test_nuts_is_calibrated():
    """Null: NUTS draws from the posterior. False-alarm rate `FALSE_ALARM`, Bonferroni over 8 quantities, 2 tests."""
    assert smallest_p_value(simulated_ranks(PRIOR, 56)) > FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", [{"scatter": 4 * PRIOR.scatter}, {"mean_precision": 100 * PRIOR.mean_precision}], ids=["spread", "means"]
)
def test_nuts_with_a_wrong_prior_is_not_calibrated(wrong):
    """Negative control: variances assumed four times as large, or means ten times as close together."""
    assert smallest_p_value(simulated_ranks(replace(PRIOR, **wrong), 16)) < FALSE_ALARM
