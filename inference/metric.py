"""The metric of Hamiltonian Monte Carlo, learnt from positions and gradients within each chain."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Metric", "Scatter", "fit_metric", "probe"]

_RIDGE = 1e-3  # weight of the diagonal answer, in units of (dimensions / points)
_ENOUGH = 3  # points per dimension before a group of chains has a metric of its own
_SMALLEST_EIGENVALUE = 1e-8  # relative to the largest
_SMALLEST, _LARGEST = 1e-24, 1e12  # variances that a metric may have


class Metric(NamedTuple):
    r"""Linear maps between whitened and unconstrained coordinates, ``z = root u``; the inverse mass is root root^T.

    Groups are consecutive chains of equal number; each has a map of its own, or there is one group with all chains.

    Args:
        root: ``(*s, groups, dim)``, standard deviations, or ``(*s, groups, dim, dim)``, lower Cholesky factors.
        inverse: its inverse, of the same shape.

    Example:
        >>> metric = Metric(torch.tensor([[2.0, 4.0]]), torch.tensor([[0.5, 0.25]]))
        >>> metric.colour(torch.ones(3, 2))[0], metric.whiten(torch.ones(3, 2))[0]
        (tensor([2., 4.]), tensor([0.5000, 0.2500]))
    """

    root: Tensor
    inverse: Tensor

    def colour(self, u: Tensor) -> Tensor:
        """Return ``root u`` for ``u`` ``(*s, chains, dim)``."""
        return _apply(self.root.mT if self.root.dim() > u.dim() else self.root, u)

    def pull(self, gradient: Tensor) -> Tensor:
        """Return ``root^T gradient``, the gradient by ``u``, for ``(*s, chains, dim)``."""
        return _apply(self.root, gradient)

    def whiten(self, z: Tensor) -> Tensor:
        """Return ``root^-1 z`` for ``z`` ``(*s, chains, dim)``."""
        return _apply(self.inverse.mT if self.inverse.dim() > z.dim() else self.inverse, z)


class Scatter(NamedTuple):
    """Sums of squares of positions and gradients about the mean of each chain, over a window of iterations.

    Args:
        iterations: in the window.
        mean: running means of position and gradient, ``(2, *s, chains, dim)``.
        squares: sums over the chains of a group and iterations, ``(2, *s, groups, dim)``, or
            ``(2, *s, groups, dim, dim)`` for a dense metric.

    Example:
        >>> scatter = Scatter.empty(torch.zeros(4, 3), groups=2, dense=False)
        >>> for _ in range(5):
        ...     z = torch.randn(4, 3)
        ...     scatter = scatter.add(z, -z)
        >>> scatter.iterations, scatter.squares.shape
        (5, torch.Size([2, 2, 3]))
    """

    iterations: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, z: Tensor, *, groups: int, dense: bool) -> Scatter:
        """Return a window without iterations for chains at ``z`` ``(*s, chains, dim)``."""
        shape = (*z.shape[:-2], groups, *z.shape[-1:] * (2 if dense else 1))
        return cls(0, z.new_zeros(2, *z.shape), z.new_zeros(2, *shape))

    def add(self, z: Tensor, gradient: Tensor) -> Scatter:
        """Return the window with one more iteration (Welford 1962); values that are not finite do not count."""
        point = torch.stack([z, gradient])
        before = torch.where(point.isfinite(), point - self.mean, 0.0)
        point = self.mean + before
        mean = self.mean + before / (self.iterations + 1)
        products = _products(before, point - mean, self.groups, self.dense)
        return Scatter(self.iterations + 1, mean, self.squares + products)

    @property
    def dense(self) -> bool:
        """Whether products of two coordinates are kept."""
        return self.squares.dim() > self.mean.dim()

    @property
    def groups(self) -> int:
        """Number of groups of chains."""
        return self.squares.shape[-2 - int(self.dense)]

    @property
    def points(self) -> int:
        """Independent deviations in a group: its chains times one less than the iterations."""
        return self.mean.shape[-2] // self.groups * max(self.iterations - 1, 0)

    def apart(self) -> Tensor:
        """Return for each data set, ``(*s,)``, whether groups lie further apart than their chains are wide."""
        own = self.squares[0].diagonal(dim1=-2, dim2=-1) if self.dense else self.squares[0]
        within = own.sum(-2) / max(self.mean.shape[-2] * self.iterations, 1)
        centres = self.mean[0].unflatten(-2, (self.groups, -1)).mean(-2)
        between = centres.var(-2) if self.groups > 1 else torch.zeros_like(within)
        return (between > within).any(-1)


def probe(here: Tensor, nearby: Tensor, step: Tensor, *, dense: bool) -> Scatter:
    """Return the scatter of gradients between starts and points a small step away, all ``(*s, chains, dim)``.

    The metric of it is the inverse of the absolute Hessian at the starts. Pairs that are not finite do not count.

    Example:
        >>> step = 1e-3 * torch.randn(50, 2)
        >>> scatter = probe(torch.zeros(50, 2), -4.0 * step, step, dense=False)
        >>> fit_metric(scatter).root  # of a normal of variance 1/4
        tensor([[0.5000, 0.5000]])
    """
    change = nearby - here
    usable = change.isfinite().all(-1, keepdim=True)
    pair = torch.stack([torch.where(usable, step, 0.0), torch.where(usable, change, 0.0)])
    return Scatter(2, torch.zeros_like(pair), _products(pair, pair, 1, dense))


def fit_metric(scatter: Scatter) -> Metric:
    r"""Return the metric whose Fisher divergence to the points is least.

    Let A be the scatter of positions and B that of gradients. The inverse mass X solves ``X B X = A``: it is the
    geometric mean of A and the inverse of B. For a normal target, whose gradient is linear in position, this is the
    posterior covariance exactly, as soon as the points span the space, wherever the chains are and however far from
    equilibrium; a covariance of positions alone would need chains that have already converged. The diagonal metric is
    ``sqrt(A_ii / B_ii)``. A dense one is drawn towards the diagonal by a ridge in proportion to dimensions / points.

    Both scatters are taken about the mean of each chain, never across chains: chains may sit in different modes
    (components of a mixture under other labels), and the distance between modes says nothing about the shape of one.
    They are pooled over all chains, unless the groups lie apart and each has points enough for a metric of its own.

    Source: the diagonal form and the divergence are those of the nutpie sampler (Seyboldt, Carlson and Carpenter 2025).

    Example:
        >>> scatter = Scatter.empty(torch.zeros(1, 2), groups=1, dense=True)
        >>> cov = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
        >>> for z in torch.randn(50, 1, 2):
        ...     scatter = scatter.add(z, -torch.linalg.solve(cov, z.mT).mT)
        >>> root = fit_metric(scatter).root
        >>> torch.allclose(root @ root.mT, cov, atol=0.05)
        True
    """
    squares, points = _pooled(scatter)
    dtype, squares = squares.dtype, squares.double()  # eigenvalues of products of four factors
    a, b = squares.diagonal(dim1=-2, dim2=-1) if scatter.dense else squares
    var = torch.where((a > 0) & (b > 0), (a / b).sqrt(), 1.0).clamp(_SMALLEST, _LARGEST)
    std = var.sqrt()
    if not scatter.dense:
        return Metric(std.to(dtype), (1 / std).to(dtype))
    units = std[..., :, None] * std[..., None, :]
    x, g = squares[0] / units, squares[1] * units
    size = x.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    size = torch.where(size > 0, size, 1.0)
    one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    ridge = _RIDGE * x.shape[-1] / max(points, 1) * one
    root = torch.linalg.cholesky(_geometric_mean(x / size + ridge, g / size + ridge)) * std[..., :, None]
    inverse = torch.linalg.solve_triangular(root, one, upper=False)
    return Metric(root.to(dtype), inverse.to(dtype))


def _pooled(scatter: Scatter) -> tuple[Tensor, int]:
    """Return sums of squares with an axis of groups, or of one group, and the points behind each."""
    axis = -2 - int(scatter.dense)
    together = scatter.squares.sum(axis, keepdim=True)
    enough = scatter.points >= _ENOUGH * scatter.squares.shape[-1]
    if scatter.groups == 1 or not enough or not (apart := scatter.apart()).any():
        return together, scatter.points * scatter.groups
    apart = apart.reshape(*apart.shape, *(1,) * (1 - axis - 1))
    return torch.where(apart, scatter.squares, together / scatter.groups), scatter.points


def _geometric_mean(a: Tensor, b: Tensor) -> Tensor:
    """Return X with X B X = A, for positive definite A and B."""
    values, vectors = torch.linalg.eigh(b)
    half = vectors * values.clamp_min(values.amax(-1, keepdim=True) * _SMALLEST_EIGENVALUE).sqrt()[..., None, :]
    root, inverse = half @ vectors.mT, torch.linalg.inv(half).mT @ vectors.mT
    values, vectors = torch.linalg.eigh(root @ a @ root)
    middle = (
        vectors * values.clamp_min(values.amax(-1, keepdim=True) * _SMALLEST_EIGENVALUE).sqrt()[..., None, :]
    ) @ vectors.mT
    mean = inverse @ middle @ inverse
    return 0.5 * (mean + mean.mT)


def _products(left: Tensor, right: Tensor, groups: int, dense: bool) -> Tensor:
    """Sum of products over the chains of each group, ``(*b, chains, dim)`` -> ``(*b, groups, dim[, dim])``."""
    left, right = left.unflatten(-2, (groups, -1)), right.unflatten(-2, (groups, -1))
    return left.mT @ right if dense else (left * right).sum(-2)


def _apply(root: Tensor, rows: Tensor) -> Tensor:
    """Multiply each row ``(*s, chains, dim)`` by its group's factor, from the right."""
    dense, axis = root.dim() > rows.dim(), -3 if root.dim() > rows.dim() else -2
    grouped = rows.unflatten(-2, (root.shape[axis], -1))
    return (grouped @ root if dense else grouped * root.unsqueeze(-2)).flatten(-3, -2)
