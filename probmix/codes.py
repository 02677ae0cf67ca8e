"""Rows of codes of levels, and where the levels of columns lie in a table."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["CategoricalCodes", "level_cells", "level_places"]


def level_cells(num_levels: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Column and level of each level of each column in turn, ``(sum of levels,)`` each.

    Example:
        >>> level_cells((2, 3), torch.device("cpu"))
        (tensor([0, 0, 1, 1, 1]), tensor([0, 1, 0, 1, 2]))
    """
    cells = [(column, level) for column, levels in enumerate(num_levels) for level in range(levels)]
    column, level = torch.tensor(cells, device=device).unbind(-1)
    return column, level


def level_places(num_levels: tuple[int, ...], device: torch.device) -> Tensor:
    """Place of each entry of the table ``(D, C)`` among the cells; one past the end where there is no level.

    Example:
        >>> level_places((2, 3), torch.device("cpu"))
        tensor([[0, 1, 5],
                [2, 3, 4]])
    """
    total, first, rows = sum(num_levels), 0, []
    for levels in num_levels:
        rows.append([first + level if level < levels else total for level in range(max(num_levels))])
        first += levels
    return torch.tensor(rows, device=device)


class CategoricalCodes(dist.TorchDistribution):
    r"""Independent codes :math:`0 \dots C - 1` of D columns, as floating-point numbers.

    Args:
        probs: probabilities of the levels of each column, which sum to one, ``(*b, D, C)``.
        validate_args: check values; None leaves it to torch's global setting.

    Example:
        >>> codes = CategoricalCodes(torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]))
        >>> codes.log_prob(torch.tensor([1.0, 2.0])).exp()
        tensor(0.7500)
    """

    arg_constraints = {"probs": constraints.independent(constraints.simplex, 1)}  # noqa: RUF012 - torch's API

    def __init__(self, probs: Tensor, validate_args: bool | None = None) -> None:
        self.probs = probs
        super().__init__(probs.shape[:-2], probs.shape[-2:-1], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Whole numbers below C."""
        return constraints.independent(constraints.integer_interval(0, self.probs.shape[-1] - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CategoricalCodes:
        """Return the same distribution with a larger batch shape."""
        probs = self.probs.expand(torch.Size(batch_shape) + self.probs.shape[-2:])
        return CategoricalCodes(probs, validate_args=self._validate_args)

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw codes ``(*sample_shape, *b, D)``; a level of probability 0 is never drawn."""
        probs = self.probs.expand(torch.Size(sample_shape) + self.probs.shape)
        drawn = torch.multinomial(probs.reshape(-1, probs.shape[-1]), 1, generator=generator)
        return drawn.reshape(probs.shape[:-1]).to(probs)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of rows of codes, ``(*b,)``."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.probs.shape[:-1])
        index = value.long().expand(shape)[..., None]
        return self.probs.expand(*shape, -1).gather(-1, index).squeeze(-1).log().sum(-1)
