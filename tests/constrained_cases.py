"""Covariances of every kind from unconstrained numbers, for optimisers that know nothing of the M-steps."""

from __future__ import annotations

import torch
from torch import Tensor

ALL = ("EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV")
K = 3


def from_free(letters: str, free: Tensor, size: int) -> Tensor:
    """Covariances from unconstrained numbers: logs of volume and shape, and skew matrices for the orientation."""
    counts = {"E": 1, "V": K, "I": 0}
    lengths = [counts[letters[0]], counts[letters[1]] * (size - 1), counts[letters[2]] * size * (size - 1) // 2]
    volume, shape, angles = free.split(lengths)
    shape = shape.reshape(-1, size - 1)
    widths = (volume[:, None] + torch.cat([shape, -shape.sum(-1, keepdim=True)], -1)).exp().expand(K, size)
    skew = free.new_zeros(max(1, counts[letters[2]]), size, size)
    row, column = torch.triu_indices(size, size, 1)
    skew = skew.index_put(
        (torch.arange(len(skew))[:, None], row, column),
        angles.reshape(-1, len(row)) if len(angles) else skew[:, row, column],
    )
    axes = torch.linalg.matrix_exp(skew - skew.mT).expand(K, size, size)
    return axes @ (widths[..., None] * axes.mT)
