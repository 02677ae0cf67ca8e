"""Cholesky factors with as little jitter as is needed, and a refusal at a stated limit."""

from __future__ import annotations

import pytest
import torch

from probmix.errors import ProgramError
from probmix.jitter import factor


def of_rank(rank: int, lowest: float, size: int = 6) -> torch.Tensor:
    """A matrix of mean diagonal about one, with known lowest eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]
    values = torch.full((size,), lowest, dtype=torch.float64)
    values[:rank] = size / rank
    return (basis * values) @ basis.mT


def test_a_positive_definite_matrix_gets_nothing():
    matrix = of_rank(6, 0.0)
    assert torch.equal(factor(matrix, what=""), torch.linalg.cholesky(matrix))


@pytest.mark.parametrize(("lowest", "level"), [(-1e-11, 1e-10), (-1e-9, 1e-8), (-1e-7, 1e-6), (-1e-5, 1e-4)])
def test_the_least_level_that_is_enough(lowest, level):
    """What is added, in units of the mean diagonal, whatever the units of the matrix; to 1e-14 of rounding."""
    for unit in (1.0, 1e-9, 1e9):
        matrix = unit * of_rank(3, lowest)
        tril = factor(matrix, what="")
        added = (tril @ tril.mT - matrix).diagonal() / matrix.diagonal().mean()
        torch.testing.assert_close(added, torch.full((6,), level).double(), rtol=1e-6, atol=1e-14)


def test_each_matrix_of_a_batch_gets_its_own():
    batch = torch.stack([of_rank(6, 0.0), of_rank(3, -1e-7), of_rank(3, -1e-9)])
    together = factor(batch, what="")
    torch.testing.assert_close(together, torch.stack([factor(matrix, what="") for matrix in batch]), rtol=0, atol=0)


def test_gradients_pass_a_matrix_that_needed_jitter():
    """The factor of the other matrix must not become NaN: the log determinant's gradient is the inverse."""
    batch = torch.stack([of_rank(6, 0.0), of_rank(3, -1e-7)]).requires_grad_()
    factor(batch, what="").diagonal(dim1=-2, dim2=-1).log().sum().mul(2).backward()
    torch.testing.assert_close(batch.grad[0], torch.linalg.inv(batch[0].detach()))
    assert batch.grad[1].isfinite().all()


def test_the_limit():
    """An eigenvalue of -2e-4 is beyond 1e-4; so is everything where the mean diagonal is not positive."""
    with pytest.raises(
        ProgramError, match=r"even with 0.0001 of its mean diagonal added: an RBF with noise_var 0. Add"
    ):
        factor(of_rank(3, -2e-4), what="an RBF with noise_var 0")
    with pytest.raises(ProgramError, match="Add observation noise, drop rows that are equal, or use float64"):
        factor(torch.stack([torch.eye(2), -torch.eye(2)]), what="two")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_entries_that_are_not_finite(bad):
    matrix = torch.eye(3)
    matrix[1, 1] = bad
    with pytest.raises(
        ProgramError, match=r"expected a finite covariance, got one with entries .* not finite: a kernel"
    ):
        factor(matrix, what="a kernel with lengthscale 0")


def test_single_precision_needs_more():
    """Equal rows in float32: rounding is 1e-7, so that 1e-10 and 1e-8 do nothing; the answer is finite."""
    tril = factor(torch.ones(5, 5), what="")
    assert (tril @ tril.mT - torch.ones(5, 5)).abs().max() < 1e-4
