"""Precision, recall, density and coverage: the papers' definitions as loops, with ties and copies among the samples."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from probmix import sample_quality_inputs
from probmix.errors import DataError
from probmix.sample_quality import density_coverage, precision_recall


def normal(n: int, d: int = 3, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    return shift + torch.as_tensor(np.random.default_rng(seed).normal(size=(n, d)))


def lattice(n: int, seed: int) -> torch.Tensor:
    """Points of a small lattice: many ties and many copies, with exact distances."""
    return torch.as_tensor(np.random.default_rng(seed).integers(0, 4, (n, 2)).astype(float))


def radii(x: np.ndarray, k: int) -> np.ndarray:
    """Distance to the k-th nearest of the others."""
    return np.array([np.sort(np.delete(cdist(x[i : i + 1], x)[0], i))[k - 1] for i in range(len(x))])


def by_loops(real: torch.Tensor, generated: torch.Tensor, k: int) -> tuple[float, float, float, float]:
    x, y = real.numpy(), generated.numpy()

    def share_inside(points, centres):
        reach = radii(centres, k)
        inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(centres, reach, strict=True)) for p in points]
        return sum(inside) / len(points)

    balls = cdist(y, x) <= radii(x, k)
    density = balls.sum() / (k * len(y))
    return share_inside(y, x), share_inside(x, y), density, balls.any(0).sum() / len(x)


PAIRS = {
    "normal": (normal(60), normal(50, shift=0.8, seed=1)),
    "ties and copies": (lattice(50, 0), lattice(40, 1)),
    "lattice, half of it": (lattice(50, 0), lattice(40, 1).clamp_max(1)),
}


@pytest.mark.parametrize("block", [2**22, 130, 1])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("name", PAIRS)
def test_the_scores_are_those_of_the_definitions(monkeypatch, name, k, block):
    monkeypatch.setattr(sample_quality_inputs, "BLOCK", block)
    real, generated = PAIRS[name]
    found = [*precision_recall(real, generated, neighbours=k), *density_coverage(real, generated, neighbours=k)]
    assert [float(value) for value in found] == pytest.approx(by_loops(real, generated, k), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_of_the_real_samples(dtype):
    """Memorised, in another order: best of all, and every ball has its k + 1 samples; far from the origin, too."""
    real = (100 + normal(200, 8)).to(dtype)
    copies = real.flip(0)
    assert precision_recall(real, copies) == (1.0, 1.0)
    density, coverage = density_coverage(real, copies)
    assert float(density) == pytest.approx(6 / 5)
    assert coverage == 1.0


def test_repeated_real_samples_make_balls_of_no_size():
    """Four copies of each: the third neighbour is at distance 0, so only copies lie among them."""
    real = normal(50).repeat(4, 1)
    assert precision_recall(real, real[:50]).precision == 1.0
    assert precision_recall(real, real[:50] + 1e-9).precision == 0.0


def test_a_collapsed_generator_is_precise_and_recalls_nothing():
    real = normal(300)
    collapsed = real[real.norm(dim=1).argmin()] + 0.01 * normal(300, seed=1)
    precision, recall = precision_recall(real, collapsed)
    assert precision > 0.99
    assert recall < 0.03
    assert density_coverage(real, collapsed).coverage < 0.1


def test_noise_is_neither_precise_nor_dense():
    real, noise = normal(300), 20 * normal(300, seed=1)
    assert precision_recall(real, noise).precision < 0.1
    assert density_coverage(real, noise).density < 0.1


def test_one_outlier_raises_precision_and_hardly_density():
    """What density is for: the ball around an outlier holds much; it counts as one of many balls."""
    real, shifted = normal(300), normal(300, shift=5.0, seed=1)
    with_outlier = torch.cat([real, torch.full((1, 3), 9.0).double()])
    before, after = (precision_recall(x, shifted).precision for x in (real, with_outlier))
    assert after - before > 0.5
    before, after = (density_coverage(x, shifted).density for x in (real, with_outlier))
    assert after - before < 0.25


def test_recall_is_precision_the_other_way_round():
    real, generated = PAIRS["normal"]
    assert tuple(precision_recall(real, generated)) == tuple(precision_recall(generated, real))[::-1]


def test_equal_distributions_score_what_the_paper_expects():
    """Null: one distribution. Of n = m = 100, density has the mean 1 and coverage that of its lemma 2; the means of 200
    pairs are within four of their standard errors but once in 8,000 seeds. The control is narrower by a third."""

    def scores(factor: float) -> np.ndarray:
        pairs = [(normal(100, seed=i), factor * normal(100, seed=1000 + i)) for i in range(200)]
        return np.array([[float(value) for value in density_coverage(*pair)] for pair in pairs])

    expected = np.array([1.0, 1 - np.prod([(100 - i) / (200 - i) for i in range(1, 6)])])

    def distance(found: np.ndarray) -> np.ndarray:
        return np.abs(found.mean(0) - expected) / (found.std(0, ddof=1) / np.sqrt(len(found)))

    assert (distance(scores(1.0)) < 4).all()
    assert (distance(scores(2 / 3)) > 4).all()


def test_no_table_of_all_pairs_is_made(monkeypatch):
    """The largest table of distances that is asked for, with blocks of 4,000 numbers."""
    sizes, cdist_of_torch = [], torch.cdist

    def counting(x, y, **settings):
        sizes.append(len(x) * len(y))
        return cdist_of_torch(x, y, **settings)

    monkeypatch.setattr(torch, "cdist", counting)
    monkeypatch.setattr(sample_quality_inputs, "BLOCK", 4000)
    precision_recall(normal(300), normal(400, seed=1))
    density_coverage(normal(300), normal(400, seed=1))
    assert max(sizes) <= 4000
    assert sum(sizes) == (300**2 + 400**2 + 2 * 300 * 400) + (300**2 + 300 * 400)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: precision_recall(normal(3), normal(9)), "real: expected more rows than the 3 neighbours, got 3. Add"),
        (lambda: precision_recall(normal(9), normal(2)), "generated: expected more rows than the 3 neighbours, got 2."),
        (lambda: density_coverage(normal(5), normal(9)), "real: expected more rows than the 5 neighbours, got 5. Add"),
        (
            lambda: density_coverage(normal(9), normal(9), neighbours=0),
            "neighbours: expected 1 or more, got 0. The pap",
        ),
        (lambda: density_coverage(normal(9), normal(9, 2)), "generated: expected 3 columns as real has, got 2."),
    ],
)
def test_what_cannot_be_scored_is_refused(call, message):
    with pytest.raises(DataError, match=re.escape(message)):
        call()


def test_fewer_generated_samples_than_neighbours_have_a_density():
    assert density_coverage(normal(9), normal(2, seed=1)).coverage <= 1.0
