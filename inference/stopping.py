"""When an ascent that converges linearly is close enough: the rule of EM and of variational Bayes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["still_to_gain"]

_ROUNDING = 16  # units in the last place of the objective: a smaller gain is noise


def still_to_gain(objectives: Sequence[Tensor]) -> Tensor:
    r"""Aitken's estimate of the distance to the limit, ``(restarts,)``; 0 once the last gain is lost in rounding.

    .. math:: \ell_\infty - \ell_t \approx g_t \frac{a}{1 - a}, \qquad g_t = \ell_t - \ell_{t-1}, \quad
              a = g_t / g_{t-1}

    It is infinite as long as nothing can be said: before the third value, and where gains grow. It is never less than
    the last gain: at the edge of a plateau gains fall steeply for a step or two before they rise again.

    Args:
        objectives: one ``(restarts,)`` for each step so far; the last three are looked at.

    Source:
        Boehning, Dietz, Schaub, Schlattmann and Lindsay (1994), The distribution of the likelihood ratio for mixtures
        of densities from the one-parameter exponential family, Annals of the Institute of Statistical Mathematics 46,
        373-388.

    Example:
        >>> still_to_gain([torch.tensor([value]) for value in (0.0, 1.0, 1.5)])  # 1.75, 1.875, ... up to 2
        tensor([0.5000])
    """
    if len(objectives) < 3:
        return torch.full_like(objectives[-1], torch.inf)
    before, last = objectives[-2] - objectives[-3], objectives[-1] - objectives[-2]
    ratio = last / before
    estimate = torch.where((ratio >= 0) & (ratio < 1), last * ratio / (1 - ratio), torch.inf)
    rounding = _ROUNDING * torch.finfo(last.dtype).eps * objectives[-1].abs()
    return torch.where(last <= rounding, 0.0, torch.maximum(estimate, last))
