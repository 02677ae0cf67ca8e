"""Pivotal reordering and the ordering constraint, against brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from relabel_cases import (
    CHAINS,
    DRAWS,
    K,
    N,
    Result,
    mixture,
    overlapped,
    random_permutations,
    refused,
    switched,
)
from torch import Tensor

from probmix.relabel import (
    ECR,
    Order,
    Pivot,
    permutations_of,
    relabel,
)
from probmix.relabel_permutations import assign


def noisy_weights() -> tuple[Result, Tensor]:
    """Components told apart by loc alone, beside weights and variances that are nothing but noise."""
    rng = torch.Generator().manual_seed(0)
    loc = torch.tensor([-4.0, 0.0, 4.0]) + 0.3 * torch.randn((CHAINS, DRAWS, K), generator=rng)
    noise = {name: torch.randn((CHAINS, DRAWS, K), generator=rng) for name in ("weights", "log_var", "rate")}
    planted = random_permutations()
    draws = {name: value.gather(-1, planted) for name, value in {"loc": loc, **noise}.items()}
    return Result(draws, None, (), {"lp": torch.zeros(CHAINS, DRAWS)}), planted


def test_pivot_given_by_the_user_sets_the_labels() -> None:
    truth = mixture(8.0)
    pivot = {"loc": truth.draws["loc"].mean((0, 1)).flip(0)}
    relabelled = relabel(switched(truth, random_permutations()), Pivot(pivot))
    assert torch.equal(relabelled.draws["loc"], truth.draws["loc"].flip(2))


def test_pivot_is_not_drowned_by_sites_that_do_not_separate() -> None:
    result, planted = noisy_weights()
    found = permutations_of(result, Pivot(), dims=dict.fromkeys(result.draws, ("component",)))
    assert len(planted.gather(-1, found).reshape(-1, K).unique(dim=0)) == 1
    # Negative control: dividing by the overall standard deviation instead mislabels draws.
    entries = torch.stack(list(result.draws.values()), -1).reshape(-1, K, len(result.draws))
    entries = entries / entries.flatten(0, 1).std(0)
    plain = assign(torch.cdist(entries[:1], entries).square())
    assert len(planted.reshape(-1, K).gather(-1, plain).unique(dim=0)) > 1


def test_pivot_matches_draws_that_repeat_exactly_in_any_unit() -> None:
    loc = 1e-6 * torch.tensor([[[1.0, 2.0, 7.0], [7.0, 1.0, 2.0]]])
    noise = torch.tensor([[[0.3, 0.1, 0.9], [0.2, 0.8, 0.4]]])
    result = Result(
        {"loc": loc, "same": torch.ones(1, 2, 3), "noise": noise}, None, (), {"lp": torch.tensor([[1.0, 0]])}
    )
    relabelled = relabel(result, Pivot(), dims=dict.fromkeys(result.draws, ("component",)))
    assert torch.equal(relabelled.draws["loc"][0, 1], loc[0, 0])


def test_pivot_is_the_closest_of_all_permutations() -> None:
    result = overlapped()
    found = permutations_of(result, Pivot()).reshape(-1, K)
    flat = [result.draws[name].reshape(CHAINS * DRAWS, K, -1).numpy() for name in ("weights", "loc", "cov")]
    entries = np.concatenate(flat, axis=-1)
    entries = entries / np.sqrt(np.sort(entries, axis=1).var(axis=0).mean(axis=0))
    pivot = entries[int(result.sample_stats["lp"].argmax())]
    every = list(itertools.permutations(range(K)))
    distances = np.stack([((entries[:, perm] - pivot) ** 2).sum((1, 2)) for perm in every])
    np.testing.assert_array_equal(found.numpy(), np.array(every)[distances.argmin(axis=0)])


def test_pivot_is_never_a_draw_without_a_density() -> None:
    result = switched(mixture(8.0), random_permutations())
    log_joint = result.sample_stats["lp"].clone()
    best = int(log_joint.argmax())
    log_joint.view(-1)[0 if best else 1] = torch.nan
    broken = replace(result, sample_stats={"lp": log_joint})
    assert torch.equal(permutations_of(broken, Pivot()), permutations_of(result, Pivot()))


@pytest.mark.parametrize(
    ("method", "entry"),
    [
        (Order(), ("loc", 0)),
        (Order(index=1), ("loc", 1)),
        (Order(index=(-1,)), ("loc", 1)),
        (Order("cov", (1, 0)), ("cov", 1, 0)),
        (Order("weights"), ("weights",)),
    ],
)
def test_order_sorts_each_draw_by_the_entry(method: Order, entry: tuple[Any, ...]) -> None:
    result = switched(mixture(0.7), random_permutations())
    name, *position = entry
    relabelled = relabel(result, method).draws[name].movedim(2, -1)[(slice(None), slice(None), *position)]
    expected = np.sort(result.draws[name].movedim(2, -1)[(slice(None), slice(None), *position)].numpy(), axis=-1)
    np.testing.assert_array_equal(relabelled.numpy(), expected)


def test_errors_about_pivots_and_references() -> None:
    text = refused(ECR(pivot=torch.tensor([0, 3])))
    assert f"shape ({N},) with components 0 to 2; got shape (2,) with components [0, 3]" in text
    loc = torch.zeros(K, 2)
    for role, arguments in (
        ("pivot", {"method": Pivot({"loc": loc[:2]})}),
        ("reference", {"reference": {"loc": loc[:2]}}),
    ):
        text = refused(**arguments)
        assert f"expected {role} site 'loc' to have the shape of one draw, (3, 2); got (2, 2)" in text
        assert "without chain and draw axes" in text
    text = refused(reference={"mu": loc})
    assert "the draws have ['weights', 'loc', 'cov'], the reference has ['mu'], and [] were to be compared" in text
    text = refused(Pivot({"loc": loc}, sites=("loc", "weights")))
    assert "the pivot has ['loc'], and ['loc', 'weights'] were to be compared. Name sites that both have" in text


def test_errors_about_order() -> None:
    text = refused(Order("scale"))
    assert "one of ['weights', 'loc', 'cov'], the sites with one component axis; got 'scale'" in text
    assert (
        "expected Order(index=...) to pick one entry of shape (2,) for each component of site 'loc'; got 2"
        in refused(Order(index=2))
    )
    assert "entry of shape (2, 2) for each component of site 'cov'; got 0" in refused(Order("cov"))
    assert "entry of shape () for each component of site 'weights'; got 1" in refused(Order("weights", 1))
