"""L-BFGS for many points at once: every row has its own line search, and none waits for another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["LBFGSState", "Objective", "minimise", "put_rows", "start", "step", "take_rows"]

#: Points ``(rows, dim)`` to values ``(rows,)`` and gradients ``(rows, dim)``; what is not finite counts as a wall.
Objective: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]

_DECREASE, _CURVATURE = 1e-4, 0.9  # strong Wolfe constants for quasi-Newton (Nocedal and Wright 2006, section 3.1)
_ROUNDS = 25  # evaluations in one line search, at most
_WALLS = 2  # line searches in a row that end at a wall before a row is given up
_PAIRS = "steps", "changes"  # in which rows are the second axis
_SMALLEST_COSINE = 1e-10  # of step and change of gradient, below which the pair says nothing about curvature


class Probe(NamedTuple):
    """One place on every row's line: how far along, the value and the slope there, ``(rows,)`` each."""

    length: Tensor
    value: Tensor
    slope: Tensor


class LBFGSState(NamedTuple):
    """All rows, each somewhere in a line search of its own.

    Args:
        point: best point so far, ``(rows, dim)``.
        value: its value, ``(rows,)``.
        gradient: its gradient, ``(rows, dim)``.
        direction: of the line search, ``(rows, dim)``.
        origin: value and slope at the start of the line search.
        low: the end of the bracket where the value still falls fast enough.
        low_gradient: its gradient, ``(rows, dim)``.
        high: the other end; at length infinity where there is none yet.
        length: step length to try next, ``(rows,)``.
        rounds: evaluations made in this line search, ``(rows,)``.
        steps: last steps, oldest first, zero where there were fewer, ``(memory, rows, dim)``.
        changes: change of the gradient over each, ``(memory, rows, dim)``.
        iterations: line searches that gave a new point, ``(rows,)``.
        walls: line searches in a row that ended at a wall, ``(rows,)``.
        stopped: rows that will not move again.
        lost: rows that stopped at a wall, or began behind one.

    Example:
        >>> state = start(lambda z: (z.square().sum(-1), 2 * z), torch.ones(3, 2))
        >>> state.value, state.iterations
        (tensor([2., 2., 2.]), tensor([0, 0, 0]))
    """

    point: Tensor
    value: Tensor
    gradient: Tensor
    direction: Tensor
    origin: Probe
    low: Probe
    low_gradient: Tensor
    high: Probe
    length: Tensor
    rounds: Tensor
    steps: Tensor
    changes: Tensor
    iterations: Tensor
    walls: Tensor
    stopped: Tensor
    lost: Tensor


def start(function: Objective, point: Tensor, *, memory: int = 10) -> LBFGSState:
    """Return the first state: one evaluation, and steepest descent as the first direction.

    Args:
        function: what is minimised.
        point: where each row starts, ``(rows, dim)``.
        memory: pairs of steps and changes that make up the curvature.

    Example:
        >>> start(lambda z: (z.square().sum(-1), 2 * z), torch.ones(1, 2)).direction
        tensor([[-2., -2.]])
    """
    value, gradient, wall = _evaluate(function, point)
    none = point.new_zeros(memory, *point.shape)
    count = torch.zeros_like(value, dtype=torch.long)
    origin = Probe(torch.zeros_like(value), value, -gradient.square().sum(-1))
    return LBFGSState(
        point=point,
        value=value,
        gradient=gradient,
        direction=-gradient,
        origin=origin,
        low=origin,
        low_gradient=gradient,
        high=_open_end(value),
        length=_cautious(gradient),
        rounds=count,
        steps=none,
        changes=none,
        iterations=count,
        walls=count,
        stopped=wall,
        lost=wall,
    )


