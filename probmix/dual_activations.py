"""Dual activations: what a nonlinearity does to the covariance of two jointly normal inputs, in closed form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

from probmix.errors import ProgramError

__all__ = [
    "GELU",
    "AbstractActivation",
    "ActivationName",
    "Cosine",
    "Erf",
    "LeakyReLU",
    "ReLU",
    "Sign",
    "Sine",
    "Step",
    "activation_of",
]

_ROUNDING = 4  # machine epsilons: a correlation this close to 1 or -1 is taken for it


class AbstractActivation(ABC):
    r"""A nonlinearity :math:`\phi` of a network and its dual activation.

    For :math:`(u, v) \sim N\big(0, \begin{pmatrix} q_1 & k \\ k & q_2 \end{pmatrix}\big)`, all of one shape or
    broadcasting against each other,

    .. math:: \mathrm{dual}(k, q_1, q_2) = E[\phi(u) \phi(v)], \qquad
              \mathrm{slope}(k, q_1, q_2) = \partial_k \mathrm{dual} = E[\phi'(u) \phi'(v)]

    The last equality is Price's theorem (1958); the right-hand side is what tangent kernels need.
    """

    #: Whether the nonlinearity has a derivative; a jump has not, so its networks have no tangent kernel.
    has_derivative = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: it is a value, which copies of a kernel share, and with it the graphs of their programs."""
        return self

    @abstractmethod
    def __call__(self, u: Tensor) -> Tensor:
        """Return the nonlinearity itself."""

    @abstractmethod
    def with_slope(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the dual and its slope, which may share their work."""

    def dual(self, k: Tensor, q1: Tensor, q2: Tensor) -> Tensor:
        """Return the covariance after the nonlinearity."""
        return self.with_slope(k, q1, q2)[0]

    @abstractmethod
    def variance(self, q: Tensor) -> Tensor:
        """Return the dual where both inputs are one: ``E[phi(u)^2]``."""

    @abstractmethod
    def pull(
        self, gradient: Tensor, k: Tensor, q1: Tensor, q2: Tensor, dual: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients by ``k``, ``q1`` and ``q2``, given that by the dual, the dual and its slope."""


@dataclass(frozen=True)
class LeakyReLU(AbstractActivation):
    r"""``max(u, 0) + slope * min(u, 0)``; with slope 0 the ReLU.

    .. math:: E[\phi(u) \phi(v)] = a k + (1 - a)^2 \tfrac12 \sqrt{q_1 q_2} \, \kappa_1(\rho), \quad
              \kappa_1(\rho) = \tfrac1\pi \big(\sqrt{1 - \rho^2} + (\pi - \arccos \rho) \rho\big)

    Args:
        slope: a, of the negative half.

    Source:
        Cho and Saul (2009), Kernel methods for deep learning, equations 3 to 6 (slope 0); the other slopes follow from
        ``E[u max(v, 0)] = k / 2``.

    Example:
        >>> one = torch.ones(())
        >>> LeakyReLU(0.0).dual(one, one, one), LeakyReLU(1.0).dual(0.3 * one, one, one)
        (tensor(0.5000), tensor(0.3000))
    """

    slope: float = 0.01

    def __call__(self, u: Tensor) -> Tensor:
        """Return the nonlinearity itself."""
        return torch.nn.functional.leaky_relu(u, self.slope)

    def dual(self, k: Tensor, q1: Tensor, q2: Tensor) -> Tensor:
        """Return the covariance after the nonlinearity."""
        rectified, _ = _Rectified.of(k, q1, q2, self._norm)
        return rectified + self.slope * k if self.slope else rectified

    def with_slope(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the dual and its slope."""
        rectified, angle = _Rectified.of(k, q1, q2, self._norm)
        if not self.slope:
            return rectified, self._norm * angle
        return rectified + self.slope * k, self._norm * angle + self.slope

    def variance(self, q: Tensor) -> Tensor:
        """Return the dual where both inputs are one."""
        return q * (0.5 * (1 + self.slope**2))

    def pull(
        self, gradient: Tensor, k: Tensor, q1: Tensor, q2: Tensor, dual: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients by ``k``, ``q1`` and ``q2``."""
        by_k = gradient * slope
        # Euler: homogeneous of degree one in k, q1 and q2, of one half in each variance
        part = torch.addcmul(gradient * dual, k, by_k, value=-1)
        return by_k, _summed(part, q1) * (0.5 / _divisor(q1)), _summed(part, q2) * (0.5 / _divisor(q2))

    @property
    def _norm(self) -> float:
        return (1 - self.slope) ** 2 / (2 * math.pi)


class ReLU(LeakyReLU):
    """``max(u, 0)``: the arc-cosine kernel of order one.

    Example:
        >>> one = torch.ones(())
        >>> round(float(ReLU().dual(0 * one, one, one) * 2 * math.pi), 6)
        1.0
    """

    def __init__(self) -> None:
        super().__init__(0.0)


class _AbstractArcsine(AbstractActivation):
    """A nonlinearity whose dual is ``mean + gain asin(c)``, c the correlation where the variances are larger by a."""

    _mean, _gain, _more = 0.0, 2 / math.pi, 0.0  # the last is a

    def dual(self, k: Tensor, q1: Tensor, q2: Tensor) -> Tensor:
        """Return the covariance after the nonlinearity."""
        return self._given(_correlation(k, q1 + self._more, q2 + self._more))

    def with_slope(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the dual and its slope, for a jump that of the dual alone."""
        s1, s2 = q1 + self._more, q2 + self._more
        c = _correlation(k, s1, s2)
        slope = _slope_of_arcsine(c) * (self._gain * _divisor(s1).rsqrt()) * _divisor(s2).rsqrt()
        return self._given(c), slope

    def variance(self, q: Tensor) -> Tensor:
        """Return the dual where both inputs are one."""
        return self.dual(q, q, q)

    def pull(
        self, gradient: Tensor, k: Tensor, q1: Tensor, q2: Tensor, dual: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients by ``k``, ``q1`` and ``q2``."""
        by_k = gradient * slope
        part, s1, s2 = k * by_k, q1 + self._more, q2 + self._more
        return by_k, _summed(part, q1) * (-0.5 / _divisor(s1)), _summed(part, q2) * (-0.5 / _divisor(s2))

    def _given(self, c: Tensor) -> Tensor:
        angle = self._gain * _Arcsine.of(c)
        return angle + self._mean if self._mean else angle


@dataclass(frozen=True)
class Step(_AbstractArcsine):
    r"""``1`` where ``u > 0``, else ``0``: the arc-cosine kernel of order zero, :math:`(\pi - \arccos \rho) / 2 \pi`.

    Source:
        Cho and Saul (2009), equation 4 with n = 0.

    Example:
        >>> one = torch.ones(())
        >>> Step().dual(0 * one, one, one)
        tensor(0.2500)
    """

    has_derivative = False
    _mean, _gain = 0.25, 0.5 / math.pi

    def __call__(self, u: Tensor) -> Tensor:
        """Return the nonlinearity itself."""
        return (u > 0).to(u.dtype)


@dataclass(frozen=True)
class Sign(_AbstractArcsine):
    r"""``-1`` or ``1``: :math:`\tfrac2\pi \arcsin \rho`.

    Source:
        Williams (1997), Computing with infinite networks, equation 11 in the limit of large weights.

    Example:
        >>> one = torch.ones(())
        >>> Sign().dual(0.5 * one, one, one)
        tensor(0.3333)
    """

    has_derivative = False

    def __call__(self, u: Tensor) -> Tensor:
        """Return the nonlinearity itself."""
        return u.sign()


@dataclass(frozen=True)
class Erf(_AbstractArcsine):
    r"""The error function: :math:`\tfrac2\pi \arcsin \frac{2 k}{\sqrt{(1 + 2 q_1)(1 + 2 q_2)}}`.

    Source:
        Williams (1997), Computing with infinite networks, equation 11.

    Example:
        >>> one = torch.ones(())
        >>> round(float(Erf().dual(0.5 * one, one, one)), 6)
        0.216347
    """

    _more = 0.5

    def __call__(self, u: Tensor) -> Tensor:
        """Return the nonlinearity itself."""
        return u.erf()


@dataclass(frozen=True)
class GELU(AbstractActivation):
    r"""``u Phi(u)`` with the normal distribution function.

    .. math:: E[\phi(u) \phi(v)] = k \Big(\frac14 + \frac{\arcsin c}{2 \pi}\Big)
              + \frac{1 + (q_1 q_2 - 1)(1 - c^2)}{2 \pi \sqrt{(1 + q_1)(1 + q_2)(1 - c^2)}}, \qquad
              c = \frac{k}{\sqrt{(1 + q_1)(1 + q_2)}}

    Source:
        Tsuchida, Pearce, van der Heide, Roosta and Gallagher (2021), Avoiding kernel fixed points: computing with ELU
        and GELU infinite networks, proposition 4.

    Example:
        >>> one = torch.ones(())
        >>> round(float(GELU().variance(one)), 4)
        0.4252
    """

    def __call__(self, u: Tensor) -> Tensor:
        """Return the nonlinearity itself."""
        return torch.nn.functional.gelu(u)

    def dual(self, k: Tensor, q1: Tensor, q2: Tensor) -> Tensor:
        """Return the covariance after the nonlinearity."""
        _, angle, rest = self._parts(k, q1, q2)
        return self._dual(k, q1, q2, angle, rest)

    def with_slope(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the dual and its slope."""
        c, angle, rest = self._parts(k, q1, q2)
        norm1, norm2 = 1 / (1 + q1), 1 / (1 + q2)
        slope = angle + c * rest.rsqrt() * (norm1 * norm2 / rest + (norm1 + norm2)) * (0.5 / math.pi)
        return self._dual(k, q1, q2, angle, rest), slope

    def variance(self, q: Tensor) -> Tensor:
        """Return the dual where both inputs are one."""
        return self.dual(q, q, q)

    def pull(
        self, gradient: Tensor, k: Tensor, q1: Tensor, q2: Tensor, dual: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients by ``k``, ``q1`` and ``q2``."""
        p1, p2, (_, _, rest) = 1 + q1, 1 + q2, self._parts(k, q1, q2)
        part = gradient * rest.rsqrt() * (0.25 / math.pi * p1.rsqrt()) * p2.rsqrt()
        wide, both = part * rest, part * (1 / rest + (p1 + p2))
        by_q1 = (_summed(wide * p2, q1) * (2 + p1) - _summed(both, q1)) / p1
        by_q2 = (_summed(wide * p1, q2) * (2 + p2) - _summed(both, q2)) / p2
        return gradient * slope, by_q1, by_q2

    @staticmethod
    def _parts(k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the correlation, its angle, and the rest of its square to 1, which is above 0 but for rounding."""
        c = k * (1 + q1).rsqrt() * (1 + q2).rsqrt()
        return c, 0.25 + (0.5 / math.pi) * _Arcsine.of(c), (1 - c * c).clamp(min=torch.finfo(c.dtype).eps)

    @staticmethod
    def _dual(k: Tensor, q1: Tensor, q2: Tensor, angle: Tensor, rest: Tensor) -> Tensor:
        norm1, norm2 = 0.5 / math.pi * (1 + q1).rsqrt(), (1 + q2).rsqrt()
        return torch.addcmul(k * angle, rest.rsqrt() * norm1 * norm2, 1 + rest * (q1 * q2 - 1))


class _AbstractWave(AbstractActivation):
    """Sine (-1) and cosine (1): half of ``exp(k - m)`` plus or minus half of ``exp(-k - m)``, m the mean variance."""

    _parity: float

    def with_slope(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the dual and its slope."""
        mean = 0.5 * q1 + 0.5 * q2
        near, far = 0.5 * (k - mean).exp(), (0.5 * self._parity) * (-k - mean).exp()  # no exponent is positive
        return near + far, near - far

    def pull(
        self, gradient: Tensor, k: Tensor, q1: Tensor, q2: Tensor, dual: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients by ``k``, ``q1`` and ``q2``."""
        part = gradient * dual
        return gradient * slope, -0.5 * _summed(part, q1), -0.5 * _summed(part, q2)


@dataclass(frozen=True)
class Sine(_AbstractWave):
    r"""``sin u``: :math:`e^{-(q_1 + q_2) / 2} \sinh k`.

    Source:
        Pearce, Tsuchida, Zaki, Brintrup and Neely (2019), Expressive priors in Bayesian neural networks: kernel
        combinations and periodic functions, section 3.

    Example:
        >>> one = torch.ones(())
        >>> round(float(Sine().variance(one)), 6)  # (1 - exp(-2)) / 2
        0.432332
    """

    _parity = -1.0

    def __call__(self, u: Tensor) -> Tensor:
        """Return the nonlinearity itself."""
        return u.sin()

    def variance(self, q: Tensor) -> Tensor:
        """Return the dual where both inputs are one."""
        return -0.5 * torch.expm1(-2 * q)


@dataclass(frozen=True)
class Cosine(_AbstractWave):
    r"""``cos u``: :math:`e^{-(q_1 + q_2) / 2} \cosh k`.

    Source:
        Pearce, Tsuchida, Zaki, Brintrup and Neely (2019), section 3.

    Example:
        >>> one = torch.ones(())
        >>> round(float(Cosine().dual(0 * one, one, one)), 6)  # exp(-1)
        0.367879
    """

    _parity = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        """Return the nonlinearity itself."""
        return u.cos()

    def variance(self, q: Tensor) -> Tensor:
        """Return the dual where both inputs are one."""
        return 0.5 + 0.5 * torch.exp(-2 * q)


_BY_NAME = MappingProxyType(
    {
        "relu": ReLU(),
        "leaky_relu": LeakyReLU(),
        "erf": Erf(),
        "gelu": GELU(),
        "step": Step(),
        "sign": Sign(),
        "sin": Sine(),
        "cos": Cosine(),
    }
)

#: An activation by name, or an object of one's own.
ActivationName: TypeAlias = str | AbstractActivation


def activation_of(name: ActivationName) -> AbstractActivation:
    """Return the activation of a name: relu, leaky_relu, erf, gelu, step, sign, sin, cos.

    Raises:
        ProgramError: unknown name.

    Example:
        >>> activation_of("leaky_relu")
        LeakyReLU(slope=0.01)
        >>> activation_of(LeakyReLU(0.2)).slope
        0.2
    """
    if isinstance(name, AbstractActivation):
        return name
    if name not in _BY_NAME:
        raise ProgramError(
            f"activation: expected one of {', '.join(_BY_NAME)}, got {name!r}. Pass one of these names, "
            "LeakyReLU(slope), or an object of your own that inherits from AbstractActivation."
        )
    return _BY_NAME[name]


# --- elementwise functions whose slopes stay finite and right where two inputs coincide or are opposite ---------------


class _Elementwise(torch.autograd.Function):
    generate_vmap_rule = True

    @classmethod
    def of(cls, *inputs: Any) -> Any:
        """Apply it, without the bookkeeping where no gradient is wanted: on a tile that is a sixth of the time."""
        return cls.apply(*inputs) if torch.is_grad_enabled() else cls.forward(*inputs)


class _Rectified(_Elementwise):
    """``norm sqrt(q1 q2) (sqrt(1 - c^2) + angle c)`` and ``angle = pi - acos(c)`` of the correlation c.

    The derivative of the first by ``k`` is ``norm angle``, where by the chain rule it would be the difference of two
    infinities if c is -1 or 1. Steps are made in place where vmap has a rule for that.
    """

    @staticmethod
    def forward(k: Tensor, q1: Tensor, q2: Tensor, norm: float) -> tuple[Tensor, Tensor]:
        c = _correlation(k, q1, q2).clamp(-1.0, 1.0)
        angle = c.asin().add_(math.pi / 2)
        sine = torch.addcmul(c.new_ones(()), c, c, value=-1).sqrt_()
        return torch.addcmul(sine, angle, c).mul_(norm * q1.sqrt()).mul_(q2.sqrt()), angle

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:3], *output)
        ctx.norm = inputs[3]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, by_angle: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        k, q1, q2, rectified, angle = ctx.saved_tensors
        slope = _slope_of_arcsine(_correlation(k, q1, q2)) * _divisor(q1).rsqrt() * _divisor(q2).rsqrt()
        by_k = gradient * (ctx.norm * angle) + by_angle * slope
        part = 0.5 * (gradient * rectified - k * by_k)
        return _summed(by_k, k), _summed(part / _divisor(q1), q1), _summed(part / _divisor(q2), q2), None


class _Arcsine(_Elementwise):
    """``asin``, with rounding beyond -1 and 1 taken back."""

    @staticmethod
    def forward(c: Tensor) -> Tensor:
        return c.clamp(-1.0, 1.0).asin_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (c,) = ctx.saved_tensors
        return gradient * _slope_of_arcsine(c)


def _slope_of_arcsine(c: Tensor) -> Tensor:
    """Return ``1 / sqrt(1 - c^2)``, and 0 from -1 and 1 on.

    There the slope is infinite, but what it is multiplied with is 0: a correlation of 1 stays 1 whatever the variances
    are, and has its maximum over the inputs where they coincide.
    """
    return torch.threshold(1 - c * c, 0.0, math.inf).rsqrt()


def _correlation(k: Tensor, q1: Tensor, q2: Tensor) -> Tensor:
    """Return the correlation, a few rounding errors too far from zero: what is 1 or -1 but for rounding is beyond it.

    The functions above take that back, where else the angle of coincident inputs would be the root of an error.
    """
    return k * ((1 + _ROUNDING * torch.finfo(k.dtype).eps) * _divisor(q1).rsqrt()) * _divisor(q2).rsqrt()


def _divisor(q: Tensor) -> Tensor:
    """Return a variance to divide by: infinity for 0, as of an input that is zero, where every dividend is 0, too."""
    return torch.threshold(q, torch.finfo(q.dtype).tiny, math.inf)


def _summed(part: Tensor, like: Tensor) -> Tensor:
    """Return the gradient with respect to what was broadcast."""
    return part.sum_to_size(like.shape)
