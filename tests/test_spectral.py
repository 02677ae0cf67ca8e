"""Spectral kernels in GPyTorch: against GPyTorch's own, differences, Fourier transforms, with priors, and refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement
from typing import Any

import gpytorch
import numpy as np
import pyro
import pytest
import scipy.integrate
import torch
from gpytorch.kernels import ScaleKernel
from gpytorch.kernels import SpectralMixtureKernel as Theirs
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior
from gpytorch_cases import Exact, gaussian, level
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from probmix.errors import DataError, ProgramError
from probmix.gpytorch_priors import covariance_matrix, prior_sites, require_priors, sampled, with_values
from probmix.inference import MAP, infer
from probmix.isolation import isolated
from probmix.models.gpytorch_program import gpytorch_program
from probmix.spectra import GaussianSpectrum, StudentTSpectrum
from probmix.spectral import AbstractSpectralKernel, SpectralMixtureKernel, SpectralProductKernel

KINDS = (SpectralMixtureKernel, SpectralProductKernel)
SPECTRA = (GaussianSpectrum(), StudentTSpectrum(5), StudentTSpectrum(3), StudentTSpectrum(1))
both_kernels = pytest.mark.parametrize("kind", KINDS)
every_spectrum = pytest.mark.parametrize("spectrum", SPECTRA, ids=str)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


def filled(kernel: AbstractSpectralKernel, seed: int = 0) -> AbstractSpectralKernel:
    """The same kernel with other values, apart from each other."""
    generator = torch.Generator().manual_seed(seed)
    for name, centre in (("weights", 0.7), ("frequencies", 0.6), ("bandwidths", 0.2)):
        shape = getattr(kernel, name).shape
        setattr(kernel, name, centre * (0.7 * torch.randn(shape, generator=generator)).exp())
    return kernel.requires_grad_(requires_grad=False)


def matrix(kernel: gpytorch.kernels.Kernel, *inputs: Tensor) -> Tensor:
    return kernel(*inputs).to_dense()


def theirs(kernel: AbstractSpectralKernel) -> Theirs:
    """GPyTorch's kernel of one input with the values of ours, which are one column of a mixture or a product."""
    num = kernel.num_components
    own = Theirs(num_mixtures=num, ard_num_dims=1)
    own.mixture_weights = kernel.weights.reshape(num)
    own.mixture_means, own.mixture_scales = (v.reshape(num, 1, 1) for v in (kernel.frequencies, kernel.bandwidths))
    return own.requires_grad_(requires_grad=False)


# --- values ---------------------------------------------------------------------------------------------------------


