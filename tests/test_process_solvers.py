"""What data say about a process, in linear algebra: solvers against dense inverses by NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from probmix.process_solvers import DenseSolver, InducingSolver, Seen


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rbf(x: Tensor, y: Tensor) -> Tensor:
    return (-0.5 * torch.cdist(x, y).square()).exp()


N, M, R = 12, 5, 4
X, NEW, Z = normal(N, 2), normal(M, 2, seed=1), normal(R, 2, seed=2)
NOISE = torch.tensor([0.3, 1.7], dtype=torch.float64)  # a batch of two
OUTPUTS = normal(N, 3, seed=3)


def noisy() -> Tensor:
    return rbf(X, X) + NOISE[:, None, None] * torch.eye(N)


def dense() -> DenseSolver:
    return DenseSolver.of(X, torch.linalg.cholesky(noisy()), OUTPUTS)


def inducing(z: Tensor) -> InducingSolver:
    return InducingSolver.of(z, torch.linalg.cholesky(rbf(z, z)), rbf(z, X), torch.ones(N).double(), NOISE, OUTPUTS)


def approximation(z: Tensor) -> Tensor:
    return rbf(X, z) @ torch.linalg.inv(rbf(z, z)) @ rbf(z, X)


def check(solver, cov: Tensor, cross: Tensor) -> Seen:
    """Length, determinant and what the data change, by inverses; 1e-9: conditions of some 100."""
    inverse = np.linalg.inv(cov.numpy())
    y = OUTPUTS.numpy()
    np.testing.assert_allclose(solver.quadratic.numpy(), np.einsum("np,bnm,mp->b", y, inverse, y), rtol=1e-9)
    np.testing.assert_allclose(solver.log_det.numpy(), np.linalg.slogdet(cov.numpy())[1], rtol=1e-9)
    seen = solver.predict(rbf(solver.rows, NEW))
    np.testing.assert_allclose(
        seen.shift.numpy(), np.einsum("nm,bnk,kp->bmp", cross.numpy(), inverse, y), rtol=1e-9, atol=1e-9
    )
    return seen


def test_all_rows():
    seen = check(dense(), noisy(), rbf(X, NEW))
    expected = rbf(NEW, NEW) - rbf(NEW, X) @ torch.linalg.inv(noisy()) @ rbf(X, NEW)
    torch.testing.assert_close(seen.covariance(rbf(NEW, NEW)), expected, rtol=1e-9, atol=1e-9)
    diagonal = expected.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(seen.variance(torch.ones(M).double()), diagonal, rtol=1e-9, atol=1e-9)


def test_through_inducing_points():
    """The model is Q + noise; predictions are those of Titsias' optimal distribution of the inducing values."""
    low = approximation(Z)
    cross = rbf(X, Z) @ torch.linalg.inv(rbf(Z, Z)) @ rbf(Z, NEW)
    seen = check(inducing(Z), low + NOISE[:, None, None] * torch.eye(N), cross)
    sigma = torch.linalg.inv(rbf(Z, Z) + rbf(Z, X) @ rbf(X, Z) / NOISE[:, None, None])  # his equation 6
    expected = (
        rbf(NEW, NEW) - rbf(NEW, Z) @ torch.linalg.inv(rbf(Z, Z)) @ rbf(Z, NEW) + rbf(NEW, Z) @ sigma @ rbf(Z, NEW)
    )
    torch.testing.assert_close(seen.covariance(rbf(NEW, NEW)), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        seen.variance(torch.ones(M).double()), expected.diagonal(dim1=-2, dim2=-1), rtol=1e-9, atol=1e-9
    )
    missing = (1 - low.diagonal()).sum() / NOISE
    torch.testing.assert_close(inducing(Z).missing, missing, rtol=1e-9, atol=1e-9)


def test_every_row_an_inducing_point_is_all_rows():
    through, exact = inducing(X), dense()
    torch.testing.assert_close(through.quadratic, exact.quadratic, rtol=1e-9, atol=0)
    torch.testing.assert_close(through.log_det, exact.log_det, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(through.missing, torch.zeros(2).double(), rtol=0, atol=1e-9)
    prior = torch.ones(M).double()
    ours, theirs = (solver.predict(rbf(X, NEW)) for solver in (through, exact))
    torch.testing.assert_close(ours.shift, theirs.shift, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours.variance(prior), theirs.variance(prior), rtol=1e-8, atol=1e-8)


def test_more_rows_extend_the_factor():
    """The factor of all rows is what Cholesky makes of all at once, with the batch of the noise."""
    first = DenseSolver.of(X[:7], torch.linalg.cholesky(noisy()[:, :7, :7]), OUTPUTS[:7])
    seen = first.predict(rbf(X[:7], X[7:]))
    tril = torch.linalg.cholesky(seen.covariance(noisy()[:, 7:, 7:]))
    both, whole = first.extended(X[7:], seen, tril, OUTPUTS[7:]), dense()
    for ours, theirs in ((both.rows, whole.rows), (both.tril, whole.tril), (both.white, whole.white)):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_variance_never_falls_below_rounding(dtype):
    """At a row seen without noise nothing is left; rounding must not make it negative, a standard deviation of NaN."""
    prior, lost = torch.ones(2, dtype=dtype), torch.tensor([[1.0, 1.0 + 1e-6]], dtype=dtype)
    after = Seen(torch.zeros(2, 1, dtype=dtype), lost).variance(prior)
    assert (after >= torch.finfo(dtype).eps).all()
    assert (after < 1e-5).all()
