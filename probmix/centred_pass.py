"""One pass over rows under Gaussian components that subtracts means before it squares: exact, and quick if few."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from operator import add

import torch
from torch import Tensor

from probmix.statistics import Statistics
from probmix.table import Expectation

__all__ = ["centred_expectation"]

_BLOCK = 2**20  # numbers in the largest temporary of a block of rows


def centred_expectation(
    columns: Tensor,
    log_weights: Tensor,
    loc: Tensor,
    spread: Tensor,
    *,
    spread_dim: int,
    pooled: bool = False,
    row_weights: Tensor | None = None,
    share: Callable[[Tensor], Tensor] | None = None,
) -> Expectation:
    """Log-likelihood and `Statistics` of Gaussian components, by distances from their means.

    Args:
        columns: rows by feature, ``(D, N)``.
        log_weights: ``(*b, K)``.
        loc: means, ``(*b, K, D)``; their dtype is that of the arithmetic.
        spread: covariances ``(*b, K, D, D)``, or variances ``(*b, K, D)`` or ``(*b, K)``; K is 1 if it is shared.
        spread_dim: number of axes of one spread: 2, 1 or 0.
        pooled: sum the scatter over the components.
        row_weights: how many observations each row stands for, ``(N,)``.
        share: what part of a row each component gets, ``(*b, K, n)`` from the scores; None: its responsibility.

    Example:
        >>> x, loc, var = torch.tensor([[-1.0, 1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]])
        >>> centred_expectation(x, torch.zeros(1), loc, var, spread_dim=1).statistics.scatter
        tensor([[2.]])
    """
    rows = max(1, _BLOCK // loc.numel())
    root, log_root = _root(spread, loc.shape[-1], spread_dim)
    constant = (log_weights - (log_root + loc.shape[-1] / 2 * math.log(2 * math.pi)))[..., None]
    values, sums = [], []
    for first in range(0, columns.shape[-1], rows):
        some = slice(first, first + rows)
        block = columns[:, some].to(loc.dtype)
        scores = torch.add(constant, _distance(block - loc[..., None], root, spread_dim), alpha=-0.5)
        resp = scores.softmax(-2)
        log_rows = scores.amax(-2, keepdim=True) - resp.amax(-2, keepdim=True).log()  # quicker than a logsumexp
        parts = resp if share is None else share(scores)
        if row_weights is not None:
            weights = row_weights[some].to(loc.dtype)
            log_rows, parts = log_rows * weights, parts * weights
        values.append(log_rows.sum((-2, -1)))
        sums.append(_statistics(block, parts, spread_dim, pooled))
    return Expectation(reduce(add, values), reduce(add, sums))


def _root(spread: Tensor, size: int, spread_dim: int) -> tuple[Tensor, Tensor]:
    """Cholesky factor, or the variances as they are; and half the log determinant, NaN if there is no such factor."""
    if spread_dim < 2:
        return spread, spread.log().sum(-1) / 2 if spread_dim == 1 else size / 2 * spread.log()
    tril, info = torch.linalg.cholesky_ex(spread)
    return tril, torch.where(info == 0, tril.diagonal(dim1=-2, dim2=-1).log().sum(-1), torch.nan)


def _distance(offset: Tensor, root: Tensor, spread_dim: int) -> Tensor:
    """Squared Mahalanobis distance, ``(*b, K, D, n) -> (*b, K, n)``."""
    if spread_dim == 2:
        return torch.linalg.solve_triangular(root, offset, upper=False).square().sum(-2)
    if spread_dim == 1:
        return (offset.square() / root[..., None]).sum(-2)
    return offset.square().sum(-2) / root[..., None]


def _statistics(columns: Tensor, parts: Tensor, spread_dim: int, pooled: bool) -> Statistics:
    """Count, mean and scatter about the mean of shared-out rows, ``(D, n), (*b, K, n)``."""
    count = parts.sum(-1)
    mean = parts @ columns.mT / count.clamp_min(torch.finfo(count.dtype).tiny)[..., None]
    offset = columns - mean[..., None]
    if spread_dim == 2:
        scatter = (offset * parts[..., None, :]) @ offset.mT
    else:
        scatter = (offset.square() @ parts[..., None]).squeeze(-1)
        scatter = scatter if spread_dim == 1 else scatter.sum(-1)
    return Statistics(count, mean, scatter.sum(-1 - spread_dim, keepdim=True) if pooled else scatter)
