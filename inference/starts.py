"""Where SVI, MAP, Laplace and MCMC start: a short EM run where the model has one, else a path from the prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from probmix.errors import MethodError
from probmix.inference.em import EM, EMState
from probmix.inference.first_points import first_finite, given_points, require_finite, tries
from probmix.inference.method import Problem
from probmix.inference.pathfinder import pathfinder
from probmix.log_density import LogDensity
from probmix.typing import ClosedFormMixture, Sites, Starting

__all__ = ["Start", "short_em", "starting_points"]

_Name: TypeAlias = Literal["auto", "em", "pathfinder", "prior", "random"]

#: A start: by name (one of these, or of the program's own), or sites with or without a leading axis of starts.
Start: TypeAlias = _Name | str | Mapping[str, Tensor]

_EM_PER_START = 5  # short runs behind each start, of which the best is taken: guards against a bad local optimum
_EM_STEPS = 50
_GUESSES = 16  # of the program's own behind each start, of which the likeliest is taken: a value costs less than a step
_PATHS = 16  # at least so many paths of Pathfinder, shared out among the starts; of its share each takes the best


def starting_points(
    problem: Problem,
    density: LogDensity,
    init: Start,
    num: int,
    *,
    jitter_std: float = 0.0,
    otherwise: Literal["pathfinder", "prior"] = "pathfinder",
) -> Tensor:
    """Return unconstrained starting points ``(num, dim)`` with a finite log density.

    - ``"em"`` runs EM for each start apart, so that starts (and chains) are independent of each other and their
      labels too;
    - ``"pathfinder"`` climbs from the prior and draws each start from the best normal approximation along a path of
      its own (Zhang et al. 2022): it is inside the typical set, however far that is from the prior;
    - ``"prior"`` draws from the program's prior, of ten draws the first with a finite density; failing that, at random;
    - ``"random"`` draws each coordinate uniformly from (-2, 2), as Stan does;
    - ``"auto"`` is ``"em"`` for models with a closed form, else ``otherwise``. A program that cannot run as a batch
      starts from the prior, since a path of its own for each start would take longer than it saves;
    - a program that makes guesses itself (`probmix.typing.Starting`) is asked for them by a name of its own, or by
      ``"auto"``; of some for each start the likeliest is taken. Paths of Pathfinder climb from such guesses.

    Args:
        problem: program, data and seed.
        density: the log density whose coordinates are meant.
        init: the start.
        num: number of starts.
        jitter_std: standard deviation of noise added to each coordinate.
        otherwise: what ``"auto"`` is for programs without a closed form; methods that climb need no path first.

    Raises:
        MethodError: unknown name, wrong number of starts, or ``"em"`` for a program without a closed form.
        ProgramError: no start has a finite log density; the message names the site.

    Example:
        >>> from probmix.arguments import Arguments
        >>> from probmix.datasets import load_faithful
        >>> from probmix.models import GaussianMixture
        >>> problem = Problem(GaussianMixture(2, "spherical"), Arguments.of(load_faithful().x), 0)
        >>> starting_points(problem, problem.log_density, "em", 4).shape  # weights 1, loc 4, var 2
        torch.Size([4, 7])
    """
    if isinstance(init, Mapping):
        z = given_points(density, init, num)
    else:
        z = _named(problem, density, _chosen(problem, density, init, otherwise), num)
    if jitter_std:
        spread = z + jitter_std * torch.randn_like(z)
        z = torch.where(density.value(spread).isfinite()[:, None], spread, z)
    require_finite(density, z)
    return z


def _chosen(problem: Problem, density: LogDensity, init: str, otherwise: str) -> str:
    own = problem.program.start_names if isinstance(problem.program, Starting) else ()
    if init not in (*get_args(_Name), *own):
        names = ", ".join(f'"{name}"' for name in (*get_args(_Name), *own))
        raise MethodError(f"init: expected {names} or sites, got {init!r}. Change the setting init=.")
    if init != "auto":
        return init
    if isinstance(problem.program, ClosedFormMixture):
        return "em"
    if density.batching == "loop" or otherwise == "prior":
        return own[0] if own else "prior"
    return otherwise


def _named(problem: Problem, density: LogDensity, name: str, num: int) -> Tensor:
    program = problem.program
    if isinstance(program, Starting) and name in program.start_names:
        return _guessed(program, problem, density, name, num)
    if name == "em":
        return density.unconstrain(short_em(problem, num))
    if name == "pathfinder":
        return _pathfinder(problem, density, num)
    return first_finite(density, tries(problem, density, num, prior=name == "prior"))


def _guessed(program: Starting, problem: Problem, density: LogDensity, name: str, num: int) -> Tensor:
    """Return for each start the likeliest of some guesses of the program's own."""
    guesses = density.unconstrain(program.starts(name, num * _GUESSES, *problem.arguments.tensors))
    best = density.value(guesses).nan_to_num(-torch.inf, -torch.inf).reshape(num, _GUESSES).argmax(-1)
    return guesses.reshape(num, _GUESSES, -1)[torch.arange(num, device=best.device), best]


def short_em(problem: Problem, num: int) -> Sites:
    """Return sites ``(num, ...)``, each the best of a few short runs of EM of its own.

    Example:
        >>> from probmix.arguments import Arguments
        >>> from probmix.datasets import load_faithful
        >>> from probmix.models import GaussianMixture
        >>> short_em(Problem(GaussianMixture(2), Arguments.of(load_faithful().x), 0), 3)["loc"].shape
        torch.Size([3, 2, 2])
    """
    em = EM(restarts=num * _EM_PER_START, max_steps=_EM_STEPS, tolerance=1e-3)
    state = em.start(problem)
    while em.status(problem, state) is None:
        state = em.step(problem, state)
    assert isinstance(state, EMState)
    objectives = torch.stack(state.objectives, -1).nan_to_num(-torch.inf).amax(-1)
    best = (
        objectives.reshape(num, _EM_PER_START).argmax(-1) + torch.arange(num, device=objectives.device) * _EM_PER_START
    )
    sites = {name: value[best] for name, value in state.sites.items()}
    return {name: _interior(value) if name == "weights" else value for name, value in sites.items()}


def _interior(weights: Tensor) -> Tensor:
    """Move weights off the edge of the simplex, which is infinitely far away on the unconstrained scale."""
    return 0.99 * weights + 0.01 / weights.shape[-1]


def _pathfinder(problem: Problem, density: LogDensity, num: int) -> Tensor:
    """Draw from the best normal approximation of each start's own paths; where that is not finite, take the mode."""
    group = -(-_PATHS // num)
    if isinstance(problem.program, Starting):
        first = _guessed(problem.program, problem, density, problem.program.start_names[0], num * group)
    else:
        first = first_finite(density, tries(problem, density, num * group, prior=True))
    paths = pathfinder(density.value_and_grad, first)
    best = paths.elbo.reshape(num, group).argmax(-1) + torch.arange(num, device=first.device) * group
    draws = paths.normals.sample(1)[0][best, 0]
    usable = paths.elbo[best].isfinite() & density.value(draws.nan_to_num()).isfinite()
    return torch.where(usable[:, None], draws, paths.mode[best])
