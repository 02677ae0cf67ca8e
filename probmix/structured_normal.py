"""Scale mixtures of normals by the structure of their covariance: any matrix, an even series, or a grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from probmix import dense_covariance, kronecker_covariance, toeplitz_covariance
from probmix.scale_mixture_normal import AbstractScaleMixtureNormal

__all__ = ["AbstractCovariance", "Dense", "Kronecker", "StructuredNormal", "Toeplitz"]


class AbstractCovariance(ABC):
    """A covariance C of n rows, with any leading batch ``*b``, as far as a normal density needs it."""

    @property
    @abstractmethod
    def batch_shape(self) -> torch.Size:
        """``*b``."""

    @property
    @abstractmethod
    def num_elements(self) -> int:
        """Numbers that its work holds at once, about, for each of a batch."""

    @abstractmethod
    def lengths(self, residuals: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared Mahalanobis length of residuals ``(*b, n, p)`` and log determinant, each ``(*b,)``."""

    @abstractmethod
    def draw(self, shape: torch.Size) -> Tensor:
        """Return draws from ``N(0, C)`` in columns, ``shape`` being ``(*s, *b, n, p)``."""


@dataclass(frozen=True)
class Dense(AbstractCovariance):
    """Any covariance.

    Args:
        matrix: C, ``(*b, n, n)``.

    Example:
        >>> Dense(torch.diag(torch.tensor([1.0, 4.0]))).lengths(torch.ones(2, 1))
        (tensor(1.2500), tensor(1.3863))
    """

    matrix: Tensor

    @property
    def batch_shape(self) -> torch.Size:
        """``*b``."""
        return self.matrix.shape[:-2]

    @property
    def num_elements(self) -> int:
        """Return the numbers in the matrix."""
        return self.matrix.shape[-1] ** 2

    def lengths(self, residuals: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared Mahalanobis length and log determinant."""
        return dense_covariance.quadratic_and_log_det(self.matrix, residuals)

    def draw(self, shape: torch.Size) -> Tensor:
        """Return draws."""
        return torch.linalg.cholesky(self.matrix) @ _white(shape, self.matrix)


@dataclass(frozen=True)
class Toeplitz(AbstractCovariance):
    """That of an even series: a function of the lag.

    Args:
        column: the first column of C, ``(*b, n)``.

    Example:
        >>> Toeplitz(torch.tensor([2.0, 1.0])).lengths(torch.tensor([[1.0], [1.0]]))
        (tensor(0.6667), tensor(1.0986))
    """

    column: Tensor

    @property
    def batch_shape(self) -> torch.Size:
        """``*b``."""
        return self.column.shape[:-1]

    @property
    def num_elements(self) -> int:
        """Return the numbers that the factorisation holds: some 30 n (`probmix.toeplitz_covariance.num_elements`)."""
        return toeplitz_covariance.num_elements(self.column)

    def lengths(self, residuals: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared Mahalanobis length and log determinant."""
        return toeplitz_covariance.quadratic_and_log_det(self.column, residuals)

    def draw(self, shape: torch.Size) -> Tensor:
        """Return draws: n rows of a circulant covariance of twice the size, where there is one, else by a dense factor.

        There is one where correlations fade within the series, or noise outweighs what is cut off at its end.

        Source:
            Dietrich and Newsam (1997), Fast and exact simulation of stationary Gaussian processes through circulant
            embedding of the covariance matrix.
        """
        n = self.column.shape[-1]
        around = torch.cat([self.column, self.column[..., 1:-1].flip(-1)], -1)
        size = around.shape[-1]
        values = torch.fft.rfft(around).real
        rounding = size * torch.finfo(values.dtype).eps * values.amax(-1)
        if not bool((values.amin(-1) >= -rounding).all()):
            return torch.linalg.cholesky(toeplitz_covariance.dense(self.column)) @ _white(shape, self.column)
        transform = torch.fft.rfft(_white(torch.Size([*shape[:-2], size, shape[-1]]), self.column), dim=-2)
        return torch.fft.irfft(values.clamp(min=0).sqrt()[..., None] * transform, size, -2)[..., :n, :]


@dataclass(frozen=True)
class Kronecker(AbstractCovariance):
    """That of all points of a grid, where the kernel is a product over the inputs: one factor for each axis, and noise.

    Args:
        factors: covariance of each axis, ``(*b, n_d, n_d)``; the last belongs to the axis that changes fastest.
        noise_var: ``(*b,)``.

    Example:
        >>> factors = (torch.diag(torch.tensor([1.0, 2.0])), torch.eye(1))
        >>> Kronecker(factors, torch.tensor(0.5)).lengths(torch.tensor([[3.0], [5.0]]))
        (tensor(16.), tensor(1.3218))
    """

    factors: tuple[Tensor, ...]
    noise_var: Tensor

    @property
    def batch_shape(self) -> torch.Size:
        """``*b``."""
        return torch.broadcast_shapes(self.noise_var.shape, *(factor.shape[:-2] for factor in self.factors))

    @property
    def num_elements(self) -> int:
        """Return the numbers in the largest factor, or in a column of observations."""
        sizes = [factor.shape[-1] for factor in self.factors]
        return max(max(sizes) ** 2, torch.Size(sizes).numel())

    def lengths(self, residuals: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared Mahalanobis length and log determinant."""
        return kronecker_covariance.quadratic_and_log_det(self.factors, self.noise_var, residuals)

    def draw(self, shape: torch.Size) -> Tensor:
        """Return draws."""
        found = kronecker_covariance.decompose(self.factors, self.noise_var)
        white = _white(shape, self.noise_var)
        return kronecker_covariance.times(found.bases, found.values.sqrt()[..., None] * white)


class StructuredNormal(AbstractScaleMixtureNormal):
    """A scale mixture of normals given by its covariance; the gradient of its density is in closed form.

    The same distribution as `probmix.scale_mixture_normal.ScaleMixtureNormal`, which has the factor of C: this is for
    programs in which C has the unknowns.

    Args:
        loc: m, ``(*b, n)``; with ``columns``, ``(*b, n, p)``: p vectors with one covariance and one common s.
        covariance: C at s = 1.
        scale_prior: H, batch shape broadcasting to ``*b``, or None for ``s = 1``.
        columns: whether ``loc`` has an axis of columns.
        order: numbers of the rows in the order of the covariance, ``(n,)``; None: as they are.

    Example:
        >>> covariance, y = torch.tensor([[1.0, 0.5], [0.5, 4.0]]), torch.tensor([1.0, -3.0])
        >>> ours = StructuredNormal(torch.zeros(2), Dense(covariance))
        >>> torch.allclose(ours.log_prob(y), dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(y))
        True
    """

    def __init__(
        self,
        loc: Tensor,
        covariance: AbstractCovariance,
        scale_prior: dist.TorchDistribution | None = None,
        *,
        columns: bool = False,
        order: Tensor | None = None,
    ) -> None:
        self.covariance, self.order = covariance, order
        super().__init__(loc, covariance.batch_shape, scale_prior, columns)

    @property
    def num_elements(self) -> int:
        """Numbers that its density holds at once, about, for each of a batch."""
        return self.covariance.num_elements

    def expand(self, batch_shape: Any, _instance: Any = None) -> StructuredNormal:
        """Return the same distribution with a larger batch."""
        loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        return StructuredNormal(loc, self.covariance, self.scale_prior, columns=self.columns, order=self.order)

    def _lengths(self, residuals: Tensor) -> tuple[Tensor, Tensor]:
        return self.covariance.lengths(residuals if self.order is None else residuals[..., self.order, :])

    def _coloured(self, shape: torch.Size) -> Tensor:
        drawn = self.covariance.draw(shape)
        return drawn if self.order is None else drawn[..., self.order.argsort(), :]


def _white(shape: torch.Size, like: Tensor) -> Tensor:
    return torch.randn(shape, dtype=like.dtype, device=like.device)
