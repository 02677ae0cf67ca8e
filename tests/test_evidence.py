"""The exact evidence: against an enumeration in NumPy, SciPy's distributions, and laws that it must obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gibbs_reference import Prior, exact
from scipy.special import betaln, logsumexp
from scipy.stats import multivariate_t, t

from probmix.conjugate import NormalInverseGamma, NormalInverseWishart
from probmix.errors import DataError, ProgramError
from probmix.evidence import exact_log_evidence
from probmix.models import GaussianMixture

ROWS = torch.tensor(np.random.default_rng(0).normal(size=(7, 2)))
COVARIANCES = ["full", "tied", "diagonal", "spherical", "EEI", "EII"]


def test_is_the_sum_over_allocations_in_numpy():
    """Rounding only: 2,187 terms of size 1e2 nats, 1e-10."""
    model = GaussianMixture(3, weight_concentration=0.7)
    prior = model.prior(ROWS).component
    numbers = Prior(prior.loc.numpy(), float(prior.mean_precision), float(prior.dof), prior.scatter.numpy(), 0.7)
    expected = exact(ROWS.numpy(), numbers, num_components=3).log_evidence
    assert float(exact_log_evidence(model, ROWS)) == pytest.approx(expected, abs=1e-10)


def test_one_component_is_scipys_student_t_row_by_row():
    """Any number of rows: the posterior predictive of each row given those before, multiplied up."""
    x = torch.tensor(np.random.default_rng(1).normal(size=(300, 1)))
    prior = NormalInverseGamma(x.new_zeros(1), 0.5, 1.5, x.new_ones(1))
    model, total = GaussianMixture(1, "diagonal", component_prior=prior), 0.0
    loc, kappa, a, b = 0.0, 0.5, 1.5, 1.0
    for value in x[:, 0].tolist():
        total += t(2 * a, loc, math.sqrt(b * (kappa + 1) / (a * kappa))).logpdf(value)
        loc, kappa, a, b = ((kappa * loc + value) / (kappa + 1), kappa + 1, a + 0.5,
                            b + kappa * (value - loc) ** 2 / (2 * (kappa + 1)))  # fmt: skip
    assert float(exact_log_evidence(model, x)) == pytest.approx(total, rel=1e-10)


def test_one_row_is_the_prior_predictive_whatever_the_number_of_components():
    prior = NormalInverseWishart(ROWS.new_tensor([0.5, -0.5]), 0.7, 4.5, ROWS.new_tensor([[1.0, 0.5], [0.5, 2.0]]))
    expected = multivariate_t([0.5, -0.5], prior.scatter.numpy() * (1.7 / (0.7 * 3.5)), df=3.5).logpdf(ROWS[0].numpy())
    for num in (1, 4):
        value = exact_log_evidence(GaussianMixture(num, component_prior=prior), ROWS[:1])
        assert float(value) == pytest.approx(expected, abs=1e-12)


def test_two_rows_under_stick_breaking_are_one_cluster_or_two():
    """By hand: P(both in component 1) = B(3, c) / B(1, c), and so on; components are alike but for their weights."""
    prior = NormalInverseGamma(ROWS.new_zeros(2), 0.5, 2.0, ROWS.new_ones(2))
    one = GaussianMixture(1, "diagonal", component_prior=prior)
    model = GaussianMixture(2, "diagonal", 1.7, prior, weight_prior="stick_breaking")
    log_first, log_second = betaln(3, 1.7) - betaln(1, 1.7), betaln(1, 3.7) - betaln(1, 1.7)
    together = float(exact_log_evidence(one, ROWS[:2])) + np.logaddexp(log_first, log_second)
    alone = sum(float(exact_log_evidence(one, row[None])) for row in ROWS[:2])
    apart = alone + math.log(2) + betaln(2, 2.7) - betaln(1, 1.7)
    assert float(exact_log_evidence(model, ROWS[:2])) == pytest.approx(logsumexp([together, apart]), abs=1e-10)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_does_not_depend_on_the_order_of_the_rows(covariance):
    model = GaussianMixture(2, covariance)
    torch.testing.assert_close(exact_log_evidence(model, ROWS.flip(0)), exact_log_evidence(model, ROWS), rtol=1e-10,
                               atol=0)  # fmt: skip


def test_refuses_what_cannot_be_enumerated():
    with pytest.raises(DataError, match=r"at most 1048576 assignments, got 3 components and 13 rows, .* 10\*\*6\.2"):
        exact_log_evidence(GaussianMixture(3), torch.randn(13, 1))
    with pytest.raises(DataError, match=r"10\*\*301030\.0"):
        exact_log_evidence(GaussianMixture(2), torch.randn(1_000_000, 1))
    exact_log_evidence(GaussianMixture(3), torch.randn(4, 1), max_assignments=81)
    with pytest.raises(DataError, match="at most 80 assignments"):
        exact_log_evidence(GaussianMixture(3), torch.randn(4, 1), max_assignments=80)
    with pytest.raises(ProgramError, match=r"of each row, got my_program\. Estimate it with Laplace\(\) or VB"):
        exact_log_evidence(my_program, torch.randn(4, 1))


def my_program(x: torch.Tensor) -> None:
    """No mixture."""
