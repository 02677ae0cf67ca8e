"""Results as safetensors files: tensors bit for bit, everything else as JSON in the file's header; never pickle."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probmix.errors import DataError, ProgramError

__all__ = ["Missing", "read", "write"]


@dataclasses.dataclass(frozen=True)
class Missing:
    """Stands for an object that no data file can hold, such as a user's own function."""

    name: str

    def __call__(self, *args: object, **kwargs: object) -> None:
        """Refuse to run.

        Raises:
            ProgramError: always; it names what is missing.
        """
        raise ProgramError(f"{self.name!r} was not saved with the fit. Pass it to load_posterior(...).")


def write(path: str | Path, value: Any) -> None:
    """Write a dataclass of tensors, numbers, texts, tuples, mappings and further dataclasses and named tuples of ours.

    Raises:
        DataError: the folder does not exist or cannot be written.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write(f"{folder}/a", {"x": torch.ones(2), "note": ("text", 1)})
        ...     read(f"{folder}/a")
        {'x': tensor([1., 1.]), 'note': ('text', 1)}
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(value, tensors))
    try:
        save_file(tensors, str(path), metadata={"probmix": text})
    except (OSError, SafetensorError) as reason:
        raise DataError(f"expected a writable file, cannot write {path}: {reason}. Choose another path.") from reason


def read(path: str | Path) -> Any:
    """Read what `write` wrote, dtypes and classes included.

    Raises:
        DataError: no such file, or not one of ours.

    Example:
        >>> read("fit")
        Traceback (most recent call last):
            ...
        probmix.errors.DataError: expected a saved posterior, found no file fit. Check the path given to save().
    """
    if not Path(path).is_file():
        raise DataError(f"expected a saved posterior, found no file {path}. Check the path given to save().")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            text = (file.metadata() or {})["probmix"]
    except (SafetensorError, KeyError) as reason:
        raise DataError(
            f"expected a file written by posterior.save(), got another kind: {path} ({reason})."
        ) from reason
    return _decode(json.loads(text), tensors)


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[f"t{len(tensors)}"] = value.detach().contiguous().clone()  # a clone: no two entries may share memory
        return {"tensor": f"t{len(tensors) - 1}"}
    if isinstance(value, tuple) and hasattr(value, "_fields") and _is_ours(value):
        fields = {name: _encode(getattr(value, name), tensors) for name in value._fields}
        return {"class": _name_of(value), "fields": fields}
    if isinstance(value, tuple | list):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(v, tensors) for v in value]}
    if isinstance(value, Mapping):
        return {"dict": {str(k): _encode(v, tensors) for k, v in value.items()}}
    if dataclasses.is_dataclass(value) and _is_ours(value):
        fields = {f.name: _encode(getattr(value, f.name), tensors) for f in dataclasses.fields(value)}
        return {"class": _name_of(value), "fields": fields}
    return {"missing": getattr(value, "__qualname__", type(value).__qualname__)}


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = list(value.items())[:1]
    if kind == "tensor":
        return tensors[content]
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(_decode(v, tensors) for v in content)
    if kind == "dict":
        return {k: _decode(v, tensors) for k, v in content.items()}
    if kind == "missing":
        return Missing(content)
    return _class(content)(**{k: _decode(v, tensors) for k, v in value["fields"].items()})


def _is_ours(value: Any) -> bool:
    return type(value).__module__.startswith("probmix.")


def _name_of(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _class(name: str) -> Any:
    """Only dataclasses and named tuples of probmix are ever built: a file cannot name code of its own."""
    module, _, qualname = name.partition(":")
    found = getattr(importlib.import_module(module), qualname, None) if module.startswith("probmix.") else None
    named_tuple = isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")
    if not dataclasses.is_dataclass(found) and not named_tuple:
        raise DataError(
            f"expected a dataclass of probmix in the file, got {name!r}. The file was not written by save()."
        )
    return found
