"""Variational Bayes: scikit-learn's steps, the bound and its laws, what the answer says and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor

from probmix.arguments import Arguments
from probmix.conjugate import NormalInverseGamma, NormalInverseWishart
from probmix.datasets import load_faithful, load_iris
from probmix.errors import FitError, MethodError
from probmix.evidence import exact_log_evidence
from probmix.inference import EM, VB, Gibbs, infer
from probmix.inference.conjugate_problem import conjugate_model
from probmix.inference.method import Problem
from probmix.models import GaussianMixture
from probmix.posterior import GuidePosterior, load_posterior
from probmix.status import FitWarning
from probmix.table import share_out

COVARIANCES = ["full", "tied", "diagonal", "spherical", "EEI", "EII"]
WEIGHT_PRIORS = ["dirichlet", "stick_breaking"]
KINDS = list(itertools.product(COVARIANCES, WEIGHT_PRIORS))
EIGHT = torch.tensor(np.random.default_rng(3).normal(size=(8, 2)) + np.repeat([[0.0], [2.5]], [5, 3], 0))


def fit(model: GaussianMixture, x: Tensor, *, seed: int = 0, **settings: object) -> GuidePosterior:
    return infer(model, x, VB(**settings), seed=seed)


# --- the steps ------------------------------------------------------------------------------------------------------


def theirs(x: np.ndarray, shares: np.ndarray, kind: str, weights: str) -> BayesianGaussianMixture:
    """scikit-learn's posterior of components given responsibilities, with a prior of numbers that all differ."""
    spread = np.array([[0.5, 0.1], [0.1, 2.0]]) if kind == "full" else np.array([0.5, 2.0])
    peer = BayesianGaussianMixture(
        n_components=3, covariance_type=kind, reg_covar=0.0, weight_concentration_prior_type=weights,
        weight_concentration_prior=0.7, mean_precision_prior=0.3, mean_prior=[3.0, 70.0], covariance_prior=spread,
        degrees_of_freedom_prior=5.5,
    )  # fmt: skip
    peer._check_parameters(x)
    peer._initialize(x, shares)
    return peer


def ours(kind: str, weights: str) -> GaussianMixture:
    loc = torch.tensor([3.0, 70.0], dtype=torch.float64)
    if kind == "full":
        component = NormalInverseWishart(loc, 0.3, 5.5, loc.new_tensor([[0.5, 0.1], [0.1, 2.0]]))
        return GaussianMixture(3, "full", 0.7, component, weight_prior=weights)
    component = NormalInverseGamma(loc, 0.3, 5.5 / 2, loc.new_tensor([0.25, 1.0]))
    return GaussianMixture(3, "diagonal", 0.7, component, weight_prior=weights)


@pytest.mark.parametrize(("weights", "name"), [("dirichlet", "dirichlet_distribution"),
                                               ("stick_breaking", "dirichlet_process")])  # fmt: skip
@pytest.mark.parametrize("kind", ["full", "diag"])
def test_the_posterior_given_responsibilities_is_scikit_learns(kind, weights, name):
    """Full and diagonal: for the other two shapes scikit-learn divides counts by K or D, which is another prior.

    1e-10 is a million times the rounding of sums over 272 rows.
    """
    x, model = load_faithful().x, ours(kind, weights)
    shares = np.random.default_rng(0).dirichlet(np.ones(3), len(x))
    peer = theirs(x.numpy(), shares, kind, name)
    posterior = model.posterior(model.prior(x), model.sufficient_statistics(x, torch.tensor(shares)))
    component = posterior.component
    spread = component.scatter / component.dof[(..., *[None] * (component.scatter.ndim - 1))]
    pairs = [(component.loc, peer.means_), (component.mean_precision, peer.mean_precision_),
             (component.dof, peer.degrees_of_freedom_), (spread, peer.covariances_)]  # fmt: skip
    if weights == "dirichlet":
        pairs.append((posterior.weights.concentration, peer.weight_concentration_))
    else:  # its last stick is not all that is left over, so ours are the first two
        pairs.append((posterior.weights.first, peer.weight_concentration_[0][:2]))
        pairs.append((posterior.weights.second, peer.weight_concentration_[1][:2]))
    for mine, other in pairs:
        torch.testing.assert_close(mine, torch.tensor(other), rtol=1e-10, atol=1e-12)


