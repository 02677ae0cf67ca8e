"""The Gaussian mixture: its program against its closed form, and both against scikit-learn and scipy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import pyro
import pytest
import scipy.stats
import sklearn.mixture
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta
from pyro.infer.mcmc.util import TraceTreeEvaluator
from torch import Tensor

from probmix.conjugate import NormalInverseGamma, NormalInverseWishart
from probmix.errors import DataError, ProgramError
from probmix.models import GaussianMixture
from probmix.typing import ClosedFormMixture, Named, Observing

NAMES = ["full", "tied", "diagonal", "spherical"]
SKLEARN = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}
GROUPS = torch.tensor([0, 1, 1, 2, 2, 2])
every_covariance = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _clean_state() -> Iterator[None]:
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(0)
        yield


def make_data(size: int = 2, count: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, size, generator=generator, dtype=torch.float64)
    mixing = torch.eye(size, dtype=torch.float64) + 0.3
    return noise @ mixing + 4 * GROUPS.repeat(count)[:count, None] + 10


def make_sites(model: GaussianMixture, x: Tensor, batch: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """MAP sites after one step from noisy labels: plausible, and different in each batch entry."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.nn.functional.one_hot(GROUPS.repeat(len(x))[: len(x)] % model.num_components)
    noise = torch.randn(*batch, len(x), model.num_components, generator=generator)
    weights = (2 * labels + 2 * noise).to(x).softmax(-1)
    return model.maximise(model.sufficient_statistics(x, weights), model.prior(x))


def program_log_joint(model: GaussianMixture, x: Tensor, sites: dict[str, Tensor]) -> Tensor:
    """Log joint of the Pyro program with the assignments summed out by Pyro."""
    program = poutine.condition(poutine.enum(model, first_available_dim=-2), sites)
    trace = poutine.trace(program).get_trace(x)
    return TraceTreeEvaluator(trace, has_enumerable_sites=True, max_plate_nesting=1).log_prob(trace)


# --- program and closed form -----------------------------------------------------------------------------------------


@every_covariance
@pytest.mark.parametrize(("size", "count"), [(1, 1), (2, 3), (4, 2)])
def test_the_program_and_the_closed_form_have_one_log_joint(name: str, size: int, count: int) -> None:
    x, model = make_data(size), GaussianMixture(count, name, weight_concentration=1.7)
    sites = make_sites(model, x, (2, 2))
    closed = model.log_joint(x, sites)
    assert closed.shape == (2, 2)
    for i, j in np.ndindex(2, 2):
        expected = program_log_joint(model, x, {site: value[i, j] for site, value in sites.items()})
        torch.testing.assert_close(closed[i, j], expected, rtol=1e-10, atol=0)


@every_covariance
def test_the_program_can_be_batched_by_vmap(name: str) -> None:
    x, model = make_data(), GaussianMixture(3, name)
    sites = make_sites(model, x, (4,))

    def log_joint(one: dict[str, Tensor]) -> Tensor:
        return program_log_joint(model, x, one)

    with pyro.validation_enabled(False):
        before = torch.distributions.Distribution._validate_args
        torch.distributions.Distribution.set_default_validate_args(False)
        gradient, value = torch.func.vmap(torch.func.grad_and_value(log_joint))(sites)
        torch.distributions.Distribution.set_default_validate_args(before)
    torch.testing.assert_close(value, model.log_joint(x, sites), rtol=1e-10, atol=0)
    closed = torch.func.vmap(torch.func.grad(lambda one: model.log_joint(x, one)))(sites)
    for site in ("weights", "loc"):
        torch.testing.assert_close(gradient[site], closed[site], rtol=1e-7, atol=1e-7)


@every_covariance
def test_the_program_runs_forwards(name: str) -> None:
    x, model = make_data(), GaussianMixture(3, name)
    trace = poutine.trace(poutine.uncondition(model)).get_trace(x)
    assert trace.nodes["x"]["value"].shape == x.shape
    assert trace.nodes["x"]["value"].dtype == x.dtype
    assert trace.nodes["assignment"]["value"].shape == (len(x),)
    assert trace.log_prob_sum().isfinite()
    for site, axes in model.dims.items():
        sizes = {"component": 3, "feature": 2, "feature_bis": 2}
        assert trace.nodes[site]["value"].shape == tuple(sizes[axis] for axis in axes)


