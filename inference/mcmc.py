"""The No-U-Turn sampler on our log density: its settings, and the choice of the engine that makes the moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from probmix.gradient import Compile
from probmix.inference.method import AbstractMethod, Problem, common, require, status_of_draws
from probmix.inference.nuts_nutpie import begin_nutpie
from probmix.inference.nuts_pyro import begin_pyro
from probmix.inference.starts import Start, starting_points
from probmix.posterior import DrawsPosterior
from probmix.status import Status

__all__ = ["NUTS", "NUTSRun"]

_JITTER_STD = 0.1  # unconstrained units: chains never start at the very same point
_GRADIENTS = 12  # of a typical iteration, for the choice whether compiling pays


class NUTSRun(Protocol):
    """Chains under way in some engine."""

    @property
    def iteration(self) -> int:
        """Iterations that every chain has done."""

    def figures(self) -> Mapping[str, str]:
        """Return the figures that matter, for the progress bar."""

    def advance(self) -> NUTSRun:
        """Return the run some iterations later."""

    def kept(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return positions ``(chains, draws, dim)`` and statistics ``(chains, draws)``: warm-up, or what follows it."""


@dataclass(frozen=True)
class NUTS(AbstractMethod):
    r"""The No-U-Turn sampler (Hoffman and Gelman 2014, with multinomial trajectories of Betancourt 2017).

    The target is ``exp LogDensity.value(z)``: discrete latent sites are summed out, the program is traced once.
    Chains start apart: each from a short EM run of its own where the model has one, so that a disagreement between
    chains is seen; components may therefore have other labels in other chains, which `probmix.relabel.relabel` undoes.

    Args:
        chains: number of chains.
        warmup: iterations of each chain that adapt step size and mass matrix, not kept.
        draws: iterations kept, for each chain.
        init: as in `probmix.inference.starts.starting_points`.
        target_accept: mean acceptance probability that the step size aims at; raise it where transitions diverge.
        mass: ``"diagonal"`` or ``"dense"`` mass matrix.
        max_tree_depth: at most ``2**max_tree_depth - 1`` gradients in one iteration.
        engine: ``"pyro"``, chains one after another; or ``"nutpie"``, if that package is installed
            (``pip install "probmix[nutpie]"``): chains ask for their gradients at once and are answered by one batch,
            so that many chains cost little more than one; its warm-up also learns from the gradients. Its positions
            are float64 on the CPU, wherever the data are.
        compile: ``"auto"``, True or False: as in `probmix.log_density.LogDensity.plan`.

    Raises:
        MethodError: a setting out of its range, or an engine that is not installed or cannot do what is asked.
        ProgramError: no finite start, or a program without a log density.
        FitError: interrupted before the first iteration was done.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from probmix.inference import infer
        >>> def program(x):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("row", len(x)):
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> fit = infer(program, torch.tensor([1.0, 3.0, 4.0]), NUTS(chains=2, warmup=100, draws=50), seed=0)
        >>> fit.draws["rate"].shape, int(fit.sample_stats["diverging"].sum())
        (torch.Size([2, 50]), 0)
    """

    chains: int = 4
    warmup: int = 500
    draws: int = 1000
    init: Start = "auto"
    target_accept: float = 0.8
    mass: Literal["diagonal", "dense"] = "diagonal"
    max_tree_depth: int = 10
    engine: Literal["pyro", "nutpie"] = "pyro"
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        for setting in ("chains", "draws", "max_tree_depth"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        require(self.warmup >= 0, "warmup", "0 or more", self.warmup)
        require(0 < self.target_accept < 1, "target_accept", "a probability between 0 and 1", self.target_accept)
        require(self.mass in ("diagonal", "dense"), "mass", '"diagonal" or "dense"', self.mass)
        require(self.engine in ("pyro", "nutpie"), "engine", '"pyro" or "nutpie"', self.engine)
        require(self.compile in ("auto", True, False), "compile", '"auto", True or False', self.compile)
        if self.engine == "nutpie":
            require(self.mass == "diagonal", "mass", '"diagonal", which is what nutpie adapts', self.mass)
            require(self.warmup >= 1, "warmup", "at least 1 for nutpie", self.warmup)

    def start(self, problem: Problem) -> NUTSRun:
        """Return the first state: every chain at a starting point of its own."""
        density, iterations = problem.log_density, self.warmup + self.draws
        together = self.engine == "nutpie"  # one batch for all chains; Pyro's kernels go one after another
        calls = _GRADIENTS * iterations * (1 if together else self.chains)
        density.plan(batch=self.chains if together else 1, gradients=calls, compile=self.compile)
        starts = starting_points(problem, density, self.init, self.chains, jitter_std=_JITTER_STD)
        if together:
            return begin_nutpie(
                density,
                starts,
                warmup=self.warmup,
                draws=self.draws,
                target_accept=self.target_accept,
                max_tree_depth=self.max_tree_depth,
            )
        return begin_pyro(
            density,
            starts,
            warmup=self.warmup,
            target_accept=self.target_accept,
            mass=self.mass,
            max_tree_depth=self.max_tree_depth,
        )

    def step(self, problem: Problem, state: NUTSRun) -> NUTSRun:
        """Return the state after one iteration of every chain, or, with nutpie, after some gradients."""
        return state.advance()

    def status(self, problem: Problem, state: NUTSRun) -> Status | None:
        """Return how the fit ended, or None to go on."""
        if state.iteration < self.warmup + self.draws:
            return None
        _, stats = state.kept()
        divergent = int(stats["diverging"].sum())
        advice = f" Raise target_accept={self.target_accept:g}, or reparameterise." if divergent else ""
        accepted = float(stats["acceptance_rate"].double().mean(1).min())
        if accepted < self.target_accept / 2:
            advice += f" A chain accepted only {accepted:.2f} of its moves: raise warmup={self.warmup}."
        return Status("complete", f"{self.chains} chains of {self.draws} draws, {divergent} divergent.{advice}")

    def finish(self, problem: Problem, state: NUTSRun, status: Status) -> DrawsPosterior:
        """Return the draws; of an interrupted fit, those made so far."""
        z, stats = state.kept()
        status = status_of_draws(status, state.iteration, self.warmup)
        return DrawsPosterior(
            **common(self, problem, status), draws=problem.log_density.constrain(z), sample_stats=stats
        )

    def progress(self, state: NUTSRun) -> tuple[int, int]:
        """Return iterations done and in all."""
        return state.iteration, self.warmup + self.draws

    def figures(self, state: NUTSRun) -> Mapping[str, str]:
        """Return the phase and what the engine tells about it."""
        return {"phase": "warm-up" if state.iteration <= self.warmup else "sampling", **state.figures()}
