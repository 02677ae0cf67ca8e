"""Stephens' algorithm and the pivot allocation, against brute force."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from relabel_cases import (
    CHAINS,
    DRAWS,
    K,
    N,
    Result,
    flat_responsibilities,
    kullback_leibler,
    mixture,
    overlapped,
    random_permutations,
    refused,
    switched,
)
from scipy.special import rel_entr
from torch import Tensor

from probmix import relabel_responsibilities
from probmix.relabel import (
    ECR,
    Stephens,
    permutations_of,
    relabel,
)


def test_stephens_loss_never_rises_and_is_the_expected_divergence() -> None:
    responsibilities = flat_responsibilities(overlapped())
    method, blocks = Stephens(), [responsibilities[:50].mT, responsibilities[50:].mT]
    states = [method.init(blocks)]
    for _ in range(12):
        states.append(method.step(blocks, states[-1]))
    losses = [float(state.loss) for state in states]
    assert losses[1] < losses[0] - 1e-3  # the law below is not about a constant
    # 1e-12: rounding of a sum of N K terms of order one.
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(losses))
    entropy = float(torch.special.entr(responsibilities).sum()) / len(responsibilities)
    direct = [kullback_leibler(responsibilities, state.permutations) for state in states]
    np.testing.assert_allclose(np.array(losses) - entropy, direct, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_stephens_answer_is_a_fixed_point_below_where_it_started(seed: int) -> None:
    result = switched(mixture(0.7, seed), random_permutations(seed))
    responsibilities, found = flat_responsibilities(result), permutations_of(result).flatten(0, 1)
    unchanged = torch.arange(K).expand_as(found)
    assert kullback_leibler(responsibilities, found) < kullback_leibler(responsibilities, unchanged)
    # Independent of the solver: under the final mean, no draw has a better permutation among all K! of them.
    q = responsibilities.gather(-1, found[:, None, :].expand_as(responsibilities)).mean(0).numpy()
    for p, perm in zip(responsibilities.numpy(), found.numpy(), strict=True):
        every = [rel_entr(p[:, other], q).sum() for other in itertools.permutations(range(K))]
        assert rel_entr(p[:, perm], q).sum() <= min(every) + 1e-9  # rounding of a sum of 180 terms


def test_stephens_finds_the_best_of_all_labellings_of_four_draws() -> None:
    result = overlapped()
    few = replace(
        result,
        draws={name: value[:1, :4] for name, value in result.draws.items()},
        sample_stats={"lp": result.sample_stats["lp"][:1, :4]},
    )
    responsibilities = flat_responsibilities(few)
    labels = [torch.tensor(perm) for perm in itertools.permutations(range(K))]
    every = [
        kullback_leibler(responsibilities, torch.stack((labels[0], *rest)))
        for rest in itertools.product(labels, repeat=3)
    ]
    found = kullback_leibler(responsibilities, permutations_of(few).flatten(0, 1))
    assert found == pytest.approx(min(every), abs=1e-10)
    assert min(every) < sorted(every)[len(every) // 2] - 1e-3  # the best is not what any labelling gives


@pytest.mark.parametrize(("seed", "better"), [(2, "pivot"), (19, "as they came")])
def test_stephens_keeps_the_better_of_two_starts(seed: int, better: str) -> None:
    # Seeds found by a search among 40 for starts that end apart: neither start is better every time.
    result = switched(mixture(0.5, seed), random_permutations(seed))
    responsibilities, method = flat_responsibilities(result), Stephens()
    blocks = [responsibilities.mT]
    start = method.init(blocks)
    pivot = start._replace(mean=blocks[0][result.sample_stats["lp"].argmax()])
    ends = {"as they came": method.run(blocks, start), "pivot": method.run(blocks, method.step(blocks, pivot))}
    losses = {name: kullback_leibler(responsibilities, end.permutations) for name, end in ends.items()}
    assert losses[better] < max(losses.values()) - 1e-3
    found = kullback_leibler(responsibilities, permutations_of(result).flatten(0, 1))
    assert found == pytest.approx(losses[better], abs=1e-10)


def test_stephens_in_blocks_equals_stephens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    result = overlapped()
    at_once = permutations_of(result, Stephens())
    asked = []

    def counted(x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        asked.append(len(sites["loc"]))
        return result.program.responsibilities(x, sites)

    monkeypatch.setattr(relabel_responsibilities, "BLOCK_ROWS", 7 * N + 1)
    in_blocks = permutations_of(result, Stephens(max_rows=0, responsibilities=counted))
    assert torch.equal(in_blocks, at_once)
    assert max(asked) == 7
    passes = asked.count(7)
    asked.clear()
    assert torch.equal(permutations_of(result, Stephens(responsibilities=counted)), at_once)
    assert asked.count(7) == CHAINS * DRAWS // 7 < passes  # held in memory: computed once


def test_stephens_says_when_it_was_stopped() -> None:
    with pytest.warns(UserWarning, match=r"still improved after max_steps=1 .*raise max_steps") as caught:
        relabel(overlapped(), Stephens(max_steps=1))
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        relabel(overlapped(), Stephens())


def test_ecr_agrees_with_the_pivot_as_far_as_any_permutation_can() -> None:
    result = overlapped()
    allocation = torch.arange(N) // (N // K)
    found = permutations_of(result, ECR(pivot=allocation)).flatten(0, 1)
    labels = flat_responsibilities(result).argmax(-1)
    for z, perm in zip(labels, found.tolist(), strict=True):
        agreement = {
            other: int(sum((allocation == k) & (z == j) for k, j in enumerate(other)).sum())
            for other in itertools.permutations(range(K))
        }
        assert agreement[tuple(perm)] == max(agreement.values())


def test_ecr_leaves_labels_alone_where_agreement_is_tied() -> None:
    # Agreement counts [[0, 0, 1], [0, 0, 0], [1, 1, 2]]: staying put agrees twice, and so does the cycle (2, 0, 1).
    allocation, pivot = torch.tensor([2, 0, 1, 2, 2]), torch.tensor([0, 2, 2, 2, 2])
    result = Result({"loc": torch.zeros(1, 1, K)}, None, (torch.zeros(5),), {})
    method = ECR(pivot, responsibilities=lambda x, sites: torch.eye(K)[allocation][None])
    assert permutations_of(result, method, dims={"loc": ("component",)}).tolist() == [[[0, 1, 2]]]


def test_errors_about_responsibilities() -> None:
    text = refused(Stephens(responsibilities=lambda x, sites: torch.zeros(4, 5)))
    assert f"expected responsibilities of shape ({CHAINS * DRAWS}, {N}, {K})" in text
    assert "got (4, 5)" in text
    text = refused(ECR(responsibilities=lambda x, sites: torch.full((len(sites["loc"]), N, K), torch.nan)))
    assert f"{N * K} of {N * K} are not" in text
    assert "check x for missing values" in text
