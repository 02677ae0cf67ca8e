"""Covariance of the outputs of infinitely wide fully connected networks, tile by tile: memory for the result alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probmix.dual_activations import AbstractActivation
from probmix.opaque_operation import differentiable
from probmix.tiles import tiles

__all__ = ["WideLimit", "covariance", "tangent_covariance", "variance"]


@dataclass(frozen=True)
class WideLimit:
    r"""The architecture of a network whose width has gone to infinity.

    From layer to layer, starting from :math:`k = \sigma_w^2 x^\top x' / d + \sigma_b^2`,

    .. math:: k \leftarrow \sigma_w^2 E[\phi(u) \phi(v)] + \sigma_b^2, \qquad
              \theta \leftarrow k + \sigma_w^2 E[\phi'(u) \phi'(v)] \, \theta

    where :math:`\theta`, the tangent kernel, starts as ``k``; residual layers add to what was there.

    Args:
        activation: the nonlinearity.
        depth: number of hidden layers.
        residual: whether every hidden layer but the first adds to what came before, ``h + dense(phi(h))``.
        readout: whether the last layer has the weight and bias variances of the others, as in neural-tangents; else
            its weights have unit variance and there is no bias.

    Source:
        Lee, Bahri, Novak, Schoenholz, Pennington and Sohl-Dickstein (2018), Deep neural networks as Gaussian
        processes, equation 5; Jacot, Gabriel and Hongler (2018), Neural tangent kernel, theorem 1.

    Example:
        >>> from probmix.dual_activations import ReLU
        >>> limit, x = WideLimit(ReLU(), depth=2, readout=False), torch.ones(1, 4)
        >>> covariance(x, x, torch.tensor([[2.0]]), torch.tensor([[0.0]]), limit)
        tensor([[1.0000]])
    """

    activation: AbstractActivation
    depth: int
    residual: bool = False
    readout: bool = True

    def variances(self, first: Tensor, weight_var: Tensor, bias_var: Tensor) -> list[Tensor]:
        """Return the variance before each nonlinearity, and that of the output, given the first of them."""
        found = [first]
        for layer in range(1, self.depth + 1):
            found.append(self.after(layer, found[-1], self.activation.variance(found[-1]), weight_var, bias_var))
        return found

    def after(self, layer: int, before: Tensor, dual: Tensor, weight_var: Tensor, bias_var: Tensor) -> Tensor:
        """Return the covariance after a layer (1 to depth), given that before its nonlinearity and the dual."""
        if layer == self.depth and not self.readout:
            return dual
        new = torch.addcmul(bias_var, weight_var, dual)
        return before + new if self.residual and layer < self.depth else new


def covariance(
    x1: Tensor, x2: Tensor, weight_var: Tensor, bias_var: Tensor, limit: WideLimit, *, symmetric: bool = False
) -> Tensor:
    """Return the covariance of the outputs at two sets of rows, ``(*b, n, d), (*b, m, d) -> (*b, n, m)``.

    The matrix and its gradient are made tile by tile through all layers, so nothing of its size is kept but the result;
    the gradient runs forwards once more.

    Args:
        x1: rows.
        x2: rows; the same tensor if ``symmetric``, when only tiles up to the diagonal are made.
        weight_var: ``(*b, 1, 1)``.
        bias_var: ``(*b, 1, 1)``.
        limit: the architecture.
        symmetric: whether both sets are one.

    Example:
        >>> from probmix.dual_activations import Erf
        >>> x = torch.eye(2)
        >>> covariance(x, x, torch.tensor([[2.0]]), torch.tensor([[0.0]]), WideLimit(Erf(), 1), symmetric=True)
        tensor([[0.9291, 0.0000],
                [0.0000, 0.9291]])
    """
    q1 = _variances(x1, weight_var, bias_var, limit)
    q2 = q1 if symmetric else _variances(x2, weight_var, bias_var, limit)
    return _covariance(x1, x2, q1, q2, weight_var, bias_var, _number_of(limit), symmetric)


def variance(x1: Tensor, x2: Tensor, weight_var: Tensor, bias_var: Tensor, limit: WideLimit) -> Tensor:
    """Return the covariance of the outputs at pairs of rows, ``(*b, n, d), (*b, n, d) -> (*b, n)``.

    Example:
        >>> from probmix.dual_activations import ReLU
        >>> x = torch.ones(3, 4)
        >>> variance(x, x, torch.tensor([[2.0]]), torch.tensor([[0.0]]), WideLimit(ReLU(), 5))
        tensor([2., 2., 2.])
    """
    weight_var, bias_var = weight_var.squeeze(-1), bias_var.squeeze(-1)
    q1 = limit.variances(_first_layer(x1.square().sum(-1), x1, weight_var, bias_var), weight_var, bias_var)
    if x1 is x2:
        return q1[-1]
    q2 = limit.variances(_first_layer(x2.square().sum(-1), x2, weight_var, bias_var), weight_var, bias_var)
    k = _first_layer((x1 * x2).sum(-1), x1, weight_var, bias_var)
    for layer in range(1, limit.depth + 1):
        dual = limit.activation.dual(k, q1[layer - 1], q2[layer - 1])
        k = limit.after(layer, k, dual, weight_var, bias_var)
    return k


def tangent_covariance(
    products: Tensor, squares1: Tensor, squares2: Tensor, weight_var: Tensor, bias_var: Tensor, limit: WideLimit
) -> Tensor:
    """Return the tangent kernel given inner products of inputs over their number, and their squared norms over it.

    All shapes broadcast against each other: ``(*b, n, m)``, ``(*b, n, 1)`` and ``(*b, 1, m)`` for a matrix.

    Example:
        >>> from probmix.dual_activations import ReLU
        >>> one = torch.ones(1, 1)
        >>> tangent_covariance(one, one, one, 2 * one, 0 * one, WideLimit(ReLU(), 2))  # 2 (depth + 1)
        tensor([[6.]])
    """
    k, *first = (torch.addcmul(bias_var, weight_var, p) for p in (products, squares1, squares2))
    q1, q2 = (limit.variances(q, weight_var, bias_var) for q in first)
    tangent = k
    for layer in range(1, limit.depth + 1):
        dual, slope = limit.activation.with_slope(k, q1[layer - 1], q2[layer - 1])
        last = layer == limit.depth
        through = tangent * slope if last and not limit.readout else tangent * slope * weight_var
        new = limit.after(layer, torch.zeros_like(k), dual, weight_var, bias_var)  # what this layer adds
        if limit.residual and not last:
            k, tangent = k + new, tangent + new + through
        else:
            k, tangent = new, new + through
    return tangent


def _first_layer(products: Tensor, x: Tensor, weight_var: Tensor, bias_var: Tensor) -> Tensor:
    return torch.addcmul(bias_var, weight_var / x.shape[-1], products)


def _variances(x: Tensor, weight_var: Tensor, bias_var: Tensor, limit: WideLimit) -> Tensor:
    """Return the variance before each nonlinearity, ``(*b, depth, n)``."""
    weight_var, bias_var = weight_var.squeeze(-1), bias_var.squeeze(-1)
    first = _first_layer(x.square().sum(-1), x, weight_var, bias_var)
    return torch.stack(limit.variances(first, weight_var, bias_var)[:-1], -2)


# To whoever traces, each direction is one operation: the tiles of a large matrix would be thousands of nodes of a graph
# and take minutes. Operations take tensors and numbers, so an architecture goes by its number.

_LIMITS: list[WideLimit] = []
_NUMBERS: dict[tuple[int, int, bool, bool], int] = {}


def _number_of(limit: WideLimit) -> int:
    """Return the number of an architecture; two activations of a class may compare equal, and yet differ."""
    key = id(limit.activation), limit.depth, limit.residual, limit.readout
    if key not in _NUMBERS:
        _NUMBERS[key] = len(_LIMITS)
        _LIMITS.append(limit)
    return _NUMBERS[key]


@torch.library.custom_op("probmix::wide_covariance", mutates_args=())
def _forwards(
    x1: Tensor, x2: Tensor, q1: Tensor, q2: Tensor, weight_var: Tensor, bias_var: Tensor, limit: int, symmetric: bool
) -> Tensor:
    with torch.no_grad():
        return _values(x1, x2, q1, q2, weight_var, bias_var, limit, symmetric)


@torch.library.custom_op("probmix::wide_covariance_gradient", mutates_args=())
def _backwards(
    gradient: Tensor, x1: Tensor, x2: Tensor, q1: Tensor, q2: Tensor, weight_var: Tensor, bias_var: Tensor,
    limit: int, symmetric: bool, by_rows: bool,
) -> list[Tensor]:  # fmt: skip
    with torch.no_grad():
        return _gradients(gradient, x1, x2, q1, q2, weight_var, bias_var, limit, symmetric, by_rows)


@_forwards.register_fake
def _empty_output(x1: Tensor, x2: Tensor, *others: Any) -> Tensor:
    batch = torch.broadcast_shapes(*(tensor.shape[:-2] for tensor in (x1, x2, *others[:4])))
    return x1.new_empty((*batch, x1.shape[-2], x2.shape[-2]))


def _values(
    x1: Tensor, x2: Tensor, q1: Tensor, q2: Tensor, weight_var: Tensor, bias_var: Tensor, limit: int, symmetric: bool
) -> Tensor:
    """Return the covariance, tile by tile."""
    network, out = _LIMITS[limit], _empty_output(x1, x2, q1, q2, weight_var, bias_var)
    for rows, columns in _tiles(x1, x2, q1, symmetric):
        k = _first_layer(x1[..., rows, :] @ x2[..., columns, :].mT, x1, weight_var, bias_var)
        for layer in range(1, network.depth + 1):
            dual = network.activation.dual(k, *_at(layer, q1, rows, q2, columns))
            k = network.after(layer, k, dual, weight_var, bias_var)
        out[..., rows, columns] = k
        if symmetric and rows != columns:
            out[..., columns, rows] = k.mT
    return out


def _gradients(
    gradient: Tensor, x1: Tensor, x2: Tensor, q1: Tensor, q2: Tensor, weight_var: Tensor, bias_var: Tensor,
    limit: int, symmetric: bool, by_rows: bool,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients by all tensors, or all but the rows; each tile is run once more, forwards and backwards."""
    first = 0 if by_rows else 2
    tensors, axes = (x1, x2, q1, q2, weight_var, bias_var)[first:], (-2, -2, -1, -1, -1, -1)[first:]
    found: list[dict[int, Tensor]] = [{} for _ in tensors]  # of each input: start of a block -> its gradient
    for rows, columns in _tiles(x1, x2, q1, symmetric):
        of_tile = gradient[..., rows, columns]
        if symmetric and rows != columns:
            of_tile = of_tile + gradient[..., columns, rows].mT
        inputs = x1[..., rows, :], x2[..., columns, :], q1[..., rows], q2[..., columns], weight_var, bias_var
        by_products, *parts = _pull(of_tile, *inputs, _LIMITS[limit])
        if by_rows:
            parts = [by_products @ inputs[1], by_products.mT @ inputs[0], *parts]
        starts = rows.start, columns.start, rows.start, columns.start, 0, 0
        for sums, start, part in zip(found, starts[first:], parts, strict=True):
            sums[start] = sums[start] + part if start in sums else part
    whole = [torch.cat(list(sums.values()), axis) for sums, axis in zip(found, axes, strict=True)]
    return [value.sum_to_size(tensor.shape) for value, tensor in zip(whole, tensors, strict=True)]


