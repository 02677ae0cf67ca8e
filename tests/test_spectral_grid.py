"""Grids of spectral components, their kernel and the bank of their matrices, beside closed forms and GPyTorch."""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pytest
import torch

from probmix import spectral_grid as module
from probmix.errors import DataError, ProgramError
from probmix.gpytorch_priors import covariance_matrix
from probmix.spectral_grid import GridSpectralMixtureKernel, KernelBank, SpectralGrid, spectral_grid

RNG = np.random.default_rng(0)
TABLE = torch.as_tensor(RNG.normal(size=(7, 3)))
LINE = torch.as_tensor(np.array([3.0, 0.5, 1.0, 5.5, 2.0]))[:, None]  # half steps, unsorted, with holes
UNEVEN = torch.as_tensor(np.sort(RNG.uniform(0, 9, 6)))[:, None]


def by_hand(grid: SpectralGrid, x1: torch.Tensor, x2: torch.Tensor) -> np.ndarray:
    """The formula, one number at a time, ``(a, n, m)``."""
    value = np.empty((len(grid), len(x1), len(x2)))
    for i, (mu, v) in enumerate(zip(grid.frequencies.numpy(), grid.bandwidths.numpy(), strict=True)):
        for j, a in enumerate(x1.numpy()):
            for k, b in enumerate(x2.numpy()):
                factors = np.exp(-2 * np.pi**2 * (a - b) ** 2 * v**2) * np.cos(2 * np.pi * mu * (a - b))
                value[i, j, k] = np.prod(factors)
    return value


@pytest.mark.parametrize("kind", ["diagonal", "random", "full", "axes", "pairs"])
def test_every_grid_is_the_formula(kind):
    grid = spectral_grid(kind, 3, 3, frequency_range=(0.0, 0.7), bandwidth=0.1)
    ours = grid.values(TABLE[:, None] - TABLE[:4])
    np.testing.assert_allclose(ours.numpy(), by_hand(grid, TABLE, TABLE[:4]), rtol=0, atol=1e-13)


