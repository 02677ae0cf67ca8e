"""A program and its data as a log density on flat unconstrained vectors, batched over any leading axes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import TraceTreeEvaluator
from torch import Tensor
from torch.func import vjp, vmap

from probmix.arguments import Arguments
from probmix.batching import batched
from probmix.errors import ProgramError
from probmix.gradient import Batching, Compile, Gradient, Plan
from probmix.isolation import unvalidated
from probmix.leading_axes import LeadingAxes
from probmix.lenient import Lenient
from probmix.log_einsum import BatchedEinsumEvaluator
from probmix.pointwise import Pointwise
from probmix.program_sites import (
    is_data,
    latent_sites,
    nodes_of,
    plate_dims,
    prototype,
    refuse_unsupported,
    sample_sites,
)
from probmix.typing import FusedLogJoint, Named, NamedData, Program, Sites

__all__ = ["LogDensity"]

_LARGE_BATCH = 2**20
_LARGEST_TABLE = 2**24  # numbers in the largest tensor of a batch that needs no gradient
_CANNOT = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError)


class LogDensity:
    r"""The unnormalised log posterior of a program, ``log p(data, sites(z)) + log |d sites / d z|``.

    Discrete latent sites with a finite support are found and summed out; a ready-made mixture brings its own sum and
    gradient, made in one pass over the rows. Every method takes leading batch axes ``*b`` (draws, chains, restarts) and
    runs them as one batch: by ``torch.func.vmap``, or where that is refused by the program's own broadcasting (GPyTorch
    models). A program that takes neither (its control flow depends on a value) runs one vector at a time, and says so
    once.

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
        batching: ``"vmap"``, ``"broadcast"`` or ``"loop"``: how a batch goes through the program.
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
        >>> density = LogDensity.trace(program, torch.zeros(3))
        >>> density.value(torch.zeros(5, 1)).shape
        torch.Size([5])
        >>> density.pointwise({"loc": torch.zeros(5)})["x"].shape
        torch.Size([5, 3])
    """

    def __init__(self, program: Program, arguments: Arguments, params: Sites | None = None) -> None:
        self.program, self.arguments = program, arguments
        self._name = getattr(program, "__name__", type(program).__name__)
        dims: dict[str, tuple[str, ...]] = {
            **(program.dims if isinstance(program, Named) else {}),
            **(program.observed_dims if isinstance(program, NamedData) else {}),
        }
        program = poutine.substitute(program, params) if params else program
        trace = prototype(program, arguments)
        self.params = params or {}
        refuse_unsupported(trace, self.params)
        self.latents = latent_sites(trace)
        self.dim = self.latents[-1].slice.stop
        self.observed: Sites = {n: s["value"] for n, s in sample_sites(trace).items() if is_data(s)}
        self.deterministic = [n for n, s in nodes_of(trace).items() if (s.get("infer") or {}).get("_deterministic")]
        stacks = [nodes_of(trace)[name]["cond_indep_stack"] for name in self.observed]
        self.row_plates = {frame.name: frame.size for stack in stacks for frame in stack}
        self.dims = {**plate_dims(trace), **dims}
        self.max_plate_nesting = max(
            [-f.dim for s in sample_sites(trace).values() for f in s["cond_indep_stack"]], default=0
        )
        discrete = [n for n, s in sample_sites(trace).items() if not s["is_observed"] and s["fn"].has_enumerate_support]
        self.discrete = tuple(discrete)
        enumerated = config_enumerate(program, default="parallel") if discrete else program
        self._program = (
            poutine.enum(enumerated, first_available_dim=-1 - self.max_plate_nesting) if discrete else program
        )
        self._fused = program if isinstance(program, FusedLogJoint) and not params else None
        self._said = False
        self._plan: Plan | None = None
        self.datasets: int | None = None
        first = {site.name: nodes_of(trace)[site.name]["value"] for site in self.latents}
        self._choose_evaluator(first)
        self.batching = self._choose_batching(first)
        self._gradients = {jacobian: self._gradient(jacobian) for jacobian in (True, False)}

    @classmethod
    def trace(cls, program: Program, data: Any) -> LogDensity:
        """Return the log density of a program and its data, given as `probmix.inference.infer` takes them."""
        return cls(program, Arguments.of(data).checked_by(program))

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
        """Return the log density of unconstrained ``z``, ``(*b, dim) -> (*b,)``; NaN where a factorisation fails.

        With ``jacobian=False`` it is the density in the constrained space, whose mode is the MAP estimate.
        """
        if self.datasets is not None:
            return self._over_datasets(lambda row, *data: self._value(row, *data, jacobian=jacobian), z)
        if self.batching != "vmap":  # eager either way, and a row that fails is dealt with there
            return self.value_and_grad(z, jacobian=jacobian)[0]
        return self._run(lambda row: self._value(row, jacobian=jacobian), z)

    def log_joint(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Return ``log p(data, sites)`` in the constrained space, ``(*b,)``, discrete sites summed out."""
        return self._run(self._log_joint, {site.name: sites[site.name] for site in self.latents})

    def value_and_grad(self, z: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        """Return value ``(*b,)`` and gradient ``(*b, dim)`` at ``z`` ``(*b, dim)``, through a flat graph.

        A graph is traced once for each size of the batch; the data are its inputs, so data of the same shape share it
        (`with_data`). A program that cannot be traced (control flow that depends on a value) runs eagerly. Where a
        factorisation fails, value and gradient are NaN, in that row of the batch only.
        """
        batch = z.shape[:-1]
        rows = z if self.datasets is not None else z.reshape(-1, self.dim)
        value, grad = self._gradients[jacobian](rows, self._plan)
        return value.reshape(batch), grad.reshape(z.shape)

    def plan(self, *, batch: int, gradients: int, compile: Compile = "auto") -> None:
        """Announce the work to come, by which ``compile="auto"`` decides whether compilation will pay for itself.

        Args:
            batch: vectors in each call of `value_and_grad`; calls of another size are not compiled.
            gradients: number of such calls.
            compile: True, False or ``"auto"``: where a compiler is present and the calls, uncompiled, would take
                longer than about forty seconds. The rule counts operations, so the same fit takes the same path.
        """
        self._plan = Plan(batch, gradients, compile)

    def is_large(self, rows: int) -> bool:
        """Return whether so many vectors take much longer than one: they go through tables of a million numbers."""
        return self._numbers * rows >= _LARGE_BATCH

    def with_data(self, data: Any) -> LogDensity:
        """Return the log density of the same program for other data of the same shapes; graphs are shared.

        Raises:
            DataError: an argument has another shape or dtype than the one that the program was traced with.
        """
        arguments = Arguments.of(data).checked_by(self.program)
        arguments.require_like(self.arguments)
        other = copy.copy(self)
        other.arguments = arguments
        other._gradients = {key: gradient.with_data(arguments.tensors) for key, gradient in self._gradients.items()}
        other.observed = {
            name: site["value"]
            for name, site in sample_sites(prototype(self.program, arguments)).items()
            if is_data(site)
        }
        return other

    def over(self, data: Any) -> LogDensity:
        """Return the log densities of a batch of data sets, each tensor of ``data`` with a leading axis of them.

        `value` and `value_and_grad` then take ``z`` of shape ``(data sets, *b, dim)``, with one axis ``*b``.

        Raises:
            ProgramError: the program cannot be batched over data.
            DataError: an argument has another shape or dtype than the one that the program was traced with.
        """
        arguments = Arguments.of(data)
        arguments.require_like(self.arguments, leading=1)
        if self.batching != "vmap":
            raise ProgramError(
                f"the program {self._name!r} cannot be traced as a batch, so it cannot be run over a batch of data "
                "sets. Fit them one by one."
            )
        other = copy.copy(self)
        other.arguments, other.datasets = arguments, len(arguments.tensors[0])
        other._gradients = {jacobian: other._gradient(jacobian) for jacobian in (True, False)}
        return other

    def pointwise(self, sites: Mapping[str, Tensor], *, max_elements: int = 2**22) -> Sites:
        """Return the log-likelihood of each observation, discrete sites summed out: name -> ``(*b, n, ...)``.

        Observed sites that share a discrete latent have one joint entry, named ``"x+y"``.

        Args:
            sites: latent sites with any leading batch (draws).
            max_elements: the batch is cut so that a chunk has about this many elements.

        Raises:
            ProgramError: a discrete site is shared by all observations, so that none has a likelihood of its own.
        """
        first = self.latents[0]
        batch = sites[first.name].shape[: sites[first.name].dim() - len(first.shape)]
        blocks = list(self.pointwise_blocks(sites, max_elements=max_elements))
        joined = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
        return {name: value.reshape(*batch, *value.shape[1:]) for name, value in joined.items()}

    def pointwise_blocks(self, sites: Mapping[str, Tensor], *, max_elements: int = 2**22) -> Iterator[Sites]:
        """Yield `pointwise` block by block of draws, each ``(block, n, ...)``, so that memory does not grow with them.

        Args:
            sites: latent sites with any leading batch (draws), which is flattened.
            max_elements: a block has about this many numbers in its largest tensor.

        Raises:
            ProgramError: as in `pointwise`.
        """
        flat = {s.name: sites[s.name].reshape(-1, *s.shape) for s in self.latents}
        rows = max(1, max_elements // self._numbers)
        for start in range(0, len(flat[self.latents[0].name]), rows):
            block = {name: value[start : start + rows] for name, value in flat.items()}
            yield self._run(lambda s: self._pointwise.evaluate(self._trace(s)), block, whole=True)

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
            nodes = nodes_of(self._trace(latents))
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

    def _trace(self, latents: Mapping[str, Tensor], *data: Tensor) -> poutine.Trace:
        arguments = self.arguments.with_tensors(data) if data else self.arguments
        return arguments.call(poutine.trace(poutine.condition(self._program, dict(latents))).get_trace)

    def _log_joint(self, latents: Mapping[str, Tensor], *data: Tensor) -> Tensor:
        if self._fused is not None:
            (x,) = data or self.arguments.tensors
            return self._fused.fused_log_joint(x, latents)
        return torch.as_tensor(self._evaluator.log_prob(self._trace(latents, *data)))

    def _value(self, z: Tensor, *data: Tensor, jacobian: bool = True) -> Tensor:
        pairs = {site.name: site.constrain(z) for site in self.latents}
        log_joint = self._log_joint({name: value for name, (value, _) in pairs.items()}, *data)
        return log_joint + sum(log_det for _, log_det in pairs.values()) if jacobian else log_joint

    def _value_broadcast(self, z: Tensor, *data: Tensor, jacobian: bool = True) -> Tensor:
        """Return the values of a batch ``(b, dim)`` by giving the program all values at once."""
        pairs = {site.name: vmap(site.constrain)(z) for site in self.latents}
        with LeadingAxes():
            trace = self._trace({name: value for name, (value, _) in pairs.items()}, *data)
            trace.compute_log_prob()
        total = sum((log_det for _, log_det in pairs.values()), z.new_zeros(())) if jacobian else z.new_zeros(len(z))
        for site in sample_sites(trace).values():
            own = site["log_prob"]
            total = total + (own.reshape(len(z), -1).sum(-1) if own.shape[:1] == z.shape[:1] else own.sum())
        return total

    def _run(self, function: Callable[[Any], Any], inputs: Any, *, whole: bool = False) -> Any:
        vectorise = self.batching == "vmap"
        chunk = None if whole else max(1, _LARGEST_TABLE // self._numbers)
        with self._fast():
            function = _traceable(function) if vectorise else function
            return batched(function, inputs, depths=self._depths, chunk=chunk, vectorise=vectorise)

    def _over_datasets(self, function: Callable[..., Tensor], z: Tensor) -> Tensor:
        data = self.arguments.tensors
        with self._fast():
            inner = vmap(_traceable(function), in_dims=(0, *[None] * len(data)))
            chunk = max(1, _LARGEST_TABLE // (self._numbers * z.shape[1]))
            return vmap(inner, chunk_size=chunk)(z, *data)

    @contextmanager
    def _fast(self) -> Iterator[None]:
        with unvalidated(self.arguments.dtype, self.arguments.device), Lenient():
            yield

    @property
    def _depths(self) -> dict[str, int]:
        return {site.name: len(site.shape) for site in self.latents}

    def _gradient(self, jacobian: bool) -> Gradient:
        broadcast = self.batching == "broadcast"

        def value(z: Tensor, *data: Tensor) -> Tensor:
            return (self._value_broadcast if broadcast else self._value)(z, *data, jacobian=jacobian)

        return Gradient(
            value,
            self.arguments.tensors,
            batching=self.batching,
            datasets=self.datasets is not None,
            numbers=1 if self._fused is not None else self._numbers,  # it cuts its rows itself
            context=self._fast,
            report=self._say_once,
        )

    # -- set-up -----------------------------------------------------------------------------------------------------

    def _choose_evaluator(self, first: Sites) -> None:
        """Take the tree evaluator, which is simpler; variable elimination where plates form no tree (Markov)."""
        with self._fast():
            proto = self._trace(first)
            tree = TraceTreeEvaluator(proto, bool(self.discrete), self.max_plate_nesting)
            general = BatchedEinsumEvaluator(proto, bool(self.discrete), self.max_plate_nesting)
            self._pointwise = Pointwise(proto, tree, tuple(self.observed), self.discrete)
            proto.compute_log_prob()
            self._numbers = max(_numbers(site) for site in sample_sites(proto).values())
            self._evaluator: Any = tree
            if not self.discrete:  # a plain sum, either way
                return
            one, other = (torch.as_tensor(e.log_prob(self._trace(first))) for e in (tree, general))
            self._evaluator = tree if torch.isclose(one, other, rtol=1e-4, equal_nan=True) else general

    def _choose_batching(self, first: Sites) -> Batching:
        """Try how the program takes a batch of vectors, against one vector at a time."""
        start = self.unconstrain(first)
        z = start + 0.01 * torch.arange(3, dtype=start.dtype, device=start.device)[:, None]
        with self._fast():
            rows = torch.stack([self._value(row) for row in z])
            try:
                values = vmap(_traceable(self._value))(z)
                if torch.allclose(values, rows, rtol=1e-4, equal_nan=True):
                    return "vmap"
                reason: Exception = RuntimeError("a batch of values gives another density than each value alone")
            except _CANNOT as refused:
                reason = refused
            if not self.discrete and self._broadcasts(z, rows):
                return "broadcast"
        self._say_once(reason)
        return "loop"

    def _broadcasts(self, z: Tensor, rows: Tensor) -> bool:
        try:
            return all(
                torch.allclose(self._value_broadcast(z[:n]), rows[:n], rtol=1e-4, equal_nan=True) for n in (2, 3)
            )
        except _CANNOT:
            return False

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


def _numbers(site: Any) -> int:
    """Numbers in the largest tensor that a site needs: its log density, for each entry of an event, or as it says."""
    elements = getattr(site["fn"], "num_elements", site["fn"].event_shape.numel())
    return int(site["log_prob"].numel() * max(1, elements))


def _traceable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add an autograd level: Pyro's enumeration reads ``value.data``, which a bare vmap refuses."""
    return lambda *inputs: vjp(function, *inputs)[0]