@every_covariance
def test_the_assignment_of_a_row_picks_its_component(name: str) -> None:
    """Forwards, with given assignments: the rows' joint density is that of their own components."""
    x, model = make_data(), GaussianMixture(3, name)
    sites = make_sites(model, x)
    labels = torch.arange(len(x)) % 3
    trace = poutine.trace(poutine.condition(model, {**sites, "assignment": labels})).get_trace(x)
    trace.compute_log_prob()
    expected = model.family.log_prob(x, sites).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected, rtol=1e-11, atol=0)


@every_covariance
def test_pyro_fits_it_with_several_particles_at_once(name: str) -> None:
    """TraceEnum_ELBO with a delta guide: the loss is minus the closed-form log joint at the guide's sites."""
    x, model = make_data(), GaussianMixture(2, name)
    guide = AutoDelta(poutine.block(model, hide=["assignment"]))
    elbo = TraceEnum_ELBO(max_plate_nesting=1, num_particles=3, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    first = svi.evaluate_loss(x)
    for _ in range(20):
        svi.step(x)
    assert svi.evaluate_loss(x) < first
    sites = {site: value.detach() for site, value in guide.median().items()}
    assert -svi.evaluate_loss(x) == pytest.approx(model.log_joint(x, sites).item(), rel=1e-9)


# --- densities -------------------------------------------------------------------------------------------------------


def sklearn_mixture(model: GaussianMixture, sites: dict[str, Tensor]) -> sklearn.mixture.GaussianMixture:
    spread = sites.get("cov", sites.get("var")).numpy()
    peer = sklearn.mixture.GaussianMixture(model.num_components, covariance_type=SKLEARN[model.covariance])
    peer.weights_, peer.means_, peer.covariances_ = sites["weights"].numpy(), sites["loc"].numpy(), spread
    peer.precisions_cholesky_ = sklearn.mixture._gaussian_mixture._compute_precision_cholesky(
        spread, SKLEARN[model.covariance]
    )
    return peer


@every_covariance
def test_densities_and_responsibilities_are_those_of_scikit_learn(name: str) -> None:
    x, model = make_data(3), GaussianMixture(3, name)
    sites = make_sites(model, x)
    peer = sklearn_mixture(model, sites)
    np.testing.assert_allclose(model.log_prob(x, sites), peer.score_samples(x.numpy()), rtol=1e-10)
    np.testing.assert_allclose(model.responsibilities(x, sites), peer.predict_proba(x.numpy()), atol=1e-10)


@every_covariance
def test_responsibilities_sum_to_one_far_from_every_component(name: str) -> None:
    x, model = make_data(), GaussianMixture(3, name)
    sites = make_sites(model, x, (2,))
    far = torch.cat([x, x + 1e4, x - 1e8])
    resp = model.responsibilities(far, sites)
    assert resp.shape == (2, 180, 3)
    torch.testing.assert_close(resp.sum(-1), torch.ones_like(resp[..., 0]), rtol=0, atol=1e-14)


def test_weights_that_do_not_quite_sum_to_one_are_those_that_do() -> None:
    x, model = make_data(), GaussianMixture(3)
    sites = make_sites(model, x)
    off = {**sites, "weights": sites["weights"] * 1.0000001}
    torch.testing.assert_close(model.log_joint(x, off), model.log_joint(x, sites), rtol=1e-14, atol=0)
    torch.testing.assert_close(model.predictive(off).log_prob(x), model.log_prob(x, sites), rtol=1e-12, atol=0)
    assert torch.equal(model.sample(5, off, seed=0), model.sample(5, sites, seed=0))


def test_a_weight_of_zero_is_no_obstacle() -> None:
    x, model = make_data(), GaussianMixture(3)
    sites = make_sites(model, x)
    without = {**sites, "weights": torch.tensor([0.4, 0.6, 0.0]).double()}
    two = {"weights": without["weights"][:2], "loc": sites["loc"][:2], "cov": sites["cov"][:2]}
    torch.testing.assert_close(model.log_prob(x, without), GaussianMixture(2).log_prob(x, two), rtol=1e-12, atol=0)
    assert not model.responsibilities(x, without)[:, 2].any()
    assert model.log_joint(x, without).isfinite()


@every_covariance
def test_float32_stays_float32(name: str) -> None:
    x, model = make_data().float(), GaussianMixture(2, name)
    sites = make_sites(model, x)
    results = [
        *sites.values(),
        model.log_joint(x, sites),
        model.log_prob_components(x, sites),
        model.sample(3, sites, seed=0),
        model.predictive(sites).log_prob(x),
        *model.maximise(model.sufficient_statistics(x, model.responsibilities(x, sites)), None).values(),
    ]
    assert {value.dtype for value in results} == {torch.float32}


@every_covariance
def test_one_column_may_come_without_its_axis(name: str) -> None:
    x, model = make_data(1), GaussianMixture(2, name)
    sites = make_sites(model, x)
    assert model.observe(x[:, 0]).shape == x.shape
    torch.testing.assert_close(model.log_joint(x[:, 0], sites), model.log_joint(x, sites))
    torch.testing.assert_close(program_log_joint(model, x[:, 0], sites), model.log_joint(x, sites))


# --- the prior -------------------------------------------------------------------------------------------------------


def test_the_default_prior_is_that_of_the_paper() -> None:
    """Fraley and Raftery (2007): mean, shrinkage 0.01, D + 2 degrees of freedom, variance over K**(2 / D)."""
    x = make_data(3)
    cov = np.cov(x.numpy().T)
    for name in NAMES:
        prior = GaussianMixture(4, name, weight_concentration=0.5).prior(x)
        assert prior.weights.concentration.tolist() == [0.5] * 4
        component = prior.component
        np.testing.assert_allclose(component.loc, x.numpy().mean(0), rtol=1e-13)
        assert component.mean_precision.item() == 0.01
        assert component.dof.item() == 5.0
        expected = {"diagonal": np.diag(cov), "spherical": np.diag(cov).mean()}.get(name, cov) / 4 ** (2 / 3)
        np.testing.assert_allclose(component.scatter, expected, rtol=1e-12)


def transformed(name: str, sites: dict[str, Tensor], scales: Tensor, shift: Tensor) -> dict[str, Tensor]:
    moved = {"weights": sites["weights"], "loc": sites["loc"] * scales + shift}
    if name in ("full", "tied"):
        return {**moved, "cov": sites["cov"] * scales * scales[:, None]}
    return {**moved, "var": sites["var"] * (scales.square() if name == "diagonal" else scales[0] ** 2)}


@every_covariance
def test_units_and_origin_of_the_data_do_not_matter(name: str) -> None:
    """One EM step on rescaled and shifted data gives the rescaled and shifted sites, under the default prior."""
    x, model = make_data(), GaussianMixture(3, name)
    scales = torch.tensor([1e-3, 1e-3] if name == "spherical" else [1e-3, 50.0]).double()
    shift = torch.tensor([-7.0, 1e3]).double()
    moved = make_sites(model, x * scales + shift)
    # Eight digits remain of the first column, 1e-3 wide beside 7.
    for site, value in transformed(name, make_sites(model, x), scales, shift).items():
        torch.testing.assert_close(moved[site], value, rtol=1e-8, atol=1e-8 * value.abs().min().item())


@every_covariance
def test_the_order_of_components_and_columns_does_not_matter(name: str) -> None:
    x, model = make_data(3), GaussianMixture(3, name)
    sites = make_sites(model, x, (2,))
    order = torch.tensor([2, 0, 1])
    relabelled = {
        site: value.index_select(1, order) if model.dims[site][0] == "component" else value
        for site, value in sites.items()
    }
    torch.testing.assert_close(model.log_joint(x, relabelled), model.log_joint(x, sites), rtol=1e-12, atol=0)
    shuffled = sites
    for site, axes in model.dims.items():
        for axis, kind in enumerate(axes):
            if kind.startswith("feature"):
                shuffled = {**shuffled, site: shuffled[site].index_select(axis + 1, order)}
    torch.testing.assert_close(model.log_joint(x[:, order], shuffled), model.log_joint(x, sites), rtol=1e-12, atol=0)


@every_covariance
def test_a_prior_of_the_users_own_is_used_as_it_is(name: str) -> None:
    x = make_data()
    if name in ("full", "tied"):
        own = NormalInverseWishart(torch.zeros(2), 1.0, 5.0, torch.eye(2))
    else:
        own = NormalInverseGamma(torch.zeros(2), 1.0, 2.0, torch.ones(2) if name == "diagonal" else torch.tensor(1.0))
    model = GaussianMixture(2, name, component_prior=own)
    model.observe(x)
    component = model.prior(x).component
    assert component.loc.dtype == torch.float64
    assert component.mean_precision.item() == 1.0
    sites = make_sites(model, x)
    torch.testing.assert_close(program_log_joint(model, x, sites), model.log_joint(x, sites), rtol=1e-10, atol=0)


# --- maximisation ----------------------------------------------------------------------------------------------------


@every_covariance
def test_one_component_is_the_textbook_estimator(name: str) -> None:
    x, model = make_data(), GaussianMixture(1, name)
    sites = model.maximise(model.sufficient_statistics(x, torch.ones(len(x), 1, dtype=x.dtype)), None)
    cov = np.cov(x.numpy().T, ddof=0)
    expected = {"diagonal": np.diag(cov), "spherical": np.diag(cov).mean()}.get(name, cov)
    spread = sites.get("cov", sites.get("var")).numpy()
    np.testing.assert_allclose(spread.reshape(np.shape(expected)), expected, rtol=1e-12)
    np.testing.assert_allclose(sites["loc"][0], x.numpy().mean(0), rtol=1e-13)
    assert sites["weights"].tolist() == [1.0]


@every_covariance
@pytest.mark.parametrize("penalised", [True, False])
def test_an_em_step_never_lowers_its_objective(name: str, penalised: bool) -> None:
    x, model = make_data(), GaussianMixture(3, name, weight_concentration=2.0)
    prior = model.prior(x) if penalised else None
    sites = make_sites(model, x, (5,))
    values = []
    for _ in range(15):
        values.append(model.log_joint(x, sites) if penalised else model.log_prob(x, sites).sum(-1))
        sites = model.maximise(model.sufficient_statistics(x, model.responsibilities(x, sites)), prior)
    steps = torch.stack(values).diff(dim=0)
    assert (steps > -1e-10 * values[-1].abs()).all()  # rounding of a sum of 60 terms
    assert (steps[0] > 0.1).all()


@every_covariance
def test_the_em_step_of_scikit_learn_is_ours(name: str) -> None:
    x, model = make_data(3), GaussianMixture(3, name)
    resp = model.responsibilities(x, make_sites(model, x))
    ours = model.maximise(model.sufficient_statistics(x, resp), None)
    peer = sklearn.mixture.GaussianMixture(3, covariance_type=SKLEARN[name], reg_covar=0.0)
    peer._initialize(x.numpy(), resp.numpy())
    np.testing.assert_allclose(ours["weights"], peer.weights_, rtol=1e-12)
    np.testing.assert_allclose(ours["loc"], peer.means_, rtol=1e-12)
    np.testing.assert_allclose(ours.get("cov", ours.get("var")), peer.covariances_, rtol=1e-9, atol=1e-9)


def test_a_weight_without_a_mode_goes_to_the_edge() -> None:
    model = GaussianMixture(3, weight_concentration=0.5)
    x = make_data()
    resp = torch.zeros(len(x), 3, dtype=x.dtype)
    resp[:20, 0] = resp[20:, 1] = 1.0
    weights = model.maximise(model.sufficient_statistics(x, resp), model.prior(x))["weights"]
    torch.testing.assert_close(weights, torch.tensor([19.5, 39.5, 0.0], dtype=x.dtype) / 59)


# --- new data --------------------------------------------------------------------------------------------------------


@every_covariance
def test_samples_have_the_moments_of_the_mixture(name: str) -> None:
    """Null: means, second moments and counts over 20000 rows within 5.5 standard errors: 24 numbers, 1e-6."""
    x, model = make_data(), GaussianMixture(3, name)
    sites = make_sites(model, x, (2,))
    draws, assignment = model.sample(20_000, sites, seed=1, return_assignments=True)
    assert draws.shape == (2, 20_000, 2)
    dense = model.predictive({site: value[1] for site, value in sites.items()})
    for part, expected in [(draws[1], dense.mean), ((draws[1] - dense.mean).square(), dense.variance)]:
        z = (part.mean(0) - expected) / (part.std(0) / 20_000**0.5)
        assert z.abs().max() < 5.5
    wrong = model.predictive(
        {**{site: value[1] for site, value in sites.items()}, "weights": sites["weights"][1].flip(0)}
    )
    assert ((draws[1].mean(0) - wrong.mean) / (draws[1].std(0) / 20_000**0.5)).abs().max() > 5.5  # the control
    counts = torch.stack([row.bincount(minlength=3) for row in assignment])
    expected = sites["weights"] * 20_000
    assert ((counts - expected) / (expected * (1 - sites["weights"])).sqrt()).abs().max() < 5.5


@every_covariance
def test_the_rows_of_each_component_follow_it(name: str) -> None:
    """Null: squared distances are chi-squared with 2 degrees of freedom; three tests, false alarms 3e-6."""
    x, model = make_data(), GaussianMixture(3, name)
    sites = make_sites(model, x)
    draws, assignment = model.sample(3000, sites, seed=2, return_assignments=True)
    shape = model.family.covariance
    distance = shape.block_distance(draws, sites["loc"], shape.lift(sites[shape.site])).sum(-2)
    for k in range(3):
        own = scipy.stats.kstest(distance[k, assignment == k].numpy(), "chi2", args=(2,))
        other = scipy.stats.kstest(distance[k, assignment != k].numpy(), "chi2", args=(2,))
        assert own.pvalue > 1e-6
        assert other.pvalue < 1e-6


def test_samples_depend_on_the_seed_alone() -> None:
    x, model = make_data(), GaussianMixture(3)
    sites = make_sites(model, x)
    state = torch.random.get_rng_state()
    first = model.sample(10, sites, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(model.sample(10, sites, seed=5), first)
    assert not torch.equal(model.sample(10, sites, seed=6), first)


@every_covariance
def test_the_predictive_density_is_the_average_over_draws(name: str) -> None:
    x, model = make_data(), GaussianMixture(3, name)
    sites = make_sites(model, x, (2, 4))
    predictive = model.predictive(sites)
    average = model.log_prob(x, sites).exp().mean((0, 1)).log()
    torch.testing.assert_close(predictive.log_prob(x), average, rtol=1e-11, atol=0)
    assert predictive.sample((7,)).shape == (7, 2)


@every_covariance
def test_the_predictive_density_integrates_to_one(name: str) -> None:
    x, model = make_data(1), GaussianMixture(3, name)
    grid = torch.linspace(-60, 90, 20_001, dtype=torch.float64)
    density = model.predictive(make_sites(model, x, (3,))).log_prob(grid[:, None]).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=1e-9)  # analytic tails, 7 points per std


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_components": 0}, "num_components: expected 1 or more, got 0: pass a positive integer"),
        (
            {"covariance": "diag"},
            "got 'diag': pass one of these names",
        ),
        ({"weight_concentration": 0.0}, r"expected a number above 0, got 0\.0: pass 1\.0 for a uniform prior"),
        ({"weight_concentration": float("nan")}, "expected a number above 0, got nan"),
        (
            {"component_prior": NormalInverseGamma(torch.zeros(2), 1.0, 1.0, torch.ones(2))},
            "expected NormalInverseWishart for covariance='full', got NormalInverseGamma: build the prior with",
        ),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        GaussianMixture(**{"num_components": 2, **settings})


def test_a_prior_for_other_data_is_refused() -> None:
    own = NormalInverseWishart(torch.zeros(3), 1.0, 5.0, torch.eye(3))
    with pytest.raises(
        ProgramError, match=r"expected loc to end in \(2,\) .* \(2, 2\) for 2 columns, got \(3,\) and \(3, 3\)"
    ):
        GaussianMixture(2, component_prior=own).observe(make_data())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mean_precision": torch.tensor(0.0)}, "mean_precision"),
        ({"dof": torch.tensor(1.0)}, "dof"),
        ({"scatter": -torch.eye(2)}, "scatter"),
    ],
)
def test_an_improper_prior_is_refused(change: dict, named: str) -> None:
    own = replace(NormalInverseWishart(torch.zeros(2), 1.0, 5.0, torch.eye(2)), **change)
    with pytest.raises(ProgramError, match=f"expected a proper prior .* got an improper {named}: change it"):
        GaussianMixture(2, component_prior=own).observe(make_data())


