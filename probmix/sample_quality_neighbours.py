"""Do generated samples lie where real ones do, and the other way round: scores from nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from probmix.errors import DataError
from probmix.sample_quality_inputs import as_pair, distances, row_blocks

__all__ = ["DensityCoverage", "PrecisionRecall", "density_coverage", "precision_recall"]


class PrecisionRecall(NamedTuple):
    """What `precision_recall` found.

    Args:
        precision: share of generated samples that lie among real ones.
        recall: share of real samples that lie among generated ones.

    Example:
        >>> PrecisionRecall(torch.tensor(0.9), torch.tensor(0.1)).recall
        tensor(0.1000)
    """

    precision: Tensor
    recall: Tensor


class DensityCoverage(NamedTuple):
    """What `density_coverage` found.

    Args:
        density: how densely real samples lie around generated ones, over what is expected of real ones; may exceed 1.
        coverage: share of real samples with a generated one nearby.

    Example:
        >>> DensityCoverage(torch.tensor(1.1), torch.tensor(0.6)).coverage
        tensor(0.6000)
    """

    density: Tensor
    coverage: Tensor


def precision_recall(real: Tensor, generated: Tensor, *, neighbours: int = 3) -> PrecisionRecall:
    r"""Return the share of generated samples among the real ones, and of real samples among the generated ones.

    A sample y is among samples X if it lies in a ball around one of them that reaches to its k-th nearest neighbour,

    .. math:: \exists x \in X: \lVert y - x \rVert \le \lVert x - \mathrm{NN}_k(x, X) \rVert

    where a sample is no neighbour of itself but its copies are. Balls are closed, as in the paper. Precision is
    fidelity and recall diversity; one outlier among the real samples makes a large ball and raises the precision
    (`density_coverage` minds it less). Copies of the real samples score 1 and 1.

    The cost grows as the product of the numbers of samples times the features, the memory only as their sum.

    Args:
        real: features of real samples, ``(n, d)``; images are flattened.
        generated: the same features of generated ones, ``(m, d)``; of the same number, as both depend on it.
        neighbours: k.

    Raises:
        DataError: features not of shapes ``(n, d)`` and ``(m, d)``, not finite, or not more rows than neighbours.

    Source:
        Kynkäänniemi, Karras, Laine, Lehtinen and Aila (2019), Improved precision and recall metric for assessing
        generative models, NeurIPS, equations 1 and 2.

    Example:
        >>> real = torch.arange(10.0)[:, None]
        >>> precision_recall(real, real[:5] + 0.25)  # half of the modes
        PrecisionRecall(precision=tensor(1.), recall=tensor(0.8000))
    """
    x, y = _check(real, generated, neighbours, both=True)
    precision, recall = (
        torch.cat([inside.any(1) for inside in _inside(points, centres, _radii(centres, neighbours))])
        for points, centres in ((y, x), (x, y))
    )
    return PrecisionRecall(precision.to(x).mean(), recall.to(x).mean())


def density_coverage(real: Tensor, generated: Tensor, *, neighbours: int = 5) -> DensityCoverage:
    r"""Return how many balls of real samples generated ones lie in, and the share of balls with one inside.

    With the ball :math:`B_i` around the real sample :math:`x_i` that reaches to its k-th nearest real neighbour,

    .. math::
        \mathrm{density} = \frac{1}{k m} \sum_{j=1}^m \sum_{i=1}^n 1[y_j \in B_i], \qquad
        \mathrm{coverage} = \frac{1}{n} \sum_{i=1}^n 1[\exists j: y_j \in B_i]

    Balls are closed here, so that copies of the real samples score (k + 1) / k, or more where distances are equal,
    and 1; the authors' program leaves the sphere itself out, which matters only where distances are equal. For
    independent samples of one distribution, the same number of both, expect 1 and about :math:`1 - 2^{-k}`.

    The cost grows as the product of the numbers of samples times the features, the memory only as their sum.

    Args:
        real: features of real samples, ``(n, d)``; images are flattened.
        generated: the same features of generated ones, ``(m, d)``; coverage rises with their number.
        neighbours: k.

    Raises:
        DataError: features not of shapes ``(n, d)`` and ``(m, d)``, not finite, or not more real rows than neighbours.

    Source:
        Naeem, Oh, Uh, Choi and Yoo (2020), Reliable fidelity and diversity metrics for generative models, ICML;
        the expected values are theirs, too.

    Example:
        >>> real = torch.arange(10.0)[:, None]
        >>> density_coverage(real, torch.tensor([[0.0]]), neighbours=2)
        DensityCoverage(density=tensor(1.), coverage=tensor(0.2000))
    """
    x, y = _check(real, generated, neighbours, both=False)
    balls = torch.zeros((), dtype=torch.long, device=x.device)
    covered = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for inside in _inside(y, x, _radii(x, neighbours)):
        balls += inside.sum()
        covered |= inside.any(0)
    return DensityCoverage((balls.double() / (neighbours * len(y))).to(x), covered.to(x).mean())


def _radii(centres: Tensor, neighbours: int) -> Tensor:
    """Return the distance of each sample to its k-th nearest neighbour, ``(n,)``: itself, at 0, is the one before."""
    nearest = (
        distances(centres[block], centres).topk(neighbours + 1, largest=False).values[:, -1]
        for block in row_blocks(len(centres), len(centres))
    )
    return torch.cat(list(nearest))


def _inside(points: Tensor, centres: Tensor, radii: Tensor) -> Iterator[Tensor]:
    """Yield which points lie in which balls, a block of points at a time, ``(block, n)``."""
    for block in row_blocks(len(points), len(centres)):
        yield distances(points[block], centres) <= radii


def _check(real: Tensor, generated: Tensor, neighbours: int, *, both: bool) -> tuple[Tensor, Tensor]:
    if neighbours < 1:
        raise DataError(f"neighbours: expected 1 or more, got {neighbours}. The papers take 3 and 5.")
    x, y = as_pair(real, generated)
    for name, rows in (("real", x), ("generated", y))[: 1 + both]:
        if len(rows) <= neighbours:
            raise DataError(
                f"{name}: expected more rows than the {neighbours} neighbours, got {len(rows)}. Add samples or lower "
                "neighbours."
            )
    return x, y
