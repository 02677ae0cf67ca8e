"""Shapes of the spectrum of one component of a stationary kernel, with its Fourier transform in closed form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self, TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.errors import ProgramError

__all__ = [
    "AbstractSpectrum",
    "GaussianSpectrum",
    "SpectrumName",
    "StudentTSpectrum",
    "derivative_orders",
    "spectrum_of",
    "term_derivative",
]


class AbstractSpectrum(ABC):
    r"""A probability density of frequencies, symmetric about its centre, and its characteristic function.

    With centre :math:`\mu` and bandwidth v, in cycles per unit of the input,

    .. math:: \int S\big(\tfrac{s - \mu}{v}\big) \cos(2 \pi s \tau) \, \frac{ds}{v}
              = g(r) \cos(2 \pi \mu \tau), \qquad r = 2 \pi v |\tau|

    where g is the envelope, ``g(0) = 1``.
    """

    #: How many derivatives g(|r|) has at 0; a process has half as many in mean square.
    smoothness: int

    #: What the shape goes by in operations that take numbers only.
    df: int

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: it is a value."""
        return self

    @abstractmethod
    def envelope(self, r: Tensor) -> Tensor:
        """Return g of ``r >= 0``."""

    @abstractmethod
    def log_slope(self, r: Tensor) -> Tensor:
        """Return ``g'(r) / (r g(r))``: even in the lag, so that derivatives of it are right where inputs coincide."""

    @abstractmethod
    def derivatives(self, r: Tensor, order: int) -> list[Tensor]:
        """Return ``g, g', ...`` up to an order, by r."""

    def joint(self, distances: Tensor, slopes: Tensor) -> Tensor:
        r"""Return the product of envelopes over the inputs, ``(*b, d, n, m), (*b, q, d) -> (*b, q, n, m)``.

        Args:
            distances: :math:`|\tau|`.
            slopes: :math:`2 \pi v`, what a distance is multiplied by to give r.
        """
        first, *others = (
            self.envelope(slopes[..., d, None, None] * distances[..., None, d, :, :]) for d in range(slopes.shape[-1])
        )
        return math.prod(others, start=first)

    def pull(self, gradient: Tensor, product: Tensor, distances: Tensor, slopes: Tensor) -> Tensor:
        """Return the gradient by the slopes of one input, ``(*b, q)``, of a kernel with the given product of factors.

        Args:
            gradient: by the kernel, ``(*b, n, m)``.
            product: ``(*b, q, n, m)``.
            distances: of this input, ``(*b, n, m)``.
            slopes: of this input, ``(*b, q)``.
        """
        rates = self.log_slope(slopes[..., None, None] * distances[..., None, :, :])
        return slopes * torch.einsum("...qnm,...nm->...q", product * rates, gradient * distances.square())

    @abstractmethod
    def distribution(self, loc: Tensor, bandwidth: Tensor) -> dist.TorchDistribution:
        """Return the distribution of frequencies."""


@dataclass(frozen=True)
class GaussianSpectrum(AbstractSpectrum):
    r"""A normal spectrum: :math:`g(r) = \exp(-r^2 / 2)`, the bandwidth its standard deviation.

    The kernel of one component is a squared exponential of lengthscale :math:`1 / (2 \pi v)` times a cosine.

    Source:
        Wilson and Adams (2013), Gaussian process kernels for pattern discovery and extrapolation, equation 12.

    Example:
        >>> GaussianSpectrum().envelope(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 0.6065])
    """

    smoothness = 1_000
    df = 0

    def envelope(self, r: Tensor) -> Tensor:
        """Return ``exp(-r^2 / 2)``."""
        return torch.exp(-0.5 * r * r)

    def log_slope(self, r: Tensor) -> Tensor:
        """Return -1."""
        return -torch.ones_like(r)

    def joint(self, distances: Tensor, slopes: Tensor) -> Tensor:
        """Return the product of envelopes over the inputs, by one exponential."""
        squares = distances.square().flatten(-2)
        return (-0.5 * slopes.square() @ squares).unflatten(-1, distances.shape[-2:]).exp()

    def pull(self, gradient: Tensor, product: Tensor, distances: Tensor, slopes: Tensor) -> Tensor:
        """Return the gradient by the slopes of one input, without a matrix for each component."""
        return -slopes * sums(product, gradient * distances.square())

    def derivatives(self, r: Tensor, order: int) -> list[Tensor]:
        """Return the derivatives by r; the recursion of Hermite's polynomials."""
        found = [self.envelope(r)]
        for k in range(order):
            found.append(-(r * found[k] + (k * found[k - 1] if k else 0.0)))
        return found

    def distribution(self, loc: Tensor, bandwidth: Tensor) -> dist.TorchDistribution:
        """Return the normal distribution."""
        return dist.Normal(loc, bandwidth)


