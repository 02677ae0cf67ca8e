"""NUTS: conjugate answers, its statistics, starts, interruption, refusals."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import COUNTS, gamma_poisson, one_dimensional, two_groups
from scipy import stats

from probmix.arguments import Arguments
from probmix.arviz import ess, rhat
from probmix.errors import FitError, MethodError, ProgramError
from probmix.inference import EM, NUTS, infer
from probmix.inference.method import Problem
from probmix.inference.nuts_pyro import PyroRun, begin_pyro, curvature
from probmix.inference.starts import starting_points
from probmix.isolation import isolated
from probmix.relabel import relabel
from probmix.status import FitWarning

SHORT = NUTS(chains=2, warmup=150, draws=250)


@pytest.fixture(scope="module")
def conjugate():
    return infer(gamma_poisson, COUNTS, NUTS(chains=4, warmup=200, draws=500), seed=0)


def test_conjugate_posterior(conjugate):
    """Null: draws from Gamma(22, 11). Mean within 4 Monte-Carlo standard errors (false alarm 6e-5);

    Kolmogorov-Smirnov on draws thinned to independence, p > 1e-4. The control: a Gamma with 20% more shape fails both.
    """
    rate = conjugate.draws["rate"].numpy()
    size = float(ess(rate))
    exact = stats.gamma(2 + float(COUNTS.sum()), scale=1 / (1 + len(COUNTS)))
    wrong = stats.gamma(1.2 * (2 + float(COUNTS.sum())), scale=1 / (1 + len(COUNTS)))
    assert abs(rate.mean() - exact.mean()) < 4 * exact.std() / math.sqrt(size)
    assert abs(rate.mean() - wrong.mean()) > 4 * wrong.std() / math.sqrt(size)
    thinned = rate.reshape(-1)[:: max(1, math.ceil(rate.size / size))]
    assert stats.kstest(thinned, exact.cdf).pvalue > 1e-4
    assert stats.kstest(thinned, wrong.cdf).pvalue < 1e-4


def test_statistics_of_each_iteration(conjugate):
    s = conjugate.sample_stats
    assert set(s) == {"lp", "energy", "diverging", "acceptance_rate", "step_size", "n_steps"}
    assert {v.shape for v in s.values()} == {(4, 500)}
    assert s["diverging"].dtype == torch.bool
    assert ((s["acceptance_rate"] >= 0) & (s["acceptance_rate"] <= 1 + 1e-9)).all()
    assert abs(s["acceptance_rate"].mean() - 0.8) < 0.15  # the target, which dual averaging meets roughly
    assert (s["n_steps"] >= 1).all()
    assert (s["step_size"][:, :1] == s["step_size"]).all()  # fixed after warm-up


def test_lp_is_the_log_density_of_the_draw(conjugate):
    z = conjugate.log_density.unconstrain(conjugate.draws)
    torch.testing.assert_close(conjugate.log_density.value(z), conjugate.sample_stats["lp"], rtol=1e-9, atol=1e-9)


def test_energy_is_potential_plus_a_fresh_kinetic_energy(conjugate):
    """Given the position, twice the kinetic energy is chi-squared with dim degrees of freedom (Betancourt 2017).

    dim = 1, thinned by 5; p > 1e-4. The control: the same energies against 3 degrees of freedom.
    """
    s = conjugate.sample_stats
    kinetic = (s["energy"][:, 1:] + s["lp"][:, :-1])[:, ::5].flatten().numpy()
    assert stats.kstest(2 * kinetic, stats.chi2(1).cdf).pvalue > 1e-4
    assert stats.kstest(2 * kinetic, stats.chi2(3).cdf).pvalue < 1e-4


def test_chains_of_a_mixture_start_apart_and_agree_after_ordering():
    x, model = two_groups(), one_dimensional()
    fit = infer(model, x, SHORT, seed=0)
    ordered = fit.draws["loc"].flatten(2).sort(-1).values.numpy()
    assert (rhat(ordered) < 1.05).all()
    assert fit.status.state == "complete"
    assert "2 chains of 250 draws, 0 divergent" in fit.status.message


def test_chains_that_disagree_because_of_labels_agree_after_relabelling():
    """Users read the r-hat of switched labels as failure to mix; relabel() tells the two apart."""
    x, model = two_groups(), one_dimensional()
    sites = infer(model, x, EM(), seed=0).sites()
    apart = {name: torch.stack([value, value.flip(0)]) for name, value in sites.items()}
    fit = infer(model, x, NUTS(chains=2, warmup=100, draws=150, init=apart), seed=0)
    before = {name: value.clone() for name, value in fit.draws.items()}
    matched = relabel(fit, reference=sites)
    assert (rhat(fit.draws["loc"].numpy()) > 1.5).all()
    assert (rhat(matched.draws["loc"].numpy()) < 1.05).all()
    torch.testing.assert_close(
        model.log_joint(x, matched.draws), model.log_joint(x, fit.draws), rtol=1e-12, atol=0
    )  # the same draws, other numbers on the components
    assert all(torch.equal(fit.draws[name], before[name]) for name in before)  # never silently


def test_every_chain_has_an_em_start_of_its_own():
    """Labels of independent runs agree by chance alone: among 16 starts both orders occur (false alarm 2^-15)."""
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        problem = Problem(one_dimensional(), Arguments.of(two_groups()), 0)
        z = starting_points(problem, problem.log_density, "auto", 16)
        loc = problem.log_density.constrain(z)["loc"].flatten(1)
    assert {bool(a < b) for a, b in loc} == {True, False}
    assert (loc.sort(-1).values - torch.tensor([0.0, 6.0])).abs().max() < 1.0


def test_dense_mass_matrix():
    def program(x):
        cov = torch.tensor([[1.0, 0.95], [0.95, 1.0]])
        a = pyro.sample("a", dist.MultivariateNormal(torch.zeros(2), cov))
        pyro.sample("x", dist.Normal(a.sum(), 10.0), obs=x)

    x = torch.tensor(0.0, dtype=torch.float64)
    dense, diagonal = (
        infer(program, x, NUTS(chains=1, warmup=200, draws=200, mass=m), seed=0) for m in ("dense", "diagonal")
    )
    assert dense.sample_stats["n_steps"].double().mean() < diagonal.sample_stats["n_steps"].double().mean()


def funnel_of_widths(x):
    """Independent normals whose standard deviations are 0.01, 1 and 30, and one that is flat near zero."""
    with pyro.plate("site", 3):
        pyro.sample("a", dist.Normal(torch.zeros(3), torch.tensor([0.01, 1.0, 30.0])))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(b**4, 1e3), obs=x)


@pytest.fixture
def widths():
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield Problem(funnel_of_widths, Arguments.of(torch.zeros((), dtype=torch.float64)), 0).log_density


def test_curvature_is_the_variance_of_a_normal(widths):
    """The width of 30 is beyond what a start may say (variance at most 100): it begins with the unit metric."""
    z = torch.tensor([0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(curvature(widths, z), torch.tensor([1e-4, 1.0, 1.0, 1.0]).to(z), rtol=1e-4, atol=0)


@pytest.mark.parametrize("mass", ["diagonal", "dense"])
def test_the_first_metric_is_that_of_the_start(widths, mass):
    """With a unit metric a step of the width 0.01 leaves the width 1 a hundred steps away: n_steps tells."""
    z = torch.zeros(1, 4, dtype=torch.float64)
    run = begin_pyro(widths, z, warmup=20, target_accept=0.8, mass=mass, max_tree_depth=8)
    (metric,) = run.kernels[0].inverse_mass_matrix.values()
    diagonal = metric.diagonal() if mass == "dense" else metric
    torch.testing.assert_close(diagonal, curvature(widths, z[0]))
    assert run.kernels[0].step_size > 0.1  # of the common scale, not of the smallest width
    plain = begin_pyro(widths, z, warmup=20, target_accept=0.8, mass=mass, max_tree_depth=8)
    plain.kernels[0].set_metric(torch.ones(4, dtype=torch.float64))
    assert plain.kernels[0].step_size < 0.1


@pytest.mark.slow
def test_compiled_and_uncompiled_agree_on_the_target():
    """The same posterior mean, within 4 Monte-Carlo standard errors of the difference (false alarm 6e-5)."""
    fits = [
        infer(gamma_poisson, COUNTS, NUTS(chains=2, warmup=60, draws=150, compile=c), seed=0) for c in (True, False)
    ]
    rates = [fit.draws["rate"].numpy() for fit in fits]
    spread = math.sqrt(sum(r.var() / float(ess(r)) for r in rates))
    assert abs(rates[0].mean() - rates[1].mean()) < 4 * spread


def test_failed_factorisation_is_a_divergence_not_a_crash():
    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        cov = torch.stack([torch.stack([1 + 0 * a, a]), torch.stack([a, 1 + 0 * a])])  # positive definite for |a| < 1
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), cov), obs=x)

    x = torch.tensor([[0.3, 0.2], [-1.0, -0.8]], dtype=torch.float64)
    fit = infer(program, x, NUTS(chains=1, warmup=100, draws=100, init={"a": torch.tensor(0.5)}), seed=0)
    assert (fit.draws["a"].abs() < 1).all()


@pytest.mark.parametrize(("after", "state", "shape"), [(5, "warm-up", 5), (30, "complete", 10)])
def test_ctrl_c_keeps_what_was_drawn(monkeypatch, after, state, shape):
    step, calls = NUTS.step, []

    def interrupted(self, problem, current):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return step(self, problem, current)

    monkeypatch.setattr(NUTS, "step", interrupted)
    with pytest.warns(FitWarning, match="interrupted: stopped by the user"):
        fit = infer(gamma_poisson, COUNTS, NUTS(chains=2, warmup=20, draws=50), seed=0)
    assert fit.status.state == "interrupted"
    assert ("warm-up draws" in fit.status.message) == (state == "warm-up")
    assert fit.draws["rate"].shape == (2, shape)
    assert fit.to_arviz(prior_draws=0)["posterior"].sizes["draw"] == shape


def test_interrupted_before_anything_was_drawn(monkeypatch):
    monkeypatch.setattr(NUTS, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(FitError, match=r"nothing to keep. Run it again"):
        infer(gamma_poisson, COUNTS, SHORT, seed=0)


def test_divergences_come_with_advice():
    accepted = torch.tensor([0.7, 0.1])
    stats = tuple({"diverging": torch.tensor(d), "acceptance_rate": accepted} for d in ([True, False], [True, True]))
    state = PyroRun((), torch.zeros(2, 1), (torch.zeros(2, 1),) * 2, stats, 2, 0)
    status = NUTS(chains=2, warmup=0, draws=2, target_accept=0.7).status(None, state)
    assert "3 divergent. Raise target_accept=0.7, or reparameterise" in status.message
    assert "A chain accepted only 0.10 of its moves: raise warmup=0" in status.message


def test_no_finite_start_names_the_site():
    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Exponential(a.exp()), obs=x)

    with pytest.raises((ProgramError, ValueError), match="x"):
        infer(program, torch.tensor([1.0, torch.nan]), SHORT, seed=0)


def test_starts_given_by_the_user():
    em = infer(one_dimensional(), two_groups(), EM(), seed=0)
    fit = infer(one_dimensional(), two_groups(), NUTS(chains=2, warmup=20, draws=5, init=em.sites()), seed=0)
    assert (fit.draws["loc"] - em.sites()["loc"]).abs().max() < 3
    with pytest.raises(MethodError, match="expected sites for one start or for 2"):
        infer(
            one_dimensional(),
            two_groups(),
            NUTS(chains=2, init={n: v.expand(3, *v.shape) for n, v in em.sites().items()}),
            seed=0,
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chains": 0}, "chains: expected at least 1, got 0"),
        ({"target_accept": 1.0}, "target_accept: expected a probability between 0 and 1, got 1.0"),
        ({"mass": "full"}, 'mass: expected "diagonal" or "dense", got \'full\''),
        ({"warmup": -1}, "warmup: expected 0 or more, got -1"),
        ({"engine": "stan"}, 'engine: expected "pyro" or "nutpie", got \'stan\''),
        ({"compile": "yes"}, "compile: expected \"auto\", True or False, got 'yes'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(MethodError, match=message):
        NUTS(**settings)


def test_effective_sizes_are_sane(conjugate):
    assert 200 < float(ess(conjugate.sample_stats["lp"].numpy())) <= 4000
    assert np.isfinite(rhat(conjugate.draws["rate"].numpy()))