def test_one_whole_iteration_is_scikit_learns():
    """Full covariance, Dirichlet weights: responsibilities, then the posterior from them, again to 1e-10."""
    x, model = load_faithful().x, ours("full", "dirichlet")
    shares = np.random.default_rng(0).dirichlet(np.ones(3), len(x))
    peer = theirs(x.numpy(), shares, "full", "dirichlet_distribution")
    _, log_responsibilities = peer._estimate_log_prob_resp(x.numpy())
    expected = model.sufficient_statistics(x, torch.tensor(np.exp(log_responsibilities)))
    statistics = model.sufficient_statistics(x, torch.tensor(shares))
    found = model.variational_expectation(model.table(x), model.posterior(model.prior(x), statistics)).statistics
    for name in ("count", "mean", "scatter"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("covariance", "weight_prior"), KINDS)
def test_the_bound_never_falls(covariance, weight_prior):
    """A law of coordinate ascent. 1e-10 of the bound's size is the rounding of sums of a few hundred terms."""
    model = GaussianMixture(4, covariance, 0.3, weight_prior=weight_prior)
    history = fit(model, load_iris().x, restarts=6, init="random", seed=1).history["elbo"]
    gains = history.diff(dim=-1)
    assert (gains[gains.isfinite()] > -1e-10 * history[history.isfinite()].abs().max()).all()
    assert gains.nansum(-1).min() > 1  # nats: there was something to gain


# --- the bound ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("covariance", "weight_prior"), KINDS)
def test_the_bound_is_below_the_exact_evidence(covariance, weight_prior):
    """Eight rows, two components: 256 assignments summed.

    Negative control: with the divergence of q from the prior added instead of subtracted it would be above.
    """
    model = GaussianMixture(2, covariance, weight_prior=weight_prior)
    found = fit(model, EIGHT, restarts=50)
    exact = float(exact_log_evidence(model, EIGHT))
    assert (found.elbos <= exact).all()
    divergence = float(model.divergence(found.guide.posterior, found.guide.prior))
    assert found.elbo[0] + 2 * divergence > exact
    assert exact - found.elbo[0] < 3  # nats: not idle; log 2! of them are the other labelling's


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_bound_of_one_component_is_the_evidence(covariance):
    """No assignments, so q is the posterior: equal up to rounding of values of some hundred nats."""
    x = load_iris().x
    found = fit(GaussianMixture(1, covariance), x, restarts=1)
    assert found.elbo[0] == pytest.approx(float(exact_log_evidence(GaussianMixture(1, covariance), x)), rel=1e-11)
    assert (found.log_evidence, found.pareto_k) == (found.elbo[0], 0.0)  # all importance weights are equal


@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")
@pytest.mark.parametrize(("covariance", "weight_prior"), KINDS)
def test_the_bound_is_the_mean_of_what_it_bounds(covariance, weight_prior):
    """By simulation: the mean under q of log p(x, z, sites) - log q(z, sites), z summed by its responsibilities.

    After one step only, since at the optimum of a conjugate model the difference is the same at every draw, up to what
    was still to gain: 1e-6 nats, whose square root is how far q may be off. Null: that mean is the ELBO, z-score of
    2,000 independent draws; one false alarm in 10,000 seeds. Control: 1 nat off is seen.
    """
    model, limit = GaussianMixture(2, covariance, weight_prior=weight_prior), norm.isf(1e-4 / 2)
    early = fit(model, EIGHT, max_steps=1, init="random", restarts=1)
    values = _what_is_bounded(early)
    error = values.std(ddof=1) / len(values) ** 0.5
    assert abs(values.mean() - early.elbo[0]) / error < limit
    assert abs(values.mean() - early.elbo[0] - 1) / error > limit
    final = fit(model, EIGHT)
    np.testing.assert_allclose(_what_is_bounded(final), final.elbo[0], rtol=0, atol=0.03)


def _what_is_bounded(found: GuidePosterior) -> np.ndarray:
    model, posterior = found.program, found.guide.posterior
    scores = posterior.weights.expected_log() + model.family.expected_log_prob(EIGHT, posterior.component)
    shares, sites = share_out(scores), found.sample(2000, seed=5)
    rows = (shares * (model.log_prob_components(EIGHT, sites) - shares.log())).sum((-2, -1))
    return (rows + model.log_prior(sites, found.guide.prior) - model.log_prior(sites, posterior)).numpy()


