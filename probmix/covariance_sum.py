"""A covariance that is linear in non-negative weights, and what its likelihood needs: values, slopes, curvature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from probmix.noise_variance import least_noise
from probmix.spectral_grid import KernelBank
from probmix.typing import Sites

__all__ = ["CovarianceBlocks", "CovarianceSum", "Evaluated", "LinearInWeights"]

#: From a factored covariance to ``z^T K_i z`` ``(k,)`` and half the curvature of ``y^T C^-1 y`` ``(k, k)``.
Bends = Callable[["Evaluated"], tuple[Tensor, Tensor]]


class Evaluated(NamedTuple):
    """A covariance at given weights, factored, with observations y; in one piece or in independent blocks.

    Args:
        trils: Cholesky factors of the blocks, each ``(n_j, n_j)``.
        z: ``C^-1 y`` of the blocks, each ``(n_j,)``.
        quadratic: ``y^T C^-1 y``; infinite where C is not positive definite.
        value: ``y^T C^-1 y + log |C|``.
        num_rows: n.

    Example:
        >>> eye, ones = torch.eye(2), torch.ones(2)
        >>> Evaluated((eye,), (ones,), torch.tensor(2.0), torch.tensor(2.0), 2).log_likelihood  # -1 - log 2 pi
        tensor(-2.8379)
    """

    trils: tuple[Tensor, ...]
    z: tuple[Tensor, ...]
    quadratic: Tensor
    value: Tensor
    num_rows: int

    @property
    def log_likelihood(self) -> Tensor:
        """Minus half the value, with the constant."""
        return -0.5 * (self.value + self.num_rows * math.log(2 * math.pi))


@dataclass(frozen=True)
class CovarianceSum:
    r""":math:`C = \sum_i \theta_i K_i + \sigma^2 I`, and the observations less their mean.

    Where the noise is learnt it is one more weight, the last, whose matrix is the identity.

    Args:
        bank: the matrices.
        residuals: y, ``(n,)``.
        noise_var: fixed, ``()``; None: learnt.
        extra_var: noise on top, ``()``.

    Example:
        >>> from probmix.spectral_grid import SpectralGrid
        >>> flat = SpectralGrid(torch.zeros(1, 1), torch.zeros(1, 1))
        >>> covariance = CovarianceSum(KernelBank(flat, torch.tensor([[0.0], [1.0]])), torch.tensor([1.0, -1.0]))
        >>> at = covariance.at(torch.tensor([3.0, 2.0]))  # [[5, 3], [3, 5]]
        >>> round(float(at.quadratic), 3), covariance.moments(at)[0]  # 1 / 4 is the sum of the inverse
        (1.0, tensor([0.2500, 0.6250]))
    """

    bank: KernelBank
    residuals: Tensor
    noise_var: Tensor | None = None
    extra_var: Tensor | None = None

    @property
    def parts(self) -> tuple[CovarianceSum, ...]:
        """Itself."""
        return (self,)

    @property
    def num_weights(self) -> int:
        """a, with that of the noise where it is learnt."""
        return len(self.bank) + (self.noise_var is None)

    @cached_property
    def least(self) -> Tensor:
        """Lower bounds of all weights: zero, and a little noise where it is learnt."""
        least = self.residuals.new_zeros(self.num_weights)
        if self.noise_var is None:
            least[-1] = least_noise(self.residuals.square().mean())
        return least

    def with_extra(self, noise_var: Tensor) -> Self:
        """Return the covariance with more noise."""
        return replace(self, extra_var=noise_var)

    def noise_of(self, weights: Tensor) -> Tensor:
        """Return the noise variance."""
        return weights[-1] if self.noise_var is None else self.noise_var

    def sites(self, weights: Tensor) -> Sites:
        """Return the sites of a model for a flat vector."""
        sites = {"weights": weights[: len(self.bank)]}
        return {**sites, "noise_var": weights[-1]} if self.noise_var is None else sites

    def first_weights(self, *, at_random: bool = False, positive: bool = False) -> Tensor:
        """Return weights to start from: zero, equal if they must be positive, or random by torch's generator."""
        var, count = self.residuals.square().mean(), len(self.bank)
        weights, noise_var = self.residuals.new_zeros(count), var
        if at_random:
            random = -torch.rand_like(weights).log()
            weights, noise_var = var * random / random.sum(), var * 10 ** (-4 * torch.rand_like(var))
        elif positive:
            weights = torch.full_like(weights, 1 / count) * var
        return torch.cat([weights, noise_var[None]]) if self.noise_var is None else weights

    def at(self, weights: Tensor) -> Evaluated:
        """Return the covariance at weights ``(a,)``, factored."""
        y, noise_var = self.residuals, self.noise_of(weights)
        covariance = self.bank.combined(weights[: len(self.bank)])
        covariance.diagonal().add_(noise_var if self.extra_var is None else noise_var + self.extra_var)
        tril, info = torch.linalg.cholesky_ex(covariance)
        if bool(info > 0):
            return Evaluated((tril,), (y,), y.new_full((), torch.inf), y.new_full((), torch.inf), len(y))
        z = torch.cholesky_solve(y[:, None], tril)[:, 0]
        quadratic = y @ z
        return Evaluated((tril,), (z,), quadratic, quadratic + 2 * tril.diagonal().log().sum(), len(y))

    def moments(self, at: Evaluated) -> tuple[Tensor, Tensor]:
        r"""Return slopes :math:`\mathrm{tr}(C^{-1} K_i)` and squares :math:`z^\top K_i z`, ``(a,)`` each."""
        (tril,), (z,) = at.trils, at.z
        slopes, squares = self._inner(torch.stack([torch.cholesky_inverse(tril), z[:, None] * z]))
        return slopes, squares

    def squares(self, at: Evaluated) -> Tensor:
        r"""Return :math:`z^\top K_i z`, ``(a,)``."""
        (z,) = at.z
        return self._inner((z[:, None] * z)[None])[0]

    def bends(self, which: Tensor) -> Bends:
        r"""Return the function to squares and :math:`z^\top K_i C^{-1} K_j z` of some weights, in ascending order."""
        of_kernels = self.bank.multiplier(which[which < len(self.bank)])
        with_noise = self.noise_var is None and bool((which == len(self.bank)).any())

        def bend(at: Evaluated) -> tuple[Tensor, Tensor]:
            (tril,), (z,) = at.trils, at.z
            images = torch.cat([of_kernels(z), z[:, None]], -1) if with_noise else of_kernels(z)
            half = torch.linalg.solve_triangular(tril, images, upper=False)
            return images.mT @ z, half.mT @ half

        return bend

    def _inner(self, matrices: Tensor) -> Tensor:
        found = self.bank.inner(matrices)
        if self.noise_var is not None:
            return found
        return torch.cat([found, matrices.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)], -1)


