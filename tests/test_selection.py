"""Choice of components and covariance: published optima, one table with the failures in it, refusals."""

from __future__ import annotations

import dataclasses
import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy.stats import poisson

from probmix.criteria import nec
from probmix.datasets import load_faithful, load_galaxies, load_iris
from probmix.errors import FitError, MethodError
from probmix.inference import EM, infer
from probmix.inference.gibbs import Gibbs
from probmix.inference.vb import VB
from probmix.models import GaussianMixture
from probmix.models.poisson_mixture import PoissonMixture
from probmix.selection import select

matplotlib.use("Agg")

X = load_faithful().x
MODEL = GaussianMixture(1)
SHORT = EM(objective="ml", restarts=3)


def test_every_fit_is_what_infer_gives():
    selection = select(MODEL, X, components=[1, 2], covariances=["full", "tied"], method=SHORT, seed=3)
    for fit in selection.fits:
        alone = infer(dataclasses.replace(MODEL, **vars(fit.model)), X, SHORT, seed=3)
        assert fit.scores["log_likelihood"] == pytest.approx(alone.objective, abs=1e-8)  # rounding of 272 rows
        assert fit.posterior.objective == alone.objective


@pytest.mark.parametrize(
    ("x", "covariances", "name", "log_likelihood"),
    [
        (load_faithful().x, ["full", "tied", "diagonal", "spherical"], "tied, 3 components", -1126.326),
        (load_galaxies().x / 1000, "all", "VII, 3 components", -203.1792),
        (load_iris().x, ["full", "VEV", "tied"], "VEV, 2 components", -215.726),
    ],
    ids=["faithful", "galaxies", "iris"],
)
def test_published_choices(x, covariances, name, log_likelihood):
    """The choice of mclust by BIC, and its log-likelihood reached or passed (by at most what its stopping leaves)."""
    best = select(MODEL, x, components=range(1, 5), covariances=covariances, seed=0).best
    assert best.name == name
    assert (
        -0.001 < best.scores["log_likelihood"] - log_likelihood < 0.05
    )  # its last digit; a hundredth of its tolerance


def test_all_means_all_fourteen_and_two_in_one_dimension():
    many = select(MODEL, X[::4], components=[1], seed=0, method=SHORT)
    letters = "EII VII EEI VEI EVI VVI EEE VEE EVE VVE EEV VEV EVV VVV"
    assert " ".join(fit.covariance for fit in many.fits) == letters
    # with one component they are three models: spherical, diagonal, full
    assert len({round(fit.scores["bic"], 6) for fit in many.fits}) == 3
    few = select(MODEL, X[::4, 1], components=[1, 2], seed=0, method=SHORT)
    assert [fit.covariance for fit in few.fits] == ["EII", "EII", "VII", "VII"]


def test_of_equals_the_simpler_is_taken():
    selection = select(MODEL, X, components=[1], covariances=["VVV", "EEE"], method=SHORT, seed=0)
    assert selection.best.covariance == "VVV"  # equal in all: the first
    assert selection.ranked[0].scores["num_parameters"] == selection.ranked[1].scores["num_parameters"]


def test_failures_are_rows_that_say_why():
    x = torch.tensor([[0.0], [0.0], [0.0], [1.0], [1.0], [1.0], [5.0]])
    selection = select(MODEL, x, components=[1, 3, 9], covariances=["VII"], seed=0)
    assert [fit.status.state for fit in selection.fits] == ["converged", "failed", "failed"]
    table = selection.table
    assert table["bic"].isna().tolist() == [False, True, True]
    assert table.loc[1, "status"].startswith("failed: ")
    assert "failed: VII, 3 components" in str(selection)
    with pytest.raises(FitError, match=r"none of 1 models could be fitted\. The first: .* 7 rows for 9 components"):
        select(MODEL, x, components=[9], covariances=["VII"], seed=0)


def test_the_table_and_what_is_printed():
    selection = select(MODEL, X, components=[1, 2, 3], covariances=["tied"], criterion="icl", method=SHORT, seed=0)
    table = selection.table
    assert list(table["num_components"]) == [1, 2, 3]
    assert set(table.columns) >= {"covariance", "bic", "icl", "aic", "aicc", "nec", "log_likelihood", "status"}
    best = table.loc[table["icl"].idxmin()]
    assert (selection.best.model.num_components, best["num_components"]) == (2, 2)  # BIC takes three
    assert table["bic"].idxmin() == 2
    text = str(selection)
    assert f"[{best['icl']:.2f}]" in text
    assert "best: tied, 2 components, icl" in text
    by_hand = nec(
        selection.fits[1].model,
        X,
        selection.fits[1].posterior.sites(),
        log_likelihood_of_one=table.loc[0, "log_likelihood"],
    )
    assert table.loc[1, "nec"] == pytest.approx(float(by_hand))
    assert table.loc[0, "nec"] == 1.0
    assert math.isnan(select(MODEL, X, components=[2], covariances=None, seed=0).table.get("nec", [math.nan])[0])


