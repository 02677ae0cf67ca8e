"""Failed factorisations as values: the factor of a matrix that is not positive definite is NaN, nothing is raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Lenient", "is_failed_factorisation"]

aten = torch.ops.aten

#: Operation -> place of ``info`` among its results; 0 there means success.
_WITH_INFO = {aten.linalg_cholesky_ex.default: 1, aten.linalg_inv_ex.default: 1, aten._linalg_solve_ex.default: 3}


#: Errors of torch and of linear_operator (GPyTorch), by name, as the latter need not be installed.
_ERRORS = {"_LinAlgError", "LinAlgError", "NanError", "NotPSDError"}


def is_failed_factorisation(error: Exception) -> bool:
    """Whether an error says that a matrix could not be factorised, at the values of this call.

    Example:
        >>> is_failed_factorisation(torch.linalg.LinAlgError("not positive definite"))
        True
    """
    return any(cls.__name__ in _ERRORS for cls in type(error).__mro__)


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
