"""Garcia's estimate of the noise, on series whose noise is known and beside a plain search of its score."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from probmix.errors import DataError
from probmix.noise_variance import evar, least_noise, noise_prior


def series(n: int, noise_var: float, seed: int) -> torch.Tensor:
    x = np.linspace(0, 100, n)
    noise = np.random.default_rng(seed).normal(size=n)
    return torch.as_tensor(np.cos(x / 10) + x / 50 + noise_var**0.5 * noise)


@pytest.mark.parametrize(("noise_var", "bias"), [(1e-4, 0.06), (0.02, 0.02), (3.0, 0.01)])
def test_known_noise(noise_var, bias):
    """Of 20 series of 2,000 points the mean is within 4 standard errors, sqrt(2 / 40,000) each; a control is not.

    V is a mean over n, not over the degrees of freedom left: it falls short by what the spline takes, more if the noise
    is small.
    """
    found = np.mean([float(evar(series(2000, noise_var, seed))) for seed in range(20)])
    error = 4 * (2 / 40_000) ** 0.5
    assert -bias - error < found / noise_var - 1 < error
    assert found / noise_var * 1.1 - 1 > error


def test_it_is_where_the_score_is_least():
    """The spline as a matrix, (I + s D^T D)^-1 with D the second difference of a series mirrored at its ends."""
    y = series(60, 0.1, 0).numpy()
    n = len(y)
    second = -2 * np.eye(n) + np.eye(n, k=1) + np.eye(n, k=-1)
    second[0, 0] = second[-1, -1] = -1
    best = (np.inf, np.nan)
    for s in 10 ** np.linspace(-3, 6, 3001):
        rest = np.eye(n) - np.linalg.inv(np.eye(n) + s * second.T @ second)
        residual = np.mean((rest @ y) ** 2)
        best = min(best, (residual / (np.trace(rest) / n) ** 2, residual))
    assert float(evar(torch.as_tensor(y))) == pytest.approx(best[1], rel=2e-3)  # of the search, in steps of 0.7%


def test_it_scales_and_keeps_kind():
    y = series(200, 0.1, 1)
    assert float(evar(3 * y + 7)) == pytest.approx(9 * float(evar(y)), rel=1e-3)
    assert evar(y.float()).dtype == torch.float32
    assert float(evar(y.flip(0))) == pytest.approx(float(evar(y)), rel=1e-6)


def test_the_papers_electricity():
    """8570 by their program, of a variance of 8738; its last trial of s is not quite the best."""
    file = Path(os.environ.get("PROBMIX_DATA", "")) / "slimkl" / "electricitydata.mat"
    if not file.is_file():
        pytest.skip("no folder with slimkl/ in it: set PROBMIX_DATA")
    y = torch.as_tensor(scipy.io.loadmat(file, mat_dtype=True)["ytrain"][:, 0])
    assert float(evar(y, tolerance=0.1)) == pytest.approx(8570, rel=2e-3)
    assert float(evar(y)) == pytest.approx(8570, rel=2e-3)


@pytest.mark.parametrize("y", [torch.zeros(2), torch.zeros(5, 1), torch.tensor([0.0, 1.0, torch.nan])])
def test_wrong_data(y):
    with pytest.raises(DataError, match=r"at least 3 finite observations, \(n,\), got \(.*Estimate one series"):
        evar(y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_least_noise_keeps_a_covariance_positive_definite(dtype):
    """A constant kernel beside it: factors exist for 200 rows; with the resolution itself as noise they need not."""
    variance = torch.tensor(7.0, dtype=dtype)
    alike, eye = variance * torch.ones(200, 200, dtype=dtype), torch.eye(200, dtype=dtype)
    assert int(torch.linalg.cholesky_ex(alike + least_noise(variance) * eye)[1]) == 0
    assert int(torch.linalg.cholesky_ex(alike + 0.1 * torch.finfo(dtype).eps * variance * eye)[1]) > 0


def test_the_prior_is_in_units_of_the_variance():
    one, nine = (noise_prior(torch.tensor(value, dtype=torch.float64)) for value in (1.0, 9.0))
    assert float(nine.least / one.least) == pytest.approx(9)
    value = torch.tensor(0.2, dtype=torch.float64)
    assert float(nine.log_prob(9 * value)) == pytest.approx(float(one.log_prob(value)) - np.log(9))
