"""What a normal density needs of a covariance matrix, with its derivatives in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["quadratic_and_log_det"]


def quadratic_and_log_det(covariance: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the squared Mahalanobis length of residuals and the log determinant of their covariance, each ``(*b,)``.

    .. math:: q = \mathrm{tr} \, r^\top C^{-1} r, \quad
              \partial q / \partial C = -\alpha \alpha^\top, \quad \partial q / \partial r = 2 \alpha, \quad
              \partial \log |C| / \partial C = C^{-1}, \qquad \alpha = C^{-1} r

    The gradient needs the inverse, twice the work of the factor; autograd through a factorisation, several times more.
    All derivatives of higher order are right, too.

    Args:
        covariance: C, symmetric, ``(*b, n, n)``; its lower triangle is read.
        residuals: r, ``(n, p)`` or ``(*b, n, p)``: p columns with one covariance.

    Raises:
        torch.linalg.LinAlgError: not positive definite; inside `probmix.lenient.Lenient` NaN in its place.

    Source:
        Rasmussen and Williams (2006), Gaussian processes for machine learning, equations 2.30 and 5.9.

    Example:
        >>> quadratic_and_log_det(torch.diag(torch.tensor([1.0, 4.0])), torch.tensor([[1.0], [2.0]]))
        (tensor(2.), tensor(1.3863))
    """
    batch = torch.broadcast_shapes(covariance.shape[:-2], residuals.shape[:-2])
    covariance, residuals = (tensor.expand(*batch, *tensor.shape[-2:]) for tensor in (covariance, residuals))
    quadratic, log_det, _ = _Lengths.apply(covariance, residuals)
    return quadratic, log_det


class _Lengths(torch.autograd.Function):
    """Quadratic form and log determinant; with them the factor, of which nothing is differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(covariance: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tril = torch.linalg.cholesky(covariance)
        white = torch.linalg.solve_triangular(tril, residuals, upper=False)
        log_det = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return white.square().sum((-2, -1)), log_det, tril

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*inputs, output[2])

    @staticmethod
    def backward(ctx: Any, by_quadratic: Tensor, by_log_det: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        inverse, alpha = _Inverse.apply(*ctx.saved_tensors)
        scaled = -by_quadratic[..., None, None] * alpha
        return torch.addcmul(scaled @ alpha.mT, by_log_det[..., None, None], inverse), -2 * scaled


class _Inverse(torch.autograd.Function):
    """``C^-1`` and ``C^-1 r``, given the factor as well; derivatives are made of these results themselves."""

    generate_vmap_rule = True

    @staticmethod
    def forward(covariance: Tensor, residuals: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cholesky_inverse(tril), torch.cholesky_solve(residuals, tril)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, by_inverse: Tensor, by_alpha: Tensor) -> tuple[Tensor, Tensor, None]:
        inverse, alpha = ctx.saved_tensors
        by_residuals = inverse @ by_alpha
        return -(inverse @ by_inverse @ inverse) - by_residuals @ alpha.mT, by_residuals, None
