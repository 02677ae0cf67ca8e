"""NUTS by nutpie: conjugate answers, its statistics, one batch for all chains, threads that always end."""

from __future__ import annotations

import math
import sys
import threading
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import COUNTS, gamma_poisson, one_dimensional, two_groups
from scipy import stats

from probmix.arguments import Arguments
from probmix.arviz import ess, rhat
from probmix.errors import FitError, MethodError
from probmix.inference import NUTS, infer, nuts_nutpie
from probmix.inference.method import Problem
from probmix.inference.nuts_nutpie import Bridge, begin_nutpie
from probmix.isolation import isolated
from probmix.log_density import LogDensity
from probmix.status import FitWarning

pytest.importorskip("nutpie")
SHORT = NUTS(chains=4, warmup=50, draws=60, engine="nutpie")


@pytest.fixture(scope="module")
def conjugate():
    return infer(gamma_poisson, COUNTS, NUTS(chains=8, warmup=200, draws=300, engine="nutpie"), seed=0)


def test_conjugate_posterior(conjugate):
    """Null: draws from Gamma(22, 11). Mean within 4 Monte-Carlo standard errors (false alarm 6e-5);

    Kolmogorov-Smirnov on draws thinned to independence, p > 1e-4. The control: a Gamma with 20% more shape fails both.
    """
    rate = conjugate.draws["rate"].numpy()
    size = float(ess(rate))
    shape = 2 + float(COUNTS.sum())
    exact, wrong = (stats.gamma(f * shape, scale=1 / (1 + len(COUNTS))) for f in (1, 1.2))
    assert abs(rate.mean() - exact.mean()) < 4 * exact.std() / math.sqrt(size)
    assert abs(rate.mean() - wrong.mean()) > 4 * wrong.std() / math.sqrt(size)
    thinned = rate.reshape(-1)[:: max(1, math.ceil(rate.size / size))]
    assert stats.kstest(thinned, exact.cdf).pvalue > 1e-4
    assert stats.kstest(thinned, wrong.cdf).pvalue < 1e-4
    assert float(rhat(rate)) < 1.05


def test_statistics_of_each_iteration(conjugate):
    s = conjugate.sample_stats
    assert set(s) == {"lp", "energy", "diverging", "acceptance_rate", "step_size", "n_steps"}
    assert {v.shape for v in s.values()} == {(8, 300)}
    assert s["diverging"].dtype == torch.bool
    assert s["n_steps"].dtype == torch.int64
    assert ((s["acceptance_rate"] >= 0) & (s["acceptance_rate"] <= 1 + 1e-9)).all()
    assert (s["n_steps"] >= 1).all()
    assert conjugate.status.message == "8 chains of 300 draws, 0 divergent."
    z = conjugate.log_density.unconstrain(conjugate.draws)
    torch.testing.assert_close(conjugate.log_density.value(z), s["lp"], rtol=1e-9, atol=1e-9)


def test_energy_is_potential_plus_a_fresh_kinetic_energy(conjugate):
    """Given the position, twice the kinetic energy is chi-squared with dim degrees of freedom (Betancourt 2017).

    dim = 1, thinned by 5; p > 1e-4. The control: the same energies against 3 degrees of freedom.
    """
    s = conjugate.sample_stats
    kinetic = (s["energy"][:, 1:] + s["lp"][:, :-1])[:, ::5].flatten().numpy()
    assert stats.kstest(2 * kinetic, stats.chi2(1).cdf).pvalue > 1e-4
    assert stats.kstest(2 * kinetic, stats.chi2(3).cdf).pvalue < 1e-4


