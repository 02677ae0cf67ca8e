"""What is observed given normal function values: GPyTorch's likelihoods with the function integrated out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from gpytorch.likelihoods import BernoulliLikelihood, LaplaceLikelihood, Likelihood, StudentTLikelihood
from gpytorch.likelihoods.gaussian_likelihood import _GaussianLikelihoodBase
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["LeadingMixture", "observation"]

_NODES = 20  # of Gauss-Hermite quadrature


def observation(likelihood: Likelihood, loc: Tensor, var: Tensor, *, averaged: int = 0) -> TorchDistribution:
    r"""Return the distribution :math:`p(y) = \int p(y \mid f) N(f \mid m, v) df` of each observation.

    In closed form for Gaussian noise, and for the probit of a ``BernoulliLikelihood``, :math:`\Phi(m / \sqrt{1 + v})`.
    Student-t and Laplace noise are scale mixtures of normals, so that the integral over f is a closed form and that
    over the scale, which is smooth, a sum (Andrews and Mallows 1974). Else by Gauss-Hermite quadrature over f with 20
    nodes, good where the likelihood is not much narrower than f is uncertain.

    Args:
        likelihood: of one observation given one function value.
        loc: m, ``(*b, n)``.
        var: v, ``(*b, n)``.
        averaged: over so many leading axes (draws of a posterior) the mean is taken; not with Gaussian noise.

    Example:
        >>> observation(BernoulliLikelihood(), torch.tensor([0.0, 3.0]), torch.tensor([1.0, 8.0])).mean
        tensor([0.5000, 0.8413])
    """
    if isinstance(likelihood, _GaussianLikelihoodBase):
        return dist.Normal(loc, (var + likelihood(loc).variance).sqrt(), validate_args=False)
    if isinstance(likelihood, BernoulliLikelihood):
        margin = loc / (1 + var).sqrt()
        if averaged:
            return dist.Bernoulli(torch.special.ndtr(margin).flatten(0, averaged - 1).mean(0), validate_args=False)
        return dist.Bernoulli(logits=_log_odds(margin), validate_args=False)
    if isinstance(likelihood, StudentTLikelihood | LaplaceLikelihood):
        noise_var, log_weights = _scale_mixture(likelihood, loc)
        components: Any = dist.Normal(loc, (var + noise_var).sqrt(), validate_args=False)
    else:
        nodes, weights = (torch.as_tensor(part).to(loc) for part in np.polynomial.hermite_e.hermegauss(_NODES))
        log_weights = weights.log().reshape(-1, *[1] * loc.dim())
        components = likelihood(loc + var.sqrt() * nodes.reshape(log_weights.shape))
    return LeadingMixture(components, log_weights - log_weights.logsumexp(0), axes=1 + averaged)


def _log_odds(margin: Tensor) -> Tensor:
    """Return ``log Phi(a) - log Phi(-a)``, which is odd, without cancellation however large ``a`` is."""
    right = margin >= 0
    t = torch.where(right, margin, -margin) / math.sqrt(2)  # not abs, whose slope at 0 is 0
    size = (-torch.erfc(t) / 2).log1p() - (torch.special.erfcx(t) / 2).log() + t.square()
    return torch.where(right, size, -size)


def _scale_mixture(likelihood: Any, loc: Tensor) -> tuple[Tensor, Tensor]:
    """Return noise variances and log weights: ``noise / u``, ``u ~ Gamma(df/2, df/2)``, or ``2 noise e``, ``e ~ Exp``.

    By the trapezoidal rule in ``log u`` or ``log e``, with steps of about one standard deviation. The density has a
    relative error of 2e-4 for a Student-t, of 1e-3 for Laplace noise within some ten scales of the function.
    """
    laplace = isinstance(likelihood, LaplaceLikelihood)
    steps = torch.arange(14 if laplace else 5, -35, -1, dtype=loc.dtype, device=loc.device)
    steps = steps.reshape(-1, *[1] * loc.dim())
    if laplace:
        log_e = steps / 2
        return 2 * likelihood.noise * log_e.exp(), log_e - log_e.exp()
    half = likelihood.deg_free / 2
    log_u = steps * (half + 0.5).rsqrt()
    return likelihood.noise * (-log_u).exp(), half * (log_u - log_u.exp())


class LeadingMixture(TorchDistribution):
    """A mixture over the first axes of a batch of distributions; a ``MixtureSameFamily`` is one over the last.

    Args:
        components: batch shape ``(*k, *b)``.
        log_weights: up to a constant, broadcast against that shape.
        axes: number of the axes ``*k``.

    Example:
        >>> mixture = LeadingMixture(dist.Poisson(torch.tensor([[1.0], [3.0]])), torch.zeros(2, 1), axes=1)
        >>> mixture.mean, mixture.variance, mixture.log_prob(torch.tensor([0.0])).exp()
        (tensor([2.]), tensor([3.]), tensor([0.2088]))
    """

    arg_constraints = {}  # noqa: RUF012 - torch's API

    def __init__(self, components: Any, log_weights: Tensor, axes: int) -> None:
        self.components, self._axes = components, tuple(range(axes))
        shape = components.batch_shape
        full = log_weights.expand(*shape[:axes], *log_weights.shape[axes:])
        self.log_weights = full - full.logsumexp(self._axes, keepdim=True)
        super().__init__(shape[axes:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """That of the components."""
        return self.components.support

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each entry."""
        return (self.components.log_prob(value) + self.log_weights).logsumexp(self._axes)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values, ``(*sample_shape, *b)``."""
        shape = torch.Size(sample_shape)
        logits = self.log_weights.expand(self.components.batch_shape).flatten(0, len(self._axes) - 1).movedim(0, -1)
        which = dist.Categorical(logits=logits).sample((shape.numel(),))
        drawn = [self.components.sample().flatten(0, len(self._axes) - 1).gather(0, row[None])[0] for row in which]
        return torch.stack(drawn).reshape(*shape, *self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """Weighted mean of the components' means."""
        return (self.log_weights.exp() * self.components.mean).sum(self._axes)

    @property
    def variance(self) -> Tensor:
        """Mean of the components' variances, and variance of their means."""
        spread = self.components.variance + (self.components.mean - self.mean).square()
        return (self.log_weights.exp() * spread).sum(self._axes)
