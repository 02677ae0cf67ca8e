"""How far a guide is: ELBO and Pareto k of its importance ratios, for guides that are exact and guides that are not."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import COUNTS, gamma_poisson
from torch.distributions import Independent, MultivariateNormal, Normal

from probmix.arguments import Arguments
from probmix.importance import Importance, elbo, importance, log_ratios, summarise
from probmix.inference import SVI, infer
from probmix.log_density import LogDensity
from probmix.posterior import load_posterior

pytestmark = pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")

DIM = 3
SHAPE, RATE = 2 + float(COUNTS.sum()), 1.0 + len(COUNTS)  # of the exact posterior of gamma_poisson
PRECISION = torch.tensor([[50.0, 49.0, 0.0], [49.0, 50.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)  # corr -0.98


def gaussian(x):
    prior = PRECISION - torch.eye(DIM, dtype=x.dtype) / 2
    z = pyro.sample("z", dist.MultivariateNormal(torch.zeros_like(x), precision_matrix=prior))
    pyro.sample("x", dist.Normal(z, math.sqrt(2)).to_event(1), obs=x)


def heavy(x):
    z = pyro.sample("z", dist.StudentT(1.5, 0.0, 1.0).expand([20]).to_event(1))
    pyro.sample("x", dist.Normal(z.sum(), 1e3), obs=x)


@pytest.fixture(scope="module")
def density():
    return LogDensity(gaussian, Arguments.of(torch.zeros(DIM, dtype=torch.float64)))


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_the_exact_posterior_has_the_evidence_at_every_draw(density):
    found = importance(density, MultivariateNormal(torch.zeros(DIM).double(), precision_matrix=PRECISION))
    prior = torch.linalg.inv(PRECISION - torch.eye(DIM) / 2)
    marginal = MultivariateNormal(torch.zeros(DIM).double(), prior + 2 * torch.eye(DIM))
    assert found.elbo[0] == pytest.approx(float(marginal.log_prob(torch.zeros(DIM).double())), abs=1e-9)
    assert found.elbo[1] < 1e-9
    assert found.pareto_k < 0.1


def test_elbo_falls_by_the_divergence(density):
    """A guide off by m in the third coordinate, whose posterior is N(0, 1), loses m**2 / 2 nats: 4 standard errors."""
    shifted = MultivariateNormal(torch.tensor([0.0, 0.0, 1.5]).double(), precision_matrix=PRECISION)
    exact = importance(density, MultivariateNormal(torch.zeros(DIM).double(), precision_matrix=PRECISION))
    value, error = importance(density, shifted, 4000).elbo
    assert abs(exact.elbo[0] - value - 1.5**2 / 2) < 4 * error  # false alarm 6e-5
    assert error == pytest.approx(1.5 / math.sqrt(4000), rel=0.1)  # the ratio is linear in z: sd 1.5


def test_pareto_k_tells_a_narrow_guide_from_a_close_one(density):
    """The best independent coordinates have a variance fifty times too small along the ridge: exact k far above 0.7."""
    close = MultivariateNormal(torch.zeros(DIM).double(), precision_matrix=0.9 * PRECISION)
    narrow = Independent(Normal(torch.zeros(DIM).double(), PRECISION.diagonal().rsqrt()), 1)
    assert importance(density, close).pareto_k < 0.5
    assert importance(density, narrow).pareto_k > 0.7


@pytest.mark.parametrize(
    ("guide", "program", "reliable"),
    [("full_rank", gaussian, True), ("diagonal", gaussian, False), ("auto", heavy, False)],
    ids=["exact", "mean field of a ridge", "heavy tails"],
)
def test_a_fit_says_whether_its_guide_can_be_trusted(guide, program, reliable):
    x = torch.zeros(DIM).double() if program is gaussian else torch.tensor(0.0).double()
    fit = infer(program, x, SVI(guide=guide), seed=0)
    assert fit.status.state == "converged"  # two questions: at its best, and good enough
    assert (fit.pareto_k < 0.67) == reliable
    advice = {
        True: "importance weights can correct",
        False: r"is too narrow somewhere for importance weights to correct it; use ",
    }
    assert advice[reliable] in fit.status.message
    assert ('guide="full_rank", NUTS()' in fit.status.message) == (guide == "diagonal")
    assert f"Pareto k {fit.pareto_k:.2f}" in fit.status.message


def exact_gamma(x):
    pyro.sample("rate", dist.Gamma(pyro.param("concentration", torch.tensor(SHAPE)), RATE))


def with_a_helper(x):
    helper = pyro.sample("helper", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("rate", dist.LogNormal(pyro.param("m", torch.tensor(0.7)) + 0.1 * helper, 0.2))


def a_point(x):
    pyro.sample("rate", dist.Delta(pyro.param("m", torch.tensor(2.0))))


def test_a_guide_of_your_own_that_is_exact():
    """Its ratio is the evidence p(x) at every draw, but for the few steps of Adam it is given to move."""
    fit = infer(gamma_poisson, COUNTS, SVI(guide=exact_gamma, max_steps=2, learning_rate=1e-6), seed=0, throw=False)
    n, total = len(COUNTS), float(COUNTS.sum())
    factorials = float(torch.lgamma(COUNTS + 1).sum())
    log_evidence = math.lgamma(SHAPE) - math.lgamma(2) - (2 + total) * math.log(1 + n) - factorials
    assert fit.elbo[0] == pytest.approx(log_evidence, abs=1e-5)
    assert fit.pareto_k < 0.5


@pytest.mark.parametrize("guide", [with_a_helper, a_point])
def test_a_guide_without_a_density_says_so(guide):
    fit = infer(gamma_poisson, COUNTS, SVI(guide=guide, max_steps=20), seed=0, throw=False)
    assert math.isnan(fit.pareto_k)
    assert math.isfinite(fit.elbo[0])
    assert "Pareto k unknown" in fit.status.message


def test_pyros_own_guide_has_a_density():
    """AutoNormal draws on the real line and maps: its ratios must be those of the same normal written by hand."""
    guide = pyro.infer.autoguide.AutoNormal(gamma_poisson)
    model = guide.model
    fit = infer(gamma_poisson, COUNTS, SVI(guide=guide, max_steps=150, learning_rate=0.05), seed=0, throw=False)
    loc, std = (fit.guide.parameters[f"AutoNormal.{name}.rate"].reshape(1) for name in ("locs", "scales"))
    value, error = importance(fit.log_density, Independent(Normal(loc, std), 1), 4000).elbo
    assert abs(value - fit.elbo[0]) < 4 * math.hypot(error, fit.elbo[1])  # false alarm 6e-5
    assert guide.model is model  # the user's guide is as it was


def test_pareto_k_is_saved_and_reaches_arviz(tmp_path):
    fit = infer(gamma_poisson, COUNTS, SVI(max_steps=100), seed=0, throw=False)
    fit.save(tmp_path / "fit")
    again = load_posterior(tmp_path / "fit", program=gamma_poisson)
    assert again.pareto_k == fit.pareto_k
    assert math.isfinite(fit.pareto_k)
    result = fit.to_arviz(prior_draws=0, predictive_draws=0, log_likelihood=False)
    assert result["posterior"].attrs["pareto_k"] == fit.pareto_k


@pytest.mark.parametrize(("num", "limit"), [(100, 0.5), (1000, 2 / 3), (10_000, 0.7)])
def test_the_limit_depends_on_the_number_of_draws(num, limit):
    """min(1 - 1 / log10(S), 0.7), worked out by hand."""
    assert Importance((0.0, 0.0), 0.0, num).limit == pytest.approx(limit)
    assert "can correct" in Importance((0.0, 0.0), limit - 0.01, num).advice("stop")
    assert "too narrow" in Importance((0.0, 0.0), limit + 0.01, num).advice("stop")


def test_batches_of_guides_are_kept_apart(density):
    locs = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 3.0]]).double()
    ratios = log_ratios(density, MultivariateNormal(locs, precision_matrix=PRECISION), 600)
    assert ratios.shape == (600, 2)
    mean, error = elbo(ratios)
    assert float(error[0]) < 1e-9
    assert float(mean[0] - mean[1]) == pytest.approx(4.5, abs=4 * float(error[1]))


def test_draws_that_are_not_finite():
    """One in a hundred may be lost, and has no weight; more make the bound minus infinity."""
    ratios = torch.zeros(1000).double()
    ratios[:10] = -torch.inf
    assert summarise(ratios).elbo == (0.0, 0.0)
    ratios[10] = -torch.inf
    assert summarise(ratios).elbo[0] == -math.inf
