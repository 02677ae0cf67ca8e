"""Do generated samples look like something, and are they diverse: scores from a classifier of the user's own."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple

import torch
from torch import Tensor

from probmix.errors import DataError
from probmix.sample_quality_inputs import as_features, as_labels, distances, row_blocks
from probmix.table import wide_dtype

__all__ = ["ClassScores", "IntraClassDiversity", "class_scores", "intra_class_diversity"]

_SUM_TOLERANCE = 1e-2  # of a row of probabilities; a row of logits is off by far more, one in float16 by less


class ClassScores(NamedTuple):
    """What `class_scores` found, for C classes.

    Args:
        quality: geometric mean confidence of the classifier, from 1 / C to 1.
        inter_class_diversity: effective number of classes among the samples, from 1 to C.

    Example:
        >>> ClassScores(torch.tensor(0.5), torch.tensor(8.0)).inception_score
        tensor(4.)
    """

    quality: Tensor
    inter_class_diversity: Tensor

    @property
    def inception_score(self) -> Tensor:
        """Product of the two, from 1 to C."""
        return self.quality * self.inter_class_diversity


class IntraClassDiversity(NamedTuple):
    """What `intra_class_diversity` found.

    Args:
        mean: of the classes with two samples or more, each counted once; in units of the features.
        by_class: mean distance within each class; NaN for a class of one sample.
        classes: which they are, in rising order.

    Example:
        >>> IntraClassDiversity(torch.tensor(1.0), torch.tensor([1.0]), torch.tensor([7])).mean
        tensor(1.)
    """

    mean: Tensor
    by_class: Tensor
    classes: Tensor


def class_scores(log_probs: Tensor) -> ClassScores:
    r"""Score generated samples by the class probabilities that a classifier gives them.

    .. math::
        Q = \exp(-E_x H[p(y \mid x)]), \qquad D = \exp(H[E_x p(y \mid x)]), \qquad \mathrm{IS} = Q D

    with the entropy H. Quality Q is 1 where the classifier is sure of every sample and 1 / C where it cannot tell at
    all; diversity D between classes is 1 where all samples are of one class and C where they are evenly spread. Their
    product is the inception score for the classifier at hand. A generator that repeats one sample of each class has the
    best of all scores: see `intra_class_diversity`.

    The two factors stand in for the quality and diversity scores of Ben-Yosef and Weinshall (2018), arXiv:1808.10356,
    whose formulas were not at hand; the numbers are not theirs.

    Args:
        log_probs: natural logarithms of class probabilities, ``(n, C)``; -inf is a probability of 0.

    Raises:
        DataError: no such table: NaN, or a row that does not sum to one.

    Source:
        Salimans, Goodfellow, Zaremba, Cheung, Radford and Chen (2016), Improved techniques for training GANs, NeurIPS,
        for the product.

    Example:
        >>> sure_and_even = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).log()
        >>> scores = class_scores(sure_and_even)
        >>> [round(float(score), 4) for score in (*scores, scores.inception_score)]
        [1.0, 2.0, 2.0]
    """
    rows = _check_log_probs(log_probs).to(wide_dtype(log_probs))
    sure = -_entropy(rows).mean()
    spread = _entropy(rows.logsumexp(0) - math.log(len(rows)))
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    return ClassScores(sure.exp().to(dtype), spread.exp().to(dtype))


def intra_class_diversity(features: Tensor, labels: Tensor) -> IntraClassDiversity:
    r"""Return how far apart samples of the same class are.

    .. math:: D_c = \frac{1}{n_c (n_c - 1)} \sum_{i \ne j: y_i = y_j = c} \lVert f_i - f_j \rVert

    and the mean of it over classes. A generator that repeats itself within a class has 0. The scale is that of the
    features: compare with real samples of the same features. Only pairs of one class are gone through, in blocks.

    Args:
        features: of generated samples, ``(n, d)``; images are flattened.
        labels: predicted class of each, ``(n,)``, e.g. ``log_probs.argmax(1)``.

    Raises:
        DataError: features not of shape ``(n, d)`` or not finite, not one label for each, or no class with two samples.

    Source:
        A stand-in for the intra-class diversity of Ben-Yosef and Weinshall (2018), arXiv:1808.10356, whose formula was
        not at hand; the number is not theirs.

    Example:
        >>> features = torch.tensor([[0.0], [2.0], [5.0], [9.0]])
        >>> found = intra_class_diversity(features, torch.tensor([0, 0, 1, 1]))
        >>> found.by_class, found.mean
        (tensor([2., 4.]), tensor(3.))
    """
    rows = as_features(features, "features")
    classes, label = as_labels(labels, "labels", len(rows)).to(rows.device).unique(return_inverse=True)
    counts = label.bincount(minlength=len(classes))
    if len(classes) == len(rows):
        raise DataError(
            f"labels: expected a class with two samples or more, got {len(rows)} samples of as many classes. "
            "Add samples."
        )
    total = _distances_within(rows, label, counts)
    by_class = torch.where(counts > 1, total / (counts * (counts - 1)).clamp_min(1), torch.nan)
    return IntraClassDiversity(by_class.nanmean().to(rows), by_class.to(rows), classes)


def _distances_within(rows: Tensor, label: Tensor, counts: Tensor) -> Tensor:
    """Return the sum over ordered pairs of each class, ``(classes,)``."""
    order = label.argsort(stable=True)
    rows, label = rows[order], label[order]
    ends = counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    total = rows.new_zeros(len(ends), dtype=wide_dtype(rows))
    for block in row_blocks(len(rows), len(rows)):
        # Rows are sorted by class: partners are from the first row of a block's first class to the last of its last.
        columns = slice(starts[bisect_right(ends, block.start)], ends[bisect_right(ends, block.stop - 1)])
        same = label[block][:, None] == label[columns]
        total.index_add_(0, label[block], (distances(rows[block], rows[columns]) * same).sum(1, dtype=total.dtype))
    return total


def _entropy(log_probs: Tensor) -> Tensor:
    """Return entropies in nats, ``(*b, C) -> (*b,)``; 0 log 0 is 0."""
    return -(log_probs.exp() * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(-1)


def _check_log_probs(log_probs: Tensor) -> Tensor:
    if not isinstance(log_probs, Tensor) or not log_probs.is_floating_point() or log_probs.ndim != 2:
        got = tuple(log_probs.shape) if isinstance(log_probs, Tensor) else type(log_probs).__name__
        raise DataError(f"log_probs: expected a tensor of numbers of shape (n, C), got {got}. One row for each sample.")
    if 0 in log_probs.shape:
        raise DataError(f"log_probs: expected a sample and a class or more, got {tuple(log_probs.shape)}. Add samples.")
    sums = log_probs.detach().to(wide_dtype(log_probs)).exp().sum(1)
    wrong = ~((sums - 1).abs() <= _SUM_TOLERANCE)  # NaN is wrong, too
    if wrong.any():
        first = wrong.nonzero().flatten().tolist()[0]
        raise DataError(
            f"log_probs: expected rows whose exponentials sum to one, got {float(sums[first]):.4g} in row {first}. "
            "Pass logits.log_softmax(1)."
        )
    return log_probs.detach()
