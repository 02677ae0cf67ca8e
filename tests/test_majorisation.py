"""Sparse weights by convex approximation: descent, optimality, scipy's optimum, and the published numbers."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.optimize
import torch

from probmix.covariance_sum import CovarianceBlocks, CovarianceSum
from probmix.errors import FitError, MethodError
from probmix.inference import SCA, infer
from probmix.inference.majorisation import Pull, evaluated, surrogate_minimum
from probmix.inference.method import Problem
from probmix.models import GridSpectralGP
from probmix.spectral_grid import KernelBank, spectral_grid

pytestmark = pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")

RNG = np.random.default_rng(3)
X = torch.arange(40.0, dtype=torch.float64)[:, None]
Y = (2 * math.pi * 0.12 * X[:, 0]).sin() + 0.5 * torch.as_tensor(RNG.normal(size=40)) + 3
TABLE = torch.as_tensor(RNG.normal(size=(30, 2)))
SIGNAL = (2 * TABLE[:, 0]).sin() + 0.3 * torch.as_tensor(RNG.normal(size=30))
GRID = spectral_grid("axes", 2, 4, frequency_range=(0.0, 0.5), bandwidth=0.15)


def dense(grid, x) -> np.ndarray:
    return grid.values(x[:, None] - x).numpy()


def value_and_slope(weights: np.ndarray, kernels: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """``y^T C^-1 y + log |C|`` and its gradient in NumPy; the last weight is the noise's."""
    inverse = np.linalg.inv(np.einsum("a,anm->nm", weights, kernels))
    z = inverse @ y
    slope = np.einsum("anm,mn->a", kernels, inverse) - np.einsum("anm,n,m->a", kernels, z, z)
    return float(y @ z - np.linalg.slogdet(inverse)[1]), slope


# --- it descends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_var", [None, 0.2, "evar"])
@pytest.mark.parametrize(
    "method",
    [SCA(), SCA(blocks=4), SCA(blocks=41, max_steps=30), SCA(inner="multiplicative", max_steps=60), SCA(restarts=3)],
    ids=lambda method: f"{method.inner}-{method.blocks}-{method.restarts}",
)
def test_the_objective_never_rises(method, noise_var):
    """Minus the log-likelihood, after every step of every start, to rounding."""
    fit = infer(GridSpectralGP(num_points=41, noise_var=noise_var, centre=False), (X, Y), method, seed=0)
    history = fit.history["objective"]
    assert history.shape[0] == method.restarts
    assert history.shape[1] > 1
    assert (history.diff(dim=-1) >= -1e-9 * history[:, 1:].abs()).all()
    assert fit.objective == pytest.approx(float(history[:, -1].max()))


def test_blocks_that_want_the_same_are_held_back():
    """Six copies of one component, each a block: all together they would overshoot sixfold. Control: they do."""
    copies = spectral_grid("diagonal", 1, 11)[torch.full((6,), 2)]
    model = GridSpectralGP(grid=copies, noise_var=0.3)
    method = SCA(blocks=6)
    fit = infer(model, (X, Y), method, seed=0)
    assert (fit.history["objective"].diff(dim=-1) >= -1e-9).all()
    assert fit.objective == pytest.approx(infer(model, (X, Y), SCA(), seed=0).objective, abs=1e-4)
    covariance = method.start(Problem(model, fit.arguments, 0)).covariance
    near = evaluated(covariance, 0.9 * fit.sites()["weights"])
    overshot = covariance.at(method._targets(covariance, near))
    assert overshot.value > near.at.value


def test_counting_the_noise_twice_may_raise_it():
    """The control of the test above: the paper's convention is not a descent."""
    model = GridSpectralGP(num_points=41, noise_var=0.4, centre=False)
    fit = infer(model, (X, Y), SCA(reference_double_noise=True, max_steps=20), seed=0)
    assert (fit.history["objective"].diff(dim=-1) < -1e-3).any()


def test_blocks_and_solvers_end_at_one_optimum():
    """Of the objective within 1e-3 nats, where it has a single basin: half a nat more is another optimum."""
    model = GridSpectralGP(grid=GRID, noise_var=0.1)
    found = [
        infer(model, (TABLE, SIGNAL), method, seed=0).objective
        for method in (SCA(), SCA(blocks=4), SCA(inner="multiplicative", max_steps=5000, tolerance=1e-9))
    ]
    assert found == pytest.approx([found[0]] * 3, abs=1e-3)


