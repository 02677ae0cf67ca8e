"""Leave-one-out scores of saved results, and their comparison, with ArviZ 0.x and 1.x alike."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import arviz as az
import numpy as np
import pandas as pd

from probmix.errors import DataError, MethodError

__all__ = ["Score", "compare", "leave_one_out"]

# Pareto smoothing fits the largest fifth of the draws, and wants five values there.
_FEWEST_DRAWS = 25

_NEW_NAMES = {"elpd": "elpd_loo", "p": "p_loo"}  # ArviZ 1.x -> 0.x


class Score(NamedTuple):
    """How well a result predicts each row from all the others.

    Args:
        elpd_loo: expected log pointwise predictive density, nats, summed over the rows; higher is better.
        se: its standard error.
        worst_pareto_k: above 0.7 the estimate is not to be trusted.

    Example:
        >>> Score(-1141.4, 17.0, 0.4).elpd_loo
        -1141.4
    """

    elpd_loo: float
    se: float
    worst_pareto_k: float


def leave_one_out(tree: Any) -> Score | None:
    """Return the Pareto-smoothed leave-one-out score of a container with a ``log_likelihood`` group.

    A point and fewer than 25 draws have none: None.

    A guide's draws count as draws from the posterior: its score is as good as the guide is.

    Args:
        tree: what ``posterior.to_arviz()`` or `probmix.arviz.from_netcdf` returns, labels matched (the autocorrelation
            of the draws enters the score).

    Source:
        Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and
        WAIC, Statistics and Computing 27, 1413-1432.

    Example:
        >>> from probmix.arviz import Group, convert
        >>> rng = np.random.default_rng(0)
        >>> mu, x = rng.normal(0, 0.1, (4, 100)), rng.normal(size=50)
        >>> log_density = -0.5 * (x - mu[..., None]) ** 2 - 0.5 * np.log(2 * np.pi)
        >>> tree = convert({"posterior": Group({"mu": mu}), "log_likelihood": Group({"x": log_density})})
        >>> leave_one_out(tree).worst_pareto_k < 0.7
        True
    """
    if "log_likelihood" not in _groups(tree) or _num_draws(tree) < _FEWEST_DRAWS:
        return None
    elpd = _elpd(tree)
    return Score(
        float(elpd.elpd if hasattr(elpd, "elpd") else elpd.elpd_loo), float(elpd.se), float(np.max(elpd.pareto_k))
    )


def compare(trees: Mapping[str, Any]) -> pd.DataFrame:
    """Return ArviZ's comparison of results by leave-one-out, best first.

    Args:
        trees: name -> container, at least two.

    Returns:
        One row for each name: ``rank``, ``elpd_loo``, ``se``, ``elpd_diff`` (how much below the best), ``dse`` (its
        standard error), ``weight`` (stacking), ``p_loo`` (effective number of parameters), ``worst_pareto_k``.

    Raises:
        DataError: fewer than two results, too few draws, or results of different data.
        MethodError: a point, which has no spread to average over.

    Source:
        Yao, Vehtari, Simpson and Gelman (2018), Using stacking to average Bayesian predictive distributions, Bayesian
        Analysis 13, 917-1007, for the weights.

    Example:
        >>> from probmix.arviz import Group, convert
        >>> rng = np.random.default_rng(0)
        >>> x, trees = rng.normal(size=50), {}
        >>> for name, loc in {"good": 0.0, "off": 1.0}.items():
        ...     mu = rng.normal(loc, 0.1, (4, 100))
        ...     log_density = -0.5 * (x - mu[..., None]) ** 2 - 0.5 * np.log(2 * np.pi)
        ...     groups = {"posterior": {"mu": mu}, "log_likelihood": {"x": log_density}}
        ...     trees[name] = convert({group: Group(values) for group, values in groups.items()})
        >>> compare(trees).index.tolist()
        ['good', 'off']
    """
    if len(trees) < 2:
        raise DataError(f"expected two results or more to compare, got {len(trees)}: {list(trees)}. Name another one.")
    for name, tree in trees.items():
        _require_draws(name, tree)
    _require_same_data(trees)
    elpds = {name: _elpd(tree) for name, tree in trees.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a large Pareto k has a column of its own
        table = az.compare(elpds, **_unrounded()).rename(columns=_NEW_NAMES)
    table["worst_pareto_k"] = [float(np.max(elpds[name].pareto_k)) for name in table.index]
    columns = ["rank", "elpd_loo", "se", "elpd_diff", "dse", "weight", "p_loo", "worst_pareto_k"]
    return table[columns].assign(elpd_diff=table["elpd_diff"].abs())  # the sign differs between versions of ArviZ


def _unrounded() -> dict[str, Any]:
    """ArviZ 1.x rounds to what the errors allow and returns text; numbers are wanted."""
    return {"round_to": "none"} if "round_to" in inspect.signature(az.compare).parameters else {}


def _elpd(tree: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a large Pareto k is part of the answer
        return az.loo(tree, pointwise=True)


def _groups(tree: Any) -> set[str]:
    return {str(name) for name in (tree.children if hasattr(tree, "children") else tree.groups())}


def _require_draws(name: str, tree: Any) -> None:
    groups = _groups(tree)
    if "point_estimate" in groups:
        raise MethodError(
            f"{name} is a single point, which leave-one-out has nothing to average over. "
            "Fit the same data with --method svi or --method nuts and compare those."
        )
    if "log_likelihood" not in groups:
        raise DataError(
            f"{name}: expected a group log_likelihood, got {sorted(groups)}. Write it with "
            "to_arviz(log_likelihood=True)."
        )
    if _num_draws(tree) < _FEWEST_DRAWS:
        raise DataError(
            f"{name}: expected {_FEWEST_DRAWS} draws or more, got {_num_draws(tree)}. Fit it again with more --draws."
        )


def _require_same_data(trees: Mapping[str, Any]) -> None:
    """Scores are sums over rows, so that they compare only for the very same rows."""
    first, *others = trees
    for name in others:
        sizes = [_num_rows(trees[n]) for n in (first, name)]
        if sizes[0] != sizes[1]:
            raise DataError(
                f"expected results of the same data, got {sizes[0]} rows in {first} and {sizes[1]} in {name}. "
                "Fit both to the same rows."
            )
        if not _same_observations(trees[first], trees[name]):
            raise DataError(
                f"expected results of the same data, but {first} and {name} hold other values or columns. "
                "Fit both to the same file with the same --columns."
            )


def _num_rows(tree: Any) -> int:
    return sum(int(np.prod(value.shape[2:])) for value in tree["log_likelihood"].data_vars.values())


def _num_draws(tree: Any) -> int:
    sizes = tree["log_likelihood"].sizes
    return int(sizes["chain"] * sizes["draw"])


def _same_observations(one: Any, other: Any) -> bool:
    if not all("observed_data" in _groups(tree) for tree in (one, other)):
        return True  # nothing to tell them apart by
    ours, theirs = ({k: v.values for k, v in t["observed_data"].data_vars.items()} for t in (one, other))
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
