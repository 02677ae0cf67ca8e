"""ChEES-HMC: many chains at once, whose common trajectory length is learnt from all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from probmix.arviz import ess
from probmix.gradient import Compile
from probmix.inference.agreement import advice_on_agreement
from probmix.inference.hmc import Chains, Outcome, transition
from probmix.inference.method import AbstractMethod, Problem, common, require, status_of_draws
from probmix.inference.starts import Start, starting_points
from probmix.inference.warmup import Adaptation, WarmUp
from probmix.posterior import DrawsPosterior
from probmix.status import Status

__all__ = ["ChEES"]

_FEWEST_DRAWS = 4  # for which ArviZ gives an effective sample size
_GRADIENTS = 4  # of a typical iteration, for the choice whether compiling pays
_STUCK = 1e-3  # acceptance of a chain that does not move


class ChEESState(NamedTuple):
    """All chains after some iterations.

    Args:
        warm: what warm-up has learnt; its tuning is used from the first kept draw on.
        chains: where the chains are.
        draws: positions ``(chains, dim)`` kept so far, warm-up first, then sampling.
        stats: what each of these iterations reported, ``(chains,)`` each.
        iteration: iterations done.
    """

    warm: WarmUp
    chains: Chains
    draws: tuple[Tensor, ...]
    stats: tuple[dict[str, Tensor], ...]
    iteration: int


@dataclass(frozen=True)
class ChEES(AbstractMethod):
    r"""Hamiltonian Monte Carlo with many chains and a learnt trajectory length (Hoffman, Radul and Sountsov 2021).

    All chains make the same number of steps, so one evaluation of the batched log density serves them all. Warm-up
    learns, for all chains together, the step size (dual averaging), the trajectory length (ChEES criterion, see
    `probmix.inference.warmup.chees_slope`) and the metric (`probmix.inference.metric.fit_metric`).
    The integrator is the two-stage splitting of Blanes, Casas and Sanz-Serna (2014): two gradients a step, each about
    as costly as a leapfrog step and good for a longer stretch.

    ``superchains`` starting points have ``chains / superchains`` chains each (Margossian et al. 2024), so that the
    chains of a start show what is noise and those of other starts what was not forgotten. Chains may end in different
    modes; components of a mixture may have other labels there. Metric and criterion look at each chain about its own
    mean, superchains in modes apart get metrics of their own, nothing is dropped or resampled, and the status names
    the superchains, or chains, that sit elsewhere.

    Args:
        chains: number of chains.
        superchains: number of starting points; divides ``chains``.
        warmup: iterations that learn, not kept.
        draws: iterations kept, for each chain.
        init: as in `probmix.inference.starts.starting_points`; the chains of a superchain start at the same point.
        target_accept: harmonic mean of acceptance probabilities that the step size aims at; raise it where
            transitions diverge.
        mass: ``"diagonal"``, ``"dense"``, or ``"auto"``: dense where chains and warm-up determine it, at most up to
            200 dimensions.
        max_gradients: gradients in one iteration, at most.
        compile: ``"auto"``, True or False: as in `probmix.log_density.LogDensity.plan`.

    Raises:
        MethodError: a setting out of its range.
        ProgramError: no finite start, or a program without a log density.
        FitError: interrupted before the first iteration was done, or no chain ever moved.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from probmix.inference import infer
        >>> def program(x):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("row", len(x)):
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> fit = infer(program, torch.tensor([1.0, 3.0, 4.0]), ChEES(warmup=30, draws=50), seed=0)
        >>> fit.draws["rate"].shape, round(float(fit.draws["rate"].mean()), 1)  # Gamma(10, 4)
        (torch.Size([64, 50]), 2.5)
    """

    chains: int = 64
    superchains: int = 8
    warmup: int = 100
    draws: int = 100
    init: Start = "auto"
    target_accept: float = 0.8
    mass: Literal["auto", "diagonal", "dense"] = "auto"
    max_gradients: int = 512
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        for setting in ("chains", "superchains", "draws"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        divides = self.chains % self.superchains == 0
        require(divides, "superchains", f"a divisor of chains={self.chains}", self.superchains)
        require(self.compile in ("auto", True, False), "compile", '"auto", True or False', self.compile)
        _ = self.adaptation  # which checks the rest

    @property
    def adaptation(self) -> Adaptation:
        """The settings of warm-up."""
        return Adaptation(self.warmup, self.target_accept, self.mass, self.max_gradients, self.superchains)

    def start(self, problem: Problem) -> ChEESState:
        """Return the first state: the chains of each superchain at its starting point."""
        density = problem.log_density
        iterations = self.warmup + self.draws
        density.plan(batch=self.chains, gradients=_GRADIENTS * iterations, compile=self.compile)
        starts = starting_points(problem, density, self.init, self.superchains)
        z = starts.to(problem.arguments.dtype).repeat_interleave(self.chains // self.superchains, 0)
        warm = self.adaptation.begin(density, z)
        return ChEESState(warm, warm.chains, (), (), 0)

    def step(self, problem: Problem, state: ChEESState) -> ChEESState:
        """Return the state after one iteration of all chains."""
        warm, kept, reported = state.warm, state.draws, state.stats
        if state.iteration < self.warmup:
            warm, outcome = self.adaptation.advance(problem.log_density, warm)
            chains = warm.chains
        else:
            steps = self.adaptation.max_steps
            chains, outcome = transition(
                problem.log_density, state.chains, warm.tuning, state.iteration, max_steps=steps
            )
        if state.iteration == self.warmup:  # from here on the warm-up is of no more use
            kept, reported = (), ()
        stats = _statistics(chains, outcome)
        return ChEESState(warm, chains, (*kept, chains.position), (*reported, stats), state.iteration + 1)

    def status(self, problem: Problem, state: ChEESState) -> Status | None:
        """Return how the fit ended, or None to go on."""
        if state.iteration < self.warmup + self.draws:
            return None
        accepted = _stacked(state, "acceptance_rate").double().mean(1)
        if accepted.max() < _STUCK:
            return Status(
                "failed",
                f"none of the {self.chains} chains moved: every proposal was rejected. The density or its gradient may "
                "be wrong near the starts (not finite, not continuous): try init= with sites inside the support.",
            )
        divergent = int(_stacked(state, "diverging").sum())
        advice = [f"{self.chains} chains of {self.draws} draws, {divergent} divergent."]
        if divergent:
            advice.append(f"Raise target_accept={self.target_accept:g}, or reparameterise.")
        lazy = int((accepted < self.target_accept / 2).sum())
        if lazy:
            advice.append(
                f"{lazy} of the chains accepted less than half of what was aimed at: raise warmup={self.warmup}."
            )
        lp, z = _stacked(state, "lp").cpu().double().numpy(), torch.stack(state.draws, 1).cpu().double().numpy()
        return Status("complete", " ".join([*advice, advice_on_agreement(lp, z, self.superchains)]).strip())

    def finish(self, problem: Problem, state: ChEESState, status: Status) -> DrawsPosterior:
        """Return the draws; of an interrupted fit, those made so far."""
        status = status_of_draws(status, state.iteration, self.warmup)
        return DrawsPosterior(
            **common(self, problem, status),
            draws=problem.log_density.constrain(torch.stack(state.draws, 1)),
            sample_stats={name: _stacked(state, name) for name in state.stats[0]},
        )

    def progress(self, state: ChEESState) -> tuple[int, int]:
        """Return iterations done and in all."""
        return state.iteration, self.warmup + self.draws

    def figures(self, state: ChEESState) -> Mapping[str, str]:
        """Return step size, trajectory length and acceptance; in sampling also divergences and effective size."""
        if not state.stats:
            return {"phase": "start"}
        last = state.stats[-1]
        shown = {
            "phase": "warm-up" if state.iteration <= self.warmup else "sampling",
            "step size": f"{float(last['step_size'][0]):.2g}",
            "trajectory": f"{float(last['trajectory_length'][0]):.2g}",
            "accepted": f"{float(last['acceptance_rate'].mean()):.2f}",
        }
        if state.iteration <= self.warmup:
            return shown
        size = f"{float(ess(_stacked(state, 'lp').cpu().numpy())):.0f}" if len(state.stats) >= _FEWEST_DRAWS else "-"
        return {**shown, "divergent": str(int(_stacked(state, "diverging").sum())), "ESS": size}


def _statistics(chains: Chains, outcome: Outcome) -> dict[str, Tensor]:
    """Return what an iteration reports of each chain, ``(chains,)``."""
    shape = chains.value.shape
    return {
        "lp": chains.value,
        "energy": outcome.energy,
        "diverging": outcome.diverging,
        "acceptance_rate": outcome.acceptance_rate,
        "step_size": outcome.step_size.expand(shape),
        "n_steps": torch.full(shape, outcome.gradients, device=chains.value.device),
        "trajectory_length": outcome.length.expand(shape),
    }


def _stacked(state: ChEESState, name: str) -> Tensor:
    """Return one statistic of all kept iterations, ``(chains, draws)``."""
    return torch.stack([stats[name] for stats in state.stats], 1)
