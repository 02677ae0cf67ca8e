"""A function of parameters and data as a flat graph of tensor operations: split, cleaned, and compiled on request."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from probmix.late_broadcast import LateBroadcast

__all__ = ["FlatGraph", "can_compile"]

_SECONDS_PER_NODE = {"cpu": 4e-6, "cuda": 1e-5}
_SECONDS_PER_NUMBER = {"cpu": 1.5e-8, "cuda": 1e-10}  # some fifteen passes over the largest tensor
_WORTH_COMPILING = 40.0  # seconds of uncompiled work: compilation takes ten to twenty and saves three quarters


@dataclass(frozen=True)
class FlatGraph:
    r"""A traced function ``f(z, *data)`` in two parts: ``constants = prologue(*data)`` and ``body(z, *constants)``.

    Data are inputs, so the same graph serves all data of one shape; what depends on them alone is computed once for
    each data set, not in each call. The body holds no tensor, so equal code is equal work and is compiled once.

    Args:
        prologue: the operations that do not depend on ``z``.
        body: the others.
        compiled: whether the body runs through ``torch.compile``.

    Example:
        >>> graph = FlatGraph.trace(lambda z, x: z * x.exp(), torch.ones(3), (torch.zeros(3),))
        >>> [node.name for node in graph.body.graph.nodes if node.op == "call_function"]
        ['mul']
        >>> graph.bind((torch.zeros(3),))(torch.full((3,), 2.0))
        tensor([2., 2., 2.])
    """

    prologue: GraphModule
    body: GraphModule
    compiled: bool = False

    @classmethod
    def trace(cls, function: Callable[..., Any], z: Tensor, data: Sequence[Tensor]) -> FlatGraph:
        """Trace a function at given inputs.

        Raises:
            RuntimeError: the function cannot be traced, e.g. its control flow depends on a value.
        """
        inputs = z.detach(), *(tensor.detach() for tensor in data)
        with _without_examples():
            graph = make_fx(_folding(function))(*inputs)
            if _mutates(graph):  # an operation in place must be made once for each time it was written
                graph = make_fx(functionalize(graph, remove="mutations"))(*inputs)
            _merge_equal_nodes(graph)
            lazy = make_fx(LateBroadcast(graph).run)(*inputs)
        _merge_equal_nodes(lazy)
        return cls(*_split(lazy if _agree(lazy(*inputs), graph(*inputs)) else graph))

    def bind(self, data: Sequence[Tensor]) -> Callable[[Tensor], Any]:
        """Return the function of ``z`` alone, for some data."""
        with torch.no_grad():
            constants = self.prologue(*data)
        body = _compile(_Body.of(self.body, constants)) if self.compiled else self.body

        def bound(z: Tensor) -> Any:
            with torch.no_grad():
                return body(z, *constants)

        return bound

    def faster(self) -> FlatGraph:
        """Return the same graph, to be compiled when it is first bound."""
        return replace(self, compiled=True)

    def is_worth_compiling(self, calls: int, numbers: int, device: torch.device) -> bool:
        """Whether so many calls, with so many numbers in the largest tensor, will outlast a compilation.

        A rule without a stopwatch, so that the same fit always takes the same path.
        """
        per_node = _SECONDS_PER_NODE.get(device.type, 4e-6) * len(self.body.graph.nodes)
        return calls * (per_node + numbers * _SECONDS_PER_NUMBER.get(device.type, 1e-10)) > _WORTH_COMPILING


def can_compile(device: torch.device) -> bool:
    """Whether ``torch.compile`` finds what it needs for a device: a C++ compiler, or Triton.

    Example:
        >>> can_compile(torch.device("cpu")) in (True, False)
        True
    """
    if device.type == "cuda":
        return find_spec("triton") is not None
    return device.type == "cpu" and any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))


@dataclass(frozen=True)
class _Body:
    """A body as the key of a cache: equal code on equal inputs."""

    code: str
    signature: tuple[Any, ...]
    graph: GraphModule = field(compare=False)

    @classmethod
    def of(cls, graph: GraphModule, constants: Sequence[Tensor]) -> _Body:
        first, *_ = graph.graph.nodes
        z = first.meta["tensor_meta"]
        return cls(
            graph.code, (z.shape, z.dtype, *((c.shape, c.stride(), c.dtype, c.device) for c in constants)), graph
        )


@lru_cache(maxsize=32)
def _compile(body: _Body) -> Callable[..., Any]:
    compiled, flat, fresh = torch.compile(body.graph, dynamic=False), body.graph, True

    def run(*inputs: Tensor) -> Any:
        nonlocal compiled, fresh
        try:
            if not fresh:
                return compiled(*inputs)
            fresh = False
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the compiler's, about parts of its own
                return compiled(*inputs)
        except Exception as reason:  # whatever a compiler may say: the uncompiled graph gives the same answer
            if compiled is flat:
                raise
            compiled = flat
            first = str(reason).strip().partition("\n")[0]
            warnings.warn(
                f"torch.compile failed, so the graph runs uncompiled (slower). It said: {first}", stacklevel=2
            )
            return flat(*inputs)

    return run


def _agree(one: Any, other: Any) -> bool:
    """Whether a rewritten graph still gives the numbers of the original: a guard that should never act."""
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(
        a.shape == b.shape
        and torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().nan_to_num().max()), equal_nan=True)
        for a, b in pairs
    )


@contextmanager
def _without_examples() -> Iterator[None]:
    """Trace without an example tensor for every node: nothing here reads them, and they take most of the time."""
    if not hasattr(proxy_tensor, "extract_val"):
        yield
        return
    with mock.patch.object(proxy_tensor, "extract_val", _no_example):
        yield


def _no_example(*_: Any, **__: Any) -> None:
    """Take the place of a Mock, which would keep every tensor that it is called with."""


class _Folding(TorchDispatchMode):
    """Operations on constants alone are made while tracing, so that control flow may depend on them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mode, kwargs = get_proxy_mode(), kwargs or {}
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if mode is None or any(tensor in mode.tracer.tensor_tracker for tensor in tensors):
            return func(*args, **kwargs)
        with disable_proxy_modes_tracing():
            return func(*args, **kwargs)


