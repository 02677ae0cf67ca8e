"""Laplace's approximation: a normal distribution at the mode, with the exact Hessian, and the log evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from probmix.guides import NormalGuide
from probmix.importance import Importance, importance
from probmix.inference.ascent import Ascent, ascend, begin, how_it_ended
from probmix.inference.hessian import hessian
from probmix.inference.method import AbstractMethod, Problem, common, require
from probmix.inference.starts import Start, starting_points
from probmix.log_density import LogDensity
from probmix.posterior import GuidePosterior
from probmix.status import Status

__all__ = ["Laplace"]

_ROUNDING = 100  # rounding errors, times dim: the smallest scaled curvature that can be told from 0
_SHARE = 0.1  # of a direction, for a site to be named


class Peak(NamedTuple):
    """The shape of a log density at a point.

    Args:
        precision: minus its Hessian, made positive definite by giving unit standard deviation where it was not.
        curvatures: of the scaled Hessian, ascending, ``(dim,)``: positive at a proper maximum.
        limit: curvatures up to here are not told from zero.
        direction: along the smallest of them, a unit vector in the same scaled coordinates, ``(dim,)``.
    """

    precision: Tensor
    curvatures: Tensor
    limit: float
    direction: Tensor

    @property
    def is_proper(self) -> bool:
        """Whether the density curves downwards in every direction."""
        return bool((self.curvatures > self.limit).all())


@dataclass(frozen=True)
class Laplace(AbstractMethod):
    r"""Laplace's approximation, ``q(z) = N(z*, H^{-1})`` on the unconstrained vector.

    .. math:: \log p(x) \approx \log p(x, z^*) + \tfrac d2 \log 2\pi - \tfrac12 \log\det H

    ``z*`` is the mode of the unconstrained density, Jacobian included (so not the point that ``MAP()`` gives), ``H``
    minus its Hessian there, exact by automatic differentiation. Discrete latent sites are summed out. Both are exact
    where the posterior is normal, as in linear regression with known noise. One mode is counted: where a mixture has
    ``K!`` of them that differ in labels alone and lie apart, add ``log K!`` to the log evidence.

    The ELBO and the Pareto k of the answer come from draws and say how far to trust it.

    Args:
        restarts: independent starts, run as one batch, of which the best mode is kept.
        init: as in `probmix.inference.starts.starting_points`, where ``"auto"`` is a draw from the prior for
            programs without a closed form.
        max_steps: blocks of 20 L-BFGS iterations (Liu and Nocedal 1989), at most.
        tolerance: a restart is done when a block gains less, nats. Restarts below the best are not waited for for ever.
        num_draws: draws from the guide that go into ArviZ.

    Raises:
        ProgramError: no finite start, or a program without a log density.
        FitError: no restart ended at a finite value, or there is no proper mode: the message names the site along
            which the density does not fall.

    Source:
        Tierney and Kadane (1986); MacKay (2003), chapter 27, for the choice of the basis.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from probmix.inference import infer
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> fit = infer(program, torch.tensor(2.0), Laplace(), seed=0)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(2.0))
        >>> round(float(fit.sites()["loc"]), 4), abs(fit.log_evidence - float(exact)) < 1e-4
        (1.0, True)
    """

    restarts: int = 8
    init: Start = "auto"
    max_steps: int = 200
    tolerance: float = 1e-9
    num_draws: int = 1000

    def __post_init__(self) -> None:
        for setting in ("restarts", "max_steps", "num_draws"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        require(self.tolerance > 0, "tolerance", "a positive number of nats", self.tolerance)

    def start(self, problem: Problem) -> Ascent:
        """Return the first state: all starting points, and one evaluation there."""
        density = problem.log_density
        z = starting_points(problem, density, self.init, self.restarts, otherwise="prior")
        return begin(density.value_and_grad, z)

    def step(self, problem: Problem, state: Ascent) -> Ascent:
        """Return the state after one block of L-BFGS iterations of every restart that still moves."""
        density = problem.log_density
        return ascend(density.value_and_grad, state, self.tolerance, thin=density.is_large(len(state.active)))

    def status(self, problem: Problem, state: Ascent) -> Status | None:
        """Return that the climb ended, or None to go on; `finish` looks at the peak and says how."""
        if not state.objectives:
            return None
        if not state.latest.isfinite().any():
            return Status(
                "failed",
                f"the log density or its gradient was not finite in all {self.restarts} restarts, so it has no mode to "
                "approximate: check the priors for densities that grow without bound.",
            )
        if ended := how_it_ended(state, self.tolerance):
            return Status("converged", ended)
        if len(state.objectives) >= self.max_steps:
            return Status("max_steps", f"Laplace() still gained after {self.max_steps} steps. Raise max_steps")
        return None

    def finish(self, problem: Problem, state: Ascent, status: Status) -> GuidePosterior:
        """Return the normal distribution at the best mode."""
        density, values = problem.log_density, state.latest
        best = values.nan_to_num(-torch.inf).argmax()
        peak = _peak(hessian(density, state.search.point[best]))
        guide = NormalGuide("full_rank", {"loc": state.search.point[best], "scale_tril": _cov_tril(peak.precision)})
        found = importance(density, guide.distribution())
        proper = peak.is_proper and status.state != "failed"
        return GuidePosterior(
            **common(self, problem, _judged(status, density, peak, found)),
            history={"objective": torch.stack(state.objectives or (values,), -1)},
            guide=guide,
            elbo=found.elbo,
            elbos=torch.tensor([found.elbo[0]]),
            pareto_k=found.pareto_k,
            num_draws=self.num_draws,
            log_evidence=_log_evidence(float(values[best]), peak.precision) if proper else None,
        )

    def progress(self, state: Ascent) -> tuple[int, int]:
        """Return steps done and steps at most."""
        return len(state.objectives), self.max_steps

    def figures(self, state: Ascent) -> Mapping[str, str]:
        """Return the best log density and the number of restarts still moving."""
        best = float(state.latest.nan_to_num(-torch.inf).max())
        return {"objective": f"{best:.4f}", "running": str(int(state.active.sum()))}


def _peak(second: Tensor) -> Peak:
    """Look at minus the Hessian in units of each coordinate's own curvature, so that units do not matter."""
    own = -second.diagonal()
    std = torch.where(own > 0, own, 1.0).rsqrt()
    scaled = -second * std[:, None] * std
    curvatures, directions = torch.linalg.eigh(scaled.nan_to_num())
    limit = _ROUNDING * len(own) * torch.finfo(own.dtype).eps
    usable = torch.where(curvatures > limit, curvatures, 1.0)
    precision = (directions * usable) @ directions.mT / std[:, None] / std
    if bool((curvatures > limit).all()):
        precision = -second  # not passed through its eigenvectors: exact
    return Peak(precision, curvatures, limit, directions[:, 0])


