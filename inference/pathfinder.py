"""Pathfinder: the best normal approximation along each of many L-BFGS paths, all paths as one batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from probmix.inference.ascent import minus
from probmix.inference.lbfgs import LBFGSState, start, step

__all__ = ["Normals", "Paths", "pathfinder"]

_MEMORY = 6  # pairs behind each inverse Hessian, as in the paper
_STRIDE = 3  # evaluations between two estimates of the ELBO, each of which costs as much as `num_draws` evaluations
_LOOK = 12  # evaluations between two looks at which paths still climb
_FEWEST_ITERATIONS = 3  # between two looks, for their gain to be judged
_STRAGGLERS = 1 / 8  # of the paths are not waited for


class Normals(NamedTuple):
    r"""One normal distribution for each path, its covariance a diagonal plus a low rank.

    .. math:: z = m + a^{1/2} \odot (u + Q (L - I) Q^T u), \quad u \sim N(0, I)

    Args:
        loc: ``m``, ``(paths, dim)``.
        diagonal_std: square root of ``a``, ``(paths, dim)``.
        basis: ``Q``, orthonormal columns, ``(paths, dim, rank)``.
        core_tril: ``L``, ``(paths, rank, rank)``.

    Example:
        >>> eye = torch.eye(2)[None]
        >>> normals = Normals(torch.zeros(1, 2), torch.ones(1, 2), eye, 3 * eye)
        >>> z, log_prob = normals.sample(5)
        >>> z.shape, torch.allclose(log_prob, torch.distributions.Normal(0.0, 3.0).log_prob(z).sum(-1))
        (torch.Size([1, 5, 2]), True)
    """

    loc: Tensor
    diagonal_std: Tensor
    basis: Tensor
    core_tril: Tensor

    def sample(self, num: int) -> tuple[Tensor, Tensor]:
        """Return draws ``(paths, num, dim)`` and their log density ``(paths, num)``; uses torch's global generator."""
        paths, dim = self.loc.shape
        u = torch.randn(paths, num, dim, dtype=self.loc.dtype, device=self.loc.device)
        inside = u @ self.basis
        turned = u + (inside @ self.core_tril.mT - inside) @ self.basis.mT
        log_prob = -0.5 * (u.square().sum(-1) + dim * math.log(2 * math.pi)) - self._log_volume[:, None]
        return self.loc[:, None] + self.diagonal_std[:, None] * turned, log_prob

    @property
    def _log_volume(self) -> Tensor:
        return self.diagonal_std.log().sum(-1) + self.core_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class Paths(NamedTuple):
    """Where the paths led.

    Args:
        normals: best normal approximation of each path.
        elbo: its evidence lower bound, ``(paths,)``, nats; minus infinity where a path had none.
        mode: where each path ended, ``(paths, dim)``.

    Example:
        >>> paths = pathfinder(lambda z: (-0.5 * (z**2).sum(-1), -z), torch.ones(3, 2))
        >>> paths.elbo.shape, paths.normals.loc.shape
        (torch.Size([3]), torch.Size([3, 2]))
    """

    normals: Normals
    elbo: Tensor
    mode: Tensor


def pathfinder(
    log_density: Callable[[Tensor], tuple[Tensor, Tensor]],
    z: Tensor,
    *,
    num_draws: int = 5,
    max_evaluations: int = 150,
    tolerance: float = 1e-2,
) -> Paths:
    r"""Follow L-BFGS from every start; keep the normal approximation along each path whose ELBO is best.

    At every point ``z`` of a path the approximation is :math:`N(z + H \nabla \log p(z), H)`, ``H`` the inverse
    Hessian of the last steps: that is often a better picture of the typical set, met on the way to a mode, than the
    one at the mode.

    Args:
        log_density: points ``(rows, dim)`` to log densities ``(rows,)`` and gradients ``(rows, dim)``.
        z: starts, ``(paths, dim)``.
        num_draws: behind each estimate of an ELBO.
        max_evaluations: of the gradient, for each path, at most.
        tolerance: a path has arrived when twelve evaluations gain less, nats; the last eighth is not waited for.

    Source:
        Zhang, Carpenter, Gelman and Vehtari (2022), algorithms 1 to 4.

    Example:
        >>> bell = lambda z: (-0.5 * (z**2).sum(-1), -z)
        >>> paths = pathfinder(bell, torch.full((3, 2), 4.0))
        >>> paths.normals.sample(10)[0].shape, paths.mode.abs().max() < 1e-3
        (torch.Size([3, 10, 2]), tensor(True))
    """
    function = minus(log_density)
    search = start(function, z, memory=_MEMORY)
    diagonal = torch.ones_like(z)
    paths = Paths(_normals(search, diagonal), torch.full_like(search.value, -torch.inf), z)
    before = search
    for evaluation in range(1, max_evaluations + 1):
        after = step(function, search)
        fresh = (after.iterations > search.iterations)[:, None]
        diagonal = torch.where(fresh, _updated(diagonal, after.steps[-1], after.changes[-1]), diagonal)
        search = after
        if evaluation % _STRIDE == 0:
            paths = _better(log_density, paths, _normals(search, diagonal), num_draws)
        if evaluation % _LOOK == 0:
            if float(_climbing(before, search, tolerance).double().mean()) <= _STRAGGLERS:
                break
            before = search
    return paths._replace(mode=search.point)


