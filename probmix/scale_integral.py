"""Integrals over the common variance of a scale mixture: one dimension, whatever its prior, at one factorisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to

from probmix.arviz import pareto_k
from probmix.errors import ProgramError

__all__ = ["ScaleNodes", "ScaleSamples", "check_scale_prior", "importance_sample", "log_integral", "nodes"]

_REACH = {torch.float64: 90.0, torch.float32: 40.0}  # of the first look at log s: from 1e-39 to 1e39
_LOOKS, _POINTS = 4, 128  # each look narrows the range to a sixty-fourth, at most
_NODES = 256
_NATS = {torch.float64: 46.0, torch.float32: 24.0}  # below the top: what lies outside is less than a rounding error


class ScaleNodes(NamedTuple):
    r"""A distribution of the variance s by points: the posterior, up to the error of the quadrature.

    Args:
        unconstrained: u, the nodes, evenly spaced, where the prior's support has no bounds, ``(*b, J)``.
        var: s at the nodes, ``(*b, J)``.
        log_weights: normalised, ``(*b, J)``.
        log_integral: :math:`\log \int h(s) s^{-m / 2} e^{-q / 2 s} ds`, ``(*b,)``.

    Example:
        >>> found = nodes(dist.InverseGamma(2.0, 2.0), torch.tensor(6.0), torch.tensor(10.0))
        >>> mean = (found.var * found.log_weights.exp()).sum(-1)  # of an inverse gamma: (2 + 10 / 2) / (2 + 6 / 2 - 1)
        >>> round(float(mean), 4)
        1.75
    """

    unconstrained: Tensor
    var: Tensor
    log_weights: Tensor
    log_integral: Tensor


class ScaleSamples(NamedTuple):
    """The integral by draws from the prior, as a check, and how far to trust it.

    Args:
        log_integral: the estimate, ``()``.
        ess: effective number of draws, ``1 / sum of squared weights``.
        pareto_k: shape of the tail of the weights; above 0.7 the estimate cannot be trusted.

    Example:
        >>> found = importance_sample(dist.LogNormal(0.0, 1.0), 500.0, torch.tensor(9000.0), seed=0)
        >>> found.ess < 3, found.pareto_k > 0.7
        (True, True)
    """

    log_integral: Tensor
    ess: float
    pareto_k: float


def check_scale_prior(prior: object, what: str = "scale_prior") -> None:
    """Raise unless a prior is one of a positive number.

    Raises:
        ProgramError: it names what came and what to pass.

    Example:
        >>> check_scale_prior(dist.InverseGamma(2.0, 2.0))
        >>> check_scale_prior(dist.Normal(0.0, 1.0))
        Traceback (most recent call last):
            ...
        probmix.errors.ProgramError: scale_prior: expected a distribution of a positive number, got Normal on Real(). \
