"""Even series: scipy's Levinson recursion, an autoregression in closed form, and NumPy's long doubles."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from probmix import toeplitz_covariance
from probmix.toeplitz_covariance import quadratic_and_log_det, solve, times


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def column_of(n: int, noise_var: float = 0.1) -> Tensor:
    """Of two damped waves."""
    lags = torch.arange(n, dtype=torch.float64)
    waves = (-lags / 30).exp() * (0.5 * lags).cos() + 0.5 * (-0.5 * (lags / 50).square()).exp()
    return waves + noise_var * (lags == 0)


SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 17, 31, 64, 100]


@pytest.mark.parametrize("n", SIZES)
def test_products(n):
    column, vectors = column_of(n), normal(n, 3)
    expected = scipy.linalg.matmul_toeplitz(column.numpy(), vectors.numpy())
    np.testing.assert_allclose(times(column, vectors).numpy(), expected, rtol=0, atol=1e-13)
    batch = times(torch.stack([column, 2 * column]), vectors)
    torch.testing.assert_close(batch, torch.stack([times(column, vectors), 2 * times(column, vectors)]))


def check(n: int) -> None:
    """1e-11: a condition number of some 1e3."""
    column, vectors = column_of(n), normal(n, 2)
    matrix = scipy.linalg.toeplitz(column.numpy())
    expected = np.linalg.solve(matrix, vectors.numpy())
    np.testing.assert_allclose(solve(column, vectors).numpy(), expected, rtol=0, atol=1e-11)
    column.requires_grad_()
    quadratic, log_det = quadratic_and_log_det(column, vectors)
    assert float(quadratic.detach()) == pytest.approx(np.sum(vectors.numpy() * expected), rel=1e-11)
    assert float(log_det.detach()) == pytest.approx(np.linalg.slogdet(matrix)[1], rel=1e-11)
    by_matrix = 0.3 * np.linalg.inv(matrix) - 0.7 * expected @ expected.T
    sums = [np.trace(by_matrix, k) * (1 if k == 0 else 2) for k in range(n)]
    (0.3 * log_det + 0.7 * quadratic).backward()
    np.testing.assert_allclose(column.grad.numpy(), sums, rtol=0, atol=1e-11 * np.abs(sums).max())


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("steps", [1, 2, 3, 512])
def test_halves_of_whatever_size(n, steps, monkeypatch):
    """Powers of two, primes, and all that becomes of them when halved."""
    monkeypatch.setattr(toeplitz_covariance, "_IN_STEPS", steps)
    check(n)


@pytest.mark.parametrize("n", [512, 513, 514, 1201])
def test_halves_of_the_usual_size(n):
    check(n)


def test_rows_of_a_batch_do_not_mix(monkeypatch):
    monkeypatch.setattr(toeplitz_covariance, "_IN_STEPS", 4)
    columns, vectors = torch.stack([column_of(50, v) for v in (0.1, -100.0, 1.0)])[:, None], normal(3, 2, 50, 1)
    with pytest.raises(torch.linalg.LinAlgError, match=r"Batch element 2.*leading minor of order 1 is not positive"):
        quadratic_and_log_det(columns, vectors)
    batch = quadratic_and_log_det(columns[::2], vectors[::2])
    first, last = (quadratic_and_log_det(columns[k], vectors[k]) for k in (0, 2))
    for found, *rows in zip(batch, first, last, strict=True):
        torch.testing.assert_close(found, torch.stack(rows), rtol=1e-13, atol=0)


def test_the_first_minor_that_fails_is_named():
    """Correlations of 0.9 with the next and 0.2 with the one after cannot be, says NumPy's determinant."""
    column = torch.tensor([1.0, 0.9, 0.2, 0.0], dtype=torch.float64)
    minors = [np.linalg.det(scipy.linalg.toeplitz(column[:k].numpy())) for k in range(1, 5)]
    assert minors[1] > 0 > minors[2]
    with pytest.raises(torch.linalg.LinAlgError, match="leading minor of order 3 is not positive-definite"):
        quadratic_and_log_det(column, normal(4, 1))


