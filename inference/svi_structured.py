"""SVI with the variational family that a model brings along: Adam on its parameters, in mini-batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from probmix.importance import Importance, elbo
from probmix.inference.method import Problem
from probmix.inference.svi_engine import DROP, DROPS, AbstractEngine, Result, stalled
from probmix.typing import OwnGuide, Sites

__all__ = ["StructuredEngine"]

_ELBO_DRAWS = 1000
_BLOCK = 1000  # rows at once for the last ELBO


class StructuredState(NamedTuple):
    """Where the run is.

    Args:
        parameters: unconstrained; the optimiser changes them in place.
        optimiser: Adam on them.
        elbos: ELBO estimate of every step.
        drops: how often the learning rate has been lowered.
        tail: parameters after each step at the lowest learning rate: their mean, and of how many.
    """

    parameters: Sites
    optimiser: torch.optim.Adam
    elbos: list[float]
    drops: int
    tail: tuple[Sites, int]


@dataclass(frozen=True)
class StructuredEngine(AbstractEngine):
    """Adam (Kingma and Ba 2015) on a bound of the model's own; settings as in `probmix.inference.svi.SVI`.

    Args:
        model: the program, with its variational family.
        batch_size: rows in a mini-batch, or None for all.
        max_steps: steps, at most.
        learning_rate: of Adam, at first.
        window: steps between two looks at the ELBO.
        tolerance: smallest gain that counts, standard errors.
        num_particles: draws for each row in each step.

    Example:
        >>> engine = StructuredEngine(None, None, 1000, 0.01, 150, 1.0, 10)
        >>> engine.progress(StructuredState({}, None, [-2.0, -1.0], 0, ({}, 0)))
        (2, 1000)
    """

    model: OwnGuide
    batch_size: int | None
    max_steps: int
    learning_rate: float
    window: int
    tolerance: float
    num_particles: int

    def start(self, problem: Problem) -> StructuredState:
        """Return the first state."""
        first = self.model.first_parameters(*problem.arguments.args)
        parameters = {name: value.detach().clone().requires_grad_() for name, value in first.items()}
        return StructuredState(parameters, torch.optim.Adam(parameters.values(), lr=self.learning_rate), [], 0, ({}, 0))

    def step(self, problem: Problem, state: StructuredState) -> StructuredState:
        """Return the state after one stochastic gradient step."""
        data, optimiser = problem.arguments.args, state.optimiser
        num_rows = len(data[0])
        if self.batch_size is not None and self.batch_size < num_rows:
            indices = torch.randperm(num_rows)[: self.batch_size]
            data = tuple(value[indices] for value in data)
        bound = self.model.elbo(state.parameters, *data, num_rows=num_rows, num_particles=self.num_particles).mean()
        optimiser.zero_grad()
        (-bound).backward()
        optimiser.step()
        elbos, drops = [*state.elbos, float(bound.detach())], state.drops
        if stalled(elbos, self.window, self.tolerance):
            drops += 1
            for group in optimiser.param_groups:
                group["lr"] *= DROP
        tail = _averaged(state.tail, state.parameters) if drops == DROPS else state.tail
        return state._replace(elbos=elbos, drops=drops, tail=tail)

    def ended(self, state: StructuredState) -> bool:
        """Return whether the run is over: the ELBO has stopped rising, or is not a number, or the steps are used up."""
        steps = len(state.elbos)
        return state.drops > DROPS or steps >= self.max_steps or (steps > 0 and not math.isfinite(state.elbos[-1]))

    def result(self, problem: Problem, state: StructuredState) -> Result:
        """Return the run as it stands, its parameters averaged over the steps at the lowest learning rate."""
        last = {name: value.detach() for name, value in state.parameters.items()}
        parameters = state.tail[0] or last
        mean, error = elbo(self._estimates(parameters, problem.arguments.args))
        guide = self.model.guide(parameters)
        return Result(
            guide, {}, Importance((float(mean), float(error)), math.nan, _ELBO_DRAWS), state.drops > DROPS,
            mean[None], torch.tensor(state.elbos)[None], self.model.fitted(guide),
        )  # fmt: skip

    def progress(self, state: StructuredState) -> tuple[int, int]:
        """Return steps done and steps at most."""
        return len(state.elbos), self.max_steps

    def figures(self, state: StructuredState) -> Mapping[str, str]:
        """Return the recent mean ELBO."""
        recent = state.elbos[-self.window :] or [math.nan]
        return {"ELBO": f"{sum(recent) / len(recent):.2f}"}

    def _estimates(self, parameters: Sites, data: tuple[Tensor, ...]) -> Tensor:
        """Return estimates of the ELBO from all rows, block by block."""
        num_rows, blocks = len(data[0]), []
        with torch.no_grad():
            for rows in zip(*(value.split(_BLOCK) for value in data), strict=True):
                estimates = self.model.elbo(parameters, *rows, num_rows=num_rows, num_particles=_ELBO_DRAWS)
                blocks.append(len(rows[0]) / num_rows * estimates)
        return torch.stack(blocks).sum(0)


def _averaged(tail: tuple[Sites, int], parameters: Sites) -> tuple[Sites, int]:
    before, count = tail
    last = {name: value.detach() for name, value in parameters.items()}
    mean = {name: torch.lerp(before.get(name, value), value, 1 / (count + 1)) for name, value in last.items()}
    return mean, count + 1
