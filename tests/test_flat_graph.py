"""Flat graphs: what is hoisted, merged, shared between data sets and compiled."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from probmix import flat_graph
from probmix.flat_graph import FlatGraph, can_compile

X = torch.linspace(-1, 1, 50, dtype=torch.float64)
Z = torch.tensor([[0.5, 1.5], [1.0, 2.0]], dtype=torch.float64)


def function(z: Tensor, x: Tensor) -> Tensor:
    scaled = (x - x.mean()) / x.std()
    return (z[:, :1] * scaled).exp().sum(-1) + (z[:, :1] * scaled).exp().mean(-1)


def operations(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target).split(".")[1] for node in graph.graph.nodes if node.op == "call_function"]


def test_what_depends_on_data_alone_is_hoisted_and_equal_work_is_merged():
    graph = FlatGraph.trace(function, Z, (X,))
    assert "std" in operations(graph.prologue)
    assert "std" not in operations(graph.body)
    assert operations(graph.body).count("exp") == 1
    assert not list(graph.body.buffers())
    torch.testing.assert_close(graph.bind((X,))(Z), function(Z, X), rtol=1e-13, atol=0)


def test_the_same_graph_serves_other_data():
    graph = FlatGraph.trace(function, Z, (X,))
    other = X.square() + 3
    torch.testing.assert_close(graph.bind((other,))(Z), function(Z, other), rtol=1e-13, atol=0)
    assert not torch.allclose(graph.bind((other,))(Z), function(Z, X))


def test_a_branch_on_a_constant_is_decided_while_tracing():
    graph = FlatGraph.trace(lambda z: z * (2.0 if X.sum() > -1 else 3.0), Z, ())
    torch.testing.assert_close(graph.bind(())(Z), 2 * Z)


def test_a_branch_on_an_input_cannot_be_traced():
    with pytest.raises(RuntimeError, match="data-dependent"):
        FlatGraph.trace(lambda z: z if z.sum() > 0 else -z, Z, ())


def test_tracing_keeps_no_tensor_of_the_function():
    """Else it needs as much memory as all operations together; at the end nothing tells."""
    gone = []

    def forgetful(z: Tensor, x: Tensor) -> Tensor:
        large = z[:, :1] * x
        reference = weakref.ref(large)
        result = large.sum(-1)
        del large
        gone.append(reference() is None)
        return result

    FlatGraph.trace(forgetful, Z, (X,))
    assert gone == [True]


def test_a_wrong_rewriting_is_not_used(monkeypatch):
    """The guard: were a rewritten graph to give other numbers, the plain one would run."""

    class Wrong(flat_graph.LateBroadcast):
        def run(self, *inputs):
            return super().run(*inputs) + 1

    monkeypatch.setattr(flat_graph, "LateBroadcast", Wrong)
    torch.testing.assert_close(FlatGraph.trace(function, Z, (X,)).bind((X,))(Z), function(Z, X), rtol=1e-13, atol=0)


def test_whether_to_compile_depends_on_the_work_ahead():
    graph, cpu = FlatGraph.trace(function, Z, (X,)), torch.device("cpu")
    assert not graph.is_worth_compiling(100, 10**4, cpu)
    assert graph.is_worth_compiling(10**5, 10**6, cpu)


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="torch.compile needs a C++ compiler")
def test_compiled_is_the_same_and_compiled_once_for_equal_work():
    flat_graph._compile.cache_clear()
    graph = FlatGraph.trace(function, Z, (X,)).faster()
    torch.testing.assert_close(graph.bind((X,))(Z), function(Z, X), rtol=1e-12, atol=0)
    again = FlatGraph.trace(function, Z, (X + 1,)).faster()
    torch.testing.assert_close(again.bind((X**3,))(Z), function(Z, X**3), rtol=1e-12, atol=0)
    assert flat_graph._compile.cache_info().hits == 1


def test_a_compiler_that_fails_leaves_the_graph_as_it_is(monkeypatch):
    def fails(graph, **settings):
        def call(*inputs):
            raise OSError("no compiler here\nmore")

        return call

    flat_graph._compile.cache_clear()
    monkeypatch.setattr(torch, "compile", fails)
    bound = FlatGraph.trace(function, Z, (X,)).faster().bind((X,))
    with pytest.warns(UserWarning, match=r"runs uncompiled \(slower\). It said: no compiler here"):
        torch.testing.assert_close(bound(Z), function(Z, X), rtol=1e-13, atol=0)
    torch.testing.assert_close(bound(Z), function(Z, X), rtol=1e-13, atol=0)
    flat_graph._compile.cache_clear()
