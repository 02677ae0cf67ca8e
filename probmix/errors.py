"""What can go wrong, named: every message says what was expected, what came and what to do next."""

from __future__ import annotations

__all__ = ["DataError", "FitError", "MethodError", "ProbmixError", "ProgramError"]


class ProbmixError(Exception):
    """Base of every error that probmix raises on purpose."""


class DataError(ProbmixError, ValueError):
    """The data cannot be used as they are: not finite, wrong shape, too few rows, a constant column."""


class ProgramError(ProbmixError, ValueError):
    """The program cannot be run as written: no observed site, an infinite log density, a site of the wrong shape."""


class MethodError(ProbmixError, TypeError):
    """The method does not apply to this program or to this kind of result."""


class FitError(ProbmixError, RuntimeError):
    """A fit failed: a singular component, no finite start, an objective that is not a number."""