def _pull(
    gradient: Tensor, x1: Tensor, x2: Tensor, q1: Tensor, q2: Tensor, weight_var: Tensor, bias_var: Tensor,
    limit: WideLimit,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of one tile by its products of rows, variances and weights, given that by its output."""
    products = x1 @ x2.mT / x1.shape[-1]
    layers, k = [], torch.addcmul(bias_var, weight_var, products)
    for layer in range(1, limit.depth + 1):
        variances = _at(layer, q1, slice(None), q2, slice(None))
        dual, slope = limit.activation.with_slope(k, *variances)
        layers.append((k, *variances, dual, slope))
        k = limit.after(layer, k, dual, weight_var, bias_var)
    by_weight, by_bias = torch.zeros_like(weight_var), torch.zeros_like(bias_var)
    by_q1, by_q2 = [], []
    for layer, inputs in zip(range(limit.depth, 0, -1), reversed(layers), strict=True):
        by_dual = gradient
        if limit.readout or layer < limit.depth:
            by_weight, by_bias = by_weight + _total(gradient * inputs[3]), by_bias + _total(gradient)
            by_dual = gradient * weight_var
        through, of_row, of_column = limit.activation.pull(by_dual, *inputs)
        by_q1.append(of_row.squeeze(-1))
        by_q2.append(of_column.squeeze(-2))
        gradient = gradient + through if limit.residual and layer < limit.depth else through
    return [
        gradient * (weight_var / x1.shape[-1]),
        torch.stack(by_q1[::-1], -2),
        torch.stack(by_q2[::-1], -2),
        by_weight + _total(gradient * products),
        by_bias + _total(gradient),
    ]


def _total(tile: Tensor) -> Tensor:
    return tile.sum((-2, -1), keepdim=True)


def _at(layer: int, q1: Tensor, rows: slice, q2: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Return the variances before a layer's nonlinearity, as a column and as a row."""
    return q1[..., layer - 1, rows, None], q2[..., layer - 1, None, columns]


def _tiles(x1: Tensor, x2: Tensor, q1: Tensor, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    return tiles(x1.shape[-2], x2.shape[-2], q1.shape[:-2].numel(), symmetric=symmetric)


_covariance = differentiable(_forwards, _backwards, _gradients, tensors=6)
