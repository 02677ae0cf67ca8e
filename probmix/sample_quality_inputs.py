"""Features of real and generated samples as the scores take them, checked once, and cut so that no table grows."""

from __future__ import annotations

import torch
from torch import Tensor

from probmix.errors import DataError
from probmix.tiles import blocks

__all__ = ["BLOCK", "as_features", "as_labels", "as_pair", "distances", "row_blocks"]

#: Numbers in the largest table of pairs: 32 megabytes in float64.
BLOCK = 2**22


def as_features(features: Tensor, name: str, least: int = 1) -> Tensor:
    """Return features ``(n, d)`` without their graph; numbers of 16 bits become float32.

    Args:
        features: one row for each sample.
        name: what to call them in messages.
        least: fewest rows.

    Raises:
        DataError: no floating-point tensor of two axes, too few rows, no column, or NaN or infinity.

    Example:
        >>> as_features(torch.zeros(5, 2, dtype=torch.float16), "real").dtype
        torch.float32
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        got = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise DataError(f"{name}: expected a tensor of floating-point numbers, got {got}. Convert with .double().")
    if features.ndim != 2 or features.shape[1] < 1:
        raise DataError(
            f"{name}: expected features of shape (n, d), got {tuple(features.shape)}. Images are flattened first, "
            f"{name}.flatten(1), and one column is {name}[:, None]."
        )
    if len(features) < least:
        raise DataError(f"{name}: expected {least} rows or more, got {len(features)}. Add samples.")
    finite = features.isfinite().all(1)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise DataError(
            f"{name}: expected finite numbers, got {len(bad)} of {len(features)} rows with NaN or infinity, the first "
            f"at index {bad[0]}. Drop them with {name}[{name}.isfinite().all(1)]."
        )
    return features.detach().to(torch.promote_types(features.dtype, torch.float32))


def as_pair(
    first: Tensor, second: Tensor, *, names: tuple[str, str] = ("real", "generated"), least: int = 1
) -> tuple[Tensor, Tensor]:
    """Return two samples of the same features, as `as_features` does.

    Raises:
        DataError: either is not as `as_features` expects, or they differ in columns, dtype or device.

    Example:
        >>> x, y = as_pair(torch.zeros(5, 2), torch.ones(3, 2))
        >>> len(x), len(y)
        (5, 3)
    """
    x, y = as_features(first, names[0], least), as_features(second, names[1], least)
    if x.shape[1] != y.shape[1]:
        raise DataError(
            f"{names[1]}: expected {x.shape[1]} columns as {names[0]} has, got {y.shape[1]}. Take the features of both "
            "from the same layer of the same network."
        )
    if first.dtype != second.dtype or x.device != y.device:
        raise DataError(
            f"{names[1]}: expected {first.dtype} on {x.device} as {names[0]} is, got {second.dtype} on {y.device}. "
            f"Convert with {names[1]}.to({names[0]})."
        )
    return x, y


def as_labels(labels: Tensor, name: str, count: int | None = None, of: str = "samples") -> Tensor:
    """Return labels ``(n,)``, whole numbers.

    Args:
        labels: one for each sample.
        name: what to call them in messages.
        count: how many there should be; None: at least one.
        of: what they are the labels of.

    Raises:
        DataError: no whole numbers, more than one axis, or not as many as expected.

    Example:
        >>> as_labels(torch.tensor([3, 1]), "labels", 2)
        tensor([3, 1])
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise DataError(f"{name}: expected a tensor of whole numbers, got {got}. Probabilities need .argmax(1) first.")
    if labels.ndim != 1 or len(labels) != (count or max(1, len(labels))):
        wanted = "one or more, of shape (n,)" if count is None else f"one for each of {count} {of}"
        raise DataError(
            f"{name}: expected {wanted}, got shape {tuple(labels.shape)}. Pass those of the same rows in their order."
        )
    return labels.detach()


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Return Euclidean distances, ``(n, m)``.

    They are made of differences, not of a product of matrices: the distance of a row to its copy is 0, and that of a
    pair is the same number whichever table it stands in, so that ties stay ties.

    Example:
        >>> distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[5., 0.]])
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def row_blocks(num_rows: int, num_columns: int) -> list[slice]:
    """Cut rows so that a block of them has at most `BLOCK` entries, or is one row.

    Example:
        >>> row_blocks(3, BLOCK // 2)
        [slice(0, 2, None), slice(2, 3, None)]
    """
    return blocks(num_rows, max(1, BLOCK // max(1, num_columns)))
