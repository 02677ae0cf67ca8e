"""Climb a log density from many starts at once: blocks of L-BFGS, and which starts still gain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from probmix.inference.lbfgs import LBFGSState, Objective, put_rows, start, step, take_rows

__all__ = ["Ascent", "ascend", "begin", "how_it_ended", "minus"]

_EVALUATIONS = 25  # in a block, between two looks at the objective: enough for about 20 iterations
_FEWEST_ITERATIONS = 5  # of a block whose gain can be judged: a long line search gains nothing until it ends
_LEAST_MEMORY, _MOST_MEMORY = 10, 64  # pairs behind the curvature: as many as coordinates, if those are not too many
_PATIENCE = 20  # blocks, at least, that the best start waits for others


class Ascent(NamedTuple):
    """All starts.

    Args:
        search: where they are; values are minus the log density.
        objectives: log density after every block, ``(restarts,)`` each; NaN where a start ran off or began badly.
        active: which starts still gain.

    Example:
        >>> ascent = begin(lambda z: (-0.5 * (z**2).sum(-1), -z), torch.tensor([[2.0], [torch.nan]]))
        >>> ascent.latest, ascent.active
        (tensor([-2., nan]), tensor([ True, False]))
    """

    search: LBFGSState
    objectives: tuple[Tensor, ...]
    active: Tensor

    @property
    def latest(self) -> Tensor:
        """Log density where each start is now, ``(restarts,)``; NaN where it is lost."""
        return torch.where(self.search.lost, torch.nan, -self.search.value)


def begin(log_density: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor) -> Ascent:
    """Return the first state, for a function of ``(restarts, dim)`` that returns log densities and gradients.

    Example:
        >>> begin(lambda z: (-0.5 * (z**2).sum(-1), -z), torch.ones(3, 2)).latest
        tensor([-1., -1., -1.])
    """
    memory = min(max(_LEAST_MEMORY, z.shape[-1]), _MOST_MEMORY)
    search = start(minus(log_density), z, memory=memory)
    return Ascent(search, (), ~search.stopped)


def ascend(
    log_density: Callable[[Tensor], tuple[Tensor, Tensor]], ascent: Ascent, tolerance: float, *, thin: bool = False
) -> Ascent:
    """Return the state after one block; a start is done when a block gains less than ``tolerance`` nats.

    Args:
        log_density: of ``(rows, dim)``.
        ascent: the state before.
        tolerance: nats.
        thin: leave out starts that are done, once they are half: for a log density that takes its time over each row.
            Else they go on with the others, which costs little and may find them another gain.

    Example:
        >>> bell = lambda z: (-0.5 * (z**2).sum(-1), -z)
        >>> ascent = begin(bell, torch.tensor([[3.0, 4.0], [1.0, 1.0]]))
        >>> ascent = ascend(bell, ascent, 1e-6)
        >>> ascent.latest.abs(), ascent.active
        (tensor([0., 0.]), tensor([False, False]))
    """
    rows = _left(ascent.active) if thin else None
    before = ascent.search if rows is None else take_rows(ascent.search, rows)
    search, function = before, minus(log_density)
    for _ in range(_EVALUATIONS):
        search = step(function, search)
    judged = search.iterations - before.iterations >= _FEWEST_ITERATIONS
    active = ~(search.stopped | (judged & (before.value - search.value <= tolerance)))
    if rows is not None:
        search = put_rows(ascent.search, rows, search)
        active = torch.zeros_like(ascent.active).index_copy(0, rows, active)
    after = Ascent(search, ascent.objectives, active)
    return after._replace(objectives=(*ascent.objectives, after.latest))


def _left(active: Tensor) -> Tensor | None:
    """Return the numbers of at most half of the rows, those active among them, a power of two; None: more are active.

    Few sizes, because a log density is traced for each size of a batch.
    """
    count = int(active.sum())
    size = 2 ** math.ceil(math.log2(max(1, count)))
    return active.int().argsort(descending=True, stable=True)[:size] if 2 * size <= len(active) else None


def how_it_ended(ascent: Ascent, tolerance: float) -> str | None:
    """Return in what way the climb is over, or None.

    It is over when no start gains any more; or when the best one has not gained for half of all blocks, since in many
    starts there may be one that creeps on for ever (a mixture component that falls onto a single point).

    Example:
        >>> bell = lambda z: (-0.5 * (z**2).sum(-1), -z)
        >>> how_it_ended(ascend(bell, begin(bell, torch.ones(1, 2)), 1e-6), 1e-6)
        'the last step gained less than 1e-06 nats'
    """
    ended = f"the last step gained less than {tolerance:g} nats"
    if not bool(ascent.active.any()):
        return ended
    values = ascent.latest.nan_to_num(-torch.inf)
    best = int(values.argmax())
    blocks = len(ascent.objectives)
    waited = max(_PATIENCE, blocks // 2)
    if blocks <= waited or bool(ascent.active[best]):
        return None
    if not float(ascent.objectives[-1][best] - ascent.objectives[-1 - waited][best]) <= tolerance:
        return None
    return f"{ended} in the best restart; below it, {int(ascent.active.sum())} still gained"


def minus(log_density: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Objective:
    """Turn a log density, which is climbed, into an objective, which is minimised.

    Example:
        >>> minus(lambda z: (z.sum(-1), torch.ones_like(z)))(torch.ones(1, 2))
        (tensor([-2.]), tensor([[-1., -1.]]))
    """

    def objective(z: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = log_density(z)
        return -value, -gradient

    return objective
