"""Blocked Gibbs sampling of mixtures: assignments given parameters, parameters given assignments, chains as a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from probmix.arviz import ess
from probmix.errors import MethodError
from probmix.inference.agreement import advice_on_agreement
from probmix.inference.conjugate_problem import conjugate_model
from probmix.inference.method import AbstractMethod, Problem, common, require, status_of_draws
from probmix.inference.seeding import batch_of_sites
from probmix.inference.starts import short_em
from probmix.posterior import DrawsPosterior
from probmix.status import Status
from probmix.table import Table
from probmix.typing import ConjugateMixture, Sites

__all__ = ["Gibbs"]

_FEWEST_DRAWS = 4  # for which ArviZ gives an effective sample size
_MOST_NUMBERS = 2**22  # of draws that are looked at together
_FEWEST_EFFECTIVE = 400  # for stable means and quantiles (Vehtari et al. 2021)


class GibbsState(NamedTuple):
    """All chains after some iterations.

    Args:
        sites: where the chains are, each ``(chains, ...)``.
        kept: sites, and their log-likelihood ``(chains,)``, of the iterations kept so far: warm-up, then sampling.
        iteration: iterations done.
        prior: the model's prior for these data.
        table: the rows, ready for many passes.
    """

    sites: Sites
    kept: tuple[tuple[Sites, Tensor], ...]
    iteration: int
    prior: Any
    table: Table


@dataclass(frozen=True)
class Gibbs(AbstractMethod):
    r"""Blocked Gibbs sampling, for mixtures whose components have a conjugate prior.

    .. math:: z_n \mid w, \theta \sim \mathrm{Categorical}\{w_k f(x_n \mid \theta_k)\}, \qquad
              w, \theta \mid z \sim p(w, \theta \mid \text{statistics of } z)

    An iteration is one pass over the rows for all chains at once, no gradient, nothing to tune and nothing rejected.
    The draws are those of ``w, theta``: assignments are drawn and forgotten, ``responsibilities`` give their
    probabilities. Labels are not forced into an order; where components overlap they switch, which
    `probmix.relabel.relabel` undoes. A chain seldom moves between modes that differ in more than labels (two components
    on one cluster): start several chains, and heed what the status says of their agreement.

    ``sample_stats`` has ``lp``, the log joint density of data and sites with assignments summed out (NUTS adds the log
    Jacobian of its unconstrained coordinates, so the two differ), and ``log_likelihood``, the same without the prior.

    Args:
        chains: number of chains.
        warmup: iterations of each chain that are not kept.
        draws: iterations kept, for each chain.
        init: ``"em"``, the best of a few short runs of EM for each chain apart; ``"prior"``, a draw from the prior; or
            sites, for all chains or with a leading axis of chains.
        thin: iterations to a draw that is kept.

    Raises:
        MethodError: the program is no mixture with a conjugate prior, or a setting is out of range.
        FitError: interrupted before the first iteration was done.

    Source:
        Diebolt and Robert (1994), Estimation of finite mixture distributions through Bayesian sampling, Journal of the
        Royal Statistical Society B 56, 363-375.

    Example:
        >>> from probmix.datasets import load_faithful
        >>> from probmix.inference import infer
        >>> from probmix.models import GaussianMixture
        >>> fit = infer(GaussianMixture(2), load_faithful().x, Gibbs(warmup=50, draws=200), seed=0)
        >>> fit.draws["loc"].shape, fit.draws["loc"][..., 0].amin(-1).mean().round(decimals=1)
        (torch.Size([4, 200, 2, 2]), tensor(2., dtype=torch.float64))
    """

    chains: int = 4
    warmup: int = 500
    draws: int = 1000
    init: Literal["em", "prior"] | Mapping[str, Tensor] = "em"
    thin: int = 1

    def __post_init__(self) -> None:
        for setting in ("chains", "draws", "thin"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        require(self.warmup >= 0, "warmup", "0 or more", self.warmup)
        known = isinstance(self.init, Mapping) or self.init in ("em", "prior")
        require(known, "init", '"em", "prior" or sites', self.init)

    def start(self, problem: Problem) -> GibbsState:
        """Return the first state: every chain at a starting point of its own."""
        model = conjugate_model(problem, "Gibbs()")
        table = model.table(model.rows(*problem.arguments.args))
        prior = model.prior(table.x)
        return GibbsState(self._starts(problem, model, table.x, prior), (), 0, prior, table)

    def step(self, problem: Problem, state: GibbsState) -> GibbsState:
        """Return the state after one iteration of all chains; the sites before it are what is kept."""
        model = conjugate_model(problem, "Gibbs()")
        sites, kept, number = state.sites, state.kept, state.iteration
        log_likelihood, statistics = model.drawn(state.table, sites)
        if number == self.warmup:  # from here on the warm-up is of no more use
            kept = ()
        if number < self.warmup or (number - self.warmup) % self.thin == 0:
            kept = (*kept, (sites, log_likelihood))
        following = model.draw_sites(model.posterior(state.prior, statistics))
        return GibbsState(following, kept, number + 1, state.prior, state.table)

    def status(self, problem: Problem, state: GibbsState) -> Status | None:
        """Return how the fit ended, or None to go on."""
        if state.iteration < self._iterations:
            return None
        lp = self._lp(problem, state).cpu().double().numpy()
        advice = [f"{self.chains} chains of {self.draws} draws."]
        if self.draws >= _FEWEST_DRAWS:
            effective = float(ess(lp))
            advice = [f"{advice[0][:-1]}; the log density is worth {effective:.0f} independent ones."]
            if effective < _FEWEST_EFFECTIVE:
                advice.append(f"{_FEWEST_EFFECTIVE} or more are wanted: raise draws={self.draws} or chains.")
        positions = torch.cat([value.reshape(*value.shape[:2], -1) for value in self._draws(state).values()], -1)
        some = positions[..., :: -(-positions.numel() // _MOST_NUMBERS)]
        advice.append(advice_on_agreement(lp, some.cpu().double().numpy(), 1))
        return Status("complete", " ".join(advice).strip())

    def finish(self, problem: Problem, state: GibbsState, status: Status) -> DrawsPosterior:
        """Return the draws; of an interrupted fit, those made so far."""
        status = status_of_draws(status, state.iteration, self.warmup)
        log_likelihood = torch.stack([value for _, value in state.kept], 1)
        return DrawsPosterior(
            **common(self, problem, status),
            draws=self._draws(state),
            sample_stats={"lp": self._lp(problem, state), "log_likelihood": log_likelihood},
        )

    def progress(self, state: GibbsState) -> tuple[int, int]:
        """Return iterations done and in all."""
        return state.iteration, self._iterations

    def figures(self, state: GibbsState) -> Mapping[str, str]:
        """Return the phase, the log-likelihood and, in sampling, its effective size."""
        if not state.kept:
            return {"phase": "start"}
        shown = {
            "phase": "warm-up" if state.iteration <= self.warmup else "sampling",
            "log-likelihood": f"{float(state.kept[-1][1].mean()):.1f}",
        }
        if state.iteration <= self.warmup or len(state.kept) < _FEWEST_DRAWS:
            return shown
        values = torch.stack([value for _, value in state.kept], 1)
        return {**shown, "ESS": f"{float(ess(values.cpu().double().numpy())):.0f}"}

    @property
    def _iterations(self) -> int:
        return self.warmup + self.draws * self.thin

    def _starts(self, problem: Problem, model: ConjugateMixture, x: Tensor, prior: Any) -> Sites:
        if isinstance(self.init, Mapping):
            given = batch_of_sites(model, x, self.init)
            num = next(iter(given.values())).shape[0]
            if num not in (1, self.chains):
                raise MethodError(
                    f"init: expected sites for one start or for {self.chains} (a leading axis of that length), got "
                    f"{num}. Pass one set of sites, e.g. another fit's posterior.sites()."
                )
            return {name: value.expand(self.chains, *value.shape[1:]) for name, value in given.items()}
        if self.init == "em":
            return short_em(problem, self.chains)
        nothing = model.sufficient_statistics(x[:1], x.new_zeros(self.chains, 1, model.num_components))
        return model.draw_sites(model.posterior(prior, nothing))

    def _draws(self, state: GibbsState) -> Sites:
        """Sites kept, each ``(chains, draws, ...)``."""
        return {name: torch.stack([sites[name] for sites, _ in state.kept], 1) for name in state.sites}

    def _lp(self, problem: Problem, state: GibbsState) -> Tensor:
        """Log joint density of the sites kept, ``(chains, draws)``."""
        model, draws = conjugate_model(problem, "Gibbs()"), self._draws(state)
        some = max(1, _MOST_NUMBERS // sum(value[:, 0].numel() for value in draws.values()))
        parts = [
            model.log_prior({name: value[:, first : first + some] for name, value in draws.items()}, state.prior)
            for first in range(0, len(state.kept), some)
        ]
        return torch.stack([value for _, value in state.kept], 1) + torch.cat(parts, 1)
