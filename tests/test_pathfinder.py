"""Pathfinder: its normal distributions against dense algebra, its answer on targets with known evidence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from probmix.inference.lbfgs import LBFGSState, start, step
from probmix.inference.pathfinder import Normals, _normals, _updated, pathfinder
from probmix.isolation import isolated


@pytest.fixture(autouse=True)
def _seeded():
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


class Normal:
    """A correlated normal log density, not normalised: its evidence is known."""

    def __init__(self, dim: int) -> None:
        root = torch.randn(dim, dim) / dim**0.5
        units = 10 ** torch.linspace(-1, 1, dim)
        self.precision = (root @ root.T + 0.3 * torch.eye(dim)) * units[:, None] * units
        self.loc = torch.randn(dim)
        self.log_evidence = 0.5 * dim * math.log(2 * math.pi) - 0.5 * float(self.precision.logdet())

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        gradient = -(z - self.loc) @ self.precision
        return 0.5 * ((z - self.loc) * gradient).sum(-1), gradient


def searched(target: Normal, z: Tensor, evaluations: int) -> LBFGSState:
    def minus(points: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = target(points)
        return -value, -gradient

    state = start(minus, z, memory=6)
    for _ in range(evaluations):
        state = step(minus, state)
    return state


def dense_cov(normals: Normals, path: int) -> Tensor:
    q, std = normals.basis[path], normals.diagonal_std[path]
    root = std[:, None] * (torch.eye(len(q)) + q @ (normals.core_tril[path] - torch.eye(q.shape[-1])) @ q.T)
    return root @ root.T


@pytest.mark.parametrize("dim", [3, 20])
@pytest.mark.parametrize("evaluations", [0, 3, 25])
def test_the_covariance_is_that_of_dense_bfgs_updates(dim, evaluations):
    """One update after another, ``H <- (I - r s y') H (I - r y s') + r s s'``, on a dense matrix.

    With no, few and all pairs of the memory, and with fewer dimensions than twice the memory. 1e-8: the inverse of a
    triangle of pairs that are nearly parallel costs half of the sixteen digits.
    """
    state = searched(Normal(dim), torch.randn(4, dim), evaluations)
    diagonal = torch.rand(4, dim) + 0.5
    normals = _normals(state, diagonal)
    for path in range(4):
        dense = torch.diag(diagonal[path])
        for s, y in zip(state.steps[:, path], state.changes[:, path], strict=True):
            if s @ y > 0:
                turn = torch.eye(dim) - torch.outer(s, y) / (s @ y)
                dense = turn @ dense @ turn.T + torch.outer(s, s) / (s @ y)
        torch.testing.assert_close(dense_cov(normals, path), dense, rtol=1e-8, atol=1e-8 * float(dense.abs().max()))
        centre = state.point[path] - dense @ state.gradient[path]
        torch.testing.assert_close(normals.loc[path], centre, rtol=1e-7, atol=1e-7)


def test_log_prob_and_draws_are_of_that_normal():
    """Draws whitened by the dense covariance: 4 x 5,000 second moments within 6 standard errors (false alarm 4e-8)."""
    normals = _normals(searched(Normal(5), torch.randn(4, 5), 12), torch.rand(4, 5) + 0.5)
    z, log_prob = normals.sample(5000)
    for path in range(4):
        q = MultivariateNormal(normals.loc[path], dense_cov(normals, path))
        torch.testing.assert_close(log_prob[path], q.log_prob(z[path]), rtol=1e-8, atol=1e-8)
        white = torch.linalg.solve_triangular(q.scale_tril, (z[path] - q.mean).T, upper=False)
        second = white @ white.T / 5000
        error = (torch.ones(5, 5) + torch.eye(5)).sqrt() / 5000**0.5
        assert ((second - torch.eye(5)).abs() < 6 * error).all()
        assert not ((1.2 * second - torch.eye(5)).abs() < 6 * error).all()  # the control: a fifth too wide


def test_the_diagonal_is_that_of_a_dense_update():
    """Scaled so that ``y' H y`` fits the newest pair, then one direct BFGS update of the inverse."""
    diagonal, s = torch.rand(7, 4) + 0.5, torch.randn(7, 4)
    y = s * (torch.rand(7, 4) + 0.1)
    updated = _updated(diagonal, s, y)
    for row in range(7):
        a, b = y[row] @ (diagonal[row] * y[row]), y[row] @ s[row]
        direct = torch.diag(1 / diagonal[row]) * a / b
        moved = direct @ s[row]
        direct = direct - torch.outer(moved, moved) / (s[row] @ moved) + torch.outer(y[row], y[row]) / b
        torch.testing.assert_close(updated[row], 1 / direct.diagonal(), rtol=1e-10, atol=0)
    assert torch.equal(_updated(diagonal, 0 * s, 0 * y), diagonal)  # no pair, no change


