r"""Gaussian guides of many restarts at once, and the natural-gradient step of each family.

A guide is ``z = loc + T noise`` with standard normal noise. Its step is taken in the guide's own units, which makes it
indifferent to the units of the model: with ``g = T' (d log p / dz - d log q / dz)``, the path derivative of a draw,

    ``loc <- loc + rate T E[g]``,  ``T <- T exp(rate H)``,  ``H = tril(E[g noise'])``, its diagonal halved,

the natural gradient of the ELBO in these coordinates. Draws come in pairs ``+noise, -noise``: the slope of ``log p``
then drops out of ``H``, and its curvature out of ``E[g]``. Where the guide is exact, every single ``g`` is zero.

Source: Roeder, Wu and Duvenaud (2017) for the path derivative; Lin, Nielsen, Khan and Schmidt (2021) for steps in local
coordinates of a square root of the covariance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from probmix.guides import NormalGuide
from probmix.typing import Sites

__all__ = ["FAMILIES", "AbstractFamily", "Diagonal", "FullRank", "LowRank"]

_LONGEST_STEP = 0.5  # of the square root in one step: a factor of exp(0.5) in the spread of one direction


class Draws(NamedTuple):
    """Draws of all restarts.

    Args:
        z: the draws, ``(restarts, particles, dim)``.
        log_prob: of the guide at each, ``(restarts, particles)``.
        noise: what made them, ``(restarts, particles, ...)``.
    """

    z: Tensor
    log_prob: Tensor
    noise: Tensor


class AbstractFamily(ABC):
    """A family of Gaussian guides, its parameters with a leading axis of restarts."""

    @abstractmethod
    def first(self, loc: Tensor, std: Tensor) -> Sites:
        """Return the parameters of independent coordinates with means and standard deviations ``(restarts, dim)``."""

    @abstractmethod
    def draw(self, parameters: Sites, num: int) -> Draws:
        """Return ``num`` draws, an even number, in antithetic pairs; uses torch's global generator."""

    @abstractmethod
    def ascend(self, parameters: Sites, draws: Draws, gradient: Tensor, rate: Tensor) -> Sites:
        """Return the parameters after one step.

        Args:
            parameters: of the guides that made the draws.
            draws: the draws; those whose gradient is not finite are left out with their antithetic twin.
            gradient: of log p at each draw, ``(restarts, particles, dim)``.
            rate: learning rate of each restart, ``(restarts,)``; a restart with rate 0 stays.
        """

    @abstractmethod
    def guide(self, parameters: Sites) -> NormalGuide:
        """Return the guides, with the axes of the parameters."""


class Diagonal(AbstractFamily):
    """Mean field, ``T = diag(std)``; parameters ``loc`` and ``std``, ``(restarts, dim)``.

    Example:
        >>> family = Diagonal()
        >>> parameters = family.first(torch.zeros(1, 2), torch.ones(1, 2))
        >>> for _ in range(300):  # log p is N(3, 2**2) in both coordinates
        ...     draws = family.draw(parameters, 4)
        ...     parameters = family.ascend(parameters, draws, (3 - draws.z) / 4, torch.tensor([0.1]))
        >>> parameters["loc"].round(decimals=3), parameters["std"].round(decimals=3)
        (tensor([[3., 3.]]), tensor([[2., 2.]]))
    """

    def first(self, loc: Tensor, std: Tensor) -> Sites:
        """Return the parameters of independent coordinates."""
        return {"loc": loc, "std": std}

    def draw(self, parameters: Sites, num: int) -> Draws:
        """Return draws ``loc + std noise``."""
        loc, std = parameters["loc"], parameters["std"]
        noise = _pairs(loc, num, loc.shape[-1])
        log_prob = _standard_log_prob(noise) - std.log().sum(-1)[:, None]
        return Draws(loc[:, None] + std[:, None] * noise, log_prob, noise)

    def ascend(self, parameters: Sites, draws: Draws, gradient: Tensor, rate: Tensor) -> Sites:
        """Return the parameters after one step."""
        loc, std = parameters["loc"], parameters["std"]
        path = _usable(std[:, None] * gradient + draws.noise)
        growth = _bounded(rate[:, None] * (path * draws.noise).mean(1) / 2, _LONGEST_STEP)
        return {"loc": loc + std * _bounded_shift(rate[:, None] * path.mean(1)), "std": std * growth.exp()}

    def guide(self, parameters: Sites) -> NormalGuide:
        """Return the guides."""
        return NormalGuide("diagonal", {"loc": parameters["loc"], "scale_std": parameters["std"]})


