"""The covariance of an evenly spaced series, given by its first column: exact in time n log² n, for a million rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Factorisation", "Inverse", "dense", "factorise", "num_elements", "quadratic_and_log_det", "solve", "times"]

_IN_STEPS = 512  # as far as the recursion goes step by step, where it is exactest; longer ones are halved
_ON_DEVICE = 8192  # as far as an accelerator makes a dense factor, half a gigabyte, rather than wait for the host
_HELD = 30  # numbers that the recursion holds at once for each row: 25 were measured, and its results


class Factorisation(NamedTuple):
    """What is known of a covariance ``C`` and residuals ``r`` after one factorisation.

    Args:
        quadratic: ``tr r^T C^-1 r``, ``(*b,)``.
        log_det: ``log |C|``, ``(*b,)``.
        alpha: ``C^-1 r``, ``(*b, n, p)``.
        first: the first column of the inverse, ``(*b, n, 1)``, of which `Inverse` is made.

    Example:
        >>> factorise(torch.tensor([2.0, 1.0]), torch.tensor([[1.0], [1.0]])).first.flatten()
        tensor([ 0.6667, -0.3333])
    """

    quadratic: Tensor
    log_det: Tensor
    alpha: Tensor
    first: Tensor


def dense(column: Tensor) -> Tensor:
    """Return the symmetric Toeplitz matrix with a first column, ``(*b, n) -> (*b, n, n)``.

    Example:
        >>> dense(torch.tensor([2.0, 1.0, 0.0]))
        tensor([[2., 1., 0.],
                [1., 2., 1.],
                [0., 1., 2.]])
    """
    rows = torch.arange(column.shape[-1], device=column.device)
    return column[..., (rows[:, None] - rows).abs()]


def num_elements(column: Tensor) -> int:
    """Return the numbers that a factorisation holds at once, for each of a batch: some 30 n.

    On an accelerator, up to 8,192 rows, the n^2 of a dense factor.

    Example:
        >>> num_elements(torch.ones(7, 100))
        3000
    """
    n = column.shape[-1]
    return n**2 if _is_dense(column) else _HELD * n


def times(column: Tensor, vectors: Tensor) -> Tensor:
    """Return the product of a symmetric Toeplitz matrix with vectors, ``(*b, n), (*b, n, p) -> (*b, n, p)``.

    By a circulant matrix of twice the size, in time ``n log n``.

    Args:
        column: the first column of the matrix.
        vectors: in columns.

    Example:
        >>> times(torch.tensor([2.0, 1.0, 0.0]), torch.eye(3)).round().abs()
        tensor([[2., 1., 0.],
                [1., 2., 1.],
                [0., 1., 2.]])
    """
    n, size = column.shape[-1], _size(column.shape[-1])
    zeros = column.new_zeros(()).expand(*column.shape[:-1], size - 2 * n + 1)
    circulant = torch.fft.rfft(torch.cat([column, zeros, column[..., 1:].flip(-1)], -1))
    return torch.fft.irfft(circulant[..., None] * _transform(vectors, size), size, -2)[..., :n, :]


def quadratic_and_log_det(column: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the squared Mahalanobis length of residuals and the log determinant of their covariance, each ``(*b,)``.

    As `probmix.dense_covariance.quadratic_and_log_det`, for a symmetric Toeplitz matrix given by its first column c, by
    Schur's recursion in halves, without an approximation. All derivatives, of whatever order, are made of
    :math:`\alpha = C^{-1} r` and :math:`x = C^{-1} e_1` by FFT:

    .. math:: \partial q / \partial c = -D(\alpha, \alpha), \quad
              \partial \log |C| / \partial c = D((n - 2 m) x, x) / x_0, \qquad
              D(u, v)_k = \sum_{|i - j| = k} u_i^\top v_j

    with m the number of a row, from 0. The recursion is in float64 whatever the dtype of the data; its rounding grows
    with the condition number of C, to 1e-3 in the log determinant of 2,000 rows at a condition of 1e10 (1e-5 by a dense
    factor), and to 1e-6 of the largest derivative.

    Its steps depend on each other, so it runs on the host. Up to 8,192 rows that are on an accelerator stay there, and
    a dense factor takes its place; longer series there are copied to the host and back.

    Args:
        column: c, ``(*b, n)``.
        residuals: r, ``(n, p)`` or ``(*b, n, p)``: p columns with one covariance.

    Raises:
        torch.linalg.LinAlgError: not positive definite; inside `probmix.lenient.Lenient` NaN in its place.

    Source:
        Ammar and Gragg (1988), Superfast solution of real positive definite Toeplitz systems, sections 3 and 4; Gohberg
        and Semencul (1972), On the inversion of finite Toeplitz matrices and their continuous analogues: the sums over
        the diagonals of their inverse.

    Example:
        >>> quadratic_and_log_det(torch.tensor([2.0, 1.0]), torch.tensor([[1.0], [1.0]]))
        (tensor(0.6667), tensor(1.0986))
    """
    found = factorise(column, residuals)
    return found.quadratic, found.log_det


