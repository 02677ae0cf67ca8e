"""ChEES: conjugate answers, its statistics, chains that disagree, interruption, refusals."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import COUNTS, gamma_poisson, one_dimensional, two_groups
from scipy import stats
from z_scores import critical, z_scores

from probmix.arviz import ess, rhat
from probmix.datasets import load_faithful
from probmix.errors import FitError, MethodError
from probmix.inference import EM, infer
from probmix.inference.agreement import advice_on_agreement
from probmix.inference.chees import ChEES
from probmix.models import GaussianMixture
from probmix.relabel import relabel
from probmix.status import FitWarning

SHORT = ChEES(chains=16, superchains=4, warmup=40, draws=60, compile=False)


@pytest.fixture(scope="module")
def conjugate():
    return infer(gamma_poisson, COUNTS, ChEES(chains=32, superchains=4, warmup=50, draws=100), seed=0)


def test_conjugate_posterior(conjugate):
    """Null: draws from Gamma(22, 11). Mean within 4 Monte-Carlo standard errors (false alarm 6e-5);

    Kolmogorov-Smirnov on draws thinned to independence, p > 1e-4. The control: a Gamma with 20% more shape fails both.
    """
    rate = conjugate.draws["rate"].numpy()
    exact = stats.gamma(2 + float(COUNTS.sum()), scale=1 / (1 + len(COUNTS)))
    wrong = stats.gamma(1.2 * (2 + float(COUNTS.sum())), scale=1 / (1 + len(COUNTS)))
    size = min(float(ess(rate)), rate.size)  # trajectories that overshoot the mean make it larger for means alone
    assert abs(rate.mean() - exact.mean()) < 4 * exact.std() / math.sqrt(size)
    assert abs(rate.mean() - wrong.mean()) > 4 * wrong.std() / math.sqrt(size)
    thinned = rate[:, ::4].reshape(-1)
    assert stats.kstest(thinned, exact.cdf).pvalue > 1e-4
    assert stats.kstest(thinned, wrong.cdf).pvalue < 1e-4


def regression(x, y):
    """Known noise: the posterior of coefficients is normal in closed form."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3, dtype=x.dtype), 2.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


