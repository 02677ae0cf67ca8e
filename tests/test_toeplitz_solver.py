"""Long even series: as the same data row by row, to a process and by themselves, and a dense factor on a device."""

from __future__ import annotations

import gpytorch
import pytest
import torch
from process_cases import PRIORS, alike, normal, t
from torch import Tensor

from probmix import process, toeplitz_covariance
from probmix.errors import ProgramError
from probmix.gpytorch_priors import covariance_matrix
from probmix.grids import Grid, find_grid
from probmix.models import spectral_mixture_gp
from probmix.models.spectral_mixture_gp import SpectralMixtureGP
from probmix.nngp import NNGPKernel
from probmix.process import Process
from probmix.process_solvers import DenseSolver, InducingSolver
from probmix.spectral import SpectralMixtureKernel, SpectralProductKernel
from probmix.toeplitz_covariance import factorise, quadratic_and_log_det
from probmix.toeplitz_solver import ToeplitzSolver, noisy_column

N = 40
X = (3.0 + 0.25 * torch.arange(N, dtype=torch.float64))[torch.randperm(N, generator=torch.Generator().manual_seed(0))]
X = X[:, None]
NEW = torch.cat([8 + 3 * normal(7, 1, seed=1), X[:2]])  # between, ahead and behind; and rows of the data
NOISE_VAR = t(0.2)


def kernel(*batch: int) -> SpectralMixtureKernel:
    found = SpectralMixtureKernel(2, batch_shape=torch.Size(batch)).double().requires_grad_(False)
    found.weights = t([1.0, 0.5]).expand(*batch, 2)
    found.frequencies, found.bandwidths = t([[0.05], [0.6]]).expand(*batch, 2, 1), t([[0.1], [0.02]])
    return found


def before(name: str = "none", loc: float | list[float] = 0.3, noise_var: Tensor = NOISE_VAR) -> Process:
    return Process(kernel(), noise_var, PRIORS[name], t(loc))


def both(y: Tensor) -> tuple[ToeplitzSolver, DenseSolver]:
    covariance = covariance_matrix(kernel(), X) + NOISE_VAR * torch.eye(N).double()
    grid = find_grid(X)
    ours = ToeplitzSolver.of(grid, noisy_column(kernel(), grid.axes[0], NOISE_VAR), y)
    return ours, DenseSolver.of(X, torch.linalg.cholesky(covariance), y)


# Tolerances of 1e-11: a condition number of a hundred, and sums of 40.


@pytest.mark.parametrize("outputs", [1, 2])
def test_as_all_rows_at_once(outputs):
    ours, dense = both(normal(N, outputs, seed=2))
    torch.testing.assert_close(ours.quadratic, dense.quadratic, rtol=1e-11, atol=0)
    torch.testing.assert_close(ours.log_det, dense.log_det, rtol=1e-11, atol=0)
    seen, prior = dense.predict(covariance_matrix(kernel(), X, NEW)), torch.full((9,), 1.5).double()
    shift, var = ours.marginals(kernel(), NEW, prior)
    torch.testing.assert_close(shift, seen.shift, rtol=0, atol=1e-11)
    torch.testing.assert_close(var, seen.variance(prior), rtol=0, atol=1e-11)
    joint = ours.predict(covariance_matrix(kernel(), ours.rows, NEW))
    torch.testing.assert_close(joint.shift, seen.shift, rtol=0, atol=1e-11)
    torch.testing.assert_close(joint.variance(prior), seen.variance(prior), rtol=0, atol=1e-11)
    prior = covariance_matrix(kernel(), NEW)
    torch.testing.assert_close(joint.covariance(prior), seen.covariance(prior), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["none", "inverse gamma", "half-Cauchy"])
@pytest.mark.parametrize("loc", [0.3, [0.3, -1.0]])
def test_a_process_predicts_from_it(name, loc):
    y = normal(N, *t(loc).shape, seed=2)
    on_grid, dense = before(name, loc).condition(X, y, grid=find_grid(X)), before(name, loc).condition(X, y)
    assert isinstance(on_grid.solver, ToeplitzSolver)
    for noise in (True, False):
        alike(on_grid.predictive(NEW, noise=noise), dense.predictive(NEW, noise=noise))
    points = normal(9, *t(loc).shape, seed=5)
    torch.testing.assert_close(on_grid.joint(NEW).log_prob(points), dense.joint(NEW).log_prob(points))


