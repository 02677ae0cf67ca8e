"""Polynomial trends against NumPy's least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probmix.polynomial_trend import PolynomialTrend


@pytest.mark.parametrize("degree", [1, 3])
def test_is_the_least_squares_fit_of_numpy(degree):
    """In years, where plain powers lose digits: 1e-9 of numbers of order 1 after numpy's own centring."""
    draw = np.random.default_rng(0)
    years, y = 1950 + 10 * draw.random(40), draw.normal(size=(40, 2))
    trend = PolynomialTrend.fit(torch.tensor(years)[:, None], torch.tensor(y), degree)
    new = np.linspace(1945, 1965, 7)
    expected = np.stack([np.polynomial.Polynomial.fit(years, column, degree)(new) for column in y.T], -1)
    np.testing.assert_allclose(trend(torch.tensor(new)[:, None]), expected, rtol=1e-9, atol=1e-9)


def test_columns_are_powers_of_each_input_and_a_constant_one_does_no_harm():
    draw = np.random.default_rng(1)
    x = np.concatenate([draw.normal(size=(30, 2)), np.full((30, 1), 7.0)], 1)
    y = 2 + x[:, 0] - 3 * x[:, 1] ** 2
    trend = PolynomialTrend.fit(torch.tensor(x), torch.tensor(y)[:, None], 2)
    np.testing.assert_allclose(trend(torch.tensor(x))[:, 0], y, rtol=1e-10, atol=1e-10)
    product = PolynomialTrend.fit(torch.tensor(x), torch.tensor(x[:, :1] * x[:, 1:2]), 2)
    assert float((product(torch.tensor(x))[:, 0] - torch.tensor(x[:, 0] * x[:, 1])).abs().max()) > 0.1
