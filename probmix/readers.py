"""A table of numbers from a file, and a place for the results. Every refusal says what to do next."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from probmix.errors import DataError
from probmix.formats import READERS, some

__all__ = ["check_writable", "read_table"]


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a table of numbers and return it as float64 columns.

    Comma- or tab-separated text needs a header line. An array of shape (N,) or (N, D) gets the columns x0, x1, ...;
    an ``.npz`` file holds one such array, or several of shape (N,), whose names become the columns. Pickled objects
    are never loaded. Rows are counted from 1 in every message, the header not included.

    Args:
        path: a file whose name ends in ``.csv``, ``.tsv``, ``.parquet``, ``.npy`` or ``.npz``.
        columns: the columns to keep, in this order; all of them by default.

    Raises:
        DataError: no such file, a suffix that is not known, no rows, an unknown column, a column that does not hold
            numbers, or a value that is missing or infinite. The message names the next step.

    Example:
        >>> from importlib.resources import files
        >>> read_table(files("probmix") / "data/faithful.csv", columns=["waiting"]).shape
        (272, 1)
    """
    path = Path(path)
    _check_is_file(path)
    if path.suffix.lower() not in READERS:
        raise DataError(
            f"{path}: expected a name that ends in {some(READERS)}; got {path.suffix or 'no suffix'!r}. "
            "Save the table in one of these formats."
        )
    table = _select(READERS[path.suffix.lower()](path), columns, path)
    if table.empty:
        raise DataError(f"{path}: expected at least one row of numbers, got none. Check that the file is complete.")
    return _all_finite(_all_numbers(table, path), path)


def check_writable(folder: str | Path) -> Path:
    """Create the output folder if need be and prove that a file can be written there: call it before a long fit.

    Raises:
        DataError: the path is taken by a file, or nothing can be written there.

    Example:
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     check_writable(Path(parent) / "result").is_dir()
        True
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise DataError(
            f"{folder}: expected a folder for results, found a file. Choose another output folder."
        ) from error
    except OSError as error:
        raise DataError(
            f"{folder}: cannot write results there ({error.strerror}). "
            "Choose another output folder, or change its permissions."
        ) from error
    return folder


def _check_is_file(path: Path) -> None:
    try:
        with path.open("rb"):
            return
    except IsADirectoryError:
        advice = f"expected a file, found a folder. Name a file in it: {some(_file_names(path))}."
    except PermissionError:
        advice = "this file may not be read. Change its permissions or copy it elsewhere."
    except OSError:
        advice = _nearest_file(path)
    raise DataError(f"{path}: {advice}")


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"file not found, nor is there a folder {path.parent}. Check the path."
    near = get_close_matches(path.name, _file_names(path.parent), n=1)
    advice = f"Did you mean {path.parent / near[0]}?" if near else f"Check the name and the folder {path.parent}."
    return f"file not found. {advice}"


def _file_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_file())


def _select(table: pd.DataFrame, columns: Sequence[str] | None, path: Path) -> pd.DataFrame:
    names = [str(name) for name in table.columns]
    wanted = _all_named(names, path) if columns is None else _known(columns, names, path)
    twice = [name for name in dict.fromkeys(wanted) if wanted.count(name) > 1 or names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: expected every column once, got {some(twice)} twice. Rename it or choose it once.")
    return table.set_axis(names, axis=1)[wanted]


def _all_named(names: list[str], path: Path) -> list[str]:
    if "" in names:
        raise DataError(
            f"{path}: column {names.index('') + 1} has no name (row numbers, perhaps). "
            f"Name it, or keep the others with --columns {','.join(name for name in names if name)}."
        )
    return names


def _known(columns: Sequence[str], names: list[str], path: Path) -> list[str]:
    if isinstance(columns, str) or not columns:
        raise DataError(f"columns: expected a list of one name or more, got {columns!r}. Write ['name', ...].")
    for name in columns:
        if name not in names:
            near = get_close_matches(name, names, n=3)
            advice = f"Did you mean {' or '.join(near)}?" if near else f"Choose among {some(names)}."
            raise DataError(f"{path}: no column {name!r}. {advice}")
    return list(columns)


def _all_numbers(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    other = [name for name in table.columns if not _holds_numbers(table[name])]
    if not other:
        return table.apply(lambda column: column.to_numpy(dtype=float, na_value=np.nan))
    numeric = [name for name in table.columns if name not in other]
    advice = f"Keep the numeric ones with --columns {','.join(numeric)}" if numeric else "No column holds numbers"
    row, value = _first_other(table[other[0]])
    raise DataError(
        f"{path}: column {other[0]!r} holds {value!r} in row {row}, not a number. {advice}, or correct the value "
        "(write true and false as 1 and 0, decimals with a point)."
    )


def _holds_numbers(column: pd.Series) -> bool:
    types = pd.api.types
    return types.is_numeric_dtype(column) and not types.is_bool_dtype(column) and not types.is_complex_dtype(column)


def _first_other(column: pd.Series) -> tuple[int, object]:
    """Row, counted from 1, and value of the first entry that is no number; the first row if none stands out."""
    other = column.notna()
    if not pd.api.types.is_numeric_dtype(column):
        other &= pd.to_numeric(column.astype(object), errors="coerce").isna()
    position = int(np.argmax(other.to_numpy()))
    value = column.iloc[position]
    return position + 1, value.item() if isinstance(value, np.generic) else value


def _all_finite(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    bad = ~np.isfinite(table.to_numpy())
    rows = np.flatnonzero(bad.any(axis=1))
    if not len(rows):
        return table
    name = table.columns[int(np.argmax(bad[rows[0]]))]
    raise DataError(
        f"{path}: {len(rows)} of {len(table)} rows hold missing or infinite values, the first is row {rows[0] + 1} "
        f"(column {name!r}). Remove these rows or fill the values in first."
    )