@pytest.mark.parametrize("own", [gpytorch.kernels.MaternKernel(1.5), SpectralProductKernel(2, 1)], ids=["theirs", "1"])
def test_any_stationary_kernel_does(own):
    own, y = own.double().requires_grad_(False), normal(N, seed=2)
    one = Process(own, NOISE_VAR, None, t(0.0))
    on_grid = one.condition(X, y, grid=find_grid(X))
    assert isinstance(on_grid.solver, ToeplitzSolver)
    alike(on_grid.predictive(NEW), one.condition(X, y).predictive(NEW))


def test_draws_are_a_leading_axis():
    """Of noise and of kernels."""
    noise_var, own, y = t([[0.1, 0.2]]).expand(3, 2), kernel(3, 1), normal(N, 2, seed=2)
    own.weights = t([0.5, 1.0, 2.0])[:, None, None] * own.weights
    grid, prior = find_grid(X), torch.full((9,), 4.0).double()
    found = ToeplitzSolver.of(grid, noisy_column(own, grid.axes[0], noise_var), y)
    whole = found.marginals(own, NEW, prior)
    for i in range(3):
        for j in range(2):
            single = kernel()
            single.weights = own.weights[i, 0]
            one = ToeplitzSolver.of(grid, noisy_column(single, grid.axes[0], noise_var[i, j]), y)
            for part, expected in zip(whole, one.marginals(single, NEW, prior), strict=True):
                torch.testing.assert_close(part[i, j], expected, rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(found.log_det[i, j], one.log_det, rtol=1e-12, atol=0)
            torch.testing.assert_close(found.quadratic[i, j], one.quadratic, rtol=1e-11, atol=0)


def test_noise_alone_may_have_draws():
    grid = find_grid(X)
    found = noisy_column(kernel(), grid.axes[0], t([0.1, 0.2]))
    assert found.shape == (2, N)
    torch.testing.assert_close(found[1] - found[0], 0.1 * (torch.arange(N) == 0).double(), rtol=0, atol=1e-15)


def test_single_precision_keeps_its_kind_and_most_of_its_digits():
    """1e-4: of float32 data, 1e-7, times a condition number of a hundred, and ten for sums."""
    ours, _ = both(normal(N, 1, seed=2))
    grid, y = find_grid(X.float()), normal(N, 1, seed=2).float()
    found = ToeplitzSolver.of(grid, noisy_column(kernel().float(), grid.axes[0], NOISE_VAR.float()), y)
    exact = ours.marginals(kernel(), NEW, torch.full((9,), 1.5).double())
    shift, var = found.marginals(kernel().float(), NEW.float(), torch.full((9,), 1.5))
    pairs = zip((shift, var, found.quadratic, found.log_det), (*exact, ours.quadratic, ours.log_det), strict=True)
    for part, expected in pairs:
        assert part.dtype == torch.float32
        torch.testing.assert_close(part.double(), expected, rtol=1e-4, atol=1e-4)


def test_variances_of_an_ill_conditioned_covariance():
    """A smooth function, noise of 1e-6, 1,000 rows: a condition number of 2e8, at which 12 digits of a root are right.

    A variance is left of 2e-8; the dense factor gives it to 3e-12. Roots of the inverse (`predict`) err by 2e-9.
    """
    x = torch.arange(1000, dtype=torch.float64)[:, None]
    smooth, noise_var = gpytorch.kernels.RBFKernel().double().requires_grad_(False), t(1e-6)
    smooth.lengthscale = t(100.0)
    grid, y, new = find_grid(x), normal(1000, 1), t([[0.0], [333.3], [999.5], [1100.0]])
    solver = ToeplitzSolver.of(grid, noisy_column(smooth, grid.axes[0], noise_var), y)
    covariance = covariance_matrix(smooth, x) + noise_var * torch.eye(1000).double()
    lost = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), covariance_matrix(smooth, x, new), upper=False
    )
    expected = 1 - lost.square().sum(0)
    assert expected.min() < 3e-8
    var = solver.marginals(smooth, new, torch.ones(4).double())[1]
    torch.testing.assert_close(var, expected, rtol=0, atol=2e-10)


def test_where_nothing_is_left_the_variance_stays_positive():
    """Without noise, at a row of the data: what is left is rounding, of either sign."""
    rough = gpytorch.kernels.MaternKernel(1.5).double().requires_grad_(False)
    grid = find_grid(X)
    solver = ToeplitzSolver.of(grid, noisy_column(rough, grid.axes[0], t(0.0)), normal(N, 1))
    var = solver.marginals(rough, X, torch.ones(N).double())[1]
    assert ((var > 0) & (var < 1e-12)).all()


