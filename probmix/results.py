"""Results on disk: what a fit leaves in its folder, and how to find it again."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from probmix.arviz import from_netcdf, to_netcdf
from probmix.errors import DataError
from probmix.formats import some
from probmix.posterior import AbstractPosterior
from probmix.report_pictures import PICTURES

__all__ = ["clear", "find_file", "open_trees", "refuse_overwriting", "save_posterior", "save_tree"]

_STEM = "posterior"
_FILES = (f"{_STEM}.safetensors", f"{_STEM}.nc", "table.txt", *(f"{name}.png" for name in PICTURES))


def save_posterior(posterior: AbstractPosterior, folder: Path, stem: str = _STEM) -> Path:
    """Write the fit as it was made, data included; `probmix.posterior.load_posterior` gives it back.

    Example:
        >>> import tempfile, torch
        >>> from probmix.inference import EM, infer
        >>> from probmix.models import GaussianMixture
        >>> em = infer(GaussianMixture(1), torch.tensor([[1.0], [2.0], [4.0]]), EM(), seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_posterior(em, Path(folder)).name
        'posterior.safetensors'
    """
    path = folder / f"{stem}.safetensors"
    posterior.save(path)
    return path


def save_tree(tree: Any, folder: Path, stem: str = _STEM) -> Path:
    """Write ArviZ's container to NetCDF.

    Example:
        >>> import tempfile, torch
        >>> from probmix.inference import EM, infer
        >>> from probmix.models import GaussianMixture
        >>> em = infer(GaussianMixture(1), torch.tensor([[1.0], [2.0], [4.0]]), EM(), seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_tree(em.to_arviz(), Path(folder)).name
        'posterior.nc'
    """
    path = folder / f"{stem}.nc"
    to_netcdf(tree, path)
    return path


def find_file(place: Path, suffix: str) -> Path:
    """Return the file of a result that has the suffix.

    Args:
        place: a folder that ``probmix fit`` wrote, or the file itself.
        suffix: ``".safetensors"`` or ``".nc"``.

    Raises:
        DataError: nothing there; the message names what there is.

    Example:
        >>> find_file(Path("no-such-folder"), ".nc")
        Traceback (most recent call last):
        probmix.errors.DataError: no-such-folder: no such folder. Check the path.
    """
    if place.is_file() and place.suffix == suffix:
        return place
    if place.is_file():
        raise DataError(f"{place}: expected a folder, or a file that ends in {suffix}. Name one of these.")
    if not place.is_dir():
        raise DataError(f"{place}: no such folder. {_nearest(place)}")
    if (place / f"{_STEM}{suffix}").is_file():
        return place / f"{_STEM}{suffix}"
    others = sorted(place.glob(f"*{suffix}"))
    advice = f"Name one of its files: {some(others)}." if others else "Name a folder that probmix fit wrote."
    raise DataError(f"{place}: expected a result, found no {_STEM}{suffix} there. {advice}")


def open_trees(places: Sequence[Path]) -> dict[str, Any]:
    """Read ArviZ's containers of several results, named after their folders or files.

    Args:
        places: as for `find_file`.

    Raises:
        DataError: nothing there, not NetCDF, or the same result twice.

    Example:
        >>> open_trees([])
        {}
    """
    files = {place: find_file(place, ".nc") for place in places}
    if len({file.resolve() for file in files.values()}) < len(places):
        raise DataError(f"expected each result once, got {some(places)}. Name different ones.")
    names = [_short_name(place) for place in places]
    twice = len(set(names)) < len(names)
    return {str(place) if twice else name: _open(files[place]) for place, name in zip(places, names, strict=True)}


def refuse_overwriting(folder: Path) -> None:
    """Raise if the folder holds a result.

    Raises:
        DataError: it does.

    Example:
        >>> refuse_overwriting(Path("no-such-folder"))
    """
    found = [name for name in _FILES[:2] if (folder / name).exists()]
    if found:
        raise DataError(
            f"{folder}: expected a folder without a result, found {some(found)}. "
            "Choose another --out, or add --force to replace it."
        )


def clear(folder: Path) -> None:
    """Remove the files of an earlier result, so that none of its pictures is taken for one of the next.

    Example:
        >>> clear(Path("no-such-folder"))
    """
    if any((folder / name).exists() for name in _FILES[:2]):
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)


def _short_name(place: Path) -> str:
    return place.stem if place.is_file() else place.resolve().name


def _open(file: Path) -> Any:
    try:
        return from_netcdf(file)
    except (OSError, ValueError) as reason:
        raise DataError(f"{file}: cannot be read as NetCDF ({reason}). Fit again, or name another result.") from reason


def _nearest(place: Path) -> str:
    parent = place.parent
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    near = get_close_matches(place.name, names, n=1)
    return f"Did you mean {parent / near[0]}?" if near else "Check the path."
