"""Normals with a common random variance against scipy, Pyro and dense Kronecker products."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import transforms

from probmix.burr import BurrXII
from probmix.errors import ProgramError
from probmix.scale_mixture_normal import (
    LowRankScaleMixtureNormal,
    ScaleMixtureNormal,
    flattened,
    like,
    scale_mixture,
    with_axes,
)


def t(value) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tril(*batch: int, size: int = 4) -> Tensor:
    root = normal(*batch, size, size, seed=1)
    return torch.linalg.cholesky(root @ root.mT + 0.5 * torch.eye(size))


LOC, TRIL, Y = normal(4), tril(), normal(3, 4, seed=2)
COV = (TRIL @ TRIL.mT).numpy()
INVERSE_GAMMA = dist.InverseGamma(t(1.5), t(2.5))
#: Ours, and scipy's.
PRIORS = {
    "inverse gamma": (INVERSE_GAMMA, stats.invgamma(1.5, scale=2.5)),
    "half-Cauchy": (dist.HalfCauchy(t(1.0)), stats.halfcauchy()),
    "Burr": (BurrXII(t(2.0), t(2.0)), stats.burr12(2.0, 2.0)),
    "Pareto": (dist.Pareto(t(0.5), t(2.0)), stats.pareto(2.0, scale=0.5)),
    "log-normal": (dist.LogNormal(t(0.0), t(1.0)), stats.lognorm(1.0)),
}


def test_inverse_gamma_is_the_multivariate_t():
    """Of scipy and of Pyro, with shape matrix b / a times the covariance, to 1e-12: rounding."""
    ours = ScaleMixtureNormal(LOC, TRIL, INVERSE_GAMMA).log_prob(Y)
    theirs = stats.multivariate_t(LOC.numpy(), 2.5 / 1.5 * COV, df=3.0).logpdf(Y.numpy())
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12)
    pyros = dist.MultivariateStudentT(t(3.0), LOC, math.sqrt(2.5 / 1.5) * TRIL).log_prob(Y)
    torch.testing.assert_close(ours, pyros, rtol=1e-12, atol=0)


def test_without_a_prior_it_is_the_normal():
    theirs = dist.MultivariateNormal(LOC, scale_tril=TRIL).log_prob(Y)
    torch.testing.assert_close(ScaleMixtureNormal(LOC, TRIL).log_prob(Y), theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PRIORS)
def test_density_is_scipys_average_of_normals(name):
    """1e-8: scipy's own bound for the integral over log s of the prior times the normal density."""
    ours, theirs = PRIORS[name]
    y = Y[0].numpy()

    def integrand(u):
        return theirs.pdf(np.exp(u)) * np.exp(u) * stats.multivariate_normal(LOC.numpy(), np.exp(u) * COV).pdf(y)

    low, high = (math.log(0.5), 40.0) if name == "Pareto" else (-10.0, 40.0)
    expected, error = integrate.quad(integrand, low, high, epsabs=1e-14, epsrel=1e-10, limit=300)
    assert error < 1e-8 * expected
    assert float(ScaleMixtureNormal(LOC, TRIL, ours).log_prob(Y[0])) == pytest.approx(math.log(expected), abs=1e-8)


