"""Shrinkage of covariances against scikit-learn and the formula of the source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS, LedoitWolf, ShrunkCovariance

from probmix.errors import ProgramError
from probmix.shrinkage import intensity, shrunk_covariance

SHAPES = [(30, 5), (10, 40), (500, 3)]


def rows(shape: tuple[int, int]) -> torch.Tensor:
    x = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 5, shape[1])
    return torch.as_tensor(x - x.mean(0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rule", "estimator"), [("ledoit_wolf", LedoitWolf()), ("oas", OAS())])
def test_the_rules_are_those_of_scikit_learn(shape, rule, estimator):
    x = rows(shape)
    estimator.fit(x.numpy())
    assert float(intensity(x, rule)) == pytest.approx(estimator.shrinkage_, rel=1e-10)
    np.testing.assert_allclose(shrunk_covariance(x, rule).numpy(), estimator.covariance_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_number_is_the_intensity(shape):
    expected = ShrunkCovariance(shrinkage=0.3).fit(rows(shape).numpy()).covariance_
    np.testing.assert_allclose(shrunk_covariance(rows(shape), 0.3).numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_ks_is_the_formula_of_the_source_up_to_a_factor(shape):
    """Precision D ((N - 1) S + tr(S) I)^-1, with S of divisor N - 1."""
    x = rows(shape).numpy()
    num, size = shape
    cov = x.T @ x / (num - 1)
    source = size * np.linalg.inv((num - 1) * cov + np.trace(cov) * np.eye(size))
    ours = np.linalg.inv(shrunk_covariance(torch.as_tensor(x), "ks").numpy())
    np.testing.assert_allclose(ours / ours[0, 0], source / source[0, 0], rtol=1e-8, atol=1e-12)


def test_rows_alike_in_all_directions_are_left_round():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for rule in ("ledoit_wolf", "oas"):
        torch.testing.assert_close(shrunk_covariance(x, rule), 0.5 * torch.eye(2))


@pytest.mark.parametrize("shrinkage", ["lw", 1.5, -0.1])
def test_other_rules_are_refused(shrinkage):
    with pytest.raises(ProgramError, match=f"shrinkage: .*got {shrinkage!r}"):
        intensity(rows((5, 2)), shrinkage)