Pass e.g. pyro.distributions.InverseGamma(2.0, 2.0), LogNormal, HalfCauchy, Pareto, or probmix.burr.BurrXII.
    """
    support = _support(prior)
    lower = getattr(support, "lower_bound", None)
    if support is None or support.is_discrete or lower is None or not bool((torch.as_tensor(lower) >= 0).all()):
        raise ProgramError(
            f"{what}: expected a distribution of a positive number, got {type(prior).__name__} on {support}. Pass e.g. "
            "pyro.distributions.InverseGamma(2.0, 2.0), LogNormal, HalfCauchy, Pareto, or probmix.burr.BurrXII."
        )


def log_integral(prior: dist.TorchDistribution, count: Tensor | float, quadratic: Tensor) -> Tensor:
    r"""Return what integrating a common variance out leaves of a normal log density, ``(*b,)``.

    .. math:: \log \int_0^\infty h(s) \, s^{-m / 2} \, e^{-q / 2 s} \, ds

    In closed form for an inverse gamma prior, else by `nodes`.

    Args:
        prior: h, batch shape broadcasting to ``*b``.
        count: m, the number of normal variables.
        quadratic: q, their squared Mahalanobis length at s = 1, ``(*b,)``.

    Example:
        >>> q = torch.tensor(10.0)
        >>> prior = dist.InverseGamma(2.0, 2.0)  # 2 log 2 + lgamma(5) - lgamma(2) - 5 log(2 + 5)
        >>> torch.allclose(log_integral(prior, 6.0, q), nodes(prior, 6.0, q).log_integral)
        True
    """
    if isinstance(prior, dist.InverseGamma):
        a, b = prior.concentration, prior.rate
        half = 0.5 * torch.as_tensor(count, dtype=quadratic.dtype, device=quadratic.device)
        return _log_rising(a, half) + half * (a / b).log() - (a + half) * (0.5 * quadratic / b).log1p()
    return nodes(prior, count, quadratic).log_integral


def nodes(prior: dist.TorchDistribution, count: Tensor | float, quadratic: Tensor) -> ScaleNodes:
    r"""Return the posterior of the variance at 256 nodes, and the integral over it.

    The trapezoid rule on the unconstrained scale (:math:`\log s`, or what the prior's support asks for), where the
    integrand is smooth and falls off at both ends, so that the error falls exponentially with the number of nodes
    (Trefethen and Weideman 2014). Its range is found by four looks at 128 points, each at what rose above a rounding
    error in the one before: from there on the rule is the same for one observation and for a million. No gradient flows
    through the place of the nodes, only through the integrand.

    Args:
        prior: h, batch shape broadcasting to ``*b``; its density smooth inside its support.
        count: m.
        quadratic: q, ``(*b,)``.

    Example:
        >>> found = nodes(dist.HalfCauchy(1.0), 50.0, torch.tensor([40.0, 400.0]))
        >>> found.var.shape, found.log_weights.exp().sum(-1)
        (torch.Size([2, 256]), tensor([1.0000, 1.0000]))
    """
    transform = biject_to(prior.support)
    like = quadratic.expand(torch.broadcast_shapes(quadratic.shape, prior.batch_shape))
    wide = prior.expand(like.shape) if prior.batch_shape else prior
    m, q = torch.as_tensor(count, dtype=like.dtype, device=like.device), quadratic

    def integrand(u: Tensor) -> Tensor:
        """Take ``(J, *b)``."""
        s = transform(u)
        return wide.log_prob(s) + transform.log_abs_det_jacobian(u, s) - 0.5 * m * s.log() - 0.5 * q / s

    reach = _REACH.get(like.dtype, 40.0)
    lower, upper = torch.full_like(like, -reach), torch.full_like(like, reach)
    with torch.no_grad():
        for _ in range(_LOOKS):
            lower, upper = _narrowed(integrand, lower, upper)
    u, step = _grid(lower, upper, _NODES)
    terms = integrand(u)
    total = terms.logsumexp(0)
    u, s, log_weights = (value.movedim(0, -1) for value in (u, transform(u), terms - total))
    return ScaleNodes(u, s, log_weights, total + step.log())


def importance_sample(
    prior: dist.TorchDistribution, count: float, quadratic: Tensor, num: int = 1000, *, seed: int
) -> ScaleSamples:
    """Estimate the integral by draws from the prior: the check of `log_integral`, not its rival.

    The weights' curvature grows with the number of observations, so that of a thousand draws few count.

    Args:
        prior: h, without batch.
        count: m.
        quadratic: q, ``()``.
        num: number of draws.
        seed: the draws depend on nothing else; the caller's random state is left alone.

    Source:
        Lee, Yun, Yang and Lee (2022), Scale mixtures of neural network Gaussian processes (the estimator); Vehtari,
        Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling (the diagnostic).

    Example:
        >>> found = importance_sample(dist.InverseGamma(2.0, 2.0), 2.0, torch.tensor(3.0), 4000, seed=0)
        >>> exact = log_integral(dist.InverseGamma(2.0, 2.0), 2.0, torch.tensor(3.0))
        >>> bool(abs(found.log_integral - exact) < 0.05), found.pareto_k < 0.7
        (True, True)
    """
    with torch.random.fork_rng(devices=[quadratic.device] if quadratic.is_cuda else []):
        torch.manual_seed(seed)
        s = prior.sample(torch.Size([num]))
    log_weights = -0.5 * count * s.log() - 0.5 * quadratic / s
    total = log_weights.logsumexp(0)
    ess = float((2 * total - (2 * log_weights).logsumexp(0)).exp())
    return ScaleSamples(total - math.log(num), ess, pareto_k(log_weights.detach().cpu().numpy()))


def _support(prior: object) -> Any:
    """Return the support of a distribution of one number; None: it is none, or does not say."""
    if not isinstance(prior, Distribution) or prior.event_shape:
        return None
    try:
        return prior.support
    except NotImplementedError:
        return None


def _log_rising(a: Tensor, h: Tensor) -> Tensor:
    r"""Return :math:`\log \Gamma(a + h) - \log \Gamma(a) - h \log a`, by Stirling's series where they would cancel."""
    large = a > 32  # three terms: 2e-14 off
    b = torch.where(large, a, 32.0)
    stirling = (b + h - 0.5) * (h / b).log1p() - h + _stirling(b + h) - _stirling(b)
    return torch.where(large, stirling, (a + h).lgamma() - a.lgamma() - h * a.log())


def _stirling(x: Tensor) -> Tensor:
    """Return what Stirling's formula leaves of the log gamma function."""
    return (1 / 12 - (1 / 360 - 1 / 1260 / x.square()) / x.square()) / x


def _grid(lower: Tensor, upper: Tensor, points: int) -> tuple[Tensor, Tensor]:
    step = (upper - lower) / (points - 1)
    index = torch.arange(points, dtype=lower.dtype, device=lower.device).reshape(-1, *[1] * lower.dim())
    return lower + index * step, step


def _narrowed(integrand: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return the range of those points that rise above rounding, and one point more at each end."""
    u, step = _grid(lower, upper, _POINTS)
    values = integrand(u).nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    counts = values >= values.amax(0) - _NATS.get(u.dtype, 24.0)
    first = torch.where(counts, u, torch.inf).amin(0) - step
    last = torch.where(counts, u, -torch.inf).amax(0) + step
    return torch.maximum(first, lower), torch.minimum(last, upper)
