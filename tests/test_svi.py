"""SVI: conjugate answers, its ELBO against exact evidence, guides, mini-batches, restarts as a batch, refusals."""

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
from probmix.inference.svi_gaussian import FAMILIES, FullRank
from probmix.inference.svi_restarts import Restarts, advance, average, begin, look
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
        ({"num_particles": 0}, "num_particles: expected None or at least 1, got 0"),
        ({"window": 1}, "window: expected None or at least 2, got 1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(MethodError, match=message):
        SVI(**settings)


def test_draws_that_come_in_pairs_are_even_in_number():
    with pytest.raises(MethodError, match="num_particles: expected an even number, as draws come in pairs, got 5"):
        infer(gamma_poisson, COUNTS, SVI(num_particles=5), seed=0)


# --- the batched engine: a regression whose posterior is Gaussian, in awkward units ---------------------------------

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(40, 3, generator=GENERATOR, dtype=torch.float64) @ torch.tensor(
    [[1e3, 0.0, 0.0], [0.0, 1.0, 0.9], [0.0, 0.0, 0.4]], dtype=torch.float64
)  # one column in thousands; the third goes with the second
OUTPUTS = INPUTS @ torch.tensor([2e-3, 40.0, -1.0], dtype=torch.float64) + torch.randn(
    40, generator=GENERATOR, dtype=torch.float64
)
PRECISION = INPUTS.T @ INPUTS + torch.eye(3, dtype=torch.float64) / 100**2
MEAN = torch.linalg.solve(PRECISION, INPUTS.T @ OUTPUTS)


def regression(x, y):
    coefficient = pyro.sample("coefficient", dist.Normal(torch.zeros(3, dtype=x.dtype), 100.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(x @ coefficient, 1.0), obs=y)


def log_evidence_of_regression() -> float:
    cov = torch.eye(40, dtype=torch.float64) + 100**2 * INPUTS @ INPUTS.T
    return float(torch.distributions.MultivariateNormal(torch.zeros_like(OUTPUTS), cov).log_prob(OUTPUTS))


def units_off(loc) -> float:
    """Distance from the exact mean in posterior standard deviations, over all directions."""
    return float(((loc - MEAN) @ PRECISION @ (loc - MEAN)).sqrt())


def test_a_guide_that_can_be_exact_becomes_exact():
    """Whatever the units: the noise of the gradient vanishes with the error, so the tolerances are those of stopping.

    A gain that one standard error of the ELBO hides is worth less than 1e-4 nats here: a shift of 0.014 sd. The
    control: ten steps are not enough. (The evidence itself is known to 1e-4: its matrix spans ten orders.)
    """
    fit = infer(regression, (INPUTS, OUTPUTS), SVI(), seed=0)
    assert fit.status.state == "converged"
    assert units_off(fit.guide.parameters["loc"]) < 0.014
    tril = fit.guide.parameters["scale_tril"]
    torch.testing.assert_close(tril.mT @ PRECISION @ tril, torch.eye(3).double(), atol=0.01, rtol=0)
    assert fit.elbo[0] == pytest.approx(log_evidence_of_regression(), abs=1e-4 + 4 * fit.elbo[1])
    assert fit.pareto_k < 0.5
    with pytest.warns(FitWarning):
        early = infer(regression, (INPUTS, OUTPUTS), SVI(max_steps=10), seed=0, throw=False)
    assert early.elbo[0] < log_evidence_of_regression() - 1


def test_mean_field_has_the_spread_that_theory_gives():
    """The best independent coordinates have variances 1 / Lambda_ii and lose the log of the determinants' ratio / 2.

    Their gradient stays noisy. Its path derivatives have a covariance of C' C with the off-diagonal precision matrix
    C in units of the guide, of 2 here; averaged over 50 steps of 10 draws at the least: 0.06 sd; three times that.
    """
    fit = infer(regression, (INPUTS, OUTPUTS), SVI(guide="diagonal"), seed=0, throw=False)
    exact = PRECISION.diagonal().rsqrt()
    assert ((fit.guide.parameters["scale_std"] / exact - 1).abs() < 0.18).all()
    assert exact[1] < 0.6 * torch.linalg.inv(PRECISION)[1, 1].sqrt()  # and that is not the posterior's
    loss = float(PRECISION.diagonal().log().sum() - torch.logdet(PRECISION)) / 2
    assert fit.elbo[0] == pytest.approx(log_evidence_of_regression() - loss, abs=0.1 + 4 * fit.elbo[1])


def test_low_rank_reaches_what_lies_between():
    """Better than mean field, no better than the evidence; its rank, 2 of 3, holds the one strong correlation."""
    fit = infer(regression, (INPUTS, OUTPUTS), SVI(guide="low_rank"), seed=0, throw=False)
    assert log_evidence_of_regression() - 0.1 < fit.elbo[0] < log_evidence_of_regression() + 4 * fit.elbo[1]


@pytest.mark.parametrize("guide", ["diagonal", "full_rank"])
def test_restarts_in_a_batch_end_where_single_runs_do(guide):
    """From random starts far from each other. Mean field: errors as in the test above, in its own units."""
    together = infer(regression, (INPUTS, OUTPUTS), SVI(guide=guide, restarts=4), seed=0, throw=False)
    alone = [infer(regression, (INPUTS, OUTPUTS), SVI(guide=guide), seed=s, throw=False).elbo[0] for s in range(3)]
    assert together.elbos.shape == (4,)
    assert together.history["elbo"].shape[0] == 4
    tolerance = 1e-3 if guide == "full_rank" else 0.3
    for elbo in together.elbos.tolist():
        assert elbo == pytest.approx(alone[0], abs=tolerance)
    assert max(alone) - min(alone) < tolerance


def test_a_batch_is_the_same_bit_for_bit():
    one, same, other = (
        infer(regression, (INPUTS, OUTPUTS), SVI(restarts=3, max_steps=100), seed=s, throw=False) for s in (0, 0, 1)
    )
    assert torch.equal(one.elbos, same.elbos)
    assert torch.equal(one.history["elbo"], same.history["elbo"])
    assert not torch.equal(one.history["elbo"], other.history["elbo"])


class Bell:
    """A log density N(1, 1) in two coordinates, not a number where the first is above 50."""

    def value_and_grad(self, z):
        value, gradient = -((z - 1) ** 2).sum(-1) / 2, 1 - z
        lost = z[..., 0] > 50
        return value.where(~lost, torch.nan), gradient.where(~lost[..., None], torch.nan)


def climbed(starts, family, windows=8):
    torch.manual_seed(0)
    restarts = begin(Bell(), family, starts, 10)
    for _ in range(windows):
        restarts = advance(Bell(), family, restarts, steps=50, rate=0.1, num_particles=10)
        restarts = look(restarts, 50, 1.0)
    return restarts


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_lost_restart_does_not_touch_the_others(family):
    """Bit for bit: the first restart is the same, whether the second is lost from the start or not."""
    lost = climbed(torch.tensor([[0.0, 0.0], [60.0, 0.0]]), family)
    sound = climbed(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), family)
    for name, value in lost.parameters.items():
        assert torch.equal(value[0], sound.parameters[name][0])
        assert value.isfinite().all()
    assert lost.history[1].isnan().all()
    assert lost.done.all()  # a lost one ends too
    assert (average(sound)["loc"] - 1).abs().max() < 0.05
    assert lost.parameters["loc"][1, 0] == 60.0


def test_draws_outside_the_support_are_left_out():
    """A start on the edge: half of its draws are lost, their twins with them, and the rest carry it inside."""
    restarts = climbed(torch.tensor([[49.99, 0.0]]), FullRank(), windows=12)
    assert (average(restarts)["loc"] - 1).abs().max() < 0.05


def test_a_restart_that_is_done_stays():
    """Its rate is zero, its history ends, and only steps at the lowest rate count in its average."""
    restarts = climbed(torch.zeros(2, 2), FullRank(), windows=1)
    frozen = restarts._replace(drops=torch.tensor([4, 0]))
    after = advance(Bell(), FullRank(), frozen, steps=5, rate=0.1, num_particles=10)
    assert torch.equal(after.parameters["loc"][0], frozen.parameters["loc"][0])
    assert not torch.equal(after.parameters["loc"][1], frozen.parameters["loc"][1])
    assert after.history[0, -5:].isnan().all()
    assert after.history[1, -5:].isfinite().all()
    assert torch.equal(after.tail_steps, frozen.tail_steps)


def test_the_rule_for_slowing_down():
    """Gains of 2, 0.5 and -1 standard errors of the difference of two windows of two steps."""
    noise = torch.tensor([-1.0, 1.0])  # variance 1 with n, so that the error is sqrt((1 + 1) / 2) = 1
    elbos = torch.cat([noise.expand(3, 2), noise + torch.tensor([[2.0], [0.5], [-1.0]])], 1).mT
    drops = torch.tensor([0, 1, 3])
    after = look(Restarts({}, drops, {}, torch.zeros(3), (elbos,), 4), window=2, tolerance=1.0)
    assert after.drops.tolist() == [0, 2, 4]
    assert after.done.tolist() == [False, False, True]
