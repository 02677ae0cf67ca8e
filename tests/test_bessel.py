"""Modified Bessel functions against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import ive

from probmix.bessel import bessel_ratio, log_bessel

ARGUMENTS = np.logspace(-6, 5, 120)
every_order = pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 4.0, 14.0, 24.5, 49.0, 249.0])


@every_order
def test_the_logarithm_equals_scipy(order):
    ours = log_bessel(order, torch.as_tensor(ARGUMENTS) ** 2)
    scaled = ive(order, ARGUMENTS)
    seen = scaled > 1e-290  # below, scipy's value has underflowed
    expected = np.log(scaled[seen]) + ARGUMENTS[seen] - order * np.log(ARGUMENTS[seen])
    # scipy's own error is up to 3e-13 (against 30 digits), and terms of 1e5 have 1e-11.
    np.testing.assert_allclose(ours[seen], expected, rtol=1e-12, atol=1e-12)
    assert seen.any()


@every_order
def test_the_ratio_equals_scipy_and_is_the_gradient(order):
    square = (torch.as_tensor(ARGUMENTS) ** 2).requires_grad_()
    ours = bessel_ratio(order, square)
    lower, upper = ive(order, ARGUMENTS), ive(order + 1, ARGUMENTS)
    seen = upper > 1e-290
    expected = upper[seen] / lower[seen] / ARGUMENTS[seen]
    np.testing.assert_allclose(ours.detach()[seen], expected, rtol=1e-12)
    (gradient,) = torch.autograd.grad(log_bessel(order, square).sum(), square)
    # Autograd goes through the same recurrence backwards: a few dozen roundings.
    torch.testing.assert_close(gradient, ours.detach() / 2, rtol=1e-12, atol=0)


def test_it_is_smooth_at_zero_and_takes_batches():
    zero = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    value = log_bessel(0.5, zero)
    # I_nu(x) ~ (x / 2)^nu / Gamma(nu + 1)
    expected = -0.5 * np.log(2) - np.log(np.sqrt(np.pi) / 2)
    np.testing.assert_allclose(value.detach(), np.full((2, 3), expected), rtol=1e-13)
    (gradient,) = torch.autograd.grad(value.sum(), zero, create_graph=True)
    np.testing.assert_allclose(gradient.detach(), np.full((2, 3), 1 / 6), rtol=1e-13)  # 1 / (4 (nu + 1))
    (second,) = torch.autograd.grad(gradient.sum(), zero)
    assert second.isfinite().all()


def test_one_expression_serves_a_batch_of_functions():
    x = torch.tensor([0.1, 2.0, 300.0], dtype=torch.float64)
    slopes = torch.func.vmap(torch.func.grad(lambda square: log_bessel(2.0, square)))(x)
    torch.testing.assert_close(slopes, bessel_ratio(2.0, x) / 2, rtol=1e-12, atol=0)
