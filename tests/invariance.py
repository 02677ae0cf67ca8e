"""A Gibbs step leaves the joint distribution of sites and data alone."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

from probmix.models.mixture import AbstractMixture, MixturePrior
from probmix.table import Table


def after_one_step(
    model: AbstractMixture, prior: MixturePrior, x: Tensor, sites: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Sites after one Gibbs step from ``sites`` ``(R, ...)``, entry r given the rows ``x[r]``, ``(R, n, D)``."""
    steps = []
    for r in range(len(x)):
        one = {name: value[r] for name, value in sites.items()}
        drawn = model.drawn(Table(x[r], None, model.family.prepare(x[r])), one)
        steps.append(model.draw_sites(model.posterior(prior, drawn.statistics)))
    return {name: torch.stack([step[name] for step in steps]) for name in sites}


def p_values(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Kolmogorov-Smirnov p-value of each site, the first entry of each standing for it; of two independent samples.

    If the sites are from the prior, the data from the sites, and the step is right, the sites after it are from the
    prior too (Geweke 2004, Getting it right). Halves of one sample are compared, so that the two are independent.
    """
    half = len(next(iter(before.values()))) // 2
    return {name: stats.ks_2samp(_first(before[name][:half]), _first(after[name][half:])).pvalue for name in before}


def _first(value: Tensor) -> Tensor:
    return value.reshape(len(value), -1)[:, 0]
