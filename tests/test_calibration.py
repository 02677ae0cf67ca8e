"""Simulation-based calibration of ChEES and NUTS on a mixture (Talts et al. 2018), and of a check of our own.

Parameters from the prior, data from the parameters, draws from the posterior: the rank of a quantity of the true
parameters among those of L independent draws is then uniform on 0 .. L, whatever the model. Components have no names,
so all quantities here are the same under every labelling. Prior and data are simulated by NumPy and SciPy alone, and
the check here shares nothing with that of `probmix.calibration`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gibbs_reference import Array, Prior, draw_rows
from numpy.random import Generator
from scipy.stats import chi2, kstest, norm
from torch.distributions import Normal

from probmix.calibration import Calibration, calibrate
from probmix.conjugate import NormalInverseGamma
from probmix.inference import NUTS, ChEES
from probmix.models import GaussianMixture

FALSE_ALARM = 1e-3  # of one test, for a fresh seed

#: Two components, variances around 1, means a few of their standard deviations apart.
PRIOR = Prior(loc=np.zeros(1), mean_precision=0.05, dof=6.0, scatter=np.array([[4.0]]), weight_concentration=2.0)
ROWS = 40

#: Variances assumed four times as large; means ten times as close together.
WRONG = {"spread": {"scatter": 4 * PRIOR.scatter}, "means": {"mean_precision": 100 * PRIOR.mean_precision}}


# --- the check ------------------------------------------------------------------------------------------------------


def smallest_p_value(ranks: Array, draws: int, seed: int = 0) -> float:
    """P-value that ranks ``(simulations, q)`` are uniform on 0 .. ``draws``, Bonferroni over quantities and two tests.

    ``(rank + U) / (draws + 1)`` is exactly uniform on (0, 1). Kolmogorov and Smirnov's test sees shifts; the sum of
    squared normal scores (Cook, Gelman and Rubin 2006), chi-square, sees spreads that are too wide or too narrow.
    """
    uniform = (ranks + np.random.default_rng(seed).random(ranks.shape)) / (draws + 1)
    shift = [kstest(column, "uniform").pvalue for column in uniform.T]
    tail = chi2(len(ranks)).cdf((norm.ppf(uniform) ** 2).sum(0))
    smallest = min(*shift, *(2 * np.minimum(tail, 1 - tail)))
    return float(min(1.0, smallest * 2 * ranks.shape[1]))


def conjugate_ranks(
    simulations: int, generator: Generator, draws: int = 19, shift: float = 0.0, stretch: float = 1.0
) -> Array:
    """Ranks for a normal mean with a normal prior, from exact draws of the posterior, moved and stretched at will."""
    loc = generator.standard_normal(simulations)
    x = loc[:, None] + generator.standard_normal((simulations, 5))
    mean, std = x.sum(1) / 6, 6**-0.5
    values = mean[:, None] + std * (shift + stretch * generator.standard_normal((simulations, draws)))
    return (values < loc[:, None]).sum(1)[:, None]


def test_the_check_keeps_its_false_alarm_rate():
    """Null: exact draws. Of 400 checks of 64 simulations, those with p < 0.05 are binomial, 5% of 400 at most.

    Bonferroni makes it fewer, not more. 38 or more come once in 10,000 seeds.
    """
    generator = np.random.default_rng(0)
    alarms = sum(smallest_p_value(conjugate_ranks(64, generator), 19, seed) < 0.05 for seed in range(400))
    assert 0 < alarms < 38


@pytest.mark.parametrize("wrong", [{"stretch": 1.5}, {"stretch": 1 / 1.5}, {"shift": 0.75}, {"shift": -0.75}])
def test_the_check_refuses_a_wrong_posterior(wrong):
    """Negative control: standard deviation times or over 1.5, mean off by 0.75 of it: 200 simulations see 98% of such.

    With any one of seven quantities wrong, the 100 simulations of ChEES below see eight in ten errors of a factor of
    1.5 in the standard deviation, and the 40 of NUTS every other one of a factor of 2 (measured on exact draws).
    """
    generator = np.random.default_rng(1)
    assert smallest_p_value(conjugate_ranks(200, generator), 19) > FALSE_ALARM
    assert smallest_p_value(conjugate_ranks(200, generator, **wrong), 19) < FALSE_ALARM


def test_both_checks_agree_on_what_is_wrong():
    """The library's check and the one here: exact draws pass both, a spread wrong by a factor of 1.5 passes neither."""
    generator = np.random.default_rng(2)
    for stretch, right in ((1.0, True), (1.5, False), (1 / 1.5, False)):
        ranks = conjugate_ranks(200, generator, stretch=stretch)
        assert Calibration({"loc": ranks[:, 0]}, 19, FALSE_ALARM).ok is right
        assert (smallest_p_value(ranks, 19) > FALSE_ALARM) is right


