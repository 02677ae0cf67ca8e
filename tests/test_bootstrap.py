"""The bootstrap: standard errors against closed forms, the test's level against its promise."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from probmix.bootstrap import LikelihoodRatioTest, likelihood_ratio_test, sequential_tests, standard_errors
from probmix.datasets import load_faithful
from probmix.errors import FitError, MethodError
from probmix.inference import EM, MAP, SVI, infer
from probmix.models import GaussianMixture

FAITHFUL = load_faithful()


# --- standard errors ------------------------------------------------------------------------------------------------

# A standard deviation of B draws is itself off by 1 / sqrt(2 B), relatively (a little more for heavy tails): 2.2 % for
# B = 999. Five of those; a false alarm below 1e-5 for each of the few entries.
RELATIVE = 5 / np.sqrt(2 * 999)


@pytest.mark.parametrize("method", ["bootstrap", "weighted", "laplace"])
def test_one_gaussian_has_a_closed_form(method):
    em = infer(GaussianMixture(1), FAITHFUL.frame(), EM(objective="ml"), seed=0)
    errors = standard_errors(em, method=method, seed=1)
    x = FAITHFUL.x[:, 1].numpy()
    se = x.std() / np.sqrt(len(x))
    assert errors.loc["loc[0, waiting]", "standard_error"] == pytest.approx(se, rel=RELATIVE)
    assert errors.loc["loc[0, waiting]", "standard_error"] != pytest.approx(np.sqrt(2) * se, rel=RELATIVE)  # can fail
    interval = errors.loc["loc[0, waiting]", ["low", "high"]].to_numpy(float)
    # a quantile of 999 draws has a standard error of sqrt(q (1 - q) / 999) / density: 0.085 se at 2.5 %; five of those
    np.testing.assert_allclose(interval, x.mean() + se * stats.norm.ppf([0.025, 0.975]), atol=5 * 0.085 * se)
    if method != "laplace":  # whose answer is that of normal data, which these are not
        fourth = np.mean((x - x.mean()) ** 4)
        expected = np.sqrt((fourth - x.var() ** 2) / len(x))
        assert errors.loc["cov[0, waiting, waiting]", "standard_error"] == pytest.approx(expected, rel=RELATIVE)


def test_components_keep_their_names():
    em = infer(GaussianMixture(2), FAITHFUL.frame(), EM(objective="ml"), seed=0)
    errors = standard_errors(em, replicates=200, seed=0)
    assert errors.attrs["replicates"] == 200
    assert list(errors.index[:4]) == ["weights[0]", "weights[1]", "loc[0, eruptions]", "loc[0, waiting]"]
    assert len(errors) == 2 + 4 + 6  # the covariances without their mirror images
    assert (errors["low"] < errors["estimate"]).all()
    assert (errors["estimate"] < errors["high"]).all()
    # far apart, each mean is one of its own rows: sd / sqrt(n w), up to 10 % for the rows that might be of either
    sites = em.sites()
    expected = (sites["cov"][:, 1, 1] / (272 * sites["weights"])).sqrt()
    ours = errors.loc[["loc[0, waiting]", "loc[1, waiting]"], "standard_error"].to_numpy()
    np.testing.assert_allclose(ours, expected, rtol=0.1 + 5 / np.sqrt(2 * 200))


def test_the_same_seed_gives_the_same_table():
    em = infer(GaussianMixture(2), FAITHFUL.x, EM(objective="ml"), seed=0)
    one, same, other = (standard_errors(em, replicates=20, seed=seed) for seed in (0, 0, 1))
    assert one.equals(same)
    assert not one.equals(other)


def test_standard_errors_refuse():
    by_map = infer(GaussianMixture(1), FAITHFUL.x, EM(), seed=0)
    with pytest.raises(MethodError, match=r'expected a fit by maximum likelihood, EM\(objective="ml"\)'):
        standard_errors(by_map, seed=0)
    with pytest.raises(MethodError, match='"bootstrap", "weighted" or "laplace", got \'jackknife\''):
        standard_errors(by_map, method="jackknife", seed=0)
    with pytest.warns(UserWarning, match="max_steps"):
        svi = infer(GaussianMixture(1), FAITHFUL.x, SVI(max_steps=20), seed=0)
    with pytest.raises(MethodError, match="expected the point of EM"):
        standard_errors(svi, seed=0)

    def program(x):
        pyro.sample("x", dist.Normal(pyro.sample("loc", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    plain = infer(program, torch.tensor(1.0), MAP(), seed=0)
    with pytest.raises(MethodError, match=r"expected a fit of a mixture of probmix\.models, got one of <function"):
        standard_errors(plain, seed=0)


# --- the likelihood-ratio test ----------------------------------------------------------------------------------------


def test_the_p_value_counts_the_data_too():
    replicates = torch.tensor([1.0, 2.0, 3.0])
    assert [LikelihoodRatioTest(1, t, replicates, 0).p_value for t in (0.0, 2.0, 9.0)] == [1.0, 0.75, 0.25]
    assert str(LikelihoodRatioTest(1, 2.0, replicates, 4)) == (
        "1 against 2: statistic 2.00, p = 0.7500 (3 replicates, 4 more could not be fitted)"
    )


def test_two_clusters_are_two_and_no_third():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(120, 1)) + 8 * rng.integers(2, size=(120, 1)))
    model = GaussianMixture(1, "EII")
    tests = sequential_tests(model, x, replicates=39, seed=0)
    assert list(tests.index) == [1, 2]
    # twice the difference of the optima, each known to 0.01 nats by EM's own estimate
    fits = [infer(GaussianMixture(k, "EII"), x, EM(objective="ml"), seed=0).objective for k in (1, 2)]
    assert tests.loc[1, "statistic"] == pytest.approx(2 * (fits[1] - fits[0]), abs=0.04)
    assert tests.loc[1, "p_value"] == 1 / 40
    assert tests.loc[2, "p_value"] > 0.05


def test_data_that_cannot_be_fitted_are_refused():
    x = torch.zeros(40, 1)
    x[:3] = torch.tensor([[1.0], [2.0], [3.0]])
    with pytest.raises(FitError, match="every start collapsed with 1 or 2 components"):
        likelihood_ratio_test(GaussianMixture(1), x, 1, replicates=3, seed=0)


def p_values(loc: float) -> list[float]:
    """Of 60 data sets of 50 numbers from N(0, 1), or from an even mixture of that and N(loc, 1)."""
    values = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(50, 1)) + loc * rng.integers(2, size=(50, 1))
        values.append(likelihood_ratio_test(GaussianMixture(1, "EII"), x, 1, replicates=39, seed=seed).p_value)
    return values


@pytest.mark.slow
def test_the_level_is_what_it_says():
    """Null: p is uniform on 1/40, ..., 1. Kolmogorov-Smirnov at 1e-3 (conservative for values on a grid).

    Control: half of the data three standard deviations off must not look uniform.
    """
    jitter = np.random.default_rng(0).random(60) / 40  # spreads each grid value over its cell: then exactly uniform
    assert stats.kstest(np.array(p_values(0.0)) - jitter, "uniform").pvalue > 1e-3
    assert stats.kstest(np.array(p_values(3.0)) - jitter, "uniform").pvalue < 1e-3
