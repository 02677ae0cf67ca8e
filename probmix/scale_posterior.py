"""The distribution of the common variance of a scale mixture, given data."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from probmix.scale_integral import log_integral, nodes

__all__ = ["ScalePosterior", "harmonic_mean", "scale_posterior"]


class ScalePosterior(dist.TorchDistribution):
    r"""A prior of a variance times the likelihood of normal data with that variance.

    .. math:: p(s \mid y) \propto h(s) \, s^{-m / 2} e^{-q / 2 s}

    Args:
        prior: h.
        count: m.
        quadratic: q, ``(*b,)``.

    Example:
        >>> given = ScalePosterior(dist.InverseGamma(2.0, 2.0), 4.0, torch.tensor(6.0))
        >>> s = torch.tensor(1.5)
        >>> torch.allclose(given.log_prob(s), dist.InverseGamma(4.0, 5.0).log_prob(s))
        True
    """

    arg_constraints = {"quadratic": constraints.nonnegative}  # noqa: RUF012 (torch's own shape)

    def __init__(self, prior: dist.TorchDistribution, count: float, quadratic: Tensor) -> None:
        self.prior, self.count, self.quadratic = prior, count, quadratic
        super().__init__(torch.broadcast_shapes(prior.batch_shape, quadratic.shape), validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint | None:
        """That of the prior."""
        return self.prior.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> ScalePosterior:
        """Return the same distribution with a larger batch."""
        return ScalePosterior(self.prior, self.count, self.quadratic.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, ``(*b,)``."""
        likelihood = -0.5 * self.count * value.log() - 0.5 * self.quadratic / value
        return self.prior.log_prob(value) + likelihood - log_integral(self.prior, self.count, self.quadratic)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        """Return draws: a node of the quadrature, then evenly on the unconstrained scale as far as its neighbours."""
        found, transform = nodes(self.prior, self.count, self.quadratic), biject_to(self.prior.support)
        u = found.unconstrained
        picked = dist.Categorical(logits=found.log_weights).sample(sample_shape)
        step = u[..., 1] - u[..., 0]
        drawn = u.expand(*picked.shape, -1).gather(-1, picked[..., None]).squeeze(-1)
        return transform(drawn + step * (torch.rand_like(drawn) - 0.5))


def scale_posterior(
    prior: dist.TorchDistribution | None, count: float, quadratic: Tensor
) -> dist.TorchDistribution | None:
    """Return the distribution of the variance given data: an inverse gamma stays one; None stays None.

    Args:
        prior: h.
        count: m, the number of normal variables observed.
        quadratic: q, their squared Mahalanobis length at s = 1, ``(*b,)``.

    Example:
        >>> given = scale_posterior(dist.InverseGamma(2.0, 2.0), 4.0, torch.tensor(6.0))
        >>> given.concentration, given.rate
        (tensor(4.), tensor(5.))
    """
    if prior is None:
        return None
    if isinstance(prior, dist.InverseGamma):
        return dist.InverseGamma(prior.concentration + 0.5 * count, prior.rate + 0.5 * quadratic)
    if isinstance(prior, ScalePosterior):
        return ScalePosterior(prior.prior, prior.count + count, prior.quadratic + quadratic)
    return ScalePosterior(prior, count, quadratic)


def harmonic_mean(prior: dist.TorchDistribution, count: float, quadratic: Tensor) -> Tensor:
    """Return ``1 / E[1 / s | data]``, ``(*b,)``: the one value of s that the E-step of EM needs.

    Example:
        >>> harmonic_mean(dist.InverseGamma(2.0, 2.0), 4.0, torch.tensor(6.0))
        tensor(1.2500)
    """
    if isinstance(prior, dist.InverseGamma):
        return (prior.rate + 0.5 * quadratic) / (prior.concentration + 0.5 * count)
    found = nodes(prior, count, quadratic)
    return 1 / (found.log_weights.exp() / found.var).sum(-1)
