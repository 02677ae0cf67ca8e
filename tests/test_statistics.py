from __future__ import annotations

import pytest
import torch

from probmix.gaussian_family import FAMILIES
from probmix.statistics import Statistics, weighted_square

NAMES = ["full", "tied", "diagonal", "spherical", "EEI", "EII"]


def rows_and_weights(seed: int = 0, count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.1]) + 5
    return x, torch.rand(2, count, 4, generator=generator, dtype=torch.float64)


def assert_same(first: Statistics, second: Statistics, rtol: float = 1e-12) -> None:
    for name in ("count", "mean", "scatter"):
        expected = getattr(second, name)
        atol = rtol * expected.abs().max().item()
        torch.testing.assert_close(
            getattr(first, name), expected, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_statistics_of_chunks_add_up_to_those_of_the_whole(name: str) -> None:
    x, weights = rows_and_weights()
    family = FAMILIES[name]
    parts = [family.sufficient_statistics(x[i:j], weights[:, i:j]) for i, j in [(0, 7), (7, 8), (8, 40)]]
    whole = family.sufficient_statistics(x, weights)
    assert_same(parts[0] + parts[1] + parts[2], whole)
    assert_same(parts[2] + (parts[1] + parts[0]), whole)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_component_changes_nothing(name: str) -> None:
    x, weights = rows_and_weights()
    family = FAMILIES[name]
    empty = family.sufficient_statistics(x + 1e6, torch.zeros_like(weights))
    assert all(getattr(empty, part).isfinite().all() for part in ("count", "mean", "scatter"))
    assert not empty.scatter.any()
    whole = family.sufficient_statistics(x, weights)
    assert_same(whole + empty, whole, rtol=0.0)
    assert_same(empty + whole, whole, rtol=1e-9)  # the mean returns from 1e6, which costs six digits of float64
    assert (empty + empty).mean.isfinite().all()


def test_two_rows_by_hand() -> None:
    one = Statistics(torch.tensor([1.0]), torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2, 2))
    two = Statistics(torch.tensor([3.0]), torch.tensor([[4.0, 1.0]]), torch.zeros(1, 2, 2))
    both = one.merge(two)
    assert both.count.tolist() == [4.0]
    assert both.mean.tolist() == [[3.0, 1.0]]
    assert both.scatter.tolist() == [[[12.0, 0.0], [0.0, 0.0]]]  # 1 * 3 / 4 * 4**2


def test_the_shape_of_the_scatter_says_what_it_holds() -> None:
    count, mean = torch.ones(5, 3), torch.zeros(5, 3, 2)
    for scatter, spread_dim, pooled in [
        (torch.zeros(5, 3, 2, 2), 2, False),
        (torch.zeros(5, 1, 2, 2), 2, True),
        (torch.zeros(5, 3, 2), 1, False),
        (torch.zeros(5, 3), 0, False),
    ]:
        statistics = Statistics(count, mean, scatter)
        assert (statistics.spread_dim, statistics.pooled) == (spread_dim, pooled)
        assert (statistics + statistics).scatter.shape == scatter.shape


def test_weighted_squares_by_hand() -> None:
    difference, weight = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([2.0, 1.0])
    assert weighted_square(difference, weight, 2).tolist() == [[[2, 4], [4, 8]], [[9, 0], [0, 0]]]
    assert weighted_square(difference, weight, 2, pooled=True).tolist() == [[[11, 4], [4, 8]]]
    assert weighted_square(difference, weight, 1).tolist() == [[2, 8], [9, 0]]
    assert weighted_square(difference, weight, 0).tolist() == [10, 9]
