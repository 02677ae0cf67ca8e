"""One pass in quadratic features: sums, shares, draws, chunks and weights, against SciPy and plain loops."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp, softmax

from probmix import quadratic_pass
from probmix.isolation import isolated
from probmix.quadratic_pass import (
    QuadraticRows,
    feature_sums,
    num_quadratic_features,
    quadratic_features,
)
from probmix.table import draw_component

D, N, K, RESTARTS = 3, 101, 4, 2


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(x: np.ndarray, spread_dim: int) -> np.ndarray:
    """Features of one row, entry by entry."""
    products = {
        2: [a * b for a, b in combinations_with_replacement(x, 2)],
        1: [a * a for a in x],
        0: [sum(a * a for a in x)],
    }
    return np.array([1.0, *x, *products[spread_dim]])


@pytest.mark.parametrize("spread_dim", [0, 1, 2])
def test_features_are_what_they_are_said_to_be(spread_dim):
    columns = normal(D, 5)
    features = quadratic_features(columns, spread_dim)
    assert len(features) == num_quadratic_features(D, spread_dim)
    for i in range(5):
        np.testing.assert_allclose(features[:, i], by_hand(columns[:, i].numpy(), spread_dim), rtol=1e-15)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows_of_chunk", [8, 1000])
@pytest.mark.parametrize("spread_dim", [0, 1, 2])
def test_value_and_sums_are_those_of_scipy(monkeypatch, spread_dim, rows_of_chunk, weighted):
    """1e-12: a sum of a hundred terms of order ten."""
    monkeypatch.setattr(quadratic_pass, "_FEWEST_ROWS", rows_of_chunk)
    monkeypatch.setattr(quadratic_pass, "_CHUNK_BYTES", {"cpu": 1})
    columns, coefficients = normal(D, N), normal(RESTARTS, K, num_quadratic_features(D, spread_dim), seed=1)
    weights = normal(N, seed=2).abs() if weighted else None
    value, sums = feature_sums(coefficients, QuadraticRows(columns, spread_dim), weights)
    features = np.stack([by_hand(row, spread_dim) for row in columns.T.numpy()])
    scores = features @ coefficients.mT.numpy()
    per_row = np.ones(N) if weights is None else weights.numpy()
    np.testing.assert_allclose(value, logsumexp(scores, -1) @ per_row, rtol=1e-12)
    expected = np.swapaxes(softmax(scores, -1) * per_row[:, None], -1, -2) @ features
    np.testing.assert_allclose(sums, expected, rtol=1e-12, atol=1e-12)


def test_sums_of_float32_are_kept_in_float64_chunk_by_chunk():
    """A million ones in float32 add up to the last digit, and a chunk has no more rows than float32 can bear."""
    rows = QuadraticRows(torch.ones(1, 2**20), spread_dim=1)
    value, sums = feature_sums(torch.zeros(1, 3), rows)
    assert (value.dtype, sums.dtype) == (torch.float64, torch.float64)
    assert sums.tolist() == [[2**20] * 3]
    assert max(features.shape[-1] for features, _ in rows.chunks(1)) == 2**13


def test_features_of_narrow_rows_in_a_wider_dtype():
    ((features, some),) = QuadraticRows(torch.full((1, 3), 1 / 3), 1).chunks(1, torch.float64)
    assert features.dtype == torch.float64
    assert some.start == 0
    np.testing.assert_array_equal(features[2], np.float64(np.float32(1 / 3)) ** 2)


def test_many_logs_are_the_sum_of_each():
    share = torch.rand(2, 20_001, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp_min(0.01)
    torch.testing.assert_close(quadratic_pass._sum_log(share), share.log().sum(-1), rtol=1e-12, atol=0)


def test_draws_follow_the_odds():
    """Null: frequencies are those of the softmax, by a chi-square test; fails once in 1e6. Control: other odds fail."""
    scores = torch.tensor([0.0, -1.0, -torch.inf, 1.0], dtype=torch.float64)
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        drawn = draw_component(scores[:, None].expand(4, 20_000))
    assert (drawn.sum(-2) == 1).all()
    observed = drawn.sum(-1)
    assert observed[2] == 0
    kept = torch.tensor([0, 1, 3])
    assert stats.chisquare(observed[kept], 20_000 * scores[kept].softmax(-1)).pvalue > 1e-6
    assert stats.chisquare(observed[kept], 20_000 * (1.1 * scores[kept]).softmax(-1)).pvalue < 1e-6