def _climbing(before: LBFGSState, after: LBFGSState, tolerance: float) -> Tensor:
    judged = after.iterations - before.iterations >= _FEWEST_ITERATIONS
    return ~(after.stopped | (judged & (before.value - after.value <= tolerance)))


def _better(log_density: Callable[[Tensor], tuple[Tensor, Tensor]], paths: Paths, normals: Normals, num: int) -> Paths:
    """Replace the approximation of each path whose new one has a higher ELBO."""
    z, log_prob = normals.sample(num)
    usable = z.isfinite().all(-1) & log_prob.isfinite()
    z = torch.where(usable[..., None], z, paths.mode[:, None])
    # one draw of every path at a time: the batch keeps its size, so that the program is traced once
    values = torch.stack([log_density(draw)[0] for draw in z.unbind(1)], -1)
    elbo = torch.where(usable & values.isfinite(), values - log_prob, -torch.inf).mean(-1)
    better = elbo > paths.elbo
    kept = (
        torch.where(better.reshape(-1, *[1] * (new.dim() - 1)), new, old)
        for new, old in zip(normals, paths.normals, strict=True)
    )
    return paths._replace(normals=Normals(*kept), elbo=torch.where(better, elbo, paths.elbo))


def _updated(diagonal: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """Return the diagonal of the inverse Hessian after one more pair (Gilbert and Lemaréchal 1989)."""
    a = (y * diagonal * y).sum(-1, keepdim=True)
    b = (y * s).sum(-1, keepdim=True)
    c = (s * s / diagonal).sum(-1, keepdim=True)
    precision = a / (b * diagonal) + y * y / b - a * s * s / (b * c * diagonal.square())
    usable = (b > 0) & (precision > 0) & precision.isfinite()
    return torch.where(usable, 1 / precision, diagonal)


def _normals(search: LBFGSState, diagonal: Tensor) -> Normals:
    """Return the normal at every path's point, from the compact inverse Hessian (Byrd, Nocedal and Schnabel 1994)."""
    s, y = search.steps.permute(1, 2, 0), search.changes.permute(1, 2, 0)  # (paths, dim, memory)
    products = s.mT @ y
    own = products.diagonal(dim1=-2, dim2=-1)
    eye = torch.eye(own.shape[-1], dtype=own.dtype, device=own.device)
    upper = products.triu() + torch.diag_embed((own == 0).to(own.dtype))  # empty pairs are zero: let them do nothing
    inverse = torch.linalg.solve_triangular(upper, eye.expand_as(upper), upper=True)
    spread = y * diagonal[..., None]
    corner = inverse.mT @ (torch.diag_embed(own) + y.mT @ spread) @ inverse
    core = torch.cat([torch.cat([torch.zeros_like(inverse), -inverse], -1), torch.cat([-inverse.mT, corner], -1)], -2)
    factor = torch.cat([spread, s], -1)
    diagonal_std = diagonal.sqrt()
    basis, triangle = torch.linalg.qr(factor / diagonal_std[..., None])
    square = triangle @ core @ triangle.mT
    core_tril, failed = torch.linalg.cholesky_ex(
        torch.eye(square.shape[-1], dtype=own.dtype, device=own.device) + square
    )
    core_tril = torch.where((failed == 0)[:, None, None], core_tril, torch.nan)
    uphill = -search.gradient[..., None]
    move = diagonal * uphill[..., 0] + (factor @ (core @ (factor.mT @ uphill)))[..., 0]
    return Normals(search.point + move, diagonal_std, basis, core_tril)
