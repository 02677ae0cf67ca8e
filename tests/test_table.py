"""One pass over the rows: blocks, weights of rows, shares and draws."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from probmix import table as module
from probmix.errors import DataError
from probmix.table import Table, accumulate, check_row_weights, draw_one, share_out

SCORES = torch.tensor([[0.0, -1.0, -torch.inf], [3.0, 3.0, 3.0]], dtype=torch.float64)


def test_shares_are_a_softmax_and_a_row_that_nothing_explains_has_none() -> None:
    torch.testing.assert_close(share_out(SCORES), SCORES.softmax(-1), rtol=1e-15, atol=0)
    assert not share_out(torch.full((1, 2), -torch.inf)).any()


def test_draws_follow_the_odds() -> None:
    """Null: frequencies are those of the softmax, by a chi-square test; fails once in 1e6. Control: other odds fail."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = draw_one(SCORES.expand(20_000, 2, 3))
    assert (drawn.sum(-1) == 1).all()
    observed = drawn.sum(0)
    assert observed[0, 2] == 0
    for row, columns in ((0, 2), (1, 3)):
        expected = 20_000 * SCORES[row, :columns].softmax(-1)
        assert stats.chisquare(observed[row, :columns], expected).pvalue > 1e-6
        tilted = 20_000 * (SCORES[row, :columns] + torch.arange(columns) / 5).softmax(-1)
        assert stats.chisquare(observed[row, :columns], tilted).pvalue < 1e-6


@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(101, 1, generator=generator, dtype=torch.float64)
    weights = torch.rand(101, generator=generator, dtype=torch.float64) if weighted else None
    loc = torch.tensor([[-1.0], [2.0]], dtype=torch.float64)

    def run() -> tuple:
        return accumulate(
            Table(x, weights), lambda rows: -(rows - loc[..., 0]).square(), lambda rows, r: r.mT @ rows, width=2
        )

    whole = run()
    monkeypatch.setattr(module, "_BLOCK", 14)  # 7 rows a block, the last one shorter
    blocks = run()
    scores = -(x - loc[..., 0]).square()
    per_row = torch.ones(101).double() if weights is None else weights
    torch.testing.assert_close(whole.log_likelihood, per_row @ scores.logsumexp(-1))
    torch.testing.assert_close(whole.statistics, (scores.softmax(-1) * per_row[:, None]).mT @ x)
    torch.testing.assert_close(blocks, whole)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3), r"one weight for each of 2 rows, got shape \(3,\)"),
        (torch.tensor([1.0, -2.0]), r"got 1 others, the first at index 1 \(-2\)"),
        (torch.tensor([torch.nan, 1.0]), r"the first at index 0 \(nan\)"),
        (torch.zeros(2), "got all zero"),
    ],
)
def test_weights_that_are_none_are_refused(weights, message) -> None:
    with pytest.raises(DataError, match=message):
        check_row_weights(weights, torch.zeros(2, 1))
