"""The No-U-Turn sampler: Pyro's kernel on our log density, chains side by side, with every diagnostic kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from pyro.infer.mcmc import NUTS as PyroNUTS  # noqa: N811 (a class, in capitals)
from torch import Tensor

from probmix.arviz import ess
from probmix.errors import FitError
from probmix.inference.method import AbstractMethod, Problem, common, require
from probmix.inference.starts import Start, starting_points
from probmix.log_density import LogDensity
from probmix.posterior import DrawsPosterior
from probmix.status import Status

__all__ = ["NUTS"]

_FEWEST_DRAWS = 4  # for which ArviZ gives an effective sample size
_JITTER_STD = 0.1  # unconstrained units: chains never start at the very same point


class NUTSState(NamedTuple):
    """All chains after some iterations.

    Args:
        kernels: one kernel for each chain; holds its position, step size and mass matrix.
        positions: unconstrained position of each chain, ``(chains, dim)``.
        draws: positions kept so far, warm-up first, then sampling.
        stats: what each of these iterations reported.
    """

    kernels: tuple[RecordingNUTS, ...]
    positions: Tensor
    draws: tuple[Tensor, ...]
    stats: tuple[dict[str, Tensor], ...]
    iteration: int


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

    Raises:
        ProgramError: no finite start, or a program without a log density.
        FitError: interrupted before the first iteration was done.

    Example:
        >>> import pyro, pyro.distributions as dist
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

    def __post_init__(self) -> None:
        for setting in ("chains", "draws", "max_tree_depth"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        require(self.warmup >= 0, "warmup", "0 or more", self.warmup)
        require(0 < self.target_accept < 1, "target_accept", "a probability between 0 and 1", self.target_accept)
        require(self.mass in ("diagonal", "dense"), "mass", '"diagonal" or "dense"', self.mass)

    def start(self, problem: Problem) -> NUTSState:
        """Return the first state: a kernel at a starting point of its own for each chain."""
        starts = starting_points(problem, problem.log_density, self.init, self.chains, jitter_std=_JITTER_STD)
        kernels = tuple(self._kernel(problem.log_density, z) for z in starts)
        return NUTSState(kernels, starts, (), (), 0)

    def step(self, problem: Problem, state: NUTSState) -> NUTSState:
        """Return the state after one iteration of every chain."""
        results = [kernel.advance(z) for kernel, z in zip(state.kernels, state.positions, strict=True)]
        positions = torch.stack([z for z, _ in results])
        stats = {name: torch.stack([s[name] for _, s in results]) for name in results[0][1]}
        sampling = state.iteration == self.warmup  # from here on the warm-up is of no more use
        kept, reported = ((), ()) if sampling else (state.draws, state.stats)
        return NUTSState(state.kernels, positions, (*kept, positions), (*reported, stats), state.iteration + 1)

    def status(self, problem: Problem, state: NUTSState) -> Status | None:
        """Return how the fit ended, or None to go on."""
        if state.iteration < self.warmup + self.draws:
            return None
        divergent = int(torch.stack([s["diverging"] for s in state.stats]).sum())
        advice = f" Raise target_accept={self.target_accept:g}, or reparameterise." if divergent else ""
        accepted = float(torch.stack([s["acceptance_rate"] for s in state.stats]).double().mean(0).min())
        if accepted < self.target_accept / 2:
            advice += f" A chain accepted only {accepted:.2f} of its moves: raise warmup={self.warmup}."
        return Status("complete", f"{self.chains} chains of {self.draws} draws, {divergent} divergent.{advice}")

    def finish(self, problem: Problem, state: NUTSState, status: Status) -> DrawsPosterior:
        """Return the draws; of an interrupted fit, those made so far."""
        if not state.draws:
            raise FitError(
                "interrupted before the first iteration was done, so there is nothing to keep. Run it again."
            )
        if status.state == "interrupted" and state.iteration <= self.warmup:
            status = Status(
                "interrupted",
                f"stopped by the user in warm-up ({state.iteration} of {self.warmup} iterations): these are warm-up "
                "draws, not yet draws from the posterior. Use them as init=, or run again.",
            )
        z = torch.stack(state.draws, 1)
        return DrawsPosterior(
            **common(self, problem, status),
            draws=problem.log_density.constrain(z),
            sample_stats={name: torch.stack([s[name] for s in state.stats], 1) for name in state.stats[0]},
        )

    def progress(self, state: NUTSState) -> tuple[int, int]:
        """Return iterations done and in all."""
        return state.iteration, self.warmup + self.draws

    def figures(self, state: NUTSState) -> Mapping[str, str]:
        """Return the phase, divergences and the effective sample size of the log density so far."""
        if state.iteration <= self.warmup:
            return {"phase": "warm-up", "step size": f"{state.kernels[0].step_size:.3g}"}
        divergent = int(sum(s["diverging"].sum() for s in state.stats))
        log_density = torch.stack([s["lp"] for s in state.stats], 1).cpu().numpy()
        size = f"{float(ess(log_density)):.0f}" if len(state.stats) >= _FEWEST_DRAWS else "-"
        return {"phase": "sampling", "divergent": str(divergent), "ESS": size}

    def _kernel(self, density: LogDensity, z: Tensor) -> RecordingNUTS:
        kernel = RecordingNUTS(
            potential_fn=lambda params: Potential.apply(params["z"], density),
            full_mass=self.mass == "dense",
            target_accept_prob=self.target_accept,
            max_tree_depth=self.max_tree_depth,
        )
        kernel.initial_params = {"z": z}
        kernel.setup(self.warmup)
        return kernel


class RecordingNUTS(PyroNUTS):
    """Pyro's kernel, which also tells the energy, acceptance and cost of each iteration (ArviZ's sample_stats)."""

    _kinetic = 0.0
    gradients = 0

    def advance(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Make one iteration; return the new position and the statistics of the iteration."""
        divergences, mean, count = len(self._divergences), self._mean_accept_prob, self._iterations()
        before = self.gradients
        potential = self._potential_energy_last
        moved = self.sample({"z": z})["z"]
        n = self._iterations()
        accepted = n * self._mean_accept_prob - (n - 1) * (mean if n > 1 and count else 0.0)
        stats = {
            "lp": -self._potential_energy_last,
            "energy": potential + self._kinetic,
            "diverging": len(self._divergences) > divergences,
            "acceptance_rate": accepted,
            "step_size": self.step_size,
            "n_steps": self.gradients - before,
        }
        return moved.detach(), {name: torch.as_tensor(v, device=z.device).detach() for name, v in stats.items()}

    def _iterations(self) -> int:
        """Iterations since the running mean of the acceptance probability was begun anew."""
        return self._t - self._warmup_steps if self._t > self._warmup_steps else self._t

    def _sample_r(self, name: str) -> Any:
        r, unscaled = super()._sample_r(name)
        self._kinetic = self._kinetic_energy(unscaled).detach()
        return r, unscaled

    def _build_basetree(self, *args: Any, **kwargs: Any) -> Any:
        self.gradients += 1
        return super()._build_basetree(*args, **kwargs)


class Potential(torch.autograd.Function):
    """Minus the log density, its gradient computed with it; a failed factorisation is an infinite potential."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, density: LogDensity) -> Tensor:
        """Return ``-log density`` at ``z``."""
        try:
            value, gradient = density.value_and_grad(z.detach())
        except torch.linalg.LinAlgError:  # not positive definite: the trajectory ends there, as a divergence
            value, gradient = z.new_tensor(-torch.inf), torch.zeros_like(z)
        ctx.save_for_backward(gradient)
        return -value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the stored gradient."""
        (gradient,) = ctx.saved_tensors
        return -gradient * grads[0], None
