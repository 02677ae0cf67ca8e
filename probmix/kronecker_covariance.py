"""The covariance of rows that cover a grid: a Kronecker product, one factor for each axis, and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Decomposition", "decompose", "quadratic_and_log_det", "times"]


def times(matrices: Sequence[Tensor], vectors: Tensor) -> Tensor:
    """Return the product of a Kronecker product with vectors, ``(*b, m_d, n_d) x D, (*b, n, p) -> (*b, m, p)``.

    The product itself is never made: axis by axis, ``n`` times the sum of the lengths of the axes.

    Args:
        matrices: the factors, which need not be square; the last belongs to the axis that changes fastest.
        vectors: in columns, with rows in row-major order, ``n = n_1 ... n_D``.

    Example:
        >>> a, b, v = torch.randn(2, 3), torch.randn(4, 5), torch.randn(15, 1)
        >>> torch.allclose(times([a, b], v), torch.kron(a, b) @ v, atol=1e-5)
        True
    """
    columns = vectors.shape[-1]
    for matrix in matrices:  # the first axis goes last, multiplied: after all of them the columns are first
        vectors = vectors.reshape(*vectors.shape[:-2], matrix.shape[-1], -1).mT @ matrix.mT
    return vectors.reshape(*vectors.shape[:-2], columns, -1).mT


class Decomposition(NamedTuple):
    r"""Eigenvectors and eigenvalues of a covariance on a grid, :math:`C = (\otimes_d V_d) S (\otimes_d V_d)^\top`.

    Args:
        bases: the eigenvectors of each factor, ``(*b, n_d, n_d)``.
        of_factors: their eigenvalues, ``(*b, n_d)``.
        values: the eigenvalues of C in row-major order, noise included, ``(*b, n)``.

    Example:
        >>> found = decompose([torch.diag(torch.tensor([1.0, 2.0])), torch.eye(1)], torch.tensor(0.5))
        >>> found.values, found.coordinates(torch.tensor([[3.0], [4.0]])).abs()
        (tensor([1.5000, 2.5000]), tensor([[3.],
                [4.]]))
    """

    bases: tuple[Tensor, ...]
    of_factors: tuple[Tensor, ...]
    values: Tensor

    def coordinates(self, vectors: Tensor) -> Tensor:
        """Return vectors in the basis of the eigenvectors, ``(*b, n, p)``."""
        return times([basis.mT for basis in self.bases], vectors)


def decompose(factors: Sequence[Tensor], noise_var: Tensor) -> Decomposition:
    r"""Return the eigenvalues and eigenvectors of :math:`C = K_1 \otimes \dots \otimes K_D + \sigma^2 I`.

    Args:
        factors: the covariance of each axis, ``(*b, n_d, n_d)``.
        noise_var: :math:`\sigma^2`, ``(*b,)``.

    Raises:
        torch.linalg.LinAlgError: not positive definite; inside `probmix.lenient.Lenient` NaN in its place.

    Source:
        Saatçi (2011), Scalable inference for structured Gaussian process models, section 5.2.

    Example:
        >>> decompose([torch.ones(2, 2), torch.eye(2)], torch.tensor(0.5)).values.round(decimals=4)
        tensor([0.5000, 0.5000, 2.5000, 2.5000])
    """
    finite = [factor.isfinite().all(-1).all(-1) for factor in factors]  # eigh has no NaN for one matrix of a batch
    eyes = [torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device) for factor in factors]
    safe = [torch.where(ok[..., None, None], *pair) for ok, *pair in zip(finite, factors, eyes, strict=True)]
    of_factors, bases = zip(*(torch.linalg.eigh(factor) for factor in safe), strict=True)
    values = _products(of_factors) + noise_var[..., None]
    positive = (values > 0).all(-1)
    for ok in finite:
        positive = positive & ok
    info = (~positive).to(torch.int32)
    torch.ops.aten._linalg_check_errors(info, "linalg.cholesky", is_matrix=info.dim() == 0)
    return Decomposition(bases, of_factors, torch.where(positive[..., None], values, torch.nan))


def quadratic_and_log_det(factors: Sequence[Tensor], noise_var: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the squared Mahalanobis length of residuals and the log determinant of their covariance, each ``(*b,)``.

    As `probmix.dense_covariance.quadratic_and_log_det`, for :math:`C = K_1 \otimes \dots \otimes K_D + \sigma^2 I`, by
    the eigenvectors :math:`V_d` of each factor. With :math:`\lambda_i` and :math:`\lambda_o` the eigenvalues of
    :math:`K_d` and of the product of the other factors, and :math:`a = S^{-1} (\otimes_d V_d)^\top r`,

    .. math:: \frac{\partial \log |C|}{\partial K_d} = V_d \, \mathrm{diag}_i \Big( \sum_o \frac{\lambda_o}
              {\lambda_i \lambda_o + \sigma^2} \Big) V_d^\top, \quad
              \frac{\partial q}{\partial K_d} = -V_d \Big[ \sum_o \lambda_o a_{io} a_{jo} \Big]_{ij} V_d^\top

    which equal eigenvalues do not harm. First derivatives only: a second one raises an error.

    Args:
        factors: the covariance of each axis, symmetric, ``(*b, n_d, n_d)``.
        noise_var: :math:`\sigma^2`, ``(*b,)``.
        residuals: r, with rows in row-major order, ``(n, p)`` or ``(*b, n, p)``: p columns with one covariance.

    Raises:
        torch.linalg.LinAlgError: not positive definite; inside `probmix.lenient.Lenient` NaN in its place.

    Source:
        Saatçi (2011), Scalable inference for structured Gaussian process models, section 5.2.

    Example:
        >>> factors = [torch.diag(torch.tensor([1.0, 2.0])), torch.eye(1)]
        >>> quadratic_and_log_det(factors, torch.tensor(0.5), torch.tensor([[3.0], [5.0]]))
        (tensor(16.), tensor(1.3218))
    """
    others = [noise_var.shape, residuals.shape[:-2]]
    batch = torch.broadcast_shapes(*(factor.shape[:-2] for factor in factors), *others)
    factors = [factor.expand(*batch, *factor.shape[-2:]) for factor in factors]
    residuals = residuals.expand(*batch, *residuals.shape[-2:])
    quadratic, log_det, *_ = _Lengths.apply(noise_var.expand(batch), residuals, *factors)
    return quadratic, log_det


