"""Scores from a classifier: scipy's entropies, a double loop over pairs, and generators that collapse."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import entropy

from probmix import sample_quality_inputs
from probmix.errors import DataError
from probmix.sample_quality import class_scores, intra_class_diversity

GENERATOR = np.random.default_rng(0)
PROBS = GENERATOR.dirichlet(np.full(5, 0.3), size=400)
FEATURES, LABELS = torch.as_tensor(GENERATOR.normal(size=(300, 4))), torch.as_tensor(GENERATOR.integers(0, 7, 300))


def log_probs(probs) -> torch.Tensor:
    return torch.as_tensor(np.asarray(probs), dtype=torch.float64).log()


# --- quality and diversity between classes ----------------------------------------------------------------------------


def test_the_factors_are_exponentials_of_scipys_entropies():
    scores = class_scores(log_probs(PROBS))
    assert float(scores.quality) == pytest.approx(math.exp(-entropy(PROBS, axis=1).mean()), rel=1e-12)
    assert float(scores.inter_class_diversity) == pytest.approx(math.exp(entropy(PROBS.mean(0))), rel=1e-12)


def test_the_product_is_the_inception_score():
    """As in its paper: the exponential of the mean divergence of each row from the mean of the rows."""
    divergence = entropy(PROBS, np.broadcast_to(PROBS.mean(0), PROBS.shape), axis=1)
    expected = math.exp(divergence.mean())
    assert float(class_scores(log_probs(PROBS)).inception_score) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("probs", "quality", "diversity"),
    [
        (np.eye(10), 1.0, 10.0),  # sure of every sample, all classes alike; with zeros, whose logarithms are -inf
        (np.eye(10)[[3] * 20], 1.0, 1.0),  # collapsed
        (np.full((6, 10), 0.1), 0.1, 10.0),  # noise: the product, 1, is that of the collapsed one
        (np.repeat(np.eye(10)[:4], [4, 2, 1, 1], axis=0), 1.0, 2**1.75),
    ],
)
def test_extremes_by_hand(probs, quality, diversity):
    scores = class_scores(log_probs(probs))
    assert [float(score) for score in scores] == pytest.approx([quality, diversity], rel=1e-12)


def test_the_scores_stay_in_their_ranges_whatever_the_probabilities():
    for concentration in (0.01, 0.1, 1.0, 10.0):
        quality, diversity = class_scores(log_probs(GENERATOR.dirichlet(np.full(7, concentration), size=50)))
        assert 1 / 7 - 1e-9 <= quality <= 1 + 1e-9
        assert 1 - 1e-9 <= diversity <= 7 + 1e-9


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-2)])
def test_less_precise_probabilities_give_nearly_the_same(dtype, tolerance):
    """Float16 keeps three digits of a logarithm."""
    narrow, wide = class_scores(log_probs(PROBS).to(dtype)), class_scores(log_probs(PROBS))
    assert narrow.quality.dtype == torch.float32
    assert [float(value) for value in narrow] == pytest.approx([float(value) for value in wide], rel=tolerance)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(2, 3), "log_probs: expected rows whose exponentials sum to one, got 3 in row 0. Pass logits.log_"),
        (
            log_probs([[0.5, 0.5], [0.5, 0.25]]),
            "exponentials sum to one, got 0.75 in row 1. Pass logits.log_softmax(1).",
        ),
        (log_probs([[0.5, np.nan]]), "exponentials sum to one, got nan in row 0."),
        (torch.zeros(3), "log_probs: expected a tensor of numbers of shape (n, C), got (3,). One row for each sample."),
        (PROBS, "log_probs: expected a tensor of numbers of shape (n, C), got ndarray."),
        (torch.zeros(0, 3), "log_probs: expected a sample and a class or more, got (0, 3). Add samples."),
    ],
)
def test_what_are_no_log_probabilities_is_refused(rows, message):
    with pytest.raises(DataError, match=re.escape(message)):
        class_scores(rows)


# --- diversity within classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [2**22, 2000, 1])
def test_distances_within_a_class_are_those_of_scipy(monkeypatch, block):
    """Whatever the size of the blocks, 6 rows or one."""
    monkeypatch.setattr(sample_quality_inputs, "BLOCK", block)
    found = intra_class_diversity(FEATURES, LABELS)
    expected = [pdist(FEATURES[label == LABELS].numpy()).mean() for label in range(7)]
    np.testing.assert_allclose(found.by_class, expected, rtol=1e-12)
    assert float(found.mean) == pytest.approx(np.mean(expected), rel=1e-12)
    assert found.classes.tolist() == list(range(7))


def test_order_and_names_of_the_classes_do_not_matter():
    order = torch.as_tensor(GENERATOR.permutation(300))
    plain, other = (
        intra_class_diversity(FEATURES, LABELS),
        intra_class_diversity(FEATURES[order], 3 - 2 * LABELS[order]),
    )
    torch.testing.assert_close(plain.by_class, other.by_class.flip(0))
    assert other.classes.tolist() == [3 - 2 * label for label in range(6, -1, -1)]


def test_a_generator_that_repeats_itself_within_classes_is_seen_here_alone():
    """Negative control: one sample of each class, many times, has the best inception score."""
    repeated = torch.eye(10)[torch.arange(100) % 10]
    assert float(class_scores(repeated.log()).inception_score) == pytest.approx(10.0, rel=1e-6)
    assert float(intra_class_diversity(repeated, repeated.argmax(1)).mean) == 0.0
    assert float(intra_class_diversity(repeated + torch.rand(100, 10), repeated.argmax(1)).mean) > 0.5


def test_each_class_counts_once_and_one_sample_not_at_all():
    features = torch.tensor([[0.0], [1.0], [0.0], [1.0], [5.0], [9.0]])
    found = intra_class_diversity(features, torch.tensor([0, 0, 0, 0, 1, 2]))
    assert float(found.by_class[0]) == pytest.approx(4 / 6)
    assert found.by_class.isnan().tolist() == [False, True, True]
    assert found.mean == found.by_class[0]


def test_classes_without_pairs_are_refused():
    with pytest.raises(
        DataError, match=r"a class with two samples or more, got 3 samples of as many classes. Add samples"
    ):
        intra_class_diversity(torch.zeros(3, 2), torch.arange(3))
    with pytest.raises(DataError, match=r"labels: expected one for each of 3 samples, got shape \(2,\)"):
        intra_class_diversity(torch.zeros(3, 2), torch.arange(2))
