"""A function and its gradient, two operations, as one that is differentiable and batched, and one node of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from probmix.tiles import batch_first

__all__ = ["differentiable"]


def differentiable(
    forwards: Any,
    backwards: Any,
    gradients: Callable[..., Sequence[Tensor]],
    tensors: int,
    aligned: Callable[..., list[Tensor]] = batch_first,
) -> Callable[..., Tensor]:
    """Return ``forwards`` with its derivatives, given custom operations for both directions.

    A function that works tile by tile would be thousands of nodes of a graph. Here each direction is one; nothing is
    kept for the gradient but the inputs, and second derivatives go through ``gradients`` as it is written.

    Args:
        forwards: a custom operation of ``tensors`` tensors, the first two of them rows, then of settings.
        backwards: one of the gradient by the output, the same tensors and settings, and whether the gradients by rows
            are wanted; it returns those by all tensors, or by all but the rows.
        gradients: what ``backwards`` runs, made of operations that torch can differentiate.
        tensors: how many.
        aligned: puts the axis of a vmap in front of all tensors, as `probmix.tiles.batch_first` does, the gradient
            first where there is one.

    Example:
        >>> @torch.library.custom_op("probmix::example_product", mutates_args=())
        ... def forwards(x1: Tensor, x2: Tensor, scale: Tensor, power: int) -> Tensor:
        ...     return scale**power * x1 @ x2.mT
        >>> def gradients(g, x1, x2, scale, power, by_rows):
        ...     by_scale = (power * scale ** (power - 1) * g * (x1 @ x2.mT)).sum((-2, -1), keepdim=True)
        ...     return [scale**power * g @ x2, scale**power * g.mT @ x1, by_scale][0 if by_rows else 2 :]
        >>> @torch.library.custom_op("probmix::example_product_gradient", mutates_args=())
        ... def backwards(
        ...     g: Tensor, x1: Tensor, x2: Tensor, scale: Tensor, power: int, by_rows: bool
        ... ) -> list[Tensor]:
        ...     return gradients(g, x1, x2, scale, power, by_rows)
        >>> product = differentiable(forwards, backwards, gradients, 3)
        >>> torch.func.grad(lambda s: product(torch.ones(1, 1), torch.ones(1, 1), s, 3).sum())(torch.full((1, 1), 2.0))
        tensor([[12.]])
    """

    @backwards.register_fake
    def like_inputs(gradient: Tensor, *inputs: Any) -> list[Tensor]:
        return [tensor.new_empty(tensor.shape) for tensor in inputs[0 if inputs[-1] else 2 : tensors]]

    _register_batching(forwards, backwards, tensors, aligned)

    class Value(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs: Any) -> Tensor:
            return forwards(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs[:tensors])
            ctx.settings = inputs[tensors:]

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
            by_rows = any(ctx.needs_input_grad[:2])
            found = Gradient.apply(gradient, *ctx.saved_tensors, *ctx.settings, by_rows)
            return *(() if by_rows else (None, None)), *found, *[None] * len(ctx.settings)

    class Gradient(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs: Any) -> tuple[Tensor, ...]:
            return tuple(backwards(*inputs))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.save_for_backward(*inputs[: tensors + 1])
            ctx.settings = inputs[tensors + 1 :]

        @staticmethod
        def backward(ctx: Any, *by_gradients: Tensor) -> tuple[Tensor | None, ...]:
            pull = vjp(lambda *saved: tuple(gradients(*saved, *ctx.settings)), *ctx.saved_tensors)[1]
            return *pull(by_gradients), *[None] * len(ctx.settings)

    return Value.apply


def _register_batching(forwards: Any, backwards: Any, tensors: int, aligned: Callable[..., list[Tensor]]) -> None:
    """Teach both operations to run on a whole batch at once under `torch.vmap`."""

    @forwards.register_vmap
    def forwards_batched(info: Any, axes: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        return forwards(*aligned(info, axes, inputs[:tensors]), *inputs[tensors:]), 0

    @backwards.register_vmap
    def backwards_batched(info: Any, axes: tuple[int | None, ...], *inputs: Any) -> tuple[list[Tensor], list[int]]:
        own = inputs[: tensors + 1]
        found = backwards(*aligned(info, axes, own), *inputs[tensors + 1 :])
        shapes = [
            tensor.shape if axis is None else tensor.select(axis, 0).shape
            for tensor, axis in zip(own, axes, strict=False)
        ][-len(found) :]
        found = [value.reshape(info.batch_size, *shape) for value, shape in zip(found, shapes, strict=True)]
        return found, [0] * len(found)
