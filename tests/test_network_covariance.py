"""Covariances made tile by tile: against a plain recursion, finite differences, and wide random networks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from probmix import network_covariance
from probmix.dual_activations import Erf, activation_of
from probmix.network_covariance import WideLimit, covariance, tangent_covariance, variance

SMOOTH = ("erf", "gelu", "sin", "cos")
JUMPS = ("step", "sign")
NAMES = ("relu", "leaky_relu", *SMOOTH, *JUMPS)
WEIGHT_VAR, BIAS_VAR = (torch.tensor([[v]], dtype=torch.float64) for v in (1.7, 0.3))
# Rows 0 and 3 are one, row 1 is the opposite of row 0 (as of inputs without biases), row 4 is zero.
X = torch.tensor([[0.8, -0.4], [-0.8, 0.4], [0.3, 1.1], [0.8, -0.4], [0.0, 0.0]], dtype=torch.float64)
OTHER = torch.tensor([[0.3, 1.1], [-0.3, -1.1], [0.5, 0.5], [0.0, 0.0]], dtype=torch.float64)
every_name = pytest.mark.parametrize("name", NAMES)
ARCHITECTURES = ({"residual": True}, {"readout": False}, {"residual": True, "readout": False})
every_network = pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in NAMES), *((name, a) for name in ("relu", "erf") for a in ARCHITECTURES)],
)


@pytest.fixture
def tiles(monkeypatch) -> Callable[[int], None]:
    """Let a tile have so many rows."""

    def to(side: int) -> None:
        monkeypatch.setattr("probmix.tiles._TILE", side**2)
        monkeypatch.setattr("probmix.tiles._LEAST_SIDE", side)

    return to


def rows_of(num: int, columns: int = 3, *batch: int, seed: int = 0) -> Tensor:
    return torch.randn(*batch, num, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tangent(x1: Tensor, x2: Tensor, weight_var: Tensor, bias_var: Tensor, limit: WideLimit) -> Tensor:
    squares = [x.square().sum(-1) / x.shape[-1] for x in (x1, x2)]
    products = x1 @ x2.mT / x1.shape[-1]
    return tangent_covariance(products, squares[0][..., None], squares[1][..., None, :], weight_var, bias_var, limit)


# --- values ---------------------------------------------------------------------------------------------------------


def plain(name: str, x1: Tensor, x2: Tensor, weight_var: float, bias_var: float, depth: int, **settings: bool) -> Any:
    """The recursion for whole matrices, with NumPy, as Cho and Saul (2009) and Williams (1997) print it."""
    both = np.concatenate([x1, x2])
    k = weight_var * both @ both.T / both.shape[1] + bias_var
    for layer in range(1, depth + 1):
        q = k.diagonal()
        if name == "relu":
            norm = np.sqrt(np.outer(q, q))
            angle = np.arccos(np.clip(k / norm, -1, 1))
            dual = norm / (2 * np.pi) * (np.sin(angle) + (np.pi - angle) * np.cos(angle))
        else:
            dual = 2 / np.pi * np.arcsin(2 * k / np.sqrt(np.outer(1 + 2 * q, 1 + 2 * q)))
        last = layer == depth
        new = dual if last and not settings.get("readout", True) else weight_var * dual + bias_var
        k = k + new if settings.get("residual") and not last else new
    return k[: len(x1), len(x1) :]


@pytest.mark.parametrize("name", ["relu", "erf"])
@pytest.mark.parametrize("settings", [{}, *ARCHITECTURES])
def test_values_are_those_of_the_plain_recursion(name, settings, tiles):
    x1, x2 = rows_of(7), rows_of(5, seed=1)
    for depth in (1, 4):
        expected = plain(name, x1, x2, 1.7, 0.3, depth, **settings)
        limit = WideLimit(activation_of(name), depth, **settings)
        for side in (100, 3, 1):
            tiles(side)
            np.testing.assert_allclose(covariance(x1, x2, WEIGHT_VAR, BIAS_VAR, limit), expected, rtol=1e-13)


@every_network
def test_symmetry_and_the_diagonal(name, settings, tiles):
    """One matrix, whether it is known to be symmetric or not; its diagonal without it; and of pairs of two sets."""
    limit, other = WideLimit(activation_of(name), 3, **settings), OTHER.repeat(2, 1)[: len(X)]
    for side in (100, 2):
        tiles(side)
        full = covariance(X, X.clone(), WEIGHT_VAR, BIAS_VAR, limit)
        once = covariance(X, X, WEIGHT_VAR, BIAS_VAR, limit, symmetric=True)
        torch.testing.assert_close(once, full, rtol=1e-14, atol=1e-15)
        for x in (X, other):
            across = covariance(X, x.clone(), WEIGHT_VAR, BIAS_VAR, limit).diagonal()
            # An angle near 0 is the root of a rounding error: 1e-8 of a jump, nothing of the others.
            rounding = 1e-7 if name in JUMPS else 1e-13
            torch.testing.assert_close(variance(X, x, WEIGHT_VAR, BIAS_VAR, limit), across, rtol=rounding, atol=1e-14)


def test_leading_axes_are_batches(tiles):
    """Of rows and of hyperparameters, broadcast against each other: as one by one, gradients too."""
    x1, x2 = rows_of(5, 3, 2, 1), rows_of(4, seed=1)
    weight_var = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[:, None, None].requires_grad_()
    bias_var = torch.tensor([[[0.1]], [[0.2]], [[0.3]]], dtype=torch.float64).requires_grad_()
    limit, generator = WideLimit(activation_of("relu"), 2), torch.Generator().manual_seed(3)
    weights = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    inputs = [x1.requires_grad_(), x2.requires_grad_(), weight_var, bias_var]
    one_by_one = torch.stack(
        [torch.stack([covariance(x1[i, 0], x2, weight_var[j], bias_var[j], limit) for j in range(3)]) for i in range(2)]
    )
    expected = torch.autograd.grad((one_by_one * weights).sum(), inputs)
    for side in (100, 2):
        tiles(side)
        batch = covariance(*inputs, limit)
        torch.testing.assert_close(batch, one_by_one, rtol=1e-13, atol=0)
        torch.testing.assert_close(torch.autograd.grad((batch * weights).sum(), inputs), expected, rtol=1e-12, atol=0)


def test_no_rows_have_no_covariance():
    limit, none = WideLimit(activation_of("relu"), 2), torch.zeros(0, 2, dtype=torch.float64, requires_grad=True)
    assert covariance(none, none, WEIGHT_VAR, BIAS_VAR, limit, symmetric=True).shape == (0, 0)
    out = covariance(none, X, *hyperparameters(), limit)
    assert out.shape == (0, 5)
    assert torch.autograd.grad(out.sum(), none)[0].shape == (0, 2)


# --- gradients ------------------------------------------------------------------------------------------------------


def hyperparameters() -> list[Tensor]:
    return [WEIGHT_VAR.clone().requires_grad_(), BIAS_VAR.clone().requires_grad_()]


@every_network
def test_gradients_where_inputs_coincide_are_opposite_or_zero(name, settings, tiles):
    """Of hyperparameters and inputs; jumps have a cusp at coincident inputs, so there of hyperparameters alone."""
    limit = WideLimit(activation_of(name), 3, **settings)
    tiles(2)
    x = X.clone().requires_grad_(name not in JUMPS)
    other = OTHER.clone().requires_grad_(name not in JUMPS)
    assert torch.autograd.gradcheck(lambda x, *h: covariance(x, x, *h, limit, symmetric=True), [x, *hyperparameters()])
    assert torch.autograd.gradcheck(lambda x, z, *h: covariance(x, z, *h, limit), [x, other, *hyperparameters()])
    assert torch.autograd.gradcheck(lambda x, *h: variance(x, x, *h, limit), [x, *hyperparameters()])


@every_name
def test_second_derivatives(name, tiles):
    """Those of a rectifier by coincident inputs have a kink: finite differences are off by their step, 1e-6."""
    limit = WideLimit(activation_of(name), 2, residual=True)
    tiles(2)
    x = X[:4].clone().requires_grad_(name not in JUMPS)
    assert torch.autograd.gradgradcheck(
        lambda x, *h: covariance(x, x, *h, limit, symmetric=True), [x, *hyperparameters()], atol=1e-4
    )


@pytest.mark.parametrize("name", ["erf", "gelu", "relu"])
@pytest.mark.parametrize("settings", [{}, *ARCHITECTURES])
def test_gradients_of_the_tangent_kernel(name, settings):
    """With a ReLU it has a cusp at coincident inputs, so there of hyperparameters alone."""
    limit = WideLimit(activation_of(name), 3, **settings)
    x = X.clone().requires_grad_(name in SMOOTH)
    assert torch.autograd.gradcheck(lambda x, *h: tangent(x, x, *h, limit), [x, *hyperparameters()])


def test_without_biases_opposite_inputs_stay_opposite():
    """Correlations of -1 and 1 in the first layer; at a zero row is the tip of a cone."""
    limit, none = WideLimit(activation_of("relu"), 3), torch.zeros(1, 1, dtype=torch.float64)
    x, weight_var = X.clone().requires_grad_(), WEIGHT_VAR.clone().requires_grad_()
    out = covariance(x, x, weight_var, none, limit, symmetric=True)
    assert float(out[0, 1].detach()) == pytest.approx(float(plain("relu", X[:1], X[1:2], 1.7, 0.0, 3)[0, 0]), abs=1e-14)
    gradient, by_weight = torch.autograd.grad(out[:, :4].sum(), [x, weight_var])
    assert gradient.isfinite().all()
    assert float(by_weight) == pytest.approx(4 * float(out[:, :4].detach().sum()) / 1.7, rel=1e-12)  # Euler, degree 4
    x = X[:4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: covariance(x, x, w, none, limit, symmetric=True), [x, weight_var])


def test_gradients_of_some_inputs_alone(tiles):
    """What is not asked for is not made, and changes nothing."""
    tiles(2)
    limit = WideLimit(activation_of("gelu"), 2)
    inputs = [X, OTHER, WEIGHT_VAR, BIAS_VAR]
    tracked = [t.clone().requires_grad_() for t in inputs]
    everything = torch.autograd.grad(covariance(*tracked, limit).square().sum(), tracked)
    for wanted in range(4):
        mixed = [tracked[i] if i == wanted else t for i, t in enumerate(inputs)]
        (alone,) = torch.autograd.grad(covariance(*mixed, limit).square().sum(), mixed[wanted])
        torch.testing.assert_close(alone, everything[wanted], rtol=1e-14, atol=0)


# --- torch.func and tracing -----------------------------------------------------------------------------------------


def total(x: Tensor, weight_var: Tensor, bias_var: Tensor) -> Tensor:
    limit = WideLimit(activation_of("relu"), 2)
    return (covariance(x, x, weight_var, bias_var, limit, symmetric=True) + covariance(
        x, OTHER[:1], weight_var, bias_var, limit
    )).square().sum()  # fmt: skip


@pytest.mark.parametrize("argnum", [0, 1, 2])
def test_vmap_of_grad_is_a_loop(argnum, tiles):
    tiles(2)
    inputs = [rows_of(5, 2), WEIGHT_VAR, BIAS_VAR]
    batch = torch.stack([inputs[argnum] * factor for factor in (1.0, 1.1, 1.2)])
    axes = tuple(0 if i == argnum else None for i in range(3))
    mapped = [batch if i == argnum else x for i, x in enumerate(inputs)]
    found = vmap(grad(total, (0, 1, 2)), axes)(*mapped)
    for draw in range(3):
        one = [x.clone().requires_grad_() for x in (batch[draw] if i == argnum else x for i, x in enumerate(inputs))]
        expected = torch.autograd.grad(total(*one), one)
        torch.testing.assert_close([f[draw] for f in found], list(expected), rtol=1e-12, atol=1e-13)


def test_traced_it_is_the_same_function(tiles):
    tiles(2)
    x, limit = rows_of(3, 2), WideLimit(activation_of("relu"), 1)
    many = torch.stack([WEIGHT_VAR, 2 * WEIGHT_VAR])

    def function(x: Tensor, many: Tensor, bias_var: Tensor) -> Tensor:
        return vmap(grad(lambda w: covariance(x, x, w, bias_var, limit, symmetric=True).square().sum()))(many)

    graph = make_fx(function)(x, 3 * many, BIAS_VAR)
    torch.testing.assert_close(graph(x, many, BIAS_VAR), function(x, many, BIAS_VAR), rtol=1e-14, atol=0)


def test_hessians_by_torch_func(tiles):
    """Twice reverse, over a weight variance and an input, against autograd."""
    tiles(2)
    x = rows_of(4, 2)
    for argnum, at in ((1, WEIGHT_VAR), (0, x)):
        arguments = [x, WEIGHT_VAR, BIAS_VAR]

        def function(value: Tensor, argnum: int = argnum, arguments: list[Tensor] = arguments) -> Tensor:
            return total(*[value if i == argnum else a for i, a in enumerate(arguments)])

        found = jacrev(jacrev(function))(at)
        expected = torch.autograd.functional.hessian(function, at)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# --- graphs ---------------------------------------------------------------------------------------------------------


def test_each_direction_is_one_node_of_a_graph(tiles):
    """However many tiles there are; here two covariances, and gradients of a batch, as the inference layer's."""
    tiles(2)
    x, weight_vars = rows_of(9, 2), torch.tensor([0.5, 1.7, 3.0], dtype=torch.float64)[:, None, None]
    function = vmap(grad(lambda weight_var: total(x, weight_var, BIAS_VAR)))
    graph = make_fx(function)(weight_vars)
    ours = [str(node.target) for node in graph.graph.nodes if "probmix" in str(node.target)]
    assert ours == [f"probmix.{name}.default" for name in 2 * ["wide_covariance"] + 2 * ["wide_covariance_gradient"]]
    torch.testing.assert_close(graph(weight_vars), function(weight_vars), rtol=1e-14, atol=0)
    one_by_one = torch.stack([grad(lambda w: total(x, w, BIAS_VAR))(w) for w in weight_vars])
    torch.testing.assert_close(graph(weight_vars), one_by_one, rtol=1e-12, atol=0)


