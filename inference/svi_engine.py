"""What the two engines of SVI have in common: their verbs, what they return and when a run ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from probmix.guides import NormalGuide, ProgramGuide
from probmix.importance import Importance
from probmix.inference.method import Problem
from probmix.typing import Sites

__all__ = ["DROP", "DROPS", "AbstractEngine", "family_name"]

DROP, DROPS = 0.3, 3  # the learning rate falls to 0.3, 0.09 and 0.027 of the first before a run ends


_FULL_RANK_UP_TO = 100  # coordinates: 5,050 parameters for the covariance


def family_name(guide: str, dim: int) -> str:
    """Return the family that ``"auto"`` stands for.

    Example:
        >>> family_name("auto", 100), family_name("auto", 101), family_name("diagonal", 5)
        ('full_rank', 'low_rank', 'diagonal')
    """
    return guide if guide != "auto" else "full_rank" if dim <= _FULL_RANK_UP_TO else "low_rank"


class Result(NamedTuple):
    """All restarts at their end, and the best of them.

    Args:
        guide: the guide of the restart with the best ELBO.
        params: fitted ``pyro.param`` sites of the program in that restart.
        importance: its ELBO and Pareto k.
        converged: whether it ended by its own rule.
        elbos: ELBO of every restart, ``(restarts,)``.
        history: ELBO estimates of every step, ``(restarts, steps)``, NaN after a restart's end.
    """

    guide: NormalGuide | ProgramGuide
    params: Sites
    importance: Importance
    converged: bool
    elbos: Tensor
    history: Tensor


class AbstractEngine(ABC):
    """Frozen settings with the verbs of a method; a state holds all restarts."""

    @abstractmethod
    def start(self, problem: Problem) -> Any:
        """Return the first state."""

    @abstractmethod
    def step(self, problem: Problem, state: Any) -> Any:
        """Return the state after one or more gradient steps."""

    @abstractmethod
    def ended(self, state: Any) -> bool:
        """Return whether every restart has ended, by its own rule or by the step limit."""

    @abstractmethod
    def result(self, problem: Problem, state: Any) -> Result:
        """Return all restarts as they stand."""

    @abstractmethod
    def progress(self, state: Any) -> tuple[int, int]:
        """Return steps done and steps at most."""

    @abstractmethod
    def figures(self, state: Any) -> Mapping[str, str]:
        """Return the figures for the progress bar."""
