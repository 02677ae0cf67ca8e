"""The data of a fit, as the arguments of a program's call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probmix.errors import DataError
from probmix.typing import Observing, Program

__all__ = ["Arguments"]

_SMALL = 2**17  # numbers; torch itself splits no elementwise operation below 2**15, but its linear algebra does


@dataclass(frozen=True)
class Arguments:
    """Positional and named arguments of a program, with the column names that came with them.

    Args:
        args: positional arguments; arrays have become tensors.
        kwargs: named arguments, likewise.
        feature_names: column names of the data frame, when there was one.

    Example:
        >>> Arguments.of(np.zeros((3, 2))).args[0].shape
        torch.Size([3, 2])
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    feature_names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, data: Any) -> Arguments:
        """Unpack ``data``: a mapping gives named arguments, a tuple positional ones, anything else a single one.

        Raises:
            DataError: a table or array holds text or objects.
        """
        if isinstance(data, Arguments):
            return data
        if isinstance(data, Mapping):
            return cls((), {name: _tensor(value, name) for name, value in data.items()}, _names(*data.values()))
        values = data if isinstance(data, tuple) else (data,)
        return cls(tuple(_tensor(v, f"argument {i}") for i, v in enumerate(values)), {}, _names(*values))

    def checked_by(self, program: Program) -> Arguments:
        """Return the arguments after the program's own check of its data, if it has one.

        Raises:
            DataError: from the program, or because a self-checking program got no single tensor.
        """
        if not isinstance(program, Observing):
            return self
        values = [*self.args, *(self.kwargs or {}).values()]
        signature = inspect.signature(program.observe)
        names = [f"*{name}" if p.kind is p.VAR_POSITIONAL else name for name, p in signature.parameters.items()]
        if not _takes(signature, values) or not all(isinstance(value, Tensor) for value in values):
            tables = "one table of data" if len(names) == 1 else f"{len(names)} tables of data ({', '.join(names)})"
            remedy = "the table itself" if len(names) == 1 else f"({', '.join(names)})"
            raise DataError(
                f"{type(program).__name__} takes {tables} (tensor, array or data frame of shape "
                f"(rows, columns)); got {len(values)} arguments of types {[type(v).__name__ for v in values]}. "
                f"Pass {remedy} as `data`."
            )
        checked = program.observe(*values)
        return replace(self, args=checked if isinstance(checked, tuple) else (checked,), kwargs={})

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in call order."""
        return [v for v in (*self.args, *(self.kwargs or {}).values()) if isinstance(v, Tensor)]

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the data; torch's default where there is none."""
        return next((t.dtype for t in self.tensors if t.is_floating_point()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """The device of the data."""
        return next((t.device for t in self.tensors), torch.device("cpu"))

    def threads(self, program: object = None) -> int | None:
        """Threads worth using: one for little work, whose operations are over before a second thread has woken up.

        Args:
            program: may say how many numbers an operation of its work goes through (``num_elements(*data)``); else
                those of the data count.
        """
        count = getattr(program, "num_elements", None)
        numbers = sum(t.numel() for t in self.tensors) if count is None else count(*self.tensors)
        return 1 if numbers < _SMALL else None

    def with_tensors(self, tensors: Sequence[Tensor]) -> Arguments:
        """Return the arguments with other tensors in the place of theirs, in call order."""
        rest = iter(tensors)
        args = tuple(next(rest) if isinstance(v, Tensor) else v for v in self.args)
        kwargs = {name: next(rest) if isinstance(v, Tensor) else v for name, v in (self.kwargs or {}).items()}
        return replace(self, args=args, kwargs=kwargs)

    def require_like(self, other: Arguments, *, leading: int = 0) -> None:
        """Raise unless the tensors have the shapes and dtypes of another call's, ``leading`` axes aside.

        Raises:
            DataError: it names the argument, both shapes and the next step.
        """
        ours, theirs = self._named(), other._named()
        if list(ours) != list(theirs):
            raise DataError(f"expected the arguments {list(theirs)}, got {list(ours)}. Pass data of the same kind.")
        for name, (value, like) in ((n, (ours[n], theirs[n])) for n in ours):
            if not isinstance(value, Tensor) or not isinstance(like, Tensor):
                continue
            if value.shape[leading:] != like.shape or value.dtype != like.dtype or value.dim() < leading:
                raise DataError(
                    f"{name}: expected shape {tuple(like.shape)}{' after a leading axis of data sets' * leading} and "
                    f"dtype {like.dtype}, as in the data that the program was traced with, got {tuple(value.shape)} "
                    f"and {value.dtype}. For data of another shape make a new LogDensity, or call infer again."
                )

    def _named(self) -> dict[str, Any]:
        return {**{f"argument {i}": v for i, v in enumerate(self.args)}, **(self.kwargs or {})}

    def call(self, program: Program) -> Any:
        """Return ``program(*args, **kwargs)``."""
        return program(*self.args, **(self.kwargs or {}))


def _takes(signature: inspect.Signature, values: Sequence[Any]) -> bool:
    try:
        signature.bind(*values)
    except TypeError:
        return False
    return True


def _tensor(value: Any, name: str) -> Any:
    """Arrays and tables become tensors; every other object passes as it is."""
    if isinstance(value, pd.DataFrame | pd.Series):
        value = _table(value, name)
    if isinstance(value, list):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise DataError(
                f"{name}: expected numbers, got an array of dtype {value.dtype}. Convert or drop the columns of text."
            )
        return torch.as_tensor(np.ascontiguousarray(value).copy())
    return value


def _table(table: pd.DataFrame | pd.Series, name: str) -> np.ndarray:
    frame = table.to_frame() if isinstance(table, pd.Series) else table
    text = [str(c) for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
    if text:
        numeric = [str(c) for c in frame.columns if str(c) not in text]
        raise DataError(
            f"{name}: expected columns of numbers, got text or objects in {text}. "
            f"Keep the numeric ones, e.g. data[{numeric!r}], or encode the others as numbers first."
        )
    return table.to_numpy()


def _names(*values: Any) -> tuple[str, ...] | None:
    frames = [v for v in values if isinstance(v, pd.DataFrame)]
    return tuple(map(str, frames[0].columns)) if frames else None
