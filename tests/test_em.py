"""EM: scikit-learn's and published optima, the laws of EM, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as SklearnMixture

from probmix.datasets import load_faithful, load_iris, load_wine
from probmix.errors import DataError, FitError, MethodError
from probmix.inference import EM, infer
from probmix.models import GaussianMixture
from probmix.status import FitWarning

COVARIANCES = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}
DATA = {"faithful": load_faithful, "iris": load_iris, "wine": load_wine}


def spread_of(fit: SklearnMixture) -> dict[str, torch.Tensor]:
    """scikit-learn's covariances_ under our names; the shapes are the same."""
    name = "cov" if fit.covariance_type in ("full", "tied") else "var"
    return {name: torch.from_numpy(np.array(fit.covariances_))}


def sklearn_start(x: np.ndarray, kind: str, num_components: int) -> tuple[SklearnMixture, dict[str, torch.Tensor]]:
    """scikit-learn's own starting point (its k-means, then one M-step), and its fit from there to convergence."""
    settings = {"covariance_type": kind, "reg_covar": 0.0, "random_state": 0}
    start = SklearnMixture(num_components, **settings)
    start._check_parameters(x)
    start._initialize_parameters(x, np.random.RandomState(0))
    fit = SklearnMixture(num_components, tol=1e-13, max_iter=5000, **settings).fit(x)
    sites = {"weights": start.weights_, "loc": start.means_}
    return fit, {n: torch.from_numpy(np.array(v)) for n, v in sites.items()} | spread_of(start)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_reaches_scikit_learns_likelihood_from_its_own_start(data, covariance):
    """Null: same start, same algorithm, same optimum. 1e-8 relative: both stop well below that (1e-6 nats of ~1000)."""
    x = DATA[data]().x
    num_components = 2 if data == "faithful" else 3
    theirs, start = sklearn_start(x.numpy(), COVARIANCES[covariance], num_components)
    ours = infer(GaussianMixture(num_components, covariance), x, EM(init=start, objective="ml", max_steps=5000), seed=0)
    expected = theirs.score(x.numpy()) * len(x)
    assert ours.status.state == "converged"
    assert ours.objective == pytest.approx(expected, rel=1e-8)


def test_published_optimum_of_old_faithful():
    """mclust reports -1130.264 for two unconstrained components (VVV,2), to the digits it prints."""
    fit = infer(GaussianMixture(2), load_faithful().x, EM(objective="ml"), seed=0)
    assert fit.objective == pytest.approx(-1130.264, abs=5e-4)


@pytest.mark.parametrize("objective", ["map", "ml"])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_objective_never_falls(covariance, objective):
    """A law of EM. 1e-9 of the objective's size is the rounding of a sum of a few hundred terms."""
    fit = infer(GaussianMixture(3, covariance), load_iris().x, EM(restarts=8, objective=objective), seed=1)
    history = fit.history["objective"]
    rises = history.diff(dim=-1)
    assert (rises[rises.isfinite()] > -1e-9 * history[history.isfinite()].abs().max()).all()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_map_objective_is_the_log_joint_of_the_point(covariance):
    x, model = load_faithful().x, GaussianMixture(2, covariance)
    fit = infer(model, x, EM(), seed=0)
    torch.testing.assert_close(
        model.log_joint(x, fit.sites()), torch.tensor(fit.objective, dtype=x.dtype), rtol=1e-10, atol=0
    )
    gradient_of = {n: v.clone().requires_grad_() for n, v in fit.sites().items() if n == "loc"}
    value = model.log_joint(x, {**fit.sites(), **gradient_of})
    (gradient,) = torch.autograd.grad(value, list(gradient_of.values()))
    assert gradient.abs().max() < 1e-2  # within 1e-6 nats of the top, curvature of order 1e3 at most: |g| <= sqrt(2e-3)


