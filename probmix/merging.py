"""Components that together make one cluster: merging by entropy, with the likelihood as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from probmix.criteria import ScoredMixture
from probmix.errors import DataError
from probmix.plots_selection import plot_merging
from probmix.table import check_row_weights
from probmix.typing import Sites

__all__ = ["Merging", "elbow", "merge", "merge_responsibilities"]

_FEWEST = 4  # entropies: two lines go through any three points


@dataclass(frozen=True, eq=False)
class Merging:
    r"""A hierarchy of clusters, each one component or more.

    Going from k clusters to k - 1 merges the pair whose merger lowers the entropy most. The mixture density, and with
    it BIC, does not change: only what is called a cluster does.

    Attributes:
        order: the mergers, first to last, each as the two groups of components that become one.
        entropies: :math:`-\sum_{nk} t_{nk} \log t_{nk}` with 1, 2, ..., K clusters, ``(K,)``.
        component_responsibilities: of the K components, ``(N, K)``.

    Example:
        >>> r = torch.tensor([[0.5, 0.5, 0.0], [0.4, 0.6, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        >>> merging = merge_responsibilities(r)
        >>> merging.order[0], merging.groups(2), merging.labels(2).tolist()
        (((0,), (1,)), ((0, 1), (2,)), [0, 0, 1])
    """

    order: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    entropies: Tensor
    component_responsibilities: Tensor

    @property
    def num_components(self) -> int:
        """Components of the mixture, K."""
        return self.component_responsibilities.shape[-1]

    def groups(self, k: int) -> tuple[tuple[int, ...], ...]:
        """Components of each of k clusters; clusters are numbered by their first component.

        Raises:
            DataError: there is no such number of clusters.
        """
        if not 1 <= k <= self.num_components:
            raise DataError(f"k: expected 1 to {self.num_components} clusters, got {k}. Merging only ever lowers it.")
        groups: set[tuple[int, ...]] = {(component,) for component in range(self.num_components)}
        for one, other in self.order[: self.num_components - k]:
            groups = groups - {one, other} | {tuple(sorted(one + other))}
        return tuple(sorted(groups))

    def responsibilities(self, k: int) -> Tensor:
        """Probability that each row belongs to each of k clusters, ``(N, k)``."""
        parts = [self.component_responsibilities[:, list(group)].sum(-1) for group in self.groups(k)]
        return torch.stack(parts, -1)

    def labels(self, k: int) -> Tensor:
        """Likeliest of k clusters for each row, ``(N,)``; not always that of the row's likeliest component."""
        return self.responsibilities(k).argmax(-1)

    @property
    def elbow(self) -> int | None:
        """Number of clusters where the entropy begins to rise steeply (`elbow`); None below four components."""
        return elbow(self.entropies.tolist()) if self.num_components >= _FEWEST else None

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the entropy against the number of clusters, and the two lines whose meeting is the elbow."""
        return plot_merging(self.entropies, elbow=self.elbow, ax=ax)


def merge(model: ScoredMixture, x: Tensor, sites: Sites, *, row_weights: Tensor | None = None) -> Merging:
    r"""Merge the components of a fitted mixture into clusters, pair by pair, by the entropy criterion.

    BIC counts the Gaussians that the density needs, and a cluster that is not Gaussian needs several. At each step the
    pair is merged that maximises

    .. math:: \sum_n \bigl\{ (t_{ni} + t_{nj}) \log (t_{ni} + t_{nj}) - t_{ni} \log t_{ni} - t_{nj} \log t_{nj} \bigr\}

    Args:
        model: any mixture with ``log_prob_components``.
        x: the rows.
        sites: of one fit, no batch axes.
        row_weights: how many observations each row stands for, ``(N,)``.

    Raises:
        DataError: sites of more than one fit, or wrong row weights.

    Source:
        Baudry, Raftery, Celeux, Lo and Gottardo (2010), Combining mixture components for clustering, Journal of
        Computational and Graphical Statistics 19, 332-353.

    Example:
        >>> from probmix.datasets import load_faithful
        >>> from probmix.inference import EM, infer
        >>> from probmix.models import GaussianMixture
        >>> model, x = GaussianMixture(4), load_faithful().x
        >>> merging = merge(model, x, infer(model, x, EM(tolerance=1e-4), seed=0).sites())
        >>> torch.bincount(merging.labels(2)).sort().values.tolist()  # short eruptions, long ones
        [96, 176]
    """
    if sites["weights"].dim() != 1:
        raise DataError(
            f"sites: expected those of one fit, got weights of shape {tuple(sites['weights'].shape)}. "
            "Pick one entry of the leading axes, or pass posterior.sites()."
        )
    x = model.rows(x)
    return merge_responsibilities(model.log_prob_components(x, sites).softmax(-1), row_weights=row_weights)


def merge_responsibilities(responsibilities: Tensor, *, row_weights: Tensor | None = None) -> Merging:
    """Do what `merge` does, given the responsibilities of whatever clustering, ``(N, K)``.

    Raises:
        DataError: not a table of numbers of 0 or more, or wrong row weights.

    Example:
        >>> merge_responsibilities(torch.tensor([[0.5, 0.5], [0.1, 0.9]])).entropies.round(decimals=3)
        tensor([0.0000, 1.0180])
    """
    if responsibilities.dim() != 2 or not bool((responsibilities >= 0).all()):
        raise DataError(
            f"responsibilities: expected a table (rows, components) of probabilities, got the shape "
            f"{tuple(responsibilities.shape)}. Pass model.responsibilities(x, sites) of one fit."
        )
    weights = check_row_weights(row_weights, responsibilities)
    weights = responsibilities.new_ones(len(responsibilities)) if weights is None else weights
    shares = responsibilities
    groups: list[tuple[int, ...]] = [(component,) for component in range(shares.shape[-1])]
    entropies, order = [_entropy(shares, weights)], []
    while len(groups) > 1:
        i, j = _best_pair(shares, weights)
        order.append((groups[i], groups[j]))
        groups[i] = tuple(sorted(groups[i] + groups[j]))
        del groups[j]
        merged = shares.clone()
        merged[:, i] += shares[:, j]
        shares = merged[:, [column for column in range(merged.shape[-1]) if column != j]]
        entropies.append(_entropy(shares, weights))
    return Merging(tuple(order), torch.stack(entropies[::-1]), responsibilities)


def elbow(entropies: Sequence[float]) -> int:
    """Number of clusters at which two straight lines, fitted by least squares to either side, explain them best.

    Both lines go through the data by least squares, each on its own, and the point at the break counts for both.

    Args:
        entropies: with 1, 2, ..., K clusters.

    Raises:
        DataError: fewer than four of them, which two lines would fit with any break.

    Source:
        Baudry et al. (2010), section 4.

    Example:
        >>> elbow([0.0, 0.1, 0.2, 5.0, 10.0, 15.0])
        3
    """
    if len(entropies) < _FEWEST:
        raise DataError(f"expected {_FEWEST} entropies or more, got {len(entropies)}: too few to see an elbow.")
    return min(_breaks(np.asarray(entropies, float)))[1]


def _breaks(y: np.ndarray) -> Iterator[tuple[float, int]]:
    """Sum of squares that the two lines leave, and the number of clusters at the break."""
    x = np.arange(1.0, len(y) + 1)
    for at in range(1, len(y) - 1):
        pieces = (slice(None, at + 1), slice(at, None))
        left = sum(float(np.square(y[p] - np.polyval(np.polyfit(x[p], y[p], 1), x[p])).sum()) for p in pieces)
        yield left, at + 1


def _best_pair(shares: Tensor, row_weights: Tensor) -> tuple[int, int]:
    """The pair of clusters whose merger lowers the entropy most, the first of equals."""
    together = torch.stack([row_weights @ _xlogx(shares + column[:, None]) for column in shares.mT])
    apart = row_weights @ _xlogx(shares)
    gain = together - apart[:, None] - apart
    above = torch.ones_like(gain, dtype=torch.bool).triu(1)
    index = int(gain.masked_fill(~above, -torch.inf).argmax())
    return index // len(gain), index % len(gain)


def _entropy(shares: Tensor, row_weights: Tensor) -> Tensor:
    return 0.0 - (row_weights @ _xlogx(shares)).sum()


def _xlogx(p: Tensor) -> Tensor:
    return torch.special.xlogy(p, p)
