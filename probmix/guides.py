"""Fitted guides: a Gaussian on the unconstrained vector, or the user's own guide with its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro import poutine
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from probmix.arguments import Arguments
from probmix.log_density import LogDensity
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
