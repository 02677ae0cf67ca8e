"""Columns of a mixed table: what each one holds, and how it becomes numbers and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import pandas as pd

from probmix.errors import DataError

__all__ = ["Column", "ColumnFamily", "columns_of", "decode", "encode"]

ColumnFamily: TypeAlias = Literal["gaussian", "poisson", "bernoulli", "categorical", "exponential"]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: its name in the table.
        family: what is thought to have made it.
        levels: the levels of a categorical column, in the order of their codes.

    Example:
        >>> Column("colour", "categorical", ("blue", "red")).levels
        ('blue', 'red')
    """

    name: Hashable
    family: ColumnFamily
    levels: tuple[Hashable, ...] = ()


def columns_of(frame: pd.DataFrame, families: Mapping[Hashable, ColumnFamily] | None = None) -> tuple[Column, ...]:
    """Say what each column holds: the dtype decides, unless ``families`` names the column.

    Floating-point numbers are gaussian; whole numbers poisson, or gaussian where one is negative; truth values
    bernoulli; categories and text categorical, with the categories (of text, the sorted values) as levels.

    Raises:
        DataError: a name that is not in the table or twice, an unknown family, a dtype without one, or a categorical
            column without two levels.

    Example:
        >>> frame = pd.DataFrame({"size": [1.5, 2.0], "visits": [3, 0], "colour": ["red", "blue"]})
        >>> [column.family for column in columns_of(frame)]
        ['gaussian', 'poisson', 'categorical']
    """
    families = families or {}
    _check_names(frame, families)
    return tuple(_column(frame[name], families.get(name)) for name in frame.columns)


def encode(frame: pd.DataFrame, columns: Sequence[Column]) -> np.ndarray:
    """Return the columns as numbers, ``(N, D)`` float64, in the order of ``columns``; other columns are left out.

    Raises:
        DataError: a column is missing, a cell is empty or no number, or a level is unknown; it names the row.

    Example:
        >>> encode(pd.DataFrame({"colour": ["red", "blue"]}), [Column("colour", "categorical", ("blue", "red"))])
        array([[1.],
               [0.]])
    """
    missing = [column.name for column in columns if column.name not in frame.columns]
    if missing:
        raise DataError(f"expected the columns {[c.name for c in columns]}, got a table without {missing}: add them")
    return np.column_stack([_codes(frame[column.name], column) for column in columns])


def decode(table: np.ndarray, columns: Sequence[Column]) -> pd.DataFrame:
    """Return numbers ``(N, D)`` as the table that `encode` makes them of: levels, counts, truth values.

    Example:
        >>> decode(np.array([[1.0]]), [Column("colour", "categorical", ("blue", "red"))]).to_dict("list")
        {'colour': ['red']}
    """
    return pd.DataFrame({column.name: _values(table[:, i], column) for i, column in enumerate(columns)})


def _check_names(frame: pd.DataFrame, families: Mapping[Hashable, ColumnFamily]) -> None:
    if not frame.columns.is_unique:
        raise DataError(f"expected columns with different names, got {list(frame.columns)}: rename some")
    unknown = [name for name in families if name not in frame.columns]
    if unknown:
        raise DataError(f"families: expected names among {list(frame.columns)}, got {unknown}: correct them")
    wrong = {name: family for name, family in families.items() if family not in get_args(ColumnFamily)}
    if wrong:
        raise DataError(
            f"families: expected one of {', '.join(get_args(ColumnFamily))}, got {wrong}: pass one of these"
        )


def _column(values: pd.Series, family: ColumnFamily | None) -> Column:
    family = family or _family(values)
    if family != "categorical":
        return Column(values.name, family)
    categorical = isinstance(values.dtype, pd.CategoricalDtype)
    levels = tuple(values.cat.categories if categorical else sorted(values.dropna().unique(), key=_order))
    if len(levels) < 2:
        raise DataError(f"column {values.name!r}: expected 2 levels or more, got {list(levels)}: drop the column")
    return Column(values.name, "categorical", levels)


def _order(value: Hashable) -> tuple[str, object]:
    return (type(value).__name__, value)


def _family(values: pd.Series) -> ColumnFamily:
    types = pd.api.types
    if types.is_bool_dtype(values.dtype):
        return "bernoulli"
    if isinstance(values.dtype, pd.CategoricalDtype) or types.is_object_dtype(values) or types.is_string_dtype(values):
        return "categorical"
    if types.is_integer_dtype(values):
        return "gaussian" if (values < 0).any() else "poisson"
    if types.is_float_dtype(values):
        return "gaussian"
    raise DataError(
        f"column {values.name!r}: expected numbers, truth values, categories or text, got {values.dtype}: convert the "
        "column (dates to days since a day of your choice), or drop it"
    )


def _codes(values: pd.Series, column: Column) -> np.ndarray:
    empty = np.flatnonzero(values.isna().to_numpy())
    if len(empty):
        raise DataError(
            f"column {column.name!r}: expected a value in each row, got {len(empty)} of {len(values)} empty, the first "
            f"in row {empty[0]} (counted from 0): drop those rows or fill them in"
        )
    if column.family != "categorical":
        return _numbers(values, column)
    codes = pd.Index(column.levels).get_indexer(pd.Index(values.astype(object)))
    unknown = np.flatnonzero(codes < 0)
    if len(unknown):
        raise DataError(
            f"column {column.name!r}: expected one of the levels {list(column.levels)}, got {len(unknown)} of "
            f"{len(values)} others, the first in row {unknown[0]} (counted from 0): {values.iloc[unknown[0]]!r}. "
            "Correct them, drop those rows, or make the model from a table that has them"
        )
    return codes.astype(np.float64)


def _numbers(values: pd.Series, column: Column) -> np.ndarray:
    try:
        return values.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"column {column.name!r}: expected numbers, as for {column.family}, got {values.dtype} ({error}): convert "
            'the column, or pass families={...: "categorical"}'
        ) from error


def _values(codes: np.ndarray, column: Column) -> object:
    if column.family == "categorical":
        return pd.Categorical.from_codes(codes.astype(int), categories=pd.Index(column.levels))
    dtypes = {"poisson": np.int64, "bernoulli": np.bool_}
    return codes.astype(dtypes.get(column.family, np.float64))
