"""Scores that say how unlike the training data a row is, a threshold for them, and how well they tell outliers.

Every score is larger for rows that are less like the training data. Tensors in, tensors out; arrays in, arrays out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probmix.errors import DataError
from probmix.rows import as_rows
from probmix.shrinkage import Shrinkage, shrunk_covariance
from probmix.typing import Sites

__all__ = ["DensityScore", "Detection", "MahalanobisScore", "detection", "fit_mahalanobis", "threshold_of"]

Rows = TypeVar("Rows", Tensor, NDArray)


class HasLogProb(Protocol):
    """A model with a density."""

    def log_prob(self, x: Tensor, sites: Sites) -> Tensor:
        """Log density of each row."""
        ...


@dataclass(frozen=True, eq=False)
class DensityScore:
    r"""Negative log density of a fitted mixture, :math:`-\log p(x)`.

    Attributes:
        model: any mixture of `probmix.models`.
        sites: its sites.

    Example:
        >>> from probmix.datasets import load_faithful
        >>> from probmix.inference import EM, infer
        >>> from probmix.models import GaussianMixture
        >>> x = load_faithful().x
        >>> em = infer(GaussianMixture(2), x, EM(), seed=0)
        >>> score = DensityScore(em.program, em.sites())
        >>> limit = threshold_of(score.score(x), fraction=0.05)
        >>> int((score.score(x) > limit).sum()), len(x)
        (14, 272)
    """

    model: HasLogProb
    sites: Sites

    def score(self, x: Rows) -> Rows:
        """Return the score of each row, in nats, ``(N, D) -> (N,)``."""
        rows = _tensor(x, next(iter(self.sites.values())))
        return _same_kind(-self.model.log_prob(rows, self.sites), x)


@dataclass(frozen=True, eq=False)
class MahalanobisScore:
    r"""Squared Mahalanobis distance to the nearest class, with one covariance for all classes.

    .. math:: M(x) = \min_c (x - \mu_c)^T \Sigma^{-1} (x - \mu_c)

    With a background Gaussian :math:`(\mu_0, \Sigma_0)` of all rows, whatever their class, its distance
    :math:`(x - \mu_0)^T \Sigma_0^{-1} (x - \mu_0)` is taken off: the relative distance, which is blind to directions
    in which all data vary alike, and may be negative. It is the squared distance, not half of it as in some programs.

    Attributes:
        loc: mean of each class, ``(C, D)``.
        cov: covariance about these means, ``(D, D)``.
        background_loc: mean of all rows, ``(D,)``; None: not relative.
        background_cov: covariance of all rows, ``(D, D)``; None: not relative.

    Source:
        Lee, Lee, Lee and Shin (2018), A simple unified framework for detecting out-of-distribution samples and
        adversarial attacks, NeurIPS (one layer, without its pre-processing of the input); Ren et al. (2021), A simple
        fix to Mahalanobis distance for improving near-OOD detection, arXiv:2106.09022 (relative).

    Example:
        >>> score = MahalanobisScore(torch.tensor([[0.0], [10.0]]), torch.tensor([[4.0]]))
        >>> score.score(torch.tensor([[2.0], [6.0]]))
        tensor([1., 4.])
    """

    loc: Tensor
    cov: Tensor
    background_loc: Tensor | None = None
    background_cov: Tensor | None = None

    def score(self, x: Rows) -> Rows:
        """Return the score of each row, ``(N, D) -> (N,)``."""
        rows = _tensor(x, self.loc)
        nearest = self._distances(rows).amin(-1)
        if self.background_loc is not None and self.background_cov is not None:
            nearest = nearest - _squared_distance(rows, self.background_loc[None], self.background_cov)[:, 0]
        return _same_kind(nearest, x)

    def distances(self, x: Rows) -> Rows:
        """Return the squared distance of each row to each class, ``(N, D) -> (N, C)``."""
        return _same_kind(self._distances(_tensor(x, self.loc)), x)

    def _distances(self, rows: Tensor) -> Tensor:
        return _squared_distance(rows, self.loc, self.cov)


def fit_mahalanobis(
    x: Rows, labels: Rows, *, relative: bool = False, shrinkage: Shrinkage = "none"
) -> MahalanobisScore:
    """Fit the class means, the covariance about them and, if relative, the background Gaussian.

    Each row is centred about the mean of its class alone: to centre the rows a second time would change nothing, to
    leave it out would put the distances between the classes into the covariance.

    Args:
        x: features of the training rows, ``(N, D)``; arrays too.
        labels: class of each row, whole numbers, ``(N,)``.
        relative: take the distance to all rows together off.
        shrinkage: of the covariances, for fewer rows than features; see `probmix.shrinkage`.

    Raises:
        DataError: not one label for each row, or a covariance that is singular.

    Example:
        >>> from probmix.datasets import load_iris
        >>> iris = load_iris()
        >>> score = fit_mahalanobis(iris.x, iris.target)
        >>> round(float(score.distances(iris.x).gather(1, iris.target[:, None]).mean()), 6)  # the number of columns
        4.0
    """
    rows = as_rows(torch.as_tensor(x))
    classes, index = torch.as_tensor(labels, device=rows.device).unique(return_inverse=True)
    if index.shape != rows.shape[:1]:
        raise DataError(f"labels: expected one for each of {len(rows)} rows, got shape {tuple(index.shape)}.")
    share = torch.nn.functional.one_hot(index, len(classes)).to(rows)
    centre = rows.mean(0)
    loc = centre + share.mT @ (rows - centre) / share.sum(0)[:, None]
    cov = _regular(shrunk_covariance(rows - loc[index], shrinkage))
    if not relative:
        return MahalanobisScore(loc, cov)
    return MahalanobisScore(loc, cov, centre, _regular(shrunk_covariance(rows - centre, shrinkage)))


def threshold_of(scores: Rows, *, fraction: float) -> float:
    """Return the score that so large a fraction of the training rows exceed.

    Args:
        scores: of training rows, ``(N,)``.
        fraction: above 0 and below 1.

    Raises:
        DataError: the fraction is out of range.

    Example:
        >>> round(threshold_of(torch.arange(101.0), fraction=0.05), 6)
        95.0
    """
    if not 0 < fraction < 1:
        raise DataError(
            f"fraction: expected a number above 0 and below 1, got {fraction}. Pass 0.05 for one in twenty."
        )
    return float(np.quantile(_flat(scores), 1 - fraction))


class Detection(NamedTuple):
    """How well scores tell outliers from inliers.

    Attributes:
        auroc: chance that an outlier scores above an inlier (half of it where they are equal).
        aupr: average precision with the outliers as the class to be found.
        aupr_inliers: average precision with the inliers as the class to be found.
        fpr_95: share of outliers below the threshold that 95 % of the inliers keep to.

    Example:
        >>> detection(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])).auroc
        1.0
    """

    auroc: float
    aupr: float
    aupr_inliers: float
    fpr_95: float


def detection(inliers: Rows, outliers: Rows) -> Detection:
    """Compare the scores of rows known to be inliers with those of known outliers.

    Args:
        inliers: scores, ``(N,)``, larger for what is less like the training data.
        outliers: scores, ``(M,)``.

    Raises:
        DataError: no scores, or scores that are not numbers.

    Example:
        >>> detection(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 3.0])).fpr_95
        0.5
    """
    low, high = _flat(inliers), _flat(outliers)
    if not len(low) or not len(high) or not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise DataError(
            f"expected finite scores of inliers and of outliers, got {len(low)} and {len(high)}, of which "
            f"{int((~np.isfinite(low)).sum())} and {int((~np.isfinite(high)).sum())} are not finite. Drop those rows."
        )
    ordered = np.sort(low)
    below, not_above = np.searchsorted(ordered, high, "left"), np.searchsorted(ordered, high, "right")
    limit = ordered[int(np.ceil(0.95 * len(low))) - 1]
    return Detection(
        auroc=float((below + not_above).mean() / (2 * len(low))),
        aupr=_average_precision(high, low),
        aupr_inliers=_average_precision(-low, -high),
        fpr_95=float((high <= limit).mean()),
    )


def _average_precision(wanted: NDArray, others: NDArray) -> float:
    """Mean, over the wanted, of the precision among all that score as high; equal scores come together."""
    found = len(wanted) - np.searchsorted(np.sort(wanted), wanted, "left")
    false = len(others) - np.searchsorted(np.sort(others), wanted, "left")
    return float((found / (found + false)).mean())


def _squared_distance(rows: Tensor, loc: Tensor, cov: Tensor) -> Tensor:
    """Squared Mahalanobis distances, ``(N, C)``."""
    root = torch.linalg.cholesky(cov)
    parts = [torch.linalg.solve_triangular(root, (rows - mean).mT, upper=False).square().sum(0) for mean in loc]
    return torch.stack(parts, -1)


def _regular(cov: Tensor) -> Tensor:
    root, failed = torch.linalg.cholesky_ex(cov)
    unexplained = root.diagonal().square() / cov.diagonal()  # the share of a column that those before it do not tell
    if failed or not (unexplained > 8 * len(cov) * torch.finfo(cov.dtype).eps).all():
        raise DataError(
            f"expected rows that span all {len(cov)} columns, got a singular covariance. "
            'Use shrinkage="oas", or drop columns that are constant or copies.'
        )
    return cov


def _tensor(x: Tensor | NDArray, like: Tensor) -> Tensor:
    return as_rows(torch.as_tensor(x).to(like))


def _same_kind(result: Tensor, x: Rows) -> Rows:
    return result if isinstance(x, Tensor) else result.cpu().numpy()


def _flat(scores: Tensor | NDArray) -> NDArray:
    array = scores.detach().cpu().numpy() if isinstance(scores, Tensor) else np.asarray(scores)
    return array.astype(np.float64).ravel()
