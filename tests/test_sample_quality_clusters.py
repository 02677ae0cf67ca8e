"""Clusterings against classes: all matches tried, scikit-learn, and tables worked by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from probmix.errors import DataError
from probmix.sample_quality import adjusted_rand_index, clustering_accuracy, normalised_mutual_information, purity

SCORES = [clustering_accuracy, purity, normalised_mutual_information, adjusted_rand_index]


def random_pair(clusters: int, classes: int, seed: int, n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    noisy = np.where(generator.random(n) < 0.6, labels % clusters, generator.integers(0, clusters, n))
    return torch.as_tensor(noisy), torch.as_tensor(labels)


def best_of_all_matches(assignments: torch.Tensor, labels: torch.Tensor) -> float:
    """Every way to give clusters different classes; a cluster that is given none has no row right."""
    a, y = assignments.numpy(), labels.numpy()
    clusters, classes = np.unique(a), np.unique(y)
    padded = [*classes, *[-99] * max(0, len(clusters) - len(classes))]
    found = 0.0
    for chosen in itertools.permutations(padded, len(clusters)):
        match = dict(zip(clusters, chosen, strict=True))
        found = max(found, float(np.mean([match[i] == j for i, j in zip(a, y, strict=True)])))
    return found


@pytest.mark.parametrize(("clusters", "classes"), [(3, 3), (5, 3), (3, 5), (1, 4), (4, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_accuracy_is_that_of_the_best_match(clusters, classes, seed):
    pair = random_pair(clusters, classes, seed)
    assert clustering_accuracy(*pair) == pytest.approx(best_of_all_matches(*pair), rel=1e-12)


def test_a_greedy_match_is_not_enough():
    """Cluster 0: five of class 0 and four of class 1; cluster 1: four of class 0. Greedy has 5 right, the best 8."""
    assignments = torch.tensor([0] * 9 + [1] * 4)
    labels = torch.tensor([0] * 5 + [1] * 4 + [0] * 4)
    assert clustering_accuracy(assignments, labels) == pytest.approx(8 / 13)
    assert purity(assignments, labels) == pytest.approx(9 / 13)


def test_split_classes_cost_accuracy_and_no_purity():
    labels = torch.arange(100) % 2
    assignments = torch.arange(100) % 4
    assert clustering_accuracy(assignments, labels) == 0.5
    assert purity(assignments, labels) == 1.0
    assert purity(labels, assignments) == 0.5  # merged classes cost both


@pytest.mark.parametrize(("clusters", "classes"), [(3, 3), (6, 3), (2, 5)])
def test_the_others_are_scikit_learns(clusters, classes):
    assignments, labels = random_pair(clusters, classes, 2)
    nmi = normalized_mutual_info_score(labels.numpy(), assignments.numpy(), average_method="arithmetic")
    assert normalised_mutual_information(assignments, labels) == pytest.approx(nmi, rel=1e-12)
    rand = adjusted_rand_score(labels.numpy(), assignments.numpy())
    assert adjusted_rand_index(assignments, labels) == pytest.approx(rand, rel=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_names_order_and_dtype_do_not_matter(score):
    assignments, labels = random_pair(4, 3, 0)
    order = torch.as_tensor(np.random.default_rng(0).permutation(60))
    value = score(assignments, labels)
    assert score(7 - 3 * assignments[order], labels[order].int()) == pytest.approx(value, rel=1e-12)
    assert score(labels + 10, labels) == pytest.approx(1.0)
    assert 0 < value < 1
    assert isinstance(value, float)


def test_noise_scores_by_chance():
    """Null: two independent clusterings of 2,000 rows into 4. Adjusted Rand errs by 0.0007 and accuracy exceeds 1/4 by
    a per cent or two; the limits are passed less than once in 1,000 seeds. The control agrees on one row in five."""
    generator = np.random.default_rng(0)
    first, second = (torch.as_tensor(generator.integers(0, 4, 2000)) for _ in range(2))
    assert abs(adjusted_rand_index(first, second)) < 0.004
    assert 0.25 <= clustering_accuracy(first, second) < 0.31
    mixed = torch.where(torch.arange(2000) % 5 == 0, second, first)
    assert adjusted_rand_index(mixed, second) > 0.004


@pytest.mark.parametrize("score", SCORES)
def test_what_does_not_fit_is_refused(score):
    a = torch.tensor([0, 1, 1])
    with pytest.raises(
        DataError, match=r"labels: expected one for each of 3 assignments, got shape \(2,\). Pass those"
    ):
        score(a, a[:2])
    with pytest.raises(DataError, match=r"assignments: expected a tensor of whole numbers, got torch.float32. Probab"):
        score(a.float(), a)
    with pytest.raises(DataError, match="assignments: expected one or more"):
        score(a[:0], a[:0])
