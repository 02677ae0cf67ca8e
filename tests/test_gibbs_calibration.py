"""Simulation-based calibration of Gibbs on a mixture: the data sets, quantities and checks of `test_calibration`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_calibration import FALSE_ALARM, PRIOR, WRONG, calibration_of, own_p_value

from probmix.inference import Gibbs

GIBBS = Gibbs(chains=8, warmup=30, draws=40)


@pytest.mark.slow
def test_gibbs_is_calibrated():
    """Null: Gibbs draws from the posterior; 100 data sets. False-alarm rate `FALSE_ALARM` of each check.

    Nearly all data sets must yield as many independent draws as are ranked, else the null would be another.
    """
    calibration = calibration_of(GIBBS, PRIOR, 100, 63)
    assert len(calibration.ranks) == 7
    assert sum(int(where.sum()) for where in calibration.troubles.values()) <= 2
    assert calibration.ok, str(calibration)
    assert own_p_value(calibration) > FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_gibbs_with_a_wrong_prior_is_not_calibrated(wrong):
    """Negative control: the program assumes another prior than the simulator's."""
    calibration = calibration_of(GIBBS, replace(PRIOR, **WRONG[wrong]), 100, 63)
    assert not calibration.ok
    assert own_p_value(calibration) < FALSE_ALARM
