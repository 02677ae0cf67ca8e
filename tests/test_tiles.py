"""Tiles cover a matrix once, and the axes of a vmap meet no other axis."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from probmix import tiles as module
from probmix.tiles import batch_first, blocks, tiles


def times_covered(num_rows: int, num_columns: int, **settings: object) -> torch.Tensor:
    count = torch.zeros(num_rows, num_columns)
    for rows, columns in tiles(num_rows, num_columns, **settings):
        count[rows, columns] += 1
    return count


@pytest.mark.parametrize("side", [1, 3, 7, 1000])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("shape", [(1, 1), (7, 20), (20, 7), (1, 50), (50, 1), (13, 13), (0, 4), (4, 0)])
def test_every_entry_is_in_one_tile(side, batch, shape, monkeypatch):
    monkeypatch.setattr(module, "_TILE", side**2)
    monkeypatch.setattr(module, "_LEAST_SIDE", 1)
    assert bool((times_covered(*shape, batch=batch) == 1).all())


@pytest.mark.parametrize("side", [1, 3, 7, 1000])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("num", [1, 7, 13, 14])
def test_of_a_symmetric_matrix_every_pair_is_in_one_tile(side, batch, num, monkeypatch):
    """Tiles off the diagonal stand for two; those on it are square, whole, and come last in their row."""
    monkeypatch.setattr(module, "_TILE", side**2)
    monkeypatch.setattr(module, "_LEAST_SIDE", 1)
    count = torch.zeros(num, num)
    for rows, columns in tiles(num, num, batch, symmetric=True):
        count[rows, columns] += 1
        if rows != columns:
            assert columns.stop <= rows.start
            count[columns, rows] += 1
    assert bool((count == 1).all())


def test_a_tile_is_as_large_as_the_cache_allows(monkeypatch):
    """Square; tall where there are few columns; smaller for a batch, but not below the least side."""
    monkeypatch.setattr(module, "_TILE", 100)
    monkeypatch.setattr(module, "_LEAST_SIDE", 4)

    def shape(*sizes: int) -> tuple[int, int]:
        rows, columns = next(tiles(*sizes))
        return rows.stop, columns.stop

    assert shape(1000, 1000, 1) == (10, 10)
    assert shape(1000, 2, 1) == (50, 2)
    assert shape(1000, 1000, 4) == (5, 5)
    assert shape(1000, 1000, 10_000) == (4, 4)


def test_parts_are_equal_but_for_the_last():
    assert [s.stop - s.start for s in blocks(10, 4)] == [4, 4, 2]
    assert [s.stop - s.start for s in blocks(9, 4)] == [3, 3, 3]
    assert blocks(0, 4) == [slice(0, 0)]
    assert blocks(5, 100) == [slice(0, 5)]


def test_the_axis_of_a_vmap_comes_first_and_meets_no_other():
    """Three tensors of a batch of 3, where one has an axis of 3 of its own."""
    info = SimpleNamespace(batch_size=3)
    last, own, shared = torch.randn(2, 5, 3), torch.randn(3, 3, 2, 5), torch.randn(3, 2, 5)
    moved = batch_first(info, (2, 0, None), [last, own, shared])
    assert [tuple(t.shape) for t in moved] == [(3, 1, 2, 5), (3, 3, 2, 5), (3, 3, 2, 5)]
    for i in range(3):
        assert torch.equal(moved[0][i, 0], last[..., i])
        assert torch.equal(moved[1][i], own[i])
        assert torch.equal(moved[2][i], shared)
