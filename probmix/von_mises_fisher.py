"""The von Mises-Fisher distribution on unit vectors: density, draws and the inverse of its mean length."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from probmix.bessel import bessel_ratio, log_bessel

__all__ = ["VonMisesFisher", "concentration_of", "draw_directions", "log_normaliser", "mean_length"]

_NEWTON_STEPS = 12


def log_normaliser(natural: Tensor) -> Tensor:
    r"""Log integral of :math:`e^{\eta \cdot x}` over the unit sphere, ``(*b, D) -> (*b,)``, smooth at 0 too.

    .. math:: \tfrac D2 \log 2 \pi - \nu \log \kappa + \log I_\nu(\kappa), \qquad
              \kappa = \lVert \eta \rVert, \quad \nu = \tfrac D2 - 1

    Done in float64 whatever the data, since it grows with the concentration.

    Example:
        >>> log_normaliser(torch.zeros(3)).exp()  # area of the sphere, 4 pi
        tensor(12.5664)
    """
    size, wide = natural.shape[-1], _wide(natural)
    log_integral = size / 2 * math.log(2 * math.pi) + log_bessel(size / 2 - 1, wide.square().sum(-1))
    return log_integral.to(natural.dtype)


def mean_length(concentration: Tensor, num_features: int) -> Tensor:
    r"""Length of the mean vector, :math:`A_D(\kappa) = I_{D/2}(\kappa) / I_{D/2-1}(\kappa)`, elementwise.

    Example:
        >>> mean_length(torch.tensor(2.0), 3)  # coth 2 - 1 / 2
        tensor(0.5373)
    """
    return concentration * bessel_ratio(num_features / 2 - 1, concentration.square())


def concentration_of(length: Tensor, num_features: int, shrinkage: Tensor | float = 0.0) -> Tensor:
    r"""Solve :math:`A_D(\kappa) + \lambda \kappa = R` for :math:`\kappa`, elementwise, by Newton's method.

    The left side is concave and rises, so that from the second step on the steps rise to the solution. Mean lengths
    within rounding of 1 are taken for less, so that the answer is finite.

    Args:
        length: R, from 0 to 1, ``(*b,)``.
        num_features: D.
        shrinkage: :math:`\lambda \ge 0`: without it the estimate of greatest likelihood.

    Source:
        Banerjee, Dhillon, Ghosh and Sra (2005), Clustering on the unit hypersphere using von Mises-Fisher
        distributions, Journal of Machine Learning Research 6, 1345-1382, for the start; Sra (2012), A short note on
        parameter approximation for von Mises-Fisher distributions, Computational Statistics 27, 177-190, for the steps.

    Example:
        >>> concentration_of(mean_length(torch.tensor(2.0), 3), 3)
        tensor(2.)
    """
    size, wide = num_features, _wide(length)
    wide = wide.clamp(0.0, 1.0 - 16 * torch.finfo(length.dtype).eps)
    rate = torch.as_tensor(shrinkage, dtype=wide.dtype, device=wide.device)
    kappa = wide * (size - wide.square()) / ((1 - wide) * (1 + wide))
    kappa = torch.minimum(kappa, wide / (rate + 1 / (size + kappa)))  # A(k) is at least k / (D + k)
    for _ in range(_NEWTON_STEPS):
        ratio = bessel_ratio(size / 2 - 1, kappa.square())
        slope = 1 - (kappa * ratio).square() - (size - 1) * ratio
        kappa = (kappa - (kappa * ratio + rate * kappa - wide) / (slope + rate)).clamp_min(0)
    return kappa.to(length.dtype)


def draw_directions(natural: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw one unit vector for each natural parameter, ``(*b, D)``, by rejection.

    Source:
        Wood (1994), Simulation of the von Mises Fisher distribution, Communications in Statistics: Simulation and
        Computation 23, 157-164.

    Example:
        >>> draws = draw_directions(torch.tensor([[1e6, 0.0]]), torch.Generator().manual_seed(0))
        >>> (draws - torch.tensor([1.0, 0.0])).abs().max() < 0.01
        tensor(True)
    """
    flat = natural.reshape(-1, natural.shape[-1])
    concentration = flat.norm(dim=-1)
    axis = torch.where(concentration[:, None] > 0, flat / concentration[:, None].clamp_min(1e-300), _first_axis(flat))
    cosine, versine = _draw_cosines(concentration, natural.shape[-1], generator)
    tangent = _normal(flat.shape, flat, generator)
    tangent = tangent - (tangent * axis).sum(-1, keepdim=True) * axis
    tangent = tangent / tangent.norm(dim=-1, keepdim=True)
    sine = (versine * (2 - versine)).clamp_min(0).sqrt()
    return (cosine[:, None] * axis + sine[:, None] * tangent).reshape(natural.shape)


