"""Mean and covariance of a GPyTorch model at rows, as plain tensors, and given its values at other rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator import to_dense, to_linear_operator
from torch import Tensor

__all__ = ["Conditional", "conditional", "mean_and_covariance"]


def mean_and_covariance(prior: MultivariateNormal) -> tuple[Tensor, Tensor]:
    """Return the mean ``(*b, k)`` and dense covariance; several tasks in the order of a flattened ``(n, tasks)``.

    Example:
        >>> mean, covariance = torch.zeros(3, 2), torch.eye(6)
        >>> mean_and_covariance(MultitaskMultivariateNormal(mean, covariance))[0].shape
        torch.Size([6])
    """
    covariance = to_dense(prior.lazy_covariance_matrix)
    if not isinstance(prior, MultitaskMultivariateNormal):
        return prior.mean, covariance
    if not prior._interleaved:
        size, tasks = prior.event_shape
        blocks = covariance.unflatten(-1, (tasks, size)).unflatten(-3, (tasks, size))
        covariance = blocks.transpose(-4, -3).transpose(-2, -1).flatten(-4, -3).flatten(-2)
    return prior.mean.flatten(-2), covariance


class Conditional(NamedTuple):
    """Values of a function at m new rows, to be conditioned on k others.

    Args:
        cross: covariance of the others with them, ``(*b, k, m)``.
        loc: mean, ``(*b, m)``.
        var: variance, ``(*b, m)``.

    Example:
        >>> seen = Conditional(torch.tensor([[0.5]]), torch.zeros(1), torch.ones(1))
        >>> seen.given(torch.eye(1), torch.tensor([2.0]))
        (tensor([1.]), tensor([0.7500]))
    """

    cross: Tensor
    loc: Tensor
    var: Tensor

    def given(self, tril: Tensor, white: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance given the others, which are ``mean + L white``, L their Cholesky factor."""
        half = torch.linalg.solve_triangular(tril, self.cross, upper=False)
        loc = self.loc + (half.mT @ white[..., None]).squeeze(-1)
        return loc, (self.var - half.square().sum(-2)).clamp_min(torch.finfo(loc.dtype).eps * self.var)


def conditional(model: Any, given: Tensor, rows: Tensor) -> Conditional:
    """Evaluate a model's ``forward`` at two sets of rows ``(*b, n, d)``, for conditioning the second on the first.

    What is not needed of its lazy covariance is not computed.

    Example:
        >>> import gpytorch
        >>> class Process(gpytorch.models.GP):
        ...     def forward(self, x):
        ...         return MultivariateNormal(torch.zeros(len(x)), gpytorch.kernels.RBFKernel()(x))
        >>> [part.shape for part in conditional(Process(), torch.zeros(2, 1), torch.zeros(3, 1))]
        [torch.Size([2, 3]), torch.Size([3]), torch.Size([3])]
    """
    batch = torch.broadcast_shapes(given.shape[:-2], rows.shape[:-2])
    prior = model.forward(torch.cat([part.expand(*batch, *part.shape[-2:]) for part in (given, rows)], -2))
    k = given.shape[-2] * prior.event_shape[1:].numel()
    if isinstance(prior, MultitaskMultivariateNormal) and not prior._interleaved:
        loc, dense = mean_and_covariance(prior)
        covariance = to_linear_operator(dense)
    else:
        loc = prior.mean.flatten(-2) if isinstance(prior, MultitaskMultivariateNormal) else prior.mean
        covariance = prior.lazy_covariance_matrix
    new_var = covariance[..., k:, k:].diagonal(dim1=-1, dim2=-2)
    return Conditional(to_dense(covariance[..., :k, k:]), loc[..., k:], new_var)
