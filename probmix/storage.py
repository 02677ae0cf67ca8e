"""Results as safetensors files: tensors bit for bit, everything else as JSON in the file's header; never pickle."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro.distributions as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributions import Distribution

from probmix.burr import BurrXII
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

    Also distributions of Pyro's, and `probmix.burr.BurrXII`, that their parameters make: ``InverseGamma(2.0, 2.0)``.
    Anything else, such as a function or a GPyTorch kernel, is read as `Missing`.

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
    part = Path(f"{path}.part")  # so that a file that is there stays whole if writing is broken off
    try:
        save_file(tensors, str(part), metadata={"probmix": text})
        part.replace(path)
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
    if isinstance(value, Distribution) and _is_made_of_its_parameters(value):
        fields = {name: _encode(getattr(value, name), tensors) for name in value.arg_constraints}
        return {"distribution": type(value).__name__, "fields": fields}
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
    cls = _distribution(content) if kind == "distribution" else _class(content)
    fields = {k: _decode(v, tensors) for k, v in value["fields"].items()}
    if issubclass(cls, tuple) or not any(isinstance(v, Missing) for v in fields.values()):
        return cls(**fields)
    unchecked = object.__new__(cls)  # __post_init__ would refuse what stands for something missing
    for name, field in fields.items():
        object.__setattr__(unchecked, name, field)
    return unchecked


def _is_ours(value: Any) -> bool:
    return type(value).__module__.startswith("probmix.")


def _name_of(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _is_made_of_its_parameters(value: Distribution) -> bool:
    """Whether Pyro or we have this class by its name, and it wants no other arguments than its parameters."""
    cls, parameters = type(value), inspect.signature(type(value).__init__).parameters.values()
    wanted = {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    known = BurrXII if cls is BurrXII else getattr(dist, cls.__name__, None)
    return known is cls and wanted - {"self"} == set(value.arg_constraints)


def _distribution(name: str) -> Any:
    """Only distributions are ever built, and only Pyro's and ours."""
    found = BurrXII if name == "BurrXII" else getattr(dist, name, None)
    if not isinstance(found, type) or not issubclass(found, Distribution):
        raise DataError(
            f"expected a distribution of Pyro's in the file, got {name!r}. The file was not written by save()."
        )
    return found


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