class Loud(Erf):
    """Two of them compare equal, as Erf is a dataclass without fields."""

    def __init__(self, gain: float) -> None:
        object.__setattr__(self, "gain", gain)

    def dual(self, k: Tensor, q1: Tensor, q2: Tensor) -> Tensor:
        return self.gain**2 * super().dual(k, q1, q2)


def test_activations_that_compare_equal_are_told_apart():
    low, high = (covariance(X, X.clone(), WEIGHT_VAR, BIAS_VAR, WideLimit(Loud(g), 1, readout=False)) for g in (1, 2))
    torch.testing.assert_close(high, 4 * low, rtol=1e-14, atol=0)


def test_copies_of_an_architecture_share_their_graphs():
    limit = WideLimit(activation_of("relu"), 2)
    number = network_covariance._number_of
    assert number(copy.deepcopy(limit)) == number(replace(limit)) == number(limit)
    assert number(replace(limit, residual=True)) != number(limit)


def test_vmap_over_one_input_where_another_has_a_batch():
    """Values and gradients are those of a loop: the two axes do not meet, though both have length 3."""
    limit, x = WideLimit(activation_of("erf"), 2), rows_of(4, 3, 3)
    weight_vars = torch.tensor([0.5, 1.7, 3.0], dtype=torch.float64)[:, None, None]

    def squares(x: Tensor, weight_var: Tensor) -> Tensor:
        return covariance(x, x, weight_var, BIAS_VAR, limit, symmetric=True).square().sum()

    for function in (lambda x, w: covariance(x, x, w, BIAS_VAR, limit), grad(squares), grad(squares, 1)):
        found = vmap(function, (None, 0))(x, weight_vars)
        torch.testing.assert_close(found, torch.stack([function(x, w) for w in weight_vars]), rtol=1e-12, atol=1e-14)
    q, number = network_covariance._variances(x, WEIGHT_VAR, BIAS_VAR, limit), network_covariance._number_of(limit)
    pull = partial(network_covariance._backwards, rows_of(4, 4, 3), x, x, q, q)
    parts = vmap(lambda weight_var: tuple(pull(weight_var, BIAS_VAR, number, False, True)))(weight_vars)
    assert [part.shape for part in parts] == [(3, *t.shape) for t in (x, x, q, q, WEIGHT_VAR, BIAS_VAR)]


