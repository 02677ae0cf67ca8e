"""How well a clustering agrees with known classes: accuracy, purity, mutual information, Rand index."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from probmix.sample_quality_inputs import as_labels

__all__ = ["adjusted_rand_index", "clustering_accuracy", "normalised_mutual_information", "purity"]


def clustering_accuracy(assignments: Tensor, labels: Tensor) -> float:
    r"""Return the share of rows in the class of their cluster, under the best one-to-one match of the two.

    .. math:: \max_\pi \frac{1}{n} \sum_{i=1}^n 1[\pi(a_i) = y_i]

    Where there are more clusters than classes some clusters stay without a class, and all their rows count as wrong;
    where there are fewer, some classes do. See `purity` for many clusters to a class.

    Args:
        assignments: cluster of each row, any whole numbers, ``(n,)``.
        labels: class of each row, any whole numbers, ``(n,)``.

    Returns:
        From 0, exclusive, to 1.

    Raises:
        DataError: no whole numbers, no rows, or not as many of both.

    Source:
        Kuhn (1955), The Hungarian method for the assignment problem, Naval Research Logistics Quarterly 2; Yang, Xu,
        Nie, Yan and Zhuang (2010), Image clustering using local discriminant models and global integration, IEEE
        Transactions on Image Processing 19.

    Example:
        >>> clustering_accuracy(torch.tensor([5, 5, 2, 2, 2]), torch.tensor([0, 0, 1, 1, 0]))
        0.8
    """
    table = _contingency(assignments, labels).cpu().numpy()
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / table.sum())


def purity(assignments: Tensor, labels: Tensor) -> float:
    r"""Return the share of rows in the commonest class of their cluster, whether or not another cluster has the same.

    .. math:: \frac{1}{n} \sum_k \max_c \lvert \{i: a_i = k, y_i = c\} \rvert

    It never falls where a cluster is split, and is 1 if every row is a cluster: compare equal numbers of clusters.

    Args:
        assignments: cluster of each row, any whole numbers, ``(n,)``.
        labels: class of each row, any whole numbers, ``(n,)``.

    Returns:
        From 0, exclusive, to 1; at least `clustering_accuracy`.

    Raises:
        DataError: no whole numbers, no rows, or not as many of both.

    Source:
        Manning, Raghavan and Schütze (2008), Introduction to Information Retrieval, chapter 16.

    Example:
        >>> purity(torch.tensor([0, 1, 2, 2]), torch.tensor([7, 7, 8, 8]))
        1.0
    """
    table = _contingency(assignments, labels)
    return float(table.amax(1).sum()) / len(labels)


def normalised_mutual_information(assignments: Tensor, labels: Tensor) -> float:
    r"""Return the mutual information of clusters and classes over the arithmetic mean of their entropies.

    .. math:: \frac{2 I(a; y)}{H(a) + H(y)}

    It is not adjusted for chance: random assignments to many clusters score well above 0. By scikit-learn.

    Args:
        assignments: cluster of each row, any whole numbers, ``(n,)``.
        labels: class of each row, any whole numbers, ``(n,)``.

    Returns:
        From 0 to 1.

    Raises:
        DataError: no whole numbers, no rows, or not as many of both.

    Source:
        Vinh, Epps and Bailey (2010), Information theoretic measures for clusterings comparison, JMLR 11.

    Example:
        >>> round(normalised_mutual_information(torch.tensor([0, 0, 1, 1]), torch.tensor([4, 4, 2, 2])), 6)
        1.0
    """
    clusters, classes = _check(assignments, labels)
    return float(normalized_mutual_info_score(classes.cpu().numpy(), clusters.cpu().numpy()))


def adjusted_rand_index(assignments: Tensor, labels: Tensor) -> float:
    r"""Return the share of pairs of rows that both put together or both apart, adjusted for chance.

    .. math:: \frac{R - E[R]}{1 - E[R]}

    with the Rand index R and its mean over random assignments to clusters of the same sizes. By scikit-learn.

    Args:
        assignments: cluster of each row, any whole numbers, ``(n,)``.
        labels: class of each row, any whole numbers, ``(n,)``.

    Returns:
        From -0.5 to 1; 0 is expected by chance.

    Raises:
        DataError: no whole numbers, no rows, or not as many of both.

    Source:
        Hubert and Arabie (1985), Comparing partitions, Journal of Classification 2.

    Example:
        >>> round(adjusted_rand_index(torch.tensor([0, 0, 1, 1]), torch.tensor([4, 4, 2, 2])), 6)
        1.0
    """
    clusters, classes = _check(assignments, labels)
    return float(adjusted_rand_score(classes.cpu().numpy(), clusters.cpu().numpy()))


def _contingency(assignments: Tensor, labels: Tensor) -> Tensor:
    """Return how many rows are of each cluster and class, ``(clusters, classes)``."""
    clusters, classes = _check(assignments, labels)
    names_of_clusters, cluster = clusters.unique(return_inverse=True)
    names_of_classes, label = classes.unique(return_inverse=True)
    shape = len(names_of_clusters), len(names_of_classes)
    return (cluster * shape[1] + label).bincount(minlength=shape[0] * shape[1]).reshape(shape)


def _check(assignments: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    clusters = as_labels(assignments, "assignments")
    classes = as_labels(labels, "labels", len(clusters), "assignments")
    return clusters, classes.to(torch.device(clusters.device))
