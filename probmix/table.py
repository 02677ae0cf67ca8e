"""Rows of data as the closed-form engines read them, and what one pass over them gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probmix.errors import DataError

__all__ = [
    "Expectation",
    "Table",
    "accumulate",
    "check_row_weights",
    "draw_component",
    "draw_one",
    "share_out",
    "wide_dtype",
]

_BLOCK = 2**20  # numbers in the largest temporary table of a block of rows


@dataclass(frozen=True, eq=False)
class Table:
    """Rows, their weights, and what a family has made of them once before a fit.

    Attributes:
        x: the rows, ``(N, D)``.
        row_weights: how many observations each row stands for, ``(N,)``; None: one each.
        prepared: what the family's ``prepare`` returned.
        power: responsibilities are proportional to this power of weight times density. Below 1 it blurs them
            (deterministic annealing); log-likelihoods are as ever.

    Example:
        >>> Table(torch.zeros(5, 2)).x.shape
        torch.Size([5, 2])
    """

    x: Tensor
    row_weights: Tensor | None = None
    prepared: Any = None
    power: float = 1.0


class Expectation(NamedTuple):
    """What one pass over the rows gives.

    Attributes:
        log_likelihood: weighted sum over the rows of the log of the summed scores, ``(*b,)``, in float64 (where the
            device has it): the gain of a step is a small difference of two of them.
        statistics: additive statistics of the components, of whatever type the family has.

    Example:
        >>> Expectation(torch.tensor(-3.0), None).log_likelihood
        tensor(-3.)
    """

    log_likelihood: Tensor
    statistics: Any


def wide_dtype(like: Tensor) -> torch.dtype:
    """Dtype for long sums: float64, but on devices that have none (Apple's) that of the tensor itself.

    Example:
        >>> wide_dtype(torch.zeros(1))
        torch.float64
    """
    return like.dtype if like.device.type == "mps" else torch.float64


def share_out(scores: Tensor) -> Tensor:
    r"""Responsibilities: :math:`r_{nk} \propto \exp s_{nk}`, ``(*b, N, K)``; 0 for a row that no component explains.

    Example:
        >>> share_out(torch.zeros(1, 2))
        tensor([[0.5000, 0.5000]])
    """
    return scores.softmax(-1).nan_to_num(0.0)


def draw_component(scores: Tensor) -> Tensor:
    r"""Draw one component for each row with odds :math:`\exp s_{kn}`, as ones and zeros, ``(*b, K, n)``.

    A row that no component explains gets zeros. Uses torch's global generator.

    Example:
        >>> draw_component(torch.tensor([[0.0], [-torch.inf]]))
        tensor([[1.],
                [0.]])
    """
    cumulative = scores.softmax(-2).cumsum(-2)
    level = torch.rand_like(cumulative[..., :1, :]) * cumulative[..., -1:, :]
    reached = (level < cumulative).to(scores)
    return reached.diff(dim=-2, prepend=torch.zeros_like(level))


def draw_one(scores: Tensor) -> Tensor:
    """`draw_component` for scores by row, ``(*b, N, K)``.

    Example:
        >>> draw_one(torch.tensor([[0.0, -torch.inf]]))
        tensor([[1., 0.]])
    """
    return draw_component(scores.mT).mT


def accumulate(
    table: Table,
    scores: Callable[[Tensor], Tensor],
    statistics: Callable[[Tensor, Tensor], Any],
    *,
    width: int,
    share: Callable[[Tensor], Tensor] = share_out,
) -> Expectation:
    """Go once over the rows, block by block: score them, share each row out among the components, add up.

    Args:
        table: the rows.
        scores: log weight plus log density of a block of rows in each component, ``(n, D) -> (*b, n, K)``.
        statistics: additive statistics of a block, ``(n, D), (*b, n, K) -> Sums``.
        width: numbers in the largest temporary of one row, which says how many rows make a block.
        share: what part of a row each component gets.

    Example:
        >>> table = Table(torch.tensor([[0.0], [1.0]]))
        >>> accumulate(table, lambda x: -x, lambda x, r: r.sum(0), width=1)
        Expectation(log_likelihood=tensor(-1., dtype=torch.float64), statistics=tensor([2.]))
    """
    rows = max(1, _BLOCK // width)
    blocks = table.x.split(rows)
    weights = [None] * len(blocks) if table.row_weights is None else table.row_weights.split(rows)
    sharing = share if table.power == 1 else lambda values: share(table.power * values)
    parts = [_block(x, w, scores, statistics, sharing) for x, w in zip(blocks, weights, strict=True)]
    return Expectation(reduce(add, (part[0] for part in parts)), reduce(add, (part[1] for part in parts)))


def _block(
    x: Tensor,
    row_weights: Tensor | None,
    scores: Callable[[Tensor], Tensor],
    statistics: Callable[[Tensor, Tensor], Any],
    share: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Any]:
    table = scores(x)
    log_rows, shares = table.logsumexp(-1).to(wide_dtype(x)), share(table)
    if row_weights is None:
        return log_rows.sum(-1), statistics(x, shares)
    return log_rows @ row_weights.to(log_rows), statistics(x, shares * row_weights[:, None])


def check_row_weights(row_weights: Tensor | None, x: Tensor) -> Tensor | None:
    """Return the weights of the rows in the dtype of the data, checked.

    Raises:
        DataError: not one weight for each row, or weights that are negative, not finite or all zero.

    Example:
        >>> check_row_weights(torch.tensor([1, 2]), torch.zeros(2, 1))
        tensor([1., 2.])
    """
    if row_weights is None:
        return None
    weights = torch.as_tensor(row_weights, dtype=x.dtype, device=x.device)
    if weights.shape != x.shape[:1]:
        raise DataError(
            f"row_weights: expected one weight for each of {len(x)} rows, got shape {tuple(weights.shape)}. "
            "Pass a vector as long as the data."
        )
    bad = (~(weights.isfinite() & (weights >= 0))).nonzero().flatten()
    if len(bad):
        raise DataError(
            f"row_weights: expected finite weights of 0 or more, got {len(bad)} others, the first at index "
            f"{int(bad[0])} ({float(weights[bad[0]]):g}). Clip or drop those rows."
        )
    if not weights.any():
        raise DataError(
            "row_weights: expected some weight above 0, got all zero. Leave row_weights=None for equal ones."
        )
    return weights