def test_a_long_autoregression():
    r"""Of order one, variance 1 / (1 - f^2): a tridiagonal inverse with 1 + f^2, at the ends 1, beside it -f.

    100,000 rows at a condition number of 361: 1e-16 of that in each of the 17 levels of halves, and a sum of all rows.
    """
    n, f = 100_000, 0.9
    column = (f ** torch.arange(n, dtype=torch.float64) / (1 - f**2)).requires_grad_()
    vectors = normal(n, 1)
    quadratic, log_det = quadratic_and_log_det(column, vectors)
    beside = torch.nn.functional.pad(vectors, (0, 0, 1, 1))
    alpha = (1 + f**2) * vectors - f * (beside[2:] + beside[:-2])
    alpha[[0, -1]] -= f**2 * vectors[[0, -1]]
    torch.testing.assert_close(solve(column, vectors), alpha, rtol=0, atol=1e-11)
    assert float(quadratic.detach()) == pytest.approx(float((vectors * alpha).sum()), rel=1e-12)
    assert float(log_det.detach()) == pytest.approx(-np.log(1 - f**2), abs=1e-7)
    expected = torch.zeros(n, dtype=torch.float64)
    expected[0], expected[1] = 2 + (n - 2) * (1 + f**2), -2 * f * (n - 1)
    torch.testing.assert_close(torch.autograd.grad(log_det, column)[0], expected, rtol=0, atol=1e-10 * n)


# --- ill-conditioned --------------------------------------------------------------------------------------------------


def by_long_doubles(column: Tensor, residuals: Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """First column of the inverse, solution and log determinant by Levinson's recursion with 19 digits."""
    c, r = column.numpy().astype(np.longdouble), residuals.numpy()[:, 0].astype(np.longdouble)
    n = len(c)
    predictor, solution, variance = (np.zeros(n, np.longdouble) for _ in range(3))
    predictor[0], solution[0], variance[0] = 1, r[0] / c[0], c[0]
    for k in range(1, n):
        ratio = -(predictor[:k] @ c[k:0:-1]) / variance[k - 1]
        predictor[1 : k + 1] += ratio * predictor[:k][::-1].copy()
        variance[k] = variance[k - 1] * (1 - ratio**2)
        solution[: k + 1] += (r[k] - c[k:0:-1] @ solution[:k]) / variance[k] * predictor[k::-1]
    return predictor / variance[-1], solution, float(np.log(variance).sum())


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="no long doubles here")
@pytest.mark.parametrize(("noise_var", "condition"), [(1e-3, 1e5), (1e-6, 1e8), (1e-8, 1e10)])
def test_ill_conditioned(noise_var, condition):
    """A wave and a trend that 1,500 rows hardly tell from fewer: each digit of the condition number costs one of 16.

    Hence 1e-16 times the condition number, and ten for the errors of transforms; the log determinant is a sum of 1,500,
    of which a hundred err.
    """
    tolerance = 1e-15 * condition
    lags = torch.arange(1500, dtype=torch.float64)
    column = (-0.5 * (lags / 200).square()).exp() * (0.5 * lags).cos() + noise_var * (lags == 0)
    column = column + 0.5 * (-0.5 * (lags / 1000).square()).exp() * (0.02 * lags).cos()
    eigenvalues = np.linalg.eigvalsh(scipy.linalg.toeplitz(column.numpy()))
    assert 1 < eigenvalues[-1] / eigenvalues[0] / condition < 10
    residuals = (lags / 50).sin()[:, None] + noise_var**0.5 * normal(1500, 1)
    x, alpha, expected = by_long_doubles(column, residuals)
    column.requires_grad_()
    quadratic, log_det = quadratic_and_log_det(column, residuals)
    assert float(log_det.detach()) == pytest.approx(expected, abs=100 * tolerance)
    assert float(quadratic.detach()) == pytest.approx(float(residuals[:, 0].numpy() @ alpha), rel=tolerance)
    weights = (1500 - 2 * np.arange(1500)) / x[0]
    sums = np.correlate(x, weights * x, "full")
    by_log_det = np.r_[sums[1499], sums[1500:] + sums[:1499][::-1]].astype(float)
    found = torch.autograd.grad(log_det, column)[0].numpy()
    np.testing.assert_allclose(found, by_log_det, rtol=0, atol=tolerance * np.abs(by_log_det).max())


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="no long doubles here")
def test_solutions_are_refined():
    """At a condition number of 5e8, where the formula alone errs by a hundred times more than a dense factor."""
    lags = torch.arange(1500, dtype=torch.float64)
    column = (-0.5 * (lags / 300).square()).exp() + 1e-6 * (lags == 0)
    residuals = (lags / 50).sin()[:, None]
    factor = scipy.linalg.cho_factor(scipy.linalg.toeplitz(column.numpy()))
    first = torch.zeros(1500, 1, dtype=torch.float64)
    first[0] = 1
    for vectors, exact in zip((first, residuals), by_long_doubles(column, residuals)[:2], strict=True):
        ours, dense = solve(column, vectors).numpy()[:, 0], scipy.linalg.cho_solve(factor, vectors.numpy()[:, 0])
        assert np.abs(ours - exact).max() < 10 * np.abs(dense - exact).max()
