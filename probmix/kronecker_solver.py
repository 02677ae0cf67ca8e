"""What data on a grid say about a process, a million rows and more: axis by axis, by the eigenvectors of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from probmix.grids import Grid
from probmix.kronecker_covariance import Decomposition, decompose
from probmix.process_solvers import AbstractSolver, Seen

__all__ = ["AxisCovariance", "KroneckerSolver"]

#: ``(d, a, b) -> (*b, n, m)``: the covariance along axis d between coordinates ``(n,)`` and ``(m,)``.
AxisCovariance: TypeAlias = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class KroneckerSolver(AbstractSolver):
    r"""Rows that cover a grid, under a kernel that is a product over axes, :math:`k(x, x') = \prod_d k_d(x_d, x'_d)`.

    Without gradients, which eigenvectors do not have where eigenvalues are equal.

    Args:
        rows: of the grid in row-major order, ``(n, D)``.
        axes: coordinates of the grid, ``(n_1,), ..., (n_D,)``.
        axis_covariance: the factors of the kernel.
        decomposition: that of the covariance of the rows, noise included.
        white: residuals in its basis, over the roots of its eigenvalues, ``(*b, n, p)``.

    Source:
        Saatçi (2011), Scalable inference for structured Gaussian process models, section 5.2.

    Example:
        >>> grid = Grid((torch.arange(2.0), torch.arange(3.0)), torch.arange(6))
        >>> def axis_covariance(d, a, b):
        ...     return (-(a[:, None] - b).abs()).exp()
        >>> solver = KroneckerSolver.of(grid, axis_covariance, torch.tensor(0.5), torch.ones(6, 1))
        >>> shift, var = solver.marginals(None, torch.tensor([[0.5, 1.0], [100.0, 1.0]]), torch.ones(2))
        >>> shift.flatten().round(decimals=3), var.round(decimals=3)
        (tensor([0.7470, 0.0000]), tensor([0.5980, 1.0000]))
    """

    rows: Tensor
    axes: tuple[Tensor, ...]
    axis_covariance: AxisCovariance
    decomposition: Decomposition
    white: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, grid: Grid, axis_covariance: AxisCovariance, noise_var: Tensor, residuals: Tensor) -> KroneckerSolver:
        """Return the solver for residuals ``(*b, n, p)`` in the order of the rows in which the grid was found.

        Raises:
            torch.linalg.LinAlgError: a covariance that is not positive definite.
        """
        found = decompose([axis_covariance(d, axis, axis) for d, axis in enumerate(grid.axes)], noise_var)
        rows = torch.cartesian_prod(*grid.axes).reshape(-1, len(grid.axes))
        white = found.coordinates(residuals[..., grid.order, :]) * found.values.rsqrt()[..., None]
        return cls(rows, grid.axes, axis_covariance, found, white)

    @property
    def quadratic(self) -> Tensor:
        """Squared Mahalanobis length of the residuals."""
        return self.white.square().sum((-2, -1))

    @property
    def log_det(self) -> Tensor:
        """Log determinant of the covariance."""
        return self.decomposition.values.log().sum(-1)

    @torch.no_grad()
    def predict(self, cross: Tensor) -> Seen:
        """Return what the data change at new rows, jointly; for marginals of many of them, see `marginals`."""
        lost = self.decomposition.coordinates(cross) * self.decomposition.values.rsqrt()[..., None]
        return Seen(lost.mT @ self.white, lost)

    @torch.no_grad()
    def marginals(self, kernel: Kernel, x: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return what is added to the mean at new rows, ``(*b, m, p)``, and their variances given the data.

        Both are a contraction of a table over the grid, axis by axis: with :math:`c_d = V_d^\top k_d`, of
        :math:`S^{-1} (\otimes_d V_d)^\top r` with :math:`\otimes_d c_d`, and of :math:`S^{-1}` with their squares. So
        nothing of the size ``n`` times ``m`` is made.

        Args:
            kernel: not needed: its factors are known.
            x: rows ``(m, D)``, anywhere.
            prior: their variances before, ``(*b, m)``.
        """
        values, bases = self.decomposition.values[..., None], self.decomposition.bases
        cross = [self.axis_covariance(d, x[:, d], axis) @ bases[d] for d, axis in enumerate(self.axes)]
        shift = _contracted(cross, self.white * values.rsqrt())
        lost = _contracted([c.square() for c in cross], 1 / values).squeeze(-1)
        return shift, (prior - lost).clamp(min=torch.finfo(prior.dtype).eps * prior)

    @property
    def numbers_per_row(self) -> int:
        """Numbers that one new row needs in the largest tensor: the grid without its first axis."""
        return self.white.shape[-2] * self.white.shape[-1] // len(self.axes[0])


def _contracted(weights: list[Tensor], table: Tensor) -> Tensor:
    """Return sums over a grid weighted axis by axis, ``(*b, m, n_d) x D, (*b, n, p) -> (*b, m, p)``."""
    first, *others = weights
    table = first @ table.reshape(*table.shape[:-2], first.shape[-1], -1)
    for weight in others:
        table = (weight[..., None, :] @ table.reshape(*table.shape[:-1], weight.shape[-1], -1)).squeeze(-2)
    return table
