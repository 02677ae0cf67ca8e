"""The Hessian of a log density at one point: exact where the program can be differentiated twice."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.functional import hessian as row_by_row
from torch.func import jacrev

from probmix.log_density import LogDensity

__all__ = ["hessian"]

_AT_ONCE = 64  # rows of the Hessian in one pass, which bounds its memory
_AGREEMENT = 0.02  # of a curvature: far above the error of differences, far below a term that was left out
_FLAT = 1e-8  # no step of the comparison is larger than 1e4 units


def hessian(density: LogDensity, z: Tensor) -> Tensor:
    r"""Return :math:`\nabla^2 \log p(z)`, ``(dim, dim)``, for one vector ``z`` ``(dim,)``.

    Exact, by differentiating twice. Where that fails, fourth-order differences of the gradient, which lose about three
    of the sixteen digits of float64. That it fails may go unseen, because torch leaves out what a once-differentiable
    operation contributes; so the curvature along one direction is compared with that of the values.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from probmix.arguments import Arguments
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 0.5).to_event(1))
        ...     pyro.sample("x", dist.Normal(loc[0], 1.0), obs=x)
        >>> hessian(LogDensity(program, Arguments.of(torch.tensor(2.0))), torch.zeros(2))
        tensor([[-5.,  0.],
                [ 0., -4.]])
    """
    z = z.detach()
    try:
        second = _twice(density, z)
        if not _agrees(density, z, second):
            second = _differences(density, z)
    except (RuntimeError, NotImplementedError):
        second = _differences(density, z)
    return 0.5 * (second + second.mT)


def _agrees(density: LogDensity, z: Tensor, second: Tensor) -> bool:
    """Compare with second differences of the values, along a direction that is the same in every run."""
    own = second.diagonal().abs()
    direction = torch.arange(1.0, len(z) + 1, dtype=z.dtype, device=z.device).cos() * own.clamp(min=_FLAT).rsqrt()
    eps = torch.finfo(z.dtype).eps
    width = eps**0.25  # where rounding and truncation are alike
    below, here, above = density.value(z + width * torch.stack([-direction, 0 * direction, direction]))
    expected, found = (below - 2 * here + above) / width**2, direction @ second @ direction
    allowed = _AGREEMENT * (found.abs() + expected.abs()) + 100 * eps * here.abs() / width**2
    return not bool((found - expected).abs() > allowed)  # not finite: nothing to compare with


def _twice(density: LogDensity, z: Tensor) -> Tensor:
    if density.batching == "vmap":
        return jacrev(jacrev(density.value), chunk_size=_AT_ONCE)(z).detach()
    return row_by_row(density.value, z)


def _differences(density: LogDensity, z: Tensor) -> Tensor:
    """Return differences of the gradient, of fourth order: (g(-2h) - 8 g(-h) + 8 g(h) - g(2h)) / 12h."""
    width = torch.finfo(z.dtype).eps ** 0.2 * (1 + z.abs())  # where rounding and truncation are alike
    moves = torch.diag(width)
    points = z + torch.stack([-2 * moves, -moves, moves, 2 * moves])
    _, gradients = density.value_and_grad(points)
    weights = z.new_tensor([1.0, -8.0, 8.0, -1.0])
    return torch.einsum("s,sij->ij", weights, gradients) / (12 * width[:, None])
