"""Arrays become ArviZ's container: ``InferenceData`` for ArviZ 0.x, ``xarray.DataTree`` for ArviZ 1.x."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import xarray as xr

__all__ = ["Group", "convert", "ess", "from_netcdf", "pareto_k", "rhat", "to_netcdf"]

_INFERENCE_DATA = int(az.__version__.split(".")[0]) < 1  # ArviZ 1.x still has a shim of that name


@dataclass(frozen=True)
class Group:
    """One group of a result: its variables and the names of the axes that they all begin with.

    Args:
        variables: name -> array.
        leading: ``("chain", "draw")`` for draws, ``()`` for data.
        dims: variable -> axis names that hold in this group only.
        attrs: notes that travel with the group.
    """

    variables: Mapping[str, Any]
    leading: tuple[str, ...] = ("chain", "draw")
    dims: Mapping[str, Sequence[str]] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)


def convert(
    groups: Mapping[str, Group],
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Return ArviZ's container with the given groups.

    Args:
        groups: group name (``posterior``, ``sample_stats``, ``log_likelihood``, ...) -> `Group`.
        dims: variable -> names of the axes after the leading ones; ``variable_dim_i`` where absent.
        coords: axis name -> labels; 0, 1, 2, ... where absent.

    Returns:
        ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with ArviZ 1.x.

    Raises:
        ValueError: an array has fewer axes than its group's leading ones.

    Example:
        >>> tree = convert({"posterior": Group({"loc": np.zeros((4, 100, 2))})}, dims={"loc": ["component"]})
        >>> dict(tree["posterior"].sizes)
        {'chain': 4, 'draw': 100, 'component': 2}
    """
    datasets = {
        name: _dataset(name, group, {**(dims or {}), **group.dims}, coords or {}) for name, group in groups.items()
    }
    if _INFERENCE_DATA:
        return az.InferenceData(**datasets, warn_on_custom_groups=False)
    return xr.DataTree.from_dict(datasets)


def to_netcdf(result: Any, path: str | Path) -> None:
    """Write a container of either ArviZ line to one NetCDF file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     to_netcdf(convert({"posterior": Group({"loc": np.zeros((2, 5))})}), f"{folder}/fit.nc")
        ...     from_netcdf(f"{folder}/fit.nc")["posterior"]["loc"].shape
        (2, 5)
    """
    result.to_netcdf(str(path), engine="h5netcdf")


def from_netcdf(path: str | Path) -> Any:
    """Read what `to_netcdf` wrote; the example is there.

    Example:
        >>> from_netcdf("no such file")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        FileNotFoundError: ...
    """
    return az.from_netcdf(str(path), engine="h5netcdf")


def _dataset(
    name: str, group: Group, dims: Mapping[str, Sequence[str]], coords: Mapping[str, Sequence[Any]]
) -> xr.Dataset:
    variables = {}
    for variable, value in group.variables.items():
        array = np.asarray(value)
        if array.ndim < len(group.leading):
            raise ValueError(
                f"{name}/{variable}: expected leading axes {group.leading}, got an array of shape {array.shape}. "
                "Stack the draws along the first axes."
            )
        variables[variable] = ([*group.leading, *_axes(variable, array.ndim - len(group.leading), dims)], array)
    dataset = xr.Dataset(variables, attrs=dict(group.attrs))
    return dataset.assign_coords({axis: _labels(axis, size, coords) for axis, size in dataset.sizes.items()})


def _axes(variable: str, count: int, dims: Mapping[str, Sequence[str]]) -> list[str]:
    given = list(dims.get(variable, ()))
    return given if len(given) == count else [f"{variable}_dim_{i}" for i in range(count)]


def _labels(axis: Any, size: int, coords: Mapping[str, Sequence[Any]]) -> Any:
    labels = coords.get(axis, ())
    return list(labels) if len(labels) == size else np.arange(size)


def ess(values: Any) -> np.ndarray:
    """Return ArviZ's bulk effective sample size of an array ``(chain, draw, ...)``, shape ``(...)``.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 500, 2))
        >>> bool((ess(draws) > 1000).all())
        True
    """
    return _diagnose(az.ess, values)


def rhat(values: Any) -> np.ndarray:
    """Return ArviZ's rank-normalised split r-hat of an array ``(chain, draw, ...)``, shape ``(...)``.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> bool(rhat(draws) < 1.01), bool(rhat(draws + np.arange(4)[:, None]) > 1.5)
        (True, True)
    """
    return _diagnose(az.rhat, values)


def pareto_k(log_ratios: Any) -> float:
    """Return the Pareto k of log importance ratios ``(draw,)``: the shape of the tail of their exponentials.

    Ratios have ``1 / k`` finite moments: below 0.5 a finite variance, from 1 on not even a mean. A ratio of -inf is a
    draw without weight. NaN where no draw has a weight.

    Source:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling.

    Example:
        >>> tail = np.random.default_rng(0).exponential(size=4000)  # exp(tail) has P(ratio > r) = 1 / r
        >>> 0.8 < pareto_k(tail) < 1.2, pareto_k(0.1 * tail) < 0.4
        (True, True)
    """
    values = np.sort(np.asarray(log_ratios, dtype=np.float64))
    top = values[-1]
    if not np.isfinite(top):
        return float("inf") if top > 0 else float("nan")
    if top - values[-_tail_draws(len(values))] < 1e-9:  # equal but for rounding: bounded, no tail to fit
        return 0.0
    with np.errstate(all="ignore"):
        k = az.psislw(values)[1] if _INFERENCE_DATA else _negated(values).azstats.psislw()[1]
    return float("inf") if np.isnan(k) else float(k)  # not a number: a few draws tower over all others


def _tail_draws(num: int) -> int:
    return int(np.ceil(min(num / 5, 3 * num**0.5)))


def _negated(log_ratios: np.ndarray) -> xr.DataArray:
    """ArviZ 1.x wants log-likelihoods, whose ratios are the inverse."""
    return xr.DataArray(-log_ratios[None], dims=("chain", "draw"))


def _diagnose(statistic: Any, values: Any) -> np.ndarray:
    result = statistic(convert({"posterior": Group({"value": values})}))
    return np.asarray(result["value"])
