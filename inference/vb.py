"""Variational Bayes by coordinate ascent, all restarts as one batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probmix.arguments import Arguments
from probmix.guides import ConjugateGuide
from probmix.importance import summarise
from probmix.inference.conjugate_problem import conjugate_model
from probmix.inference.method import AbstractMethod, Problem, common, require
from probmix.inference.seeding import (
    LABELS,
    LabelStart,
    batch_of_sites,
    first_labels,
    given_labels,
    label_statistics,
    some_rows,
)
from probmix.inference.stopping import still_to_gain
from probmix.nested import map_tensors, tensors_in
from probmix.posterior import GuidePosterior
from probmix.status import Status
from probmix.table import Table
from probmix.typing import ConjugateMixture, Sites

__all__ = ["VB"]

_RATIOS = 1000  # draws behind the Pareto k


class VBState(NamedTuple):
    """All restarts, side by side.

    Args:
        statistics: expected statistics of the rows, every tensor ``(restarts, ...)``; they say what q is.
        objectives: ELBO before every step, ``(restarts,)`` each; NaN once a restart has stopped.
        active: which restarts still run.
        prior: the model's prior for these data.
        table: the rows, ready for many passes.
    """

    statistics: Any
    objectives: tuple[Tensor, ...]
    active: Tensor
    prior: Any
    table: Table


@dataclass(frozen=True)
class VB(AbstractMethod):
    r"""Variational Bayes by coordinate ascent, for mixtures whose components have a conjugate prior.

    .. math:: q(z, w, \theta) = \prod_n q(z_n) \, q(w) \, q(\theta), \qquad
              \log q(z_n = k) = E \log w_k + E \log f(x_n \mid \theta_k) + \text{const}

    Each step makes one factor the best for the other, so that the ELBO never falls. It is exact, not simulated:

    .. math:: \mathcal L = \sum_n \log \sum_k \exp\{E \log w_k + E \log f(x_n \mid \theta_k)\}
              - \mathrm{KL}(q(w, \theta) \,\|\, p(w, \theta)) \le \log p(x)

    A restart stops as one of `EM` does. The answer's ``guide`` is ``q(w, theta)``: ``guide.posterior`` its parameters,
    ``guide.count`` the expected rows of each component. With a small ``weight_concentration`` (0.01, say) components
    that the data do not need keep none. Where components overlap, q is narrower than the posterior, since it takes
    assignments and parameters for independent; the Pareto k of the answer shows by how much it matters, `Gibbs` does
    not have that fault.

    ``elbo`` is the bound of one labelling of the components. ``log_evidence`` adds the logarithm of the number of
    labellings, ``K!`` (over ``m!`` if m components hold less than one row each and so are alike), where prior and
    likelihood know none from another. It estimates ``log p(x)`` where the components lie apart, and is too large where
    they overlap: it is no bound. Where the prior tells components apart, as stick-breaking does, both are the same.

    Args:
        restarts: starts that run side by side; the best is kept, all are reported in ``posterior.elbos``.
        init: ``"kmeans++"``, ``"kmeans"`` or ``"random"`` labels, as in `EM`; labels of the rows ``(N,)``, or sites to
            start from (labels and sites: one restart, or one for each entry of a leading axis).
        max_steps: at most so many steps.
        tolerance: largest estimated distance to the optimum, nats.
        row_weights: how many observations each row stands for, ``(N,)``, not negative; None: one each.
        num_draws: draws from the guide that go into ArviZ.
        max_elements: size of the largest temporary tensor of the start, elements.

    Raises:
        MethodError: the program is no mixture with a conjugate prior, or a setting is out of range.
        FitError: no restart has a finite ELBO.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, section 10.2.

    Example:
        >>> from probmix.datasets import load_faithful
        >>> from probmix.inference import infer
        >>> from probmix.models import GaussianMixture
        >>> fit = infer(GaussianMixture(2), load_faithful().x, VB(restarts=5), seed=0)
        >>> round(fit.elbo[0], 3), round(fit.log_evidence, 3), [round(float(n)) for n in fit.guide.count.sort().values]
        (-1168.905, -1168.212, [97, 175])
    """

    restarts: int = 10
    init: LabelStart | Tensor | Mapping[str, Tensor] = "kmeans++"
    max_steps: int = 2000
    tolerance: float = 1e-6
    row_weights: Tensor | None = None
    num_draws: int = 1000
    max_elements: int = 2**22

    def __post_init__(self) -> None:
        for setting in ("restarts", "max_steps", "num_draws"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        require(self.tolerance > 0, "tolerance", "a positive number of nats", self.tolerance)
        known = isinstance(self.init, Mapping | Tensor) or self.init in LABELS
        require(known, "init", f"{', '.join(LABELS)}, labels or sites", self.init)

    def start(self, problem: Problem) -> VBState:
        """Return the first state: the statistics of the first labels, or those expected at the sites given."""
        model = conjugate_model(problem, "VB()")
        table = model.table(model.rows(*problem.arguments.args), self.row_weights)
        statistics = self._first_statistics(model, table)
        active = torch.ones_like(statistics.count[..., 0], dtype=torch.bool)
        return VBState(statistics, (), active, model.prior(table.x), table)

    def step(self, problem: Problem, state: VBState) -> VBState:
        """Return the state after one step of every restart that still runs: q(w, theta), its ELBO, then q(z)."""
        model = conjugate_model(problem, "VB()")
        rows = state.active.nonzero().squeeze(-1)
        elbo, statistics = _elbo(model, state, map_tensors(lambda value: value[rows], state.statistics))
        untold = elbo.new_full(state.active.shape, torch.nan)
        objectives = (*state.objectives, untold.index_put((rows,), elbo))
        left = still_to_gain(objectives)[rows]
        return VBState(
            statistics=_put(state.statistics, rows, statistics),
            objectives=objectives,
            active=state.active.index_put((rows,), elbo.isfinite() & (left > self.tolerance)),
            prior=state.prior,
            table=state.table,
        )

    def status(self, problem: Problem, state: VBState) -> Status | None:
        """Return how the fit ended, or None to go on."""
        if state.objectives and not state.active.any():
            if not any(bool(elbo.isfinite().any()) for elbo in state.objectives):
                return Status(
                    "failed",
                    f"the ELBO is not finite in any of {len(state.active)} restarts: the prior is improper or numbers "
                    "overflow. Scale the columns, or leave component_prior=None for the default prior.",
                )
            return Status("converged", f"within about {self.tolerance:g} nats of a local optimum")
        if len(state.objectives) >= self.max_steps:
            left = float(still_to_gain(state.objectives)[state.active].max())
            gain = f"about {left:.2g} nats" if left < torch.inf else "an unknown amount"
            return Status(
                "max_steps",
                f"VB() stopped after {self.max_steps} steps with {gain} still to gain in the slowest restart. "
                f"Raise max_steps, or loosen tolerance={self.tolerance:g}",
            )
        return None

    def finish(self, problem: Problem, state: VBState, status: Status) -> GuidePosterior:
        """Return the best restart; the ELBO is that of the guide returned."""
        model = conjugate_model(problem, "VB()")
        elbos, _ = _elbo(model, state, state.statistics)
        best = elbos.nan_to_num(-torch.inf).argmax()
        statistics = map_tensors(lambda value: value[best], state.statistics)
        guide = ConjugateGuide(model, state.prior, statistics, state.table.row_weights)
        elbo, occupied = float(elbos[best]), _occupied(guide, state.table)
        pareto_k, message = math.nan, status.message
        if status.state != "failed":
            found = summarise(guide.log_ratios(_RATIOS, None, problem.arguments))
            pareto_k = found.pareto_k
            held = f"{occupied} of {model.num_components} components hold a row or more"
            message = f"{message}; {held}. {found.advice('use Gibbs()')}"
        return GuidePosterior(
            **common(self, problem, dataclasses.replace(status, message=message)),
            history={"elbo": torch.stack([*state.objectives, elbos], -1)},
            guide=guide,
            elbo=(elbo, 0.0),
            elbos=elbos,
            pareto_k=pareto_k,
            num_draws=self.num_draws,
            log_evidence=elbo + _log_labellings(guide, problem.arguments, occupied),
        )

    def progress(self, state: VBState) -> tuple[int, int]:
        """Return steps done and steps at most."""
        return len(state.objectives), self.max_steps

    def figures(self, state: VBState) -> Mapping[str, str]:
        """Return the best ELBO and the number of restarts still running."""
        best = state.objectives[-1].nan_to_num(-torch.inf).max()
        return {"ELBO": f"{float(best):.4f}", "running": str(int(state.active.sum()))}

    def _first_statistics(self, model: ConjugateMixture, table: Table) -> Any:
        x, weights, init = table.x, table.row_weights, self.init
        if isinstance(init, Mapping):
            return model.expectation(table, batch_of_sites(model, x, init)).statistics
        if isinstance(init, Tensor):
            labels = given_labels(init, x, model.num_components)
        else:
            x, weights = some_rows(x, weights)
            labels = first_labels(x, model.num_components, self.restarts, init, weights)
        return label_statistics(model, x, labels, weights, self.max_elements)


def _elbo(model: ConjugateMixture, state: VBState, statistics: Any) -> tuple[Tensor, Any]:
    """ELBO of q(w, theta) with the best q(z), ``(restarts,)``, and the statistics of that q(z)."""
    posterior = model.posterior(state.prior, statistics)
    log_rows, following = model.variational_expectation(state.table, posterior)
    return log_rows - model.divergence(posterior, state.prior), following


def _put(statistics: Any, rows: Tensor, new: Any) -> Any:
    """Replace the statistics of some restarts."""
    fresh = tensors_in(new)
    return map_tensors(lambda value: value.index_copy(0, rows, next(fresh)), statistics)


def _occupied(guide: ConjugateGuide, table: Table) -> int:
    """Count the components that hold as much as one row of average weight."""
    one = 1.0 if table.row_weights is None else table.row_weights.mean()
    return int((guide.count >= one).sum())


def _log_labellings(guide: ConjugateGuide, arguments: Arguments, occupied: int) -> float:
    """Log of the number of ways to number the components that give another q, if the prior cannot tell them apart."""
    num, sites = guide.model.num_components, guide.centre(None, arguments)
    log_prior = guide.model.log_prior(sites, guide.prior)
    for order in ([*range(1, num), 0], [1, 0, *range(2, num)][-num:]):  # these two generate all others
        swapped = guide.model.log_prior(_renumbered(guide.model, sites, order), guide.prior)
        if not bool(torch.isclose(swapped, log_prior, rtol=1e-5, atol=1e-5)):
            return 0.0
    return math.lgamma(num + 1) - math.lgamma(num - occupied + 1)


def _renumbered(model: Any, sites: Sites, order: list[int]) -> Sites:
    """Number the components of one set of sites otherwise."""
    index = {name: axes.index("component") for name, axes in model.dims.items() if "component" in axes}
    return {name: value[(slice(None),) * index[name] + (order,)] if name in index else value
            for name, value in sites.items()}  # fmt: skip
