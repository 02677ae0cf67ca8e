"""Matrices in tiles that stay in the processor's cache, and tensors of a vmap with its axis in front."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

from torch import Tensor

__all__ = ["batch_first", "blocks", "tiles"]

_TILE = 2**16  # numbers in a tile: half a megabyte in float64, which stays in the cache
_LEAST_SIDE = 32  # of a tile, however large the batch: below, calls cost more than numbers


def tiles(num_rows: int, num_columns: int, batch: int, *, symmetric: bool = False) -> Iterator[tuple[slice, slice]]:
    """Yield the tiles of a batch of matrices as slices of rows and columns.

    Args:
        num_rows: of a matrix.
        num_columns: of a matrix.
        batch: number of matrices that one tile goes through.
        symmetric: only those up to the diagonal.

    Example:
        >>> [(rows.stop, columns.stop) for rows, columns in tiles(300, 300, 1, symmetric=True)]
        [(150, 150), (300, 150), (300, 300)]
    """
    numbers = _TILE / max(1, batch)
    width = max(_LEAST_SIDE, int(numbers**0.5))
    height = width if symmetric else max(width, int(numbers / max(1, min(width, num_columns))))
    for rows in blocks(num_rows, height):
        for columns in blocks(num_columns, width):
            if not symmetric or columns.start <= rows.start:
                yield rows, columns


def blocks(num: int, most: int) -> list[slice]:
    """Cut a length into equal parts, but for the last; nothing is one part.

    Example:
        >>> blocks(10, 4)
        [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """
    size = max(1, ceil(num / max(1, ceil(num / most))))
    return [slice(start, min(start + size, num)) for start in range(0, max(1, num), size)]


def batch_first(info: Any, axes: tuple[int | None, ...], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors with the axis of a vmap as their first, and with as many axes as each other.

    Args:
        info: what torch passes to a vmap rule.
        axes: of each tensor, the axis of the vmap, or None.
        tensors: with trailing axes of one number.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> pair = batch_first(SimpleNamespace(batch_size=5), (None, 1), [torch.ones(2, 3), torch.ones(4, 5, 3)])
        >>> [tuple(tensor.shape) for tensor in pair]
        [(5, 2, 3), (5, 4, 3)]
    """
    first = [
        tensor.expand(info.batch_size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)
        for tensor, axis in zip(tensors, axes, strict=False)
    ]
    most = max(tensor.dim() for tensor in first)
    return [tensor.reshape(len(tensor), *[1] * (most - tensor.dim()), *tensor.shape[1:]) for tensor in first]
