"""Information criteria: by hand, against scikit-learn, and against published values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.mixture import GaussianMixture as Peer
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

from probmix.criteria import Criteria, aic, aicc, bic, icl, nec
from probmix.datasets import load_faithful, load_iris
from probmix.errors import DataError
from probmix.inference import EM, infer
from probmix.models import GaussianMixture

X = torch.tensor([[-2.0], [-1.0], [0.5], [2.0], [3.5]], dtype=torch.float64)
WEIGHTS, LOC, VAR = np.array([0.3, 0.7]), np.array([-1.0, 2.0]), np.array([0.5, 2.0])
SITES = {"weights": torch.tensor(WEIGHTS), "loc": torch.tensor(LOC)[:, None], "var": torch.tensor(VAR)}
MODEL = GaussianMixture(2, "spherical")  # 1 weight, 2 means, 2 variances: p = 5

JOINT = WEIGHTS * norm.pdf(X.numpy(), LOC, np.sqrt(VAR))  # (5, 2), by scipy
ROWS = JOINT.sum(1)
SHARES = JOINT / ROWS[:, None]
LOG_L = np.log(ROWS).sum()
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}  # float64, a dozen operations on numbers of order 10


@pytest.mark.parametrize(
    ("ours", "by_hand"),
    [
        (bic(MODEL, X, SITES), -2 * LOG_L + 5 * np.log(5)),
        (aic(MODEL, X, SITES), -2 * LOG_L + 10),
        (icl(MODEL, X, SITES), -2 * np.log(JOINT.max(1)).sum() + 5 * np.log(5)),
        (
            icl(MODEL, X, SITES, assignments="soft"),
            -2 * LOG_L + 5 * np.log(5) - 2 * (SHARES * np.log(SHARES)).sum(),
        ),
        (
            nec(MODEL, X, SITES, log_likelihood_of_one=LOG_L - 3.0),
            -(SHARES * np.log(SHARES)).sum() / 3.0,
        ),
        (nec(MODEL, X, SITES, log_likelihood_of_one=LOG_L + 1.0), np.inf),
        (aicc(MODEL, X, SITES), np.inf),  # p = N
        (aicc(MODEL, X.repeat(2, 1), SITES), -4 * LOG_L + 10 + 2 * 5 * 6 / (10 - 5 - 1)),
    ],
)
def test_by_hand(ours, by_hand):
    np.testing.assert_allclose(float(ours), by_hand, **ROUNDING)


@pytest.mark.parametrize(
    ("covariance", "name"), [("full", "full"), ("tied", "tied"), ("diagonal", "diag"), ("spherical", "spherical")]
)
def test_equal_to_scikit_learn(covariance, name):
    x = load_iris().x
    model = GaussianMixture(3, covariance)
    sites = infer(model, x, EM(objective="ml", restarts=2), seed=0).sites()
    peer = Peer(3, covariance_type=name)
    peer.weights_, peer.means_ = sites["weights"].numpy(), sites["loc"].numpy()
    peer.covariances_ = sites.get("cov", sites.get("var")).numpy()
    peer.precisions_cholesky_ = _compute_precision_cholesky(peer.covariances_, name)
    np.testing.assert_allclose(float(bic(model, x, sites)), peer.bic(x.numpy()), rtol=1e-10)  # rounding of 150 rows
    np.testing.assert_allclose(float(aic(model, x, sites)), peer.aic(x.numpy()), rtol=1e-10)


@pytest.mark.parametrize(("covariance", "k", "published"), [("full", 2, -2322.192), ("tied", 3, -2314.316)])
def test_minus_mclust(covariance, k, published):
    """Published for Old Faithful (VVV,2 and EEE,3), higher is better; mclust may stop a little below the optimum."""
    x, model = load_faithful().x, GaussianMixture(k, covariance)
    fit = infer(model, x, EM(objective="ml"), seed=0)
    assert -0.0005 < -float(bic(model, x, fit.sites())) - published < 0.05


def test_row_weights_count_rows():
    weights = torch.tensor([1.0, 0.0, 3.0, 2.0, 1.0])
    copies = X.repeat_interleave(weights.long(), 0)
    for name in ("bic", "icl", "icl_soft", "aic", "aicc"):
        ours, theirs = (getattr(Criteria.of(MODEL, *case), name) for case in ((X, SITES, weights), (copies, SITES)))
        np.testing.assert_allclose(float(ours), float(theirs), **ROUNDING)


def test_a_batch_of_sites():
    many = {name: torch.stack([value, value.flip(0)]) for name, value in SITES.items()}  # components in other order
    np.testing.assert_allclose(icl(MODEL, X, many).numpy(), float(icl(MODEL, X, SITES)), **ROUNDING)


def test_a_row_that_only_one_component_explains_has_no_entropy():
    far = {**SITES, "loc": torch.tensor([[0.0], [1e9]], dtype=torch.float64)}
    criteria = Criteria.of(MODEL, X[2:3], far)
    assert float(criteria.entropy) == 0.0
    assert float(criteria.icl) == float(criteria.bic)


def test_errors():
    with pytest.raises(DataError, match='expected "hard" or "soft", got \'medium\''):
        icl(MODEL, X, SITES, assignments="medium")
    with pytest.raises(DataError, match=r"one weight for each of 5 rows, got shape \(2,\)"):
        bic(MODEL, X, SITES, row_weights=torch.ones(2))
