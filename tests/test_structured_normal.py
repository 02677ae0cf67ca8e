"""Normals by the structure of their covariance: torch's and pyro's densities, moments of draws, and shapes."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.linalg
import torch
from process_cases import normal, t
from torch import Tensor
from z_scores import critical

from probmix import structured_normal
from probmix.isolation import isolated
from probmix.structured_normal import AbstractCovariance, Dense, Kronecker, StructuredNormal, Toeplitz

N = 6
LAGS = torch.arange(N, dtype=torch.float64)
FADING = 2 * (-LAGS).exp() * (1.3 * LAGS).cos() + 0.3 * (LAGS == 0)  # has a circulant covariance around it
LASTING = (-0.5 * (LAGS / 6).square()).exp() + 0.01 * (LAGS == 0)  # has none
ROOTS = normal(2, 2, seed=4), normal(3, 3, seed=5)
FACTORS = tuple(root @ root.mT + torch.eye(len(root)) for root in ROOTS)


def toeplitz(column: Tensor) -> Tensor:
    return t(scipy.linalg.toeplitz(column.numpy()))


def kronecker(noise_var: float) -> Tensor:
    return t(np.kron(*(factor.numpy() for factor in FACTORS))) + noise_var * torch.eye(N)


#: Name -> covariance by its structure, and in full.
CASES: dict[str, tuple[AbstractCovariance, Tensor]] = {
    "dense": (Dense(toeplitz(FADING) + torch.diag(LAGS)), toeplitz(FADING) + torch.diag(LAGS)),
    "fading": (Toeplitz(FADING), toeplitz(FADING)),
    "lasting": (Toeplitz(LASTING), toeplitz(LASTING)),
    "kronecker": (Kronecker(FACTORS, t(0.5)), kronecker(0.5)),
}
BATCHES: dict[str, tuple[AbstractCovariance, Tensor]] = {
    "dense": (Dense(torch.stack([m[1] for m in CASES.values()])), torch.stack([m[1] for m in CASES.values()])),
    "fading": (Toeplitz(torch.stack([FADING, 3 * FADING])), torch.stack([toeplitz(FADING), 3 * toeplitz(FADING)])),
    "one of two": (Toeplitz(torch.stack([FADING, LASTING])), torch.stack([toeplitz(FADING), toeplitz(LASTING)])),
    "kronecker": (Kronecker(FACTORS, t([0.5, 1.0])), torch.stack([kronecker(0.5), kronecker(1.0)])),
}
every_structure = pytest.mark.parametrize("name", CASES)
every_batch = pytest.mark.parametrize("name", BATCHES)
LOC, Y, ORDER = normal(N, seed=1), normal(N, seed=2), torch.tensor([3, 0, 5, 1, 4, 2])


def close(ours: Tensor, theirs: Tensor) -> None:
    """1e-12: condition numbers of some tens; of `LASTING` a thousand."""
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# --- densities --------------------------------------------------------------------------------------------------------


@every_structure
def test_without_a_scale_it_is_the_multivariate_normal(name):
    covariance, matrix = CASES[name]
    close(StructuredNormal(LOC, covariance).log_prob(Y), dist.MultivariateNormal(LOC, matrix).log_prob(Y))


@every_structure
def test_with_an_inverse_gamma_it_is_students_t(name):
    """Inverse gamma (a, b) of a variance: 2a degrees of freedom, shape matrix b / a times C."""
    covariance, matrix = CASES[name]
    ours = StructuredNormal(LOC, covariance, dist.InverseGamma(t(1.5), t(2.0)))
    theirs = dist.MultivariateStudentT(t(3.0), LOC, torch.linalg.cholesky(matrix * 2.0 / 1.5))
    close(ours.log_prob(Y), theirs.log_prob(Y))


@every_structure
def test_columns_share_covariance_and_scale(name):
    """A Kronecker product with the identity: three columns one below the other are one vector of 18."""
    covariance, matrix = CASES[name]
    loc, y = normal(N, 3, seed=6), normal(N, 3, seed=7)
    ours = StructuredNormal(loc, covariance, dist.InverseGamma(t(1.5), t(2.0)), columns=True)
    assert ours.event_shape == (N, 3)
    tril = torch.linalg.cholesky(t(np.kron(np.eye(3), matrix.numpy())) * 2.0 / 1.5)
    theirs = dist.MultivariateStudentT(t(3.0), loc.mT.reshape(-1), tril)
    close(ours.log_prob(y), theirs.log_prob(y.mT.reshape(-1)))


@every_structure
def test_rows_in_another_order(name):
    """Row ``order[i]`` of the data is row i of the covariance."""
    covariance, matrix = CASES[name]
    shuffled = torch.empty_like(matrix)
    shuffled[ORDER[:, None], ORDER] = matrix
    ours = StructuredNormal(LOC, covariance, order=ORDER)
    close(ours.log_prob(Y), dist.MultivariateNormal(LOC, shuffled).log_prob(Y))


@every_batch
def test_a_batch_of_covariances(name):
    covariance, matrix = BATCHES[name]
    ours = StructuredNormal(LOC, covariance)
    assert ours.batch_shape == covariance.batch_shape == matrix.shape[:1]
    close(ours.log_prob(Y), dist.MultivariateNormal(LOC, matrix).log_prob(Y))


@every_batch
def test_expanded(name):
    covariance, _ = BATCHES[name]
    small = StructuredNormal(LOC, covariance, order=ORDER)
    large, y = small.expand((5, *small.batch_shape)), normal(5, 1, N, seed=8)
    assert large.batch_shape == (5, *small.batch_shape)
    assert large.event_shape == (N,)
    close(large.log_prob(y), small.log_prob(y))
    assert large.sample((7,)).shape == (7, 5, *small.batch_shape, N)
    close(large.mean, LOC.expand(5, *small.batch_shape, N))
    scaled = StructuredNormal(normal(N, 2), covariance, dist.InverseGamma(t(1.5), t(2.0)), columns=True)
    large = scaled.expand((5, *small.batch_shape))
    assert large.columns
    close(large.log_prob(y[..., None].expand(5, 1, N, 2)), scaled.log_prob(y[..., None].expand(5, 1, N, 2)))


@pytest.mark.parametrize("name", ["fading", "kronecker"])
def test_single_precision(name):
    """1e-5: some tens of roundings."""
    _, matrix = CASES[name]
    single = (
        Toeplitz(FADING.float())
        if name == "fading"
        else Kronecker(tuple(factor.float() for factor in FACTORS), torch.tensor(0.5))
    )
    found = StructuredNormal(LOC.float(), single)
    assert found.log_prob(Y.float()).dtype == found.sample().dtype == torch.float32
    expected = dist.MultivariateNormal(LOC, matrix).log_prob(Y)
    torch.testing.assert_close(found.log_prob(Y.float()).double(), expected, rtol=1e-5, atol=1e-5)


# --- draws ------------------------------------------------------------------------------------------------------------

DRAWS = 20_000
FALSE_ALARM = 1e-6  # of each test, over all its moments (Bonferroni)


def worst(draws: Tensor, loc: Tensor, matrix: Tensor) -> float:
    """The largest z-score of means and covariances of draws ``(s, n)``, by the spread of what they are means of."""
    residuals = draws - loc
    products = (residuals[:, :, None] * residuals[:, None]).flatten(1)
    moments, expected = torch.cat([draws, products], -1), torch.cat([loc, matrix.flatten()])
    return float(((moments.mean(0) - expected) / (moments.std(0) / math.sqrt(len(draws)))).abs().max())


LIMIT = critical(N + N**2, FALSE_ALARM)


@every_structure
@pytest.mark.parametrize("order", [None, ORDER], ids=["as it is", "shuffled"])
def test_moments_of_draws(name, order):
    """Null: mean and covariance are the stated ones. Controls: a covariance a tenth larger, the order of the rows."""
    covariance, matrix = CASES[name]
    place = torch.arange(N) if order is None else order.argsort()
    truth = matrix[place[:, None], place]
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        draws = StructuredNormal(LOC, covariance, order=order).sample((DRAWS,))
    assert worst(draws, LOC, truth) < LIMIT
    assert worst(draws, LOC, 1.1 * truth) > LIMIT
    assert order is None or worst(draws, LOC, matrix) > LIMIT


@every_batch
def test_draws_of_a_batch(name):
    """Null: each of the batch, and both columns, have the stated moments and know nothing of each other."""
    covariance, matrix = BATCHES[name]
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        draws = StructuredNormal(torch.stack([LOC, -LOC], -1), covariance, columns=True).sample((DRAWS,))
    assert draws.shape == (DRAWS, len(matrix), N, 2)
    limit = critical(2 * len(matrix) * (N + N**2), FALSE_ALARM)
    for k, truth in enumerate(matrix):
        for column, loc in enumerate((LOC, -LOC)):
            assert worst(draws[:, k, :, column], loc, truth) < limit
    pair = torch.stack([draws[:, 0, 0, 0] - LOC[0], draws[:, 0, 0, 1] + LOC[0], draws[:, 1, 0, 0] - LOC[0]])
    correlations = torch.corrcoef(pair)[[0, 0, 1], [1, 2, 2]]
    assert correlations.abs().max() < critical(3, FALSE_ALARM) / math.sqrt(DRAWS)


@every_structure
def test_scale_of_draws(name):
    """Null: ``s`` is InverseGamma(6, 5), of mean 1, so the covariance is C, and all rows of a draw share it.

    Squares of two independent rows then have the covariance of s with itself, 1/4. The control: none.
    """
    covariance, matrix = CASES[name]
    prior = dist.InverseGamma(t(6.0), t(5.0))
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        draws = StructuredNormal(LOC, covariance, prior).sample((DRAWS,))
    assert worst(draws, LOC, matrix) < LIMIT
    white = (draws - LOC) @ torch.linalg.inv(torch.linalg.cholesky(matrix)).mT
    squares = white.square()
    together = torch.cov(squares.mT)[0, 1]  # 5^2 / ((6 - 1)^2 (6 - 2))
    spread = ((squares[:, 0] - 1) * (squares[:, 1] - 1)).std() / math.sqrt(DRAWS)
    assert abs(together - 0.25) < critical(1, FALSE_ALARM) * spread
    assert abs(together) > critical(1, FALSE_ALARM) * spread


def test_of_a_long_series_no_matrix_is_made(monkeypatch):
    """50,000 rows, of which a matrix has 20 GB. Null: lags of 0 to 5 have the stated covariance, six sums over rows.

    Their spread by Bartlett's formula for a normal series, a sum over all lags of squared covariances.
    """
    n = 50_000

    def cov(lags: Tensor) -> Tensor:
        return 2 * (-lags.abs()).exp() * (1.3 * lags).cos() + 0.3 * (lags == 0)

    column = cov(torch.arange(n, dtype=torch.float64))
    monkeypatch.setattr(structured_normal.toeplitz_covariance, "dense", None)
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        drawn = StructuredNormal(torch.zeros(n), Toeplitz(column)).sample()
    lags = torch.arange(-99, 100, dtype=torch.float64)  # beyond, covariances are below 1e-42
    for k in range(6):
        found = (drawn[: n - k] * drawn[k:]).mean()
        variance = (cov(lags).square() + cov(lags + k) * cov(lags - k)).sum() / (n - k)
        assert abs(found - column[k]) < critical(6, FALSE_ALARM) * variance.sqrt()


def test_a_circulant_is_used_only_where_it_is_one(monkeypatch):
    """Eigenvalues of the circulant around `LASTING` by NumPy: one is far below zero, so a dense factor steps in."""
    around = {name: np.r_[c.numpy(), c.numpy()[-2:0:-1]] for name, c in (("fading", FADING), ("lasting", LASTING))}
    least = {name: np.linalg.eigvalsh(scipy.linalg.circulant(values))[0] for name, values in around.items()}
    assert least["fading"] > 0 > -0.01 > least["lasting"]
    made, dense = [], structured_normal.toeplitz_covariance.dense
    monkeypatch.setattr(
        structured_normal.toeplitz_covariance, "dense", lambda column: made.append(column) or dense(column)
    )
    Toeplitz(FADING).draw(torch.Size([3, N, 1]))
    assert not made
    Toeplitz(LASTING).draw(torch.Size([3, N, 1]))
    assert len(made) == 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_draws_of_very_short_series(n):
    """Null: variances are 4; of a chi-squared sum of independent draws. A control: 3.5."""
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        draws = StructuredNormal(torch.zeros(n), Toeplitz(t([4.0, 1.0, 0.5][:n]))).sample((DRAWS,))
    assert draws.shape == (DRAWS, n)
    error = (draws.square().mean(0) - 4).abs() / (4 * math.sqrt(2 / DRAWS))
    assert error.max() < critical(n, FALSE_ALARM)
    assert ((draws.square().mean(0) - 3.5).abs() / (3.5 * math.sqrt(2 / DRAWS))).min() > critical(n, FALSE_ALARM)


# --- what its work needs ----------------------------------------------------------------------------------------------


def test_numbers_of_the_work():
    """A matrix; 30 for each row; the larger of a factor's and a column's."""
    assert StructuredNormal(torch.zeros(7), Dense(torch.eye(7))).num_elements == 49
    assert StructuredNormal(torch.zeros(7), Toeplitz(torch.ones(2, 7))).num_elements == 210
    assert Kronecker((torch.eye(5), torch.eye(2)), torch.ones(3)).num_elements == 25
    assert Kronecker((torch.eye(5), torch.eye(9)), torch.ones(3)).num_elements == 81
    assert Kronecker((torch.eye(5), torch.eye(6), torch.eye(7)), torch.ones(3)).num_elements == 210
