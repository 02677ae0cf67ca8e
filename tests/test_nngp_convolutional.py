"""Convolutional kernels: against neural-tangents, sums written out, wide random networks, and the dense kernel."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path

import gpytorch
import numpy as np
import pyro
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.priors import GammaPrior
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from probmix import nngp_convolutional
from probmix.arguments import Arguments
from probmix.dual_activations import activation_of
from probmix.errors import DataError, ProgramError
from probmix.isolation import isolated
from probmix.log_density import LogDensity
from probmix.nngp import NNGPKernel
from probmix.nngp_convolutional import ConvNNGPKernel

SHAPE = (4, 3, 2)
ROUNDING = 1e-12  # sums of some hundreds of float64 numbers near 1, in another order
both_poolings = pytest.mark.parametrize("pooling", ["none", "average"])


@pytest.fixture(autouse=True)
def _seeded():
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


def images_of(num: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(num, math.prod(shape))


def in_blocks(monkeypatch: pytest.MonkeyPatch, kernel: ConvNNGPKernel, side: int) -> None:
    """Let a block hold the pairs of so many images with as many."""
    positions = math.prod(kernel.image_shape[:2]) ** (2 if kernel.pooling == "average" else 1)
    monkeypatch.setattr(nngp_convolutional, "_BLOCK_ON_CPU", side**2 * positions)


# --- values ---------------------------------------------------------------------------------------------------------


def test_values_are_neural_tangents():
    """Version 0.6.5, float64: two convolutions with ReLU, Flatten, and a Dense of unit weight variance, no bias."""
    file = Path(os.environ.get("PROBMIX_DATA", ""), "nngp-reference.npz")
    if not file.is_file():
        pytest.skip("set PROBMIX_DATA to a folder that holds nngp-reference.npz")
    with np.load(file) as arrays:
        x, other, among, across = (
            torch.tensor(arrays[name])
            for name in ("IM", "IM2", "conv_relu_d2_flatten__nngp__xx", "conv_relu_d2_flatten__nngp__x1x2")
        )
    x, other = x.flatten(1), other.flatten(1)
    kernel = ConvNNGPKernel((8, 8, 3), 2, "relu", 1.3**2, 0.2**2, readout=False)
    torch.testing.assert_close(kernel(x).to_dense(), among, rtol=0, atol=1e-10)
    torch.testing.assert_close(kernel(x, other).to_dense(), across, rtol=0, atol=1e-10)
    kernel.readout = True
    torch.testing.assert_close(kernel(x, other).to_dense(), 1.69 * across + 0.04, rtol=0, atol=1e-10)


def written_out(x: Tensor, kernel: ConvNNGPKernel) -> np.ndarray:
    """The covariance of every two positions of every two images, sum by sum; its expectations by Gauss-Hermite."""
    (height, width, channels), size = kernel.image_shape, kernel.filter_size
    images = x.numpy().reshape(len(x), height, width, channels)
    places = list(itertools.product(range(len(x)), range(height), range(width)))
    s = {(a, b): images[a] @ images[b] / channels for a in places for b in places}
    weight_var, bias_var = kernel.weight_var.item(), kernel.bias_var.item()
    offsets = list(itertools.product(range(-(size // 2), size // 2 + 1), repeat=2))
    for _ in range(kernel.depth):
        k = {}
        for (i, r, c), (j, t, d) in s:
            seen = (s.get(((i, r + y, c + z), (j, t + y, d + z)), 0.0) for y, z in offsets)
            k[(i, r, c), (j, t, d)] = weight_var * sum(seen) / size**2 + bias_var
        s = dict(zip(k, expectation(kernel.activation, [(k[a, b], k[a, a], k[b, b]) for a, b in k]), strict=True))
    out = np.zeros((len(x), len(x)))
    for a, b in s:
        if kernel.pooling == "average" or a[1:] == b[1:]:
            out[a[0], b[0]] += s[a, b]
    mean = out / (height * width) ** (2 if kernel.pooling == "average" else 1)
    return weight_var * mean + bias_var if kernel.readout else mean


def expectation(phi: Callable[[Tensor], Tensor], covs: list[tuple[float, float, float]]) -> list[float]:
    """E[phi(u) phi(v)] of smooth phi; 80 nodes leave 1e-12 of it."""
    nodes, weights = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(80))
    k, q1, q2 = torch.tensor(covs)[..., None, None].unbind(1)
    correlation = (k / (q1 * q2).sqrt()).clamp(-1, 1)
    first, second = nodes[:, None], correlation * nodes[:, None] + (1 - correlation**2).sqrt() * nodes
    values = phi(q1.sqrt() * first) * phi(q2.sqrt() * second)
    return (values * weights[:, None] * weights).sum((-2, -1)).div(2 * math.pi).tolist()


@both_poolings
@pytest.mark.parametrize(("activation", "depth", "size"), [("erf", 1, 3), ("gelu", 2, 3), ("erf", 2, 5), ("sin", 3, 1)])
def test_values_are_those_written_out(activation, depth, size, pooling):
    """A window of 5 is wider than the image."""
    x = images_of(3, (3, 2, 2))
    kernel = ConvNNGPKernel(
        (3, 2, 2), depth, activation, 0.8, 0.2, pooling=pooling, filter_size=size, readout=depth != 2
    )
    np.testing.assert_allclose(kernel(x).to_dense().detach(), written_out(x, kernel), rtol=0, atol=1e-10)


def wide_networks(x: Tensor, kernel: ConvNNGPKernel, channels: int, networks: int) -> Tensor:
    """Covariance of the read-out given the random convolutions, which are torch's, ``(networks, n, n)``."""
    height, width, size = *kernel.image_shape[:2], kernel.filter_size
    weight_std, bias_std = kernel.weight_var.sqrt().item(), kernel.bias_var.sqrt().item()
    found = []
    for _ in range(networks):
        h = x.float().unflatten(-1, kernel.image_shape).movedim(-1, -3)
        for _ in range(kernel.depth):
            weights = torch.randn(channels, h.shape[1], size, size, dtype=h.dtype)
            biases = torch.randn(channels, dtype=h.dtype)
            weights *= weight_std / math.sqrt(size**2 * h.shape[1])
            h = kernel.activation(nn.functional.conv2d(h, weights, bias_std * biases, padding="same"))
        features = h.mean((-2, -1)) if kernel.pooling == "average" else h.flatten(1) / math.sqrt(height * width)
        found.append(features.double() @ features.mT.double() / channels)
    return kernel.weight_var.detach() * torch.stack(found) + kernel.bias_var.detach()