@dataclass(frozen=True)
class StudentTSpectrum(AbstractSpectrum):
    r"""A Student-t spectrum with 1, 3 or 5 degrees of freedom: the envelope is Matern-1/2, 3/2 or 5/2.

    .. math:: g(r) = e^{-r}, \quad (1 + \sqrt3 r) \, e^{-\sqrt3 r}, \quad
              \big(1 + \sqrt5 r + \tfrac53 r^2\big) \, e^{-\sqrt5 r}

    The bandwidth is the scale of the Student-t; the lengthscale of the Matern is :math:`1 / (2 \pi v)`.

    Args:
        df: degrees of freedom, twice the smoothness of the Matern.

    Raises:
        ProgramError: other degrees of freedom.

    Source:
        Fang, Cooley, Long, Li, Kirby and Zhe (2024), Solving high frequency and multi-scale PDEs with Gaussian
        processes; Rasmussen and Williams (2006), equations 4.14 to 4.17.

    Example:
        >>> StudentTSpectrum(1).envelope(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 0.3679])
    """

    df: int = 5

    def __post_init__(self) -> None:
        if self.df not in _MATERN:
            raise ProgramError(
                f"df: expected 1, 3 or 5 degrees of freedom (Matern-1/2, 3/2 and 5/2), got {self.df!r}. Without end it "
                "is GaussianSpectrum()."
            )

    @property
    def smoothness(self) -> int:  # type: ignore[override]
        """How many derivatives the envelope has at 0."""
        return self.df - 1

    def envelope(self, r: Tensor) -> Tensor:
        """Return the Matern function of ``r``."""
        return _polynomial(_MATERN[self.df], r) * torch.exp(-self._rate * r)

    def log_slope(self, r: Tensor) -> Tensor:
        """Return ``g'(r) / (r g(r))``; 0 at the tip of the Matern-1/2, which has no derivative."""
        first, *others = self._after(_MATERN[self.df])
        if not others:
            return torch.where(r > 0, first / torch.where(r > 0, r, 1.0), 0.0)
        return _polynomial(tuple(others), r) / _polynomial(_MATERN[self.df], r)

    def derivatives(self, r: Tensor, order: int) -> list[Tensor]:
        """Return the derivatives by r."""
        coefficients, found, decay = _MATERN[self.df], [], torch.exp(-self._rate * r)
        for _ in range(order + 1):
            found.append(_polynomial(coefficients, r) * decay)
            coefficients = self._after(coefficients)
        return found

    def distribution(self, loc: Tensor, bandwidth: Tensor) -> dist.TorchDistribution:
        """Return the Student-t distribution."""
        return dist.StudentT(float(self.df), loc, bandwidth)

    @cached_property
    def _rate(self) -> float:
        return math.sqrt(self.df)

    def _after(self, coefficients: tuple[float, ...]) -> tuple[float, ...]:
        """Return the polynomial of the derivative: ``(P e^{-a r})' = (P' - a P) e^{-a r}``."""
        slopes = (*(k * c for k, c in enumerate(coefficients) if k), 0.0)
        return tuple(slope - self._rate * c for slope, c in zip(slopes, coefficients, strict=True))


#: Degrees of freedom -> coefficients of the polynomial in front of the exponential.
_MATERN = {1: (1.0,), 3: (1.0, math.sqrt(3)), 5: (1.0, math.sqrt(5), 5 / 3)}

#: A spectrum by name; ``"student_t"`` is that with five degrees of freedom.
SpectrumName: TypeAlias = Literal["gaussian", "student_t"] | AbstractSpectrum


