"""Pyro's SVI engine: for a guide of your own, mini-batches, and programs with parameters; one restart after another."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI as PyroSVI  # noqa: N811 (a class, in capitals)
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDiagonalNormal,
    AutoGuide,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    init_to_value,
)
from pyro.optim import PyroOptim
from torch import Tensor, nn

from probmix.errors import ProgramError
from probmix.guides import NormalGuide, ProgramGuide
from probmix.importance import Importance, summarise
from probmix.inference.method import Problem
from probmix.inference.starts import Start, starting_points
from probmix.inference.svi_engine import DROP, DROPS, AbstractEngine, Result, family_name, stalled
from probmix.log_density import LogDensity
from probmix.typing import Program, Sites

__all__ = ["PyroEngine", "parameters_of"]

_AUTO_GUIDES: dict[str, type[AutoContinuous]] = {
    "diagonal": AutoDiagonalNormal,
    "full_rank": AutoMultivariateNormal,
    "low_rank": AutoLowRankMultivariateNormal,
}
_ELBO_DRAWS = 1000
_ONE_BY_ONE = 100  # draws of the ELBO where they cannot be made as a batch


class Fit(NamedTuple):
    """A finished restart: what its draws say, its guide and the fitted parameters of the program."""

    importance: Importance
    guide: NormalGuide | ProgramGuide
    params: Sites
    converged: bool


class PyroState(NamedTuple):
    """The restart that runs, and those that are done.

    Args:
        density: the program as a log density, its parameters at their first values.
        engine: Pyro's SVI of the running restart; holds its guide, optimiser and parameters.
        elbos: ELBO estimate of every step of the running restart.
        drops: how often its learning rate has been lowered.
        tail: unconstrained parameters after each step at the lowest learning rate: summed, and how many.
        histories: ELBO estimates of the finished restarts.
        fits: the finished restarts.
        starts: unconstrained starting points, ``(restarts, dim)``.
    """

    density: LogDensity
    engine: PyroSVI
    elbos: list[float]
    drops: int
    tail: tuple[Sites, int]
    histories: tuple[list[float], ...]
    fits: tuple[Fit, ...]
    starts: Tensor


@dataclass(frozen=True)
class PyroEngine(AbstractEngine):
    """Adam (Kingma and Ba 2015) on the parameters of a Pyro guide; settings as in `probmix.inference.svi.SVI`.

    Args:
        guide: a family of Gaussians by name, or a guide program.
        restarts: independent runs.
        init: where they start.
        batch_size: rows in a mini-batch, or None.
        max_steps: steps of one restart, at most.
        learning_rate: of Adam, at first.
        window: steps between two looks at the ELBO.
        tolerance: smallest gain that counts, standard errors.

    Example:
        >>> PyroEngine("diagonal", 3, "auto", None, 1000, 0.03, 150, 1.0).progress(
        ...     PyroState(None, None, [-2.0], 0, ({}, 0), ([-3.0, -2.0],), (), torch.zeros(3, 1))
        ... )
        (3, 3000)
    """

    guide: str | Callable[..., Any]
    restarts: int
    init: Start
    batch_size: int | None
    max_steps: int
    learning_rate: float
    window: int
    tolerance: float

    def start(self, problem: Problem) -> PyroState:
        """Return the first state: starting points for all restarts, and the engine of the first."""
        density = LogDensity(problem.program, problem.arguments, parameters_of(problem))
        starts = starting_points(problem, density, self.init, self.restarts)
        return PyroState(density, self._engine(problem, density, starts[0]), [], 0, ({}, 0), (), (), starts)

    def step(self, problem: Problem, state: PyroState) -> PyroState:
        """Return the state after one stochastic gradient step, or after turning to the next restart."""
        args, kwargs = problem.arguments.args, problem.arguments.kwargs or {}
        elbo = -float(state.engine.step(*args, **kwargs))
        elbos, drops = [*state.elbos, elbo], state.drops
        if stalled(elbos, self.window, self.tolerance):
            drops += 1
            _lower_learning_rate(state.engine)
        tail = _summed(state.tail) if drops == DROPS else state.tail
        state = state._replace(elbos=elbos, drops=drops, tail=tail)
        return self._turn(problem, state) if self._at_its_end(state) else state

    def ended(self, state: PyroState) -> bool:
        """Return whether all restarts are done."""
        return len(state.fits) == self.restarts

    def result(self, problem: Problem, state: PyroState) -> Result:
        """Return all restarts; an interrupted one counts as it stands."""
        if not self.ended(state) and state.elbos:
            state = self._close(problem, state)
        fits = state.fits or (self._fit(problem, state),)
        elbos = torch.tensor([fit.importance.elbo[0] for fit in fits])
        best = fits[int(elbos.nan_to_num(-torch.inf).argmax())]
        return Result(best.guide, best.params, best.importance, best.converged, elbos, _padded(state.histories))

    def progress(self, state: PyroState) -> tuple[int, int]:
        """Return steps done and steps at most, over all restarts."""
        return sum(map(len, state.histories)) + len(state.elbos), self.max_steps * self.restarts

    def figures(self, state: PyroState) -> Mapping[str, str]:
        """Return the recent mean ELBO and the restart that runs."""
        recent = state.elbos[-self.window :] or [math.nan]
        return {"ELBO": f"{sum(recent) / len(recent):.2f}", "restart": f"{len(state.fits) + 1}/{self.restarts}"}

    def _engine(self, problem: Problem, density: LogDensity, start: Tensor) -> PyroSVI:
        pyro.get_param_store().clear()
        model = config_enumerate(problem.program, default="parallel") if density.discrete else problem.program
        guide = self._program_guide(model, density, start)
        elbo = (TraceEnum_ELBO if density.discrete else Trace_ELBO)(max_plate_nesting=density.max_plate_nesting)
        return PyroSVI(
            self._batched(problem, model, density), guide, PyroOptim(torch.optim.Adam, {"lr": self.learning_rate}), elbo
        )

    def _program_guide(self, model: Program, density: LogDensity, start: Tensor) -> Program:
        if callable(self.guide):
            return _copied(self.guide) if isinstance(self.guide, nn.Module) else self.guide
        latents = poutine.block(model, hide=list(density.discrete))
        family = _AUTO_GUIDES[family_name(self.guide, density.dim)]
        return family(latents, init_loc_fn=init_to_value(values=density.constrain(start)))

    def _batched(self, problem: Problem, model: Program, density: LogDensity) -> Program:
        """Give the plate around the data a random subset of its rows in every step."""
        if self.batch_size is None:
            return model
        if len(density.row_plates) != 1:
            raise ProgramError(
                f"batch_size: expected one plate around the observed sites, got {sorted(density.row_plates)}. "
                "Write one pyro.plate over the rows and take them by pyro.subsample(x, event_dim=...)."
            )
        ((name, size),) = density.row_plates.items()
        rows = min(self.batch_size, size)

        def subsampled(*args: Any, **kwargs: Any) -> Any:
            indices = torch.randperm(size)[:rows]
            return poutine.condition(model, {name: indices})(*args, **kwargs)

        _require_subsampled(problem, subsampled, density, rows)
        return subsampled

    def _at_its_end(self, state: PyroState) -> bool:
        return state.drops > DROPS or len(state.elbos) >= self.max_steps or not math.isfinite(state.elbos[-1])

    def _turn(self, problem: Problem, state: PyroState) -> PyroState:
        state = self._close(problem, state)
        if self.ended(state):
            return state
        return state._replace(engine=self._engine(problem, state.density, state.starts[len(state.fits)]))

    def _close(self, problem: Problem, state: PyroState) -> PyroState:
        return state._replace(
            elbos=[],
            drops=0,
            tail=({}, 0),
            histories=(*state.histories, state.elbos),
            fits=(*state.fits, self._fit(problem, state)),
        )

    def _fit(self, problem: Problem, state: PyroState) -> Fit:
        """Freeze the running restart at its averaged parameters; estimate its ELBO afresh, all draws in one batch."""
        _average(state.tail)
        guide, params = _frozen(state.engine.guide, problem, state.density.params)
        density = LogDensity(problem.program, problem.arguments, params) if params else state.density
        with torch.no_grad():
            ratios = guide.log_ratios(_ELBO_DRAWS, density, problem.arguments)
        importance = _one_by_one(problem, state.engine) if ratios is None else summarise(ratios)
        return Fit(importance, guide, params, converged=state.drops > DROPS)


def parameters_of(problem: Problem) -> Sites:
    """Return the first values of the program's ``pyro.param`` sites, which SVI may optimise.

    Example:
        >>> from probmix.arguments import Arguments
        >>> def program(x):
        ...     return pyro.param("a", torch.tensor(2.0)) * x
        >>> with pyro.get_param_store().scope():
        ...     parameters_of(Problem(program, Arguments.of(torch.ones(3)), 0))
        {'a': tensor(2.)}
    """
    with torch.no_grad():
        problem.arguments.call(poutine.trace(problem.program))
    return _stored()


def _copied(guide: Any) -> Any:
    """Return a guide to be fitted in place of the user's; Pyro's own forget their model, both, when copied."""
    model = getattr(guide, "_model", None)
    copied = copy.deepcopy(guide)
    if isinstance(guide, AutoGuide):
        guide._model = copied._model = model
    return copied


def _stored() -> Sites:
    """Return a copy of all values in Pyro's parameter store, each in its support."""
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def _one_by_one(problem: Problem, engine: PyroSVI) -> Importance:
    """Return the ELBO of a guide without a tractable density, whose Pareto k is not known."""
    args, kwargs = problem.arguments.args, problem.arguments.kwargs or {}
    values = torch.tensor([-float(engine.evaluate_loss(*args, **kwargs)) for _ in range(_ONE_BY_ONE)])
    return Importance((float(values.mean()), float(values.std() / _ONE_BY_ONE**0.5)), math.nan, _ONE_BY_ONE)


