"""Kernels of several outputs: against the papers' formulas, GPyTorch, Fourier transforms, differences; planted lags."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gpytorch.kernels import IndexKernel
from gpytorch.kernels import SpectralMixtureKernel as Theirs
from spectral_output_cases import STUDENT_T, every_case, every_kind, filled, matrix, rows, shared
from torch import Tensor

from probmix.errors import DataError, ProgramError
from probmix.isolation import isolated
from probmix.spectral import SpectralMixtureKernel
from probmix.spectral_outputs import MultiOutputSpectralMixtureKernel, SpectralCoregionalizationKernel


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


def pair_by_pair(entry: Callable[[int, int, np.ndarray], float], x1: Tensor, x2: Tensor) -> np.ndarray:
    lags = x1.numpy()[:, None, :-1] - x2.numpy()[None, :, :-1]
    outputs = x1[:, -1].int().tolist(), x2[:, -1].int().tolist()
    return np.array([[entry(i, j, lags[a, b]) for b, j in enumerate(outputs[1])] for a, i in enumerate(outputs[0])])


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2])
def test_coregionalisation_is_gpytorchs(rank):
    """A sum over components of IndexKernel times GPyTorch's spectral mixture of one component."""
    x, other = rows(12), rows(9, seed=1)
    kernel = filled(SpectralCoregionalizationKernel(3, 2, rank=rank))
    total: Any = 0.0
    for q in range(2):
        index, mixture = IndexKernel(3, rank, active_dims=[1]), Theirs(1, 1, active_dims=[0])
        index.covar_factor.data, index.var = kernel.covar_factor[q].clone(), kernel.var[q]
        mixture.mixture_weights = 1.0
        mixture.mixture_means, mixture.mixture_scales = kernel.frequencies[q, 0], kernel.bandwidths[q, 0]
        total = total + matrix(index * mixture, x, other)
    torch.testing.assert_close(matrix(kernel, x, other), total, rtol=1e-10, atol=1e-12)


