"""Value and gradient of one function at many vectors: traced once for each batch size, cut to fit the caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from probmix.flat_graph import FlatGraph, can_compile
from probmix.lenient import is_failed_factorisation

__all__ = ["Batching", "Compile", "Gradient", "Plan"]

#: Whether to compile; ``"auto"`` does where a compiler is present and the planned work is long.
Compile: TypeAlias = bool | Literal["auto"]

#: How a batch goes through the function: by ``torch.func.vmap``, by its own broadcasting, or one vector at a time.
Batching: TypeAlias = Literal["vmap", "broadcast", "loop"]

_LARGEST_TABLE = 2**22  # numbers in the largest tensor of one call, so that it stays near the processor
_ON_ACCELERATOR = 2**28


class Plan(NamedTuple):
    """What is to come: so many gradients of batches of so many vectors.

    Example:
        >>> Plan(batch=64, gradients=2000, compile="auto").compile
        'auto'
    """

    batch: int
    gradients: int
    compile: Compile


class Gradient:
    """Value and gradient of ``function(z, *data)`` for a batch of vectors ``z``.

    Args:
        function: takes one vector ``(dim,)`` and the data, or, if it broadcasts, a batch ``(b, dim)``.
        data: tensors that the function depends on; with ``datasets``, each with a leading axis of data sets.
        batching: how a batch goes through the function.
        datasets: whether there is a batch of data sets; then ``z`` is ``(data sets, b, dim)``.
        numbers: size of the largest tensor that one vector makes.
        context: the function is traced, or run eagerly, inside it.
        report: called with the reason when the function cannot be traced.

    Example:
        >>> gradient = Gradient(lambda z, x: -(z * x).square().sum(), [torch.tensor([1.0, 2.0])])
        >>> gradient(torch.ones(3, 2))
        (tensor([-5., -5., -5.]), tensor([[-2., -8.],
                [-2., -8.],
                [-2., -8.]]))
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        data: Sequence[Tensor],
        *,
        batching: Batching = "vmap",
        datasets: bool = False,
        numbers: int = 1,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
        report: Callable[[Exception], None] = lambda reason: None,
    ) -> None:
        self._function, self._data, self._batching, self._datasets = function, tuple(data), batching, datasets
        self._numbers, self._context, self._report = numbers, context, report
        self._graphs: dict[tuple[int, ...], FlatGraph | None] = {}
        self._bound: dict[tuple[int, ...], list[Callable[[Tensor], Any]]] = {}
        self._shares_graphs = True

    def __call__(self, z: Tensor, plan: Plan | None = None) -> tuple[Tensor, Tensor]:
        """Return values and gradients at ``z`` of shape ``(b, dim)`` or ``(data sets, b, dim)``."""
        if self._batching == "loop":
            gradients, values = self._one_by_one(z, self._data)
            return values, gradients
        blocks = self._blocks(z)
        bound = self._functions(blocks, plan)
        pairs = [function(block) for function, block in zip(bound, blocks, strict=True)]
        grads, values = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*pairs, strict=True))
        return values[: len(z)], grads[: len(z)]

    def with_data(self, data: Sequence[Tensor]) -> Gradient:
        """Return the gradient for other data of the same shapes; graphs are shared."""
        other = Gradient(
            self._function,
            data,
            batching=self._batching,
            datasets=self._datasets,
            numbers=self._numbers,
            context=self._context,
            report=self._report,
        )
        if self._shares_graphs:
            other._graphs = self._graphs
        return other

    def _blocks(self, z: Tensor) -> list[Tensor]:
        """Cut a batch into equal blocks; the last one is filled up with its last row."""
        row = self._numbers * (z[0].shape[0] if self._datasets else 1)
        largest = _ON_ACCELERATOR if z.is_cuda else _LARGEST_TABLE
        count = min(len(z), -(-len(z) * row // largest))
        size = -(-len(z) // count)
        count = -(-len(z) // size)
        missing = count * size - len(z)
        padded = torch.cat([z, z[-1:].expand(missing, *z.shape[1:])]) if missing else z
        return list(padded.split(size))

    def _functions(self, blocks: list[Tensor], plan: Plan | None) -> list[Callable[[Tensor], Any]]:
        key = (len(blocks), *blocks[0].shape[:-1])
        if key not in self._bound:
            self._bound[key] = self._bind(key, blocks, plan)
        return self._bound[key]

    def _bind(self, key: tuple[int, ...], blocks: list[Tensor], plan: Plan | None) -> list[Callable[[Tensor], Any]]:
        block, data = blocks[0], self._data_blocks(blocks)
        if key[1:] not in self._graphs:
            self._graphs[key[1:]] = self._trace(block, data[0])
        graph = self._graphs[key[1:]]
        if graph is None:
            return [lambda z, d=d: self._eager_batch(z, d) for d in data]  # type: ignore[misc]
        if plan is not None and self._compiles(graph, plan, block, len(blocks)):
            graph = graph.faster()
        inputs = data if self._shares_graphs else [()] * len(blocks)
        first = graph.bind(inputs[0])
        return [first if d is inputs[0] else graph.bind(d) for d in inputs]

    def _data_blocks(self, blocks: list[Tensor]) -> list[Sequence[Tensor]]:
        if not self._datasets:
            return [self._data] * len(blocks)
        size, missing = len(blocks[0]), len(blocks) * len(blocks[0]) - len(self._data[0])
        filled = [torch.cat([d, d[-1:].expand(missing, *d.shape[1:])]) if missing else d for d in self._data]
        return list(zip(*(d.split(size) for d in filled), strict=True))

    def _trace(self, block: Tensor, data: Sequence[Tensor]) -> FlatGraph | None:
        """Trace with the data as inputs; with data as constants where control flow depends on them; or not at all."""
        function = self._batched(len(data))
        try:
            with self._context():
                return FlatGraph.trace(function, block, data)
        except RuntimeError as reason:
            if self._datasets:
                raise
            first = reason
        self._shares_graphs = False
        try:
            with self._context():
                return FlatGraph.trace(lambda z: function(z, *data), block, ())
        except RuntimeError:
            if self._batching == "vmap":
                self._report(first)
            return None

    def _batched(self, num_data: int) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return ``(z, *data) -> (gradients, values)`` for a block."""
        if self._batching == "broadcast":
            return self._broadcast
        batch = vmap(grad_and_value(self._function), in_dims=(0, *[None] * num_data))
        return vmap(batch, in_dims=(0, *[0] * num_data)) if self._datasets else batch

    def _broadcast(self, z: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
        def total(points: Tensor) -> tuple[Tensor, Tensor]:
            values = self._function(points, *data)
            return values.sum(), values

        gradient, (_, values) = grad_and_value(total, has_aux=True)(z)
        return gradient, values

    def _eager_batch(self, z: Tensor, data: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return ``(gradients, values)`` of a block without a graph."""
        if self._batching == "vmap":
            with self._context():
                return self._batched(len(data))(z, *data)
        value, gradient = self._eager(z, data)
        if value.isnan().all():  # one row that fails spoils the whole block: each by itself then
            return self._one_by_one(z, data)
        return gradient, value

    def _one_by_one(self, z: Tensor, data: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        rows = z[:, None] if self._batching == "broadcast" else z
        values, gradients = zip(*(self._eager(row, data) for row in rows), strict=True)
        return torch.stack(gradients).reshape(z.shape), torch.stack(values).reshape(len(z))

    def _eager(self, z: Tensor, data: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return value and gradient by autograd; NaN where a factorisation fails."""
        try:
            with self._context(), torch.enable_grad():
                leaf = z.detach().requires_grad_()
                value = self._function(leaf, *data)
                (gradient,) = torch.autograd.grad(value.sum(), leaf)
        except Exception as error:
            if not is_failed_factorisation(error):
                raise
            return z.new_full(z.shape[:-1], torch.nan), torch.full_like(z, torch.nan)
        return value.detach(), gradient

    def _compiles(self, graph: FlatGraph, plan: Plan, block: Tensor, blocks: int) -> bool:
        if plan.batch != block.shape[:-1].numel() * blocks and blocks == 1:
            return False
        if plan.compile != "auto":
            return plan.compile
        numbers = self._numbers * block.shape[:-1].numel()
        calls = plan.gradients * blocks
        return can_compile(block.device) and graph.is_worth_compiling(calls, numbers, block.device)
