"""Guesses of spectral components: what both ways say of known spectra, and EM against scikit-learn's."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from process_cases import normal
from scipy import stats
from sklearn.mixture import GaussianMixture
from torch import Tensor

from probmix import spectral_starts
from probmix.isolation import isolated
from probmix.periodogram import periodogram
from probmix.spectral_starts import Guess, periodogram_guesses, spectrum_guesses

BOTH = (periodogram_guesses, spectrum_guesses)
both_ways = pytest.mark.parametrize("ways", BOTH)
GUESSES = 400
FALSE_ALARM = 1e-6  # of each test against a law


@pytest.fixture(autouse=True)
def _seeded():
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


def even(n: int = 240) -> Tensor:
    return 1958 + torch.arange(n, dtype=torch.float64) / 12


def waves(times: Tensor) -> Tensor:
    """A trend, a strong year, a weaker third of a year, noise."""
    year = 2 * math.pi * times
    return 0.02 * (times - 1958) ** 2 + year.sin() + 0.4 * (3 * year).cos() + 0.1 * normal(len(times), seed=1)


def broad(times: Tensor) -> Tensor:
    """Two bands, about 1 and 4 cycles a unit, a tenth wide: hundreds of waves with random phases."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.tensor([[1.0], [4.0]]).double()
    frequencies = centres + 0.1 * torch.randn(2, 300, generator=generator, dtype=torch.float64)
    phases = 2 * math.pi * torch.rand(2, 300, generator=generator, dtype=torch.float64)
    return (2 * math.pi * frequencies * times[:, None, None] + phases).cos().sum((-2, -1)) / 300**0.5


def within(guess: Guess, index: Tensor | None = None) -> Tensor:
    """Frequencies of all guesses as one list."""
    return (guess.frequencies if index is None else guess.frequencies[index]).flatten()


# --- both -------------------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("num_components", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_every_guess_is(ways, num_components, dtype):
    """Weights and noise are shares of one; frequencies are inside the bounds of their prior; all is finite."""
    times = even()
    guess = ways((times - 1958).to(dtype), waves(times).to(dtype), 50, num_components, 6.0)
    assert all(value.shape == (50, num_components) for value in guess[:3])
    assert guess.noise_share.shape == (50,)
    assert all(value.dtype == dtype and value.isfinite().all() for value in guess)
    total = guess.weights.sum(-1) + guess.noise_share
    torch.testing.assert_close(total, torch.ones_like(total))
    assert ((guess.frequencies > 0) & (guess.frequencies < 6)).all()
    assert (guess.weights > 0).all()
    assert (guess.bandwidths > 0).all()
    assert len(set(guess.noise_share.tolist())) == 50


@both_ways
def test_noise_is_log_uniform_over_its_range(ways: Callable[..., Guess]):
    """Null: uniform between the logarithms of 1e-3 and 0.3, by Kolmogorov and Smirnov. The control: up to 0.2."""
    times = even()
    shares = ways(times, waves(times), 4000, 1, 6.0).noise_share.log().numpy()
    low, high = math.log(1e-3), math.log(0.3)
    assert stats.kstest(shares, stats.uniform(low, high - low).cdf).pvalue > FALSE_ALARM
    assert stats.kstest(shares, stats.uniform(low, math.log(0.2) - low).cdf).pvalue < FALSE_ALARM


@both_ways
def test_a_peak_at_the_bound_is_moved_off_it(ways: Callable[..., Guess]):
    """The prior ends at a frequency a little below that of the series: there a sigmoid has no gradient."""
    times = torch.arange(100, dtype=torch.float64)
    guess = ways(times, (2 * math.pi * 0.305 * times).sin(), 20, 1, 0.3)
    assert (guess.frequencies < 0.3 - 1e-5).all()
    assert (guess.frequencies > 0.27).all()


@both_ways
def test_guesses_are_repeated_by_a_seed_alone(ways: Callable[..., Guess]):
    times = even()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(ways(times, waves(times), 5, 3, 6.0))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0].weights, found[2].weights)