def test_the_same_seed_gives_the_same_bits():
    one, same, other = (infer(gamma_poisson, COUNTS, SHORT, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.draws["rate"], same.draws["rate"])
    assert all(torch.equal(one.sample_stats[n], same.sample_stats[n]) for n in one.sample_stats)
    assert not torch.equal(one.draws["rate"], other.draws["rate"])
    assert len({float(rate) for rate in one.draws["rate"][:, -1]}) == 4  # chains of their own


def test_a_mixture_of_float32():
    x = two_groups().float()
    fit = infer(one_dimensional(), x, NUTS(chains=4, warmup=150, draws=150, engine="nutpie"), seed=0)
    ordered = fit.draws["loc"].flatten(2).sort(-1).values.numpy()
    assert (rhat(ordered) < 1.05).all()
    assert fit.draws["loc"].dtype == torch.float32


def exhaust(run, iterations):
    while run.iteration < iterations:
        run = run.advance()


# --- one batch, on the caller's thread ------------------------------------------------------------------------------


@pytest.fixture
def density():
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield Problem(gamma_poisson, Arguments.of(COUNTS), 0).log_density


def test_chains_begin_at_their_starts_and_share_their_batches(density, monkeypatch):
    starts = torch.tensor([[0.1], [0.5], [0.9]], dtype=torch.float64)
    batches, threads, evaluate = [], set(), LogDensity.value_and_grad

    def watched(self, z):
        batches.append(z.clone())
        threads.add(threading.get_ident())
        return evaluate(self, z)

    monkeypatch.setattr(LogDensity, "value_and_grad", watched)
    run = begin_nutpie(density, starts, warmup=20, draws=30, target_accept=0.8, max_tree_depth=5)
    exhaust(run, 50)
    steps = run.kept()[1]["n_steps"]
    torch.testing.assert_close(batches[1], starts, rtol=0, atol=0)  # the first that the chains asked for
    assert {batch.shape for batch in batches} == {(3, 1)}
    assert threads == {threading.get_ident()}
    assert len(batches) < steps.sum() * 50 / 30  # fewer than one call for each gradient of each chain


def test_a_program_that_cannot_be_batched():
    def program(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Poisson(rate if float(rate) > 0 else 1.0), obs=x)

    with pytest.warns(UserWarning, match="cannot be traced as a batch"):
        fit = infer(program, COUNTS, NUTS(chains=2, warmup=10, draws=10, engine="nutpie"), seed=0)
    assert fit.draws["rate"].shape == (2, 10)


def test_failed_factorisation_is_a_divergence_not_a_crash():
    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        cov = torch.stack([torch.stack([1 + 0 * a, a]), torch.stack([a, 1 + 0 * a])])  # positive definite for |a| < 1
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), cov), obs=x)

    x = torch.tensor([[0.3, 0.2], [-1.0, -0.8]], dtype=torch.float64)
    method = NUTS(chains=2, warmup=100, draws=100, init={"a": torch.tensor(0.5)}, engine="nutpie")
    fit = infer(program, x, method, seed=0)
    assert (fit.draws["a"].abs() < 1).all()
    assert fit.draws["a"].std() > 0.1


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after", "warm"), [(1, True), (8, False)])
def test_ctrl_c_keeps_what_was_drawn(monkeypatch, after, warm):
    step, calls = NUTS.step, []

    def interrupted(self, problem, current):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return step(self, problem, current)

    monkeypatch.setattr(NUTS, "step", interrupted)
    method = NUTS(chains=3, warmup=60, draws=1000, engine="nutpie")
    with pytest.warns(FitWarning, match="interrupted: stopped by the user"):
        fit = infer(gamma_poisson, COUNTS, method, seed=0)
    assert ("warm-up draws" in fit.status.message) == warm
    assert 1 <= fit.draws["rate"].shape[1] < 1000
    assert not fit.sample_stats["diverging"][:, -1].any()  # no trace of the threads being let go
    z = fit.log_density.unconstrain(fit.draws)
    torch.testing.assert_close(fit.log_density.value(z), fit.sample_stats["lp"], rtol=1e-9, atol=1e-9)


