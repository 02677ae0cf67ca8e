"""Good tables come back unchanged; for bad ones the numbers and the advice of every message are pinned."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probmix.errors import DataError
from probmix.readers import check_writable, read_table


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame({"eruptions": [3.6, 1.8, 3.333], "waiting": [79.0, 54.0, 74.0]})


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | str, columns=None) -> str:
    with pytest.raises(DataError) as caught:
        read_table(path, columns)
    return str(caught.value)


# --- what is read --------------------------------------------------------------------------------------------------


def test_csv_tsv_and_parquet_come_back_unchanged(table, tmp_path):
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    table.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.tsv", "t.parquet"):
        pd.testing.assert_frame_equal(read_table(tmp_path / name), table)


def test_a_string_is_a_path_and_the_suffix_may_be_in_capitals(table, tmp_path):
    table.to_csv(tmp_path / "T.CSV", index=False)
    pd.testing.assert_frame_equal(read_table(str(tmp_path / "T.CSV")), table)


def test_columns_are_kept_in_the_order_asked_for(table, tmp_path):
    table.to_csv(tmp_path / "t.csv", index=False)
    assert list(read_table(tmp_path / "t.csv", ["waiting", "eruptions"])) == ["waiting", "eruptions"]


def test_a_column_of_text_does_no_harm_unless_it_is_asked_for(tmp_path):
    path = written(tmp_path, "t.csv", "name,size\na,1\nb,2\n")
    assert read_table(path, ["size"])["size"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", "float32", "float16"])
def test_every_number_becomes_float64(dtype, tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 4]], dtype=dtype))
    read = read_table(tmp_path / "a.npy")
    assert (read.dtypes == "float64").all()
    np.testing.assert_array_equal(read, [[1, 2], [3, 4]])


def test_nullable_integers_of_parquet_become_float64(tmp_path):
    pd.DataFrame({"n": pd.array([1, 2], dtype="Int64")}).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet")["n"].dtype == np.float64


def test_arrays_get_columns_x0_x1(tmp_path):
    np.save(tmp_path / "one.npy", np.arange(3.0))
    np.save(tmp_path / "two.npy", np.arange(6.0).reshape(3, 2))
    np.savez(tmp_path / "two.npz", np.arange(6.0).reshape(3, 2))
    assert list(read_table(tmp_path / "one.npy")) == ["x0"]
    assert read_table(tmp_path / "two.npy", ["x1"])["x1"].tolist() == [1.0, 3.0, 5.0]
    assert list(read_table(tmp_path / "two.npz")) == ["x0", "x1"]


def test_named_vectors_of_an_archive_are_columns(table, tmp_path):
    np.savez(tmp_path / "t.npz", eruptions=table["eruptions"], waiting=table["waiting"])
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.npz"), table)


def test_byte_order_mark_spaces_and_blank_end_are_no_data(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeffsize, age\n1, 2\n3, 4\n\n,\n".encode())
    read = read_table(path)
    assert list(read) == ["size", "age"]
    np.testing.assert_array_equal(read, [[1, 2], [3, 4]])


# --- where the file is ---------------------------------------------------------------------------------------------


def test_a_misspelt_file_name_gets_the_nearest_in_that_folder(tmp_path):
    near = written(tmp_path, "measurements.csv", "a\n1\n")
    written(tmp_path, "other.txt", "")
    assert f"Did you mean {near}?" in refusal(tmp_path / "mesurements.csv")


def test_a_file_with_no_near_name_or_no_folder(tmp_path):
    assert f"Check the name and the folder {tmp_path}" in refusal(tmp_path / "measurements.csv")
    assert f"nor is there a folder {tmp_path / 'nowhere'}" in refusal(tmp_path / "nowhere" / "a.csv")


def test_a_folder_is_no_file_and_its_files_are_named(tmp_path):
    for i in range(10):
        written(tmp_path, f"{i}.csv", "a\n1\n")
    assert "Name a file in it: 0.csv, 1.csv, 2.csv, 3.csv, 4.csv, 5.csv, 6.csv, 7.csv, ... (10 in all)" in refusal(
        tmp_path
    )


@pytest.mark.parametrize(("name", "got"), [("t.xlsx", "'.xlsx'"), ("t", "'no suffix'")])
def test_an_unknown_suffix_lists_the_accepted_ones(name, got, tmp_path):
    message = refusal(written(tmp_path, name, "a\n1\n"))
    assert f"ends in .csv, .tsv, .parquet, .npy, .npz; got {got}" in message
    assert "Save the table in one of these formats" in message


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = written(tmp_path, "t.csv", "a\n1\n")
    monkeypatch.setattr(Path, "open", refuse)  # chmod(0) would not stop a test that runs as root
    assert "may not be read. Change its permissions" in refusal(path)


# --- text files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n", ",\n1,2\n"])
def test_an_empty_first_line_asks_for_a_header(text, tmp_path):
    assert "Add the header" in refusal(written(tmp_path, "t.csv", text))


@pytest.mark.parametrize("text", ["size,age\n", "size,age\n\n\n", "size,age\n,\n"])
def test_no_rows(text, tmp_path):
    message = refusal(written(tmp_path, "t.csv", text))
    assert "expected at least one row of numbers, got none" in message
    assert "Check that the file is complete" in message


def test_a_first_row_of_numbers_is_not_taken_for_names(tmp_path):
    message = refusal(written(tmp_path, "t.csv", "3.6,79\n1.8,54\n"))
    assert "got numbers (3.6, 79)" in message
    assert "Add a first line with the names" in message


def test_semicolons_are_named(tmp_path):
    assert "separated by ';'" in refusal(written(tmp_path, "t.csv", "size;age\n1;2\n"))


def test_rows_longer_than_the_header(tmp_path):
    first = refusal(written(tmp_path, "a.csv", "size,age\n1,2,3\n4,5,6\n"))
    assert "Length of header or names does not match length of data" in first
    assert "as many fields as the header" in first
    later = refusal(written(tmp_path, "b.csv", "size,age\n1,2\n4,5,6\n"))
    assert "Expected 2 fields in line 3, saw 3" in later
    assert "as many fields as the header" in later


def test_a_separator_at_the_end_of_every_row_is_no_column(tmp_path):
    np.testing.assert_array_equal(read_table(written(tmp_path, "t.csv", "a,b\n1,2,\n3,4,\n")), [[1, 2], [3, 4]])


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "t.csv").write_bytes("größe,age\n1,2\n".encode("latin-1"))
    assert "Save the file again as UTF-8" in refusal(tmp_path / "t.csv")


def test_a_column_of_row_numbers_without_a_name(table, tmp_path):
    table.to_csv(tmp_path / "t.csv")
    message = refusal(tmp_path / "t.csv")
    assert "column 1 has no name" in message
    assert "--columns eruptions,waiting" in message
    assert len(read_table(tmp_path / "t.csv", ["eruptions", "waiting"])) == 3


# --- columns -------------------------------------------------------------------------------------------------------


def test_an_unknown_column_gets_the_nearest_names(table, tmp_path):
    table.to_csv(tmp_path / "t.csv", index=False)
    assert "no column 'eruption'. Did you mean eruptions?" in refusal(tmp_path / "t.csv", ["eruption"])
    assert "no column 'zzz'. Choose among eruptions, waiting." in refusal(tmp_path / "t.csv", ["zzz"])


def test_a_column_that_is_there_or_asked_for_twice(tmp_path):
    path = written(tmp_path, "t.csv", "size,size,age\n1,2,3\n")
    assert "got size twice" in refusal(path)
    assert "got size twice" in refusal(path, ["size"])
    assert "got age twice" in refusal(path, ["age", "age"])


@pytest.mark.parametrize("columns", ["eruptions", []])
def test_columns_must_be_a_list_of_names(columns, table, tmp_path):
    table.to_csv(tmp_path / "t.csv", index=False)
    assert f"got {columns!r}. Write ['name', ...]" in refusal(tmp_path / "t.csv", columns)


def test_a_column_of_text_names_its_first_value_and_the_columns_of_numbers(tmp_path):
    path = written(tmp_path, "t.csv", "size,age,weight\n1,20,5\n2,,6\n3,n/k,7\n4,unknown,8\n")
    message = refusal(path)
    assert "column 'age' holds 'n/k' in row 3, not a number" in message  # the empty one in row 2 is missing, not text
    assert "--columns size,weight" in message
    assert "No column holds numbers" in refusal(path, ["age"])


@pytest.mark.parametrize(
    ("values", "got"),
    [
        ([True, False], "True in row 1"),
        ([1 + 2j, 3j], "(1+2j) in row 1"),
        (np.array(["1.5", "x"]), "'x' in row 2"),
        (np.array(["2020-01-01", "2020-01-02"], dtype="M8[D]"), "in row 1"),
    ],
)
def test_what_is_no_number_in_an_array(values, got, tmp_path):
    np.save(tmp_path / "a.npy", np.array(values))
    message = refusal(tmp_path / "a.npy")
    assert "column 'x0' holds" in message
    assert got in message
    assert "true and false as 1 and 0" in message


def test_categories_and_bools_of_parquet(tmp_path):
    pd.DataFrame({"kind": pd.Categorical(["b", "a"]), "size": [1, 2]}).to_parquet(tmp_path / "c.parquet")
    assert "column 'kind' holds 'b' in row 1" in refusal(tmp_path / "c.parquet")
    pd.DataFrame({"flag": pd.array([None, True], dtype="boolean")}).to_parquet(tmp_path / "b.parquet")
    assert "column 'flag' holds True in row 2" in refusal(tmp_path / "b.parquet")


@pytest.mark.parametrize("bad", ["", "nan", "inf", "-inf"])
def test_missing_and_infinite_rows_are_counted_from_one(bad, tmp_path):
    path = written(tmp_path, "t.csv", f"size,age\n1,2\n3,4\n5,{bad}\n7,8\n{bad},{bad}\n9,9\n")
    message = refusal(path)
    assert "2 of 6 rows hold missing or infinite values, the first is row 3 (column 'age')" in message
    assert "Remove these rows or fill the values in" in message


def test_a_blank_line_in_a_single_column_is_a_missing_value(tmp_path):
    assert "1 of 3 rows" in refusal(written(tmp_path, "t.csv", "size\n1\n\n3\n"))


def test_nan_in_an_array_and_in_parquet(tmp_path):
    np.save(tmp_path / "a.npy", [[0.0, 1.0], [np.nan, 2.0]])
    assert "1 of 2 rows hold missing or infinite values, the first is row 2 (column 'x0')" in refusal(
        tmp_path / "a.npy"
    )
    pd.DataFrame({"n": pd.array([1, None], dtype="Int64")}).to_parquet(tmp_path / "t.parquet")
    assert "the first is row 2 (column 'n')" in refusal(tmp_path / "t.parquet")


# --- arrays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.save, np.savez])
def test_pickled_objects_are_never_loaded(save, tmp_path):
    path = tmp_path / ("a.npy" if save is np.save else "a.npz")
    save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    message = refusal(path)
    assert "Pickled objects are never loaded" in message
    assert "array.astype(float)" in message


@pytest.mark.parametrize("shape", [(), (2, 3, 4)])
def test_an_array_that_is_no_table_gives_its_shape(shape, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    assert f"got shape {shape}, dtype float64. Save the table as rows by columns" in refusal(tmp_path / "a.npy")


def test_an_archive_that_is_no_table_gives_what_it_holds(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=np.zeros(4))
    assert "got x (4, 2), y (4,). Save only the table to fit" in refusal(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros(3), y=np.zeros(4))
    assert "got x (3,), y (4,)" in refusal(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz")
    assert "got (none)" in refusal(tmp_path / "c.npz")


@pytest.mark.parametrize("name", ["t.parquet", "t.npy", "t.npz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really"])
def test_a_broken_file_is_a_data_error(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert "again" in refusal(tmp_path / name)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_an_array_without_rows_or_columns(shape, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    assert "expected at least one row of numbers, got none" in refusal(tmp_path / "a.npy")


# --- the output folder ---------------------------------------------------------------------------------------------


def test_the_folder_is_created_and_left_empty(tmp_path):
    folder = check_writable(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b"
    assert list(folder.iterdir()) == []
    (folder / "kept").touch()
    check_writable(str(folder))
    assert [entry.name for entry in folder.iterdir()] == ["kept"]


def test_a_file_in_the_place_of_the_folder(tmp_path):
    written(tmp_path, "result", "")
    with pytest.raises(DataError, match=r"expected a folder for results, found a file. Choose another"):
        check_writable(tmp_path / "result")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX error")
def test_a_file_among_the_parents(tmp_path):
    written(tmp_path, "result", "")
    with pytest.raises(DataError, match=r"cannot write results there \(Not a directory\). Choose another"):
        check_writable(tmp_path / "result" / "sub")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_where_nothing_can_be_written(number, tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(DataError) as caught:
        check_writable(tmp_path)
    assert f"({os.strerror(number)}). Choose another output folder, or change its permissions" in str(caught.value)