class FullRank(AbstractFamily):
    """Any covariance, ``T`` lower triangular.

    Parameters ``loc`` ``(restarts, dim)`` and ``tril`` ``(restarts, dim, dim)``.

    Example:
        >>> family, precision = FullRank(), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> parameters = family.first(torch.zeros(1, 2), torch.ones(1, 2))
        >>> for _ in range(300):  # log p is N(0, inverse of the precision)
        ...     draws = family.draw(parameters, 4)
        ...     parameters = family.ascend(parameters, draws, -draws.z @ precision, torch.tensor([0.1]))
        >>> (3 * parameters["tril"] @ parameters["tril"].mT).round(decimals=3)
        tensor([[[ 2., -1.],
                 [-1.,  2.]]])
    """

    def first(self, loc: Tensor, std: Tensor) -> Sites:
        """Return the parameters of independent coordinates."""
        return {"loc": loc, "tril": torch.diag_embed(std)}

    def draw(self, parameters: Sites, num: int) -> Draws:
        """Return draws ``loc + tril noise``."""
        loc, tril = parameters["loc"], parameters["tril"]
        noise = _pairs(loc, num, loc.shape[-1])
        log_prob = _standard_log_prob(noise) - tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)[:, None]
        return Draws(loc[:, None] + noise @ tril.mT, log_prob, noise)

    def ascend(self, parameters: Sites, draws: Draws, gradient: Tensor, rate: Tensor) -> Sites:
        """Return the parameters after one step; the matrix exponential to second order, whose diagonal is positive."""
        loc, tril = parameters["loc"], parameters["tril"]
        path = _usable(gradient @ tril + draws.noise)
        slope = (path.mT @ draws.noise / path.shape[1]).tril()
        slope = slope - torch.diag_embed(slope.diagonal(dim1=-2, dim2=-1)) / 2
        growth = _bounded(rate[:, None, None] * slope, _LONGEST_STEP)
        shift = _bounded_shift(rate[:, None] * path.mean(1))
        return {
            "loc": loc + (tril @ shift[..., None])[..., 0],
            "tril": tril + tril @ (growth + growth @ growth / 2),
        }

    def guide(self, parameters: Sites) -> NormalGuide:
        """Return the guides."""
        return NormalGuide("full_rank", {"loc": parameters["loc"], "scale_tril": parameters["tril"]})


class LowRank(AbstractFamily):
    """``cov = diag(std) (I + factor factor') diag(std)``, for many coordinates.

    Parameters ``loc`` and ``std`` ``(restarts, dim)``, ``factor`` ``(restarts, dim, rank)`` with a rank of about
    ``sqrt(dim)``. The Fisher matrix of its spread is not block-diagonal; its diagonal stands in for it.

    Example:
        >>> family, precision = LowRank(), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> parameters = family.first(torch.zeros(1, 2), torch.ones(1, 2))
        >>> for _ in range(600):
        ...     draws = family.draw(parameters, 10)
        ...     parameters = family.ascend(parameters, draws, -draws.z @ precision, torch.tensor([0.1]))
        >>> cov = family.guide(parameters).distribution().covariance_matrix
        >>> (3 * cov).round(decimals=1)
        tensor([[[ 2., -1.],
                 [-1.,  2.]]])
    """

    def first(self, loc: Tensor, std: Tensor) -> Sites:
        """Return nearly independent coordinates: a factor of zero would never grow."""
        rank = max(1, round(math.sqrt(loc.shape[-1])))
        factor = torch.randn(*loc.shape, rank, dtype=loc.dtype, device=loc.device) * 0.1 / math.sqrt(rank)
        return {"loc": loc, "std": std, "factor": factor}

    def draw(self, parameters: Sites, num: int) -> Draws:
        """Return draws ``loc + std (noise_1 + factor noise_2)``."""
        loc, std, factor = parameters["loc"], parameters["std"], parameters["factor"]
        noise = _pairs(loc, num, sum(factor.shape[-2:]))
        mixed = _mixed(factor, noise)
        small = torch.linalg.cholesky(_gram(factor))
        log_det = small.diagonal(dim1=-2, dim2=-1).log().sum(-1) + std.log().sum(-1)
        quadratic = (mixed * _solve(factor, mixed)).sum(-1)
        log_prob = -quadratic / 2 - loc.shape[-1] * math.log(2 * math.pi) / 2 - log_det[:, None]
        return Draws(loc[:, None] + std[:, None] * mixed, log_prob, noise)

    def ascend(self, parameters: Sites, draws: Draws, gradient: Tensor, rate: Tensor) -> Sites:
        """Return the parameters after one step."""
        loc, std, factor = parameters["loc"], parameters["std"], parameters["factor"]
        mixed = _mixed(factor, draws.noise)
        path = _usable(std[:, None] * gradient + _solve(factor, mixed))
        shift = path.mean(1)
        shift = _bounded_shift(rate[:, None] * (shift + (factor @ (factor.mT @ shift[..., None]))[..., 0]))
        growth = _bounded(rate[:, None] * (path * mixed).mean(1) / _information(factor), _LONGEST_STEP)
        slope = path.mT @ draws.noise[..., loc.shape[-1] :] / path.shape[1]
        turn = rate[:, None, None] * (slope + factor @ (factor.mT @ slope)) / 2
        limit = _LONGEST_STEP * (1 + factor.flatten(1).norm(dim=-1))
        return {
            "loc": loc + std * shift,
            "std": std * growth.exp(),
            "factor": factor + _bounded(turn, limit[:, None, None]),
        }

    def guide(self, parameters: Sites) -> NormalGuide:
        """Return the guides."""
        loc, std, factor = parameters["loc"], parameters["std"], parameters["factor"]
        cov = {"cov_factor": std[..., None] * factor, "cov_diag": std.square()}
        return NormalGuide("low_rank", {"loc": loc, **cov})


