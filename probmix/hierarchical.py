"""First labels by model-based agglomeration: from one cluster per row, always merge the two that cost least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from probmix.errors import DataError, MethodError

__all__ = ["hierarchical_labels"]

_MOST_ROWS = 2000
_LARGEST_TABLE = 2**22  # numbers in the scatters of all pairs that are made at a time


def hierarchical_labels(
    x: Tensor,
    num_components: int | Sequence[int],
    *,
    seed: int,
    covariance: Literal["VVV", "VII", "EII"] = "VVV",
    max_rows: int | None = None,
) -> Tensor:
    r"""Labels of the rows from agglomerative clustering by the classification likelihood.

    With :math:`W_k` the scatter of cluster k about its mean, each merge raises this sum the least:

    .. math:: \textrm{EII: } \sum_k \mathrm{tr} W_k \quad
              \textrm{VII: } \sum_k n_k D \log \frac{\mathrm{tr} W_k + a}{n_k D} \quad
              \textrm{VVV: } \sum_k n_k \log \Bigl| \frac{W_k + a I}{n_k} \Bigr|, \quad
              a = \frac{\mathrm{tr} W}{N D}

    EII is Ward's method. The :math:`a`, the mean variance of all rows, keeps the logarithms finite for clusters of few
    rows (for VVV mclust adds :math:`(\mathrm{tr} W_k + a) / n_k` to the determinant, so its trees differ a little).
    Equal rows start together. First the columns are scaled to unit variance and turned to their principal axes, each
    divided by the root of its singular value. One tree serves all numbers of components; there is no randomness unless
    the data have more than ``max_rows`` rows.

    Args:
        x: ``(N, D)``.
        num_components: into how many clusters, or several such numbers.
        seed: of the rows that the tree is grown on if there are more than ``max_rows``; the others then follow the
            nearest mean.
        covariance: what a cluster is, in mclust's letters.
        max_rows: memory grows with the square of this, and so does time, for VVV times the square of D. None: 2000,
            or for VVV with more than four columns as many as take equally long, but at least ten for each component.

    Returns:
        Labels ``(N,)`` from 0, in the order of first appearance; ``(len(num_components), N)`` for several numbers.

    Raises:
        DataError: fewer distinct rows than components.
        MethodError: the covariance is not one of the three.

    Source:
        Fraley (1998), Algorithms for model-based Gaussian hierarchical clustering, SIAM Journal on Scientific Computing
        20, 270-281 (the sums); Scrucca and Raftery (2015), Improved initialisation of model-based clustering using
        Gaussian hierarchical partitions, Advances in Data Analysis and Classification 9, 447-460 (the axes).

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0], [5.0, 5.1], [9.0, 0.0]])
        >>> hierarchical_labels(x, [2, 3], covariance="EII", seed=0)
        tensor([[0, 0, 1, 1, 1],
                [0, 0, 1, 1, 2]])
    """
    if covariance not in _COSTS:
        raise MethodError(
            f"covariance: expected one of {', '.join(_COSTS)} for the tree, got {covariance!r}: pass one of these"
        )
    wanted = [num_components] if isinstance(num_components, int) else list(num_components)
    given = x.detach().double().cpu().numpy()
    rows = _principal_axes(given)
    chosen = np.arange(len(rows))
    if max_rows is None:
        max_rows = _affordable(rows.shape[1] if covariance == "VVV" else 1, max(wanted))
    if len(rows) > max_rows:
        chosen = np.sort(np.random.default_rng(seed).choice(len(rows), max_rows, replace=False))
    _, leaf, member, count = np.unique(
        given[chosen], axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    if len(leaf) < max(wanted):
        raise DataError(
            f"expected at least as many distinct rows as components, got {len(leaf)} distinct rows for "
            f"{max(wanted)} components: lower num_components, add data, or raise max_rows={max_rows}"
        )
    merges = _Tree.of(rows[chosen][leaf], count.astype(float), covariance).grow(min(wanted))
    cuts = [_cut(merges, len(leaf), k)[member.reshape(-1)] for k in wanted]
    labels = np.stack([_spread_to_all(rows, chosen, cut) for cut in cuts])
    result = torch.as_tensor(labels, device=x.device)
    return result[0] if isinstance(num_components, int) else result


def _affordable(size: int, num_components: int) -> int:
    """Rows whose tree grows in seconds."""
    return min(_MOST_ROWS, max(4 * _MOST_ROWS // size, 10 * num_components))


def _principal_axes(x: np.ndarray) -> np.ndarray:
    """Principal axes of the scaled columns, each over the root of its singular value; one of 0 if no column varies."""
    centred = x - x.mean(0)
    spread_std = centred.std(0)
    varies = spread_std > np.finfo(float).eps * np.abs(x).max(0)
    left, singular, _ = np.linalg.svd(centred[:, varies] / spread_std[varies], full_matrices=False)
    kept = singular > 1e-10 * singular[:1].sum()
    return left[:, kept] * np.sqrt(singular[kept]) if kept.any() else np.zeros((len(x), 1))


# -- what a cluster costs, from its count and scatter (or the trace of it) -------------------------------------------


def _ward(count: np.ndarray, trace: np.ndarray, size: int, least: float) -> np.ndarray:
    return trace


def _spherical(count: np.ndarray, trace: np.ndarray, size: int, least: float) -> np.ndarray:
    return count * size * np.log((trace + least) / (count * size))


def _ellipsoidal(count: np.ndarray, scatter: np.ndarray, size: int, least: float) -> np.ndarray:
    root = np.linalg.cholesky(scatter + least * np.eye(size))
    return count * (2 * np.log(np.einsum("kii->ki", root)).sum(1) - size * np.log(count))


def _ellipsoidal_line(count: np.ndarray, trace: np.ndarray, size: int, least: float) -> np.ndarray:
    """The same for two points, whose scatter has rank 1: the determinant follows from its trace."""
    return count * (np.log1p(trace / least) + size * np.log(least / count))


_COSTS: Mapping[str, Callable[[np.ndarray, np.ndarray, int, float], np.ndarray]] = MappingProxyType(
    {"EII": _ward, "VII": _spherical, "VVV": _ellipsoidal}
)


# -- the tree --------------------------------------------------------------------------------------------------------


@dataclass
class _Tree:
    """Clusters that still stand, what each merge would cost, and the cheapest partner of each.

    ``gain`` is ``(n, n)``, infinite on the diagonal and for clusters that are gone; ``scatter`` is ``(n, D, D)``, or
    only its trace ``(n,)``.
    """

    cost_of: Callable[[np.ndarray, np.ndarray, int, float], np.ndarray]
    count: np.ndarray
    mean: np.ndarray
    scatter: np.ndarray
    least: float
    cost: np.ndarray
    gain: np.ndarray
    partner: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, count: np.ndarray, covariance: str) -> _Tree:
        """One cluster for each of the rows, of which there are ``count``."""
        n, size = rows.shape
        dense = covariance == "VVV"
        square = ((rows - np.average(rows, 0, count)) ** 2).sum(1)
        least = max(float(count @ square / (count.sum() * size)), np.finfo(float).tiny)
        start = _ellipsoidal_line if dense else _COSTS[covariance]
        cost = start(count, np.zeros(n), size, least)
        tree = cls(start, count, rows.copy(), np.zeros(n), least, cost, np.empty((n, n)), np.zeros(n, int))
        for block in np.array_split(np.arange(n), -(-n * n * size // _LARGEST_TABLE)):
            tree.gain[block] = tree.merged_cost(block[:, None], np.arange(n)[None, :])
        np.fill_diagonal(tree.gain, np.inf)
        tree.partner = tree.gain.argmin(1)
        if dense:
            tree.cost_of, tree.scatter = _ellipsoidal, np.zeros((n, size, size))
        return tree

    def merged(self, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count, mean and scatter of unions."""
        count = self.count[i] + self.count[j]
        offset = self.mean[j] - self.mean[i]
        between = self.count[i] * self.count[j] / count
        if self.scatter.ndim == 1:
            square = between * (offset**2).sum(-1)
        else:
            square = between[..., None, None] * offset[..., :, None] * offset[..., None, :]
        mean = self.mean[i] + (self.count[j] / count)[..., None] * offset
        return count, mean, self.scatter[i] + self.scatter[j] + square

    def merged_cost(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """How much the sum rises if i and j become one, in the shape of ``i`` and ``j`` together."""
        count, _, scatter = self.merged(i, j)
        return self.cost_of(count, scatter, self.mean.shape[1], self.least) - self.cost[i] - self.cost[j]

    def grow(self, num_clusters: int) -> np.ndarray:
        """Merge until so many clusters stand; the pairs, in order: the second joins the first."""
        n = len(self.count)
        standing = np.ones(n, bool)
        cheapest = self.gain[np.arange(n), self.partner]
        merges = np.empty((n - num_clusters, 2), int)
        for step in range(len(merges)):
            i = int(cheapest.argmin())
            i, j = sorted((i, int(self.partner[i])))
            merges[step] = i, j
            standing[j] = False
            self._join(i, j)
            others = np.flatnonzero(standing)
            others = others[others != i]
            self.gain[j], self.gain[:, j], cheapest[j] = np.inf, np.inf, np.inf
            self.gain[i, others] = self.gain[others, i] = self.merged_cost(np.full(len(others), i), others)
            stale = np.append(others[np.isin(self.partner[others], (i, j))], i)
            self.partner[stale] = self.gain[stale].argmin(1)
            nearer = others[self.gain[others, i] < self.gain[others, self.partner[others]]]
            self.partner[nearer] = i
            cheapest[standing] = self.gain[standing, self.partner[standing]]
        return merges

    def _join(self, i: int, j: int) -> None:
        one, two = np.array([i]), np.array([j])
        count, mean, scatter = self.merged(one, two)
        self.count[i], self.mean[i], self.scatter[i] = count[0], mean[0], scatter[0]
        self.cost[i] = self.cost_of(count, scatter, self.mean.shape[1], self.least)[0]


# -- labels ----------------------------------------------------------------------------------------------------------


def _cut(merges: np.ndarray, n: int, num_clusters: int) -> np.ndarray:
    """Cluster of each leaf when so many stand, named by one of its leaves."""
    label = np.arange(n)
    for first, second in merges[: n - num_clusters]:
        label[label == second] = first
    return label


def _spread_to_all(rows: np.ndarray, chosen: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Labels of all rows in the order of first appearance; rows without one follow the nearest mean."""
    _, label = np.unique(label, return_inverse=True)
    if len(chosen) < len(rows):
        means = np.stack([rows[chosen[label == k]].mean(0) for k in range(label.max() + 1)])
        everywhere = (means**2).sum(1) - 2 * rows @ means.T
        nearest = everywhere.argmin(1)
        nearest[chosen] = label
        label = nearest
    _, first, label = np.unique(label, return_index=True, return_inverse=True)
    return first.argsort().argsort()[label]