# --- it ends at an optimum ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_var", [None, 0.1])
def test_the_optimum_is_scipys(noise_var):
    """L-BFGS-B on the bounded weights from 10 starts, by the NumPy formula: ours is its best, to 1e-4 nats."""
    y = (SIGNAL - SIGNAL.mean()).numpy()
    kernels = np.concatenate([dense(GRID, TABLE), np.eye(30)[None]])
    noise_bound = (1e-8, None) if noise_var is None else (noise_var, noise_var)
    bounds = [(0, None)] * len(GRID) + [noise_bound]
    runs = [
        scipy.optimize.minimize(
            value_and_slope, np.append(RNG.gamma(1, 0.2, len(GRID)), 0.1), (kernels, y), "L-BFGS-B", True,
            bounds=bounds,
            options={"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-8},
        )
        for _ in range(10)
    ]  # fmt: skip
    best = min(run.fun for run in runs)
    fit = infer(GridSpectralGP(grid=GRID, noise_var=noise_var), (TABLE, SIGNAL), SCA(tolerance=1e-10), seed=0)
    ours = -2 * fit.objective - 30 * math.log(2 * math.pi)
    assert ours == pytest.approx(best, abs=2e-4)
    sites = fit.sites()
    weights = np.append(sites["weights"].numpy(), float(sites.get("noise_var", torch.tensor(noise_var or 0.0))))
    again, slope = value_and_slope(weights, kernels, y)
    assert ours == pytest.approx(again, abs=1e-6)  # of an explicit inverse in NumPy
    assert (slope[:-1] > -1e-3).all()
    assert np.abs(slope * weights)[:-1].max() < 1e-3
    assert (weights == 0).any()
    assert fit.status.state == "converged"
    assert float(fit.history["violation"][0, -1]) < 1e-3


@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_convex_problem_is_solved(pulled, parts):
    """scipy's minimum of the same surrogate, to 1e-7 relatively; the components that are out stay as they are."""
    rows = np.array_split(np.arange(30), parts)
    sums = [CovarianceSum(KernelBank(GRID, TABLE[r]), SIGNAL[r], torch.tensor(0.1).to(TABLE)) for r in rows]
    covariance = CovarianceBlocks(tuple(sums))
    first = torch.full((len(GRID),), 0.05, dtype=torch.float64)
    slopes = evaluated(covariance, first).slopes
    inside = torch.arange(len(GRID)) != 1
    pull = Pull(first, 0.3 * slopes, slopes.square()) if pulled else None

    def surrogate(free: np.ndarray) -> tuple[float, np.ndarray]:
        weights = first.clone()
        weights[inside] = torch.as_tensor(free)
        at = covariance.at(weights)
        total, slope = at.quadratic + slopes @ weights, slopes - covariance.squares(at)
        if pull is not None:
            total, slope = total + pull.value(weights), slope + pull.slope(weights)
        return float(total), slope[inside].numpy()

    start = first[inside].numpy()
    theirs = scipy.optimize.minimize(
        surrogate, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start),
        options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9},
    )  # fmt: skip
    ours = surrogate_minimum(covariance, first, slopes, inside, pull)
    assert surrogate(ours[inside].numpy())[0] == pytest.approx(theirs.fun, rel=1e-7)
    assert ours[1] == first[1]
    assert (ours >= 0).all()


def test_slopes_and_curvatures_of_blocks_add_up():
    """Two blocks are one block-diagonal covariance, by the NumPy formula."""
    sums = [CovarianceSum(KernelBank(GRID, TABLE[r]), SIGNAL[r]) for r in (slice(0, 12), slice(12, 30))]
    kernels = np.concatenate([dense(GRID, TABLE), np.eye(30)[None]])
    kernels[:, :12, 12:] = kernels[:, 12:, :12] = 0
    weights = np.append(RNG.gamma(1, 0.2, len(GRID)), 0.3)
    at = (blocks := CovarianceBlocks(tuple(sums))).at(torch.as_tensor(weights))
    value, slope = value_and_slope(weights, kernels, SIGNAL.numpy())
    assert float(at.value) == pytest.approx(value, rel=1e-12)
    slopes, squares = blocks.moments(at)
    np.testing.assert_allclose(slopes - squares, slope, atol=1e-10)
    which = torch.tensor([0, 3, len(GRID)])
    square, bent = blocks.bends(which)(at)
    inverse = np.linalg.inv(np.einsum("a,anm->nm", weights, kernels))
    images = kernels[which] @ (inverse @ SIGNAL.numpy())
    np.testing.assert_allclose(square, squares[which], rtol=1e-10)
    np.testing.assert_allclose(bent, images @ inverse @ images.T, rtol=1e-9)


