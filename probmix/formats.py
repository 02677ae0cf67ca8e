"""One reader per file format: a path in, a table as written out. `probmix.readers` checks what is in it."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from probmix.errors import DataError

__all__ = ["READERS", "some"]


def some(names: Iterable[object], at_most: int = 8) -> str:
    """Return the first few names, and how many there are if that is not all of them.

    Example:
        >>> some("abcd", at_most=2)
        'a, b, ... (4 in all)'
    """
    words = [str(name) for name in names]
    return ", ".join(words[:at_most]) + (f", ... ({len(words)} in all)" if len(words) > at_most else "") or "(none)"


def _read_csv(path: Path) -> pd.DataFrame:
    return _read_text(path, ",")


def _read_tsv(path: Path) -> pd.DataFrame:
    return _read_text(path, "\t")


def _read_text(path: Path, separator: str) -> pd.DataFrame:
    try:
        header = _header(path, separator)
        table = _body(path, separator)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error.reason}). Save the file again as UTF-8.") from error
    except (csv.Error, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise DataError(f"{path}: {str(error).strip()} Give every row as many fields as the header.") from error
    table.columns = pd.Index(header)
    return _without_blank_end(table)


def _body(path: Path, separator: str) -> pd.DataFrame:
    with warnings.catch_warnings():
        # Rows longer than the header: left to itself, pandas takes their first field for row labels, without a word.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(
            path,
            sep=separator,
            index_col=False,
            skip_blank_lines=False,  # in a one-column file a blank line is a missing value, not a row to drop
            skipinitialspace=True,
            low_memory=False,
            encoding="utf-8-sig",
        )


def _header(path: Path, separator: str) -> list[str]:
    """Column names as written; pandas would rename repeated and empty ones without a word."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        names = [name.strip() for name in next(csv.reader(stream, delimiter=separator, skipinitialspace=True), [])]
    if not any(names):
        raise DataError(f"{path}: expected a header line of column names, got an empty line or file. Add the header.")
    if all(_is_number(name) for name in names):
        raise DataError(
            f"{path}: expected a header line of column names, got numbers ({some(names)}). "
            "Add a first line with the names, or the first observation would be lost."
        )
    if len(names) == 1 and ";" in names[0]:
        raise DataError(
            f"{path}: the columns seem to be separated by ';'. Save the file with commas, points in numbers."
        )
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _without_blank_end(table: pd.DataFrame) -> pd.DataFrame:
    """Blank lines after the last row are the habit of editors and spreadsheets, not missing values."""
    filled = np.flatnonzero(table.notna().any(axis=1))
    return table.iloc[: filled[-1] + 1 if len(filled) else 0]


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise DataError(f"{path}: not a readable Parquet file ({error}). Write it again.") from error


def _read_numpy(path: Path) -> pd.DataFrame:
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{path}: not a file of plain numbers ({error}). Pickled objects are never loaded, because loading one can "
            "run any program: save it again after array.astype(float)."
        ) from error
    return _from_array(arrays, path) if isinstance(arrays, np.ndarray) else _from_archive(arrays, path)


def _from_array(array: np.ndarray, path: Path) -> pd.DataFrame:
    if array.ndim not in (1, 2) or array.dtype.names:
        raise DataError(
            f"{path}: expected an array of shape (N,) or (N, D), got shape {array.shape}, dtype {array.dtype}. "
            "Save the table as rows by columns."
        )
    rows = array[:, None] if array.ndim == 1 else array
    return pd.DataFrame(rows, columns=[f"x{i}" for i in range(rows.shape[1])])


def _from_archive(arrays: dict[str, np.ndarray], path: Path) -> pd.DataFrame:
    shapes = [array.shape for array in arrays.values()]
    if len(shapes) == 1 and len(shapes[0]) == 2:
        return _from_array(next(iter(arrays.values())), path)
    if len(set(shapes)) == 1 and len(shapes[0]) == 1:
        return pd.DataFrame(arrays)
    found = some(f"{name} {array.shape}" for name, array in arrays.items())
    raise DataError(
        f"{path}: expected one array (N, D), or arrays (N,) of one length; got {found}. Save only the table to fit."
    )


#: Suffix -> reader.
READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".npy": _read_numpy,
    ".npz": _read_numpy,
}
