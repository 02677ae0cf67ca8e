"""Where things are, for the tests that look at the source itself."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]

#: Package -> its folder.
ROOMS = {"probmix": ROOT / "probmix", "probmix.models": ROOT / "models", "probmix.inference": ROOT / "inference"}

#: The hall's modules that a user meets first: they alone may import the two other rooms.
FRONT = {
    "probmix.__main__", "probmix.bootstrap", "probmix.calibration", "probmix.classification", "probmix.cli",
    "probmix.demo", *(f"probmix.{file.stem}" for file in ROOMS["probmix"].glob("estimators*.py")), "probmix.selection",
}  # fmt: skip


def sources() -> dict[str, Path]:
    """Module name -> file, for every module of the three packages."""
    return {
        package if file.stem == "__init__" else f"{package}.{file.stem}": file
        for package, folder in ROOMS.items()
        for file in sorted(folder.glob("*.py"))
    }


def scripts() -> list[Path]:
    """All other Python files of the repository."""
    return [file for folder in ("tests", "tutorials", "benchmarks") for file in sorted((ROOT / folder).rglob("*.py"))]


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def module_names() -> list[str]:
    """Every module as Python itself finds it, by its mapped name, but for ``__main__``, which runs when imported."""
    packages = [(name, importlib.import_module(name)) for name in ROOMS]
    found = {name for name, _ in packages}
    for name, package in packages:
        found |= {f"{name}.{module.name}" for module in pkgutil.iter_modules(package.__path__)}
    return sorted(name for name in found if not name.endswith("__main__"))


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The functions and classes of ``__all__`` that are written in this module."""
    for name in module.__all__:
        thing = getattr(module, name)
        if callable(thing) and getattr(thing, "__module__", None) == module.__name__:
            yield name, thing