def factorise(column: Tensor, residuals: Tensor) -> Factorisation:
    """Return all that one factorisation tells, each part with derivatives of any order.

    Args:
        column: the first column of the matrix, ``(*b, n)``.
        residuals: ``(n, p)`` or ``(*b, n, p)``.

    Raises:
        torch.linalg.LinAlgError: not positive definite; inside `probmix.lenient.Lenient` NaN in its place.

    Example:
        >>> factorise(torch.tensor([2.0, 1.0]), torch.tensor([[1.0], [1.0]])).alpha.flatten()
        tensor([0.3333, 0.3333])
    """
    batch = torch.broadcast_shapes(column.shape[:-1], residuals.shape[:-2])
    columns, rows = column.expand(*batch, column.shape[-1]), residuals.expand(*batch, *residuals.shape[-2:])
    return Factorisation(*_Lengths.apply(columns, rows))


def solve(column: Tensor, vectors: Tensor) -> Tensor:
    """Return the product of the inverse of a symmetric Toeplitz matrix with vectors, ``(*b, n, p)``.

    In time and with errors as `quadratic_and_log_det`, differentiable as often as wanted.

    Args:
        column: the first column of the matrix, ``(*b, n)``.
        vectors: in columns, ``(n, p)`` or ``(*b, n, p)``.

    Raises:
        torch.linalg.LinAlgError: not positive definite; inside `probmix.lenient.Lenient` NaN in its place.

    Example:
        >>> solve(torch.tensor([2.0, 1.0]), torch.eye(2))
        tensor([[ 0.6667, -0.3333],
                [-0.3333,  0.6667]])
    """
    return factorise(column, vectors).alpha


