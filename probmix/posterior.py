"""What a method returns: a point, a guide or draws, three honest kinds of answer with one interface."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from pyro import poutine
from torch import Tensor

from probmix.arguments import Arguments
from probmix.arviz import Group, convert
from probmix.errors import DataError, MethodError, ProgramError
from probmix.guides import Guide, ProgramGuide
from probmix.isolation import isolated
from probmix.large_arrays import joined
from probmix.log_density import LogDensity
from probmix.simulation import simulate, trace_sites
from probmix.status import Status
from probmix.storage import Missing, read, write
from probmix.typing import Dims, OwnGuide, Program, Sites, is_implicit

__all__ = ["AbstractPosterior", "DrawsPosterior", "GuidePosterior", "PointPosterior", "load_posterior"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AbstractPosterior(ABC):
    """What `probmix.inference.infer` returns.

    Args:
        program: the program that was fitted.
        arguments: the data it was called with.
        method: the settings of the method.
        seed: the seed of the fit; the default seed of everything derived from it.
        status: how the fit ended, with advice.
        params: fitted ``pyro.param`` sites of the program.
        history: name -> objective by step, ``(steps,)`` or ``(restarts, steps)``, NaN after a restart has stopped.
        seconds: wall time of the fit.
    """

    program: Program
    arguments: Arguments
    method: Any
    seed: int
    status: Status
    params: Sites = field(default_factory=dict)
    history: Sites = field(default_factory=dict)
    seconds: float = float("nan")

    kind: ClassVar[str]

    def __repr__(self) -> str:
        fitted = getattr(self.program, "__name__", type(self.program).__name__)
        return f"<{type(self).__name__} of {fitted} by {type(self.method).__name__}(): {self.status}>"

    @abstractmethod
    def sites(self) -> Sites:
        """Return one best value of every latent site."""

    @abstractmethod
    def sample(self, num: int, *, seed: int) -> Sites:
        """Return ``num`` independent draws of every latent site, each ``(num, ...)``."""

    @abstractmethod
    def _own_groups(self) -> dict[str, Group]:
        """Return the ArviZ groups that only this kind of answer has."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments that the program was called with."""
        return self.arguments.args

    @cached_property
    def log_density(self) -> LogDensity:
        """The program and its data as a log density."""
        with self._isolated(self.seed):
            return LogDensity(self.program, self.arguments, self.params)

    @property
    def coords(self) -> dict[str, list[str]]:
        """Axis labels: the column names of the data frame, if there was one."""
        names = self.arguments.feature_names
        axes = {axis for dims in self._dims.values() for axis in dims if axis.startswith("feature")}
        return {axis: list(names) for axis in axes} if names else {}

    def to_arviz(
        self,
        *,
        log_likelihood: bool = True,
        predictive_draws: int = 200,
        prior_draws: int = 200,
        dims: Dims | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        seed: int | None = None,
    ) -> Any:
        """Return ArviZ's container: ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (1.x).

        Draws have ``(chain, draw)``; a guide's independent draws are one chain, for which r-hat is not defined; a
        point goes to the group ``point_estimate`` and has neither a posterior nor a log-likelihood.

        Args:
            log_likelihood: add the pointwise log-likelihood, discrete sites summed out (`LogDensity.pointwise`); beyond
                512 MiB it lies in a temporary file and is read where it is used.
            predictive_draws: replicated data sets in ``posterior_predictive``, spread evenly over the draws; 0: none.
            prior_draws: draws in ``prior`` and ``prior_predictive``; 0: none.
            dims: axis names of sites, over those that the program and its plates give.
            coords: axis labels, over the column names of the data frame.
            seed: of the simulated groups; the fit's own seed by default.

        Raises:
            ProgramError: the program has no per-observation likelihood (pass ``log_likelihood=False``).
        """
        with self._isolated(self.seed if seed is None else seed), torch.no_grad():
            groups = self._own_groups()
            if "posterior" in groups:
                groups |= self._checks(dict(groups["posterior"].variables), log_likelihood, predictive_draws)
            groups |= self._prior(prior_draws) if prior_draws and self._has_program else {}
        groups["observed_data"] = Group(self._observed, leading=())
        return convert(
            {name: dataclasses.replace(group, variables=_arrays(group.variables)) for name, group in groups.items()},
            dims={**self._dims, **(dims or {})},
            coords={**self.coords, **(coords or {})},
        )

    def save(self, path: str | Path) -> None:
        """Write everything, data included, to one safetensors file; `load_posterior` gives it back.

        Raises:
            DataError: the path cannot be written.
        """
        write(path, self)

    @property
    def _has_program(self) -> bool:
        """Whether the program can be run; of a few models there is only the closed form."""
        return getattr(self.program, "has_program", True)

    @property
    def _dims(self) -> Dims:
        program: Any = self.program
        return self.log_density.dims if self._has_program else {**program.dims, **program.observed_dims}

    @property
    def _observed(self) -> Sites:
        program: Any = self.program
        return self.log_density.observed if self._has_program else {"x": program.rows(*self.args)}

    @property
    def _fitted(self) -> Program:
        return poutine.substitute(self.program, self.params) if self.params else self.program

    def _isolated(self, seed: int) -> AbstractContextManager[None]:
        arguments = self.arguments
        threads = arguments.threads(self.program)
        return isolated(seed, dtype=arguments.dtype, device=arguments.device, threads=threads)

    def _checks(self, draws: Sites, log_likelihood: bool, predictive_draws: int) -> dict[str, Group]:
        density, groups = self.log_density, {}
        if log_likelihood:
            axes = {unit: density.pointwise_dims(unit) for unit in density.units}
            chains, per_chain = draws[density.latents[0].name].shape[:2]
            rows = joined(density.pointwise_blocks(draws), chains * per_chain)
            values = {name: value.reshape(chains, per_chain, *value.shape[1:]) for name, value in rows.items()}
            groups["log_likelihood"] = Group(values, dims=axes)
        if predictive_draws:
            latents = {site.name: _thin(draws[site.name], predictive_draws) for site in density.latents}
            depths = {site.name: len(site.shape) for site in density.latents}
            groups["posterior_predictive"] = Group(simulate(self._fitted, self.arguments, latents, depths=depths))
        return groups

    def _prior(self, num: int) -> dict[str, Group]:
        draws = trace_sites(lambda: self.arguments.call(self._fitted), num)
        data = {name: value[None] for name, value in draws.items() if name in self.log_density.observed}
        sites = {name: value[None] for name, value in draws.items() if name not in data}
        return {"prior": Group(sites), "prior_predictive": Group(data)}

    def _with_deterministics(self, draws: Sites) -> Sites:
        return {**draws, **self.log_density.deterministics(draws)} if self._has_program else draws


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PointPosterior(AbstractPosterior):
    """One point: the answer of EM and MAP.

    Args:
        point: latent sites at the best point.
        objective: its log joint density (MAP) or log-likelihood (ML), nats.
        objectives: the same for every restart, ``(restarts,)``; NaN where one failed.
    """

    point: Sites
    objective: float
    objectives: Tensor

    kind: ClassVar[str] = "point"

    def sites(self) -> Sites:
        """Return the best point."""
        return dict(self.point)

    def sample(self, num: int, *, seed: int) -> Sites:
        """Refuse: a point has no spread.

        Raises:
            MethodError: always; it names the methods whose answers can be sampled.
        """
        new_data = "program.sample(n, sites, seed=...)" if self._has_program else "fit.program.sample(n, seed=...)"
        raise MethodError(
            f"expected a posterior with a spread, got the single point of {type(self.method).__name__}(). Fit with "
            f"SVI() or NUTS() for draws of the sites, or draw new data at the point with {new_data}."
        )

    def _own_groups(self) -> dict[str, Group]:
        attrs = {"kind": self.kind, "status": str(self.status), "objective": self.objective}
        return {"point_estimate": Group(self._with_deterministics(self.sites()), leading=(), attrs=attrs)}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GuidePosterior(AbstractPosterior):
    """A fitted distribution: the answer of SVI, VB and Laplace.

    Args:
        guide: the fitted guide.
        elbo: evidence lower bound of the kept restart, nats, with its Monte-Carlo standard error (VB's is exact: 0).
        elbos: the same for every restart, ``(restarts,)``.
        pareto_k: of the importance ratios ``p / q`` (`probmix.importance`); NaN where the guide has no density.
        num_draws: draws that go into ArviZ.
        log_evidence: an estimate of ``log p(data)``, nats, where the method gives one (Laplace, VB).
    """

    guide: Guide
    elbo: tuple[float, float]
    elbos: Tensor
    pareto_k: float = float("nan")
    num_draws: int = 1000
    log_evidence: float | None = None

    kind: ClassVar[str] = "guide"

    def sites(self) -> Sites:
        """Return the sites at the guide's centre."""
        with self._isolated(self.seed), torch.no_grad():
            return self.guide.centre(self._traced, self.arguments)

    def sample(self, num: int, *, seed: int) -> Sites:
        """Return ``num`` independent draws from the guide, each ``(num, ...)``."""
        with self._isolated(seed), torch.no_grad():
            return self.guide.sample(num, self._traced, self.arguments)

    @property
    def _traced(self) -> Any:
        """The trace of the program, for guides that read it."""
        return self.log_density if self.guide.traces else None

    def _own_groups(self) -> dict[str, Group]:
        draws = {name: value[None] for name, value in self.sample(self.num_draws, seed=self.seed).items()}
        attrs = {"kind": self.kind, "status": str(self.status), "elbo": self.elbo[0]}
        attrs["pareto_k"] = self.pareto_k
        attrs |= {} if self.log_evidence is None else {"log_evidence": self.log_evidence}
        return {"posterior": Group(self._with_deterministics(draws), attrs=attrs)}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DrawsPosterior(AbstractPosterior):
    """Draws by chains: the answer of NUTS, ChEES and Gibbs.

    Args:
        draws: latent sites, each ``(chain, draw, ...)``.
        sample_stats: ``lp``, ``energy``, ``diverging``, ``acceptance_rate``, ..., each ``(chain, draw)``.
    """

    draws: Sites
    sample_stats: Sites

    kind: ClassVar[str] = "draws"

    def sites(self) -> Sites:
        """Return the draw of highest log density: the mean of draws with switched labels would be no answer."""
        best = self.sample_stats["lp"].reshape(-1).argmax()
        return {name: value.flatten(0, 1)[best] for name, value in self.draws.items()}

    def sample(self, num: int, *, seed: int) -> Sites:
        """Return ``num`` draws picked from all chains with replacement, each ``(num, ...)``."""
        with self._isolated(seed):
            rows = torch.randint(self.sample_stats["lp"].numel(), (num,))
        return {name: value.flatten(0, 1)[rows] for name, value in self.draws.items()}

    def _own_groups(self) -> dict[str, Group]:
        attrs = {"kind": self.kind, "status": str(self.status)}
        return {
            "posterior": Group(self._with_deterministics(self.draws), attrs=attrs),
            "sample_stats": Group(self.sample_stats),
        }


