"""Tensors inside named tuples, dataclasses and mappings, all changed alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

__all__ = ["map_tensors", "tensors_in"]


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a copy of a nested value with a function applied to every tensor in it; all else stays as it is.

    Statistics of components are of whatever type their family has, but every tensor in them has the batch in front.

    Example:
        >>> import torch
        >>> map_tensors(lambda x: x[0], {"count": torch.tensor([3, 4]), "parts": (torch.tensor([5]), "name")})
        {'count': tensor(3), 'parts': (tensor(5), 'name')}
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: map_tensors(function, part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [map_tensors(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: map_tensors(function, getattr(value, name)) for name in names})
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in a nested value.

    Example:
        >>> import torch
        >>> [x.shape for x in tensors_in({"a": torch.zeros(2), "b": (torch.zeros(3), 1.0)})]
        [torch.Size([2]), torch.Size([3])]
    """
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, value)
    yield from found
