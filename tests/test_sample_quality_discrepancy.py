"""The maximum mean discrepancy: scikit-learn's kernels, double sums, and a null distribution around 0."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from probmix import network_comparison, sample_quality_inputs
from probmix.errors import DataError
from probmix.sample_quality import GaussianKernel, PolynomialKernel, median_bandwidth, squared_mmd
from probmix.wide_networks import LimitLaw


def normal(n: int, d: int = 3, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    return shift + torch.as_tensor(np.random.default_rng(seed).normal(size=(n, d)))


X, Y = normal(40), normal(30, shift=0.5, seed=1)


def of_matrices(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> float:
    """The unbiased estimate of the kernel's matrices, pair by pair."""
    n, m = xy.shape
    within = sum(xx[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(yy[i, j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within + other - 2 * sum(xy[i, j] for i in range(n) for j in range(m)) / (n * m)


@pytest.mark.parametrize("block", [2**22, 90, 1])
def test_the_discrepancy_is_that_of_scikit_learns_kernels(monkeypatch, block):
    monkeypatch.setattr(sample_quality_inputs, "BLOCK", block)
    pairs = ((X, X), (Y, Y), (X, Y))
    cubic = of_matrices(*(polynomial_kernel(a, b, degree=3, gamma=1 / 3, coef0=1) for a, b in pairs))
    gaussian = of_matrices(*(rbf_kernel(a, b, gamma=1 / (2 * 1.7**2)) for a, b in pairs))
    assert float(squared_mmd(X, Y, PolynomialKernel())) == pytest.approx(cubic, rel=1e-10)
    assert float(squared_mmd(X, Y, GaussianKernel(1.7))) == pytest.approx(gaussian, rel=1e-10)


def test_the_bandwidth_is_the_median_distance_of_all_pairs():
    pooled = pdist(torch.cat([X, Y]).numpy())
    median = np.sort(pooled)[(len(pooled) - 1) // 2]
    assert float(median_bandwidth(X, Y)) == pytest.approx(median, rel=1e-12)
    assert float(squared_mmd(X, Y)) == pytest.approx(float(squared_mmd(X, Y, GaussianKernel(median))), rel=1e-10)


def test_many_rows_are_thinned_and_the_median_hardly_moves():
    """2,500 rows thinned to 834: the median of so many pairs errs by a per cent or so."""
    x, y = normal(2500), normal(2500, seed=1)
    pooled = np.median(pdist(torch.cat([x, y])[:2000].numpy()))
    assert float(median_bandwidth(x, y)) == pytest.approx(pooled, rel=0.05)


def test_it_is_the_discrepancy_of_the_comparison_with_wide_networks(monkeypatch):
    """Written there for permutations, of one matrix of all pairs."""
    monkeypatch.setattr(LimitLaw, "draw", lambda self, shape: Y)
    found = network_comparison._mmd(X[:30], LimitLaw(torch.eye(3, dtype=torch.float64)), 5)
    pooled = torch.cdist(*2 * [torch.cat([X[:30], Y])])
    assert float(squared_mmd(X[:30], Y, GaussianKernel(pooled.median()))) == pytest.approx(found.networks, rel=1e-8)


def biased(x: torch.Tensor, y: torch.Tensor, kernel) -> float:
    return float(kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean())


@pytest.mark.parametrize("kernel", [GaussianKernel(2.0), PolynomialKernel()], ids=["gaussian", "polynomial"])
def test_its_mean_is_zero_for_one_distribution_at_any_size(kernel):
    """Null: both normal, 12 and 20 rows. The mean of 500 is within four standard errors of 0 but once in 16,000 seeds.
    Controls: the biased estimate, with each row beside itself, and a shift."""
    pairs = [(normal(12, seed=i), normal(20, seed=10_000 + i)) for i in range(500)]

    def distance(values: list[float]) -> float:
        return float(np.mean(values) / (np.std(values, ddof=1) / np.sqrt(len(values))))

    assert abs(distance([float(squared_mmd(x, y, kernel)) for x, y in pairs])) < 4
    assert distance([biased(x, y, kernel) for x, y in pairs]) > 4
    assert distance([float(squared_mmd(x, y + 0.5, kernel)) for x, y in pairs]) > 4


def test_of_two_normal_distributions_it_tends_to_the_closed_form():
    """One dimension, kernel of width h: E k = h / sqrt(h^2 + 2) exp(-shift^2 / 2 (h^2 + 2)) between, the same without
    shift within. Of 1,500 rows the estimate errs by 0.014 (its standard deviation over 40 seeds); four are allowed."""
    found = float(squared_mmd(normal(1500, 1), normal(1500, 1, shift=1.0, seed=1), GaussianKernel(1.0)))
    assert abs(found - 2 / np.sqrt(3) * (1 - np.exp(-1 / 6))) < 4 * 0.014


def test_a_collapsed_generator_is_far_and_a_shift_of_both_changes_nothing():
    """Far from the origin products of rows would have lost their digits: of 1e6, squared, twelve of sixteen."""
    x, y = normal(200), normal(200, seed=1)
    near, kernel = float(squared_mmd(x, y)), GaussianKernel(2.0)
    assert float(squared_mmd(x, x[:1].expand(200, 3), kernel)) > 0.15 > 10 * abs(near)
    moved, plain = (float(squared_mmd(x + c, y + c, kernel)) for c in (1e6, 0.0))
    assert moved == pytest.approx(plain, abs=1e-8)  # 1e6 has ten digits left after the point


def test_any_function_of_two_tables_is_a_kernel():
    """With a linear one the estimate is the squared distance of the means, less what their variance adds."""
    found = squared_mmd(X, Y, lambda a, b: a @ b.mT)
    expected = (X.mean(0) - Y.mean(0)).square().sum() - X.var(0).sum() / 40 - Y.var(0).sum() / 30
    torch.testing.assert_close(found, expected)


def test_single_precision_is_computed_in_double():
    x, y = X.float(), Y.float()
    found = squared_mmd(x, y, PolynomialKernel())
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(squared_mmd(x.double(), y.double(), PolynomialKernel())), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squared_mmd(X, Y[:1]), "generated: expected 2 rows or more, got 1. Add samples."),
        (
            lambda: squared_mmd(X[:1].expand(9, 3), Y[:2]),
            "most differ, got a median distance of 0. Pass GaussianKernel(",
        ),
        (lambda: GaussianKernel(0.0), "bandwidth: expected a positive number, got 0. See median_bandwidth."),
    ],
)
def test_what_cannot_be_scored_is_refused(call, message):
    with pytest.raises(DataError, match=re.escape(message)):
        call()
