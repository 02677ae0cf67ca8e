"""Aitken's estimate of what an ascent has still to gain."""

from __future__ import annotations

import torch

from probmix.inference.stopping import still_to_gain


def test_is_exact_for_a_geometric_series():
    """Gains of 3 a^t sum to 3 a^t / (1 - a) from step t on; rounding of numbers of size 10 is far below 1e-12."""
    ratio = torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    limit = 3 / (1 - ratio)
    objectives = [limit * (1 - ratio**step) for step in range(6)]
    torch.testing.assert_close(still_to_gain(objectives), limit * ratio**5, rtol=1e-10, atol=1e-12)


def test_knows_nothing_before_the_third_value_and_while_gains_grow():
    values = [torch.tensor([v], dtype=torch.float64) for v in (0.0, 1.0, 3.0)]
    assert [float(still_to_gain(values[:n])) for n in (1, 2, 3)] == [torch.inf] * 3


def test_is_never_less_than_the_last_gain():
    """Gains 1 and 0.01: Aitken's estimate alone says 0.0001."""
    values = [torch.tensor([v], dtype=torch.float64) for v in (0.0, 1.0, 1.01)]
    assert float(still_to_gain(values)) == values[2] - values[1]


def test_a_gain_that_rounding_could_have_made_is_none():
    """1e-13 beside 1,000 is half a unit in the last place; the ratio of the two gains, 0.999, says 1e-10 to go."""
    values = [torch.tensor([v], dtype=torch.float64) for v in (1000 - 2.001e-13, 1000 - 1e-13, 1000.0)]
    assert float(still_to_gain(values)) == 0.0
    far = [torch.tensor([v], dtype=torch.float64) for v in (0.0, 1e-3, 1.9e-3)]
    assert float(still_to_gain(far)) > 1e-3