def step(function: Objective, state: LBFGSState, *, gradient_tolerance: float = 1e-9) -> LBFGSState:
    r"""Return the state after one evaluation of the whole batch.

    .. math:: z' = z - t H \nabla f(z)

    ``H`` is the inverse Hessian of the last steps and changes of the gradient, ``t`` a length that meets the strong
    Wolfe conditions (or, where rounding hides the decrease, the approximate ones). A row whose line search is done
    takes its step and begins the next one in this same call; the others go on with theirs. Nothing is copied to the
    host, so that an accelerator is never waited for.

    Args:
        function: what is minimised; always called with the whole batch.
        state: all rows.
        gradient_tolerance: a row stops where no element of its gradient is larger.

    Source:
        Liu and Nocedal (1989); the approximate conditions of Hager and Zhang (2005).

    Example:
        >>> bowl = lambda z: ((z**2).sum(-1), 2 * z)
        >>> state = start(bowl, torch.tensor([[3.0, 4.0], [torch.nan, 0.0]]))
        >>> for _ in range(5):
        ...     state = step(bowl, state)
        >>> state.value, state.lost
        (tensor([0., inf]), tensor([False,  True]))
    """
    value, gradient, wall = _evaluate(function, _along(state, state.length))
    here = Probe(state.length, value, (gradient * state.direction).sum(-1))
    falls, wolfe = _tests(state.origin, here)
    rises = wall | ~falls | (here.slope > 0)
    low, high = _pick(rises, state.low, here), _pick(rises, here, state.high)
    low_gradient = torch.where(rises[:, None], state.low_gradient, gradient)
    moving, rounds = ~state.stopped, state.rounds + 1
    found = moving & wolfe & ~wall
    spent = moving & ~found & (rounds >= _ROUNDS)
    kept = _pick(found, here, low)
    moved = found | (spent & (low.value < state.value))
    walls = torch.where(found, 0, state.walls + (spent & high.value.isinf() & high.length.isfinite()))
    searching = state._replace(
        low=low,
        high=high,
        low_gradient=low_gradient,
        length=_next_length(state.low, here, low, high, rounds),
        rounds=rounds,
        walls=walls,
    )
    gradient = torch.where(found[:, None], gradient, low_gradient)
    turned = _turned(state, searching, kept, gradient, moved, found, gradient_tolerance)
    return _choose(found | spent, turned, _choose(moving, searching, state))


def minimise(
    function: Objective, point: Tensor, *, max_evaluations: int = 1000, gradient_tolerance: float = 1e-9
) -> LBFGSState:
    """Return the state after every row has stopped, or after so many evaluations of the batch.

    Example:
        >>> def rosenbrock(z):
        ...     x, y = z.detach().requires_grad_().unbind(-1)
        ...     value = (1 - x) ** 2 + 100 * (y - x**2) ** 2
        ...     return value.detach(), torch.stack(torch.autograd.grad(value.sum(), (x, y)), -1)
        >>> start = torch.tensor([[-1.2, 1.0], [3.0, -2.0]], dtype=torch.float64)
        >>> (minimise(rosenbrock, start).point - 1).abs().max() < 1e-8
        tensor(True)
    """
    state = start(function, point)
    for evaluation in range(max_evaluations):
        if evaluation % 10 == 0 and bool(state.stopped.all()):  # a look costs a copy to the host
            break
        state = step(function, state, gradient_tolerance=gradient_tolerance)
    return state


# -- the line search ---------------------------------------------------------------------------------------------------


