"""What every method is: frozen settings with four verbs, run by the one loop in ``infer``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from probmix.arguments import Arguments
from probmix.errors import FitError, MethodError
from probmix.log_density import LogDensity
from probmix.posterior import AbstractPosterior
from probmix.status import Status
from probmix.typing import Program

__all__ = ["AbstractMethod", "Problem", "common", "require", "status_of_draws"]


@dataclass(frozen=True)
class Problem:
    """A program, its data and the seed: what a method works on.

    Args:
        program: the program.
        arguments: its checked data.
        seed: the seed of the fit.
    """

    program: Program
    arguments: Arguments
    seed: int

    @cached_property
    def log_density(self) -> LogDensity:
        """The program and its data as a log density, made when first asked for."""
        return LogDensity(self.program, self.arguments)


class AbstractMethod(ABC):
    """Settings of a method, and how it works: ``start``, then ``step`` until ``status`` says so, then ``finish``.

    A state holds what the next step needs. `infer` runs the loop: seeding, isolation, progress, interruption.
    """

    @abstractmethod
    def start(self, problem: Problem) -> Any:
        """Return the first state."""

    @abstractmethod
    def step(self, problem: Problem, state: Any) -> Any:
        """Return the next state."""

    @abstractmethod
    def status(self, problem: Problem, state: Any) -> Status | None:
        """Return how the fit ended, or None to go on."""

    @abstractmethod
    def finish(self, problem: Problem, state: Any, status: Status) -> AbstractPosterior:
        """Return the answer; ``status`` may say that the user stopped the fit early."""

    @abstractmethod
    def progress(self, state: Any) -> tuple[int, int]:
        """Return steps done and steps at most."""

    @abstractmethod
    def figures(self, state: Any) -> Mapping[str, str]:
        """Return the figures that matter, for the progress bar; only called when there is one."""


def common(method: AbstractMethod, problem: Problem, status: Status) -> dict[str, Any]:
    """Return the fields that every posterior takes from its fit.

    Example:
        >>> fields = common(None, Problem(print, Arguments(), 7), Status("complete", "done"))
        >>> fields["seed"], fields["status"].ok
        (7, True)
    """
    return {
        "program": problem.program,
        "arguments": problem.arguments,
        "method": method,
        "seed": problem.seed,
        "status": status,
    }


def require(holds: bool, setting: str, expected: str, got: object) -> None:
    """Raise `MethodError` unless a setting is in its range.

    Example:
        >>> require(0 >= 1, "restarts", "at least 1", 0)
        Traceback (most recent call last):
            ...
        probmix.errors.MethodError: restarts: expected at least 1, got 0. Change the setting restarts=.
    """
    if not holds:
        raise MethodError(f"{setting}: expected {expected}, got {got!r}. Change the setting {setting}=.")


def status_of_draws(status: Status, iteration: int, warmup: int) -> Status:
    """Return how a sampler's fit ended: one stopped in warm-up says that its draws are not yet from the posterior.

    Raises:
        FitError: no iteration was done, so there is nothing to keep.

    Example:
        >>> status_of_draws(Status("interrupted", "stopped by the user"), 3, 100).message[:51]
        'stopped by the user in warm-up (3 of 100 iterations'
    """
    if not iteration:
        raise FitError("interrupted before the first iteration was done, so there is nothing to keep. Run it again.")
    if status.state != "interrupted" or iteration > warmup:
        return status
    return Status(
        "interrupted",
        f"stopped by the user in warm-up ({iteration} of {warmup} iterations): these are warm-up draws, not yet draws "
        "from the posterior. Use them as init=, or run again.",
    )