def test_values_are_those_of_wide_networks():
    """Null: the mean over 60 networks of 256 channels has the kernel's value.

    What is left at this width, 0.5 / 256 of the value (by 1500 networks of 96), is a fifth of the standard error. By
    Student's t with 59 degrees of freedom one of 6 entries for 2 poolings exceeds 5 of them in 1e-4 of all runs. The
    control: the kernels of the two poolings, which differ in nothing else, refuse each other's networks.
    """
    x = images_of(3, (5, 5, 1))
    kernels = {p: ConvNNGPKernel((5, 5, 1), 2, weight_var=1.8, bias_var=0.1, pooling=p) for p in ("none", "average")}
    expected = {pooling: kernel(x).to_dense().detach() for pooling, kernel in kernels.items()}
    rows, columns = torch.triu_indices(3, 3)
    for pooling, wrong in (("average", "none"), ("none", "average")):
        draws = wide_networks(x, kernels[pooling], 256, 60)
        error = draws.std(0) / math.sqrt(len(draws))
        z = {name: ((draws.mean(0) - value) / error)[rows, columns] for name, value in expected.items()}
        assert z[pooling].abs().max() < 5
        assert z[wrong].abs().max() > 20


@both_poolings
def test_one_pixel_is_the_dense_kernel(pooling):
    x, other = images_of(4), images_of(5)
    for readout in (True, False):
        dense = NNGPKernel(3, "gelu", 1.5, 0.3, readout=readout)
        kernel = ConvNNGPKernel((1, 1, 24), 3, "gelu", 1.5, 0.3, pooling=pooling, filter_size=1, readout=readout)
        torch.testing.assert_close(kernel(x, other).to_dense(), dense(x, other).to_dense(), rtol=ROUNDING, atol=0)
    wider = ConvNNGPKernel((1, 1, 24), 3, "gelu", 1.5, 0.3, pooling=pooling)  # 8 of the 9 pixels are zero
    assert not torch.allclose(wider(x, other).to_dense(), dense(x, other).to_dense(), rtol=0.1)


