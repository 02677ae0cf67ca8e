"""Let a program written for one value take a batch of them, where it broadcasts but for its ``expand`` calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["LeadingAxes"]


class LeadingAxes(TorchFunctionMode):
    """Inside, an ``expand`` to fewer axes than the tensor has keeps its leading axes, where torch would refuse.

    GPyTorch expands every value that it is given to the shape of the parameter that the value replaces; with this, its
    own batch axes carry chains and restarts.

    Example:
        >>> with LeadingAxes():
        ...     torch.ones(5, 1).expand(3).shape
        torch.Size([5, 3])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one function."""
        if func is torch.Tensor.expand:
            tensor, *sizes = args
            size = sizes if all(isinstance(n, int) for n in sizes) else sizes[0]
            args = tensor, torch.Size([*tensor.shape[: max(0, tensor.dim() - len(size))], *size])
        return func(*args, **(kwargs or {}))