# --- it is a method of the house ------------------------------------------------------------------------------------


def test_two_fits_in_a_row_equal_two_fits_apart():
    model, method = GridSpectralGP(num_points=41), SCA(restarts=3)
    one, two = (infer(model, (X, Y), method, seed=5) for _ in range(2))
    assert torch.equal(one.sites()["weights"], two.sites()["weights"])
    assert torch.equal(one.history["objective"].nan_to_num(), two.history["objective"].nan_to_num())
    other = infer(model, (X, Y), method, seed=6)
    assert not torch.equal(one.history["objective"][1, :1], other.history["objective"][1, :1])


def test_a_fit_stopped_early_still_answers():
    model = GridSpectralGP(num_points=5)
    fit = infer(model, (X, Y), SCA(), seed=0)
    problem, method = Problem(model, fit.arguments, 0), SCA(max_steps=1)
    state = method.start(problem)
    early = method.finish(problem, state, fit.status)
    assert (early.sites()["weights"] == 0).all()
    assert early.objective < fit.objective
    assert infer(model, (X, Y), method, seed=0).status.state == "max_steps"


def test_a_covariance_that_is_not_positive_definite_is_said():
    model = GridSpectralGP(num_points=5, noise_var=1e-300, centre=False)
    with pytest.raises(FitError, match=r"not positive definite in any start.*larger noise_var"):
        infer(model, (torch.cat([X, X]), torch.cat([Y, Y])), SCA(inner="multiplicative"), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": 0}, "blocks: expected at least 1, got 0"),
        ({"restarts": 0}, "restarts: expected at least 1"),
        ({"tolerance": 0.0}, "tolerance: expected a positive number, got 0.0"),
        ({"inner": "mosek"}, "inner: expected 'newton' or 'multiplicative', got 'mosek'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(MethodError, match=message):
        SCA(**settings)


# --- the published numbers ------------------------------------------------------------------------------------------

#: Data set -> mean squared test error of the authors' result file, S = 1, as in their .mat files.
PUBLISHED = {
    "CO2": 0.49073, "electricitydata": 3275.40, "unemployment": 2298.36, "employmentdata": 83.349, "clay": 85.449,
    "ale80": 0.024484,
}  # fmt: skip


def load(name: str) -> list[torch.Tensor]:
    file = Path(os.environ.get("PROBMIX_DATA", "")) / "slimkl" / f"{name}.mat"
    if not file.is_file():
        pytest.skip("no folder with slimkl/ in it: set PROBMIX_DATA")
    data = scipy.io.loadmat(file, mat_dtype=True)
    x, y, x_new, y_new = (torch.as_tensor(data[key]) for key in ("xtrain", "ytrain", "xtest", "ytest"))
    if name == "CO2":  # their test set begins with the last training row
        x, y, x_new, y_new = x[:-1], y[:-1], torch.cat([x[-1:], x_new]), torch.cat([y[-1:], y_new])
    return [x, y[:, 0], x_new, y_new[:, 0]]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_protocol_gives_the_papers_numbers(name):
    """Not centred, noise by evar and counted twice, stop at 1e-3: within 1% (3% is asked; we are at 0.1%)."""
    x, y, x_new, y_new = load(name)
    model = GridSpectralGP(noise_var="evar", noise_tolerance=0.1, centre=False)
    fit = infer(model, (x, y), SCA(reference_double_noise=True, tolerance=1e-3), seed=0)
    error = float((model.predictive(x_new, fit.sites(), x, y).mean - y_new).square().mean())
    assert error == pytest.approx(PUBLISHED[name], rel=0.01)
