"""Where SVI, MAP and MCMC start: a short EM run where the model has one, else at random inside the support."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from probmix.errors import MethodError, ProgramError
from probmix.inference.em import EM
from probmix.inference.method import Problem
from probmix.log_density import LogDensity
from probmix.typing import ClosedFormMixture, Sites

__all__ = ["Start", "starting_points"]

#: A start: by name, or sites with or without a leading axis of starts.
Start: TypeAlias = Literal["auto", "em", "random"] | Mapping[str, Tensor]

_EM_PER_START = 5  # short runs behind each start, of which the best is taken: guards against a bad local optimum
_EM_STEPS = 50
_TRIES = 100  # random points tried for each start, as in Stan


def starting_points(problem: Problem, density: LogDensity, init: Start, num: int, *, jitter_std: float = 0.0) -> Tensor:
    """Return unconstrained starting points ``(num, dim)`` with a finite log density.

    ``"em"`` runs EM for each start apart, so that starts (and chains) are independent of each other and their labels
    too; ``"random"`` draws each coordinate uniformly from (-2, 2), as Stan does; ``"auto"`` is ``"em"`` for models
    with a closed form and ``"random"`` for other programs.

    Args:
        problem: program, data and seed.
        density: the log density whose coordinates are meant.
        init: the start.
        num: number of starts.
        jitter_std: standard deviation of noise added to each coordinate.

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
        z = _given(density, init, num)
    elif init == "em" or (init == "auto" and isinstance(problem.program, ClosedFormMixture)):
        z = density.unconstrain(_short_em(problem, num))
    elif init in ("auto", "random"):
        return _random(density, num, problem.arguments.dtype)
    else:
        raise MethodError(f'init: expected "auto", "em", "random" or sites, got {init!r}. Change the setting init=.')
    spread = z + jitter_std * torch.randn_like(z)
    spread = torch.where(density.value(spread).isfinite()[:, None], spread, z)
    _require_finite(density, spread)
    return spread


def _short_em(problem: Problem, num: int) -> Sites:
    """Return sites ``(num, ...)``, each the best of a few short runs of its own."""
    em = EM(restarts=num * _EM_PER_START, max_steps=_EM_STEPS, tolerance=1e-3)
    state = em.start(problem)
    while em.status(problem, state) is None:
        state = em.step(problem, state)
    objectives = torch.stack(state.objectives, -1).nan_to_num(-torch.inf).amax(-1)
    best = (
        objectives.reshape(num, _EM_PER_START).argmax(-1) + torch.arange(num, device=objectives.device) * _EM_PER_START
    )
    sites = {name: value[best] for name, value in state.sites.items()}
    return {name: _interior(value) if name == "weights" else value for name, value in sites.items()}


def _interior(weights: Tensor) -> Tensor:
    """Move weights off the edge of the simplex, which is infinitely far away on the unconstrained scale."""
    return 0.99 * weights + 0.01 / weights.shape[-1]


def _given(density: LogDensity, init: Mapping[str, Tensor], num: int) -> Tensor:
    z = density.unconstrain(init)
    if z.dim() > 1 and len(z) != num:
        raise MethodError(
            f"init: expected sites for one start or for {num} (a leading axis of that length), got {len(z)}. "
            "Pass one set of sites, e.g. another fit's posterior.sites()."
        )
    return z.expand(num, -1).clone()


def _random(density: LogDensity, num: int, dtype: torch.dtype) -> Tensor:
    """Take, for each start, the first of its tries that has a finite density."""
    tries = 4 * torch.rand(num, _TRIES, density.dim, dtype=dtype) - 2
    finite = torch.zeros(num, _TRIES, dtype=torch.bool)
    for block in range(0, _TRIES, 10):  # nearly always the first block will do
        finite[:, block : block + 10] = density.value(tries[:, block : block + 10]).isfinite()
        if finite.any(-1).all():
            break
    first = tries[torch.arange(num), finite.int().argmax(-1)]
    _require_finite(density, first)
    return first


def _require_finite(density: LogDensity, z: Tensor) -> None:
    finite = density.value(z).isfinite()
    if finite.all():
        return
    name, value = density.blame(z[int((~finite).int().argmax())])
    raise ProgramError(
        f"expected a finite log density at the start, but site {name!r} has log density {value} there. "
        "Check its distribution against its values (support, units, NaN in the data), or pass init= with sites "
        "inside the support."
    )
