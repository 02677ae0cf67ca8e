"""Grids found among rows: shuffled ones are, all others are not, and holes are named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from probmix.grids import find_grid, is_even, missing_rows


def t(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def shuffled(rows: Tensor, seed: int = 0) -> Tensor:
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


AXES = (t([-1.0, 0.5, 3.0]), t([1e-3, 2e-3, 3e-3, 9e-3]), t([7.0]), t([1e6, 1e6 + 1]))
ROWS = torch.cartesian_prod(*AXES)


@pytest.mark.parametrize("columns", [[0], [1, 0], [2, 1], [0, 1, 2, 3], [3, 2, 1, 0]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_shuffled_grid_is_found(columns, dtype):
    axes = [AXES[d].to(dtype) for d in columns]
    x = shuffled(torch.cartesian_prod(*axes).reshape(-1, len(columns)))
    grid = find_grid(x)
    assert grid is not None
    assert grid.shape == torch.Size([len(axis) for axis in axes])
    assert all(torch.equal(found, axis) for found, axis in zip(grid.axes, axes, strict=True))
    assert torch.equal(x[grid.order], torch.cartesian_prod(*grid.axes).reshape(x.shape))
    assert missing_rows(x) is None


def test_coordinates_that_rounding_has_parted_are_one():
    """0.1 * 3 and 0.3 differ by one unit in the last place; 1e-13 of the largest coordinate is a difference."""
    x = torch.stack([t([0.3, 0.1 * 3, 1.0, 1.0]), t([0.0, 1.0, 0.0, 1.0])], -1)
    assert x[0, 0] != x[1, 0]
    assert find_grid(x).shape == (2, 2)
    x[1, 0] += 1e-13
    assert find_grid(x) is None


@pytest.mark.parametrize(
    "x",
    [
        ROWS[1:],  # one missing
        torch.cat([ROWS[1:], ROWS[1:2]]),  # one missing, another twice: the number is right
        torch.cat([ROWS, ROWS[:1]]),  # one twice
        torch.cat([ROWS[:, :1], ROWS[:, :1]], -1),  # a diagonal, repeated
        torch.randn(50, 9, generator=torch.Generator().manual_seed(0)),  # 50^9 does not fit 64 bits
        t([[1.0], [1.0], [2.0]]),
    ],
)
def test_what_is_no_grid(x):
    assert find_grid(x) is None


def test_missing_points_are_named():
    x = shuffled(ROWS)[:-3]
    expected = shuffled(ROWS)[-3:]
    assert {tuple(row) for row in missing_rows(x).tolist()} == {tuple(row) for row in expected.tolist()}


@pytest.mark.parametrize(("missing", "named"), [(4, True), (5, False)])
def test_with_more_than_a_fifth_missing_it_is_no_grid(missing, named):
    """Of 5 times 4 points: four are a fifth."""
    rows = torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0))
    x = rows[~torch.isin(torch.arange(20), torch.tensor([0, 5, 10, 15, 17])[:missing])]
    assert (missing_rows(x) is not None) is named


def test_duplicates_are_no_hole():
    assert missing_rows(torch.cat([ROWS[2:], ROWS[2:3]])) is None


def test_missing_times_of_an_even_series():
    """Months in years, three of forty lost; unevenly spaced times have no holes."""
    months = 1958 + torch.arange(40, dtype=torch.float64) / 12
    keep = ~torch.isin(torch.arange(40), torch.tensor([7, 8, 30]))
    found = missing_rows(shuffled(months[keep])[:, None])
    torch.testing.assert_close(found[:, 0], months[~keep], rtol=1e-15, atol=0)
    assert missing_rows(months[:, None]) is None
    assert missing_rows((months - 1958)[keep].square()[:, None]) is None
    assert missing_rows(t([[0.0], [1.0], [1.0], [3.0]])) is None


@pytest.mark.parametrize(
    ("axis", "even"),
    [
        (1958 + torch.arange(526, dtype=torch.float64) / 12, True),
        ((1958 + torch.arange(526, dtype=torch.float64) / 12).float(), True),
        (torch.linspace(0, 1, 1001, dtype=torch.float64), True),
        (t([3.0]), True),
        (t([3.0, 5.0]), True),
        (t([3.0, 3.0]), False),
        (t([3.0, 3.0, 3.0]), False),
        (t([0.0, 1.0, 2.0, 4.0]), False),
        (t([0.0, 1.0, 2.0 + 1e-9, 3.0]), False),
        (1958 + torch.cumsum(torch.tensor([31, 28, 31, 30, 31, 30]), 0) / 365.25, False),  # calendar months
    ],
)
def test_even_steps(axis, even):
    assert is_even(axis) is even
