"""Tables of probabilities of different lengths, against torch's simplex and Dirichlet row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Dirichlet, StickBreakingTransform, biject_to

from probmix.codes import CategoricalCodes, level_cells, level_places
from probmix.simplex_rows import DirichletRows, SimplexRows, StickBreakingRows

LEVELS = (2, 4, 3)


@pytest.fixture
def z() -> torch.Tensor:
    return 3 * torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_each_row_is_the_stick_breaking_of_torch(z):
    transform = StickBreakingRows(LEVELS)
    table = transform(z)
    assert table.shape == (5, *transform.forward_shape(torch.Size([6])))
    log_det = torch.zeros(5, dtype=torch.float64)
    for row, (part, levels) in enumerate(zip(z.split([1, 3, 2], -1), LEVELS, strict=True)):
        expected = StickBreakingTransform()(part)
        torch.testing.assert_close(table[:, row, :levels], expected, rtol=1e-10, atol=1e-15)
        assert (table[:, row, levels:] == 0).all()
        log_det += StickBreakingTransform().log_abs_det_jacobian(part, expected)
    torch.testing.assert_close(transform.log_abs_det_jacobian(z, table), log_det, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(transform.inv(table), z, rtol=1e-9, atol=1e-9)
    assert transform.inverse_shape(table.shape) == z.shape


def test_gradients_are_finite_where_levels_are_missing(z):
    prior = DirichletRows(
        torch.ones(3, 4, dtype=torch.float64) * torch.tensor([[1, 1, 0, 0], [1] * 4, [1, 1, 1, 0]]), LEVELS
    )
    transform = biject_to(prior.support)

    def log_density(z: torch.Tensor) -> torch.Tensor:
        table = transform(z)
        return (prior.log_prob(table) + transform.log_abs_det_jacobian(z, table)).sum()

    gradient = torch.func.grad(log_density)(z)
    steps = 1e-6 * torch.eye(6, dtype=torch.float64)
    differences = torch.stack([(log_density(z[0] + s) - log_density(z[0] - s)) / 2e-6 for s in steps])
    torch.testing.assert_close(gradient[0], differences, rtol=0, atol=1e-7)  # central differences: 1e-12 + eps / 1e-6


def test_the_density_is_that_of_dirichlets():
    concentration = torch.tensor([[2.0, 0.5, 0, 0], [1.0, 1.5, 2.0, 3.0], [0.7, 0.7, 4.0, 0]], dtype=torch.float64)
    prior = DirichletRows(concentration, LEVELS).expand([5])
    table = StickBreakingRows(LEVELS)(torch.randn(5, 6, dtype=torch.float64))
    rows = [Dirichlet(concentration[d, :count]).log_prob(table[:, d, :count]) for d, count in enumerate(LEVELS)]
    torch.testing.assert_close(prior.log_prob(table), sum(rows), rtol=1e-12, atol=1e-12)


def test_draws_have_the_moments_of_the_beta():
    concentration = torch.tensor([[0.02, 0.03, 0.0], [2.0, 1.0, 1.0]], dtype=torch.float64)
    torch.manual_seed(0)
    draws = DirichletRows(concentration, (2, 3)).sample(torch.Size([20_000]))
    assert SimplexRows((2, 3)).check(draws).all()
    # Null: the first entries are Beta(0.02, 0.03) and Beta(2, 2). Five standard errors, of the mean and of the square:
    # a false alarm in half a million.
    for row, (a, b) in enumerate([(0.02, 0.03), (2.0, 2.0)]):
        mean, var = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
        for power, expected in ((1, mean), (2, var + mean**2)):
            values = draws[:, row, 0] ** power
            assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / 20_000**0.5
            assert abs(float(values.mean()) - 0.9 * expected) > 5 * float(values.std()) / 20_000**0.5  # the control


def test_places_and_cells_undo_each_other():
    column, level = level_cells(LEVELS, torch.device("cpu"))
    places = level_places(LEVELS, torch.device("cpu"))
    assert torch.equal(places[column, level], torch.arange(9))
    assert (places == 9).sum() == 3


def test_codes_are_categorical_and_never_an_impossible_level():
    probs = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)
    codes = CategoricalCodes(probs)
    draws = codes.sample(torch.Size([5000]), generator=torch.Generator().manual_seed(0))
    counts = np.stack([np.bincount(draws[:, d].long(), minlength=3) for d in range(2)])
    assert counts[0, 2] == counts[1, 0] == 0
    # Binomial with 5000 trials: five standard deviations of at most 35; a false alarm in two million.
    np.testing.assert_allclose(counts, 5000 * probs, atol=175)
    value = torch.tensor([[0.0, 1.0], [1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(codes.log_prob(value).exp(), torch.tensor([0.1, 0.4, 0.0], dtype=torch.float64))
    assert codes.expand([4, 3]).log_prob(value).shape == (4, 3)
    with pytest.raises(ValueError, match="support"):
        CategoricalCodes(probs, validate_args=True).log_prob(torch.tensor([0.0, 3.0], dtype=torch.float64))