@pytest.mark.parametrize("name", PRIORS)
def test_columns_are_a_kronecker_product(name):
    """Columns with one covariance and one s are the long vector with covariance I x C."""
    prior, y = PRIORS[name][0], normal(4, 3)
    ours = ScaleMixtureNormal(LOC[:, None].expand(4, 3), TRIL, prior, columns=True)
    dense = ScaleMixtureNormal(LOC.repeat(3), torch.block_diag(TRIL, TRIL, TRIL), prior)
    assert ours.event_shape == (4, 3)
    torch.testing.assert_close(ours.log_prob(y), dense.log_prob(y.mT.reshape(-1)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("name", ["none", *PRIORS])
def test_low_rank_is_dense(name, columns):
    """Values to 1e-10 and gradients to 1e-8, of a batch of factors and noises."""
    prior = None if name == "none" else PRIORS[name][0]
    root, noise, y = normal(2, 4, 2), t([0.3, 2.0]), normal(4, 3) if columns else normal(4)
    inputs = [root.requires_grad_(), noise.requires_grad_()]
    loc = torch.zeros_like(y)
    low = LowRankScaleMixtureNormal(loc, root, noise, prior, columns=columns).log_prob(y)
    cov = root @ root.mT + noise[:, None, None] * torch.eye(4)
    dense = ScaleMixtureNormal(loc, torch.linalg.cholesky(cov), prior, columns=columns).log_prob(y)
    torch.testing.assert_close(low, dense, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(
        torch.autograd.grad(low.sum(), inputs), torch.autograd.grad(dense.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_a_batch_is_single_computations():
    """Locations, factors and priors each with a batch of their own, broadcast."""
    loc, factors, prior = normal(3, 1, 4), tril(2), dist.LogNormal(t([[0.0], [1.0], [2.0]]), t(0.7))
    ours = ScaleMixtureNormal(loc, factors, prior)
    assert ours.batch_shape == (3, 2)
    for i in range(3):
        for j in range(2):
            one = ScaleMixtureNormal(loc[i, 0], factors[j], dist.LogNormal(prior.loc[i, 0], t(0.7)))
            torch.testing.assert_close(ours.log_prob(Y[0])[i, j], one.log_prob(Y[0]), rtol=1e-12, atol=0)
    assert ours.expand((5, 3, 2)).log_prob(Y[0]).shape == (5, 3, 2)
    assert ours.sample((7,)).shape == (7, 3, 2, 4)
    assert ours.mean.shape == (3, 2, 4)


# --- draws ------------------------------------------------------------------------------------------------------------


def lengths(draws: Tensor, cov: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis lengths of rows, by NumPy."""
    return np.einsum("si,si->s", draws.numpy(), np.linalg.solve(cov, draws.numpy().T).T)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("kind", ["dense", "low rank"])
def test_draws_share_one_scale(kind, columns):
    """Null: lengths over their number are F-distributed, times b / a. False alarm 1e-4 each.

    The control, an independent Student-t for every coordinate before the factor, has shorter tails of its length.
    """
    torch.manual_seed(0)
    root, noise = normal(4, 2), t(0.3)
    cov = (root @ root.mT + noise * torch.eye(4)).numpy() if kind == "low rank" else COV
    loc = torch.zeros(4, 2).double() if columns else torch.zeros(4).double()
    if kind == "low rank":
        law = LowRankScaleMixtureNormal(loc, root, noise, INVERSE_GAMMA, columns=columns)
    else:
        law = ScaleMixtureNormal(loc, TRIL, INVERSE_GAMMA, columns=columns)
    draws = law.sample((4000,))
    count, wide = (8, np.kron(cov, np.eye(2))) if columns else (4, cov)
    radial = stats.f(count, 3.0, scale=2.5 / 1.5)
    assert stats.kstest(lengths(draws.reshape(4000, -1), wide) / count, radial.cdf).pvalue > 1e-4
    apart = dist.StudentT(t(3.0), t(0.0), t(math.sqrt(2.5 / 1.5))).sample((4000, count))
    apart = apart @ torch.linalg.cholesky(torch.tensor(wide)).mT
    assert stats.kstest(lengths(apart, wide) / count, radial.cdf).pvalue < 1e-6


def test_draws_have_the_covariance():
    """Null: E[s] C. Five standard errors of ten numbers under a prior with all moments: false alarm 1e-5."""
    torch.manual_seed(0)
    draws = ScaleMixtureNormal(LOC, TRIL, dist.Gamma(t(4.0), t(2.0))).sample((20_000,)) - LOC
    products = draws[:, :, None] * draws[:, None, :]
    error = products.std(0) / math.sqrt(20_000)
    assert ((products.mean(0) - 2.0 * torch.tensor(COV)).abs() < 5 * error).all()
    assert ((products.mean(0) - 1.8 * torch.tensor(COV)).abs() > 5 * error).any()  # the control


# --- one number, given data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRIORS)
def test_a_scalar_given_data_is_a_ratio_of_joint_densities(name):
    """p(y* | y) = p(y, y*) / p(y), to 1e-10; the joint is that of scipy above."""
    prior, y, new = PRIORS[name][0], Y[0], t([-1.0, 0.2, 30.0])
    whole = ScaleMixtureNormal(t([0.0] * 4), TRIL, prior)
    seen = ScaleMixtureNormal(t([0.0] * 3), TRIL[:3, :3], prior)
    white = torch.linalg.solve_triangular(TRIL[:3, :3], y[:3, None], upper=False)
    loc, var, quadratic = (TRIL[3:, :3] @ white).squeeze(), TRIL[3, 3].square(), white.square().sum()
    found = scale_mixture(loc.expand(3), var, prior, 3.0, quadratic)
    points = torch.cat([y[:3].expand(3, 3), new[:, None]], -1)
    torch.testing.assert_close(
        found.log_prob(new), whole.log_prob(points) - seen.log_prob(y[:3]), rtol=1e-10, atol=1e-10
    )
    draws = found.sample((11,))
    assert draws.shape == (11, 3)


def test_a_scalar_under_an_inverse_gamma_is_scipys_t():
    """2a + m degrees of freedom and squared scale (2b + q) / (2a + m) var, as in the paper, through scipy."""
    found = scale_mixture(t([0.5]), t([2.0]), INVERSE_GAMMA, 4.0, t(6.0))
    theirs = stats.t(2 * 1.5 + 4, 0.5, math.sqrt((2 * 2.5 + 6) / (2 * 1.5 + 4) * 2.0))
    points = np.array([-4.0, 0.0, 3.0])
    np.testing.assert_allclose(found.log_prob(t(points)).numpy(), theirs.logpdf(points), rtol=1e-12)
    assert float(found.variance) == pytest.approx(theirs.var(), rel=1e-12)
    assert isinstance(scale_mixture(t([0.5]), t([2.0]), None, 4.0, t(6.0)), dist.Normal)


@pytest.mark.parametrize(
    ("shape", "variance"), [(1.5, 3.0 * 2.5 / 1.5), (1.0, math.inf), (0.6, math.inf), (0.4, math.nan)]
)
def test_variance_where_degrees_of_freedom_are_few(shape, variance):
    """Before data 2a: above two finite, above one infinite, else not even a mean; torch says NaN."""
    found = scale_mixture(t([0.0]), t([1.0]), dist.InverseGamma(t(shape), t(2.5)))
    np.testing.assert_allclose(found.variance.numpy(), [variance], rtol=1e-12)


# --- priors of another shape or kind ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRIORS)
def test_priors_change_shape_and_kind(name):
    prior, s = PRIORS[name][0], t(1.3)
    wide = prior.expand((5, 2))
    assert with_axes(prior, 2) is prior
    assert with_axes(wide, 2).batch_shape == (5, 2, 1, 1)
    assert flattened(wide).batch_shape == (10,)
    single = like(prior, torch.zeros((), dtype=torch.float32))
    assert single.log_prob(s.float()).dtype == torch.float32
    for changed in (with_axes(wide, 1), flattened(wide), like(single, s)):
        torch.testing.assert_close(
            changed.log_prob(s), prior.log_prob(s).expand(changed.batch_shape), rtol=1e-6, atol=0
        )


def test_a_prior_that_cannot_be_made_anew():
    """A transformed distribution does not say what its parameters are: it stays as it is, or is refused."""
    squared = dist.TransformedDistribution(dist.HalfNormal(torch.ones(2)), [transforms.PowerTransform(t(2.0))])
    assert like(squared, t(1.0)) is squared
    with pytest.raises(
        ProgramError, match=r"got TransformedDistribution with \[\]: .* Give its class such arg_constraints"
    ):
        flattened(squared)
