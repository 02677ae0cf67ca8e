"""Warm-up and sampling in one call, for any differentiable log density and any batch of data sets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probmix.inference.hmc import Differentiable, transition
from probmix.inference.warmup import Adaptation, WarmUp

__all__ = ["Run", "run_chains"]


class Run(NamedTuple):
    """Draws of many chains on one data set or a batch of them.

    Args:
        positions: unconstrained draws, ``(*s, chains, draws, dim)``.
        log_density: there, ``(*s, chains, draws)``.
        acceptance_rate: of each transition, ``(*s, chains, draws)``.
        diverging: whether it diverged, ``(*s, chains, draws)``.
        gradients: evaluations of the whole batch, warm-up included.
        warm: what warm-up has learnt.

    Example:
        >>> Run._fields[:2]  # made by `run_chains`, whose example shows one
        ('positions', 'log_density')
    """

    positions: Tensor
    log_density: Tensor
    acceptance_rate: Tensor
    diverging: Tensor
    gradients: int
    warm: WarmUp


def run_chains(density: Differentiable, z: Tensor, adaptation: Adaptation, draws: int, *, thin: int = 1) -> Run:
    """Return draws of all chains of all data sets, which run as one batch from torch's global generator.

    Args:
        density: its ``value_and_grad`` takes ``(*s, chains, dim)``; ``*s`` are data sets, or nothing.
        z: starting points ``(*s, chains, dim)``, finite; best a few chains at each of ``adaptation.groups`` points.
        adaptation: warm-up.
        draws: kept, of each chain.
        thin: iterations to a draw.

    Example:
        >>> class Normals:  # three data sets: normals with standard deviations 1, 2, 3
        ...     std = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
        ...     def value_and_grad(self, z):
        ...         return -0.5 * (z / self.std).square().sum(-1), -z / self.std**2
        >>> run = run_chains(Normals(), torch.zeros(3, 32, 5), Adaptation(warmup=40), 100)
        >>> run.positions.shape, run.positions.flatten(1).std(-1).round()
        (torch.Size([3, 32, 100, 5]), tensor([1., 2., 3.]))
    """
    warm, gradients = adaptation.begin(density, z), 2
    for _ in range(adaptation.warmup):
        warm, outcome = adaptation.advance(density, warm)
        gradients += outcome.gradients
    chains, tuning, kept = warm.chains, warm.tuning, []
    for i in range(draws * thin):
        chains, outcome = transition(density, chains, tuning, adaptation.warmup + i, max_steps=adaptation.max_steps)
        gradients += outcome.gradients
        if (i + 1) % thin == 0:
            kept.append((chains.position, chains.value, outcome.acceptance_rate, outcome.diverging))
    axis = z.dim() - 1
    positions, values, accepted, diverging = (torch.stack(series, axis) for series in zip(*kept, strict=True))
    return Run(positions, values, accepted, diverging, gradients, warm)
