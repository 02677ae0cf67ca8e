"""Gibbs: exact posteriors, the joint-distribution test, an independent sampler, NUTS; its bookkeeping and refusals.

Statistical tests: the null is that draws come from the posterior (or the prior, where data are simulated too), the
false-alarm rate is `FALSE_ALARM` in each test for a fresh seed, shared out over its quantities by Bonferroni.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gibbs_reference import Array, Prior, gibbs
from scipy.stats import gamma, kstest
from scipy.stats import t as student_t
from test_agreement import FALSE_ALARM, ROWS, SMALL, agrees, differences, exact_means, label_free, ordered
from torch import Tensor
from torch.nn.functional import one_hot
from z_scores import critical

from probmix.conjugate import NormalInverseGamma, NormalInverseWishart
from probmix.datasets import load_faithful, load_iris
from probmix.errors import FitError, MethodError
from probmix.inference import EM, NUTS, Gibbs, infer
from probmix.models import GaussianMixture
from probmix.posterior import load_posterior
from probmix.relabel import relabel
from probmix.simulation import trace_sites
from probmix.status import FitWarning
from probmix.table import Expectation, share_out

COVARIANCES = ["full", "tied", "diagonal", "spherical", "EEI", "EII"]

Draws = dict[str, Array]


def drawn(model: GaussianMixture, x: Array | Tensor, **settings: object) -> Draws:
    fit = infer(model, torch.as_tensor(x), Gibbs(**settings), seed=0)
    return {name: value.numpy() for name, value in fit.draws.items()}


# --- exact posteriors -----------------------------------------------------------------------------------------------


def small(change: float = 1.0) -> GaussianMixture:
    loc, rate = torch.as_tensor(SMALL.loc), change * torch.as_tensor(SMALL.scatter[0] / 2)
    prior = NormalInverseGamma(loc, SMALL.mean_precision, SMALL.dof / 2, rate)
    return GaussianMixture(2, "diagonal", weight_concentration=SMALL.weight_concentration, component_prior=prior)


@pytest.mark.parametrize("init", ["em", "prior"])
def test_agrees_with_the_exact_sum_over_allocations(init):
    """Eight rows, two components: 256 allocations summed in NumPy.

    Negative control: the same draws against the answer for a prior whose variances are four times as large.
    """
    draws = drawn(small(), ROWS, chains=50, warmup=100, draws=200, init=init)
    draws["cov"] = draws.pop("var")[..., None]
    wrong = Prior(**{**vars(SMALL), "scatter": 4 * SMALL.scatter})
    assert agrees(label_free(draws), exact_means(SMALL))
    assert not agrees(label_free(draws), exact_means(wrong))


def test_one_component_is_drawn_from_its_conjugate_posterior():
    """No assignments, so draws are independent. Null: SciPy's Student-t for the mean, gamma for the precision.

    Kolmogorov and Smirnov's test of 4,000 draws. Control: one more degree of freedom in the data than there is.
    """
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(6, 1))
    prior = NormalInverseGamma(torch.zeros(1, dtype=torch.float64), 0.5, 2.0, torch.ones(1, dtype=torch.float64))
    draws = drawn(
        GaussianMixture(1, "diagonal", component_prior=prior), x, chains=4, warmup=0, draws=1000, init="prior"
    )
    kappa, a = 6.5, 5.0
    loc = x.sum() / kappa
    b = 1.0 + ((x - x.mean()) ** 2).sum() / 2 + 0.5 * 6 * x.mean() ** 2 / (2 * kappa)
    mean, precision = draws["loc"][:, 1:].ravel(), 1 / draws["var"][:, 1:].ravel()  # the first is the start
    assert kstest(mean, student_t(2 * a, loc, np.sqrt(b / (a * kappa))).cdf).pvalue > FALSE_ALARM
    assert kstest(precision, gamma(a, scale=1 / b).cdf).pvalue > FALSE_ALARM
    assert kstest(precision, gamma(a + 0.5, scale=1 / b).cdf).pvalue < FALSE_ALARM


# --- the joint distribution -----------------------------------------------------------------------------------------


def fixed(covariance: str, weight_prior: str, size: int = 2) -> GaussianMixture:
    """A prior that does not follow the data, with moments of every order that the test needs."""
    loc = torch.zeros(size, dtype=torch.float64)
    if covariance in ("full", "tied"):
        component = NormalInverseWishart(loc, 0.3, 8.0, torch.eye(size, dtype=loc.dtype) * 4 + 1)
    elif covariance in ("diagonal", "EEI"):
        component = NormalInverseGamma(loc, 0.3, 4.0, 1.0 + torch.arange(size, dtype=loc.dtype))
    else:
        component = NormalInverseGamma(loc, 0.3, 4.0, loc.new_tensor(2.0))
    return GaussianMixture(2, covariance, 1.5, component, weight_prior=weight_prior)


def joint(model: GaussianMixture, num: int, rows: int = 12) -> tuple[dict[str, Tensor], Tensor]:
    """Independent draws of sites and data from the Pyro program: nothing of Gibbs or its closed form is in them."""
    torch.manual_seed(7)
    empty = torch.zeros(rows, 2, dtype=torch.float64)
    draws = trace_sites(lambda: model(empty), num)
    return {name: draws[name] for name in model.dims}, draws["x"]


def moved(model: GaussianMixture, assumed: GaussianMixture, sites: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Each set of sites after one iteration of Gibbs for its own data, under the model assumed."""
    after = []
    for i, rows in enumerate(x):
        table, here = assumed.table(rows), {name: value[i : i + 1] for name, value in sites.items()}
        statistics = assumed.drawn(table, here).statistics
        after.append(assumed.draw_sites(assumed.posterior(assumed.prior(rows), statistics)))
    return {name: torch.cat([one[name] for one in after]) for name in sites}


