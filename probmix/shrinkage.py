"""Covariances pulled towards a multiple of the identity, for fewer rows than a covariance needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from probmix.errors import ProgramError

__all__ = ["Shrinkage", "intensity", "shrunk_covariance"]

#: How far to pull: a rule by name, or the intensity itself, from 0 (not at all) to 1.
Shrinkage: TypeAlias = Literal["none", "ledoit_wolf", "oas", "ks"] | float


def shrunk_covariance(rows: Tensor, shrinkage: Shrinkage = "none") -> Tensor:
    r"""Covariance of rows that have been centred (each about the mean of its class, say), ``(N, D) -> (D, D)``.

    .. math:: \Sigma = (1 - \rho) S + \rho \frac{\mathrm{tr} S}{D} I, \qquad S = \frac1N \sum_n x_n x_n^T

    Args:
        rows: centred rows, ``(N, D)``.
        shrinkage: :math:`\rho` or the rule for it, see `intensity`.

    Example:
        >>> shrunk_covariance(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), 0.5)
        tensor([[3., 0.],
                [0., 1.]])
    """
    rho = intensity(rows, shrinkage)
    cov = rows.mT @ rows / len(rows)
    average = cov.diagonal().mean()
    return (1 - rho) * cov + rho * average * torch.eye(len(cov), dtype=cov.dtype, device=cov.device)


def intensity(rows: Tensor, shrinkage: Shrinkage) -> Tensor:
    r"""Shrinkage intensity :math:`\rho` of a rule, a tensor without axes, from 0 to 1.

    Args:
        rows: centred rows, ``(N, D)``.
        shrinkage: ``"ledoit_wolf"`` estimates the :math:`\rho` of least squared error for any distribution,
            ``"oas"`` for Gaussian rows; ``"ks"`` takes :math:`D / (N - 1 + D)`, the empirical Bayes estimate of the
            precision up to its overall factor; a number is taken as it is.

    Raises:
        ProgramError: no such rule, or a number that is not from 0 to 1.

    Source:
        Ledoit and Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices, Journal of
        Multivariate Analysis 88, 365-411; Chen, Wiesel, Eldar and Hero (2010), Shrinkage algorithms for MMSE covariance
        estimation, IEEE Transactions on Signal Processing 58, 5016-5029, without the terms in 2 / D, as scikit-learn
        has it; Kubokawa and Srivastava (2008), Estimation of the precision matrix of a singular Wishart distribution
        and its application in high-dimensional data, Journal of Multivariate Analysis 99, 1906-1928.

    Example:
        >>> intensity(torch.eye(4), "ks")
        tensor(0.5714)
    """
    if isinstance(shrinkage, str) and shrinkage in _RULES:
        return _RULES[shrinkage](rows)
    if isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
        names = ", ".join(f'"{name}"' for name in _RULES)
        raise ProgramError(f"shrinkage: expected {names} or a number from 0 to 1, got {shrinkage!r}. Change it.")
    return rows.new_tensor(shrinkage)


def _none(rows: Tensor) -> Tensor:
    return rows.new_zeros(())


def _ledoit_wolf(rows: Tensor) -> Tensor:
    """Squared error of the entries of S, over the squared distance from S to the multiple of the identity."""
    num, size = rows.shape
    cov = rows.mT @ rows / num
    squares = rows.square().sum(-1)
    error = (squares.square().mean() - cov.square().sum()) / num
    distance = cov.square().sum() - cov.trace().square() / size
    return _share(error, distance)


def _oracle_approximating(rows: Tensor) -> Tensor:
    num, size = rows.shape
    cov = rows.mT @ rows / num
    square, trace = cov.square().sum(), cov.trace().square()
    return _share(square + trace, (num + 1) * (square - trace / size))


def _empirical_bayes(rows: Tensor) -> Tensor:
    num, size = rows.shape
    return rows.new_tensor(size / (num - 1 + size))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Their ratio, at most 1; 1 where S is a multiple of the identity already."""
    return torch.where(whole > 0, (part / whole).clamp(0, 1), 1.0)


_RULES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"none": _none, "ledoit_wolf": _ledoit_wolf, "oas": _oracle_approximating, "ks": _empirical_bayes}
)
