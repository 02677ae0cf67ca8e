"""Columns of mixed tables: what the dtypes decide, and numbers and back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probmix.errors import DataError
from probmix.mixed_columns import Column, columns_of, decode, encode


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "size": [1.5, 2.5, 0.5],
            "visits": [3, 0, 9],
            "change": [-1, 2, 0],
            "member": [True, False, True],
            "colour": ["red", "blue", "red"],
            "grade": pd.Categorical(["low", "high", "low"], categories=["low", "middle", "high"]),
        }
    )


def test_dtypes_decide(frame):
    found = {column.name: column.family for column in columns_of(frame)}
    assert found == {
        "size": "gaussian",
        "visits": "poisson",
        "change": "gaussian",
        "member": "bernoulli",
        "colour": "categorical",
        "grade": "categorical",
    }
    levels = {column.name: column.levels for column in columns_of(frame)}
    assert levels["colour"] == ("blue", "red")  # sorted
    assert levels["grade"] == ("low", "middle", "high")  # as declared, the one without rows too
    nullable = frame.convert_dtypes()
    assert [column.family for column in columns_of(nullable)][1:] == list(found.values())[1:]


def test_names_given_go_first(frame):
    chosen = columns_of(frame, {"visits": "categorical", "size": "exponential", "member": "poisson"})
    assert [column.family for column in chosen][:4] == ["exponential", "categorical", "gaussian", "poisson"]
    assert chosen[1].levels == (0, 3, 9)


def test_numbers_and_back(frame):
    columns = columns_of(frame)
    table = encode(frame, columns)
    assert table.dtype == np.float64
    np.testing.assert_array_equal(table[:, 3:], [[1, 1, 0], [0, 0, 2], [1, 1, 0]])
    back = decode(table, columns)
    pd.testing.assert_frame_equal(back.astype(object), frame.astype(object), check_dtype=False)
    assert list(back["grade"].cat.categories) == ["low", "middle", "high"]
    shuffled = frame[["grade", "size", "colour", "member", "change", "visits"]].assign(other=1)
    np.testing.assert_array_equal(encode(shuffled, columns), table)  # by name, others left out


def test_what_cannot_be_encoded_is_refused(frame):
    columns = columns_of(frame)
    new = frame.assign(colour=["red", "violet", "green"])
    message = r"'colour'.*\['blue', 'red'\], got 2 of 3 others, the first in row 1 .*'violet'. Correct them"
    with pytest.raises(DataError, match=message):
        encode(new, columns)
    with pytest.raises(DataError, match="'size': expected a value in each row, got 1 of 3 empty, the first in row 2"):
        encode(frame.assign(size=[1.0, 2.0, np.nan]), columns)
    with pytest.raises(DataError, match=r"a table without \['visits'\]: add them"):
        encode(frame.drop(columns="visits"), columns)
    with pytest.raises(DataError, match="'size': expected numbers, as for gaussian"):
        encode(frame.assign(size=["a", "b", "c"]), columns)
    with pytest.raises(DataError, match=r"'one': expected 2 levels or more, got \['x'\]: drop the column"):
        columns_of(frame.assign(one="x"))
    with pytest.raises(DataError, match=r"'day': .* got datetime64.*days since"):
        columns_of(frame.assign(day=pd.Timestamp("2020-01-01")))
    with pytest.raises(DataError, match=r"families: expected names among .* got \['sise'\]"):
        columns_of(frame, {"sise": "gaussian"})
    with pytest.raises(DataError, match=r"families: expected one of gaussian, .* got \{'size': 'normal'\}"):
        columns_of(frame, {"size": "normal"})
    with pytest.raises(DataError, match="columns with different names"):
        columns_of(pd.concat([frame, frame], axis=1))


def test_levels_of_two_types_have_an_order():
    column = columns_of(pd.DataFrame({"code": [2, "b", 1, "a"]}))[0]
    assert column == Column("code", "categorical", (1, 2, "a", "b"))
