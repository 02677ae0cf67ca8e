"""The two skeletons of CONTRIBUTING.md work, so that a copy of them starts from something that does."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats
from skeletons import method_skeleton, model_skeleton

from probmix.arguments import Arguments
from probmix.errors import DataError, ProgramError
from probmix.inference.em import EM
from probmix.inference.infer import infer
from probmix.inference.method import AbstractMethod
from probmix.log_density import LogDensity
from probmix.typing import ClosedFormMixture, Named, Observing

PoissonMixture, GradientAscent = model_skeleton.PoissonMixture, method_skeleton.GradientAscent


@pytest.fixture
def sites() -> dict[str, torch.Tensor]:
    mean_count = torch.tensor([[2.0, 1.0], [9.0, 4.0]], dtype=torch.float64)
    return {"weights": torch.tensor([0.3, 0.7], dtype=torch.float64), "mean_count": mean_count}


@pytest.fixture
def x(sites) -> torch.Tensor:
    return PoissonMixture(2).sample(400, sites, seed=0)


def test_the_model_has_every_member_that_methods_ask_for():
    model = PoissonMixture(2)
    assert isinstance(model, ClosedFormMixture)
    assert isinstance(model, Named)
    assert isinstance(model, Observing)
    assert callable(model)


def test_the_example_in_the_docstring_runs():
    assert doctest.testmod(model_skeleton).failed == 0


def test_log_prob_equals_scipy(x, sites):
    weights, mean_count = (sites[name].numpy() for name in ("weights", "mean_count"))
    pmf = stats.poisson.pmf(x.numpy()[:, None, :], mean_count).prod(-1)
    np.testing.assert_allclose(PoissonMixture(2).log_prob(x, sites), np.log(pmf @ weights), rtol=1e-12)


def test_closed_form_and_program_have_the_same_log_joint(x, sites):
    model = PoissonMixture(2)
    density = LogDensity(model, Arguments.of(x))
    closed = model.log_prior(sites, model.prior(x)) + model.log_prob(x, sites).sum()
    # Both are sums of 400 terms in double precision: agreement to 1e-10 relative leaves a factor 1e3 over rounding.
    torch.testing.assert_close(density.value(density.unconstrain(sites), jacobian=False), closed, rtol=1e-10, atol=0)


def test_sample_has_the_moments_of_the_mixture(sites):
    x = PoissonMixture(2).sample(100_000, sites, seed=0)
    # Null: x has the mixture's mean. Variances below 20, so standard errors below sqrt(20 / 100000) = 0.014; the
    # tolerance is five of them: a false alarm in one of 10^6 seeds.
    error = (x.mean(0) - sites["weights"] @ sites["mean_count"]).abs()
    assert (error < 0.07).all()
    wrong = (x.mean(0) - sites["mean_count"].mean(0)).abs()  # control: the components in equal parts
    assert (wrong > 0.07).all()


def test_em_never_falls_and_finds_the_groups(x, sites):
    fit = infer(PoissonMixture(2), x, EM(restarts=4), seed=0)
    history = fit.history["objective"]
    steps = history.diff()
    # A fall within rounding of the objective (about 1e3 nats, 400 terms) is none.
    assert (steps[~steps.isnan()] > -1e-9).all()
    order = fit.sites()["mean_count"][:, 0].argsort()
    # Null: EM is consistent. Standard errors with 120 and 280 rows: sqrt(2/120) = 0.13 and sqrt(9/280) = 0.18; five
    # of the larger, a false alarm in one of 10^6 seeds. Swapped labels would be off by 3 or more.
    torch.testing.assert_close(fit.sites()["mean_count"][order], sites["mean_count"], rtol=0, atol=0.9)


def test_one_component_is_the_textbook_estimate(x):
    fit = infer(PoissonMixture(1), x, EM(objective="ml"), seed=0)
    torch.testing.assert_close(fit.sites()["mean_count"][0], x.mean(0), rtol=1e-12, atol=0)


def test_values_that_are_no_counts_are_refused():
    with pytest.raises(DataError, match=r"2 of 4 rows with other values, the first at index 1: round them"):
        PoissonMixture(1).observe(torch.tensor([1.0, -1.0, 2.0, 0.5]))
    with pytest.raises(ProgramError, match="expected 1 or more, got 0"):
        PoissonMixture(0)


def test_the_method_has_all_verbs_and_reaches_the_same_optimum_as_em(x):
    assert issubclass(GradientAscent, AbstractMethod)
    em = infer(PoissonMixture(2), x, EM(), seed=0)
    start = {name: value + 0.05 for name, value in em.sites().items()} | {
        "weights": torch.full_like(em.sites()["weights"], 0.5)
    }
    fit = infer(PoissonMixture(2), x, GradientAscent(init=start), seed=0)
    assert fit.status.state == "converged"
    assert (fit.history["objective"].diff() >= 0).all()
    # The objective is flat to second order at its top: 1e-6 nats from a stopping rule of 1e-10 nats a step.
    assert fit.objective == pytest.approx(em.objective, abs=1e-6)


def test_stopping_early_is_said(x):
    with pytest.warns(UserWarning, match=r"still gained after 1 steps. Raise max_steps"):
        fit = infer(PoissonMixture(2), x, GradientAscent(max_steps=1), seed=0)
    assert fit.status.state == "max_steps"


def test_poutine_sees_the_sites_and_the_shapes_that_dims_names(x):
    model = PoissonMixture(3)
    trace = poutine.trace(model).get_trace(x)
    sizes = {"component": 3, "feature": 2}
    expected = {name: torch.Size(sizes[axis] for axis in axes) for name, axes in model.dims.items()}
    assert {name: trace.nodes[name]["value"].shape for name in model.dims} == expected
