"""Dual activations: against quadrature, finite differences, and what they must be where inputs coincide."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import ndtr
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.func import grad, vmap

from probmix.dual_activations import AbstractActivation, LeakyReLU, activation_of
from probmix.errors import ProgramError

SMOOTH = ("erf", "gelu", "sin", "cos")
JUMPS = ("step", "sign")
NAMES = ("relu", "leaky_relu", *SMOOTH, *JUMPS)
CASES = ((0.4, 0.9, 1.7), (-1.1, 0.9, 1.7), (0.0, 0.3, 0.2), (0.29, 0.3, 0.3), (2.0, 2.5, 1.9))  # k, q1, q2
every_name = pytest.mark.parametrize("name", NAMES)


def tensors(*cases: tuple[float, float, float], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return list(torch.tensor(cases or CASES, dtype=dtype).T.contiguous())


# --- expectations, by quadrature ------------------------------------------------------------------------------------


def by_gauss_hermite(function: Callable[[Tensor, Tensor], Tensor], k: float, q1: float, q2: float) -> float:
    """E[function(u, v)] on a grid of 100 by 100 nodes: exact to rounding for the smooth functions here."""
    nodes, weights = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(100))
    u = (math.sqrt(q1) * nodes[:, None]).expand(100, 100)
    v = k / q1 * u + math.sqrt(q2 - k * k / q1) * nodes
    return float((weights[:, None] * weights * function(u, v)).sum() / (2 * math.pi))


BENT = {
    "relu": lambda u: max(u, 0.0),
    "leaky_relu": lambda u: u if u > 0 else 0.01 * u,
    "step": lambda u: float(u > 0),
    "sign": lambda u: math.copysign(1.0, u),
}


def given_the_other(name: str, mean: float, std: float) -> float:
    """E[phi(v)] of a normal v, for the functions that bend or jump at zero."""
    above = ndtr(mean / std)
    positive = mean * above + std * math.exp(-0.5 * (mean / std) ** 2) / math.sqrt(2 * math.pi)
    negative = mean - positive
    return {
        "relu": positive, "leaky_relu": positive + 0.01 * negative, "step": above, "sign": 2 * above - 1,
    }[name]  # fmt: skip


def by_halves(name: str, k: float, q1: float, q2: float) -> float:
    """E[phi(u) phi(v)], the integral over v in closed form and that over u by quadrature on each side of zero."""
    std, norm = math.sqrt(q2 - k * k / q1), math.sqrt(2 * math.pi * q1)

    def integrand(u: float) -> float:
        return BENT[name](u) * given_the_other(name, k / q1 * u, std) * math.exp(-0.5 * u * u / q1) / norm

    return sum(quad(integrand, *ends, epsabs=1e-13, epsrel=1e-12)[0] for ends in ((-np.inf, 0), (0, np.inf)))


def expected_dual(name: str, k: float, q1: float, q2: float) -> float:
    if name in SMOOTH:
        phi = activation_of(name)
        return by_gauss_hermite(lambda u, v: phi(u) * phi(v), k, q1, q2)
    return by_halves(name, k, q1, q2)


@every_name
def test_the_dual_is_the_expectation(name):
    expected = [expected_dual(name, *case) for case in CASES]
    np.testing.assert_allclose(activation_of(name).dual(*tensors()), expected, rtol=1e-10, atol=1e-12)
    other = [expected_dual(name, k, q1, q2 + 1e-6) for k, q1, q2 in CASES]  # the control: not these
    if name not in JUMPS:
        assert not np.allclose(activation_of(name).dual(*tensors()), other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_slope_is_the_expectation_of_the_derivatives(name):
    phi = activation_of(name)

    def product(u: Tensor, v: Tensor) -> Tensor:
        derivatives = []
        for x in (u, v):
            x = x.clone().requires_grad_()
            derivatives += torch.autograd.grad(phi(x).sum(), x)
        return derivatives[0] * derivatives[1]

    expected = [by_gauss_hermite(product, *case) for case in CASES]
    np.testing.assert_allclose(phi.with_slope(*tensors())[1], expected, rtol=1e-10, atol=1e-12)


def test_slopes_of_rectifiers_and_duals_of_steps_are_orthant_probabilities():
    both = [multivariate_normal(cov=[[q1, k], [k, q2]]).cdf([0, 0]) for k, q1, q2 in CASES]  # Genz: 1e-8 or better
    np.testing.assert_allclose(activation_of("step").dual(*tensors()), both, rtol=1e-7)
    np.testing.assert_allclose(activation_of("relu").with_slope(*tensors())[1], both, rtol=1e-7)
    leaky = LeakyReLU(0.2).with_slope(*tensors())[1]
    np.testing.assert_allclose(leaky, [p + 0.2 * (1 - 2 * p) + 0.04 * p for p in both], rtol=1e-7)


# --- derivatives ----------------------------------------------------------------------------------------------------


@every_name
def test_derivatives_are_those_of_finite_differences(name):
    inputs = [x.requires_grad_() for x in tensors()]
    for function in (activation_of(name).dual, activation_of(name).with_slope):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@every_name
def test_slope_and_pull_are_the_derivatives_of_the_dual(name):
    """Of a matrix with variances of rows and of columns, with and without autograd's bookkeeping."""
    phi, generator = activation_of(name), torch.Generator().manual_seed(0)
    k, gradient = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    q1, q2 = k.abs().amax(-1, keepdim=True) + 0.3, k.abs().amax(-2, keepdim=True) + 0.2
    inputs = [x.requires_grad_() for x in (k, q1, q2)]
    tracked, slope = phi.with_slope(*inputs)
    expected = torch.autograd.grad(phi.dual(*inputs), inputs, gradient)
    with torch.no_grad():
        for dual, by_k in ((phi.dual(*inputs), slope), phi.with_slope(*inputs)):
            torch.testing.assert_close(dual, tracked.detach(), rtol=1e-14, atol=1e-15)
            torch.testing.assert_close(by_k, (expected[0] / gradient), rtol=1e-12, atol=1e-13)
        pulled = phi.pull(gradient, *inputs, tracked, slope)
    for got, right, at in zip(pulled, expected, inputs, strict=True):
        assert got.shape == at.shape
        torch.testing.assert_close(got, right, rtol=1e-11, atol=1e-13)