def test_the_evidence_estimate_counts_labellings():
    """Two groups 20 standard deviations apart: all that the bound lacks is the other labelling, and a little.

    What remains, 0.2 nats, is the dependence within a component of 4 rows between its assignment and its parameters.
    """
    x = torch.tensor([[-10.4], [-9.8], [-10.1], [-9.6], [10.3], [9.9], [10.5], [9.4]], dtype=torch.float64)
    model = GaussianMixture(2, "diagonal")
    found, exact = fit(model, x), float(exact_log_evidence(model, x))
    assert found.log_evidence == pytest.approx(found.elbo[0] + math.log(2), abs=1e-12)
    assert abs(found.log_evidence - exact) < 0.2
    assert exact - found.elbo[0] > 0.5  # without the labelling it is further off


def test_labellings_are_counted_only_where_they_differ():
    x = load_faithful().x
    sticks = fit(GaussianMixture(2, weight_concentration=2.0, weight_prior="stick_breaking"), x)
    assert sticks.log_evidence == sticks.elbo[0]
    even = fit(GaussianMixture(2, weight_prior="stick_breaking"), x)  # Beta(1, 1): the two pieces are alike
    assert even.log_evidence == pytest.approx(even.elbo[0] + math.log(2), abs=1e-12)
    loc = torch.stack([x.mean(0), x.mean(0) + 1])
    told_apart = dataclasses.replace(GaussianMixture(2).prior(x).component, loc=loc)
    own = fit(GaussianMixture(2, component_prior=told_apart), x)
    assert own.log_evidence == own.elbo[0]
    empty = fit(GaussianMixture(5, weight_concentration=1e-3), x[x[:, 0] > 3], init="random")
    occupied = int((empty.guide.count >= 1).sum())
    assert occupied < 5
    expected = math.log(math.factorial(5) / math.factorial(5 - occupied))
    assert empty.log_evidence - empty.elbo[0] == pytest.approx(expected, abs=1e-10)
    assert f"{occupied} of 5 components hold a row or more" in empty.status.message


# --- against Gibbs --------------------------------------------------------------------------------------------------


def test_means_are_those_of_gibbs_and_spreads_are_not_above():
    """Old Faithful's two groups overlap little: means within a fifth of a standard deviation of Gibbs's.

    Standard deviations are at most those of Gibbs (known to 2% from 4,000 draws; 10% is five times that): q takes
    assignments and parameters for independent, and so is too narrow.
    """
    x, model = load_faithful().x, GaussianMixture(2)
    variational = fit(model, x)
    gibbs = infer(model, x, Gibbs(chains=20, warmup=50, draws=200, init=variational.sites()), seed=0)
    draws, exact = variational.sample(4000, seed=0), {n: v.flatten(0, 1) for n, v in gibbs.draws.items()}
    for name in ("weights", "loc", "cov"):
        std = exact[name].std(0)
        assert ((variational.sites()[name] - exact[name].mean(0)).abs() < std / 5).all()
        assert (draws[name].std(0) < 1.1 * std).all()


def test_spreads_are_too_small_where_components_overlap():
    """Two components of one standard deviation, 1.5 of it apart: the mean of each is half as certain as VB says."""
    generator = np.random.default_rng(0)
    x = torch.tensor(generator.normal(size=(300, 1)) + 1.5 * (generator.random((300, 1)) < 0.4))
    model = GaussianMixture(2, "tied")
    variational = fit(model, x)
    gibbs = infer(model, x, Gibbs(chains=20, warmup=200, draws=300), seed=0)
    exact = gibbs.draws["loc"][..., 0].sort(-1).values.flatten(0, 1).std(0)
    narrow = variational.sample(4000, seed=0)["loc"][..., 0].sort(-1).values.std(0)
    assert (narrow < 0.7 * exact).all()


# --- the answer -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faithful() -> GuidePosterior:
    return fit(GaussianMixture(2), load_faithful().x)


