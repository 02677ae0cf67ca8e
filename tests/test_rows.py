from __future__ import annotations

import numpy as np
import pytest
import torch

from probmix.errors import DataError
from probmix.rows import as_rows, check_rows

GOOD = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def check(x: torch.Tensor, num_components: int = 2, *, spread: bool = True, independent: bool = True) -> None:
    check_rows(x, num_components, spread=spread, independent=independent)


def test_good_rows_pass_in_both_precisions_and_any_units() -> None:
    for x in (GOOD, GOOD.float(), GOOD * 1e-200, GOOD * torch.tensor([1e-9, 1.0, 1e9]), GOOD + 1e6):
        check(x)


def test_one_axis_is_one_column() -> None:
    assert as_rows(torch.zeros(4)).shape == (4, 1)
    assert as_rows(torch.zeros(4, 2)).shape == (4, 2)


@pytest.mark.parametrize(
    ("x", "got"),
    [(torch.zeros(2, 3, 4), r"\(2, 3, 4\)"), (torch.tensor(1.0), r"\(\)"), (torch.zeros(5, 0), r"\(5, 0\)")],
)
def test_a_wrong_shape_is_named(x: torch.Tensor, got: str) -> None:
    with pytest.raises(DataError, match=rf"expected data of shape \(N, D\) .* got {got}: one row per observation"):
        as_rows(x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_numbers_that_are_not_floating_point_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(DataError, match=rf"expected floating-point numbers, got {dtype}: convert with x\.double\(\)"):
        as_rows(torch.ones(4, 2).to(dtype))


def test_something_else_than_a_tensor_is_refused() -> None:
    with pytest.raises(DataError, match=r"got ndarray: convert with torch\.as_tensor\(x\)"):
        as_rows(np.zeros((3, 2)))


def test_rows_that_are_not_finite_are_counted_and_the_first_is_named() -> None:
    x = GOOD.clone()
    x[4, 1], x[4, 2], x[17, 0] = torch.nan, torch.nan, torch.inf
    with pytest.raises(DataError, match=r"got 2 of 20 rows with NaN or infinity, the first at index 4: drop them with"):
        check(x)
    check(x[x.isfinite().all(-1)])  # the advice works


def test_fewer_rows_than_components_are_refused() -> None:
    with pytest.raises(DataError, match="got 3 rows for 4 components: lower num_components or add data"):
        check(GOOD[:3], 4, independent=False)
    with pytest.raises(DataError, match="got 0 rows for 1 components"):
        check(GOOD[:0], 1)
    check(GOOD[:4], 4, independent=False)


def test_constant_columns_are_named_unless_the_prior_is_the_users_own() -> None:
    x = GOOD.clone()
    x[:, 1] = 0.1
    with pytest.raises(
        DataError, match="got 1 of 3 constant, the first at index 1: drop them, or pass component_prior"
    ):
        check(x)
    check(x, spread=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_duplicated_columns_are_named(dtype: torch.dtype) -> None:
    x = GOOD.clone()
    x[:, 2] = 7 - 3 * x[:, 0]
    with pytest.raises(
        DataError, match=r"columns 0 and 2 that are copies of one another .*: drop column 2, or pass cov"
    ):
        check(x.to(dtype))
    check(x.to(dtype), independent=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dependent_columns_are_named(dtype: torch.dtype) -> None:
    x = torch.cat([GOOD, (GOOD[:, :1] + GOOD[:, 2:])], 1)
    with pytest.raises(DataError, match=r"4 columns of rank 3 .*columns 0, 2, 3 determine one another, so drop one"):
        check(x.to(dtype))
    check(x[:, :3].to(dtype))


def test_correlated_columns_are_not_dependent() -> None:
    x = torch.cat([GOOD, GOOD[:, :1] + 1e-4 * torch.flip(GOOD[:, 1:2], (0,))], 1)
    check(x)
    with pytest.raises(DataError, match="copies of one another"):
        check(x.float())  # a float32 Cholesky factor cannot tell them apart


def test_a_dense_covariance_needs_more_rows_than_columns() -> None:
    with pytest.raises(DataError, match=r"got 3 rows and 3 columns: add data, drop columns, or pass covariance="):
        check(GOOD[:3])
    check(GOOD[:4])
