"""Expectation-maximisation in closed form, all restarts as one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from probmix.errors import MethodError
from probmix.hierarchical import hierarchical_labels
from probmix.inference.em_latent_scale import ScaleState, first_state, next_state, points
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
from probmix.posterior import PointPosterior
from probmix.status import Status
from probmix.table import Table, check_row_weights
from probmix.typing import ClosedFormMixture, LatentScale, Sites

__all__ = ["EM"]

#: Where EM starts: by name, labels of the rows, or sites.
_Init: TypeAlias = LabelStart | Literal["short", "hierarchical"] | Tensor | Mapping[str, Tensor]

_NAMES = (*LABELS, "short", "hierarchical")
_SHORT_RUNS, _SHORT_STEPS = 5, 10  # short runs behind each restart, and their steps
_FIRST_POWER = 0.5  # where annealing begins: from lower ones components merge, and stay together
_CHECKED_ROWS = 1000  # of the data, at starting sites
_STEPS_BETWEEN_LOOKS = 4  # on a few hundred rows a look at what has converged or collapsed takes as long as a step


class EMState(NamedTuple):
    """All restarts, side by side.

    Args:
        sites: each ``(restarts, ...)``.
        objectives: objective before every step, ``(restarts,)`` each; NaN once a restart has stopped.
        active: which restarts still run.
        collapsed: the component that lost its density, or -1.
        prior: the model's prior for these data.
        table: the rows, ready for many passes.
        checked: the last state that was looked at, where that is not this one.
        careful: so many steps to come are looked at one by one.
    """

    sites: Sites
    objectives: tuple[Tensor, ...]
    active: Tensor
    collapsed: Tensor
    prior: Any
    table: Table
    checked: EMState | None = None
    careful: int = 0


@dataclass(frozen=True)
class EM(AbstractMethod):
    r"""Expectation-maximisation (Dempster, Laird and Rubin 1977), for models with a closed form.

    Each step maximises the expected log joint, so that the objective never falls (but see ``annealing`` and
    ``ridge_var``). A restart stops when Aitken's estimate of the gain still to come, ``g_t a / (1 - a)`` with ``g_t``
    the last gain and ``a`` its ratio to the one before (Boehning et al. 1994), is below ``tolerance``: a bound on the
    distance to the optimum, not on the last step, which for slow convergence is many times smaller.

    Starts by name take one step under the prior from labels of the rows (of 65,536 rows drawn at random if there are
    more): ``"kmeans++"`` (greedy, on columns scaled to unit variance), ``"kmeans"`` (twenty of Lloyd's steps from
    there), ``"random"`` labels, or ``"hierarchical"`` (`probmix.hierarchical.hierarchical_labels`, one restart).
    ``"short"`` takes for each restart the best of five short runs of ten steps each (em-EM).

    Args:
        restarts: starts that run side by side; the best is kept, all are reported in ``posterior.objectives``.
        init: ``"kmeans++"``, ``"kmeans"``, ``"random"``, ``"short"``, ``"hierarchical"``, labels of the rows
            ``(N,)``, or sites to start from (labels and sites: one restart, or one for each entry of a leading axis).
        objective: ``"map"`` maximises the log joint density of data and sites, ``"ml"`` the log-likelihood.
        max_steps: at most so many steps.
        tolerance: largest estimated distance to the optimum, nats of the total objective.
        row_weights: how many observations each row stands for, ``(N,)``, not negative; None: one each.
        annealing: over so many first steps, responsibilities are proportional to a power of weight times density that
            rises from 0.5 to 1 (deterministic annealing). The objective may fall meanwhile. It changes which optimum
            is found, not always for the better; ``init="short"`` is the surer remedy for poor starts.
        ridge_var: added to every variance that a maximum-likelihood step returns, in squared units of the data: no
            component can collapse, and the objective may fall. Constrained covariances keep their letters up to this.
        max_elements: size of the largest temporary tensor of the start, elements.

    Raises:
        MethodError: the program has no closed form, or a setting is out of range.

    Source:
        Ueda and Nakano (1998), Deterministic annealing EM algorithm, Neural Networks 11, 271-282; Biernacki, Celeux and
        Govaert (2003), Choosing starting values for the EM algorithm for getting the highest likelihood in
        multivariate Gaussian mixture models, Computational Statistics and Data Analysis 41, 561-575.

    Example:
        >>> from probmix.datasets import load_iris
        >>> from probmix.inference import infer
        >>> from probmix.models import GaussianMixture
        >>> em = infer(GaussianMixture(3), load_iris().x, EM(restarts=5), seed=0)
        >>> em.sites()["loc"].shape, em.objectives.shape
        (torch.Size([3, 4]), torch.Size([5]))
    """

    restarts: int = 10
    init: _Init = "kmeans++"
    objective: Literal["map", "ml"] = "map"
    max_steps: int = 2000
    tolerance: float = 1e-6
    row_weights: Tensor | None = None
    annealing: int = 0
    ridge_var: float = 0.0
    max_elements: int = 2**22

    def __post_init__(self) -> None:
        require(self.restarts >= 1, "restarts", "at least 1", self.restarts)
        require(self.max_steps >= 1, "max_steps", "at least 1", self.max_steps)
        require(self.tolerance > 0, "tolerance", "a positive number of nats", self.tolerance)
        require(self.objective in ("map", "ml"), "objective", '"map" or "ml"', self.objective)
        require(self.annealing >= 0, "annealing", "0 steps or more", self.annealing)
        require(self.ridge_var >= 0, "ridge_var", "0 or more, in squared units of the data", self.ridge_var)
        unused = not self.ridge_var or self.objective == "ml"
        require(unused, "ridge_var", '0 with objective="map", whose prior does what a ridge is for', self.ridge_var)
        known = isinstance(self.init, Mapping | Tensor) or self.init in _NAMES
        names = ", ".join(f'"{name}"' for name in _NAMES)
        require(known, "init", f"{names}, labels or sites", self.init)

    def start(self, problem: Problem) -> EMState | ScaleState:
        """Return the first state."""
        if isinstance(problem.program, LatentScale):
            return self._start_of_process(problem, problem.program)
        model = _closed_form(problem)
        x = model.rows(*problem.arguments.args)
        prior = model.prior(x)
        sites = self._first_sites(problem, model, x, prior)
        if self.ridge_var and not {"cov", "var"} & set(sites):
            raise MethodError(
                f"ridge_var: expected a model with a site cov or var, got one with {sorted(sites)}. Leave ridge_var=0."
            )
        active = x.new_ones(next(iter(sites.values())).shape[0], dtype=torch.bool)
        collapsed = torch.full_like(active, -1, dtype=torch.long)
        return EMState(sites, (), active, collapsed, prior, model.table(x, self.row_weights))

    def step(self, problem: Problem, state: EMState | ScaleState) -> EMState | ScaleState:
        """Return the state after one expectation and one maximisation of every restart that still runs."""
        if isinstance(state, ScaleState):
            return next_state(problem, problem.program, state, self.tolerance)  # type: ignore[arg-type]  # as start saw
        model: ClosedFormMixture = problem.program  # type: ignore[assignment]  # as start has seen; asking takes time
        rows = None if state.active.all() else state.active.nonzero().squeeze(-1)
        sites = state.sites if rows is None else {name: value[rows] for name, value in state.sites.items()}
        log_likelihood, statistics = model.expectation(self._tempered(state), sites)
        objective = self._objective(model, log_likelihood, sites, state.prior)
        proposal = self._ridged(model.maximise(statistics, state.prior if self.objective == "map" else None, sites))
        if rows is not None:
            proposal = {name: value.index_copy(0, rows, proposal[name]) for name, value in state.sites.items()}
            objective = torch.full_like(state.active, torch.nan, dtype=objective.dtype).index_put((rows,), objective)
        after = state._replace(
            sites=proposal,
            objectives=(*state.objectives, objective),
            checked=state if state.checked is None else state.checked,
            careful=max(0, state.careful - 1),
        )
        done = len(after.objectives)
        looking = state.careful or done % _STEPS_BETWEEN_LOOKS == 0 or done == self.max_steps
        return self._looked_at(model, state, after) if looking else after

    def _looked_at(self, model: ClosedFormMixture, before: EMState, after: EMState) -> EMState:
        """End the restarts that have converged, and those that have collapsed where they last were healthy.

        If one collapsed since the last look, go back there and look at every step.
        """
        singular = model.singular_components(after.sites) & after.active[:, None]
        broken = singular.any(-1) | (after.active & ~after.objectives[-1].isfinite())
        sites, collapsed = after.sites, after.collapsed
        if broken.any():
            if not before.careful and before.checked is not None:
                return before.checked._replace(careful=_STEPS_BETWEEN_LOOKS)
            sites = {
                name: torch.where(_like(broken, value), before.sites[name], value) for name, value in sites.items()
            }
            collapsed = torch.where(broken, singular.int().argmax(-1), collapsed)
        going_on = after.active & ~broken & (self._remaining(after.objectives) > self.tolerance)
        return after._replace(sites=sites, active=going_on, collapsed=collapsed, checked=None)

    def status(self, problem: Problem, state: EMState | ScaleState) -> Status | None:
        """Return how the fit ended, or None to go on."""
        if state.objectives and not state.active.any():
            return self._verdict_of_process(state) if isinstance(state, ScaleState) else self._verdict(state)
        if len(state.objectives) >= self.max_steps:
            left = float(self._remaining(state.objectives)[state.active].max())
            gain = f"about {left:.2g} nats" if left < torch.inf else "an unknown amount"
            return Status(
                "max_steps",
                f"EM() stopped after {self.max_steps} steps with {gain} still to gain in the slowest restart. "
                f"Raise max_steps, or loosen tolerance={self.tolerance:g}.",
            )
        return None

    def finish(self, problem: Problem, state: EMState | ScaleState, status: Status) -> PointPosterior:
        """Return the best restart; the objective is that of the sites returned."""
        sites, objectives = points(state) if isinstance(state, ScaleState) else self._points(problem, state)
        best = objectives.nan_to_num(-torch.inf).argmax()
        return PointPosterior(
            **common(self, problem, status),
            history={"objective": torch.stack([*state.objectives, objectives], -1)},
            point={name: value[best] for name, value in sites.items()},
            objective=float(objectives[best]),
            objectives=objectives,
        )

    def _points(self, problem: Problem, state: EMState) -> tuple[Sites, Tensor]:
        model = _closed_form(problem)
        log_likelihood, _ = model.expectation(state.table, state.sites)
        objectives = self._objective(model, log_likelihood, state.sites, state.prior)
        collapsed = (state.collapsed >= 0) | model.singular_components(state.sites).any(-1)
        return state.sites, torch.where(collapsed, torch.nan, objectives)

    def progress(self, state: EMState | ScaleState) -> tuple[int, int]:
        """Return steps done and steps at most."""
        return len(state.objectives), self.max_steps

    def figures(self, state: EMState | ScaleState) -> Mapping[str, str]:
        """Return the best objective and the number of restarts still running."""
        best = state.objectives[-1].nan_to_num(-torch.inf).max()
        return {"objective": f"{float(best):.4f}", "running": str(int(state.active.sum()))}

    def _verdict(self, state: EMState) -> Status:
        failed = state.collapsed >= 0
        if not failed.all():
            note = f"; {int(failed.sum())} of {len(failed)} restarts collapsed and were dropped" if failed.any() else ""
            return Status("converged", f"within about {self.tolerance:g} nats of a local optimum{note}")
        if not state.objectives[0].isfinite().any():
            return Status(
                "failed",
                f"component {int(state.collapsed[0])} and the log-likelihood are not a number at the start. Rescale "
                "the columns of the data to about unit variance.",
            )
        return Status(
            "failed",
            f"component {int(state.collapsed[0])} collapsed onto too few distinct points, where the likelihood has no "
            f'maximum, in all {len(failed)} restarts. Use objective="map" (its prior keeps every covariance positive), '
            "fewer components, or a simpler covariance.",
        )

    def _start_of_process(self, problem: Problem, model: LatentScale) -> ScaleState:
        default = {"objective": "map", "row_weights": None, "annealing": 0, "ridge_var": 0.0}
        for setting, value in default.items():
            got = getattr(self, setting)
            require(got is value or got == value, setting, f"{value!r} for a process with a random scale", got)
        if isinstance(self.init, Tensor):
            raise MethodError("init: expected sites or a name for a process with a random scale, got labels.")
        return first_state(problem, model, self.init if isinstance(self.init, Mapping) else None, self.restarts)

    def _verdict_of_process(self, state: ScaleState) -> Status:
        if state.objectives[-1].isfinite().any():
            return Status("converged", f"within about {self.tolerance:g} nats of a local optimum")
        return Status("failed", "the log density is not finite in any restart. Rescale the columns of the data.")

    def _objective(self, model: ClosedFormMixture, log_likelihood: Tensor, sites: Sites, prior: Any) -> Tensor:
        return log_likelihood + model.log_prior(sites, prior) if self.objective == "map" else log_likelihood

    def _remaining(self, objectives: tuple[Tensor, ...]) -> Tensor:
        """Estimate what is still to gain, from the steps after annealing; with a ridge, what is still to change."""
        last = objectives[self.annealing :][-3:]
        if not last:
            return torch.full_like(objectives[-1], torch.inf)
        if self.ridge_var:  # a fall is as good as a rise
            changes = torch.stack(last).diff(dim=0).abs()
            last = (last[0], *(last[0] + changes.cumsum(0)))
        return still_to_gain(last)

    def _tempered(self, state: EMState) -> Table:
        done = len(state.objectives)
        return (
            replace(state.table, power=_FIRST_POWER ** (1 - done / self.annealing))
            if done < self.annealing
            else state.table
        )

    def _ridged(self, sites: Sites) -> Sites:
        """Add the ridge to every variance."""
        if not self.ridge_var:
            return sites
        ridged = dict(sites)
        if "cov" in sites:
            cov = sites["cov"]
            ridged["cov"] = cov + self.ridge_var * torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
        if "var" in sites:
            ridged["var"] = sites["var"] + self.ridge_var
        return ridged

    def _first_sites(self, problem: Problem, model: ClosedFormMixture, x: Tensor, prior: Any) -> Sites:
        init, weights = self.init, check_row_weights(self.row_weights, x)
        if isinstance(init, Mapping):
            return _with_density(model, x, batch_of_sites(model, x, init))
        if init == "short" and not isinstance(init, Tensor):
            return self._best_of_short_runs(problem)
        if isinstance(init, Tensor):
            labels = given_labels(init, x, model.num_components)
        else:
            x, weights = some_rows(x, weights)
            if init == "hierarchical":
                labels = hierarchical_labels(x, model.num_components, seed=problem.seed)[None]
            else:
                labels = first_labels(x, model.num_components, self.restarts, init, weights)
        return model.maximise(label_statistics(model, x, labels, weights, self.max_elements), prior)

    def _best_of_short_runs(self, problem: Problem) -> Sites:
        short = replace(self, restarts=_SHORT_RUNS * self.restarts, init="kmeans++", max_steps=_SHORT_STEPS)
        state = short.start(problem)
        while short.status(problem, state) is None:
            state = short.step(problem, state)
        assert isinstance(state, EMState)
        reached = torch.stack(state.objectives, -1).nan_to_num(-torch.inf).amax(-1)
        best = reached.reshape(self.restarts, _SHORT_RUNS).argmax(-1)
        best = best + _SHORT_RUNS * torch.arange(self.restarts, device=best.device)
        return {name: value[best] for name, value in state.sites.items()}


def _closed_form(problem: Problem) -> ClosedFormMixture:
    if isinstance(problem.program, ClosedFormMixture):
        return problem.program
    name = getattr(problem.program, "__name__", type(problem.program).__name__)
    raise MethodError(
        f"EM() needs a model with a closed form, such as probmix.models.GaussianMixture; got the program {name!r}. "
        "MAP(), SVI() and NUTS() run any Pyro program."
    )


def _with_density(model: ClosedFormMixture, x: Tensor, sites: Sites) -> Sites:
    log_prob = model.log_prob_components(x[:_CHECKED_ROWS], sites)
    undefined = (log_prob.isnan() | log_prob.isposinf()).any(-2).nonzero()
    if len(undefined):
        raise MethodError(
            f"init: expected sites at which every component has a density, got none for component "
            f"{int(undefined[0, -1])} (its log density is not a number). Pass covariances that are positive definite, "
            "variances above 0 and weights of 0 or more."
        )
    return sites


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (value.dim() - 1))
