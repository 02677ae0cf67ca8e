"""A program and its data as a log density on flat unconstrained vectors, batched over any leading axes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import TraceEinsumEvaluator, TraceTreeEvaluator
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform
from torch.fx.experimental.proxy_tensor import make_fx

from probmix.arguments import Arguments
from probmix.batching import batched
from probmix.errors import ProgramError
from probmix.isolation import unvalidated
from probmix.pointwise import Pointwise
from probmix.typing import Named, NamedData, Program, Sites

__all__ = ["LogDensity", "sample_sites"]

_PROTOTYPES = 20


@dataclass(frozen=True)
class LatentSite:
    """A continuous latent site: where its unconstrained coordinates lie in the flat vector."""

    name: str
    transform: Transform
    shape: torch.Size
    unconstrained_shape: torch.Size
    slice: slice

    def constrain(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the site's value and the log Jacobian of the map, for one flat vector."""
        free = z[self.slice].reshape(self.unconstrained_shape)
        value = self.transform(free)
        return value, self.transform.log_abs_det_jacobian(free, value).sum()

    def unconstrain(self, value: Tensor) -> Tensor:
        """Return the flat coordinates of values with any leading batch."""
        batch = value.shape[: value.dim() - len(self.shape)]
        if value.shape[len(batch) :] != self.shape:
            raise ProgramError(
                f"site {self.name!r}: expected a value of shape {tuple(self.shape)} (after any leading batch), "
                f"got {tuple(value.shape)}. Pass sites of the same model and data."
            )
        return self.transform.inv(value).reshape(*batch, -1)


