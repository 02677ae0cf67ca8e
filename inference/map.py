"""Maximum a posteriori for any program: L-BFGS on the unconstrained vector, all starts as one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from probmix.inference.ascent import Ascent, ascend, begin, how_it_ended
from probmix.inference.method import AbstractMethod, Problem, common, require
from probmix.inference.starts import Start, starting_points
from probmix.posterior import PointPosterior
from probmix.status import Status

__all__ = ["MAP"]


@dataclass(frozen=True)
class MAP(AbstractMethod):
    r"""Maximum a posteriori: ``argmax log p(data, sites)``, the density taken in the constrained space.

    Without the Jacobian of the unconstrained map, so that the answer is EM's where a model has both and does not
    depend on how a support is parameterised.

    Args:
        restarts: independent starts, run as one batch, of which the best is kept; all objectives are reported. On
            small data a step of 8 costs about 1.2 times as much as of one, of 64 about twice; on large data, in
            proportion, which is why there are not more by default.
        init: as in `probmix.inference.starts.starting_points`, where ``"auto"`` is a draw from the prior for
            programs without a closed form.
        max_steps: blocks of 20 L-BFGS iterations (Liu and Nocedal 1989), at most.
        tolerance: a restart is done when a block gains less, nats. Restarts below the best are not waited for for ever.

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

    restarts: int = 8
    init: Start = "auto"
    max_steps: int = 200
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        for setting in ("restarts", "max_steps"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        require(self.tolerance > 0, "tolerance", "a positive number of nats", self.tolerance)

    def start(self, problem: Problem) -> Ascent:
        """Return the first state: all starting points, and one evaluation there."""
        density = problem.log_density
        z = starting_points(problem, density, self.init, self.restarts, otherwise="prior")
        return begin(partial(density.value_and_grad, jacobian=False), z)

    def step(self, problem: Problem, state: Ascent) -> Ascent:
        """Return the state after one block of L-BFGS iterations of every restart that still moves."""
        density = problem.log_density
        log_posterior = partial(density.value_and_grad, jacobian=False)
        return ascend(log_posterior, state, self.tolerance, thin=density.is_large(len(state.active)))

    def status(self, problem: Problem, state: Ascent) -> Status | None:
        """Return how the fit ended, or None to go on."""
        if not state.objectives:
            return None
        if not state.latest.isfinite().any():
            return Status(
                "failed",
                f"the log density or its gradient was not finite in all {self.restarts} restarts. Either it has no "
                "maximum inside the support: check the priors for densities that grow without bound. Or a gradient is "
                "0 times infinity: choose between values by torch.where, not by multiplying with 0.",
            )
        if ended := how_it_ended(state, self.tolerance):
            return Status("converged", ended)
        if len(state.objectives) >= self.max_steps:
            return Status(
                "max_steps",
                f"MAP() still gained after {self.max_steps} steps. Raise max_steps; or, if the objective grows on and "
                "on, the density has no maximum: then SVI() and NUTS() are the methods to use.",
            )
        return None

    def finish(self, problem: Problem, state: Ascent, status: Status) -> PointPosterior:
        """Return the best restart."""
        objectives = state.latest
        best = objectives.nan_to_num(-torch.inf).argmax()
        return PointPosterior(
            **common(self, problem, status),
            history={"objective": torch.stack(state.objectives or (objectives,), -1)},
            point=problem.log_density.constrain(state.search.point[best]),
            objective=float(objectives[best]),
            objectives=objectives,
        )

    def progress(self, state: Ascent) -> tuple[int, int]:
        """Return steps done and steps at most."""
        return len(state.objectives), self.max_steps

    def figures(self, state: Ascent) -> Mapping[str, str]:
        """Return the best objective and the number of restarts still moving."""
        best = float(state.latest.nan_to_num(-torch.inf).max())
        return {"objective": f"{best:.4f}", "running": str(int(state.active.sum()))}
