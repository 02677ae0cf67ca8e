"""Where EM, variational Bayes and Gibbs start: first labels of the rows, all restarts as one batch on their device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from probmix.errors import MethodError
from probmix.quadratic_pass import QuadraticRows, feature_sums
from probmix.typing import ClosedFormMixture, Named, Sites

__all__ = ["LABELS", "LabelStart", "batch_of_sites", "first_labels", "given_labels", "label_statistics", "some_rows"]

#: How first labels are found.
LabelStart: TypeAlias = Literal["kmeans++", "kmeans", "random"]

LABELS = get_args(LabelStart)

_MOST_ROWS = 2**16  # rows that a start looks at; 65 for each of a thousand components
_LLOYD_STEPS = 20


def first_labels(
    x: Tensor, num_components: int, restarts: int, start: LabelStart, row_weights: Tensor | None = None
) -> Tensor:
    r"""Return labels ``(restarts, n)`` in ``0 .. num_components - 1``; uses torch's global generator.

    - ``"kmeans++"`` picks each centre out of :math:`2 + \lfloor \log K \rfloor` candidates, drawn with odds
      proportional to the weighted squared distance to the nearest centre so far, as the one that leaves least of it
      (greedy k-means++ of Arthur and Vassilvitskii 2007), on columns scaled to unit variance. Rows go to the nearest
      centre.
    - ``"kmeans"`` goes on from there with at most twenty of Lloyd's steps. A centre without rows stays where it is.
    - ``"random"`` labels are drawn evenly.

    Args:
        x: rows, ``(n, D)``.
        num_components: K.
        restarts: number of starts.
        start: one of the three.
        row_weights: how many observations each row stands for, ``(n,)``.

    Example:
        >>> first_labels(torch.eye(4), 2, 5, "kmeans++").shape
        torch.Size([5, 4])
    """
    if start == "random":
        return torch.randint(num_components, (restarts, len(x)), device=x.device)
    spread = x.std(0, correction=0)
    scaled = (x - x.mean(0)) / torch.where(spread > 0, spread, 1.0)
    weights = x.new_ones(len(x)) if row_weights is None else row_weights.to(x)
    centres = _seeds(scaled, weights, num_components, restarts)
    if start == "kmeans":
        centres = _lloyd(scaled, weights, centres)
    return _squared_distance(scaled, centres).argmin(-2)


def given_labels(labels: Tensor, x: Tensor, num_components: int) -> Tensor:
    """Return a user's labels as ``(restarts, N)``.

    Raises:
        MethodError: not one label for each row, or labels out of range.

    Example:
        >>> given_labels(torch.tensor([0, 1, 1]), torch.zeros(3, 2), 2).shape
        torch.Size([1, 3])
    """
    labels = torch.as_tensor(labels, device=x.device)
    whole = not (labels.is_floating_point() or labels.is_complex())
    if labels.dim() not in (1, 2) or labels.shape[-1] != len(x) or not whole:
        raise MethodError(
            f"init: expected whole-number labels for {len(x)} rows (or a leading axis of restarts), got {labels.dtype} "
            f"of shape {tuple(labels.shape)}. Pass one label for each row."
        )
    if labels.min() < 0 or labels.max() >= num_components:
        raise MethodError(
            f"init: expected labels from 0 to {num_components - 1}, got {int(labels.min())} to {int(labels.max())}. "
            "Number the clusters from 0, or change num_components."
        )
    return labels.long().reshape(-1, len(x))


def some_rows(x: Tensor, row_weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the rows that a start looks at, and their weights: all, or 65,536 drawn with odds as their weights.

    Example:
        >>> some_rows(torch.zeros(100_000, 1), None)[0].shape
        torch.Size([65536, 1])
    """
    if len(x) <= _MOST_ROWS:
        return x, row_weights
    if row_weights is None:
        return x[torch.randint(len(x), (_MOST_ROWS,), device=x.device)], None
    return x[_draw(row_weights.double()[None], _MOST_ROWS)[0]], None


