"""Directions: distribution, draws and mixture, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import TraceTreeEvaluator
from scipy import stats

from probmix.errors import DataError, MethodError, ProgramError
from probmix.inference import EM, MAP, infer
from probmix.inference.mcmc import NUTS
from probmix.inference.vb import VB
from probmix.models.von_mises_fisher_mixture import IsotropicNormal, VonMisesFisherMixture
from probmix.von_mises_fisher import VonMisesFisher, concentration_of, draw_directions, mean_length


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


SITES = {"weights": tensor([0.3, 0.7]), "natural": tensor([[20.0, 0.0, 0.0], [0.0, 5.0, 5.0]])}


@pytest.fixture
def x() -> torch.Tensor:
    return VonMisesFisherMixture(2).sample(400, SITES, seed=0)


# --- the distribution -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 10, 60])
@pytest.mark.parametrize("concentration", [1e-3, 1.0, 30.0, 1e3])
def test_the_density_equals_scipy(size, concentration):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(20, size))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    expected = stats.vonmises_fisher(x[0], concentration).logpdf(x)
    ours = VonMisesFisher(torch.as_tensor(concentration * x[0])).log_prob(torch.as_tensor(x))
    # Terms of up to 1e3 cancel; scipy normalises its own direction.
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [2, 3, 10, 100, 500])
def test_the_concentration_of_a_mean_length_is_found_again(size):
    concentration = torch.logspace(-6, 5, 60, dtype=torch.float64)
    length = mean_length(concentration, size)
    found = concentration_of(length, size)
    # A length near 1 is known to 1e-16, so what it lacks to 1, which is (D - 1) / (2 kappa), to 1e-16 kappa relative.
    torch.testing.assert_close(found, concentration, rtol=1e-9, atol=0)
    for shrinkage in (1e-8, 1e-4, 1.0):
        pulled = length + shrinkage * concentration
        inside = pulled < 1 - 1e-9
        found = concentration_of(pulled[inside], size, shrinkage)
        torch.testing.assert_close(found, concentration[inside], rtol=1e-9, atol=0)


def test_mean_lengths_of_none_and_all():
    assert concentration_of(tensor([0.0, 1.0]), 3).isfinite().all()
    assert concentration_of(tensor(0.0), 3) == 0
    assert concentration_of(tensor(1.0), 3) > 1e13


@pytest.mark.parametrize("concentration", [0.5, 10.0, 1e4])
def test_draws_follow_the_distribution(concentration):
    """Kolmogorov-Smirnov, 20,000 draws: null, that they do; false alarm 1e-4. Control: a tenth more concentrated."""
    generator = torch.Generator().manual_seed(3)
    plane = draw_directions(tensor([concentration, 0.0]).expand(20_000, 2), generator)
    angle = torch.atan2(plane[:, 1], plane[:, 0]).numpy()
    assert stats.kstest(angle, stats.vonmises(concentration).cdf).pvalue > 1e-4
    space = draw_directions(tensor([0.0, 0.0, concentration]).expand(20_000, 3), generator)
    lack = (1 - space[:, 2]).numpy() if concentration < 100 else (space[:, :2].square().sum(-1) / 2).numpy()
    # In three dimensions what the cosine lacks to 1 is exponential, cut off at 2.
    cdf = stats.truncexpon(2 * concentration, scale=1 / concentration).cdf
    wrong = stats.truncexpon(2.2 * concentration, scale=1 / (1.1 * concentration)).cdf
    assert stats.kstest(lack, cdf).pvalue > 1e-4
    assert stats.kstest(lack, wrong).pvalue < 1e-4
    assert (space.norm(dim=-1) - 1).abs().max() < 1e-14


def test_draws_in_many_dimensions_have_the_mean_length():
    x = draw_directions(40 * torch.eye(50, dtype=torch.float64)[0].expand(5000, 50), torch.Generator().manual_seed(0))
    # Null: the mean is A(40) along the axis, 0 across. Five standard errors: a false alarm in two million.
    expected = torch.zeros(50, dtype=torch.float64)
    expected[0] = mean_length(tensor(40.0), 50)
    assert ((x.mean(0) - expected).abs() < 5 * x.std(0) / 5000**0.5).all()
    assert abs(float(x[:, 0].mean()) - 0.95 * float(expected[0])) > 5 * float(x[:, 0].std()) / 5000**0.5  # control


# --- the mixture ----------------------------------------------------------------------------------------------------


def test_the_pyro_program_has_the_log_joint_of_the_closed_form(x):
    model = VonMisesFisherMixture(2)
    program = poutine.condition(poutine.enum(model, first_available_dim=-2), SITES)
    trace = poutine.trace(program).get_trace(x)
    traced = TraceTreeEvaluator(trace, has_enumerable_sites=True, max_plate_nesting=1).log_prob(trace)
    # Sums of 400 terms in double precision: agreement to 1e-10 leaves a factor of 1e3 over rounding.
    torch.testing.assert_close(model.log_joint(x, SITES), traced, rtol=1e-10, atol=0)


@pytest.mark.parametrize("size", [2, 3, 20])
def test_one_component_is_the_fit_of_scipy(size):
    natural = torch.linspace(1, 6, size, dtype=torch.float64)
    x = draw_directions(natural.expand(300, size), torch.Generator().manual_seed(0))
    model = VonMisesFisherMixture(1)
    fit = infer(model, x, EM(objective="ml", restarts=1), seed=0)
    direction, concentration = stats.vonmises_fisher.fit(x.numpy())
    # scipy solves for the concentration by a root finder of its own, to 1e-8.
    np.testing.assert_allclose(model.directions(fit.sites())[0], direction, rtol=1e-9)
    np.testing.assert_allclose(model.concentrations(fit.sites())[0], concentration, rtol=1e-7)


def test_em_never_falls_and_finds_the_directions(x):
    model = VonMisesFisherMixture(2)
    fit = infer(model, x, EM(restarts=4), seed=0)
    steps = fit.history["objective"].diff()
    assert (steps[~steps.isnan()] > -1e-9).all()  # rounding of an objective of 600 nats
    order = fit.sites()["weights"].argsort()
    cosines = (model.directions(fit.sites())[order] * torch.nn.functional.normalize(SITES["natural"], dim=-1)).sum(-1)
    # Null: EM is consistent. An angle's standard error is 1 / sqrt(n kappa A) = 0.02 here; five of them, squared by
    # two. Swapped labels would have a cosine of 0.
    assert (cosines > 1 - 0.1**2 / 2).all()
    found = infer(model, x, MAP(init=fit.sites(), restarts=1), seed=0)
    assert found.objective == pytest.approx(fit.objective, abs=1e-5)  # EM stops within 1e-6 nats of the top


def test_a_tighter_prior_pulls_the_concentration_to_zero(x):
    model = VonMisesFisherMixture(1, component_prior=IsotropicNormal(0.5, num_features=3))
    statistics = model.sufficient_statistics(x, x.new_ones(len(x), 1))
    sites = model.maximise(statistics, model.prior(x))
    free = model.maximise(statistics, None)
    assert model.concentrations(sites) < model.concentrations(free)
    natural = sites["natural"].clone().requires_grad_()
    objective = model.family.log_prob(x, {"natural": natural}).sum() + model.family.log_prior(
        {"natural": natural}, model.prior(x).component
    )
    (gradient,) = torch.autograd.grad(objective, natural)
    assert gradient.abs().max() < 1e-9 * len(x)  # a maximum, up to rounding of 400 terms


def test_an_empty_component_keeps_its_site_and_a_point_is_singular():
    model, x = VonMisesFisherMixture(2), tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    alone = model.sufficient_statistics(x, tensor([[1.0, 0.0]] * 3))
    before = {"weights": tensor([0.5, 0.5]), "natural": tensor([[1.0, 1.0], [3.0, 4.0]])}
    after = model.maximise(alone, None, before)
    assert after["natural"][1].tolist() == [3.0, 4.0]
    start = model.maximise(alone, None)["natural"]
    torch.testing.assert_close(start[0], start[1])  # at a start: that of all rows
    assert model.maximise(alone, model.prior(x))["natural"][1].tolist() == [0.0, 0.0]  # with a prior: its mode
    assert not model.singular_components(after).any()
    point = model.maximise(model.sufficient_statistics(x[:1], tensor([[1.0, 0.0]])), None, before)
    assert point["natural"].isfinite().all()
    assert model.singular_components(point).tolist() == [True, False]


def test_what_is_no_direction_is_refused():
    model = VonMisesFisherMixture(1)
    message = r"length 1, got 2 of 3 others, the first at index 1 \(length 5\): normalise them with x / x.norm"
    with pytest.raises(DataError, match=message):
        model.observe(tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]]))
    with pytest.raises(DataError, match="2 columns or more, got 1: for angles pass their cosine and sine"):
        model.observe(torch.ones(4))
    model.observe(torch.nn.functional.normalize(torch.randn(50, 7), dim=-1))  # single precision is long enough
    with pytest.raises(ProgramError, match="num_features=2, got a smallest var of 1 and num_features=3"):
        VonMisesFisherMixture(1, component_prior=IsotropicNormal(1.0, 3)).observe(tensor([[1.0, 0.0]]))
    with pytest.raises(ProgramError, match="expected IsotropicNormal, got float"):
        VonMisesFisherMixture(1, component_prior=3.0)
    with pytest.raises(MethodError, match="conjugate prior"):
        infer(model, tensor([[1.0, 0.0], [0.0, 1.0]]), VB(), seed=0)


@pytest.mark.slow
def test_nuts_is_normal_around_the_mode_of_many_rows(x):
    """With 400 rows mean and mode differ by a fraction of a standard deviation; a wrong gradient is far off."""
    model = VonMisesFisherMixture(1)
    em = infer(model, x, EM(restarts=1), seed=0)
    draws = infer(model, x, NUTS(chains=2, warmup=200, draws=300), seed=0, throw=False).draws["natural"].flatten(0, 1)
    assert ((draws.mean(0) - em.sites()["natural"]).abs() < 0.5 * draws.std(0)).all()
