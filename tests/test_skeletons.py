"""The two skeletons of CONTRIBUTING.md work, so that a copy of them starts from something that does."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import integrate, stats
from skeletons import method_skeleton, model_skeleton

from probmix.arguments import Arguments
from probmix.errors import DataError, ProgramError
from probmix.inference.em import EM
from probmix.inference.gibbs import Gibbs
from probmix.inference.infer import infer
from probmix.inference.method import AbstractMethod
from probmix.inference.vb import VB
from probmix.log_density import LogDensity
from probmix.typing import ConjugateMixture, Named, Observing

HalfNormalMixture, GradientAscent = model_skeleton.HalfNormalMixture, method_skeleton.GradientAscent


@pytest.fixture
def sites() -> dict[str, torch.Tensor]:
    precision = torch.tensor([[4.0, 1.0], [0.01, 0.04]], dtype=torch.float64)
    return {"weights": torch.tensor([0.3, 0.7], dtype=torch.float64), "precision": precision}


@pytest.fixture
def x(sites) -> torch.Tensor:
    return HalfNormalMixture(2).sample(400, sites, seed=0)


def test_the_model_has_every_member_that_methods_ask_for():
    model = HalfNormalMixture(2)
    assert isinstance(model, ConjugateMixture)
    assert model.conjugate
    assert isinstance(model, Named)
    assert isinstance(model, Observing)
    assert callable(model)


def test_the_examples_in_the_docstrings_run():
    assert doctest.testmod(model_skeleton).failed == 0


def test_log_prob_equals_scipy(x, sites):
    weights, precision = (sites[name].numpy() for name in ("weights", "precision"))
    pdf = stats.halfnorm.pdf(x.numpy()[:, None, :], scale=precision**-0.5).prod(-1)
    np.testing.assert_allclose(HalfNormalMixture(2).log_prob(x, sites), np.log(pdf @ weights), rtol=1e-12)


def test_closed_form_and_program_have_the_same_log_joint(x, sites):
    model = HalfNormalMixture(2)
    density = LogDensity(model, Arguments.of(x))
    closed = model.log_joint(x, sites)
    # Both are sums of 400 terms in double precision: agreement to 1e-10 relative leaves a factor 1e3 over rounding.
    torch.testing.assert_close(density.value(density.unconstrain(sites), jacobian=False), closed, rtol=1e-10, atol=0)


def test_sample_has_the_moments_of_the_mixture(sites):
    x = HalfNormalMixture(2).sample(100_000, sites, seed=0)
    # Null: x has the mixture's mean, that of a half-normal being sqrt(2 / pi) standard deviations. Those of x are
    # below 7, so standard errors below 7 / sqrt(100000) = 0.022; the tolerance is five of them, for a false alarm in
    # one of 10^6 seeds.
    means = (2 / torch.pi / sites["precision"]).sqrt()
    assert ((x.mean(0) - sites["weights"] @ means).abs() < 0.11).all()
    assert ((x.mean(0) - means.mean(0)).abs() > 0.11).all()  # control: the components in equal parts


def test_em_never_falls_and_finds_the_groups(x, sites):
    fit = infer(HalfNormalMixture(2), x, EM(restarts=4), seed=0)
    history = fit.history["objective"]
    steps = history.diff()
    # A fall within rounding of the objective (about 2e3 nats, 400 terms) is none.
    assert (steps[~steps.isnan()] > -1e-9).all()
    order = fit.sites()["precision"][:, 0].argsort(descending=True)
    # Null: EM is consistent. The log of a precision from n rows has the standard error sqrt(2 / n): 0.13 for 120 rows;
    # five of them, and somewhat more for rows that may be of either group. Swapped labels would be off by 3.
    log_ratio = (fit.sites()["precision"][order] / sites["precision"]).log()
    assert (log_ratio.abs() < 0.8).all()


def test_one_component_is_the_textbook_estimate(x):
    fit = infer(HalfNormalMixture(1), x, EM(objective="ml"), seed=0)
    torch.testing.assert_close(fit.sites()["precision"][0], 1 / x.square().mean(0), rtol=1e-12, atol=0)


def test_the_evidence_is_the_integral_over_the_precision():
    model, x = HalfNormalMixture(1), torch.tensor([[0.3], [1.2], [0.7]], dtype=torch.float64)
    prior = model.prior(x).component

    def joint(precision: float) -> float:
        density = stats.gamma.pdf(precision, float(prior.concentration), scale=1 / float(prior.rate))
        return density * stats.halfnorm.pdf(x.numpy(), scale=precision**-0.5).prod()

    evidence, error = integrate.quad(joint, 0, 60)
    ours = model.family.log_marginal(prior, model.sufficient_statistics(x, torch.ones(3, 1, dtype=torch.float64)))
    assert float(ours.exp()) == pytest.approx(evidence, abs=10 * error)


def test_variational_bayes_and_gibbs_run_and_agree(x):
    model = HalfNormalMixture(2)
    vb = infer(model, x, VB(restarts=2), seed=0)
    gibbs = infer(model, x, Gibbs(chains=2, warmup=50, draws=200), seed=0)
    assert (vb.history["elbo"].diff().nan_to_num(0.0) > -1e-9).all()  # rounding, as above
    # The mean log precision of the wider group: 280 rows know it to 0.09; VB errs by far less, the chains by a tenth.
    means = [float(fit.sites()["precision"][:, 0].log().amin()) for fit in (vb, gibbs)]
    assert means[0] == pytest.approx(means[1], abs=0.2)


def test_values_that_are_no_distances_are_refused():
    with pytest.raises(DataError, match=r"1 of 4 rows with others, the first at index 1: take their absolute values"):
        HalfNormalMixture(1).observe(torch.tensor([1.0, -1.0, 2.0, 0.5]))
    with pytest.raises(ProgramError, match="expected 1 or more, got 0"):
        HalfNormalMixture(0)


def test_the_method_has_all_verbs_and_reaches_the_same_optimum_as_em(x):
    assert issubclass(GradientAscent, AbstractMethod)
    em = infer(HalfNormalMixture(2), x, EM(), seed=0)
    start = {name: value + 0.05 for name, value in em.sites().items()} | {
        "weights": torch.full_like(em.sites()["weights"], 0.5)
    }
    fit = infer(HalfNormalMixture(2), x, GradientAscent(init=start), seed=0)
    assert fit.status.state == "converged"
    assert (fit.history["objective"].diff() >= 0).all()
    # The objective is flat to second order at its top: 1e-6 nats from a stopping rule of 1e-10 nats a step.
    assert fit.objective == pytest.approx(em.objective, abs=1e-6)


def test_stopping_early_is_said(x):
    with pytest.warns(UserWarning, match=r"still gained after 1 steps. Raise max_steps"):
        fit = infer(HalfNormalMixture(2), x, GradientAscent(max_steps=1), seed=0)
    assert fit.status.state == "max_steps"


def test_poutine_sees_the_sites_and_the_shapes_that_dims_names(x):
    model = HalfNormalMixture(3)
    trace = poutine.trace(model).get_trace(x)
    sizes = {"component": 3, "feature": 2}
    expected = {name: torch.Size(sizes[axis] for axis in axes) for name, axes in model.dims.items()}
    assert {name: trace.nodes[name]["value"].shape for name in model.dims} == expected
