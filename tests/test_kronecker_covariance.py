"""Covariances on grids, against dense ones and in closed form, up to a million rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from probmix import dense_covariance
from probmix.kronecker_covariance import decompose, quadratic_and_log_det, times
from probmix.lenient import Lenient


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def smooth(n: int, length: float = 3.0) -> Tensor:
    axis = torch.arange(n, dtype=torch.float64)
    return (-0.5 * ((axis[:, None] - axis) / length).square()).exp()


def rough(n: int, length: float = 3.0) -> Tensor:
    axis = torch.arange(n, dtype=torch.float64)
    return (-(axis[:, None] - axis).abs() / length).exp()


def ring(n: int) -> Tensor:
    """Points on a circle: eigenvalues come in equal pairs."""
    angles = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
    return (angles[:, None] - angles).cos().exp()


GRIDS = {
    "one axis": [smooth(9)],
    "two axes": [smooth(7), rough(5)],
    "three axes": [rough(4), smooth(1), smooth(6)],
    "equal eigenvalues": [ring(6), torch.eye(5, dtype=torch.float64)],
    "singular factors": [torch.ones(4, 4, dtype=torch.float64), smooth(20, 30.0)],
}
every_grid = pytest.mark.parametrize("name", GRIDS)


def whole(factors: list[Tensor], noise_var: Tensor) -> Tensor:
    matrix = factors[0]
    for factor in factors[1:]:
        matrix = (matrix[:, None, :, None] * factor[None, :, None, :]).reshape(len(matrix) * len(factor), -1)
    return matrix + noise_var * torch.eye(len(matrix), dtype=matrix.dtype)


@pytest.mark.parametrize("shapes", [[(3, 5)], [(2, 3), (4, 1)], [(1, 2), (5, 3), (2, 2)]])
@pytest.mark.parametrize("columns", [1, 3])
def test_products(shapes, columns):
    """By an einsum over named axes; 1e-13 is rounding."""
    matrices = [normal(2, *shape, seed=i) for i, shape in enumerate(shapes)]
    table = normal(2, *[n for _, n in shapes], columns, seed=9)
    rows, axes = "ijk"[: len(shapes)], "lmn"[: len(shapes)]
    terms = ",".join(f"b{row}{axis}" for row, axis in zip(rows, axes, strict=True))
    expected = torch.einsum(f"{terms},b{axes}p->b{rows}p", *matrices, table)
    found = times(matrices, table.reshape(2, -1, columns))
    torch.testing.assert_close(found, expected.reshape(2, -1, columns), rtol=1e-13, atol=1e-13)


@every_grid
def test_eigenvalues_and_eigenvectors(name):
    """1e-12: rounding of eigenvalues of up to 80."""
    noise_var = torch.tensor(0.3, dtype=torch.float64)
    found, matrix = decompose(GRIDS[name], noise_var), whole(GRIDS[name], noise_var)
    torch.testing.assert_close(found.values.sort()[0], torch.linalg.eigvalsh(matrix), rtol=0, atol=1e-12)
    basis = found.coordinates(torch.eye(len(matrix), dtype=torch.float64)).mT
    torch.testing.assert_close(basis * found.values @ basis.mT, matrix, rtol=0, atol=1e-12)


@every_grid
@pytest.mark.parametrize("noise", [1.0, 1e-2])
def test_dense_ones_agree(name, noise):
    """Values and all gradients to 1e-8 of the largest; the condition number is at most 1e4."""
    factors = [factor.clone().requires_grad_() for factor in GRIDS[name]]
    noise_var = torch.tensor(noise, dtype=torch.float64, requires_grad=True)
    n = whole(factors, noise_var).shape[-1]
    residuals = normal(n, 2).requires_grad_()
    inputs = [*factors, noise_var, residuals]
    ours = quadratic_and_log_det(factors, noise_var, residuals)
    theirs = dense_covariance.quadratic_and_log_det(whole(factors, noise_var), residuals)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        gradients = (torch.autograd.grad(f, inputs, retain_graph=True, allow_unused=True) for f in (one, other))
        for found, expected in zip(*gradients, strict=True):
            expected = torch.zeros_like(found) if expected is None else expected
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-8 * float(expected.abs().max() + 1e-8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_factor_that_is_not_finite(bad):
    """It is NaN in its row of a batch, or an error."""
    other = smooth(3)
    other[0, 1] = other[1, 0] = bad
    factors = [torch.stack([smooth(3), other]), rough(4)]
    noise_var, residuals = torch.tensor(0.1, dtype=torch.float64), normal(12, 1)
    with pytest.raises(torch.linalg.LinAlgError, match="Batch element 1"):
        quadratic_and_log_det(factors, noise_var, residuals)
    with Lenient():
        found = quadratic_and_log_det(factors, noise_var, residuals)
    for batch, alone in zip(found, quadratic_and_log_det([smooth(3), rough(4)], noise_var, residuals), strict=True):
        torch.testing.assert_close(batch[0], alone, rtol=1e-12, atol=0)
        assert batch[1].isnan()


def test_without_noise_axes_are_apart():
    """log |A x B| = m log |A| + n log |B|, and the inverse is that of each axis; 120,000 rows."""
    a, b = rough(300), rough(400, 2.0)
    table = normal(300, 400)
    quadratic, log_det = quadratic_and_log_det([a, b], torch.zeros((), dtype=torch.float64), table.reshape(-1, 1))
    a, b, table = a.numpy(), b.numpy(), table.numpy()
    expected = np.sum(table * np.linalg.solve(b, np.linalg.solve(a, table).T).T)
    assert float(quadratic) == pytest.approx(expected, rel=1e-10)
    assert float(log_det) == pytest.approx(400 * np.linalg.slogdet(a)[1] + 300 * np.linalg.slogdet(b)[1], rel=1e-10)


def test_a_million_rows():
    """Of rank one along each axis: a single eigenvalue, 1e6 and the noise, and one direction, of ones."""
    factors = [torch.ones(100, 100, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    noise_var = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    residuals = normal(10**6, 1)
    quadratic, log_det = quadratic_and_log_det(factors, noise_var, residuals)
    total, squares = float(residuals.sum()), float(residuals.square().sum())
    left = squares - total**2 / 1e6  # of the squares, in all other directions
    expected = total**2 / 1e6 / (1e6 + 0.5) + left / 0.5, np.log(1e6 + 0.5) + (1e6 - 1) * np.log(0.5)
    assert float(quadratic.detach()) == pytest.approx(expected[0], rel=1e-9)
    assert float(log_det.detach()) == pytest.approx(expected[1], rel=1e-9)
    by_factor, by_noise = torch.autograd.grad(log_det, [factors[1], noise_var])
    assert float(by_noise) == pytest.approx(1 / (1e6 + 0.5) + (1e6 - 1) / 0.5, rel=1e-9)
    # By K_2, the product of other eigenvalues is 1e4 once and else 0: 1e4 (K_2 1e4 + 0.5)^-1, by Sherman and Morrison.
    expected = 1e4 * (torch.eye(100).double() - 1e4 / (0.5 + 1e6)) / 0.5
    torch.testing.assert_close(by_factor, expected, rtol=1e-7, atol=1e-7 * 2e4)