def _folding(function: Callable[..., Any]) -> Callable[..., Any]:
    def folded(*inputs: Tensor) -> Any:
        with _Folding():
            return function(*inputs)

    return folded


def _mutates(graph: GraphModule) -> bool:
    schemas = (getattr(node.target, "_schema", None) for node in graph.graph.nodes)
    return any(schema is not None and schema.is_mutable for schema in schemas)


def _merge_equal_nodes(graph: GraphModule) -> None:
    """Make equal operations on equal inputs once; drop what is not used."""
    seen: dict[Any, Node] = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        key = (node.target, repr(node.args), repr(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.graph.erase_node(node)
        else:
            seen[key] = node
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _split(graph: GraphModule) -> tuple[GraphModule, GraphModule]:
    """Part a graph into what does not depend on its first input and what does."""
    first, *_ = graph.graph.nodes
    after: set[Node] = {first}
    for node in graph.graph.nodes:
        if node.op == "output" or any(source in after for source in node.all_input_nodes):
            after.add(node)
    crossing = [n for n in graph.graph.nodes if n not in after and any(user in after for user in n.users)]
    prologue, body = Graph(), Graph()
    before: dict[Node, Node] = {}
    for node in graph.graph.nodes:
        if node not in after:
            before[node] = prologue.node_copy(node, lambda n: before[n])
    prologue.output(tuple(before[n] for n in crossing))
    inside = {first: body.node_copy(first)}
    inside |= {node: body.placeholder(f"constant_{i}") for i, node in enumerate(crossing)}
    for node in list(graph.graph.nodes)[1:]:
        if node in after:
            inside[node] = body.node_copy(node, lambda n: inside[n])
    return GraphModule(graph, prologue), GraphModule(torch.nn.Module(), body)
