"""Gaussian guides climbing their ELBOs from many starts: gradient steps, when to slow down, what to keep."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probmix.inference.svi_engine import DROP, DROPS
from probmix.inference.svi_gaussian import AbstractFamily, Draws
from probmix.log_density import LogDensity
from probmix.typing import Sites

__all__ = ["advance", "average", "begin", "first_std", "look"]

_MAX_STD = 0.1  # at first: a start is a start, whatever the flatness of the density around it


class Restarts(NamedTuple):
    """All restarts on their way.

    Args:
        parameters: of the guides, a leading axis of restarts.
        drops: how often the learning rate of each has been lowered, ``(restarts,)``; above `DROPS`: done.
        tail: parameters summed over the steps at the lowest learning rate.
        tail_steps: the number of those steps, ``(restarts,)``.
        elbos: ELBO estimates in blocks ``(steps, restarts)``; NaN where a restart was done, or none was finite.
        steps: gradient steps so far.
    """

    parameters: Sites
    drops: Tensor
    tail: Sites
    tail_steps: Tensor
    elbos: tuple[Tensor, ...]
    steps: int

    @property
    def done(self) -> Tensor:
        """Which restarts have stopped by their own rule, ``(restarts,)``."""
        return self.drops > DROPS

    @property
    def history(self) -> Tensor:
        """ELBO estimates of every step, ``(restarts, steps)``."""
        return torch.cat(self.elbos).mT if self.elbos else self.drops.new_empty(len(self.drops), 0).to(torch.float64)


def begin(density: LogDensity, family: AbstractFamily, starts: Tensor, num_particles: int) -> Restarts:
    """Return all restarts at their starting points ``(restarts, dim)``.

    Example:
        >>> from types import SimpleNamespace
        >>> from probmix.inference.svi_gaussian import Diagonal
        >>> bell = SimpleNamespace(value_and_grad=lambda z: (-50 * (z**2).sum(-1), -100 * z))  # N(0, 0.1**2)
        >>> begin(bell, Diagonal(), torch.ones(3, 1), 10).parameters["std"].round(decimals=4).flatten()
        tensor([0.1000, 0.1000, 0.1000])
    """
    parameters = family.first(starts, first_std(density, starts, num_particles))
    zeros = {name: torch.zeros_like(value) for name, value in parameters.items()}
    drops = torch.zeros(len(starts), dtype=torch.long, device=starts.device)
    return Restarts(parameters, drops, zeros, torch.zeros_like(drops), (), 0)


def advance(
    density: LogDensity, family: AbstractFamily, restarts: Restarts, *, steps: int, rate: float, num_particles: int
) -> Restarts:
    """Return the restarts after ``steps`` gradient steps.

    Args:
        density: the log density.
        family: the family of the guides.
        restarts: where they are.
        steps: number of steps.
        rate: the first learning rate.
        num_particles: draws from each guide in each step, an even number.

    Example:
        >>> from types import SimpleNamespace
        >>> from probmix.inference.svi_gaussian import Diagonal
        >>> bell = SimpleNamespace(value_and_grad=lambda z: (-((z - 3) ** 2).sum(-1) / 2, 3 - z))  # N(3, 1)
        >>> restarts = begin(bell, Diagonal(), torch.zeros(2, 1), 10)
        >>> restarts = advance(bell, Diagonal(), restarts, steps=300, rate=0.1, num_particles=10)
        >>> restarts.parameters["loc"].round(decimals=3).flatten(), restarts.history.shape
        (tensor([3., 3.]), torch.Size([2, 300]))
    """
    parameters, tail, elbos = restarts.parameters, restarts.tail, []
    rates = (rate * DROP**restarts.drops).where(~restarts.done, 0).to(parameters["loc"].dtype)
    lowest = restarts.drops == DROPS
    for _ in range(steps):
        draws = family.draw(parameters, num_particles)
        values, gradient = density.value_and_grad(draws.z)
        elbos.append(_elbo(values, draws).where(~restarts.done, torch.nan))
        parameters = family.ascend(parameters, draws, gradient, rates)
        tail = {name: total + _masked(parameters[name], lowest) for name, total in tail.items()}
    return Restarts(
        parameters,
        restarts.drops,
        tail,
        restarts.tail_steps + steps * lowest,
        (*restarts.elbos, torch.stack(elbos)),
        restarts.steps + steps,
    )


def look(restarts: Restarts, window: int, tolerance: float) -> Restarts:
    """Return the restarts with their learning rates lowered where the last window gained too little on the one before.

    Example:
        >>> level = torch.arange(20.0)[:, None]  # the first restart rises, the second does not
        >>> elbos = torch.cat([level, 0 * level], 1)
        >>> restarts = Restarts({}, torch.zeros(2, dtype=torch.long), {}, torch.zeros(2), (elbos,), 20)
        >>> look(restarts, window=10, tolerance=1.0).drops
        tensor([0, 1])
    """
    if restarts.steps % window or restarts.steps < 2 * window:
        return restarts
    last, before = restarts.history[:, -window:], restarts.history[:, -2 * window : -window]
    gain = last.nanmean(-1) - before.nanmean(-1)
    error = ((_nanvar(last) + _nanvar(before)) / window).sqrt()
    return restarts._replace(drops=restarts.drops + ~(gain > tolerance * error))


def average(restarts: Restarts) -> Sites:
    """Return each restart's parameters, averaged over its steps at the lowest rate where there were any.

    Example:
        >>> drops, steps = torch.tensor([4, 0]), torch.tensor([10, 0])
        >>> average(Restarts({"loc": torch.ones(2, 1)}, drops, {"loc": 20 * torch.ones(2, 1)}, steps, (), 30))["loc"]
        tensor([[2.],
                [1.]])
    """
    means = {name: total / _aligned(restarts.tail_steps.clamp_min(1), total) for name, total in restarts.tail.items()}
    some = restarts.tail_steps > 0
    return {name: mean.where(_aligned(some, mean), restarts.parameters[name]) for name, mean in means.items()}


def first_std(density: LogDensity, starts: Tensor, num_particles: int) -> Tensor:
    """Return first standard deviations ``(restarts, dim)`` from the curvature at the starts; at most 0.1.

    ``std_i = (sum_j H_ij**2) ** -1/4`` with the Hessian H of the log density, from differences of its gradient in
    random directions (Hutchinson): exact for independent Gaussian coordinates, smaller for correlated ones.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from probmix.arguments import Arguments
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("row", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> density = LogDensity(program, Arguments.of(torch.ones(399, dtype=torch.float64)))
        >>> first_std(density, torch.zeros(1, 1, dtype=torch.float64), 10).round(decimals=6)  # 1 / sqrt(400)
        tensor([[0.0500]], dtype=torch.float64)
    """
    size = torch.finfo(starts.dtype).eps ** (1 / 3)
    z = starts[:, None].expand(-1, num_particles, -1)
    signs = torch.randint(0, 2, z.shape, device=z.device).to(z.dtype) * 2 - 1
    ahead, behind = (density.value_and_grad(z + step * signs)[1] for step in (size, -size))
    curvature = ((ahead - behind) / (2 * size)).square().mean(1).sqrt()
    return curvature.nan_to_num(_MAX_STD**-2, posinf=_MAX_STD**-2).clamp_min(_MAX_STD**-2).rsqrt()


def _elbo(values: Tensor, draws: Draws) -> Tensor:
    """Return the mean over each restart's draws of finite density, ``(restarts,)``; NaN where there is none."""
    ratios = values - draws.log_prob
    return ratios.where(ratios.isfinite(), torch.nan).nanmean(-1)


def _nanvar(values: Tensor) -> Tensor:
    return (values - values.nanmean(-1, keepdim=True)).square().nanmean(-1)


def _masked(value: Tensor, rows: Tensor) -> Tensor:
    return value.where(_aligned(rows, value), 0)


def _aligned(per_restart: Tensor, like: Tensor) -> Tensor:
    return per_restart.reshape(-1, *[1] * (like.dim() - 1))
