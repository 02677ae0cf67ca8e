"""SVI: conjugate answers, its ELBO against exact evidence, guides, mini-batches, restarts, refusals."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import COUNTS, gamma_poisson, one_dimensional, two_groups, zero_inflated
from pyro.distributions import constraints

from probmix.errors import MethodError, ProgramError
from probmix.inference import EM, SVI, infer
from probmix.status import FitWarning

FAST = {"learning_rate": 0.05}
SHAPE, RATE = 2 + float(COUNTS.sum()), 1.0 + len(COUNTS)  # of the exact posterior of gamma_poisson


def log_evidence() -> float:
    """Exact log p(x) of gamma_poisson."""
    n, total = len(COUNTS), float(COUNTS.sum())
    factorials = float(torch.lgamma(COUNTS + 1).sum())
    return math.lgamma(2 + total) - math.lgamma(2) - (2 + total) * math.log(1 + n) - factorials


@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")
@pytest.mark.parametrize("guide", ["diagonal", "full_rank", "low_rank"])
def test_finds_a_conjugate_posterior_and_its_evidence(guide):
    """log(rate) of a Gamma(22, 11) is nearly Gaussian: its KL from the best Gaussian is below 0.01 nats.

    The promise is an ELBO within 0.05 nats of the best; that much KL allows a shift of sqrt(2 * 0.05) = 0.32 sd or a
    ratio of sds between 0.8 and 1.22. The control: 10 steps from a poor start are not enough.
    """
    fit = infer(gamma_poisson, COUNTS, SVI(guide=guide, **FAST), seed=0)
    draws = fit.sample(4000, seed=1)["rate"]
    exact_mean, exact_sd = SHAPE / RATE, math.sqrt(SHAPE) / RATE
    assert fit.status.state == "converged"
    assert abs(draws.mean() - exact_mean) < 0.32 * exact_sd
    assert 0.8 < draws.std() / exact_sd < 1.22
    elbo, error = fit.elbo
    assert elbo < log_evidence() + 4 * error  # a lower bound; 4 standard errors: false alarm 3e-5
    assert elbo > log_evidence() - 0.05 - 4 * error
    early = infer(
        gamma_poisson, COUNTS, SVI(guide=guide, max_steps=10, init={"rate": torch.tensor(1.0)}), seed=0, throw=False
    )
    assert early.elbo[0] < log_evidence() - 0.05 - 4 * early.elbo[1]


def test_sums_out_discrete_sites():
    """The exact posterior of the zero-inflated program by quadrature on a grid."""
    fit = infer(zero_inflated, COUNTS, SVI(**FAST), seed=0)
    gate, rate = torch.linspace(0.005, 0.995, 199).double(), torch.linspace(0.05, 12, 240).double()
    likelihood = torch.logaddexp(
        (1 - gate)[:, None, None].log() + dist.Poisson(rate[:, None] + 1e-9).log_prob(COUNTS),
        gate[:, None, None].log() + dist.Poisson(torch.tensor(1e-9).double()).log_prob(COUNTS),
    ).sum(-1)
    joint = (likelihood + dist.Gamma(2.0, 0.5).log_prob(rate)).flatten().softmax(0).reshape(199, 240)
    draws = fit.sample(4000, seed=1)
    for name, values, marginal in (("gate", gate, joint.sum(1)), ("rate", rate, joint.sum(0))):
        mean = (marginal * values).sum()
        sd = (marginal * (values - mean) ** 2).sum().sqrt()
        assert abs(draws[name].mean() - mean) < 0.15 * sd  # a Gaussian guide on logit/log scale, not exact
        assert abs(draws[name].std() / sd - 1) < 0.15


def test_a_guide_of_your_own():
    def guide(x):
        concentration = pyro.param("concentration", torch.tensor(5.0), constraint=constraints.positive)
        rate = pyro.param("rate_of_guide", torch.tensor(2.0), constraint=constraints.positive)
        pyro.sample("rate", dist.Gamma(concentration, rate))

    fit = infer(gamma_poisson, COUNTS, SVI(guide=guide, max_steps=4000, **FAST), seed=0)
    exact_mean, exact_sd = SHAPE / RATE, math.sqrt(SHAPE) / RATE
    draws = fit.sample(4000, seed=1)["rate"]
    elbo, error = fit.elbo  # this guide contains the exact posterior, so its ELBO can reach the evidence
    assert log_evidence() - 0.1 - 4 * error < elbo < log_evidence() + 4 * error
    assert abs(draws.mean() - exact_mean) < 0.45 * exact_sd  # 0.1 nats of KL allow a shift of sqrt(0.2) sd
    assert abs(fit.sites()["rate"] - draws.mean()) < 6 * exact_sd / math.sqrt(1000)  # 1,000 and 4,000 draws
    assert "posterior" in fit.to_arviz(prior_draws=0)


def test_parameters_of_the_program_are_optimised():
    """Empirical Bayes: with a prior N(m, 1) on the loc of N(loc, 1) data, the best m is the mean of the data."""
    x = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)

    def program(x):
        m = pyro.param("m", torch.tensor(0.0))
        loc = pyro.sample("loc", dist.Normal(m, 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    fit = infer(program, x, SVI(**FAST), seed=0)
    assert abs(fit.params["m"] - 3.0) < 0.1  # Adam's noise at its last rate
    result = fit.to_arviz(prior_draws=50)
    assert abs(float(result["prior"]["loc"].mean()) - 3.0) < 4 / math.sqrt(50) + 0.1  # 4 standard errors of 50 draws


def test_mini_batches_find_the_same_answer():
    fit = infer(gamma_poisson, COUNTS.repeat(20), SVI(batch_size=20, max_steps=3000, **FAST), seed=0)
    exact_mean, exact_sd = (2 + 20 * 20) / (1 + 200), math.sqrt(402) / 201
    draws = fit.sample(4000, seed=1)["rate"]
    # gradients from a tenth of the rows leave an error of 0.3 sd (root mean square over seeds); three times that.
    assert abs(draws.mean() - exact_mean) < exact_sd
    assert 0.7 < draws.std() / exact_sd < 1.4  # forgetting the factor of 10 between batch and data would give 3.2


@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")
def test_mixture_takes_mini_batches_and_starts_from_em():
    x, model = two_groups(), one_dimensional()
    fit = infer(model, x, SVI(batch_size=30, max_steps=600, guide="diagonal", **FAST), seed=0, throw=False)
    loc = fit.sites()["loc"].flatten().sort().values
    assert ((loc - torch.tensor([0.0, 6.0])).abs() < 0.6).all()  # 3 standard errors of a mean of 24


@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")
def test_restarts_are_reported_and_the_best_is_kept():
    fit = infer(gamma_poisson, COUNTS, SVI(restarts=3, init="random", max_steps=150, **FAST), seed=0, throw=False)
    assert fit.elbos.shape == (3,)
    assert fit.elbo[0] == pytest.approx(float(fit.elbos.max()))
    assert fit.history["elbo"].shape[0] == 3


@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")
def test_bad_starts_do_not_merge_the_components():
    """Users' most common complaint about mixtures under SVI; the default start is a short EM run."""
    x = two_groups(100)
    fit = infer(one_dimensional(), x, SVI(max_steps=300, **FAST), seed=3, throw=False)
    loc = fit.sites()["loc"].flatten()
    assert (loc[0] - loc[1]).abs() > 4


