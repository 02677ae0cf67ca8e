"""How far a guide is from the posterior: its importance ratios give the ELBO and the Pareto k."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from probmix.arviz import pareto_k
from probmix.log_density import LogDensity

__all__ = ["Importance", "elbo", "finite_or_zero_weight", "importance", "log_ratios", "summarise"]

NUM_DRAWS = 1000
_AT_ONCE = 250  # draws in one pass, which bounds its memory
_FINITE = 0.99  # a rare draw at which a matrix cannot be factorised does not condemn a guide


@dataclass(frozen=True)
class Importance:
    """What the importance ratios of a guide say about it.

    Args:
        elbo: evidence lower bound ``E_q[log p(data, z) - log q(z)]``, nats, with its Monte-Carlo standard error.
        pareto_k: shape of the tail of the ratios (`probmix.arviz.pareto_k`); NaN where they are not known.
        num_draws: number of ratios.

    Example:
        >>> Importance((-3.0, 0.1), 0.31, 1000).advice("use NUTS()")
        'Pareto k 0.31: importance weights can correct the guide (limit 0.67)'
        >>> Importance((-9.0, 0.1), 0.93, 1000).advice("use NUTS()")
        'Pareto k 0.93, above 0.67: the guide is too narrow somewhere for importance weights to correct it; use NUTS()'
    """

    elbo: tuple[float, float]
    pareto_k: float
    num_draws: int = NUM_DRAWS

    @property
    def limit(self) -> float:
        """The largest reliable k, ``min(1 - 1 / log10(S), 0.7)`` for ``S`` draws (Vehtari et al. 2024)."""
        return min(1 - 1 / math.log10(max(self.num_draws, 11)), 0.7)

    def advice(self, otherwise: str) -> str:
        """Return a sentence on whether the guide can be trusted, and ``otherwise`` what to do."""
        if math.isnan(self.pareto_k):
            return "Pareto k unknown: the guide's importance ratios are not known, so nothing says how close it is"
        if self.pareto_k <= self.limit:
            return f"Pareto k {self.pareto_k:.2f}: importance weights can correct the guide (limit {self.limit:.2f})"
        return (
            f"Pareto k {self.pareto_k:.2f}, above {self.limit:.2f}: the guide is too narrow somewhere for importance "
            f"weights to correct it; {otherwise}"
        )


def importance(density: LogDensity, guide: Distribution, num: int = NUM_DRAWS) -> Importance:
    """Return ELBO and Pareto k of a guide on the unconstrained vector; uses torch's global generator.

    Args:
        density: the log density, dimension ``dim``.
        guide: a distribution over vectors ``(dim,)``, without batch axes.
        num: draws from it.

    Example:
        >>> from probmix.arguments import Arguments
        >>> import pyro, pyro.distributions as dist
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> density = LogDensity(program, Arguments.of(torch.tensor(2.0)))
        >>> posterior = torch.distributions.MultivariateNormal(torch.ones(1), torch.eye(1) / 2)
        >>> elbo, error = importance(density, posterior).elbo
        >>> log_evidence = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(2.0))
        >>> bool(abs(elbo - log_evidence) < 1e-4)
        True
    """
    return summarise(log_ratios(density, guide, num))


def log_ratios(density: LogDensity, guide: Distribution, num: int = NUM_DRAWS) -> Tensor:
    """Return ``log p(data, z) - log q(z)`` at ``num`` draws from ``q``, shape ``(num, *b)``; -inf where undefined.

    Args:
        density: the log density, dimension ``dim``.
        guide: over vectors ``(dim,)``; its batch axes ``*b`` (restarts) are kept.
        num: draws from each.

    Example:
        >>> from probmix.arguments import Arguments
        >>> import pyro, pyro.distributions as dist
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> density = LogDensity(program, Arguments.of(torch.tensor(2.0)))
        >>> restarts = torch.distributions.MultivariateNormal(torch.zeros(3, 1), torch.eye(1))
        >>> log_ratios(density, restarts, 100).shape
        torch.Size([100, 3])
    """
    z = guide.sample(torch.Size([num]))
    values = torch.cat([density.value(part) for part in z.split(_AT_ONCE)])
    return finite_or_zero_weight(values - guide.log_prob(z))


def finite_or_zero_weight(ratios: Tensor) -> Tensor:
    """Replace what is not a number by -inf, a draw without weight.

    Example:
        >>> finite_or_zero_weight(torch.tensor([1.0, torch.nan]))
        tensor([1., -inf])
    """
    return ratios.nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def summarise(ratios: Tensor) -> Importance:
    """Return ELBO and Pareto k of log importance ratios ``(num,)``.

    The ELBO is -inf with a standard error of NaN where more than one ratio in a hundred is not finite.

    Example:
        >>> summarise(torch.full((1000,), -4.5)).elbo
        (-4.5, 0.0)
    """
    mean, error = elbo(ratios)
    return Importance((float(mean), float(error)), pareto_k(ratios.detach().cpu().numpy()), len(ratios))


def elbo(ratios: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard error over the first axis, ``(num, *b) -> (*b,)``; see `summarise`.

    Example:
        >>> elbo(torch.tensor([[1.0, torch.nan], [3.0, torch.nan]]))
        (tensor([2., -inf]), tensor([1., nan]))
    """
    finite = ratios.isfinite()
    count = finite.sum(0)
    mean = ratios.where(finite, 0).sum(0) / count
    var = (ratios - mean).where(finite, 0).square().sum(0) / (count - 1)
    enough = finite.to(ratios.dtype).mean(0) >= _FINITE
    return mean.where(enough, -torch.inf), (var / count).sqrt().where(enough, torch.nan)
