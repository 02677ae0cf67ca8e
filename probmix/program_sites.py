"""What a program says about itself in one run: its latent and observed sites, their shapes and plates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

from probmix.arguments import Arguments
from probmix.errors import ProgramError
from probmix.typing import Program, Sites

__all__ = [
    "LatentSite",
    "is_data",
    "is_factor",
    "latent_sites",
    "nodes_of",
    "plate_dims",
    "prototype",
    "refuse_unsupported",
    "sample_sites",
]

_PROTOTYPES = 20


@dataclass(frozen=True)
class LatentSite:
    """A continuous latent site: where its unconstrained coordinates lie in the flat vector.

    Example:
        >>> transform = biject_to(torch.distributions.constraints.positive)
        >>> site = LatentSite("std", transform, torch.Size([2]), torch.Size([2]), slice(0, 2))
        >>> site.unconstrain(torch.ones(5, 2)).shape
        torch.Size([5, 2])
    """

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


def prototype(program: Program, arguments: Arguments) -> poutine.Trace:
    """Run the program once, so that its sites and shapes are known.

    A draw from the prior may lie where a later distribution is not defined, so a few are tried.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> trace = prototype(program, Arguments.of(torch.tensor(1.0)))
        >>> sorted(sample_sites(trace))
        ['loc', 'x']
    """
    for attempt in range(_PROTOTYPES):
        try:
            with poutine.block(), torch.no_grad():
                return poutine.trace(program).get_trace(*arguments.args, **(arguments.kwargs or {}))
        except ProgramError as refusal:
            raise ProgramError(str(refusal).partition("\nTrace Shapes")[0]) from None  # which Pyro has appended
        except (ValueError, torch.linalg.LinAlgError) as reason:
            if attempt == _PROTOTYPES - 1:
                raise ProgramError(
                    f"the program could not be run at any of {_PROTOTYPES} draws from its prior; the last said:\n"
                    f"{reason}\nCheck the shapes and supports named there, and that its prior keeps inside them."
                ) from reason
    raise AssertionError


def nodes_of(trace: poutine.Trace) -> dict[str, Any]:
    """Return the nodes of a trace, by name.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> trace = prototype(program, Arguments.of(torch.tensor(1.0)))
        >>> list(nodes_of(trace))[1:-1]
        ['loc', 'x']
    """
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
        for name, site in nodes_of(trace).items()
        if site["type"] == "sample"
        and not isinstance(site["fn"], _Subsample)
        and not site["infer"].get("_deterministic")
    }


def is_data(site: Any) -> bool:
    """Tell data from ``pyro.factor``, which Pyro also calls observed.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> trace = prototype(program, Arguments.of(torch.tensor(1.0)))
        >>> [name for name, site in sample_sites(trace).items() if is_data(site)]
        ['x']
    """
    return site["is_observed"] and not is_factor(site)


def is_factor(site: Any) -> bool:
    """Tell ``pyro.factor``, which has no value, from what is drawn or observed.

    Example:
        >>> import pyro
        >>> trace = poutine.trace(lambda: pyro.factor("known", torch.tensor(-1.0))).get_trace()
        >>> is_factor(trace.nodes["known"])
        True
    """
    return isinstance(site["fn"], Unit)


def refuse_unsupported(trace: poutine.Trace, params: Sites) -> None:
    """Raise `ProgramError` where a program has no log density: it names the site and the next step.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> trace = prototype(program, Arguments.of(torch.tensor(1.0)))
        >>> refuse_unsupported(trace, {})
    """
    samples = sample_sites(trace)
    if not any(site["is_observed"] for site in samples.values()):
        raise ProgramError(
            f"expected a program with an observed site, got only {sorted(samples)}. "
            "Write pyro.sample(name, distribution, obs=data) for what was measured."
        )
    for name, site in nodes_of(trace).items():
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


def _of_mixture(support: Constraint) -> bool:
    return type(support).__name__ == "MixtureSameFamilyConstraint"


def latent_sites(trace: poutine.Trace) -> tuple[LatentSite, ...]:
    """Return the continuous latent sites and their places in the flat vector.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> trace = prototype(program, Arguments.of(torch.tensor(1.0)))
        >>> [(site.name, site.slice) for site in latent_sites(trace)]
        [('loc', slice(0, 1, None))]
    """
    sites, start = [], 0
    for name, site in sample_sites(trace).items():
        if site["is_observed"] or site["fn"].support.is_discrete:
            continue
        support = site["fn"].support
        # torch's mixtures wrap the support that their components share, and have no transform for the wrapped one
        transform = biject_to(getattr(support, "base_constraint", support) if _of_mixture(support) else support)
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


def plate_dims(trace: poutine.Trace) -> dict[str, tuple[str, ...]]:
    """Axis names: a plate's name for each batch axis, ``site_dim_i`` for the others (as ArviZ does).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> trace = prototype(program, Arguments.of(torch.tensor(1.0)))
        >>> plate_dims(trace)
        {'loc': (), 'x': ()}
    """
    dims = {}
    for name, site in nodes_of(trace).items():
        if site["type"] != "sample" or isinstance(site["fn"], _Subsample):
            continue
        plates = {frame.dim: frame.name for frame in site["cond_indep_stack"]}
        rank = site["value"].dim()
        batch = rank - site["fn"].event_dim
        dims[name] = tuple(
            plates.get(i - batch, f"{name}_dim_{i}") if i < batch else f"{name}_dim_{i}" for i in range(rank)
        )
    return dims