@every_case
def test_of_one_output_it_is_a_spectral_mixture(kind, settings):
    """Whatever delays and phases: those are between outputs. Of several inputs where the cosine is one of their sum,
    which a mixture has along each input alone."""
    kernel = filled(kind(3, 2, 2, 2, **settings))
    for output in range(3):
        own = SpectralMixtureKernel(2, 2, **settings)
        if kind is SpectralCoregionalizationKernel:
            own.weights = kernel.coregionalization[:, output, output]
            own.frequencies, own.bandwidths = kernel.frequencies, kernel.bandwidths
        else:
            own.weights = kernel.amplitudes[:, output].square().sum(-1)
            at = 0 if kind is shared else output
            own.frequencies, own.bandwidths = kernel.frequencies[:, at], kernel.bandwidths[:, at]
        for along in range(2):
            x = torch.zeros(7, 3)
            x[:, along], x[:, 2] = torch.randn(7), output
            torch.testing.assert_close(matrix(kernel, x), matrix(own, x[:, :2]), rtol=1e-10, atol=1e-12)
    if kind is SpectralCoregionalizationKernel:
        x = torch.cat([torch.randn(7, 2), torch.ones(7, 1)], -1)
        own.weights = kernel.coregionalization[:, 1, 1]
        torch.testing.assert_close(kernel.components(x, x), own.components(x[:, :2], x[:, :2]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("inputs", [1, 2])
def test_own_spectra_are_the_formula_of_parra_and_tobar(inputs):
    """Entry by entry in their words: magnitudes w, angular means and variances, delays and phases of every output."""
    kernel, x, other = filled(MultiOutputSpectralMixtureKernel(3, 2, inputs)), rows(9, 3, inputs), rows(7, 3, inputs, 1)
    mean, var = 2 * np.pi * kernel.frequencies.numpy(), (2 * np.pi * kernel.bandwidths.numpy()) ** 2
    zero = np.zeros((2, 1, inputs))
    theta = -np.concatenate([zero, kernel.delays.numpy()], 1)
    phi = np.concatenate([zero[..., 0], kernel.phases.numpy()[..., 0]], 1)
    norm = (2 * np.pi) ** (inputs / 2)
    magnitude = kernel.amplitudes.numpy()[..., 0] / np.sqrt(norm * np.sqrt(var.prod(-1)))

    def entry(i: int, j: int, lag: np.ndarray) -> float:
        total = 0.0
        for q in range(2):
            both = var[q, i] + var[q, j]
            w = magnitude[q, i] * magnitude[q, j] * np.exp(-0.25 * ((mean[q, i] - mean[q, j]) ** 2 / both).sum())
            var_ij = 2 * var[q, i] * var[q, j] / both
            mean_ij = (var[q, i] * mean[q, j] + var[q, j] * mean[q, i]) / both
            alpha, tau = w * norm * np.sqrt(var_ij.prod()), lag + theta[q, i] - theta[q, j]
            total += alpha * np.exp(-0.5 * tau @ (var_ij * tau)) * np.cos(tau @ mean_ij + phi[q, i] - phi[q, j])
        return total

    np.testing.assert_allclose(matrix(kernel, x, other), pair_by_pair(entry, x, other), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_shared_spectra_without_delays_are_the_formula_of_ulrich(rank):
    kernel, x, other = filled(shared(3, 2, 1, rank)), rows(9), rows(7, seed=1)
    kernel.delays[:] = 0.0
    amplitudes, mu, v = (
        t.numpy() for t in (kernel.amplitudes, kernel.frequencies[:, 0, 0], kernel.bandwidths[:, 0, 0])
    )
    phases = np.concatenate([np.zeros((2, 1, rank)), kernel.phases.numpy()], 1)

    def entry(i: int, j: int, lag: np.ndarray) -> float:
        terms = [
            math.sqrt(amplitudes[q, i, r] ** 2 * amplitudes[q, j, r] ** 2)
            * math.exp(-0.5 * (2 * math.pi * v[q] * lag[0]) ** 2)
            * math.cos(2 * math.pi * mu[q] * lag[0] + phases[q, i, r] - phases[q, j, r])
            for q in range(2)
            for r in range(rank)
        ]
        return sum(terms)

    np.testing.assert_allclose(matrix(kernel, x, other), pair_by_pair(entry, x, other), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, STUDENT_T])
def test_in_phase_and_without_own_parts_all_are_one_kernel(settings):
    """With phases of 0 or pi as signs, one input."""
    x, cross, model = (
        rows(12),
        filled(shared(3, 2, 1, 1, **settings)),
        SpectralCoregionalizationKernel(3, 2, **settings),
    )
    cross.delays[:] = 0.0
    cross.phases[:] = torch.tensor([[0.0, math.pi], [math.pi, 0.0]])[..., None]
    signs = torch.tensor([[1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])[..., None]
    model.requires_grad_(requires_grad=False).covar_factor[:] = signs * cross.amplitudes
    model.var, model.frequencies, model.bandwidths = 1e-300, cross.frequencies[:, 0], cross.bandwidths[:, 0]
    torch.testing.assert_close(matrix(cross, x), matrix(model, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [MultiOutputSpectralMixtureKernel, shared])
def test_a_delay_is_by_how_much_an_output_follows_the_first(kind):
    """The cross-covariance with a delayed output is that of the undelayed, its inputs moved back by the delay."""
    kernel, x = filled(kind(3, 2, 2)), rows(12, 3, 2)
    delays = torch.tensor([[0.4, -1.3], [2.0, 0.1]])
    kernel.delays[:] = delays
    moved = x.clone()
    moved[:, :2] -= torch.cat([torch.zeros(1, 2), delays])[x[:, 2].long()]
    found = matrix(kernel, x)
    kernel.delays[:] = 0.0
    torch.testing.assert_close(found, matrix(kernel, moved), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(found, matrix(kernel, x), rtol=0.1)


@every_case
def test_the_diagonal_is_made_without_the_matrix(kind, settings, monkeypatch):
    x, other = rows(8, 3, 2), rows(8, 3, 2, seed=1)
    kernel = filled(kind(3, 2, 2, 2, **settings))
    full = matrix(kernel, x, other).diagonal(), matrix(kernel, x).diagonal()
    monkeypatch.setattr(kind if isinstance(kind, type) else MultiOutputSpectralMixtureKernel, "components", None)
    found = kernel(x, other, diag=True), kernel(x, diag=True)
    torch.testing.assert_close(found, full, rtol=1e-10, atol=1e-12)


@every_case
def test_it_is_positive_definite(kind, settings):
    """The smallest eigenvalue of 60 rows is not below rounding, whatever the parameters; so are all components."""
    for seed in range(6):
        kernel, x = filled(kind(3, 2, 1 + seed % 2, 1 + seed % 3, **settings), seed), rows(60, 3, 1 + seed % 2)
        values = torch.linalg.eigvalsh(torch.cat([matrix(kernel, x)[None], kernel.components(x, x)]))
        assert bool((values[:, 0] > -1e-13 * values[:, -1]).all())


def test_without_the_overlap_of_spectra_it_is_not_positive_definite(monkeypatch):
    """The control of the test above."""
    kernel, x, table = filled(MultiOutputSpectralMixtureKernel(3, 2)), rows(60), MultiOutputSpectralMixtureKernel._table

    def without(self: Any) -> Any:
        found = table(self)
        a = self.amplitudes[..., 0]
        together = found.real.hypot(found.imaginary) / (a[..., :, None] * a[..., None, :])
        return found._replace(real=found.real / together, imaginary=found.imaginary / together)

    monkeypatch.setattr(MultiOutputSpectralMixtureKernel, "_table", without)
    values = torch.linalg.eigvalsh(matrix(kernel, x))
    assert float(values[0] / values[-1]) < -1e-3


@every_case
def test_float32_is_near_float64(kind, settings):
    x, kernel = rows(40, 3, 2), filled(kind(3, 2, 2, 2, **settings))
    right = matrix(kernel, x)
    found = matrix(kernel.float(), x.float())
    assert found.dtype == torch.float32
    assert float((found.double() - right).abs().max() / right.max()) < 1e-5


# --- spectra --------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("column", [0, 1])
def test_cross_spectra_are_those_of_the_kernel(kind, settings, column):
    """The kernel is the real part of their Fourier transform, for each pair of outputs.

    By the trapezoid rule, which on a smooth even function is right to the kernel at a lag of one over the step, 100,
    here nothing; a Student-t has less than 1e-8 of its variance above 40 cycles.
    """
    kernel, at = filled(kind(3, 2, 2, 2, **settings)), torch.linspace(0, 40, 4001)
    spectra = kernel.cross_spectrum(at, column).sum(0)
    x = torch.zeros(3, 3)
    x[:, 2] = torch.arange(3)
    for tau in (0.0, 0.7, -1.9):
        moved = x.clone()
        moved[:, column] = tau
        found = torch.trapezoid((spectra * torch.exp(2j * math.pi * tau * at)).real, at)
        torch.testing.assert_close(found, matrix(kernel, moved, x), rtol=0, atol=1e-7)


@every_case
def test_matrices_of_cross_spectra_are_positive_semi_definite(kind, settings):
    """Hermitian, of the rank of the component along one input, and on their diagonal the density of each output."""
    kernel, at = filled(kind(3, 2, 1, 2, **settings)), torch.linspace(0, 2, 9)
    found = kernel.cross_spectrum(at)
    assert found.shape == (2, 3, 3, 9)
    assert found.is_complex()
    torch.testing.assert_close(found, found.conj().transpose(1, 2), rtol=1e-12, atol=1e-14)
    values = torch.linalg.eigvalsh(found.movedim(-1, 1))
    assert float((values[..., 0] / values[..., -1]).min()) > -1e-12
    density = kernel.spectral_density(at)
    assert density.shape == (2, 3, 9)
    torch.testing.assert_close(density, torch.stack([found[:, i, i].real for i in range(3)], 1))
    assert bool((density > 0).all())


# --- first values ---------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ranks_begin_apart(kind, rank):
    """Alike they would have equal gradients, and stay alike: the first matrices of cross-spectra have the full rank."""
    kernel = kind(3, 2, 1, rank).requires_grad_(requires_grad=False)
    if kind is SpectralCoregionalizationKernel:
        gram = kernel.covar_factor.mT @ kernel.covar_factor
        torch.testing.assert_close(gram, torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1)), rtol=0, atol=1e-15)
        kernel.var = 1e-300
    else:
        torch.testing.assert_close(kernel(rows(5), diag=True), torch.ones(5))
    values = torch.linalg.eigvalsh(kernel.cross_spectrum(torch.tensor([0.2]))[0, ..., 0])
    assert int((values > 1e-10 * values[-1]).sum()) == rank


# --- refusals -------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_outputs": 1}, r"num_outputs: expected at least 2, got 1\. Change the setting num_outputs="),
        ({"num_components": 0}, r"num_components: expected at least 1, got 0\. Change the setting num_components="),
        ({"num_inputs": 0}, r"num_inputs: expected at least 1, got 0"),
        ({"rank": 0}, r"rank: expected at least 1, got 0"),
        ({"rank": 4}, r"rank: expected at most num_outputs=3, got 4\. A covariance of 3 outputs has no higher rank"),
        ({"spectrum": "cauchy"}, r"spectrum: expected 'gaussian', 'student_t' or .*, got 'cauchy'"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ProgramError, match=message):
        kind(**({"num_outputs": 3} | settings))


def test_own_student_t_spectra_are_refused():
    message = (
        r"expected 'gaussian' where outputs .* got StudentTSpectrum\(df=5\), of which .* Set shared_spectra=True\."
    )
    with pytest.raises(ProgramError, match=message):
        MultiOutputSpectralMixtureKernel(2, spectrum="student_t")


@every_kind
def test_inputs_that_do_not_fit_are_refused(kind):
    kernel, x = kind(3, 2), rows(4)
    for call in (kernel.forward, lambda a, b: kernel.forward(a, b, diag=True), kernel.components, kernel.derivative):
        for wrong, shown in ((3.0, "3"), (-1.0, "-1"), (0.5, "0.5"), (float("nan"), "nan")):
            bad = x.clone()
            bad[2, 1] = wrong
            message = (
                rf"the output that a row is of, a whole number from 0 to 2, got {shown} in row 2\. Number the outp"
            )
            for pair in ((bad, x), (x, bad)):
                with pytest.raises(DataError, match=message):
                    call(*pair)
        with pytest.raises(
            ProgramError, match=r"rows of num_inputs=1 inputs and the output .* 2 columns, got 1\. Put the"
        ):
            call(x[:, :1], x[:, :1])
        with pytest.raises(DataError, match=r"one number of columns, got 2 and 1\."):
            call(x, x[:, :1])
    with pytest.raises(ProgramError, match=r"columns of the inputs from 0 to 0, got \[1\]"):
        kernel.derivative(x, x, [1])