def test_step_limit_is_said():
    with pytest.warns(FitWarning, match=r"SVI\(\) stopped after 20 steps.*Raise max_steps"):
        fit = infer(gamma_poisson, COUNTS, SVI(max_steps=20), seed=0)
    assert fit.status.state == "max_steps"


def test_mini_batches_need_a_plate():
    def program(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0).expand(x.shape).to_event(1), obs=x)

    with pytest.raises(ProgramError, match=r"batch_size: expected one plate around the observed sites, got \[\]"):
        infer(program, COUNTS, SVI(batch_size=2), seed=0)


def test_mini_batches_need_pyro_subsample():
    with pytest.raises(ProgramError, match=r"takes all 10 rows.*pyro.subsample\(x, event_dim=...\)"):
        infer(zero_inflated, COUNTS, SVI(batch_size=2), seed=0)


@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")
def test_warm_start_from_another_fit():
    x, model = two_groups(), one_dimensional()
    em = infer(model, x, EM(), seed=0)
    fit = infer(model, x, SVI(init=em.sites(), max_steps=200, **FAST), seed=0, throw=False)
    assert (fit.sites()["loc"] - em.sites()["loc"]).abs().max() < 1.0  # same labels


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guide": "mean_field"}, "guide: expected a guide program or one of .*'diagonal'.*got 'mean_field'"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number, got 0.0"),
        ({"batch_size": 0}, "batch_size: expected None or at least 1, got 0"),
        ({"max_steps": 0}, "max_steps: expected at least 1, got 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(MethodError, match=message):
        SVI(**settings)
