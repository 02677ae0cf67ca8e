"""Fitted guides: a Gaussian on the unconstrained vector, or the user's own guide with its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer.autoguide import AutoContinuous, AutoNormal
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from probmix.arguments import Arguments
from probmix.importance import finite_or_zero_weight, log_ratios
from probmix.log_density import LogDensity
from probmix.program_sites import sample_sites
from probmix.simulation import trace_sites
from probmix.typing import Sites

__all__ = ["NormalGuide", "ProgramGuide"]


@dataclass(frozen=True)
class NormalGuide:
    """A Gaussian ``q(z)`` on the unconstrained vector of a `LogDensity`.

    Args:
        family: ``"diagonal"`` (mean field), ``"full_rank"`` or ``"low_rank"``.
        parameters: ``loc`` ``(dim,)`` and ``scale_std`` ``(dim,)``, or ``scale_tril`` ``(dim, dim)``, or
            ``cov_factor`` ``(dim, rank)`` with ``cov_diag`` ``(dim,)``.

    Example:
        >>> guide = NormalGuide("diagonal", {"loc": torch.zeros(2), "scale_std": torch.ones(2)})
        >>> guide.distribution().mean
        tensor([0., 0.])
    """

    family: Literal["diagonal", "full_rank", "low_rank"]
    parameters: Sites

    def distribution(self) -> Distribution:
        """Return ``q(z)``."""
        p = self.parameters
        if self.family == "diagonal":
            return Independent(Normal(p["loc"], p["scale_std"]), 1)
        if self.family == "full_rank":
            return MultivariateNormal(p["loc"], scale_tril=p["scale_tril"])
        return LowRankMultivariateNormal(p["loc"], p["cov_factor"], p["cov_diag"])

    def centre(self, density: LogDensity, arguments: Arguments) -> Sites:
        """Return the sites at the mean of ``q``."""
        return density.constrain(self.parameters["loc"])

    def sample(self, num: int, density: LogDensity, arguments: Arguments) -> Sites:
        """Return ``num`` draws of the sites; uses torch's global generator."""
        return density.constrain(self.distribution().sample(torch.Size([num])))

    def log_ratios(self, num: int, density: LogDensity, arguments: Arguments) -> Tensor:
        """Return ``log p - log q`` at ``num`` draws, as `probmix.importance.log_ratios`."""
        return log_ratios(density, self.distribution(), num)

    def pick(self, restart: int) -> NormalGuide:
        """Return one guide of those along the first axis of the parameters."""
        return NormalGuide(self.family, {name: value[restart].clone() for name, value in self.parameters.items()})


@dataclass(frozen=True)
class ProgramGuide:
    """The user's own guide, with the values its parameters were fitted to.

    Args:
        guide: the guide program, or a module; called with the arguments of the fit.
        parameters: parameter name -> fitted value.
    """

    guide: Callable[..., Any]
    parameters: Sites

    def centre(self, density: LogDensity, arguments: Arguments) -> Sites:
        """Return the mean of 1,000 draws: every support that a program can have is convex."""
        return {name: value.mean(0) for name, value in self.sample(1000, density, arguments).items()}

    def sample(self, num: int, density: LogDensity, arguments: Arguments) -> Sites:
        """Return ``num`` draws of the latent sites; uses torch's global generator."""
        fitted = poutine.substitute(self.guide, self.parameters)
        draws = trace_sites(lambda: arguments.call(fitted), num, condition_on_data=True)
        return {site.name: draws[site.name].detach() for site in density.latents}

    def log_ratios(self, num: int, density: LogDensity, arguments: Arguments) -> Tensor | None:
        """Return ``log p - log q`` of the sites at ``num`` draws, ``(num,)``; None where ``q`` is not tractable.

        It is not where the guide has points (``Delta``), or sites beside the program's latent ones, which would have
        to be integrated out; but Pyro's own Gaussian and flow guides map theirs one to one.
        """
        fitted = poutine.substitute(self.guide, self.parameters)
        latents = {site.name for site in density.latents}

        def weighted() -> None:
            trace = poutine.trace(fitted).get_trace(*arguments.args, **(arguments.kwargs or {}))
            pyro.sample(_LOG_PROB, Delta(torch.as_tensor(trace.log_prob_sum())))

        prototype = poutine.trace(fitted).get_trace(*arguments.args, **(arguments.kwargs or {}))
        if not _tractable(self.guide, sample_sites(prototype), latents):
            return None
        draws = trace_sites(weighted, num, condition_on_data=True)
        log_joint = density.log_joint({name: draws[name] for name in latents})
        return finite_or_zero_weight(log_joint - draws[_LOG_PROB])


_LOG_PROB = "log_prob of the guide"


def _tractable(guide: Callable[..., Any], sites: Mapping[str, Any], latents: set[str]) -> bool:
    points = {name for name, site in sites.items() if isinstance(site["fn"], Delta)}
    others = sites.keys() - latents
    if isinstance(guide, AutoContinuous | AutoNormal):
        return not points & others
    return not points and not others
