"""Warm-up of many-chain Hamiltonian Monte Carlo by the ChEES criterion, for one data set or a batch of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from probmix.inference.adaptation import JITTER, DualAveraging, LengthAscent, harmonic_mean
from probmix.inference.hmc import Chains, Differentiable, Outcome, Tuning, begin, transition
from probmix.inference.method import require
from probmix.inference.metric import Metric, Scatter, fit_metric, probe

__all__ = ["Adaptation", "WarmUp", "chees_slope", "shrunk_centres"]

_PROBE_STD = 1e-3  # unconstrained units: small against any posterior worth sampling, large against rounding
_FIRST_WINDOW, _WINDOW_GROWTH = 5, 1.5  # iterations before the first metric; each later window is longer by this
_LAST_METRIC = 0.8  # of the warm-up; the rest settles the step size
_LENGTH_FROM = 10  # iteration from which the trajectory length moves: the metric, its unit, must come first
_MEMORY = 10  # iterations that a running mean remembers from the windows before
_MOST_DENSE = 200  # dimensions up to which a dense metric is worth its cubic cost
_JUMP_WEIGHT = 0.2  # of the squared jump in the criterion: in a normal, trajectories of 1.67 rather than pi / 2


class WarmUp(NamedTuple):
    """Everything that warm-up carries from one iteration to the next.

    Args:
        iteration: iterations done.
        chains: where the chains are.
        metric: of the next iteration.
        step: step size, ``(*s,)``.
        length: trajectory length, ``(*s,)``.
        scatter: positions and gradients of the present window.
        centres: running mean of each chain, ``(*s, chains, dim)``.
        remembered: iterations that the running means stand for.

    Example:
        >>> WarmUp._fields[:3]  # made by `Adaptation.begin`, whose example shows one
        ('iteration', 'chains', 'metric')
    """

    iteration: int
    chains: Chains
    metric: Metric
    step: DualAveraging
    length: LengthAscent
    scatter: Scatter
    centres: Tensor
    remembered: int

    @property
    def tuning(self) -> Tuning:
        """What sampling uses from here on: averages over the last iterations."""
        return Tuning(self.step.log_average.exp(), self.length.log_average.exp(), self.metric)


@dataclass(frozen=True)
class Adaptation:
    r"""How warm-up finds step size, trajectory length and metric, from any starts ``(*s, chains, dim)``.

    First a metric from the curvature at the starts, then windows of iterations, each half as long again as the one
    before, at whose ends the metric is fitted anew (`fit_metric`). The first iterations make few steps.
    Nothing here needs `infer`: ``*s`` may be a batch of data sets, each with its own tuning.

    Args:
        warmup: iterations.
        target_accept: harmonic mean over chains of the acceptance that the step size aims at.
        mass: ``"diagonal"``, ``"dense"``, or ``"auto"``: dense where chains and warm-up determine it.
        max_gradients: gradients of one trajectory, at most.
        groups: groups of consecutive chains that start together; groups in modes apart get metrics of their own.

    Example:
        >>> class Normal:
        ...     def value_and_grad(self, z):
        ...         return -0.5 * (z / 3).square().sum(-1), -z / 9
        >>> adaptation = Adaptation(warmup=40)
        >>> state = adaptation.begin(Normal(), torch.randn(2, 32, 4))  # two data sets, 32 chains each
        >>> while state.iteration < adaptation.warmup:
        ...     state, _ = adaptation.advance(Normal(), state)
        >>> chains, outcome = transition(Normal(), state.chains, state.tuning, 0)
        >>> chains.position.shape, (state.tuning.metric.root.diagonal(dim1=-2, dim2=-1) - 3.0).abs().max() < 0.1
        (torch.Size([2, 32, 4]), tensor(True))
    """

    warmup: int = 100
    target_accept: float = 0.8
    mass: Literal["auto", "diagonal", "dense"] = "auto"
    max_gradients: int = 512
    groups: int = 1

    def __post_init__(self) -> None:
        require(self.warmup >= 0, "warmup", "0 or more", self.warmup)
        require(0 < self.target_accept < 1, "target_accept", "a probability between 0 and 1", self.target_accept)
        require(self.mass in ("auto", "diagonal", "dense"), "mass", '"auto", "diagonal" or "dense"', self.mass)
        require(self.max_gradients >= 2, "max_gradients", "at least 2", self.max_gradients)

    @property
    def max_steps(self) -> int:
        """Steps of a trajectory at most; each costs two gradients."""
        return self.max_gradients // 2

    def begin(self, density: Differentiable, z: Tensor) -> WarmUp:
        """Return the state before the first iteration, for chains at ``z`` ``(*s, chains, dim)``."""
        chains, nudge = begin(density, z), _PROBE_STD * torch.randn_like(z)
        dense = self._dense(z)
        nearby = density.value_and_grad(z + nudge)[1]
        metric = fit_metric(probe(chains.gradient, nearby, nudge, dense=dense))
        zero = z.new_zeros(z.shape[:-2])
        step = DualAveraging.at(zero - 0.25 * math.log(z.shape[-1]))  # the rate of Beskos et al. (2013)
        length = LengthAscent.at(zero + math.log(math.pi / 2))  # independent draws from a normal
        return WarmUp(
            0, chains, metric, step, length, Scatter.empty(z, groups=self.groups, dense=dense), torch.zeros_like(z), 0
        )

    def advance(self, density: Differentiable, state: WarmUp) -> tuple[WarmUp, Outcome]:
        """Return the state after one iteration, and what it did."""
        tuning = Tuning(state.step.log_step.exp(), state.length.log_length.exp(), state.metric)
        most = min(state.iteration + 1, self.max_steps)  # long trajectories are wasted before the metric is known
        chains, outcome = transition(density, state.chains, tuning, state.iteration, max_steps=most)
        remembered = state.remembered + 1
        centres = state.centres + (chains.position - state.centres) / remembered
        step = state.step.update(
            self.target_accept - harmonic_mean(outcome.acceptance_rate),
            state.length.log_length + math.log(1 + JITTER),
        )
        length = state.length
        if state.iteration >= _LENGTH_FROM:
            centre = shrunk_centres(centres, remembered, state.metric)
            length = length.update(chees_slope(state.chains.position, outcome, centre, state.metric, tuning.step_size))
        scatter = state.scatter.add(chains.position, chains.gradient)
        after = WarmUp(state.iteration + 1, chains, state.metric, step, length, scatter, centres, remembered)
        return (self._renewed(after) if after.iteration in self.window_ends else after), outcome

    @property
    def window_ends(self) -> frozenset[int]:
        """Iterations after which the metric is fitted."""
        ends, end = set(), float(_FIRST_WINDOW)
        while end <= _LAST_METRIC * self.warmup:
            ends.add(int(end))
            end = _WINDOW_GROWTH * end + 1
        return frozenset(ends)

    def _renewed(self, state: WarmUp) -> WarmUp:
        """Fit the metric to the window that ends here, and begin the averages of step size and length anew."""
        return WarmUp(
            state.iteration,
            state.chains,
            fit_metric(state.scatter),
            DualAveraging.at(state.step.log_step),
            LengthAscent.at(state.length.log_length),
            Scatter.empty(state.centres, groups=self.groups, dense=state.scatter.dense),
            state.centres,
            min(state.remembered, _MEMORY),
        )

    def _dense(self, z: Tensor) -> bool:
        points = z.shape[-2] * self.warmup
        return self.mass == "dense" or (self.mass == "auto" and z.shape[-1] <= min(_MOST_DENSE, points / 20))


def shrunk_centres(centres: Tensor, count: int, metric: Metric) -> Tensor:
    """Return the mean of each chain, drawn to the common mean as far as chains agree (James and Stein 1961).

    Args:
        centres: running means of each chain over ``count`` iterations, ``(*s, chains, dim)``.
        count: iterations.
        metric: in whose units a draw has variance 1.

    Example:
        >>> unit = Metric(torch.ones(1, 1), torch.ones(1, 1))
        >>> shrunk_centres(torch.tensor([[0.1], [-0.1]]), 10, unit).abs().max()  # noise
        tensor(0.)
        >>> shrunk_centres(torch.tensor([[50.0], [-50.0]]), 10, unit).abs().max().round()  # two modes
        tensor(50.)
    """
    common = centres.mean(-2, keepdim=True)
    between = metric.whiten(centres - common).square().mean((-2, -1))
    noise = 1.5 / count  # draws of one chain are somewhat dependent
    weight = (1 - noise / between.clamp_min(torch.finfo(centres.dtype).tiny)).clamp_min(0.0)
    return common + weight[..., None, None] * (centres - common)


def chees_slope(before: Tensor, outcome: Outcome, centre: Tensor, metric: Metric, step_size: Tensor) -> Tensor:
    r"""Return the slope by log trajectory length of the ChEES criterion, ``(*s,)``, up to a factor.

    With ``u, u'`` the start and the proposed end in whitened units about the centre, ``a`` the acceptance, ``t`` the
    length and D the dimension, the criterion is ``E[a (1/4 change^2 + w/2 |u' - u|^2)] / t^c``, where
    ``change = 2 D log(D + |u'|^2) - 2 D log(D + |u|^2)``. Hoffman, Radul and Sountsov (2021) have
    ``change = |u'|^2 - |u|^2``, which is the same to first order about ``|u|^2 = D``; the logarithm keeps chains in a
    long tail, or in a mode that the metric does not fit, from outvoting all others. The small squared jump lets means
    gain a little at the cost of squares. The power c rises from 0, while a single step makes the trajectory and a
    longer one costs nothing, to 1.

    The centre is a mean for each chain (`shrunk_centres`), not for all: between chains in different modes ``|u|^2``
    about a common mean is the distance between modes, which no trajectory changes; its noise would drown the criterion.

    Args:
        before: positions at the start, ``(*s, chains, dim)``.
        outcome: of the transition from there.
        centre: ``(*s, chains, dim)``.
        metric: of the transition.
        step_size: longest step, ``(*s,)``.

    Example:
        >>> class Normal:
        ...     def value_and_grad(self, z):
        ...         return -0.5 * z.square().sum(-1), -z
        >>> unit, z = Metric(torch.ones(1, 1), torch.ones(1, 1)), torch.randn(20_000, 1)
        >>> for length in (1.0, 2.4):  # the best is about 1.67
        ...     tuning = Tuning(torch.tensor(3.0), torch.tensor(length), unit)
        ...     _, outcome = transition(Normal(), begin(Normal(), z), tuning, 0)
        ...     print(chees_slope(z, outcome, torch.zeros_like(z), unit, tuning.step_size) > 0)
        tensor(True)
        tensor(False)
    """
    u, v = metric.whiten(before - centre), metric.whiten(outcome.proposal - centre)
    dim = u.shape[-1]
    size_u, size_v, jump = dim + u.square().sum(-1), dim + v.square().sum(-1), v - u
    change = 2 * dim * (size_v.log() - size_u.log())
    gain = 0.25 * change.square() + 0.5 * _JUMP_WEIGHT * jump.square().sum(-1)
    push = (2 * dim * change / size_v)[..., None] * v + _JUMP_WEIGHT * jump
    rise = (push * outcome.momentum).sum(-1)
    power = (1 - step_size / outcome.length).clamp_min(0.0)
    slope = outcome.length[..., None] * rise - power[..., None] * gain
    weight = torch.where(slope.isfinite(), outcome.acceptance_rate, 0.0)
    return (weight * slope.nan_to_num(0.0, 0.0, 0.0)).sum(-1) / weight.sum(-1).clamp_min(1e-6)