# --- one kernel, however it is asked --------------------------------------------------------------------------------


@both_poolings
@pytest.mark.parametrize("activation", ["relu", "sign"])
def test_the_diagonal_is_that_of_the_matrix(monkeypatch, pooling, activation):
    x, other = images_of(7), images_of(7)
    kernel = ConvNNGPKernel(SHAPE, 2, activation, pooling=pooling)
    for side in (7, 2):
        in_blocks(monkeypatch, kernel, side)
        full = kernel(x, other).to_dense()
        torch.testing.assert_close(kernel(x, other, diag=True), full.diagonal(), rtol=ROUNDING, atol=ROUNDING)
        torch.testing.assert_close(kernel(x, other).diagonal(), full.diagonal(), rtol=ROUNDING, atol=ROUNDING)
        torch.testing.assert_close(kernel(x, diag=True), kernel(x).to_dense().diagonal(), rtol=ROUNDING, atol=0)


@both_poolings
@pytest.mark.parametrize("side", [1, 3])
def test_blocks_make_one_matrix(monkeypatch, pooling, side):
    """Values and gradients, of one set of images with itself and of two, as many or not."""
    x, other = images_of(4).requires_grad_(), images_of(5).requires_grad_()
    kernel = ConvNNGPKernel(SHAPE, 2, "relu", pooling=pooling)
    inputs = [x, other, *kernel.parameters()]

    def everything() -> tuple[Tensor, ...]:
        among, across = kernel.forward(x, x), kernel.forward(x, other)
        total = (torch.arange(16.0).view(4, 4) * among).sum() + (torch.arange(20.0).view(4, 5) * across).sum()
        as_many = kernel.forward(x, other[:4])
        return among, kernel.forward(x, x.clone()), across, as_many, *torch.autograd.grad(total, inputs)

    whole = everything()
    in_blocks(monkeypatch, kernel, side)
    for got, expected in zip(everything(), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=ROUNDING, atol=1e-10)
    torch.testing.assert_close(whole[0], whole[1], rtol=ROUNDING, atol=0)


def test_gradients_keep_no_block(monkeypatch):
    """Only inputs are kept, so that less is than one layer has numbers; in one piece it is more."""
    kernel, x = ConvNNGPKernel((6, 6, 1), 3), images_of(20, (6, 6, 1))
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    for side, least, most in ((20, 20 * 20 * 36, math.inf), (7, 0, 20 * 20 * 36)):
        in_blocks(monkeypatch, kernel, side)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            kernel.forward(x, x)
        assert least < sum(kept) < most


@both_poolings
def test_batches_are_single_kernels(pooling):
    """Batches of hyperparameters, of images, and both, which broadcast."""
    kernel = ConvNNGPKernel(SHAPE, 2, "erf", pooling=pooling, batch_shape=torch.Size([2]))
    kernel.weight_var, kernel.bias_var = torch.tensor([[[0.5]], [[2.0]]]), torch.tensor([[[0.3]], [[0.1]]])
    x, other = torch.stack([images_of(3), images_of(3), images_of(3)])[:, None], images_of(4)
    together, diagonal = kernel(x, other).to_dense(), kernel(x, diag=True)
    assert together.shape == (3, 2, 3, 4)
    assert diagonal.shape == (3, 2, 3)
    for i, j in itertools.product(range(3), range(2)):
        alone = ConvNNGPKernel(SHAPE, 2, "erf", [0.5, 2.0][j], [0.3, 0.1][j], pooling=pooling)
        torch.testing.assert_close(together[i, j], alone(x[i, 0], other).to_dense(), rtol=ROUNDING, atol=0)
        torch.testing.assert_close(diagonal[i, j], alone(x[i, 0], diag=True), rtol=ROUNDING, atol=0)
    torch.testing.assert_close(kernel[1](other).to_dense(), kernel(other).to_dense()[1], rtol=ROUNDING, atol=0)


@both_poolings
@pytest.mark.parametrize("activation", ["relu", "erf", "gelu"])
def test_float32_is_near_float64(pooling, activation):
    """Also where images coincide; ten layers of rounding, 6e-8 each."""
    x = images_of(4)[[0, 1, 2, 3, 0]]
    kernel = ConvNNGPKernel(SHAPE, 3, activation, pooling=pooling)
    exact = kernel(x).to_dense()
    single = kernel.float()(x.float()).to_dense()
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=2e-6, atol=0)


