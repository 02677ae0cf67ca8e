"""Generalised EM for processes with a common random variance: its expectation in closed form, then L-BFGS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from probmix.errors import MethodError
from probmix.inference.ascent import minus
from probmix.inference.first_points import first_finite, given_points, require_finite, tries
from probmix.inference.lbfgs import start, step
from probmix.inference.method import Problem
from probmix.inference.stopping import still_to_gain
from probmix.log_density import LogDensity
from probmix.typing import LatentScale, Sites

__all__ = ["SCALE_SITE", "first_state", "next_state", "points"]

SCALE_SITE = "scale_var"
_EVALUATIONS = 8  # of the expected log joint in one maximisation: it need not reach the top, only rise


class ScaleState(NamedTuple):
    """All restarts, side by side.

    Args:
        z: unconstrained hyperparameters, ``(restarts, dim)``.
        objectives: log joint density before every step, ``(restarts,)`` each, the scale integrated out.
        active: which restarts still run.
        given: the log density with the scale as one more site.
        marginal: the log density with the scale integrated out.
    """

    z: Tensor
    objectives: tuple[Tensor, ...]
    active: Tensor
    given: LogDensity
    marginal: LogDensity


def first_state(problem: Problem, model: LatentScale, init: Mapping[str, Tensor] | None, restarts: int) -> ScaleState:
    """Return the first state, from given sites, or from draws of the prior.

    Raises:
        MethodError: the scale prior has unknowns of its own, whose maximisation is not of this form.

    Example:
        >>> from probmix.arguments import Arguments
        >>> from probmix.models import ScaleMixtureNNGP
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> model = ScaleMixtureNNGP()
        >>> state = first_state(Problem(model, Arguments.of((x, x[:, 0] ** 2)), 0), model, None, 3)
        >>> state.z.shape
        torch.Size([3, 4])
    """
    given = LogDensity(model.given_scale(), problem.arguments)
    names, own = {site.name for site in problem.log_density.latents}, {site.name for site in given.latents}
    if own - names != {SCALE_SITE} or model.scale_has_unknowns:
        raise MethodError(
            f"EM() needs a scale prior without unknowns of its own, and the scale integrated out; got the sites "
            f"{sorted(own)}. Fix the parameters of the scale prior (df=4.0), or use MAP(), SVI() or NUTS()."
        )
    density = problem.log_density
    if init is None:
        z = first_finite(density, tries(problem, density, restarts, prior=True))
    else:
        z = given_points(density, init, restarts)
        require_finite(density, z)
    active = torch.ones(len(z), dtype=torch.bool, device=z.device)
    return ScaleState(z, (), active, given, density)


def next_state(problem: Problem, model: LatentScale, state: ScaleState, tolerance: float) -> ScaleState:
    r"""Return the state after an expectation and a maximisation of every restart that still runs.

    The expected log joint is linear in :math:`E[1 / s \mid y]`, so it is, up to a constant, the log joint at the one
    value :math:`s^* = 1 / E[1 / s \mid y]`; for an inverse gamma prior
    :math:`s^* = (2 b + q) / (2 a + n)`.

    Example:
        >>> from probmix.arguments import Arguments
        >>> from probmix.models import ScaleMixtureNNGP
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> model = ScaleMixtureNNGP()
        >>> problem = Problem(model, Arguments.of((x, x[:, 0] ** 2)), 0)
        >>> state = first_state(problem, model, None, 2)
        >>> after = next_state(problem, model, state, 1e-6)
        >>> bool((points(after)[1] > points(state)[1]).all())
        True
    """
    objective = state.marginal.value(state.z, jacobian=False)
    x, y = problem.arguments.args
    scale = model.expected_scale(x, y, state.marginal.constrain(state.z))
    climbed = _maximised(state, scale.detach())
    z = torch.where(state.active[:, None] & climbed.isfinite().all(-1, keepdim=True), climbed, state.z)
    objectives = (*state.objectives, objective)
    active = state.active & objective.isfinite() & (still_to_gain(objectives[-3:]) > tolerance)
    return state._replace(z=z, objectives=objectives, active=active)


def points(state: ScaleState) -> tuple[Sites, Tensor]:
    """Return the hyperparameters of every restart and their log joint density.

    Example:
        >>> from probmix.arguments import Arguments
        >>> from probmix.models import ScaleMixtureNNGP
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> model = ScaleMixtureNNGP()
        >>> problem = Problem(model, Arguments.of((x, x[:, 0] ** 2)), 0)
        >>> sites, log_joint = points(first_state(problem, model, None, 2))
        >>> sites["noise_var"].shape, log_joint.shape
        (torch.Size([2]), torch.Size([2]))
    """
    return state.marginal.constrain(state.z), state.marginal.value(state.z, jacobian=False)


def _maximised(state: ScaleState, scale: Tensor) -> Tensor:
    """Return hyperparameters of a higher log joint at fixed scales ``(restarts,)``."""
    given = state.given
    sites = state.marginal.constrain(state.z)
    full = given.unconstrain({**sites, SCALE_SITE: scale})
    (place,) = (site.slice for site in given.latents if site.name == SCALE_SITE)
    moving = torch.ones(given.dim, dtype=torch.bool, device=full.device)
    moving[place] = False

    def log_joint(z: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = given.value_and_grad(z, jacobian=False)
        return value, gradient * moving

    search = start(minus(log_joint), full)
    for _ in range(_EVALUATIONS):
        search = step(minus(log_joint), search)
    reached = given.constrain(search.point)
    return state.marginal.unconstrain({name: value for name, value in reached.items() if name != SCALE_SITE})
