"""Weighted draws of many rows: means, evidence and resampling against a posterior that is known."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from probmix.importance_guide import ImportanceGuide

NUM = 20_000
POSTERIOR = Normal(torch.tensor([0.0, 1.0, -0.5]), torch.tensor([1.0, 0.7, 0.9]))  # of three rows
EVIDENCE = torch.tensor([-3.0, 0.0, 200.0])  # logarithms, far apart


@pytest.fixture(scope="module")
def guide() -> ImportanceGuide:
    """Draws of N(0.3, 1.5), which is wider than each posterior."""
    proposal = Normal(0.3, 1.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z = proposal.sample((NUM, 3))
    log_ratios = POSTERIOR.log_prob(z) + EVIDENCE - proposal.log_prob(z)
    return ImportanceGuide(POSTERIOR.mean[:, None], z[..., None], log_ratios)


def test_means_and_evidence_are_those_of_the_posterior(guide):
    """Null: they are. Standard errors from the effective draws, 5 of them for 6 numbers: a false alarm in 300,000."""
    error = POSTERIOR.stddev / guide.effective_draws.sqrt()
    mean = guide.mean(guide.draws)[:, 0]
    assert float(((mean - POSTERIOR.mean) / error).abs().max()) < 5
    square = guide.mean(guide.draws.square())[:, 0] - mean.square()
    assert float((square / POSTERIOR.variance - 1).abs().max()) < 5 * 2 / float(guide.effective_draws.min()) ** 0.5
    relative = 1 / guide.effective_draws.sqrt()
    assert float(((guide.log_evidence - EVIDENCE) / relative).abs().max()) < 5
    plain = guide.draws.mean(0)[:, 0]  # without weights they are those of the proposal
    assert float(((plain - POSTERIOR.mean) / error).abs().max()) > 5


def test_weights_sum_to_one_and_their_sound_is_reported(guide):
    torch.testing.assert_close(guide.weights.sum(0), torch.ones(3))
    assert float(guide.pareto_k.max()) < 0.5
    assert 0.3 * NUM < float(guide.effective_draws.min()) <= NUM


def test_a_proposal_that_is_too_narrow_is_told():
    """Ratios of N(0, 1) to N(0, 0.5): their tail has k = 1 - 0.25 = 0.75 in the limit."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z = 0.5 * torch.randn(NUM, 2, 1)
    ratios = Normal(0.0, 1.0).log_prob(z) - Normal(0.0, 0.5).log_prob(z)
    assert float(ImportanceGuide(z[0], z, ratios[..., 0]).pareto_k.min()) > 0.5


def test_draws_are_resampled_by_their_weights_row_by_row(guide):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws = guide.sample(4000, None, None)["z"][..., 0]
    assert draws.shape == (4000, 3)
    error = POSTERIOR.stddev * (1 / 4000 + 1 / guide.effective_draws).sqrt()
    assert float(((draws.mean(0) - POSTERIOR.mean) / error).abs().max()) < 5
    correlation = torch.corrcoef(draws.T)[0, 1]
    assert abs(float(correlation)) < 5 / 4000**0.5  # rows are drawn apart


def test_the_centre_is_the_mode(guide):
    assert torch.equal(guide.centre(None, None)["z"], guide.mode)
