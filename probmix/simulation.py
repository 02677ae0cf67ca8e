"""Run a program forwards: draws from its prior, and replicated data given its latent sites."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from probmix.arguments import Arguments
from probmix.batching import batched
from probmix.isolation import unvalidated
from probmix.lenient import Lenient
from probmix.program_sites import is_factor, sample_sites
from probmix.typing import Program, Sites

__all__ = ["simulate", "trace_sites"]

_LARGEST_TABLE = 2**24  # numbers of data simulated at a time


def simulate(
    program: Program, arguments: Arguments, sites: Mapping[str, Tensor], *, depths: Mapping[str, int]
) -> Sites:
    """Replicate the data: observed sites drawn given latent sites with leading batch ``*b``, each ``(*b, n, ...)``.

    Uses torch's global generator; call it inside `probmix.isolation.isolated`.

    Args:
        program: the program; its arguments say how many observations there are.
        arguments: what it is called with.
        sites: latent sites, one batch entry for each replicate.
        depths: number of non-batch axes of each site.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program(x):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("row", len(x)):
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> data = Arguments.of(torch.zeros(3))
        >>> simulate(program, data, {"rate": torch.ones(7)}, depths={"rate": 0})["x"].shape
        torch.Size([7, 3])
    """

    def replicate(latents: Sites) -> Sites:
        forward = poutine.condition(poutine.uncondition(program), latents)
        nodes = sample_sites(poutine.trace(forward).get_trace(*arguments.args, **(arguments.kwargs or {})))
        return {name: node["value"] for name, node in nodes.items() if _was_data(node)}

    numbers = max((tensor.numel() for tensor in arguments.tensors), default=1)
    return _attempt(replicate, dict(sites), depths, chunk=max(1, _LARGEST_TABLE // numbers))


def trace_sites(function: Callable[[], object], num: int, *, condition_on_data: bool = False) -> Sites:
    """Run a zero-argument program ``num`` times and stack its sample sites, each ``(num, ...)``.

    Args:
        function: a prior or a guide, its arguments already bound.
        num: number of runs.
        condition_on_data: False draws the observed sites too (prior predictive).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> trace_sites(lambda: pyro.sample("a", dist.Normal(0.0, 1.0)), 5)["a"].shape
        torch.Size([5])
    """
    free = function if condition_on_data else poutine.uncondition(function)

    def run(_: Sites) -> Sites:
        nodes = sample_sites(poutine.trace(free).get_trace())
        return {name: node["value"] for name, node in nodes.items() if not is_factor(node)}

    return _attempt(run, {"index": torch.zeros(num)}, {"index": 0})


def _attempt(
    function: Callable[[Sites], Sites], inputs: Sites, depths: Mapping[str, int], chunk: int | None = None
) -> Sites:
    """One vectorised pass; samplers that torch cannot vectorise run one after the other."""
    with (
        unvalidated(torch.get_default_dtype(), _device(inputs)),
        Lenient(),  # a prior may leave the support of what follows: NaN there, not an end of all draws
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "There is a performance drop")  # torch's note on samplers it runs one by one
        try:
            return batched(function, inputs, depths=depths, randomness="different", chunk=chunk)
        except (RuntimeError, ValueError):
            return batched(function, inputs, depths=depths, vectorise=False)


def _was_data(node: Any) -> bool:
    return node["infer"].get("was_observed", False) and not is_factor(node)


def _device(inputs: Sites) -> torch.device:
    return next(iter(inputs.values())).device
