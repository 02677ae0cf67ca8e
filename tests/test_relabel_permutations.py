"""Assignments, permuted sites and counts, against direct computation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from relabel_cases import (
    K,
)

from probmix.relabel import (
    Switches,
    count_switches,
    permute_sites,
)
from probmix.relabel_permutations import assign


@pytest.mark.parametrize("num_components", [1, 2, 3, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_assign_equals_brute_force(num_components: int, tied: bool) -> None:
    rng = torch.Generator().manual_seed(num_components)
    costs = torch.randn((40, num_components, num_components), generator=rng, dtype=torch.float64)
    costs = costs.round() if tied else costs
    found = assign(costs)
    assert torch.equal(found.sort(-1).values, torch.arange(num_components).expand_as(found))
    every = [costs[:, range(num_components), perm].sum(-1) for perm in itertools.permutations(range(num_components))]
    # 1e-12: the same few numbers added in another order.
    torch.testing.assert_close(
        costs.gather(-1, found[..., None]).sum((-1, -2)), torch.stack(every).min(0).values, rtol=0, atol=1e-12
    )


def test_permute_sites_moves_every_component_axis() -> None:
    rng = np.random.default_rng(0)
    transition, loc = rng.normal(size=(4, K, K)), rng.normal(size=(4, 2, K))
    permutations = np.array([[2, 0, 1], [0, 1, 2], [1, 0, 2], [2, 1, 0]])
    dims = {"transition": ("component", "component"), "loc": ("feature", "component")}
    sites = {"transition": torch.tensor(transition), "loc": torch.tensor(loc), "other": torch.zeros(4, 9)}
    moved = permute_sites(sites, torch.tensor(permutations), dims)
    for s, perm in enumerate(permutations):
        np.testing.assert_array_equal(moved["transition"][s].numpy(), transition[s][np.ix_(perm, perm)])
        np.testing.assert_array_equal(moved["loc"][s].numpy(), loc[s][:, perm])
    assert moved["other"] is sites["other"]


def test_permute_sites_takes_one_permutation_for_all() -> None:
    loc = torch.arange(24.0).reshape(2, 4, 3)
    moved = permute_sites({"loc": loc}, torch.tensor([2, 0, 1]), {"loc": ("component",)})
    assert torch.equal(moved["loc"], loc[..., [2, 0, 1]])


def test_switches_are_counted_within_chains_and_between_them() -> None:
    stay, swap = [0, 1], [1, 0]
    permutations = torch.tensor([[swap, swap, swap, swap], [stay, stay, swap, stay], [stay, stay, stay, stay]])
    assert count_switches(permutations) == pytest.approx((2 / 9, 1 / 3))
    assert count_switches(permutations[:1, :1]) == Switches(draws=0.0, chains=0.0)
