"""Stochastic variational inference: a stated start, a stated stopping rule, restarts, and how far the guide is off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from probmix.amortised_guide import AmortisedGuide
from probmix.gradient import Compile
from probmix.guides import NormalGuide
from probmix.inference.method import AbstractMethod, Problem, common, require
from probmix.inference.starts import Start
from probmix.inference.svi_batched import BatchedEngine
from probmix.inference.svi_engine import AbstractEngine, Result
from probmix.inference.svi_gaussian import FAMILIES
from probmix.inference.svi_pyro import PyroEngine, parameters_of
from probmix.inference.svi_structured import StructuredEngine
from probmix.posterior import GuidePosterior
from probmix.status import Status
from probmix.typing import OwnGuide

__all__ = ["SVI"]


class SVIState(NamedTuple):
    """The engine that runs, and where it is."""

    engine: AbstractEngine
    run: Any


@dataclass(frozen=True)
class SVI(AbstractMethod):
    r"""Stochastic variational inference: maximise ``ELBO = E_q[log p(data, sites) - log q(sites)]``.

    Three engines. A Gaussian guide of a program without parameters, on all its data, takes natural-gradient steps in
    the guide's own units (`probmix.inference.svi_gaussian`), all restarts as one batch: scales of the model do not
    matter, and a guide that can be exact becomes exact. A guide of your own, mini-batches and programs with
    ``pyro.param`` run by Pyro's engine with Adam, one restart after another. A model that brings its own variational
    family (`probmix.typing.OwnGuide`, such as `probmix.models.ScaleMixtureClassifier`) is fitted by that with
    ``guide="auto"``, by Adam, from where the model says.

    The stopping rule: after every ``window`` steps the mean ELBO of the window is compared with that of the one
    before. An increase below ``tolerance`` standard errors of that difference lowers the learning rate to 0.3 of
    itself; the fourth time the run ends, and the parameters are averaged over the steps at the lowest rate.
    Discrete latent sites are summed out exactly.

    The Pareto k of the importance ratios ``p / q`` (`probmix.importance`) says how far the guide is from the
    posterior; it is in the status, which stays ``"converged"``: that the ELBO is at its maximum and that the best
    guide is good enough are two questions.

    Args:
        guide: ``"diagonal"`` (mean field), ``"full_rank"``, ``"low_rank"``, ``"auto"`` (full rank up to 100
            unconstrained coordinates, else low rank), or your own guide, called with the program's arguments.
        restarts: independent runs, of which the one with the best ELBO is kept; all ELBOs are reported.
        init: as in `probmix.inference.starts.starting_points`: a short EM run where the model has one.
        batch_size: rows in a mini-batch; the program must take its rows by ``pyro.subsample(x, event_dim=...)``.
        max_steps: steps of one restart, at most.
        learning_rate: at first. None: 0.1 for the batched engine, where it is the share of a natural-gradient step;
            0.03 for Adam; with a family of the model's own, as the model says.
        window: steps between two looks at the ELBO. None: 50 for the batched engine, 150 for Adam; with a family of the
            model's own at least those of one pass through the data.
        tolerance: smallest gain that counts, standard errors.
        num_draws: draws from the guide that go into ArviZ.
        num_particles: draws from the guide in each step. None: 10, or as a model with a family of its own says. An even
            number for Gaussian guides, whose draws come in pairs; Pyro's engine takes one.
        compile: as in `probmix.log_density.LogDensity.plan`, for the batched engine: ``"auto"`` where a compiler is
            present and the fit is long enough to pay for it.

    Raises:
        ProgramError: a mini-batch of a program that does not subsample, or no finite start.
        FitError: the ELBO was not a number in every restart.

    Source:
        Hoffman, Blei, Wang and Paisley (2013); Kucukelbir et al. (2017) for Gaussian guides on unconstrained spaces;
        Yao, Vehtari, Simpson and Gelman (2018) for the Pareto k.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from probmix.inference import infer
        >>> def program(x):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("row", len(x)):
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> fit = infer(program, torch.tensor([1.0, 3.0, 4.0]), SVI(restarts=4), seed=0)
        >>> fit.sample(10, seed=1)["rate"].shape, fit.elbos.shape
        (torch.Size([10]), torch.Size([4]))
    """

    guide: Literal["auto", "diagonal", "full_rank", "low_rank"] | Callable[..., Any] = "auto"
    restarts: int = 1
    init: Start = "auto"
    batch_size: int | None = None
    max_steps: int = 10_000
    learning_rate: float | None = None
    window: int | None = None
    tolerance: float = 1.0
    num_draws: int = 1000
    num_particles: int | None = None
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        known = callable(self.guide) or self.guide in ("auto", *FAMILIES)
        require(known, "guide", f"a guide program or one of {['auto', *FAMILIES]}", self.guide)
        for setting in ("restarts", "max_steps", "num_draws"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        require(self.window is None or self.window >= 2, "window", "None or at least 2", self.window)
        rate = self.learning_rate
        require(rate is None or rate > 0, "learning_rate", "a positive number", rate)
        require(self.batch_size is None or self.batch_size >= 1, "batch_size", "None or at least 1", self.batch_size)
        num = self.num_particles
        require(num is None or num >= 1, "num_particles", "None or at least 1", num)

    def start(self, problem: Problem) -> SVIState:
        """Return the first state: the engine for this problem, at its starting points."""
        engine = self._engine(problem)
        return SVIState(engine, engine.start(problem))

    def step(self, problem: Problem, state: SVIState) -> SVIState:
        """Return the state after a window of steps (batched) or one step (Pyro's engine)."""
        return state._replace(run=state.engine.step(problem, state.run))

    def status(self, problem: Problem, state: SVIState) -> Status | None:
        """Return that the fit ended, or None to go on; `finish` looks at the restarts and says how."""
        return Status("converged", "all restarts have ended") if state.engine.ended(state.run) else None

    def finish(self, problem: Problem, state: SVIState, status: Status) -> GuidePosterior:
        """Return the restart with the best ELBO; an interrupted one counts as it stands."""
        result = state.engine.result(problem, state.run)
        problem = problem if result.program is None else replace(problem, program=result.program)
        return GuidePosterior(
            **common(self, problem, self._judged(status, result)),
            params=result.params,
            history={"elbo": result.history},
            guide=result.guide,
            elbo=result.importance.elbo,
            elbos=result.elbos,
            pareto_k=result.importance.pareto_k,
            num_draws=self.num_draws,
        )

    def progress(self, state: SVIState) -> tuple[int, int]:
        """Return steps done and steps at most."""
        return state.engine.progress(state.run)

    def figures(self, state: SVIState) -> Mapping[str, str]:
        """Return the recent mean ELBO and the restarts that run."""
        return state.engine.figures(state.run)

    def _engine(self, problem: Problem) -> AbstractEngine:
        if self.guide == "auto" and isinstance(problem.program, OwnGuide):
            require(self.restarts == 1, "restarts", "1, as the model says where its family starts", self.restarts)
            require(self.init == "auto", "init", '"auto", as the model says where its family starts', self.init)
            return StructuredEngine(
                problem.program, self.batch_size, self.max_steps, learning_rate=self.learning_rate,
                window=self.window, tolerance=self.tolerance, num_particles=self.num_particles,
            )  # fmt: skip
        if callable(self.guide) or self.batch_size is not None or parameters_of(problem):
            return PyroEngine(
                self.guide, self.restarts, self.init, self.batch_size, self.max_steps,
                learning_rate=self.learning_rate or 0.03, window=self.window or 150, tolerance=self.tolerance,
            )  # fmt: skip
        num = 10 if self.num_particles is None else self.num_particles
        require(num % 2 == 0, "num_particles", "an even number, as draws come in pairs", num)
        return BatchedEngine(
            self.guide, self.restarts, self.init, self.max_steps,
            learning_rate=self.learning_rate or 0.1, window=self.window or 50, tolerance=self.tolerance,
            num_particles=num, compile=self.compile,
        )  # fmt: skip

    def _judged(self, status: Status, result: Result) -> Status:
        usable = int(result.elbos.isfinite().sum())
        if result.status is not None:
            return result.status
        if not usable:
            return Status(
                "failed",
                f"the ELBO was not a number in all {self.restarts} restarts. Lower learning_rate, "
                'start from another fit (init=em.sites()), or use guide="diagonal".',
            )
        if status.state == "converged" and not result.converged:
            status = Status(
                "max_steps",
                f"SVI() stopped after {self.max_steps} steps with its ELBO still rising. Raise max_steps",
            )
        elif status.state == "converged":
            status = Status("converged", f"the ELBO stopped rising; {usable} of {self.restarts} restarts usable")
        return replace(status, message=f"{status.message}. {_how_close(result)}")


def _how_close(result: Result) -> str:
    if isinstance(result.guide, AmortisedGuide):
        return "How far the bound is off: compare fit.elbo with fit.program.log_likelihood(x, seed=0).sum()"
    return result.importance.advice(_otherwise(result))


def _otherwise(result: Result) -> str:
    richer = isinstance(result.guide, NormalGuide) and result.guide.family != "full_rank"
    better = 'guide="full_rank", ' if richer else ""
    return f"use {better}NUTS() or ChEES()"
