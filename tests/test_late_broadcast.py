"""The rewriting of graphs: the same numbers from fewer large operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functionalize, grad_and_value, vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from probmix.late_broadcast import LateBroadcast

N = 3000
ROUNDING = 1e-12  # relative: float64 sums in another order


def normal(z: Tensor, x: Tensor) -> Tensor:
    loc, std = z[0].expand(N), z[1].exp().expand(N)
    return (-((x - loc) ** 2) / (2 * std**2) - std.log() - 0.9).sum()


def mixture(z: Tensor, x: Tensor) -> Tensor:
    rows = -((x[:, None] - z.expand(N, 3)) ** 2) / 2 + z.log_softmax(0).expand(N, 3)
    return rows.logsumexp(-1).sum()


def softmax_of_expanded(z: Tensor, x: Tensor) -> Tensor:
    return (z.expand(N, 3).softmax(-1) * x[:, None]).square().sum()


def in_place(z: Tensor, x: Tensor) -> Tensor:
    y = z[0] * x
    y.clamp_(min=-1.0).add_(z[1])
    y[: N // 2] = z[2] * 2
    return y.sum() / N


def many_terms(z: Tensor, x: Tensor) -> Tensor:
    return (z[0] * x + z[1] * x**2 + z[2] * x**3 - z[0] * x.sin() - z[1] * x.cos() + 2.0).square().sum()


def axes_move(z: Tensor, x: Tensor) -> Tensor:
    table = z.expand(N, 3).T.unsqueeze(0).transpose(1, 2).reshape(N, 3)
    return (table.cumsum(0)[-1] * table[5] + (table.reshape(3, N) @ x)).sum()


def short_last_axis(z: Tensor, x: Tensor) -> Tensor:
    return ((x[:, None, None] * z[:, None]).expand(N, 3, 2) ** 2).sum(-1, keepdim=True).sqrt().sum()


def integers_and_masks(z: Tensor, x: Tensor) -> Tensor:
    picked = z[(x > 0).long()]
    return torch.where(x > 1, picked, x * z[2]).sum() + (x > 0).sum() * z[0]


def constant_matrix(z: Tensor, x: Tensor) -> Tensor:
    cov = torch.eye(3, dtype=z.dtype) + z.square().sum().expand(3, 3) / 10
    return torch.linalg.solve(cov, z).sum() - torch.linalg.cholesky(cov).diagonal().log().sum() * x.mean()


FUNCTIONS = [
    normal, mixture, softmax_of_expanded, in_place, many_terms, axes_move, short_last_axis, integers_and_masks,
    constant_matrix,
]  # fmt: skip


def graphs(function: Callable[..., Tensor], z: Tensor, x: Tensor) -> tuple[GraphModule, GraphModule]:
    batch = vmap(grad_and_value(function), in_dims=(0, None))
    graph = make_fx(functionalize(batch, remove="mutations"))(z, x)
    return graph, make_fx(LateBroadcast(graph).run)(z, x)


def large(graph: GraphModule) -> int:
    """Operations whose result has a number for every row, views aside."""
    graph.graph.eliminate_dead_code()
    shapes = [(node, node.meta.get("tensor_meta")) for node in graph.graph.nodes if node.op == "call_function"]
    views = ("view", "expand", "unsqueeze", "squeeze", "select", "permute", "transpose", "slice")
    return sum(
        hasattr(meta, "shape") and meta.shape.numel() >= N and not any(v in node.name for v in views)
        for node, meta in shapes
    )


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return z, torch.randn(N, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_numbers_stay(function, inputs):
    """Null: the same function. The control: other inputs give other numbers, so the graph has not kept constants."""
    z, x = inputs
    _, lazy = graphs(function, z, x)
    for a, b in ((z, x), (z.flip(0) / 2, x + 1)):
        expected = torch.func.vmap(grad_and_value(function), in_dims=(0, None))(a, b)
        torch.testing.assert_close(lazy(a, b), expected, rtol=ROUNDING, atol=ROUNDING * N)
    assert not torch.allclose(lazy(z, x)[1], lazy(z.flip(0), x)[1])


@pytest.mark.parametrize(("function", "most"), [(normal, 3), (mixture, 9)], ids=["normal", "mixture"])
def test_fewer_large_operations(function, most, inputs):
    """A normal's gradient needs x - loc, its square, and no more; the plain graph does each step for every row."""
    graph, lazy = graphs(function, *inputs)
    assert large(lazy) <= most
    assert large(lazy) <= 0.6 * large(graph)


def test_float32_stays_float32(inputs):
    z, x = (t.float() for t in inputs)
    _, lazy = graphs(normal, z, x)
    assert {t.dtype for t in lazy(z, x)} == {torch.float32}


def test_what_is_not_finite_stays_so(inputs):
    z, x = inputs
    _, lazy = graphs(normal, z, x)
    bad = torch.tensor([[0.0, 800.0, 0.0], [0.0, -800.0, 0.0], [torch.nan, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=z.dtype)
    gradient, value = lazy(bad, x)
    assert value.isfinite().tolist() == gradient.isfinite().all(-1).tolist() == [False, False, False, True]
    assert value[2].isnan()
