"""Hamiltonian Monte Carlo on a batch of chains: one trajectory, one acceptance, for all of them at once."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from probmix.inference.adaptation import JITTER, van_der_corput
from probmix.inference.metric import Metric

__all__ = ["Chains", "Differentiable", "Outcome", "Tuning", "begin", "transition"]

_KICK = 0.21178  # Blanes, Casas and Sanz-Serna (2014): the two-stage splitting of least energy error up to step 2
_DIVERGENT = 1000.0  # nats of energy error, as in Stan


class Differentiable(Protocol):
    """A log density with its gradient: a `LogDensity`, or one for a batch of data sets."""

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return value ``(*s, chains)`` and gradient ``(*s, chains, dim)`` at ``z`` ``(*s, chains, dim)``."""


class Chains(NamedTuple):
    """Where the chains are.

    Args:
        position: ``(*s, chains, dim)``, unconstrained.
        value: log density there, ``(*s, chains)``.
        gradient: its gradient, ``(*s, chains, dim)``.

    Example:
        >>> Chains(torch.zeros(4, 3), torch.zeros(4), torch.zeros(4, 3)).position.shape
        torch.Size([4, 3])
    """

    position: Tensor
    value: Tensor
    gradient: Tensor


class Tuning(NamedTuple):
    """What one transition needs to know; shared by all chains of a data set.

    Args:
        step_size: longest step of the integrator, ``(*s,)``, in whitened units; a step costs two gradients.
        trajectory_length: mean length of a trajectory, ``(*s,)``, in whitened units (a normal has period 2 pi).
        metric: the whitening.

    Example:
        >>> unit = Metric(torch.ones(1, 2), torch.ones(1, 2))
        >>> Tuning(torch.tensor(0.9), torch.tensor(1.6), unit).step_size
        tensor(0.9000)
    """

    step_size: Tensor
    trajectory_length: Tensor
    metric: Metric


class Outcome(NamedTuple):
    """What one transition did.

    Args:
        acceptance_rate: probability of acceptance, ``(*s, chains)``.
        diverging: energy error above 1000 nats, or a point without a finite density, ``(*s, chains)``.
        energy: potential and kinetic energy at the start of the trajectory, ``(*s, chains)``, nats.
        length: of the trajectory, ``(*s,)``, whitened units.
        step_size: that was taken, ``(*s,)``.
        gradients: evaluations of the density, the same for all chains.
        proposal: end of the trajectory, ``(*s, chains, dim)``, whether accepted or not.
        momentum: there, ``(*s, chains, dim)``, whitened.

    Example:
        >>> "acceptance_rate" in Outcome._fields  # made by `transition`, whose example shows one
        True
    """

    acceptance_rate: Tensor
    diverging: Tensor
    energy: Tensor
    length: Tensor
    step_size: Tensor
    gradients: int
    proposal: Tensor
    momentum: Tensor


def begin(density: Differentiable, z: Tensor) -> Chains:
    """Return chains at ``z`` ``(*s, chains, dim)``.

    Example:
        >>> class Normal:
        ...     def value_and_grad(self, z):
        ...         return -0.5 * (z * z).sum(-1), -z
        >>> begin(Normal(), torch.zeros(4, 3)).value
        tensor([-0., -0., -0., -0.])
    """
    value, gradient = density.value_and_grad(z)
    return Chains(z, value, gradient)


def transition(
    density: Differentiable, chains: Chains, tuning: Tuning, iteration: int, *, max_steps: int = 512
) -> tuple[Chains, Outcome]:
    r"""Move every chain along one trajectory and accept or reject its end; the density stays invariant.

    Trajectory lengths follow a van der Corput sequence (Halton's in base 2), the same for all chains. Every data set
    makes the same number of steps, as many as the neediest one: the others make shorter steps, so none is idle.
    A chain whose density is not finite stops, counts as divergent and is rejected.

    Args:
        density: the target.
        chains: where the chains are, leading axes ``*s`` of data sets.
        tuning: step size, trajectory length and metric, each ``(*s, ...)``.
        iteration: number of the iteration, for the jitter of the trajectory length.
        max_steps: steps of a trajectory, at most; longer ones are cut.

    Example:
        >>> class Normal:
        ...     def value_and_grad(self, z):
        ...         return -0.5 * (z * z).sum(-1), -z
        >>> tuning = Tuning(torch.tensor(1.0), torch.tensor(1.5), Metric(torch.ones(1, 2), torch.ones(1, 2)))
        >>> chains, outcome = transition(Normal(), begin(Normal(), torch.zeros(1000, 2)), tuning, 0)
        >>> chains.position.shape, outcome.gradients, bool(outcome.acceptance_rate.mean() > 0.9)
        (torch.Size([1000, 2]), 4, True)
    """
    length = tuning.trajectory_length * (1 + JITTER * (2 * van_der_corput(iteration + 1) - 1))
    wanted = float((length / tuning.step_size).max())
    steps = min(max(math.ceil(wanted - 1e-6), 1), max_steps) if math.isfinite(wanted) else 1
    step_size = torch.minimum(length / steps, tuning.step_size)
    momentum = torch.randn_like(chains.position)
    start = 0.5 * momentum.square().sum(-1) - chains.value
    end, last, finite = _trajectory(density, chains, momentum, tuning.metric, step_size[..., None, None], steps)
    error = 0.5 * last.square().sum(-1) - end.value - start
    acceptance_rate = torch.where(finite, (-error).exp().clamp(max=1.0), 0.0).nan_to_num(0.0)
    accepted = torch.rand_like(acceptance_rate) < acceptance_rate
    moved = Chains(
        torch.where(accepted[..., None], end.position, chains.position),
        torch.where(accepted, end.value, chains.value),
        torch.where(accepted[..., None], end.gradient, chains.gradient),
    )
    diverging = ~finite | ~(error < _DIVERGENT)
    return moved, Outcome(
        acceptance_rate, diverging, start, step_size * steps, step_size, 2 * steps, end.position, last
    )


def _trajectory(
    density: Differentiable, chains: Chains, momentum: Tensor, metric: Metric, step_size: Tensor, steps: int
) -> tuple[Chains, Tensor, Tensor]:
    """Return the end of the trajectory, the momentum there, and which chains stayed where the density is finite."""
    z, value, gradient = chains
    finite = value.isfinite()
    kick = _KICK * step_size  # the last kick of a step and the first of the next are one
    momentum = momentum + kick * metric.pull(gradient)
    for i in range(2 * steps):
        z = torch.where(finite[..., None], z + 0.5 * step_size * metric.colour(momentum), z)
        value, gradient = density.value_and_grad(z)
        finite = finite & value.isfinite() & gradient.isfinite().all(-1)
        weight = step_size - 2 * kick if i % 2 == 0 else (kick if i == 2 * steps - 1 else 2 * kick)
        momentum = torch.where(finite[..., None], momentum + weight * metric.pull(gradient), momentum)
    return Chains(z, value, gradient), momentum, finite