def test_row_weights_go_through():
    weights = torch.arange(272) % 3
    method = EM(objective="ml", restarts=3, row_weights=weights)
    ours = select(MODEL, X, components=[1, 2], covariances=["full"], method=method, seed=0).table["bic"]
    copies = X.repeat_interleave(weights, 0)
    theirs = select(MODEL, copies, components=[1, 2], covariances=["full"], method=SHORT, seed=0).table["bic"]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # both within 1e-6 nats of the optimum, by EM's estimate


def test_the_evidence_of_one_component_is_exact():
    """One component: variational Bayes is the conjugate posterior, so its bound is log p(x)."""
    fit = select(MODEL, X, components=[1, 2, 3], covariances=["full"], criterion="evidence", seed=0)
    x = X.contiguous()
    model = dataclasses.replace(MODEL, num_components=1)
    prior = model.prior(x).component
    statistics = model.sufficient_statistics(x, x.new_ones(len(x), 1))
    exact = model.family.log_marginal(prior, statistics).sum()
    assert fit.table.loc[0, "evidence"] == pytest.approx(-2 * float(exact), abs=1e-6)  # rounding of 272 rows
    assert fit.best.model.num_components == 2


def test_leave_one_out_prefers_two_components_to_one():
    method = Gibbs(chains=2, warmup=50, draws=100)
    fit = select(MODEL, X, components=[1, 2], covariances=["full"], criterion="loo", method=method, seed=0)
    table = fit.table
    # two clusters far apart: hundreds against a standard error of some tens
    assert table.loc[0, "loo"] - table.loc[1, "loo"] > 5 * table["loo_se"].max()
    assert (table["worst_pareto_k"] < 0.7).all()


def test_a_family_without_a_conjugate_prior_is_a_row_that_says_so():
    selection = select(MODEL, X, components=[1], covariances=["EVE", "full"], criterion="evidence", seed=0)
    assert selection.fits[0].status.state == "failed"
    assert "conjugate" in selection.fits[0].status.message
    with pytest.raises(FitError, match="conjugate"):
        select(MODEL, X, components=[1], covariances=["EVE"], criterion="evidence", seed=0)


def test_refusals():
    with pytest.raises(MethodError, match=r'expected "bic", "icl", .* got .BIC.'):
        select(MODEL, X, criterion="BIC", seed=0)
    with pytest.raises(MethodError, match="components: expected one number or more, got none"):
        select(MODEL, X, components=[], seed=0)
    with pytest.raises(MethodError, match=r"VB\(\) gives no 'bic' for any of 1 models"):
        select(MODEL, X, components=[1], covariances=None, method=VB(restarts=1), seed=0)


def test_the_picture_is_of_its_table():
    selection = select(MODEL, X, components=[1, 2, 3], covariances=["full", "tied"], method=SHORT, seed=0)
    ax = selection.plot("icl")
    drawn = {line.get_gid(): line for line in ax.lines}
    rows = selection.table.query("covariance == 'full'")
    np.testing.assert_allclose(drawn["full"].get_xydata(), rows[["num_components", "icl"]])
    plt.close("all")


def test_a_model_without_a_covariance():
    """Two rates, 2 and 30: k is all there is to choose, and it is 2."""
    rng = np.random.default_rng(0)
    counts = torch.tensor(rng.poisson(rng.choice([2.0, 30.0], size=(200, 1))), dtype=torch.float64)
    selection = select(PoissonMixture(1), counts, components=[1, 2, 3], seed=0)
    assert selection.best.name == "2 components"
    assert "covariance" not in selection.table
    assert str(selection).splitlines()[0].split() == ["components", "bic"]
    # one component by scipy
    log_likelihood = poisson.logpmf(counts, counts.mean()).sum()
    assert selection.table.loc[0, "bic"] == pytest.approx(-2 * log_likelihood + np.log(200))
    with pytest.raises(MethodError, match=r"PoissonMixture has no setting covariance=, got \['full'\]"):
        select(PoissonMixture(1), counts, covariances=["full"], seed=0)