# --- samplers on a mixture ------------------------------------------------------------------------------------------


def mixture(assumed: Prior) -> GaussianMixture:
    loc, rate = torch.as_tensor(assumed.loc), torch.as_tensor(assumed.scatter[0] / 2)
    component = NormalInverseGamma(loc, assumed.mean_precision, assumed.dof / 2, rate)
    return GaussianMixture(2, "diagonal", weight_concentration=assumed.weight_concentration, component_prior=component)


def simulate(num: int) -> tuple[dict[str, Array], Array]:
    generator = np.random.default_rng(2018)
    truth = [PRIOR.draw(2, generator) for _ in range(num)]
    sites = {name: np.stack([one[name] for one in truth]) for name in truth[0]}
    sites["var"] = sites.pop("cov")[..., 0]
    return sites, np.stack([draw_rows(ROWS, one, generator) for one in truth])


def quantities(sites: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Six numbers that relabelling leaves alone; the log joint is the seventh."""
    weights, loc, var = sites["weights"], sites["loc"][..., 0], sites["var"][..., 0]
    first = loc.argmin(-1, keepdim=True)
    return {
        "mean": (weights * loc).sum(-1),
        "least weight": weights.amin(-1),
        "density at 0": (weights * Normal(loc, var.sqrt()).log_prob(torch.zeros_like(loc)).exp()).sum(-1),
        "least loc": loc.amin(-1),
        "greatest loc": loc.amax(-1),
        "variance at the least loc": var.gather(-1, first)[..., 0],
    }


def calibration_of(method: ChEES | NUTS, assumed: Prior, simulations: int, draws: int) -> Calibration:
    return calibrate(
        mixture(assumed), simulate, method, quantities=quantities, simulations=simulations, draws=draws,
        false_alarm=FALSE_ALARM, seed=2018,
    )  # fmt: skip


def own_p_value(calibration: Calibration) -> float:
    return smallest_p_value(np.stack([*calibration.ranks.values()], 1), calibration.draws)


CHEES = ChEES(chains=8, superchains=4, warmup=60, draws=60, compile=False)
SHORT_NUTS = NUTS(chains=2, warmup=40, draws=40, compile=False)


@pytest.mark.slow
def test_chees_is_calibrated():
    """Null: ChEES draws from the posterior; 100 data sets in one batch. False-alarm rate `FALSE_ALARM` of each check.

    Nearly all data sets must yield as many independent draws as are ranked, else the null would be another.
    """
    calibration = calibration_of(CHEES, PRIOR, 100, 63)
    assert len(calibration.ranks) == 7
    assert sum(int(where.sum()) for kind, where in calibration.troubles.items() if "diverg" not in kind) <= 2
    assert calibration.ok, str(calibration)
    assert own_p_value(calibration) > FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_chees_with_a_wrong_prior_is_not_calibrated(wrong):
    """Negative control: the program assumes another prior than the simulator's."""
    calibration = calibration_of(CHEES, replace(PRIOR, **WRONG[wrong]), 100, 63)
    assert not calibration.ok
    assert own_p_value(calibration) < FALSE_ALARM


@pytest.mark.slow
def test_nuts_is_calibrated():
    """Null: NUTS draws from the posterior; fewer data sets, one fit each. False-alarm rate as above."""
    calibration = calibration_of(SHORT_NUTS, PRIOR, 40, 19)
    assert calibration.ok, str(calibration)
    assert own_p_value(calibration) > FALSE_ALARM


@pytest.mark.slow
def test_nuts_with_a_wrong_prior_is_not_calibrated():
    """Negative control: means assumed ten times as close together."""
    calibration = calibration_of(SHORT_NUTS, replace(PRIOR, **WRONG["means"]), 12, 19)
    assert not calibration.ok
    assert own_p_value(calibration) < FALSE_ALARM
