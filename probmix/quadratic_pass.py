r"""One pass over rows whose log densities are linear in quadratic features: the kernel of EM and of the gradients.

With the features :math:`\phi(x)` (one, the features, their squares and products) kept feature by feature, the scores of
all components of all restarts, chains or draws are one matrix product, and what EM, a variational or a Gibbs step and
the gradient of the likelihood add up is its transpose: :math:`\sum_n r_{nk} \phi(x_n)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add

import torch
from torch import Tensor

from probmix.table import wide_dtype

__all__ = ["QuadraticRows", "feature_sums", "num_quadratic_features", "quadratic_features"]

# Bytes in the tables of a chunk of rows: what a CPU keeps in its cache, and elsewhere enough to fill the device.
_CHUNK_BYTES = {"cpu": 6 * 2**20}
_DEVICE_CHUNK_BYTES = 2**28
_FEWEST_ROWS = 256
_MOST_NARROW_ROWS = 2**13  # of less than float64: sums of more rows lose digits
_MANY_LOGS = 2**13  # from so many on, taking fewer logs pays for the products


def num_quadratic_features(num_features: int, spread_dim: int) -> int:
    """Count the entries of ``quadratic_features``.

    Example:
        >>> num_quadratic_features(3, 2), num_quadratic_features(3, 1), num_quadratic_features(3, 0)
        (10, 7, 5)
    """
    return 1 + num_features + (1, num_features, num_features * (num_features + 1) // 2)[spread_dim]


def quadratic_features(columns: Tensor, spread_dim: int, out: Tensor | None = None) -> Tensor:
    """One, the features, and what is squared of them, ``(*b, D, n) -> (*b, P, n)``.

    Squared are: all products ``x_i x_j``, ``i <= j``, row by row (``spread_dim=2``, a matrix); each feature (1, a
    variance for each); or their sum (0, one variance).

    Args:
        columns: the data by feature.
        spread_dim: number of axes of one component's spread.
        out: memory for the result.

    Example:
        >>> quadratic_features(torch.tensor([[2.0], [3.0]]), 2).flatten()
        tensor([1., 2., 3., 4., 6., 9.])
    """
    size, rows = columns.shape[-2:]
    if out is None:
        out = columns.new_empty(*columns.shape[:-2], num_quadratic_features(size, spread_dim), rows)
    out[..., 0, :] = 1
    out[..., 1 : size + 1, :] = columns
    squares = out[..., size + 1 :, :]
    if spread_dim == 1:
        torch.mul(columns, columns, out=squares)
    elif spread_dim == 0:
        torch.sum(columns.square(), -2, keepdim=True, out=squares)
    else:
        end = 0
        for i in range(size):
            start, end = end, end + size - i
            torch.mul(columns[..., i : i + 1, :], columns[..., i:, :], out=squares[..., start:end, :])
    return out


@dataclass(frozen=True, eq=False)
class QuadraticRows:
    """Rows by feature, whose quadratic features are made a chunk at a time, and once for all if they are few.

    Attributes:
        columns: the data by feature, ``(*b, D, N)``.
        spread_dim: which features, see `quadratic_features`.

    Example:
        >>> rows = QuadraticRows(torch.ones(2, 5), spread_dim=2)
        >>> [features.shape for features, _ in rows.chunks(width=3)]
        [torch.Size([6, 5])]
    """

    columns: Tensor
    spread_dim: int

    def chunks(self, width: int, dtype: torch.dtype | None = None) -> Iterator[tuple[Tensor, slice]]:
        """Yield features ``(*b, P, n)`` and the rows that they are of; the next chunk may use the same memory.

        Args:
            width: how many scores for each row the caller makes of them, and shares of the row.
            dtype: of the features; None: of the columns.
        """
        columns, dtype = self.columns, self.columns.dtype if dtype is None else dtype
        (size, total), batch = columns.shape[-2:], columns.shape[:-2]
        count = num_quadratic_features(size, self.spread_dim)
        rows = self._rows_of_chunk(2 * width + count * batch.numel(), dtype)
        if total <= rows and dtype == columns.dtype:
            yield self._few, slice(0, total)
            return
        memory = columns.new_empty(*batch, count, min(rows, total), dtype=dtype)
        for start in range(0, total, rows):
            chunk = columns[..., start : start + rows].to(dtype)
            features = memory[..., : chunk.shape[-1]]
            yield quadratic_features(chunk, self.spread_dim, features), slice(start, start + rows)

    @cached_property
    def _few(self) -> Tensor:
        return quadratic_features(self.columns, self.spread_dim)

    def _rows_of_chunk(self, width: int, dtype: torch.dtype) -> int:
        bytes_of_chunk = _CHUNK_BYTES.get(self.columns.device.type, _DEVICE_CHUNK_BYTES)
        rows = max(_FEWEST_ROWS, bytes_of_chunk // (width * dtype.itemsize))
        return rows if dtype == wide_dtype(self.columns) else min(rows, _MOST_NARROW_ROWS)


def feature_sums(
    coefficients: Tensor,
    rows: QuadraticRows,
    row_weights: Tensor | None = None,
    share: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Log likelihood and responsibilities times features, in one pass over the rows.

    .. math:: \ell = \sum_n \log \sum_k \exp s_{nk}, \qquad G_k = \sum_n r_{nk} \phi(x_n), \qquad
              s_{nk} = B_k \cdot \phi(x_n), \quad r_{nk} \propto \exp s_{nk}

    Args:
        coefficients: :math:`B`, ``(*b, K, P)``; its dtype is that of the features. NaN spoils its own entry alone.
        rows: the data.
        row_weights: how many observations each row stands for, ``(N,)``.
        share: what part of a row each component gets, ``(*b, K, n)`` from the scores; None: :math:`r_{nk}`.

    Returns:
        :math:`\ell`, ``(*b,)``, and :math:`G`, ``(*b, K, P)``, both in float64 (where the device has it).

    Example:
        >>> rows = QuadraticRows(torch.tensor([[0.0, 2.0]]), spread_dim=1)
        >>> feature_sums(torch.tensor([[0.0, 0.0, -0.5]]), rows)
        (tensor(-2., dtype=torch.float64), tensor([[2., 2., 4.]], dtype=torch.float64))
    """
    columns, wide = rows.columns, wide_dtype(coefficients)
    batch = torch.broadcast_shapes(coefficients.shape[:-2], columns.shape[:-2])
    width = batch.numel() * coefficients.shape[-2]
    values, sums, memory = [], None, None
    for features, chunk in rows.chunks(width, coefficients.dtype):
        if memory is None and features.shape[-1] < columns.shape[-1]:
            memory = coefficients.new_empty(2, *batch, coefficients.shape[-2], features.shape[-1])
        scores, resp = _scored(coefficients, features, memory)
        best, best_resp = scores.amax(-2), resp.amax(-2)  # the log of the sum is their difference
        parts = resp if share is None else share(scores)
        if row_weights is None:
            values.append(best.sum(-1, dtype=wide) - _sum_log(best_resp))
        else:
            weights = row_weights[chunk].to(coefficients.dtype)
            parts = parts * weights
            values.append(((best - best_resp.log()) * weights).sum(-1, dtype=wide))
        part = (parts @ features.mT).to(wide)
        sums = part if sums is None else sums.add_(part)
    assert sums is not None  # there is a row
    return reduce(add, values), sums


def _scored(coefficients: Tensor, features: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores and responsibilities, ``(*b, K, n)``; one memory for many chunks saves a tenth of the time."""
    if memory is None:
        scores = coefficients @ features
        return scores, scores.softmax(-2)
    scores, resp = memory[..., : features.shape[-1]]
    torch.matmul(coefficients, features, out=scores)
    return scores, torch.softmax(scores, -2, out=resp)


def _sum_log(resp: Tensor) -> Tensor:
    """Sum of the logs of the last axis; a product of a few of them, each at least 1 / K, takes one log for all."""
    wide, group = wide_dtype(resp), 32 if resp.dtype == torch.float64 else 4
    if resp.numel() < _MANY_LOGS:
        return resp.log().sum(-1, dtype=wide)
    whole = resp.shape[-1] // group * group
    products = resp[..., :whole].unflatten(-1, (-1, group)).prod(-1)
    return products.log().sum(-1, dtype=wide) + resp[..., whole:].log().sum(-1, dtype=wide)
