"""Rewrite a flat graph so that what is the same for all rows is computed once, not once for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

__all__ = ["LateBroadcast"]

aten = torch.ops.aten

#: A factor: a number, or a tensor with a size of 1 in each axis along which it is constant.
Factor: TypeAlias = Tensor | float

_WORTH_IT = 4096  # numbers: below, an operation costs what it takes to call it
_SMALL = 4  # a factor is left out of a product that has this many times its size
_MOST_TERMS = 3
_UNROLLED = 8  # torch sums a short last axis slowly: it is added up slice by slice


class Term(NamedTuple):
    """A product ``core * factor``, each with a size of 1 in every axis along which it is constant."""

    core: Tensor
    factor: Factor = 1.0

    @property
    def product(self) -> Tensor:
        """The product itself."""
        return self.core if _is_one(self.factor) else self.core * self.factor

    def times(self, factor: Factor) -> Term:
        """Return the term with one more factor."""
        if _is_one(factor):
            return self
        return Term(self.core, factor if _is_one(self.factor) else self.factor * factor)

    def map(self, function: Callable[[Tensor], Tensor]) -> Term:
        """Apply a change of axes to both parts."""
        return Term(function(self.core), function(self.factor) if isinstance(self.factor, Tensor) else self.factor)


class Spread:
    """A tensor of some shape, held as a sum of terms that are smaller than it.

    Args:
        terms: the terms; each part has as many axes as the shape.
        shape: the shape that the tensor has when it is written out.
    """

    def __init__(self, terms: Sequence[Term], shape: Sequence[int]) -> None:
        self.terms, self.shape = tuple(terms), torch.Size(shape)
        self._compact: Tensor | None = None

    @classmethod
    def of(cls, value: Tensor, shape: Sequence[int] | None = None) -> Spread:
        """Hold a tensor as it is, perhaps for a larger shape."""
        shape = value.shape if shape is None else shape
        missing = len(shape) - value.dim()
        return cls([Term(value.reshape([1] * missing + list(value.shape)) if missing else value)], shape)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype."""
        return self.terms[0].core.dtype

    @property
    def compact(self) -> Tensor:
        """The sum, still with a size of 1 where it is constant; computed once."""
        if self._compact is None:
            first, *others = self.terms
            self._compact = first.product
            for term in others:
                self._compact = self._compact + term.product
            self.terms = (Term(self._compact),)
        return self._compact

    @property
    def full(self) -> Tensor:
        """The sum in its full shape."""
        return self.compact if self.compact.shape == self.shape else self.compact.expand(self.shape)

    @property
    def varying(self) -> torch.Size:
        """The shape of ``compact``, which need not be made for it."""
        parts = [part.shape for term in self.terms for part in term if isinstance(part, Tensor)]
        return torch.broadcast_shapes(*parts)

    def map(self, function: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Spread:
        """Apply a change of axes to every part."""
        return Spread([term.map(function) for term in self.terms], shape)


class LateBroadcast(Interpreter):
    r"""Run a graph of ATen operations with broadcasting, factors and sums put off as long as possible.

    A distribution expands its parameters to the shape of the data before it takes their logarithm, and its gradient
    sums over rows what could be summed before it is multiplied: :math:`\sum_n a x_n = a \sum_n x_n`. Tracing this run
    gives the graph without that waste.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> inputs = torch.ones(1), torch.ones(5000)
        >>> graph = make_fx(lambda std, x: (x / std.expand(5000)).sum())(*inputs)
        >>> lazy = make_fx(LateBroadcast(graph).run)(*inputs)
        >>> [node.name for node in lazy.graph.nodes if "sum" in node.name or "mul" in node.name]  # the sum comes first
        ['sum_1', 'mul']
    """

    def run(self, *args: Any, **settings: Any) -> Any:
        """Return the graph's outputs, written out in full."""
        return pytree.tree_map(_full, super().run(*args, **settings))

    def run_node(self, node: Node) -> Any:
        """Run one node."""
        return pytree.tree_map(_spread, super().run_node(node))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation by its rule, once for equal rows, or in full."""
        return _call(target, args, kwargs)


def _call(target: Any, args: Any, kwargs: Any) -> Any:
    rule = _RULES.get(target)
    result = rule(*args, **kwargs) if rule else None
    if result is not None:
        return result
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return _pointwise(target, args, kwargs)
    return target(*pytree.tree_map(_full, args), **pytree.tree_map(_full, kwargs))


def _pointwise(target: Any, args: Any, kwargs: Any) -> Spread:
    shape = torch.broadcast_shapes(*(v.shape for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Spread)))
    return Spread.of(target(*pytree.tree_map(_compact, args), **pytree.tree_map(_compact, kwargs)), shape)


# --- arithmetic: None where the operation itself does as well -------------------------------------------------------


def _mul(a: Any, b: Any) -> Spread | None:
    if not isinstance(a, Spread):
        a, b = b, a
    if not _large(a, b):
        return None
    shape = _shape(a, b)
    if not isinstance(b, Spread):
        return Spread([term.times(float(b)) for term in a.terms], shape)
    a, b = (_ranked(v, len(shape)) for v in (a, b))
    small, large = sorted((a, b), key=lambda v: v.varying.numel())
    if small.varying.numel() * _SMALL <= torch.broadcast_shapes(a.varying, b.varying).numel():
        return Spread([term.times(small.compact) for term in large.terms], shape)
    one, other = (v.terms[0] if len(v.terms) == 1 else Term(v.compact) for v in (a, b))
    return Spread([Term(one.core * other.core).times(one.factor).times(other.factor)], shape)


def _div(a: Any, b: Any) -> Spread | None:
    if not isinstance(b, Spread):
        return _mul(a, 1.0 / b)
    small = b.varying.numel() * _SMALL <= _shape(a, b).numel()
    if not isinstance(a, Spread) or not small or not _large(a, b):
        return None
    return _mul(a, Spread.of(b.compact.reciprocal(), b.shape))


def _add(a: Any, b: Any, alpha: float = 1) -> Spread | None:
    if not _large(a, b):
        return None
    shape = _shape(a, b)
    if not isinstance(b, Spread):
        b = Spread.of(a.terms[0].core.new_full([1] * len(shape), float(b)), shape)
    a, b = (_ranked(v, len(shape)) for v in (a, b))
    terms = [*a.terms, *(term.times(float(alpha)) for term in b.terms)]
    small = [t for t in terms if Spread([t], shape).varying.numel() * _SMALL <= shape.numel()]
    large = [t for t in terms if not any(t is s for s in small)]
    if len(large) > _MOST_TERMS:
        return None
    return Spread([*large, Term(Spread(small, shape).compact)] if small else large, shape)


def _sub(a: Any, b: Any, alpha: float = 1) -> Spread | None:
    return _add(a, b, -alpha)


def _neg(a: Spread) -> Spread | None:
    return _mul(a, -1.0)


def _pow(a: Any, exponent: float) -> Spread | None:
    return a if exponent == 1 and isinstance(a, Spread) else None


def _sum(a: Spread, dim: Sequence[int] | None = None, keepdim: bool = False, **kwargs: Any) -> Spread | None:
    if not a.dtype.is_floating_point or kwargs.get("dtype") or a.shape.numel() < _WORTH_IT:
        return None
    rank = len(a.shape)
    axes = sorted(d % rank for d in dim) if dim else list(range(rank))
    kept = [n if d not in axes else 1 for d, n in enumerate(a.shape) if keepdim or d not in axes]
    return Spread([_summed(term, a.shape, axes, keepdim) for term in a.terms], kept)


def _summed(term: Term, shape: torch.Size, axes: list[int], keepdim: bool) -> Term:
    """Sum a term over axes; a factor that is constant along them comes out of the sum."""
    core, factor = term
    if isinstance(factor, Tensor):
        if any(factor.shape[d] != 1 for d in axes):
            core, factor = term.product, 1.0
        elif not keepdim:
            factor = factor.squeeze(axes)
    copies = prod(shape[d] for d in axes if core.shape[d] == 1)
    return Term(_add_up(core, axes, keepdim)).times(factor).times(float(copies))


def _add_up(core: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    last = core.dim() - 1
    if axes != [last] or core.shape[last] > _UNROLLED or core.numel() < _WORTH_IT:
        return core.sum(axes, keepdim=keepdim)
    total, *others = (core.narrow(-1, i, 1) if keepdim else core.select(-1, i) for i in range(core.shape[last]))
    for other in others:
        total = total + other
    return total


def _log_softmax_backward(grad: Spread, output: Spread, dim: int, *_: Any) -> Spread | None:
    if output.varying == output.shape:
        return None
    total = _call(aten.sum.dim_IntList, (grad, [dim], True), {})
    share = _call(aten.mul.Tensor, (total, _call(aten.exp.default, (output,), {})), {})
    return _call(aten.sub.Tensor, (grad, share), {})


def _along_an_axis(target: Any) -> Callable[..., Spread | None]:
    """Softmax and the like: computed once for all rows that are equal."""

    def rule(a: Spread, dim: int, half_to_float: bool) -> Spread | None:
        if a.varying[dim] != a.shape[dim]:
            return None
        return Spread.of(target(a.compact, dim, half_to_float), a.shape)

    return rule


# --- changes of axes ------------------------------------------------------------------------------------------------


def _expand(a: Spread, size: Sequence[int], implicit: bool = False) -> Spread:
    new = len(size) - len(a.shape)
    shape = [*size[:new], *(n if s == -1 else s for s, n in zip(size[new:], a.shape, strict=True))]
    return Spread(_ranked(a, len(shape)).terms, shape)


def _view(a: Spread, size: Sequence[int]) -> Spread:
    known = prod(n for n in size if n != -1)
    shape = [a.shape.numel() // max(known, 1) if n == -1 else n for n in size]
    if [n for n in a.shape if n != 1] != [n for n in shape if n != 1]:
        return Spread.of(a.full.reshape(shape))  # its strides may not be those that the view was made for

    def refit(part: Tensor) -> Tensor:  # only axes of size 1 come and go
        sizes = iter([p for p, n in zip(part.shape, a.shape, strict=True) if n != 1])
        return part.reshape([1 if n == 1 else next(sizes) for n in shape])

    return a if a.shape == torch.Size(shape) else a.map(refit, shape)


def _unsqueeze(a: Spread, dim: int) -> Spread:
    at = dim % (len(a.shape) + 1)
    return a.map(lambda part: part.unsqueeze(at), [*a.shape[:at], 1, *a.shape[at:]])


def _squeeze(a: Spread, dim: int | Sequence[int]) -> Spread:
    rank = len(a.shape)
    gone = [d % rank for d in ([dim] if isinstance(dim, int) else dim) if a.shape[d] == 1]
    return (
        a if not gone else a.map(lambda part: part.squeeze(gone), [n for d, n in enumerate(a.shape) if d not in gone])
    )


def _permute(a: Spread, dims: Sequence[int]) -> Spread:
    return a.map(lambda part: part.permute(*dims), [a.shape[d] for d in dims])


def _transpose(a: Spread, one: int, other: int) -> Spread:
    dims = list(range(len(a.shape)))
    dims[one], dims[other] = dims[other], dims[one]
    return _permute(a, dims)


def _select(a: Spread, dim: int, index: int) -> Spread:
    at = dim % len(a.shape)
    kept = [n for d, n in enumerate(a.shape) if d != at]
    return a.map(lambda part: part.select(at, 0 if part.shape[at] == 1 else index), kept)


def _same(a: Spread, **kwargs: Any) -> Spread:
    return a


def _like(value: float) -> Callable[..., Spread]:
    def rule(a: Spread, **kwargs: Any) -> Spread:
        options = {name: given for name, given in kwargs.items() if name in ("dtype", "device") and given is not None}
        return Spread.of(a.terms[0].core.new_full([1] * len(a.shape), value, **options), a.shape)

    return rule


_RULES: dict[Any, Callable[..., Any]] = {
    aten.mul.Tensor: _mul,
    aten.mul.Scalar: _mul,
    aten.div.Tensor: _div,
    aten.div.Scalar: _div,
    aten.add.Tensor: _add,
    aten.add.Scalar: _add,
    aten.sub.Tensor: _sub,
    aten.sub.Scalar: _sub,
    aten.neg.default: _neg,
    aten.pow.Tensor_Scalar: _pow,
    aten.sum.dim_IntList: _sum,
    aten.sum.default: _sum,
    aten._log_softmax.default: _along_an_axis(aten._log_softmax.default),
    aten._softmax.default: _along_an_axis(aten._softmax.default),
    aten._log_softmax_backward_data.default: _log_softmax_backward,
    aten.expand.default: _expand,
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.select.int: _select,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.clone.default: _same,
    aten.ones_like.default: _like(1.0),
    aten.zeros_like.default: _like(0.0),
}


# --- values ---------------------------------------------------------------------------------------------------------


def _is_one(factor: Factor) -> bool:
    return isinstance(factor, float) and factor == 1.0


def _large(a: Spread, b: Any) -> bool:
    """Whether the result is worth some thought: large, and of one floating-point type."""
    same = not isinstance(b, Spread) or b.dtype == a.dtype
    return same and a.dtype.is_floating_point and _shape(a, b).numel() >= _WORTH_IT


def _shape(*values: Any) -> torch.Size:
    return torch.broadcast_shapes(*(v.shape for v in values if isinstance(v, Spread)))


def _ranked(value: Spread, rank: int) -> Spread:
    """Give every part the axes that broadcasting would add on the left."""
    new = [1] * (rank - len(value.shape))
    return value.map(lambda part: part.reshape([*new, *part.shape]), [*new, *value.shape]) if new else value


def _spread(value: Any) -> Any:
    return Spread.of(value) if isinstance(value, Tensor) else value


def _full(value: Any) -> Any:
    return value.full if isinstance(value, Spread) else value


def _compact(value: Any) -> Any:
    return value.compact if isinstance(value, Spread) else value
