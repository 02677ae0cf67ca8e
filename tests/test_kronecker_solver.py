"""Data on a grid: as the same data without one, to a process and by themselves."""

from __future__ import annotations

import gpytorch
import pytest
import torch
from process_cases import PRIORS, alike, normal, t
from torch import Tensor

from probmix import process
from probmix.gpytorch_priors import covariance_matrix
from probmix.grids import find_grid
from probmix.kronecker_solver import KroneckerSolver
from probmix.process import Process
from probmix.process_solvers import DenseSolver

AXES = t([-1.0, 0.0, 0.7, 2.0]), t([0.0, 0.5, 3.0]), t([1.0, 2.0])
X = torch.cartesian_prod(*AXES)[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
NEW = normal(9, 3, seed=1)
LENGTHS = t([0.7, 1.5, 2.5])
NOISE_VAR = t(0.2)


def along_axes(d: int, a: Tensor, b: Tensor) -> Tensor:
    return (-0.5 * ((a[:, None] - b) / LENGTHS[d]).square()).exp()


def kernel() -> gpytorch.kernels.Kernel:
    found = gpytorch.kernels.RBFKernel(ard_num_dims=3).double().requires_grad_(False)
    found.lengthscale = LENGTHS
    return found


def both(y: Tensor) -> tuple[KroneckerSolver, DenseSolver]:
    covariance = covariance_matrix(kernel(), X) + NOISE_VAR * torch.eye(24).double()
    dense = DenseSolver.of(X, torch.linalg.cholesky(covariance), y)
    return KroneckerSolver.of(find_grid(X), along_axes, NOISE_VAR, y), dense


# Tolerances of 1e-10: a condition number of some hundreds.


@pytest.mark.parametrize("outputs", [1, 2])
def test_as_all_rows_at_once(outputs):
    ours, dense = both(normal(24, outputs, seed=2))
    torch.testing.assert_close(ours.quadratic, dense.quadratic, rtol=1e-10, atol=0)
    torch.testing.assert_close(ours.log_det, dense.log_det, rtol=1e-10, atol=0)
    seen = dense.predict(covariance_matrix(kernel(), X, NEW))
    shift, var = ours.marginals(kernel(), NEW, torch.ones(9).double())
    torch.testing.assert_close(shift, seen.shift, rtol=0, atol=1e-10)
    torch.testing.assert_close(var, seen.variance(torch.ones(9).double()), rtol=0, atol=1e-10)
    joint = ours.predict(covariance_matrix(kernel(), ours.rows, NEW))
    prior = covariance_matrix(kernel(), NEW)
    torch.testing.assert_close(joint.shift, seen.shift, rtol=0, atol=1e-10)
    torch.testing.assert_close(joint.covariance(prior), seen.covariance(prior), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["none", "inverse gamma", "half-Cauchy"])
def test_a_process_predicts_from_it(name):
    y = normal(24, seed=2)
    before = Process(kernel(), NOISE_VAR, PRIORS[name], t(0.3))
    solver = KroneckerSolver.of(find_grid(X), along_axes, NOISE_VAR, y[:, None] - 0.3)
    on_grid, dense = Process(kernel(), NOISE_VAR, PRIORS[name], t(0.3), solver, 24), before.condition(X, y)
    for noise in (True, False):
        alike(on_grid.predictive(NEW, noise=noise), dense.predictive(NEW, noise=noise))
    points = normal(9, seed=5)
    torch.testing.assert_close(on_grid.joint(NEW).log_prob(points), dense.joint(NEW).log_prob(points))


def test_draws_are_a_leading_axis():
    """Of noise and of kernels."""
    shrink, noise_var = t([0.5, 1.0, 2.0])[:, None, None, None], t([[0.1, 0.2]]).expand(3, 2)
    y = normal(24, 2, seed=2)

    def batched(d: int, a: Tensor, b: Tensor) -> Tensor:
        return along_axes(d, a, b) ** shrink

    found = KroneckerSolver.of(find_grid(X), batched, noise_var, y)
    prior = torch.ones(9).double()
    whole = found.marginals(kernel(), NEW, prior)
    for i in range(3):
        for j in range(2):
            one = KroneckerSolver.of(
                find_grid(X), lambda d, a, b, i=i: along_axes(d, a, b) ** shrink[i, 0], noise_var[i, j], y
            )
            for part, expected in zip(whole, one.marginals(kernel(), NEW, prior), strict=True):
                torch.testing.assert_close(part[i, j], expected, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(found.log_det[i, j], one.log_det, rtol=1e-12, atol=0)


def test_where_nothing_is_left_the_variance_stays_positive():
    """Without noise, at a row of the data: what is left is rounding, of either sign."""
    solver = KroneckerSolver.of(find_grid(X), along_axes, t(0.0), normal(24, 1))
    var = solver.marginals(kernel(), X, torch.ones(24).double())[1]
    assert ((var > 0) & (var < 1e-10)).all()


def test_blocks_are_cut_by_what_a_row_needs(monkeypatch):
    """Of 24 rows of two outputs, 12 numbers for each new row: the first axis, of 4, is contracted at once."""
    y = normal(24, 2, seed=2)
    solver = KroneckerSolver.of(find_grid(X), along_axes, NOISE_VAR, y)
    assert solver.numbers_per_row == 12
    on_grid = Process(kernel(), NOISE_VAR, None, t([0.0, 0.0]), solver, 48)
    whole = on_grid.predictive(NEW)
    monkeypatch.setattr(process, "_AT_ONCE", 40)
    torch.testing.assert_close(on_grid.predictive(NEW).mean, whole.mean, rtol=1e-13, atol=1e-14)


def test_a_million_rows():
    """A smooth function under noise is found to within what the process says of itself."""
    axis = torch.linspace(0, 1, 100, dtype=torch.float64)
    new = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def truth(x: Tensor) -> Tensor:
        return (5 * x[..., 0]).sin() * (3 * x[..., 1]).cos() + x[..., 2]

    def smooth(d: int, a: Tensor, b: Tensor) -> Tensor:
        return (-0.5 * ((a[:, None] - b) / 0.5).square()).exp()

    x = torch.cartesian_prod(axis, axis, axis)
    y = truth(x) + 0.1 * normal(10**6)
    solver = KroneckerSolver.of(find_grid(x), smooth, t(0.01), y[:, None])
    shift, var = solver.marginals(kernel(), new, torch.ones(50).double())
    error, std = shift[:, 0] - truth(new), var.sqrt()
    assert std.max() < 0.005  # a thousandth of the noise's variance for some 100 directions that a million rows tell
    # Null: errors of standard deviation `std` or less (the function is smoother than the process); 50 of them beyond
    # five: 3e-5.
    assert (error.abs() < 5 * std).all()
    assert (error.abs() > 0.05 * std).any()
