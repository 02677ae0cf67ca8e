"""Where the weights of a mixture come from: conjugate distributions on the simplex."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, kl_divergence

__all__ = ["AbstractWeightPrior", "DirichletWeights", "StickBreakingWeights", "TruncatedStickBreaking"]


class AbstractWeightPrior(ABC):
    """A distribution of the weights, before the data or after; fields have any leading batch ``*b``."""

    exchangeable: ClassVar[bool]  # whether the prior treats all components alike

    @abstractmethod
    def distribution(self) -> dist.TorchDistribution:
        """Return it as a distribution on the simplex."""

    @abstractmethod
    def posterior(self, count: Tensor) -> Self:
        """Condition on (expected) counts of rows by component, ``(*b, K)``."""

    @abstractmethod
    def mode(self) -> Tensor:
        """Weights of greatest density, ``(*b, K)``; on the edge of the simplex where the density has no mode."""

    @abstractmethod
    def mean(self) -> Tensor:
        """Mean weights, ``(*b, K)``."""

    @abstractmethod
    def expected_log(self) -> Tensor:
        """Mean of the log weights, ``(*b, K)``."""

    @abstractmethod
    def divergence(self, prior: Self) -> Tensor:
        """``KL(self || prior)``, ``(*b,)``."""

    @abstractmethod
    def log_prob(self, weights: Tensor) -> Tensor:
        """Log density of weights that sum to one up to rounding, ``(*b,)``."""

    @abstractmethod
    def log_marginal(self, count: Tensor) -> Tensor:
        """Log probability of one sequence of assignments with these counts, ``(*b,)``."""

    def sample(self) -> Tensor:
        """Draw the weights once, by torch's global random state."""
        return self.distribution().sample()


@dataclass(frozen=True, eq=False)
class DirichletWeights(AbstractWeightPrior):
    r"""Dirichlet distribution, :math:`p(w) \propto \prod_k w_k^{\alpha_k - 1}`.

    Attributes:
        concentration: :math:`\alpha > 0`, ``(*b, K)``.

    Example:
        >>> DirichletWeights(torch.tensor([1.0, 1.0])).posterior(torch.tensor([3.0, 1.0])).mode()
        tensor([0.7500, 0.2500])
    """

    concentration: Tensor

    exchangeable: ClassVar[bool] = True

    def distribution(self) -> dist.TorchDistribution:
        """Dirichlet."""
        return dist.Dirichlet(self.concentration, validate_args=False)

    def posterior(self, count: Tensor) -> DirichletWeights:
        """Add the counts."""
        return DirichletWeights(self.concentration + count)

    def mode(self) -> Tensor:
        """Proportional to the concentration less 1, or 0 where that is negative; the mean if all are 0."""
        excess = (self.concentration - 1).clamp_min(0)
        total = excess.sum(-1, keepdim=True)
        return torch.where(total > 0, excess / total, self.mean())

    def mean(self) -> Tensor:
        """Proportional to the concentration."""
        return self.concentration / self.concentration.sum(-1, keepdim=True)

    def expected_log(self) -> Tensor:
        """Difference of digammas."""
        return self.concentration.digamma() - self.concentration.sum(-1, keepdim=True).digamma()

    def divergence(self, prior: DirichletWeights) -> Tensor:
        """Between two Dirichlets."""
        return kl_divergence(self.distribution(), prior.distribution())

    def log_prob(self, weights: Tensor) -> Tensor:
        """Normalised first, so that rounding in the sum costs nothing."""
        log_normaliser = self.concentration.sum(-1).lgamma() - self.concentration.lgamma().sum(-1)
        return log_normaliser + torch.xlogy(self.concentration - 1, weights / weights.sum(-1, keepdim=True)).sum(-1)

    def log_marginal(self, count: Tensor) -> Tensor:
        """Ratio of two multivariate beta functions (Polya's urn)."""
        after = self.concentration + count
        gained = after.lgamma().sum(-1) - self.concentration.lgamma().sum(-1)
        return gained + self.concentration.sum(-1).lgamma() - after.sum(-1).lgamma()


