"""What the pictures share on the way in: arrays, names and sites, checked, and a model evaluated on points."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from probmix.errors import DataError, ProgramError
from probmix.typing import Dims, Sites

__all__ = [
    "FloatArray",
    "Mixture",
    "Values",
    "check_features",
    "check_names",
    "evaluate",
    "flatten_draws",
    "thin",
    "to_finite",
    "to_numbers",
    "to_table",
]

FloatArray: TypeAlias = npt.NDArray[np.float64]
Values: TypeAlias = Tensor | npt.ArrayLike

# Table entries (draws x points x components) computed at once: 16 MB in float64.
_BLOCK_ENTRIES = 2_000_000


class Mixture(Protocol):
    """What a picture asks of a mixture model; ``probmix.models.GaussianMixture`` is one."""

    @property
    def dims(self) -> Dims:
        """Names of the axes of each site after its draw axes."""
        ...

    def log_prob(self, x: Tensor, sites: Sites) -> Tensor:
        """Return the log density of each row, ``(*b, n)``."""
        ...

    def log_prob_components(self, x: Tensor, sites: Sites) -> Tensor:
        """Return log weight plus log density of every row under every component, ``(*b, n, k)``."""
        ...

    def responsibilities(self, x: Tensor, sites: Sites) -> Tensor:
        """Return the probability of every component given each row, ``(*b, n, k)``."""
        ...


def to_numbers(values: Values, name: str) -> FloatArray:
    """Return tensors (any device, with or without gradients), arrays, lists or data frames as a float64 array.

    Raises:
        DataError: text or objects.

    Example:
        >>> to_numbers(torch.ones(2, requires_grad=True), "x")
        array([1., 1.])
    """
    try:
        if isinstance(values, Tensor):
            return values.detach().cpu().double().numpy()
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name}: expected an array of numbers, got {type(values).__name__} with other entries. Convert them first."
        ) from error


def to_finite(values: Values, name: str) -> FloatArray:
    """Return the values as a float64 array.

    Raises:
        DataError: text, objects, NaN or infinity.

    Example:
        >>> to_finite([1, 2], "x")
        array([1., 2.])
    """
    array = to_numbers(values, name)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        first = tuple(map(int, bad[0]))
        raise DataError(f"{name}: expected finite numbers, got {len(bad)} others, first at {first}. Drop or fill them.")
    return array


def to_table(values: Values, name: str) -> FloatArray:
    """Return the data as (N, D); (N,) becomes (N, 1).

    Raises:
        DataError: another number of axes, no rows, values that are not finite.

    Example:
        >>> to_table([1.0, 2.0], "x").shape
        (2, 1)
    """
    array = to_finite(values, name)
    table = array[:, None] if array.ndim == 1 else array
    if table.ndim != 2 or table.size == 0:
        raise DataError(f"{name}: expected a table (rows, columns) of at least one row, got {array.shape}. Reshape it.")
    return table


def check_names(names: Sequence[str] | None, data: object, num_features: int) -> list[str]:
    """Return one name per feature: those given, else the columns of a data frame, else ``feature 0``, ...

    Raises:
        DataError: another number of names.

    Example:
        >>> check_names(None, np.zeros((3, 2)), 2)
        ['feature 0', 'feature 1']
    """
    if names is None:
        names = getattr(data, "columns", [f"feature {i}" for i in range(num_features)])
    found = [str(name) for name in names]
    if len(found) != num_features:
        raise DataError(
            f"feature_names: expected {num_features}, one per feature, got {len(found)}: {found}. Name all."
        )
    return found


def check_features(features: Sequence[int], num_features: int, *, fewest: int = 1) -> list[int]:
    """Return the columns to draw; a single column needs no choice.

    Raises:
        DataError: columns that are not there, repeated, or not ``fewest`` to 2 of them.

    Example:
        >>> check_features((0, 1), 1)
        [0]
    """
    if num_features == 1:
        return [0]
    try:
        chosen = [operator.index(i) for i in features]
    except TypeError as error:
        raise DataError(f"features: expected numbers of columns such as (0, 1), got {features!r}.") from error
    if not fewest <= len(chosen) <= 2 or len(set(chosen)) < len(chosen):
        count = "2" if fewest == 2 else "1 or 2"
        raise DataError(
            f"features: expected {count} different columns, got {chosen}. Draw further ones in another picture."
        )
    if not all(0 <= i < num_features for i in chosen):
        raise DataError(
            f"features: expected columns from 0 to {num_features - 1}, got {chosen}. "
            f"The data have {num_features} columns, counted from 0."
        )
    return chosen


def flatten_draws(dims: Dims, sites: Mapping[str, Values], num_features: int) -> Sites:
    """Return the sites with all draw axes flattened into one, (S, ...), checked against one another and the data.

    Raises:
        ProgramError: a site that is missing, not finite, or of a shape that does not fit.

    Example:
        >>> flatten_draws({"loc": ("component", "feature")}, {"loc": np.zeros((4, 5, 3, 2))}, 2)["loc"].shape
        torch.Size([20, 3, 2])
    """
    sizes = {"feature": num_features}
    flat = {name: _flat_site(name, sites, axes, sizes) for name, axes in dims.items()}
    num_draws = max(len(value) for value in flat.values())
    for name, value in flat.items():
        if len(value) not in (1, num_draws):
            raise ProgramError(
                f"site {name!r}: expected {num_draws} draws like the longest site, got {len(value)}. "
                "Keep the same draws of all sites."
            )
    return {name: value.to(flat["loc"]).expand(num_draws, *value.shape[1:]) for name, value in flat.items()}


def _flat_site(name: str, sites: Mapping[str, Values], axes: tuple[str, ...], sizes: dict[str, int]) -> Tensor:
    if name not in sites:
        raise ProgramError(f"sites: expected {name!r} with the axes {axes}, got only {sorted(sites)}. Add it.")
    value = sites[name]
    value = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, dtype=float, order="C"))
    value = value if value.is_floating_point() else value.double()
    shape = tuple(value.shape)
    if not value.isfinite().all():
        raise ProgramError(
            f"site {name!r}: expected finite values, got NaN or infinity. Leave out the draws that failed."
        )
    if len(shape) < len(axes):
        raise ProgramError(f"site {name!r}: expected the last axes {axes}, got the shape {shape}. Reshape it.")
    trailing = shape[len(shape) - len(axes) :]
    for axis, size in zip(axes, trailing, strict=True):
        expected = sizes.setdefault(axis.removesuffix("_bis"), size)
        if size != expected:
            raise ProgramError(
                f"site {name!r}: expected the size {expected} along {axis!r}, got {size} in the shape {shape}. "
                "Pass the sites of a fit to data with these features."
            )
    return value.reshape(-1, *trailing)


def thin(flat: Sites, most: int) -> Sites:
    """Return at most ``most`` evenly spaced draws of sites (S, ...).

    Example:
        >>> thin({"loc": torch.arange(9.0)}, 3)["loc"]
        tensor([0., 4., 8.])
    """
    num_draws = min(len(value) for value in flat.values())
    keep = np.linspace(0, num_draws - 1, min(most, num_draws)).round().astype(int)
    return {name: value[keep] for name, value in flat.items()}


def evaluate(function: Callable[[Tensor, Sites], Tensor], points: FloatArray, flat: Sites) -> FloatArray:
    """Return ``function(points, sites)`` for sites (S, ...), in blocks of draws so that memory stays small.

    Example:
        >>> flat = {"weights": torch.ones(3, 1), "loc": torch.zeros(3, 1, 1)}
        >>> evaluate(lambda x, sites: x[:, 0] + sites["loc"][:, 0], np.array([[1.0], [2.0]]), flat).shape
        (3, 2)
    """
    x = torch.from_numpy(np.array(points, order="C")).to(flat["loc"])
    num_draws, num_components = flat["weights"].shape
    step = max(1, _BLOCK_ENTRIES // (len(points) * num_components))
    with torch.no_grad():
        blocks = [
            function(x, {name: value[start : start + step] for name, value in flat.items()})
            for start in range(0, num_draws, step)
        ]
    return torch.cat(blocks).cpu().double().numpy()
