"""Draws from the posteriors of many data sets of one program: as one batch, or one fit after the other."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from probmix.arguments import Arguments
from probmix.errors import FitError, MethodError, ProgramError
from probmix.inference.chees import ChEES
from probmix.inference.infer import infer
from probmix.inference.many_chains import run_chains
from probmix.inference.method import AbstractMethod, Problem
from probmix.inference.pathfinder import pathfinder
from probmix.inference.starts import starting_points
from probmix.isolation import isolated
from probmix.log_density import LogDensity
from probmix.posterior import AbstractPosterior, DrawsPosterior, PointPosterior
from probmix.status import FitWarning
from probmix.typing import ClosedFormMixture, Program, Sites

__all__ = ["Attempt", "Batch", "DataSets", "OneByOne", "Sampler", "sampler"]

_PATHS = 16  # of Pathfinder for each data set, at least
_GRADIENTS = 4  # of a typical iteration, for the choice whether compiling pays


@dataclass(frozen=True)
class DataSets:
    """Data sets of one shape for one program.

    Args:
        program: the program.
        arguments: checked data, each tensor with a leading axis of data sets.
        density: the program's log density for the first of them.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> sets = DataSets.of(GaussianMixture(2, "spherical"), Arguments.of(torch.randn(3, 50, 1)))
        >>> len(sets), sets.one(2).args[0].shape, sets.log_joint({
        ...     "weights": torch.full((3, 2), 0.5), "loc": torch.randn(3, 2, 1), "var": torch.ones(3, 2)}).shape
        (3, torch.Size([50, 1]), torch.Size([3]))
    """

    program: Program
    arguments: Arguments
    density: LogDensity

    @classmethod
    def of(cls, program: Program, arguments: Arguments) -> DataSets:
        """Check the data sets, one by one, and trace the program with the first.

        Raises:
            DataError: from the program.
            ProgramError: the program cannot be run as written.
        """
        checked = [
            arguments.with_tensors(tensors).checked_by(program) for tensors in zip(*arguments.tensors, strict=True)
        ]
        tensors = [torch.stack(same) for same in zip(*(one.tensors for one in checked), strict=True)]
        return cls(program, checked[0].with_tensors(tensors), LogDensity(program, checked[0]))

    def __len__(self) -> int:
        return len(self.arguments.tensors[0])

    def one(self, index: int) -> Arguments:
        """Return one data set."""
        return self.arguments.with_tensors([tensor[index] for tensor in self.arguments.tensors])

    def some(self, indices: Sequence[int]) -> Arguments:
        """Return some of the data sets, with their leading axis."""
        return self.arguments.with_tensors([tensor[list(indices)] for tensor in self.arguments.tensors])

    def log_joint(self, sites: Sites) -> Tensor:
        """Return ``log p(data, sites)``, ``(data sets,)``, of sites with a leading axis of data sets."""
        z = self.density.unconstrain(sites)
        if self.together is not None:
            return self.together.value(z[:, None], jacobian=False)[:, 0]
        rows = [self.density.with_data(self.one(i)).value(row[None], jacobian=False)[0] for i, row in enumerate(z)]
        return torch.stack(rows)

    @cached_property
    def together(self) -> LogDensity | None:
        """The log densities of all data sets as one batch; None where the program cannot be batched."""
        try:
            density = self.density.over(self.arguments)
            density.value_and_grad(torch.zeros(len(self), 1, density.dim, dtype=self.arguments.dtype).to(self.device))
        except (ProgramError, RuntimeError):  # the second comes from a program that turns its data into numbers
            return None
        return density

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return self.arguments.device

    def isolated(self, seed: int) -> Any:
        """Return the context in which everything runs: seeded, on the device and in the dtype of the data."""
        arguments = self.arguments
        return isolated(seed, dtype=arguments.dtype, device=arguments.device, threads=arguments.threads())


@dataclass(frozen=True)
class Attempt:
    """Draws for some data sets.

    Args:
        sites: latent sites, each ``(data sets, chains, draws, ...)``.
        log_joint: ``log p(data, sites)``, ``(data sets, chains, draws)``.
        independent: draws come from a fitted distribution, not from chains.
        divergent: data sets with divergent transitions, ``(data sets,)``.
        unfinished: fits that ended before they were done, ``(data sets,)``.
        failed: what a failed fit said; then there are no draws.

    Example:
        >>> Attempt({}, torch.zeros(0), failed="no finite start").failed
        'no finite start'
    """

    sites: Sites
    log_joint: Tensor
    independent: bool = False
    divergent: Tensor | None = None
    unfinished: Tensor | None = None
    failed: str = ""


class Sampler(Protocol):
    """A way to draw for data sets."""

    def groups(self) -> Iterator[Sequence[int]]:
        """Yield indices of the data sets that are drawn for together."""

    def attempt(self, indices: Sequence[int], longer: int, seed: int) -> Attempt:
        """Return draws for these data sets, from chains ``longer`` times as long as the method says."""


def sampler(sets: DataSets, method: AbstractMethod, *, progress: bool) -> Sampler:
    """Return the batch for `ChEES` and a program that can be batched over data sets; else one fit after the other.

    Example:
        >>> from probmix.inference import NUTS
        >>> from probmix.models import GaussianMixture
        >>> sets = DataSets.of(GaussianMixture(2, "spherical"), Arguments.of(torch.randn(3, 50, 1)))
        >>> type(sampler(sets, ChEES(), progress=False)).__name__, type(sampler(sets, NUTS(), progress=False)).__name__
        ('Batch', 'OneByOne')
    """
    if isinstance(method, ChEES) and sets.together is not None:
        return Batch(sets, method, progress)
    return OneByOne(sets, method, progress)


@dataclass(frozen=True)
class Batch:
    """ChEES on all data sets at once, each with step size, trajectory length and metric of its own.

    Starts are those of the method, made anew for each data set; never the true values, from which a sampler that stands
    still would look calibrated.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> sets = DataSets.of(GaussianMixture(2, "spherical"), Arguments.of(torch.randn(3, 50, 1)))
        >>> batch = Batch(sets, ChEES(chains=4, superchains=2, warmup=5, draws=6), progress=False)
        >>> batch.attempt(range(3), 1, seed=0).log_joint.shape
        torch.Size([3, 4, 6])
    """

    sets: DataSets
    method: ChEES
    progress: bool

    def groups(self) -> Iterator[Sequence[int]]:
        """Yield all data sets."""
        yield range(len(self.sets))

    def attempt(self, indices: Sequence[int], longer: int, seed: int) -> Attempt:
        """Return draws for these data sets; longer runs also have a warm-up twice as long."""
        method, sets = self.method, self.sets
        warmup, draws = method.warmup * (2 if longer > 1 else 1), method.draws * longer
        density = sets.density.over(sets.some(indices))
        density.plan(
            batch=len(indices) * method.chains, gradients=_GRADIENTS * (warmup + draws), compile=method.compile
        )
        with sets.isolated(seed), tqdm(desc="ChEES", unit="gradient", disable=None if self.progress else True) as bar:
            counted = _Counted(density, bar)
            starts = self._starts(counted, indices, seed).to(sets.arguments.dtype)
            z = starts.repeat_interleave(method.chains // method.superchains, 1)
            run = run_chains(counted, z, dataclasses.replace(method.adaptation, warmup=warmup), draws)
            log_joint = density.value(run.positions.flatten(1, 2), jacobian=False).reshape(run.log_density.shape)
            sites = sets.density.constrain(run.positions)
        return Attempt(sites, log_joint, divergent=run.diverging.flatten(1).any(1))

    def _starts(self, density: _Counted, indices: Sequence[int], seed: int) -> Tensor:
        """Return ``(data sets, superchains, dim)``."""
        init, num = self.method.init, self.method.superchains
        if init == "auto":
            init = "em" if isinstance(self.sets.program, ClosedFormMixture) else "pathfinder"
        if init != "pathfinder":
            return self._each(init, num, indices, seed)
        share = -(-_PATHS // num)
        first = self._each("prior", num * share, indices, seed)

        def rows(z: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = density.value_and_grad(z.reshape(first.shape))
            return value.flatten(), gradient.flatten(0, 1)

        paths = pathfinder(rows, first.flatten(0, 1))
        best = paths.elbo.reshape(-1, share).argmax(-1)
        best = best + share * torch.arange(len(best), device=best.device)
        draws = paths.normals.sample(1)[0][:, 0]
        usable = paths.elbo.isfinite() & rows(draws.nan_to_num())[0].isfinite()
        return torch.where(usable[:, None], draws, paths.mode)[best].reshape(len(indices), num, -1)

    def _each(self, init: Any, num: int, indices: Sequence[int], seed: int) -> Tensor:
        starts = []
        for i in indices:
            problem = Problem(self.sets.program, self.sets.one(i), seed)
            density = self.sets.density.with_data(problem.arguments)
            try:
                starts.append(starting_points(problem, density, init, num))
            except ProgramError as reason:
                raise ProgramError(f"data set {i}: {reason}") from reason
        return torch.stack(starts)


@dataclass(frozen=True)
class _Counted:
    """A log density that moves a progress bar."""

    density: LogDensity
    bar: Any

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.bar.update()
        return self.density.value_and_grad(z)


@dataclass(frozen=True)
class OneByOne:
    """Any method, by one `infer` for each data set.

    Example:
        >>> from probmix.inference import NUTS
        >>> from probmix.models import GaussianMixture
        >>> sets = DataSets.of(GaussianMixture(2, "spherical"), Arguments.of(torch.randn(3, 50, 1)))
        >>> one_by_one = OneByOne(sets, NUTS(chains=1, warmup=5, draws=6), progress=False)
        >>> one_by_one.attempt([2], 1, seed=0).log_joint.shape
        torch.Size([1, 1, 6])
    """

    sets: DataSets
    method: AbstractMethod
    progress: bool
    independent_draws: int = 1000

    def groups(self) -> Iterator[Sequence[int]]:
        """Yield one data set after the other, under a progress bar."""
        name = type(self.method).__name__
        bar = tqdm(range(len(self.sets)), desc=f"{name}, data set", disable=None if self.progress else True)
        yield from ([i] for i in bar)

    def attempt(self, indices: Sequence[int], longer: int, seed: int) -> Attempt:
        """Return draws for the one data set.

        Raises:
            MethodError: the method gives a point.
        """
        arguments = self.sets.one(indices[0])
        try:
            posterior = self._fit(arguments, longer, seed)
        except FitError as reason:
            return Attempt({}, torch.zeros(0), failed=str(reason))
        if posterior.status.state == "interrupted":
            raise KeyboardInterrupt
        if posterior.status.state == "failed":
            return Attempt({}, torch.zeros(0), failed=posterior.status.message)
        return self._read(posterior, seed)

    def _fit(self, arguments: Arguments, longer: int, seed: int) -> AbstractPosterior:
        method: Any = self.method
        if longer > 1:
            method = dataclasses.replace(method, draws=method.draws * longer, warmup=method.warmup * 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # what it says is counted
            return infer(self.sets.program, arguments, method, seed=seed, throw=False)

    def _read(self, posterior: AbstractPosterior, seed: int) -> Attempt:
        if isinstance(posterior, PointPosterior):
            raise MethodError(
                f"calibrate ranks true values among posterior draws, but {type(self.method).__name__} gives a single "
                "point. Calibrate a method that gives draws or a distribution: ChEES(), NUTS(), SVI() or Laplace()."
            )
        shared = self.sets.density.with_data(posterior.arguments)
        density = posterior.log_density if posterior.params else shared
        if isinstance(posterior, DrawsPosterior):
            sites, diverging = posterior.draws, posterior.sample_stats.get("diverging")
        else:
            sites, diverging = posterior.sample(self.independent_draws, seed=seed), None
            sites = {name: value[None] for name, value in sites.items()}
        sites = {site.name: sites[site.name][None] for site in density.latents}
        return Attempt(
            sites,
            density.log_joint(sites),
            independent=not isinstance(posterior, DrawsPosterior),
            divergent=None if diverging is None else diverging.any()[None],
            unfinished=torch.tensor([not posterior.status.ok]),
        )
