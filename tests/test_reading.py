from __future__ import annotations

import math

import arviz as az
import numpy as np
import pytest
import report_cases as cases

from probmix.arviz import from_netcdf, to_netcdf
from probmix.reading import Reading

PARAMETERS = [
    "weights[0]", "weights[1]",
    "loc[0, eruptions]", "loc[0, waiting]", "loc[1, eruptions]", "loc[1, waiting]",
    "cov[0, eruptions, eruptions]", "cov[0, eruptions, waiting]", "cov[0, waiting, waiting]",
    "cov[1, eruptions, eruptions]", "cov[1, eruptions, waiting]", "cov[1, waiting, waiting]",
]  # fmt: skip


@pytest.fixture(scope="module")
def straight():
    return cases.draws()


@pytest.fixture(scope="module")
def reading(straight):
    return Reading.of(cases.with_switched_chain(straight), reference=cases.point().sites())


def test_every_parameter_once_in_the_order_of_the_model(reading):
    assert list(reading.estimates) == PARAMETERS


def test_numbers_are_those_of_arviz(reading, straight):
    summary = az.summary(straight.to_arviz(log_likelihood=False, predictive_draws=0, prior_draws=0), round_to="none")
    columns = {"mean": "mean", "std": "sd", "rhat": "r_hat", "ess": "ess_bulk"}
    for name, estimate in reading.estimates.items():
        for ours, theirs in columns.items():
            # Matching only moves numbers about, so that they agree to rounding.
            assert getattr(estimate, ours) == pytest.approx(summary.loc[name, theirs], rel=1e-9), (name, ours)


def test_intervals_are_the_central_95_percent(reading, straight):
    waiting = straight.draws["loc"][..., 1, 1].numpy()
    estimate = reading.estimates["loc[1, waiting]"]
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(waiting, [0.025, 0.975])))


def test_rhat_before_matching_is_that_of_the_raw_draws(reading):
    raw = az.rhat(az.convert_to_dataset({"loc": reading.posterior.draws["loc"].numpy()}))["loc"].values
    assert reading.estimates["loc[1, waiting]"].rhat_as_drawn == pytest.approx(raw[1, 1])
    assert reading.estimates["loc[1, waiting]"].rhat_as_drawn > 1.5 > 1.05 > reading.estimates["loc[1, waiting]"].rhat


def test_the_fit_itself_is_left_as_it_was(reading, straight):
    np.testing.assert_array_equal(reading.posterior.draws["loc"][1, :, 0], straight.draws["loc"][1, :, 1])
    np.testing.assert_array_equal(reading.matched.draws["loc"], straight.draws["loc"])


def test_netcdf_has_the_matched_draws_and_says_so(reading, straight, tmp_path):
    to_netcdf(reading.tree, tmp_path / "a.nc")
    group = from_netcdf(tmp_path / "a.nc")["posterior"]
    np.testing.assert_array_equal(group["loc"].values, straight.draws["loc"].numpy())
    assert "matched across chains and draws" in group.attrs["labels"]


def test_without_a_reference_the_best_draw_gives_the_numbers(straight):
    best = straight.sites()["loc"][:, 1]
    ours = Reading.of(cases.with_switched_chain(straight)).estimates
    assert [ours[f"loc[{k}, waiting]"].mean for k in (0, 1)] == pytest.approx(best.tolist(), abs=2.0)  # 4 sd of a draw


def test_a_point_has_a_value_and_nothing_else():
    point = cases.point()
    estimate = Reading.of(point).estimates["loc[0, waiting]"]
    assert estimate.mean == float(point.sites()["loc"][0, 1])
    assert all(math.isnan(value) for value in estimate[1:])
    assert Reading.of(point).score is None


def test_one_chain_has_no_rhat_and_three_draws_have_no_diagnostics(straight):
    one = Reading.of(cases.draws(chains=1, num=30)).estimates["weights[0]"]
    assert math.isnan(one.rhat)
    assert one.ess > 0
    few = Reading.of(cases.draws(num=3)).estimates["weights[0]"]
    assert math.isnan(few.ess)
    assert few.std > 0


def test_the_score_of_switched_draws_is_that_of_straight_ones(reading, straight):
    # The likelihood does not depend on labels, but ArviZ scales the tail by the autocorrelation of all parameters,
    # which switched labels would spoil.
    own = az.loo(straight.to_arviz(predictive_draws=0, prior_draws=0))
    assert reading.score.elpd_loo == pytest.approx(own.elpd_loo, rel=1e-12)