def _draw_cosines(concentration: Tensor, size: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Cosines of the angles to the axis, and one less them, which rounding would lose at large concentrations."""
    reach = (2 * concentration + (4 * concentration.square() + (size - 1) ** 2).sqrt()) / (size - 1)  # 1 / Wood's b
    versine, waiting = torch.zeros_like(concentration), torch.ones_like(concentration, dtype=torch.bool)
    while waiting.any():
        first, second = (
            _normal((len(concentration), size - 1), concentration, generator).square().sum(-1) for _ in range(2)
        )
        share = first / (first + second)
        # With b = 1 / reach: w = (1 - (1 + b) z) / (1 - (1 - b) z), so 1 - w = 2 b z / (1 - (1 - b) z).
        proposal = 2 * share / (reach - (reach - 1) * share)
        edge = 2 / (reach + 1)  # 1 - (1 - b) / (1 + b)
        log_odds = concentration * (edge - proposal) + (size - 1) * _log_gap(proposal, edge)
        uniform = torch.rand(
            concentration.shape, generator=generator, dtype=concentration.dtype, device=concentration.device
        )
        accepted = waiting & (log_odds >= uniform.log())
        versine, waiting = torch.where(accepted, proposal, versine), waiting & ~accepted
    return 1 - versine, versine


def _log_gap(versine: Tensor, edge: Tensor) -> Tensor:
    """Log of (1 - x0 w) / (1 - x0**2), with w and x0 given by what they lack to 1."""
    gap = edge + versine - edge * versine
    return (gap / (edge * (2 - edge))).log()


def _normal(shape: Any, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def _first_axis(like: Tensor) -> Tensor:
    return torch.nn.functional.pad(torch.ones_like(like[:, :1]), (0, like.shape[-1] - 1))


def _wide(value: Tensor) -> Tensor:
    return value if value.device.type == "mps" else value.double()  # Apple's devices have no float64


class VonMisesFisher(TorchDistribution):
    r"""Unit vectors around a direction.

    .. math:: p(x) \propto e^{\eta \cdot x}, \qquad \eta = \kappa \mu, \quad \lVert \mu \rVert = 1

    Args:
        natural: :math:`\eta`: its direction is the mean direction, its length the concentration, ``(*b, D)``, D from 2.
        log_integral: `log_normaliser` of it where that is known, ``(*b,)``.
        validate_args: check values; None leaves it to torch's global setting.

    Source:
        Mardia and Jupp (2000), Directional Statistics, section 9.3.2.

    Example:
        >>> VonMisesFisher(torch.zeros(3)).log_prob(torch.tensor([0.0, 0.0, 1.0])).exp()  # 1 / (4 pi)
        tensor(0.0796)
    """

    arg_constraints = {"natural": constraints.real_vector}  # noqa: RUF012 - torch's API
    support = constraints.sphere

    def __init__(self, natural: Tensor, log_integral: Tensor | None = None, validate_args: bool | None = None) -> None:
        self.natural = natural
        self.log_integral = log_normaliser(natural) if log_integral is None else log_integral
        super().__init__(natural.shape[:-1], natural.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMisesFisher:
        """Return the same distribution with a larger batch shape."""
        natural = self.natural.expand(torch.Size(batch_shape) + self.event_shape)
        return VonMisesFisher(natural, self.log_integral.expand(batch_shape), validate_args=self._validate_args)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw unit vectors, ``(*sample_shape, *b, D)``."""
        return draw_directions(self.natural.expand(self._extended_shape(torch.Size(sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with respect to the area of the unit sphere, ``(*b,)``."""
        if self._validate_args:
            self._validate_sample(value)
        return (self.natural * value).sum(-1) - self.log_integral
