"""A pass that subtracts means first: against SciPy's densities and NumPy's weighted covariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from probmix import centred_pass
from probmix.centred_pass import centred_expectation

N, D, K = 60, 2, 3


def case(spread_dim: int, pooled: bool) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(spread_dim)
    x = 2 * torch.randn(N, D, generator=generator, dtype=torch.float64)
    factor = torch.randn(1 if pooled else K, D, D, generator=generator, dtype=torch.float64)
    cov = factor @ factor.mT + torch.eye(D)
    spread = {2: cov, 1: cov.diagonal(dim1=-2, dim2=-1), 0: cov[..., 0, 0]}[spread_dim]
    dense = {2: cov, 1: torch.diag_embed(spread) if spread_dim == 1 else None, 0: cov[:, :1, :1] * torch.eye(D)}
    return x, x[:K] + 1, spread, dense[spread_dim].expand(K, D, D)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("spread_dim", [0, 1, 2])
def test_value_and_statistics(monkeypatch, spread_dim, pooled, weighted):
    """1e-12: sums of sixty terms of order ten, in blocks of seven rows."""
    monkeypatch.setattr(centred_pass, "_BLOCK", 7 * K * D)
    x, loc, spread, dense = case(spread_dim, pooled)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    per_row = torch.arange(N, dtype=torch.float64) % 4 if weighted else None
    value, found = centred_expectation(
        x.mT.contiguous(), weights.log(), loc, spread, spread_dim=spread_dim, pooled=pooled, row_weights=per_row
    )
    scores = np.stack([multivariate_normal(loc[k], dense[k]).logpdf(x) for k in range(K)], -1) + np.log(weights.numpy())
    log_rows, per_row = logsumexp(scores, -1), np.ones(N) if per_row is None else per_row.numpy()
    shares = np.exp(scores - log_rows[:, None]) * per_row[:, None]
    np.testing.assert_allclose(value, log_rows @ per_row, rtol=1e-12)
    np.testing.assert_allclose(found.count, shares.sum(0), rtol=1e-12)
    np.testing.assert_allclose(found.mean, shares.T @ x.numpy() / shares.sum(0)[:, None], rtol=1e-12)
    scatter = np.stack([np.cov(x.T, aweights=shares[:, k], ddof=0) * shares[:, k].sum() for k in range(K)])
    scatter = scatter.sum(0, keepdims=True) if pooled else scatter
    diagonal = np.diagonal(scatter, axis1=1, axis2=2)
    expected = {2: scatter, 1: diagonal, 0: diagonal.sum(-1)}[spread_dim]
    np.testing.assert_allclose(found.scatter, expected, rtol=1e-11)


def test_a_matrix_that_is_no_covariance_spoils_its_own_restart_alone():
    x, loc, spread, _ = case(2, pooled=False)
    bad = torch.stack([spread, spread])
    bad[1, 2] = -bad[1, 2]
    weights = torch.zeros(2, K, dtype=torch.float64)
    value, found = centred_expectation(x.mT, weights, loc.expand(2, K, D), bad, spread_dim=2)
    assert value.isfinite().tolist() == [True, False]
    assert found.scatter[0].isfinite().all()


def test_an_empty_component_has_a_finite_mean():
    x, loc, spread, _ = case(1, pooled=False)
    weights = torch.tensor([0.0, 0.0, -torch.inf], dtype=torch.float64)
    _, found = centred_expectation(x.mT, weights, loc, spread, spread_dim=1)
    assert found.count[2] == 0
    assert found.mean.isfinite().all()
    assert (found.scatter[2] == 0).all()