def joint_quantities(model: GaussianMixture, sites: dict[str, Tensor], x: Tensor) -> Tensor:
    """Numbers of sites and data together, ``(num, q)``: entries of the sites, their squares, both log densities."""
    spread = next(sites[name] for name in ("cov", "var") if name in sites).reshape(len(x), -1).abs().log()
    parts = [sites["weights"], sites["loc"].flatten(1), spread]
    likelihood = torch.stack([model.log_prob(rows, {n: v[i] for n, v in sites.items()}).sum()
                              for i, rows in enumerate(x)])  # fmt: skip
    shifted = sites["loc"].flatten(1) * x.mean(1).repeat(1, 2)
    prior = model.log_prior(sites, model.prior(x[0]))
    return torch.cat([*parts, *(part.square() for part in parts), shifted, likelihood[:, None], prior[:, None]], 1)


def largest_z(before: Tensor, after: Tensor) -> float:
    """Of paired differences of independent replicates; quantities that never change aside."""
    change = after - before
    change = change[:, change.std(0) > 1e-12]
    return float((change.mean(0) / change.std(0) * len(change) ** 0.5).abs().max())


@pytest.mark.parametrize(("covariance", "weight_prior"), [("full", "dirichlet"), ("EII", "stick_breaking")])
def test_an_iteration_leaves_the_joint_distribution_alone(covariance, weight_prior):
    """Geweke (2004), Getting it right: sites and data drawn together stay so after sites are moved given the data.

    Here from independent starts, so that differences are independent too. Negative control: a prior whose mean
    precision is four times as large. `test_engines_of_models` does the same for every model.
    """
    model = fixed(covariance, weight_prior)
    wrong = replace(model, component_prior=replace(model.component_prior, mean_precision=torch.tensor(1.2).double()))
    sites, x = joint(model, 400)
    before = joint_quantities(model, sites, x)
    limit = critical(before.shape[1], FALSE_ALARM)
    assert largest_z(before, joint_quantities(model, moved(model, model, sites, x), x)) < limit
    assert largest_z(before, joint_quantities(model, moved(model, wrong, sites, x), x)) > limit


def test_the_joint_distribution_sees_assignments_that_were_not_drawn():
    """Negative control: every row in its most probable component, components that nearly coincide."""

    class MostProbable(GaussianMixture):
        def drawn(self, table, sites):
            scores = self.log_prob_components(table.x, sites)
            shares = one_hot(scores.argmax(-1), 2).to(scores)
            return Expectation(scores.logsumexp(-1).sum(-1), self.sufficient_statistics(table.x, shares))

    near = replace(fixed("diagonal", "dirichlet").component_prior, mean_precision=torch.tensor(30.0).double())
    model, wrong = (kind(2, "diagonal", 1.5, near) for kind in (GaussianMixture, MostProbable))
    sites, x = joint(model, 400)
    before = joint_quantities(model, sites, x)
    limit = critical(before.shape[1], FALSE_ALARM)
    assert largest_z(before, joint_quantities(model, moved(model, model, sites, x), x)) < limit
    assert largest_z(before, joint_quantities(model, moved(model, wrong, sites, x), x)) > limit


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_assignments_are_drawn_with_the_odds_of_the_responsibilities(covariance):
    """Null: over 2,000 draws of all assignments the mean count of each component is the expected one (z-scores)."""
    x, model = load_iris().x, GaussianMixture(3, covariance)
    sites = infer(model, x, EM(restarts=2, tolerance=10.0), seed=0).sites()
    many = {name: value.expand(2000, *value.shape) for name, value in sites.items()}
    torch.manual_seed(0)
    found = model.drawn(model.table(x), many)
    share = share_out(model.log_prob_components(x, sites))
    error = ((share * (1 - share)).sum(0) / 2000).sqrt()
    assert ((found.statistics.count.mean(0) - share.sum(0)) / error).abs().max() < critical(3, FALSE_ALARM)
    torch.testing.assert_close(found.statistics.count, found.statistics.count.round(), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.log_likelihood[0], model.log_prob(x, sites).sum(), rtol=1e-10, atol=0)