def test_the_same_seed_gives_the_same_bits(faithful):
    again, other = (fit(GaussianMixture(2), load_faithful().x, seed=seed) for seed in (0, 1))
    assert torch.equal(again.history["elbo"].nan_to_num(), faithful.history["elbo"].nan_to_num())
    assert all(torch.equal(again.sites()[name], value) for name, value in faithful.sites().items())
    assert (again.pareto_k, again.log_evidence) == (faithful.pareto_k, faithful.log_evidence)
    assert not torch.equal(other.history["elbo"][:, 0], faithful.history["elbo"][:, 0])


def test_a_restart_in_a_batch_is_that_restart_alone():
    x, model = load_iris().x, GaussianMixture(3)
    loc = x[torch.tensor([[0, 60, 120], [10, 90, 140], [3, 4, 149]])]
    starts = {"weights": loc.new_full((3, 3), 1 / 3), "loc": loc, "cov": x.T.cov().expand(3, 3, 4, 4)}
    together = fit(model, x, init=starts)
    alone = [fit(model, x, init={n: v[i] for n, v in starts.items()}).elbo[0] for i in range(3)]
    torch.testing.assert_close(together.elbos, torch.tensor(alone, dtype=x.dtype), rtol=1e-11, atol=0)
    assert together.elbo[0] == max(alone) or together.elbo[0] == pytest.approx(max(alone), rel=1e-11)


def test_is_saved_and_loaded(faithful, tmp_path):
    faithful.save(tmp_path / "vb.safetensors")
    again = load_posterior(tmp_path / "vb.safetensors")
    assert (again.method, again.elbo, again.pareto_k, again.status) == (
        faithful.method, faithful.elbo, faithful.pareto_k, faithful.status)  # fmt: skip
    one, two = (posterior.sample(5, seed=3) for posterior in (faithful, again))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert torch.equal(again.guide.posterior.weights.concentration, faithful.guide.posterior.weights.concentration)


def test_goes_to_arviz_as_a_guide(faithful):
    tree = faithful.to_arviz(predictive_draws=10, prior_draws=10)
    assert tree["posterior"]["cov"].shape == (1, 1000, 2, 2, 2)
    assert tree["posterior"].attrs["kind"] == "guide"
    assert tree["posterior"].attrs["elbo"] == faithful.elbo[0]
    assert tree["log_likelihood"]["x"].shape == (1, 1000, 272)


@pytest.mark.parametrize(("covariance", "weight_prior"), KINDS)
def test_draws_have_the_moments_of_the_guide(covariance, weight_prior):
    """Null: 4,000 independent draws of the weights have the mean stated; one false alarm in 10,000 for all three."""
    found = fit(GaussianMixture(3, covariance, weight_prior=weight_prior), load_iris().x, restarts=3)
    draws = found.sample(4000, seed=1)
    error = draws["weights"].std(0) / 4000**0.5
    z = (draws["weights"].mean(0) - found.guide.posterior.weights.mean()) / error
    assert z.abs().max() < norm.isf(1e-4 / 6)
    assert all(value.isfinite().all() for value in found.sites().values())


def test_a_site_without_a_mean_is_given_at_its_mode():
    """Degrees of freedom 1.5 of an empty component: its covariance has no mean."""
    x = load_faithful().x
    prior = NormalInverseWishart(x.mean(0), 0.01, 1.5, x.T.cov() / 10)
    found = fit(GaussianMixture(6, weight_concentration=1e-4, component_prior=prior), x, init="random", restarts=4)
    empty = found.guide.count < 1e-3
    assert empty.any()
    assert found.guide.model.mean_sites(found.guide.posterior)["cov"][empty].isnan().all()
    torch.testing.assert_close(found.sites()["cov"][empty][0], x.T.cov() / 10 / (1.5 + 2 + 1 + 1), rtol=1e-3, atol=0)


def test_starts_from_labels_and_from_many_rows():
    """Labels of the rows of two restarts; and more rows than a start looks at, 65,536, with a weight of 0 for half."""
    x, model = load_faithful().x, GaussianMixture(2)
    labels = torch.stack([x[:, 0] > 3, x[:, 1] > 70]).long()
    found = fit(model, x, init=labels)
    assert found.elbos.shape == (2,)
    assert found.elbo[0] == pytest.approx(fit(model, x).elbo[0], abs=1e-5)
    many = x.repeat(300, 1)
    kept = (torch.arange(len(many)) < 65_600).double()
    weighted = fit(model, many, restarts=2, row_weights=kept, init="kmeans")
    assert float(weighted.guide.count.sum()) == pytest.approx(65_600, rel=1e-9)
    with pytest.raises(MethodError, match=r"expected labels from 0 to 1, got 0 to 2"):
        fit(model, x, init=labels.sum(0) * 1)