@pytest.mark.parametrize("dim", [2, 6])
def test_a_normal_target_is_found_with_its_evidence(dim):
    """A path ends within 0.01 nats of the mode; an ELBO of a normal guide is the evidence less a divergence.

    From 2,000 draws of each path: no path above the evidence (4 standard errors), the median path within half a nat.
    The control: the normal at the start, before a single pair is known.
    """
    target = Normal(dim)
    paths = pathfinder(target, 3 * torch.randn(16, dim))

    def elbo(normals: Normals) -> tuple[Tensor, Tensor]:
        z, log_prob = normals.sample(2000)
        gap = target(z.flatten(0, 1))[0].reshape(log_prob.shape) - log_prob
        return gap.mean(-1) - target.log_evidence, gap.std(-1) / 2000**0.5

    gap, error = elbo(paths.normals)
    assert (gap < 4 * error + 1e-9).all()
    assert gap.median() > -0.5
    unaware, _ = elbo(_normals(searched(target, 3 * torch.randn(16, dim), 0), torch.ones(16, dim)))
    assert unaware.median() < -2
    assert (paths.mode - target.loc).abs().max() < 1  # one unit is within sqrt(2 * 0.01) standard deviations here


def test_stops_for_the_typical_set_on_the_way_into_a_funnel():
    """Neal's funnel, ``v ~ N(0, 3)``, nine ``x ~ N(0, exp(v / 2))``: its mode is at v = -40.5, where no mass is.

    Nearly all of its mass is at |v| < 9, three standard deviations, and there most of the normals are taken; an ELBO
    of five draws errs at times. The control: the paths themselves run out of it.
    """

    def funnel(z: Tensor) -> tuple[Tensor, Tensor]:
        leaf = z.detach().requires_grad_()
        v, x = leaf[:, 0], leaf[:, 1:]
        value = -(v**2) / 18 - 0.5 * (x**2).sum(-1) * (-v).exp() - 4.5 * v
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    paths = pathfinder(funnel, torch.rand(16, 10) * 4 - 2)
    v = paths.normals.sample(100)[0][..., 0]
    assert paths.mode[:, 0].median() < -20
    assert (v.abs() < 9).double().mean() > 0.5


def test_a_path_that_begins_behind_a_wall_spoils_no_other():
    target, z = Normal(3), torch.randn(4, 3)
    z[2] = torch.nan
    paths = pathfinder(target, z)
    assert paths.elbo.isfinite().tolist() == [True, True, False, True]
    assert (paths.mode[[0, 1, 3]] - target.loc).abs().max() < 1


def test_a_density_with_an_edge():
    def half(z: Tensor) -> tuple[Tensor, Tensor]:
        """A Gamma(3, 1), not on the log scale: not defined below 0."""
        inside = z[:, 0] > 0
        value = torch.where(inside, 2 * z[:, 0].log() - z[:, 0], torch.nan)
        return value, torch.where(z > 0, 2 / z - 1, torch.nan)

    paths = pathfinder(half, torch.tensor([[0.5], [5.0]]))
    assert (paths.mode - 2).abs().max() < 0.2
    assert (paths.normals.loc > 0).all()
    assert paths.elbo.isfinite().all()


def test_repeats_itself():
    target, z = Normal(4), torch.randn(5, 4)
    with isolated(3, dtype=torch.float64, device=torch.device("cpu")):
        one = pathfinder(target, z)
    with isolated(3, dtype=torch.float64, device=torch.device("cpu")):
        other = pathfinder(target, z)
    assert torch.equal(one.elbo, other.elbo)
    assert torch.equal(one.normals.loc, other.normals.loc)
