"""How a fit ended, as a value with advice in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FitWarning", "Status"]


class FitWarning(UserWarning):
    """A fit ended, but not as it should: the message says what to do."""


@dataclass(frozen=True)
class Status:
    """How a fit ended.

    Args:
        state: ``"converged"`` by its own rule; ``"complete"``, all draws made; ``"max_steps"``, stopped by the step
            limit; ``"interrupted"`` by the user, holding what there was; ``"failed"``, not to be used.
        message: the likely cause and the next step.

    Example:
        >>> Status("converged", "gain below 1e-6 nats").ok
        True
    """

    state: Literal["converged", "complete", "max_steps", "interrupted", "failed"]
    message: str

    @property
    def ok(self) -> bool:
        """True where the result is what was asked for."""
        return self.state in ("converged", "complete")

    def __str__(self) -> str:
        return f"{self.state}: {self.message}"
