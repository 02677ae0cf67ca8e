"""Match the component labels of a mixture across draws and chains, on request and never silently.

The likelihood of a mixture does not change when its components trade places, so each chain, and each draw of a chain,
may number them in its own way. Means, intervals and r-hat of single components mean nothing until the numbers match.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol, TypeVar

from torch import Tensor

from probmix.relabel_draws import DrawsLike, MixtureDraws, mixture_draws
from probmix.relabel_parameters import Order, Pivot, match_reference
from probmix.relabel_permutations import Switches, count_switches, permute_sites
from probmix.relabel_responsibilities import ECR, Stephens
from probmix.typing import Dims

__all__ = [
    "ECR",
    "Order",
    "Pivot",
    "RelabelMethod",
    "Stephens",
    "Switches",
    "count_switches",
    "permutations_of",
    "permute_sites",
    "relabel",
]

PosteriorT = TypeVar("PosteriorT", bound=DrawsLike)

STEPHENS = Stephens()
"""What relabelling does unless told otherwise."""


class RelabelMethod(Protocol):
    """A rule that gives each draw its labels."""

    def permutations(self, draws: MixtureDraws) -> Tensor:
        """Labels ``(S, K)`` of draws laid end to end: slot ``k`` takes component ``permutations[s, k]``."""


def relabel(
    posterior: PosteriorT,
    method: RelabelMethod = STEPHENS,
    *,
    reference: Mapping[str, Tensor] | None = None,
    dims: Dims | None = None,
) -> PosteriorT:
    """Return the same posterior with ``draws[..., k] = old draws[..., permutation[k]]``, one permutation per draw.

    Args:
        posterior: a posterior made of draws; any frozen dataclass with the fields of `DrawsLike`.
        method: ``Stephens()``, ``ECR()``, ``Pivot()`` or ``Order()``.
        reference: sites without batch axes. One more permutation, the same for all draws, then brings the mean
            components closest to them, so that several results agree on their numbers.
        dims: axis names of each site, needed for plain programs only. Axes called ``"component"`` are permuted, all
            else stays as it is; sites whose *values* are component numbers are not translated.

    Raises:
        MethodError: a posterior without draws, unnamed axes, or a method that the program cannot serve.
        DataError: draws or responsibilities that are not finite.

    >>> import torch
    >>> Result = dataclasses.make_dataclass("Result", ["draws", "program", "args", "sample_stats"], frozen=True)
    >>> loc = torch.tensor([[[-2.0, 2.0], [2.1, -1.9]]])  # one chain, two draws, two components
    >>> result = Result({"loc": loc}, None, (), {})
    >>> relabel(result, Order("loc"), dims={"loc": ("component",)}).draws["loc"]
    tensor([[[-2.0000,  2.0000],
             [-1.9000,  2.1000]]])
    """
    draws = mixture_draws(posterior, dims)
    permutations = _permutations(posterior, draws, method, reference)
    relabelled = permute_sites(posterior.draws, permutations, draws.component_dims)
    return dataclasses.replace(posterior, draws=relabelled)  # type: ignore[type-var]


def permutations_of(
    posterior: DrawsLike,
    method: RelabelMethod = STEPHENS,
    *,
    reference: Mapping[str, Tensor] | None = None,
    dims: Dims | None = None,
) -> Tensor:
    """Permutations ``(chain, draw, K)`` that ``relabel`` applies with the same arguments, for inspection.

    `count_switches` says how often they change.

    Args:
        posterior: as for `relabel`.
        method: as for `relabel`.
        reference: as for `relabel`.
        dims: as for `relabel`.

    Raises:
        MethodError: as `relabel`.
        DataError: as `relabel`.

    >>> import torch
    >>> Result = dataclasses.make_dataclass("Result", ["draws", "program", "args", "sample_stats"], frozen=True)
    >>> result = Result({"loc": torch.tensor([[[-2.0, 2.0], [2.1, -1.9]]])}, None, (), {})
    >>> found = permutations_of(result, Order("loc"), dims={"loc": ("component",)})
    >>> found.tolist(), count_switches(found)
    ([[[0, 1], [1, 0]]], Switches(draws=1.0, chains=0.0))
    """
    return _permutations(posterior, mixture_draws(posterior, dims), method, reference)


def _permutations(
    posterior: DrawsLike, draws: MixtureDraws, method: RelabelMethod, reference: Mapping[str, Tensor] | None
) -> Tensor:
    permutations = method.permutations(draws)
    if reference is not None:
        permutations = match_reference(draws, permutations, reference)
    batch = next(iter(posterior.draws.values())).shape[:2]
    return permutations.unflatten(0, batch)
