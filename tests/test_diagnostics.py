"""Nested r-hat: its definition worked out by hand, its limits, its false alarms, and who stands apart."""

from __future__ import annotations

import numpy as np
import pytest

from probmix.diagnostics import nested_rhat, nested_rhat_limit, standing_apart


def by_hand(values: np.ndarray, superchains: int) -> float:
    """The definition of Margossian et al. (2024), one loop for each sum."""
    chains, draws = values.shape
    size = chains // superchains
    groups = [values[k * size : (k + 1) * size] for k in range(superchains)]
    centres = [sum(float(v) for v in g.flat) / (size * draws) for g in groups]
    grand = sum(centres) / superchains
    between = sum((c - grand) ** 2 for c in centres) / (superchains - 1)
    inner = 0.0
    for group, centre in zip(groups, centres, strict=True):
        means = [float(chain.sum()) / draws for chain in group]
        if size > 1:
            inner += sum((m - centre) ** 2 for m in means) / (size - 1) / superchains
        if draws > 1:
            spread = [sum((float(v) - m) ** 2 for v in c) / (draws - 1) for c, m in zip(group, means, strict=True)]
            inner += sum(spread) / size / superchains
    return float((1 + between / inner) ** 0.5)


@pytest.mark.parametrize(
    ("chains", "superchains", "draws"), [(12, 3, 5), (12, 12, 5), (12, 2, 1), (4, 2, 2), (64, 8, 20)]
)
def test_definition(chains, superchains, draws):
    values = np.random.default_rng(0).gamma(2.0, size=(chains, draws)) + np.arange(chains)[:, None] / chains
    assert nested_rhat(values, superchains) == pytest.approx(by_hand(values, superchains), rel=1e-12)


def test_a_value_small_enough_for_paper():
    """Superchains {0, 2}, {4, 6} of constant chains: B = (1 - 5)^2 / 2 = 8, W = 2; sqrt(1 + 8 / 2) = sqrt(5)."""
    values = np.array([[0.0, 0.0], [2.0, 2.0], [4.0, 4.0], [6.0, 6.0]])
    assert nested_rhat(values, 2) == pytest.approx(5**0.5)


def test_one_chain_to_a_superchain_is_plain_rhat():
    """Gelman and Rubin: sqrt((N - 1) / N + B / W) with B the variance of chain means."""
    values = np.random.default_rng(0).normal(size=(8, 50)) + np.arange(8)[:, None] / 4
    between, within = values.mean(1).var(ddof=1), values.var(1, ddof=1).mean()
    assert nested_rhat(values, 8) ** 2 == pytest.approx(1 + between / within)
    assert nested_rhat(values, 8) == pytest.approx((49 / 50 + between / within) ** 0.5, rel=0.02)
    assert nested_rhat_limit(values, 8) == pytest.approx(1.01)


def test_quantities_are_independent_of_each_other():
    values = np.random.default_rng(0).normal(size=(16, 10, 2, 3))
    assert nested_rhat(values, 4).shape == nested_rhat_limit(values, 4).shape == (2, 3)
    assert nested_rhat(values, 4)[1, 2] == nested_rhat(values[:, :, 1, 2], 4)


@pytest.mark.parametrize("draws", [1, 10, 400])
def test_false_alarms_and_power(draws):
    """Null: independent chains that forgot their start. 500 trials at 1e-3: more than 4 alarms has probability 2e-4.

    The control: one superchain of 8 shifted by one standard deviation of a draw is found in at least half of the
    trials (its shift of 1 against a standard error of at most 1 / sqrt(8) gives B about 1/8 more; F(7, 56)).
    """
    rng = np.random.default_rng(0)
    alarms, found = 0, 0
    for _ in range(500):
        values = rng.normal(size=(64, draws))
        alarms += bool(nested_rhat(values, 8) > nested_rhat_limit(values, 8))
        values[:8] += 1.0 if draws > 1 else 3.0
        found += bool(nested_rhat(values, 8) > nested_rhat_limit(values, 8))
    assert alarms <= 4
    assert found > 250


def test_limit_of_long_chains_is_the_customary_one():
    values = np.random.default_rng(0).normal(size=(16, 20_000))
    assert nested_rhat_limit(values, 4) == pytest.approx(1.01, abs=1e-3)


def test_more_quantities_need_a_higher_limit():
    values = np.random.default_rng(0).normal(size=(16, 10))
    assert nested_rhat_limit(values, 4, quantities=100) > nested_rhat_limit(values, 4)


def test_who_stands_apart_and_how_far():
    values = np.random.default_rng(0).normal(size=(40, 200))
    values[5:10] -= 30.0
    values[35:] += 4.0
    found, distance = standing_apart(values, 8)
    assert found.tolist() == [1, 7]
    assert distance == pytest.approx([-30.0, 4.0], abs=0.25)  # standard errors of 1 / sqrt(1000) each, twice
    assert standing_apart(values[10:35], 5)[0].tolist() == []


def test_of_two_equal_halves_the_lower_stands_apart():
    values = np.random.default_rng(0).normal(size=(16, 100)) - 9.0 * (np.arange(16) % 8 < 4)[:, None]
    assert standing_apart(values, 4)[0].tolist() == [0, 2]


@pytest.mark.parametrize("superchains", [0, 1, 3])
def test_refusals(superchains):
    with pytest.raises(ValueError, match=f"expected a divisor of the 8 chains, from 2 on, got {superchains}"):
        nested_rhat(np.zeros((8, 4)), superchains)


def test_constant_values_have_no_rhat():
    assert np.isnan(nested_rhat(np.ones((8, 4)), 2))
