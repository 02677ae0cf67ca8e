"""Starts of EM and of the other methods."""

from __future__ import annotations

import pytest
import torch
from programs import COUNTS, gamma_poisson, one_dimensional, two_groups

from probmix.arguments import Arguments
from probmix.errors import MethodError
from probmix.inference.method import Problem
from probmix.inference.seeding import first_labels
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


def test_kmeans_plus_plus_odds():
    """Arthur and Vassilvitskii's odds on three points, 0, 1 and 3 (scaled alike): after 0, 1 : 9.

    4,000 starts; 4.5 standard errors of a proportion: false alarm 7e-6. The control: even odds are rejected.
    """
    x = torch.tensor([[0.0], [1.0], [3.0]])
    labels = first_labels(x, 2, 4000, "kmeans++")
    # With two centres, the point alone or both centres' nearest tell which pair was drawn.
    together = (labels[:, 0] == labels[:, 1]).double().mean()  # pairs {0, 3} and {1, 3}
    first = torch.tensor([1 / 3] * 3)
    expected = first[0] * 0.9 + first[1] * 0.8 + first[2] * 1.0  # from 0: 9/10; from 1: 4/5; from 3 either way
    error = (expected * (1 - expected) / 4000).sqrt()
    assert abs(together - expected) < 4.5 * error
    assert abs(together - 2 / 3) > 4.5 * error


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