def test_stops_close_to_the_optimum_where_progress_is_slow():
    """scikit-learn's default stops far from it on overlapping components; Aitken's bound does not.

    The tolerance is what the setting promises: 1e-6 nats, times 100 because Aitken's estimate is asymptotic.
    """
    generator = torch.Generator().manual_seed(3)
    labels = (torch.rand(1000, generator=generator) < 0.25).double()
    x = (torch.randn(1000, generator=generator, dtype=torch.float64) + 1.5 * labels)[:, None]
    model = GaussianMixture(2, "tied")
    short = infer(model, x, EM(restarts=1, objective="ml"), seed=0)
    long = infer(model, x, EM(init=short.sites(), objective="ml", tolerance=1e-13, max_steps=100_000), seed=0)
    assert 0 <= long.objective - short.objective + 1e-9 < 1e-4
    default = SklearnMixture(2, covariance_type="tied", random_state=0).fit(x.numpy())
    assert long.objective - default.score(x.numpy()) * len(x) > 1e-2  # the control: the peer's rule does stop early


def test_all_restarts_are_reported_and_the_best_is_kept():
    fit = infer(GaussianMixture(3), load_wine().x[:, :4], EM(restarts=7, init="random"), seed=0)
    assert fit.objectives.shape == (7,)
    assert fit.history["objective"].shape[0] == 7
    assert fit.objective == fit.objectives.max()


@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")
def test_a_restart_in_a_batch_is_that_restart_alone():
    x, model = load_iris().x, GaussianMixture(3)
    starts = [
        infer(model, x, EM(restarts=1, init="random", max_steps=2, tolerance=1e-12), seed=s, throw=False)
        for s in (1, 2)
    ]
    together = {n: torch.stack([s.sites()[n] for s in starts]) for n in starts[0].sites()}
    batch = infer(model, x, EM(init=together), seed=0)
    alone = [infer(model, x, EM(init=s.sites()), seed=0).objective for s in starts]
    torch.testing.assert_close(batch.objectives, torch.tensor(alone, dtype=x.dtype), rtol=1e-12, atol=0)


def test_blocks_of_rows_change_nothing_but_rounding():
    x = load_iris().x
    whole = infer(GaussianMixture(3), x, EM(restarts=3), seed=0)
    blocks = infer(GaussianMixture(3), x, EM(restarts=3, max_elements=500), seed=0)
    torch.testing.assert_close(blocks.objectives, whole.objectives, rtol=1e-9, atol=0)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_translation_scaling_and_column_order_change_nothing_else(covariance):
    """Equivariance of the estimate: x -> a x + b moves the sites and adds n d log(1/a) to the likelihood."""
    x = load_faithful().x
    moved = 3.0 * x.flip(-1) + 50.0
    one, other = (infer(GaussianMixture(2, covariance), data, EM(objective="ml"), seed=0) for data in (x, moved))
    assert other.objective == pytest.approx(one.objective - x.numel() * np.log(3.0), rel=1e-8)
    loc = one.sites()["loc"]
    expected = (3.0 * loc.flip(-1) + 50.0).sort(0).values
    torch.testing.assert_close(other.sites()["loc"].sort(0).values, expected, rtol=1e-4, atol=0)  # flat top: sqrt(1e-8)


def test_one_component_is_the_textbook_estimate():
    x = load_iris().x
    sites = infer(GaussianMixture(1), x, EM(restarts=1, objective="ml"), seed=0).sites()
    torch.testing.assert_close(sites["loc"][0], x.mean(0))
    torch.testing.assert_close(sites["cov"][0], torch.cov(x.mT, correction=0))


def test_weights_that_sum_to_almost_one_are_taken():
    """Published estimates are rounded; refusing 1.0000001 helps nobody."""
    start = infer(GaussianMixture(2), load_faithful().x, EM(), seed=0).sites()
    nudged = start | {"weights": start["weights"] * 1.0000001}
    assert infer(GaussianMixture(2), load_faithful().x, EM(init=nudged), seed=0).status.ok


def test_float32_data_stay_float32():
    fit = infer(GaussianMixture(2), load_faithful().x.float(), EM(objective="ml"), seed=0)
    assert {v.dtype for v in fit.sites().values()} == {torch.float32}
    assert fit.objective == pytest.approx(-1130.264, rel=1e-4)  # float32 has 7 digits; 1130 of them sum over 272 rows


