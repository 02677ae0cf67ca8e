"""EM of one model on many data sets, or many weightings of one data set, as one batch: what a bootstrap needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from probmix.inference.seeding import first_labels, label_statistics
from probmix.inference.stopping import still_to_gain
from probmix.typing import ClosedFormMixture, Sites

__all__ = ["Fits", "FittedMixture", "fit_many"]

_CHUNK = 2**21  # numbers in the largest temporary of a chunk of data sets

_Step = Callable[[Tensor, Tensor, Sites], tuple[Tensor, Sites, Tensor]]


class FittedMixture(ClosedFormMixture, Protocol):
    """A mixture whose components have a family; beside EM, what this module asks for."""

    @property
    def family(self) -> object:
        """The family of the components."""
        ...


class Fits(NamedTuple):
    """The best start of each data set.

    Args:
        sites: each ``(B, ...)``.
        log_likelihood: at the sites, weighted, ``(B,)``; NaN where every start collapsed.

    Example:
        >>> Fits({"loc": torch.zeros(9, 2, 1)}, torch.zeros(9)).sites["loc"].shape
        torch.Size([9, 2, 1])
    """

    sites: Sites
    log_likelihood: Tensor


def fit_many(
    model: FittedMixture,
    x: Tensor,
    *,
    sites: Mapping[str, Tensor] | None = None,
    row_weights: Tensor | None = None,
    restarts: int = 5,
    max_steps: int = 2000,
    tolerance: float = 1e-3,
) -> Fits:
    """Maximise the likelihood of each of B data sets, all restarts of all data sets side by side.

    A restart stops as one of `EM` does, and a data set leaves the batch when all its restarts have stopped. Uses
    torch's global generator for the starts.

    Args:
        model: a mixture with a closed form.
        x: data sets of one shape, ``(B, N, D)``, or one data set ``(N, D)`` for all the weightings.
        sites: where all begin, no batch axes; without them ``restarts`` starts of k-means++ for each data set.
        row_weights: how many observations each row stands for, ``(B, N)``; None: one each.
        restarts: starts for each data set, if there are no ``sites``.
        max_steps: at most so many steps.
        tolerance: largest estimated distance to the optimum, nats.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> x = torch.tensor([[[0.0], [2.0]], [[5.0], [9.0]]])
        >>> fit_many(GaussianMixture(1, "spherical"), x, restarts=1).sites["loc"].flatten()
        tensor([1., 7.])
    """
    num = len(x) if row_weights is None else len(row_weights)
    starts = restarts if sites is None else 1
    width = starts * model.num_components * x.shape[-2] * x.shape[-1]
    chunk = max(1, _CHUNK // width)
    parts = []
    for first in range(0, num, chunk):
        some = slice(first, first + chunk)
        weights = None if row_weights is None else row_weights[some]
        parts.append(_fit_chunk(model, x[some] if x.dim() == 3 else x, sites, weights, restarts, max_steps, tolerance))
    together = {name: torch.cat([part.sites[name] for part in parts]) for name in parts[0].sites}
    return Fits(together, torch.cat([part.log_likelihood for part in parts]))


def _fit_chunk(
    model: FittedMixture,
    x: Tensor,
    sites: Mapping[str, Tensor] | None,
    row_weights: Tensor | None,
    restarts: int,
    max_steps: int,
    tolerance: float,
) -> Fits:
    num = len(row_weights) if row_weights is not None else len(x)
    x = x if x.dim() == 3 else x.expand(num, *x.shape)
    weights = x.new_ones(x.shape[:2]) if row_weights is None else row_weights.to(x)
    now = _seeded(model, x, restarts) if sites is None else _repeated(sites, num)
    step = _batched(model, x[:1], weights[:1], {name: value[:1] for name, value in now.items()})
    values = x.new_full((num, now["weights"].shape[1]), torch.nan)
    active = torch.ones_like(values, dtype=torch.bool)
    past: list[Tensor] = []
    for _ in range(max_steps):
        rows = active.any(1).nonzero().squeeze(-1)
        if not len(rows):
            break
        objective, proposal, singular = step(x[rows], weights[rows], {name: v[rows] for name, v in now.items()})
        running = active[rows]
        values = values.index_copy(0, rows, torch.where(running, objective, values[rows]))
        past = [*past[-2:], values]
        healthy = ~singular.any(-1) & objective.isfinite()
        going_on = running & healthy & (still_to_gain(past)[rows] > tolerance)
        values = values.index_copy(0, rows, torch.where(running & ~healthy, -torch.inf, values[rows]))
        for name, value in proposal.items():
            kept = torch.where(_like(going_on, value), value, now[name][rows])
            now[name] = now[name].index_copy(0, rows, kept)
        active = active.index_copy(0, rows, going_on)
    return _best(now, values)


def _best(sites: Sites, values: Tensor) -> Fits:
    best = values.nan_to_num(-torch.inf).argmax(1)
    at = torch.arange(len(best), device=best.device)
    value = values[at, best]
    chosen = {name: v[at, best] for name, v in sites.items()}
    return Fits(chosen, torch.where(value.isfinite(), value, torch.nan))


def _batched(model: FittedMixture, *first: Any) -> _Step:
    """One step on every data set: ``(B, N, D), (B, N), sites (B, R, ...)``, by vmap, or one by one where that fails."""

    def one(x: Tensor, row_weights: Tensor, sites: Sites) -> tuple[Tensor, Sites, Tensor]:
        scores = model.log_prob_components(x, sites)
        log_rows = scores.logsumexp(-1)
        shares = (scores - log_rows[..., None]).exp() * row_weights[:, None]
        statistics = model.family.sufficient_statistics(x, shares, sites)  # type: ignore[attr-defined]
        proposal = model.maximise(statistics, None, sites)
        return log_rows @ row_weights, proposal, model.singular_components(proposal)

    def loop(x: Tensor, row_weights: Tensor, sites: Sites) -> tuple[Tensor, Sites, Tensor]:
        parts = [one(x[i], row_weights[i], {n: v[i] for n, v in sites.items()}) for i in range(len(x))]
        stacked = {name: torch.stack([part[1][name] for part in parts]) for name in parts[0][1]}
        return torch.stack([part[0] for part in parts]), stacked, torch.stack([part[2] for part in parts])

    try:
        torch.vmap(one)(*first)
    except RuntimeError:  # a family whose maximisation looks at values
        return loop
    return torch.vmap(one)


def _seeded(model: FittedMixture, x: Tensor, restarts: int) -> Sites:
    """Sites from the labels of k-means++, ``(B, R, ...)``, each of one step under the prior, as in EM."""
    starts = []
    for rows in x:
        labels = first_labels(rows, model.num_components, restarts, "kmeans++")
        starts.append(model.maximise(label_statistics(model, rows, labels, None, _CHUNK), model.prior(rows)))
    return {name: torch.stack([start[name] for start in starts]) for name in starts[0]}


def _repeated(sites: Mapping[str, Tensor], num: int) -> Sites:
    return {name: value.expand(num, 1, *value.shape).clone() for name, value in sites.items()}


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (value.dim() - mask.dim()))