# --- peaks ------------------------------------------------------------------------------------------------------------


def test_narrow_components_are_at_peaks_the_others_without_a_cycle():
    """Of 3 components one or two are narrow. Peaks err by 2e-3 or less, as noise lets a span of 20 tell them."""
    times, span = even(), 20 - 1 / 12
    guess = periodogram_guesses(times, waves(times), GUESSES, 3, 6.0)
    is_peak = guess.frequencies > 0.1 / span
    assert set(is_peak.sum(-1).tolist()) == {1, 2}
    narrow, wide = guess.bandwidths[is_peak], guess.bandwidths[~is_peak]
    assert ((narrow >= 0.01 / span) & (narrow <= 1 / span)).all()
    assert ((wide >= 0.1 / span) & (wide <= 0.25 * 6)).all()
    at_year = ((guess.frequencies - 1).abs() < 2e-3).any(-1)
    at_third = ((guess.frequencies - 3).abs() < 2e-3).any(-1)
    assert at_year.float().mean() > at_third.float().mean() > 0.1
    assert guess.frequencies[~is_peak].max() > 0.05 / span  # they are spread over a tenth of a cycle


def test_the_stronger_a_peak_the_likelier_it_is_taken():
    """Null: two peaks, of shares a and b, one component: the first with probability sqrt(a) / (sqrt(a) + sqrt(b)).

    Gumbel's trick. Of 4,000 guesses, with amplitudes 1 and 0.4: 5 / 7. The control: by shares themselves, 25 / 29.
    """
    times = torch.arange(300, dtype=torch.float64)
    y = (2 * math.pi * 0.1 * times).sin() + 0.4 * (2 * math.pi * 0.23 * times).sin()
    guess = periodogram_guesses(times, y, 4000, 1, 0.5)
    first = int(((guess.frequencies - 0.1).abs() < 1e-3).sum())
    assert first + int(((guess.frequencies - 0.23).abs() < 1e-3).sum()) == 4000
    assert stats.binomtest(first, 4000, 5 / 7).pvalue > FALSE_ALARM
    assert stats.binomtest(first, 4000, 25 / 29).pvalue < FALSE_ALARM


@pytest.mark.parametrize("num_components", [2, 4])
def test_weights_are_about_what_peaks_explain(num_components):
    """Null: the logarithm of the ratio of a peak's weight to a trend's is normal about its shares, sqrt(2) / 2 wide.

    One strong peak; the trend without a share of its own, a tenth by the floor, divided among the components that are
    not at a peak. By Kolmogorov and Smirnov; the controls are half a unit wide, one weight alone, and a fifth off.
    """
    times = torch.arange(300, dtype=torch.float64) - 149.5  # so that a parabola takes nothing from whole cycles
    guess = periodogram_guesses(times, (2 * math.pi * 0.1 * times).cos(), 2000, num_components, 0.5)
    assert ((guess.frequencies - 0.1).abs() < 1e-4).sum(-1).eq(1).all()
    ratio = (guess.weights[:, 0] / guess.weights[:, -1] / (10 * (num_components - 1))).log().numpy()
    assert stats.kstest(ratio, stats.norm(0, math.sqrt(0.5)).cdf).pvalue > FALSE_ALARM
    assert stats.kstest(ratio, stats.norm(0, 0.5).cdf).pvalue < FALSE_ALARM
    assert stats.kstest(ratio, stats.norm(0.2, math.sqrt(0.5)).cdf).pvalue < FALSE_ALARM


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_trends_hide_no_peak(size):
    """A parabola of a hundred times the wave's size is taken off first."""
    times = even()
    y = (2 * math.pi * 1.3 * times).sin() + size * (times - 1960) ** 2
    guess = periodogram_guesses(times, y, 20, 1, 6.0)
    torch.testing.assert_close(guess.frequencies, torch.full_like(guess.frequencies, 1.3), rtol=0, atol=5e-3)