def load_posterior(
    path: str | Path, *, program: Program | None = None, data: Any = None, guide: Program | None = None
) -> AbstractPosterior:
    """Return the posterior that ``posterior.save(path)`` wrote.

    Args:
        path: the file.
        program: needed where the fit used a function of your own, which no data file can hold.
        data: likewise for arguments that are not arrays or numbers.
        guide: likewise for a guide of your own.

    Raises:
        DataError: no such file, or not one of ours.
        ProgramError: the file needs your program, guide or data.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from probmix.datasets import load_faithful
        >>> from probmix.inference import EM, infer
        >>> from probmix.models import GaussianMixture
        >>> em = infer(GaussianMixture(2), load_faithful().x, EM(), seed=0)
        >>> with TemporaryDirectory() as folder:
        ...     em.save(f"{folder}/em.safetensors")
        ...     again = load_posterior(f"{folder}/em.safetensors")
        >>> again.objective == em.objective, again.program.num_components
        (True, 2)
    """
    posterior = read(path)
    if not isinstance(posterior, AbstractPosterior):
        raise DataError(f"expected a saved posterior, got a {type(posterior).__name__} in {path}. Check the path.")
    if program is not None:
        if isinstance(posterior, GuidePosterior) and isinstance(program, OwnGuide):
            program = program.fitted(posterior.guide)
        if isinstance(posterior, PointPosterior) and is_implicit(program):
            program = program.with_parameters(posterior.point, *posterior.args)
        posterior = dataclasses.replace(posterior, program=program)
    if data is not None:
        posterior = dataclasses.replace(posterior, arguments=Arguments.of(data).checked_by(posterior.program))
    if isinstance(posterior.program, Missing):
        name = posterior.program.name.rpartition(".")[2]
        module = name[:1].isupper()  # then one with the same settings will do
        used, passed = (f"a {name}", f"{name}(...)") if module else (f"your own program {name!r}", name)
        raise ProgramError(
            f"the fit used {used}, which no data file can hold. "
            f"Pass it: load_posterior({str(path)!r}, program={passed})."
        )
    if missing := _missing(posterior.program):
        raise ProgramError(
            f"the fit used a {type(posterior.program).__name__} with your own {missing}, which no data file can hold. "
            f"Pass it: load_posterior({str(path)!r}, program={type(posterior.program).__name__}(...))."
        )
    if isinstance(posterior, GuidePosterior) and isinstance(posterior.guide, ProgramGuide):
        posterior = dataclasses.replace(posterior, guide=_own_guide(posterior.guide, guide, path))
    return posterior


def _missing(program: Program) -> str:
    """Return which settings of a program were not saved, and what they were."""
    fields = dataclasses.fields(program) if dataclasses.is_dataclass(program) else ()
    values = {field.name: getattr(program, field.name) for field in fields}
    return ", ".join(f"{name}={value.name}" for name, value in values.items() if isinstance(value, Missing))


def _own_guide(fitted: ProgramGuide, guide: Program | None, path: str | Path) -> ProgramGuide:
    if guide is None:
        raise ProgramError(
            "the fit used a guide of your own, which no data file can hold. "
            f"Pass it: load_posterior({str(path)!r}, guide=...)."
        )
    return dataclasses.replace(fitted, guide=guide)


def _thin(value: Tensor, num: int) -> Tensor:
    """Keep about ``num`` draws in all, evenly spaced within each chain."""
    chains, draws = value.shape[:2]
    keep = min(draws, max(1, -(-num // chains)))
    return value[:, torch.linspace(0, draws - 1, keep, device=value.device).round().long()]


def _arrays(variables: Mapping[str, Tensor]) -> dict[str, Any]:
    return {n: v.detach().cpu().numpy() if isinstance(v, Tensor) else v for n, v in variables.items()}