def test_row_weights_stand_for_rows():
    """Whole weights from given sites: the same bound and guide as rows repeated; sums of other order, 1e-9."""
    x, model = (
        load_faithful().x,
        GaussianMixture(2, component_prior=GaussianMixture(2).prior(load_faithful().x).component),
    )
    weights = torch.arange(len(x)) % 3
    init = infer(model, x, EM(), seed=0).sites()
    weighted = fit(model, x, init=init, row_weights=weights)
    repeated = fit(model, x.repeat_interleave(weights, 0), init=init)
    assert weighted.elbo[0] == pytest.approx(repeated.elbo[0], rel=1e-9)
    torch.testing.assert_close(weighted.guide.count, repeated.guide.count, rtol=1e-6, atol=0)
    assert weighted.pareto_k == pytest.approx(repeated.pareto_k, abs=0.02)  # the same draws but for rounding
    labels = fit(model, x, row_weights=weights)
    assert labels.elbo[0] == pytest.approx(weighted.elbo[0], abs=1e-4)


def test_float32_data_are_fitted_in_float32():
    """The bound to 1e-4 of its size: a sum of 272 terms rounded at 6e-8 each."""
    single, double = (fit(GaussianMixture(2), load_faithful().x.to(dtype)) for dtype in (torch.float32, torch.float64))
    assert single.sites()["loc"].dtype is torch.float32
    assert single.elbo[0] == pytest.approx(double.elbo[0], rel=1e-4)


# --- ends and refusals ----------------------------------------------------------------------------------------------


def test_says_when_it_was_stopped_early():
    with pytest.warns(FitWarning, match=r"VB\(\) stopped after 3 steps with .* still to gain .* tolerance=1e-06"):
        found = fit(GaussianMixture(3), load_iris().x, max_steps=3, init="random")
    assert found.status.state == "max_steps"
    assert found.elbos.isfinite().all()


def test_keeps_what_there_is_when_interrupted(monkeypatch):
    step = VB.step

    def interrupted(self, problem, state):
        if len(state.objectives) == 2:
            raise KeyboardInterrupt
        return step(self, problem, state)

    monkeypatch.setattr(VB, "step", interrupted)
    with pytest.warns(FitWarning, match="stopped by the user after 2 of"):
        found = fit(GaussianMixture(2), load_faithful().x)
    assert found.elbo[0] < 0
    assert found.history["elbo"].shape == (10, 3)


def test_refuses_programs_without_a_conjugate_prior():
    def program(x):
        pass

    with pytest.raises(
        MethodError, match=r"VB\(\) needs a mixture .* got the program 'program'\. MAP\(\), SVI\(\), NUTS\(\)"
    ):
        infer(program, load_faithful().x, VB(), seed=0)

    class NotConjugate(GaussianMixture):
        conditionally_conjugate = False

    problem = Problem(NotConjugate(2), Arguments.of(load_faithful().x), 0)
    with pytest.raises(
        MethodError, match=r"those of NotConjugate \(GaussianFamily\) have not\. Use EM\(\), which does"
    ):
        conjugate_model(problem, "Gibbs()")


@pytest.mark.parametrize("settings", [{"restarts": 0}, {"max_steps": 0}, {"num_draws": 0}, {"tolerance": 0.0},
                                      {"init": "k-means"}])  # fmt: skip
def test_refuses_settings_out_of_range(settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(MethodError, match=f"{name}: expected .* got {value!r}"):
        VB(**settings)


def test_a_bound_that_is_not_finite_is_a_failure(monkeypatch):
    monkeypatch.setattr(
        GaussianMixture, "divergence", lambda self, posterior, prior: posterior.weights.mean().sum(-1) * torch.nan
    )
    with pytest.raises(FitError, match="the ELBO is not finite in any of 10 restarts"):
        fit(GaussianMixture(2), load_faithful().x)