class LogDensity:
    r"""The unnormalised log posterior of a program, ``log p(data, sites(z)) + log |d sites / d z|``.

    Discrete latent sites with a finite support are found and summed out. Every method takes leading batch axes
    ``*b`` (draws, chains, restarts) and runs them as one batch; a program that cannot be batched (its control flow
    depends on a value) runs one vector at a time, and says so once.

    Args:
        program: a callable with Pyro statements.
        arguments: the data it is called with.
        params: values of the program's ``pyro.param`` sites, once they are fitted.

    Attributes:
        dim: number of unconstrained coordinates.
        latents: the continuous latent sites, in the order of the flat vector.
        observed: name -> value of the observed sites.
        discrete: names of the discrete latent sites.
        max_plate_nesting: number of batch axes that are plates.
        row_plates: name -> size of the plates around the observed sites.
        dims: site name -> axis names, from the program's plates and its own ``dims``.

    Raises:
        ProgramError: no observed site, no continuous latent, a discrete latent without finite support, a parameter
            or a mini-batch inside the program, two sites with one name.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("row", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> density = LogDensity(program, Arguments.of(torch.zeros(3)))
        >>> density.value(torch.zeros(5, 1)).shape
        torch.Size([5])
        >>> density.pointwise({"loc": torch.zeros(5)})["x"].shape
        torch.Size([5, 3])
    """

    def __init__(self, program: Program, arguments: Arguments, params: Sites | None = None) -> None:
        self.arguments, self._name = arguments, getattr(program, "__name__", type(program).__name__)
        dims: dict[str, tuple[str, ...]] = {
            **(program.dims if isinstance(program, Named) else {}),
            **(program.observed_dims if isinstance(program, NamedData) else {}),
        }
        program = poutine.substitute(program, params) if params else program
        trace = _prototype(program, arguments)
        self.params = params or {}
        _refuse_unsupported(trace, self.params)
        self.latents = _latent_sites(trace)
        self.dim = self.latents[-1].slice.stop
        self.observed: Sites = {n: s["value"] for n, s in sample_sites(trace).items() if _is_data(s)}
        self.deterministic = [n for n, s in _nodes(trace).items() if (s.get("infer") or {}).get("_deterministic")]
        stacks = [_nodes(trace)[name]["cond_indep_stack"] for name in self.observed]
        self.row_plates = {frame.name: frame.size for stack in stacks for frame in stack}
        self.dims = {**_plate_dims(trace), **dims}
        self.max_plate_nesting = max(
            [-f.dim for s in sample_sites(trace).values() for f in s["cond_indep_stack"]], default=0
        )
        discrete = [n for n, s in sample_sites(trace).items() if not s["is_observed"] and s["fn"].has_enumerate_support]
        self.discrete = tuple(discrete)
        enumerated = config_enumerate(program, default="parallel") if discrete else program
        self._program = (
            poutine.enum(enumerated, first_available_dim=-1 - self.max_plate_nesting) if discrete else program
        )
        self._said = False
        self._choose_evaluator(trace)
        self._flat: dict[tuple[bool, int | None], Callable[[Tensor], tuple[Tensor, Tensor]]] = {}

    # -- the flat vector --------------------------------------------------------------------------------------------

    def constrain(self, z: Tensor) -> Sites:
        """Return the sites at unconstrained ``z`` of shape ``(*b, dim)``, each of shape ``(*b, ...)``."""
        return batched(lambda row: {site.name: site.constrain(row)[0] for site in self.latents}, z)

    def unconstrain(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Return ``z`` of shape ``(*b, dim)`` for sites with leading batch ``*b``; names it does not know are ignored.

        Raises:
            ProgramError: a latent site is missing or has the wrong shape.
        """
        missing = [site.name for site in self.latents if site.name not in sites]
        if missing:
            raise ProgramError(
                f"expected a value for every latent site; {missing} are missing, got {sorted(sites)}. "
                "Pass sites of the same program, e.g. another fit's posterior.sites()."
            )
        return torch.cat([site.unconstrain(sites[site.name]) for site in self.latents], -1)

    # -- densities --------------------------------------------------------------------------------------------------

    def value(self, z: Tensor, *, jacobian: bool = True) -> Tensor:
        """Return the log density of unconstrained ``z``, ``(*b, dim) -> (*b,)``.

        With ``jacobian=False`` it is the density in the constrained space, whose mode is the MAP estimate.
        """
        return self._run(lambda row: self._value(row, jacobian), z)

    def log_joint(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Return ``log p(data, sites)`` in the constrained space, ``(*b,)``, discrete sites summed out."""
        return self._run(self._log_joint, {site.name: sites[site.name] for site in self.latents})

    def value_and_grad(self, z: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        """Return value ``(*b,)`` and gradient ``(*b, dim)`` at ``z`` ``(*b, dim)``, through a flat graph of the program.

        A graph is traced once for each size of the batch; a program that cannot be traced (control flow that depends
        on a value) runs eagerly.
        """
        batch = z.shape[:-1]
        rows = z.reshape(-1, self.dim) if batch else z
        key = jacobian, len(rows) if batch else None
        if key not in self._flat:
            self._flat[key] = self._flatten(rows, jacobian)
        grad, value = self._flat[key](rows)
        return value.reshape(batch), grad.reshape(z.shape)

    def pointwise(self, sites: Mapping[str, Tensor], *, max_elements: int = 2**22) -> Sites:
        """Return the log-likelihood of each observation, discrete sites summed out: name -> ``(*b, n, ...)``.

        Observed sites that share a discrete latent have one joint entry, named ``"x+y"``.

        Args:
            sites: latent sites with any leading batch (draws).
            max_elements: the batch is cut so that a chunk has about this many elements.

        Raises:
            ProgramError: a discrete site is shared by all observations, so that none has a likelihood of its own.
        """
        latents = {site.name: sites[site.name] for site in self.latents}
        rows = max(1, max_elements // max(1, sum(v.numel() for v in self.observed.values()) * 4))
        return self._run(lambda s: self._pointwise.evaluate(self._trace(s)), latents, chunk=rows)

    @property
    def units(self) -> list[str]:
        """Names of the entries of `pointwise`."""
        return [unit.name for unit in self._pointwise.units]

    def pointwise_dims(self, unit: str) -> tuple[str, ...]:
        """Return the axis names of one entry of `pointwise`, after the batch."""
        return self._pointwise.dims(unit)

    def deterministics(self, sites: Mapping[str, Tensor]) -> Sites:
        """Return the program's ``pyro.deterministic`` sites at the given latents, each ``(*b, ...)``."""
        if not self.deterministic:
            return {}

        def evaluate(latents: Sites) -> Sites:
            nodes = _nodes(self._trace(latents))
            return {name: nodes[name]["value"] for name in self.deterministic}

        return self._run(evaluate, {site.name: sites[site.name] for site in self.latents})

    def blame(self, z: Tensor) -> tuple[str, float]:
        """Return the first site whose log density is not finite at ``z`` ``(dim,)``, and that value."""
        with self._fast(), torch.no_grad():
            trace = self._trace(self.constrain(z))
            trace.compute_log_prob()
        for name, site in sample_sites(trace).items():
            worst = site["log_prob"][~site["log_prob"].isfinite()]
            if worst.numel():
                return name, float(worst[0])
        return "the sum of all sites", float(self.value(z))

    # -- one vector -------------------------------------------------------------------------------------------------

    def _trace(self, latents: Mapping[str, Tensor]) -> poutine.Trace:
        return poutine.trace(poutine.condition(self._program, dict(latents))).get_trace(
            *self.arguments.args, **(self.arguments.kwargs or {})
        )

    def _log_joint(self, latents: Mapping[str, Tensor]) -> Tensor:
        return torch.as_tensor(self._evaluator.log_prob(self._trace(latents)))

    def _value(self, z: Tensor, jacobian: bool = True) -> Tensor:
        pairs = {site.name: site.constrain(z) for site in self.latents}
        log_joint = self._log_joint({name: value for name, (value, _) in pairs.items()})
        return log_joint + sum(log_det for _, log_det in pairs.values()) if jacobian else log_joint

    def _run(self, function: Callable[[Any], Any], inputs: Any, chunk: int | None = None) -> Any:
        function = _traceable(function) if self._vectorise else function
        with self._fast():
            return batched(function, inputs, depths=self._depths, chunk=chunk, vectorise=self._vectorise)

    def _fast(self) -> AbstractContextManager[None]:
        return unvalidated(self.arguments.dtype, self.arguments.device)

    @property
    def _depths(self) -> dict[str, int]:
        return {site.name: len(site.shape) for site in self.latents}

    def _flatten(self, z: Tensor, jacobian: bool) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        def value(point: Tensor) -> Tensor:  # a function of one argument: make_fx counts them
            return self._value(point, jacobian)

        gradient = torch.func.grad_and_value(value)
        if z.dim() > 1:
            if not self._vectorise:
                return partial(self._row_by_row, jacobian=jacobian)
            gradient = torch.func.vmap(gradient)
        try:
            with self._fast():
                graph = make_fx(gradient)(z.detach())
        except RuntimeError as reason:
            self._say_once(reason)
            return partial(self._eager_gradient, jacobian=jacobian)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return graph

    def _row_by_row(self, z: Tensor, jacobian: bool) -> tuple[Tensor, Tensor]:
        pairs = [self.value_and_grad(row, jacobian=jacobian) for row in z]
        return torch.stack([grad for _, grad in pairs]), torch.stack([value for value, _ in pairs])

    def _eager_gradient(self, z: Tensor, jacobian: bool) -> tuple[Tensor, Tensor]:
        with self._fast(), torch.enable_grad():
            leaf = z.detach().requires_grad_()
            value = self._value(leaf, jacobian)
        return torch.autograd.grad(value, leaf)[0], value.detach()

    # -- set-up -----------------------------------------------------------------------------------------------------

    def _choose_evaluator(self, trace: poutine.Trace) -> None:
        """Take the tree evaluator, which can be batched; Pyro's contraction where plates form no tree (Markov)."""
        first = {site.name: _nodes(trace)[site.name]["value"] for site in self.latents}
        proto = self._trace(first)
        with self._fast():
            tree = TraceTreeEvaluator(proto, bool(self.discrete), self.max_plate_nesting)
            general = TraceEinsumEvaluator(proto, bool(self.discrete), self.max_plate_nesting)
            self._pointwise = Pointwise(proto, tree, tuple(self.observed), self.discrete)
            one, other = (torch.as_tensor(e.log_prob(self._trace(first))) for e in (tree, general))
        agree = bool(torch.isclose(one, other, rtol=1e-4, equal_nan=True))
        self._evaluator = tree if agree else general
        self._vectorise = agree and self._can_batch(first)

    def _can_batch(self, first: Sites) -> bool:
        z = self.unconstrain(first)
        try:
            with self._fast():
                torch.func.vmap(_traceable(self._value))(z.expand(2, -1))
        except (RuntimeError, ValueError) as reason:
            self._say_once(reason)
            return False
        return True

    def _say_once(self, reason: Exception) -> None:
        if self._said:
            return
        self._said = True
        warnings.warn(
            f"the program {self._name!r} cannot be traced as a batch, so every draw, chain and restart runs by itself "
            f"(slower, same answer). The reason given was: {str(reason).splitlines()[0]}. "
            "Control flow or shapes that depend on a sampled value are the usual cause.",
            stacklevel=4,
        )


def _traceable(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Add an autograd level: Pyro's enumeration reads ``value.data``, which a bare vmap refuses."""
    return lambda inputs: torch.func.vjp(function, inputs)[0]


def _prototype(program: Program, arguments: Arguments) -> poutine.Trace:
    """Run the program once, so that its sites and shapes are known.

    A draw from the prior may lie where a later distribution is not defined, so a few are tried.
    """
    for attempt in range(_PROTOTYPES):
        try:
            with poutine.block(), torch.no_grad():
                return poutine.trace(program).get_trace(*arguments.args, **(arguments.kwargs or {}))
        except (ValueError, torch.linalg.LinAlgError) as reason:
            if attempt == _PROTOTYPES - 1:
                raise ProgramError(
                    f"the program could not be run at any of {_PROTOTYPES} draws from its prior; the last said:\n"
                    f"{reason}\nCheck the shapes and supports named there, and that its prior keeps inside them."
                ) from reason
    raise AssertionError


def _nodes(trace: poutine.Trace) -> dict[str, Any]:
    return dict(trace.nodes)


def sample_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Return the proper sample sites of a trace: neither plates nor deterministic values.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> trace = poutine.trace(lambda: pyro.sample("a", dist.Normal(0.0, 1.0))).get_trace()
        >>> list(sample_sites(trace))
        ['a']
    """
    return {
        name: site
        for name, site in _nodes(trace).items()
        if site["type"] == "sample"
        and not isinstance(site["fn"], _Subsample)
        and not site["infer"].get("_deterministic")
    }


def _is_data(site: Any) -> bool:
    """Tell data from ``pyro.factor``, which Pyro also calls observed."""
    return site["is_observed"] and not isinstance(site["fn"], Unit)


def _refuse_unsupported(trace: poutine.Trace, params: Sites) -> None:
    samples = sample_sites(trace)
    if not any(site["is_observed"] for site in samples.values()):
        raise ProgramError(
            f"expected a program with an observed site, got only {sorted(samples)}. "
            "Write pyro.sample(name, distribution, obs=data) for what was measured."
        )
    for name, site in _nodes(trace).items():
        if site["type"] == "param" and name not in params:
            raise ProgramError(
                f"site {name!r} is a pyro.param, which has no prior. Give it one (pyro.sample), or use SVI(), "
                "which optimises parameters."
            )
        if isinstance(site.get("fn"), _Subsample) and len(site["value"]) < site["fn"].size:
            raise ProgramError(
                f"plate {name!r} draws mini-batches ({len(site['value'])} of {site['fn'].size} rows), so the "
                "program has no exact log density. Drop subsample_size and pass SVI(batch_size=...) instead."
            )
    for name, site in samples.items():
        if not site["is_observed"] and site["fn"].support.is_discrete and not site["fn"].has_enumerate_support:
            raise ProgramError(
                f"site {name!r} is discrete with infinite support ({type(site['fn']).__name__}), so it cannot be "
                "summed out. Truncate it (Categorical over 0..m) or marginalise it by hand."
            )


def _latent_sites(trace: poutine.Trace) -> tuple[LatentSite, ...]:
    sites, start = [], 0
    for name, site in sample_sites(trace).items():
        if site["is_observed"] or site["fn"].support.is_discrete:
            continue
        transform = biject_to(site["fn"].support)
        free = transform.inv(site["value"])
        stop = start + free.numel()
        sites.append(LatentSite(name, transform, site["value"].shape, free.shape, slice(start, stop)))
        start = stop
    if not sites:
        raise ProgramError(
            "the program has no continuous latent site, so there is nothing to infer. "
            "Give at least one unknown a prior: pyro.sample(name, distribution)."
        )
    return tuple(sites)


def _plate_dims(trace: poutine.Trace) -> dict[str, tuple[str, ...]]:
    """Axis names: a plate's name for each batch axis, ``site_dim_i`` for the others (as ArviZ does)."""
    dims = {}
    for name, site in _nodes(trace).items():
        if site["type"] != "sample" or isinstance(site["fn"], _Subsample):
            continue
        plates = {frame.dim: frame.name for frame in site["cond_indep_stack"]}
        rank = site["value"].dim()
        batch = rank - site["fn"].event_dim
        dims[name] = tuple(
            plates.get(i - batch, f"{name}_dim_{i}") if i < batch else f"{name}_dim_{i}" for i in range(rank)
        )
    return dims
