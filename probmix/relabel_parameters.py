"""Relabelling by the parameters of the components alone: pivotal reordering and an ordering constraint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from probmix.errors import MethodError
from probmix.relabel_draws import MixtureDraws
from probmix.relabel_permutations import COMPONENT, assign, permute_sites

__all__ = ["Order", "Pivot", "match_reference"]


@dataclass(frozen=True, eq=False)
class Pivot:
    """Match labels so that the parameters of the components lie closest to those of a pivot.

    ``argmin_perm sum_k ||theta_perm(k) - pivot_k||^2`` for each draw, over standardised entries (the pivotal reordering
    of Marin, Mengersen and Robert 2005, "Bayesian modelling and inference on mixtures of distributions", Handbook of
    Statistics 25; the standardisation is ours). Each entry is divided by the standard deviation over draws of its
    sorted values, pooled over ranks. That needs no labels, and it is the spread within a component wherever the entry
    separates the components: entries that tell components apart count for more than entries that do not.

    Args:
        pivot: site name -> value without batch axes; by default the draw of highest log joint density.
        sites: names of the sites to compare; by default every site of the pivot with one component axis.

    >>> Pivot(sites=("loc",)).sites
    ('loc',)
    """

    pivot: Mapping[str, Tensor] | None = None
    sites: tuple[str, ...] | None = None

    def permutations(self, draws: MixtureDraws) -> Tensor:
        """Labels of every draw, ``(S, K)``; ``MethodError`` where there is no pivot or it does not fit the draws."""
        pivot = self.pivot if self.pivot is not None else self._best(draws)
        names = _comparable(draws, pivot, self.sites, "pivot")
        entries = _entries(draws, draws.sites, names)
        return assign(_costs(_entries(draws, _batched(pivot, draws), names), entries, _entry_std(entries)))

    def _best(self, draws: MixtureDraws) -> dict[str, Tensor]:
        best = draws.best()
        if best is None:
            raise MethodError(
                "Pivot takes the draw of highest log joint density; sample_stats has no 'lp' and the program has no "
                "'log_joint'. Pass Pivot(pivot=sites), for example the sites of an EM fit, or use Order()."
            )
        return {name: value[best] for name, value in draws.sites.items()}


@dataclass(frozen=True)
class Order:
    """Sort the components of each draw by one entry of a site, smallest first.

    ``theta_perm(1) <= theta_perm(2) <= ...`` with ``theta = site[index]``: an ordering constraint imposed after
    sampling, for each draw alone. It labels well only where that entry separates the components.

    Args:
        site: name of a site with one component axis.
        index: the entry along its other axes, one integer for each of them; a site with nothing but the component axis
            needs none. ``Order("cov", (0, 0))`` sorts by the first variance.

    >>> Order("weights")
    Order(site='weights', index=0)
    """

    site: str = "loc"
    index: int | tuple[int, ...] = 0

    def permutations(self, draws: MixtureDraws) -> Tensor:
        """Labels of every draw, ``(S, K)``; ``MethodError`` where the site or the entry does not exist."""
        axes = draws.component_dims.get(self.site, ())
        if axes.count(COMPONENT) != 1:
            raise MethodError(
                f"expected Order(site=...) to name one of {_single(draws)}, the sites with one component axis; got "
                f"{self.site!r}. Choose one of them."
            )
        values = draws.sites[self.site].movedim(1 + axes.index(COMPONENT), 1)
        every: tuple[EllipsisType | int, ...] = (..., *self._position(values.shape[2:]))
        return values[every].argsort(dim=1, stable=True)

    def _position(self, shape: torch.Size) -> tuple[int, ...]:
        """Write the index as one integer per axis of ``shape``."""
        position = self.index if isinstance(self.index, tuple) else (self.index,)
        if not shape and position == (0,):
            return ()
        if len(position) != len(shape) or any(not -n <= i < n for i, n in zip(position, shape, strict=True)):
            raise MethodError(
                f"expected Order(index=...) to pick one entry of shape {tuple(shape)} for each component of site "
                f"{self.site!r}; got {self.index!r}. Give one integer for each of these axes."
            )
        return position


def match_reference(draws: MixtureDraws, permutations: Tensor, reference: Mapping[str, Tensor]) -> Tensor:
    """Compose relabelled draws with the one permutation that brings their mean closest to ``reference`` sites.

    Distances are those of `Pivot`.

    Args:
        draws: the draws as they came.
        permutations: what relabels them, ``(S, K)``; the result has the same shape.
        reference: sites without batch axes.

    Raises:
        MethodError: the reference does not fit the draws.

    >>> sites = {"loc": torch.tensor([[0.0, 9.0], [1.0, 8.0]])}
    >>> draws = MixtureDraws(sites, {"loc": ("component",)}, 2, None, (), None)
    >>> match_reference(draws, torch.tensor([[0, 1], [0, 1]]), {"loc": torch.tensor([7.0, 2.0])})
    tensor([[1, 0],
            [1, 0]])
    """
    names = _comparable(draws, reference, None, "reference")
    sites = {name: draws.sites[name] for name in names}
    relabelled = permute_sites(sites, permutations, draws.component_dims)
    entries = _entries(draws, relabelled, names)
    target = _entries(draws, _batched(reference, draws), names)
    order = assign(_costs(target, entries.mean(0, keepdim=True), _entry_std(entries)))[0]
    return permutations[:, order]


def _single(draws: MixtureDraws) -> list[str]:
    """Name the sites with exactly one component axis: those whose components can be compared one by one."""
    return [name for name, axes in draws.component_dims.items() if axes.count(COMPONENT) == 1]


def _comparable(
    draws: MixtureDraws, target: Mapping[str, Tensor], wanted: tuple[str, ...] | None, role: str
) -> list[str]:
    """Names of the sites to compare, after a check that draws and target both have them in the same shape."""
    known = _single(draws)
    names = list(wanted) if wanted is not None else [name for name in known if name in target]
    missing = [name for name in names if name not in known or name not in target]
    if missing or not names:
        raise MethodError(
            f"expected sites with one component axis that both the draws and the {role} have; the draws have {known}, "
            f"the {role} has {sorted(target)}, and {names} were to be compared. Name sites that both have."
        )
    for name in names:
        if target[name].shape != draws.sites[name].shape[1:]:
            raise MethodError(
                f"expected {role} site {name!r} to have the shape of one draw, {tuple(draws.sites[name].shape[1:])}; "
                f"got {tuple(target[name].shape)}. Pass one value per site, without chain and draw axes."
            )
    return names


def _batched(sites: Mapping[str, Tensor], draws: MixtureDraws) -> dict[str, Tensor]:
    """Make one set of sites a batch of one, in the dtype and on the device of the draws."""
    return {name: value.to(draws.sites[name])[None] for name, value in sites.items() if name in draws.sites}


def _entries(draws: MixtureDraws, sites: Mapping[str, Tensor], names: list[str]) -> Tensor:
    """Lay all entries of each component side by side, ``(S, K, E)``."""
    moved = [sites[name].movedim(1 + draws.component_dims[name].index(COMPONENT), 1) for name in names]
    return torch.cat([value.reshape(*value.shape[:2], -1) for value in moved], dim=-1)


def _entry_std(entries: Tensor) -> Tensor:
    """Pool over ranks the standard deviation, over draws, of the sorted values of each entry, ``(E,)``."""
    sorted_std = entries.sort(dim=1).values.var(dim=0, correction=0).mean(0).sqrt()
    overall_std = entries.flatten(0, 1).std(dim=0, correction=0)
    # Values that repeat exactly from draw to draw still separate components: divide them by a little, never by nothing.
    floor = math.sqrt(torch.finfo(entries.dtype).eps) * overall_std
    spread_std = torch.maximum(sorted_std, floor)
    return torch.where(spread_std > 0, spread_std, 1.0)


def _costs(target: Tensor, entries: Tensor, entry_std: Tensor) -> Tensor:
    """Square the distances ``(S, K, K)`` of component ``j`` of each draw from component ``k`` of the target."""
    return torch.cdist(target / entry_std, entries / entry_std).square()
