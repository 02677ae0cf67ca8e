"""What ranks say: refused as seldom as asked, errors found and named, failures counted."""

from __future__ import annotations

import numpy as np
import pytest

from probmix.ranks import FAILED, Calibration, Tally


def normal_ranks(generator, simulations=200, draws=99, shift=0.0, stretch=1.0):
    """Ranks of the true value among draws of a normal posterior moved by ``shift`` standard deviations."""
    truth = generator.standard_normal(simulations)
    values = shift + stretch * generator.standard_normal((simulations, draws))
    return (values < truth[:, None]).sum(1)


def test_correct_ranks_are_refused_as_seldom_as_asked():
    """Null: exact draws of three quantities. Of 400 calibrations at 5%, 38 refusals come once in 10,000 seeds."""
    generator = np.random.default_rng(0)
    refused = 0
    for seed in range(400):
        ranks = {name: normal_ranks(generator, 64, 19) for name in "abc"}
        refused += not Calibration(ranks, 19, false_alarm=0.05, seed=seed).ok
    assert 0 < refused < 38


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"shift": 0.5}, "biased upwards"),
        ({"shift": -0.5}, "biased downwards"),
        ({"stretch": 1.5}, "too wide"),
        ({"stretch": 1 / 1.5}, "too narrow"),
        ({"shift": 0.75, "stretch": 0.6}, "biased upwards and too narrow"),
    ],
)
def test_a_wrong_quantity_among_right_ones_is_found_and_named(wrong, words):
    """Negative controls; the sizes estimated from 200 ranks are within four standard errors: 0.28, and a fifth."""
    generator = np.random.default_rng(1)
    ranks = {"right": normal_ranks(generator), "wrong": normal_ranks(generator, **wrong)}
    calibration = Calibration(ranks, 99)
    stretch = wrong.get("stretch", 1.0)
    assert not calibration.ok
    assert calibration.quantities["wrong"].words == words
    assert calibration.quantities["right"].words == ""
    if len(wrong) == 1:  # an estimate of one is damped by a large other
        assert calibration.quantities["wrong"].bias == pytest.approx(wrong.get("shift", 0.0), abs=0.28 / stretch)
        assert calibration.quantities["wrong"].spread == pytest.approx(stretch, rel=0.2)
    assert Calibration({"right": ranks["right"]}, 99).ok


def test_another_shape_is_called_so():
    """Even ranks and two lumps a standard deviation from the centre: neither mean nor spread is off by much."""
    ranks = np.concatenate([np.arange(200) % 20, np.repeat([3, 16], 60)])
    calibration = Calibration({"a": ranks}, 19)
    assert not calibration.ok
    assert calibration.quantities["a"].words == "of another shape"


def test_the_text_has_the_numbers_the_causes_and_the_troubles():
    generator = np.random.default_rng(1)
    ranks = {"loc": normal_ranks(generator), "rate": normal_ranks(generator, shift=0.7)}
    troubles = {"divergent transitions": np.arange(200) < 7, "the fit failed": np.zeros(200, dtype=bool)}
    text = str(Calibration(ranks, 99, troubles=troubles, seconds=12.4)).splitlines()
    assert text[0].startswith("NOT calibrated (p-value ")
    assert text[0].endswith("<= 0.01): 200 data sets, ranks among 99 draws, 12 s")
    assert text[1].split() == ["quantity", "p-value", "bias", "spread"]
    assert text[2].startswith("loc ")
    assert text[3].endswith("biased upwards")
    assert text[4] == "7 of 200 data sets: divergent transitions."
    assert text[5].endswith("the method does not give the posterior of this program.")
    assert len(text) == 6
    assert str(Calibration({"loc": ranks["loc"]}, 99)).startswith("Calibrated (p-value ")


def test_failed_fits_are_left_out_counted_and_no_success():
    ranks = normal_ranks(np.random.default_rng(1))
    ranks[[3, 5]] = FAILED
    calibration = Calibration({"loc": ranks}, 99, message="singular matrix")
    assert calibration.failed == 2
    assert len(calibration.of("loc")) == calibration.test.simulations == 198
    assert calibration.p_value > 0.01
    assert not calibration.ok
    assert str(calibration).startswith("Incomplete")
    assert "2 of 200 data sets could not be fitted" in str(calibration)
    assert "The first said: singular matrix" in str(calibration)


def test_ties_are_broken_at_random():
    """A quantity with two values: ranks of correct draws are uniform, though most draws equal the true value."""
    generator = np.random.default_rng(0)
    draws, truth = generator.integers(0, 2, (400, 19)).astype(float), generator.integers(0, 2, 400).astype(float)
    tally = Tally.of(draws, truth)
    assert Calibration({"a": tally.ranks(generator)}, 19).ok
    assert not Calibration({"a": tally.below}, 19).ok


def test_ranks_as_a_dataset():
    ranks = normal_ranks(np.random.default_rng(0))
    dataset = Calibration({"loc": ranks}, 99, seed=3).to_dataset()
    assert dataset.sizes == {"simulation": 200}
    assert (dataset["loc"] == ranks).all()
    assert dataset.attrs["draws"] == 99
