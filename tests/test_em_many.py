"""EM on many data sets at once: each fit is the one that EM gives alone."""

from __future__ import annotations

import pytest
import torch

from probmix.datasets import load_faithful
from probmix.inference import EM, infer
from probmix.inference.em_many import fit_many
from probmix.models import GaussianMixture

X = load_faithful().x
TOLERANCE = 1e-8  # nats asked of both; a hundred times that is room for the estimate of what is left


def fitted(covariance: str):
    model = GaussianMixture(2, covariance)
    return model, infer(model, X, EM(objective="ml", restarts=3), seed=0).sites()


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical", "VEV", "EVE"])
def test_each_is_the_fit_alone(covariance):
    model, sites = fitted(covariance)
    sets = model.sample(100, {name: value.expand(3, *value.shape) for name, value in sites.items()}, seed=1)
    fits = fit_many(model, sets, sites=sites, tolerance=TOLERANCE)
    for x, log_likelihood in zip(sets, fits.log_likelihood, strict=True):
        alone = infer(model, x, EM(objective="ml", init=sites, tolerance=TOLERANCE), seed=0)
        assert abs(float(log_likelihood) - alone.objective) < 100 * TOLERANCE
    torch.testing.assert_close(model.log_prob(sets[2], {n: v[2] for n, v in fits.sites.items()}).sum(), fits[1][2])


def test_row_weights_are_copies_of_rows():
    model, sites = fitted("full")
    counts = torch.randint(3, (4, len(X)), generator=torch.Generator().manual_seed(0))
    fits = fit_many(model, X, sites=sites, row_weights=counts, tolerance=TOLERANCE)
    for count, log_likelihood in zip(counts, fits.log_likelihood, strict=True):
        copies = X.repeat_interleave(count, 0)
        alone = infer(model, copies, EM(objective="ml", init=sites, tolerance=TOLERANCE), seed=0)
        assert abs(float(log_likelihood) - alone.objective) < 100 * TOLERANCE


def test_one_component_needs_no_search():
    sets = torch.stack([X[:50], X[50:100]])
    fits = fit_many(GaussianMixture(1), sets, restarts=2)
    torch.testing.assert_close(fits.sites["loc"][:, 0], sets.mean(1))
    cov = torch.stack([torch.cov(x.mT, correction=0) for x in sets])
    torch.testing.assert_close(fits.sites["cov"][:, 0], cov)


def test_a_collapse_spoils_its_own_data_set_alone():
    """Ten copies of one point and one elsewhere: two components have no maximum of the likelihood."""
    bad = torch.zeros(40, 1, dtype=torch.float64)
    bad[0] = 1.0
    good = X[:40, :1].contiguous()
    torch.manual_seed(0)
    fits = fit_many(GaussianMixture(2), torch.stack([bad, good]), restarts=3)
    assert fits.log_likelihood.isnan().tolist() == [True, False]
    assert all(value.isfinite().all() for value in fits.sites.values())


def test_chunks_change_nothing(monkeypatch):
    model, sites = fitted("full")
    sets = model.sample(60, {name: value.expand(5, *value.shape) for name, value in sites.items()}, seed=1)
    whole = fit_many(model, sets, sites=sites)
    monkeypatch.setattr("probmix.inference.em_many._CHUNK", 60 * 2 * 2 * 2)
    torch.testing.assert_close(fit_many(model, sets, sites=sites).log_likelihood, whole.log_likelihood)