@both_kernels
def test_of_one_input_it_is_gpytorchs_spectral_mixture(kind):
    x, other = 3 * torch.randn(9, 1), 3 * torch.randn(6, 1)
    kernel = filled(kind(4, ard_num_dims=1))
    own = theirs(kernel)
    torch.testing.assert_close(matrix(kernel, x), matrix(own, x), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(matrix(kernel, x, other), matrix(own, x, other), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(kernel(x, diag=True), own(x, diag=True), rtol=1e-12, atol=0)


def test_of_several_inputs_gpytorchs_is_a_product_of_sums():
    """Its code sums over components before it multiplies over inputs, so there it is our product, weights alike."""
    x = torch.randn(7, 3)
    own, product, mixture = Theirs(4, 3), SpectralProductKernel(4, 3), SpectralMixtureKernel(4, 3)
    filled(mixture)
    own.mixture_weights, own.mixture_means, own.mixture_scales = (
        mixture.weights, mixture.frequencies[:, None], mixture.bandwidths[:, None]
    )  # fmt: skip
    product.weights = mixture.weights.expand(3, 4)
    product.frequencies, product.bandwidths = mixture.frequencies.mT, mixture.bandwidths.mT
    torch.testing.assert_close(matrix(product, x), matrix(own, x), rtol=1e-11, atol=1e-12)
    assert not torch.allclose(matrix(mixture, x), matrix(own, x), rtol=0.1)


@every_spectrum
def test_a_mixture_of_several_inputs_is_a_sum_of_products(spectrum):
    """Of kernels of one input and one component, themselves checked above and in test_spectra."""
    x, other = torch.randn(7, 3), torch.randn(5, 3)
    kernel = filled(SpectralMixtureKernel(4, 3, spectrum))

    def factor(q: int, d: int) -> Tensor:
        r = 2 * math.pi * kernel.bandwidths[q, d] * (x[:, d, None] - other[:, d]).abs()
        return spectrum.envelope(r) * torch.cos(2 * math.pi * kernel.frequencies[q, d] * (x[:, d, None] - other[:, d]))

    parts = [kernel.weights[q] * math.prod(factor(q, d) for d in range(3)) for q in range(4)]
    torch.testing.assert_close(matrix(kernel, x, other), sum(parts), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(kernel.components(x, other), torch.stack(parts), rtol=1e-11, atol=1e-12)


@every_spectrum
def test_a_product_is_one_mixture_for_each_input(spectrum):
    x, other = torch.randn(7, 3), torch.randn(5, 3)
    kernel = filled(SpectralProductKernel(4, 3, spectrum))
    factors = []
    for d in range(3):
        one = SpectralMixtureKernel(4, 1, spectrum)
        one.weights = kernel.weights[d]
        one.frequencies, one.bandwidths = kernel.frequencies[d, :, None], kernel.bandwidths[d, :, None]
        factors.append(matrix(one, x[:, d], other[:, d]))
        torch.testing.assert_close(kernel.factor(d, x[:, d], other[:, d]), factors[-1])
    torch.testing.assert_close(matrix(kernel, x, other), math.prod(factors), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(kernel.factor(1, x[:, 1]), kernel.factor(1, x[:, 1], x[:, 1].clone()))


@both_kernels
@every_spectrum
def test_components_add_up(kind, spectrum):
    x, other = torch.randn(7, 2), torch.randn(5, 2)
    kernel = filled(kind(4, 2, spectrum, batch_shape=torch.Size([3])))
    parts = kernel.components(x, other)
    assert parts.shape == (3, 4, 7, 5)
    torch.testing.assert_close(parts.sum(-3), matrix(kernel, x, other), rtol=1e-11, atol=1e-12)


@both_kernels
@every_spectrum
def test_the_diagonal_is_made_without_the_matrix(kind, spectrum, monkeypatch):
    x, other = torch.randn(2, 6, 2).unbind()
    kernel = filled(kind(3, 2, spectrum))
    full = matrix(kernel, x, other).diagonal(), matrix(kernel, x).diagonal()
    monkeypatch.setattr(AbstractSpectralKernel, "components", None)
    for found in (
        (kernel(x, other, diag=True), kernel(x, diag=True)),
        (kernel(x, other).diagonal(), kernel(x).diagonal()),
        (kernel(x, other, diag=True), kernel(x, x.clone(), diag=True)),
    ):
        assert all(t.shape == (6,) for t in found)
        torch.testing.assert_close(found, full, rtol=1e-11, atol=1e-12)


@both_kernels
@every_spectrum
def test_it_is_positive_definite(kind, spectrum):
    """The smallest eigenvalue of 60 rows is not below rounding, whatever the parameters."""
    for seed in range(5):
        kernel, x = filled(kind(4, 2, spectrum), seed), torch.randn(60, 2)
        values = torch.linalg.eigvalsh(matrix(kernel, x))
        assert float(values[0] / values[-1]) > -1e-14


@both_kernels
@every_spectrum
def test_float32_is_near_float64(kind, spectrum):
    x, kernel = torch.randn(40, 2), filled(kind(3, 2, spectrum))
    right = matrix(kernel, x)
    found = matrix(kernel.float(), x.float())
    assert found.dtype == torch.float32
    assert float((found.double() - right).abs().max() / right.max()) < 1e-5


# --- within GPyTorch ------------------------------------------------------------------------------------------------


@both_kernels
def test_it_composes_with_kernels(kind):
    x = torch.randn(7, 3)
    own, other = filled(kind(3, 3)), gpytorch.kernels.RBFKernel()
    parts = matrix(own, x), matrix(other, x)
    torch.testing.assert_close(matrix(own + other, x), parts[0] + parts[1])
    torch.testing.assert_close(matrix(own * other, x), parts[0] * parts[1])
    scaled = ScaleKernel(own)
    scaled.outputscale = 2.5
    torch.testing.assert_close(matrix(scaled, x), 2.5 * parts[0])
    torch.testing.assert_close(own(x)[:3, 2:5].to_dense(), parts[0][:3, 2:5])
    columns = filled(kind(3, 2)), filled(kind(3, 2, active_dims=(2, 0)))
    torch.testing.assert_close(matrix(columns[1], x), matrix(columns[0], x[:, [2, 0]]))
    assert not torch.allclose(matrix(columns[1], x), matrix(columns[0], x[:, [0, 2]]))


@both_kernels
@every_spectrum
def test_a_batch_of_kernels_is_as_many_kernels(kind, spectrum):
    x, other = torch.randn(5, 2), torch.randn(5, 2)
    kernel = filled(kind(4, 2, spectrum, batch_shape=torch.Size([3])))
    singles = [kind(4, 2, spectrum) for _ in range(3)]
    for i, single in enumerate(singles):
        for name in ("weights", "frequencies", "bandwidths"):
            setattr(single, name, getattr(kernel, name)[i])
    for batch in (x, x.expand(3, 5, 2)):
        torch.testing.assert_close(matrix(kernel, batch), torch.stack([matrix(s, x) for s in singles]))
        expected = torch.stack([s(x, diag=True) for s in singles])
        torch.testing.assert_close(kernel(batch, diag=True), expected)
        pairs = torch.stack([s(x, other, diag=True) for s in singles])
        torch.testing.assert_close(kernel(batch, other.expand_as(batch), diag=True), pairs)
        by1 = [0] if spectrum.smoothness else []
        slopes = torch.stack([s.derivative(x, other, by1) for s in singles])
        torch.testing.assert_close(kernel.derivative(batch, other, by1), slopes)
    at = torch.linspace(0, 2, 6)
    expected = torch.stack([s.spectral_density(at, 1) for s in singles])
    torch.testing.assert_close(kernel.spectral_density(at, 1), expected)
    torch.testing.assert_close(matrix(kernel[1], x), matrix(singles[1], x))


class Dense(nn.Module):
    """A kernel's matrix at once: what GPyTorch evaluates later does not see the parameters of `functional_call`."""

    def __init__(self, kernel: gpytorch.kernels.Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x).to_dense()


@both_kernels
def test_gradients_of_a_batch_of_hyperparameters(kind):
    """`vmap` over `functional_call`, as restarts and chains make it, against one kernel after another."""
    dense, x = Dense(filled(kind(3, 2)).requires_grad_()), torch.randn(5, 2)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(dense, parameters, (x,)).square().sum()

    raw = {name: torch.randn(4, *value.shape) for name, value in dense.named_parameters()}
    found = vmap(grad(loss))(raw)
    for draw in range(4):
        dense.load_state_dict({name: value[draw] for name, value in raw.items()}, strict=False)
        expected = torch.autograd.grad(dense(x).square().sum(), list(dense.parameters()))
        torch.testing.assert_close([found[name][draw] for name, _ in dense.named_parameters()], list(expected))


# --- priors ---------------------------------------------------------------------------------------------------------


def with_priors(kind: Callable[..., AbstractSpectralKernel], logs: bool = False) -> AbstractSpectralKernel:
    """The same priors, of weights and bandwidths or of their logarithms."""
    of_values = {"weights_prior": LogNormalPrior(0.0, 1.0), "bandwidths_prior": LogNormalPrior(-2.0, 0.5)}
    of_logs = {"log_weights_prior": NormalPrior(0.0, 1.0), "log_bandwidths_prior": NormalPrior(-2.0, 0.5)}
    return kind(3, 2, **(of_logs if logs else of_values), frequencies_prior=LogNormalPrior(-1.0, 0.5))


@both_kernels
@pytest.mark.parametrize("logs", [False, True])
def test_priors_are_sites_that_are_set_and_sampled(kind, logs):
    kernel = with_priors(kind, logs)
    require_priors(kernel)
    sites = prior_sites(kernel)
    prefix = "log_" if logs else ""
    assert list(sites) == [f"{prefix}weights", "frequencies", f"{prefix}bandwidths"]
    with pyro.poutine.trace() as trace:
        drawn = sampled(kernel)
    values = {name: trace.trace.nodes[name]["value"] for name in sites}
    for name, value in values.items():
        attribute = getattr(drawn, name.removeprefix("log_"))
        torch.testing.assert_close(attribute.log() if name.startswith("log_") else attribute, value)
        assert not torch.equal(attribute, getattr(kernel, name.removeprefix("log_")))
    own = kernel.pyro_sample_from_prior()
    assert not torch.equal(own.weights, kernel.weights)
    of_weights = torch.distributions.Normal(0.0, 1.0) if logs else torch.distributions.LogNormal(0.0, 1.0)
    found = trace.trace.nodes[f"{prefix}weights"]["fn"].log_prob(values[f"{prefix}weights"])
    torch.testing.assert_close(found, of_weights.log_prob(values[f"{prefix}weights"]).sum())


@both_kernels
@pytest.mark.parametrize("logs", [False, True])
def test_values_may_have_leading_axes(kind, logs):
    """One matrix for each draw, with its gradient under vmap: as draw by draw."""
    kernel, x = with_priors(kind, logs), torch.randn(6, 2)
    sites = {name: site.prior.sample((5,)) for name, site in prior_sites(kernel).items()}

    def of(values: dict[str, Tensor]) -> Tensor:
        return covariance_matrix(with_values(kernel, values), x)

    one_by_one = torch.stack([of({name: value[i] for name, value in sites.items()}) for i in range(5)])
    torch.testing.assert_close(of(sites), one_by_one)
    torch.testing.assert_close(vmap(of)(sites), one_by_one)
    found = vmap(grad(lambda values: of(values).square().sum()))(sites)
    for name in sites:
        at = {n: v[2].clone().requires_grad_(n == name) for n, v in sites.items()}
        (expected,) = torch.autograd.grad(of(at).square().sum(), at[name])
        torch.testing.assert_close(found[name][2], expected)


@both_kernels
def test_copies_are_apart(kind):
    kernel = with_priors(kind)
    copied = copy.deepcopy(kernel)
    copied.weights = 9.0
    assert not torch.equal(kernel.weights, copied.weights)
    assert copied.spectrum == kernel.spectrum
    assert list(prior_sites(copied)) == list(prior_sites(kernel))
    kernel.load_state_dict(copied.state_dict())
    assert torch.equal(kernel.weights, copied.weights)


@both_kernels
@pytest.mark.parametrize("spectrum", ["gaussian", "student_t"])
def test_a_planted_frequency_is_found_by_map(kind, spectrum):
    """A sine of 0.31 cycles per unit at 60 irregular times: within 1%, though the prior is a tenth wide."""
    x = (60 * torch.rand(60)).sort().values[:, None]
    y = 1.5 * torch.sin(2 * math.pi * 0.31 * x[:, 0]) + 0.1 * torch.randn(60)
    priors = {"frequencies_prior": LogNormalPrior(math.log(0.3), 0.1), "bandwidths_prior": LogNormalPrior(-5.0, 1.0)}
    kernel = kind(1, 1, spectrum, log_weights_prior=NormalPrior(0.0, 1.0), **priors)
    fit = infer(gpytorch_program(Exact(kernel, gaussian(), level())), (x, y), MAP(restarts=8), seed=0)
    assert float(fit.sites()["covar_module.frequencies"]) == pytest.approx(0.31, rel=0.01)


# --- derivatives ----------------------------------------------------------------------------------------------------

# Rows 0 and 2 are one, and so is the first of the others; the last of them shares a column with row 1.
X = torch.tensor([[0.4, -0.3], [0.1, 0.5], [0.4, -0.3]], dtype=torch.float64)
OTHER = torch.tensor([[0.4, -0.3], [-0.6, 0.2], [0.1, 0.9]], dtype=torch.float64)


def difference(
    kernel: Any, by1: tuple[int, ...], by2: tuple[int, ...], column: int, second: bool
) -> tuple[Tensor, float]:
    """One central difference of the derivative without one of its columns, and the tolerance.

    With a step h: h^2 / 6 of the third derivative of that, and rounding / h. Frequencies here are at most B = 3 cycles
    (centre and a few bandwidths), so a derivative of order m is at most (2 pi B)^m of the variance.
    """
    h = 2e-6
    step = torch.zeros(2)
    step[column] = h
    pairs = [(X, OTHER + side * step) if second else (X + side * step, OTHER) for side in (1, -1)]
    up, down = (kernel.derivative(*pair, by1, by2) for pair in pairs)
    size = float(kernel(X, diag=True)[0]) * (2 * math.pi * 3) ** (len(by1) + len(by2))
    return (up - down) / (2 * h), size * (h**2 / 6 * (2 * math.pi * 3) ** 3 + 1e-15 / h)


@both_kernels
@every_spectrum
def test_derivatives_agree_with_differences(kind, spectrum):
    """Of all orders that the spectrum has, up to the fourth, by rows and columns, mixed, where inputs coincide too.

    At the highest order that a Matern has, its derivative has a kink at coincident columns, and differences across it
    are of the first order in the step: there the error is allowed the jump of the next derivative times the step.
    """
    kernel = filled(kind(3, 2, spectrum))
    torch.testing.assert_close(kernel.derivative(X, OTHER), matrix(kernel, X, OTHER), rtol=1e-11, atol=1e-12)
    most = min(spectrum.smoothness, 4)
    sequences = [s for order in range(1, most + 1) for s in combinations_with_replacement((0, 1), order)]
    for columns in sequences:
        for cut in range(len(columns) + 1):
            by1, by2 = columns[:cut], columns[cut:]
            found = kernel.derivative(X, OTHER, by1, by2)
            if by2:
                expected, tolerance = difference(kernel, by1, by2[:-1], by2[-1], second=True)
            else:
                expected, tolerance = difference(kernel, by1[:-1], by2, by1[-1], second=False)
            if len(columns) == spectrum.smoothness:
                tolerance += 2e-6 * float(kernel(X, diag=True)[0]) * (2 * math.pi * 3) ** (len(columns) + 1)
            assert float((found - expected).abs().max()) < tolerance, (by1, by2)


@both_kernels
def test_the_tolerance_tells_a_wrong_derivative(kind):
    """The control of the test above: one sign, one order and one column wrong."""
    kernel = filled(kind(3, 2))
    expected, tolerance = difference(kernel, (0,), (), 1, second=True)
    assert float((kernel.derivative(X, OTHER, [0], [1]) - expected).abs().max()) < tolerance
    for by1, by2 in (([0, 1], []), ([0], [0]), ([0], [])):
        assert float((kernel.derivative(X, OTHER, by1, by2) - expected).abs().max()) > 1000 * tolerance


@both_kernels
@pytest.mark.parametrize("spectrum", SPECTRA[:3], ids=str)
def test_derivatives_where_inputs_coincide_are_those_of_a_process(kind, spectrum):
    """Value and slopes of one process at the same rows have a joint covariance: symmetric and positive definite."""
    kernel, rows = filled(kind(3, 2, spectrum)), torch.cat([X[:2], OTHER[1:]])
    blocks = [[kernel.derivative(rows, rows, a, b) for b in ([], [0], [1])] for a in ([], [0], [1])]
    joint = torch.cat([torch.cat(row, -1) for row in blocks], -2)
    torch.testing.assert_close(joint, joint.mT, rtol=1e-12, atol=1e-12)
    values = torch.linalg.eigvalsh(joint)
    assert float(values[0]) > 1e-6
    curvature = blocks[1][1].diagonal()
    assert bool((curvature > 0).all())
    torch.testing.assert_close(kernel.derivative(rows, rows, [0, 0]).diagonal(), -curvature)


@both_kernels
def test_autograd_through_the_distance_is_wrong_where_inputs_coincide(kind):
    """The control of closed forms: the same kernel, written with |x - x'|, has another curvature there."""
    kernel = filled(kind(1, 1, "student_t"))
    weight, frequency, bandwidth = (v.squeeze() for v in (kernel.weights, kernel.frequencies, kernel.bandwidths))
    x, z = torch.zeros(1, 1).requires_grad_(), torch.zeros(1, 1)
    r = math.sqrt(5) * 2 * math.pi * bandwidth * (x - z).abs()
    k = weight * (1 + r + r**2 / 3) * torch.exp(-r) * torch.cos(2 * math.pi * frequency * (x - z))
    torch.testing.assert_close(k, matrix(kernel, x, z))
    (slope,) = torch.autograd.grad(k, x, create_graph=True)
    (by_autograd,) = torch.autograd.grad(slope, x)
    right = kernel.derivative(x.detach(), z, [0, 0])
    lost = weight * 5 / 3 * (2 * math.pi * bandwidth) ** 2
    assert float(lost) > 0.25
    torch.testing.assert_close(by_autograd - right, lost.reshape(1, 1), rtol=1e-12, atol=0)


@both_kernels
def test_gradients_of_derivatives_reach_the_parameters(kind):
    """As a solver of differential equations asks for them."""
    kernel = filled(kind(2, 2)).requires_grad_()
    raw = [p.detach().clone().requires_grad_() for p in kernel.parameters()]
    names = [name for name, _ in kernel.named_parameters()]

    def function(*values: Tensor) -> Tensor:
        for name, value in zip(names, values, strict=True):
            kernel._parameters[name] = value
        return kernel.derivative(X, OTHER, [0, 0], [1, 1])

    assert torch.autograd.gradcheck(function, raw, rtol=1e-4, atol=1e-3)  # entries are some 10^4


# --- spectra --------------------------------------------------------------------------------------------------------


@both_kernels
@every_spectrum
@pytest.mark.parametrize("column", [0, 1])
def test_the_spectral_density_is_the_spectrum_of_the_kernel(kind, spectrum, column):
    """Component by component it integrates to the variance, and its cosine transform is the kernel (QUADPACK, 1e-8)."""
    kernel = filled(kind(2, 2, spectrum))

    def density(f: float, q: int) -> float:
        return float(kernel.spectral_density(torch.tensor([f]), column)[q, 0])

    lag = torch.zeros(3, 2)
    lag[:, column] = torch.tensor([0.0, 0.37, 1.3])
    parts = kernel.spectral_density(torch.tensor([0.1, 0.2]), column)
    assert parts.shape == (2, 2)
    # The components of a product are those of its first input; the density's are those of the column that it is along.
    total = matrix(kernel, lag, torch.zeros(1, 2))[:, 0]
    by_lag = [0.0, 0.0, 0.0]
    for q in range(2):
        by_lag[0] += scipy.integrate.quad(density, 0, np.inf, args=(q,), limit=200)[0]
        for i, tau in ((1, 0.37), (2, 1.3)):
            by_lag[i] += scipy.integrate.quad(density, 0, np.inf, args=(q,), weight="cos", wvar=math.tau * tau)[0]
    np.testing.assert_allclose(by_lag, total, atol=1e-7)


# --- refusals -------------------------------------------------------------------------------------------------------


@both_kernels
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_components": 0}, r"num_components: expected at least 1, got 0\. Change the setting num_components="),
        ({"ard_num_dims": 0}, r"ard_num_dims: expected at least 1, got 0\. Change the setting ard_num_dims="),
        ({"spectrum": "cauchy"}, r"spectrum: expected 'gaussian', 'student_t' or .*, got 'cauchy'"),
        (
            {"bandwidths_prior": GammaPrior(2.0, 1.0), "log_bandwidths_prior": NormalPrior(0.0, 1.0)},
            r"bandwidths: expected one prior, got one of it and one of its logarithm",
        ),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ProgramError, match=message):
        kind(**settings)


@both_kernels
def test_inputs_that_do_not_fit_are_refused(kind):
    kernel, x = kind(2, 2), torch.zeros(4, 2)
    for call in (
        lambda a, b: kernel.forward(a, b),
        lambda a, b: kernel.forward(a, b, diag=True),
        kernel.components,
        lambda a, b: kernel.derivative(a, b, [0]),
    ):
        with pytest.raises(DataError, match=r"one number of columns, got 2 and 3\. Pass the columns of the fit"):
            call(x, torch.zeros(4, 3))
        with pytest.raises(
            DataError, match=r"one dtype on one device, got torch\.float64 on cpu and torch\.float32 on"
        ):
            call(x, x.float())
        for columns in (1, 3):
            with pytest.raises(
                ProgramError, match=rf"with ard_num_dims=2 columns, got {columns}\. Make the kernel with ard"
            ):
                call(torch.zeros(4, columns), torch.zeros(4, columns))


@both_kernels
def test_derivatives_that_are_not_there_are_refused(kind):
    x = torch.zeros(4, 2)
    with pytest.raises(ProgramError, match=r"columns of the inputs from 0 to 1, got \[2, -1\]"):
        kind(2, 2).derivative(x, x, [0, 2], [-1])
    for df, by1 in ((1, [0]), (3, [0, 0, 0]), (5, [1] * 5)):
        with pytest.raises(ProgramError, match=rf"up to order {df - 1} in all.*df={df}.*got order {len(by1)}\. Take a"):
            kind(2, 2, StudentTSpectrum(df)).derivative(x, x, by1)