@dataclass(frozen=True, eq=False)
class StickBreakingWeights(AbstractWeightPrior):
    r"""Stick-breaking cut off at K components.

    .. math:: v_k \sim \mathrm{Beta}(a_k, b_k), \qquad w_k = v_k \prod_{j<k} (1 - v_j)

    With a = 1 and b the concentration it is the Dirichlet process cut off at K (the last stick is what is left over).
    The components are not exchangeable: the first ones are expected to be the largest.

    Attributes:
        first: :math:`a > 0`, ``(*b, K - 1)``.
        second: :math:`b > 0`, ``(*b, K - 1)``.

    Source:
        Blei and Jordan (2006), Variational inference for Dirichlet process mixtures, Bayesian Analysis 1, 121-143;
        Connor and Mosimann (1969) for the density of the weights.

    Example:
        >>> StickBreakingWeights(torch.ones(1), torch.ones(1)).mean()
        tensor([0.5000, 0.5000])
    """

    first: Tensor
    second: Tensor

    exchangeable: ClassVar[bool] = False

    def distribution(self) -> dist.TorchDistribution:
        """Generalised Dirichlet."""
        return TruncatedStickBreaking(self.first, self.second, validate_args=False)

    def posterior(self, count: Tensor) -> StickBreakingWeights:
        """A stick gains its own count and, against it, all later ones."""
        later = count.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return StickBreakingWeights(self.first + count[..., :-1], self.second + later)

    def mode(self) -> Tensor:
        """Mode of the density of the weights, which is not where the density of the sticks has its mode."""
        first, second = self._density_exponents()
        first, second = first.clamp_min(0), second.clamp_min(0)
        total = first + second
        return _broken(torch.where(total > 0, first / total, 0.5))

    def _density_exponents(self) -> tuple[Tensor, Tensor]:
        r"""Exponents of :math:`v_k` and :math:`1 - v_k` in the density of the weights.

        The map from sticks to weights has the Jacobian :math:`\prod_k \prod_{j<k} (1 - v_j)`.
        """
        sticks = self.first.shape[-1]
        later = torch.arange(sticks - 1, -1, -1, dtype=self.first.dtype, device=self.first.device)
        return self.first - 1, self.second - 1 - later

    def mean(self) -> Tensor:
        """The sticks are independent, so the mean weights are the mean sticks broken."""
        return _broken(self.first / (self.first + self.second))

    def expected_log(self) -> Tensor:
        """Sum of the expected logs of the parts."""
        total = (self.first + self.second).digamma()
        return _log_broken(self.first.digamma() - total, self.second.digamma() - total)

    def divergence(self, prior: StickBreakingWeights) -> Tensor:
        """Sum over the sticks."""
        return kl_divergence(self._sticks(), prior._sticks()).sum(-1)

    def _sticks(self) -> torch.distributions.Beta:
        return torch.distributions.Beta(self.first, self.second, validate_args=False)

    def log_prob(self, weights: Tensor) -> Tensor:
        """Density of the weights, not of the sticks."""
        return self.distribution().log_prob(weights / weights.sum(-1, keepdim=True))

    def log_marginal(self, count: Tensor) -> Tensor:
        """Ratio of beta functions of each stick."""
        after = self.posterior(count)
        return (_log_beta(after.first, after.second) - _log_beta(self.first, self.second)).sum(-1)


class TruncatedStickBreaking(dist.TorchDistribution):
    r"""Weights of a stick broken K - 1 times: the generalised Dirichlet distribution.

    .. math:: p(w) = \prod_{k<K} \frac{w_k^{a_k - 1} r_k^{\,b_k - a_{k+1} - b_{k+1}}}{B(a_k, b_k)}, \qquad
              r_k = 1 - \sum_{j \le k} w_j, \quad a_K = 1, \; b_K = 0

    Args:
        first: :math:`a`, ``(*b, K - 1)``.
        second: :math:`b`, ``(*b, K - 1)``.
        validate_args: check the arguments and values; None leaves it to torch's global setting.

    Source:
        Connor and Mosimann (1969), Concepts of independence for proportions with a generalization of the Dirichlet
        distribution, Journal of the American Statistical Association 64, 194-206.

    Example:
        >>> TruncatedStickBreaking(torch.ones(2), torch.tensor([2.0, 1.0])).log_prob(torch.tensor([0.5, 0.25, 0.25]))
        tensor(0.6931)
    """

    arg_constraints = {  # noqa: RUF012 - torch's API
        "first": constraints.independent(constraints.positive, 1),
        "second": constraints.independent(constraints.positive, 1),
    }
    support = constraints.simplex
    has_rsample = True

    def __init__(self, first: Tensor, second: Tensor, validate_args: bool | None = None) -> None:
        self.first, self.second = torch.broadcast_tensors(first, second)
        event_shape = torch.Size([self.first.shape[-1] + 1])
        super().__init__(self.first.shape[:-1], event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TruncatedStickBreaking:
        """Return the same distribution with a larger batch shape."""
        new = self._get_checked_instance(TruncatedStickBreaking, _instance)
        sticks = self.first.shape[-1:]
        new.first = self.first.expand(torch.Size(batch_shape) + sticks)
        new.second = self.second.expand(torch.Size(batch_shape) + sticks)
        super(TruncatedStickBreaking, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """Mean sticks broken."""
        return _broken(self.first / (self.first + self.second))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw the sticks and break them, ``(*sample_shape, *b, K)``."""
        sticks = torch.distributions.Beta(self.first, self.second, validate_args=False)
        return _broken(sticks.rsample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with respect to the first K - 1 weights, ``(*b,)``."""
        if self._validate_args:
            self._validate_sample(value)
        left = value.flip(-1).cumsum(-1).flip(-1)[..., 1:]  # what is left after each break
        exponent = torch.cat([self.second[..., :-1] - self.first[..., 1:] - self.second[..., 1:],
                              self.second[..., -1:] - 1], -1)  # fmt: skip
        kernel = torch.xlogy(self.first - 1, value[..., :-1]) + torch.xlogy(exponent, left)
        return (kernel - _log_beta(self.first, self.second)).sum(-1)


def _log_beta(first: Tensor, second: Tensor) -> Tensor:
    return first.lgamma() + second.lgamma() - (first + second).lgamma()


def _broken(sticks: Tensor) -> Tensor:
    """Weights from the share that each break takes of what is left, ``(*b, K - 1) -> (*b, K)``."""
    left = (1 - sticks).cumprod(-1)
    one = torch.ones_like(left[..., :1]) if left.shape[-1] else left.new_ones(*left.shape[:-1], 1)
    return torch.cat([sticks, one], -1) * torch.cat([one, left], -1)


def _log_broken(log_taken: Tensor, log_left: Tensor) -> Tensor:
    zero = log_taken.new_zeros(*log_taken.shape[:-1], 1)
    return torch.cat([log_taken, zero], -1) + torch.cat([zero, log_left.cumsum(-1)], -1)