#: Name of a guide in ``SVI(guide=...)`` -> its family.
FAMILIES: dict[str, AbstractFamily] = {"diagonal": Diagonal(), "full_rank": FullRank(), "low_rank": LowRank()}


def _pairs(like: Tensor, num: int, size: int) -> Tensor:
    """Return standard normal noise ``(restarts, num, size)``: its second half is minus its first."""
    half = torch.randn(len(like), num // 2, size, dtype=like.dtype, device=like.device)
    return torch.cat([half, -half], 1)


def _usable(path: Tensor) -> Tensor:
    """Leave out pairs whose path derivative is not finite: zeros, the others scaled up to keep the mean."""
    finite = path.isfinite().all(-1)
    both = finite & finite.roll(path.shape[1] // 2, 1)
    share = both.to(path.dtype).mean(1).clamp_min(1 / path.shape[1])
    return path.where(both[..., None], 0) / share[:, None, None]


def _standard_log_prob(noise: Tensor) -> Tensor:
    return -noise.square().sum(-1) / 2 - noise.shape[-1] * math.log(2 * math.pi) / 2


def _bounded(step: Tensor, limit: float | Tensor) -> Tensor:
    """Shorten each restart's step to a norm of at most ``limit``."""
    norm = step.flatten(1).norm(dim=-1).reshape(-1, *[1] * (step.dim() - 1))
    return step * (limit / norm.clamp_min(1e-30)).clamp_max(1)


def _bounded_shift(shift: Tensor) -> Tensor:
    """One standard deviation of the guide in every direction, at most."""
    return _bounded(shift, math.sqrt(shift.shape[-1]))


def _mixed(factor: Tensor, noise: Tensor) -> Tensor:
    """Return ``noise_1 + factor noise_2``, ``(restarts, particles, dim)``."""
    dim = factor.shape[-2]
    return noise[..., :dim] + noise[..., dim:] @ factor.mT


def _gram(factor: Tensor) -> Tensor:
    return torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device) + factor.mT @ factor


def _solve(factor: Tensor, rows: Tensor) -> Tensor:
    """Return ``(I + factor factor')^-1 row`` for rows ``(restarts, particles, dim)``, by Woodbury's identity."""
    return rows - torch.linalg.solve(_gram(factor), (rows @ factor).mT).mT @ factor.mT


def _information(factor: Tensor) -> Tensor:
    """Return the Fisher information of each log std, ``1 + K_ii (K^-1)_ii`` with ``K = I + factor factor'``."""
    own = 1 + factor.square().sum(-1)
    inverse = 1 - (factor * torch.linalg.solve(_gram(factor), factor.mT).mT).sum(-1)
    return 1 + own * inverse