def _evaluate(function: Objective, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return value, gradient and where either is not finite; there the value is infinite and the gradient zero."""
    value, gradient = function(point)
    wall = ~(value.isfinite() & gradient.isfinite().all(-1))
    return value.masked_fill(wall, torch.inf), gradient.masked_fill(wall[:, None], 0.0), wall


def _along(state: LBFGSState, length: Tensor) -> Tensor:
    return torch.where(state.stopped[:, None], state.point, state.point + length[:, None] * state.direction)


def _tests(origin: Probe, here: Probe) -> tuple[Tensor, Tensor]:
    """Return where the value falls enough (Armijo), and where the step is good enough to be taken."""
    falls = here.value <= origin.value + _DECREASE * here.length * origin.slope
    flat = here.slope.abs() <= -_CURVATURE * origin.slope
    rounding = 10 * torch.finfo(here.value.dtype).eps * origin.value.abs()
    level = here.value <= origin.value + rounding
    return falls, (falls | level) & flat


def _next_length(before: Probe, here: Probe, low: Probe, high: Probe, rounds: Tensor) -> Tensor:
    """Return the length to try next: farther out while there is no upper end, else between the two."""
    secant = here.length + (here.length - before.length) * here.slope / (before.slope - here.slope)
    secant = torch.where(before.slope < here.slope, secant, torch.inf)
    outward = torch.minimum(torch.maximum(secant, 2 * here.length), 10 * here.length)
    width = high.length - low.length
    inner = _cubic_minimum(low, high)
    inner = torch.minimum(torch.maximum(inner, low.length + 0.1 * width), high.length - 0.1 * width)
    inner = torch.where(inner.isfinite() & (rounds % 3 != 0), inner, low.length + 0.5 * width)
    inner = torch.where(high.value.isinf(), low.length + 0.2 * width, inner)  # a wall: turn back well before it
    return torch.where(high.length.isinf(), outward, inner)


def _cubic_minimum(low: Probe, high: Probe) -> Tensor:
    """Return where the cubic through both values and slopes is lowest (Nocedal and Wright 2006, equation 3.59)."""
    width = high.length - low.length
    first = low.slope + high.slope - 3 * (high.value - low.value) / width
    second = (first.square() - low.slope * high.slope).sqrt()
    return high.length - width * (high.slope + second - first) / (high.slope - low.slope + 2 * second)


def _open_end(value: Tensor) -> Probe:
    return Probe(torch.full_like(value, torch.inf), torch.full_like(value, torch.inf), torch.zeros_like(value))


# -- the step ----------------------------------------------------------------------------------------------------------


def _turned(
    state: LBFGSState,
    searching: LBFGSState,
    kept: Probe,
    gradient: Tensor,
    moved: Tensor,
    found: Tensor,
    gradient_tolerance: float,
) -> LBFGSState:
    """Return every row at the end of its line search, turned into its next direction."""
    point = torch.where(moved[:, None], _along(state, kept.length), state.point)
    value = torch.where(moved, kept.value, state.value)
    gradient = torch.where(moved[:, None], gradient, state.gradient)
    steps, changes = _remembered(state, point, gradient)
    steps, changes = steps * found[:, None], changes * found[:, None]  # a failed search: forget the curvature
    direction = -_times_inverse_hessian(gradient, steps, changes)
    slope = (direction * gradient).sum(-1)
    uphill = ~(slope < 0)
    fresh = uphill | ~(changes != 0).any(-1).any(0)
    direction = torch.where(uphill[:, None], -gradient, direction)
    origin = Probe(torch.zeros_like(value), value, torch.where(uphill, -gradient.square().sum(-1), slope))
    hopeless = ~moved & ~(state.changes != 0).any(-1).any(0)  # no step even along the gradient: rounding, or a wall
    lost = (searching.walls >= _WALLS) | (hopeless & (searching.walls > 0))
    return LBFGSState(
        point=point,
        value=value,
        gradient=gradient,
        direction=direction,
        origin=origin,
        low=origin,
        low_gradient=gradient,
        high=_open_end(value),
        length=torch.where(fresh, _cautious(gradient), 1.0),
        rounds=torch.zeros_like(state.rounds),
        steps=steps,
        changes=changes,
        iterations=state.iterations + moved,
        walls=searching.walls,
        stopped=hopeless | lost | (gradient.abs().amax(-1) <= gradient_tolerance),
        lost=lost,
    )


def _remembered(state: LBFGSState, point: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Put the newest pair at the end of the memory, where it says something about curvature."""
    new_step, new_change = point - state.point, gradient - state.gradient
    size = new_step.norm(dim=-1) * new_change.norm(dim=-1)
    curved = ((new_step * new_change).sum(-1) > _SMALLEST_COSINE * size)[:, None]
    steps = torch.where(curved, torch.cat([state.steps[1:], new_step[None]]), state.steps)
    changes = torch.where(curved, torch.cat([state.changes[1:], new_change[None]]), state.changes)
    return steps, changes


def _times_inverse_hessian(gradient: Tensor, steps: Tensor, changes: Tensor) -> Tensor:
    """Return ``H g`` in the compact form of Byrd, Nocedal and Schnabel (1994, theorem 2.2); empty pairs do nothing.

    The same numbers as the two loops of Liu and Nocedal (1989), without a loop over the memory, which may so be long.
    """
    s, y, g = steps.movedim(0, 1), changes.movedim(0, 1), gradient[..., None]
    products = s @ y.mT
    curvature = products.diagonal(dim1=-2, dim2=-1)
    upper = products.triu() + torch.diag_embed((curvature <= 0).to(g))
    squares = y[:, -1].square().sum(-1)
    size = torch.where(squares > 0, curvature[:, -1] / squares, 1.0)[:, None, None]
    inner = torch.linalg.solve_triangular(upper, s @ g, upper=True)
    outer = curvature[..., None] * inner + size * (y @ (y.mT @ inner - g))
    result = s.mT @ torch.linalg.solve_triangular(upper.mT, outer, upper=False) + size * (g - y.mT @ inner)
    return result.squeeze(-1)


def _cautious(gradient: Tensor) -> Tensor:
    """Return a first length where nothing is known of the curvature: a step of size 1 at most."""
    return 1 / gradient.abs().sum(-1).clamp(min=1.0)


# -- rows --------------------------------------------------------------------------------------------------------------


def take_rows(state: LBFGSState, rows: Tensor) -> LBFGSState:
    """Return the state of some rows, given their numbers ``(r,)``.

    Example:
        >>> state = start(lambda z: (z.square().sum(-1), 2 * z), torch.arange(6.0).reshape(3, 2))
        >>> take_rows(state, torch.tensor([2])).point
        tensor([[4., 5.]])
    """

    def taken(name: str, value: Any) -> Any:
        if isinstance(value, Probe):
            return Probe(*(part[rows] for part in value))
        return value[:, rows] if name in _PAIRS else value[rows]

    return LBFGSState(**{name: taken(name, value) for name, value in state._asdict().items()})


def put_rows(state: LBFGSState, rows: Tensor, part: LBFGSState) -> LBFGSState:
    """Return a state with some rows, given their numbers ``(r,)``, as they are in another state of r rows.

    Example:
        >>> state = start(lambda z: (z.square().sum(-1), 2 * z), torch.ones(3, 2))
        >>> row = take_rows(state, torch.tensor([0]))._replace(point=torch.zeros(1, 2))
        >>> put_rows(state, torch.tensor([1]), row).point
        tensor([[1., 1.],
                [0., 0.],
                [1., 1.]])
    """

    def placed(name: str, value: Any, new: Any) -> Any:
        if isinstance(value, Probe):
            return Probe(*(a.index_copy(0, rows, b) for a, b in zip(value, new, strict=True)))
        return value.index_copy(1 if name in _PAIRS else 0, rows, new)

    return LBFGSState(**{name: placed(name, value, getattr(part, name)) for name, value in state._asdict().items()})


def _pick(rows: Tensor, one: Probe, other: Probe) -> Probe:
    return Probe(*(torch.where(rows, a, b) for a, b in zip(one, other, strict=True)))


def _choose(rows: Tensor, one: LBFGSState, other: LBFGSState) -> LBFGSState:
    """Take the marked rows of one state, the rest of another."""

    def choose(a: Any, b: Any) -> Any:
        if isinstance(a, Probe):
            return _pick(rows, a, b)
        return torch.where(rows if a.dim() == 1 else rows[:, None], a, b)  # the axis of rows is the last, or before it

    return LBFGSState(*map(choose, one, other))
