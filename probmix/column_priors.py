"""Conjugate priors, and posteriors, of rates and probabilities: one for each column of each component."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Self

import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.simplex_rows import DirichletRows

__all__ = ["AbstractColumnPrior", "BetaPrior", "DirichletPrior", "GammaPrior"]


@dataclass(frozen=True, eq=False)
class AbstractColumnPrior(ABC):
    """Independent conjugate distributions of the columns; its fields broadcast to ``(*b, K, D)``.

    Fields without a component axis are shared by all components; numbers become tensors.
    """

    def __post_init__(self) -> None:
        given = [getattr(self, field.name) for field in fields(self)]
        like = next((value for value in given if isinstance(value, Tensor)), torch.zeros(()))
        for field, value in zip(fields(self), given, strict=True):
            object.__setattr__(self, field.name, value if isinstance(value, Tensor) else like.new_tensor(value))

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The fields, broadcast against each other."""
        return tuple(torch.broadcast_tensors(*(getattr(self, field.name) for field in fields(self))))

    def to(self, like: Tensor) -> Self:
        """Return a copy with the dtype and device of ``like``."""
        values = {field.name: getattr(self, field.name).to(like) for field in fields(self)}
        return type(self)(**values)

    def of_rows(self) -> Self:
        """Return a copy with an axis of length 1 for rows before that of the components, ``(*b, 1, K, D)``."""
        return type(self)(*(value[..., None, :, :] for value in self.parameters))

    @abstractmethod
    def distribution(self) -> dist.TorchDistribution:
        """Distribution of the site; its event has the columns."""

    @abstractmethod
    def mode(self) -> Tensor:
        """Value of greatest density; on the edge of the support where the density has no mode."""

    @abstractmethod
    def mean(self) -> Tensor:
        """Mean of the site."""

    @abstractmethod
    def log_normaliser(self) -> Tensor:
        """Log of what the density is divided by to integrate to one, column by column, ``(*b, K, D)``."""

    @abstractmethod
    def divergence(self, prior: Self) -> Tensor:
        """``KL(self || prior)``, column by column, ``(*b, K, D)``."""


@dataclass(frozen=True, eq=False)
class GammaPrior(AbstractColumnPrior):
    r"""Gamma distribution of rates, :math:`p(\lambda) \propto \lambda^{a-1} e^{-b\lambda}`.

    Attributes:
        concentration: :math:`a > 0`, ``(*b, K, D)``.
        rate: :math:`b > 0`, in one over the unit of the rates, ``(*b, K, D)``.

    Example:
        >>> GammaPrior(2.0, torch.tensor([0.5])).mean()
        tensor([4.])
    """

    concentration: Tensor
    rate: Tensor

    def distribution(self) -> dist.TorchDistribution:
        """Gamma."""
        concentration, rate = self.parameters
        return dist.Gamma(concentration, rate, validate_args=False).to_event(1)

    def mode(self) -> Tensor:
        """0 where the concentration is 1 or less."""
        return (self.concentration - 1).clamp_min(0) / self.rate

    def mean(self) -> Tensor:
        """Concentration over rate."""
        return self.concentration / self.rate

    def expected_log(self) -> Tensor:
        """Mean of the log rate."""
        return self.concentration.digamma() - self.rate.log()

    def log_normaliser(self) -> Tensor:
        """Of the gamma function and the power of the rate."""
        return self.concentration.lgamma() - self.concentration * self.rate.log()

    def divergence(self, prior: GammaPrior) -> Tensor:
        """Difference of the log normalisers plus the expected difference of the exponents."""
        exponent = (self.concentration - prior.concentration) * self.expected_log()
        slope = (prior.rate - self.rate) * self.mean()
        return prior.log_normaliser() - self.log_normaliser() + exponent + slope