def test_composes_with_gpytorchs_kernels():
    x = images_of(5)
    both = torch.cat([torch.randn(5, 2), x], 1)
    kernel = ConvNNGPKernel(SHAPE, active_dims=tuple(range(2, 26)))
    sum_of_two = ScaleKernel(kernel) + RBFKernel(active_dims=(0, 1))
    sum_of_two.kernels[0].outputscale = 3.0
    expected = 3 * ConvNNGPKernel(SHAPE)(x).to_dense() + sum_of_two.kernels[1](both).to_dense()
    torch.testing.assert_close(sum_of_two(both).to_dense(), expected, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(sum_of_two(both, diag=True), expected.diagonal(), rtol=ROUNDING, atol=0)


# --- gradients ------------------------------------------------------------------------------------------------------


def of_everything(kernel: ConvNNGPKernel) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def matrix(x: Tensor, raw_weight_var: Tensor, raw_bias_var: Tensor) -> Tensor:
        return functional_call(
            Dense(kernel), {"k.raw_weight_var": raw_weight_var, "k.raw_bias_var": raw_bias_var}, (x,)
        )

    return matrix


class Dense(nn.Module):
    """A kernel as a matrix."""

    def __init__(self, kernel: gpytorch.kernels.Kernel) -> None:
        super().__init__()
        self.k = kernel

    def forward(self, x: Tensor) -> Tensor:
        return self.k(x).to_dense()


@both_poolings
@pytest.mark.parametrize(("activation", "side"), [("relu", 4), ("relu", 3), ("erf", 4), ("gelu", 3)])
def test_gradients_are_right_at_a_duplicate_and_an_opposite(monkeypatch, pooling, activation, side):
    kernel = ConvNNGPKernel((2, 2, 1), 2, activation, pooling=pooling)
    in_blocks(monkeypatch, kernel, side)
    x, matrix = images_of(2, (2, 2, 1)), of_everything(kernel)
    x = torch.cat([x, x[:1], -x[1:]]).requires_grad_()
    raw = [torch.full((1, 1), value, requires_grad=True) for value in (0.4, -1.0)]
    assert torch.autograd.gradcheck(matrix, (x, *raw))


@pytest.mark.parametrize("side", [3, 2])
def test_second_derivatives_by_hyperparameters(monkeypatch, side):
    kernel = ConvNNGPKernel((2, 2, 1), 2, pooling="average")
    in_blocks(monkeypatch, kernel, side)
    x, matrix = images_of(3, (2, 2, 1)), of_everything(kernel)
    raw = [torch.full((1, 1), value, requires_grad=True) for value in (0.4, -1.0)]
    assert torch.autograd.gradgradcheck(lambda *raw: matrix(x, *raw), raw)


@both_poolings
@pytest.mark.parametrize("side", [5, 3])
def test_vmap_of_grad_is_a_loop(monkeypatch, pooling, side):
    kernel = ConvNNGPKernel(SHAPE, 2, pooling=pooling)
    in_blocks(monkeypatch, kernel, side)
    x, matrix = images_of(5), of_everything(kernel)
    raw = torch.randn(2, 4, 1, 1)
    derivative = grad(lambda *raw: matrix(x, *raw).square().sum(), argnums=(0, 1))
    together = vmap(derivative)(*raw)
    for i in range(4):
        alone = derivative(*raw[:, i])
        torch.testing.assert_close([part[i] for part in together], list(alone), rtol=1e-10, atol=1e-10)


@both_poolings
@pytest.mark.parametrize("activation", ["relu", "erf", "sign"])
def test_a_black_border_without_biases_has_finite_gradients(pooling, activation):
    """As digits have: there the variance before the nonlinearity is zero."""
    x = torch.zeros(3, 6, 6, 1)
    x[:2, 2:4, 2:4] = torch.rand(2, 2, 2, 1)  # the third is black all over
    x = x.flatten(1).requires_grad_()
    kernel = ConvNNGPKernel((6, 6, 1), 2, activation, bias_var=0.0, pooling=pooling)
    covariance = kernel.forward(x, x)
    gradients = torch.autograd.grad(covariance.sum(), [x, *kernel.parameters()])
    assert all(tensor.isfinite().all() for tensor in (covariance, *gradients))
    if activation != "sign":
        torch.testing.assert_close(covariance[2], torch.zeros(3), rtol=0, atol=1e-100)


# --- hyperparameters ------------------------------------------------------------------------------------------------


class Process(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood(noise_prior=GammaPrior(2.0, 4.0)))
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = ConvNNGPKernel(
            SHAPE, 2, weight_var_prior=GammaPrior(3.0, 2.0), bias_var_prior=GammaPrior(2.0, 10.0)
        )

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def test_is_a_pyro_program_whose_chains_broadcast():
    x, y = images_of(5), torch.randn(5)
    model = Process(x, y).double()

    def program(x: Tensor, y: Tensor) -> None:
        with gpytorch.settings.fast_computations(False, False, False):
            sampled = model.pyro_sample_from_prior()
            pyro.sample("y", sampled.likelihood(sampled(x)), obs=y)

    density = LogDensity(program, Arguments.of((x, y)))
    names = {site.name.removeprefix("covar_module.") for site in density.latents}
    assert names == {"weight_var_prior", "bias_var_prior", "likelihood.noise_covar.noise_prior"}
    assert density.batching == "broadcast"
    z = 0.5 * torch.randn(3, density.dim)
    values, gradients = density.value_and_grad(z)
    for i in range(3):
        torch.testing.assert_close((values[i], gradients[i]), density.value_and_grad(z[i]), rtol=1e-9, atol=1e-9)


def test_loads_draws_as_a_batch():
    kernel = ConvNNGPKernel(SHAPE, weight_var_prior=GammaPrior(3.0, 2.0), bias_var_prior=GammaPrior(2.0, 10.0))
    draws = {"weight_var_prior": torch.tensor([1.0, 2.0, 3.0]), "bias_var_prior": torch.tensor([0.1, 0.2, 0.3])}
    kernel.pyro_load_from_samples({name: value.view(3, 1, 1) for name, value in draws.items()})
    x = images_of(4)
    expected = torch.stack([ConvNNGPKernel(SHAPE, 3, "relu", i, i / 10)(x).to_dense() for i in (1.0, 2.0, 3.0)])
    torch.testing.assert_close(kernel(x).to_dense(), expected, rtol=ROUNDING, atol=0)


def test_without_biases_there_is_no_parameter():
    kernel, x = ConvNNGPKernel(SHAPE, bias_var=0.0), images_of(3)
    assert [name for name, _ in kernel.named_parameters()] == ["raw_weight_var"]
    torch.testing.assert_close(kernel(2 * x).to_dense(), 4 * kernel(x).to_dense(), rtol=ROUNDING, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filter_size": 4}, r"filter_size: expected an odd number.*got 4\. Change the setting filter_size="),
        ({"filter_size": 0}, r"filter_size: expected an odd number.*got 0"),
        ({"pooling": "max"}, r"pooling: expected 'none' or 'average', got 'max'"),
        ({"image_shape": (8, 8)}, r"image_shape: expected \(height, width, channels\), got \(8, 8\)"),
        ({"image_shape": (8, 0, 3)}, r"image_shape: .*got \(8, 0, 3\)"),
        ({"depth": 0}, r"depth: expected at least 1"),
    ],
)
def test_settings_of_no_network_are_refused(settings, message):
    with pytest.raises(ProgramError, match=message):
        ConvNNGPKernel(**({"image_shape": SHAPE} | settings))


@pytest.mark.parametrize(("x", "got"), [(torch.ones(5, 23), 23), (torch.ones(5, 4, 3, 2), 2), (torch.ones(24), 1)])
def test_rows_of_another_length_are_refused(x, got):
    """Among them images that are not flattened, and one image alone, which GPyTorch takes for a column."""
    message = rf"expected 4 \* 3 \* 2 = 24 columns.*\(4, 3, 2\), got {got}\. Flatten each image"
    with pytest.raises(DataError, match=message):
        ConvNNGPKernel(SHAPE)(x).to_dense()


def test_activations_of_ones_own():
    x = images_of(3)
    named, own = (ConvNNGPKernel(SHAPE, 2, activation) for activation in ("erf", activation_of("erf")))
    assert torch.equal(named(x).to_dense(), own(x).to_dense())
