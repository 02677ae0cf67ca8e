"""Expectation-maximisation in closed form, all restarts as one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from probmix.errors import MethodError
from probmix.inference.method import AbstractMethod, Problem, common, require
from probmix.inference.seeding import batch_of_sites, first_labels
from probmix.posterior import PointPosterior
from probmix.status import Status
from probmix.typing import ClosedFormMixture, Sites

__all__ = ["EM"]


class EMState(NamedTuple):
    """All restarts, side by side.

    Args:
        sites: each ``(restarts, ...)``.
        objectives: objective before every step, ``(restarts,)`` each; NaN once a restart has stopped.
        active: which restarts still run.
        collapsed: the component that lost its density, or -1.
        prior: the model's prior for these data.
    """

    sites: Sites
    objectives: tuple[Tensor, ...]
    active: Tensor
    collapsed: Tensor
    prior: Any


@dataclass(frozen=True)
class EM(AbstractMethod):
    r"""Expectation-maximisation (Dempster, Laird and Rubin 1977), for models with a closed form.

    Each step maximises the expected log joint, so that the objective never falls. A restart stops when Aitken's
    estimate of the gain still to come, ``g_t a / (1 - a)`` with ``g_t`` the last gain and ``a`` its ratio to the one
    before (Boehning et al. 1994), is below ``tolerance``: a bound on the distance to the optimum, not on the last
    step, which for slow convergence is many times smaller.

    Args:
        restarts: starts that run side by side; the best is kept, all are reported in ``posterior.objectives``.
        init: ``"kmeans++"`` (on columns scaled to unit variance), ``"random"`` labels, or sites to start from
            (one restart, or one for each entry of a leading axis).
        objective: ``"map"`` maximises the log joint density of data and sites, ``"ml"`` the log-likelihood.
        max_steps: at most so many steps.
        tolerance: largest estimated distance to the optimum, nats of the total objective.
        max_elements: size of the largest temporary tensor, elements; with more data the rows run in blocks.

    Raises:
        MethodError: the program has no closed form, or a setting is out of range.

    Example:
        >>> from probmix.datasets import load_iris
        >>> from probmix.inference import infer
        >>> from probmix.models import GaussianMixture
        >>> em = infer(GaussianMixture(3), load_iris().x, EM(restarts=5), seed=0)
        >>> em.sites()["loc"].shape, em.objectives.shape
        (torch.Size([3, 4]), torch.Size([5]))
    """

    restarts: int = 10
    init: Literal["kmeans++", "random"] | Mapping[str, Tensor] = "kmeans++"
    objective: Literal["map", "ml"] = "map"
    max_steps: int = 2000
    tolerance: float = 1e-6
    max_elements: int = 2**22

    def __post_init__(self) -> None:
        require(self.restarts >= 1, "restarts", "at least 1", self.restarts)
        require(self.max_steps >= 1, "max_steps", "at least 1", self.max_steps)
        require(self.tolerance > 0, "tolerance", "a positive number of nats", self.tolerance)
        require(self.objective in ("map", "ml"), "objective", '"map" or "ml"', self.objective)
        known = isinstance(self.init, Mapping) or self.init in ("kmeans++", "random")
        require(known, "init", '"kmeans++", "random" or sites', self.init)

    def start(self, problem: Problem) -> EMState:
        """Return the first state: labels from the chosen start, then one step under the prior."""
        model, x = _closed_form(problem), problem.arguments.args[0]
        prior = model.prior(x)
        if isinstance(self.init, Mapping):
            sites = batch_of_sites(model, x, self.init)
        else:
            labels = first_labels(x, model.num_components, self.restarts, self.init)
            sites = model.maximise(self._label_statistics(model, x, labels), prior)
        active = x.new_ones(next(iter(sites.values())).shape[0], dtype=torch.bool)
        return EMState(sites, (), active, torch.full_like(active, -1, dtype=torch.long), prior)

    def step(self, problem: Problem, state: EMState) -> EMState:
        """Return the state after one expectation and one maximisation of every restart that still runs."""
        model, x = _closed_form(problem), problem.arguments.args[0]
        rows = state.active.nonzero().squeeze(-1)
        sites = {name: value[rows] for name, value in state.sites.items()}
        log_likelihood, statistics = self._expectation(model, x, sites)
        objective = self._objective(model, log_likelihood, sites, state.prior)
        proposal = model.maximise(statistics, state.prior if self.objective == "map" else None)
        singular = model.singular_components(proposal)
        healthy = ~singular.any(-1) & objective.isfinite()
        accepted = {name: torch.where(_like(healthy, v), v, sites[name]) for name, v in proposal.items()}
        objectives = (
            *state.objectives,
            torch.full_like(state.active, torch.nan, dtype=x.dtype).index_put((rows,), objective),
        )
        going_on = healthy & (self._remaining(objectives)[rows] > self.tolerance)
        return EMState(
            sites={name: v.index_copy(0, rows, accepted[name]) for name, v in state.sites.items()},
            objectives=objectives,
            active=state.active.index_put((rows,), going_on),
            collapsed=state.collapsed.index_put((rows,), torch.where(healthy, -1, singular.int().argmax(-1))),
            prior=state.prior,
        )

    def status(self, problem: Problem, state: EMState) -> Status | None:
        """Return how the fit ended, or None to go on."""
        if state.objectives and not state.active.any():
            return self._verdict(state)
        if len(state.objectives) >= self.max_steps:
            left = float(self._remaining(state.objectives)[state.active].max())
            gain = f"about {left:.2g} nats" if left < torch.inf else "an unknown amount"
            return Status(
                "max_steps",
                f"EM() stopped after {self.max_steps} steps with {gain} still to gain in the slowest restart. "
                f"Raise max_steps, or loosen tolerance={self.tolerance:g}.",
            )
        return None

    def finish(self, problem: Problem, state: EMState, status: Status) -> PointPosterior:
        """Return the best restart; the objective is that of the sites returned."""
        model, x = _closed_form(problem), problem.arguments.args[0]
        log_likelihood, _ = self._expectation(model, x, state.sites)
        objectives = self._objective(model, log_likelihood, state.sites, state.prior)
        objectives = torch.where(state.collapsed >= 0, torch.nan, objectives)
        best = objectives.nan_to_num(-torch.inf).argmax()
        return PointPosterior(
            **common(self, problem, status),
            history={"objective": torch.stack([*state.objectives, objectives], -1)},
            point={name: value[best] for name, value in state.sites.items()},
            objective=float(objectives[best]),
            objectives=objectives,
        )

    def progress(self, state: EMState) -> tuple[int, int]:
        """Return steps done and steps at most."""
        return len(state.objectives), self.max_steps

    def figures(self, state: EMState) -> Mapping[str, str]:
        """Return the best objective and the number of restarts still running."""
        best = state.objectives[-1].nan_to_num(-torch.inf).max()
        return {"objective": f"{float(best):.4f}", "running": str(int(state.active.sum()))}

    def _verdict(self, state: EMState) -> Status:
        failed = state.collapsed >= 0
        if not failed.all():
            note = f"; {int(failed.sum())} of {len(failed)} restarts collapsed and were dropped" if failed.any() else ""
            return Status("converged", f"within about {self.tolerance:g} nats of a local optimum{note}")
        return Status(
            "failed",
            f"component {int(state.collapsed[0])} collapsed onto too few distinct points, where the likelihood has no "
            f'maximum, in all {len(failed)} restarts. Use objective="map" (its prior keeps every covariance positive), '
            "fewer components, or a simpler covariance.",
        )

    def _objective(self, model: ClosedFormMixture, log_likelihood: Tensor, sites: Sites, prior: Any) -> Tensor:
        return log_likelihood + model.log_prior(sites, prior) if self.objective == "map" else log_likelihood

    def _remaining(self, objectives: tuple[Tensor, ...]) -> Tensor:
        """Aitken's estimate of what is still to gain; 0 once the last gain is lost in rounding."""
        if len(objectives) < 3:
            return torch.full_like(objectives[-1], torch.inf)
        before, last = objectives[-2] - objectives[-3], objectives[-1] - objectives[-2]
        ratio = last / before
        estimate = torch.where((ratio >= 0) & (ratio < 1), last * ratio / (1 - ratio), torch.inf)
        rounding = 16 * torch.finfo(last.dtype).eps * objectives[-1].abs()
        return torch.where(last <= rounding, 0.0, estimate)

    def _expectation(self, model: ClosedFormMixture, x: Tensor, sites: Sites) -> tuple[Tensor, Any]:
        """Return the log-likelihood ``(restarts,)`` and the expected statistics, summed over blocks of rows."""
        restarts = next(iter(sites.values())).shape[0]
        log_likelihood, statistics = x.new_zeros(restarts), None
        for block in x.split(self._block_rows(model, x, restarts)):
            log_joint = model.log_prob_components(block, sites)
            log_norm = log_joint.logsumexp(-1)
            log_likelihood = log_likelihood + log_norm.sum(-1)
            part = model.sufficient_statistics(block, (log_joint - log_norm[..., None]).exp())
            statistics = part if statistics is None else statistics + part
        return log_likelihood, statistics

    def _label_statistics(self, model: ClosedFormMixture, x: Tensor, labels: Tensor) -> Any:
        statistics, rows = None, self._block_rows(model, x, labels.shape[0])
        for block, block_labels in zip(x.split(rows), labels.split(rows, -1), strict=True):
            one_hot = torch.nn.functional.one_hot(block_labels, model.num_components).to(x.dtype)
            part = model.sufficient_statistics(block, one_hot)
            statistics = part if statistics is None else statistics + part
        return statistics

    def _block_rows(self, model: ClosedFormMixture, x: Tensor, restarts: int) -> int:
        return max(1, self.max_elements // (restarts * model.num_components * max(1, x[:1].numel())))


def _closed_form(problem: Problem) -> ClosedFormMixture:
    if isinstance(problem.program, ClosedFormMixture):
        return problem.program
    name = getattr(problem.program, "__name__", type(problem.program).__name__)
    raise MethodError(
        f"EM() needs a model with a closed form, such as probmix.models.GaussianMixture; got the program {name!r}. "
        "MAP(), SVI() and NUTS() run any Pyro program."
    )


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (value.dim() - 1))