def test_blocks_are_cut_by_what_a_row_needs(monkeypatch):
    """Transforms of 80 numbers for each new row; three of them are 240."""
    whole = before().condition(X, normal(N), grid=find_grid(X))
    assert whole.solver.numbers_per_row == 80
    expected, sizes = whole.predictive(NEW), []
    marginals = ToeplitzSolver.marginals

    def counted(solver: ToeplitzSolver, own: gpytorch.kernels.Kernel, x: Tensor, prior: Tensor):
        sizes.append(len(x))
        return marginals(solver, own, x, prior)

    monkeypatch.setattr(process, "_AT_ONCE", 250)
    monkeypatch.setattr(ToeplitzSolver, "marginals", counted)
    torch.testing.assert_close(whole.predictive(NEW).mean, expected.mean, rtol=1e-12, atol=1e-13)
    assert sizes == [3, 3, 3]


def test_a_hundred_thousand_rows():
    """Waves under noise are found, between rows and ahead, to within what the process says of itself."""
    n = 100_000
    x = torch.arange(n, dtype=torch.float64)[:, None] / 100
    new = torch.cat([1000 * torch.rand(20, 1, generator=torch.Generator().manual_seed(0)).double(), 1000 + x[:100:5]])

    def truth(x: Tensor) -> Tensor:
        return (2 * torch.pi * 0.6 * x[:, 0]).sin() + (2 * torch.pi * 0.05 * x[:, 0]).cos()

    seen = before(loc=0.0, noise_var=t(0.09)).condition(x, truth(x) + 0.3 * normal(n), grid=find_grid(x))
    found = seen.predictive(new, noise=False)
    error = (found.mean - truth(new)) / found.stddev
    assert found.stddev[:20].max() < 0.05  # of noise of 0.3: some hundred rows tell of each place
    # Null: errors of standard deviation 1 or less (waves are smoother than the process); 40 of them beyond five: 2e-5.
    assert error.abs().max() < 5
    assert error.abs().max() > 0.05


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_such_a_process_cannot_do():
    y = normal(N)
    seen = before().condition(X, y, grid=find_grid(X))
    with pytest.raises(ProgramError, match=r"got one that saw them on a grid. Condition once, on all data together"):
        seen.condition(X + 100, y)
    with pytest.raises(ProgramError, match=r"expected a process without data, got one with. Condition once"):
        seen.condition(X + 100, y, grid=find_grid(X + 100))
    with pytest.raises(
        ProgramError, match=r"neither on a grid nor through .*Call process.condition.x, y..leave_one_out"
    ):
        seen.leave_one_out(y)


def test_grids_that_do_not_serve():
    nngp = Process(NNGPKernel().double().requires_grad_(False), NOISE_VAR, None, t(0.0))
    with pytest.raises(ProgramError, match=r"got equal steps along the first of 1 axes and NNGPKernel. Use Spectral"):
        nngp.condition(X, normal(N), grid=find_grid(X))
    uneven = X**2
    with pytest.raises(ProgramError, match="got unequal steps along the first of 1 axes and SpectralMixtureKernel"):
        before().condition(uneven, normal(N), grid=find_grid(uneven))
    plane = torch.cartesian_prod(t([0.0, 1.0]), t([0.0, 1.0]))
    smooth = Process(gpytorch.kernels.RBFKernel().double().requires_grad_(False), NOISE_VAR, None, t(0.0))
    with pytest.raises(ProgramError, match="got equal steps along the first of 2 axes and RBFKernel"):
        smooth.condition(plane, normal(4), grid=find_grid(plane))


def test_a_covariance_that_is_not_positive_definite_names_its_hyperparameters():
    stiff = gpytorch.kernels.RBFKernel().double().requires_grad_(False)
    stiff.lengthscale = t(50.0)
    with pytest.raises(ProgramError, match=r"RBFKernel with noise_var 0, lengthscale 50. Add observation noise"):
        Process(stiff, t(0.0), None, t(0.0)).condition(X, normal(N), grid=find_grid(X))


# --- the model that uses it -------------------------------------------------------------------------------------------


MODEL = SpectralMixtureGP(2)
SITES = {
    "kernel.log_weights": t([[1.0, 0.5], [0.4, 0.8]]).log(),
    "kernel.frequencies": t([[[0.05], [0.6]]]).expand(2, 2, 1),
    "kernel.log_bandwidths": t([[0.1], [0.02]]).log().expand(2, 2, 1),
    "noise_var": t([0.2, 0.1]),
}


def solver_of(model: SpectralMixtureGP, x: Tensor) -> type:
    return type(model.condition(x, normal(len(x)), SITES).solver)