# --- edges ----------------------------------------------------------------------------------------------------------


@every_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coincident_inputs_have_the_variance(name, dtype):
    """To a few roundings, whatever the rounding of ``k`` is; angles by acos would be off by the root of one."""
    phi, epsilon = activation_of(name), torch.finfo(dtype).eps
    q = torch.logspace(-3, 1, 60, dtype=dtype)
    for k in (q, q * (1 + epsilon), q * (1 - epsilon)):
        torch.testing.assert_close(phi.dual(k, q, q), phi.variance(q), rtol=40 * epsilon, atol=4 * epsilon)


@pytest.mark.parametrize(
    ("name", "value", "slope"),
    [
        ("relu", 0.0, 0.0),
        ("leaky_relu", -0.01, 0.01),
        ("step", 0.0, None),
        ("sign", -1.0, None),
        ("sin", -0.5 * (1 - math.exp(-2)), 0.5 * (1 + math.exp(-2))),
    ],
)
def test_opposite_inputs(name, value, slope):
    one = torch.ones(1, dtype=torch.float64)
    found = activation_of(name).with_slope(-one, one, one)
    assert float(found[0]) == pytest.approx(value, abs=1e-15)
    if slope is not None:
        assert float(found[1]) == pytest.approx(slope, abs=1e-15)


@every_name
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_finite_where_inputs_coincide_or_are_opposite(name, sign):
    q = torch.tensor([0.3, 1.0, 2.7], dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for x in (sign * q, q, q)]
    gradients = torch.autograd.grad(activation_of(name).dual(*inputs).sum(), inputs, create_graph=True)
    assert all(g.isfinite().all() for g in gradients)
    seconds = torch.autograd.grad(sum(g.sum() for g in gradients), inputs)
    assert all(g.isfinite().all() for g in seconds)


@every_name
def test_an_input_that_is_zero(name):
    """Beside one that is not, and beside another: all is finite."""
    phi = activation_of(name)
    zero, one = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (0.0, 1.0))
    for q in (one, zero):
        dual, slope = phi.with_slope(zero, zero, q)
        gradients = torch.autograd.grad(dual.sum(), [zero, q])
        assert all(g.isfinite().all() for g in (dual, slope, *gradients))
        if name not in (*JUMPS, "cos"):
            assert float(dual.detach()) == 0.0


def test_waves_do_not_overflow():
    big = torch.tensor([1e4], dtype=torch.float64)
    for name in ("sin", "cos"):
        assert float(activation_of(name).dual(big, big, big)) == 0.5
        assert float(activation_of(name).with_slope(big, big, big)[1]) == 0.5


@every_name
def test_float32_is_near_float64(name):
    """Up to the conditioning of an angle near 0, the root of the rounding; values here are of order one."""
    for got, right in zip(
        activation_of(name).with_slope(*tensors(dtype=torch.float32)), activation_of(name).with_slope(*tensors()),
        strict=True,
    ):  # fmt: skip
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-6)


@every_name
def test_any_one_argument_may_be_a_batch(name):
    phi, inputs = activation_of(name), [x.squeeze() for x in tensors((0.4, 0.9, 1.7))]
    for argnum in range(3):
        axes = tuple(0 if i == argnum else None for i in range(3))
        batch = [torch.stack([x, 1.1 * x, 1.2 * x]) if i == argnum else x for i, x in enumerate(inputs)]
        whole = [x.expand(3).clone().requires_grad_() for x in batch]
        expected = phi.dual(*whole)
        gradients = vmap(grad(phi.dual, (0, 1, 2)), axes)(*batch)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected.sum(), whole), rtol=1e-13, atol=0)
        with torch.no_grad():
            torch.testing.assert_close(vmap(phi.dual, axes)(*batch), expected, rtol=1e-14, atol=0)


# --- names ----------------------------------------------------------------------------------------------------------


def test_an_activation_by_name_or_of_ones_own():
    class Square(AbstractActivation):
        """``u^2``: Isserlis, ``2 k^2 + q1 q2``."""

        def __call__(self, u):
            return u * u

        def with_slope(self, k, q1, q2):
            return 2 * k * k + q1 * q2, 4 * k

        def variance(self, q):
            return 3 * q * q

        def pull(self, gradient, k, q1, q2, dual, slope):
            return gradient * slope, gradient * q2, gradient * q1

    assert activation_of(own := Square()) is own
    assert float(own.dual(torch.ones(1), torch.ones(1), torch.ones(1))) == 3.0
    assert [activation_of(name) for name in NAMES] == [activation_of(name) for name in NAMES]
    assert activation_of("leaky_relu") == LeakyReLU(0.01) != LeakyReLU(0.2)
    with pytest.raises(ProgramError, match=r"expected one of relu, leaky_relu, erf, gelu, .*cos, got 'tanh'\. Pass"):
        activation_of("tanh")