@pytest.mark.parametrize("by_rows", [True, False])
def test_the_operations_are_what_they_say(by_rows):
    """Torch's own checks of custom operations: schemas, and shapes foretold without numbers."""
    limit, x = WideLimit(activation_of("relu"), 2), rows_of(6, 3, 2)
    q = network_covariance._variances(x, WEIGHT_VAR, BIAS_VAR, limit)
    inputs = x, x, q, q, WEIGHT_VAR, BIAS_VAR, network_covariance._number_of(limit), True
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(network_covariance._forwards, inputs, test_utils=checks)
    torch.library.opcheck(network_covariance._backwards, (rows_of(6, 6, 2), *inputs, by_rows), test_utils=checks)


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


def test_nothing_of_the_size_of_the_matrix_is_made_but_the_matrix(tiles):
    """The control: the tangent kernel, which is made in one piece."""
    tiles(10)
    limit, x = WideLimit(activation_of("relu"), 12), rows_of(50)
    q = network_covariance._variances(x, WEIGHT_VAR, BIAS_VAR, limit)
    inputs = x, x, q, q, WEIGHT_VAR, BIAS_VAR, network_covariance._number_of(limit), True
    with Sizes() as made:
        out = network_covariance._values(*inputs)
    assert [size for size in made.found if size > 12 * 50] == [50 * 50]
    with Sizes() as made:
        network_covariance._gradients(torch.ones_like(out), *inputs, True)
    assert [size for size in made.found if size > 12 * 50] == [50 * 50]  # that of the ones
    with Sizes() as made:
        tangent(x, x, *hyperparameters(), limit)
    assert sum(size == 50 * 50 for size in made.found) > 12


