"""What data say about a process: from all rows by one factorisation, or through inducing points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from probmix.gpytorch_priors import covariance_matrix

__all__ = ["AbstractSolver", "DenseSolver", "InducingSolver", "Seen"]


class Seen(NamedTuple):
    """What data change at new rows, at s = 1.

    Args:
        shift: what is added to the mean, ``(*b, m, p)``.
        lost: a root of the covariance that the data take away, ``lost^T lost``, ``(*b, r, m)``.
        regained: a root of what an approximation gives back, ``(*b, r, m)``; None: nothing.

    Example:
        >>> seen = Seen(torch.zeros(2, 1), lost=torch.tensor([[0.6, 0.8]]))
        >>> seen.variance(torch.ones(2))
        tensor([0.6400, 0.3600])
    """

    shift: Tensor
    lost: Tensor
    regained: Tensor | None = None

    def covariance(self, prior: Tensor) -> Tensor:
        """Return the covariance given the data, ``(*b, m, m)``, of that before."""
        after = prior - self.lost.mT @ self.lost
        return after if self.regained is None else after + self.regained.mT @ self.regained

    def variance(self, prior: Tensor) -> Tensor:
        """Return the variance given the data, ``(*b, m)``, of that before; rounding never makes it negative."""
        after = prior - self.lost.square().sum(-2)
        after = after if self.regained is None else after + self.regained.square().sum(-2)
        return after.clamp(min=torch.finfo(after.dtype).eps * prior.detach())


class AbstractSolver(ABC):
    """Observed rows, as far as anything later needs them; tensors with any leading batch ``*b`` (draws)."""

    #: Rows whose covariances with new rows `predict` wants, ``(r, d)``.
    rows: Tensor

    @property
    @abstractmethod
    def quadratic(self) -> Tensor:
        """Squared Mahalanobis length of the residuals at s = 1, ``(*b,)``."""

    @property
    @abstractmethod
    def log_det(self) -> Tensor:
        """Log determinant of the covariance of one column of residuals at s = 1, ``(*b,)``."""

    @abstractmethod
    def predict(self, cross: Tensor) -> Seen:
        """Return what the data change at new rows, given their covariances with `rows`, ``(*b, r, m)``."""

    def marginals(self, kernel: Kernel, x: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is added to the mean at new rows, ``(*b, m, p)``, and their variances after it, ``(*b, m)``.

        Args:
            kernel: the covariance at s = 1.
            x: rows ``(m, d)``.
            prior: their variances before, ``(*b, m)``.
        """
        seen = self.predict(covariance_matrix(kernel, self.rows, x))
        return seen.shift, seen.variance(prior)

    @property
    def numbers_per_row(self) -> int:
        """Numbers that the marginals of one new row need in their largest tensor, for each of a batch."""
        return self.rows.shape[-2]


@dataclass(frozen=True)
class DenseSolver(AbstractSolver):
    """All rows.

    Args:
        rows: ``(n, d)``.
        tril: Cholesky factor of their covariance at s = 1, noise included, ``(*b, n, n)``.
        white: its inverse times the residuals, ``(*b, n, p)``.

    Example:
        >>> solver = DenseSolver(torch.zeros(2, 1), torch.eye(2), torch.tensor([[1.0], [2.0]]))
        >>> solver.quadratic, solver.predict(torch.tensor([[0.5], [0.0]])).shift
        (tensor(5.), tensor([[0.5000]]))
    """

    rows: Tensor
    tril: Tensor
    white: Tensor

    @classmethod
    def of(cls, rows: Tensor, tril: Tensor, residuals: Tensor) -> DenseSolver:
        """Return the solver for a factor and residuals ``(*b, n, p)``."""
        return cls(rows, tril, torch.linalg.solve_triangular(tril, residuals, upper=False))

    @property
    def quadratic(self) -> Tensor:
        """Squared Mahalanobis length of the residuals."""
        return self.white.square().sum((-2, -1))

    @property
    def log_det(self) -> Tensor:
        """Log determinant of the covariance."""
        return 2 * self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def predict(self, cross: Tensor) -> Seen:
        """Return what the data change at new rows."""
        lost = torch.linalg.solve_triangular(self.tril, cross, upper=False)
        return Seen(lost.mT @ self.white, lost)

    def extended(self, rows: Tensor, seen: Seen, tril: Tensor, residuals: Tensor) -> DenseSolver:
        """Return the solver for more rows, given the factor of their covariance and residuals given these.

        The work is that of the new rows alone.
        """
        n, m = self.rows.shape[-2], rows.shape[-2]
        batch = tril.shape[:-2]
        corner = seen.lost.new_zeros(*batch, n, m)
        above = torch.cat([self.tril.expand(*batch, n, n), corner], -1)
        below = torch.cat([seen.lost.mT.expand(*batch, m, n), tril], -1)
        new = torch.linalg.solve_triangular(tril, residuals - seen.shift, upper=False)
        white = torch.cat([self.white.expand(*new.shape[:-2], -1, -1), new], -2)
        return DenseSolver(torch.cat([self.rows, rows]), torch.cat([above, below], -2), white)


