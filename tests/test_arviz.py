"""The converter on plain arrays: needs neither torch nor Pyro, and serves both ArviZ lines."""

from __future__ import annotations

import arviz as az
import numpy as np
import pytest
from scipy.stats import genpareto

from probmix.arviz import Group, convert, ess, from_netcdf, pareto_k, rhat, to_netcdf

DRAWS = np.random.default_rng(0).normal(size=(4, 200, 3, 2))


def result():
    return convert(
        {
            "posterior": Group({"loc": DRAWS, "rate": DRAWS[..., 0, 0]}, attrs={"kind": "draws"}),
            "sample_stats": Group({"diverging": DRAWS[..., 0, 0] > 9}),
            "log_likelihood": Group({"x": -(DRAWS[..., 0] ** 2)}, dims={"x": ["row"]}),
            "observed_data": Group({"x": np.zeros((3, 2))}, leading=()),
        },
        dims={"loc": ["component", "feature"], "x": ["row", "feature"]},
        coords={"feature": ["length", "width"]},
    )


def test_groups_dims_coords_and_notes():
    tree = result()
    assert tree["posterior"]["loc"].dims == ("chain", "draw", "component", "feature")
    assert list(tree["posterior"]["feature"].values) == ["length", "width"]
    assert list(tree["posterior"]["component"].values) == [0, 1, 2]
    assert tree["posterior"].attrs["kind"] == "draws"
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "row")
    assert tree["observed_data"]["x"].dims == ("row", "feature")
    np.testing.assert_array_equal(tree["posterior"]["loc"].values, DRAWS)


def test_arviz_reads_it():
    tree = result()
    assert "loc[0, length]" in az.summary(tree).index
    assert np.isfinite(float(getattr(az.loo(tree), "elpd_loo", None) or az.loo(tree).elpd))
    assert isinstance(tree, getattr(az, "InferenceData", type(tree)))


def test_names_for_axes_without_one():
    tree = convert({"posterior": Group({"a": DRAWS})})
    assert tree["posterior"]["a"].dims == ("chain", "draw", "a_dim_0", "a_dim_1")


def test_too_few_axes_are_named():
    with pytest.raises(ValueError, match=r"posterior/a: expected leading axes \('chain', 'draw'\).*shape \(5,\)"):
        convert({"posterior": Group({"a": np.zeros(5)})})


def test_file_round_trip(tmp_path):
    to_netcdf(result(), tmp_path / "fit.nc")
    np.testing.assert_array_equal(from_netcdf(tmp_path / "fit.nc")["posterior"]["loc"].values, DRAWS)


def test_diagnostics_of_arrays():
    """Independent draws: ESS near their number (within 30%), r-hat near 1. The control: shifted chains."""
    assert (np.abs(ess(DRAWS) / 800 - 1) < 0.3).all()
    assert (rhat(DRAWS) < 1.02).all()
    assert (rhat(DRAWS + 3 * np.arange(4)[:, None, None, None]) > 2).all()
    assert rhat(DRAWS).shape == (3, 2)


@pytest.mark.parametrize("shape", [0.2, 0.6, 1.2])
def test_pareto_k_is_the_shape_of_a_pareto_tail(shape):
    """SciPy draws the ratios. The fit to the largest m = 190 of 4,000 has a standard error of (1 + k) / sqrt(m); four
    of those (false alarm 6e-5), and a pull of 10 / (m + 10) towards its prior mean of 0.5."""
    ratios = genpareto(shape).rvs(4000, random_state=np.random.default_rng(0))
    expected = (190 * shape + 10 * 0.5) / 200
    assert abs(pareto_k(np.log(ratios)) - expected) < 4 * (1 + shape) / 190**0.5


def test_pareto_k_has_a_sign():
    """ArviZ 1.x takes minus the log ratios: with the wrong sign this bounded tail would seem to be a heavy one."""
    heavy = np.random.default_rng(0).exponential(size=4000)
    assert pareto_k(heavy) > 0.7
    assert pareto_k(-heavy) < 0


def test_pareto_k_of_ratios_without_a_tail():
    assert pareto_k(np.full(1000, -7.0)) == 0.0
    assert np.isnan(pareto_k(np.full(1000, -np.inf)))
    assert pareto_k(np.r_[np.inf, np.zeros(999)]) == np.inf
    draws = np.random.default_rng(0).normal(size=1000)
    before = draws.copy()
    lost = np.where(np.arange(1000) < 5, -np.inf, draws)  # draws without weight are in the body, not in the tail
    assert pareto_k(lost) == pytest.approx(pareto_k(draws), abs=0.1)
    np.testing.assert_array_equal(draws, before)  # ArviZ 0.x works in place
