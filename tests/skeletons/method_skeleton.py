"""Gradient ascent: the smallest complete method. Copy to inference/, rename, and replace what ``step`` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from probmix.inference.method import AbstractMethod, Problem, common, require
from probmix.inference.starts import Start, starting_points
from probmix.posterior import PointPosterior
from probmix.status import Status

__all__ = ["GradientAscent"]


class AscentState(NamedTuple):
    """What the next step needs, and the objectives so far.

    Args:
        z: unconstrained point, ``(dim,)``.
        rate: length of the next step for a unit gradient.
        objectives: log joint density after every step, nats.
    """

    z: Tensor
    rate: Tensor
    objectives: tuple[Tensor, ...]


@dataclass(frozen=True)
class GradientAscent(AbstractMethod):
    r"""Maximum a posteriori by steps along the gradient, ``z + r g``: the best of 31 rates r, each half the one before.

    Args:
        init: as in `probmix.inference.starts.starting_points`.
        max_steps: at most so many steps.
        tolerance: stop when a step gains less, nats.

    Raises:
        ProgramError: no finite start, or a program without a log density.
    """

    init: Start = "auto"
    max_steps: int = 1000
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        require(self.max_steps >= 1, "max_steps", "at least 1", self.max_steps)
        require(self.tolerance > 0, "tolerance", "a positive number of nats", self.tolerance)

    def start(self, problem: Problem) -> AscentState:
        """Return the first state."""
        z = starting_points(problem, problem.log_density, self.init, 1)[0]
        return AscentState(z, z.new_tensor(1.0), (problem.log_density.value(z, jacobian=False),))

    def step(self, problem: Problem, state: AscentState) -> AscentState:
        """Return the state after one step; the objective never falls."""
        _, gradient = problem.log_density.value_and_grad(state.z, jacobian=False)
        rates = state.rate * 0.5 ** torch.arange(-1.0, 30.0, dtype=state.z.dtype, device=state.z.device)
        proposals = state.z + rates[:, None] * gradient
        values = problem.log_density.value(proposals, jacobian=False).nan_to_num(-torch.inf)
        best = values.argmax()
        if values[best] <= state.objectives[-1]:  # no step rises: stay, and let status() see it
            return AscentState(state.z, state.rate, (*state.objectives, state.objectives[-1]))
        return AscentState(proposals[best], rates[best], (*state.objectives, values[best]))

    def status(self, problem: Problem, state: AscentState) -> Status | None:
        """Return how the fit ended, or None to go on."""
        if len(state.objectives) > 1 and state.objectives[-1] - state.objectives[-2] < self.tolerance:
            return Status("converged", f"the last step gained less than {self.tolerance:g} nats")
        if len(state.objectives) > self.max_steps:
            return Status("max_steps", f"GradientAscent() still gained after {self.max_steps} steps. Raise max_steps.")
        return None

    def finish(self, problem: Problem, state: AscentState, status: Status) -> PointPosterior:
        """Return the last point."""
        objectives = torch.stack(state.objectives)
        return PointPosterior(
            **common(self, problem, status),
            history={"objective": objectives},
            point=problem.log_density.constrain(state.z),
            objective=float(objectives[-1]),
            objectives=objectives[-1:],
        )

    def progress(self, state: AscentState) -> tuple[int, int]:
        """Return steps done and steps at most."""
        return len(state.objectives) - 1, self.max_steps

    def figures(self, state: AscentState) -> Mapping[str, str]:
        """Return the objective so far."""
        return {"objective": f"{float(state.objectives[-1]):.4f}"}
