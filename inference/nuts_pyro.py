"""Pyro's No-U-Turn kernel on our log density, one kernel for each chain, with every diagnostic kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from pyro.infer.mcmc import NUTS as PyroNUTS  # noqa: N811 (a class, in capitals)
from torch import Tensor

from probmix.arviz import ess
from probmix.log_density import LogDensity

__all__ = ["begin_pyro", "curvature"]

_FEWEST_DRAWS = 4  # for which ArviZ gives an effective sample size
_MOST_COORDINATES = 256  # for which the curvature at the start is found: two gradients for each
_STEP = 1e-4  # of the central difference, unconstrained units: about the cube root of float64's rounding, and more
_LARGEST_VARIANCE = 100.0  # of a coordinate before anything is known: a start in a flat tail says nothing


class PyroRun(NamedTuple):
    """All chains after some iterations.

    Args:
        kernels: one kernel for each chain; holds its position, step size and mass matrix.
        positions: unconstrained position of each chain, ``(chains, dim)``.
        draws: positions kept so far: in warm-up those of warm-up, afterwards none of them.
        stats: what each of these iterations reported, ``(chains,)`` each.
        iteration: iterations done.
        warmup: iterations of warm-up.
    """

    kernels: tuple[RecordingNUTS, ...]
    positions: Tensor
    draws: tuple[Tensor, ...]
    stats: tuple[dict[str, Tensor], ...]
    iteration: int
    warmup: int

    def advance(self) -> PyroRun:
        """Return the run after one iteration of every chain."""
        results = [kernel.advance(z) for kernel, z in zip(self.kernels, self.positions, strict=True)]
        positions = torch.stack([z for z, _ in results])
        stats = {name: torch.stack([s[name] for _, s in results]) for name in results[0][1]}
        sampling = self.iteration == self.warmup  # from here on the warm-up is of no more use
        kept, reported = ((), ()) if sampling else (self.draws, self.stats)
        return PyroRun(self.kernels, positions, (*kept, positions), (*reported, stats), self.iteration + 1, self.warmup)

    def kept(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return positions ``(chains, draws, dim)`` and statistics ``(chains, draws)``; of an empty run, no draws."""
        if not self.draws:
            return self.positions.new_empty(len(self.positions), 0, self.positions.shape[-1]), {}
        return torch.stack(self.draws, 1), {n: torch.stack([s[n] for s in self.stats], 1) for n in self.stats[0]}

    def figures(self) -> Mapping[str, str]:
        """Return the step size in warm-up; then divergences and the effective sample size of the log density so far."""
        if self.iteration <= self.warmup:
            return {"step size": f"{self.kernels[0].step_size:.3g}"}
        _, stats = self.kept()
        size = f"{float(ess(stats['lp'].cpu().numpy())):.0f}" if len(self.stats) >= _FEWEST_DRAWS else "-"
        return {"divergent": str(int(stats["diverging"].sum())), "ESS": size}


def begin_pyro(
    density: LogDensity,
    starts: Tensor,
    *,
    warmup: int,
    target_accept: float,
    mass: Literal["diagonal", "dense"],
    max_tree_depth: int,
) -> PyroRun:
    """Return a run at its start ``(chains, dim)``: a kernel for each chain, its metric from the curvature there.

    Pyro begins with a unit metric, and until the first window of adaptation is over an iteration takes some forty
    gradients where the widths of coordinates differ; with the curvature it takes a handful.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from probmix.arguments import Arguments
        >>> def program(x):
        ...     a = pyro.sample("a", dist.Normal(0.0, 2.0))
        ...     pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> density = LogDensity(program, Arguments.of(torch.zeros(())))
        >>> run = begin_pyro(
        ...     density, torch.zeros(3, 1), warmup=5, target_accept=0.8, mass="diagonal", max_tree_depth=5
        ... )
        >>> run.advance().advance().kept()[0].shape
        torch.Size([3, 2, 1])
    """
    kernels = []
    for z in starts:
        kernel = RecordingNUTS(
            potential_fn=lambda params: Potential.apply(params["z"], density),
            full_mass=mass == "dense",
            target_accept_prob=target_accept,
            max_tree_depth=max_tree_depth,
        )
        kernel.initial_params = {"z": z}
        kernel.setup(warmup)
        kernel.set_metric(curvature(density, z))
        kernels.append(kernel)
    return PyroRun(tuple(kernels), starts, (), (), 0, warmup)


def curvature(density: LogDensity, z: Tensor) -> Tensor:
    r"""Return the variance of each coordinate if the log density were normal about ``z``, ``(dim,)``.

    :math:`1 / (-\partial^2 \log p / \partial z_i^2)` by central differences of the gradient, one vector at a time, so
    that no graph but that of the sampler is traced. Where the curvature is not that of a maximum, or for more than
    256 coordinates, 1.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from probmix.arguments import Arguments
        >>> def program(x):
        ...     a = pyro.sample("a", dist.Normal(0.0, 2.0))
        ...     pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> density = LogDensity(program, Arguments.of(torch.zeros((), dtype=torch.float64)))
        >>> round(float(curvature(density, torch.zeros(1, dtype=torch.float64))), 4)
        4.0
    """
    if density.dim > _MOST_COORDINATES:
        return torch.ones_like(z)
    step = _STEP if z.dtype == torch.float64 else 100 * _STEP
    slopes = []
    for i, offset in enumerate(step * torch.eye(len(z), dtype=z.dtype, device=z.device)):
        (_, above), (_, below) = density.value_and_grad(z + offset), density.value_and_grad(z - offset)
        slopes.append((below[i] - above[i]) / (2 * step))
    minus_second = torch.stack(slopes)
    usable = minus_second.isfinite() & (minus_second > 1 / _LARGEST_VARIANCE)
    return torch.where(usable, 1 / minus_second, 1.0)


class RecordingNUTS(PyroNUTS):
    """Pyro's kernel, which also tells the energy, acceptance and cost of each iteration (ArviZ's sample_stats)."""

    _kinetic = 0.0
    gradients = 0

    def set_metric(self, var: Tensor) -> None:
        """Set the first diagonal of the inverse mass matrix, ``(dim,)``, and look for a step size that suits it."""
        dense = self._adapter.dense_mass
        self.mass_matrix_adapter.inverse_mass_matrix = {("z",): torch.diag(var) if dense else var}
        self._adapter.reset_step_size_adaptation(self.initial_params)

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
    """Minus the log density, its gradient computed with it; where it is not a number, Pyro sees a divergence."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, density: LogDensity) -> Tensor:
        """Return ``-log density`` at ``z``."""
        value, gradient = density.value_and_grad(z.detach())
        ctx.save_for_backward(gradient)
        return -value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the stored gradient."""
        (gradient,) = ctx.saved_tensors
        return -gradient * grads[0], None
