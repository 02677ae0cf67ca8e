"""Maximum a posteriori for any program: L-BFGS on the unconstrained vector, from several starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from probmix.inference.method import AbstractMethod, Problem, common, require
from probmix.inference.starts import Start, starting_points
from probmix.log_density import LogDensity
from probmix.posterior import PointPosterior
from probmix.status import Status

__all__ = ["MAP"]

_INNER_STEPS = 20  # L-BFGS iterations between two looks at the objective


class MAPState(NamedTuple):
    """All restarts.

    Args:
        optimisers: one for each restart; each holds its point and its curvature pairs.
        objectives: log joint density after every step, ``(restarts,)`` each; NaN where a restart ran off.
        active: which restarts still move.
    """

    optimisers: tuple[torch.optim.LBFGS, ...]
    objectives: tuple[Tensor, ...]
    active: Tensor


@dataclass(frozen=True)
class MAP(AbstractMethod):
    r"""Maximum a posteriori: ``argmax log p(data, sites)``, the density taken in the constrained space.

    Without the Jacobian of the unconstrained map, so that the answer is EM's where a model has both and does not
    depend on how a support is parameterised.

    Args:
        restarts: independent starts, of which the best is kept; all objectives are reported.
        init: as in `probmix.inference.starts.starting_points`.
        max_steps: blocks of 20 L-BFGS iterations (Liu and Nocedal 1989), at most.
        tolerance: a restart stops when a block gains less, nats.

    Raises:
        ProgramError: no finite start, or a program without a log density.
        FitError: no restart ended at a finite value.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from probmix.inference import infer
        >>> def program(x):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("row", len(x)):
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> fit = infer(program, torch.tensor([1.0, 3.0, 4.0]), MAP(), seed=0)
        >>> round(float(fit.sites()["rate"]), 3)  # (2 - 1 + 8) / (1 + 3)
        2.25
    """

    restarts: int = 4
    init: Start = "auto"
    max_steps: int = 200
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        for setting in ("restarts", "max_steps"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        require(self.tolerance > 0, "tolerance", "a positive number of nats", self.tolerance)

    def start(self, problem: Problem) -> MAPState:
        """Return the first state: an optimiser at each starting point."""
        starts = starting_points(problem, problem.log_density, self.init, self.restarts)
        optimisers = tuple(_optimiser(z) for z in starts)
        return MAPState(optimisers, (), torch.ones(self.restarts, dtype=torch.bool))

    def step(self, problem: Problem, state: MAPState) -> MAPState:
        """Return the state after one block of L-BFGS iterations of every restart that still moves."""
        density = problem.log_density
        pairs = zip(state.optimisers, state.active.tolist(), strict=True)
        fell = torch.tensor([active and not _climb(optimiser, density) for optimiser, active in pairs])
        objective = self._objective(density, state.optimisers)
        lost = fell.to(objective.device) | (state.objectives[-1].isnan() if state.objectives else False)
        objective = torch.where(lost, torch.nan, objective)
        gain = objective - state.objectives[-1] if state.objectives else torch.full_like(objective, torch.inf)
        return MAPState(state.optimisers, (*state.objectives, objective), gain.cpu() > self.tolerance)

    def status(self, problem: Problem, state: MAPState) -> Status | None:
        """Return how the fit ended, or None to go on."""
        if not state.objectives:
            return None
        finite = state.objectives[-1].isfinite()
        if not finite.any():
            return Status(
                "failed",
                f"the log density or its gradient was not finite in all {self.restarts} restarts. Either it has no "
                "maximum inside the support: check the priors for densities that grow without bound. Or a gradient is "
                "0 times infinity: choose between values by torch.where, not by multiplying with 0.",
            )
        if not state.active.any():
            return Status("converged", f"the last step gained less than {self.tolerance:g} nats")
        if len(state.objectives) >= self.max_steps:
            return Status("max_steps", f"MAP() still gained after {self.max_steps} steps. Raise max_steps.")
        return None

    def finish(self, problem: Problem, state: MAPState, status: Status) -> PointPosterior:
        """Return the best restart."""
        density = problem.log_density
        objectives = self._objective(density, state.optimisers)
        lost = ~objectives.isfinite() | (state.objectives[-1].isnan() if state.objectives else False)
        objectives = torch.where(lost, torch.nan, objectives)
        best = objectives.nan_to_num(-torch.inf).argmax()
        return PointPosterior(
            **common(self, problem, status),
            history={"objective": torch.stack([*state.objectives, objectives], -1)},
            point=density.constrain(_point(state.optimisers[int(best)])),
            objective=float(objectives[best]),
            objectives=objectives,
        )

    def progress(self, state: MAPState) -> tuple[int, int]:
        """Return steps done and steps at most."""
        return len(state.objectives), self.max_steps

    def figures(self, state: MAPState) -> Mapping[str, str]:
        """Return the best objective and the number of restarts still moving."""
        best = float(state.objectives[-1].nan_to_num(-torch.inf).max())
        return {"objective": f"{best:.4f}", "running": str(int(state.active.sum()))}

    def _objective(self, density: LogDensity, optimisers: tuple[torch.optim.LBFGS, ...]) -> Tensor:
        return density.value(torch.stack([_point(o) for o in optimisers]), jacobian=False)


def _optimiser(z: Tensor) -> torch.optim.LBFGS:
    return torch.optim.LBFGS(
        [z.clone().requires_grad_()],
        max_iter=_INNER_STEPS,
        tolerance_grad=1e-9,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )


def _point(optimiser: torch.optim.LBFGS) -> Tensor:
    return optimiser.param_groups[0]["params"][0].detach()


def _climb(optimiser: torch.optim.LBFGS, density: LogDensity) -> bool:
    """Make a block of iterations; return whether the line search kept to finite values."""
    (z,) = optimiser.param_groups[0]["params"]

    def closure() -> Tensor:
        try:
            value, z.grad = density.value_and_grad(z.detach(), jacobian=False)
        except torch.linalg.LinAlgError:  # outside what can be factorised: the line search turns back
            value, z.grad = z.new_tensor(-torch.inf), torch.zeros_like(z)
        z.grad.neg_()
        return -value

    try:
        optimiser.step(closure)
    except IndexError:  # torch's line search, when every value it sees is infinite or not a number
        return False
    return True
