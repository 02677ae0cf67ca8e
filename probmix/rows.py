"""Data as rows: what a model accepts, and what it refuses before a fit."""

from __future__ import annotations

import torch
from torch import Tensor

from probmix.errors import DataError

__all__ = ["as_rows", "check_rows"]


def as_rows(x: Tensor) -> Tensor:
    """Return data as ``(N, D)``; ``(N,)`` is one column.

    Raises:
        DataError: not a tensor of floating-point numbers, or not one or two axes.

    Example:
        >>> as_rows(torch.zeros(3)).shape
        torch.Size([3, 1])
    """
    if not isinstance(x, Tensor):
        raise DataError(f"expected a tensor of shape (N, D), got {type(x).__name__}: convert with torch.as_tensor(x)")
    if not x.is_floating_point():
        raise DataError(f"expected floating-point numbers, got {x.dtype}: convert with x.double()")
    if x.ndim not in (1, 2) or 0 in x.shape[1:]:
        raise DataError(
            f"expected data of shape (N, D) with D of 1 or more, got {tuple(x.shape)}: one row per observation, "
            "one column per feature"
        )
    return x[:, None] if x.ndim == 1 else x


_BLOCK = 2**18  # numbers in a block of rows while columns are compared


def check_rows(x: Tensor, num_components: int, *, spread: bool, independent: bool) -> None:
    """Refuse rows that no mixture can be fitted to.

    Args:
        x: ``(N, D)``.
        num_components: K; there must be at least as many rows.
        spread: whether every column must vary (a prior is scaled to it).
        independent: whether the columns must be linearly independent (if ``spread``).

    Raises:
        DataError: one of these does not hold; says which rows or columns, and what to do.

    Example:
        >>> try:
        ...     check_rows(torch.tensor([[1.0], [3.0]]), 5, spread=True, independent=False)
        ... except DataError as error:
        ...     print(error)
        expected at least as many rows as components, got 2 rows for 5 components: lower num_components or add data
    """
    _check_finite(x)
    if x.shape[0] < max(num_components, 1):
        raise DataError(
            f"expected at least as many rows as components, got {x.shape[0]} rows for {num_components} components: "
            "lower num_components or add data"
        )
    if spread:
        _check_spread(x)
        if independent:
            _check_independent(x)


def _check_finite(x: Tensor) -> None:
    if x.sum().isfinite():  # one number that is not would show
        return
    bad = (~x.isfinite().all(-1)).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"expected finite numbers, got {len(bad)} of {x.shape[0]} rows with NaN or infinity, the first at index "
            f"{bad[0]}: drop them with x[x.isfinite().all(-1)] or impute them"
        )


def _check_spread(x: Tensor) -> None:
    constant = (x == x[:1]).all(0).nonzero().flatten().tolist()
    if constant:
        raise DataError(
            f"expected columns that vary, got {len(constant)} of {x.shape[1]} constant, the first at index "
            f"{constant[0]}: drop them, or pass component_prior (the default one is scaled to each column's variance)"
        )


def _check_independent(x: Tensor) -> None:
    num_rows, num_columns = x.shape
    remedy = 'pass covariance="diagonal" or your own component_prior'
    if num_rows <= num_columns:
        raise DataError(
            f"expected more rows than columns for a dense covariance, got {num_rows} rows and {num_columns} columns: "
            f"add data, drop columns, or {remedy}"
        )
    centre, blocks = x.mean(0), x.split(max(1, _BLOCK // num_columns))
    largest = torch.stack([(rows - centre).abs().amax(0) for rows in blocks]).amax(0)
    moments = sum(standard.mT @ standard for standard in (((rows - centre) / largest).double() for rows in blocks))
    norm = moments.diagonal().sqrt()
    correlation = moments / (norm[:, None] * norm)
    # A Cholesky factor in the dtype of the data does not see less than this; scales of the columns do not matter to it.
    unseen = 8 * num_columns * torch.finfo(x.dtype).eps
    pairs = (correlation.abs().triu(1) > 1 - unseen).nonzero().tolist()
    if pairs:
        first, second = pairs[0]
        raise DataError(
            f"expected linearly independent columns, got columns {first} and {second} that are copies of one another "
            f"up to shift and scale: drop column {second}, or {remedy}"
        )
    variances, directions = torch.linalg.eigh(correlation)
    rank = int((variances > unseen).sum())
    if rank < num_columns:
        involved = (directions[:, 0].abs() > 0.01).nonzero().flatten().tolist()
        raise DataError(
            f"expected linearly independent columns, got {num_columns} columns of rank {rank} (in {x.dtype}): columns "
            f"{', '.join(map(str, involved))} determine one another, so drop one of them, or {remedy}"
        )