@dataclass(frozen=True)
class CovarianceBlocks:
    """Several sets of rows that are taken to be independent given common weights: values, slopes and curvatures add.

    Args:
        parts: the sets, each with its own rows and observations.

    Example:
        >>> from probmix.spectral_grid import SpectralGrid
        >>> flat = SpectralGrid(torch.zeros(1, 1), torch.zeros(1, 1))
        >>> one = CovarianceSum(KernelBank(flat, torch.tensor([[0.0], [1.0]])), torch.tensor([1.0, -1.0]))
        >>> round(float(CovarianceBlocks((one, one)).at(torch.tensor([3.0, 2.0])).quadratic), 3)
        2.0
    """

    parts: tuple[CovarianceSum, ...]

    @property
    def num_weights(self) -> int:
        """a, of each part."""
        return self.parts[0].num_weights

    @cached_property
    def least(self) -> Tensor:
        """Lower bounds of all weights: the largest of any part."""
        return torch.stack([part.least for part in self.parts]).amax(0)

    def with_extra(self, noise_var: Tensor) -> Self:
        """Return the covariances with more noise."""
        return type(self)(tuple(part.with_extra(noise_var) for part in self.parts))

    def noise_of(self, weights: Tensor) -> Tensor:
        """Return the noise variance."""
        return self.parts[0].noise_of(weights)

    def sites(self, weights: Tensor) -> Sites:
        """Return the sites of a model for a flat vector."""
        return self.parts[0].sites(weights)

    def first_weights(self, *, at_random: bool = False, positive: bool = False) -> Tensor:
        """Return weights to start from, the mean over the parts."""
        starts = [part.first_weights(at_random=at_random, positive=positive) for part in self.parts]
        return torch.stack(starts).mean(0)

    def at(self, weights: Tensor) -> Evaluated:
        """Return all covariances at weights ``(a,)``, factored."""
        found = [part.at(weights) for part in self.parts]
        return Evaluated(
            tuple(at.trils[0] for at in found),
            tuple(at.z[0] for at in found),
            torch.stack([at.quadratic for at in found]).sum(),
            torch.stack([at.value for at in found]).sum(),
            sum(at.num_rows for at in found),
        )

    def moments(self, at: Evaluated) -> tuple[Tensor, Tensor]:
        """Return slopes and squares, ``(a,)`` each, summed over the parts."""
        found = [part.moments(own) for part, own in self._each(at)]
        return torch.stack([slopes for slopes, _ in found]).sum(0), torch.stack([squares for _, squares in found]).sum(
            0
        )

    def squares(self, at: Evaluated) -> Tensor:
        """Return squares, ``(a,)``, summed over the parts."""
        return torch.stack([part.squares(own) for part, own in self._each(at)]).sum(0)

    def bends(self, which: Tensor) -> Bends:
        """Return the function to squares and curvature of some weights, summed over the parts."""
        functions = [part.bends(which) for part in self.parts]

        def bend(at: Evaluated) -> tuple[Tensor, Tensor]:
            found = [function(own) for function, (_, own) in zip(functions, self._each(at), strict=True)]
            squares, bent = (torch.stack(each).sum(0) for each in zip(*found, strict=True))
            return squares, bent

        return bend

    def _each(self, at: Evaluated) -> list[tuple[CovarianceSum, Evaluated]]:
        parts = zip(self.parts, at.trils, at.z, strict=True)
        return [(part, at._replace(trils=(tril,), z=(z,))) for part, tril, z in parts]


@runtime_checkable
class LinearInWeights(Protocol):
    """A model whose covariance is a sum of known matrices with unknown weights."""

    def agreed(self, y: Tensor) -> Tensor:
        """Return sums over observations ``(n,)`` that agents add up and share: all that `covariance_sum` must know."""
        ...

    def covariance_sum(self, x: Tensor, y: Tensor, agreed: Tensor | None = None) -> CovarianceSum:
        """Return it for checked data, given the sums over all agents; None: over these data alone."""
        ...