def test_grids_hold_what_they_say():
    diagonal = spectral_grid("diagonal", 2, 3, frequency_range=(0.0, 0.5))
    assert diagonal.frequencies[:, 0].tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert torch.equal(diagonal.frequencies[:, 0], diagonal.frequencies[:, 1])
    pairs = spectral_grid("pairs", 3, 2, frequency_range=(0.1, 0.2), bandwidth=0.5)
    assert len({tuple(row) for row in pairs.frequencies.tolist()}) == len(pairs) == 3 * 4
    assert ((pairs.bandwidths > 0).sum(1) == 2).all()
    assert torch.equal(pairs.bandwidths > 0, pairs.frequencies > 0)
    full = spectral_grid("full", 2, 3)
    assert {tuple(row) for row in full.frequencies.tolist()} == {(a, b) for a in (0, 0.25, 0.5) for b in (0, 0.25, 0.5)}
    one, again, other = (spectral_grid("random", 2, 5, seed=seed).frequencies for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_frequency_zero_is_the_squared_exponential():
    grid = SpectralGrid(torch.zeros(1, 3, dtype=torch.float64), torch.full((1, 3), 1 / (2 * math.pi * 0.8)).double())
    rbf = gpytorch.kernels.RBFKernel().double()
    rbf.lengthscale = 0.8
    ours = GridSpectralMixtureKernel(grid, torch.tensor([1.0], dtype=torch.float64))
    torch.testing.assert_close(ours(TABLE).to_dense(), rbf(TABLE).to_dense(), rtol=1e-6, atol=1e-9)  # 0.8 in float32


def test_units_of_the_columns():
    units = torch.tensor([2.0, 3.0, 0.5], dtype=torch.float64)
    grid = spectral_grid("pairs", 3, 3, bandwidth=0.1)
    torch.testing.assert_close(grid.per(units).values(TABLE * units), grid.values(TABLE), rtol=1e-12, atol=1e-12)


# --- the bank -------------------------------------------------------------------------------------------------------

CASES = {
    "table": (TABLE, spectral_grid("axes", 3, 4, bandwidth=0.1) + spectral_grid("diagonal", 3, 3)),
    "line": (LINE, spectral_grid("diagonal", 1, 9, bandwidth=0.02)),
    "uneven": (UNEVEN, spectral_grid("diagonal", 1, 9, bandwidth=0.02)),
    "twins": (torch.cat([LINE, LINE[:2]]), spectral_grid("diagonal", 1, 4)),
}


@pytest.fixture(params=[*CASES, "table, not kept"])
def case(request, monkeypatch):
    name, _, rest = request.param.partition(",")
    if rest:
        monkeypatch.setattr(module, "_KEPT", 0)
        monkeypatch.setattr(module, "_AT_ONCE", 60)  # two components at a time
    x, grid = CASES[name]
    return KernelBank(grid, x), torch.as_tensor(by_hand(grid, x, x))


def test_bank_agrees_with_dense_matrices(case):
    """To rounding: sums of at most 49 products of numbers of order 1."""
    bank, dense = case
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(len(bank), generator=generator, dtype=torch.float64)
    weights[1] = 0
    matrices = torch.randn(2, *dense.shape[1:], generator=generator, dtype=torch.float64)
    matrices = matrices + matrices.mT
    z, which = matrices[0, 0], torch.tensor([0, len(bank) - 2, len(bank) - 1])
    expected = torch.einsum("a,anm->nm", weights, dense)
    torch.testing.assert_close(bank.combined(weights), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(bank.inner(matrices), torch.einsum("anm,kmn->ka", dense, matrices), rtol=0, atol=1e-11)
    torch.testing.assert_close(bank.multiplier(which)(z), (dense[which] @ z).mT, rtol=0, atol=1e-11)
    assert bank.multiplier(which[:0])(z).shape == (len(z), 0)


def test_even_rows_need_their_lags_alone():
    x = torch.arange(50.0, dtype=torch.float64)[:, None]
    grid = spectral_grid("diagonal", 1, 3)
    assert KernelBank(grid, x).num_differences == 50
    assert KernelBank(grid, 7 + 0.1 * x).num_differences == 50
    assert KernelBank(grid, x + 0.01 * x.square()).num_differences == 50 * 51 // 2
    assert KernelBank(grid, x[[0, 1, 49]]).num_differences == 6  # 50 lags would be more than the pairs are
    assert KernelBank(spectral_grid("diagonal", 2, 3), x.expand(-1, 2)).num_differences == 50 * 51 // 2


# --- the kernel -----------------------------------------------------------------------------------------------------


def test_kernel_with_a_batch_of_weights_and_of_rows():
    grid = spectral_grid("axes", 3, 2, bandwidth=0.1)
    weights = torch.as_tensor(RNG.gamma(1.0, size=(4, len(grid))))
    kernel = GridSpectralMixtureKernel(grid, weights, batch_shape=torch.Size([4]))
    expected = np.einsum("ba,anm->bnm", weights.numpy(), by_hand(grid, TABLE, TABLE[:5]))
    np.testing.assert_allclose(covariance_matrix(kernel, TABLE, TABLE[:5]).detach(), expected, atol=1e-12)
    np.testing.assert_allclose(kernel(TABLE, TABLE[:5]).to_dense().detach(), expected, atol=1e-12)
    diagonal = covariance_matrix(kernel, TABLE, diagonal=True).detach()
    np.testing.assert_allclose(diagonal, np.repeat(weights.sum(1, keepdim=True), 7, 1), atol=1e-12)
    rows = torch.stack([TABLE, TABLE + 1, TABLE * 2, -TABLE])
    many = covariance_matrix(kernel, rows).detach()
    np.testing.assert_allclose(many[2], np.einsum("a,anm->nm", weights[2], by_hand(grid, rows[2], rows[2])), atol=1e-12)


def test_weights_may_be_zero_and_have_a_prior():
    prior = gpytorch.priors.GammaPrior(2.0, 1.0)
    kernel = GridSpectralMixtureKernel(
        spectral_grid("diagonal", 1, 3), torch.tensor([0.0, 1.0, 2.0]), weights_prior=prior
    )
    assert kernel.weights[0] == 0
    ((name, _, _, closure, _),) = kernel.named_priors()
    assert name == "weights_prior"
    assert torch.equal(closure(kernel), kernel.weights)
    kernel.weights = torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(kernel.weights.detach(), torch.tensor([1.0, 0.0, 0.0]))


def test_it_is_smooth_where_inputs_coincide():
    """First and second derivatives by autograd equal finite differences, also at equal rows."""
    grid = spectral_grid("pairs", 3, 2, frequency_range=(0.1, 0.4), bandwidth=0.1)
    kernel = GridSpectralMixtureKernel(grid, torch.ones(len(grid), dtype=torch.float64)).requires_grad_(False)

    def covariance(x):
        return kernel(x, torch.cat([x.detach() * 0, TABLE[:2]])).to_dense()

    for point in (TABLE[:1], torch.zeros(1, 3, dtype=torch.float64)):
        assert torch.autograd.gradcheck(covariance, point.clone().requires_grad_())
        assert torch.autograd.gradgradcheck(covariance, point.clone().requires_grad_())


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectral_grid("full", 8, 100), r"expected at most 20000 components, got 10{16}: 100 points in 8 col"),
        (lambda: spectral_grid("cubic", 2, 3), r"expected 'diagonal', 'random', .*, got 'cubic'"),
        (lambda: spectral_grid("axes", 2, 3, frequency_range=(0.5, 0.1)), r"0 <= lowest < highest, got \(0.5, 0.1\)"),
        (lambda: spectral_grid("axes", 2, 0), r"at least 1 point and 1 column .* got 0, 2"),
        (lambda: SpectralGrid(torch.zeros(2, 1), torch.zeros(3, 1)), r"one shape \(a, d\), got \(2, 1\), \(3, 1\)"),
        (lambda: SpectralGrid(-torch.ones(2, 1), torch.zeros(2, 1)), r"frequencies: expected finite .* got -1 to -1"),
        (lambda: spectral_grid("axes", 2, 3) + spectral_grid("axes", 3, 3), r"one number of columns, got 2 and 3"),
        (
            lambda: GridSpectralMixtureKernel(spectral_grid("axes", 1, 3), torch.tensor([1.0, -2.0, 0.0])),
            r"weights: expected 3 numbers of 0 or more, got shape \(3,\), smallest -2",
        ),
    ],
)
def test_wrong_settings(call, message):
    with pytest.raises(ProgramError, match=message):
        call()


def test_wrong_columns():
    grid = spectral_grid("axes", 2, 3)
    with pytest.raises(DataError, match=r"rows of shape \(n, 2\), as the grid, got \(7, 3\)"):
        KernelBank(grid, TABLE)
    with pytest.raises(DataError, match=r"inputs of 2 columns, as the grid, got 3 and 3"):
        GridSpectralMixtureKernel(grid)(TABLE.float()).to_dense()
