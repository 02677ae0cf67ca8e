"""Quantiles of predictive distributions: Student-t, and mixtures of it or of normals, for which torch has none."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily, Normal, StudentT

from probmix.errors import DataError
from probmix.scale_integral import nodes

__all__ = ["quantile"]

_ITERATIONS = 200  # Newton's steps need ten; halving alone, from the widest bracket, a hundred
_AT_ONCE = 2**22  # numbers in the largest tensor
_THINNED_FROM = (3.0, 10.0, 40.0)  # degrees of freedom from which every other, fourth, eighth node will do
_EPS = {torch.float64: 1e-12, torch.float32: 1e-6}  # relative to the spread at hand


def quantile(law: Distribution, q: float | Sequence[float] | Tensor) -> Tensor:
    r"""Return the value below which a share q of each distribution lies, ``(*q.shape, *batch_shape)``.

    .. math:: F\big(\mathrm{quantile}(q)\big) = q

    A band of 90 % is ``low, high = quantile(process.predictive(x), [0.05, 0.95])``. A Student-t is dealt with as the
    scale mixture of normals that it is; from one degree of freedom on its error in float64 is below 1e-8 of the tail
    probability (with half a degree, 1e-4 at one in a million). The quantile of a mixture lies between those of its
    components; from there on by Newton's method, kept inside what is known to bracket it. No gradient flows through it.

    Args:
        law: of one number: normal, Student-t, a mixture of these or of such mixtures
            (`torch.distributions.MixtureSameFamily`), or any other with an ``icdf`` of its own.
        q: strictly between 0 and 1; one or several.

    Raises:
        DataError: q is out of range, or the distribution is another or of vectors.

    Example:
        >>> law = dist.StudentT(4.0, torch.tensor([0.0, 10.0]), 2.0)
        >>> quantile(law, [0.5, 0.975])
        tensor([[ 0.0000, 10.0000],
                [ 5.5529, 15.5529]])
    """
    like = law.mean
    levels = torch.as_tensor(q, dtype=like.dtype, device=like.device)
    if law.event_shape:
        raise DataError(
            f"expected distributions of one number, got events of shape {tuple(law.event_shape)}. "
            "Use the marginal ones, such as process.predictive(x)."
        )
    if not bool(((levels > 0) & (levels < 1)).all()):
        raise DataError(f"q: expected numbers strictly between 0 and 1, got {q}. The median is 0.5.")
    with torch.no_grad():
        return _quantiles(law, levels.reshape(-1)).reshape(*levels.shape, *law.batch_shape)


def _quantiles(law: Distribution, levels: Tensor) -> Tensor:
    """Return quantiles ``(k, *b)``."""
    if isinstance(law, StudentT):
        df, place = law.df.unique(return_inverse=True)
        std, log_weights = _spreads(df)
        edges = std * torch.special.ndtri(levels)[:, None, None]
        standard = _inverse(levels, torch.zeros_like(std), std, log_weights, edges.amin(-1), edges.amax(-1))
        return law.loc + law.scale * standard[:, place]
    if isinstance(law, MixtureSameFamily):
        edges = _quantiles(law.component_distribution, levels)
        edges = edges.reshape(len(levels), -1, edges.shape[-1])
        rows = torch.arange(edges.shape[1], device=edges.device)
        block = max(1, _AT_ONCE // (len(levels) * _normals(law, rows[:1])[0].shape[-1]))
        low, high = edges.amin(-1).split(block, -1), edges.amax(-1).split(block, -1)
        parts = zip(rows.split(block), low, high, strict=True)
        found = torch.cat([_inverse(levels, *_normals(law, some), *ends) for some, *ends in parts], -1)
        return found.reshape(-1, *law.batch_shape)
    try:
        return law.icdf(levels.reshape(-1, *[1] * len(law.batch_shape)))
    except NotImplementedError as reason:
        raise _no_quantiles(law) from reason


def _normals(law: Distribution, rows: Tensor, axes: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return locations, standard deviations and log weights of the normals in a mixture, each ``(rows, J)``.

    Of some rows of the batch's first axes made one: all axes, for the mixture itself.
    """
    axes = len(law.batch_shape) if axes is None else axes

    def some(value: Tensor) -> Tensor:
        return value.expand(law.batch_shape).reshape(-1, *law.batch_shape[axes:])[rows]

    if isinstance(law, MixtureSameFamily):
        loc, std, log_weights = _normals(law.component_distribution, rows, axes)
        logits = law.mixture_distribution.logits
        of_components = logits.expand(*law.batch_shape, -1).reshape(-1, *law.batch_shape[axes:], logits.shape[-1])
        return loc.flatten(-2), std.flatten(-2), (of_components[rows][..., None] + log_weights).flatten(-2)
    if isinstance(law, StudentT):
        df, place = some(law.df).unique(return_inverse=True)
        std, log_weights = (value[place] for value in _spreads(df))
        return some(law.loc)[..., None].expand_as(std), some(law.scale)[..., None] * std, log_weights
    if isinstance(law, Normal):
        loc, std = some(law.loc)[..., None], some(law.scale)[..., None]
        return loc, std, torch.zeros_like(loc)
    raise _no_quantiles(law)


def _spreads(df: Tensor) -> tuple[Tensor, Tensor]:
    """Return standard deviations and log weights of the normals that make up a Student-t, each ``(u, J)``."""
    found = nodes(dist.InverseGamma(0.5 * df, 0.5 * df), 0.0, torch.zeros_like(df))
    stride = 2 ** sum(bool(df.min() >= bound) for bound in _THINNED_FROM)
    log_weights = found.log_weights[:, ::stride]
    return found.var[:, ::stride].sqrt(), log_weights - log_weights.logsumexp(-1, keepdim=True)


def _no_quantiles(law: Distribution) -> DataError:
    return DataError(
        "expected a normal, a Student-t, a mixture of these (or of such mixtures), or a distribution with an icdf, got "
        f"{type(law).__name__}. Draw from it and use torch.quantile."
    )


def _inverse(levels: Tensor, loc: Tensor, std: Tensor, log_weights: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return where mixtures of normals ``(n, J)`` reach the levels ``(k,)``, between bounds ``(k, n)``."""
    weights, precision = log_weights.exp(), 1 / std
    tolerance, spread = _EPS.get(loc.dtype, 1e-6), 1 / (weights * precision).sum(-1)
    x = 0.5 * (low + high)
    for _ in range(_ITERATIONS):
        z = (x[..., None] - loc) * precision
        excess = (weights * torch.special.ndtr(z)).sum(-1) - levels[:, None]
        low, high = torch.where(excess < 0, x, low), torch.where(excess > 0, x, high)
        density = (weights * precision * torch.exp(-0.5 * z.square())).sum(-1) / (2 * torch.pi) ** 0.5
        newton = x - excess / density
        following = torch.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high))
        step = (following - x).abs()
        x = following
        if bool((step <= tolerance * (x.abs() + spread)).all()):
            break
    return x
