"""What the two engines of SVI have in common: their verbs, what they return and when a run ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probmix.guides import Guide
from probmix.importance import Importance
from probmix.inference.method import Problem
from probmix.status import Status
from probmix.typing import Program, Sites

__all__ = ["DROP", "DROPS", "AbstractEngine", "family_name", "stalled"]

DROP, DROPS = 0.3, 3  # the learning rate falls to 0.3, 0.09 and 0.027 of the first before a run ends


_FULL_RANK_UP_TO = 100  # coordinates: 5,050 parameters for the covariance


def family_name(guide: str, dim: int) -> str:
    """Return the family that ``"auto"`` stands for.

    Example:
        >>> family_name("auto", 100), family_name("auto", 101), family_name("diagonal", 5)
        ('full_rank', 'low_rank', 'diagonal')
    """
    return guide if guide != "auto" else "full_rank" if dim <= _FULL_RANK_UP_TO else "low_rank"


def stalled(elbos: Sequence[float], window: int, tolerance: float) -> bool:
    """Return whether a window of steps ends here whose mean ELBO is not above that of the window before.

    Args:
        elbos: estimates of all steps so far.
        window: steps.
        tolerance: smallest gain that counts, standard errors of the difference.

    Example:
        >>> stalled([0.0, 1.0, 9.0, 10.0], 2, 1.0), stalled([0.0, 1.0, 1.0, 0.0], 2, 1.0), stalled([0.0], 2, 1.0)
        (False, True, False)
    """
    if len(elbos) < 2 * window or len(elbos) % window:
        return False
    last, before = torch.tensor(elbos[-2 * window :]).reshape(2, -1).flip(0)
    error = ((last.var() + before.var()) / window).sqrt()
    return not bool(last.mean() - before.mean() > tolerance * error)


class Result(NamedTuple):
    """All restarts at their end, and the best of them.

    Args:
        guide: the guide of the restart with the best ELBO.
        params: fitted ``pyro.param`` sites of the program in that restart.
        importance: its ELBO and Pareto k.
        converged: whether it ended by its own rule.
        elbos: ELBO of every restart, ``(restarts,)``.
        history: ELBO estimates of every step, ``(restarts, steps)``, NaN after a restart's end.
        program: the program that the guide is about, where the fit has changed it.
        status: how the run ended, where that was not by its rule, the step limit or the user.
    """

    guide: Guide
    params: Sites
    importance: Importance
    converged: bool
    elbos: Tensor
    history: Tensor
    program: Program | None = None
    status: Status | None = None


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
