"""What a many-chain sampler says about chains that disagree: another mode, other labels, or neither."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from probmix.diagnostics import Array, nested_rhat, nested_rhat_limit, standing_apart

__all__ = ["advice_on_agreement"]

_FEWEST_DRAWS = 4  # two for each half of a chain
_NAMED = 8  # chains that are named one by one


def advice_on_agreement(log_density: Array, positions: Array, superchains: int) -> str:
    """Return a sentence on disagreement, or nothing where chains agree.

    The log density does not depend on labels: if it disagrees, some chains sit in another mode. If the coordinates
    disagree and it does not, labels are the likely cause. Each is looked at twice, by superchains and by single chains
    (whose two halves take the part of the chains of a superchain), against `nested_rhat_limit`.

    Args:
        log_density: ``(chain, draw)``.
        positions: unconstrained draws ``(chain, draw, dim)``.
        superchains: number of starts.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> log_density, positions = rng.normal(size=(64, 50)), rng.normal(size=(64, 50, 3))
        >>> advice_on_agreement(log_density, positions, 8)
        ''
        >>> print(advice_on_agreement(log_density - 7.0 * (np.arange(64) // 8 == 2)[:, None], positions, 8)[:59])
        Superchain 2 (of 0 to 7) sits in another mode, or in a regi
    """
    levels = _levels(log_density, positions, superchains)
    for name, look, _ in levels:
        if _disagree(look):
            return " ".join([*_apart(name, *look), _NEXT_AFTER_MODES])
    if any(_disagree(level[2]) for level in levels):
        return (
            "Chains agree on the log density but not on the coordinates: most likely components have other labels in "
            "other chains. Match them with probmix.relabel.relabel(posterior); if there are no labels to switch, the "
            "posterior has modes of equal height, or needs more draws."
        )
    return ""


_NEXT_AFTER_MODES = (
    "All draws are kept, but modes are not weighted by their mass. Raise warmup= or draws= if chains are only slow; "
    "else compare fits from other starts (init=), or start all chains in the best mode: init=posterior.sites()."
)

_Look = tuple[Array, int]


def _levels(log_density: Array, positions: Array, superchains: int) -> list[tuple[str, _Look, _Look]]:
    chains, draws = log_density.shape
    levels = []
    if superchains > 1:
        levels.append(("superchain", (log_density, superchains), (positions, superchains)))
    if chains > 1 and draws >= _FEWEST_DRAWS:
        levels.append(("chain", (_halves(log_density), chains), (_halves(positions), chains)))
    return levels


def _disagree(look: _Look) -> bool:
    values, groups = look
    quantities = max(1, int(np.prod(values.shape[2:])))
    return bool((nested_rhat(values, groups) > nested_rhat_limit(values, groups, quantities=quantities)).any())


def _halves(values: Array) -> Array:
    chains, draws = values.shape[:2]
    even = values[:, : draws - draws % 2]
    return even.reshape(2 * chains, draws // 2, *values.shape[2:])


def _apart(name: str, values: Array, groups: int) -> list[str]:
    found, distance = standing_apart(values, groups)
    if not len(found):
        return [f"The mean log density differs between {name}s by more than chance (nested r-hat)."]
    below, above = distance < 0, distance > 0
    return [
        _sentence(name, groups, found[side], np.abs(distance[side]), word)
        for side, word in ((below, "below"), (above, "above"))
        if side.any()
    ]


def _sentence(name: str, groups: int, found: NDArray[np.int64], distance: Array, word: str) -> str:
    one = len(found) == 1
    shown = ", ".join(str(i) for i in found[:_NAMED]) + (f" and {len(found) - _NAMED} more" * (len(found) > _NAMED))
    nats = f"{distance.min():.1f}" if one else f"{distance.min():.1f} to {distance.max():.1f}"
    return (
        f"{name.capitalize()}{'' if one else 's'} {shown} (of 0 to {groups - 1}) {'sits' if one else 'sit'} in another "
        f"mode, or in a region that chains leave slowly: {'its' if one else 'their'} mean log density is {nats} nats "
        f"{word} the others'."
    )
