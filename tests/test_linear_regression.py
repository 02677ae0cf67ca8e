"""Bayesian linear regression against NumPy's least squares, SciPy's Student-t and Bayes' theorem."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from z_scores import critical

from probmix.linear_regression import RegressionPrior, RegressionSites, least_squares
from probmix.regression_statistics import RegressionStatistics

cases = pytest.mark.parametrize(("responses", "shared"), [(1, False), (3, False), (3, True)])
intercepts = pytest.mark.parametrize("intercept", [True, False])


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make_rows(responses: int = 1, count: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    design = torch.randn(count, 2).double() * torch.tensor([1.0, 3.0]).double() + torch.tensor([5.0, -2.0]).double()
    response = design @ torch.randn(2, responses).double() + torch.randn(count, responses).double() + 7
    return design, response, torch.rand(2, count).double()


def make_prior(responses: int = 1, *, shared: bool = False, intercept: bool = True) -> RegressionPrior:
    root = torch.randn(2, 2).double()
    on = 1.0 if intercept else 0.0
    return RegressionPrior(
        on * torch.tensor([4.0, 1.0]).double(),
        on * torch.linspace(3, 5, responses).double(),
        torch.tensor(0.7 if intercept else math.inf).double(),
        torch.randn(responses, 2).double(),
        root @ root.mT + 0.5 * torch.eye(2).double(),
        torch.tensor(3.0).double(),
        torch.linspace(1, 2, 1 if shared else responses).double(),
    )


def log_likelihood(sites: RegressionSites, design: Tensor, response: Tensor) -> Tensor:
    normal = torch.distributions.Normal(sites.fitted(design), sites.noise_var.sqrt()[..., None, :])
    return normal.log_prob(response).sum(-1)


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_statistics_are_numpys_weighted_moments_and_add_up(shift: float) -> None:
    design, response, weights = make_rows(2)
    design, response = design + shift, response - shift
    whole = RegressionStatistics.of(design, response, weights)
    parts = RegressionStatistics.of(design[:5], response[:5], weights[:, :5]) + RegressionStatistics.of(
        design[5:], response[5:], weights[:, 5:]
    )
    rows = np.concatenate([design, response], -1)
    # An offset of 1e6 beside a width of 1 leaves ten digits.
    for statistics in (whole, parts):
        for k in range(2):
            scatter = np.cov(rows.T, aweights=weights[k], ddof=0) * weights[k].sum().item()
            np.testing.assert_allclose(statistics.gram[k], scatter[:2, :2], rtol=1e-9)
            np.testing.assert_allclose(statistics.cross[k], scatter[2:, :2], rtol=1e-9)
            np.testing.assert_allclose(statistics.square[k], np.diag(scatter)[2:], rtol=1e-9)
            np.testing.assert_allclose(
                statistics.design_mean[k], np.average(design, axis=0, weights=weights[k]), rtol=1e-13
            )


def test_a_component_may_have_a_design_of_its_own() -> None:
    design, response, weights = make_rows()
    own = torch.stack([design, 2 * design])
    both = RegressionStatistics.of(own, response, weights)
    torch.testing.assert_close(both.gram[1], 4 * RegressionStatistics.of(design, response, weights).gram[1])


@intercepts
@pytest.mark.parametrize("shift", [0.0, 1e5])
def test_least_squares_is_numpys(intercept: bool, shift: float) -> None:
    design, response, weights = make_rows(2)
    design = design + (shift if intercept else 0)
    sites = least_squares(RegressionStatistics.of(design, response, weights), intercept=intercept)
    columns = np.column_stack([design - shift, np.ones(len(design))]) if intercept else design.numpy()
    for k in range(2):
        root = np.sqrt(weights[k].numpy())[:, None]
        theirs, *_ = np.linalg.lstsq(root * columns, root * response.numpy(), rcond=None)
        np.testing.assert_allclose(sites.coefficients[k], theirs[:2].T, rtol=1e-8)  # the shift costs ten digits of 16^2
        residual = root * (response.numpy() - columns @ theirs)
        np.testing.assert_allclose(sites.noise_var[k], (residual**2).sum(0) / float(weights[k].sum()), rtol=1e-8)
    shared = least_squares(RegressionStatistics.of(design, response, weights), intercept=intercept, shared_noise=True)
    torch.testing.assert_close(shared.noise_var, sites.noise_var.mean(-1, keepdim=True))


def test_columns_that_follow_from_each_other_get_the_shortest_coefficients() -> None:
    design, response, weights = make_rows()
    twice = torch.cat([design, design], -1)
    sites = least_squares(RegressionStatistics.of(twice, response, weights))
    alone = least_squares(RegressionStatistics.of(design, response, weights))
    torch.testing.assert_close(sites.coefficients, torch.cat([alone.coefficients, alone.coefficients], -1) / 2)


def test_no_rows_and_one_row_give_no_nan() -> None:
    design, response, weights = make_rows()
    for use in (torch.zeros_like(weights), torch.eye(2, 12).double()):
        for value in least_squares(RegressionStatistics.of(design, response, use)):
            assert value.isfinite().all()


@cases
@intercepts
def test_the_posterior_obeys_bayes_theorem(responses: int, shared: bool, intercept: bool) -> None:
    """Evidence = likelihood x prior / posterior, at any sites: ties four functions together."""
    design, response, _ = make_rows(responses)
    prior = make_prior(responses, shared=shared, intercept=intercept)
    statistics = RegressionStatistics.of(design, response, torch.ones(1, 12).double())
    posterior = prior.posterior(statistics)
    for sites in (posterior.mode(), posterior.sample()):
        terms = log_likelihood(sites, design, response).sum(-1) + prior.log_prob(sites) - posterior.log_prob(sites)
        torch.testing.assert_close(terms, prior.log_marginal(statistics), rtol=1e-10, atol=0)


@intercepts
def test_the_evidence_is_scipys_student_t_of_all_responses(intercept: bool) -> None:
    design, response, _ = make_rows()
    prior = make_prior(intercept=intercept)
    centred = (design - prior.centre).numpy()
    leverage = centred @ np.linalg.inv(prior.precision.numpy()) @ centred.T + float(1 / prior.mean_precision)
    cov = float(prior.rate / prior.concentration) * (np.eye(len(design)) + leverage)
    loc = centred @ prior.coefficients[0].numpy() + float(prior.loc)
    expected = stats.multivariate_t(loc, cov, df=2 * float(prior.concentration)).logpdf(response[:, 0])
    statistics = RegressionStatistics.of(design, response, torch.ones(1, 12).double())
    assert prior.log_marginal(statistics).item() == pytest.approx(expected, rel=1e-11)


def test_the_evidence_is_the_product_of_predictions() -> None:
    design, response, _ = make_rows(3)
    first = posterior = make_prior(3)
    total = torch.zeros(1).double()
    for z, y in zip(design.split(1), response.split(1), strict=True):
        total = total + posterior.predictive(z).log_prob(y).sum((-2, -1))
        posterior = posterior.posterior(RegressionStatistics.of(z, y, torch.ones(1, 1).double()))
    statistics = RegressionStatistics.of(design, response, torch.ones(1, 12).double())
    torch.testing.assert_close(total, first.log_marginal(statistics), rtol=1e-11, atol=0)


@cases
@intercepts
def test_the_mode_is_a_stationary_point(responses: int, shared: bool, intercept: bool) -> None:
    prior = make_prior(responses, shared=shared, intercept=intercept)
    mode = [value.clone().requires_grad_() for value in prior.mode()]
    prior.log_prob(RegressionSites(*mode)).sum().backward()
    for value in mode[0 if intercept else 1 :]:
        assert value.grad.abs().max() < 1e-10  # rounding of terms of size 1


@cases
@intercepts
def test_divergence_and_expected_log_density_are_means_over_draws(
    responses: int, shared: bool, intercept: bool
) -> None:
    """Null: equal means; z-scores of 40,000 draws, fails once in 1e6. Control: half the divergence is seen."""
    design, response, _ = make_rows(responses)
    prior = make_prior(responses, shared=shared, intercept=intercept)
    posterior = prior.posterior(RegressionStatistics.of(design[:3], response[:3], torch.ones(1, 3).double()))
    many = RegressionPrior(*(getattr(posterior, f).expand(40_000, *getattr(posterior, f).shape)
                             for f in posterior.__dataclass_fields__))  # fmt: skip
    sites = many.sample()
    log_ratio = posterior.log_prob(sites) - prior.log_prob(sites)
    density = log_likelihood(sites, design, response).squeeze(-2)

    def z(draws: Tensor, truth: Tensor) -> float:
        return float(((draws.mean(0) - truth) / draws.std(0) * len(draws) ** 0.5).abs().max())

    divergence = posterior.divergence(prior)
    assert z(log_ratio, divergence) < critical(1, 1e-6)
    assert z(log_ratio, divergence / 2) > critical(1, 1e-6)
    expected = posterior.expected_log_prob(design, response).squeeze(0)
    assert z(density, expected) < critical(len(design), 1e-6)
    assert z(density, expected + 0.1) > critical(len(design), 1e-6)
    torch.testing.assert_close(posterior.divergence(posterior), torch.zeros(1).double(), rtol=0, atol=1e-12)


def test_means_are_means_of_draws_or_nan() -> None:
    posterior = make_prior()
    many = RegressionPrior(*(getattr(posterior, f).expand(40_000, *getattr(posterior, f).shape)
                             for f in posterior.__dataclass_fields__))  # fmt: skip
    for draws, mean in zip(many.sample(), posterior.mean(), strict=True):
        # Null: equal; fails once in 1e6. The noise variance has no fourth moment, so its z-score errs on the high side.
        assert float(((draws.mean(0) - mean) / draws.std(0) * 200).abs().max()) < critical(4, 1e-6)
    without = RegressionPrior(*(getattr(posterior, f) for f in list(posterior.__dataclass_fields__)[:5]), 0.5, 1.0)
    assert without.mean().noise_var.isnan().all()