class _Lengths(torch.autograd.Function):
    """Quadratic form and log determinant; with them what the gradient is made of: a, then of each factor V, lambda."""

    generate_vmap_rule = True

    @staticmethod
    def forward(noise_var: Tensor, residuals: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        found = decompose(factors, noise_var)
        coordinates, values = found.coordinates(residuals), found.values[..., None]
        a = coordinates / values
        return (coordinates * a).sum((-2, -1)), values.log().sum((-2, -1)), a, *found.bases, *found.of_factors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*inputs, *output[2:])

    @staticmethod
    def backward(ctx: Any, by_quadratic: Tensor, by_log_det: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return _Gradient.apply(by_quadratic, by_log_det, *ctx.saved_tensors)


class _Gradient(torch.autograd.Function):
    """An end: without ``backward``, torch refuses to differentiate it rather than call it constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        by_quadratic: Tensor, by_log_det: Tensor, noise_var: Tensor, residuals: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        dims = len(others) // 3
        a, bases, of_factors = others[dims], others[dims + 1 : 2 * dims + 1], others[2 * dims + 1 :]
        inverse = 1 / (_products(of_factors) + noise_var[..., None])
        by_noise = by_log_det * inverse.sum(-1) - by_quadratic * a.square().sum((-2, -1))
        by_residuals = 2 * by_quadratic[..., None, None] * times(bases, a)
        by_factors = []
        for d, basis in enumerate(bases):
            one = torch.ones_like(of_factors[d][..., :1])
            weights = _products([*of_factors[:d], one, *of_factors[d + 1 :]])[..., None, :]
            diagonal = by_log_det[..., None] * (weights * _along(inverse[..., None], d, bases).squeeze(-1)).sum(-1)
            own = _along(a, d, bases)
            products = (weights[..., None] * own).flatten(-2) @ own.flatten(-2).mT
            inner = torch.diag_embed(diagonal) - by_quadratic[..., None, None] * products
            by_factors.append(basis @ inner @ basis.mT)
        return by_noise, by_residuals, *by_factors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        pass


def _along(value: Tensor, axis: int, bases: Sequence[Tensor]) -> Tensor:
    """Return a table with one axis of the grid first and the others as one, ``(*b, n, p) -> (*b, n_d, n / n_d, p)``."""
    before, own = (math.prod(basis.shape[-1] for basis in some) for some in (bases[:axis], bases[axis : axis + 1]))
    table = value.reshape(*value.shape[:-2], before, own, -1, value.shape[-1])
    return table.movedim(-3, -4).flatten(-3, -2)


def _products(of_factors: Sequence[Tensor]) -> Tensor:
    """Return all products of one number of each factor, in row-major order, ``(*b, n_d) x D -> (*b, n)``."""
    products = of_factors[0]
    for other in of_factors[1:]:
        products = (products[..., :, None] * other[..., None, :]).flatten(-2)
    return products
