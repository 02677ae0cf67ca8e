"""Fitted guides: a Gaussian on the unconstrained vector, a conjugate distribution, or the user's own guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

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
from probmix.nested import map_tensors
from probmix.program_sites import sample_sites
from probmix.simulation import trace_sites
from probmix.typing import ConjugateMixture, Sites

__all__ = ["ConjugateGuide", "Guide", "NormalGuide", "ProgramGuide"]

_AT_ONCE = 250  # draws in one pass over the rows, which bounds its memory


class Guide(Protocol):
    """What a posterior asks of a fitted guide.

    Args:
        traces: whether it reads its sites off a trace of the program, which for many rows is not free; those that know
            their sites get None for one.
    """

    traces: ClassVar[bool]

    def centre(self, density: Any, arguments: Arguments) -> Sites:
        """Return one best value of every latent site."""
        ...

    def sample(self, num: int, density: Any, arguments: Arguments) -> Sites:
        """Return ``num`` draws of the sites; uses torch's global generator."""
        ...


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

    traces: ClassVar[bool] = True

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
class ConjugateGuide:
    r"""The variational posterior of a mixture's parameters, of the same family as their prior.

    .. math:: q(w, \theta) = p(w, \theta \mid \text{statistics}), \qquad \text{statistics} = \sum_n r_{nk} t(x_n)

    Args:
        model: the mixture.
        prior: its prior for the data.
        statistics: expected sufficient statistics of the rows.
        row_weights: how many observations each row stands for, ``(N,)``; None: one each.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> model, x = GaussianMixture(1), torch.tensor([[0.0], [2.0]], dtype=torch.float64)
        >>> guide = ConjugateGuide(model, model.prior(x), model.sufficient_statistics(x, torch.ones(2, 1)))
        >>> guide.count, guide.posterior.component.dof
        (tensor([2.], dtype=torch.float64), tensor([5.], dtype=torch.float64))
    """

    model: ConjugateMixture
    prior: Any
    statistics: Any
    row_weights: Tensor | None = None

    traces: ClassVar[bool] = False

    @property
    def posterior(self) -> Any:
        """The distribution itself, of the same type as the model's prior: ``weights`` and ``component``."""
        return self.model.posterior(self.prior, self.statistics)

    @property
    def count(self) -> Tensor:
        """Expected number of observations in each component, ``(K,)``."""
        return self.statistics.count

    def centre(self, density: LogDensity | None, arguments: Arguments) -> Sites:
        """Return the mean of every site; the mode where the mean does not exist."""
        mean = self.model.mean_sites(self.posterior)
        mode = self.model.maximise(self.statistics, self.prior)
        return {name: torch.where(value.isfinite(), value, mode[name]) for name, value in mean.items()}

    def sample(self, num: int, density: LogDensity | None, arguments: Arguments) -> Sites:
        """Return ``num`` draws of the sites; uses torch's global generator."""
        statistics = map_tensors(lambda value: value.expand(num, *value.shape), self.statistics)
        return self.model.draw_sites(self.model.posterior(self.prior, statistics))

    def log_ratios(self, num: int, density: LogDensity | None, arguments: Arguments) -> Tensor:
        """Return ``log p - log q`` of the sites at ``num`` draws, assignments summed out, ``(num,)``."""
        model, draws = self.model, self.sample(num, density, arguments)
        table, posterior = model.table(model.rows(*arguments.args), self.row_weights), self.posterior
        parts = []
        for rows in torch.arange(num, device=table.x.device).split(_AT_ONCE):
            sites = {name: value[rows] for name, value in draws.items()}
            log_joint = model.expectation(table, sites).log_likelihood + model.log_prior(sites, self.prior)
            parts.append(log_joint - model.log_prior(sites, posterior))
        return finite_or_zero_weight(torch.cat(parts))


@dataclass(frozen=True)
class ProgramGuide:
    """The user's own guide, with the values its parameters were fitted to.

    Args:
        guide: the guide program, or a module; called with the arguments of the fit.
        parameters: parameter name -> fitted value.
    """

    guide: Callable[..., Any]
    parameters: Sites

    traces: ClassVar[bool] = True

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
