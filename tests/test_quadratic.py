"""The fused likelihood of quadratic features: against plain autograd through the table of logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from probmix import quadratic_pass
from probmix.covariance import COVARIANCES
from probmix.quadratic import mixture_log_likelihood

torch_ops = torch.ops.probmix
K, D, N = 3, 2, 77  # N is no multiple of anything
P = 1 + D + D * (D + 1) // 2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COLUMNS, B = normal(D, N), normal(K, P, seed=1)


def fused(coefficients: Tensor, columns: Tensor = COLUMNS) -> Tensor:
    return mixture_log_likelihood(coefficients, columns, "full")


def plain(coefficients: Tensor, columns: Tensor = COLUMNS) -> Tensor:
    """The reference: the features are written out, and torch does the rest."""
    x, y = columns.unbind(-2)
    features = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], -2)
    return (coefficients @ features).logsumexp(-2).sum(-1)


def assert_close(ours, theirs) -> None:
    """Sums of fewer than 1,000 terms of order 10: rounding of float64 is 1e-13, and no more than 1e-11 in all."""
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def autograd(function) -> tuple[Tensor, Tensor]:
    leaf = B.clone().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def over_rows(function, axes=(0, None)):
    return vmap(grad_and_value(function), axes)


def flat(function):
    """A graph that is traced at other coefficients than those it then runs at."""

    def of_two(coefficients: Tensor, columns: Tensor):  # make_fx takes a default for an input
        return function(coefficients, columns)

    return make_fx(of_two)(normal(4, K, P), COLUMNS)


CALLS = {
    "autograd": autograd,
    "grad_and_value": lambda f: grad_and_value(f)(B),
    "batch as it is": lambda f: f(normal(4, 5, K, P)),
    "vmap": lambda f: over_rows(f)(normal(4, K, P), COLUMNS),
    "vmap over another axis": lambda f: over_rows(f, (1, None))(normal(K, 4, P), COLUMNS),
    "vmap twice": lambda f: vmap(over_rows(f), (0, None))(normal(4, 5, K, P), COLUMNS),
    "data sets": lambda f: over_rows(f, (None, 0))(B, normal(4, D, N)),
    "chains with data sets": lambda f: over_rows(f, (0, 0))(normal(4, K, P), normal(4, D, N)),
    "chains by data sets": lambda f: vmap(over_rows(f), (None, 0))(normal(4, K, P), normal(5, D, N)),
    "data sets by chains": lambda f: vmap(over_rows(f, (None, 0)), (0, None))(normal(4, K, P), normal(5, D, N)),
    "hessian": lambda f: hessian(f)(B),
    "reverse over reverse": lambda f: jacrev(jacrev(f))(B),
    "reverse over forward": lambda f: jacrev(jacfwd(f))(B),
    "hessian of a batch": lambda f: vmap(hessian(f))(normal(4, K, P)),
    "autograd twice": lambda f: torch.autograd.functional.hessian(f, B),
    "flat graph": lambda f: flat(over_rows(f))(normal(4, K, P, seed=2), COLUMNS),
    "flat graph of hessians": lambda f: flat(vmap(hessian(f), (0, None)))(normal(4, K, P, seed=2), COLUMNS),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_way_to_call_it_gives_what_autograd_gives(name):
    assert_close(CALLS[name](fused), CALLS[name](plain))


def test_the_comparison_can_fail():
    """Control: one row of 77 less, or a single product of features that counts half."""
    half = torch.ones(P, dtype=torch.float64)
    half[4] = 0.5
    for wrong in (lambda b: fused(b, COLUMNS[:, 1:]), lambda b: fused(b * half)):
        with pytest.raises(AssertionError):
            assert_close(autograd(wrong), autograd(plain))


def test_it_is_one_node_of_a_graph_for_all_chains():
    nodes = [node for node in flat(over_rows(fused)).graph.nodes if "mixture" in str(node.target)]
    assert len(nodes) == 1
    assert nodes[0].args[0].meta["tensor_meta"].shape == (4, K, P)


REFUSED = {
    "third derivative": lambda: jacrev(jacrev(jacrev(fused)))(B),
    "third derivative, forward": lambda: jacfwd(jacfwd(jacrev(fused)))(B),
    "forward over forward": lambda: jacfwd(jacfwd(fused))(B),
    "gradient of the data": lambda: grad(fused, 1)(B, COLUMNS),
    "gradient of both": lambda: grad(fused, (0, 1))(B, COLUMNS),
    "forward derivative of the data": lambda: jvp(fused, (B, COLUMNS), (B, COLUMNS)),
    "gradient of the data, autograd": lambda: fused(B, COLUMNS.clone().requires_grad_()).backward(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_differentiate_it_refuses(name):
    """A wrong derivative (zero, most often) would be worse than none."""
    with pytest.raises(NotImplementedError, match=r"implement the jvp|implement either the backward|detach the data"):
        REFUSED[name]()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_operations_keep_torchs_rules(covariance):
    """Schema, fake tensors, tracing: torch's own checks of a custom operation."""
    columns = normal(2, D, N)
    coefficients = normal(2, K, COVARIANCES[covariance].features(COLUMNS).shape[0])
    torch.library.opcheck(torch_ops.mixture_statistics.default, (coefficients, columns, covariance))
    torch.library.opcheck(torch_ops.mixture_statistics.default, (coefficients[0], columns, covariance))
    direction = normal(5, 1, *coefficients.shape[1:])
    torch.library.opcheck(torch_ops.mixture_curvature.default, (coefficients, direction, columns, covariance))


def test_chunks_change_nothing_and_stay_small(monkeypatch):
    columns, coefficients = normal(D, 5001), normal(7, K, P)
    whole = grad_and_value(lambda b: fused(b, columns).sum())(coefficients)
    sizes = []
    features = quadratic_pass.quadratic_features

    def watched(chunk: Tensor, *settings) -> Tensor:
        sizes.append(chunk.shape[-1])
        return features(chunk, *settings)

    monkeypatch.setattr(quadratic_pass, "quadratic_features", watched)
    monkeypatch.setattr(quadratic_pass, "_CHUNK_BYTES", {"cpu": 8 * (2 * 7 * K + P) * 300})
    chunked = grad_and_value(lambda b: fused(b, columns).sum())(coefficients)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-9)  # the order of a sum of 35,000 terms of order 10
    assert sum(sizes) == 5001
    assert max(sizes) == 300


def test_a_chain_that_failed_spoils_its_own_entry_alone():
    bad = normal(3, K, P)
    bad[1, 0, 0] = torch.nan
    gradient, value = over_rows(fused)(bad, COLUMNS)
    assert value.isfinite().tolist() == [True, False, True]
    assert gradient.isfinite().all((-2, -1)).tolist() == [True, False, True]
    assert_close(value[[0, 2]], plain(bad[[0, 2]]))


def test_rows_far_from_everything_and_components_without_weight():
    """Densities of exp(-50,000) have a logarithm and a gradient; a component of no weight takes no part."""
    far = B.clone()
    far[:, 3], far[:, 5] = -5.0, -5.0
    columns = 100 * COLUMNS
    ours, theirs = (grad_and_value(lambda b, f=f: f(b, columns))(far) for f in (fused, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=0)
    empty = B.clone()
    empty[0, 0] = -torch.inf
    gradient, value = grad_and_value(fused)(empty)
    expected_gradient, expected = grad_and_value(plain)(B[1:])
    assert_close((value, gradient[1:]), (expected, expected_gradient))
    assert (gradient[0] == 0).all()