def test_collapse_is_a_failure_that_names_the_component():
    x = torch.tensor([[0.0], [0.0], [0.0], [5.0], [6.1], [7.3]], dtype=torch.float64)
    with pytest.raises(FitError, match=r'component [01] collapsed.*all 1 restarts.*objective="map"'):
        infer(GaussianMixture(2, "spherical"), x, EM(restarts=1, objective="ml"), seed=0)
    with pytest.warns(FitWarning, match="failed"):
        fit = infer(GaussianMixture(2, "spherical"), x, EM(restarts=1, objective="ml"), seed=0, throw=False)
    assert fit.status.state == "failed"
    assert fit.objectives.isnan().all()
    assert infer(GaussianMixture(2, "spherical"), x, EM(restarts=1), seed=0).status.ok  # the advice works


def test_some_collapsed_restarts_do_not_spoil_the_others():
    fit = infer(GaussianMixture(3), load_wine().x, EM(objective="ml"), seed=0)
    failed = int(fit.objectives.isnan().sum())
    assert 0 < failed < 10
    assert f"{failed} of 10 restarts collapsed" in fit.status.message
    assert np.isfinite(fit.objective)


def test_step_limit_is_said_with_what_is_left():
    with pytest.warns(FitWarning, match=r"stopped after 3 steps with .* still to gain.*Raise max_steps"):
        fit = infer(GaussianMixture(3), load_iris().x, EM(max_steps=3), seed=0)
    assert fit.status.state == "max_steps"


