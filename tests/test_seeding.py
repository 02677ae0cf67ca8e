"""Starts of EM and of the other methods."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from programs import COUNTS, gamma_poisson, one_dimensional, two_groups
from sklearn.cluster import KMeans

from probmix.arguments import Arguments
from probmix.datasets import load_iris
from probmix.errors import MethodError
from probmix.inference.method import Problem
from probmix.inference.seeding import first_labels, given_labels, some_rows
from probmix.inference.starts import starting_points
from probmix.isolation import isolated


@pytest.fixture(autouse=True)
def _seeded():
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


def test_kmeans_plus_plus_finds_far_groups():
    """Three groups 100 sds apart: the second and third centre fall into a new group with odds above 1 - 1e-3 each."""
    centres = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    x = centres.repeat_interleave(20, 0) + torch.randn(60, 2)
    labels = first_labels(x, 3, 50, "kmeans++").reshape(50, 3, 20)
    assert (labels == labels[..., :1]).all()  # one label within each group
    assert (labels[..., 0].sort(-1).values == torch.arange(3)).all()  # and another in each


def greedy_odds(points: tuple[float, ...], weights: tuple[float, ...]) -> float:
    """Chance that greedy k-means++ with two candidates puts the first two of three points together, by enumeration."""
    chance = 0.0
    for first in range(3):
        far = [w * (p - points[first]) ** 2 for p, w in zip(points, weights, strict=True)]
        for one, other in product(range(3), repeat=2):
            left = {
                second: sum(
                    w * min((p - points[first]) ** 2, (p - points[second]) ** 2)
                    for p, w in zip(points, weights, strict=True)
                )
                for second in (one, other)
            }
            second = min(left, key=left.get)
            probability = weights[first] / sum(weights) * far[one] * far[other] / sum(far) ** 2
            labels = [abs(p - points[first]) > abs(p - points[second]) for p in points]
            chance += probability * (labels[0] == labels[1])
    return chance


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 6.0, 1.0)])
def test_kmeans_plus_plus_odds(weights):
    """Odds on the points 0, 1 and 3, enumerated. 4,000 starts; 4.5 standard errors of a proportion: false alarm 7e-6.

    The control: the odds of the other weights are rejected.
    """
    points = (0.0, 1.0, 3.0)
    x = torch.tensor(points)[:, None]
    labels = first_labels(x, 2, 4000, "kmeans++", torch.tensor(weights))
    together = (labels[:, 0] == labels[:, 1]).double().mean()
    for assumed in [(1.0, 1.0, 1.0), (1.0, 6.0, 1.0)]:
        expected = greedy_odds(points, assumed)
        error = (expected * (1 - expected) / 4000) ** 0.5
        assert (abs(together - expected) < 4.5 * error) == (assumed == weights)


@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_reaches_scikit_learns_inertia(weighted):
    """The best of ten starts on each side; the data have one good optimum. 1e-9: the sums of 150 float64 terms."""
    x = load_iris().x
    weights = (torch.arange(150) % 3 + 1.0) if weighted else None
    labels = first_labels(x, 3, 10, "kmeans", weights)
    scaled = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    per_row = None if weights is None else weights.numpy()
    theirs = KMeans(3, n_init=10, random_state=0, tol=0).fit(scaled, sample_weight=per_row).inertia_
    per_row = np.ones(150) if per_row is None else per_row
    ours = []
    for label in labels.numpy():
        clusters = [(scaled[label == k], per_row[label == k]) for k in range(3)]
        ours.append(sum(w @ ((c - np.average(c, 0, w)) ** 2).sum(1) for c, w in clusters if len(c)))
    assert min(ours) == pytest.approx(theirs, rel=1e-9)


def test_a_large_table_is_looked_at_in_part():
    x = torch.arange(100_000.0)[:, None]
    rows, weights = some_rows(x, None)
    assert rows.shape == (2**16, 1)
    assert weights is None
    heavy = torch.zeros(100_000)
    heavy[7] = 1.0
    rows, weights = some_rows(x, heavy)
    assert (rows == 7).all()  # drawn in proportion to the weights
    assert weights is None
    assert some_rows(x[:10], heavy[:10])[1] is not None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4), r"whole-number labels for 5 rows .*got torch.float32 of shape \(4,\)"),
        (torch.zeros(4, dtype=torch.long), r"labels for 5 rows .*of shape \(4,\)"),
        (torch.tensor([0, 1, 2, 1, 0]), "labels from 0 to 1, got 0 to 2"),
    ],
)
def test_labels_that_are_none(labels, message):
    with pytest.raises(MethodError, match=message):
        given_labels(labels, torch.zeros(5, 1), 2)


def test_scaling_a_column_changes_no_label():
    x = torch.randn(40, 2)
    with isolated(1, dtype=torch.float64, device=torch.device("cpu")):
        one = first_labels(x, 3, 5, "kmeans++")
    with isolated(1, dtype=torch.float64, device=torch.device("cpu")):
        other = first_labels(x * torch.tensor([1.0, 1024.0]), 3, 5, "kmeans++")
    assert torch.equal(one, other)


def test_repeated_points_do_not_break_it():
    labels = first_labels(torch.ones(5, 2), 3, 4, "kmeans++")
    assert labels.shape == (4, 5)


def problem(program=gamma_poisson, data=COUNTS):
    return Problem(program, Arguments.of(data), 0)


def test_random_starts_are_stans():
    p = problem()
    z = starting_points(p, p.log_density, "random", 200)
    assert z.shape == (200, 1)
    assert (z.abs() <= 2).all()
    assert p.log_density.value(z).isfinite().all()


def test_em_starts_are_close_to_the_mode():
    p = problem(one_dimensional(), two_groups())
    density = p.log_density
    em, random = (density.value(starting_points(p, density, init, 8)) for init in ("em", "random"))
    assert em.min() > random.max()


@pytest.mark.parametrize(
    ("init", "message"), [("best", '"pathfinder", "prior", "random" or sites, got \'best\''), ("em", "EM")]
)
def test_unknown_or_impossible_starts(init, message):
    p = problem()
    with pytest.raises(MethodError, match=message):
        starting_points(p, p.log_density, init, 2)
