"""Sparse kernel weights where the rows lie with several agents: consensus ADMM, with quantised messages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, distributed

from probmix.covariance_sum import CovarianceBlocks
from probmix.errors import DataError, MethodError
from probmix.inference.majorisation import Climb, Pull, descended, evaluated, linear_model, surrogate_minimum
from probmix.inference.method import AbstractMethod, Problem, common, require
from probmix.posterior import PointPosterior
from probmix.status import Status

__all__ = ["ConsensusADMM", "fuse", "shards", "stochastic_round"]

_BITS = 64  # of a number that is not quantised
_LOCAL_STEPS = 10  # convex approximations of every agent by itself, before the first message


class _Agent(NamedTuple):
    """One agent: its rows, where it is, and its dual.

    Args:
        covariance: of its own rows.
        climb: its own weights.
        dual: lambda, ``(a,)``.
    """

    covariance: CovarianceBlocks
    climb: Climb
    dual: Tensor


class _State(NamedTuple):
    agents: tuple[_Agent, ...]
    consensus: Tensor
    dual_sum: Tensor
    slopes: Tensor
    rho: float
    bits: float = 0.0
    primal: float = math.inf
    dual: float = math.inf
    change: float = math.inf
    history: tuple[Tensor, ...] = ()

    @property
    def penalty(self) -> Tensor:
        """Of each weight, ``(a,)``."""
        return self.rho * self.slopes.square()


@dataclass(frozen=True)
class ConsensusADMM(AbstractMethod):
    r"""Alternating direction method of multipliers over agents that keep their rows to themselves.

    .. math:: \min_{\theta \ge 0} \sum_j l_j(\zeta_j) \quad \text{where all } \zeta_j = \theta, \qquad
              l_j(\theta) = y_j^\top C_j^{-1} y_j + \log |C_j|

    Rows of different parts are taken to be independent given the weights: with more than one part this is another
    objective than that of `SCA` on all rows. What does *not* change it is who holds the parts: ``parts=4`` has one
    answer, whether 1, 2 or 4 agents share the work.

    A step: every agent minimises the convex approximation of its own l_j (`SCA`) plus
    :math:`\lambda_j^\top(\zeta_j - \theta) + \tfrac12 \sum_i \rho_i (\zeta_{ji} - \theta_i)^2`; the consensus is the
    mean of :math:`\zeta_j + \lambda_j / \rho`; then :math:`\lambda_j` grows by :math:`\rho (\zeta_j - \theta)`. Weights
    differ by orders of magnitude, so each has a penalty of its own, :math:`\rho_i = \rho \, t_i^2` with the mean slope
    :math:`t_i = \mathrm{tr}(C_j^{-1} K_i)` at the first consensus, and anew after 1, 2, 4, ... of the first half of the
    steps: :math:`\rho` has no units. Where only one component matters :math:`t_i^2` is how far :math:`\log |C_j|`
    bends down, and the agents need not come to agree unless the penalty bends up by more.

    Where `torch.distributed` is initialised each process is one agent, called with its own rows: only sums over agents
    travel (of weights, slopes and counts), by all-reduce. Else the rows are cut into contiguous parts here, and the
    agents take turns; the answer is the same.

    Args:
        agents: N; where `torch.distributed` is initialised, its number of processes.
        parts: into which the rows are cut, a multiple of the agents; None: one for each agent.
        quantise: Delta: weights are sent as multiples of it, rounded up or down at random without bias; None: as they
            are. It must be small beside the weights that matter.
        penalty: :math:`\rho` at first and at least. Where it is below some 3, the agents may circle about each other.
        uniform_penalty: :math:`\rho_i = \rho` for all weights, as in the paper, whose value is 1e-10.
        balance: :math:`\rho` doubles where the primal residual exceeds so many times the dual one, and halves again in
            the opposite case.
        max_steps: steps at most.
        tolerance: of both residuals, relatively, and of the change of the objective.

    Raises:
        MethodError: a setting is out of its range, or the program is not linear in weights.
        DataError: an agent with fewer than three rows.

    Source:
        Suwandi, Lin, Yin, Wang and Theodoridis (2023), Sparsity-aware distributed learning for Gaussian processes with
        linear multiple kernel, section on quantised ADMM; Boyd, Parikh, Chu, Peleato and Eckstein (2011), Distributed
        optimization and statistical learning via ADMM, sections 3.4.1 and 7.1. The penalties per weight are ours.

    Example:
        >>> from probmix.inference import infer
        >>> from probmix.models import GridSpectralGP
        >>> x = torch.arange(80.0, dtype=torch.float64)[:, None]
        >>> y = (2 * torch.pi * 0.1 * x[:, 0]).sin() + 0.1 * (7.3 * x[:, 0]).sin()
        >>> fit = infer(GridSpectralGP(num_points=51), (x, y), ConsensusADMM(agents=2), seed=0)
        >>> round(float(fit.program.components(x, fit.sites()).frequencies[0, 0]), 2)
        0.1
        >>> sorted(fit.history)
        ['bits', 'dual', 'objective', 'primal']
    """

    agents: int = 2
    parts: int | None = None
    quantise: float | None = None
    penalty: float = 4.0
    uniform_penalty: bool = False
    balance: float = 10.0
    max_steps: int = 300
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        for setting in ("agents", "max_steps"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        for setting in ("penalty", "tolerance"):
            require(getattr(self, setting) > 0, setting, "a positive number", getattr(self, setting))
        require(self.balance > 1, "balance", "a number above 1", self.balance)
        require(self.quantise is None or self.quantise > 0, "quantise", "None or a positive number", self.quantise)
        parts = self.agents if self.parts is None else self.parts
        require(parts % self.agents == 0 and parts > 0, "parts", f"a multiple of {self.agents} agents", self.parts)

    def start(self, problem: Problem) -> _State:
        """Return the first state: every agent by itself, and the mean of their weights."""
        agents = []
        for covariance in self._covariances(problem):
            climb = evaluated(covariance, covariance.first_weights())
            for _ in range(_LOCAL_STEPS):
                climb = descended(covariance, climb)
            agents.append(_Agent(covariance, climb, torch.zeros_like(climb.weights)))
        consensus = self._total(torch.stack([agent.climb.weights for agent in agents])) / self.agents
        agents = [agent._replace(climb=evaluated(agent.covariance, consensus)) for agent in agents]
        slopes, bits = self._mean_slopes(agents)
        bits += self._bits_both_ways(consensus)
        return _State(tuple(agents), consensus, torch.zeros_like(consensus), slopes, self.penalty, bits)

    def step(self, problem: Problem, state: _State) -> _State:
        """Return the state after every agent's convex problem, one exchange, and the new duals."""
        moved, costs, step = [], [], (problem.seed, len(state.history))
        for place, agent in enumerate(state.agents):
            pull = Pull(state.consensus, agent.dual, state.penalty)
            every = torch.ones_like(agent.dual, dtype=torch.bool)
            weights = surrogate_minimum(agent.covariance, agent.climb.weights, agent.climb.slopes, every, pull)
            weights, cost = self._message(weights, agent.covariance.least, (*step, place + _rank()))
            moved.append(weights)
            costs.append(weights.new_tensor(cost))
        total = self._total(torch.stack(moved))
        # every agent knows the sum of the duals from the sums so far: weights are all that it sends
        mean = (total + state.dual_sum / state.penalty) / self.agents
        consensus, cost = self._message(mean, state.agents[0].covariance.least, (*step, self.agents))
        bits = state.bits + (float(self._total(torch.stack(costs))) + self.agents * cost) * (self.agents > 1)
        agents = tuple(
            _Agent(agent.covariance, evaluated(agent.covariance, own), agent.dual + state.penalty * (own - consensus))
            for agent, own in zip(state.agents, moved, strict=True)
        )
        dual_sum = state.dual_sum + state.penalty * (total - self.agents * consensus)
        return self._measured(state, agents, consensus, dual_sum, bits)

    def status(self, problem: Problem, state: _State) -> Status | None:
        """Return how the fit ended, or None to go on."""
        if not state.history:
            return None
        if not bool(state.history[-1][0].isfinite()):
            return Status("failed", "an agent's covariance was not positive definite. Give a larger noise_var.")
        if max(state.primal, state.dual, state.change) < self.tolerance:
            return Status("converged", f"agents agree to {state.primal:.1e}, relatively")
        if len(state.history) >= self.max_steps:
            return Status(
                "max_steps",
                f"agents agree to {state.primal:.1e} after {self.max_steps} steps, relatively. Raise max_steps; "
                "quantised messages end at their own resolution: make quantise smaller.",
            )
        return None

    def finish(self, problem: Problem, state: _State, status: Status) -> PointPosterior:
        """Return the consensus."""
        objective = self._log_likelihood(state.agents, state.consensus)
        trace = torch.stack(state.history) if state.history else objective.new_tensor([[float(objective), 0, 0, 0]])
        names = ("objective", "primal", "dual", "bits")
        return PointPosterior(
            **common(self, problem, status),
            history=dict(zip(names, trace.mT, strict=True)),
            point=state.agents[0].covariance.sites(state.consensus),
            objective=float(objective),
            objectives=objective[None],
        )

    def progress(self, state: _State) -> tuple[int, int]:
        """Return steps done and steps at most."""
        return len(state.history), self.max_steps

    def figures(self, state: _State) -> Mapping[str, str]:
        """Return how far the agents are from agreement."""
        return {"primal": f"{state.primal:.1e}", "dual": f"{state.dual:.1e}"}

    def _covariances(self, problem: Problem) -> list[CovarianceBlocks]:
        """Return what each agent of this process knows."""
        model = linear_model(problem)
        x, y = problem.arguments.args
        parts = self.agents if self.parts is None else self.parts
        if _processes():
            require(self.agents == _processes(), "agents", f"{_processes()}, the processes", self.agents)
            own = shards(x, y, parts // self.agents)
        else:
            own = shards(x, y, parts)
        agreed = self._total(torch.stack([model.agreed(part) for _, part in own]))
        sums = [model.covariance_sum(rows, part, agreed) for rows, part in own]
        here = 1 if _processes() else self.agents
        each = len(sums) // here
        return [CovarianceBlocks(tuple(sums[agent * each : (agent + 1) * each])) for agent in range(here)]

    def _message(self, weights: Tensor, least: Tensor, key: tuple[int, int, int]) -> tuple[Tensor, float]:
        """Return weights as the other side gets them, and the bits that takes.

        What the random rounding depends on, ``key``, is the seed, the step and the sender, in any number of processes.
        """
        if self.quantise is None or self.agents == 1:
            return weights.maximum(least), float(_BITS * len(weights))
        uniform = torch.as_tensor(np.random.default_rng(key).random(len(weights))).to(weights)
        levels = float((weights.max() - weights.min()) / self.quantise) + 1
        rounded = stochastic_round(weights, self.quantise, uniform).maximum(least)
        return rounded, len(weights) * math.log2(levels)

    def _measured(
        self, state: _State, agents: tuple[_Agent, ...], consensus: Tensor, dual_sum: Tensor, bits: float
    ) -> _State:
        """Return the next state, with residuals in units in which each weight's penalty is 1, and the next penalty."""
        unit = state.penalty.sqrt()
        squares = [
            torch.stack([(unit * (a.climb.weights - consensus)).square().sum(), (a.dual / unit).square().sum()])
            for a in agents
        ]
        away, duals = self._total(torch.stack(squares)).sqrt()
        moved = self.agents**0.5 * (unit * (consensus - state.consensus)).norm()
        size = self.agents**0.5 * (unit * consensus).norm().clamp(min=torch.finfo(unit.dtype).tiny)
        primal, dual = float(away / size), float(moved / torch.maximum(duals, size))
        objective = self._log_likelihood(agents, consensus)
        before = state.history[-1][0] if state.history else objective.new_full((), math.inf)
        change = float((objective - before).abs() / objective.abs().clamp(min=1))
        slopes, rho, steps = state.slopes, state.rho, len(state.history) + 1
        if steps <= self.max_steps // 2:  # with a penalty that goes on changing it need not converge
            if away > self.balance * moved:
                rho = 2 * rho
            elif moved > self.balance * away:
                rho = max(rho / 2, self.penalty)
            if steps.bit_count() == 1:
                slopes, more = self._mean_slopes(agents)
                bits += more
        history = (*state.history, torch.stack([objective, *objective.new_tensor([primal, dual, bits])]))
        return _State(agents, consensus, dual_sum, slopes, rho, bits, primal, dual, change, history)

    def _mean_slopes(self, agents: Sequence[_Agent]) -> tuple[Tensor, float]:
        """Return the mean of the agents' slopes, and the bits that takes; ones where penalties are uniform."""
        if self.uniform_penalty:
            return torch.ones_like(agents[0].climb.slopes), 0.0
        slopes = self._total(torch.stack([agent.climb.slopes for agent in agents])) / self.agents
        return slopes, self._bits_both_ways(slopes)

    def _bits_both_ways(self, values: Tensor) -> float:
        """Return the bits of unquantised values from every agent and back."""
        return 2.0 * _BITS * len(values) * self.agents if self.agents > 1 else 0.0

    def _log_likelihood(self, agents: Sequence[_Agent], weights: Tensor) -> Tensor:
        return self._total(torch.stack([agent.covariance.at(weights).log_likelihood for agent in agents]))

    def _total(self, values: Tensor) -> Tensor:
        """Return the sum over the agents, of which ``values`` ``(k, ...)`` has those of this process."""
        total = values.sum(0)
        if _processes():
            distributed.all_reduce(total)
        return total


def shards(x: Tensor, y: Tensor, parts: int) -> list[tuple[Tensor, Tensor]]:
    """Return rows cut into contiguous parts of equal length; the last takes what remains, as in the paper.

    Raises:
        DataError: fewer than three rows for a part.

    Example:
        >>> [len(part) for _, part in shards(torch.zeros(11, 1), torch.zeros(11), 3)]
        [3, 3, 5]
    """
    length = len(y) // parts
    if length < 3:
        raise DataError(f"expected at least 3 rows for each of {parts} parts, got {len(y)} rows. Take fewer agents.")
    sizes = [length] * (parts - 1) + [len(y) - length * (parts - 1)]
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def stochastic_round(values: Tensor, step: float, uniform: Tensor) -> Tensor:
    r"""Return multiples of ``step``, up with probability :math:`v / \Delta - \lfloor v / \Delta \rfloor`: without bias.

    Args:
        values: of any shape.
        step: :math:`\Delta`.
        uniform: random numbers in [0, 1), of that shape.

    Source:
        As `ConsensusADMM`, the quantiser.

    Example:
        >>> stochastic_round(torch.tensor([0.26, 0.26, -0.1]), 0.2, torch.tensor([0.2, 0.4, 0.6])).round(decimals=2)
        tensor([ 0.4000,  0.2000, -0.2000])
    """
    return step * (values / step + 1 - uniform).floor()


def fuse(predictions: Sequence[dist.Normal]) -> dist.Normal:
    r"""Return one normal from the agents' own predictions, weighted by precision.

    .. math:: m = v \sum_j m_j / v_j, \quad 1 / v = \tfrac1N \sum_j 1 / v_j

    The variance is the harmonic mean of theirs: the agents share what they do not know, so their precisions do not add.

    Args:
        predictions: of each agent at the same rows.

    Raises:
        MethodError: none.

    Example:
        >>> fused = fuse([dist.Normal(torch.tensor([0.0]), 1.0), dist.Normal(torch.tensor([4.0]), 3.0**0.5)])
        >>> fused.mean, fused.variance.round(decimals=2)
        (tensor([1.]), tensor([1.5000]))
    """
    if not predictions:
        raise MethodError("expected predictions of at least one agent, got none. Pass model.predictive(...) of each.")
    mean = torch.stack([prediction.mean for prediction in predictions])
    precision = torch.stack([prediction.variance.reciprocal() for prediction in predictions])
    return dist.Normal((mean * precision).sum(0) / precision.sum(0), precision.mean(0).rsqrt())


def _rank() -> int:
    """Return the place of this process among the agents, 0 without `torch.distributed`."""
    return distributed.get_rank() if _processes() else 0


def _processes() -> int:
    """Return the number of processes of `torch.distributed`, 0 without."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 0
