"""The log-likelihood of each observation in one enumerated trace of a program, discrete sites summed out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.mcmc.util import TraceTreeEvaluator
from torch import Tensor

from probmix.errors import ProgramError
from probmix.typing import Sites

__all__ = ["Pointwise"]

#: The set of plates that a site stands in.
Ordinal: TypeAlias = frozenset[Any]


@dataclass(frozen=True)
class Unit:
    """What counts as one observation: a site's own entries, or a plate's share of a sum over discrete sites."""

    name: str
    plates: Ordinal
    enumerated: bool


class Pointwise:
    r"""Reads ``log p(x_i | continuous sites)`` off a trace: the summand of LOO and WAIC.

    An observation that depends on discrete latents is the smallest plate element that contains all of them: with
    ``z_i`` and ``x_i`` in one plate, ``log sum_k p(z_i = k) p(x_i | z_i = k)``; with one ``z_g`` for each group, the
    joint likelihood of the group.

    Args:
        trace: a trace of the enumerated program.
        tree: Pyro's evaluator of the same trace, which knows how the plates are nested.
        observed: names of the observed sites.
        discrete: names of the discrete latent sites.
    """

    def __init__(
        self, trace: poutine.Trace, tree: TraceTreeEvaluator, observed: Sequence[str], discrete: Sequence[str]
    ) -> None:
        self._tree, self._observed = tree, observed
        self._plates: dict[str, Ordinal] = {
            name: frozenset(trace.nodes[name]["cond_indep_stack"]) for name in (*observed, *discrete)
        }
        nodes: dict[str, Any] = dict(trace.nodes)
        self._ranks = {name: nodes[name]["value"].dim() - nodes[name]["fn"].event_dim for name in observed}
        self.units = self._find_units()

    def dims(self, name: str) -> tuple[str, ...]:
        """Return the plates of one entry of `evaluate`, outermost first."""
        unit = next(u for u in self.units if u.name == name)
        return tuple(frame.name for frame in sorted(unit.plates, key=lambda f: f.dim))

    def evaluate(self, trace: poutine.Trace) -> Sites:
        """Return name -> log-likelihood, with one axis for each plate of the unit.

        Raises:
            ProgramError: a discrete site is shared by all observations.
        """
        terms = {name: _log_prob(trace.nodes[name]) for name in self._plates}
        return {unit.name: self._entry(unit, terms) for unit in self.units}

    def _find_units(self) -> list[Unit]:
        roots: list[Ordinal] = []
        for ordinal in sorted(set(self._plates.values()) | set(self._tree._enum_dims), key=len):
            if self._tree._enum_dims.get(ordinal) and not any(root <= ordinal for root in roots):
                roots.append(ordinal)
        units = []
        for root in roots:
            names = [n for n in self._observed if root <= self._plates[n]]
            if names:
                units.append(Unit("+".join(names), root, enumerated=True))
        alone = [n for n in self._observed if not any(root <= self._plates[n] for root in roots)]
        return units + [Unit(name, self._plates[name], enumerated=False) for name in alone]

    def _entry(self, unit: Unit, terms: Sites) -> Tensor:
        if not unit.enumerated:  # a discrete site with a single value leaves an axis of length 1 to the left
            value = terms[unit.name]
            surplus = value.dim() - self._ranks[unit.name]
            return value.flatten(0, surplus) if surplus > 0 else value
        if not unit.plates:
            raise ProgramError(
                f"the discrete sites behind {unit.name!r} stand outside every plate, so all observations share "
                "them and none has a likelihood of its own. Put them inside the data's plate, or ask for "
                "to_arviz(log_likelihood=False)."
            )
        value = self._sum_out(unit.plates, terms)
        return value.reshape([frame.size for frame in sorted(unit.plates, key=lambda f: f.dim)])

    def _sum_out(self, ordinal: Ordinal, terms: Sites) -> Tensor:
        """Log-sum-exp over the discrete sites of these plates; deeper plates are multiplied out first."""
        value = sum((terms[n] for n, plates in self._plates.items() if plates == ordinal), torch.zeros(()))
        for child in self._tree._children.get(ordinal, ()):
            inner = self._sum_out(child, terms)
            value = value + inner.sum(self._tree._plate_dims[child], keepdim=True)
        dims = sorted(self._tree._enum_dims.get(ordinal, ()))
        return value.logsumexp(dims, keepdim=True) if dims else value


def _log_prob(site: Any) -> Tensor:
    """The log density of a site without a plate's mini-batch scale, which belongs to the sum, not to a row."""
    return scale_and_mask(site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"]), 1.0, site["mask"])
