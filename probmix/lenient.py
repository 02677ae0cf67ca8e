"""Failed factorisations as values: the factor of a matrix that is not positive definite is NaN, nothing is raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Lenient"]

aten = torch.ops.aten

#: Operation -> place of ``info`` among its results; 0 there means success.
_WITH_INFO = {aten.linalg_cholesky_ex.default: 1, aten.linalg_inv_ex.default: 1, aten._linalg_solve_ex.default: 3}


class Lenient(TorchDispatchMode):
    """Inside, factorisations that fail give NaN in their place in the batch: one bad chain does not stop the others.

    Example:
        >>> with Lenient():
        ...     torch.linalg.cholesky(torch.stack([torch.eye(1), -torch.eye(1)])).flatten()
        tensor([1., nan])
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        if func is aten._linalg_check_errors.default:
            return None
        results = func(*args, **(kwargs or {}))
        if func not in _WITH_INFO:
            return results
        value, *others = results
        info = results[_WITH_INFO[func]]
        failed = (info != 0).reshape(*info.shape, *[1] * (value.dim() - info.dim()))
        return (torch.where(failed, torch.nan, value), *others)