def test_interrupted_before_anything_was_drawn(monkeypatch):
    monkeypatch.setattr(NUTS, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(FitError, match=r"nothing to keep. Run it again"):
        infer(gamma_poisson, COUNTS, SHORT, seed=0)


@pytest.mark.parametrize("at", [40, 33])
def test_a_draw_that_is_counted_but_not_yet_stored(density, monkeypatch, at):
    """Nutpie stores a draw a little later, in its own thread: here late enough for us to have stopped by then."""
    drawn = nuts_nutpie._drawn

    def slow(bridge, chain, point):
        answer = drawn(bridge, chain, point)
        time.sleep(0.3 * (bridge.done[chain] == at))
        return answer

    monkeypatch.setattr(nuts_nutpie, "_drawn", slow)
    starts = torch.tensor([[0.1], [0.5], [0.9]], dtype=torch.float64)
    run = begin_nutpie(density, starts, warmup=20, draws=20, target_accept=0.8, max_tree_depth=5)
    bridge = run._bridge
    while run.iteration < at:  # without waiting for the chain that is late
        if bridge._everyone.acquire(timeout=0.001):
            bridge._everyone.release()
            bridge.serve()
    draws, statistics = run.kept()
    assert draws.shape == (3, at - 20, 1) if at == 40 else at - 21 <= draws.shape[1] <= at - 20
    assert {value.shape for value in statistics.values()} == {draws.shape[:2]}
    torch.testing.assert_close(density.value(draws), statistics["lp"].double(), rtol=1e-9, atol=1e-9)


def test_an_error_in_the_density_reaches_the_caller(density, monkeypatch):
    """And leaves no thread behind that waits for an answer: the run can be dropped."""
    run = begin_nutpie(
        density, torch.zeros(2, 1, dtype=torch.float64), warmup=20, draws=20, target_accept=0.8, max_tree_depth=5
    )
    with monkeypatch.context() as patch:
        patch.setattr(LogDensity, "value_and_grad", lambda *_: (_ for _ in ()).throw(ValueError("of the program")))
        with pytest.raises(ValueError, match="of the program"):
            run.advance()
    assert run._bridge.closed
    del run


def test_a_chain_that_nutpie_gives_up_is_named(density):
    """It refuses a start without a gradient: here the very mode, log(22 / 11)."""
    starts = torch.tensor([[0.5], [math.log(2.0)]], dtype=torch.float64)
    value, gradient = density.value_and_grad(starts)
    assert abs(gradient[1]) < 1e-12
    density.value_and_grad = lambda z: (value.clone(), gradient.round(decimals=9))
    run = begin_nutpie(density, starts, warmup=20, draws=20, target_accept=0.8, max_tree_depth=5)
    with pytest.raises(FitError, match=r"nutpie ended chain 1 early \(.*gradient.*\). Use other starts \(init=\)"):
        exhaust(run, 40)


def test_a_closed_bridge_answers_at_once(density):
    bridge = Bridge(density, torch.zeros(1, 1, dtype=torch.float64), 5)
    answers: list[float] = []
    waiting = threading.Thread(target=lambda: answers.append(bridge.ask(0, torch.zeros(1).numpy())[0]))
    waiting.start()
    bridge.close()
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    assert math.isnan(answers[0])
    assert math.isnan(bridge.ask(0, torch.zeros(1).numpy())[0])
    bridge.count(0)
    assert bridge.done == [0]


def test_without_nutpie_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nutpie", None)
    with pytest.raises(MethodError, match=r'pip install "nutpie>=0.15", or use engine="pyro"'):
        infer(gamma_poisson, COUNTS, SHORT, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mass": "dense"}, "mass: expected \"diagonal\", which is what nutpie adapts, got 'dense'"),
        ({"warmup": 0}, "warmup: expected at least 1 for nutpie, got 0"),
    ],
)
def test_settings_that_nutpie_has_not(settings, message):
    with pytest.raises(MethodError, match=message):
        NUTS(engine="nutpie", **settings)


def test_the_size_of_an_effective_sample_is_sane(conjugate):
    assert 500 < float(ess(conjugate.sample_stats["lp"].numpy())) <= 4800
