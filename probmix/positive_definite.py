"""Symmetric positive-definite matrices: their constraint, their Cholesky factor and their log-Cholesky bijection."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

__all__ = ["LogCholeskyTransform", "PositiveDefiniteMatrix", "positive_definite_matrix", "safe_cholesky"]


def safe_cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor of each matrix, NaN where a matrix is not positive definite.

    One bad matrix in a batch of restarts or chains spoils its own entry alone, and nothing waits for the device.

    Args:
        matrix: symmetric, ``(*b, D, D)``.

    Returns:
        ``(*b, D, D)``, lower triangular.

    Example:
        >>> import torch
        >>> safe_cholesky(torch.tensor([[[4.0]], [[-1.0]]])).flatten()
        tensor([2., nan])
    """
    tril, info = torch.linalg.cholesky_ex(matrix)
    return torch.where((info == 0)[..., None, None], tril, torch.nan)


class PositiveDefiniteMatrix(Constraint):
    """Symmetric positive-definite matrices; the last two axes are one event.

    Unlike torch's own constraint of that name it has a bijection with a Jacobian. The asymmetry allowed is relative to
    the diagonal, ``|a_ij - a_ji| <= sqrt(eps a_ii a_jj)``, so that it does not depend on the units of the data.

    Example:
        >>> import torch
        >>> positive_definite_matrix.check(torch.tensor([[[1.0, 0.5], [0.5, 1.0]], [[1.0, 2.0], [2.0, 1.0]]]))
        tensor([ True, False])
    """

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        """Tell which matrices of a batch are symmetric and positive definite, ``(*b,)``."""
        spread_std = value.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        allowed = math.sqrt(torch.finfo(value.dtype).eps) * spread_std[..., :, None] * spread_std[..., None, :]
        symmetric = ((value - value.mT).abs() <= allowed).flatten(-2).all(-1)
        return symmetric & (torch.linalg.cholesky_ex(value).info == 0)


positive_definite_matrix = PositiveDefiniteMatrix()


class LogCholeskyTransform(Transform):
    r"""Bijection from vectors to symmetric positive-definite matrices, ``Sigma = L L^T``.

    The vector holds the lower triangle of :math:`L` row by row, its diagonal in logarithms. With respect to the
    :math:`D(D+1)/2` free entries (those of the lower triangle of :math:`\Sigma`),

    .. math:: \log |J| = D \log 2 + \sum_{i=1}^D (D - i + 2) \log L_{ii} .

    Shapes: ``(*b, D(D+1)/2)`` to ``(*b, D, D)``.

    Source:
        Pinheiro and Bates (1996), Unconstrained parametrizations for variance-covariance matrices, Statistics and
        Computing 6, 289-296 (the log-Cholesky parametrization).

    Example:
        >>> import torch
        >>> LogCholeskyTransform()(torch.tensor([0.0, 1.0, 0.0]))
        tensor([[1., 1.],
                [1., 2.]])
    """

    domain = constraints.real_vector
    codomain = positive_definite_matrix
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogCholeskyTransform)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        size = _matrix_size(x.shape[-1])
        tril = torch.cat([x, x.new_zeros((*x.shape[:-1], 1))], -1)[..., _tril_positions(size, x.device)]
        log_diagonal = tril.diagonal(dim1=-2, dim2=-1)
        tril = tril.tril(-1) + torch.diag_embed(log_diagonal.exp())
        return tril @ tril.mT

    def _inverse(self, y: Tensor) -> Tensor:
        tril = safe_cholesky(y)
        log_diagonal = tril.diagonal(dim1=-2, dim2=-1).log()
        row, column = torch.tril_indices(y.shape[-1], y.shape[-1], device=y.device)
        return (tril.tril(-1) + torch.diag_embed(log_diagonal))[..., row, column]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm of the Jacobian determinant at ``x``, ``(*b,)``."""
        size = _matrix_size(x.shape[-1])
        index = torch.arange(size, device=x.device)
        log_diagonal = x[..., index * (index + 3) // 2]  # 0, 2, 5, 9, ...: where the rows of a lower triangle end
        return size * math.log(2.0) + (log_diagonal * (size + 1 - index).to(x)).sum(-1)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the matrix that a vector of this shape becomes."""
        size = _matrix_size(shape[-1])
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the vector that a matrix of this shape becomes."""
        if len(shape) < 2 or shape[-1] != shape[-2]:
            raise ValueError(f"expected square matrices (*b, D, D), got shape {tuple(shape)}")
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


def _matrix_size(length: int) -> int:
    """D such that D (D + 1) / 2 is the length of the vector."""
    size = (math.isqrt(8 * length + 1) - 1) // 2
    if size * (size + 1) // 2 != length:
        raise ValueError(
            f"expected a vector of D(D+1)/2 entries (1, 3, 6, 10, ...), got {length}: "
            "pass the lower triangle of one matrix, row by row"
        )
    return size


def _tril_positions(size: int, device: torch.device) -> Tensor:
    """Where each entry of a D x D matrix is in its packed lower triangle; above the diagonal, one past the end."""
    row = torch.arange(size, device=device)[:, None]
    column = torch.arange(size, device=device)
    return torch.where(column <= row, row * (row + 1) // 2 + column, size * (size + 1) // 2)


@biject_to.register(PositiveDefiniteMatrix)
@transform_to.register(PositiveDefiniteMatrix)
def _log_cholesky(_: PositiveDefiniteMatrix) -> LogCholeskyTransform:
    return LogCholeskyTransform()