@dataclass(frozen=True)
class InducingSolver(AbstractSolver):
    r"""Rows seen through inducing points Z.

    Their covariance is taken to be :math:`Q + \sigma^2 I` with :math:`Q = K_{XZ} K_{ZZ}^{-1} K_{ZX}`. With
    :math:`A = L_Z^{-1} K_{ZX} / \sigma` and :math:`B = I + A A^\top`, in time linear in the number of rows.

    Args:
        rows: the inducing points, ``(r, d)``.
        tril: Cholesky factor of their covariance, ``(*b, r, r)``.
        inner_tril: that of B, ``(*b, r, r)``.
        seen: :math:`L_B^{-1} A y / \sigma`, ``(*b, r, p)``.
        noise_var: :math:`\sigma^2`, ``(*b,)``.
        squares: :math:`|y|^2 / \sigma^2`, ``(*b,)``.
        num_rows: n.
        missing: what the prior variances exceed Q by, summed over the rows, in units of the noise, ``(*b,)``.

    Source:
        Titsias (2009), Variational learning of inducing variables in sparse Gaussian processes, equations 6 to 9.

    Example:
        >>> x, y = torch.zeros(2, 1), torch.tensor([[1.0], [2.0]])
        >>> one = torch.ones(1, 1)
        >>> solver = InducingSolver.of(x[:1], one, one.expand(1, 2), one.expand(2, 1)[:, 0], torch.tensor(1.0), y)
        >>> solver.quadratic, solver.log_det.exp(), solver.missing  # covariance [[2, 1], [1, 2]]
        (tensor(2.0000), tensor(3.), tensor(0.))
    """

    rows: Tensor
    tril: Tensor
    inner_tril: Tensor
    seen: Tensor
    noise_var: Tensor
    squares: Tensor
    num_rows: int
    missing: Tensor

    @classmethod
    def of(
        cls, rows: Tensor, tril: Tensor, cross: Tensor, prior_var: Tensor, noise_var: Tensor, residuals: Tensor
    ) -> InducingSolver:
        """Return the solver given covariances ``(*b, r, n)`` and variances ``(*b, n)`` of the observed rows."""
        noise_std = noise_var.sqrt()[..., None, None]
        a = torch.linalg.solve_triangular(tril, cross, upper=False) / noise_std
        inner = a @ a.mT + torch.eye(a.shape[-2], dtype=a.dtype, device=a.device)
        inner_tril = torch.linalg.cholesky(inner)
        scaled = residuals / noise_std
        seen = torch.linalg.solve_triangular(inner_tril, a @ scaled, upper=False)
        missing = prior_var.sum(-1) / noise_var - a.square().sum((-2, -1))
        squares = scaled.square().sum((-2, -1))
        return cls(rows, tril, inner_tril, seen, noise_var, squares, residuals.shape[-2], missing)

    @property
    def quadratic(self) -> Tensor:
        """Squared Mahalanobis length of the residuals."""
        return self.squares - self.seen.square().sum((-2, -1))

    @property
    def log_det(self) -> Tensor:
        """Log determinant of the covariance."""
        diagonal = self.inner_tril.diagonal(dim1=-2, dim2=-1)
        return 2 * diagonal.log().sum(-1) + self.num_rows * self.noise_var.log()

    def predict(self, cross: Tensor) -> Seen:
        """Return what the data change at new rows."""
        lost = torch.linalg.solve_triangular(self.tril, cross, upper=False)
        regained = torch.linalg.solve_triangular(self.inner_tril, lost, upper=False)
        return Seen(regained.mT @ self.seen, lost, regained)
