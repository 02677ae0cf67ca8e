"""Where a climb begins: given sites, or the first of some draws that has a finite density."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from probmix.errors import MethodError, ProgramError
from probmix.inference.method import Problem
from probmix.log_density import LogDensity
from probmix.simulation import trace_sites

__all__ = ["first_finite", "given_points", "require_finite", "tries"]

_PRIOR_TRIES = (1, 9)  # points tried for each start; nearly always the first will do
_RANDOM_TRIES = (1, 9, *[10] * 9)  # 100 in all, as in Stan


def given_points(density: LogDensity, init: Mapping[str, Tensor], num: int) -> Tensor:
    """Return the unconstrained points of sites, ``(num, dim)``; sites without an axis of starts serve for all.

    Raises:
        MethodError: another number of starts.

    Example:
        >>> from probmix.arguments import Arguments
        >>> from probmix.datasets import load_faithful
        >>> from probmix.models import GaussianMixture
        >>> problem = Problem(GaussianMixture(1, "spherical"), Arguments.of(load_faithful().x), 0)
        >>> sites = {"weights": torch.ones(1), "loc": torch.zeros(3, 1, 2), "var": torch.ones(3, 1)}
        >>> given_points(problem.log_density, sites | {"weights": torch.ones(3, 1)}, 3).shape  # loc 2, var 1
        torch.Size([3, 3])
    """
    z = density.unconstrain(init)
    if z.dim() > 1 and len(z) != num:
        raise MethodError(
            f"init: expected sites for one start or for {num} (a leading axis of that length), got {len(z)}. "
            "Pass one set of sites, e.g. another fit's posterior.sites()."
        )
    return z.expand(num, -1).clone()


def tries(problem: Problem, density: LogDensity, num: int, *, prior: bool) -> Iterator[Tensor]:
    """Yield points to try for each start, ``(num, tries, dim)``: from the prior, then uniform on (-2, 2).

    Example:
        >>> from probmix.arguments import Arguments
        >>> from probmix.datasets import load_faithful
        >>> from probmix.models import GaussianMixture
        >>> problem = Problem(GaussianMixture(1, "spherical"), Arguments.of(load_faithful().x), 0)
        >>> next(tries(problem, problem.log_density, 5, prior=False)).shape
        torch.Size([5, 1, 3])
    """
    data = problem.arguments
    for count in _PRIOR_TRIES if prior else ():
        draws = trace_sites(lambda: data.call(problem.program), num * count, condition_on_data=True)
        z = density.unconstrain({site.name: draws[site.name] for site in density.latents})
        yield z.reshape(num, count, -1)
    for count in _RANDOM_TRIES:
        yield 4 * torch.rand(num, count, density.dim, dtype=data.dtype, device=data.device) - 2


def first_finite(density: LogDensity, blocks: Iterator[Tensor]) -> Tensor:
    """Take, for each start, the first of its tries that has a finite density, ``(num, dim)``.

    Raises:
        ProgramError: none has; it names the site at fault.

    Example:
        >>> from probmix.arguments import Arguments
        >>> from probmix.datasets import load_faithful
        >>> from probmix.models import GaussianMixture
        >>> problem = Problem(GaussianMixture(1, "spherical"), Arguments.of(load_faithful().x), 0)
        >>> first_finite(problem.log_density, tries(problem, problem.log_density, 5, prior=False)).shape
        torch.Size([5, 3])
    """
    first, found = _finite(density, next(blocks))
    while not bool(found.all()) and (block := next(blocks, None)) is not None:
        here, finite = _finite(density, block)
        first, found = torch.where(found[:, None], first, here), found | finite
    require_finite(density, first)
    return first


def _finite(density: LogDensity, block: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's first point of ``(num, tries, dim)`` that has a finite density, and whether there is one."""
    finite = density.value(block).isfinite()
    return block[torch.arange(len(block), device=block.device), finite.int().argmax(-1)], finite.any(-1)


def require_finite(density: LogDensity, z: Tensor) -> None:
    """Raise unless the log density is finite at all points ``(num, dim)``.

    Raises:
        ProgramError: it names the site at fault.

    Example:
        >>> from probmix.arguments import Arguments
        >>> from probmix.datasets import load_faithful
        >>> from probmix.models import GaussianMixture
        >>> problem = Problem(GaussianMixture(1, "spherical"), Arguments.of(load_faithful().x), 0)
        >>> require_finite(problem.log_density, torch.zeros(2, 3))
    """
    finite = density.value(z).isfinite()
    if finite.all():
        return
    name, value = density.blame(z[int((~finite).int().argmax())])
    raise ProgramError(
        f"expected a finite log density at the start, but site {name!r} has log density {value} there. "
        "Check its distribution against its values (support, units, NaN in the data), or pass init= with sites "
        "inside the support."
    )
