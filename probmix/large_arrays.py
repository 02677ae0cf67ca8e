"""Join blocks of draws into arrays; large ones lie in a temporary file, so that memory does not grow with the draws."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
from torch import Tensor

__all__ = ["joined"]

_IN_MEMORY = 2**29  # bytes


def joined(blocks: Iterator[Mapping[str, Tensor]], count: int) -> dict[str, np.ndarray]:
    """Join blocks along their first axis: name -> array of ``count`` rows, on the host.

    An array of more than 512 MiB is written to a temporary file block by block and mapped into memory from there: it is
    read where it is used, and the file goes when the array does.

    Args:
        blocks: the blocks, in order.
        count: rows in all blocks together.

    Example:
        >>> import torch
        >>> float(joined(iter([{"x": torch.ones(2, 3)}, {"x": torch.zeros(1, 3)}]), 3)["x"].sum())
        6.0
    """
    stores: dict[str, _Store] = {}
    for block in blocks:
        for name, value in block.items():
            array = value.detach().cpu().numpy()
            if name not in stores:
                stores[name] = _Store(array, count)
            stores[name].append(array)
    return {name: store.array() for name, store in stores.items()}


class _Store:
    """Rows of one array, in memory or in a file."""

    def __init__(self, first: np.ndarray, count: int) -> None:
        self._shape, self._dtype = (count, *first.shape[1:]), first.dtype
        large = first[:1].nbytes * count > _IN_MEMORY
        self._file: IO[Any] | None = tempfile.TemporaryFile() if large else None  # noqa: SIM115 (open until mapped)
        self._rows: list[np.ndarray] = []

    def append(self, rows: np.ndarray) -> None:
        """Add rows."""
        if self._file is None:
            self._rows.append(rows)
        else:
            np.ascontiguousarray(rows).tofile(self._file)

    def array(self) -> np.ndarray:
        """Return all rows."""
        if self._file is None:
            return np.concatenate(self._rows)
        self._file.flush()
        with self._file as file:
            return np.memmap(file, dtype=self._dtype, mode="r", shape=self._shape)
