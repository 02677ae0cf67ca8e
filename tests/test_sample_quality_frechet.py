"""The Fréchet distance: scipy's root of a matrix, closed forms, and fewer samples than features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import ortho_group

from probmix import sample_quality_inputs
from probmix.errors import DataError
from probmix.sample_quality import frechet_distance


def sample(n: int, d: int, seed: int) -> torch.Tensor:
    """Correlated columns of different spread and mean."""
    generator = np.random.default_rng(seed)
    return torch.as_tensor(generator.normal(size=(n, d)) @ generator.normal(size=(d, d)) + generator.normal(size=d))


def by_scipy(x: torch.Tensor, y: torch.Tensor) -> float:
    (m1, s1), (m2, s2) = ((z.numpy().mean(0), np.cov(z.numpy().T)) for z in (x, y))
    return float(((m1 - m2) ** 2).sum() + np.trace(s1 + s2) - 2 * np.trace(np.real(sqrtm(s1 @ s2))))


@pytest.mark.parametrize("block", [2**22, 50])
@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 6), (30, 500, 12), (40, 40, 2)])
def test_the_distance_is_that_with_scipys_root(monkeypatch, n, m, d, block):
    """Of covariances that can be inverted; the product's root keeps ten digits."""
    monkeypatch.setattr(sample_quality_inputs, "BLOCK", block)
    x, y = sample(n, d, 0), sample(m, d, 1)
    assert float(frechet_distance(x, y)) == pytest.approx(by_scipy(x, y), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(7, 5), (7, 200), (2, 2)])
def test_fewer_samples_than_features_by_singular_values(n, m):
    """The trace of the root is the sum of singular values of the product of the centred tables; scipy to six digits."""
    x, y = sample(n, 20, 0), sample(m, 20, 1)
    a, b = ((z - z.mean(0)).numpy() / np.sqrt(len(z) - 1) for z in (x, y))
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum().item()
    expected = shift + (a**2).sum() + (b**2).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()
    assert float(frechet_distance(x, y)) == pytest.approx(expected, rel=1e-10)
    # the root of a singular matrix has half the digits
    assert float(frechet_distance(x, y)) == pytest.approx(by_scipy(x, y), rel=1e-5)


def test_of_independent_columns_it_is_a_sum_over_them():
    """Columns made uncorrelated exactly: then the covariances commute, and standard deviations are subtracted."""
    first, second = (np.linalg.qr(z - z.mean(0))[0] for z in (sample(50, 4, 0).numpy(), sample(50, 4, 1).numpy()))
    first_std, second_std = np.array([1.0, 2.0, 3.0, 0.0]), np.array([1.0, 0.5, 4.0, 2.0])
    x, y = (torch.as_tensor(q * np.sqrt(49) * std) for q, std in ((first, first_std), (second, second_std)))
    expected = ((first_std - second_std) ** 2).sum() + 9.0
    assert float(frechet_distance(x, y + torch.tensor([0.0, 0.0, 3.0, 0.0]))) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "d"), [(100, 5), (10, 30)])
def test_it_is_a_squared_distance(n, d):
    x, y, z = (sample(n, d, seed) for seed in range(3))
    turn = torch.as_tensor(ortho_group.rvs(d, random_state=0))
    size = float(x.var(0).sum())
    assert float(frechet_distance(x, x.flip(0))) < 1e-12 * size  # rounding of terms of this size
    assert float(frechet_distance(x, x + 2.0)) == pytest.approx(4.0 * d, rel=1e-9)
    pair = float(frechet_distance(x, y))
    assert float(frechet_distance(y, x)) == pytest.approx(pair, rel=1e-10)
    assert float(frechet_distance(x @ turn + 7.0, y @ turn + 7.0)) == pytest.approx(pair, rel=1e-9)
    assert float(frechet_distance(3 * x, 3 * y)) == pytest.approx(9 * pair, rel=1e-9)
    assert pair**0.5 <= (frechet_distance(x, z) ** 0.5 + frechet_distance(z, y) ** 0.5).item()


def test_a_collapsed_generator_is_as_far_as_the_real_samples_vary():
    """All samples equal to the real mean: nothing is left but the real variance."""
    x = sample(200, 6, 0)
    collapsed = x.mean(0).expand(50, 6)
    assert float(frechet_distance(x, collapsed)) == pytest.approx(float(x.var(0).sum()), rel=1e-10)


def test_single_precision_is_computed_in_double():
    """A mean of 1,000 costs float32 the digits of the data, but no more: with float64 of the same numbers it agrees."""
    x, y = ((1000 + sample(100, 5, seed)).float() for seed in (0, 1))
    found = frechet_distance(x, y)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(frechet_distance(x.double(), y.double())), rel=1e-6)


def test_one_sample_has_no_covariance():
    with pytest.raises(DataError, match=r"generated: expected 2 rows or more, got 1. Add samples."):
        frechet_distance(sample(9, 3, 0), sample(1, 3, 1))
