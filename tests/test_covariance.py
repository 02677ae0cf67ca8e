from __future__ import annotations

import pytest
import torch
from torch import Tensor

from probmix.covariance import COVARIANCES

SPREADS = {
    "full": torch.tensor([[[2.0, 0.6], [0.6, 1.0]]], dtype=torch.float64),
    "tied": torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64),
    "diagonal": torch.tensor([[2.0, 0.5]], dtype=torch.float64),
    "spherical": torch.tensor([3.0], dtype=torch.float64),
    "EEI": torch.tensor([2.0, 0.5], dtype=torch.float64),
    "EII": torch.tensor(3.0, dtype=torch.float64),
}
MATRICES = {
    "full": SPREADS["tied"],
    "tied": SPREADS["tied"],
    "diagonal": SPREADS["diagonal"][0].diag(),
    "spherical": 3.0 * torch.eye(2, dtype=torch.float64),
    "EEI": SPREADS["EEI"].diag(),
    "EII": 3.0 * torch.eye(2, dtype=torch.float64),
}
every_covariance = pytest.mark.parametrize("name", list(COVARIANCES))


def lifted(name: str) -> Tensor:
    return COVARIANCES[name].lift(SPREADS[name])


@every_covariance
def test_each_spread_stands_for_its_matrix(name: str) -> None:
    shape, matrix, loc = COVARIANCES[name], MATRICES[name], torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    x = torch.tensor([[0.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    offset = x - loc
    distance = shape.block_distance(x, loc, lifted(name)).sum(-2)
    torch.testing.assert_close(distance[0], (offset @ torch.linalg.inv(matrix) * offset).sum(-1))
    torch.testing.assert_close(shape.replicates(2) * shape.log_det(lifted(name))[0], torch.logdet(matrix))
    torch.testing.assert_close(shape.variances(lifted(name), 2)[0], matrix.diagonal())
    reference = torch.distributions.MultivariateNormal(loc[0], matrix).log_prob(x)
    torch.testing.assert_close(shape.normal(loc, shape.factor(lifted(name))).log_prob(x), reference)


@every_covariance
def test_the_trace_is_that_of_scatter_over_spread(name: str) -> None:
    scatter = 2 * lifted(name)
    expected = 2.0 * COVARIANCES[name].order(2) * COVARIANCES[name].blocks(2)
    torch.testing.assert_close(COVARIANCES[name].trace(scatter, lifted(name))[0].item(), expected)


@every_covariance
def test_coloured_noise_has_the_spread(name: str) -> None:
    """Colour the rows of the identity: the products of the results are those of the factor, exactly."""
    shape = COVARIANCES[name]
    rows = shape.colour(shape.factor(lifted(name)), torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(rows.T @ rows, MATRICES[name])


@every_covariance
def test_blocks_share_out_the_features(name: str) -> None:
    shape = COVARIANCES[name]
    for size in (1, 2, 7):
        assert shape.order(size) * shape.blocks(size) * shape.replicates(size) == size


@every_covariance
def test_the_axes_are_those_of_the_spread(name: str) -> None:
    shape = COVARIANCES[name]
    assert len(shape.axes) == SPREADS[name].ndim
    assert ("component" in shape.axes) is not shape.pooled
    torch.testing.assert_close(shape.drop(shape.lift(SPREADS[name])), SPREADS[name])


def test_independence_is_the_share_of_variance_left() -> None:
    """With correlation r the second feature keeps 1 - r**2 of its variance, given the first."""
    cov = torch.tensor([[4.0, 1.8], [1.8, 1.0]], dtype=torch.float64)
    assert COVARIANCES["full"].independence(cov).item() == pytest.approx(1 - 0.9**2)
    assert COVARIANCES["diagonal"].independence(torch.ones(1, 2)).tolist() == [1.0]
    assert COVARIANCES["spherical"].independence(torch.ones(1)).tolist() == [1.0]
