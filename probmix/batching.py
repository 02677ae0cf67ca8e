"""Write a function for one draw; this runs it for any leading batch of draws, chains or restarts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["batched"]


def batched(
    function: Callable[[Any], Any],
    inputs: Any,
    *,
    depths: Mapping[str, int] | None = None,
    chunk: int | None = None,
    vectorise: bool = True,
    randomness: str = "error",
) -> Any:
    """Apply a function of one vector (or one dict of sites) to any leading batch of them.

    Args:
        function: takes a vector ``(dim,)`` or a dict of unbatched tensors; returns a tensor or a dict of them.
        inputs: the same with leading axes ``*b``.
        depths: number of non-batch axes of each entry of a dict; a bare tensor has one.
        chunk: at most so many rows at once.
        vectorise: False runs row by row.
        randomness: as in ``torch.func.vmap``.

    Example:
        >>> batched(lambda z: z.sum(), torch.ones(2, 3, 4)).shape
        torch.Size([2, 3])
    """
    entries = inputs if isinstance(inputs, dict) else {"z": inputs}
    depth = depths if isinstance(inputs, dict) and depths else dict.fromkeys(entries, 1)
    name = next(iter(entries))
    batch = entries[name].shape[: entries[name].dim() - depth[name]]
    if not batch:
        return function(inputs)
    rows = {n: v.reshape(-1, *v.shape[len(batch) :]) for n, v in entries.items()}
    call = function if isinstance(inputs, dict) else lambda row: function(row["z"])
    if vectorise:
        result = torch.func.vmap(call, randomness=randomness, chunk_size=chunk)(rows)
    else:
        result = _stack([call({n: v[i] for n, v in rows.items()}) for i in range(batch.numel())])
    return _map(lambda value: value.reshape(*batch, *value.shape[1:]), result)


def _stack(results: list[Any]) -> Any:
    if isinstance(results[0], dict):
        return {name: torch.stack([r[name] for r in results]) for name in results[0]}
    return torch.stack(results)


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    return {n: function(v) for n, v in value.items()} if isinstance(value, dict) else function(value)
