"""Priors of the weights: against scipy, quadrature, and the Dirichlet that one of them contains."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.integrate import dblquad
from torch import Tensor

from probmix.weight_priors import DirichletWeights, StickBreakingWeights, TruncatedStickBreaking

COUNT = torch.tensor([5.0, 0.0, 2.5], dtype=torch.float64)
FIRST, SECOND = torch.tensor([1.5, 2.0]).double(), torch.tensor([2.5, 1.2]).double()
STICKS = StickBreakingWeights(FIRST, SECOND)
DIRICHLET = DirichletWeights(torch.tensor([1.5, 1.0, 2.0]).double())
BOTH = pytest.mark.parametrize("prior", [DIRICHLET, STICKS], ids=["dirichlet", "stick_breaking"])
WEIGHTS = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], dtype=torch.float64)

# Means of 200,000 draws against closed forms: five standard errors, a false alarm in 2 million for each number.
DRAWS, SIGMAS = 200_000, 5.0


def integral(function) -> float:
    """Integral over the simplex of three weights, in the first two."""

    def at(second: float, first: float) -> float:
        return float(function(torch.tensor([first, second, 1 - first - second]).double()))

    return dblquad(at, 1e-9, 1 - 1e-9, 0, lambda first: 1 - first - 1e-9, epsabs=1e-5)[0]


def draws_of(prior) -> Tensor:
    torch.manual_seed(0)
    return prior.distribution().sample(torch.Size([DRAWS]))


@pytest.fixture(autouse=True)
def _own_random_state():
    with torch.random.fork_rng():
        yield


@BOTH
def test_the_density_integrates_to_one(prior) -> None:
    # dblquad is asked for 1e-5; the density is singular at an edge, which costs it another digit.
    assert integral(lambda w: prior.log_prob(w).exp()) == pytest.approx(1, abs=1e-4)
    assert integral(lambda w: 2 * prior.log_prob(w).exp()) != pytest.approx(1, abs=1e-4)


def test_the_dirichlets_density_is_scipys() -> None:
    expected = [scipy.stats.dirichlet.logpdf(w, DIRICHLET.concentration.numpy()) for w in WEIGHTS[:, :2].numpy()]
    np.testing.assert_allclose(DIRICHLET.log_prob(WEIGHTS), expected, rtol=1e-12)
    np.testing.assert_allclose(DIRICHLET.log_prob(WEIGHTS * 1.0000001), expected, rtol=1e-12)


def test_sticks_with_falling_sums_are_a_dirichlet() -> None:
    """Beta sticks with ``b_k`` the sum of all later concentrations break into a Dirichlet (Connor and Mosimann)."""
    alpha = DIRICHLET.concentration
    sticks = StickBreakingWeights(alpha[:-1], alpha.flip(0).cumsum(0).flip(0)[1:])
    torch.testing.assert_close(sticks.log_prob(WEIGHTS), DIRICHLET.log_prob(WEIGHTS), rtol=1e-12, atol=1e-12)
    for of in ("mean", "mode", "expected_log"):
        torch.testing.assert_close(getattr(sticks, of)(), getattr(DIRICHLET, of)(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sticks.log_marginal(COUNT), DIRICHLET.log_marginal(COUNT), rtol=1e-12, atol=0)
    later = sticks.posterior(COUNT)
    torch.testing.assert_close(
        later.divergence(sticks), DIRICHLET.posterior(COUNT).divergence(DIRICHLET), rtol=1e-10, atol=0
    )


@BOTH
def test_the_posterior_is_prior_times_likelihood_over_evidence(prior) -> None:
    joint = prior.log_prob(WEIGHTS) + (COUNT * WEIGHTS.log()).sum(-1)
    expected = joint - prior.log_marginal(COUNT)
    torch.testing.assert_close(prior.posterior(COUNT).log_prob(WEIGHTS), expected, rtol=1e-12, atol=1e-12)


@BOTH
def test_moments_are_those_of_draws(prior) -> None:
    draws = draws_of(prior)
    torch.testing.assert_close(draws.sum(-1), torch.ones(DRAWS).double(), rtol=0, atol=1e-14)
    for sample, exact in ((draws, prior.mean()), (draws.log(), prior.expected_log())):
        error_std = sample.std(0) / DRAWS**0.5
        assert ((sample.mean(0) - exact).abs() < SIGMAS * error_std).all()
        assert not ((sample.mean(0) - 1.02 * exact).abs() < SIGMAS * error_std).any()  # the control


@BOTH
def test_the_divergence_is_the_mean_log_ratio_of_draws(prior) -> None:
    posterior = prior.posterior(COUNT)
    draws = draws_of(posterior)
    ratio = posterior.log_prob(draws) - prior.log_prob(draws)
    error_std = ratio.std() / DRAWS**0.5
    assert (ratio.mean() - posterior.divergence(prior)).abs() < SIGMAS * error_std
    assert (ratio.mean() - prior.divergence(posterior)).abs() > SIGMAS * error_std  # the control: the other way round


@pytest.mark.parametrize("seed", range(3))
def test_no_weights_are_denser_than_the_mode(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for prior in (DirichletWeights(1 + COUNT), StickBreakingWeights(FIRST + 3, SECOND + 4)):
        mode = prior.mode()
        nearby = (mode.log() + 0.1 * torch.randn(500, 3, generator=generator)).softmax(-1)
        assert (prior.log_prob(nearby) <= prior.log_prob(mode)).all()


def test_a_mode_on_the_edge_is_zero_and_no_nan() -> None:
    sparse = DirichletWeights(torch.tensor([0.5, 3.0, 2.0]))
    torch.testing.assert_close(sparse.mode(), torch.tensor([0.0, 2 / 3, 1 / 3]))
    assert DirichletWeights(torch.full((3,), 0.5)).mode().isfinite().all()
    assert StickBreakingWeights(torch.full((2,), 0.5), torch.full((2,), 0.5)).mode().isfinite().all()


@BOTH
def test_leading_axes_are_a_batch(prior) -> None:
    counts = torch.stack([COUNT, COUNT.flip(0)])
    batch = prior.posterior(counts)
    assert batch.mean().shape == (2, 3)
    for i in (0, 1):
        one = prior.posterior(counts[i])
        for of in ("mean", "mode", "expected_log"):
            torch.testing.assert_close(getattr(batch, of)()[i], getattr(one, of)())
        torch.testing.assert_close(batch.divergence(prior)[i], one.divergence(prior))
        torch.testing.assert_close(prior.log_marginal(counts)[i], prior.log_marginal(counts[i]))


def test_one_component_has_all_the_weight() -> None:
    for prior in (DirichletWeights(torch.ones(1)), StickBreakingWeights(torch.ones(0), torch.ones(0))):
        assert prior.mean().tolist() == [1.0]
        torch.testing.assert_close(prior.sample(), torch.ones(1))
        assert prior.expected_log().tolist() == [0.0]
        assert float(prior.log_marginal(torch.tensor([7.0]))) == pytest.approx(0, abs=1e-6)


def test_the_distribution_expands_and_refuses_what_is_no_prior() -> None:
    wide = TruncatedStickBreaking(FIRST, SECOND).expand([4])
    assert wide.batch_shape == (4,)
    assert wide.rsample().shape == (4, 3)
    assert wide.log_prob(WEIGHTS[0]).shape == (4,)
    with pytest.raises(ValueError, match="first"):
        TruncatedStickBreaking(-FIRST, SECOND, validate_args=True)