def test_a_series_without_a_wave_has_guesses_all_the_same():
    """A parabola, of which nothing is left; five rows, fewer peaks than components."""
    times = even(60)
    for x, y in ((times, (times - 1960) ** 2), (times[:5], normal(5))):
        guess = periodogram_guesses(x, y, 20, 4, 6.0)
        assert all(value.isfinite().all() for value in guess)
        assert (guess.weights > 0).all()


# --- the spectrum as a density ----------------------------------------------------------------------------------------


def test_em_is_that_of_scikit_learn(monkeypatch):
    """On 20,000 replicated frequencies in proportion to their power, from the same means: 30 steps of either.

    Ours differ by the floor under variances and weights, a twentieth of a bin each, and by the rounding of counts.
    """
    times, num = torch.arange(200, dtype=torch.float64) / 12, 2
    y = broad(times)
    frequencies, power = periodogram(times, y, 6.0, oversampling=2.0)
    drawn = []
    multinomial = torch.multinomial

    def kept(*arguments, **settings):
        drawn.append(multinomial(*arguments, **settings))
        return drawn[-1]

    monkeypatch.setattr(torch, "multinomial", kept)
    monkeypatch.setattr(spectral_starts, "_WEIGHT_LOG_STD", 0.0)
    guess = spectrum_guesses(times, y, 8, num, 6.0)
    counts = (20_000 * power / power.sum()).round().long()
    rows = frequencies.repeat_interleave(counts)[:, None].numpy()
    start = frequencies[drawn[0]].numpy()
    for k in range(8):
        theirs = GaussianMixture(
            num, covariance_type="spherical", means_init=start[k][:, None], max_iter=30, tol=0, reg_covar=3.6e-5,
            weights_init=np.full(num, 1 / num), precisions_init=np.full(num, (num / 6.0) ** 2),
        )  # fmt: skip
        with pytest.warns(match="did not converge"):
            theirs.fit(rows)
        np.testing.assert_allclose(guess.frequencies[k].numpy(), theirs.means_[:, 0], rtol=0, atol=0.01)
        np.testing.assert_allclose(guess.bandwidths[k].numpy(), theirs.covariances_**0.5, rtol=0.02, atol=0)
        shares = guess.weights[k] / guess.weights[k].sum()
        np.testing.assert_allclose(shares.numpy(), theirs.weights_, rtol=0, atol=0.005)


def test_broad_bands_are_found():
    """Bands about 1 and 4, 0.1 wide: most guesses have one component in each, of about its width.

    The peaks of the other way are single lines, a twentieth as wide, as a control.
    """
    times = torch.arange(600, dtype=torch.float64) / 12
    guess, lines = (ways(times, broad(times), 100, 2, 6.0) for ways in (spectrum_guesses, periodogram_guesses))
    order = guess.frequencies.argsort(-1)
    frequencies, bandwidths = guess.frequencies.gather(-1, order), guess.bandwidths.gather(-1, order)
    right = ((frequencies - torch.tensor([1.0, 4.0])).abs() < 0.1).all(-1)
    assert right.float().mean() > 0.4
    typical = bandwidths[right].median(0).values
    assert ((typical > 0.07) & (typical < 0.17)).all()  # 0.1, a twentieth of a peak's width, and one series of many
    assert lines.bandwidths[lines.frequencies > 0.5].max() < 0.05


def test_one_wave_is_one_line():
    """Its width is that of a peak: within two of 1 / span; the mean within a tenth of that."""
    times = torch.arange(600, dtype=torch.float64) / 12
    guess = spectrum_guesses(times, (2 * math.pi * 2.2 * times).sin(), 10, 1, 6.0)
    torch.testing.assert_close(guess.frequencies, torch.full_like(guess.frequencies, 2.2), rtol=0, atol=0.01)
    assert (guess.bandwidths < 0.2).all()
    assert (guess.bandwidths > 0.1 / 50).all()
