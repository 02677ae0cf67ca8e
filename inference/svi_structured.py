"""SVI with the variational family that a model brings along: Adam on its parameters, in mini-batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probmix.importance import Importance, elbo
from probmix.inference.method import Problem
from probmix.inference.svi_engine import DROP, DROPS, AbstractEngine, Result, stalled
from probmix.status import Status
from probmix.typing import OwnGuide, Sites

__all__ = ["Batches", "StructuredEngine"]

_BLOCK = 1000  # rows at once for the last ELBO


class StructuredState(NamedTuple):
    """Where the run is.

    Args:
        parameters: unconstrained; the optimiser changes them in place.
        optimiser: Adam on them.
        elbos: ELBO estimate of every step up to the last look at them.
        recent: those since, still on the device: a look at each would make an accelerator wait.
        batches: where the steps take their rows from.
        drops: how often the learning rate has been lowered.
        tail: parameters after each step at the lowest learning rate: their mean, and of how many.
        kept: parameters after the last look that found only finite estimates.
        broke: the first step whose estimate was not finite.
    """

    parameters: Sites
    optimiser: torch.optim.Adam
    elbos: list[float]
    recent: list[Tensor]
    batches: Batches
    drops: int
    tail: tuple[Sites, int]
    kept: Sites
    broke: int | None = None


class Batches:
    """Mini-batches of rows in random order, each row once before any comes again; what is left over is dropped.

    Args:
        num_rows: rows in all.
        batch_size: rows in a batch; None: all.
        device: of the data; an order on another one would make every step wait.

    Example:
        >>> batches = Batches(5, 2)
        >>> len(set(torch.cat([batches.rows(), batches.rows()]).tolist()))
        4
    """

    def __init__(self, num_rows: int, batch_size: int | None, device: torch.device | None = None) -> None:
        self.num_rows = num_rows
        self.batch_size = None if batch_size is None or batch_size >= num_rows else batch_size
        self._order, self._next = torch.empty(0, dtype=torch.long, device=device), 0

    def rows(self) -> Tensor:
        """Return the rows of the next batch; uses torch's global generator."""
        assert self.batch_size is not None
        if self._next + self.batch_size > len(self._order):
            self._order, self._next = torch.randperm(self.num_rows, device=self._order.device), 0
        self._next += self.batch_size
        return self._order[self._next - self.batch_size : self._next]

    def of(self, data: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the next batch of the data."""
        if self.batch_size is None:
            return data
        rows = self.rows()
        return tuple(value[rows] for value in data)


@dataclass(frozen=True)
class StructuredEngine(AbstractEngine):
    """Adam (Kingma and Ba 2015) on a bound of the model's own; settings as in `probmix.inference.svi.SVI`.

    A look at the ELBO, after every window, also finds estimates that are not numbers. The run then ends with the
    parameters after the last window without any.

    Args:
        model: the program, with its variational family.
        batch_size: rows in a mini-batch, or None for all.
        max_steps: steps, at most.
        learning_rate: of Adam, at first; None: as the model says.
        window: steps between two looks at the ELBO; None: 150, or those of one pass through the data if they are more.
        tolerance: smallest gain that counts, standard errors.
        num_particles: draws for each row in each step; None: as the model says.

    Example:
        >>> engine = StructuredEngine(None, None, 1000, 0.01, 150, 1.0, 10)
        >>> state = StructuredState({}, None, [-2.0, -1.0], [torch.tensor(-1.0)], Batches(1, None), 0, ({}, 0), {})
        >>> engine.progress(state)
        (3, 1000)
    """

    model: OwnGuide
    batch_size: int | None
    max_steps: int
    learning_rate: float | None
    window: int | None
    tolerance: float
    num_particles: int | None

    def start(self, problem: Problem) -> StructuredState:
        """Return the first state."""
        data = problem.arguments.args
        first = self.model.first_parameters(*data)
        own = isinstance(self.model, nn.Module)  # a copy for this fit, whose parameters may change in place
        parameters = first if own else {name: value.detach().clone().requires_grad_() for name, value in first.items()}
        rate = self.learning_rate or self.model.svi_settings(len(data[0])).learning_rate
        optimiser = torch.optim.Adam(parameters.values(), lr=rate, fused=True)
        batches = Batches(len(data[0]), self.batch_size, data[0].device)
        return StructuredState(parameters, optimiser, [], [], batches, 0, ({}, 0), _copied(parameters))

    def step(self, problem: Problem, state: StructuredState) -> StructuredState:
        """Return the state after one stochastic gradient step."""
        data, optimiser, num_rows = problem.arguments.args, state.optimiser, len(problem.arguments.args[0])
        num = self.num_particles or self.model.svi_settings(num_rows).num_particles
        rows = state.batches.of(data)
        bound = self.model.elbo(state.parameters, *rows, num_rows=num_rows, num_particles=num).mean()
        optimiser.zero_grad()
        (-bound).backward()
        optimiser.step()
        state.recent.append(bound.detach())
        state = self._looked_at(state)
        return state._replace(tail=_averaged(state.tail, state.parameters)) if state.drops == DROPS else state

    def ended(self, state: StructuredState) -> bool:
        """Return whether the run is over: the ELBO has stopped rising, or is not a number, or the steps are used up."""
        return state.drops > DROPS or state.broke is not None or self.progress(state)[0] >= self.max_steps

    def result(self, problem: Problem, state: StructuredState) -> Result:
        """Return the run as it stands, its parameters averaged over the steps at the lowest learning rate."""
        data, state = problem.arguments.args, _summed_up(state)
        parameters = state.kept if state.broke is not None else state.tail[0] or _copied(state.parameters)
        guide = self.model.guide(parameters, *data)
        program = self.model.fitted(guide)
        mean, error, draws = self._last_elbo(program, parameters, data)
        status = None if state.broke is None else self._broken(state)
        if status is not None and status.state == "failed":
            mean = torch.full_like(mean, -torch.inf)
        return Result(
            guide, {}, Importance((float(mean), float(error)), math.nan, draws), state.drops > DROPS, mean[None],
            torch.tensor(state.elbos)[None], program, status,
        )  # fmt: skip

    def progress(self, state: StructuredState) -> tuple[int, int]:
        """Return steps done and steps at most."""
        return len(state.elbos) + len(state.recent), self.max_steps

    def figures(self, state: StructuredState) -> Mapping[str, str]:
        """Return the recent mean ELBO."""
        recent = [*state.elbos, *map(float, state.recent)][-self._window(state) :] or [math.nan]
        return {"ELBO": f"{sum(recent) / len(recent):.2f}"}

    def _window(self, state: StructuredState) -> int:
        """Return steps between two looks: all rows in each, so that one batch is not compared with another."""
        batches = state.batches
        return self.window or max(150, batches.num_rows // (batches.batch_size or batches.num_rows))

    def _looked_at(self, state: StructuredState) -> StructuredState:
        """Return the state after a look at the ELBO, if one is due."""
        window = self._window(state)
        if len(state.recent) < window:
            return state
        state = _summed_up(state)
        if state.broke is not None:
            return state
        drops = state.drops
        if stalled(state.elbos[-2 * window :], window, self.tolerance):
            drops += 1
            for group in state.optimiser.param_groups:
                group["lr"] *= DROP
        return state._replace(drops=drops, kept=_copied(state.parameters))

    def _last_elbo(self, program: Any, parameters: Sites, data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, int]:
        """Return the ELBO of all rows, its standard error and the draws for each row, block by block.

        Draws of different blocks have nothing to do with each other: so few draws are enough where there are many.
        """
        num_rows = len(data[0])
        draws, blocks = self.model.svi_settings(num_rows).last_particles, []
        with torch.no_grad():
            for rows in zip(*(value.split(_BLOCK) for value in data), strict=True):
                estimates = program.elbo(parameters, *rows, num_rows=num_rows, num_particles=draws)
                blocks.append(torch.stack(elbo(len(rows[0]) / num_rows * estimates)))
        means, errors = torch.stack(blocks).unbind(-1)
        return means.sum(), errors.square().sum().sqrt(), draws

    def _broken(self, state: StructuredState) -> Status:
        """Return how a run ended whose ELBO was not a number."""
        rate = state.optimiser.param_groups[0]["lr"]
        remedy = f"Lower learning_rate (it was {rate:g})"
        kept = (len(state.elbos) - 1) // self._window(state) * self._window(state)
        if not kept:
            return Status("failed", f"the ELBO was not a number in step {state.broke}. {remedy}.")
        return Status(
            "interrupted",
            f"the ELBO was not a number in step {state.broke}; what follows rests on the {kept} steps before that were "
            f"looked at. {remedy}, or go on from fit.program",
        )


def _summed_up(state: StructuredState) -> StructuredState:
    """Return the state with the recent estimates on the host, and the first step whose estimate is not finite."""
    if not state.recent:
        return state
    values, before = torch.stack(state.recent).tolist(), len(state.elbos)
    bad = [before + step for step, value in enumerate(values, 1) if not math.isfinite(value)]
    return state._replace(elbos=[*state.elbos, *values], recent=[], broke=bad[0] if bad else None)


def _copied(parameters: Sites) -> Sites:
    return {name: value.detach().clone() for name, value in parameters.items()}


def _averaged(tail: tuple[Sites, int], parameters: Sites) -> tuple[Sites, int]:
    before, count = tail
    last = {name: value.detach() for name, value in parameters.items()}
    mean = {name: torch.lerp(before.get(name, value), value, 1 / (count + 1)) for name, value in last.items()}
    return mean, count + 1