def _judged(status: Status, density: LogDensity, peak: Peak, found: Importance) -> Status:
    """Add to how the climb ended what the peak looks like, and how close the guide is to the posterior."""
    if status.state == "failed":
        return status
    if peak.is_proper:
        return replace(status, message=f"{status.message}. {found.advice('use SVI(), NUTS() or ChEES()')}")
    if status.state == "converged":
        return Status("failed", _complaint(density, peak))
    return replace(status, message=f"{status.message}. There was no peak yet: {_complaint(density, peak)}")


def _complaint(density: LogDensity, peak: Peak) -> str:
    """Say which sites make up the direction along which the density does not fall, and what to do."""
    share = {site.name: float(peak.direction[site.slice].square().sum()) for site in density.latents}
    names = [repr(name) for name, part in sorted(share.items(), key=lambda pair: -pair[1]) if part >= _SHARE]
    where = f"site {names[0]}" if len(names) == 1 else f"a combination of the sites {', '.join(names)}"
    lowest = float(peak.curvatures[0])
    if lowest < -peak.limit:
        return (
            f"expected a peak of the log density, got a saddle or an edge: along {where} it curves upwards (scaled "
            f"curvature {lowest:.3g}). Raise restarts or start elsewhere by init=; else use SVI() or NUTS(), which "
            "need no peak."
        )
    return (
        f"expected a peak of the log density, but along {where} it is flat (scaled curvature {lowest:.3g}, at most "
        f"{peak.limit:.1g}): the data and the prior do not say where to be. Give a proper prior, or drop what is said "
        "twice; else use NUTS()."
    )


def _cov_tril(precision: Tensor) -> Tensor:
    """Return lower triangular ``L`` with ``L L^T`` the inverse, by way of the reversed order: one factorisation."""
    reversed_tril = torch.linalg.cholesky(precision.flip(0, 1))
    eye = torch.eye(len(precision), dtype=precision.dtype, device=precision.device)
    return torch.linalg.solve_triangular(reversed_tril.flip(0, 1).mT, eye, upper=False)


def _log_evidence(value: float, precision: Tensor) -> float:
    half_log_det = float(torch.linalg.cholesky(precision).diagonal().log().sum())
    return value + 0.5 * len(precision) * math.log(2 * math.pi) - half_log_det
