"""Log densities with known moments, each able to see a bug that the others cannot; ``*b`` are any leading axes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import digamma, polygamma
from torch import Tensor


@dataclass
class Gaussian:
    """Correlated: sees a metric or a momentum that is wrong. Data sets along leading axes of ``cov``."""

    cov: Tensor
    calls: int = 0

    def __post_init__(self) -> None:
        self.precision = torch.linalg.inv(self.cov)

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        gradient = -z @ self.precision
        return 0.5 * (z * gradient).sum(-1), gradient

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.var)

    @property
    def var(self) -> Tensor:
        return self.cov.diagonal(dim1=-2, dim2=-1)


@dataclass
class LogGamma:
    """Skewed: sees a sign error that symmetry hides. ``exp z`` is Gamma(shape, 1)."""

    dim: int = 3
    shape: float = 1.5

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return (self.shape * z - z.exp()).sum(-1), self.shape - z.exp()

    @property
    def mean(self) -> Tensor:
        return torch.full((self.dim,), float(digamma(self.shape)), dtype=torch.float64)

    @property
    def var(self) -> Tensor:
        return torch.full((self.dim,), float(polygamma(1, self.shape)), dtype=torch.float64)


@dataclass
class Funnel:
    """A neck and a mouth: v is standard normal, each x given v is normal with variance ``exp v``."""

    num: int = 2

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        v, x = z[..., :1], z[..., 1:]
        scaled = x * (-v).exp()
        value = -0.5 * (v.square() + self.num * v).squeeze(-1) - 0.5 * (x * scaled).sum(-1)
        by_v = -v - 0.5 * self.num + 0.5 * (x * scaled).sum(-1, keepdim=True)
        return value, torch.cat([by_v, -scaled], -1)

    @property
    def mean(self) -> Tensor:
        return torch.zeros(1 + self.num, dtype=torch.float64)

    @property
    def var(self) -> Tensor:
        return torch.tensor([1.0] + [math.exp(0.5)] * self.num, dtype=torch.float64)


def random_cov(dim: int, condition: float, seed: int) -> Tensor:
    """A covariance with eigenvalues from 1 to ``condition`` and random axes."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    return (axes * torch.logspace(0, math.log10(condition), dim, dtype=torch.float64)) @ axes.mT