class _Lengths(torch.autograd.Function):
    """Quadratic form and log determinant; with them ``alpha`` and ``x``, of which all derivatives are made."""

    generate_vmap_rule = True

    @staticmethod
    def forward(column: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, log_det, info = _factorise(column)
        torch.ops.aten._linalg_check_errors(info, "linalg.cholesky", is_matrix=column.dim() == 1)
        exact, right = column.double(), residuals.double()
        first = torch.zeros_like(x)
        first[..., 0, :] = 1
        x = x + Inverse.of(x)(first - times(exact, x))  # refined once: as exact as by a dense factor
        alpha = Inverse.of(x)(right)
        quadratic = (right * alpha).sum((-2, -1))
        quadratic, log_det, alpha, x = (value.to(column.dtype) for value in (quadratic, log_det, alpha, x))
        return quadratic, log_det, alpha, x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)  # those by alpha and x come with second derivatives alone
        ctx.save_for_backward(*output[2:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, Tensor]:
        by_quadratic, by_log_det, by_alpha, by_x = gradients
        alpha, x = ctx.saved_tensors
        left, by_residuals = [torch.zeros_like(alpha), torch.zeros_like(x)], torch.zeros_like(alpha)
        if by_quadratic is not None:
            left[0] = by_quadratic[..., None, None] * alpha
            by_residuals = 2 * left[0]
        if by_log_det is not None:
            n = x.shape[-2]
            weights = n - 2 * torch.arange(n, dtype=x.dtype, device=x.device)[:, None]
            left[1] = -by_log_det[..., None, None] * weights * x / x[..., :1, :]
        if by_alpha is not None:
            solved = Inverse.of(x)(by_alpha)
            left[0], by_residuals = left[0] + solved, by_residuals + solved
        if by_x is not None:
            left[1] = left[1] + Inverse.of(x)(by_x)
        return -_sums_over_diagonals(torch.cat(left, -1), torch.cat([alpha, x], -1)), by_residuals


def _sums_over_diagonals(left: Tensor, right: Tensor) -> Tensor:
    """Return the sums of ``left right^T`` over pairs of diagonals, ``(*b, n, p), (*b, n, p) -> (*b, n)``."""
    n, size = left.shape[-2], _size(left.shape[-2])
    left, right = (torch.fft.rfft(value, size, -2) for value in (left, right))
    sums = torch.fft.irfft(2 * (left.conj() * right).real.sum(-1), size)
    return torch.cat([sums[..., :1] / 2, sums[..., 1:n]], -1)


@dataclass(frozen=True)
class Inverse:
    r"""The inverse of a symmetric Toeplitz matrix by its first column x: products in time ``n log n``.

    .. math:: C^{-1} = (L L^\top - M M^\top) / x_0

    with lower triangular Toeplitz matrices, whose first columns are x, and 0 before x backwards without its first.

    Args:
        root: that of :math:`x_0`, ``(*b, 1, 1)``.
        of_l: transform of the first column of L, ``(*b, f, 1)``.
        of_m: likewise of M.
        num_rows: n.

    Source:
        Gohberg and Semencul (1972), On the inversion of finite Toeplitz matrices and their continuous analogues.

    Example:
        >>> inverse = Inverse.of(factorise(torch.tensor([2.0, 1.0]), torch.zeros(2, 1)).first)
        >>> inverse(torch.eye(2))
        tensor([[ 0.6667, -0.3333],
                [-0.3333,  0.6667]])
    """

    root: Tensor
    of_l: Tensor
    of_m: Tensor
    num_rows: int

    @classmethod
    def of(cls, first: Tensor) -> Inverse:
        """Return the inverse whose first column is ``first``, ``(*b, n, 1)``."""
        backwards = torch.cat([torch.zeros_like(first[..., :1, :]), first[..., 1:, :].flip(-2)], -2)
        n = first.shape[-2]
        of_l, of_m = (_transform(value, _size(n)) for value in (first, backwards))
        return cls(first[..., :1, :].sqrt(), of_l, of_m, n)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return products with vectors, ``(*b, n, p)``."""
        size = _size(self.num_rows)
        first, second = (
            f * _transform(v, size) for f, v in zip((self.of_l, self.of_m), self.halves(vectors), strict=True)
        )
        return torch.fft.irfft(first - second, size, -2)[..., : self.num_rows, :] / self.root

    def halves(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`L^\top v / \sqrt{x_0}` and :math:`M^\top v / \sqrt{x_0}`, ``(*b, n, p)``.

        Products of the first less those of the second are :math:`v^\top C^{-1} v`.
        """
        size = _size(self.num_rows)
        transform = _transform(vectors, size)
        first, second = (
            torch.fft.irfft(f.conj() * transform, size, -2)[..., : self.num_rows, :] / self.root
            for f in (self.of_l, self.of_m)
        )
        return first, second


def _transform(vectors: Tensor, size: int) -> Tensor:
    """Return the transforms of columns; laid out one after the other, which halves the time for many of them."""
    return torch.fft.rfft(vectors.mT, size).mT


def _size(n: int) -> int:
    """Return a size for transforms of two series of n that do not touch each other."""
    return scipy.fft.next_fast_len(2 * n, real=True)


# The factorisation, one operation to whoever traces. The steps of the recursion depend on each other, so it is NumPy's,
# which calls faster.


@torch.library.custom_op("probmix::toeplitz_factorisation", mutates_args=())
def _factorise(column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``C^-1 e_1`` ``(*b, n, 1)``, ``log |C|`` ``(*b,)`` and the order of the first minor that is not positive.

    The first two in float64, and NaN where there is such a minor.
    """
    return _by_factor(column) if _is_dense(column) else _by_recursion(column)


def _is_dense(column: Tensor) -> bool:
    return column.is_cuda and column.shape[-1] <= _ON_DEVICE


def _by_factor(column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factorise without leaving the device, in n^3 operations."""
    tril, info = torch.linalg.cholesky_ex(dense(column.detach().double()))
    first = torch.zeros_like(tril[..., :1])
    first[..., 0, :] = 1
    log_det = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    x = torch.cholesky_solve(first, tril)
    return x.masked_fill(info[..., None, None] > 0, torch.nan), log_det.masked_fill(info > 0, torch.nan), info


def _by_recursion(column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factorise on the host, in n log² n operations."""
    batch, n = column.shape[:-1], column.shape[-1]
    c = column.detach().cpu().double().reshape(-1, n).numpy()
    with np.errstate(all="ignore"):
        a, b, variances = _halved(c[:, :-1], c[:, 1:])
        variances = np.concatenate([c[:, :1], variances], -1)
        a[:, :-1] += b[:, 1:]
        x = a[:, ::-1] / variances[:, -1:]
        failed = ~(variances > 0)
        log_det = np.log(variances).sum(-1)
    info = np.where(failed.any(-1), failed.argmax(-1) + 1, 0).astype(np.int32)
    x[info > 0], log_det[info > 0] = np.nan, np.nan
    found = (x.reshape(*batch, n, 1), log_det.reshape(batch), info.reshape(batch))
    first, second, third = (torch.from_numpy(value).to(column.device) for value in found)
    return first, second, third


@_factorise.register_fake
def _empty(column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch = column.shape[:-1]
    x = column.new_empty((*column.shape, 1), dtype=torch.float64)
    return x, x.new_empty(batch), x.new_empty(batch, dtype=torch.int32)


@_factorise.register_vmap
def _batched(info: Any, axes: tuple[int], column: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
    return _factorise(column.movedim(axes[0], 0)), (0, 0, 0)


class _Steps(NamedTuple):
    r"""What n steps of Schur's recursion do to two power series u and w.

    One is ``u <- u - g w``, ``w <- (w - g u) / z`` with the ``g = w(0) / u(0)`` that leaves nothing of ``w(0)``; all,

    .. math:: z^n u_n = a u + b w, \quad z^n w_n = \tilde b u + \tilde a w

    where a tilde reverses the coefficients of a polynomial of degree n.

    Args:
        a: ``(r, n + 1)``.
        b: ``(r, n + 1)``; like a, without its coefficient of order 0.
        variances: ``u(0)`` after each step, the variance of a row given those before, ``(r, n)``.
    """

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    variances: NDArray[np.float64]


def _step_by_step(u: NDArray[np.float64], w: NDArray[np.float64]) -> _Steps:
    """Make all steps, in n^2 operations; u and w are ``(r, n)``."""
    rows, n = u.shape
    variances = np.empty((rows, n))
    # Row 1 is a / z^k, then u; row 2 what b reversed has by now, then what is left of w: a window slides along row 1.
    first, second = np.zeros((rows, 2 * n + 1)), np.zeros((rows, n + 1))
    first[:, n], first[:, n + 1 :], second[:, 1:] = 1, u, w
    for k in range(n):
        ratio = second[:, k + 1 : k + 2] / first[:, n + 1 : n + 2]
        window = first[:, n - k : 2 * n + 1 - k]
        new = window - ratio * second
        second -= ratio * window
        window[:] = new
        variances[:, k] = new[:, k + 1]
    return _Steps(first[:, : n + 1], second[:, ::-1], variances)


def _halved(u: NDArray[np.float64], w: NDArray[np.float64]) -> _Steps:
    """Make the steps of the first half by the first half of the coefficients, apply them to all, make the others."""
    n = u.shape[-1]
    if n <= _IN_STEPS:
        return _step_by_step(u, w)
    half, size = n // 2, scipy.fft.next_fast_len(n, real=True)
    backwards = np.exp(-2j * np.pi / size * (half * np.arange(size // 2 + 1) % size))  # angles of one turn are exact

    def transforms(*series: NDArray[np.float64]) -> list[NDArray[np.complex128]]:
        return [scipy.fft.rfft(value, size) for value in series]

    # Products that are longer than n wrap around onto coefficients that are known to be zero.
    a, b, first = _halved(u[:, :half], w[:, :half])
    of_a, of_b, of_u, of_w = transforms(a, b, u, w)
    a_reversed, b_reversed = backwards * of_a.conj(), backwards * of_b.conj()
    moved = of_a * of_u + of_b * of_w, b_reversed * of_u + a_reversed * of_w
    second = _halved(*(scipy.fft.irfft(value, size)[:, half:n] for value in moved))
    a_after, b_after = transforms(second.a, second.b)
    products = a_after * of_a + b_after * b_reversed, a_after * of_b + b_after * a_reversed
    a, b = (np.take(scipy.fft.irfft(value, size), np.arange(n + 1) % size, -1) for value in products)
    a[:, 0], b[:, 0] = 0, 0
    return _Steps(a, b, np.concatenate([first, second.variances], -1))
