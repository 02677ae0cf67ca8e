"""Lengths and log determinants of covariances, dense and structured: laws of all of them, against LU and autograd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from probmix import dense_covariance, kronecker_covariance, toeplitz_covariance
from probmix.log_density import LogDensity

SHAPE = (3, 1, 4)  # of a grid
N = 12
Lengths = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


R = normal(N, 2, seed=1)
Z = normal(5, 3, seed=2)


def line(n: int, z: Tensor) -> Tensor:
    """Covariances of even steps, by lag, which every entry of z changes."""
    lags = torch.arange(n, dtype=z.dtype)
    return (0.4 * z[..., :1] - lags * (0.3 * z[..., 1:2]).exp()).exp() + 0.3 * (0.9 * lags).cos()


def toeplitz(column: Tensor) -> Tensor:
    lags = torch.arange(column.shape[-1])
    return column[..., (lags[:, None] - lags).abs()]


def noise_var(z: Tensor) -> Tensor:
    return 0.1 * z[..., 2].exp()


def noisy_column(z: Tensor) -> Tensor:
    return line(N, z) + noise_var(z)[..., None] * (torch.arange(N) == 0)


def factors(z: Tensor) -> list[Tensor]:
    return [toeplitz(line(n, z)) for n in SHAPE]


def of_factors(z: Tensor) -> Tensor:
    """Indices for each axis, not torch.kron: C[(i, j, k), (l, m, n)] = K1[i, l] K2[j, m] K3[k, n]."""
    whole = torch.einsum("...il,...jm,...kn->...ijklmn", *factors(z))
    return whole.reshape(*z.shape[:-1], N, N) + noise_var(z)[..., None, None] * torch.eye(N, dtype=z.dtype)


#: Name -> what is tested, at hyperparameters z ``(*b, 3)``; the same covariance, entry by entry.
CASES: dict[str, tuple[Lengths, Callable[[Tensor], Tensor]]] = {
    "dense": (
        lambda z, r: dense_covariance.quadratic_and_log_det(toeplitz(noisy_column(z)), r),
        lambda z: toeplitz(noisy_column(z)),
    ),
    "toeplitz": (
        lambda z, r: toeplitz_covariance.quadratic_and_log_det(noisy_column(z), r),
        lambda z: toeplitz(noisy_column(z)),
    ),
    "kronecker": (
        lambda z, r: kronecker_covariance.quadratic_and_log_det(factors(z), noise_var(z), r),
        of_factors,
    ),
}
every_structure = pytest.mark.parametrize("name", CASES)
twice_differentiable = pytest.mark.parametrize("name", ["dense", "toeplitz"])


def density(name: str) -> Callable[[Tensor], Tensor]:
    """What a program makes of both, of z and of residuals that depend on it."""

    def value(z: Tensor) -> Tensor:
        quadratic, log_det = CASES[name][0](z, R.to(z) + z[..., :1, None])
        return -0.5 * quadratic - 0.8 * log_det

    return value


def reference(name: str) -> Callable[[Tensor], Tensor]:
    """The same by LU factors and autograd."""

    def value(z: Tensor) -> Tensor:
        covariance, residuals = CASES[name][1](z), R + z[..., :1, None]
        quadratic = (residuals * torch.linalg.solve(covariance, residuals)).sum((-2, -1))
        return -0.5 * quadratic - 0.8 * torch.linalg.slogdet(covariance).logabsdet

    return value


# Tolerances: condition numbers are below 1e3, so 1e-10 is three digits above rounding; one or two more for derivatives.


@every_structure
def test_values_are_numpys(name):
    quadratic, log_det = CASES[name][0](Z, R)
    for i, covariance in enumerate(CASES[name][1](Z).numpy()):
        expected = np.trace(R.numpy().T @ np.linalg.solve(covariance, R.numpy()))
        assert float(quadratic[i]) == pytest.approx(expected, rel=1e-10)
        assert float(log_det[i]) == pytest.approx(np.linalg.slogdet(covariance)[1], rel=1e-10)


@every_structure
def test_leading_axes_broadcast(name):
    """Of hyperparameters and of residuals: as one by one."""
    lengths, z, residuals = CASES[name][0], Z[:, None], normal(3, N, 1, seed=3)
    found = lengths(z, residuals)
    for k in range(2):
        expected = torch.stack([torch.stack([lengths(Z[i], residuals[j])[k] for j in range(3)]) for i in range(5)])
        torch.testing.assert_close(found[k], expected, rtol=1e-12, atol=1e-12)


@every_structure
def test_gradients(name):
    for z in Z:
        torch.testing.assert_close(grad(density(name))(z), grad(reference(name))(z), rtol=1e-10, atol=1e-10)
    inputs = Z[:2].clone().requires_grad_(), R.clone().requires_grad_()
    assert torch.autograd.gradcheck(CASES[name][0], inputs)


@every_structure
def test_each_gradient_alone(name):
    """One of the two results may be left out."""
    lengths, covariance = CASES[name]
    one = grad(lambda z: lengths(z, R)[0])(Z[0])
    expected = grad(lambda z: (R * torch.linalg.solve(covariance(z), R)).sum())(Z[0])
    torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-10)
    other = grad(lambda z: lengths(z, R)[1])(Z[0])
    expected = grad(lambda z: torch.linalg.slogdet(covariance(z)).logabsdet)(Z[0])
    torch.testing.assert_close(other, expected, rtol=1e-10, atol=1e-10)


@twice_differentiable
def test_second_and_third_derivatives(name):
    def second(value: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return jacrev(jacrev(value))

    ours, theirs = second(density(name)), second(reference(name))
    torch.testing.assert_close(ours(Z[0]), theirs(Z[0]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(vmap(ours)(Z), vmap(theirs)(Z), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(jacrev(ours)(Z[0]), jacrev(theirs)(Z[0]), rtol=1e-8, atol=1e-8)
    assert torch.autograd.gradgradcheck(density(name), (Z[0].clone().requires_grad_(),))


def test_a_second_derivative_on_a_grid_is_refused():
    with pytest.raises(NotImplementedError):
        jacrev(jacrev(density("kronecker")))(Z[0])


@every_structure
def test_batched_and_traced(name):
    expected = torch.stack([grad(reference(name))(z) for z in Z])
    batched = vmap(grad(density(name)))
    torch.testing.assert_close(batched(Z), expected, rtol=1e-9, atol=1e-9)
    traced = make_fx(batched)(Z + 0.1)
    torch.testing.assert_close(traced(Z), expected, rtol=1e-9, atol=1e-9)


@every_structure
def test_residuals_alone_have_a_batch(name):
    residuals = normal(4, N, 1, seed=3)
    found = vmap(grad(lambda r: CASES[name][0](Z[0], r)[0]))(residuals)
    expected = 2 * torch.linalg.solve(CASES[name][1](Z[0]), residuals)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@every_structure
def test_single_precision(name):
    """1e-4: a condition of some hundreds times 1e-7."""
    for single, double in zip(CASES[name][0](Z.float(), R.float()), CASES[name][0](Z, R), strict=True):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
    gradients = grad(density(name))(Z[0].float())
    torch.testing.assert_close(gradients.double(), grad(density(name))(Z[0]), rtol=1e-3, atol=1e-3)


# --- what is not positive definite ------------------------------------------------------------------------------------


def shifted(name: str, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths under the covariance of Z[0] plus a multiple of the identity."""
    z, one = Z[0], torch.zeros(N, dtype=torch.float64)
    one[0] = 1
    if name == "kronecker":
        return kronecker_covariance.quadratic_and_log_det(factors(z), noise_var(z) + shift, R)
    column = noisy_column(z) + shift[..., None] * one
    if name == "toeplitz":
        return toeplitz_covariance.quadratic_and_log_det(column, R)
    return dense_covariance.quadratic_and_log_det(toeplitz(column), R)


