"""Stochastic variational inference: Pyro's engine, with a stated start, a stated stopping rule and restarts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI as PyroSVI  # noqa: N811 (a class, in capitals)
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    init_to_value,
)
from pyro.optim import PyroOptim
from torch import Tensor, nn

from probmix.errors import ProgramError
from probmix.guides import NormalGuide, ProgramGuide
from probmix.inference.method import AbstractMethod, Problem, common, require
from probmix.inference.starts import Start, starting_points
from probmix.log_density import LogDensity
from probmix.posterior import GuidePosterior
from probmix.status import Status
from probmix.typing import Program, Sites

__all__ = ["SVI"]

_AUTO_GUIDES: dict[str, type[AutoContinuous]] = {
    "diagonal": AutoDiagonalNormal,
    "full_rank": AutoMultivariateNormal,
    "low_rank": AutoLowRankMultivariateNormal,
}
_FULL_RANK_UP_TO = 100  # coordinates: 5,050 parameters for the covariance
_DROP, _DROPS = 0.3, 3  # the learning rate falls to 0.3, 0.09 and 0.027 of the first before a run ends
_ELBO_DRAWS = 1000


class Fit(NamedTuple):
    """A finished restart: its ELBO with standard error, its guide and the fitted parameters of the program."""

    elbo: tuple[float, float]
    guide: NormalGuide | ProgramGuide
    params: Sites
    converged: bool


class SVIState(NamedTuple):
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
class SVI(AbstractMethod):
    r"""Stochastic variational inference: maximise ``ELBO = E_q[log p(data, sites) - log q(sites)]``.

    The stopping rule: after every ``window`` steps the mean ELBO of the window is compared with that of the one
    before. An increase below ``tolerance`` standard errors of that difference lowers the learning rate to 0.3 of
    itself; the fourth time the run ends, and the parameters are averaged over the steps at the lowest rate.
    Discrete latent sites are summed out exactly.

    Args:
        guide: ``"diagonal"`` (mean field), ``"full_rank"``, ``"low_rank"``, ``"auto"`` (full rank up to 100
            unconstrained coordinates, else low rank), or your own guide, called with the program's arguments.
        restarts: independent runs, of which the one with the best ELBO is kept; all ELBOs are reported.
        init: as in `probmix.inference.starts.starting_points`: a short EM run where the model has one.
        batch_size: rows in a mini-batch; the program must take its rows by ``pyro.subsample(x, event_dim=...)``.
        max_steps: steps of one restart, at most.
        learning_rate: of Adam (Kingma and Ba 2015), at first.
        window: steps between two looks at the ELBO.
        tolerance: smallest gain that counts, standard errors.
        num_draws: draws from the guide that go into ArviZ.

    Raises:
        ProgramError: a mini-batch of a program that does not subsample, or no finite start.
        FitError: the ELBO was not a number in every restart.

    Source:
        Hoffman, Blei, Wang and Paisley (2013); Kucukelbir et al. (2017) for Gaussian guides on unconstrained spaces.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from probmix.inference import infer
        >>> def program(x):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("row", len(x)):
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> fit = infer(program, torch.tensor([1.0, 3.0, 4.0]), SVI(), seed=0)
        >>> fit.sample(10, seed=1)["rate"].shape
        torch.Size([10])
    """

    guide: Literal["auto", "diagonal", "full_rank", "low_rank"] | Callable[..., Any] = "auto"
    restarts: int = 1
    init: Start = "auto"
    batch_size: int | None = None
    max_steps: int = 10_000
    learning_rate: float = 0.03
    window: int = 150
    tolerance: float = 1.0
    num_draws: int = 1000

    def __post_init__(self) -> None:
        known = callable(self.guide) or self.guide in ("auto", *_AUTO_GUIDES)
        require(known, "guide", f"a guide program or one of {['auto', *_AUTO_GUIDES]}", self.guide)
        for setting in ("restarts", "max_steps", "window", "num_draws"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        require(self.learning_rate > 0, "learning_rate", "a positive number", self.learning_rate)
        require(self.batch_size is None or self.batch_size >= 1, "batch_size", "None or at least 1", self.batch_size)

    def start(self, problem: Problem) -> SVIState:
        """Return the first state: starting points for all restarts, and the engine of the first."""
        density = LogDensity(problem.program, problem.arguments, _parameters(problem))
        starts = starting_points(problem, density, self.init, self.restarts)
        return SVIState(density, self._engine(problem, density, starts[0]), [], 0, ({}, 0), (), (), starts)

    def step(self, problem: Problem, state: SVIState) -> SVIState:
        """Return the state after one stochastic gradient step, or after turning to the next restart."""
        args, kwargs = problem.arguments.args, problem.arguments.kwargs or {}
        elbo = -float(state.engine.step(*args, **kwargs))
        elbos, drops = [*state.elbos, elbo], state.drops
        if len(elbos) >= 2 * self.window and len(elbos) % self.window == 0 and self._stalled(elbos):
            drops += 1
            _lower_learning_rate(state.engine)
        tail = _summed(state.tail) if drops == _DROPS else state.tail
        state = state._replace(elbos=elbos, drops=drops, tail=tail)
        return self._turn(problem, state) if self._ended(state) else state

    def status(self, problem: Problem, state: SVIState) -> Status | None:
        """Return how the fit ended, or None to go on."""
        if len(state.fits) < self.restarts:
            return None
        finite = [fit for fit in state.fits if math.isfinite(fit.elbo[0])]
        if not finite:
            return Status(
                "failed",
                f"the ELBO was not a number in all {self.restarts} restarts. Lower learning_rate="
                f'{self.learning_rate:g}, start from another fit (init=em.sites()), or use guide="diagonal".',
            )
        best = max(finite, key=lambda fit: fit.elbo[0])
        if not best.converged:
            return Status(
                "max_steps",
                f"SVI() stopped after {self.max_steps} steps with its ELBO still rising. Raise max_steps, or raise "
                f"learning_rate={self.learning_rate:g}.",
            )
        return Status("converged", f"the ELBO stopped rising; {len(finite)} of {self.restarts} restarts usable")

    def finish(self, problem: Problem, state: SVIState, status: Status) -> GuidePosterior:
        """Return the restart with the best ELBO; an interrupted one counts as it stands."""
        if len(state.fits) < self.restarts and state.elbos:
            state = self._close(problem, state)
        fits = state.fits or (self._fit(problem, state),)
        elbos = torch.tensor([fit.elbo[0] for fit in fits])
        best = fits[int(elbos.nan_to_num(-torch.inf).argmax())]
        return GuidePosterior(
            **common(self, problem, status),
            params=best.params,
            history={"elbo": _padded(state.histories)},
            guide=best.guide,
            elbo=best.elbo,
            elbos=elbos,
            num_draws=self.num_draws,
        )

    def progress(self, state: SVIState) -> tuple[int, int]:
        """Return steps done and steps at most, over all restarts."""
        return sum(map(len, state.histories)) + len(state.elbos), self.max_steps * self.restarts

    def figures(self, state: SVIState) -> Mapping[str, str]:
        """Return the recent mean ELBO and the restart that runs."""
        recent = state.elbos[-self.window :] or [math.nan]
        return {"ELBO": f"{sum(recent) / len(recent):.2f}", "restart": f"{len(state.fits) + 1}/{self.restarts}"}

    def _engine(self, problem: Problem, density: LogDensity, start: Tensor) -> PyroSVI:
        pyro.get_param_store().clear()
        model = config_enumerate(problem.program, default="parallel") if density.discrete else problem.program
        guide = self._guide(model, density, start)
        elbo = (TraceEnum_ELBO if density.discrete else Trace_ELBO)(max_plate_nesting=density.max_plate_nesting)
        return PyroSVI(
            self._batched(problem, model, density), guide, PyroOptim(torch.optim.Adam, {"lr": self.learning_rate}), elbo
        )

    def _guide(self, model: Program, density: LogDensity, start: Tensor) -> Program:
        if callable(self.guide):
            return copy.deepcopy(self.guide) if isinstance(self.guide, nn.Module) else self.guide
        name = self.guide
        if name == "auto":
            name = "full_rank" if density.dim <= _FULL_RANK_UP_TO else "low_rank"
        latents = poutine.block(model, hide=list(density.discrete))
        return _AUTO_GUIDES[name](latents, init_loc_fn=init_to_value(values=density.constrain(start)))

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

    def _stalled(self, elbos: list[float]) -> bool:
        last, before = torch.tensor(elbos[-2 * self.window :]).reshape(2, -1).flip(0)
        error = ((last.var() + before.var()) / self.window).sqrt()
        return not bool(last.mean() - before.mean() > self.tolerance * error)

    def _ended(self, state: SVIState) -> bool:
        return state.drops > _DROPS or len(state.elbos) >= self.max_steps or not math.isfinite(state.elbos[-1])

    def _turn(self, problem: Problem, state: SVIState) -> SVIState:
        state = self._close(problem, state)
        if len(state.fits) == self.restarts:
            return state
        return state._replace(engine=self._engine(problem, state.density, state.starts[len(state.fits)]))

    def _close(self, problem: Problem, state: SVIState) -> SVIState:
        return state._replace(
            elbos=[],
            drops=0,
            tail=({}, 0),
            histories=(*state.histories, state.elbos),
            fits=(*state.fits, self._fit(problem, state)),
        )

    def _fit(self, problem: Problem, state: SVIState) -> Fit:
        """Freeze the running restart at its averaged parameters; estimate its ELBO afresh, all draws in one batch."""
        _average(state.tail)
        guide, params = _frozen(state.engine.guide, problem, state.density.params)
        if isinstance(guide, NormalGuide) and not params:
            q = guide.distribution()
            z = q.sample(torch.Size([_ELBO_DRAWS]))
            values = state.density.value(z) - q.log_prob(z)
        else:
            args, kwargs = problem.arguments.args, problem.arguments.kwargs or {}
            values = torch.tensor(
                [-float(state.engine.evaluate_loss(*args, **kwargs)) for _ in range(_ELBO_DRAWS // 10)]
            )
        elbo = float(values.mean()), float(values.std() / len(values) ** 0.5)
        return Fit(elbo, guide, params, converged=state.drops > _DROPS)


def _parameters(problem: Problem) -> Sites:
    """Return the first values of the program's ``pyro.param`` sites, which SVI may optimise."""
    with torch.no_grad():
        problem.arguments.call(poutine.trace(problem.program))
    return _stored()


def _stored() -> Sites:
    """Return a copy of all values in Pyro's parameter store, each in its support."""
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


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
    if not isinstance(guide, AutoContinuous):
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
            group["lr"] *= _DROP


def _padded(histories: tuple[list[float], ...]) -> Tensor:
    """Return ``(restarts, steps)``, NaN after each restart's end."""
    steps = max(map(len, histories), default=0)
    return torch.tensor([[*history, *[math.nan] * (steps - len(history))] for history in histories])