def label_statistics(
    model: ClosedFormMixture, x: Tensor, labels: Tensor, row_weights: Tensor | None, max_elements: int
) -> Any:
    """Return the statistics of labelled rows, in blocks with at most so many numbers in a temporary.

    Args:
        model: the mixture.
        x: rows, ``(n, D)``.
        labels: ``(restarts, n)``.
        row_weights: how many observations each row stands for, ``(n,)``.
        max_elements: numbers.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> x, labels = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([[0, 0, 1]])
        >>> label_statistics(GaussianMixture(2, "spherical"), x, labels, None, 100).count
        tensor([[2., 1.]])
    """
    statistics = None
    rows = max(1, max_elements // (labels.shape[0] * model.num_components * max(1, x[:1].numel())))
    for first in range(0, len(x), rows):
        some = slice(first, first + rows)
        one_hot = torch.nn.functional.one_hot(labels[:, some], model.num_components).to(x.dtype)
        shares = one_hot if row_weights is None else one_hot * row_weights[some, None].to(x.dtype)
        part = model.sufficient_statistics(x[some], shares)
        statistics = part if statistics is None else statistics + part
    return statistics


def batch_of_sites(model: ClosedFormMixture, x: Tensor, sites: Mapping[str, Tensor]) -> Sites:
    """Return given sites with one leading axis of restarts.

    Raises:
        MethodError: a site is missing.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> sites = {"weights": torch.ones(1), "loc": torch.zeros(1, 2), "var": torch.ones(1)}
        >>> batch_of_sites(GaussianMixture(1, "spherical"), torch.randn(9, 2), sites)["loc"].shape
        torch.Size([1, 1, 2])
    """
    dims = model.dims if isinstance(model, Named) else {}
    wanted = set(model.maximise(model.sufficient_statistics(x[:1], x.new_ones(1, model.num_components)), None))
    missing = sorted(wanted - set(sites))
    if missing:
        raise MethodError(
            f"init: expected values for the sites {sorted(wanted)}, got {sorted(sites)}. Add {missing}, "
            "or pass another fit's posterior.sites()."
        )
    batch = {}
    for name in wanted:
        value = torch.as_tensor(sites[name], dtype=x.dtype, device=x.device)
        batch[name] = value if value.dim() > len(dims[name]) else value[None]
    return batch


def _seeds(x: Tensor, weights: Tensor, num_components: int, restarts: int) -> Tensor:
    """Centres of greedy k-means++, ``(restarts, K, D)``."""
    odds = weights.expand(restarts, -1)
    nearest, centres = x.new_full((restarts, len(x)), torch.inf), []
    tries = 2 + int(math.log(num_components))
    for component in range(num_components):
        picks = x[_draw(odds, tries if component else 1)]
        left = torch.minimum(_squared_distance(x, picks), nearest[:, None])
        best = (left @ weights).argmin(-1)[:, None, None]
        centres.append(picks.gather(1, best.expand(-1, 1, x.shape[-1])))
        nearest = left.gather(1, best.expand(-1, 1, len(x))).squeeze(1)
        odds = nearest * weights
    return torch.cat(centres, 1)


def _lloyd(x: Tensor, weights: Tensor, centres: Tensor) -> Tensor:
    """Move every centre to the mean of the rows nearest to it, until none moves."""
    rows, size = QuadraticRows(x.mT.contiguous(), spread_dim=0), x.shape[-1]
    for _ in range(_LLOYD_STEPS):
        constant = -centres.square().sum(-1, keepdim=True) / 2
        coefficients = torch.cat([constant, centres, torch.zeros_like(constant)], -1)
        _, sums = feature_sums(coefficients, rows, weights, _nearest_alone)
        count, total = sums[..., :1].to(x), sums[..., 1 : size + 1].to(x)
        moved = torch.where(count > 0, total / count, centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _nearest_alone(scores: Tensor) -> Tensor:
    return torch.zeros_like(scores).scatter_(-2, scores.argmax(-2, keepdim=True), 1.0)


def _draw(odds: Tensor, num: int) -> Tensor:
    """Draw columns for each row with the given odds, ``(b, n) -> (b, num)`` (``torch.multinomial`` stops at 2**24)."""
    cumulative = odds.clamp(min=torch.finfo(odds.dtype).tiny).cumsum(-1)
    target = torch.rand(len(odds), num, dtype=odds.dtype, device=odds.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target).clamp(max=odds.shape[-1] - 1)


def _squared_distance(x: Tensor, centres: Tensor) -> Tensor:
    """``(n, D), (b, K, D) -> (b, K, n)``."""
    square = (x * x).sum(-1) - 2 * centres @ x.mT + (centres * centres).sum(-1, keepdim=True)
    return square.clamp(min=0.0)
