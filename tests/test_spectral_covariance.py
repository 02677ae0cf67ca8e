"""Covariances of spectral mixtures made tile by tile: against plain formulas, finite differences and loops."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from probmix import spectral_covariance as module
from probmix.spectra import GaussianSpectrum, StudentTSpectrum, term_derivative
from probmix.spectral_covariance import spectral_covariance

GAUSSIAN = GaussianSpectrum()
SPECTRA = (GAUSSIAN, StudentTSpectrum(5), StudentTSpectrum(3), StudentTSpectrum(1))
every_spectrum = pytest.mark.parametrize("spectrum", SPECTRA, ids=str)


@pytest.fixture
def tiles(monkeypatch) -> Callable[[int], None]:
    """Let a tile have so many rows, and as many columns as make so many numbers."""

    def to(side: int, numbers: int | None = None) -> None:
        monkeypatch.setattr("probmix.tiles._TILE", side**2 if numbers is None else numbers)
        monkeypatch.setattr("probmix.tiles._LEAST_SIDE", side)

    return to


SIZES = ((100, None), (3, None), (2, 40), (1, None))  # whole, square, tall, one number


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(num: int = 3, columns: int = 2, *batch: int, seed: int = 7) -> list[Tensor]:
    """Weights, frequencies and bandwidths."""
    weights, frequencies, bandwidths = (
        random(*batch, *shape, seed=seed + i) for i, shape in enumerate([(num,), (num, columns), (num, columns)])
    )
    return [weights.exp(), frequencies.abs(), 0.2 * bandwidths.exp()]


def plain(x1: Tensor, x2: Tensor, weights: Tensor, frequencies: Tensor, bandwidths: Tensor, shape: Any) -> np.ndarray:
    """The formula with NumPy, as Wilson and Adams (2013) and Rasmussen and Williams (2006) print it."""
    lag = x1.numpy()[..., :, None, None, :] - x2.numpy()[..., None, :, None, :]  # (n, m, 1, d)
    r = 2 * np.pi * bandwidths.numpy() * np.abs(lag)
    envelope = {
        0: lambda: np.exp(-0.5 * r**2),
        1: lambda: np.exp(-r),
        3: lambda: (1 + np.sqrt(3) * r) * np.exp(-np.sqrt(3) * r),
        5: lambda: (1 + np.sqrt(5) * r + 5 / 3 * r**2) * np.exp(-np.sqrt(5) * r),
    }[shape.df]()
    factors = envelope * np.cos(2 * np.pi * frequencies.numpy() * lag)
    return (weights.numpy() * factors.prod(-1)).sum(-1)


# --- values ---------------------------------------------------------------------------------------------------------


@every_spectrum
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_values_are_those_of_the_plain_formula(spectrum, columns, tiles):
    """In tiles of all shapes; rounding of phases of some hundred radians is 1e-14 of them."""
    x1, x2 = random(11, columns) + 3, random(7, columns, seed=1)
    parameters = mixture(4, columns)
    expected = plain(x1, x2, *parameters, spectrum)
    among = plain(x1, x1, *parameters, spectrum)
    for size in SIZES:
        tiles(*size)
        np.testing.assert_allclose(spectral_covariance(x1, x2, *parameters, spectrum), expected, atol=1e-12)
        found = spectral_covariance(x1, x1, *parameters, spectrum, symmetric=True)
        np.testing.assert_allclose(found, among, atol=1e-12)
        assert torch.equal(found, found.mT)
        torch.testing.assert_close(found.diagonal(), parameters[0].sum().expand(11), rtol=1e-14, atol=0)


def test_leading_axes_are_batches(tiles):
    """Of rows and of each parameter, broadcast against each other: as one by one, gradients too."""
    x1, x2 = random(2, 1, 5, 2), random(4, 2, seed=1)
    weights, frequencies, bandwidths = mixture(3, 2, 3)
    frequencies = frequencies[0]  # without the batch that the others have
    inputs = [t.requires_grad_() for t in (x1, x2, weights, frequencies, bandwidths)]
    one_by_one = torch.stack(
        [
            torch.stack([spectral_covariance(x1[i, 0], x2, weights[j], frequencies, bandwidths[j], GAUSSIAN)
                         for j in range(3)])
            for i in range(2)
        ]
    )  # fmt: skip
    factors = random(2, 3, 5, 4, seed=9)
    expected = torch.autograd.grad((one_by_one * factors).sum(), inputs)
    for size in SIZES:
        tiles(*size)
        batch = spectral_covariance(*inputs, GAUSSIAN)
        assert batch.shape == (2, 3, 5, 4)
        torch.testing.assert_close(batch, one_by_one, rtol=1e-12, atol=1e-13)
        found = torch.autograd.grad((batch * factors).sum(), inputs)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_no_rows_have_no_covariance():
    none, x, parameters = torch.zeros(0, 2).double().requires_grad_(), random(5, 2), mixture()
    assert spectral_covariance(none, none, *parameters, GAUSSIAN, symmetric=True).shape == (0, 0)
    for pair, shape in (((none, x), (0, 5)), ((x, none), (5, 0))):
        out = spectral_covariance(*pair, *parameters, GAUSSIAN)
        assert out.shape == shape
        assert torch.autograd.grad(out.sum(), none)[0].shape == (0, 2)


@every_spectrum
def test_float32_keeps_its_digits_far_from_the_origin(spectrum):
    """Hours counted from 1914: phases are of differences from the first row.

    Inputs are multiples of 1/8, exact in float32; a phase of 2 pi 0.05 1000 = 314 radians is rounded by 3e-5. The
    control: the operation itself, which takes phases of what it is given.
    """
    x = torch.arange(0, 1000, 12.5).double()[:, None] + 1_000_000
    parameters = [torch.ones(1).double(), torch.full((1, 1), 0.05).double(), torch.full((1, 1), 1e-4).double()]
    right = spectral_covariance(x, x, *parameters, spectrum, symmetric=True)
    single = [t.float() for t in parameters]
    found = spectral_covariance(x.float(), x.float(), *single, spectrum)
    assert found.dtype == torch.float32
    assert float((found.double() - right).abs().max()) < 2e-4
    control = module._forwards(x.float(), x.float(), *single, spectrum.df, False)
    assert float((control.double() - right).abs().max()) > 5e-3


# --- gradients ------------------------------------------------------------------------------------------------------

# Rows 0 and 3 are one, and so is the first of the others.
X = torch.tensor([[0.8, -0.4], [-0.8, 0.4], [0.3, 1.1], [0.8, -0.4]], dtype=torch.float64)
OTHER = torch.tensor([[0.8, -0.4], [0.3, 0.2], [-0.5, 0.4]], dtype=torch.float64)


@every_spectrum
@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_differences(spectrum, size, tiles):
    """By rows too, where inputs coincide; there the Matern-1/2 has a tip, so of parameters alone."""
    tiles(*size)
    smooth = spectrum.smoothness > 0
    x, other = X.clone().requires_grad_(smooth), OTHER.clone().requires_grad_(smooth)
    parameters = [t.requires_grad_() for t in mixture()]
    assert torch.autograd.gradcheck(
        lambda x, *p: spectral_covariance(x, x, *p, spectrum, symmetric=True), [x, *parameters]
    )
    assert torch.autograd.gradcheck(lambda x, z, *p: spectral_covariance(x, z, *p, spectrum), [x, other, *parameters])


@every_spectrum
@pytest.mark.parametrize("symmetric", [True, False])
def test_second_derivatives_are_differences(spectrum, symmetric, tiles):
    """By all inputs, rows that coincide too where the kernel has four derivatives there; else rows apart."""
    tiles(2)
    x, other = X[:3].clone().requires_grad_(), OTHER.clone().requires_grad_()
    if spectrum.smoothness < 4:
        with torch.no_grad():
            other += 0.1
    parameters = [t.requires_grad_() for t in mixture(2)]

    def function(x: Tensor, other: Tensor, *parameters: Tensor) -> Tensor:
        return spectral_covariance(x, x if symmetric else other, *parameters, spectrum, symmetric=symmetric)

    inputs = [x, other, *parameters] if not symmetric else [x, other.detach(), *parameters]
    assert torch.autograd.gradgradcheck(function, inputs, atol=2e-5)


@pytest.mark.parametrize("spectrum", SPECTRA[:3], ids=str)
def test_second_derivatives_by_rows_that_coincide_are_the_closed_form(spectrum):
    """Rows of two sets, so that nothing cancels: through an autograd of |x - x'| the envelope's part is lost."""
    weights, frequencies, bandwidths = mixture(3, 1)
    x, z = torch.zeros(1, 1).double().requires_grad_(), torch.zeros(1, 1).double().requires_grad_()
    k = spectral_covariance(x, z, weights, frequencies, bandwidths, spectrum)
    (slope,) = torch.autograd.grad(k.sum(), x, create_graph=True)
    by_x, by_z = torch.autograd.grad(slope.sum(), [x, z])
    terms = term_derivative(torch.zeros(()).double(), frequencies[:, 0], bandwidths[:, 0], spectrum, 2)
    right = (weights * terms).sum()
    torch.testing.assert_close(by_x.squeeze(), right, rtol=1e-12, atol=0)
    torch.testing.assert_close(by_z.squeeze(), -right, rtol=1e-12, atol=0)


def test_at_the_tip_of_a_matern_gradients_are_finite():
    x, parameters = X.clone().requires_grad_(), [t.requires_grad_() for t in mixture()]
    k = spectral_covariance(x, x, *parameters, StudentTSpectrum(1), symmetric=True)
    (slope,) = torch.autograd.grad(k.square().sum(), x, create_graph=True)
    second = torch.autograd.grad(slope.square().sum(), [x, *parameters])
    assert all(t.isfinite().all() for t in (slope, *second))


def test_gradients_of_some_inputs_alone(tiles):
    """What is not asked for is not made, and changes nothing."""
    tiles(2)
    inputs = [X, OTHER, *mixture()]
    tracked = [t.clone().requires_grad_() for t in inputs]
    everything = torch.autograd.grad(spectral_covariance(*tracked, GAUSSIAN).square().sum(), tracked)
    for wanted in range(5):
        mixed = [tracked[i] if i == wanted else t for i, t in enumerate(inputs)]
        (alone,) = torch.autograd.grad(spectral_covariance(*mixed, GAUSSIAN).square().sum(), mixed[wanted])
        torch.testing.assert_close(alone, everything[wanted], rtol=1e-14, atol=0)


# --- torch.func and tracing -----------------------------------------------------------------------------------------


def total(x: Tensor, other: Tensor, *parameters: Tensor) -> Tensor:
    among = spectral_covariance(x, x, *parameters, StudentTSpectrum(5), symmetric=True)
    return among.square().sum() + spectral_covariance(x, other, *parameters, GAUSSIAN).square().sum()


@pytest.mark.parametrize("mapped", [m for m in product([True, False], repeat=5) if any(m)])
def test_vmap_of_grad_is_a_loop(mapped, tiles):
    """Over any of the inputs, each with its axis at a different place; the batch is as long as there are rows."""
    tiles(2)
    inputs = [X, OTHER, *mixture()]
    batch = [torch.stack([t, 1.1 * t, 0.9 * t, 1.2 * t], -1) if m else t for t, m in zip(inputs, mapped, strict=True)]
    axes = tuple(-1 if m else None for m in mapped)
    found = vmap(grad(total, tuple(range(5))), axes)(*batch)
    for draw in range(4):
        one = [(t[..., draw] if m else t).clone().requires_grad_() for t, m in zip(batch, mapped, strict=True)]
        expected = torch.autograd.grad(total(*one), one)
        torch.testing.assert_close([f[draw] for f in found], list(expected), rtol=1e-10, atol=1e-11)


def test_vmap_over_one_input_where_others_have_a_batch():
    """The two axes do not meet, though both have length 3."""
    x, (weights, frequencies, bandwidths) = random(3, 4, 2), mixture(2, 2, 3)

    def squares(x: Tensor, weights: Tensor) -> Tensor:
        return spectral_covariance(x, x, weights, frequencies[0], bandwidths, GAUSSIAN, symmetric=True).square().sum()

    for function in (lambda x, w: spectral_covariance(x, x, w, frequencies[0], bandwidths, GAUSSIAN), grad(squares),
                     grad(squares, 1)):  # fmt: skip
        found = vmap(function, (None, 0))(x, weights)
        torch.testing.assert_close(found, torch.stack([function(x, w) for w in weights]), rtol=1e-10, atol=1e-11)


def test_hessians_by_torch_func(tiles):
    tiles(2)
    inputs = [X[:3], OTHER, *mixture(2)]
    for argnum in range(5):

        def function(value: Tensor, argnum: int = argnum) -> Tensor:
            return total(*[value if i == argnum else t for i, t in enumerate(inputs)])

        found = jacrev(jacrev(function))(inputs[argnum])
        expected = torch.autograd.functional.hessian(function, inputs[argnum])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_each_direction_is_one_node_of_a_graph(tiles):
    """However many tiles there are; here two covariances, and gradients of a batch, as the inference layer's."""
    tiles(2)
    weights, frequencies, bandwidths = mixture(2, 2, 3)
    x = random(9, 2)
    function = vmap(grad(lambda w, f, v: total(x, OTHER, w, f, v), (0, 1, 2)))
    graph = make_fx(function)(weights, frequencies, bandwidths)
    ours = [str(node.target) for node in graph.graph.nodes if "probmix" in str(node.target)]
    name = "probmix.spectral_covariance"
    assert ours == [f"{n}.default" for n in 2 * [name] + 2 * [f"{name}_gradient"]]
    other = [1.1 * weights, 0.9 * frequencies, 1.2 * bandwidths]
    torch.testing.assert_close(graph(*other), function(*other), rtol=1e-13, atol=1e-13)