# --- the tangent kernel of networks that exist ----------------------------------------------------------------------


def empirical_tangent(x: Tensor, width: int, limit: WideLimit, seed: int) -> Tensor:
    """Inner products of the gradients of one network's outputs by its standard normal parameters, (n, n)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [x.shape[1], *[width] * limit.depth, 1]
    parameters = [
        (torch.randn(a, b, generator=generator, dtype=torch.float64), torch.randn(b, generator=generator).double())
        for a, b in pairwise(sizes)
    ]

    def network(parameters: list[tuple[Tensor, Tensor]], row: Tensor) -> Tensor:
        h = row
        for layer, (weight, bias) in enumerate(parameters):
            plain = layer == limit.depth and not limit.readout
            into = h if layer == 0 else limit.activation(h)
            new = (1.0 if plain else math.sqrt(1.7)) * into @ weight / math.sqrt(len(weight))
            new = new + (0.0 if plain else math.sqrt(0.3)) * bias
            h = h + new if limit.residual and 0 < layer < limit.depth else new
        return h.squeeze(-1)

    gradients = vmap(grad(network), (None, 0))(parameters, x)
    flat = torch.cat([g.flatten(1) for g in tree_leaves(gradients)], 1)
    return flat @ flat.mT


@pytest.mark.parametrize(
    ("name", "settings"), [("relu", {}), ("erf", {"readout": False}), ("gelu", {"residual": True}), ("sin", {})]
)
def test_the_tangent_kernel_is_that_of_wide_networks(name, settings):
    """Null: the mean over 30 networks of 400 units has the kernel's value.

    What is left at this width is below a fifth of the standard error. By Student's t with 29 degrees of freedom one of
    6 entries exceeds 6 of them in 1e-5 of all runs. The control: the kernel of one more layer is refused.
    """
    limit, x = WideLimit(activation_of(name), 2, **settings), X[[0, 2, 4]] + 0.1
    draws = torch.stack([empirical_tangent(x, 400, limit, seed) for seed in range(30)])
    error = draws.std(0) / math.sqrt(len(draws))
    i, j = torch.triu_indices(3, 3)

    def z(limit: WideLimit) -> float:
        return float(((draws.mean(0) - tangent(x, x, WEIGHT_VAR, BIAS_VAR, limit)) / error)[i, j].abs().max())

    assert z(limit) < 6
    assert z(replace(limit, depth=3)) > 20
