"""Rows x and what was observed at them, y: checks that do not depend on a model."""

from __future__ import annotations

import torch
from torch import Tensor

from probmix.errors import DataError

__all__ = ["equal_rows", "same_kind"]


def same_kind(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the dtype of whichever has floating-point numbers.

    Raises:
        DataError: two such dtypes, two devices, or numbers that are not finite.

    Example:
        >>> same_kind(torch.tensor([1, 2]), torch.tensor([0.5, 1.0], dtype=torch.float64))[0]
        tensor([1., 2.], dtype=torch.float64)
    """
    dtypes = {t.dtype for t in (x, y) if t.is_floating_point()}
    if len(dtypes) > 1 or x.device != y.device:
        raise DataError(
            f"expected x and y of one dtype on one device, got {x.dtype} on {x.device} and {y.dtype} on {y.device}. "
            "Convert one of them: y = y.to(x)."
        )
    dtype = dtypes.pop() if dtypes else torch.get_default_dtype()
    for name, values in (("x", torch.atleast_1d(x)), ("y", torch.atleast_1d(y))):
        bad = (~values.isfinite()).reshape(len(values), -1).any(-1).nonzero()
        if len(bad):
            raise DataError(
                f"{name}: expected finite numbers, got {len(bad)} of {len(values)} rows with NaN or infinity, the "
                f"first at index {int(bad[0])}. Drop or impute them."
            )
    return x.to(dtype), y.to(dtype)


def equal_rows(x: Tensor) -> list[int]:
    """Return the indices of the first two rows of ``(*b, n, d)`` that are equal throughout the batch, or none.

    Example:
        >>> equal_rows(torch.tensor([[1.0], [2.0], [3.0], [2.0]])), equal_rows(torch.tensor([[1.0], [2.0]]))
        ([1, 3], [])
    """
    rows = x.movedim(-2, 0).flatten(1)
    _, kind, count = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    repeated = (count[kind] > 1).nonzero()
    return [int(i) for i in (kind == kind[repeated[0]]).nonzero()[:2]] if len(repeated) else []
