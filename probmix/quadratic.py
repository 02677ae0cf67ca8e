r"""Mixtures as linear functions of quadratic features: likelihood and gradient in one pass over the data.

The log density of a Gaussian, and its log weight, are linear in the features 1, x_i and x_i x_j. So the E-step of all
components (of all chains, draws and restarts) is one matrix product, and the gradient of the likelihood is its
transpose: responsibilities times features, the sufficient statistics of EM. Autograd sees the coefficients alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probmix.covariance import COVARIANCES
from probmix.quadratic_pass import QuadraticRows, feature_sums

__all__ = ["mixture_log_likelihood"]


def mixture_log_likelihood(coefficients: Tensor, columns: Tensor, covariance: str) -> Tensor:
    r"""Log likelihood of a mixture whose log weights and densities are linear in quadratic features.

    .. math:: \ell(B) = \sum_n \log \sum_k \exp\{B_k \cdot \phi(x_n)\}, \qquad
              \frac{\partial \ell}{\partial B_k} = \sum_n r_{nk} \phi(x_n), \qquad
              r_{nk} = \frac{\exp\{B_k \cdot \phi(x_n)\}}{\sum_j \exp\{B_j \cdot \phi(x_n)\}}

    The value brings its gradient with it, chunk by chunk, so memory does not grow with N. It can be differentiated
    twice (a Hessian costs one pass for each of its rows), and goes through autograd, ``torch.func`` (``vmap`` adds its
    batch to the one matrix product), ``make_fx`` and ``torch.compile`` (one node of the graph).

    Args:
        coefficients: :math:`B`, of ``COVARIANCES[covariance].features``, ``(*b, K, P)``.
        columns: the data by feature, ``(D, N)``, or ``(*b, D, N)`` for a batch of data sets.
        covariance: name of the shape of covariance, which says what the features are.

    Returns:
        ``(*b,)``; NaN where a coefficient is.

    Raises:
        NotImplementedError: a gradient with respect to ``columns``, or a third derivative, is asked for.

    Example:
        >>> coefficients = torch.tensor([[0.0, 0.0, -0.5]])  # of 1, x and x^2: a standard normal but for its constant
        >>> mixture_log_likelihood(coefficients, torch.tensor([[0.0, 1.0]]), "spherical")
        tensor(-0.5000)
    """
    value, _ = _LogLikelihood.apply(coefficients, columns, covariance)
    return value


# -- one pass over the rows: nodes of a graph ------------------------------------------------------------------------


@torch.library.custom_op("probmix::mixture_statistics", mutates_args=())
def _statistics(coefficients: Tensor, columns: Tensor, covariance: str) -> tuple[Tensor, Tensor]:
    """Value ``(*b,)`` and gradient ``(*b, K, P)``."""
    value, gradient = feature_sums(coefficients, QuadraticRows(columns, COVARIANCES[covariance].spread_dim))
    return value.to(coefficients.dtype), gradient.to(coefficients.dtype)


@torch.library.custom_op("probmix::mixture_curvature", mutates_args=())
def _curvature(coefficients: Tensor, direction: Tensor, columns: Tensor, covariance: str) -> Tensor:
    r"""Hessian times ``direction`` :math:`V`, ``(*b, K, P)``.

    .. math:: \sum_n r_{nk} (s_{nk} - \sum_j r_{nj} s_{nj}) \phi(x_n), \qquad s_{nk} = V_k \cdot \phi(x_n)
    """
    _, product = _zeros(coefficients + direction, columns)
    rows = QuadraticRows(columns, COVARIANCES[covariance].spread_dim)
    for features, _ in rows.chunks(product.shape[:-1].numel()):
        resp, slope = (coefficients @ features).softmax(-2), direction @ features
        deviation = slope - (resp * slope).sum(-2, keepdim=True)
        product += (resp * deviation) @ features.mT
    return product


def _zeros(coefficients: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    batch = torch.broadcast_shapes(coefficients.shape[:-2], columns.shape[:-2])
    return coefficients.new_zeros(batch), coefficients.new_zeros(batch + coefficients.shape[-2:])


@_statistics.register_fake
def _(coefficients: Tensor, columns: Tensor, covariance: str) -> tuple[Tensor, Tensor]:
    return _zeros(coefficients, columns)


@_curvature.register_fake
def _(coefficients: Tensor, direction: Tensor, columns: Tensor, covariance: str) -> Tensor:
    return _zeros(coefficients + direction, columns)[1]


# -- batches: the operations take leading axes as they are -----------------------------------------------------------


def _lead(value: Tensor, axis: int | None, depth: int) -> Tensor:
    """Move a batch axis to the front of ``depth`` others, with which it broadcasts."""
    if axis is None:
        return value
    value = value.movedim(axis, 0)
    return value.reshape(value.shape[0], *(1,) * (depth + 1 - value.ndim), *value.shape[1:])


def _lead_all(in_dims: tuple[int | None, ...], values: tuple[Tensor, ...]) -> list[Tensor]:
    depth = max(value.ndim - (axis is not None) for value, axis in zip(values, in_dims, strict=True))
    return [_lead(value, axis, depth) for value, axis in zip(values, in_dims, strict=True)]


@_statistics.register_vmap
def _(info: Any, in_dims: Any, *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    return _statistics(*_lead_all(in_dims[:-1], inputs[:-1]), inputs[-1]), (0, 0)


@_curvature.register_vmap
def _(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
    return _curvature(*_lead_all(in_dims[:-1], inputs[:-1]), inputs[-1]), 0


# -- derivatives -----------------------------------------------------------------------------------------------------


class _LogLikelihood(torch.autograd.Function):
    """Value and gradient, both outputs, so that what becomes of the gradient can be differentiated once more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(coefficients: Tensor, columns: Tensor, covariance: str) -> tuple[Tensor, Tensor]:
        return _statistics(coefficients, columns, covariance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: tuple[Tensor, Tensor]) -> None:
        coefficients, columns, ctx.covariance = inputs
        ctx.save_for_backward(coefficients, columns, output[1])
        ctx.save_for_forward(coefficients, columns, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, of_value: Tensor | None, of_gradient: Tensor | None) -> tuple[Tensor | None, None, None]:
        coefficients, columns, gradient = ctx.saved_tensors
        _refuse(ctx.needs_input_grad[1])
        total = None if of_value is None else of_value[..., None, None] * gradient
        if of_gradient is not None:
            curved = _Curvature.apply(coefficients, of_gradient, columns, ctx.covariance)
            total = curved if total is None else total + curved
        return total, None, None

    @staticmethod
    def jvp(ctx: Any, direction: Tensor, columns_direction: Tensor | None, _: None) -> tuple[Tensor, Tensor]:
        coefficients, columns, gradient = ctx.saved_tensors
        _refuse(columns_direction is not None)
        curved = _Curvature.apply(coefficients, direction, columns, ctx.covariance)
        return (direction * gradient).sum((-2, -1)), curved


class _Curvature(torch.autograd.Function):
    """An end: without ``backward`` and ``jvp``, torch refuses to differentiate it rather than call it constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(coefficients: Tensor, direction: Tensor, columns: Tensor, covariance: str) -> Tensor:
        return _curvature(coefficients, direction, columns, covariance)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


def _refuse(columns_vary: bool) -> None:
    if columns_vary:
        raise NotImplementedError(
            "expected data that are constant, got columns that require a gradient, which the fused likelihood does not "
            "have: use the model's log_joint, or detach the data"
        )
