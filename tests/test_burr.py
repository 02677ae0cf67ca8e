"""Burr XII against scipy's, and as a distribution that the rest of the library can draw, expand and differentiate."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from probmix.burr import BurrXII

SHAPES = [(2.0, 2.0), (0.3, 0.5), (5.0, 20.0), (1.0, 3.0)]


def double(c: float, d: float) -> BurrXII:
    return BurrXII(torch.tensor(c, dtype=torch.float64), torch.tensor(d, dtype=torch.float64))


@pytest.mark.parametrize(("c", "d"), SHAPES)
def test_density_and_quantiles_are_scipys(c, d):
    """1e-12 relative: rounding of two logarithms and a power."""
    ours, theirs = double(c, d), stats.burr12(c, d)
    s = np.geomspace(1e-6, 1e6, 25)
    np.testing.assert_allclose(ours.log_prob(torch.tensor(s)).numpy(), theirs.logpdf(s), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ours.cdf(torch.tensor(s)).numpy(), theirs.cdf(s), rtol=1e-12)
    p = np.array([1e-12, 0.01, 0.5, 0.99])
    np.testing.assert_allclose(ours.icdf(torch.tensor(p)).numpy(), theirs.ppf(p), rtol=1e-10)


def test_far_tails_neither_overflow_nor_vanish():
    """At s = 1e300 and 1e-300, (1 + s^c) is beyond float64; the logarithm is plain arithmetic: -(c d + 1) log s."""
    far = double(2.0, 2.0).log_prob(torch.tensor([1e300, 1e-300], dtype=torch.float64))
    expected = [np.log(4) - 5 * 300 * np.log(10), np.log(4) - 300 * np.log(10)]
    np.testing.assert_allclose(far.numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize(("c", "d"), [(2.0, 2.0), (1.0, 3.0), (0.7, 1.43)])
def test_mean_is_scipys(c, d):
    assert float(double(c, d).mean) == pytest.approx(stats.burr12(c, d).mean(), rel=1e-6)


@pytest.mark.parametrize(("c", "d"), [(2.0, 0.5), (1.0, 1.0), (0.3, 0.5)])
def test_without_a_moment_the_mean_is_infinite(c, d):
    assert double(c, d).mean == torch.inf


def test_draws_follow_it():
    """Null: draws have scipy's distribution. False alarm 1e-4; the control, another shape, is refused."""
    torch.manual_seed(0)
    draws = double(2.0, 2.0).sample((4000,)).numpy()
    assert stats.kstest(draws, stats.burr12(2.0, 2.0).cdf).pvalue > 1e-4
    assert stats.kstest(draws, stats.burr12(2.0, 1.7).cdf).pvalue < 1e-6


def test_draws_are_differentiable_in_both_shapes():
    """A draw is the quantile of a uniform number that does not depend on the shapes: gradcheck's tolerance."""

    def draw(c, d):
        torch.manual_seed(3)
        return BurrXII(c, d).rsample((5,))

    shapes = (torch.tensor([2.0, 0.7]).double(), torch.tensor([1.5, 3.0]).double())
    assert torch.autograd.gradcheck(draw, [shape.requires_grad_() for shape in shapes])
    values = torch.tensor([0.3, 4.0]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda c, d, s: BurrXII(c, d).log_prob(s), (*shapes, values))


def test_expands_and_keeps_dtype():
    one = BurrXII(torch.tensor([2.0, 3.0]), 1.0)
    wide = one.expand((4, 2))
    assert wide.batch_shape == (4, 2)
    assert wide.sample((3,)).shape == (3, 4, 2)
    assert torch.equal(wide.log_prob(torch.ones(2))[0], one.log_prob(torch.ones(2)))
    assert double(2.0, 1.0).sample().dtype == torch.float64
    assert dist.Independent(one, 1).log_prob(torch.ones(2)).shape == ()


def test_refuses_what_is_not_positive():
    with pytest.raises(ValueError, match=r"parameter c .* of distribution BurrXII"):
        BurrXII(-1.0, 2.0, validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        BurrXII(1.0, 2.0, validate_args=True).log_prob(torch.tensor(-1.0))
