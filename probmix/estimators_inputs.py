"""What users hand to the scikit-learn estimators, checked and made into tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from probmix.errors import DataError
from probmix.table import check_row_weights

__all__ = ["checked_weights", "in_blocks", "rows_of", "shaped", "weights_of"]

_BLOCK = 2**22  # numbers in the largest table of a block of rows


def rows_of(array: NDArray, device: str | None) -> Tensor:
    """Return an array as a tensor on the device; the caller's memory is shared where it is on the host.

    Example:
        >>> rows_of(np.zeros((2, 3), np.float32), None).dtype
        torch.float32
    """
    array = np.ascontiguousarray(array)
    return torch.as_tensor(array if array.flags.writeable else array.copy(), device=device)


def weights_of(sample_weight: ArrayLike | None, x: Tensor) -> Tensor | None:
    """Return checked weights of the rows; one number is for all of them.

    Raises:
        DataError: not one weight for each row, or weights that are negative, not finite or all zero.

    Example:
        >>> weights_of([1, 2], torch.zeros(2, 1))
        tensor([1., 2.])
    """
    if sample_weight is None:
        return None
    weights = np.array(sample_weight, dtype=np.float64)
    weights = np.full(len(x), weights) if weights.ndim == 0 else weights
    return check_row_weights(torch.as_tensor(weights), x)


def in_blocks(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """Apply a function of rows to blocks of them, so that memory does not grow with N times K.

    Args:
        function: of rows ``(n, D)``.
        x: the rows.
        width: numbers in the largest temporary of one row.

    Example:
        >>> in_blocks(lambda x: x.sum(-1), torch.ones(3, 2), 2)
        tensor([2., 2., 2.])
    """
    return torch.cat([function(block) for block in x.split(max(1, _BLOCK // width))])


def shaped(name: str, value: ArrayLike | None, shape: tuple[int, ...]) -> NDArray:
    """Return an array of finite numbers in float64.

    Args:
        name: of the setting, for the message.
        value: what the user gave.
        shape: what it must have.

    Raises:
        DataError: another shape, or numbers that are not finite.

    Example:
        >>> shaped("means_init", [[1, 2]], (1, 2))
        array([[1., 2.]])
    """
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape:
        raise DataError(f"{name}: expected shape {shape}, got {array.shape}. Pass one value for each component.")
    if not np.isfinite(array).all():
        raise DataError(f"{name}: expected finite numbers, got {np.size(array) - np.isfinite(array).sum()} others.")
    return array


def checked_weights(name: str, value: ArrayLike, n_components: int) -> NDArray:
    """Return weights that sum to one, whatever the rounding of those given.

    Raises:
        DataError: another shape, weights below 0 or none above.

    Example:
        >>> checked_weights("weights_init", [0.7000001, 0.3], 2).sum()
        np.float64(1.0)
    """
    weights = shaped(name, value, (n_components,))
    if (weights < 0).any() or not weights.sum() > 0:
        raise DataError(
            f"{name}: expected weights of 0 or more that do not all vanish, got values from {weights.min():.5f} to "
            f"{weights.max():.5f}. They need not sum to one."
        )
    return weights / weights.sum()