def _require_subsampled(problem: Problem, program: Program, density: LogDensity, rows: int) -> None:
    with torch.no_grad():
        trace = problem.arguments.call(poutine.trace(program).get_trace)
    for name in density.observed:
        value, event_dim = trace.nodes[name]["value"], trace.nodes[name]["fn"].event_dim
        found = value.shape[value.dim() - event_dim - 1]
        if found != rows:
            raise ProgramError(
                f"batch_size: expected site {name!r} to observe the {rows} rows of a mini-batch, but it takes all "
                f"{found} rows. Take them inside the plate by pyro.subsample(x, event_dim=...)."
            )


def _frozen(guide: Program, problem: Problem, of_program: Sites) -> tuple[NormalGuide | ProgramGuide, Sites]:
    """Take the fitted values out of Pyro's parameter store: those of the guide, those of the program."""
    values = _stored()
    own = {name: values[name] for name in of_program}
    if not isinstance(guide, AutoDiagonalNormal | AutoMultivariateNormal | AutoLowRankMultivariateNormal):
        used = problem.arguments.call(poutine.trace(guide).get_trace).param_nodes
        return ProgramGuide(guide, {name: values[name] for name in used}), own
    with torch.no_grad():
        q = guide.get_posterior(*problem.arguments.args, **(problem.arguments.kwargs or {}))
    if isinstance(guide, AutoDiagonalNormal):
        return NormalGuide("diagonal", _detached(loc=q.base_dist.loc, scale_std=q.base_dist.scale)), own
    if isinstance(guide, AutoMultivariateNormal):
        return NormalGuide("full_rank", _detached(loc=q.loc, scale_tril=q.scale_tril)), own
    return NormalGuide("low_rank", _detached(loc=q.loc, cov_factor=q.cov_factor, cov_diag=q.cov_diag)), own


def _detached(**parameters: Tensor) -> Sites:
    return {name: value.detach().clone() for name, value in parameters.items()}


def _summed(tail: tuple[Sites, int]) -> tuple[Sites, int]:
    total, count = tail
    values = {name: value.detach() for name, value in pyro.get_param_store().get_state()["params"].items()}
    return {name: total[name] + value if total else value.clone() for name, value in values.items()}, count + 1


def _average(tail: tuple[Sites, int]) -> None:
    """Put the mean of the last iterates in the place of the last one, whose noise it does not share."""
    total, count = tail
    params = pyro.get_param_store().get_state()["params"]
    with torch.no_grad():
        for name, value in total.items():
            params[name].copy_(value / count)


def _lower_learning_rate(engine: PyroSVI) -> None:
    for optimiser in engine.optim.optim_objs.values():
        for group in optimiser.param_groups:
            group["lr"] *= DROP


def _padded(histories: tuple[list[float], ...]) -> Tensor:
    """Return ``(restarts, steps)``, NaN after each restart's end."""
    steps = max(map(len, histories), default=0)
    return torch.tensor([[*history, *[math.nan] * (steps - len(history))] for history in histories])