def test_a_long_series_is_seen_by_its_lags(monkeypatch):
    assert solver_of(MODEL, X) is DenseSolver
    monkeypatch.setattr(spectral_mixture_gp, "_LONG", N)
    assert solver_of(MODEL, X) is ToeplitzSolver
    assert solver_of(MODEL, X[X[:, 0] > X.min()]) is DenseSolver
    assert solver_of(MODEL, X**2) is DenseSolver  # uneven
    assert solver_of(SpectralMixtureGP(2, structure="dense"), X) is DenseSolver
    assert solver_of(SpectralMixtureGP(2, inducing=X[:5]), X) is InducingSolver


@pytest.mark.parametrize("sites", [SITES, {name: value[0] for name, value in SITES.items()}], ids=["draws", "point"])
def test_predictions_and_parts_are_those_of_the_dense_factor(sites, monkeypatch):
    y, bands = normal(N, seed=2), {"slow": (0.0, 0.3), "fast": (0.3, 2.0)}
    predictive, parts = MODEL.predictive(NEW, sites, X, y), MODEL.decompose(NEW, sites, X, y, bands)
    monkeypatch.setattr(spectral_mixture_gp, "_LONG", N)
    monkeypatch.setattr(spectral_mixture_gp, "_AT_ONCE", 500)
    alike(MODEL.predictive(NEW, sites, X, y), predictive)
    for name, part in MODEL.decompose(NEW, sites, X, y, bands).items():
        alike(part, parts[name])
    total = sum(part.mean for part in parts.values())
    torch.testing.assert_close(total + y.mean(), predictive.mean, rtol=0, atol=1e-11)


def test_whole_numbers_are_rows_too():
    x = torch.arange(N)[:, None]
    alike(MODEL.predictive(NEW, SITES, x, normal(N)), MODEL.predictive(NEW, SITES, x.double(), normal(N)))


# --- a dense factor, for what is on an accelerator --------------------------------------------------------------------


def test_a_dense_factor_in_the_place_of_the_recursion(monkeypatch):
    """The branch of an accelerator, on the host: value, solution, first column, derivatives; 1e-11 as above."""
    column, y = noisy_column(kernel(), find_grid(X).axes[0], t([0.1, 0.2])).requires_grad_(), normal(2, N, 1, seed=2)

    def all_of_it() -> list[Tensor]:
        found = factorise(column, y)
        (gradient,) = torch.autograd.grad((found.quadratic + found.log_det).sum(), column)
        return [*(part.detach() for part in found), gradient]

    expected = all_of_it()
    monkeypatch.setattr(toeplitz_covariance, "_is_dense", lambda column: True)
    monkeypatch.setattr(toeplitz_covariance, "_by_recursion", None)
    for part, other in zip(all_of_it(), expected, strict=True):
        torch.testing.assert_close(part, other, rtol=1e-11, atol=1e-11)


def test_a_dense_factor_flags_rows_that_fail(monkeypatch):
    """Correlations of 0.9 with the next and 0.2 with the one after cannot be: minor 3; equal rows: minor 2 is 0."""
    columns = torch.stack([t([1.0, 0.9, 0.2, 0.0]), t([1.0, 0.5, 0.2, 0.0]), t([1.0, 1.0, 1.0, 1.0])])
    for found, other in zip(
        toeplitz_covariance._by_factor(columns), toeplitz_covariance._by_recursion(columns), strict=True
    ):
        assert found.dtype == other.dtype
        torch.testing.assert_close(found, other, rtol=1e-13, atol=1e-13, equal_nan=True)
    assert toeplitz_covariance._by_factor(columns)[2].tolist() == [3, 0, 2]
    monkeypatch.setattr(toeplitz_covariance, "_is_dense", lambda column: True)
    with pytest.raises(torch.linalg.LinAlgError, match=r"Batch element 0.*leading minor of order 3 is not positive"):
        quadratic_and_log_det(columns, torch.ones(4, 1).double())


def test_work_is_counted_for_where_it_is_done(monkeypatch):
    column = torch.empty(5, 8193, device="meta")
    assert toeplitz_covariance.num_elements(column) == 30 * 8193

    class OnDevice:
        is_cuda = True

        def __init__(self, n: int) -> None:
            self.shape = torch.Size([n])

    assert toeplitz_covariance.num_elements(OnDevice(8192)) == 8192**2
    assert toeplitz_covariance.num_elements(OnDevice(8193)) == 30 * 8193


def test_a_grid_of_one_row():
    grid = Grid((t([2.0]),), torch.tensor([0]))
    solver = ToeplitzSolver.of(grid, t([1.5]), t([[3.0]]))
    seen = solver.predict(t([[0.6]]))
    torch.testing.assert_close(seen.shift, t([[1.2]]))
    torch.testing.assert_close(seen.variance(t([1.0])), t([1 - 0.36 / 1.5]))