def test_conjugate_linear_regression():
    """Null: mean and covariance of the closed form; z-scores at a false alarm of 1e-4. Control: 20% more variance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 30.0, 0.1])
    y = x @ torch.tensor([1.0, -0.2, 3.0]).double() + 0.5 * torch.randn(40, generator=generator, dtype=torch.float64)
    fit = infer(regression, (x, y), ChEES(chains=32, superchains=4, warmup=50, draws=200, compile=False), seed=0)
    cov = torch.linalg.inv(x.T @ x / 0.25 + torch.eye(3) / 4)
    mean, var = (cov @ (x.T @ y) / 0.25).numpy(), cov.diagonal().numpy()
    beta, limit = fit.draws["beta"].numpy(), critical(6, 1e-4)
    assert np.abs(z_scores(beta, mean)).max() < limit
    assert np.abs(z_scores((beta - mean) ** 2, var)).max() < limit
    assert np.abs(z_scores((beta - mean) ** 2, 1.2 * var)).max() > limit


def test_statistics_of_each_iteration(conjugate):
    s = conjugate.sample_stats
    assert set(s) == {
        "lp", "energy", "diverging", "acceptance_rate", "step_size", "n_steps", "trajectory_length",
    }  # fmt: skip
    assert {v.shape for v in s.values()} == {(32, 100)}
    assert s["diverging"].dtype == torch.bool
    assert ((s["acceptance_rate"] >= 0) & (s["acceptance_rate"] <= 1)).all()
    assert (s["n_steps"] >= 2).all()
    for shared in ("step_size", "n_steps", "trajectory_length"):
        assert (s[shared] == s[shared][:1]).all()
    assert s["trajectory_length"][0].unique().numel() > 50  # they are jittered
    spread = s["trajectory_length"][0] / s["trajectory_length"][0].mean() - 1
    assert spread.abs().max() < 0.3


def test_lp_is_the_log_density_of_the_draw(conjugate):
    z = conjugate.log_density.unconstrain(conjugate.draws)
    torch.testing.assert_close(conjugate.log_density.value(z), conjugate.sample_stats["lp"], rtol=1e-9, atol=1e-9)


def test_energy_is_potential_plus_a_fresh_kinetic_energy(conjugate):
    """Given the position, twice the kinetic energy is chi-squared with dim degrees of freedom (Betancourt 2017).

    dim = 1; p > 1e-4. The control: the same energies against 3 degrees of freedom.
    """
    s = conjugate.sample_stats
    kinetic = (s["energy"][:, 1:] + s["lp"][:, :-1]).flatten().numpy()
    assert stats.kstest(2 * kinetic, stats.chi2(1).cdf).pvalue > 1e-4
    assert stats.kstest(2 * kinetic, stats.chi2(3).cdf).pvalue < 1e-4


def test_same_seed_same_bits():
    one, other, different = (infer(gamma_poisson, COUNTS, SHORT, seed=seed).draws["rate"] for seed in (3, 3, 4))
    assert torch.equal(one, other)
    assert not torch.equal(one, different)


def test_float32_stays_float32():
    fit = infer(gamma_poisson, COUNTS.float(), SHORT, seed=0)
    floating = {v.dtype for v in [*fit.draws.values(), *fit.sample_stats.values()] if v.is_floating_point()}
    assert floating == {torch.float32}
    assert fit.status.state == "complete"


@pytest.mark.slow
def test_old_faithful_needs_no_settings():
    """After relabelling, all chains agree and every mean is known to a hundredth of its standard deviation or so."""
    model, x = GaussianMixture(2), load_faithful().x
    fit = infer(model, x, ChEES(), seed=0)
    assert fit.status.state == "complete"
    assert int(fit.sample_stats["diverging"].sum()) == 0
    matched = relabel(fit)
    assert (rhat(matched.draws["loc"].numpy()) < 1.01).all()
    assert (ess(matched.draws["loc"].numpy()) > 4000).all()


def test_dense_mass_matrix_for_correlated_sites():
    def program(x):
        cov = torch.tensor([[1.0, 0.98], [0.98, 1.0]], dtype=x.dtype)
        a = pyro.sample("a", dist.MultivariateNormal(torch.zeros(2, dtype=x.dtype), cov))
        pyro.sample("x", dist.Normal(a.sum(), 10.0), obs=x)

    x = torch.tensor(0.0, dtype=torch.float64)
    work = {}
    for mass in ("dense", "diagonal"):
        method = ChEES(chains=16, superchains=4, warmup=50, draws=50, mass=mass, compile=False)
        work[mass] = infer(program, x, method, seed=0).sample_stats["n_steps"].double().mean()
    assert 2 * work["dense"] < work["diagonal"]


# --- chains that disagree -------------------------------------------------------------------------------------------


def two_modes(x):
    """A mode at 0 and one at 20 that is 20 times as narrow: its mean log density is higher, by log(20) nats."""
    a = pyro.sample("a", dist.Normal(0.0, 100.0))
    pyro.factor("modes", torch.logaddexp(-0.5 * a**2, -0.5 * ((a - 20) * 20) ** 2 + 2 * math.log(20.0)))
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def test_superchains_in_another_mode_are_named_with_their_distance():
    """The log density of modes at heights 0 and 2 log 20, both normal in one dimension: means differ by 5.99 nats."""
    starts = {"a": torch.tensor([20.0, 20.0, 0.0, 20.0], dtype=torch.float64)}
    method = ChEES(chains=32, superchains=4, warmup=40, draws=100, init=starts, compile=False)
    fit = infer(two_modes, torch.tensor(0.0, dtype=torch.float64), method, seed=0)
    message = fit.status.message
    assert fit.status.state == "complete"
    assert (
        "Superchain 2 (of 0 to 3) sits in another mode, or in a region that chains leave slowly: its mean " in message
    )
    assert float(message.split("log density is ")[1].split(" nats")[0]) == pytest.approx(5.99, abs=0.2)
    assert "nats below the others'. All draws are kept" in message
    assert "compare fits from other starts (init=)" in message
    assert fit.draws["a"].shape == (32, 100)  # nothing is dropped
    assert (fit.draws["a"].reshape(4, 8, 100)[2].abs() < 6).all()
    # the metric of each mode is its own: no superchain moves by another's steps
    std = fit.draws["a"].reshape(4, -1).std(-1)
    assert std[[0, 1, 3]].numpy() == pytest.approx(0.05, rel=0.15)
    assert float(std[2]) == pytest.approx(1.0, rel=0.15)


def test_switched_labels_are_told_from_other_modes():
    x, model = two_groups(), one_dimensional()
    sites = infer(model, x, EM(), seed=0).sites()
    apart = {name: torch.stack([value, value.flip(0)] * 2) for name, value in sites.items()}
    fit = infer(model, x, ChEES(chains=16, superchains=4, warmup=40, draws=100, init=apart, compile=False), seed=0)
    assert "agree on the log density but not on the coordinates" in fit.status.message
    assert "probmix.relabel.relabel(posterior)" in fit.status.message
    assert (rhat(fit.draws["loc"].numpy()) > 1.5).all()
    assert (rhat(relabel(fit, reference=sites).draws["loc"].numpy()) < 1.05).all()


def test_chains_that_agree_are_not_accused(conjugate):
    assert conjugate.status.message == "32 chains of 100 draws, 0 divergent."


def test_single_chains_in_another_mode_are_named():
    rng = np.random.default_rng(0)
    log_density, positions = rng.normal(size=(64, 100)), rng.normal(size=(64, 100, 2))
    assert advice_on_agreement(log_density, positions, 8) == ""
    log_density[17] -= 25.0
    assert "Chain 17 (of 0 to 63) sits in another mode" in advice_on_agreement(log_density, positions, 8)
    log_density[40] += 8.0
    text = advice_on_agreement(log_density, positions, 8)
    assert re.search(
        r"Chain 17 \(of 0 to 63\) .* 2[45]\.\d nats below the others'. Chain 40 .* [78]\.\d nats above", text
    )
    log_density[48:60] -= 99.0
    assert "Superchains 6, 7 (of 0 to 7) sit in another mode" in advice_on_agreement(log_density, positions, 8)


def test_chains_that_agree_are_seldom_accused():
    """Null: 16 independent chains, 5 coordinates, 300 trials; four looks at 1e-3 each: above 6 alarms p = 3e-4."""
    rng = np.random.default_rng(0)
    trials = ((rng.normal(size=(16, 50)), rng.normal(size=(16, 50, 5))) for _ in range(300))
    assert sum(advice_on_agreement(*trial, 4) != "" for trial in trials) <= 6


def test_all_chains_of_a_superchain_start_at_one_point():
    method = ChEES(chains=12, superchains=3, warmup=5, draws=1)
    problem = SimpleNamespace(log_density=Recorder(), arguments=SimpleNamespace(dtype=torch.float64), program=print)
    starts = {"a": torch.arange(3.0, dtype=torch.float64)[:, None]}
    state = ChEES(chains=12, superchains=3, warmup=5, draws=1, init=starts).start(problem)
    assert state.chains.position.squeeze(-1).tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 4
    assert problem.log_density.planned == {"batch": 12, "gradients": 24, "compile": "auto"}
    state = method.step(problem, state)
    assert state.chains.position.unique().numel() == 12  # and go ways of their own


class Recorder:
    """A standard normal log density that remembers what it was told to plan for."""

    dim = 1

    def plan(self, **kwargs):
        self.planned = kwargs

    def unconstrain(self, sites):
        return sites["a"]

    def value(self, z):
        return -0.5 * z.square().sum(-1)

    def value_and_grad(self, z):
        return self.value(z), -z


# --- how it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after", "state", "shape"), [(5, "warm-up", 5), (30, "complete", 10)])
def test_ctrl_c_keeps_what_was_drawn(monkeypatch, after, state, shape):
    step, calls = ChEES.step, []

    def interrupted(self, problem, current):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return step(self, problem, current)

    monkeypatch.setattr(ChEES, "step", interrupted)
    with pytest.warns(FitWarning, match="interrupted: stopped by the user"):
        fit = infer(gamma_poisson, COUNTS, ChEES(chains=8, superchains=2, warmup=20, draws=50), seed=0)
    assert fit.status.state == "interrupted"
    assert ("warm-up draws" in fit.status.message) == (state == "warm-up")
    assert fit.draws["rate"].shape == (8, shape)


def test_interrupted_before_anything_was_drawn(monkeypatch):
    monkeypatch.setattr(ChEES, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(FitError, match=r"nothing to keep. Run it again"):
        infer(gamma_poisson, COUNTS, SHORT, seed=0)


def test_divergences_and_lazy_chains_come_with_advice():
    z = torch.randn(4, 6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rate = torch.tensor([0.9, 0.9, 0.9, 0.2])
    stats_of = [
        {"lp": z[:, i, 0], "diverging": torch.tensor([True, False, False, i > 2]), "acceptance_rate": rate}
        for i in range(6)
    ]
    method = ChEES(chains=4, superchains=2, warmup=3, draws=6)
    state = SimpleNamespace(iteration=9, stats=stats_of, draws=list(z.unbind(1)))
    message = method.status(None, state).message
    assert "4 chains of 6 draws, 9 divergent. Raise target_accept=0.8, or reparameterise." in message
    assert "1 of the chains accepted less than half of what was aimed at: raise warmup=3." in message


def test_failed_factorisation_is_a_divergence_not_a_crash():
    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        cov = torch.stack([torch.stack([1 + 0 * a, a]), torch.stack([a, 1 + 0 * a])])  # positive definite for |a| < 1
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), cov), obs=x)

    x = torch.tensor([[0.3, 0.2], [-1.0, -0.8]], dtype=torch.float64)
    method = ChEES(chains=16, superchains=4, warmup=30, draws=40, init={"a": torch.tensor(0.5)}, compile=False)
    fit = infer(program, x, method, seed=0)
    assert (fit.draws["a"].abs() < 1).all()
    assert fit.sample_stats["acceptance_rate"].mean() > 0.7


def test_chains_that_never_move_are_a_failure():
    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        wrong = torch.where(a.detach() == a, a.detach() * 1e9, 0.0)  # a density that its gradient knows nothing of
        pyro.factor("wrong", -wrong.abs())
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    method = ChEES(chains=8, superchains=2, warmup=3, draws=5, init={"a": torch.zeros(())}, compile=False)
    x = torch.tensor(0.0, dtype=torch.float64)
    with pytest.raises(FitError, match="none of the 8 chains moved: every proposal was rejected"):
        infer(program, x, method, seed=0)


def test_figures_for_the_progress_bar():
    problem = SimpleNamespace(log_density=Recorder(), arguments=SimpleNamespace(dtype=torch.float64), program=print)
    method = ChEES(chains=4, superchains=2, warmup=3, draws=6, init={"a": torch.zeros(2, 1, dtype=torch.float64)})
    state, phases = method.start(problem), []
    for _ in range(9):
        phases.append(method.figures(state))
        state = method.step(problem, state)
    assert [p["phase"] for p in phases] == ["start"] + ["warm-up"] * 3 + ["sampling"] * 5
    assert set(method.figures(state)) == {"phase", "step size", "trajectory", "accepted", "divergent", "ESS"}
    assert method.progress(state) == (9, 9)
    assert method.status(problem, state).state == "complete"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chains": 0}, "chains: expected at least 1, got 0"),
        ({"chains": 10, "superchains": 4}, "superchains: expected a divisor of chains=10, got 4"),
        ({"draws": 0}, "draws: expected at least 1, got 0"),
        ({"target_accept": 1.0}, "target_accept: expected a probability between 0 and 1, got 1.0"),
        ({"mass": "full"}, 'mass: expected "auto", "diagonal" or "dense", got \'full\''),
        ({"warmup": -1}, "warmup: expected 0 or more, got -1"),
        ({"compile": "yes"}, "compile: expected \"auto\", True or False, got 'yes'"),
        ({"max_gradients": 0}, "max_gradients: expected at least 2, got 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(MethodError, match=message):
        ChEES(**settings)