# --- other samplers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faithful() -> tuple[Array, Prior]:
    x = load_faithful().x
    prior = GaussianMixture(2).prior(x).component
    return x.numpy(), Prior(prior.loc.numpy(), float(prior.mean_precision), float(prior.dof), prior.scatter.numpy())


@pytest.fixture(scope="module")
def draws(faithful) -> Array:
    return ordered(drawn(GaussianMixture(2), faithful[0], chains=16, warmup=50, draws=250))


def test_agrees_with_an_independent_sampler(draws, faithful):
    """Null: the same posterior means of Old Faithful's weights, locations and covariances as the one in NumPy.

    Negative control: that sampler under a prior worth a hundred times as many observations.
    """
    reference, other = (
        ordered(gibbs(faithful[0], prior, num_components=2, chains=60, draws=100, seed=0, burn_in=50))
        for prior in (faithful[1], replace(faithful[1], mean_precision=1.0))
    )
    assert np.abs(differences(draws, reference)).max() < critical(11, FALSE_ALARM)
    assert np.abs(differences(draws, other)).max() > critical(11, FALSE_ALARM)


@pytest.mark.slow
def test_agrees_with_nuts(draws, faithful):
    """Null: the same posterior means; NUTS knows nothing of conjugacy."""
    fit = infer(GaussianMixture(2), torch.as_tensor(faithful[0]), NUTS(chains=4, warmup=150, draws=250), seed=0)
    nuts = ordered({name: value.numpy() for name, value in fit.draws.items()})
    assert np.abs(differences(nuts, draws)).max() < critical(11, FALSE_ALARM)


# --- bookkeeping ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fit():
    return infer(GaussianMixture(2), load_faithful().x, Gibbs(chains=3, warmup=20, draws=60), seed=0)


def test_log_densities_are_those_of_the_draws(fit):
    x, model = load_faithful().x, GaussianMixture(2)
    torch.testing.assert_close(fit.sample_stats["lp"], model.log_joint(x, fit.draws), rtol=1e-10, atol=0)
    expected = model.log_prob(x, fit.draws).sum(-1)
    torch.testing.assert_close(fit.sample_stats["log_likelihood"], expected, rtol=1e-10, atol=0)


def test_the_same_seed_gives_the_same_bits(fit):
    again, other = (infer(fit.program, load_faithful().x, fit.method, seed=seed) for seed in (0, 1))
    assert all(torch.equal(again.draws[name], value) for name, value in fit.draws.items())
    assert not torch.equal(other.draws["loc"], fit.draws["loc"])


def test_thinned_draws_are_every_so_many():
    x, model = load_faithful().x, GaussianMixture(2)
    every = infer(model, x, Gibbs(chains=2, warmup=5, draws=12, init="prior"), seed=0)
    third = infer(model, x, Gibbs(chains=2, warmup=5, draws=4, init="prior", thin=3), seed=0)
    assert torch.equal(third.draws["loc"], every.draws["loc"][:, ::3])
    assert torch.equal(third.sample_stats["lp"], every.sample_stats["lp"][:, ::3])


def test_starts_where_it_is_told():
    x, model = load_faithful().x, GaussianMixture(2)
    sites = infer(model, x, EM(), seed=0).sites()
    here = infer(model, x, Gibbs(chains=3, warmup=0, draws=2, init=sites), seed=0)
    assert all(torch.equal(here.draws[name][2, 0], value) for name, value in sites.items())
    each = {name: torch.stack([value, value.flip(0)]) for name, value in sites.items()}
    there = infer(model, x, Gibbs(chains=2, warmup=0, draws=2, init=each), seed=0)
    assert all(torch.equal(there.draws[name][:, 0], value) for name, value in each.items())
    with pytest.raises(MethodError, match=r"for one start or for 3 .* got 2"):
        infer(model, x, Gibbs(chains=3, init=each), seed=0)
    with pytest.raises(MethodError, match=r"Add \['cov'\]"):
        infer(model, x, Gibbs(init={name: sites[name] for name in ("weights", "loc")}), seed=0)