def test_a_plain_program_is_refused_with_the_methods_that_work():
    def my_program(x):
        return x

    with pytest.raises(
        MethodError, match=r"closed form.*GaussianMixture; got the program 'my_program'.*MAP\(\), SVI\(\)"
    ):
        infer(my_program, load_faithful().x, EM(), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"restarts": 0}, "restarts: expected at least 1, got 0"),
        ({"objective": "mle"}, 'objective: expected "map" or "ml", got \'mle\''),
        ({"init": "k-means"}, 'init: expected "kmeans\\+\\+", "kmeans", "random", "short".* got \'k-means\''),
        ({"annealing": -1}, "annealing: expected 0 steps or more, got -1"),
        (
            {"ridge_var": -1.0, "objective": "ml"},
            "ridge_var: expected 0 or more, in squared units of the data, got -1.0",
        ),
        ({"ridge_var": 1e-6}, 'ridge_var: expected 0 with objective="map", whose prior .* got 1e-06'),
        ({"tolerance": -1.0}, "tolerance: expected a positive number of nats, got -1.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(MethodError, match=message):
        EM(**settings)


def test_incomplete_starting_sites_are_named():
    with pytest.raises(MethodError, match=r"Add \['cov', 'weights'\]"):
        infer(GaussianMixture(2), load_faithful().x, EM(init={"loc": torch.zeros(2, 2)}), seed=0)


# -- weights, starts, annealing, ridge -------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["map", "ml"])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_weight_is_so_many_copies(covariance, objective):
    """Null: w copies of a row and one row of weight w have the same objective at every step. 1e-9: sums of 600 terms.

    The prior is given, since the default one is scaled to the rows as they are.
    """
    x = load_faithful().x
    weights = torch.arange(len(x)) % 3
    plain = GaussianMixture(2, covariance)
    model = GaussianMixture(2, covariance, component_prior=plain.prior(x).component)
    start = infer(model, x, EM(restarts=1), seed=0).sites()
    start["loc"] = start["loc"] + 1.0
    one = infer(model, x, EM(init=start, objective=objective, row_weights=weights), seed=0)
    copies = infer(model, x.repeat_interleave(weights, 0), EM(init=start, objective=objective), seed=0)
    assert one.objective == pytest.approx(copies.objective, rel=1e-9)
    steps = min(one.history["objective"].shape[-1], copies.history["objective"].shape[-1]) - 1
    ours, theirs = (fit.history["objective"][:, :steps] for fit in (one, copies))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    unweighted = infer(model, x, EM(init=start, objective=objective), seed=0)
    assert unweighted.objective != pytest.approx(one.objective, rel=1e-6)  # the control


@pytest.mark.parametrize("init", ["kmeans++", "kmeans", "random", "short"])
def test_named_starts_see_the_weights(init):
    """Rows of weight 0 do not exist: a far cluster of them draws no component."""
    x = torch.cat([load_faithful().x, load_faithful().x[:50] + 1000])
    weights = torch.cat([torch.ones(272), torch.zeros(50)])
    model = GaussianMixture(2, component_prior=GaussianMixture(2).prior(x[:272]).component)
    fit = infer(model, x, EM(init=init, objective="ml", row_weights=weights), seed=0)
    assert fit.objective == pytest.approx(-1130.264, abs=5e-4)  # mclust's optimum without them


@pytest.mark.parametrize("init", ["kmeans", "short", "hierarchical"])
def test_other_starts_reach_the_published_optimum(init):
    fit = infer(GaussianMixture(2), load_faithful().x, EM(init=init, objective="ml"), seed=0)
    assert fit.objective == pytest.approx(-1130.264, abs=5e-4)
    assert len(fit.objectives) == (1 if init == "hierarchical" else 10)


def test_labels_are_a_start():
    iris = load_iris()
    species = torch.arange(150) // 50
    fit = infer(GaussianMixture(3), iris.x, EM(init=species, objective="ml"), seed=0)
    assert fit.objective == pytest.approx(-180.185, abs=5e-3)  # mclust, VVV, 3 components: -180.186
    two = infer(GaussianMixture(3), iris.x, EM(init=torch.stack([species, species.flip(0)]), objective="ml"), seed=0)
    torch.testing.assert_close(two.objectives[0], two.objectives[1])


def gaps_to_the_optimum(method: EM) -> torch.Tensor:
    """Nats below the fit that starts at the truth, of twelve groups in three dimensions, for every restart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 12
    loc = 5.0 * torch.randn(12, 3, generator=generator, dtype=torch.float64)
    x, model = loc[labels] + torch.randn(300, 3, generator=generator, dtype=torch.float64), GaussianMixture(12, "EII")
    return infer(model, x, EM(init=labels), seed=0).objective - infer(model, x, method, seed=0).objectives


def test_short_runs_find_the_optimum_more_often():
    """Of 40 starts; without them (the control) most end in a poor local optimum."""
    short, plain = (gaps_to_the_optimum(EM(restarts=40, init=init)) for init in ("short", "random"))
    assert (plain < 0.1).double().mean() < 0.3
    assert (short < 0.1).double().mean() > 0.7


def test_annealed_steps_are_those_of_blurred_responsibilities():
    """The first step by hand: responsibilities proportional to the root of weight times density. 1e-10: rounding."""
    x, model = load_iris().x, GaussianMixture(3)
    start = infer(model, x, EM(restarts=1), seed=0).sites()
    start["loc"] = start["loc"] + 0.5
    with pytest.warns(FitWarning, match="max_steps"):
        fit = infer(model, x, EM(init=start, annealing=9, max_steps=1, objective="ml"), seed=0)
    shares = (0.5 * model.log_prob_components(x, start)).softmax(-1)
    expected = model.maximise(model.sufficient_statistics(x, shares), None)
    torch.testing.assert_close(fit.sites(), expected, rtol=1e-10, atol=1e-10)
    plain = model.maximise(model.sufficient_statistics(x, model.responsibilities(x, start)), None)
    assert (plain["loc"] - expected["loc"]).abs().max() > 1e-3  # the control


def test_annealing_ends_in_plain_em():
    """After its last step the objective rises at every step, up to 1e-9 of its size, the rounding of a sum."""
    fit = infer(GaussianMixture(3), load_iris().x, EM(restarts=4, annealing=7), seed=0)
    rises = fit.history["objective"][:, 7:].diff(dim=-1)
    assert (rises[rises.isfinite()] > -1e-9 * abs(fit.objective)).all()
    assert fit.status.ok


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_a_ridge_is_scikit_learns_reg_covar(covariance):
    """The same iterates, so the same likelihood after ten steps; 1e-9: rounding of 150 terms, ten times over."""
    x, kind = load_iris().x, COVARIANCES[covariance]
    settings = {"covariance_type": kind, "reg_covar": 0.05, "random_state": 0}
    start = SklearnMixture(3, **settings)
    start._check_parameters(x.numpy())
    start._initialize_parameters(x.numpy(), np.random.RandomState(0))
    theirs = SklearnMixture(3, tol=0.0, max_iter=10, **settings).fit(x.numpy())
    sites = {"weights": torch.from_numpy(start.weights_), "loc": torch.from_numpy(start.means_), **spread_of(start)}
    with pytest.warns(FitWarning, match="max_steps"):
        ours = infer(
            GaussianMixture(3, covariance),
            x,
            EM(init=sites, objective="ml", max_steps=10, tolerance=1e-300, ridge_var=0.05),
            seed=0,
        )
    assert ours.objective == pytest.approx(theirs.score(x.numpy()) * 150, rel=1e-9)


def test_a_ridge_keeps_components_from_collapsing():
    x = torch.tensor([[0.0], [0.0], [0.0], [5.0], [6.1], [7.3]], dtype=torch.float64)
    fit = infer(GaussianMixture(2, "spherical"), x, EM(restarts=1, objective="ml", ridge_var=1e-4), seed=0)
    assert fit.sites()["var"].min() == pytest.approx(1e-4)


# -- data that are hard ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["kmeans++", "kmeans", "random", "short"])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_more_components_than_distinct_points_is_no_trouble_with_a_prior(covariance, init):
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 0.0], [3.0, 0.5], [1.0, 2.0]], dtype=torch.float64).repeat(3, 1)
    fit = infer(GaussianMixture(7, covariance), x, EM(restarts=3, init=init), seed=0)
    assert fit.status.ok
    assert all(value.isfinite().all() for value in fit.sites().values())


def test_a_constant_column_is_named():
    x = load_faithful().x.clone()
    x[:, 1] = 3.0
    with pytest.raises(DataError, match=r"1 of 2 constant, the first at index 1"):
        infer(GaussianMixture(2), x, EM(), seed=0)


def test_all_zero_weights_are_refused():
    with pytest.raises(DataError, match="got all zero"):
        infer(GaussianMixture(2), load_faithful().x, EM(row_weights=torch.zeros(272)), seed=0)


def test_starting_sites_without_a_density_are_refused_by_component():
    start = infer(GaussianMixture(2), load_faithful().x, EM(), seed=0).sites()
    start["cov"] = start["cov"] * torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None, None]
    with pytest.raises(MethodError, match=r"got none for component 1 .*positive definite"):
        infer(GaussianMixture(2), load_faithful().x, EM(init=start), seed=0)


def test_a_likelihood_that_overflows_is_a_failure_that_says_so():
    x = load_faithful().x * 1e160
    prior = GaussianMixture(2, "spherical").prior(load_faithful().x).component
    with pytest.raises(FitError, match=r"not a number at the start\. Rescale"):
        infer(GaussianMixture(2, "spherical", component_prior=prior), x, EM(restarts=2, objective="ml"), seed=0)


def test_when_every_restart_collapses_the_message_names_the_component_and_the_sites_are_finite():
    """Component 1 starts on a point that is there twice; maximum likelihood shrinks it to nothing in a few steps."""
    x = torch.cat([torch.linspace(-3, 3, 30), torch.full((2,), 50.0)]).double()
    loc, var = torch.tensor([[0.0], [50.0]]), torch.tensor([4.0, 1.0])
    sites = {"weights": torch.tensor([0.9, 0.1]), "loc": loc, "var": var}
    fit = infer(GaussianMixture(2, "spherical"), x, EM(init=sites, objective="ml"), seed=0, throw=False)
    assert fit.status.state == "failed"
    assert "component 1 collapsed" in fit.status.message
    assert all(value.isfinite().all() for value in fit.sites().values())
    assert fit.sites()["var"].min() > 0
