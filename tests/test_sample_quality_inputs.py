"""What the scores refuse, in words that help."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from probmix.errors import DataError
from probmix.sample_quality_inputs import BLOCK, as_features, as_labels, as_pair, distances, row_blocks

X = torch.zeros(4, 3)


def with_hole(row: int) -> torch.Tensor:
    x = X.clone()
    x[row:, 1] = torch.nan
    return x


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((4, 3)), "real: expected a tensor of floating-point numbers, got ndarray. Convert with .double()."),
        (X.to(torch.uint8), "real: expected a tensor of floating-point numbers, got torch.uint8."),
        (X[:, 0], "expected features of shape (n, d), got (4,). Images are flattened first, real.flatten(1), and one"),
        (torch.zeros(2, 3, 8, 8), "real: expected features of shape (n, d), got (2, 3, 8, 8). Images are flattened"),
        (torch.zeros(4, 0), "real: expected features of shape (n, d), got (4, 0)."),
        (X[:1], "real: expected 2 rows or more, got 1. Add samples."),
        (
            with_hole(2),
            "got 2 of 4 rows with NaN or infinity, the first at index 2. Drop them with real[real.isfinite()",
        ),
    ],
)
def test_features_that_cannot_be_used_are_refused_with_a_remedy(features, message):
    with pytest.raises(DataError, match=re.escape(message)):
        as_features(features, "real", 2)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            torch.zeros(4, 2),
            "generated: expected 3 columns as real has, got 2. Take the features of both from the same",
        ),
        (
            X.double(),
            "expected torch.float32 on cpu as real is, got torch.float64 on cpu. Convert with generated.to(real)",
        ),
    ],
)
def test_samples_of_different_features_are_refused(second, message):
    with pytest.raises(DataError, match=re.escape(message)):
        as_pair(X, second)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            X[:, 0],
            "labels: expected a tensor of whole numbers, got torch.float32. Probabilities need .argmax(1) first.",
        ),
        ([0, 1, 1, 1], "labels: expected a tensor of whole numbers, got list."),
        (
            torch.zeros(3).long(),
            "labels: expected one for each of 4 samples, got shape (3,). Pass those of the same rows",
        ),
        (torch.zeros(4, 1).long(), "labels: expected one for each of 4 samples, got shape (4, 1)."),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(DataError, match=re.escape(message)):
        as_labels(labels, "labels", 4)


def test_no_labels_are_refused():
    with pytest.raises(DataError, match=r"labels: expected one or more, of shape \(n,\), got shape \(0,\)"):
        as_labels(torch.zeros(0).long(), "labels")


def test_what_comes_back_has_no_graph_and_is_wide_enough():
    assert not as_features(X.clone().requires_grad_(), "real").requires_grad
    assert as_features(X.bfloat16(), "real").dtype == torch.float32
    assert as_features(X.double(), "real").dtype == torch.float64


def test_copies_are_at_distance_zero_and_pairs_at_one_distance():
    """Far from the origin, where a product of matrices loses both; the control is that product."""
    x = 1e3 + torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    found = distances(x, x)
    assert (found.diagonal() == 0).all()
    assert (found == found.mT).all()
    assert torch.equal(found[:7], distances(x[:7], x))
    assert (torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist").diagonal() != 0).any()


def test_blocks_cover_the_rows_once_and_stay_small():
    cut = row_blocks(10_000, 3000)
    assert np.array_equal(np.concatenate([np.arange(10_000)[block] for block in cut]), np.arange(10_000))
    assert max(block.stop - block.start for block in cut) * 3000 <= BLOCK
    assert len(row_blocks(5, 10 * BLOCK)) == 5  # a row at least