@every_structure
def test_what_is_not_positive_definite_is_refused(name):
    lowest = torch.linalg.eigvalsh(CASES[name][1](Z[0])).min()
    shifted(name, -0.99 * lowest)
    for shift in (-1.01 * lowest, torch.tensor([0.0, -1.01]) * lowest):
        with pytest.raises(torch.linalg.LinAlgError, match="not positive-definite"):
            shifted(name, shift)


@every_structure
@pytest.mark.parametrize("worst", [-100.0, float("nan"), float("inf")])
def test_one_bad_row_of_a_batch_is_nan_alone(name, worst):
    def program(y):
        shift = pyro.sample("shift", dist.Normal(torch.zeros(()).double(), 1.0))
        quadratic, log_det = shifted(name, shift)
        pyro.factor("likelihood", -0.5 * (quadratic + 2 * log_det))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    log_density = LogDensity.trace(program, torch.zeros((), dtype=torch.float64))
    assert log_density.batching == "vmap"
    good = torch.tensor([[0.1], [0.5], [1.0]], dtype=torch.float64)
    bad = torch.tensor([[0.1], [worst], [1.0]], dtype=torch.float64)
    expected, found = log_density.value_and_grad(good), log_density.value_and_grad(bad)
    for one, other in zip(expected, found, strict=True):
        assert not other[1].isfinite().any()
        torch.testing.assert_close(one[[0, 2]], other[[0, 2]], rtol=1e-12, atol=0)
    width = 1e-6  # central differences: 1e-12 of truncation, 1e-16 / 1e-6 of rounding
    difference = log_density.value(good + width) - log_density.value(good - width)
    torch.testing.assert_close(expected[1][:, 0], difference / (2 * width), rtol=1e-7, atol=1e-7)
