"""Whether rows lie on a grid, evenly spaced or not: what lets their covariance be factorised axis by axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Grid", "even_positions", "find_grid", "is_even", "missing_rows"]

_ROUNDINGS = 4  # of a coordinate: year + month / 12 has two, a difference of two such has four
_PRESENT = 0.8  # of a grid: with fewer points, it is not one with holes


@dataclass(frozen=True)
class Grid:
    """Rows that are all combinations of the coordinates of some axes, each once.

    Args:
        axes: sorted coordinates of each column, ``(n_1,), ..., (n_D,)``.
        order: numbers of the rows such that ``x[order]`` is row-major (the last column changes fastest), ``(n,)``.

    Example:
        >>> Grid((torch.arange(2.0), torch.arange(3.0)), torch.arange(6)).shape
        torch.Size([2, 3])
    """

    axes: tuple[Tensor, ...]
    order: Tensor

    @property
    def shape(self) -> torch.Size:
        """Length of each axis; ``y[order].reshape(shape)`` is the table of observations."""
        return torch.Size(len(axis) for axis in self.axes)


def is_even(axis: Tensor) -> bool:
    """Whether sorted coordinates ascend by equal steps, but for the rounding of their dtype: 4 times ``eps max |x|``.

    Args:
        axis: ``(n,)``; a single coordinate is even, two equal ones are not.

    Example:
        >>> months = torch.arange(24, dtype=torch.float64)
        >>> is_even(1958 + months / 12), is_even(months**2)
        (True, False)
    """
    if len(axis) < 2:
        return True
    numbers = torch.arange(len(axis), dtype=axis.dtype, device=axis.device)
    straight = axis[0] + (axis[-1] - axis[0]) / (len(axis) - 1) * numbers
    return bool(((axis - straight).abs() <= _rounding(axis)).all() & (axis.diff() > 0).all())


def even_positions(column: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the even axis that coordinates are on, and the place of each; None where it has more than n / 0.8 places.

    Coordinates may be in any order and repeated; all lags between them are lags of the axis.

    Args:
        column: ``(n,)``.

    Example:
        >>> even_positions(torch.tensor([5.0, 3.0, 4.0, 1.0, 2.0, 2.0, 7.0]))
        (tensor([1., 2., 3., 4., 5., 6., 7.]), tensor([4, 2, 3, 0, 1, 1, 6]))
    """
    (axis,), _ = _axes(column[:, None])
    if len(axis) < 2:
        return None
    even = axis if is_even(axis) else _filled(axis)
    if even is None or len(even) > len(column) / _PRESENT:
        return None
    return even, ((column - even[0]) / (even[-1] - even[0]) * (len(even) - 1)).round().long()


def find_grid(x: Tensor) -> Grid | None:
    """Return the grid that rows cover in full, in whatever order and each point once; None where they do not.

    Coordinates that differ by no more than the rounding of their dtype are one. A constant column is an axis of length
    one; distinct rows of a single column are always a grid.

    Args:
        x: rows, ``(n, d)``.

    Example:
        >>> x = torch.tensor([[1.0, 5.0], [0.0, 7.0], [0.0, 5.0], [1.0, 7.0]])
        >>> grid = find_grid(x)
        >>> grid.axes, x[grid.order].tolist()
        ((tensor([0., 1.]), tensor([5., 7.])), [[0.0, 5.0], [0.0, 7.0], [1.0, 5.0], [1.0, 7.0]])
        >>> find_grid(x[:3]) is None
        True
    """
    axes, numbers = _axes(x)
    if math.prod(map(len, axes)) != len(x):
        return None
    order = numbers.argsort()
    is_full = torch.equal(numbers[order], torch.arange(len(x), device=x.device))
    return Grid(axes, order) if is_full else None


def missing_rows(x: Tensor) -> Tensor | None:
    """Return the points that rows lack to make a grid, ``(m, d)``; None where they are none, or not nearly a grid.

    Nearly: distinct rows, at least four fifths of the grid of their coordinates. A single column is held against even
    steps, as long as its shortest.

    Args:
        x: rows, ``(n, d)``.

    Example:
        >>> missing_rows(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [1.0, 2.0]]))
        tensor([[1., 1.]])
        >>> missing_rows(torch.tensor([[0.0], [1.0], [2.0], [4.0], [5.0]]))
        tensor([[3.]])
    """
    axes, numbers = _axes(x)
    if x.shape[-1] == 1 and (found := even_positions(x[:, 0])) is not None:
        axes, numbers = (found[0],), found[1]
    size = math.prod(map(len, axes))
    if not len(x) < size <= len(x) / _PRESENT:
        return None
    seen = torch.zeros(size, dtype=torch.bool, device=x.device)
    seen[numbers] = True
    missing = (~seen).nonzero()[:, 0]
    if len(missing) + len(x) != size:  # some row is there twice
        return None
    places = torch.unravel_index(missing, [len(axis) for axis in axes])
    return torch.stack([axis[place] for axis, place in zip(axes, places, strict=True)], -1)


def _axes(x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the distinct coordinates of each column, and the row-major number of each row on their grid."""
    axes, numbers = [], torch.zeros(len(x), dtype=torch.long, device=x.device)
    for column in x.unbind(-1):
        values, places = column.sort()
        is_new = torch.ones(len(x), dtype=torch.bool, device=x.device)
        is_new[1:] = values.diff() > _rounding(values)
        axes.append(values[is_new])
        within = torch.empty_like(numbers)
        within[places] = is_new.cumsum(0) - 1
        numbers = numbers * len(axes[-1]) + within  # may overflow, but only where there are too many axes for a grid
    return tuple(axes), numbers


def _filled(axis: Tensor) -> Tensor | None:
    """Return the even axis of which a sorted one has some coordinates, its ends among them; None if there is none."""
    steps = axis.diff()
    if len(axis) < 3 or is_even(axis):
        return None
    counts = (steps / steps.min()).round()
    number = int(counts.sum())
    filled = axis[0] + (axis[-1] - axis[0]) / number * torch.arange(number + 1, dtype=axis.dtype, device=axis.device)
    there = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).long()
    return filled if bool(((filled[there] - axis).abs() <= _rounding(axis)).all()) else None


def _rounding(values: Tensor) -> Tensor:
    return _ROUNDINGS * torch.finfo(values.dtype).eps * values.abs().max()
