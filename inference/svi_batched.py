"""The batched engine of SVI: Gaussian guides on the flat unconstrained vector, all restarts as one batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from probmix.gradient import Compile
from probmix.importance import elbo, log_ratios, summarise
from probmix.inference.method import Problem
from probmix.inference.starts import Start, starting_points
from probmix.inference.svi_engine import AbstractEngine, Result, family_name
from probmix.inference.svi_gaussian import FAMILIES, AbstractFamily
from probmix.inference.svi_restarts import Restarts, advance, average, begin, look

__all__ = ["BatchedEngine"]

_USUAL_WINDOWS = 10  # until a run ends by its own rule


class BatchedState(NamedTuple):
    """All restarts and the family of their guides."""

    family: AbstractFamily
    restarts: Restarts


@dataclass(frozen=True)
class BatchedEngine(AbstractEngine):
    """Natural-gradient steps of Gaussian guides; settings as in `probmix.inference.svi.SVI`.

    Args:
        guide: a family of Gaussians by name.
        restarts: independent runs.
        init: where they start.
        max_steps: steps of every restart, at most.
        learning_rate: at first, in the guide's own units.
        window: steps between two looks at the ELBO; also the steps that are done at once.
        tolerance: smallest gain that counts, standard errors.
        num_particles: draws from each guide in each step.
        compile: as in `probmix.log_density.LogDensity.plan`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from probmix.arguments import Arguments
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("row", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> engine = BatchedEngine("full_rank", 3, "random", 1000, 0.1, 50, 1.0, 10, False)
        >>> problem = Problem(program, Arguments.of(torch.ones(99)), 0)
        >>> state = engine.start(problem)
        >>> while not engine.ended(state):
        ...     state = engine.step(problem, state)
        >>> engine.result(problem, state).guide.parameters["loc"].round(decimals=3)
        tensor([0.9900])
    """

    guide: str
    restarts: int
    init: Start
    max_steps: int
    learning_rate: float
    window: int
    tolerance: float
    num_particles: int
    compile: Compile

    def start(self, problem: Problem) -> BatchedState:
        """Return the first state: a guide around every starting point."""
        density = problem.log_density
        starts = starting_points(problem, density, self.init, self.restarts)
        steps = min(self.max_steps, _USUAL_WINDOWS * self.window)
        density.plan(batch=self.restarts * self.num_particles, gradients=steps, compile=self.compile)
        family = FAMILIES[family_name(self.guide, density.dim)]
        return BatchedState(family, begin(density, family, starts, self.num_particles))

    def step(self, problem: Problem, state: BatchedState) -> BatchedState:
        """Return the state after one window of gradient steps and a look at the ELBO."""
        steps = min(self.window, self.max_steps - state.restarts.steps)
        restarts = advance(
            problem.log_density, state.family, state.restarts,
            steps=steps, rate=self.learning_rate, num_particles=self.num_particles,
        )  # fmt: skip
        return state._replace(restarts=look(restarts, self.window, self.tolerance))

    def ended(self, state: BatchedState) -> bool:
        """Return whether all restarts are done, or out of steps."""
        return state.restarts.steps >= self.max_steps or bool(state.restarts.done.all())

    def result(self, problem: Problem, state: BatchedState) -> Result:
        """Return all restarts; ELBOs from fresh draws."""
        guides = state.family.guide(average(state.restarts))
        ratios = log_ratios(problem.log_density, guides.distribution())
        elbos = elbo(ratios)[0]
        best = int(elbos.nan_to_num(-torch.inf).argmax())
        converged = bool(state.restarts.done[best])
        return Result(guides.pick(best), {}, summarise(ratios[:, best]), converged, elbos, state.restarts.history)

    def progress(self, state: BatchedState) -> tuple[int, int]:
        """Return steps done and steps at most, of every restart."""
        return state.restarts.steps, self.max_steps

    def figures(self, state: BatchedState) -> Mapping[str, str]:
        """Return the best recent mean ELBO and the number of restarts still running."""
        recent = state.restarts.history[:, -self.window :].nanmean(-1)
        best = float(recent.nan_to_num(-torch.inf).max()) if recent.isfinite().any() else math.nan
        return {"ELBO": f"{best:.2f}", "running": str(int((~state.restarts.done).sum()))}
