"""Control variates: means over the sphere, and a regression that leaves each value out, done again one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probmix.sample_quality_variates import control_variates, corrected, least_projections


def samples(d: int, dtype: torch.dtype = torch.float64, n: int = 40, m: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(d)
    x, y = (generator.normal(size=(k, d)) @ generator.normal(size=(d, d)) for k in (n, m))
    return torch.as_tensor(x, dtype=dtype), torch.as_tensor(y + generator.normal(size=d), dtype=dtype)


def directions(count: int, d: int) -> torch.Tensor:
    drawn = torch.as_tensor(np.random.default_rng(0).normal(size=(count, d)))
    return drawn / drawn.norm(dim=1, keepdim=True)


def forms(x: torch.Tensor, y: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    shift = (theta @ (x.mean(0) - y.mean(0))) ** 2
    return torch.stack([shift, (theta @ x.T).var(1, correction=0), (theta @ y.T).var(1, correction=0)], 1)


@pytest.mark.parametrize("control", ["lower", "upper", "full"])
@pytest.mark.parametrize("d", [2, 3, 10, 60])
def test_every_variate_has_mean_zero(d, control):
    """Null: the means in closed form. Over 40,000 directions no mean is farther than 4.5 standard errors but once in
    10,000 seeds (up to twelve variates). The control takes the squared forms to have the square of their means.
    In 60 dimensions the traces of products go by rows, below by features."""
    x, y = samples(d)
    theta = directions(40_000, d)
    values = forms(x, y, theta)
    found = control_variates(control, x, y, theta, values)
    assert found.shape == (40_000, {"lower": 1, "upper": 1, "full": 12 if d == 2 else 9}[control])
    z = found.mean(0) / (found.std(0) / 200)
    assert (z.abs() < 4.5).all()
    wrong = values.square() - values.mean(0).square()
    assert ((wrong.mean(0) / (wrong.std(0) / 200)).abs() > 4.5).any()


def test_products_are_the_same_by_rows_and_by_features():
    """The first 40 of 60 columns are empty: cheaper by rows; without them, cheaper by features; d enters the means."""
    x, y = samples(3, n=200, m=300)
    padded = [torch.cat([z, torch.zeros(len(z), 397).double()], 1) for z in (x, y)]
    theta = directions(50, 3)
    narrow = control_variates("full", x, y, theta, forms(x, y, theta)) - forms_and_products(x, y, theta)
    wide_theta = torch.cat([theta, torch.zeros(50, 397).double()], 1)
    wide = control_variates("full", *padded, wide_theta, forms(x, y, theta)) - forms_and_products(x, y, theta)
    torch.testing.assert_close(narrow[0, :3] * 3, wide[0, :3] * 400)
    torch.testing.assert_close(narrow[0, 3:] * 3 * 5, wide[0, 3:] * 400 * 402)


def forms_and_products(x: torch.Tensor, y: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    q = forms(x, y, theta)
    return torch.cat([q, *[(q[:, i] * q[:, j])[:, None] for i in range(3) for j in range(i, 3)]], 1)


def test_a_variate_that_does_not_vary_is_left_out():
    """A sphere's covariance is the same in all directions: what varies is rounding, which must not be regressed on."""
    x = torch.cat([torch.eye(5), -torch.eye(5)])
    theta = directions(100, 5).float()
    found = control_variates("full", x, x, theta, forms(x, x, theta))
    assert (found == 0).all()
    values = torch.rand(100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(corrected(values, found)[0], values.double().mean())


def test_the_regression_leaves_each_value_out():
    """Against numpy, one regression for each value."""
    generator = np.random.default_rng(0)
    c = generator.normal(size=(25, 4))
    w = generator.normal(size=25) + c @ [1.0, 2.0, 0.0, -1.0]
    design = np.concatenate([np.ones((25, 1)), c], 1)
    others = [np.delete(np.arange(25), i) for i in range(25)]
    coefficients = np.array([np.linalg.lstsq(design[rest], w[rest], rcond=None)[0] for rest in others])
    expected = np.mean(w - (c * coefficients[:, 1:]).sum(1))
    jackknife = np.sqrt(24 / 25 * ((coefficients[:, 0] - coefficients[:, 0].mean()) ** 2).sum())
    mean, error = corrected(torch.as_tensor(w), torch.as_tensor(c))
    assert (float(mean), float(error)) == pytest.approx((expected, jackknife), rel=1e-10)


def test_without_variates_it_is_the_mean_and_its_standard_error():
    w = torch.as_tensor(np.random.default_rng(0).normal(size=30))
    mean, error = corrected(w, w.new_empty(30, 0))
    torch.testing.assert_close(mean, w.mean())
    torch.testing.assert_close(error, w.std() / 30**0.5)


def test_variates_that_depend_on_one_another_do_no_harm():
    """A copy, a sum and a zero: the same estimate as without."""
    generator = np.random.default_rng(0)
    c = torch.as_tensor(generator.normal(size=(40, 2)))
    w = c @ torch.tensor([1.0, -2.0]).double() + torch.as_tensor(generator.normal(size=40))
    more = torch.cat([c, 1e6 * c[:, :1], c.sum(1, keepdim=True), torch.zeros(40, 1).double()], 1)
    torch.testing.assert_close(corrected(w, more), corrected(w, c), rtol=1e-8, atol=0)


def test_leaving_out_is_unbiased_where_one_regression_for_all_is_not():
    """Null: mean 1. Values are curved in a skew variate, 12 at a time; of 4,000 means no more than 4 standard errors
    off, which happens once in 16,000 seeds. The control is the intercept of one regression."""
    generator = np.random.default_rng(0)
    c = generator.exponential(size=(4000, 12)) - 1.0
    w = c**2  # of mean 1
    left_out = np.array(
        [float(corrected(torch.as_tensor(a), torch.as_tensor(b)[:, None])[0]) for a, b in zip(w, c, strict=True)]
    )
    slope = ((w - w.mean(1, keepdims=True)) * c).sum(1) / ((c - c.mean(1, keepdims=True)) ** 2).sum(1)
    plug_in = w.mean(1) - slope * c.mean(1)

    def distance(values: np.ndarray) -> float:
        return float(abs(values.mean() - 1) / (values.std(ddof=1) / np.sqrt(len(values))))

    assert distance(left_out) < 4
    assert distance(plug_in) > 4


def test_as_many_projections_as_coefficients_are_asked_for():
    found = {d: [least_projections(control, d) for control in ("full", "lower", "upper", "none")] for d in (2, 7)}
    assert found == {2: [65, 10, 10, 5], 7: [50, 10, 10, 5]}