def test_data_are_checked_once_for_what_the_model_needs() -> None:
    x = make_data()
    constant = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    duplicated = torch.cat([x, x[:, :1]], 1)
    for name in NAMES:
        with pytest.raises(DataError, match="got 1 of 3 constant, the first at index 2"):
            GaussianMixture(2, name).observe(constant)
    for name in ("full", "tied"):
        with pytest.raises(DataError, match="columns 0 and 2 that are copies"):
            GaussianMixture(2, name).observe(duplicated)
    for name in ("diagonal", "spherical"):
        assert GaussianMixture(2, name).observe(duplicated) is duplicated
    own = NormalInverseWishart(torch.zeros(3), 1.0, 5.0, torch.eye(3))
    assert GaussianMixture(2, component_prior=own).observe(constant) is constant
    with pytest.raises(DataError, match="got 60 rows for 61 components: lower num_components"):
        GaussianMixture(61).observe(x)


def test_it_keeps_the_protocols_that_methods_ask_for() -> None:
    for protocol in (Named, Observing, ClosedFormMixture):
        assert isinstance(GaussianMixture(2), protocol)


def test_a_model_is_its_fields() -> None:
    model = GaussianMixture(3, "tied", 2.0)
    again = GaussianMixture(**{field.name: getattr(model, field.name) for field in fields(model)})
    assert again == model
    assert hash(again) == hash(model)
