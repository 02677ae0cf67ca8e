"""Cholesky factors of covariances that rounding has made indefinite: jitter up to a stated limit, then an error."""

from __future__ import annotations

import torch
from torch import Tensor

from probmix.errors import ProgramError

__all__ = ["factor", "with_jitter"]

_ALWAYS = {torch.float64: 1e-10, torch.float32: 1e-5}  # enough for 500 rows that a smooth kernel hardly tells apart
_LEVELS = (1e-10, 1e-8, 1e-6, 1e-4)  # of the mean of the diagonal


def factor(matrix: Tensor, *, what: str) -> Tensor:
    """Return the lower Cholesky factor of each matrix, with as little added to its diagonal as is needed.

    Nothing at first, then 1e-10, 1e-8, 1e-6 and 1e-4 of the mean diagonal: the limit, which is already a noise that a
    user should have stated. Each matrix of a batch gets its own.

    Args:
        matrix: symmetric, ``(*b, n, n)``.
        what: the matrix and the hyperparameters it was made of, for the message.

    Raises:
        ProgramError: not finite, or still not positive definite at the limit.

    Example:
        >>> factor(torch.ones(2, 2, dtype=torch.float64), what="two equal rows")
        tensor([[1.0000e+00, 0.0000e+00],
                [1.0000e+00, 1.4142e-05]], dtype=torch.float64)
        >>> factor(-torch.eye(2), what="a kernel with outputscale -1")
        Traceback (most recent call last):
            ...
        probmix.errors.ProgramError: expected a positive definite covariance, got one that is not, even with 0.0001 of \
its mean diagonal added: a kernel with outputscale -1. Add observation noise, drop rows that are equal, or use float64.
    """
    typical = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    jitter = torch.zeros_like(typical)
    tril, failed = torch.linalg.cholesky_ex(matrix)
    for level in _LEVELS:
        if not failed.any():
            break
        jitter = torch.where(failed > 0, level * typical, jitter)
        tril, failed = torch.linalg.cholesky_ex(matrix + jitter[..., None, None] * eye)
    if not matrix.isfinite().all():
        raise ProgramError(f"expected a finite covariance, got one with entries that are not finite: {what}.")
    if failed.any():
        raise ProgramError(
            f"expected a positive definite covariance, got one that is not, even with {_LEVELS[-1]:g} of its mean "
            f"diagonal added: {what}. Add observation noise, drop rows that are equal, or use float64."
        )
    return tril


def with_jitter(matrix: Tensor) -> Tensor:
    """Return matrices with 1e-10 of the mean of their diagonal added to it; in float32 1e-5.

    For factors that have to exist at every step of a fit, where nothing can be tried twice.

    Args:
        matrix: symmetric, ``(*b, n, n)``.

    Example:
        >>> torch.linalg.cholesky(with_jitter(torch.ones(2, 2))).diagonal()
        tensor([1.0000, 0.0045])
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    return matrix + torch.diag_embed(
        (_ALWAYS.get(matrix.dtype, 1e-5) * diagonal.mean(-1, keepdim=True)).expand_as(diagonal)
    )