@dataclass(frozen=True, eq=False)
class BetaPrior(AbstractColumnPrior):
    r"""Beta distribution of probabilities, :math:`p(\theta) \propto \theta^{a-1} (1 - \theta)^{b-1}`.

    Attributes:
        concentration1: :math:`a > 0`, what ones are worth, ``(*b, K, D)``.
        concentration0: :math:`b > 0`, what zeros are worth, ``(*b, K, D)``.

    Example:
        >>> BetaPrior(torch.tensor([3.0]), 1.0).mean()
        tensor([0.7500])
    """

    concentration1: Tensor
    concentration0: Tensor

    def distribution(self) -> dist.TorchDistribution:
        """Beta."""
        ones, zeros = self.parameters
        return dist.Beta(ones, zeros, validate_args=False).to_event(1)

    def mode(self) -> Tensor:
        """The mean where neither concentration is above 1."""
        return _mode(self._pair())[..., 0]

    def mean(self) -> Tensor:
        """Share of ``concentration1``."""
        return self.concentration1 / (self.concentration1 + self.concentration0)

    def expected_log(self) -> tuple[Tensor, Tensor]:
        """Means of the logs of the probability of a one and of a zero."""
        first, second = _expected_log(self._pair()).unbind(-1)
        return first, second

    def log_normaliser(self) -> Tensor:
        """Log beta function."""
        return _log_beta(self._pair())

    def divergence(self, prior: BetaPrior) -> Tensor:
        """Of two Dirichlets with two levels."""
        return _divergence(self._pair(), prior._pair())

    def _pair(self) -> Tensor:
        return torch.stack(self.parameters, -1)


@dataclass(frozen=True, eq=False)
class DirichletPrior(AbstractColumnPrior):
    r"""Dirichlet distribution of the probabilities of the levels of each column.

    Attributes:
        concentration: :math:`\alpha > 0`, and 0 for levels that a column does not have, ``(*b, K, D, C)``.
        num_levels: levels of each column, the first ones; ``()``: all C.

    Example:
        >>> DirichletPrior(torch.tensor([[1.0, 3.0, 0.0], [1.0, 1.0, 2.0]]), (2, 3)).mean()
        tensor([[0.2500, 0.7500, 0.0000],
                [0.2500, 0.2500, 0.5000]])
    """

    concentration: Tensor
    num_levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        columns, levels = self.concentration.shape[-2:]
        object.__setattr__(self, "num_levels", self.num_levels or (levels,) * columns)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The concentration."""
        return (self.concentration,)

    def to(self, like: Tensor) -> DirichletPrior:
        """Return a copy with the dtype and device of ``like``."""
        return DirichletPrior(self.concentration.to(like), self.num_levels)

    def of_rows(self) -> DirichletPrior:
        """Return a copy with an axis of length 1 for rows before that of the components, ``(*b, 1, K, D, C)``."""
        return DirichletPrior(self.concentration[..., None, :, :, :], self.num_levels)

    def distribution(self) -> dist.TorchDistribution:
        """Dirichlet in each column."""
        return DirichletRows(self.concentration, self.num_levels, validate_args=False)

    def mode(self) -> Tensor:
        """Proportional to the concentration less 1, or 0 where that is negative; the mean if all are 0."""
        return _mode(self.concentration)

    def mean(self) -> Tensor:
        """Proportional to the concentration."""
        return self.concentration / self.concentration.sum(-1, keepdim=True)

    def expected_log(self) -> Tensor:
        """Mean of the log probability of each level; -inf for levels that a column does not have."""
        return _expected_log(self.concentration)

    def log_normaliser(self) -> Tensor:
        """Log multivariate beta function."""
        return _log_beta(self.concentration)

    def divergence(self, prior: DirichletPrior) -> Tensor:
        """Between two Dirichlets."""
        return _divergence(self.concentration, prior.concentration)


def _filled(concentration: Tensor) -> Tensor:
    """Concentrations with 1 for levels that do not exist, where lgamma and digamma would not be finite."""
    return torch.where(concentration > 0, concentration, 1.0)


def _mode(concentration: Tensor) -> Tensor:
    excess = (concentration - 1).clamp_min(0)
    total = excess.sum(-1, keepdim=True)
    return torch.where(total > 0, excess / total, concentration / concentration.sum(-1, keepdim=True))


def _expected_log(concentration: Tensor) -> Tensor:
    log_share = _filled(concentration).digamma() - concentration.sum(-1, keepdim=True).digamma()
    return torch.where(concentration > 0, log_share, -torch.inf)


def _log_beta(concentration: Tensor) -> Tensor:
    return _filled(concentration).lgamma().sum(-1) - concentration.sum(-1).lgamma()


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    weighted = torch.where(first > 0, (first - second) * _expected_log(first), 0.0).sum(-1)
    return _log_beta(second) - _log_beta(first) + weighted
