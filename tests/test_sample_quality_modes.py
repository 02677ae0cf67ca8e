"""Modes of toy mixtures: counted by hand, and what perfect and collapsed generators score."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import chi2, entropy

from probmix import sample_quality_inputs
from probmix.errors import DataError
from probmix.sample_quality import mode_coverage

ANGLE = torch.arange(8, dtype=torch.float64) * math.pi / 4
RING = torch.stack([ANGLE.cos(), ANGLE.sin()], 1)


def ring_samples(modes: np.ndarray, seed: int, std: float = 0.05) -> torch.Tensor:
    return RING[torch.as_tensor(modes)] + std * torch.as_tensor(
        np.random.default_rng(seed).normal(size=(len(modes), 2))
    )


def test_a_small_case_by_hand():
    """Distances from the nearest centre in standard deviations: 0, 3, 3.1, 2, and 4 beyond the last centre."""
    loc = torch.tensor([[0.0], [20.0], [40.0]], dtype=torch.float64)
    samples = torch.tensor([[0.0], [3.0], [-3.1], [18.0], [44.0]], dtype=torch.float64)
    found = mode_coverage(samples, loc, 1.0)
    assert found.near.tolist() == [2, 1, 0]
    assert int(found.modes) == 2
    assert float(found.high_quality) == pytest.approx(3 / 5)
    assert float(found.kl) == pytest.approx(entropy([3, 1, 1], [1, 1, 1]), rel=1e-12)
    assert int(mode_coverage(samples, loc, 1.0, within=4.0).modes) == 3
    assert int(mode_coverage(samples, loc, 1.0, least=2).modes) == 1


def test_perfect_samples_have_the_quality_of_the_chi_squared_distribution():
    """Null: samples of the mixture itself. Of 20,000 the share errs by 0.00074; four of those are passed once in
    16,000 seeds. The control has another spread."""
    modes = np.random.default_rng(0).integers(0, 8, 20_000)
    found = mode_coverage(ring_samples(modes, 1), RING, 0.05)
    assert abs(float(found.high_quality) - chi2(2).cdf(9)) < 4 * 0.00074
    assert int(found.modes) == 8
    wider = mode_coverage(ring_samples(modes, 1, std=0.07), RING, 0.05)
    assert abs(float(wider.high_quality) - chi2(2).cdf(9)) > 4 * 0.00074


def test_the_divergence_of_perfect_samples_is_that_of_a_multinomial():
    """Null: equal modes. 2n KL is nearly chi squared with 7 degrees of freedom: the mean of 200 errs by 0.26, four of
    those are allowed, and the approximation errs by 0.03 at n = 250."""
    modes = np.random.default_rng(0).integers(0, 8, (200, 250))
    divergences = [float(mode_coverage(RING[torch.as_tensor(row)], RING, 0.05).kl) for row in modes]
    assert abs(500 * np.mean(divergences) - 7) < 4 * 0.26 + 0.03


def test_a_collapsed_generator_reaches_one_mode():
    found = mode_coverage(ring_samples(np.full(500, 3), 0), RING, 0.05)
    assert int(found.modes) == 1
    assert found.near[3] == found.near.sum() > 480
    assert float(found.kl) == pytest.approx(math.log(8), rel=1e-12)


def test_noise_reaches_modes_with_little_quality():
    found = mode_coverage(4 * ring_samples(np.arange(4000) % 8, 0, std=0.5), RING, 0.05)
    assert found.high_quality < 0.05
    assert found.modes < 8 or found.near.max() < 40


@pytest.mark.parametrize("block", [2**22, 100, 1])
def test_blocks_change_nothing(monkeypatch, block):
    samples = ring_samples(np.random.default_rng(0).integers(0, 5, 300), 1)
    whole = mode_coverage(samples, RING, 0.05)
    monkeypatch.setattr(sample_quality_inputs, "BLOCK", block)
    for found, expected in zip(mode_coverage(samples, RING, 0.05), whole, strict=True):
        assert torch.equal(found, expected)


def test_each_mode_may_have_its_own_spread():
    loc, samples = torch.tensor([[0.0], [10.0]]), torch.tensor([[2.0], [12.0]])
    assert mode_coverage(samples, loc, torch.tensor([1.0, 0.5])).near.tolist() == [1, 0]
    assert mode_coverage(samples, loc, 0.5).near.tolist() == [0, 0]
    assert mode_coverage(samples, loc, 1.0).high_quality.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mode_std": 0.0},
            "mode_std: expected a positive number, or one for each of 8 modes, got 0. Pass the standard",
        ),
        (
            {"mode_std": torch.ones(3)},
            "mode_std: expected a positive number, or one for each of 8 modes, got shape (3,).",
        ),
        ({"mode_std": math.nan}, "mode_std: expected a positive number, or one for each of 8 modes, got nan."),
        ({"mode_std": 1.0, "within": 0.0}, "within, least: expected a positive number and 1 or more, got 0 and 1."),
        ({"mode_std": 1.0, "least": 0}, "within, least: expected a positive number and 1 or more, got 3 and 0. Leave"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(DataError, match=re.escape(message)):
        mode_coverage(RING, RING, **settings)


def test_centres_in_other_dimensions_are_refused():
    with pytest.raises(DataError, match="loc: expected 2 columns as generated has, got 1"):
        mode_coverage(RING, RING[:, :1], 0.1)
