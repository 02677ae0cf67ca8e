"""The periodogram: scipy's, least squares, and sinusoids planted in even and uneven series."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch
from process_cases import normal, t
from torch import Tensor

from probmix import periodogram as module
from probmix.errors import DataError
from probmix.periodogram import frequency_grid, lomb_scargle, nyquist, peaks, periodogram


def uneven(n: int, span: float, seed: int = 0) -> Tensor:
    """Times at random, in no order."""
    return span * torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def wave(times: Tensor, frequency: float, phase: float = 0.4) -> Tensor:
    return (2 * math.pi * frequency * times + phase).sin()


def bursts() -> Tensor:
    """Ten nights of 30 observations, and 5 of them twice."""
    nights = torch.arange(10, dtype=torch.float64)[:, None] + 0.3 * uneven(300, 1.0).reshape(10, 30)
    return torch.cat([nights.flatten(), nights.flatten()[:5]])


EVEN = 1958 + torch.arange(240, dtype=torch.float64) / 12
TIMES = {"even": EVEN, "uneven": uneven(150, 20.0), "bursts": bursts(), "few": t([3.0, 0.0, 4.5])}
every_times = pytest.mark.parametrize("name", TIMES)


# --- values -----------------------------------------------------------------------------------------------------------


def by_scipy(times: Tensor, y: Tensor, frequencies: Tensor) -> np.ndarray:
    angular = 2 * math.pi * frequencies.numpy()
    return scipy.signal.lombscargle(times.numpy(), y.numpy(), angular, floating_mean=True, normalize=True)


def by_least_squares(times: Tensor, y: Tensor, frequency: float) -> float:
    angles = 2 * math.pi * frequency * (times - times.mean()).numpy()
    design = np.stack([np.ones_like(angles), np.cos(angles), np.sin(angles)], -1)
    left = y.numpy() - design @ np.linalg.lstsq(design, y.numpy(), rcond=1e-9)[0]
    return 1 - (left**2).sum() / ((y - y.mean()) ** 2).sum().item()


@every_times
def test_as_scipy_and_least_squares_say(name):
    """1e-9: sums of some hundreds, and angles of 1e4 radians in scipy, which takes times as they are."""
    times = TIMES[name]
    y, frequencies = (
        300 + normal(len(times), seed=1) + wave(times, 0.7),
        t([0.031, 0.2, 0.7, 1.3, 4.1, 5.9, 7.3, 40.03]),
    )
    found = lomb_scargle(times, y, frequencies)
    np.testing.assert_allclose(found.numpy(), by_scipy(times - times.mean(), y, frequencies), rtol=0, atol=1e-9)
    expected = [by_least_squares(times, y, float(frequency)) for frequency in frequencies]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)


@every_times
@pytest.mark.parametrize("oversampling", [1.0, 2.0, 5.0, 12.5])
@pytest.mark.parametrize("max_frequency", [1e-3, 0.9, 6.0, 13.7])
def test_the_fast_transform_says_the_same(name, oversampling, max_frequency):
    """Above the Nyquist frequency, too.

    1e-12 of sums, but less where what sine and cosine say differs by a thousandth: so it is of three rows at many a
    frequency, whose sums of squares cancel to 1e-5.
    """
    times = TIMES[name]
    y = 300 + normal(len(times), seed=1) + wave(times, 0.7)
    frequencies, share = periodogram(times, y, max_frequency, oversampling=oversampling)
    torch.testing.assert_close(frequencies, frequency_grid(times, max_frequency, oversampling=oversampling))
    error = (share - lomb_scargle(times, y, frequencies)).abs()
    assert error.median() < 1e-10
    assert error.max() < (1e-6 if name == "few" else 1e-8)


def test_many_frequencies_are_cut_into_blocks(monkeypatch):
    times, frequencies = TIMES["uneven"], torch.linspace(0.1, 3, 47, dtype=torch.float64)
    y = normal(len(times))
    whole = lomb_scargle(times, y, frequencies)
    monkeypatch.setattr(module, "_AT_ONCE", 5 * len(times))
    torch.testing.assert_close(lomb_scargle(times, y, frequencies), whole, rtol=0, atol=1e-14)


def test_where_sine_or_cosine_says_nothing():
    """At the Nyquist frequency one of the two is zero; at twice that, and at no cycle, both are constant."""
    times = torch.arange(10, dtype=torch.float64)
    y = (-1.0) ** times
    assert lomb_scargle(times, y, t([0.5])).item() == pytest.approx(1, abs=1e-12)
    assert lomb_scargle(times + 0.3, y, t([0.5])).item() == pytest.approx(1, abs=1e-12)
    assert lomb_scargle(times, normal(10), t([1.0, 2.0, 1e-9])).tolist() == [0, 0, 0]
    frequencies, share = periodogram(times, normal(10), 1.0, oversampling=10 / 9)
    assert frequencies[-1].item() == pytest.approx(1, abs=1e-12)
    assert share[-1] == 0


@every_times
def test_a_constant_series_has_no_spectrum(name):
    times = TIMES[name]
    y = torch.full_like(times, 2.5)
    assert not lomb_scargle(times, y, t([0.3, 1.0])).any()
    assert not periodogram(times, y, 2.0)[1].any()
    assert not peaks(times, y, 1, 2.0)[1].any()


def test_order_and_offsets_do_not_matter():
    """1e-8: 13 digits of times of 1e4 are left, in angles of 100 radians."""
    times, y, frequencies = TIMES["bursts"], normal(305, seed=1), torch.linspace(0.1, 9, 50, dtype=torch.float64)
    shuffle = torch.randperm(len(times), generator=torch.Generator().manual_seed(0))
    whole = lomb_scargle(times, y, frequencies)
    torch.testing.assert_close(lomb_scargle(times[shuffle], y[shuffle], frequencies), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(lomb_scargle(times + 1e4, 3 - 7 * y, frequencies), whole, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        periodogram(times + 1e4, 3 - 7 * y, 9.0)[1], periodogram(times, y, 9.0)[1], atol=1e-8, rtol=0
    )


def test_twice_the_same_row_counts_twice():
    """As a weight of two in scipy."""
    times, y, frequencies = uneven(30, 5.0), normal(30), torch.linspace(0.1, 3, 20, dtype=torch.float64)
    weights = np.where(np.arange(30) < 7, 2.0, 1.0)
    expected = scipy.signal.lombscargle(
        times.numpy(), y.numpy(), 2 * math.pi * frequencies.numpy(), floating_mean=True, normalize=True, weights=weights
    )
    doubled = lomb_scargle(torch.cat([times, times[:7]]), torch.cat([y, y[:7]]), frequencies)
    np.testing.assert_allclose(doubled.numpy(), expected, rtol=0, atol=1e-10)


def test_kinds_are_kept():
    """1e-4: float32 angles of 100 radians."""
    times, y = uneven(50, 10.0), normal(50)
    found, share = periodogram(times.float(), y.float(), 2.0)
    assert found.dtype == share.dtype == lomb_scargle(times.float(), y.float(), found).dtype == torch.float32
    torch.testing.assert_close(share.double(), periodogram(times, y, 2.0)[1], rtol=0, atol=1e-4)


# --- frequencies to look at -------------------------------------------------------------------------------------------


def test_nyquist():
    assert nyquist(EVEN).item() == pytest.approx(6, rel=1e-9)  # half of twelve a year; 13 digits of 2,000 years
    shuffled = EVEN[torch.randperm(240, generator=torch.Generator().manual_seed(0))]
    assert nyquist(shuffled).item() == nyquist(EVEN).item()
    assert nyquist(t([0.0, 1.0, 1.0, 1.0, 3.0, 7.0])).item() == 0.25  # steps of 1, 2, 4: repeated times are one
    assert nyquist(t([1.0, 1.0 + 1e-15, 3.0])).item() == pytest.approx(0.25)


def test_times_that_do_not_differ():
    with pytest.raises(DataError, match=r"expected times that differ, got one and the same throughout\. Drop this col"):
        nyquist(t([2.0, 2.0, 2.0]))


def test_frequency_grid():
    found = frequency_grid(t([7.0, 2.0, 4.0]), 1.0, oversampling=2.0)
    torch.testing.assert_close(found, 0.1 * torch.arange(1, 11, dtype=torch.float64))
    torch.testing.assert_close(frequency_grid(t([2.0, 7.0]), t(1.0), oversampling=2.0), found)
    torch.testing.assert_close(frequency_grid(t([2.0, 7.0]), 1e-6), t([0.04]))  # never none


# --- peaks ------------------------------------------------------------------------------------------------------------

PLANTED = [(1.0, 0.7), (0.6, 2.31), (0.3, 3.17), (0.2, 0.11)]  # amplitude, frequency


@pytest.mark.parametrize("name", ["even", "uneven"])
def test_planted_sinusoids_are_found_the_strongest_first(name):
    """Noise of 0.05: a frequency errs by sqrt(6 / n) noise / (pi span amplitude) (Bretthorst), here by 1e-3 at most.

    Five of those; refinements end at a ten-thousandth of a peak's width, of which a fiftieth is left for the waves that
    are found later. Of variances a fifth: waves are not quite orthogonal.
    """
    times = TIMES[name]
    y = sum(size * wave(times, frequency) for size, frequency in PLANTED) + 0.05 * normal(len(times), seed=3)
    found, variances = peaks(times, y, 4, 6.0)
    span = float(times.max() - times.min())
    for k, (size, frequency) in enumerate(PLANTED):
        error = math.sqrt(6 / len(times)) * 0.05 / (math.pi * span * size)
        assert abs(found[k].item() - frequency) < 5 * error + 0.02 / span
        assert variances[k].item() == pytest.approx(size**2 / 2, rel=0.2)


def test_side_lobes_are_not_peaks():
    """Of nights alone, a wave has aliases a cycle a night apart, higher than a tenth of it: the next is not one."""
    times = bursts()
    strong, weak = 3 * wave(times, 1.4), 0.3 * wave(times, 2.77)
    lobes = lomb_scargle(times, strong, t([0.4, 2.4]))
    assert lobes.min() > 0.1
    found, _ = peaks(times, strong + weak, 2, 5.0)
    torch.testing.assert_close(found, t([1.4, 2.77]), rtol=0, atol=5e-3)


def test_uneven_times_tell_frequencies_above_nyquist():
    """200 times at random over 20: a median step of 0.07 and a Nyquist frequency of 7; 31.4 is four times that."""
    times = uneven(200, 20.0)
    assert 4 * nyquist(times) < 31.4
    found, variances = peaks(times, wave(times, 31.4) + 0.3 * normal(200, seed=1), 1, 40.0)
    assert found.item() == pytest.approx(31.4, abs=5e-3)  # a tenth of a peak's width
    assert variances.item() == pytest.approx(0.5, rel=0.3)  # a chi-squared of 200, and the wave's own spread


def test_even_times_take_them_for_lower_ones():
    """At steps of 1/12, 12 - 0.7 is 0.7."""
    torch.testing.assert_close(wave(EVEN, 11.3, 0.0), -wave(EVEN, 0.7, 0.0), rtol=0, atol=1e-8)
    assert peaks(EVEN, wave(EVEN, 11.3), 1, 6.0)[0].item() == pytest.approx(0.7, abs=1e-3)


def test_no_peak_lies_beyond_the_highest_frequency():
    """Of an alternating series, or one whose peak is out of reach, the search ends there."""
    times = torch.arange(60, dtype=torch.float64)
    found = peaks(times, (-1.0) ** times + 0.1 * normal(60), 3, 0.5)[0]
    assert found[0].item() == pytest.approx(0.5, abs=5e-3)  # a third of a peak's width
    assert (found <= 0.5 + 1e-12).all()
    assert (peaks(times, wave(times, 0.31), 2, 0.3)[0] <= 0.3 + 1e-12).all()


def test_at_most_a_third_of_the_rows():
    times, y = uneven(10, 5.0), normal(10)
    assert len(peaks(times, y, 8, 2.0)[0]) == len(peaks(times, y, 8, 2.0)[1]) == 3
    assert len(peaks(times[:2], y[:2], 8, 2.0)[0]) == 1


def test_explained_variances_add_up():
    """To that of a fit of all sinusoids at once, by NumPy."""
    times, y = TIMES["uneven"], normal(150, seed=1) + wave(TIMES["uneven"], 0.7)
    found, variances = peaks(times, y, 5, 4.0)
    angles = 2 * math.pi * (times[:, None] * found).numpy()
    design = np.concatenate([np.ones((150, 1)), np.cos(angles), np.sin(angles)], -1)
    left = y.numpy() - design @ np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    assert variances.sum().item() == pytest.approx(y.var().item() - left.var(ddof=1), rel=1e-9)
    assert (variances > 0).all()


def test_a_hundred_thousand_rows():
    """Both waves to a hundredth of a peak's width, in seconds."""
    times = 1000 * torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = wave(times, 17.31) + 0.3 * wave(times, 0.002) + normal(100_000, seed=1)
    torch.testing.assert_close(peaks(times, y, 2, 50.0)[0], t([17.31, 0.002]), rtol=0, atol=1e-4)