def spectrum_of(name: SpectrumName | int) -> AbstractSpectrum:
    """Return a spectrum by its name, or by its number (`AbstractSpectrum.df`).

    Raises:
        ProgramError: there is none of that name.

    Example:
        >>> spectrum_of("student_t")
        StudentTSpectrum(df=5)
    """
    if isinstance(name, AbstractSpectrum):
        return name
    if isinstance(name, int):
        return StudentTSpectrum(name) if name else GaussianSpectrum()
    known = {"gaussian": GaussianSpectrum(), "student_t": StudentTSpectrum()}
    if name not in known:
        raise ProgramError(
            f"spectrum: expected 'gaussian', 'student_t' or an object such as StudentTSpectrum(df=3), got {name!r}."
        )
    return known[name]


def term_derivative(
    tau: Tensor,
    frequency: Tensor,
    bandwidth: Tensor,
    spectrum: AbstractSpectrum,
    order: int,
    phase: Tensor | None = None,
) -> Tensor:
    r"""Return a derivative of one component's kernel by the lag, in closed form.

    .. math:: \frac{d^m}{d \tau^m} \, g(2 \pi v |\tau|) \cos(2 \pi \mu \tau + \phi)
              = \sum_{j \le m} \binom mj (2 \pi v)^j \operatorname{sign}(\tau)^j g^{(j)}(r) \,
                (2 \pi \mu)^{m - j} \cos\big(2 \pi \mu \tau + \phi + (m - j) \tfrac\pi2\big)

    Written in :math:`r \ge 0`: right at coincident inputs, where autograd through :math:`|\tau|` is not. All tensors
    broadcast against each other.

    Args:
        tau: lags.
        frequency: :math:`\mu`, cycles per unit.
        bandwidth: v, cycles per unit.
        spectrum: the shape.
        order: m, at most the smoothness of the spectrum.
        phase: :math:`\phi`, radians; None: 0.

    Raises:
        ProgramError: the kernel has no such derivative at ``tau = 0``.

    Example:
        >>> zero = torch.zeros(())  # of exp(-2 pi^2 tau^2), twice
        >>> term_derivative(zero, zero, torch.ones(()), GaussianSpectrum(), 2)  # -4 pi^2
        tensor(-39.4784)
    """
    if order > spectrum.smoothness:
        raise ProgramError(
            f"expected derivatives up to order {spectrum.smoothness} in all, which is what a kernel with {spectrum} "
            f"has where inputs coincide, got order {order}. Take a smoother spectrum: StudentTSpectrum(df=5), "
            "GaussianSpectrum()."
        )
    slope, angular = 2 * math.pi * bandwidth, 2 * math.pi * frequency
    envelopes = spectrum.derivatives(slope * tau.abs(), order)
    argument = angular * tau if phase is None else angular * tau + phase
    total = torch.zeros_like(argument * slope)
    for j, envelope in enumerate(envelopes):
        turned = angular ** (order - j) * torch.cos(argument + (order - j) * (math.pi / 2))
        side = tau.sign() if j % 2 else 1.0
        total = total + math.comb(order, j) * side * slope**j * envelope * turned
    return total


def derivative_orders(by1: Sequence[int], by2: Sequence[int], num_columns: int) -> list[int]:
    """Return how often a kernel is differentiated by each column of the lag.

    Args:
        by1: columns of the first rows, repeated for higher orders.
        by2: columns of the second rows.
        num_columns: of the inputs.

    Raises:
        ProgramError: a column that is not there.

    Example:
        >>> derivative_orders([0, 0], [1], 3)
        [2, 1, 0]
    """
    columns = range(num_columns)
    if strange := [d for d in (*by1, *by2) if d not in columns]:
        raise ProgramError(f"expected columns of the inputs from 0 to {num_columns - 1}, got {strange}. Count from 0.")
    return [(*by1, *by2).count(d) for d in columns]


def sums(tables: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of each of some tables, ``(*b, q, n, m), (*b, n, m) -> (*b, q)``.

    Example:
        >>> sums(torch.ones(4, 2, 3), torch.ones(2, 3))
        tensor([6., 6., 6., 6.])
    """
    return (tables.flatten(-2) @ weights.flatten(-2)[..., None]).squeeze(-1)


def _polynomial(coefficients: tuple[float, ...], r: Tensor) -> Tensor:
    value = torch.full_like(r, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * r + c
    return value