def test_goes_to_arviz_relabels_saves_and_loads(fit, tmp_path):
    matched = relabel(fit)
    tree = matched.to_arviz(predictive_draws=6, prior_draws=6)
    assert tree["posterior"]["cov"].shape == (3, 60, 2, 2, 2)
    assert set(tree["sample_stats"]) == {"lp", "log_likelihood"}
    assert matched.draws["loc"][..., 0].std((0, 1)).max() < 0.1  # minutes: one cluster to a number, not both
    fit.save(tmp_path / "gibbs.safetensors")
    again = load_posterior(tmp_path / "gibbs.safetensors")
    assert again.method == fit.method
    assert all(torch.equal(again.draws[name], value) for name, value in fit.draws.items())


def test_says_whether_chains_agree():
    x = load_faithful().x
    good = infer(GaussianMixture(1), x, Gibbs(warmup=10, draws=200), seed=0)
    assert "4 chains of 200 draws; the log density is worth" in good.status.message
    assert "agree" not in good.status.message
    assert "wanted" not in good.status.message
    short = infer(GaussianMixture(1), x, Gibbs(warmup=10, draws=20), seed=0)
    assert "400 or more are wanted: raise draws=20" in short.status.message
    sites = infer(GaussianMixture(2), x, EM(), seed=0).sites()
    each = {name: torch.stack([value, value.flip(0)]) for name, value in sites.items()}
    switched = infer(GaussianMixture(2), x, Gibbs(chains=2, warmup=10, draws=300, init=each), seed=0)
    assert "other labels in other chains" in switched.status.message


@pytest.mark.parametrize(("after", "kept", "says"), [(4, 4, "warm-up draws, not yet"), (13, 3, "after 13 of")])
def test_an_interruption_keeps_draws(monkeypatch, after, kept, says):
    step = Gibbs.step

    def interrupted(self, problem, state):
        if state.iteration == after:
            raise KeyboardInterrupt
        return step(self, problem, state)

    monkeypatch.setattr(Gibbs, "step", interrupted)
    with pytest.warns(FitWarning, match=says):
        fit = infer(GaussianMixture(2), load_faithful().x, Gibbs(chains=2, warmup=10, draws=10), seed=0)
    assert fit.draws["loc"].shape == (2, kept, 2, 2)
    assert fit.sample_stats["lp"].shape == (2, kept)
    monkeypatch.setattr(Gibbs, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(FitError, match="before the first iteration"):
        infer(GaussianMixture(2), load_faithful().x, Gibbs(), seed=0)


def test_float32_data_are_drawn_for_in_float32():
    fit = infer(GaussianMixture(2), load_faithful().x.float(), Gibbs(chains=2, warmup=10, draws=20), seed=0)
    assert {value.dtype for value in fit.draws.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in fit.draws.values())


def test_blocks_of_rows_change_nothing_but_the_draws(monkeypatch):
    """Assignments are drawn block by block; the posterior is the same. Null as above, ten rows at a time."""
    monkeypatch.setattr("probmix.table._BLOCK", 10 * 100 * 2)
    draws = drawn(small(), ROWS, chains=50, warmup=20, draws=100)
    draws["cov"] = draws.pop("var")[..., None]
    assert agrees(label_free(draws), exact_means(SMALL))


@pytest.mark.parametrize("settings", [{"chains": 0}, {"draws": 0}, {"thin": 0}, {"warmup": -1}, {"init": "kmeans"}])
def test_refuses_settings_out_of_range(settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(MethodError, match=f"{name}: expected .* got {value!r}"):
        Gibbs(**settings)


def test_refuses_programs_without_a_conjugate_prior():
    def program(x):
        pass

    with pytest.raises(
        MethodError, match=r"Gibbs\(\) needs a mixture .* got the program 'program'\. MAP\(\), SVI\(\), NUTS"
    ):
        infer(program, load_faithful().x, Gibbs(), seed=0)


def test_long_runs_are_looked_at_in_parts(fit, monkeypatch):
    monkeypatch.setattr("probmix.inference.gibbs._MOST_NUMBERS", 100)
    again = infer(fit.program, load_faithful().x, fit.method, seed=0)
    torch.testing.assert_close(again.sample_stats["lp"], fit.sample_stats["lp"], rtol=1e-14, atol=0)
    assert again.status.state == "complete"