@every_spectrum
@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_the_operations_are_what_they_say(spectrum, by_rows, batch):
    """Torch's own checks of custom operations: schemas, and shapes foretold without numbers."""
    inputs = random(6, 2), random(4, 2), *mixture(3, 2, *batch), spectrum.df, False
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(module._forwards, inputs, test_utils=checks)
    torch.library.opcheck(module._backwards, (random(*batch, 6, 4), *inputs, by_rows), test_utils=checks)


# --- memory ---------------------------------------------------------------------------------------------------------


class Sizes(TorchDispatchMode):
    """The numbers in every tensor that an operation has made."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {a.untyped_storage().data_ptr() for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)}
        new = [o for o in tree_leaves(out) if isinstance(o, Tensor) and o.untyped_storage().data_ptr() not in known]
        self.found += [o.numel() for o in new]
        return out


@every_spectrum
@pytest.mark.parametrize("symmetric", [True, False])
def test_nothing_of_the_size_of_the_matrix_is_made_but_the_matrix(spectrum, symmetric, tiles):
    """The control: whole matrices, one for each component, when a tile holds them all."""
    x, parameters = random(60, 2), mixture(4)
    inputs = x, x, *parameters, spectrum.df, symmetric
    tiles(5, 4 * 25)
    most = 4 * 2 * 60 * 2 * 2  # a few numbers for each row
    with Sizes() as made:
        out = module._values(*inputs)
    assert [size for size in made.found if size > most] == [60 * 60]
    gradient = torch.ones_like(out)
    with Sizes() as made:
        module._gradients(gradient, *inputs, True)
    assert [size for size in made.found if size > most] == []
    tiles(1000)
    with Sizes() as made:
        module._values(*inputs)
    assert made.found.count(4 * 60 * 60) > 2


def test_nothing_is_kept_for_the_gradient_but_the_inputs():
    """The control: torch's own recording of the same formula keeps matrices for each component."""

    def most_kept(function: Callable[..., Tensor], inputs: list[Tensor]) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            function(*inputs)
        return max(sizes)

    def recorded(x: Tensor, weights: Tensor, frequencies: Tensor, bandwidths: Tensor) -> Tensor:
        part = module._Tile(x, x, frequencies, bandwidths, GAUSSIAN)
        return torch.einsum("q,qnm->nm", weights, part.product)

    inputs = [t.requires_grad_() for t in (random(50, 2), *mixture(4))]
    ours = most_kept(lambda x, *p: spectral_covariance(x, x, *p, GAUSSIAN, symmetric=True), inputs)
    assert ours == 50 * 2
    assert most_kept(recorded, inputs) >= 4 * 50 * 50
